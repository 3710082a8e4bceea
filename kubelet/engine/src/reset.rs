//! Leaving no trace.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rkube_cgroup::{Cgroup, CgroupPath, Hierarchies, systemd};

use crate::engine::{Engine, EngineConfig, GONE_LIMIT, network_config};
use crate::error::{Error, OnFile, Result, all};
use crate::instance::Instance;
use crate::link::lock;
use crate::tree;

impl Engine {
    /// Ends every pod of an instance and removes what it left on the host:
    /// processes, cgroups, network, images, records, and the log directories
    /// of its sandboxes and `logs` (other kubelets keep theirs beside them).
    /// What is mounted below is detached, not emptied. The caller holds the
    /// writer's lock and no engine runs. Everything is tried; what went wrong
    /// is reported together.
    ///
    /// # Errors
    /// [`Error::Several`] or the one thing that did not work.
    pub fn reset(config: EngineConfig, logs: &[PathBuf]) -> Result<()> {
        let instance = config.instance.clone();
        let mut errors = Vec::new();
        let mut logs: BTreeSet<PathBuf> = logs.iter().cloned().collect();
        match Self::open(config.clone(), Box::new(|_| {})) {
            Ok(engine) => {
                for cell in engine.inner.all() {
                    logs.insert(lock(&cell.state).record.config.log_dir.clone());
                    if let Err(error) = engine.inner.remove_sandbox(&cell.id) {
                        errors.push(error);
                    }
                }
            }
            // What it could not open is taken down below without it.
            Err(error) => tracing::warn!(error = crate::error::chain(&error), "open engine"),
        }
        let network = network_config(&config).and_then(|host| {
            rkube_netns::Host::reset(&host).map_err(|source| Error::Network {
                object: "this host".into(),
                source,
            })
        });
        errors.extend(network.err());
        errors.extend(remove_cgroups(&instance).err());
        errors.extend(remove_files(&instance, &logs).err());
        all(errors)
    }
}

fn remove_cgroups(instance: &Instance) -> Result<()> {
    let parent = instance.cgroup_parent();
    let on = |source| Error::Cgroup {
        object: parent.clone(),
        source,
    };
    let hierarchies: Arc<Hierarchies> = Hierarchies::detect().map_err(on)?;
    let path = CgroupPath::new(&parent).map_err(on)?;
    let group = Cgroup::open(&hierarchies, &path).map_err(on)?;
    if !group.exists() {
        return Ok(());
    }
    // This process may be in it: it was a supervisor.
    let own = std::process::id();
    for pid in group.pids().map_err(on)?.into_iter().filter(|p| *p != own) {
        if let Some(pid) = i32::try_from(pid).ok()
            && let Ok(ticks) = rkube_keeper::process::start_ticks(pid)
        {
            crate::proc::kill(pid, ticks, GONE_LIMIT).map_err(|what| Error::Invalid {
                object: parent.clone(),
                what,
            })?;
        }
    }
    Cgroup::remove(&hierarchies, &path, GONE_LIMIT).map_err(on)?;
    match &instance.scope {
        // The unit goes with its last process; this only waits for that.
        Some(scope) if systemd::is_booted() => {
            let stopped = systemd::Systemd::connect().and_then(|mut s| s.stop(scope));
            stopped.map_err(on)
        }
        _ => Ok(()),
    }
}

/// The directories that are rkube's alone, and logs of its pods.
fn remove_files(instance: &Instance, logs: &BTreeSet<PathBuf>) -> Result<()> {
    let mut errors = Vec::new();
    for dir in logs.iter().filter(|d| d.starts_with(instance.log_dir())) {
        errors.extend(tree::path(dir).on("remove", dir).err());
    }
    // Where other pods have logs it is not empty, and stays.
    let _ = std::fs::remove_dir(instance.log_dir());
    for dir in [instance.state_dir(), instance.run_dir()] {
        errors.extend(remove_tree(&dir).err());
    }
    all(errors)
}

/// Removes a directory, which may be a disk of its own: that is emptied and
/// stays mounted.
fn remove_tree(dir: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.on("list", dir)?,
    };
    for entry in entries {
        let path = entry.on("list", dir)?.path();
        tree::path(&path).on("remove", &path)?;
    }
    match std::fs::remove_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy => Ok(()),
        other => other.on("remove", dir),
    }
}
