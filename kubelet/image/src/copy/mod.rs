//! Copies of file trees into and out of containers, as tar archives.
//!
//! A container's paths are resolved by the kernel with its root as `/`
//! (RESOLVE_IN_ROOT, no magic links); whatever it swaps for a link meanwhile
//! leads nowhere else. Below the directory of the host that a copy goes to, no
//! link is followed at all. Device nodes, sockets and FIFOs are left out:
//! opening one would act on what it stands for.

mod pack;
mod place;
mod unpack;

pub use pack::{Source, pack};
pub use place::{Owner, Place, Target, act_for};
pub use unpack::unpack;

use std::io;

use crate::error::Refusal;

/// Most entries of one archive, and of one directory.
pub const MAX_ENTRIES: usize = 4_000_000;
/// Most that is read of a file that tells no size (/proc, /sys), in bytes.
pub const MAX_SIZELESS_BYTES: u64 = 16 << 20;

/// Why a copy has ended early.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A system call on a file.
    #[error("{call} {path}")]
    Call {
        /// The call.
        call: &'static str,
        /// The file, as the user or the archive names it.
        path: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// What was asked for cannot be done.
    #[error("{path}: {what}")]
    Refused {
        /// The file.
        path: String,
        /// Why.
        what: &'static str,
    },
    /// The archive cannot be read.
    #[error("read the archive")]
    Read(#[source] io::Error),
    /// The archive cannot be written.
    #[error("write the archive")]
    Write(#[source] io::Error),
    /// The archive is none, or has an entry that is not taken.
    #[error("the archive{}", at(.path))]
    Archive {
        /// The entry, where one is meant.
        path: String,
        /// The rule.
        source: Refusal,
    },
}

fn at(path: &str) -> String {
    if path.is_empty() {
        String::new()
    } else {
        format!(" at {path}")
    }
}

/// Says what was attempted on which file.
trait OnPath<T> {
    fn on(self, call: &'static str, path: &[u8]) -> Result<T, CopyError>;
}

impl<T, E: Into<io::Error>> OnPath<T> for Result<T, E> {
    fn on(self, call: &'static str, path: &[u8]) -> Result<T, CopyError> {
        self.map_err(|e| CopyError::Call {
            call,
            path: shown(path),
            source: e.into(),
        })
    }
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn refused(path: &[u8], what: &'static str) -> CopyError {
    CopyError::Refused {
        path: shown(path),
        what,
    }
}

/// A path and what is below it.
fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    match (parent, name) {
        (b"", name) => name.to_vec(),
        (parent, b"") => parent.to_vec(),
        (parent, name) if parent.ends_with(b"/") => [parent, name].concat(),
        (parent, name) => [parent, b"/", name].concat(),
    }
}

/// A relative path's directory and last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// What a path names last: `a` of `/x/a/`; empty for `/`, `.` and `..` and
/// paths that end so.
#[must_use]
pub fn base_name(path: &[u8]) -> &[u8] {
    let mut path = path;
    while let [head @ .., b'/'] = path {
        path = head;
    }
    match split(path).1 {
        b"." | b".." => b"",
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_paths() {
        for (path, name) in [
            ("/x/a", "a"),
            ("a/", "a"),
            ("/x/a//", "a"),
            ("/", ""),
            ("", ""),
            (".", ""),
            ("x/.", ""),
            ("x/..", ""),
        ] {
            assert_eq!(base_name(path.as_bytes()), name.as_bytes(), "{path}");
        }
        assert_eq!(join(b"/", b"a"), b"/a");
        assert_eq!(join(b"", b"a"), b"a");
        assert_eq!(join(b"x", b""), b"x");
    }
}
