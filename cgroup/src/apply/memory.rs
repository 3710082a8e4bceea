//! The memory controller.

use oci_spec::runtime::LinuxMemory;
use rustix::io::Errno;

use super::{Extras, Job, max_or, minus_one_or};
use crate::convert::swap_to_v2;
use crate::error::{Error, Result};
use crate::file::Dir;
use crate::hierarchy::{Controller, Version};

const V1_LIMIT: &str = "memory.limit_in_bytes";
const V1_MEMSW: &str = "memory.memsw.limit_in_bytes";

pub(super) fn apply(job: &mut Job<'_>, memory: &LinuxMemory, extras: &Extras) -> Result<()> {
    // Deprecated in OCI and gone from the kernel (5.16); runtimes ignore it.
    let kernel = memory.kernel();
    if kernel.is_some_and(|limit| limit != 0) {
        job.warn(
            "memory.kernel",
            "ignored: the kernel has no limit for kernel memory alone (since 5.16)",
        );
    }
    if memory.use_hierarchy() == Some(false) {
        job.warn(
            "memory.useHierarchy",
            "ignored: the kernel accounts hierarchically always (since 5.11)",
        );
    }
    let (version, dir) = job.group.require(Controller::Memory, "memory")?;
    let limit = memory.limit().filter(|limit| *limit != 0);
    if let Some(limit) = limit
        && limit > 0
        && memory.check_before_update() == Some(true)
    {
        check_usage(dir, version, limit)?;
    }
    match version {
        Version::V1 => v1(job, dir, memory, extras, limit),
        Version::V2 => v2(job, dir, memory, extras, limit),
    }
}

/// Refuses a limit below the present use.
fn check_usage(dir: &Dir, version: Version, limit: i64) -> Result<()> {
    let file = match version {
        Version::V1 => "memory.usage_in_bytes",
        Version::V2 => "memory.current",
    };
    let usage = dir.read_number(file)?.unwrap_or(0);
    if u64::try_from(limit).is_ok_and(|limit| usage > limit) {
        return Err(Error::MemoryInUse {
            path: dir.path().to_owned(),
            limit,
            usage,
        });
    }
    Ok(())
}

fn invalid(setting: &str, value: i64, reason: &'static str) -> Error {
    Error::Invalid {
        setting: setting.to_owned(),
        value: value.to_string(),
        reason,
    }
}

fn v1(
    job: &mut Job<'_>,
    dir: &Dir,
    memory: &LinuxMemory,
    extras: &Extras,
    limit: Option<i64>,
) -> Result<()> {
    if extras.memory_high.is_some_and(|high| high >= 0) {
        return Err(job.cannot(
            Controller::Memory,
            "memory.high",
            "memory.high",
            "v1 has no such limit",
        ));
    }
    if extras.memory_min.is_some_and(|min| min > 0) {
        return Err(job.cannot(
            Controller::Memory,
            "memory.min",
            "memory.min",
            "v1 has no such protection",
        ));
    }
    if extras.oom_group == Some(true) {
        return Err(job.cannot(
            Controller::Memory,
            "memory.oom.group",
            "memory.oom.group",
            "v1 kills single processes",
        ));
    }
    v1_limits(job, dir, limit, v1_swap(dir, memory, extras, limit)?)?;
    if let Some(reservation) = memory.reservation().filter(|bytes| *bytes != 0) {
        dir.write("memory.soft_limit_in_bytes", &minus_one_or(reservation))?;
    }
    if let Some(tcp) = memory.kernel_tcp().filter(|bytes| *bytes != 0) {
        dir.write("memory.kmem.tcp.limit_in_bytes", &minus_one_or(tcp))?;
    }
    if let Some(swappiness) = memory.swappiness() {
        if swappiness > 100 {
            return Err(Error::Invalid {
                setting: "memory.swappiness".to_owned(),
                value: swappiness.to_string(),
                reason: "is from 0 to 100",
            });
        }
        dir.write("memory.swappiness", &swappiness.to_string())?;
    }
    if let Some(disable) = memory.disable_oom_killer() {
        dir.write("memory.oom_control", if disable { "1" } else { "0" })?;
    }
    Ok(())
}

/// Memory and swap together, as v1 counts it.
fn v1_swap(
    dir: &Dir,
    memory: &LinuxMemory,
    extras: &Extras,
    limit: Option<i64>,
) -> Result<Option<i64>> {
    let swap = match extras.swap_max {
        None => memory.swap().filter(|swap| *swap != 0),
        Some(..=-1) => Some(-1),
        Some(alone) => {
            let limit = match limit {
                Some(limit) => limit,
                None => i64::try_from(dir.read_number(V1_LIMIT)?.unwrap_or(0)).unwrap_or(-1),
            };
            if limit <= 0 {
                return Err(invalid(
                    "memory.swap",
                    alone,
                    "needs a memory limit to be added to",
                ));
            }
            Some(limit.saturating_add(alone))
        }
    };
    // Raising the limit to "none" needs the sum raised too.
    if swap.is_none() && limit.is_some_and(|limit| limit < 0) && dir.has(V1_MEMSW) {
        return Ok(Some(-1));
    }
    Ok(swap)
}

/// Writes limit and sum in the order that keeps `limit <= sum` at each step.
fn v1_limits(job: &Job<'_>, dir: &Dir, limit: Option<i64>, swap: Option<i64>) -> Result<()> {
    if let (Some(limit), Some(swap)) = (limit, swap) {
        swap_to_v2(Some(swap), Some(limit)).or_else(|reason| {
            if limit < 0 && swap < 0 {
                Ok(None)
            } else {
                Err(invalid("memory.swap", swap, reason))
            }
        })?;
    }
    let Some(swap) = swap else {
        return limit.map_or(Ok(()), |limit| v1_write(dir, V1_LIMIT, limit));
    };
    if !dir.has(V1_MEMSW) {
        if swap >= 0 {
            return Err(job.cannot(
                Controller::Memory,
                "memory.swap",
                V1_MEMSW,
                "swap accounting is off (boot with swapaccount=1)",
            ));
        }
        return limit.map_or(Ok(()), |limit| v1_write(dir, V1_LIMIT, limit));
    }
    let Some(limit) = limit else {
        return v1_write(dir, V1_MEMSW, swap);
    };
    let now = dir.read_number(V1_MEMSW)?;
    let raise = match (now, u64::try_from(swap)) {
        (Some(now), Ok(swap)) => swap > now,
        // Already unlimited: nothing is higher.
        (None, _) => false,
        (Some(_), Err(_)) => true,
    };
    if raise {
        v1_write(dir, V1_MEMSW, swap)?;
        v1_write(dir, V1_LIMIT, limit)
    } else {
        v1_write(dir, V1_LIMIT, limit)?;
        v1_write(dir, V1_MEMSW, swap)
    }
}

/// Writes a limit; EBUSY is what v1 says when it cannot reclaim down to it.
fn v1_write(dir: &Dir, file: &str, limit: i64) -> Result<()> {
    let value = minus_one_or(limit);
    match dir.write_raw(file, &value) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => {
            let usage = if file == V1_MEMSW {
                "memory.memsw.usage_in_bytes"
            } else {
                "memory.usage_in_bytes"
            };
            Err(Error::MemoryInUse {
                path: dir.path().to_owned(),
                limit,
                usage: dir.read_number(usage)?.unwrap_or(0),
            })
        }
        Err(source) => Err(dir.write_error(file, &value, source)),
    }
}

fn v2(
    job: &mut Job<'_>,
    dir: &Dir,
    memory: &LinuxMemory,
    extras: &Extras,
    limit: Option<i64>,
) -> Result<()> {
    if memory.disable_oom_killer() == Some(true) {
        return Err(job.cannot(
            Controller::Memory,
            "memory.disableOOMKiller",
            "memory.oom_control",
            "v2 cannot turn the OOM killer off",
        ));
    }
    if memory.swappiness().is_some() {
        return Err(job.cannot(
            Controller::Memory,
            "memory.swappiness",
            "memory.swappiness",
            "v2 has no swappiness per group",
        ));
    }
    if memory.kernel_tcp().is_some_and(|bytes| bytes != 0) {
        job.warn(
            "memory.kernelTCP",
            "ignored: v2 counts socket buffers as memory of the group",
        );
    }
    // Swap first: a smaller memory limit must not push into swap that is
    // about to be forbidden.
    if let Some(swap) = v2_swap(dir, memory, extras, limit)? {
        let value = max_or(swap);
        match dir.write_raw("memory.swap.max", &value) {
            Ok(()) => {}
            // Without swap accounting there is no swap to use or forbid.
            Err(Errno::NOENT) if swap <= 0 => {}
            Err(source) => return Err(dir.write_error("memory.swap.max", &value, source)),
        }
    }
    if let Some(limit) = limit {
        dir.write("memory.max", &max_or(limit))?;
    }
    if let Some(reservation) = memory.reservation().filter(|bytes| *bytes != 0) {
        dir.write("memory.low", &max_or(reservation))?;
    }
    if let Some(high) = extras.memory_high {
        dir.write("memory.high", &max_or(high))?;
    }
    if let Some(min) = extras.memory_min {
        dir.write("memory.min", &min.to_string())?;
    }
    if let Some(group) = extras.oom_group {
        dir.write("memory.oom.group", if group { "1" } else { "0" })?;
    }
    Ok(())
}

/// Swap alone, as v2 counts it.
fn v2_swap(
    dir: &Dir,
    memory: &LinuxMemory,
    extras: &Extras,
    limit: Option<i64>,
) -> Result<Option<i64>> {
    if let Some(alone) = extras.swap_max {
        return Ok(Some(alone.max(-1)));
    }
    let Some(swap) = memory.swap().filter(|swap| *swap != 0) else {
        // "No memory limit" means none for the sum either, as on v1.
        return Ok(limit.filter(|limit| *limit < 0).map(|_| -1));
    };
    // An update of the sum alone is about the limit in force.
    let limit = match limit {
        None if swap > 0 => dir
            .read_number("memory.max")?
            .map(|limit| i64::try_from(limit).unwrap_or(i64::MAX)),
        given => given,
    };
    swap_to_v2(Some(swap), limit).map_err(|reason| invalid("memory.swap", swap, reason))
}
