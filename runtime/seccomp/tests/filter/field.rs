//! The default profile held against the one that containers-common ships.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use oci_spec::runtime::{
    Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSyscall,
};
use rkube_seccomp::{Arch, default_profile};

use crate::verdicts::usual_caps;

/// Debian's golang-github-containers-common, which podman brings.
const FIELD: &str = "/usr/share/containers/seccomp.json";

/// What our profile refuses without a capability although the field's allows
/// it to all, as moby and containerd do.
const TIGHTER: &[&str] = &[
    "add_key",
    "clone",
    "clone3",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_mempolicy",
    "keyctl",
    "mbind",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "pidfd_getfd",
    "pivot_root",
    "quotactl_fd",
    "reboot",
    "request_key",
    "set_mempolicy",
    "set_mempolicy_home_node",
    "setns",
    "syslog",
    "umount",
    "umount2",
    "unshare",
];

/// What our profile allows although the field's (0.50, of 2022) does not know
/// it yet.
const YOUNGER: &[&str] = &[
    "cachestat",
    "fchmodat2",
    "futex_requeue",
    "futex_wait",
    "futex_wake",
    "getxattrat",
    "listxattrat",
    "map_shadow_stack",
    "mseal",
    "removexattrat",
    "setxattrat",
    "uretprobe",
];

/// The action for a call without conditions: errno, or 0 for allowed; calls
/// with conditions are left out.
fn plain(rules: &[LinuxSyscall]) -> BTreeMap<String, u32> {
    let mut actions = BTreeMap::new();
    for rule in rules
        .iter()
        .filter(|rule| rule.args().as_ref().is_none_or(Vec::is_empty))
    {
        let action = match rule.action() {
            Action::ScmpActAllow => 0,
            _ => rule.errno_ret().unwrap(),
        };
        for name in rule.names() {
            actions.entry(name.clone()).or_insert(action);
        }
    }
    actions
}

/// The field's profile as its tools apply it; `None` (told as a skip) where it
/// is not installed.
fn field(caps: &Capabilities, arch: &str) -> Option<Vec<LinuxSyscall>> {
    if !Path::new(FIELD).exists() {
        println!("skipped: seccomp-field-profile (no {FIELD})");
        return None;
    }
    let text = std::fs::read_to_string(FIELD).unwrap();
    let file: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(file["defaultErrnoRet"], 38);
    let held: BTreeSet<String> = caps.iter().map(|cap| format!("CAP_{cap}")).collect();
    let mut rules = Vec::new();
    for entry in file["syscalls"].as_array().unwrap() {
        let list = |which: &str, what: &str| -> Vec<String> {
            let list = entry[which][what].as_array().cloned().unwrap_or_default();
            list.iter()
                .map(|v| v.as_str().unwrap().to_owned())
                .collect()
        };
        let archs = list("includes", "arches");
        let applies = list("includes", "caps")
            .iter()
            .all(|cap| held.contains(cap))
            && !list("excludes", "caps")
                .iter()
                .any(|cap| held.contains(cap))
            && (archs.is_empty() || archs.iter().any(|a| a == arch));
        if applies {
            rules.push(serde_json::from_value(entry.clone()).unwrap());
        }
    }
    Some(rules)
}

#[test]
fn capabilities_are_named_alike() {
    assert_eq!(Capability::SysAdmin.to_string(), "SYS_ADMIN");
}

#[test]
fn default_profile_is_the_fields_but_for_what_is_listed() {
    let all_caps: Capabilities = [
        Capability::AuditWrite,
        Capability::Bpf,
        Capability::DacReadSearch,
        Capability::Perfmon,
        Capability::SysAdmin,
        Capability::SysBoot,
        Capability::SysChroot,
        Capability::SysModule,
        Capability::SysNice,
        Capability::SysPacct,
        Capability::SysPtrace,
        Capability::SysRawio,
        Capability::SysTime,
        Capability::SysTtyConfig,
        Capability::Syslog,
    ]
    .into();
    for caps in [usual_caps(), Capabilities::new(), all_caps.clone()] {
        for (arch, name) in [(Arch::X86_64, "amd64"), (Arch::Aarch64, "arm64")] {
            let Some(theirs) = field(&caps, name) else {
                return;
            };
            let ours = default_profile(&caps, arch);
            let (ours, theirs) = (plain(rules(&ours)), plain(&theirs));
            let names: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
            let mut differ = BTreeSet::new();
            for name in names {
                // Absent is the default, ENOSYS; `socket` has conditions here.
                let of = |map: &BTreeMap<String, u32>| map.get(name).copied().unwrap_or(38);
                if of(&ours) != of(&theirs) && name != "socket" {
                    differ.insert(name.as_str());
                }
            }
            for name in &differ {
                assert!(TIGHTER.contains(name) || YOUNGER.contains(name), "{name}");
            }
            if caps.is_empty() {
                // Both lists hold nothing that has become untrue.
                let listed: BTreeSet<&str> = TIGHTER.iter().chain(YOUNGER).copied().collect();
                assert_eq!(differ, listed);
            }
        }
    }
}

fn rules(spec: &LinuxSeccomp) -> &[LinuxSyscall] {
    spec.syscalls().as_deref().unwrap()
}
