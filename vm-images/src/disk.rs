//! The guest's disks: ext4 on virtio, as users' hosts have a disk and no memory
//! file system under their images.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rkube_tests::command::Cmd;

/// Size of the scratch disk; the file is sparse.
pub const DISK_BYTES: u64 = 6 << 30;

/// Makes a fresh disk of `bytes` that holds a directory's files, and gives its
/// path.
///
/// # Errors
/// `mkfs.ext4` is not installed, or there is no space.
pub fn make(path: &Path, filled_from: &Path, bytes: u64) -> anyhow::Result<PathBuf> {
    let _ = std::fs::remove_file(path);
    let file = File::create(path).with_context(|| format!("make {}", path.display()))?;
    file.set_len(bytes)
        .with_context(|| format!("size {}", path.display()))?;
    // Lazily initialised tables would be written by the guest's kernel threads
    // while tests measure: there is no journal to speak of to write up front.
    let options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";
    let args = ["-q", "-F", "-E", options, "-J", "size=16", "-d"].map(std::ffi::OsStr::new);
    let all = args
        .into_iter()
        .chain([filled_from.as_os_str(), path.as_os_str()]);
    Cmd::new("mkfs.ext4", all).ok()?;
    Ok(path.to_path_buf())
}
