//! What is shown: statuses, statistics, namespaces.

use std::net::IpAddr;
use std::sync::Arc;

use rkube_cgroup::Cgroup;
use serde::Serialize;

use crate::api::{ContainerId, NamespaceMode, SandboxStatus};
use crate::container::cgroup_below;
use crate::engine::{Engine, Inner, Sandbox};
use crate::error::{Error, Result};
use crate::link::lock;

/// Use of one container.
#[derive(Debug, Clone, Serialize)]
pub struct ContainerStats {
    /// Which.
    pub id: ContainerId,
    /// What the kernel counts.
    pub stats: rkube_cgroup::Stats,
}

/// A namespace of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NamespaceEntry {
    /// The sandbox.
    pub sandbox: String,
    /// `pause` or the container's name.
    pub process: String,
    /// On the host.
    pub pid: u32,
    /// `net`, `mnt`, ...
    pub kind: String,
    /// Inode number, which names it.
    pub inode: u64,
    /// Whether it is rkube's own.
    pub host: bool,
}

/// Kinds of namespaces, as /proc/PID/ns names them (namespaces(7)).
const KINDS: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

impl Inner {
    pub(crate) fn status_of(&self, cell: &Sandbox) -> SandboxStatus {
        let state = lock(&cell.state);
        let record = &state.record;
        let pid = |p: i32| u32::try_from(p).ok();
        let addresses: Vec<IpAddr> = record
            .network
            .iter()
            .flat_map(rkube_netns::Attachment::addresses)
            .collect();
        let attached = record.config.network != NamespaceMode::Pod || record.network.is_some();
        SandboxStatus {
            id: record.config.id.clone(),
            ready: state.pause.is_some() && attached,
            pause_pid: state.pause.as_ref().and_then(|p| pid(p.pid)),
            keeper_pid: record.keeper_pid.filter(|_| state.link.is_some()),
            addresses,
            created_at: record.created_at,
            containers: state
                .containers
                .values()
                .map(|c| self.container_status(&record.config, c))
                .collect(),
            labels: record.config.labels.clone(),
        }
    }

    fn sandboxes_sorted(&self) -> Vec<Arc<Sandbox>> {
        let mut cells = self.all();
        cells.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        cells
    }

    pub(crate) fn statuses(&self) -> Vec<SandboxStatus> {
        self.sandboxes_sorted()
            .iter()
            .map(|cell| self.status_of(cell))
            .collect()
    }

    fn stats_of(&self, id: &ContainerId) -> Result<rkube_cgroup::Stats> {
        let cell = self.find(&id.sandbox)?;
        let config = lock(&cell.state).record.config.clone();
        let path = self.cgroup_path(&cgroup_below(&config, id))?;
        let on = |source| Error::Cgroup {
            object: id.to_string(),
            source,
        };
        Cgroup::open(&self.hierarchies, &path)
            .and_then(|g| g.stats())
            .map_err(on)
    }
}

impl Engine {
    /// Use of every running container.
    ///
    /// # Errors
    /// None as a whole: a container that ends meanwhile is left out.
    #[must_use]
    pub fn stats(&self) -> Vec<ContainerStats> {
        let running: Vec<ContainerId> = self
            .inner
            .sandboxes_sorted()
            .iter()
            .flat_map(|cell| {
                let state = lock(&cell.state);
                let running = state.containers.values().filter(|c| c.is_running());
                running
                    .map(|c| c.record.config.id.clone())
                    .collect::<Vec<_>>()
            })
            .collect();
        running
            .into_iter()
            .filter_map(|id| {
                let stats = self.inner.stats_of(&id).ok()?;
                Some(ContainerStats { id, stats })
            })
            .collect()
    }

    /// The namespaces of every pause process and running container.
    #[must_use]
    pub fn namespaces(&self) -> Vec<NamespaceEntry> {
        let mut entries = Vec::new();
        for status in self.inner.statuses() {
            let pause = status.pause_pid.map(|pid| ("pause".to_owned(), pid));
            let containers = status
                .containers
                .iter()
                .filter_map(|c| Some((c.id.name.clone(), c.pid?)));
            for (process, pid) in pause.into_iter().chain(containers) {
                for kind in KINDS {
                    let Some(inode) = inode(&pid.to_string(), kind) else {
                        continue;
                    };
                    entries.push(NamespaceEntry {
                        sandbox: status.id.clone(),
                        process: process.clone(),
                        pid,
                        kind: kind.to_owned(),
                        inode,
                        host: inode_is_own(kind, inode),
                    });
                }
            }
        }
        entries
    }

    /// Sets the size of a container's terminal. That of an exec belongs to
    /// whoever has its master.
    ///
    /// # Errors
    /// When it has none.
    pub fn resize(&self, id: &ContainerId, size: (u16, u16)) -> Result<()> {
        self.inner.resize(id, size)
    }
}

fn inode(pid: &str, kind: &str) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(format!("/proc/{pid}/ns/{kind}"))
        .ok()
        .map(|m| m.ino())
}

fn inode_is_own(kind: &str, number: u64) -> bool {
    inode("self", kind) == Some(number)
}
