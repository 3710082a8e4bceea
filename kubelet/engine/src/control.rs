//! What is asked of containers that are there: status, signals, limits.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::SystemTime;

use rkube_cgroup::{Cgroup, Version};

use crate::api::{
    ContainerId, ContainerState, ContainerStatus, Resources, SandboxConfig, SandboxId,
};
use crate::container::{cgroup_below, log_path};
use crate::engine::{Container, GONE_LIMIT, Inner};
use crate::error::{Error, OnFile, Result};
use crate::link::lock;
use crate::spec::typed_resources;

impl Inner {
    pub(crate) fn signal(&self, id: &ContainerId, signal: i32, every: bool) -> Result<()> {
        let cell = self.find(&id.sandbox)?;
        if every {
            let config = lock(&cell.state).record.config.clone();
            let path = self.cgroup_path(&cgroup_below(&config, id))?;
            let on = |source| Error::Cgroup {
                object: id.to_string(),
                source,
            };
            let group = Cgroup::open(&self.hierarchies, &path).map_err(on)?;
            if signal == 9 {
                return group.kill_all(GONE_LIMIT).map_err(on);
            }
            for pid in group.pids().map_err(on)? {
                let pid = i32::try_from(pid)
                    .ok()
                    .and_then(rustix::process::Pid::from_raw);
                let fd = pid.and_then(|p| {
                    rustix::process::pidfd_open(p, rustix::process::PidfdFlags::empty()).ok()
                });
                if let Some(fd) = fd {
                    // One that has ended meanwhile needs no signal.
                    let _ = rkube_sys::signal::pidfd_signal(fd.as_fd(), signal);
                }
            }
            return Ok(());
        }
        let state = lock(&cell.state);
        let container = state
            .containers
            .get(id)
            .ok_or_else(|| Error::NoContainer(id.to_string()))?;
        let not_running = || Error::NotRunning(id.to_string());
        let process = container.process.as_ref().ok_or_else(not_running)?;
        match rkube_sys::signal::pidfd_signal(process.as_fd(), signal) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::SRCH) => Err(not_running()),
            Err(errno) => Err(errno).on("send signal to", Path::new(&id.to_string())),
        }
    }

    pub(crate) fn container_status(
        &self,
        sandbox: &SandboxConfig,
        container: &Container,
    ) -> ContainerStatus {
        let r = &container.record;
        let at = |ns: u64| SystemTime::UNIX_EPOCH + std::time::Duration::from_nanos(ns);
        let state = match (&r.exit, r.lost_at, &r.running) {
            (Some(exit), _, _) => ContainerState::Exited(exit.clone()),
            (None, Some(finished_at), _) => ContainerState::Unknown { finished_at },
            (None, None, Some(_)) => ContainerState::Running,
            (None, None, None) => ContainerState::Created,
        };
        let started = r.running.as_ref().map(|p| at(p.started_ns));
        let alive = container.is_running();
        ContainerStatus {
            id: r.config.id.clone(),
            state,
            pid: r
                .running
                .as_ref()
                .filter(|_| alive)
                .and_then(|p| u32::try_from(p.pid).ok()),
            started_at: started.or(r.launched_at),
            image_id: r.image_id.clone(),
            log_path: log_path(sandbox, &r.config.id),
            labels: r.config.labels.clone(),
        }
    }

    /// Changes the limits of a running container.
    pub(crate) fn update(&self, id: &ContainerId, resources: &Resources) -> Result<()> {
        let cell = self.find(&id.sandbox)?;
        let config = lock(&cell.state).record.config.clone();
        let path = self.cgroup_path(&cgroup_below(&config, id))?;
        let on = |source| Error::Cgroup {
            object: id.to_string(),
            source,
        };
        let group = Cgroup::open(&self.hierarchies, &path).map_err(on)?;
        let (limits, extras) = typed_resources(&id.to_string(), resources, None)?;
        let mut extras = extras;
        if self.memory_version() != Some(Version::V2) {
            // As when it was started: pods ask for it, and mean it for v2.
            extras.oom_group = None;
        }
        if let Some(limit) = resources.memory_limit_bytes.filter(|limit| *limit > 0) {
            check_memory(id, limit, group.stats().map_err(on)?.memory.as_ref())?;
        }
        for warning in group.apply(&limits, &extras).map_err(on)? {
            self.warn_once(&format!("{}: {}", warning.setting, warning.message));
        }
        let mut state = lock(&cell.state);
        if let Some(container) = state.containers.get_mut(id) {
            container.record.config.resources = in_record(resources);
            self.records.put_container(&container.record)?;
        }
        Ok(())
    }

    /// Changes the limits of a sandbox.
    pub(crate) fn update_sandbox(&self, id: &SandboxId, resources: &Resources) -> Result<()> {
        let cell = self.find(id)?;
        let _making = lock(&cell.making);
        let below = lock(&cell.state).record.config.cgroup.clone();
        self.make_cgroup(&below, resources)?;
        let mut state = lock(&cell.state);
        state.record.config.resources = in_record(resources);
        self.records.put_sandbox(&state.record)
    }
}

/// A limit below what is in use would have v2 kill for it, and v1 refuse it;
/// what can be dropped at once does not count.
fn check_memory(
    id: &ContainerId,
    limit: i64,
    now: Option<&rkube_cgroup::MemoryStats>,
) -> Result<()> {
    let used = now.map_or(0, |m| m.working_set_bytes);
    if u64::try_from(limit).is_ok_and(|limit| used <= limit) {
        return Ok(());
    }
    Err(Error::Invalid {
        object: format!("container {id}"),
        what: format!("a memory limit of {limit} bytes is below what it uses now ({used} bytes)"),
    })
}

/// Limits as a record has them: none is absent.
fn in_record(resources: &Resources) -> Resources {
    let limit = |l: Option<i64>| l.filter(|l| *l >= 0);
    Resources {
        cpu_quota_us: limit(resources.cpu_quota_us),
        memory_limit_bytes: limit(resources.memory_limit_bytes),
        memory_swap_bytes: limit(resources.memory_swap_bytes),
        memory_high_bytes: limit(resources.memory_high_bytes),
        pids_limit: limit(resources.pids_limit),
        ..resources.clone()
    }
}
