//! What a directory of the image holds, copied into the tmpfs that covers it
//! (the mount option `tmpcopyup`).
//!
//! Types, permissions, owners and contents are kept; times, extended
//! attributes and hard links are not, and sockets are left out. Everything
//! goes by descriptor and no symbolic link is followed.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fchmod, fchown, fstat, mkdirat,
    mknodat, openat, readlinkat, statat, symlinkat,
};
use rustix::io::Errno;

/// Directories below each other that are copied; each holds two descriptors.
const MAX_DEPTH: u32 = 128;
/// Bytes that are copied at one time.
const COPY_BYTES: usize = 64 << 10;

/// Copies what is in `from` to `to`, and with `itself` the directory's owner
/// and permissions.
///
/// # Errors
/// The first call that did not work; ELOOP beyond 128 directories.
pub fn copy(from: &OwnedFd, to: BorrowedFd<'_>, itself: bool) -> Result<(), Errno> {
    if itself {
        // A mount's own descriptor stands for a place and takes no changes.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(to, c".", flags, Mode::empty())?;
        own(opened.as_fd(), &fstat(from)?)?;
    }
    entries(from, to, MAX_DEPTH)
}

fn own(fd: BorrowedFd<'_>, stat: &Stat) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchown(fd, Some(uid), Some(gid))?;
    // After the owner, whose change takes the set-id bits away (chown(2)).
    fchmod(fd, Mode::from_raw_mode(stat.st_mode & 0o7777))
}

fn entries(from: &OwnedFd, to: BorrowedFd<'_>, depth: u32) -> Result<(), Errno> {
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        one(from, to, name, depth)?;
    }
    Ok(())
}

fn one(from: &OwnedFd, to: BorrowedFd<'_>, name: &CStr, depth: u32) -> Result<(), Errno> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let private = Mode::from_raw_mode(0o700);
    let open = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let kind = FileType::from_raw_mode(stat.st_mode);
    match kind {
        FileType::Directory => {
            let depth = depth.checked_sub(1).ok_or(Errno::LOOP)?;
            let flags = open | OFlags::RDONLY | OFlags::DIRECTORY;
            let below = openat(from, name, flags, Mode::empty())?;
            mkdirat(to, name, private)?;
            let made = openat(to, name, flags, Mode::empty())?;
            entries(&below, made.as_fd(), depth)?;
            own(made.as_fd(), &stat)
        }
        FileType::RegularFile => {
            let source = openat(from, name, open | OFlags::RDONLY, Mode::empty())?;
            if FileType::from_raw_mode(fstat(&source)?.st_mode) != FileType::RegularFile {
                return Err(Errno::STALE);
            }
            let flags = open | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let made = openat(to, name, flags, private)?;
            content(&source, &made)?;
            own(made.as_fd(), &stat)
        }
        FileType::Symlink => {
            symlinkat(&readlinkat(from, name, Vec::new())?, to, name)?;
            give(to, name, &stat)
        }
        FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo => {
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
            mknodat(to, name, kind, mode, stat.st_rdev)?;
            give(to, name, &stat)
        }
        // Whoever listens on a socket does so at its first place alone.
        _ => Ok(()),
    }
}

fn give(to: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

fn content(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    let mut buffer = vec![0_u8; COPY_BYTES];
    loop {
        let mut rest = match rustix::io::read(from, &mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => buffer.get(..n).unwrap_or_default(),
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        while !rest.is_empty() {
            match rustix::io::write(to, rest) {
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}
