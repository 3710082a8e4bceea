//! CPU time (`cpu`) and placement (`cpuset`).

use oci_spec::runtime::LinuxCpu;

use super::{Job, settle};
use crate::convert::shares_to_weight;
use crate::error::{Error, Result};
use crate::file::Dir;
use crate::hierarchy::{Controller, Version};

/// Length of a CPU or node list in bytes at most (a page, as the kernel).
const MAX_LIST_BYTES: usize = 4096;

pub(super) fn apply(job: &Job<'_>, cpu: &LinuxCpu) -> Result<()> {
    let cpus = checked_list("cpu.cpus", cpu.cpus().as_deref())?;
    let mems = checked_list("cpu.mems", cpu.mems().as_deref())?;
    if let Some(idle) = cpu.idle()
        && !(0..=1).contains(&idle)
    {
        return Err(Error::Invalid {
            setting: "cpu.idle".to_owned(),
            value: idle.to_string(),
            reason: "is 0 or 1",
        });
    }
    time(job, cpu)?;
    if cpus.is_some() || mems.is_some() {
        let (_, dir) = job
            .group
            .require(Controller::Cpuset, "cpu.cpus, cpu.mems")?;
        for (file, list) in [("cpuset.cpus", cpus), ("cpuset.mems", mems)] {
            if let Some(list) = list {
                dir.write(file, list)?;
            }
        }
    }
    Ok(())
}

/// A list such as `0-3,7` or `0-15:2/4` (bitmap lists of the kernel); an
/// empty one is not set.
fn checked_list<'a>(setting: &str, list: Option<&'a str>) -> Result<Option<&'a str>> {
    let Some(list) = list.map(str::trim).filter(|list| !list.is_empty()) else {
        return Ok(None);
    };
    let plain = list
        .bytes()
        .all(|byte| byte.is_ascii_digit() || b",-:/".contains(&byte));
    if !plain || list.len() > MAX_LIST_BYTES {
        return Err(Error::Invalid {
            setting: setting.to_owned(),
            value: list.chars().take(64).collect(),
            reason: "is a list of numbers and ranges",
        });
    }
    Ok(Some(list))
}

fn time(job: &Job<'_>, cpu: &LinuxCpu) -> Result<()> {
    let shares = cpu.shares().filter(|shares| *shares != 0);
    let period = cpu.period().filter(|period| *period != 0);
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let rt_period = cpu.realtime_period().filter(|period| *period != 0);
    let rt_runtime = cpu.realtime_runtime().filter(|runtime| *runtime != 0);
    let any = shares.is_some()
        || period.is_some()
        || quota.is_some()
        || cpu.burst().is_some()
        || cpu.idle().is_some()
        || rt_period.is_some()
        || rt_runtime.is_some();
    if !any {
        return Ok(());
    }
    let (version, dir) = job.group.require(Controller::Cpu, "cpu")?;
    weight(dir, version, shares, cpu.idle())?;
    match version {
        Version::V1 => {
            let mut values = Vec::new();
            values.extend(period.map(|usec| ("cpu.cfs_period_us", usec.to_string())));
            values.extend(quota.map(|usec| ("cpu.cfs_quota_us", usec.max(-1).to_string())));
            values.extend(
                cpu.burst()
                    .map(|usec| ("cpu.cfs_burst_us", usec.to_string())),
            );
            settle(dir, values)?;
            let mut values = Vec::new();
            values.extend(rt_period.map(|usec| ("cpu.rt_period_us", usec.to_string())));
            values.extend(rt_runtime.map(|usec| ("cpu.rt_runtime_us", usec.to_string())));
            settle(dir, values)
        }
        Version::V2 => {
            if rt_period.is_some() || rt_runtime.is_some() {
                return Err(job.cannot(
                    Controller::Cpu,
                    "cpu.realtimeRuntime, cpu.realtimePeriod",
                    "cpu.rt_runtime_us",
                    "v2 has no realtime groups",
                ));
            }
            let mut values = Vec::new();
            values.extend(cpu_max(dir, quota, period)?.map(|value| ("cpu.max", value)));
            values.extend(cpu.burst().map(|usec| ("cpu.max.burst", usec.to_string())));
            settle(dir, values)
        }
    }
}

/// Weight and idleness. A group that is idle takes no weight (EINVAL), so an
/// end of idleness comes first, and its start makes a weight pointless.
fn weight(dir: &Dir, version: Version, shares: Option<u64>, idle: Option<i64>) -> Result<()> {
    if idle == Some(0) {
        dir.write("cpu.idle", "0")?;
    }
    if let Some(shares) = shares.filter(|_| idle != Some(1)) {
        match version {
            Version::V1 => dir.write("cpu.shares", &shares.to_string())?,
            Version::V2 => dir.write("cpu.weight", &shares_to_weight(shares).to_string())?,
        }
    }
    if idle == Some(1) {
        dir.write("cpu.idle", "1")?;
    }
    Ok(())
}

/// The line for `cpu.max`, which sets both; the part that is not given stays
/// as it is.
fn cpu_max(dir: &Dir, quota: Option<i64>, period: Option<u64>) -> Result<Option<String>> {
    let quota = match (quota, period) {
        (None, None) => return Ok(None),
        (Some(quota), _) if quota > 0 => quota.to_string(),
        (Some(_), _) => "max".to_owned(),
        (None, Some(_)) => {
            let now = dir.read("cpu.max")?;
            now.split_ascii_whitespace()
                .next()
                .ok_or_else(|| dir.strange("cpu.max", &now))?
                .to_owned()
        }
    };
    Ok(Some(match period {
        Some(period) => format!("{quota} {period}"),
        None => quota,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        assert_eq!(checked_list("x", Some(" 0-3,7 ")).unwrap(), Some("0-3,7"));
        assert_eq!(checked_list("x", Some("")).unwrap(), None);
        assert_eq!(checked_list("x", None).unwrap(), None);
        for bad in ["0\n1", "all", "0 1", "0;1"] {
            assert!(checked_list("x", Some(bad)).is_err());
        }
    }
}
