//! What is done when all entries of a layer are there, and how much of the
//! disk they take.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Unpacker;
use crate::entry::{Fail, Named, times};
use crate::fsutil::{self, DIR_FLAGS};
use crate::layer::split;

impl Unpacker<'_> {
    /// Removes whiteouts below directories that are opaque anyway. They hide
    /// nothing, but the kernel filters whiteouts only from directories that it
    /// merges: a listing would show these.
    pub(super) fn drop_void_whiteouts(&mut self) -> std::result::Result<(), Fail> {
        let below_hidden = |path: &[u8]| {
            self.info.root_opaque
                || path
                    .iter()
                    .enumerate()
                    .any(|(i, b)| *b == b'/' && self.hidden.contains(&path[..i]))
        };
        for path in self.hidden.iter().filter(|p| below_hidden(p)) {
            let (dir, name) = split(path);
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let at = if dir.is_empty() {
                self.root.try_clone_to_owned().named("dup")?
            } else {
                match fsutil::open_beneath(self.root, dir, flags) {
                    Ok(fd) => fd,
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                    Err(e) => return Err(e).named("openat2"),
                }
            };
            if self.is_whiteout(at.as_fd(), name) {
                rustix::fs::unlinkat(&at, name, AtFlags::empty()).named("unlinkat")?;
            }
        }
        Ok(())
    }

    /// Directories get their times last, since every entry made in them moved
    /// them; then it is known too how large they have become.
    pub(super) fn finish_dirs(&mut self) -> std::result::Result<(), Fail> {
        if self.dirs.iter().all(|(path, _)| !path.is_empty()) {
            self.dirs.push((Vec::new(), None));
        }
        // One that came twice gets its last time, and is counted once.
        self.dirs.sort_by(|a, b| a.0.cmp(&b.0));
        for same in self.dirs.chunk_by(|a, b| a.0 == b.0) {
            let path = &same[0].0;
            let fd = if path.is_empty() {
                rustix::fs::openat(self.root, ".", DIR_FLAGS, Mode::empty())
            } else {
                fsutil::open_beneath(self.root, path, DIR_FLAGS)
            };
            let fd = match fd {
                Ok(fd) => fd,
                // A later entry replaced it.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(e) => return Err(e).named("openat2"),
            };
            if let Some(mtime) = same.iter().rev().find_map(|(_, mtime)| *mtime) {
                rustix::fs::futimens(&fd, &times(mtime)).named("futimens")?;
            }
            let st = rustix::fs::fstat(&fd).named("fstat")?;
            self.info.disk_bytes += allocated(&st);
        }
        Ok(())
    }
}

/// What the file system says that a file takes, in bytes (inode(7): st_blocks
/// counts units of 512 bytes, also of what is not written yet).
pub(super) fn allocated(st: &rustix::fs::Stat) -> u64 {
    u64::try_from(st.st_blocks).unwrap_or(0).saturating_mul(512)
}

/// What of the counted disk use goes with a name. Directories are counted at
/// the end, by what is left of them.
pub(super) fn freed_by_removing(at: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<u64> {
    let mut freed = 0;
    let st = match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(st) => st,
        Err(Errno::NOENT) => return Ok(0),
        Err(e) => return Err(e),
    };
    if FileType::from_raw_mode(st.st_mode) != FileType::Directory {
        return Ok(if st.st_nlink > 1 { 0 } else { allocated(&st) });
    }
    let mut names: HashMap<u64, u64> = HashMap::new();
    // Directories are opened when it is their turn: few at a time.
    let top = Rc::new(rustix::fs::openat(at, ".", DIR_FLAGS, Mode::empty())?);
    let mut todo: Vec<(Rc<OwnedFd>, CString)> = vec![(top, name.to_owned())];
    while let Some((parent, name)) = todo.pop() {
        let dir = rustix::fs::openat(&parent, &*name, DIR_FLAGS, Mode::empty())?;
        let list = fsutil::list_dir(dir.as_fd(), usize::MAX);
        let list = list.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        let dir = Rc::new(dir);
        for (name, kind) in list {
            if kind == FileType::Directory {
                todo.push((Rc::clone(&dir), name));
                continue;
            }
            let st = rustix::fs::statat(&*dir, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
            if st.st_nlink < 2 {
                freed += allocated(&st);
                continue;
            }
            // All of its names may be in here.
            let seen = names.entry(st.st_ino).or_default();
            *seen += 1;
            if *seen == st.st_nlink {
                freed += allocated(&st);
            }
        }
    }
    Ok(freed)
}
