//! Kernel settings of the network, by file. `/proc/sys/net` shows the
//! network namespace of the thread that opens it.

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::journal::{Journal, SysctlRecord};

/// Forwards IPv4 packets (kernel doc networking/ip-sysctl).
pub const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
/// Forwards IPv6 packets.
pub const IPV6_FORWARDING: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
/// Off for all links, or for new ones such as ours.
const IPV6_DISABLED: [&str; 2] = [
    "/proc/sys/net/ipv6/conf/all/disable_ipv6",
    "/proc/sys/net/ipv6/conf/default/disable_ipv6",
];

/// Reads a setting without its line end.
///
/// # Errors
/// [`Error::Sysctl`].
pub fn read(path: &Path) -> Result<String, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim_end().to_owned()),
        Err(source) => Err(Error::Sysctl {
            action: "read".to_owned(),
            path: path.to_owned(),
            source,
        }),
    }
}

/// Writes a setting.
///
/// # Errors
/// [`Error::Sysctl`].
pub fn write(path: &Path, value: &str) -> Result<(), Error> {
    std::fs::write(path, value).map_err(|source| Error::Sysctl {
        action: format!("write {value} to"),
        path: path.to_owned(),
        source,
    })
}

/// Sets a value and records what was there, unless it is there already.
/// `known_before` overrides what counts as "before": another instance may
/// have changed the setting first.
pub(crate) fn change(
    journal: &mut Journal,
    path: &Path,
    value: &str,
    known_before: Option<&str>,
) -> Result<(), Error> {
    let now = read(path)?;
    let before = known_before.unwrap_or(&now);
    if before != value {
        let change = SysctlRecord {
            before: before.to_owned(),
            after: value.to_owned(),
        };
        journal.sysctl(path, change)?;
    }
    if now == value {
        Ok(())
    } else {
        write(path, value)
    }
}

/// Puts a recorded setting back, unless someone else changed it meanwhile or
/// it is gone with its interface.
pub(crate) fn restore(path: &Path, change: &SysctlRecord) -> Result<(), Error> {
    match read(path) {
        Ok(now) if now == change.after => write(path, &change.before),
        Ok(_) => Ok(()),
        Err(Error::Sysctl { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// True if this network namespace can have IPv6 addresses.
#[must_use]
pub fn has_ipv6() -> bool {
    IPV6_DISABLED
        .iter()
        .all(|path| read(Path::new(path)).is_ok_and(|value| value == "0"))
}

/// An interface's `accept_ra`.
#[must_use]
pub fn accept_ra(interface: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/net/ipv6/conf/{interface}/accept_ra"))
}
