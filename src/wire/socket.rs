//! Where the writer listens, and how long roots are reached.
//!
//! `sun_path` holds 108 bytes (unix(7)); the directory is therefore opened
//! and the socket named through `/proc/self/fd/<n>`, whatever the root.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// The socket's name in the run directory.
const SOCKET: &str = "rkube.sock";

fn open_dir(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(dir, flags, Mode::empty())?)
}

fn through(dir: &OwnedFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

/// Makes the run directory, for root alone.
pub(crate) fn make_run_dir(dir: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
}

/// Connects to the writer of a run directory.
pub(crate) fn connect(run_dir: &Path) -> io::Result<std::os::unix::net::UnixStream> {
    let dir = open_dir(run_dir)?;
    std::os::unix::net::UnixStream::connect(through(&dir, SOCKET))
}

/// Whether a failed connect means that no writer listens.
pub(crate) fn nobody_there(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// Listens in a run directory. A client sees the name only once the socket
/// listens: it is made under another one and renamed.
pub(crate) fn listen(run_dir: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let dir = open_dir(run_dir)?;
    let (new, path) = (through(&dir, "rkube.sock.new"), through(&dir, SOCKET));
    remove(&new)?;
    let listener = std::os::unix::net::UnixListener::bind(&new)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&new, &path)?;
    Ok(listener)
}

/// Takes the socket's name away.
pub(crate) fn remove_socket(run_dir: &Path) -> io::Result<()> {
    remove(&run_dir.join(SOCKET))
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_longer_than_a_socket_address_are_reached() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("long-name/".repeat(30)).join("run/rkube");
        make_run_dir(&run).unwrap();
        assert!(run.as_os_str().len() > 200);
        assert!(nobody_there(&connect(&run).unwrap_err()));
        let listener = listen(&run).unwrap();
        let _client = connect(&run).unwrap();
        listener.accept().unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&run), mode(&run.join(SOCKET))), (0o700, 0o600));
        // One that a killed writer left is replaced.
        drop(listener);
        assert!(nobody_there(&connect(&run).unwrap_err()));
        let _listener = listen(&run).unwrap();
        connect(&run).unwrap();
        remove_socket(&run).unwrap();
        remove_socket(&run).unwrap();
    }
}
