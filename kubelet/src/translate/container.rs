//! One attempt of a container.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};
use rkube_engine::api::{
    ContainerConfig, ContainerId, MountConfig, MountSource, NamespaceMode, Propagation,
};

use super::{TranslateError, memory, pressure, qos, sandbox, security};
use crate::env::{Environment, expand};
use crate::node::{NodeFacts, Paths};
use crate::pod;
use crate::volumes::VolumePath;

/// `terminationMessagePath` where the container names none.
pub const DEFAULT_TERMINATION_LOG: &str = "/dev/termination-log";

/// What was prepared for an attempt.
#[derive(Debug, Clone, Copy)]
pub struct Prepared<'a> {
    /// The attempt.
    pub attempt: u32,
    /// The environment.
    pub environment: &'a Environment,
    /// The pod's volumes by name.
    pub volumes: &'a BTreeMap<String, VolumePath>,
    /// The file for the termination message.
    pub termination_log: &'a Path,
}

/// What the attempt is to be.
///
/// # Errors
/// See [`TranslateError`].
pub fn container(
    pod: &Pod,
    container: &Container,
    prepared: Prepared<'_>,
    node: &NodeFacts,
    paths: &Paths,
) -> Result<ContainerConfig, TranslateError> {
    let variables = prepared.environment.map();
    let expanded = |list: &Option<Vec<String>>| {
        list.as_ref().filter(|l| !l.is_empty()).map(|l| {
            l.iter()
                .map(|text| expand(text, &variables))
                .collect::<Vec<_>>()
        })
    };
    // What lies here is the pod's alone and goes with it.
    let own = paths.pod(pod::uid(pod));
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.as_deref().unwrap_or_default() {
        mounts.push(volume_mount(mount, prepared, &variables, &own)?);
    }
    mounts.extend(own_files(pod, container, prepared, paths));
    // A deeper target must be mounted after the one above it.
    mounts.sort_by_key(|m| Path::new(&m.target).components().count());
    let stop_signal = container
        .lifecycle
        .as_ref()
        .and_then(|l| l.stop_signal.as_deref());
    let mut labels = sandbox::labels(pod);
    labels.insert(
        "io.kubernetes.container.name".to_owned(),
        container.name.clone(),
    );
    let mut resources = qos::container_resources(container, !node.single_process_oom_kill);
    memory::asked(pod, &container.name, &mut resources)?;
    Ok(ContainerConfig {
        id: ContainerId {
            sandbox: pod::uid(pod).to_owned(),
            name: container.name.clone(),
            attempt: prepared.attempt,
        },
        image: container.image.clone().unwrap_or_default(),
        command: expanded(&container.command),
        args: expanded(&container.args),
        env: prepared.environment.variables.clone(),
        working_dir: container.working_dir.clone().filter(|d| !d.is_empty()),
        mounts,
        security: security::security(pod, container, &paths.seccomp())?,
        resources,
        oom_score_adj: qos::oom_score_adj(pod, container, node.memory_bytes),
        tty: container.tty == Some(true),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        stop_signal: stop_signal.map(signal_number).transpose()?,
        pressure_alarms: pressure::asked(pod, &container.name)?,
        labels,
    })
}

fn volume_mount(
    mount: &VolumeMount,
    prepared: Prepared<'_>,
    variables: &BTreeMap<&str, &str>,
    own: &Path,
) -> Result<MountConfig, TranslateError> {
    let volume = prepared
        .volumes
        .get(&mount.name)
        .ok_or_else(|| TranslateError::NoVolume {
            name: mount.name.clone(),
        })?;
    let sub_path = match (&mount.sub_path_expr, &mount.sub_path) {
        (Some(expr), _) if !expr.is_empty() => {
            if refers_to_unset(expr, variables) {
                return Err(TranslateError::SubPathExpr {
                    volume: mount.name.clone(),
                    path: expr.clone(),
                });
            }
            Some(expand(expr, variables))
        }
        (_, Some(path)) if !path.is_empty() => Some(path.clone()),
        _ => None,
    };
    if let Some(path) = &sub_path {
        let inside = Path::new(path)
            .components()
            .all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if !inside || path.is_empty() {
            return Err(TranslateError::SubPath {
                volume: mount.name.clone(),
                path: path.clone(),
            });
        }
    }
    let read_only = mount.read_only == Some(true) || volume.read_only;
    let recursive = matches!(
        mount.recursive_read_only.as_deref(),
        Some("Enabled" | "IfPossible")
    );
    Ok(MountConfig {
        of_sandbox: volume.path.starts_with(own),
        source: MountSource::Bind {
            path: volume.path.clone(),
            sub_path,
        },
        target: mount.mount_path.clone(),
        read_only,
        recursive_read_only: read_only && recursive,
        propagation: match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => Propagation::HostToContainer,
            Some("Bidirectional") => Propagation::Bidirectional,
            _ => Propagation::Private,
        },
    })
}

/// Whether an expression names a variable that is not set.
fn refers_to_unset(expr: &str, variables: &BTreeMap<&str, &str>) -> bool {
    let text = expr.replace("$$", "");
    let mut rest = text.as_str();
    while let Some(at) = rest.find("$(") {
        let tail = &rest[at + 2..];
        let Some(end) = tail.find(')') else {
            return false;
        };
        if !variables.contains_key(&tail[..end]) {
            return true;
        }
        rest = &tail[end + 1..];
    }
    false
}

/// Files that rkube keeps for the pod, except where the container mounts a
/// volume over their place.
fn own_files(
    pod: &Pod,
    container: &Container,
    prepared: Prepared<'_>,
    paths: &Paths,
) -> Vec<MountConfig> {
    let dir = paths.pod(pod::uid(pod));
    let taken = |target: &str| {
        container
            .volume_mounts
            .iter()
            .flatten()
            .any(|m| m.mount_path.trim_end_matches('/') == target)
    };
    let log = container
        .termination_message_path
        .as_deref()
        .filter(|p| !p.is_empty());
    let log = log.unwrap_or(DEFAULT_TERMINATION_LOG);
    let files: [(PathBuf, &str); 4] = [
        (dir.join("etc-hosts"), "/etc/hosts"),
        (dir.join("resolv.conf"), "/etc/resolv.conf"),
        (dir.join("hostname"), "/etc/hostname"),
        (prepared.termination_log.to_path_buf(), log),
    ];
    files
        .into_iter()
        .filter(|(_, target)| !taken(target))
        .map(|(path, target)| MountConfig {
            source: MountSource::Bind {
                path,
                sub_path: None,
            },
            target: target.to_owned(),
            read_only: false,
            recursive_read_only: false,
            of_sandbox: true,
            propagation: Propagation::Private,
        })
        .collect()
}

/// Whether containers of the pod see each other's processes.
#[must_use]
pub fn shares_processes(mode: NamespaceMode) -> bool {
    mode != NamespaceMode::Container
}

/// The number of a signal by its name (`SIGTERM`, `TERM`, `SIGRTMIN+3`) or
/// number, on x86-64, arm64 and riscv64 alike (signal(7)).
///
/// # Errors
/// There is no such signal.
pub fn signal_number(name: &str) -> Result<i32, TranslateError> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    /// The first and last real-time signals that libc leaves to programs.
    const RTMIN: i32 = 34;
    const RTMAX: i32 = 64;
    let unknown = || TranslateError::Signal {
        name: name.to_owned(),
    };
    if let Ok(number) = name.parse::<i32>() {
        return (1..=RTMAX)
            .contains(&number)
            .then_some(number)
            .ok_or_else(unknown);
    }
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(at) = NAMES.iter().position(|n| *n == short) {
        return i32::try_from(at + 1).map_err(|_| unknown());
    }
    let offset = |text: &str| {
        if text.is_empty() {
            Some(0)
        } else {
            text.parse::<i32>().ok()
        }
    };
    let number = if let Some(rest) = short.strip_prefix("RTMIN") {
        offset(rest.strip_prefix('+').unwrap_or(rest)).and_then(|o| RTMIN.checked_add(o))
    } else if let Some(rest) = short.strip_prefix("RTMAX") {
        offset(rest.strip_prefix('-').unwrap_or(rest)).and_then(|o| RTMAX.checked_sub(o))
    } else {
        None
    };
    number
        .filter(|n| (RTMIN..=RTMAX).contains(n))
        .ok_or_else(unknown)
}
