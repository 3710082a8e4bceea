//! Writes all files of a volume so that a reader sees the old ones or the
//! new ones, never a mixture.
//!
//! ```text
//! key     -> ..data/key
//! ..data  -> ..r<n>        swapped by one rename(2)
//! ..r<n>/key
//! ```

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, mkdirat, openat, readlinkat, renameat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::payload::Files;
use super::{VolumeError, ownership, remove};

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_new";
/// Prefix of the directories with the files themselves.
const ROUND: &str = "..r";

/// Writes `files` into the directory `path`, for the group if there is one,
/// and removes the files of the round before.
///
/// # Errors
/// The call that failed; the old files are then still in place.
pub fn write(
    volume: &str,
    path: &Path,
    files: &Files,
    group: Option<u32>,
) -> Result<(), VolumeError> {
    let failed = |call: &'static str| {
        move |source: Errno| VolumeError::Call {
            volume: volume.to_owned(),
            call: call.to_owned(),
            path: path.to_path_buf(),
            source,
        }
    };
    let dir_flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = openat(CWD, path, dir_flags, Mode::empty()).map_err(failed("open"))?;
    let old = current(&root).map_err(failed("readlink ..data in"))?;
    let number = old
        .as_deref()
        .and_then(|o| o.strip_prefix(ROUND)?.parse::<u64>().ok());
    let round = format!("{ROUND}{}", number.map_or(0, |n| n.wrapping_add(1)));
    // A writer that died here left it half written.
    remove::tree(root.as_fd(), &round).map_err(failed("remove an unfinished round in"))?;
    mkdirat(&root, &round, Mode::from_bits_truncate(0o755)).map_err(failed("mkdir in"))?;
    let dir = openat(&root, &round, dir_flags, Mode::empty()).map_err(failed("open in"))?;
    // The umask is not ours to know.
    rustix::fs::fchmod(&dir, Mode::from_bits_truncate(0o755)).map_err(failed("chmod in"))?;
    if let Some(group) = group {
        ownership::own_with(&dir, group, true, 0o2750).map_err(failed("chown in"))?;
    }
    for (name, file) in files {
        put(&dir, name, &file.bytes, file.mode, group).map_err(failed("write a file in"))?;
    }
    remove_if_there(&root, DATA_NEW).map_err(failed("unlink ..data_new in"))?;
    symlinkat(round.as_str(), &root, DATA_NEW).map_err(failed("symlink ..data_new in"))?;
    renameat(&root, DATA_NEW, &root, DATA).map_err(failed("rename ..data_new to ..data in"))?;
    let tops: BTreeSet<&str> = files.keys().filter_map(|k| k.split('/').next()).collect();
    for top in &tops {
        match symlinkat(format!("{DATA}/{top}"), &root, *top) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(failed("symlink in")(e)),
        }
    }
    tidy(&root, &round, &tops).map_err(failed("remove old files in"))
}

/// The round that `..data` points to.
fn current(root: &OwnedFd) -> Result<Option<String>, Errno> {
    match readlinkat(root, DATA, Vec::new()) {
        Ok(target) => Ok(target.into_string().ok()),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

fn put(
    dir: &OwnedFd,
    name: &str,
    bytes: &[u8],
    mode: u32,
    group: Option<u32>,
) -> Result<(), Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = dir
        .try_clone()
        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    let mut parts = name.split('/').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_some() {
            match mkdirat(&at, part, Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
            at = openat(&at, part, flags, Mode::empty())?;
            rustix::fs::fchmod(&at, Mode::from_bits_truncate(0o755))?;
            if let Some(group) = group {
                ownership::own_with(&at, group, true, 0o2750)?;
            }
            continue;
        }
        let create =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&at, part, create, Mode::from_bits_truncate(0o600))?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let written = rustix::io::retry_on_intr(|| rustix::io::write(&file, rest))?;
            rest = &rest[written..];
        }
        rustix::fs::fchmod(&file, Mode::from_bits_truncate(mode))?;
        if let Some(group) = group {
            ownership::own_with(&file, group, false, 0o440)?;
        }
    }
    Ok(())
}

/// Removes rounds other than the present one, and links of files that are no
/// more.
fn tidy(root: &OwnedFd, round: &str, tops: &BTreeSet<&str>) -> Result<(), Errno> {
    let mut gone = Vec::new();
    for entry in rustix::fs::Dir::read_from(root)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else {
            continue;
        };
        let keep = matches!(name, "." | ".." | DATA) || name == round || tops.contains(name);
        if !keep {
            gone.push(name.to_owned());
        }
    }
    gone.iter()
        .try_for_each(|name| remove::tree(root.as_fd(), name))
}

fn remove_if_there(root: &OwnedFd, name: &str) -> Result<(), Errno> {
    match unlinkat(root, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e),
    }
}
