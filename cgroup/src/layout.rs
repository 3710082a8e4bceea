//! The mount table read as text: which hierarchies there are, nothing opened.

use std::path::PathBuf;

use crate::hierarchy::{Controller, Mode, Version};

/// One mounted hierarchy as the mount table tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedHierarchy {
    /// Interface version.
    pub version: Version,
    /// The controllers in it; for v2 from `cgroup.controllers`.
    pub controllers: Vec<Controller>,
    /// The name of a named v1 hierarchy (`systemd`).
    pub name: Option<String>,
    /// Mount points, those that show the whole hierarchy first.
    pub points: Vec<PathBuf>,
    /// `major:minor` of the file system.
    pub device: String,
}

/// What a mount table says, without having looked at any of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The hierarchies in the order of the mount table.
    pub hierarchies: Vec<MountedHierarchy>,
}

impl Layout {
    /// Reads the text of `/proc/<pid>/mountinfo` (proc(5)). `v2_controllers`
    /// is the content of `cgroup.controllers` at the v2 mount, if any. Lines
    /// that are not of a cgroup file system are skipped.
    #[must_use]
    pub fn parse(mountinfo: &str, v2_controllers: &str) -> Self {
        let mut layout = Layout::default();
        for line in mountinfo.lines() {
            if let Some((mount, whole)) = parse_line(line) {
                layout.add(mount, whole);
            }
        }
        layout.set_v2_controllers(v2_controllers);
        layout
    }

    /// Adds one mount, or its mount point to the hierarchy already known.
    fn add(&mut self, mount: MountedHierarchy, whole: bool) {
        let known = self
            .hierarchies
            .iter_mut()
            .find(|known| known.device == mount.device && known.version == mount.version);
        match known {
            Some(known) if whole => {
                for point in mount.points {
                    known.points.insert(0, point);
                }
            }
            Some(known) => known.points.extend(mount.points),
            None => self.hierarchies.push(mount),
        }
    }

    /// Fills in what the v2 hierarchy controls.
    fn set_v2_controllers(&mut self, text: &str) {
        let controllers: Vec<_> = text
            .split_ascii_whitespace()
            .filter_map(|name| Controller::from_name(name, Version::V2))
            .collect();
        for hierarchy in &mut self.hierarchies {
            if hierarchy.version == Version::V2 {
                hierarchy.controllers.clone_from(&controllers);
            }
        }
    }

    /// The mode, or `None` without any hierarchy.
    #[must_use]
    pub fn mode(&self) -> Option<Mode> {
        let has = |version| self.hierarchies.iter().any(|h| h.version == version);
        match (has(Version::V1), has(Version::V2)) {
            (true, true) => Some(Mode::Hybrid),
            (true, false) => Some(Mode::Legacy),
            (false, true) => Some(Mode::Unified),
            (false, false) => None,
        }
    }
}

/// One line of mountinfo: the hierarchy and whether the mount shows all of
/// it.
fn parse_line(line: &str) -> Option<(MountedHierarchy, bool)> {
    // id parent major:minor root point options tags... - type source super
    let (head, tail) = line.split_once(" - ")?;
    let mut tail = tail.split(' ');
    let version = match tail.next()? {
        "cgroup" => Version::V1,
        "cgroup2" => Version::V2,
        _ => return None,
    };
    let _source = tail.next()?;
    let options = tail.next().unwrap_or("");
    let mut head = head.split(' ');
    let device = head.nth(2)?;
    let root = head.next()?;
    let point = head.next()?;
    let (mut controllers, mut name) = (Vec::new(), None);
    if version == Version::V1 {
        for option in options.split(',') {
            if let Some(named) = option.strip_prefix("name=") {
                name = Some(named.to_owned());
            } else if let Some(controller) = Controller::from_name(option, Version::V1) {
                controllers.push(controller);
            }
        }
    }
    let mount = MountedHierarchy {
        version,
        controllers,
        name,
        points: vec![PathBuf::from(unescape(point))],
        device: device.to_owned(),
    };
    Some((mount, root == "/"))
}

/// Undoes the octal escapes of mountinfo (`\040` and so on).
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let octal = bytes
            .get(at + 1..at + 4)
            .filter(|_| *byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(value) => {
                out.push(value);
                at += 4;
            }
            None => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
42 31 0:30 /docker/x /mnt/with\\040space rw,relatime - cgroup cgroup rw,blkio
43 31 0:30 / /other/blkio rw,relatime - cgroup cgroup rw,blkio
broken line
";

    #[test]
    fn hybrid() {
        let layout = Layout::parse(HYBRID, "hugetlb bogus\n");
        assert_eq!(layout.mode(), Some(Mode::Hybrid));
        let names: Vec<_> = layout
            .hierarchies
            .iter()
            .map(|h| (h.version, h.controllers.clone(), h.name.clone()))
            .collect();
        assert_eq!(
            names,
            [
                (
                    Version::V1,
                    vec![Controller::Cpu, Controller::Cpuacct],
                    None
                ),
                (Version::V1, vec![Controller::Io], None),
                (Version::V1, vec![], Some("systemd".to_owned())),
                (Version::V2, vec![Controller::Hugetlb], None),
            ]
        );
        let points: Vec<_> = layout.hierarchies[1]
            .points
            .iter()
            .map(|p| p.to_str().unwrap())
            .collect();
        assert_eq!(
            points,
            ["/other/blkio", "/sys/fs/cgroup/blkio", "/mnt/with space"]
        );
    }

    #[test]
    fn unified_and_legacy() {
        let unified = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let layout = Layout::parse(unified, "cpuset cpu io memory hugetlb pids rdma misc");
        assert_eq!(layout.mode(), Some(Mode::Unified));
        assert_eq!(layout.hierarchies[0].controllers.len(), 8);
        let legacy = "30 23 0:26 / /c/memory rw - cgroup none rw,memory\n";
        assert_eq!(Layout::parse(legacy, "").mode(), Some(Mode::Legacy));
        assert_eq!(Layout::parse("", "").mode(), None);
    }
}
