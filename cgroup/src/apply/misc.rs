//! Processes, huge pages, network marks, RDMA, and v2 files by name.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxHugepageLimit, LinuxNetwork, LinuxRdma};

use super::{Job, max_or, minus_one_or};
use crate::error::{Error, Result};
use crate::hierarchy::{Controller, Version};

/// Length of a `unified` value in bytes at most (a page, as the kernel).
const MAX_UNIFIED_BYTES: usize = 4096;

/// `pids.max`. 0 would let the group start no process at all, not even its
/// first; it is taken as 1, as other runtimes do.
pub(super) fn pids(job: &mut Job<'_>, limit: i64) -> Result<()> {
    let (_, dir) = job.group.require(Controller::Pids, "pids.limit")?;
    dir.write("pids.max", &max_or(if limit == 0 { 1 } else { limit }))?;
    if limit == 0 {
        job.warn("pids.limit", "0 is taken as 1");
    }
    Ok(())
}

/// Limits of use, and of reservations where the kernel has them (5.7): a
/// process then gets ENOMEM from mmap instead of SIGBUS later.
pub(super) fn hugetlb(job: &Job<'_>, limits: &[LinuxHugepageLimit]) -> Result<()> {
    for limit in limits {
        let size = limit.page_size();
        let number = size
            .strip_suffix("KB")
            .or_else(|| size.strip_suffix("MB"))
            .or_else(|| size.strip_suffix("GB"))
            .filter(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()));
        if number.is_none() {
            return Err(Error::Invalid {
                setting: "hugepageLimits.pageSize".to_owned(),
                value: size.chars().take(64).collect(),
                reason: "is a number and KB, MB or GB",
            });
        }
        let (version, dir) = job.group.require(Controller::Hugetlb, "hugepageLimits")?;
        let (file, reserved, value) = match version {
            Version::V1 => (
                format!("hugetlb.{size}.limit_in_bytes"),
                format!("hugetlb.{size}.rsvd.limit_in_bytes"),
                minus_one_or(limit.limit()),
            ),
            Version::V2 => (
                format!("hugetlb.{size}.max"),
                format!("hugetlb.{size}.rsvd.max"),
                max_or(limit.limit()),
            ),
        };
        if !dir.has(&file) {
            return Err(job.cannot(
                Controller::Hugetlb,
                "hugepageLimits",
                &file,
                "the host has no pages of that size",
            ));
        }
        dir.write(&file, &value)?;
        if dir.has(&reserved) {
            dir.write(&reserved, &value)?;
        }
    }
    Ok(())
}

/// Marks for traffic control; v1 only.
pub(super) fn network(job: &Job<'_>, network: &LinuxNetwork) -> Result<()> {
    const REASON: &str = "v2 has no network controllers (match the cgroup in nftables or BPF)";
    if let Some(class) = network.class_id().filter(|class| *class != 0) {
        let Some((Version::V1, dir)) = job.group.dir(Controller::NetCls) else {
            return Err(missing_v1(
                job,
                Controller::NetCls,
                "network.classID",
                "net_cls.classid",
                REASON,
            ));
        };
        dir.write("net_cls.classid", &class.to_string())?;
    }
    for priority in network.priorities().iter().flatten() {
        let name = priority.name();
        if name.is_empty()
            || name
                .chars()
                .any(|c| c.is_whitespace() || c.is_control() || c == '/')
        {
            return Err(Error::Invalid {
                setting: "network.priorities".to_owned(),
                value: name.chars().take(64).collect(),
                reason: "is no name of a link",
            });
        }
        let Some((Version::V1, dir)) = job.group.dir(Controller::NetPrio) else {
            return Err(missing_v1(
                job,
                Controller::NetPrio,
                "network.priorities",
                "net_prio.ifpriomap",
                REASON,
            ));
        };
        dir.write(
            "net_prio.ifpriomap",
            &format!("{name} {}", priority.priority()),
        )?;
    }
    Ok(())
}

/// Missing on v1 is a matter of mounts, on v2 of the interface.
fn missing_v1(
    job: &Job<'_>,
    controller: Controller,
    setting: &str,
    file: &str,
    reason: &'static str,
) -> Error {
    match job.group.require(controller, setting) {
        Err(error) if job.mode != crate::hierarchy::Mode::Unified => error,
        _ => job.cannot(controller, setting, file, reason),
    }
}

/// `rdma.max`, the same file in both versions.
pub(super) fn rdma(job: &Job<'_>, limits: &HashMap<String, LinuxRdma>) -> Result<()> {
    for (device, limit) in limits {
        if device.is_empty()
            || device
                .chars()
                .any(|c| c.is_whitespace() || c.is_control() || c == '/')
        {
            return Err(Error::Invalid {
                setting: "rdma".to_owned(),
                value: device.chars().take(64).collect(),
                reason: "is no name of a device",
            });
        }
        let (_, dir) = job.group.require(Controller::Rdma, "rdma")?;
        let number = |number: Option<u32>| number.map_or("max".to_owned(), |n| n.to_string());
        let line = format!(
            "{device} hca_handle={} hca_object={}",
            number(limit.hca_handles()),
            number(limit.hca_objects())
        );
        dir.write("rdma.max", &line)?;
    }
    Ok(())
}

/// Core files that `unified` may set; the others move or end processes or
/// change the tree.
const CORE_FILES: [&str; 3] = [
    "cgroup.max.depth",
    "cgroup.max.descendants",
    "cgroup.pressure",
];

/// Checks the v2 files by name: one key is one file of this group and one
/// value one write. Sorted, so that equal maps mean equal writes.
pub(super) fn check_unified<'a>(
    job: &Job<'_>,
    map: Option<&'a HashMap<String, String>>,
) -> Result<Vec<(&'a str, &'a str)>> {
    let mut entries = Vec::new();
    for (key, value) in map.into_iter().flatten() {
        let fail = |what: &str, reason| Error::Invalid {
            setting: format!("unified[{:?}]", key.chars().take(64).collect::<String>()),
            value: what.chars().take(64).collect(),
            reason,
        };
        let name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !key.contains('.') || key.starts_with('.') || !key.bytes().all(name) {
            return Err(fail(key, "the key is the name of one file of a controller"));
        }
        if key.starts_with("cgroup.") && !CORE_FILES.contains(&key.as_str()) {
            return Err(fail(key, "this core file is not a limit"));
        }
        if value.chars().any(char::is_control) || value.len() > MAX_UNIFIED_BYTES {
            return Err(fail(value, "the value is one line of at most 4096 bytes"));
        }
        if job.group.v2().is_none() {
            let prefix = key.split('.').next().unwrap_or(key);
            let controller = Controller::from_name(prefix, Version::V2).unwrap_or(Controller::Misc);
            return Err(job.cannot(controller, "unified", key, "there is no v2 hierarchy"));
        }
        entries.push((key.as_str(), value.as_str()));
    }
    entries.sort_unstable();
    Ok(entries)
}

/// Writes them. Where the host keeps the controller on v1, that is told.
pub(super) fn write_unified(job: &Job<'_>, entries: &[(&str, &str)]) -> Result<()> {
    for (key, value) in entries {
        let Some(dir) = job.group.v2() else { continue };
        let prefix = key.split('.').next().unwrap_or(key);
        if let Some(controller) = Controller::from_name(prefix, Version::V2)
            && !dir.has(key)
        {
            return Err(match job.group.hierarchies().of(controller) {
                Some(hierarchy) if hierarchy.version() == Version::V1 => job.cannot(
                    controller,
                    "unified",
                    key,
                    "the host has this controller in a v1 hierarchy",
                ),
                Some(_) => dir.write_error(key, value, rustix::io::Errno::NOENT),
                None => job.group.hierarchies().missing_error(controller, key),
            });
        }
        dir.write(key, value)?;
    }
    Ok(())
}
