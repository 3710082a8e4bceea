//! Block devices (`blkio` of v1, `io` of v2).

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice, LinuxWeightDevice};

use super::Job;
use crate::convert::blkio_weight_to_io_weight;
use crate::error::{Error, Result};
use crate::file::Dir;
use crate::hierarchy::{Controller, Version};

/// The schedulers' files, v2: BFQ takes OCI's scale as it is, io.cost its
/// own. Each looks at its own file only, so both are set where both exist.
const V2_BFQ: &str = "io.bfq.weight";
const V2_COST: &str = "io.weight";
/// The files of v1: BFQ, and CFQ up to Linux 4.20.
const V1_BFQ: &str = "blkio.bfq.weight";
const V1_CFQ: &str = "blkio.weight";

pub(super) fn apply(job: &Job<'_>, block: &LinuxBlockIo) -> Result<()> {
    let (version, dir) = job.group.require(Controller::Io, "blockIO")?;
    let weight = block.weight().filter(|weight| *weight != 0);
    check_weight("blockIO.weight", weight)?;
    let leaf = block.leaf_weight().filter(|weight| *weight != 0);
    let devices = block.weight_device().as_deref().unwrap_or(&[]);
    let device_leaf = devices
        .iter()
        .any(|d| d.leaf_weight().is_some_and(|w| w != 0));
    if leaf.is_some() || device_leaf {
        return Err(job.cannot(
            Controller::Io,
            "blockIO.leafWeight",
            "blkio.leaf_weight",
            "leaf weights went away with the CFQ scheduler (Linux 5.0)",
        ));
    }
    if let Some(weight) = weight {
        write_weight(job, dir, version, weight)?;
    }
    for device in devices {
        write_device_weight(job, dir, version, device)?;
    }
    let limits: [(&Option<Vec<LinuxThrottleDevice>>, &str, &str); 4] = [
        (
            block.throttle_read_bps_device(),
            "blkio.throttle.read_bps_device",
            "rbps",
        ),
        (
            block.throttle_write_bps_device(),
            "blkio.throttle.write_bps_device",
            "wbps",
        ),
        (
            block.throttle_read_iops_device(),
            "blkio.throttle.read_iops_device",
            "riops",
        ),
        (
            block.throttle_write_iops_device(),
            "blkio.throttle.write_iops_device",
            "wiops",
        ),
    ];
    for (list, v1_file, v2_key) in limits {
        for limit in list.iter().flatten() {
            let device = device_number(limit.major(), limit.minor())?;
            match version {
                // 0 takes the limit away.
                Version::V1 => dir.write(v1_file, &format!("{device} {}", limit.rate()))?,
                Version::V2 => {
                    let rate = match limit.rate() {
                        0 => "max".to_owned(),
                        rate => rate.to_string(),
                    };
                    dir.write("io.max", &format!("{device} {v2_key}={rate}"))?;
                }
            }
        }
    }
    Ok(())
}

/// OCI's scale.
fn check_weight(setting: &str, weight: Option<u16>) -> Result<()> {
    match weight {
        Some(weight) if !(10..=1000).contains(&weight) => Err(Error::Invalid {
            setting: setting.to_owned(),
            value: weight.to_string(),
            reason: "is from 10 to 1000",
        }),
        _ => Ok(()),
    }
}

/// `major:minor`.
fn device_number(major: i64, minor: i64) -> Result<String> {
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(major), Ok(minor)) => Ok(format!("{major}:{minor}")),
        _ => Err(Error::Invalid {
            setting: "blockIO device".to_owned(),
            value: format!("{major}:{minor}"),
            reason: "is no device number",
        }),
    }
}

/// The weight files that are there, with the value for each.
fn weights(dir: &Dir, version: Version, weight: u16) -> Vec<(&'static str, String)> {
    let plain = weight.to_string();
    let mut out = Vec::new();
    match version {
        Version::V1 => {
            for file in [V1_BFQ, V1_CFQ] {
                if dir.has(file) {
                    out.push((file, plain.clone()));
                }
            }
        }
        Version::V2 => {
            if dir.has(V2_BFQ) {
                out.push((V2_BFQ, plain));
            }
            if let Some(weight) = blkio_weight_to_io_weight(weight).filter(|_| dir.has(V2_COST)) {
                out.push((V2_COST, weight.to_string()));
            }
        }
    }
    out
}

fn no_weights(job: &Job<'_>, version: Version, setting: &str) -> Error {
    let file = match version {
        Version::V1 => V1_BFQ,
        Version::V2 => "io.bfq.weight, io.weight",
    };
    job.cannot(
        Controller::Io,
        setting,
        file,
        "no I/O scheduler with weights is active (BFQ or io.cost)",
    )
}

fn write_weight(job: &Job<'_>, dir: &Dir, version: Version, weight: u16) -> Result<()> {
    let files = weights(dir, version, weight);
    if files.is_empty() {
        return Err(no_weights(job, version, "blockIO.weight"));
    }
    for (file, value) in files {
        let value = match version {
            Version::V1 => value,
            Version::V2 => format!("default {value}"),
        };
        dir.write(file, &value)?;
    }
    Ok(())
}

fn write_device_weight(
    job: &Job<'_>,
    dir: &Dir,
    version: Version,
    device: &LinuxWeightDevice,
) -> Result<()> {
    let Some(weight) = device.weight().filter(|weight| *weight != 0) else {
        return Ok(());
    };
    check_weight("blockIO.weightDevice", Some(weight))?;
    let number = device_number(device.major(), device.minor())?;
    let files = weights(dir, version, weight);
    if files.is_empty() {
        return Err(no_weights(job, version, "blockIO.weightDevice"));
    }
    for (file, value) in files {
        let file = match file {
            V1_BFQ => "blkio.bfq.weight_device",
            V1_CFQ => "blkio.weight_device",
            other => other,
        };
        dir.write(file, &format!("{number} {value}"))?;
    }
    Ok(())
}
