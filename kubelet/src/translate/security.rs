//! Security contexts: the container's own fields win over the pod's.

use std::path::{Component, Path};

use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, SeccompProfile};
use rkube_engine::api::{Seccomp, SecurityConfig};

use super::{TranslateError, id};
use crate::pod;

/// The largest seccomp profile that is read.
pub const MAX_SECCOMP_PROFILE_BYTES: u64 = 1024 * 1024;

/// Whom and with what rights a container runs. Localhost seccomp profiles
/// are read below `profiles`.
///
/// # Errors
/// An id is out of range or a profile cannot be read.
pub fn security(
    pod: &Pod,
    container: &Container,
    profiles: &Path,
) -> Result<SecurityConfig, TranslateError> {
    let of_pod = pod_security(pod);
    let own = pod::security(container);
    let privileged = own.privileged == Some(true);
    let mut groups = Vec::new();
    for (field, group) in of_pod
        .supplemental_groups
        .iter()
        .flatten()
        .map(|g| ("supplementalGroups", *g))
        .chain(of_pod.fs_group.map(|g| ("fsGroup", g)))
    {
        let group = id(field, group)?;
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    let add = capabilities(own.capabilities.as_ref().and_then(|c| c.add.as_deref()));
    let drop = capabilities(own.capabilities.as_ref().and_then(|c| c.drop.as_deref()));
    let profile = own
        .seccomp_profile
        .as_ref()
        .or(of_pod.seccomp_profile.as_ref());
    Ok(SecurityConfig {
        uid: own
            .run_as_user
            .or(of_pod.run_as_user)
            .map(|v| id("runAsUser", v))
            .transpose()?,
        gid: own
            .run_as_group
            .or(of_pod.run_as_group)
            .map(|v| id("runAsGroup", v))
            .transpose()?,
        supplemental_groups: groups,
        strict_groups: of_pod.supplemental_groups_policy.as_deref() == Some("Strict"),
        run_as_non_root: own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true),
        privileged,
        add_capabilities: add,
        drop_capabilities: drop,
        read_only_root: own.read_only_root_filesystem == Some(true),
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        unmasked_proc: own.proc_mount.as_deref() == Some("Unmasked"),
        seccomp: seccomp(profile, profiles)?,
    })
}

/// The pod's security context, or an empty one.
#[must_use]
pub fn pod_security(pod: &Pod) -> PodSecurityContext {
    pod.spec
        .as_ref()
        .and_then(|s| s.security_context.clone())
        .unwrap_or_default()
}

/// Names in upper case without `CAP_`.
fn capabilities(names: Option<&[String]>) -> Vec<String> {
    names
        .unwrap_or_default()
        .iter()
        .map(|name| {
            let name = name.to_ascii_uppercase();
            name.strip_prefix("CAP_").unwrap_or(&name).to_owned()
        })
        .collect()
}

/// A pod that names no profile gets the default one.
fn seccomp(profile: Option<&SeccompProfile>, profiles: &Path) -> Result<Seccomp, TranslateError> {
    let Some(profile) = profile else {
        return Ok(Seccomp::RuntimeDefault);
    };
    match profile.type_.as_str() {
        "Unconfined" => Ok(Seccomp::Unconfined),
        "Localhost" => {
            let name = profile.localhost_profile.as_deref().unwrap_or_default();
            let error = |reason: String| TranslateError::Seccomp {
                path: name.to_owned(),
                reason,
            };
            let relative = Path::new(name);
            let inside = relative
                .components()
                .all(|c| matches!(c, Component::Normal(_)));
            if name.is_empty() || !inside {
                return Err(error("must be a relative path without \"..\"".to_owned()));
            }
            let path = profiles.join(relative);
            let about = |e: std::io::Error| error(format!("read {}: {e}", path.display()));
            let size = std::fs::metadata(&path).map_err(about)?.len();
            if size > MAX_SECCOMP_PROFILE_BYTES {
                return Err(error(format!(
                    "{size} bytes are more than {MAX_SECCOMP_PROFILE_BYTES}"
                )));
            }
            let text = std::fs::read(&path).map_err(about)?;
            let profile = serde_json::from_slice(&text).map_err(|e| error(e.to_string()))?;
            Ok(Seccomp::Profile(Box::new(profile)))
        }
        _ => Ok(Seccomp::RuntimeDefault),
    }
}
