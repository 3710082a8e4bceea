//! Devices and links that every container has (runtime-spec, config-linux.md,
//! Default Devices; runtime-linux.md, Dev symbolic links).

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use rkube_keeper::plan::Step;
use rkube_sys::mount::MS_SLAVE;

use super::{Attributes, Draft, Source, c_path, c_string};
use crate::error::{Error, Result};

const S_IFIFO: u32 = 0o010_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFBLK: u32 = 0o060_000;

/// Path, major, minor (Documentation/admin-guide/devices.txt); all character
/// devices of mode 0666.
pub(crate) const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 6] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),
    ("/dev/ptmx", "pts/ptmx"),
];

struct Node {
    path: PathBuf,
    mode: u32,
    major: u32,
    minor: u32,
    uid: u32,
    gid: u32,
}

fn node(field: &str, device: &LinuxDevice) -> Result<Node> {
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => S_IFCHR,
        LinuxDeviceType::B => S_IFBLK,
        LinuxDeviceType::P => S_IFIFO,
        LinuxDeviceType::A => return Err(Error::spec(field, "type must be c, b, u or p")),
    };
    let number = |value: i64, name: &str| {
        if kind == S_IFIFO {
            return Ok(0);
        }
        u32::try_from(value)
            .map_err(|_| Error::spec(format!("{field}.{name}"), format!("{value} is no number")))
    };
    if !device.path().is_absolute() {
        return Err(Error::spec(
            format!("{field}.path"),
            "it must be an absolute path",
        ));
    }
    Ok(Node {
        path: device.path().clone(),
        mode: kind | (device.file_mode().unwrap_or(0o666) & 0o7777),
        major: number(device.major(), "major")?,
        minor: number(device.minor(), "minor")?,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

/// Adds the default devices, those of the spec, and the links of /dev. In a
/// user namespace no node can be made: the host's are bound instead.
pub(super) fn add(draft: &mut Draft, devices: &[LinuxDevice], bind: bool) -> Result<()> {
    let mut nodes: Vec<Node> = DEFAULT
        .iter()
        .map(|(path, major, minor)| Node {
            path: PathBuf::from(path),
            mode: S_IFCHR | 0o666,
            major: *major,
            minor: *minor,
            uid: 0,
            gid: 0,
        })
        .collect();
    for (n, device) in devices.iter().enumerate() {
        let new = node(&format!("linux.devices[{n}]"), device)?;
        nodes.retain(|old| old.path != new.path);
        nodes.push(new);
    }
    for node in nodes {
        let path = c_path("linux.devices", &node.path)?;
        if bind && node.mode & S_IFIFO != S_IFIFO {
            let fd = draft.source(Source::Tree {
                path: node.path,
                recursive: false,
                attributes: Attributes::default(),
                recursive_attributes: Attributes::default(),
                propagation: (MS_SLAVE, None),
                directory: false,
            })?;
            draft.step(Step::AttachFd {
                fd,
                target: path,
                directory: false,
            });
        } else {
            draft.step(Step::Device {
                path,
                mode: node.mode,
                major: node.major,
                minor: node.minor,
                uid: node.uid,
                gid: node.gid,
            });
        }
    }
    for (path, target) in LINKS {
        if path == "/dev/ptmx" && devices.iter().any(|d| d.path() == Path::new(path)) {
            continue;
        }
        draft.step(Step::Symlink {
            path: c_string("devices", path)?,
            target: c_string("devices", target)?,
        });
    }
    Ok(())
}
