//! Directories and files of a cgroup file system, by descriptor.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Most bytes read from one cgroup file. The longest is `cgroup.procs`: at
/// 8 bytes a line this holds half a million processes.
pub(crate) const MAX_FILE_BYTES: usize = 4 << 20;
/// What one `read` asks for; kernfs gives at most a page at a time.
const READ_CHUNK_BYTES: usize = 4096;
/// How much of a value or of a strange file an error shows.
const SHOWN_BYTES: usize = 200;
/// Buffer for directory entries.
const DIRENT_BUFFER_BYTES: usize = 4096;

/// An open (`O_PATH`) directory and the name to show for it.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Dir {
    /// Wraps an open directory.
    pub(crate) fn new(fd: OwnedFd, path: PathBuf) -> Self {
        Self { fd, path }
    }

    /// The name to show.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory `below` this one, never outside of it and never through
    /// a link or another mount.
    pub(crate) fn open_dir(&self, below: &str) -> std::result::Result<Dir, Errno> {
        let fd = rustix::fs::openat2(
            &self.fd,
            below,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
        )?;
        let path = match below {
            "." => self.path.clone(),
            below => self.path.join(below),
        };
        Ok(Dir::new(fd, path))
    }

    /// A descriptor of this directory that can be listed and given to
    /// `bpf(2)`.
    pub(crate) fn reopen(&self) -> Result<OwnedFd> {
        rustix::fs::openat(
            &self.fd,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|source| Error::Open {
            path: self.path.clone(),
            source,
        })
    }

    /// Makes the directory `name` in this one; true if it was not there.
    pub(crate) fn mkdir(&self, name: &str) -> Result<bool> {
        match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(source) => Err(Error::Create {
                path: self.path.join(name),
                source,
            }),
        }
    }

    /// Removes the directory `name` of this one.
    pub(crate) fn rmdir(&self, name: &str) -> std::result::Result<(), Errno> {
        rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR)
    }

    /// Opens a file of this directory.
    pub(crate) fn open_file(
        &self,
        file: &str,
        flags: OFlags,
    ) -> std::result::Result<OwnedFd, Errno> {
        rustix::fs::openat(
            &self.fd,
            file,
            flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY,
            Mode::empty(),
        )
    }

    /// Opens a file to read.
    pub(crate) fn open_read(&self, file: &str) -> Result<OwnedFd> {
        self.open_file(file, OFlags::RDONLY)
            .map_err(|source| Error::Open {
                path: self.path.join(file),
                source,
            })
    }

    /// True if the directory has this file.
    pub(crate) fn has(&self, file: &str) -> bool {
        rustix::fs::statat(&self.fd, file, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// The whole content of a file.
    pub(crate) fn read(&self, file: &str) -> Result<String> {
        self.open_file(file, OFlags::RDONLY)
            .and_then(|fd| read_all(fd.as_fd()))
            .map_err(|source| Error::Read {
                path: self.path.join(file),
                source,
            })
    }

    /// The whole content of a file, or `None` where there is none (or the
    /// kernel says that it does not support it).
    pub(crate) fn read_optional(&self, file: &str) -> Result<Option<String>> {
        match self.read(file) {
            Ok(text) => Ok(Some(text)),
            Err(error) => match error.errno() {
                Some(Errno::NOENT | Errno::OPNOTSUPP) => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// A file that holds one number; `max` and v1's "no limit" are `None`
    /// inside.
    pub(crate) fn read_number(&self, file: &str) -> Result<Option<u64>> {
        let text = self.read(file)?;
        parse_number(&text).ok_or_else(|| self.strange(file, &text))
    }

    /// As [`Dir::read_number`]; a missing file is `None` like no limit.
    pub(crate) fn read_number_optional(&self, file: &str) -> Result<Option<u64>> {
        match self.read_optional(file)? {
            None => Ok(None),
            Some(text) => parse_number(&text).ok_or_else(|| self.strange(file, &text)),
        }
    }

    /// The error for content that is not as documented.
    pub(crate) fn strange(&self, file: &str, content: &str) -> Error {
        Error::Content {
            path: self.path.join(file),
            content: content.chars().take(SHOWN_BYTES).collect(),
        }
    }

    /// Writes a value in one `write`, which cgroup files take as one
    /// command. Never creates a file.
    pub(crate) fn write_raw(&self, file: &str, value: &str) -> std::result::Result<(), Errno> {
        let fd = self.open_file(file, OFlags::WRONLY)?;
        write_once(fd.as_fd(), value.as_bytes())
    }

    /// As [`Dir::write_raw`], with an error that says what was written where.
    pub(crate) fn write(&self, file: &str, value: &str) -> Result<()> {
        self.write_raw(file, value)
            .map_err(|source| self.write_error(file, value, source))
    }

    /// The error of a refused write.
    pub(crate) fn write_error(&self, file: &str, value: &str, source: Errno) -> Error {
        Error::Write {
            path: self.path.join(file),
            value: value.chars().take(SHOWN_BYTES).collect(),
            hint: hint(file, source),
            source,
        }
    }

    /// Names of the directories in this one.
    pub(crate) fn subdirs(&self) -> Result<Vec<CString>> {
        let fd = self.reopen()?;
        let fail = |source| Error::Read {
            path: self.path.clone(),
            source,
        };
        let mut buffer = Vec::with_capacity(DIRENT_BUFFER_BYTES);
        let mut entries = RawDir::new(&fd, buffer.spare_capacity_mut());
        let mut names = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name();
            let dot = name.to_bytes() == b"." || name.to_bytes() == b"..";
            if entry.file_type() == rustix::fs::FileType::Directory && !dot {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}

/// What an errno means for a file, where it is known and not plain.
fn hint(file: &str, source: Errno) -> &'static str {
    match (file, source) {
        ("cpuset.cpus" | "cpuset.mems", Errno::ACCESS) => " (not within the parent's set)",
        ("cpuset.cpus" | "cpuset.mems", Errno::BUSY | Errno::NOSPC) => {
            " (in use by tasks or children of the group)"
        }
        ("cpu.shares" | "cpu.weight", Errno::INVAL) => " (the group is idle: set cpu.idle to 0)",
        ("cpu.cfs_quota_us" | "cpu.max" | "cpu.cfs_burst_us" | "cpu.max.burst", Errno::INVAL) => {
            " (out of range, above the parent's limit, or burst above quota)"
        }
        ("cpu.rt_runtime_us" | "cpu.rt_period_us", Errno::INVAL) => {
            " (more than the parent has left, or runtime above period)"
        }
        ("memory.memsw.limit_in_bytes", Errno::INVAL) => " (must not be below the memory limit)",
        ("memory.limit_in_bytes", Errno::INVAL) => {
            " (above the limit for memory and swap: raise memory.swap too)"
        }
        (_, Errno::NOENT) => " (this kernel has no such file here)",
        (_, Errno::NODEV) => " (no such device)",
        (_, Errno::OPNOTSUPP) => " (not supported by this kernel or device)",
        _ => "",
    }
}

/// One `write`, repeated only if a signal came first.
pub(crate) fn write_once(fd: BorrowedFd<'_>, value: &[u8]) -> std::result::Result<(), Errno> {
    let written = rustix::io::retry_on_intr(|| rustix::io::write(fd, value))?;
    if written == value.len() {
        Ok(())
    } else {
        Err(Errno::IO)
    }
}

/// Reads a file from its start to its end, with `pread`, so that a kept
/// descriptor can be read again.
pub(crate) fn read_all(fd: BorrowedFd<'_>) -> std::result::Result<String, Errno> {
    let mut content = Vec::with_capacity(READ_CHUNK_BYTES);
    loop {
        if content.len() >= MAX_FILE_BYTES {
            return Err(Errno::FBIG);
        }
        content.reserve(READ_CHUNK_BYTES);
        let offset = content.len() as u64;
        let read = rustix::io::retry_on_intr(|| {
            rustix::io::pread(fd, rustix::buffer::spare_capacity(&mut content), offset)
        })?;
        if read == 0 {
            break;
        }
    }
    String::from_utf8(content).map_err(|_| Errno::ILSEQ)
}

/// v1 reports "no limit" as a huge number: `PAGE_COUNTER_MAX` pages in
/// bytes, or i64::MAX rounded down to a page.
const V1_UNLIMITED_BYTES: u64 = 0x7fff_ffff_ffff_0000;

/// A number or `max`: outer `None` for anything else, inner `None` for no
/// limit (`max`, `-1`, v1's huge number).
#[expect(clippy::option_option, reason = "not a number / no limit / a limit")]
pub(crate) fn parse_number(text: &str) -> Option<Option<u64>> {
    match text.trim() {
        "max" | "-1" => Some(None),
        number => {
            let number: u64 = number.parse().ok()?;
            Some((number < V1_UNLIMITED_BYTES).then_some(number))
        }
    }
}

/// The value of `key` in a file of `key value` lines.
pub(crate) fn flat_value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(parse_number("max\n"), Some(None));
        assert_eq!(parse_number("-1\n"), Some(None));
        assert_eq!(parse_number("9223372036854771712\n"), Some(None));
        assert_eq!(parse_number("4096\n"), Some(Some(4096)));
        assert_eq!(parse_number(""), None);
        assert_eq!(parse_number("12 34"), None);
    }

    #[test]
    fn flat_files() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(flat_value(text, "oom_kill"), Some(3));
        assert_eq!(flat_value(text, "oom"), None);
    }

    #[test]
    fn a_directory_is_not_left() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(tmp.path().join("a/b")).unwrap();
        std::os::unix::fs::symlink("/", tmp.path().join("a/link")).unwrap();
        let fd = rustix::fs::open(
            tmp.path().join("a"),
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .unwrap();
        let dir = Dir::new(fd, tmp.path().join("a"));
        assert!(dir.open_dir("b").is_ok());
        assert_eq!(dir.open_dir("..").unwrap_err(), Errno::XDEV);
        assert_eq!(dir.open_dir("b/../..").unwrap_err(), Errno::XDEV);
        assert_eq!(dir.open_dir("link").unwrap_err(), Errno::LOOP);
        assert_eq!(dir.open_dir("link/etc").unwrap_err(), Errno::LOOP);
        assert_eq!(dir.open_dir("/etc").unwrap_err(), Errno::XDEV);
        assert_eq!(dir.subdirs().unwrap(), [c"b".to_owned()]);
    }
}
