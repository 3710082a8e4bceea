//! The tiny program that makes containers, as bytes and as a running process.

use std::ffi::CStr;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rkube_sys::mount::{
    AttrChange, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY,
    set_attributes,
};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

/// The keeper ELF, compiled and packed by this crate's build script.
const PACKED: &[u8] = include_bytes!(env!("RKUBE_KEEPER_ELF"));
/// Its size unpacked, in decimal digits.
const BYTES: &str = env!("RKUBE_KEEPER_BYTES");
/// Name of a kept copy of this very ELF; no container's id has an `@`.
const KEPT: &str = concat!("@stage-", env!("RKUBE_KEEPER_HASH"));
/// Permissions of a kept copy: nobody writes to it, not even by mistake.
const KEPT_MODE: u32 = 0o500;
/// How long a copy may be open for writing in the child of another thread, and
/// the pause between two looks.
const BUSY_LIMIT: Duration = Duration::from_secs(1);
const BUSY_PAUSE: Duration = Duration::from_millis(1);
const EMPTY: &CStr = c"";

/// The keeper ELF (`runtime/keeper`).
///
/// # Errors
/// The program's own data is damaged.
pub fn elf() -> std::io::Result<Vec<u8>> {
    let mut elf = Vec::with_capacity(BYTES.parse().unwrap_or(0));
    flate2::read::GzDecoder::new(PACKED).read_to_end(&mut elf)?;
    Ok(elf)
}

/// The keeper ELF as a file that nobody can write to, from which any number of
/// processes can be started. It is not the file of the running program
/// (CVE-2019-5736).
#[derive(Debug)]
pub struct Program(OwnedFd);

impl Program {
    /// A sealed memory file: for a process that stays.
    ///
    /// # Errors
    /// memfd_create(2)'s and write(2)'s.
    pub fn new() -> std::io::Result<Self> {
        rkube_sys::memfd::sealed_program(c"rkube-keeper", &elf()?).map(Self)
    }

    /// A copy that is kept in a directory, behind a read-only mount of its own
    /// that is attached nowhere: for a command, which would spend a tenth of
    /// its time on filling a memory file, and whose containers share the
    /// copy's pages. Where the directory is not root's alone, or the kernel
    /// refuses, a memory file it is.
    ///
    /// # Errors
    /// As [`Program::new`].
    pub fn kept(dir: &Path) -> std::io::Result<Self> {
        match keep(dir) {
            Ok(Some(mount)) => Ok(Self(mount)),
            Ok(None) | Err(_) => Self::new(),
        }
    }

    /// The descriptor of the file.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Starts it in `mode` (`keeper` or `stage`) with `socket` as its standard
    /// input. Standard error is inherited only by a stage: what it says there
    /// is about itself.
    ///
    /// # Errors
    /// posix_spawn(3)'s; `EACCES` where memory files may not be executed
    /// (`vm.memfd_noexec`).
    pub fn spawn(&self, mode: &str, socket: OwnedFd) -> std::io::Result<Child> {
        let stderr = if mode == "stage" {
            Stdio::inherit()
        } else {
            Stdio::null()
        };
        // The path is resolved by the new process before close-on-exec takes
        // the descriptor away.
        let mut command = Command::new(format!("/proc/self/fd/{}", self.0.as_raw_fd()));
        command
            .arg(mode)
            .env_clear()
            .stdin(Stdio::from(socket))
            .stdout(Stdio::null())
            .stderr(stderr);
        let start = Instant::now();
        loop {
            match command.spawn() {
                // Another thread was starting a program while the copy was
                // written: its child has the descriptor until it executes.
                Err(e)
                    if e.kind() == std::io::ErrorKind::ExecutableFileBusy
                        && start.elapsed() < BUSY_LIMIT =>
                {
                    std::thread::sleep(BUSY_PAUSE);
                }
                other => return other,
            }
        }
    }
}

/// `None` where others than root could change the directory or the copy.
fn keep(dir: &Path) -> std::io::Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(CWD, dir, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&dir)?;
    let for_others = Mode::WGRP | Mode::WOTH;
    if stat.st_uid != 0 || Mode::from_raw_mode(stat.st_mode).intersects(for_others) {
        return Ok(None);
    }
    let file = match open(&dir) {
        Err(Errno::NOENT) => {
            write(&dir)?;
            open(&dir)?
        }
        other => other?,
    };
    let stat = rustix::fs::fstat(&file)?;
    let whole = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && stat.st_uid == 0
        && stat.st_mode & 0o7777 == KEPT_MODE
        && BYTES.parse() == Ok(stat.st_size);
    if !whole {
        return Ok(None);
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = open_tree(file.as_fd(), EMPTY, flags)?;
    let change = AttrChange {
        set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
        // /run often forbids execution.
        clear: MOUNT_ATTR_NOEXEC,
        propagation: rkube_sys::mount::MS_PRIVATE,
    };
    set_attributes(mount.as_fd(), change, false)?;
    Ok(Some(mount))
}

fn open(dir: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, KEPT, flags, Mode::empty())
}

/// Writes the copy beside and links it into place: it is whole or absent, and
/// the first of several commands wins.
fn write(dir: &OwnedFd) -> std::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, ".", flags, Mode::from_raw_mode(KEPT_MODE))?;
    let mut file = std::fs::File::from(fd);
    file.write_all(&elf()?)?;
    let mode = Mode::from_raw_mode(KEPT_MODE);
    rustix::fs::fchmod(&file, mode)?;
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    match rustix::fs::linkat(CWD, from.as_str(), dir, KEPT, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn names(dir: &Path) -> Vec<std::ffi::OsString> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|e| e.unwrap().file_name()).collect()
    }

    #[test]
    fn a_copy_is_kept_and_nobody_writes_to_it() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let program = Program::kept(dir.path()).unwrap();
            assert_eq!(names(dir.path()), [KEPT]);
            let path = format!("/proc/self/fd/{}", program.fd().as_raw_fd());
            assert_eq!(std::fs::read(&path).unwrap(), elf().unwrap());
            let refused = std::fs::OpenOptions::new().write(true).open(&path);
            let refused = refused.unwrap_err().kind();
            assert_eq!(refused, std::io::ErrorKind::ReadOnlyFilesystem);
        }
    }

    #[test]
    fn what_others_could_have_changed_is_not_used() {
        let is_memory = |program: &Program| {
            let path = format!("/proc/self/fd/{}", program.fd().as_raw_fd());
            let link = std::fs::read_link(path).unwrap();
            link.to_string_lossy().contains("memfd:")
        };
        let dir = tempfile::tempdir().unwrap();
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        set(dir.path(), 0o777);
        assert!(is_memory(&Program::kept(dir.path()).unwrap()));
        set(dir.path(), 0o755);
        assert!(!is_memory(&Program::kept(dir.path()).unwrap()));
        let copy = dir.path().join(KEPT);
        set(&copy, 0o700);
        assert!(is_memory(&Program::kept(dir.path()).unwrap()));
        std::fs::remove_file(&copy).unwrap();
        std::os::unix::fs::symlink("/bin/true", &copy).unwrap();
        assert!(is_memory(&Program::kept(dir.path()).unwrap()));
        assert!(is_memory(&Program::kept(Path::new("/nowhere")).unwrap()));
    }
}
