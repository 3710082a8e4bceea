//! Capability names and numbers.

use oci_spec::runtime::Capabilities;

use crate::error::{Error, Result};

/// Names without `CAP_`, by number (`linux/capability.h` of 6.18).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The bit of a capability; the name may begin with `CAP_`, case does not
/// matter.
#[must_use]
pub fn bit(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let number = NAMES.iter().position(|n| *n == short)?;
    Some(1 << number)
}

/// Names with `CAP_` of the capabilities in a mask, in order of number.
#[must_use]
pub fn names(mask: u64) -> Vec<String> {
    NAMES
        .iter()
        .enumerate()
        .filter(|(n, _)| mask & (1 << n) != 0)
        .map(|(_, name)| format!("CAP_{name}"))
        .collect()
}

/// All capabilities that have a name.
#[must_use]
pub fn all() -> u64 {
    (1 << NAMES.len()) - 1
}

/// The mask of a set of the spec.
///
/// # Errors
/// A capability without a number here.
pub(crate) fn mask(field: &str, set: Option<&Capabilities>) -> Result<u64> {
    let mut mask = 0;
    for capability in set.into_iter().flatten() {
        let name = capability.to_string();
        mask |=
            bit(&name).ok_or_else(|| Error::spec(field, format!("unknown capability {name:?}")))?;
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernel() {
        for (name, number) in [
            ("CAP_CHOWN", 0),
            ("net_admin", 12),
            ("CAP_SYS_ADMIN", 21),
            ("SYS_RESOURCE", 24),
            ("CAP_SETFCAP", 31),
            ("CAP_CHECKPOINT_RESTORE", 40),
        ] {
            assert_eq!(bit(name), Some(1 << number), "{name}");
        }
        assert_eq!(bit("CAP_TEST"), None);
        assert_eq!(names(1 | 1 << 21), ["CAP_CHOWN", "CAP_SYS_ADMIN"]);
        let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap();
        let last: u32 = last.trim().parse().unwrap();
        assert_eq!(all(), (1_u64 << (last + 1)) - 1);
    }

    #[test]
    fn the_crate_knows_the_same_names() {
        for name in NAMES {
            let json = format!("\"CAP_{name}\"");
            let parsed: oci_spec::runtime::Capability = serde_json::from_str(&json).unwrap();
            assert_eq!(parsed.to_string(), name);
        }
    }
}
