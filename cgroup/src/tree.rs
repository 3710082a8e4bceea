//! Walking a group with all groups below it: processes and removal.

use std::ffi::CStr;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::file::Dir;
use crate::path::CgroupPath;
use crate::signal::{MAX_PIDFDS, wait_for_exit};

/// Groups nested below one that is walked or removed, at most. Each level
/// holds one descriptor.
const MAX_DEPTH_LEVELS: usize = 256;

/// Processes an error names at most.
pub(crate) const SHOWN_PIDS: usize = 16;

/// Pause before the first retry of a removal that is refused though no
/// process is listed (a task past its last listing is still leaving).
const RETRY_FIRST: Duration = Duration::from_micros(200);
/// Longest such pause.
const RETRY_MAX: Duration = Duration::from_millis(20);

/// Removes a group from one hierarchy.
pub(crate) fn remove_in(
    root: &Dir,
    path: &CgroupPath,
    start: Instant,
    wait: Duration,
) -> Result<()> {
    let parent = path.parent();
    let above = parent.as_ref().map_or(".", CgroupPath::as_str);
    match root.open_dir(above) {
        Ok(dir) => remove_tree(&dir, path.name(), start, wait, 0),
        Err(Errno::NOENT) => Ok(()),
        Err(source) => Err(open_error(root, above, source)),
    }
}

/// Removes `name` of `parent` with everything below.
pub(crate) fn remove_tree(
    parent: &Dir,
    name: &str,
    start: Instant,
    wait: Duration,
    depth: usize,
) -> Result<()> {
    let fail = |source| Error::Remove {
        path: parent.path().join(name),
        source,
    };
    let mut pause = RETRY_FIRST;
    loop {
        match parent.rmdir(name) {
            Ok(()) | Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
            Err(Errno::BUSY) => {}
            // A plain directory (tests) says this for what lies below.
            Err(Errno::NOTEMPTY) if depth < MAX_DEPTH_LEVELS => {}
            Err(source) => return Err(fail(source)),
        }
        let dir = match parent.open_dir(name) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(()),
            Err(source) => return Err(open_error(parent, name, source)),
        };
        let below = dir.subdirs()?;
        if depth >= MAX_DEPTH_LEVELS && !below.is_empty() {
            return Err(fail(Errno::NAMETOOLONG));
        }
        for child in &below {
            let child = utf8(&dir, child)?;
            remove_tree(&dir, child, start, wait, depth + 1)?;
        }
        if !below.is_empty() && parent.rmdir(name).is_ok() {
            return Ok(());
        }
        let pids = own_pids(&dir)?;
        let left = wait.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(Error::Busy {
                path: dir.path().to_owned(),
                pids: pids.into_iter().take(SHOWN_PIDS).collect(),
                waited: wait,
            });
        }
        if pids.is_empty() {
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(RETRY_MAX);
        } else {
            wait_for_exit(&pids[..pids.len().min(MAX_PIDFDS)], left, dir.path())?;
        }
    }
}

/// A directory name of the kernel as text; names that are not UTF-8 were not
/// made by us and cannot be addressed.
fn utf8<'a>(dir: &Dir, name: &'a CStr) -> Result<&'a str> {
    name.to_str().map_err(|_| Error::Remove {
        path: dir.path().to_owned(),
        source: Errno::ILSEQ,
    })
}

/// The processes listed in one directory. Unseen ones (0) are left out.
fn own_pids(dir: &Dir) -> Result<Vec<u32>> {
    match dir.read("cgroup.procs") {
        Ok(text) => Ok(text
            .lines()
            .filter_map(|line| line.trim().parse().ok())
            .filter(|pid| *pid != 0)
            .collect()),
        Err(error) => match error.errno() {
            // Gone meanwhile; or a threaded group, whose processes are
            // listed at its domain.
            Some(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => Ok(Vec::new()),
            _ => Err(error),
        },
    }
}

/// The processes of a directory and of all below it.
pub(crate) fn collect_pids(dir: &Dir, depth: usize, into: &mut Vec<u32>) -> Result<()> {
    into.extend(own_pids(dir)?);
    if depth >= MAX_DEPTH_LEVELS {
        return Ok(());
    }
    let below = match dir.subdirs() {
        Ok(below) => below,
        Err(error) if matches!(error.errno(), Some(Errno::NOENT | Errno::NODEV)) => return Ok(()),
        Err(error) => return Err(error),
    };
    for child in &below {
        match dir.open_dir(utf8(dir, child)?) {
            Ok(child) => collect_pids(&child, depth + 1, into)?,
            Err(Errno::NOENT) => {}
            Err(source) => return Err(open_error(dir, &child.to_string_lossy(), source)),
        }
    }
    Ok(())
}

/// The processes of a tree.
pub(crate) fn tree_pids(dir: &Dir) -> Result<Vec<u32>> {
    let mut pids = Vec::new();
    collect_pids(dir, 0, &mut pids)?;
    Ok(pids)
}

/// Opens a directory below another.
pub(crate) fn open_child(dir: &Dir, below: &str) -> Result<Dir> {
    dir.open_dir(below)
        .map_err(|source| open_error(dir, below, source))
}

/// The error of a directory that could not be opened.
pub(crate) fn open_error(dir: &Dir, below: &str, source: Errno) -> Error {
    Error::Open {
        path: dir.path().join(below),
        source,
    }
}
