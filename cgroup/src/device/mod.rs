//! Which devices the processes of a group may use.
//!
//! The meaning of a list of rules is the OCI one, per kind of access: the
//! last rule that matches a device decides, and no match is a refusal. v2
//! runs it as a BPF program ([`program`]); v1's device controller knows only
//! a default and exceptions of one sign ([`v1`]), so lists that it would
//! read differently are refused there.

mod program;
mod v1;

use std::os::fd::AsFd;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use rkube_sys::bpf;

pub use program::filter_program;

use crate::error::{Error, Result};
use crate::file::Dir;
use crate::group::Cgroup;
use crate::hierarchy::{Controller, Version};

/// Rules that one group may have. The kernel's verifier follows about the
/// square of their number in paths and gives up at a million instructions
/// (reached by 2048 rules); real lists have a few dozen.
pub(crate) const MAX_RULES: usize = 512;
/// What an error shows of the verifier's log: its last lines.
const SHOWN_LOG_LINES: usize = 3;
/// Greatest major number (`MINORBITS` is 20 of 32 bits, linux/kdev_t.h).
const MAX_MAJOR: u32 = (1 << 12) - 1;
/// Greatest minor number.
const MAX_MINOR: u32 = (1 << 20) - 1;

/// What is done with a device, as bits of `bpf_cgroup_dev_ctx.access_type`
/// (`BPF_DEVCG_ACC_*`, linux/bpf.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access(u8);

impl Access {
    /// `mknod(2)`.
    pub const MKNOD: Access = Access(1);
    /// Opening for reading.
    pub const READ: Access = Access(2);
    /// Opening for writing.
    pub const WRITE: Access = Access(4);
    /// All three.
    pub const ALL: Access = Access(7);

    /// From the three bits; others are dropped.
    #[must_use]
    pub fn from_bits(bits: u8) -> Self {
        Self(bits & 7)
    }

    /// The three bits.
    #[must_use]
    pub fn bits(self) -> u8 {
        self.0
    }

    /// As the letters `r`, `w`, `m`; empty means all, as in OCI.
    fn parse(text: &str) -> Option<Self> {
        let mut bits = 0;
        for letter in text.chars() {
            bits |= match letter {
                'm' => 1,
                'r' => 2,
                'w' => 4,
                _ => return None,
            };
        }
        Some(Self(if bits == 0 { 7 } else { bits }))
    }

    /// The letters, in the kernel's order.
    fn letters(self) -> String {
        [(2, 'r'), (4, 'w'), (1, 'm')]
            .into_iter()
            .filter(|(bit, _)| self.0 & bit != 0)
            .map(|(_, letter)| letter)
            .collect()
    }
}

/// Kind of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceKind {
    /// Block device (`BPF_DEVCG_DEV_BLOCK`, 1).
    Block,
    /// Character device (`BPF_DEVCG_DEV_CHAR`, 2).
    Char,
}

/// One rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    /// Allow or refuse.
    pub allow: bool,
    /// Kind of device; `None` is both.
    pub kind: Option<DeviceKind>,
    /// Major number; `None` is any.
    pub major: Option<u32>,
    /// Minor number; `None` is any.
    pub minor: Option<u32>,
    /// What it is about.
    pub access: Access,
}

impl DeviceRule {
    /// True if it is about every access to every device.
    fn is_total(self) -> bool {
        self.kind.is_none()
            && self.major.is_none()
            && self.minor.is_none()
            && self.access == Access::ALL
    }

    /// True if it is about this device.
    fn matches(self, kind: DeviceKind, major: u32, minor: u32) -> bool {
        self.kind.is_none_or(|own| own == kind)
            && self.major.is_none_or(|own| own == major)
            && self.minor.is_none_or(|own| own == minor)
    }
}

/// A checked list of rules, in the order of the specification.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceRules(Vec<DeviceRule>);

impl DeviceRules {
    /// Takes rules as they are, if there are not too many.
    ///
    /// # Errors
    /// [`Error::Invalid`] above 512 rules or for numbers no device has.
    pub fn new(rules: Vec<DeviceRule>) -> Result<Self> {
        let fail = |value: String, reason| Error::Invalid {
            setting: "devices".to_owned(),
            value,
            reason,
        };
        if rules.len() > MAX_RULES {
            return Err(fail(rules.len().to_string(), "more than 512 rules"));
        }
        for rule in &rules {
            if rule.major.is_some_and(|n| n > MAX_MAJOR)
                || rule.minor.is_some_and(|n| n > MAX_MINOR)
            {
                return Err(fail(
                    format!("{:?}:{:?}", rule.major, rule.minor),
                    "major numbers end at 4095 and minor ones at 1048575",
                ));
            }
        }
        Ok(Self(rules))
    }

    /// Reads OCI rules. A missing type or `a` is both kinds, a missing or
    /// negative number any, a missing access all of `rwm`, `u` is `c`.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the rule.
    pub fn from_oci(rules: &[LinuxDeviceCgroup]) -> Result<Self> {
        let mut out = Vec::with_capacity(rules.len());
        for (index, rule) in rules.iter().enumerate() {
            let fail = |value: String, reason| Error::Invalid {
                setting: format!("devices[{index}]"),
                value,
                reason,
            };
            let number = |number: Option<i64>| match number {
                None | Some(..=-1) => Ok(None),
                Some(number) => u32::try_from(number)
                    .map(Some)
                    .map_err(|_| fail(number.to_string(), "is no device number")),
            };
            let kind = match rule.typ() {
                None | Some(LinuxDeviceType::A) => None,
                Some(LinuxDeviceType::B) => Some(DeviceKind::Block),
                Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(DeviceKind::Char),
                Some(LinuxDeviceType::P) => {
                    return Err(fail("p".to_owned(), "a FIFO is no device"));
                }
            };
            let letters = rule.access().as_deref().unwrap_or("");
            out.push(DeviceRule {
                allow: rule.allow(),
                kind,
                major: number(rule.major())?,
                minor: number(rule.minor())?,
                access: Access::parse(letters)
                    .ok_or_else(|| fail(letters.to_owned(), "access is of r, w and m"))?,
            });
        }
        Self::new(out)
    }

    /// The rules.
    #[must_use]
    pub fn rules(&self) -> &[DeviceRule] {
        &self.0
    }

    /// The answer where no rule that counts matches, and the rules that
    /// count: those after the last one about everything.
    fn effective(&self) -> (bool, &[DeviceRule]) {
        match self.0.iter().rposition(|rule| rule.is_total()) {
            Some(at) => (self.0[at].allow, &self.0[at + 1..]),
            None => (false, &self.0),
        }
    }
}

/// The reference meaning of a list: for each kind of access wanted, the last
/// rule that matches device and access decides; without one it is refused.
#[must_use]
pub fn rules_allow(
    rules: &DeviceRules,
    kind: DeviceKind,
    major: u32,
    minor: u32,
    access: Access,
) -> bool {
    [Access::MKNOD, Access::READ, Access::WRITE]
        .into_iter()
        .filter(|one| access.0 & one.0 != 0)
        .all(|one| {
            rules
                .0
                .iter()
                .rev()
                .find(|rule| rule.access.0 & one.0 != 0 && rule.matches(kind, major, minor))
                .is_some_and(|rule| rule.allow)
        })
}

impl Cgroup {
    /// Puts a list of rules in force, for processes inside too. In the v1
    /// device controller where the group is in it, else as a BPF filter of
    /// the v2 group: the new one takes the place of the old one at once.
    /// Filters of groups above stay in force.
    ///
    /// # Errors
    /// [`Error::NotExpressible`] for a list that v1 would read differently,
    /// [`Error::FilterLoad`], [`Error::FilterAttach`], or a refused write.
    pub fn set_devices(&self, rules: &DeviceRules) -> Result<()> {
        if let Some((Version::V1, dir)) = self.dir(Controller::Devices) {
            return v1::apply(dir, rules, self.hierarchies().mode());
        }
        match self.v2() {
            Some(dir) => attach(dir, rules),
            None => self.require(Controller::Devices, "devices").map(|_| ()),
        }
    }
}

/// Loads the filter and puts it on a v2 group.
fn attach(dir: &Dir, rules: &DeviceRules) -> Result<()> {
    let program = filter_program(rules);
    let loaded = bpf::load_cgroup_device(&program, "rkube_devices").map_err(|error| {
        let log = if error.log.is_empty() {
            String::new()
        } else {
            let lines: Vec<&str> = error.log.lines().collect();
            let last = lines.len().saturating_sub(SHOWN_LOG_LINES);
            format!(": {}", lines[last..].join(" | "))
        };
        Error::FilterLoad {
            path: dir.path().to_owned(),
            instructions: program.len(),
            log,
            source: error.errno,
        }
    })?;
    let fail = |operation| {
        move |source| Error::FilterAttach {
            operation,
            path: dir.path().to_owned(),
            source,
        }
    };
    let group = dir.reopen()?;
    let group = group.as_fd();
    let old = bpf::cgroup_device_query(group).map_err(fail("query"))?;
    match old.split_first() {
        None => bpf::cgroup_device_attach(group, loaded.as_fd(), None).map_err(fail("attach")),
        Some((first, others)) => {
            bpf::cgroup_device_attach(group, loaded.as_fd(), Some(first.as_fd()))
                .map_err(fail("replace"))?;
            for other in others {
                bpf::cgroup_device_detach(group, other.as_fd()).map_err(fail("detach"))?;
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oci_rules() {
        let json = r#"[
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"},
            {"allow": true, "type": "a", "major": -1, "minor": 7}
        ]"#;
        let oci: Vec<LinuxDeviceCgroup> = serde_json::from_str(json).unwrap();
        let rules = DeviceRules::from_oci(&oci).unwrap();
        assert!(rules.rules()[0].is_total());
        assert_eq!(rules.rules()[1].access.letters(), "rw");
        assert_eq!(rules.rules()[2].major, None);
        assert_eq!(rules.rules()[2].access, Access::ALL);
        for bad in [
            r#"[{"allow": true, "type": "p"}]"#,
            r#"[{"allow": true, "type": "c", "major": 4096}]"#,
            r#"[{"allow": true, "type": "c", "minor": 99999999999}]"#,
            r#"[{"allow": true, "type": "c", "access": "rx"}]"#,
        ] {
            let oci: Vec<LinuxDeviceCgroup> = serde_json::from_str(bad).unwrap();
            assert!(DeviceRules::from_oci(&oci).is_err(), "{bad}");
        }
    }
}
