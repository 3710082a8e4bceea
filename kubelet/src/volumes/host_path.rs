//! hostPath volumes: the checks of their types, and what they create.

use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::io::Errno;

use super::VolumeError;

/// Checks that the path is of the wanted type and creates it for
/// `DirectoryOrCreate` (0755) and `FileOrCreate` (0644).
///
/// # Errors
/// It is of another type, or cannot be looked at or created.
pub fn check(volume: &str, path: &Path, kind: &str) -> Result<(), VolumeError> {
    let failed = |call: &str, e: &std::io::Error| VolumeError::Call {
        volume: volume.to_owned(),
        call: call.to_owned(),
        path: path.to_path_buf(),
        source: Errno::from_io_error(e).unwrap_or(Errno::IO),
    };
    let wrong = || VolumeError::WrongType {
        volume: volume.to_owned(),
        path: path.to_path_buf(),
        wanted: kind.to_owned(),
    };
    match (kind, path.try_exists()) {
        ("DirectoryOrCreate", Ok(false)) => std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .map_err(|e| failed("mkdir -p", &e))?,
        ("FileOrCreate", Ok(false)) => {
            std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .open(path)
                .map_err(|e| failed("open O_CREAT", &e))?;
        }
        _ => {}
    }
    let stat = match std::fs::metadata(path) {
        Ok(stat) => stat,
        // Without a type the engine tells what is missing when it binds it.
        Err(_) if kind.is_empty() => return missing(path).map_err(|e| failed("stat", &e)),
        Err(e) => return Err(failed("stat", &e)),
    };
    let file_type = stat.file_type();
    let right = match kind {
        "" => true,
        "Directory" | "DirectoryOrCreate" => file_type.is_dir(),
        "File" | "FileOrCreate" => file_type.is_file(),
        "Socket" => file_type.is_socket(),
        "CharDevice" => file_type.is_char_device(),
        "BlockDevice" => file_type.is_block_device(),
        _ => false,
    };
    right.then_some(()).ok_or_else(wrong)
}

/// A path without a type is created as a directory, as container runtimes do
/// for the kubelet.
fn missing(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
}
