//! File descriptors instead of path strings: opening below a directory,
//! whole-file replacement, and removal of trees that nobody trusts.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, IFlags, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};
use crate::limits::REMOVE_OPEN_LEVELS;

/// Times `openat2` is asked again when a rename elsewhere made the kernel
/// give up on a `..` (`EAGAIN`, openat2(2)).
const OPENAT2_TRIES: u32 = 128;

/// Opens below `dir` without following a link or leaving it.
pub(crate) fn open_beneath(
    dir: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let how = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    openat2_retry(dir, path, flags, how)
}

/// Opens as the container would: links are followed, with `root` as `/`.
pub(crate) fn open_in_root(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    openat2_retry(
        root,
        path,
        flags,
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

fn openat2_retry(
    dir: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    how: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    for _ in 0..OPENAT2_TRIES {
        match rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens a directory of the store by its path (trusted, ours).
pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd> {
    rustix::fs::openat(CWD, path, DIR_FLAGS, Mode::empty()).ctx("open directory", path)
}

/// Flags for a readable directory handle.
pub(crate) const DIR_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Makes a directory if it is missing; `mode` holds whatever the umask.
pub(crate) fn make_dir(dir: BorrowedFd<'_>, name: &str, mode: u32) -> Result<OwnedFd> {
    let fresh = match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode)) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(e) => return Err(e).ctx("create directory", name),
    };
    let fd = rustix::fs::openat(dir, name, DIR_FLAGS, Mode::empty()).ctx("open directory", name)?;
    if fresh {
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode)).ctx("set the mode of", name)?;
    }
    Ok(fd)
}

/// Replaces `name` by a file with `data`: written aside, synced, renamed, the
/// directory synced. A reader or a power cut sees the old or the new file.
pub(crate) fn replace_file(dir: BorrowedFd<'_>, name: &str, data: &[u8]) -> Result<()> {
    let tmp = format!(".{name}.{}.tmp", std::process::id());
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd =
        rustix::fs::openat(dir, &*tmp, flags, Mode::from_raw_mode(0o600)).ctx("create", &tmp)?;
    let mut file = File::from(fd);
    let written = file.write_all(data).and_then(|()| file.sync_all());
    if let Err(e) = written {
        let _ = rustix::fs::unlinkat(dir, &*tmp, AtFlags::empty());
        return Err(e).ctx("write", &tmp);
    }
    rustix::fs::renameat(dir, &*tmp, dir, name).ctx("rename into place", name)?;
    rustix::fs::fsync(dir).ctx("sync the directory of", name)
}

/// Reads all of `r`, refusing more than `limit` bytes.
pub(crate) fn read_bounded(r: impl Read, limit: u64, what: &str) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    r.take(limit.saturating_add(1))
        .read_to_end(&mut out)
        .map_err(|source| Error::Read {
            what: what.to_string(),
            source,
        })?;
    if out.len() as u64 > limit {
        return Err(Error::Limit {
            what: what.to_string(),
            limit,
            unit: "bytes",
        });
    }
    Ok(out)
}

/// Reads a regular file below `dir`; `None` if it does not exist.
pub(crate) fn read_file(dir: BorrowedFd<'_>, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
    match open_beneath(
        dir,
        name.as_bytes(),
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK,
    ) {
        Ok(fd) => read_bounded(File::from(fd), limit, name).map(Some),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e).ctx("open", name),
    }
}

/// Names in a directory with their types, without `.` and `..`.
pub(crate) fn list_dir(dir: BorrowedFd<'_>, most: usize) -> io::Result<Vec<(CString, FileType)>> {
    list_dir_except(dir, most, &HashSet::new())
}

fn list_dir_except(
    dir: BorrowedFd<'_>,
    most: usize,
    except: &HashSet<CString>,
) -> io::Result<Vec<(CString, FileType)>> {
    rustix::fs::seek(dir, rustix::fs::SeekFrom::Start(0))?;
    let mut buf = Vec::with_capacity(16 << 10);
    let mut raw = RawDir::new(dir, buf.spare_capacity_mut());
    let mut out = Vec::new();
    while out.len() < most {
        let Some(entry) = raw.next() else { break };
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." && !except.contains(name) {
            out.push((name.to_owned(), entry.file_type()));
        }
    }
    Ok(out)
}

/// Names handled per directory scan while removing.
const REMOVE_BATCH: usize = 512;

struct Level {
    fd: OwnedFd,
    name: CString,
    failed: HashSet<CString>,
}

/// Removes `name` in `parent` and everything below it, by descriptor, never
/// following a link and never leaving the file system it stands on.
///
/// The tree may be hostile: deeper than any path or descriptor limit (deep
/// directories are moved up and removed from there), immutable, with mode 000.
/// A missing tree is success. Everything that can go is removed before an
/// error is returned.
pub(crate) fn remove_tree(parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    match unlink_hard(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(e) => return Err(e).ctx("remove", lossy(name)),
    }
    let top = match rustix::fs::openat(parent, name, DIR_FLAGS, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e).ctx("open directory", lossy(name)),
    };
    let mut problems = Vec::new();
    let mut moved: u64 = 0;
    let mut stack = vec![Level {
        fd: top,
        name: name.to_owned(),
        failed: HashSet::new(),
    }];
    while let Some(level) = stack.last_mut() {
        let batch = match list_dir_except(level.fd.as_fd(), REMOVE_BATCH, &level.failed) {
            Ok(batch) => batch,
            Err(e) => {
                problems.push(format!("read directory {}: {e}", lossy(&level.name)));
                Vec::new()
            }
        };
        let done = batch.is_empty();
        let mut descend = None;
        for (child, kind) in batch {
            let at = if kind == FileType::Directory {
                AtFlags::REMOVEDIR
            } else {
                AtFlags::empty()
            };
            let mut answer = unlink_hard(level.fd.as_fd(), &child, at);
            if answer == Err(Errno::ISDIR) {
                answer = unlink_hard(level.fd.as_fd(), &child, AtFlags::REMOVEDIR);
            }
            match answer {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::NOTEMPTY | Errno::EXIST) => {
                    match rustix::fs::openat(&level.fd, &*child, DIR_FLAGS, Mode::empty()) {
                        Ok(fd) => {
                            descend = Some(Level {
                                fd,
                                name: child,
                                failed: HashSet::new(),
                            });
                            break;
                        }
                        Err(e) => {
                            problems.push(format!("open directory {}: {e}", lossy(&child)));
                            level.failed.insert(child);
                        }
                    }
                }
                Err(e) => {
                    problems.push(format!("remove {}: {e}", lossy(&child)));
                    level.failed.insert(child);
                }
            }
        }
        if let Some(next) = descend {
            if stack.len() < REMOVE_OPEN_LEVELS {
                stack.push(next);
            } else {
                moved += 1;
                move_up(&mut stack, next, moved, &mut problems);
            }
        } else if done {
            let Some(level) = stack.pop() else { break };
            let (at, failed) = match stack.last_mut() {
                Some(up) => (up.fd.as_fd(), Some(&mut up.failed)),
                None => (parent, None),
            };
            match unlink_hard(at, &level.name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => {
                    if level.failed.is_empty() {
                        problems.push(format!("remove directory {}: {e}", lossy(&level.name)));
                    }
                    if let Some(failed) = failed {
                        failed.insert(level.name);
                    }
                }
            }
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Error::Cleanup {
            what: format!("remove {}", lossy(name)),
            all: problems,
        })
    }
}

/// Moves a too deep directory to the top of the tree that is being removed.
fn move_up(stack: &mut [Level], deep: Level, number: u64, problems: &mut Vec<String>) {
    let Some((top, rest)) = stack.split_first_mut() else {
        return;
    };
    let Some(from) = rest.last_mut() else { return };
    let name = format!(".rkube-removing-{}-{number}", std::process::id());
    let moved = rustix::fs::renameat(&from.fd, &*deep.name, &top.fd, &*name).or_else(|_| {
        clear_flags(deep.fd.as_fd());
        clear_flags(from.fd.as_fd());
        rustix::fs::renameat(&from.fd, &*deep.name, &top.fd, &*name)
    });
    if let Err(e) = moved {
        problems.push(format!("move {} up: {e}", lossy(&deep.name)));
        from.failed.insert(deep.name);
    }
}

/// `unlinkat` that clears an immutable or append-only flag where one is in
/// the way.
fn unlink_hard(dir: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> rustix::io::Result<()> {
    let first = rustix::fs::unlinkat(dir, name, flags);
    if !matches!(first, Err(Errno::PERM | Errno::ACCESS)) {
        return first;
    }
    clear_flags(dir);
    // Only files and directories are opened: opening a device acts on it.
    if let Ok(st) = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        && matches!(
            FileType::from_raw_mode(st.st_mode),
            FileType::RegularFile | FileType::Directory
        )
    {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if let Ok(fd) = rustix::fs::openat(dir, name, flags, Mode::empty()) {
            clear_flags(fd.as_fd());
        }
    }
    rustix::fs::unlinkat(dir, name, flags)
}

fn clear_flags(fd: BorrowedFd<'_>) {
    if let Ok(flags) = rustix::fs::ioctl_getflags(fd) {
        let _ = rustix::fs::ioctl_setflags(fd, flags - (IFlags::IMMUTABLE | IFlags::APPEND));
    }
}

fn lossy(name: &CStr) -> String {
    name.to_string_lossy().into_owned()
}

/// Syncs every regular file and directory below `dir` (a staged tree of ours).
pub(crate) fn sync_tree(dir: BorrowedFd<'_>) -> io::Result<()> {
    let mut todo = vec![dir.try_clone_to_owned()?];
    while let Some(dir) = todo.pop() {
        for (name, kind) in list_dir(dir.as_fd(), usize::MAX)? {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            match kind {
                FileType::Directory => {
                    todo.push(rustix::fs::openat(&dir, &*name, DIR_FLAGS, Mode::empty())?);
                }
                FileType::RegularFile => {
                    rustix::fs::fsync(rustix::fs::openat(&dir, &*name, flags, Mode::empty())?)?;
                }
                _ => {}
            }
        }
        rustix::fs::fsync(&dir)?;
    }
    Ok(())
}

/// Syncs the regular files of a directory, not the directory: its entries are
/// about to be renamed away.
pub(crate) fn sync_files(dir: BorrowedFd<'_>) -> io::Result<()> {
    for (name, kind) in list_dir(dir, usize::MAX)? {
        if kind == FileType::RegularFile {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::fsync(rustix::fs::openat(dir, &*name, flags, Mode::empty())?)?;
        }
    }
    Ok(())
}

/// What everything below a directory takes on the disk, in bytes, each file
/// once. What goes while it is looked at does not count, nor what is too deep
/// for a path.
pub(crate) fn disk_use(root: BorrowedFd<'_>) -> io::Result<u64> {
    let (mut sum, mut seen) = (0, HashSet::new());
    // Paths wait, not descriptors: a directory may hold any number of others.
    let mut todo: Vec<Vec<u8>> = vec![b".".to_vec()];
    while let Some(path) = todo.pop() {
        let Ok(dir) = open_beneath(root, &path, DIR_FLAGS) else {
            continue;
        };
        for (name, kind) in list_dir(dir.as_fd(), usize::MAX)? {
            let Ok(st) = rustix::fs::statat(&dir, &*name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            if st.st_nlink < 2 || kind == FileType::Directory || seen.insert(st.st_ino) {
                sum += u64::try_from(st.st_blocks).unwrap_or(0) * 512;
            }
            if kind == FileType::Directory {
                todo.push([&path[..], b"/", name.to_bytes()].concat());
            }
        }
    }
    Ok(sum)
}
