//! The record of a pod on disk: what is wanted, and what is known.
//!
//! `pods/<uid>/pod.json` is written when a pod is applied or deleted,
//! `pods/<uid>/state.json` before every action. Both are replaced by
//! rename(2); neither is synced: a killed process loses nothing that it has
//! written, and after a crash of the machine no container is left that the
//! record could tell of.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

use crate::machine::{Deletion, PodState};
use crate::node::Paths;
use crate::objects::Objects;

/// The version of the format; records of others are not read.
pub const RECORD_VERSION: u32 = 1;
/// The largest record that is read.
pub const MAX_RECORD_BYTES: u64 = 64 * 1024 * 1024;

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Wanted {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// The boot that it was written in (/proc/sys/kernel/random/boot_id).
    pub boot_id: String,
    /// The pod.
    pub pod: Pod,
    /// The objects that it refers to.
    pub objects: Objects,
    /// Pods of one group find each other by name.
    pub group: Option<String>,
    /// Set once it is to end.
    pub deletion: Option<Deletion>,
    /// Where it came from.
    #[serde(default)]
    pub source: Source,
}

/// Where a pod came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Source {
    /// A manifest, by `rkube run`.
    #[default]
    File,
    /// An API server, which knows what it refers to: Secrets and tokens of
    /// such a pod are in no record.
    Api,
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read or written.
    #[error("{call} {path:?}")]
    Call {
        /// The call.
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// It ends or breaks off in the middle of a value: a power cut came before
    /// its bytes were on the disk, or the disk is damaged.
    #[error("{path:?} is torn: {reason}")]
    Torn {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It is no record of this version.
    #[error("{path:?} is no record of version {RECORD_VERSION}: {reason}")]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// The id of this boot; empty where the kernel tells none.
#[must_use]
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Replaces a file as a whole; directories above it are made.
///
/// # Errors
/// What the kernel answered.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)?;
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    // Secrets may be in it.
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(bytes)?;
    std::fs::rename(&new, path)
}

/// Writes what is wanted.
///
/// # Errors
/// It cannot be written.
pub fn write_wanted(paths: &Paths, uid: &str, wanted: &Wanted) -> Result<(), RecordError> {
    let path = paths.pod(uid).join("pod.json");
    if wanted.source == Source::Api && !wanted.objects.secrets.is_empty() {
        let mut bare = wanted.clone();
        bare.objects.secrets.clear();
        return write(path, &bare);
    }
    write(path, wanted)
}

/// Writes what is known.
///
/// # Errors
/// It cannot be written.
pub fn write_state(paths: &Paths, uid: &str, state: &PodState) -> Result<(), RecordError> {
    write(paths.pod(uid).join("state.json"), state)
}

fn write(path: PathBuf, value: &impl Serialize) -> Result<(), RecordError> {
    let bytes = serde_json::to_vec(value).map_err(|e| RecordError::Broken {
        path: path.clone(),
        reason: e.to_string(),
    })?;
    replace(&path, &bytes).map_err(|source| RecordError::Call {
        call: "write",
        path,
        source,
    })
}

/// Reads a pod's record; `None` where there is none. A pod that was never
/// begun has no state.
///
/// # Errors
/// It cannot be read or is no record.
pub fn read(paths: &Paths, uid: &str) -> Result<Option<(Wanted, Option<PodState>)>, RecordError> {
    let dir = paths.pod(uid);
    let Some(wanted) = read_one::<Wanted>(dir.join("pod.json"))? else {
        return Ok(None);
    };
    if wanted.version != RECORD_VERSION {
        let reason = format!("version {}", wanted.version);
        return Err(RecordError::Broken {
            path: dir.join("pod.json"),
            reason,
        });
    }
    Ok(Some((wanted, read_one(dir.join("state.json"))?)))
}

fn read_one<T: serde::de::DeserializeOwned>(path: PathBuf) -> Result<Option<T>, RecordError> {
    let failed = |call, source| RecordError::Call {
        call,
        path: path.clone(),
        source,
    };
    match std::fs::metadata(&path) {
        Ok(stat) if stat.len() > MAX_RECORD_BYTES => {
            return Err(RecordError::Broken {
                path,
                reason: format!("{} bytes", stat.len()),
            });
        }
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("stat", e)),
    }
    let bytes = std::fs::read(&path).map_err(|e| failed("read", e))?;
    serde_json::from_slice(&bytes).map(Some).map_err(|e| {
        let (path, reason) = (path.clone(), e.to_string());
        match e.classify() {
            serde_json::error::Category::Data => RecordError::Broken { path, reason },
            _ => RecordError::Torn { path, reason },
        }
    })
}

/// The uids that have a directory.
///
/// # Errors
/// The directory of pods cannot be read.
pub fn uids(paths: &Paths) -> Result<Vec<String>, RecordError> {
    let failed = |source| RecordError::Call {
        call: "readdir",
        path: paths.pods(),
        source,
    };
    let mut list = Vec::new();
    match std::fs::read_dir(paths.pods()) {
        Ok(entries) => {
            for entry in entries {
                if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
                    list.push(name);
                }
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
    }
    list.sort_unstable();
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod as pod_of;
    use serde_json::json;

    #[test]
    fn records_round_trip_and_broken_ones_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path());
        assert!(read(&paths, "u-1").unwrap().is_none() && uids(&paths).unwrap().is_empty());
        let pod = pod_of(json!({"containers": [{"name": "a"}]}));
        let state = PodState::new(&pod, std::time::SystemTime::now());
        let wanted = Wanted {
            version: RECORD_VERSION,
            boot_id: boot_id(),
            pod,
            objects: Objects::default(),
            group: None,
            deletion: None,
            source: Source::File,
        };
        write_wanted(&paths, "u-1", &wanted).unwrap();
        assert_eq!(read(&paths, "u-1").unwrap(), Some((wanted.clone(), None)));
        write_state(&paths, "u-1", &state).unwrap();
        assert_eq!(
            read(&paths, "u-1").unwrap(),
            Some((wanted.clone(), Some(state)))
        );
        assert_eq!(uids(&paths).unwrap(), ["u-1"]);
        write_wanted(
            &paths,
            "u-1",
            &Wanted {
                version: 99,
                ..wanted
            },
        )
        .unwrap();
        assert!(
            read(&paths, "u-1")
                .unwrap_err()
                .to_string()
                .contains("version 99")
        );
        for torn in ["", "{", "\0\0"] {
            std::fs::write(paths.pod("u-1").join("pod.json"), torn).unwrap();
            let read = read(&paths, "u-1");
            assert!(
                matches!(read, Err(RecordError::Torn { .. })),
                "{torn:?}: {read:?}"
            );
        }
        std::fs::write(paths.pod("u-1").join("pod.json"), "{}").unwrap();
        assert!(matches!(
            read(&paths, "u-1"),
            Err(RecordError::Broken { .. })
        ));
    }
}
