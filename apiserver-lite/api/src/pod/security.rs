//! The rules for security contexts, host namespaces and sysctls.

use std::collections::HashSet;

use super::container::{descending_path, no_backsteps};
use super::validate::{one_of, one_of_opt};
use crate::field::Errors;
use crate::names;
use crate::view::At;

/// Longest sysctl name, in bytes.
const SYSCTL_MAX_BYTES: usize = 253;
const SYSCTL_PATTERN: &str =
    "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*([a-z0-9][-_a-z0-9]*)?[a-z0-9]$";

fn id(errors: &mut Errors, at: &At<'_, '_>) {
    if at
        .int()
        .is_some_and(|n| !(0..=i64::from(i32::MAX)).contains(&n))
    {
        at.invalid(errors, names::range(0, i32::MAX.into()));
    }
}

pub(super) fn pod(errors: &mut Errors, spec: &At<'_, '_>) {
    let context = spec.get("securityContext");
    for name in ["runAsUser", "runAsGroup", "fsGroup"] {
        id(errors, &context.get(name));
    }
    context
        .get("supplementalGroups")
        .items()
        .for_each(|group| id(errors, &group));
    let change = context.get("fsGroupChangePolicy");
    one_of_opt(errors, &change, &["Always", "OnRootMismatch"]);
    one_of_opt(
        errors,
        &context.get("supplementalGroupsPolicy"),
        &["Merge", "Strict"],
    );
    one_of_opt(
        errors,
        &context.get("seLinuxChangePolicy"),
        &["MountOption", "Recursive"],
    );
    profiles(errors, &context);
    // Upstream's own form of a pod has it there.
    let share = spec.get("shareProcessNamespace");
    let place = context.get("shareProcessNamespace");
    let share = place.with_value(share.value());
    if share.is_true() && spec.get("hostPID").is_true() {
        share.invalid(
            errors,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    if spec.get("hostUsers").is_false() {
        for name in ["hostNetwork", "hostPID", "hostIPC"] {
            let field = spec.get(name);
            if field.is_true() {
                field.forbidden(errors, "when `hostUsers` is false");
            }
        }
        if spec
            .get("containers")
            .items()
            .any(|c| !c.get("volumeDevices").is_empty())
        {
            spec.get("hostUsers")
                .forbidden(errors, "when `volumeDevices` is set");
        }
    }
    sysctls(errors, &context.get("sysctls"), spec);
}

fn sysctls(errors: &mut Errors, list: &At<'_, '_>, spec: &At<'_, '_>) {
    let mut seen = HashSet::new();
    for sysctl in list.items() {
        let name = sysctl.get("name");
        // `a/b` and `a.b` are one name unless the first separator is a slash.
        let normal = normalise_sysctl(name.str());
        if name.str().is_empty() {
            name.required(errors, "");
        } else if !is_sysctl(name.str()) {
            let rule = format!(
                "must have at most {SYSCTL_MAX_BYTES} characters and match regex {SYSCTL_PATTERN}"
            );
            name.invalid(errors, rule);
        } else if !seen.insert(normal.clone()) {
            name.duplicate(errors);
        }
        if normal.starts_with("net.") && spec.get("hostNetwork").is_true() {
            name.invalid(errors, "may not be specified when 'hostNetwork' is true");
        }
        let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."];
        if (normal == "kernel.sem" || ipc.iter().any(|p| normal.starts_with(p)))
            && spec.get("hostIPC").is_true()
        {
            name.invalid(errors, "may not be specified when 'hostIPC' is true");
        }
    }
}

/// The dotted form; where the first separator is a slash, dots and slashes
/// swap (sysctl.d(5)).
fn normalise_sysctl(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(i) if name.as_bytes().get(i) == Some(&b'/') => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                c => c,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn is_sysctl(name: &str) -> bool {
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= SYSCTL_MAX_BYTES
        && name.split(['.', '/']).all(|part| {
            let bytes = part.as_bytes();
            bytes.first().copied().is_some_and(edge)
                && bytes.last().copied().is_some_and(edge)
                && bytes.iter().all(|b| edge(*b) || matches!(b, b'-' | b'_'))
        })
}

/// `seccompProfile` and `appArmorProfile` of a pod or container.
fn profiles(errors: &mut Errors, context: &At<'_, '_>) {
    for (name, word) in [
        ("seccompProfile", "seccomp"),
        ("appArmorProfile", "AppArmor"),
    ] {
        let profile = context.get(name);
        if profile.is_none() {
            continue;
        }
        let kind = profile.get("type");
        if kind.str().is_empty() {
            kind.required(errors, format!("type is required when {name} is set"));
        } else {
            one_of(
                errors,
                &kind,
                &["Localhost", "RuntimeDefault", "Unconfined"],
            );
        }
        let local = profile.get("localhostProfile");
        if kind.str() == "Localhost" {
            if local.str().trim().is_empty() {
                local.required(errors, format!("must be set when {word} type is Localhost"));
            } else if name == "seccompProfile" {
                descending_path(errors, &local);
            } else {
                no_backsteps(errors, &local);
            }
        } else if local.is_some() {
            local.invalid(
                errors,
                format!("can only be set when {word} type is Localhost"),
            );
        }
    }
}

pub(super) fn container(errors: &mut Errors, context: &At<'_, '_>, spec: &At<'_, '_>) {
    for name in ["runAsUser", "runAsGroup"] {
        id(errors, &context.get(name));
    }
    profiles(errors, context);
    let mount = context.get("procMount");
    if !mount.str().is_empty() {
        one_of_opt(errors, &mount, &["Default", "Unmasked"]);
    }
    if mount.str() == "Unmasked" && !spec.get("hostUsers").is_false() {
        mount.invalid(errors, "`hostUsers` must be false to use `Unmasked`");
    }
    let escalation = context.get("allowPrivilegeEscalation");
    if escalation.is_false() {
        if context.get("privileged").is_true() {
            context.error_value(
                errors,
                crate::field::ErrorKind::Invalid,
                crate::field::shown(context.value()),
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            );
        }
        let capabilities = context.get("capabilities");
        let added = capabilities.get("add");
        let admin = added.items().any(|c| c.str() == "CAP_SYS_ADMIN");
        if admin {
            context.error_value(
                errors,
                crate::field::ErrorKind::Invalid,
                crate::field::shown(context.value()),
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            );
        }
    }
}
