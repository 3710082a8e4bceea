//! This host as pods see it, and where rkube keeps their things.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;

use crate::pod;

/// The domain of cluster names where none is configured.
pub const DEFAULT_CLUSTER_DOMAIN: &str = "cluster.local";

/// Facts about the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Its own addresses, the preferred one first; may be empty.
    pub addresses: Vec<IpAddr>,
    /// CPUs in thousandths.
    pub cpu_millis: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Addresses of the cluster's DNS; empty without one.
    pub cluster_dns: Vec<IpAddr>,
    /// Domain of cluster names.
    pub cluster_domain: String,
    /// On cgroup v2, a process that is OOM-killed does not take the rest of
    /// its container along (the kubelet's singleProcessOOMKill, KEP-5075).
    pub single_process_oom_kill: bool,
}

impl NodeFacts {
    /// Asks the host.
    #[must_use]
    pub fn of_host() -> Self {
        let name = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            name,
            addresses: host_addresses(),
            cpu_millis: u64::try_from(cpus).unwrap_or(1).saturating_mul(1000),
            memory_bytes: total_memory(&meminfo).unwrap_or(0),
            cluster_dns: Vec::new(),
            cluster_domain: DEFAULT_CLUSTER_DOMAIN.to_owned(),
            single_process_oom_kill: false,
        }
    }
}

/// `MemTotal` of /proc/meminfo in bytes.
fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    line.split_whitespace()
        .next()?
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

/// The addresses from which the host would speak to the world: the kernel
/// chooses them when a datagram socket is connected; no packet is sent. The
/// destinations are documentation prefixes (RFC 5737, RFC 3849).
fn host_addresses() -> Vec<IpAddr> {
    let v4 = source_towards(
        Ipv4Addr::UNSPECIFIED.into(),
        Ipv4Addr::new(192, 0, 2, 1).into(),
    );
    let v6 = source_towards(
        Ipv6Addr::UNSPECIFIED.into(),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    );
    [v4, v6].into_iter().flatten().collect()
}

fn source_towards(from: IpAddr, to: IpAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind((from, 0)).ok()?;
    socket.connect((to, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|a| !a.is_unspecified())
}

/// Where things lie below rkube's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// Paths below `root` (`/` on a real host).
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Which credential pulled which image.
    #[must_use]
    pub fn image_pulls(&self) -> PathBuf {
        self.state().join("image-pulls")
    }

    /// rkube's lasting state.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.root.join("var/lib/rkube")
    }

    /// Directories of all pods.
    #[must_use]
    pub fn pods(&self) -> PathBuf {
        self.state().join("pods")
    }

    /// One pod's directory.
    #[must_use]
    pub fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    /// One volume of a pod; `plugin` is the kind of volume.
    #[must_use]
    pub fn volume(&self, uid: &str, plugin: &str, name: &str) -> PathBuf {
        self.pod(uid).join("volumes").join(plugin).join(name)
    }

    /// A persistent volume claim's directory.
    #[must_use]
    pub fn claim(&self, namespace: &str, name: &str) -> PathBuf {
        self.state().join("pvc").join(namespace).join(name)
    }

    /// Seccomp profiles that pods name with `type: Localhost`.
    #[must_use]
    pub fn seccomp(&self) -> PathBuf {
        self.state().join("seccomp")
    }

    /// The journal of events.
    #[must_use]
    pub fn events(&self) -> PathBuf {
        self.state().join("events.jsonl")
    }

    /// Logs of all pods.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.root.join("var/log/pods")
    }

    /// One pod's logs: `<namespace>_<name>_<uid>`.
    #[must_use]
    pub fn pod_logs(&self, pod: &Pod) -> PathBuf {
        let dir = format!(
            "{}_{}_{}",
            pod::namespace(pod),
            pod::name(pod),
            pod::uid(pod)
        );
        self.logs().join(dir)
    }

    /// The log directories of a pod of which no more than the uid is known.
    #[must_use]
    pub fn logs_of_uid(&self, uid: &str) -> Vec<PathBuf> {
        let of_it = |name: &std::ffi::OsStr| {
            let name = name.to_str().and_then(|n| n.rsplit_once('_'));
            name.is_some_and(|(_, of)| of == uid)
        };
        let entries = std::fs::read_dir(self.logs()).into_iter().flatten();
        entries
            .flatten()
            .filter(|e| of_it(&e.file_name()))
            .map(|e| e.path())
            .collect()
    }

    /// The log of one attempt of a container.
    #[must_use]
    pub fn log(&self, pod: &Pod, container: &str, attempt: u32) -> PathBuf {
        self.pod_logs(pod)
            .join(container)
            .join(format!("{attempt}.log"))
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_kib() {
        assert_eq!(
            total_memory("MemTotal:       16384 kB\nMemFree: 1 kB\n"),
            Some(16_777_216)
        );
        assert_eq!(total_memory("nothing"), None);
    }
}
