//! An archive into a directory.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::pack::reopen_with;
use super::place::{Owner, Target};
use super::{CopyError, MAX_ENTRIES, OnPath, join, refused, shown, split};
use crate::entry::{Fail, copy, times};
use crate::error::Refusal;
use crate::import::ReaderInput;
use crate::tar::{Entry, Kind, TarError, TarReader};

/// Directories on the way to an entry that the archive does not name.
const IMPLIED_MODE: u32 = 0o755;
/// Permission bits, without set-id and sticky ones.
const PERMISSIONS: u32 = 0o777;
/// All mode bits but the type.
const MODE_BITS: u32 = 0o7777;

/// Makes what an archive holds below a target; what is there is replaced,
/// but a directory by what is none. What is left out is told by `note`.
///
/// # Errors
/// The archive is none, names something outside, or a file cannot be made.
pub fn unpack(
    target: &Target,
    archive: impl Read,
    mut note: impl FnMut(String),
) -> Result<(), CopyError> {
    let mut tar = TarReader::new(ReaderInput::new(archive));
    let mut unpacker = Unpacker {
        target,
        at: None,
        directories: Vec::new(),
    };
    let mut entries = 0_usize;
    while let Some(entry) = tar.next().map_err(|e| told(e, b""))? {
        entries += 1;
        if entries > MAX_ENTRIES {
            return Err(CopyError::Archive {
                path: String::new(),
                source: Refusal::Limit {
                    what: "it",
                    limit: MAX_ENTRIES as u64,
                    unit: "entries",
                },
            });
        }
        let path = inside(&entry.path)?;
        match entry.kind {
            Kind::Dir => unpacker.directory(&path, &entry)?,
            Kind::File => unpacker.file(&path, &entry, &mut tar)?,
            Kind::Symlink => unpacker.symlink(&path, &entry)?,
            Kind::HardLink => unpacker.hard_link(&path, &entry)?,
            Kind::Char | Kind::Block | Kind::Fifo => note(format!(
                "{}: left out: it is neither a file, a directory nor a link",
                shown(&path)
            )),
        }
    }
    unpacker.finish()
}

fn told(error: TarError, path: &[u8]) -> CopyError {
    match error {
        TarError::Io(e) => CopyError::Read(e),
        TarError::Bad(source) => CopyError::Archive {
            path: shown(path),
            source,
        },
    }
}

/// An entry's path as one below the target; empty for the target itself.
fn inside(path: &[u8]) -> Result<Vec<u8>, CopyError> {
    let mut clean = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                return Err(CopyError::Archive {
                    path: shown(path),
                    source: Refusal::Rule("a name with \"..\" in it"),
                });
            }
            part => clean = join(&clean, part),
        }
    }
    Ok(clean)
}

struct Unpacker<'a> {
    target: &'a Target,
    /// The directory of the entry before.
    at: Option<(Vec<u8>, OwnedFd)>,
    /// What directories get at the end, when nothing is made in them any more.
    directories: Vec<(Vec<u8>, u32, (i64, u32))>,
}

impl Unpacker<'_> {
    /// The directory of an entry, made where it is missing.
    fn enter(&mut self, dir: &[u8]) -> Result<BorrowedFd<'_>, CopyError> {
        if self.at.as_ref().is_none_or(|(path, _)| path != dir) {
            let fd = self.ensure(dir)?;
            self.at = Some((dir.to_vec(), fd));
        }
        match &self.at {
            Some((_, fd)) => Ok(fd.as_fd()),
            None => Err(refused(dir, "there is no such directory")),
        }
    }

    fn ensure(&self, dir: &[u8]) -> Result<OwnedFd, CopyError> {
        match self.target.open_dir(dir) {
            Ok(fd) => return Ok(fd),
            Err(Errno::NOENT) if !dir.is_empty() => {}
            Err(Errno::LOOP) => return Err(refused(dir, "a link is in the way")),
            Err(Errno::NOTDIR) => return Err(refused(dir, "it is no directory")),
            Err(e) => return Err(e).on("open", &self.shown(dir)),
        }
        let (above, name) = split(dir);
        let parent = self.ensure(above)?;
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(IMPLIED_MODE)) {
            Ok(()) => self.own(parent.as_fd(), name, None, dir)?,
            // A link to nothing: opening it tells.
            Err(Errno::EXIST) => {}
            Err(e) => return Err(e).on("mkdir", &self.shown(dir)),
        }
        self.target.open_dir(dir).on("open", &self.shown(dir))
    }

    fn shown(&self, below: &[u8]) -> Vec<u8> {
        join(&self.target.path, below)
    }

    /// User and group for an entry, or for what no entry tells of.
    fn owner(&self, entry: Option<&Entry>) -> (Uid, Gid) {
        let place = &self.target.place;
        let (uid, gid) = match (self.target.owner, entry) {
            (Owner::Fixed(uid, gid), _) => (uid, gid),
            (Owner::Kept, Some(entry)) => (entry.uid, entry.gid),
            (Owner::Kept, None) => (0, 0),
        };
        (
            Uid::from_raw(place.id_outside(uid)),
            Gid::from_raw(place.id_outside(gid)),
        )
    }

    fn mode(&self, entry: &Entry) -> u32 {
        entry.mode
            & match self.target.owner {
                Owner::Fixed(..) => PERMISSIONS,
                Owner::Kept => MODE_BITS,
            }
    }

    fn own(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        entry: Option<&Entry>,
        path: &[u8],
    ) -> Result<(), CopyError> {
        let (uid, gid) = self.owner(entry);
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(dir, name, Some(uid), Some(gid), flags)
            .on("change the owner of", &self.shown(path))
    }

    fn directory(&mut self, path: &[u8], entry: &Entry) -> Result<(), CopyError> {
        if path.is_empty() {
            // The target itself stays as it is.
            return Ok(());
        }
        let (above, name) = split(path);
        let parent = self.ensure(above)?;
        let mut made = match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(e).on("mkdir", &self.shown(path)),
        };
        if !made && self.target.open_dir(path).is_err() {
            // Something else is in its place; a directory would not go.
            self.clear(&parent, name, path)?;
            rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700))
                .on("mkdir", &self.shown(path))?;
            made = true;
        }
        // One that was there keeps what it had.
        if made {
            self.own(parent.as_fd(), name, Some(entry), path)?;
            let mode = self.mode(entry);
            self.directories.push((path.to_vec(), mode, entry.mtime));
        }
        Ok(())
    }

    /// Removes what is in the place of an entry; whether the place is free.
    /// A mount point cannot be removed, and a file there is written over.
    fn clear(&self, dir: impl AsFd, name: &[u8], path: &[u8]) -> Result<bool, CopyError> {
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::BUSY) => Ok(false),
            Err(Errno::ISDIR) => Err(refused(&self.shown(path), "it is a directory")),
            Err(e) => Err(e).on("remove", &self.shown(path)),
        }
    }

    fn file(
        &mut self,
        path: &[u8],
        entry: &Entry,
        tar: &mut TarReader<ReaderInput<impl Read>>,
    ) -> Result<(), CopyError> {
        if path.is_empty() {
            return Err(refused(path, "a file cannot replace the directory"));
        }
        let (above, name) = split(path);
        let dir = self.enter(above)?.try_clone_to_owned();
        let dir = dir.on("duplicate", above)?;
        let whole = self.shown(path);
        if !self.clear(&dir, name, path)? {
            let node = self.target.open_node(path).on("open", &whole)?;
            let stat = rustix::fs::fstat(&node).on("stat", &whole)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(refused(&whole, "something is mounted there"));
            }
            let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NONBLOCK;
            let mut file = reopen_with(&node, flags).on("open", &whole)?;
            return fill(&mut file, entry, tar, &whole);
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o600));
        let mut file = File::from(fd.on("create", &whole)?);
        fill(&mut file, entry, tar, &whole)?;
        let (uid, gid) = self.owner(Some(entry));
        rustix::fs::fchown(&file, Some(uid), Some(gid)).on("change the owner of", &whole)?;
        let mode = Mode::from_raw_mode(self.mode(entry));
        rustix::fs::fchmod(&file, mode).on("change the mode of", &whole)?;
        rustix::fs::futimens(&file, &times(entry.mtime)).on("set the time of", &whole)
    }

    fn symlink(&mut self, path: &[u8], entry: &Entry) -> Result<(), CopyError> {
        let (above, name) = split(path);
        let dir = self.enter(above)?.try_clone_to_owned();
        let dir = dir.on("duplicate", above)?;
        let whole = self.shown(path);
        if !self.clear(&dir, name, path)? {
            return Err(refused(&whole, "something is mounted there"));
        }
        rustix::fs::symlinkat(entry.link.as_slice(), &dir, name).on("symlink", &whole)?;
        self.own(dir.as_fd(), name, Some(entry), path)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(&dir, name, &times(entry.mtime), flags).on("set the time of", &whole)
    }

    fn hard_link(&mut self, path: &[u8], entry: &Entry) -> Result<(), CopyError> {
        let first = inside(&entry.link)?;
        let (above, name) = split(path);
        let dir = self.enter(above)?.try_clone_to_owned();
        let dir = dir.on("duplicate", above)?;
        let whole = self.shown(path);
        let node = self
            .target
            .open_node(&first)
            .on("open", &self.shown(&first))?;
        let stat = rustix::fs::fstat(&node).on("stat", &self.shown(&first))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(refused(&whole, "a hard link to what is no file"));
        }
        if !self.clear(&dir, name, path)? {
            return Err(refused(&whole, "something is mounted there"));
        }
        // By descriptor: it is the file that was looked at.
        let by = format!("/proc/self/fd/{}", node.as_raw_fd());
        let flags = AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(rustix::fs::CWD, by, &dir, name, flags).on("link", &whole)
    }

    /// Modes and times of directories: the last ones first, so that a
    /// directory's time is not changed after it was set.
    fn finish(self) -> Result<(), CopyError> {
        for (path, mode, mtime) in self.directories.iter().rev() {
            let whole = self.shown(path);
            let dir = match self.target.open_dir(path) {
                // Whoever lives there has removed or replaced it.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                other => other.on("open", &whole)?,
            };
            rustix::fs::fchmod(&dir, Mode::from_raw_mode(*mode))
                .on("change the mode of", &whole)?;
            rustix::fs::futimens(&dir, &times(*mtime)).on("set the time of", &whole)?;
        }
        Ok(())
    }
}

/// Writes an entry's data.
fn fill(
    file: &mut File,
    entry: &Entry,
    tar: &mut TarReader<ReaderInput<impl Read>>,
    path: &[u8],
) -> Result<(), CopyError> {
    let fail = |fail: Fail| match fail {
        Fail::Refused(source) => CopyError::Archive {
            path: shown(path),
            source,
        },
        Fail::Sys("read", source) => CopyError::Read(source),
        Fail::Sys(call, source) => CopyError::Call {
            call,
            path: shown(path),
            source,
        },
        Fail::Store(error) => CopyError::Read(std::io::Error::other(error)),
    };
    let Some(map) = &entry.sparse else {
        let left = tar.remaining();
        return copy(tar, file, left).map_err(fail);
    };
    for (offset, length) in map {
        let from = rustix::fs::SeekFrom::Start(*offset);
        rustix::fs::seek(&*file, from).on("seek in", path)?;
        copy(tar, file, *length).map_err(fail)?;
    }
    rustix::fs::ftruncate(&*file, entry.size).on("set the size of", path)
}
