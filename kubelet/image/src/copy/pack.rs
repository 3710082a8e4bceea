//! A file or directory into an archive.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::place::{Place, beneath, open};
use super::{CopyError, MAX_ENTRIES, MAX_SIZELESS_BYTES, OnPath, base_name, join, refused};
use crate::fsutil;
use crate::tarwrite::{Meta, finish, header, pad};

/// File systems of the kernel's own (`linux/magic.h`): procfs, sysfs, cgroup,
/// cgroup2, devpts, mqueue, debugfs, tracefs, securityfs, bpffs. A copy of a
/// tree does not go into them.
const KERNEL_FILE_SYSTEMS: [i64; 10] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x1cd1,
    0x1980_0202,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xcafe_4a11,
];

/// What is copied.
#[derive(Debug)]
pub struct Source {
    place: Place,
    path: Vec<u8>,
    node: OwnedFd,
    stat: Stat,
}

impl Source {
    /// Opens a file or directory by a user's path; a link is followed.
    ///
    /// # Errors
    /// It is not there, or neither file nor directory.
    pub fn open(place: Place, path: &[u8]) -> Result<Self, CopyError> {
        let node = place.open(path, OFlags::PATH).on("open", path)?;
        let stat = rustix::fs::fstat(&node).on("stat", path)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::Directory => {}
            _ => return Err(refused(path, "it is neither a file nor a directory")),
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && path.ends_with(b"/") {
            return Err(refused(path, "it is no directory"));
        }
        Ok(Self {
            place,
            path: path.to_vec(),
            node,
            stat,
        })
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        FileType::from_raw_mode(self.stat.st_mode) == FileType::Directory
    }

    /// What its path ends with; empty where that names nothing (`/`, `x/.`).
    #[must_use]
    pub fn base_name(&self) -> &[u8] {
        base_name(&self.path)
    }
}

/// Writes an archive of a source, whose entry is called `base`; without one
/// the entries are what a directory holds. What is left out is told by
/// `note`.
///
/// # Errors
/// A file cannot be read, or the archive not be written.
pub fn pack(
    source: &Source,
    base: &[u8],
    out: &mut impl Write,
    mut note: impl FnMut(String),
) -> Result<(), CopyError> {
    let mut packer = Packer {
        source,
        out,
        note: &mut note,
        entries: 0,
    };
    if source.is_directory() {
        packer.directories(base)?;
    } else {
        packer.file(&source.node, &source.stat, base, &source.path)?;
    }
    finish(packer.out)
        .and_then(|()| packer.out.flush())
        .map_err(CopyError::Write)
}

struct Packer<'a, W> {
    source: &'a Source,
    out: &'a mut W,
    note: &'a mut dyn FnMut(String),
    entries: usize,
}

impl<W: Write> Packer<'_, W> {
    fn directories(&mut self, base: &[u8]) -> Result<(), CopyError> {
        let source = self.source;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::openat(&source.node, c".", flags, Mode::empty());
        let top = top.on("open", &source.path)?;
        if !base.is_empty() {
            self.put(b'5', base, &source.stat, &[], 0)?;
        }
        // Below the top: paths, and the file system that each was found on.
        let mut todo: Vec<(Vec<u8>, u64)> = vec![(Vec::new(), source.stat.st_dev)];
        while let Some((below, parent_device)) = todo.pop() {
            let shown = join(&source.path, &below);
            let dir = if below.is_empty() {
                top.try_clone().on("duplicate", &shown)?
            } else {
                match open(&top, &below, flags, beneath()) {
                    // It has gone, or something else is in its place.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                    other => other.on("open", &shown)?,
                }
            };
            let stat = rustix::fs::fstat(&dir).on("stat", &shown)?;
            if stat.st_dev != parent_device && is_kernels(&dir) {
                (self.note)(format!(
                    "{}: left out: a file system of the kernel",
                    show(&shown)
                ));
                continue;
            }
            let names = fsutil::list_dir(dir.as_fd(), MAX_ENTRIES).on("list", &shown)?;
            for (name, _) in names {
                let name = name.to_bytes();
                let path = join(&below, name);
                if self.node(dir.as_fd(), name, base, &path)? {
                    todo.push((path, stat.st_dev));
                }
            }
        }
        Ok(())
    }

    /// One entry of a directory; whether it is one itself.
    fn node(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        base: &[u8],
        below: &[u8],
    ) -> Result<bool, CopyError> {
        let shown = join(&self.source.path, below);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let node = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
            // Removed meanwhile.
            Err(Errno::NOENT) => return Ok(false),
            other => other.on("open", &shown)?,
        };
        let stat = rustix::fs::fstat(&node).on("stat", &shown)?;
        let path = join(base, below);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                self.put(b'5', &path, &stat, &[], 0)?;
                return Ok(true);
            }
            FileType::RegularFile => self.file(&node, &stat, &path, &shown)?,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&node, c"", Vec::new());
                let target = target.on("readlink", &shown)?;
                self.put(b'2', &path, &stat, target.to_bytes(), 0)?;
            }
            _ => (self.note)(format!(
                "{}: left out: it is neither a file, a directory nor a link",
                show(&shown)
            )),
        }
        Ok(false)
    }

    fn file(
        &mut self,
        node: &OwnedFd,
        stat: &Stat,
        path: &[u8],
        shown: &[u8],
    ) -> Result<(), CopyError> {
        let told = u64::try_from(stat.st_size).unwrap_or(0);
        if told == 0 {
            let bytes = if stat.st_blocks == 0 && self.entries == 0 {
                // Asked for by name, and maybe one that tells no size.
                sizeless(node).on("read", shown)?
            } else {
                Vec::new()
            };
            let size = u64::try_from(bytes.len()).unwrap_or(0);
            self.put(b'0', path, stat, &[], size)?;
            self.out.write_all(&bytes).map_err(CopyError::Write)?;
            return pad(self.out, size).map_err(CopyError::Write);
        }
        let mut file = reopen(node).on("open", shown)?;
        self.put(b'0', path, stat, &[], told)?;
        let mut left = told;
        let mut buffer = vec![0; 64 << 10];
        while left > 0 {
            let most = usize::try_from(left).map_or(buffer.len(), |l| l.min(buffer.len()));
            let n = match file.read(&mut buffer[..most]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other.on("read", shown)?,
            };
            if n == 0 {
                // The header is out: the rest is filled up, as tar(1) does.
                (self.note)(format!("{}: became shorter while it was read", show(shown)));
                let rest = io::copy(&mut io::repeat(0).take(left), self.out);
                rest.map_err(CopyError::Write)?;
                break;
            }
            self.out.write_all(&buffer[..n]).map_err(CopyError::Write)?;
            left -= u64::try_from(n).unwrap_or(left);
        }
        pad(self.out, told).map_err(CopyError::Write)
    }

    fn put(
        &mut self,
        kind: u8,
        path: &[u8],
        stat: &Stat,
        link: &[u8],
        size: u64,
    ) -> Result<(), CopyError> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(refused(&self.source.path, "it holds too many files"));
        }
        let meta = Meta {
            path,
            link,
            kind,
            mode: stat.st_mode & 0o7777,
            uid: self.source.place.id_inside(stat.st_uid),
            gid: self.source.place.id_inside(stat.st_gid),
            size,
            mtime_s: stat.st_mtime,
            ..Meta::default()
        };
        header(self.out, &meta).map_err(CopyError::Write)
    }
}

fn show(path: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(path)
}

fn is_kernels(dir: &OwnedFd) -> bool {
    rustix::fs::fstatfs(dir).is_ok_and(|s| KERNEL_FILE_SYSTEMS.contains(&s.f_type))
}

/// Opens what a descriptor is on: it was seen to be a regular file, and is
/// the same one still.
pub(super) fn reopen_with(node: &OwnedFd, flags: OFlags) -> rustix::io::Result<File> {
    let path = format!("/proc/self/fd/{}", node.as_raw_fd());
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).map(File::from)
}

fn reopen(node: &OwnedFd) -> rustix::io::Result<File> {
    reopen_with(node, OFlags::RDONLY | OFlags::NONBLOCK)
}

fn sizeless(node: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = reopen(node)?;
    file.take(MAX_SIZELESS_BYTES + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|n| n > MAX_SIZELESS_BYTES) {
        let text = format!("it tells no size and has more than {MAX_SIZELESS_BYTES} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}
