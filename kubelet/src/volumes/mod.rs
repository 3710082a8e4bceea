//! Volumes of a pod: where they lie, how they are made and removed.
//!
//! They lie in `pods/<uid>/volumes/<plugin>/<name>` below rkube's state.
//! Volumes in memory and those with secrets are tmpfs mounts, made with the
//! new mount API in rkube's own mount namespace; there is no list of them:
//! removal finds every mount below the pod's directory by itself
//! ([`remove`]), so that nothing is left when a writer dies in between.

pub mod atomic;
pub mod host_path;
pub mod ownership;
pub mod payload;
#[cfg(test)]
mod tests;
pub mod tmpfs;

pub(crate) use rkube_engine::tree as remove;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, Volume};
use rustix::io::Errno;

use crate::downward::Facts;
use crate::node::Paths;
use crate::objects::Objects;
use crate::pod;
use crate::quantity;
use crate::translate::security::pod_security;

/// Why a volume cannot be made: the pod waits with FailedMount.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A system call failed.
    #[error("volume {volume:?}: {call} {path:?}")]
    Call {
        /// The volume.
        volume: String,
        /// The call and its arguments.
        call: String,
        /// On what.
        path: PathBuf,
        /// What the kernel answered.
        source: Errno,
    },
    /// A ConfigMap, Secret or claim is missing.
    #[error("volume {volume:?}: {kind} {name:?} is not there")]
    Missing {
        /// The volume.
        volume: String,
        /// ConfigMap, Secret or PersistentVolumeClaim.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// It lacks a key that `items` names.
    #[error("volume {volume:?}: {kind} {name:?} has no key {key:?}")]
    MissingKey {
        /// The volume.
        volume: String,
        /// ConfigMap or Secret.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// The path of a file in the volume leads out of it, or is taken.
    #[error("volume {volume:?}: the path {path:?} {problem}")]
    BadPath {
        /// The volume.
        volume: String,
        /// The path.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A field that there is not.
    #[error("volume {volume:?}: {field:?} is no field of the downward API")]
    UnknownField {
        /// The volume.
        volume: String,
        /// The field.
        field: String,
    },
    /// A host path is not of the wanted type.
    #[error("volume {volume:?}: {path:?} is no {wanted}")]
    WrongType {
        /// The volume.
        volume: String,
        /// The path on the host.
        path: PathBuf,
        /// The wanted type.
        wanted: String,
    },
    /// A kind of volume that rkube does not have.
    #[error(
        "volume {volume:?}: rkube supports emptyDir, hostPath, configMap, secret, downwardAPI, projected and persistentVolumeClaim, not {kind}"
    )]
    Unsupported {
        /// The volume.
        volume: String,
        /// The kind.
        kind: String,
    },
}

/// Where a volume is, for the containers that mount it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumePath {
    /// On the host.
    pub path: PathBuf,
    /// Containers may not write to it (ConfigMaps, Secrets, the downward API).
    pub read_only: bool,
}

enum Source<'a> {
    EmptyDir {
        memory: bool,
        size_bytes: Option<u64>,
    },
    HostPath {
        path: &'a str,
        kind: &'a str,
    },
    Files {
        secret: bool,
    },
    Claim {
        name: &'a str,
        read_only: bool,
    },
}

fn source(volume: &Volume) -> Result<(Source<'_>, &'static str), VolumeError> {
    let unsupported = |kind: &str| VolumeError::Unsupported {
        volume: volume.name.clone(),
        kind: kind.to_owned(),
    };
    if let Some(empty) = &volume.empty_dir {
        let memory = match empty.medium.as_deref().unwrap_or_default() {
            "" => false,
            "Memory" => true,
            other => return Err(unsupported(&format!("the medium {other}"))),
        };
        let size_bytes = empty
            .size_limit
            .as_ref()
            .and_then(quantity::units)
            .filter(|s| *s > 0);
        return Ok((
            Source::EmptyDir { memory, size_bytes },
            "kubernetes.io~empty-dir",
        ));
    }
    if let Some(host) = &volume.host_path {
        let kind = host.type_.as_deref().unwrap_or_default();
        return Ok((
            Source::HostPath {
                path: &host.path,
                kind,
            },
            "kubernetes.io~host-path",
        ));
    }
    if volume.config_map.is_some() {
        return Ok((Source::Files { secret: false }, "kubernetes.io~configmap"));
    }
    if volume.secret.is_some() {
        return Ok((Source::Files { secret: true }, "kubernetes.io~secret"));
    }
    if volume.downward_api.is_some() {
        return Ok((
            Source::Files { secret: false },
            "kubernetes.io~downward-api",
        ));
    }
    if let Some(projected) = &volume.projected {
        let secret = projected
            .sources
            .iter()
            .flatten()
            .any(|s| s.secret.is_some() || s.service_account_token.is_some());
        return Ok((Source::Files { secret }, "kubernetes.io~projected"));
    }
    if let Some(claim) = &volume.persistent_volume_claim {
        let read_only = claim.read_only == Some(true);
        return Ok((
            Source::Claim {
                name: &claim.claim_name,
                read_only,
            },
            "kubernetes.io~claim",
        ));
    }
    // The one field that is set names the kind.
    let kind = rkube_api::value_of(volume)
        .ok()
        .and_then(|v| {
            v.as_object()
                .and_then(|o| o.keys().find(|k| *k != "name").cloned())
        })
        .unwrap_or_else(|| "an empty one".to_owned());
    Err(unsupported(&kind))
}

/// Where each volume of the pod lies; says nothing about whether it is made.
///
/// # Errors
/// A kind of volume that rkube does not have.
pub fn locate(pod: &Pod, paths: &Paths) -> Result<BTreeMap<String, VolumePath>, VolumeError> {
    let spec = pod::spec(pod);
    let mut out = BTreeMap::new();
    for volume in spec.volumes.as_deref().unwrap_or_default() {
        let (source, plugin) = source(volume)?;
        let own = paths.volume(pod::uid(pod), plugin, &volume.name);
        let (path, read_only) = match source {
            Source::EmptyDir { .. } => (own, false),
            Source::HostPath { path, .. } => (PathBuf::from(path), false),
            Source::Files { .. } => (own, true),
            Source::Claim { name, read_only } => {
                (paths.claim(pod::namespace(pod), name), read_only)
            }
        };
        out.insert(volume.name.clone(), VolumePath { path, read_only });
    }
    Ok(out)
}

/// Makes all volumes of the pod. What exists already is left as it is, so
/// that a new writer may call it again.
///
/// # Errors
/// The first volume that cannot be made, and why.
pub fn make(facts: Facts<'_>, objects: &Objects, paths: &Paths) -> Result<(), VolumeError> {
    let spec = pod::spec(facts.pod);
    let security = pod_security(facts.pod);
    let group = ownership::Group {
        id: security.fs_group.and_then(|g| u32::try_from(g).ok()),
        only_on_mismatch: security.fs_group_change_policy.as_deref() == Some("OnRootMismatch"),
    };
    for volume in spec.volumes.as_deref().unwrap_or_default() {
        let (source, plugin) = source(volume)?;
        let own = paths.volume(pod::uid(facts.pod), plugin, &volume.name);
        let name = &volume.name;
        match source {
            Source::EmptyDir { memory, size_bytes } => {
                let new = make_dir(name, &own, 0o777)?;
                if memory {
                    tmpfs::mount_once(name, &own, size_bytes, 0o777)?;
                }
                if new {
                    group.apply(name, &own)?;
                }
            }
            Source::HostPath { path, kind } => host_path::check(name, Path::new(path), kind)?,
            Source::Files { secret } => {
                let files = payload::files(facts, objects, volume)?;
                make_dir(name, &own, 0o777)?;
                if secret {
                    tmpfs::mount_once(name, &own, None, 0o777)?;
                }
                atomic::write(name, &own, &files, group.id)?;
            }
            Source::Claim {
                name: claim,
                read_only,
            } => {
                let path = paths.claim(pod::namespace(facts.pod), claim);
                if !objects.claims.contains_key(claim) && !path.is_dir() {
                    return Err(VolumeError::Missing {
                        volume: name.clone(),
                        kind: "PersistentVolumeClaim",
                        name: claim.to_owned(),
                    });
                }
                make_dir(name, &path, 0o777)?;
                if !read_only {
                    group.apply(name, &path)?;
                }
            }
        }
    }
    Ok(())
}

/// Writes volumes of files anew whose digest is not the one in `written`, by
/// volume; `written` is brought up to date. Volumes of other kinds are left
/// as they are, and so are those that cannot be written.
///
/// # Errors
/// What could not be written; the other volumes are.
pub fn refresh(
    facts: Facts<'_>,
    objects: &Objects,
    paths: &Paths,
    written: &mut BTreeMap<String, u64>,
) -> Result<(), Vec<VolumeError>> {
    let spec = pod::spec(facts.pod);
    let group = pod_security(facts.pod)
        .fs_group
        .and_then(|g| u32::try_from(g).ok());
    let mut problems = Vec::new();
    for volume in spec.volumes.as_deref().unwrap_or_default() {
        let Ok((Source::Files { .. }, plugin)) = source(volume) else {
            continue;
        };
        let own = paths.volume(pod::uid(facts.pod), plugin, &volume.name);
        let result = payload::files(facts, objects, volume).and_then(|files| {
            let digest = payload::digest(&files);
            if written.get(&volume.name) == Some(&digest) {
                return Ok(());
            }
            atomic::write(&volume.name, &own, &files, group)?;
            written.insert(volume.name.clone(), digest);
            Ok(())
        });
        problems.extend(result.err());
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems)
    }
}

/// Makes a directory and what is above it; whether it is new. `mode` is set
/// past the umask.
fn make_dir(volume: &str, path: &Path, mode: u32) -> Result<bool, VolumeError> {
    let failed = |call: &str, source: Errno| VolumeError::Call {
        volume: volume.to_owned(),
        call: call.to_owned(),
        path: path.to_path_buf(),
        source,
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|e| {
            failed(
                "mkdir -p above",
                Errno::from_io_error(&e).unwrap_or(Errno::IO),
            )
        })?;
    }
    match rustix::fs::mkdir(path, rustix::fs::Mode::from_bits_truncate(mode)) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Ok(false),
        Err(source) => return Err(failed("mkdir", source)),
    }
    rustix::fs::chmod(path, rustix::fs::Mode::from_bits_truncate(mode))
        .map_err(|e| failed(&format!("chmod {mode:o}"), e))?;
    Ok(true)
}
