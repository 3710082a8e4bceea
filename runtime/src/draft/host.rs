//! Namespaces, names and kernel parameters.

use std::collections::HashMap;

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, Spec};
use rkube_keeper::plan::{FdIndex, IdRange, Join, Step, TimeOffset};
use rkube_sys::clone;

use super::{Draft, PlanInput, Source, c_string};
use crate::error::{Error, Result};
use crate::spec::namespace_flag;

/// Longest host and domain name in bytes (`__NEW_UTS_LEN` of
/// `linux/utsname.h`).
const MAX_NAME_BYTES: usize = 64;

/// Kernel parameters of an IPC namespace (namespaces(7), ipc_namespaces(7)).
const IPC_PARAMETERS: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

/// Whose the ids of a container are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owners {
    /// The host's own.
    Host,
    /// Those of a new user namespace.
    Maps {
        /// Of users.
        uid_map: Vec<IdRange>,
        /// Of groups.
        gid_map: Vec<IdRange>,
    },
    /// Those of a user namespace that is joined.
    Joined(FdIndex),
}

impl Owners {
    /// True in a user namespace.
    pub(super) fn are_mapped(&self) -> bool {
        *self != Self::Host
    }
}

/// Namespaces: new ones and those to join. Returns `CLONE_NEW*` of all that
/// the container has of its own.
pub(super) fn namespaces(draft: &mut Draft, input: &mut PlanInput<'_>) -> Result<u64> {
    let mut own = 0;
    let given: Vec<_> = std::mem::take(&mut input.joins);
    let mut joins = Vec::new();
    for (kind, fd) in given {
        let flag = namespace_flag(kind);
        if own & flag != 0 {
            return Err(Error::spec("joins", format!("{kind:?} is there twice")));
        }
        own |= flag;
        joins.push((flag, Source::Open(fd)));
    }
    let overridden = own;
    let linux = input.spec.linux().as_ref();
    let list = linux.and_then(|l| l.namespaces().as_ref());
    let mut seen = 0;
    for (n, namespace) in list.into_iter().flatten().enumerate() {
        let kind = namespace.typ();
        let flag = namespace_flag(kind);
        let field = format!("linux.namespaces[{n}]");
        if seen & flag != 0 {
            return Err(Error::spec(field, format!("a second one of type {kind}")));
        }
        seen |= flag;
        if overridden & flag != 0 {
            continue;
        }
        own |= flag;
        match namespace
            .path()
            .as_ref()
            .filter(|p| !p.as_os_str().is_empty())
        {
            Some(path) if !path.is_absolute() => {
                return Err(Error::spec(field, "its path must be absolute"));
            }
            Some(path) => joins.push((
                flag,
                Source::Namespace {
                    path: path.clone(),
                    kind,
                },
            )),
            None if kind == LinuxNamespaceType::Cgroup => draft.plan.cgroup.namespace = true,
            None => draft.plan.new_namespaces |= flag,
        }
    }
    // The user namespace first: the others are joined with its rights.
    joins.sort_by_key(|(flag, _)| *flag != clone::CLONE_NEWUSER);
    for (kind, source) in joins {
        let fd = draft.source(source)?;
        draft.plan.joins.push(Join { kind, fd });
    }
    if own & clone::CLONE_NEWNS == 0 {
        return Err(Error::unsupported(
            "linux.namespaces",
            "a container without a mount namespace of its own",
        ));
    }
    if let Some(linux) = linux {
        id_maps(draft, linux, own)?;
        time_offsets(draft, linux)?;
    }
    Ok(own)
}

/// Whose ids those of the container are, once its namespaces are known.
pub(super) fn owners(draft: &Draft) -> Owners {
    let plan = &draft.plan;
    if plan.new_namespaces & clone::CLONE_NEWUSER != 0 {
        return Owners::Maps {
            uid_map: plan.uid_map.clone(),
            gid_map: plan.gid_map.clone(),
        };
    }
    let join = plan
        .joins
        .iter()
        .find(|j| j.kind & clone::CLONE_NEWUSER != 0);
    join.map_or(Owners::Host, |j| Owners::Joined(j.fd))
}

/// A user of the container as the host counts, where the spec's maps tell it.
pub(super) fn on_host(linux: &Linux, uid: u32) -> Option<u32> {
    linux.uid_mappings().iter().flatten().find_map(|range| {
        let offset = uid.checked_sub(range.container_id())?;
        (offset < range.size()).then(|| range.host_id().checked_add(offset))?
    })
}

/// Clocks of a new time namespace (time_namespaces(7)).
fn time_offsets(draft: &mut Draft, linux: &Linux) -> Result<()> {
    let Some(offsets) = linux.time_offsets().as_ref().filter(|o| !o.is_empty()) else {
        return Ok(());
    };
    if draft.plan.new_namespaces & clone::CLONE_NEWTIME == 0 {
        return Err(Error::spec(
            "linux.timeOffsets",
            "it needs a new time namespace",
        ));
    }
    let mut sorted: Vec<_> = offsets.iter().collect();
    sorted.sort_unstable_by_key(|(name, _)| name.as_str());
    for (name, offset) in sorted {
        let field = format!("linux.timeOffsets.{name}");
        // Numbers of linux/time.h.
        let clock = match name.as_str() {
            "monotonic" => 1,
            "boottime" => 7,
            _ => return Err(Error::spec(field, "only monotonic and boottime can be set")),
        };
        let nanoseconds = offset.nanosecs().unwrap_or(0);
        if nanoseconds >= 1_000_000_000 {
            return Err(Error::spec(field, "nanosecs must be below 1000000000"));
        }
        draft.plan.time_offsets.push(TimeOffset {
            clock,
            seconds: offset.secs().unwrap_or(0),
            nanoseconds,
        });
    }
    Ok(())
}

fn id_maps(draft: &mut Draft, linux: &Linux, own: u64) -> Result<()> {
    let new_user = draft.plan.new_namespaces & clone::CLONE_NEWUSER != 0;
    draft.plan.uid_map = id_map("linux.uidMappings", linux.uid_mappings().as_ref())?;
    draft.plan.gid_map = id_map("linux.gidMappings", linux.gid_mappings().as_ref())?;
    let given = !draft.plan.uid_map.is_empty() || !draft.plan.gid_map.is_empty();
    if new_user && (draft.plan.uid_map.is_empty() || draft.plan.gid_map.is_empty()) {
        return Err(Error::spec(
            "linux.uidMappings",
            "a new user namespace needs maps of users and of groups",
        ));
    }
    if given && !new_user {
        if own & clone::CLONE_NEWUSER == 0 {
            return Err(Error::spec(
                "linux.uidMappings",
                "there is no user namespace that they could belong to",
            ));
        }
        // A joined one has its maps already.
        draft.plan.uid_map.clear();
        draft.plan.gid_map.clear();
    }
    Ok(())
}

/// One list of ranges.
pub(super) fn id_map(field: &str, map: Option<&Vec<LinuxIdMapping>>) -> Result<Vec<IdRange>> {
    let mut out = Vec::new();
    for (n, range) in map.into_iter().flatten().enumerate() {
        let fits = |first: u32| first.checked_add(range.size()).is_some();
        if range.size() == 0 || !fits(range.host_id()) || !fits(range.container_id()) {
            return Err(Error::spec(
                format!("{field}[{n}]"),
                "its range is empty or goes beyond 2^32 - 1",
            ));
        }
        out.push(IdRange {
            inside: range.container_id(),
            outside: range.host_id(),
            count: range.size(),
        });
    }
    Ok(out)
}

/// Host name, domain name and `lo`.
pub(super) fn names(draft: &mut Draft, spec: &Spec, own: u64) -> Result<()> {
    if draft.plan.new_namespaces & clone::CLONE_NEWNET != 0 {
        draft.step(Step::LoopbackUp {});
    }
    let check = |field: &'static str, name: &String| {
        if own & clone::CLONE_NEWUTS == 0 {
            return Err(Error::spec(
                field,
                "it needs a uts namespace of the container's own",
            ));
        }
        if name.len() > MAX_NAME_BYTES {
            return Err(Error::spec(field, "it is longer than 64 bytes"));
        }
        c_string(field, name.as_str())
    };
    if let Some(name) = spec.hostname().as_ref().filter(|n| !n.is_empty()) {
        let name = check("hostname", name)?;
        draft.step(Step::Hostname { name });
    }
    if let Some(name) = spec.domainname().as_ref().filter(|n| !n.is_empty()) {
        let name = check("domainname", name)?;
        draft.step(Step::Domainname { name });
    }
    Ok(())
}

/// Kernel parameters: only those of namespaces that the container has of its
/// own; everything else would change the host.
pub(super) fn sysctls(
    draft: &mut Draft,
    sysctl: Option<&HashMap<String, String>>,
    own: u64,
) -> Result<()> {
    let mut sorted: Vec<_> = sysctl.into_iter().flatten().collect();
    sorted.sort_unstable();
    for (key, value) in sorted {
        let field = format!("linux.sysctl[{key:?}]");
        let path = parameter_path(key);
        let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        if !path.split('/').all(plain) {
            return Err(Error::spec(field, "it is no name of a kernel parameter"));
        }
        if value.contains(['\n', '\0']) {
            return Err(Error::spec(field, "its value has a line break or NUL byte"));
        }
        let (needed, name) = if path.starts_with("net/") {
            (clone::CLONE_NEWNET, "network")
        } else if IPC_PARAMETERS.contains(&path.as_str()) || path.starts_with("fs/mqueue/") {
            (clone::CLONE_NEWIPC, "ipc")
        } else if path == "kernel/domainname" {
            (clone::CLONE_NEWUTS, "uts")
        } else if path == "kernel/hostname" {
            return Err(Error::spec(field, "use the field hostname instead"));
        } else if path.starts_with("user/") {
            (clone::CLONE_NEWUSER, "user")
        } else {
            return Err(Error::spec(
                field,
                "it belongs to no namespace: it is the host's",
            ));
        };
        if own & needed == 0 {
            return Err(Error::spec(
                field,
                format!("it needs a {name} namespace of the container's own"),
            ));
        }
        draft.step(Step::Sysctl {
            path: c_string(&field, path)?,
            value: c_string(&field, value.as_str())?,
        });
    }
    Ok(())
}

/// Dots and slashes change places where dots separate (sysctl(8)): the first
/// separator tells.
fn parameter_path(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(at) if key.as_bytes().get(at) == Some(&b'.') => key
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
        _ => key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_names() {
        assert_eq!(parameter_path("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(
            parameter_path("net.ipv4.conf.eth0/100.forwarding"),
            "net/ipv4/conf/eth0.100/forwarding"
        );
        assert_eq!(
            parameter_path("net/ipv4/conf/eth0.1/x"),
            "net/ipv4/conf/eth0.1/x"
        );
    }

    #[test]
    fn foreign_parameters_are_refused() {
        let all = u64::MAX;
        for (key, value, own) in [
            ("kernel.core_pattern", "x", all),
            ("vm.overcommit_memory", "1", all),
            ("net.ipv4.ip_forward", "1", 0),
            ("net.ipv4.ip_forward", "1\n2", all),
            ("kernel.shmmax", "1", clone::CLONE_NEWNET),
            ("net/../kernel/core_pattern", "x", all),
            ("net..x", "x", all),
            ("kernel.hostname", "x", all),
        ] {
            let map = HashMap::from([(key.to_owned(), value.to_owned())]);
            let result = sysctls(&mut Draft::default(), Some(&map), own);
            assert!(result.is_err(), "{key}");
        }
        let map = HashMap::from([("net.ipv4.ip_forward".to_owned(), "1".to_owned())]);
        let mut draft = Draft::default();
        sysctls(&mut draft, Some(&map), clone::CLONE_NEWNET).unwrap();
        assert_eq!(
            draft.plan.steps,
            [Step::Sysctl {
                path: c"net/ipv4/ip_forward".to_owned(),
                value: c"1".to_owned()
            }]
        );
    }
}
