//! What a new writer does with what an earlier one left.

use std::sync::Arc;

use rkube_engine::api::{self, ContainerRuntime};

use crate::events::Severity;
use crate::machine::{self, PodState};
use crate::manager::{Manager, ManagerError};
use crate::record::{self, RecordError, Wanted};
use crate::volumes::remove;
use crate::worker::{Shared, lock};

/// The label by which sandboxes of pods are told from others.
const UID_LABEL: &str = "io.kubernetes.pod.uid";

/// What a new writer found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovery {
    /// Pods that live on, by uid.
    pub adopted: Vec<String>,
    /// Leftovers of an earlier boot or of an interrupted removal, cleaned.
    pub cleaned: Vec<String>,
    /// What could not be cleaned or read, each with the reason.
    pub problems: Vec<String>,
}

impl<R: ContainerRuntime> Manager<R> {
    /// Finds the pods again that an earlier writer left, and cleans what an
    /// earlier boot or an interrupted removal left.
    ///
    /// # Errors
    /// The records cannot be listed or the engine does not answer.
    pub async fn recover(&self) -> Result<Recovery, ManagerError> {
        let shared = Arc::clone(&self.shared);
        let found = rkube_task::spawn_blocking(move || {
            let uids = record::uids(&shared.paths).map_err(|source| ManagerError::Record {
                uid: "*".to_owned(),
                source,
            })?;
            let sandboxes = shared
                .runtime
                .sandboxes()
                .map_err(|e| ManagerError::Engine {
                    reason: e.to_string(),
                })?;
            let records: Vec<_> = uids
                .into_iter()
                .map(|uid| {
                    let read = record::read(&shared.paths, &uid);
                    (uid, read)
                })
                .collect();
            Ok((records, sandboxes))
        })
        .await
        .map_err(|e| ManagerError::Engine {
            reason: e.to_string(),
        })?;
        let (records, sandboxes) = found?;
        let mut out = Recovery::default();
        let mut leftovers: Vec<(String, Option<Wanted>)> = Vec::new();
        let mut known = std::collections::BTreeSet::new();
        for (uid, record) in records {
            known.insert(uid.clone());
            match record {
                Ok(Some((wanted, state))) if wanted.boot_id == self.shared.boot_id => {
                    let sandbox = sandboxes.iter().find(|s| s.id == uid);
                    self.adopt(wanted, state, sandbox);
                    out.adopted.push(uid);
                }
                Ok(wanted) => leftovers.push((uid, wanted.map(|(w, _)| w))),
                // Records are not flushed, since no process of theirs lives
                // through what tears them.
                Err(e @ RecordError::Torn { .. }) if !lives(&sandboxes, &uid) => {
                    tracing::warn!("pod {uid}: {e}: what is left of the pod is removed");
                    leftovers.push((uid, None));
                }
                Err(e) => out.problems.push(format!("pod {uid}: {e}")),
            }
        }
        for sandbox in &sandboxes {
            if sandbox.labels.contains_key(UID_LABEL) && !known.contains(&sandbox.id) {
                leftovers.push((sandbox.id.clone(), None));
            }
        }
        self.recovered.send_replace(true);
        for (uid, wanted) in leftovers {
            let shared = Arc::clone(&self.shared);
            let id = uid.clone();
            let result =
                rkube_task::spawn_blocking(move || clean(&shared, &id, wanted.as_ref())).await;
            match result {
                Ok(Ok(())) => out.cleaned.push(uid),
                Ok(Err(problem)) => out.problems.push(format!("pod {uid}: {problem}")),
                Err(crash) => out.problems.push(format!("pod {uid}: {crash}")),
            }
        }
        Ok(out)
    }

    fn adopt(&self, wanted: Wanted, state: Option<PodState>, sandbox: Option<&api::SandboxStatus>) {
        let now = self.shared.clock.now();
        let mut state = state.unwrap_or_else(|| PodState::new(&wanted.pod, now));
        let desired = machine::Desired {
            pod: wanted.pod.clone(),
            deletion: wanted.deletion,
        };
        machine::recover(&desired, &mut state, sandbox, now);
        let mut pods = lock(&self.pods);
        self.spawn(&mut pods, wanted, state, true);
    }
}

/// Whether anything of a pod may still run.
fn lives(sandboxes: &[api::SandboxStatus], uid: &str) -> bool {
    sandboxes
        .iter()
        .any(|s| s.id == uid && s.pause_pid.is_some())
}

/// Removes what is left of a pod, trying everything.
fn clean<R: ContainerRuntime>(
    shared: &Shared<R>,
    uid: &str,
    wanted: Option<&Wanted>,
) -> Result<(), String> {
    let mut problems = Vec::new();
    if let Err(e) = shared.runtime.remove_sandbox(&uid.to_owned()) {
        problems.push(e.to_string());
    }
    let mut dirs = shared.paths.logs_of_uid(uid);
    dirs.push(shared.paths.pod(uid));
    if let Some(wanted) = wanted {
        shared.journal.note(
            &wanted.pod,
            None,
            Severity::Warning,
            "Rebooted",
            "the host was started anew: what was left of the pod is removed",
        );
    }
    for dir in dirs {
        if let Err(e) = remove::path(&dir) {
            problems.push(format!("remove {}: {e}", dir.display()));
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems.join("; "))
    }
}
