//! Pods into the engine's vocabulary: pure functions of the pod, the host
//! and what was prepared for it.

pub mod container;
pub mod limits;
pub mod memory;
pub mod pressure;
pub mod qos;
pub mod sandbox;
pub mod security;
#[cfg(test)]
mod tests;

/// A pod that cannot be translated: the container or pod waits with
/// CreateContainerConfigError or FailedCreatePodSandBox.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TranslateError {
    /// A number does not fit what the kernel takes.
    #[error("{field} is {value}, which is out of range")]
    OutOfRange {
        /// The field.
        field: String,
        /// Its value.
        value: i64,
    },
    /// An annotation means nothing.
    #[error("annotation {key}: {value:?} must be {wanted}")]
    Annotation {
        /// The annotation.
        key: String,
        /// Its value.
        value: String,
        /// What it may be.
        wanted: &'static str,
    },
    /// A seccomp profile cannot be read.
    #[error("seccomp profile {path:?}: {reason}")]
    Seccomp {
        /// The profile.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A mount names a volume that the pod does not have.
    #[error("volumeMounts: there is no volume {name:?}")]
    NoVolume {
        /// The volume.
        name: String,
    },
    /// A `subPath` leads out of its volume.
    #[error("subPath {path:?} of volume {volume:?} is absolute or has \"..\" in it")]
    SubPath {
        /// The volume.
        volume: String,
        /// The path after expansion.
        path: String,
    },
    /// `subPathExpr` refers to a variable that there is not.
    #[error("subPathExpr {path:?} of volume {volume:?} refers to a variable that is not set")]
    SubPathExpr {
        /// The volume.
        volume: String,
        /// The expression.
        path: String,
    },
    /// A signal that Linux does not have.
    #[error("lifecycle.stopSignal: no signal {name:?}")]
    Signal {
        /// Its name.
        name: String,
    },
    /// A host IP that is no address.
    #[error("hostIP {text:?} is no address")]
    HostIp {
        /// What it is.
        text: String,
    },
    /// The host name does not fit the kernel's 64 bytes.
    #[error("host name {name:?} is longer than 64 bytes")]
    Hostname {
        /// The name.
        name: String,
    },
}

/// A number of the API as the kernel takes it.
pub(crate) fn id(field: &str, value: i64) -> Result<u32, TranslateError> {
    // uid_t and gid_t of -1 mean "leave it" to the kernel (chown(2)).
    match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(TranslateError::OutOfRange {
            field: field.to_owned(),
            value,
        }),
    }
}
