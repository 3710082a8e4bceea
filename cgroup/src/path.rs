//! The name of a group below the mount points.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Longest path in bytes; PATH_MAX (4096) less room for mount point and
/// file name.
const MAX_PATH_BYTES: usize = 3072;

/// NAME_MAX of Linux.
const MAX_NAME_BYTES: usize = 255;

/// A relative path such as `rkube/kubepods/pod1/ctr`, the same in every
/// hierarchy. Not empty, no empty, `.` or `..` component, no control
/// characters, no name that is (or looks like) a file of the kernel.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CgroupPath(String);

impl CgroupPath {
    /// Checks a path. One leading `/` is allowed and dropped (OCI writes
    /// absolute `cgroupsPath`s, meaning below the mount point).
    ///
    /// # Errors
    /// [`Error::Path`] names the rule that is broken.
    pub fn new(path: &str) -> Result<Self> {
        let fail = |reason| Error::Path {
            path: path.chars().take(128).collect(),
            reason,
        };
        let relative = path.strip_prefix('/').unwrap_or(path);
        if relative.is_empty() {
            return Err(fail("is empty"));
        }
        if relative.len() > MAX_PATH_BYTES {
            return Err(fail("is longer than 3072 bytes"));
        }
        for name in relative.split('/') {
            check_name(name).map_err(fail)?;
        }
        Ok(Self(relative.to_owned()))
    }

    /// A group below this one.
    ///
    /// # Errors
    /// As [`CgroupPath::new`].
    pub fn join(&self, below: &str) -> Result<Self> {
        Self::new(&format!("{}/{below}", self.0))
    }

    /// The group above, if it is not the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        self.0
            .rsplit_once('/')
            .map(|(parent, _)| Self(parent.to_owned()))
    }

    /// The last component.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// Without a leading `/`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The rules for one component.
fn check_name(name: &str) -> std::result::Result<(), &'static str> {
    if name.is_empty() {
        return Err("has an empty component");
    }
    if name == "." || name == ".." {
        return Err("has a '.' or '..' component");
    }
    if name.len() > MAX_NAME_BYTES {
        return Err("has a component longer than 255 bytes");
    }
    if name.chars().any(char::is_control) {
        return Err("has a control character");
    }
    // The core files of every group; the kernel would say EEXIST, or the
    // group would take the place of a file of a newer kernel.
    if name.starts_with("cgroup.") {
        return Err("has a component named like a core file of the kernel");
    }
    Ok(())
}

impl TryFrom<String> for CgroupPath {
    type Error = Error;

    fn try_from(path: String) -> Result<Self> {
        Self::new(&path)
    }
}

impl From<CgroupPath> for String {
    fn from(path: CgroupPath) -> Self {
        path.0
    }
}

impl std::str::FromStr for CgroupPath {
    type Err = Error;

    fn from_str(path: &str) -> Result<Self> {
        Self::new(path)
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_callers_use() {
        for path in [
            "rkube",
            "/rkube/kubepods/pod-1/ctr",
            "kubepods.slice/kubepods-pod1.slice/cri-rkube-abc.scope",
            "a b/c:d",
        ] {
            let parsed = CgroupPath::new(path).unwrap();
            assert_eq!(parsed.as_str(), path.trim_start_matches('/'));
        }
    }

    #[test]
    fn refuses_what_would_leave_or_confuse() {
        for path in [
            "",
            "/",
            "//a",
            "a//b",
            "a/",
            "..",
            "a/../b",
            "./a",
            "a/.",
            "a\nb",
            "a\0b",
            "a\x7f",
            "x/cgroup.procs",
            "cgroup.x/y",
        ] {
            assert!(CgroupPath::new(path).is_err(), "{path:?}");
        }
        assert!(CgroupPath::new(&"x".repeat(256)).is_err());
        assert!(CgroupPath::new(&"x/".repeat(3000)).is_err());
    }

    #[test]
    fn parent_and_name() {
        let path = CgroupPath::new("a/b/c").unwrap();
        assert_eq!(path.parent().unwrap().as_str(), "a/b");
        assert_eq!(path.name(), "c");
        assert!(CgroupPath::new("a").unwrap().parent().is_none());
    }

    #[test]
    fn serde_checks() {
        assert!(serde_json::from_str::<CgroupPath>("\"a/../b\"").is_err());
        let path: CgroupPath = serde_json::from_str("\"/a/b\"").unwrap();
        assert_eq!(serde_json::to_string(&path).unwrap(), "\"a/b\"");
    }
}
