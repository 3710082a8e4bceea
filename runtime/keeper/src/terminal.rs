//! A pseudo-terminal out of the container's own devpts.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{OFlags, major, minor};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::error::{Context, Result, refusal};
use crate::files::{has_magic, own};
use crate::inroot::{EMPTY, Root};
use crate::plan::Terminal;

/// DEVPTS_SUPER_MAGIC of `linux/magic.h`.
const DEVPTS_MAGIC: i64 = 0x1cd1;
/// Device number of ptmx (Documentation/admin-guide/devices.txt).
const PTMX_DEVICE: (u32, u32) = (5, 2);
/// Group of terminals on every distribution (mesg(1)).
const TTY_GROUP: u32 = 5;

/// Both sides of a terminal.
#[derive(Debug)]
pub struct Pty {
    /// For rkube.
    pub master: OwnedFd,
    /// For the program.
    pub slave: OwnedFd,
}

/// Opens a terminal and makes it the controlling one of this session.
///
/// The slave is opened by TIOCGPTPEER, never by its name, and the multiplexer
/// must be the one of a devpts: nothing in the image can put itself in the
/// place of either (CVE-2025-52565).
pub fn open(root: &Root, wanted: &Terminal, uid: u32) -> Result<Pty> {
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = root
        .open(b"/dev/pts/ptmx", flags)
        .on("open", "/dev/pts/ptmx")?;
    let stat = rustix::fs::fstat(&master).on("stat", "/dev/pts/ptmx")?;
    let device = (major(stat.st_rdev), minor(stat.st_rdev));
    if device != PTMX_DEVICE || !has_magic(&master, DEVPTS_MAGIC) {
        return Err(refusal(
            "open",
            "/dev/pts/ptmx",
            "it is no terminal multiplexer",
        ));
    }
    unlockpt(&master).on("unlock", "terminal")?;
    let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, peer).on("open", "slave of the terminal")?;
    if let Some((columns, rows)) = wanted.size {
        let size = Winsize {
            ws_col: columns,
            ws_row: rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&slave, size).on("set size of", "terminal")?;
    }
    if uid != 0 {
        own(&slave, uid, TTY_GROUP).on("change owner of", "terminal")?;
    }
    rustix::process::ioctl_tiocsctty(&slave).on("make controlling", "terminal")?;
    Ok(Pty { master, slave })
}

/// Shows the terminal as /dev/console, as a program expects it.
pub fn attach_console(root: &Root, pty: &Pty) -> Result<()> {
    let at = root
        .ensure_file(b"/dev/console")
        .on("make", "/dev/console")?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = open_tree(pty.slave.as_fd(), EMPTY, flags).on("clone", "terminal")?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount.as_fd(), EMPTY, at.as_fd(), EMPTY, flags).on("attach", "/dev/console")
}
