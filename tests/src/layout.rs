//! The cgroup layouts that hosts come with, and how to tell which one is here.

use std::fmt;
use std::path::Path;

use anyhow::{Context, bail};

/// A cgroup layout, as seen under `/sys/fs/cgroup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Layout {
    /// The unified hierarchy alone.
    V2,
    /// One v1 hierarchy for each controller, and no unified one.
    V1,
    /// v1 hierarchies with a unified one beside them, which has no controllers
    /// that v1 holds.
    Hybrid,
    /// The unified hierarchy, managed by systemd as PID 1.
    Systemd,
}

impl Layout {
    /// Every layout.
    pub const ALL: &'static [Layout] = &[Layout::V2, Layout::V1, Layout::Hybrid, Layout::Systemd];
    /// The layouts whose controllers are in the unified hierarchy.
    pub const UNIFIED: &'static [Layout] = &[Layout::V2, Layout::Systemd];
    /// The layouts whose controllers are in v1 hierarchies.
    pub const LEGACY: &'static [Layout] = &[Layout::V1, Layout::Hybrid];

    /// The name used on command lines and in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Layout::V2 => "v2",
            Layout::V1 => "v1",
            Layout::Hybrid => "hybrid",
            Layout::Systemd => "systemd",
        }
    }

    /// Looks at this machine's mounts.
    ///
    /// # Errors
    /// `/proc/self/mountinfo` cannot be read, or no cgroup hierarchy is mounted.
    pub fn detect() -> anyhow::Result<Layout> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
        let systemd = Path::new("/run/systemd/system").is_dir();
        Layout::from_mountinfo(&mounts, systemd)
    }

    fn from_mountinfo(mounts: &str, systemd: bool) -> anyhow::Result<Layout> {
        let mut legacy = false;
        let mut unified = false;
        for line in mounts.lines() {
            // proc(5): optional fields end at a lone "-", the type follows.
            match line
                .split_once(" - ")
                .and_then(|(_, tail)| tail.split(' ').next())
            {
                Some("cgroup") => legacy = true,
                Some("cgroup2") => unified = true,
                _ => {}
            }
        }
        match (legacy, unified) {
            (true, true) => Ok(Layout::Hybrid),
            (true, false) => Ok(Layout::V1),
            (false, true) if systemd => Ok(Layout::Systemd),
            (false, true) => Ok(Layout::V2),
            (false, false) => bail!("no cgroup hierarchy is mounted"),
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Layout {
    type Err = anyhow::Error;

    fn from_str(s: &str) -> anyhow::Result<Layout> {
        Layout::ALL
            .iter()
            .copied()
            .find(|l| l.as_str() == s)
            .with_context(|| format!("layout {s:?}: known are v2, v1, hybrid, systemd"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
    const V1: &str = "31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";

    #[test]
    fn layouts_are_told_by_their_mounts() {
        let hybrid = format!("{V1}{V2}");
        assert_eq!(Layout::from_mountinfo(V2, false).unwrap(), Layout::V2);
        assert_eq!(Layout::from_mountinfo(V2, true).unwrap(), Layout::Systemd);
        assert_eq!(Layout::from_mountinfo(V1, false).unwrap(), Layout::V1);
        assert_eq!(
            Layout::from_mountinfo(&hybrid, true).unwrap(),
            Layout::Hybrid
        );
        assert!(Layout::from_mountinfo("", false).is_err());
    }

    #[test]
    fn names_round_trip() {
        for l in Layout::ALL {
            assert_eq!(l.as_str().parse::<Layout>().unwrap(), *l);
        }
    }
}
