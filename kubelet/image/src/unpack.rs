//! Turns the entries of a layer archive into a directory that overlayfs can
//! use as a lower layer.
//!
//! Invariants:
//! - Every path is split here; the kernel is given one name relative to the
//!   descriptor of its parent, and parents are opened with
//!   `RESOLVE_BENEATH|NO_SYMLINKS|NO_XDEV`. An archive cannot write through a
//!   link, its own or another's.
//! - Files are made with `O_EXCL`; an entry that comes twice replaces the
//!   first, never writes into it (its inode may have other names).
//! - `trusted.*` attributes never come from an archive: the only
//!   `trusted.overlay.opaque` is the one that a `.wh..wh..opq` entry means
//!   (OCI image spec, layer.md, "Whiteouts"; kernel: overlayfs.rst).

mod finish;

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;

use crate::entry::{Fail, Named, copy, is_whiteout_stat, own_at, refuse, set_opaque, times};
use crate::error::{Error, Refusal, Result};
use crate::fsutil::{self, DIR_FLAGS};
use crate::layer::{
    AUFS_META_PREFIX, LayerInfo, OPAQUE_MARKER, WHITEOUT_PREFIX, clean, split, xattr_allowed,
};
use crate::limits::{MAX_DIR_TIMES_BYTES, MAX_LAYER_ENTRIES, MAX_PATH_BYTES, MAX_RECORDED_DEVICES};
use crate::pipe::Budget;
use crate::tar::{Entry, Input, Kind, TarError, TarReader};
use finish::{allocated, freed_by_removing};

/// Seconds since 1970 and nanoseconds.
type Mtime = (i64, u32);

/// Block of the usual file systems, as [`LayerInfo::disk_bytes`] has it.
const BLOCK_BYTES: u64 = 4096;

/// Unpacks one layer below a directory handle.
pub(crate) struct Unpacker<'a> {
    root: BorrowedFd<'a>,
    layer: &'a str,
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Directories that were made, with the times that they get at the end.
    dirs: Vec<(Vec<u8>, Option<Mtime>)>,
    /// Paths whose lower content this layer hides: a directory made there is
    /// opaque, whatever the order of the entries.
    hidden: HashSet<Vec<u8>>,
    remembered_bytes: usize,
    budget: &'a Budget,
    info: LayerInfo,
}

impl<'a> Unpacker<'a> {
    /// `root` is an empty directory of ours with mode 0755; `budget` bounds
    /// what is taken of the disk.
    pub(crate) fn new(root: BorrowedFd<'a>, layer: &'a str, budget: &'a Budget) -> Self {
        Self {
            root,
            layer,
            parent: None,
            dirs: Vec::new(),
            hidden: HashSet::new(),
            remembered_bytes: 0,
            budget,
            info: LayerInfo::default(),
        }
    }

    /// Reads the archive to its end.
    pub(crate) fn run<I: Input>(mut self, tar: &mut TarReader<I>) -> Result<LayerInfo> {
        loop {
            let entry = match tar.next() {
                Ok(Some(entry)) => entry,
                Ok(None) => break,
                Err(e) => return Err(self.tar_error(tar.offset(), e)),
            };
            self.info.entries += 1;
            let done = if self.info.entries > MAX_LAYER_ENTRIES {
                let limit = MAX_LAYER_ENTRIES;
                Err(Refusal::Limit {
                    what: "the layer",
                    limit,
                    unit: "entries",
                }
                .into())
            } else {
                self.apply(&entry, tar)
            };
            done.map_err(|fail| self.entry_error(&entry.path, fail))?;
        }
        self.drop_void_whiteouts()
            .map_err(|fail| self.entry_error(b".", fail))?;
        self.finish_dirs()
            .map_err(|fail| self.entry_error(b".", fail))?;
        Ok(self.info)
    }

    fn tar_error(&self, offset: u64, e: TarError) -> Error {
        let what = format!("layer {}", self.layer);
        match e {
            TarError::Io(source) => Error::Read { what, source },
            TarError::Bad(problem) => Error::Tar {
                what,
                offset,
                problem,
            },
        }
    }

    fn entry_error(&self, path: &[u8], fail: Fail) -> Error {
        let layer = self.layer.to_string();
        let shown = &path[..path.len().min(200)];
        let entry = String::from_utf8_lossy(shown).into_owned();
        match fail {
            Fail::Refused(problem) => Error::Entry {
                layer,
                entry,
                problem,
            },
            Fail::Sys(op, source) => Error::Unpack {
                layer,
                entry,
                op,
                source,
            },
            Fail::Store(e) => e,
        }
    }

    fn apply<I: Input>(
        &mut self,
        e: &Entry,
        tar: &mut TarReader<I>,
    ) -> std::result::Result<(), Fail> {
        let path = clean(&e.path)?;
        if path.is_empty() {
            return self.root_entry(e);
        }
        let (dir, name) = split(&path);
        if dir
            .split(|b| *b == b'/')
            .any(|c| c.starts_with(WHITEOUT_PREFIX))
        {
            if dir
                .split(|b| *b == b'/')
                .any(|c| c.starts_with(AUFS_META_PREFIX))
            {
                return Ok(());
            }
            return refuse("a directory above it has a whiteout's name");
        }
        if name == OPAQUE_MARKER {
            return self.opaque(dir);
        }
        if name.starts_with(AUFS_META_PREFIX) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
            return self.whiteout(dir, hidden);
        }
        self.enter(dir)?;
        match e.kind {
            Kind::Dir => self.directory(&path, name, e),
            Kind::File => self.file(name, e, tar),
            Kind::HardLink => self.hard_link(&path, dir, name, e),
            Kind::Symlink => self.symlink(name, e),
            Kind::Char | Kind::Block | Kind::Fifo => self.node(&path, name, e),
        }
    }

    /// Makes `self.parent` the directory `dir`, creating what is missing.
    fn enter(&mut self, dir: &[u8]) -> std::result::Result<(), Fail> {
        if self.parent.as_ref().is_some_and(|(p, _)| p == dir) {
            return Ok(());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let fd = if dir.is_empty() {
            self.root.try_clone_to_owned().named("dup")?
        } else {
            match fsutil::open_beneath(self.root, dir, flags) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.make_parents(dir)?,
                Err(e) => return Err(e).named("openat2 of the parent"),
            }
        };
        self.parent = Some((dir.to_vec(), fd));
        Ok(())
    }

    fn make_parents(&mut self, dir: &[u8]) -> std::result::Result<OwnedFd, Fail> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut at = self.root.try_clone_to_owned().named("dup")?;
        let mut end = 0;
        for name in dir.split(|b| *b == b'/') {
            end += name.len() + usize::from(end > 0);
            let path = &dir[..end];
            at = match rustix::fs::openat(&at, name, flags, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::NOENT) => self.implicit_dir(&at, name, path)?,
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    if !self.is_whiteout(at.as_fd(), name) {
                        return refuse(
                            "something above it is not a directory (a link is not followed)",
                        );
                    }
                    rustix::fs::unlinkat(&at, name, AtFlags::empty()).named("unlinkat")?;
                    self.implicit_dir(&at, name, path)?
                }
                Err(e) => return Err(e).named("openat of the parent"),
            };
        }
        Ok(at)
    }

    fn implicit_dir(
        &mut self,
        at: &OwnedFd,
        name: &[u8],
        path: &[u8],
    ) -> std::result::Result<OwnedFd, Fail> {
        let fd = self.new_dir(at.as_fd(), name, path)?;
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755)).named("fchmod")?;
        Ok(fd)
    }

    fn new_dir(
        &mut self,
        at: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
    ) -> std::result::Result<OwnedFd, Fail> {
        self.take_room(1)?;
        rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o700)).named("mkdirat")?;
        self.remember_dir(path.to_vec(), None)?;
        let fd = rustix::fs::openat(at, name, DIR_FLAGS, Mode::empty()).named("openat")?;
        if self.hidden.contains(path) {
            set_opaque(fd.as_fd())?;
        }
        Ok(fd)
    }

    /// Takes room for data or a directory from the budget, in whole blocks: an
    /// archive needs 512 bytes for what may need eight times that.
    fn take_room(&self, bytes: u64) -> std::result::Result<(), Fail> {
        if self.budget.take_disk(bytes.next_multiple_of(BLOCK_BYTES)) {
            return Ok(());
        }
        Err(Refusal::Limit {
            what: "the image",
            limit: self.budget.max_bytes,
            unit: "bytes",
        }
        .into())
    }

    fn is_whiteout(&self, at: BorrowedFd<'_>, name: &[u8]) -> bool {
        rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|st| is_whiteout_stat(&st))
    }

    /// The directory that `enter` opened.
    fn at(&self) -> std::result::Result<BorrowedFd<'_>, Fail> {
        match &self.parent {
            Some((_, fd)) => Ok(fd.as_fd()),
            None => refuse("it has no parent directory"),
        }
    }

    /// Runs `make`; if something has the name already, removes it and runs
    /// `make` again.
    fn replacing<T>(
        &mut self,
        name: &[u8],
        op: &'static str,
        make: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> std::result::Result<T, Fail> {
        let at = self.at()?;
        match make(at) {
            Err(Errno::EXIST) => {}
            other => return other.named(op),
        }
        let c = CString::new(name).map_err(|_| Refusal::Rule("its name holds a NUL"))?;
        let gone = freed_by_removing(at, &c).named("measure what is replaced")?;
        fsutil::remove_tree(at, &c).map_err(Fail::Store)?;
        let made = make(at).named(op)?;
        self.info.disk_bytes = self.info.disk_bytes.saturating_sub(gone);
        Ok(made)
    }

    fn root_entry(&mut self, e: &Entry) -> std::result::Result<(), Fail> {
        if e.kind != Kind::Dir {
            return refuse("the root can only be a directory");
        }
        let fd = rustix::fs::openat(self.root, ".", DIR_FLAGS, Mode::empty()).named("openat")?;
        self.attributes(fd.as_fd(), e, true)?;
        self.info.root = Some((e.mode, e.uid, e.gid));
        self.remember_dir(Vec::new(), Some(e.mtime))
    }

    fn directory(&mut self, path: &[u8], name: &[u8], e: &Entry) -> std::result::Result<(), Fail> {
        let at = self.at()?.try_clone_to_owned().named("dup")?;
        let existing = rustix::fs::openat(&at, name, DIR_FLAGS, Mode::empty());
        let fd = match existing {
            Ok(fd) => fd,
            Err(Errno::NOENT) => self.new_dir(at.as_fd(), name, path)?,
            Err(_) => {
                let c = CString::new(name).map_err(|_| Refusal::Rule("its name holds a NUL"))?;
                let gone = freed_by_removing(at.as_fd(), &c).named("measure what is replaced")?;
                rustix::fs::unlinkat(&at, name, AtFlags::empty()).named("unlinkat")?;
                self.info.disk_bytes = self.info.disk_bytes.saturating_sub(gone);
                self.new_dir(at.as_fd(), name, path)?
            }
        };
        self.attributes(fd.as_fd(), e, true)?;
        self.remember_dir(path.to_vec(), Some(e.mtime))
    }

    fn file<I: Input>(
        &mut self,
        name: &[u8],
        e: &Entry,
        tar: &mut TarReader<I>,
    ) -> std::result::Result<(), Fail> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Its own mode at once, but for what chown(2) would clear: nobody but
        // root reaches into the store.
        let mode = Mode::from_raw_mode(e.mode & 0o777);
        let fd = self.replacing(name, "openat", |at| {
            rustix::fs::openat(at, name, flags, mode)
        })?;
        let mut file = File::from(fd);
        let physical = tar.remaining();
        self.take_room(physical)?;
        match &e.sparse {
            None => copy(tar, &mut file, physical)?,
            Some(map) => {
                for (offset, len) in map {
                    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(*offset)).named("lseek")?;
                    copy(tar, &mut file, *len)?;
                }
                rustix::fs::ftruncate(&file, e.size).named("ftruncate")?;
            }
        }
        self.info.data_bytes += physical;
        let disk_bytes = self.attributes(file.as_fd(), e, false)?;
        self.info.disk_bytes += disk_bytes;
        rustix::fs::futimens(&file, &times(e.mtime)).named("futimens")
    }

    fn hard_link(
        &mut self,
        path: &[u8],
        dir: &[u8],
        name: &[u8],
        e: &Entry,
    ) -> std::result::Result<(), Fail> {
        let target = clean(&e.link)?;
        let (target_dir, target_name) = split(&target);
        if target.is_empty() {
            return refuse("a hard link to the root");
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let other;
        let from = if target_dir == dir {
            self.at()?
        } else if target_dir.is_empty() {
            self.root
        } else {
            other = match fsutil::open_beneath(self.root, target_dir, flags) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                    return refuse("a hard link to something that is not in this layer");
                }
                Err(e) => return Err(e).named("openat2 of the link's target"),
            };
            other.as_fd()
        };
        match rustix::fs::statat(from, target_name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(st) if is_whiteout_stat(&st) => return refuse("a hard link to a removed file"),
            Ok(st) if FileType::from_raw_mode(st.st_mode) == FileType::Directory => {
                return refuse("a hard link to a directory");
            }
            Ok(_) => {}
            Err(Errno::NOENT) => {
                return refuse("a hard link to something that is not in this layer");
            }
            Err(e) => return Err(e).named("fstatat of the link's target"),
        }
        if target == path {
            return Ok(());
        }
        if path
            .strip_prefix(&target[..])
            .is_some_and(|r| r.starts_with(b"/"))
            || target
                .strip_prefix(path)
                .is_some_and(|r| r.starts_with(b"/"))
        {
            return refuse("a hard link to something below or above itself");
        }
        let from = from.try_clone_to_owned().named("dup")?;
        self.replacing(name, "linkat", |at| {
            rustix::fs::linkat(&from, target_name, at, name, AtFlags::empty())
        })
    }

    fn symlink(&mut self, name: &[u8], e: &Entry) -> std::result::Result<(), Fail> {
        if e.link.is_empty() || e.link.len() > MAX_PATH_BYTES {
            return refuse("a symbolic link's target is empty or too long");
        }
        self.replacing(name, "symlinkat", |at| {
            rustix::fs::symlinkat(&*e.link, at, name)
        })?;
        let at = self.at()?;
        let st = rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW).named("fstatat")?;
        if (st.st_uid, st.st_gid) != (e.uid, e.gid) {
            own_at(at, name, e)?;
        }
        let dropped = e.xattrs.len() as u64;
        rustix::fs::utimensat(at, name, &times(e.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .named("utimensat")?;
        self.info.dropped_xattrs += dropped;
        self.info.disk_bytes += allocated(&st);
        Ok(())
    }

    fn node(&mut self, path: &[u8], name: &[u8], e: &Entry) -> std::result::Result<(), Fail> {
        let kind = match e.kind {
            Kind::Char => FileType::CharacterDevice,
            Kind::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        if e.kind == Kind::Char && e.dev == (0, 0) {
            return refuse("character device 0:0 is overlayfs' own whiteout");
        }
        // Linux device numbers: 12 bits major, 20 bits minor (kdev_t.h).
        if e.dev.0 >= 1 << 12 || e.dev.1 >= 1 << 20 {
            return refuse("a device number that the kernel cannot hold");
        }
        let dev = rustix::fs::makedev(e.dev.0, e.dev.1);
        let mode = Mode::from_raw_mode(e.mode);
        self.replacing(name, "mknodat", |at| {
            rustix::fs::mknodat(at, name, kind, mode, dev)
        })?;
        let at = self.at()?;
        own_at(at, name, e)?;
        rustix::fs::chmodat(at, name, mode, AtFlags::empty()).named("fchmodat")?;
        rustix::fs::utimensat(at, name, &times(e.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .named("utimensat")?;
        self.info.dropped_xattrs += e.xattrs.len() as u64;
        if e.kind != Kind::Fifo {
            self.info.devices += 1;
            if self.info.device_nodes.len() < MAX_RECORDED_DEVICES {
                let letter = if e.kind == Kind::Char { 'c' } else { 'b' };
                let path = String::from_utf8_lossy(path).into_owned();
                self.info
                    .device_nodes
                    .push((path, letter, e.dev.0, e.dev.1));
            }
        }
        Ok(())
    }

    /// `.wh..wh..opq` in `dir`.
    fn opaque(&mut self, dir: &[u8]) -> std::result::Result<(), Fail> {
        if dir.is_empty() {
            // The kernel merges the roots of all layers whatever the mark
            // says: the image leaves the layers below out instead.
            self.info.root_opaque = true;
            return Ok(());
        }
        self.enter(dir)?;
        let fd = rustix::fs::openat(self.at()?, ".", DIR_FLAGS, Mode::empty()).named("openat")?;
        set_opaque(fd.as_fd())?;
        self.hide(dir.to_vec())
    }

    /// `.wh.NAME` in `dir`: hides NAME of the layers below, not of this one.
    fn whiteout(&mut self, dir: &[u8], name: &[u8]) -> std::result::Result<(), Fail> {
        if matches!(name, b"" | b"." | b"..") {
            return refuse("a whiteout without a proper name");
        }
        self.enter(dir)?;
        let path = if dir.is_empty() {
            name.to_vec()
        } else {
            [dir, b"/", name].concat()
        };
        let at = self.at()?;
        match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(st) if FileType::from_raw_mode(st.st_mode) == FileType::Directory => {
                let fd = rustix::fs::openat(at, name, DIR_FLAGS, Mode::empty()).named("openat")?;
                set_opaque(fd.as_fd())?;
            }
            Ok(_) => {}
            Err(Errno::NOENT) => {
                let mode = Mode::empty();
                rustix::fs::mknodat(at, name, FileType::CharacterDevice, mode, 0)
                    .named("mknodat of a whiteout")?;
            }
            Err(e) => return Err(e).named("fstatat"),
        }
        self.hide(path)
    }

    fn hide(&mut self, path: Vec<u8>) -> std::result::Result<(), Fail> {
        self.remember(path.len())?;
        self.hidden.insert(path);
        Ok(())
    }

    fn remember_dir(
        &mut self,
        path: Vec<u8>,
        mtime: Option<Mtime>,
    ) -> std::result::Result<(), Fail> {
        self.remember(path.len())?;
        self.dirs.push((path, mtime));
        Ok(())
    }

    fn remember(&mut self, len: usize) -> std::result::Result<(), Fail> {
        self.remembered_bytes += len + 64;
        if self.remembered_bytes > MAX_DIR_TIMES_BYTES {
            let limit = MAX_DIR_TIMES_BYTES as u64;
            let what = "the layer's list of directories";
            return Err(Refusal::Limit {
                what,
                limit,
                unit: "bytes",
            }
            .into());
        }
        Ok(())
    }

    /// Owner, attributes and mode, in this order: chown(2) clears setuid bits
    /// and file capabilities. Most files have the right owner and mode by their
    /// creation. Returns what the file takes of the disk.
    fn attributes(
        &mut self,
        fd: BorrowedFd<'_>,
        e: &Entry,
        dir: bool,
    ) -> std::result::Result<u64, Fail> {
        let mut st = rustix::fs::fstat(fd).named("fstat")?;
        if (st.st_uid, st.st_gid) != (e.uid, e.gid) {
            rustix::fs::fchown(fd, Some(Uid::from_raw(e.uid)), Some(Gid::from_raw(e.gid)))
                .named("fchown")?;
        }
        let mode = st.st_mode & 0o7777;
        for (name, value) in &e.xattrs {
            if xattr_allowed(name, dir) {
                rustix::fs::fsetxattr(fd, &name[..], value, XattrFlags::empty())
                    .named("fsetxattr")?;
            } else {
                self.info.dropped_xattrs += 1;
            }
        }
        if mode != e.mode {
            rustix::fs::fchmod(fd, Mode::from_raw_mode(e.mode)).named("fchmod")?;
        }
        if !e.xattrs.is_empty() {
            st = rustix::fs::fstat(fd).named("fstat")?;
        }
        Ok(allocated(&st))
    }
}
