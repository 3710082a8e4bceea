//! The rules of a layer's content: names, whiteouts, attributes; and what is
//! remembered of it.

use serde::{Deserialize, Serialize};

use crate::error::Refusal;
use crate::limits::{MAX_NAME_BYTES, MAX_PATH_BYTES};

/// Hides the rest of the name in the layers below.
pub(crate) const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Hides all that the layers below have in this directory.
pub(crate) const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// Other aufs bookkeeping (`.wh..wh.plnk`, `.wh..wh.aufs`): no content.
pub(crate) const AUFS_META_PREFIX: &[u8] = b".wh..wh.";

/// What is known of an unpacked layer (`layer.json` beside its tree).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// Entries in the archive.
    pub entries: u64,
    /// Bytes of file data written.
    pub data_bytes: u64,
    /// Disk use, data rounded up to 4 KiB blocks, one block per directory.
    pub disk_bytes: u64,
    /// Device nodes in the layer.
    pub devices: u64,
    /// The first of them: path, `c` or `b`, major, minor.
    pub device_nodes: Vec<(String, char, u32, u32)>,
    /// Attributes of the archive that were left out (`trusted.*`,
    /// `user.overlay.*`, host policy such as `security.selinux`).
    pub dropped_xattrs: u64,
    /// The layer's root hides every layer below it.
    pub root_opaque: bool,
    /// Mode, uid and gid of `/`, if the archive has an entry for it.
    pub root: Option<(u32, u32, u32)>,
}

/// An allow list: file capabilities and what users attach. Labels and
/// signatures (`security.selinux`, `.ima`, `.evm`) are the host's business,
/// `trusted.*` and `user.overlay.*` steer overlayfs.
pub(crate) fn xattr_allowed(name: &[u8], dir: bool) -> bool {
    (name == b"security.capability" && !dir)
        || (name.starts_with(b"user.") && name.len() > 5 && !name.starts_with(b"user.overlay."))
}

/// Splits off the last name.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(i) => (&path[..i], &path[i + 1..]),
        None => (&[], path),
    }
}

/// The path without `.` and empty parts; the empty path is the layer's root.
pub(crate) fn clean(path: &[u8]) -> std::result::Result<Vec<u8>, Refusal> {
    if path.is_empty() {
        return Err(Refusal::Rule("it has no name"));
    }
    if path[0] == b'/' {
        return Err(Refusal::Rule("an absolute path"));
    }
    if path.contains(&0) {
        return Err(Refusal::Rule("its name holds a NUL"));
    }
    if path.len() > MAX_PATH_BYTES {
        let limit = MAX_PATH_BYTES as u64;
        return Err(Refusal::Limit {
            what: "its path",
            limit,
            unit: "bytes",
        });
    }
    let mut out = Vec::with_capacity(path.len());
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err(Refusal::Rule("a path with ..")),
            _ if part.len() > MAX_NAME_BYTES => {
                let limit = MAX_NAME_BYTES as u64;
                return Err(Refusal::Limit {
                    what: "a part of its path",
                    limit,
                    unit: "bytes",
                });
            }
            _ => {}
        }
        if !out.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(part);
    }
    Ok(out)
}
