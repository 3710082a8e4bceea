//! Who may write under a root, and the short lock around comings and goings.
//!
//! `writer.lock` is held as long as a writer serves. `start.lock` is held
//! while one begins (until its socket listens) and while one ends (until it
//! has let go of everything): whoever waits for it then finds either a socket
//! that listens or a free `writer.lock`, and needs no polling.
//!
//! Both are flock(2) locks: a killed writer leaves none.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    /// Another writer holds it.
    #[error("another rkube writer serves this root")]
    Busy,
    /// A system call failed.
    #[error("{call} {}", path.display())]
    Call {
        /// The call.
        call: &'static str,
        /// The lock file.
        path: PathBuf,
        /// What the kernel answered.
        source: std::io::Error,
    },
}

impl LockError {
    /// Whether the directory of the lock is not there.
    pub(crate) fn is_absence(&self) -> bool {
        matches!(self, Self::Call { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }
}

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "closing it lets the lock go")] File);

fn open(path: &Path) -> Result<File, LockError> {
    let options = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path);
    options.map_err(|source| LockError::Call {
        call: "open",
        path: path.to_owned(),
        source,
    })
}

/// Whether the file is the one that others find under this path.
fn is_at(file: &File, path: &Path) -> bool {
    let key = |m: std::fs::Metadata| (m.dev(), m.ino());
    file.metadata().map(key).ok() == std::fs::metadata(path).map(key).ok()
}

fn take(path: &Path, operation: FlockOperation) -> Result<Lock, LockError> {
    let mut file = open(path)?;
    loop {
        match flock(&file, operation) {
            Ok(()) if is_at(&file, path) => return Ok(Lock(file)),
            // A reset that held it has removed the file.
            Ok(()) => file = open(path)?,
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => return Err(LockError::Busy),
            Err(e) => {
                return Err(LockError::Call {
                    call: "flock",
                    path: path.to_owned(),
                    source: e.into(),
                });
            }
        }
    }
}

/// Waits until nobody begins or ends.
pub(crate) fn start(run_dir: &Path) -> Result<Lock, LockError> {
    take(&run_dir.join("start.lock"), FlockOperation::LockExclusive)
}

/// Becomes the writer, or says at once that there is one.
pub(crate) fn writer(run_dir: &Path) -> Result<Lock, LockError> {
    take(
        &run_dir.join("writer.lock"),
        FlockOperation::NonBlockingLockExclusive,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_writer_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = writer(dir.path()).unwrap();
        assert!(matches!(writer(dir.path()), Err(LockError::Busy)));
        drop(first);
        writer(dir.path()).unwrap();
        let held = start(dir.path()).unwrap();
        let waits = std::thread::scope(|scope| {
            let waiter = scope.spawn(|| start(dir.path()).unwrap());
            std::fs::remove_file(dir.path().join("start.lock")).unwrap();
            drop(held);
            waiter.join().unwrap()
        });
        // What was waited for is the file that is there now.
        assert!(dir.path().join("start.lock").exists());
        drop(waits);
        let gone = dir.path().join("none");
        assert!(matches!(
            writer(&gone),
            Err(LockError::Call { call: "open", .. })
        ));
    }
}
