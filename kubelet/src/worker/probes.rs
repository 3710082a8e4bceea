//! Runs the probes of a pod's containers, each in a task of its own that
//! sleeps between runs and lives as long as its attempt runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use rkube_engine::api::{ContainerId, ContainerRuntime};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::Worker;
use crate::events::Severity;
use crate::machine::{ProbeKind, Report};
use crate::pod;
use crate::probe::run::{self, Outcome, Place};
use crate::probe::state::{Schedule, Tally, of_kind};

/// Verdicts that may wait for the worker.
const BACKLOG_VERDICTS: usize = 16;

type Key = (String, u32, ProbeKind);

/// The probes that run.
#[derive(Debug)]
pub(super) struct Probes {
    running: BTreeMap<Key, AbortHandle>,
    sender: mpsc::Sender<Report>,
    receiver: mpsc::Receiver<Report>,
}

impl Default for Probes {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(BACKLOG_VERDICTS);
        Self {
            running: BTreeMap::new(),
            sender,
            receiver,
        }
    }
}

impl Probes {
    /// The next verdict.
    pub(super) async fn next(&mut self) -> Report {
        match self.receiver.recv().await {
            Some(report) => report,
            // Not while `sender` lives, which it does.
            None => std::future::pending().await,
        }
    }

    pub(super) fn stop_all(&mut self) {
        for (_, task) in std::mem::take(&mut self.running) {
            task.abort();
        }
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.stop_all();
    }
}

impl<R: ContainerRuntime> Worker<R> {
    /// Starts the probes that should run and stops the others.
    pub(super) fn watch_probes(&mut self) {
        let mut wanted: Vec<Key> = Vec::new();
        for (_, container) in pod::containers(&self.desired.pod) {
            let Some(memory) = self.state.containers.get(&container.name) else {
                continue;
            };
            let (Some(running), Some(attempt)) = (memory.running(), memory.attempt()) else {
                continue;
            };
            if running.stopping.is_some() {
                continue;
            }
            let kinds: &[ProbeKind] = if running.startup {
                &[ProbeKind::Liveness, ProbeKind::Readiness]
            } else {
                &[ProbeKind::Startup]
            };
            for kind in kinds {
                if of_kind(container, *kind).is_some() {
                    wanted.push((container.name.clone(), attempt, *kind));
                }
            }
        }
        self.probes.running.retain(|key, task| {
            let keep = wanted.contains(key);
            if !keep {
                task.abort();
            }
            keep
        });
        for key in wanted {
            if !self.probes.running.contains_key(&key) {
                self.start_probe(key);
            }
        }
    }

    fn start_probe(&mut self, key: Key) {
        let (name, attempt, kind) = key.clone();
        let Some((_, container)) = pod::container(&self.desired.pod, &name) else {
            return;
        };
        let Some(probe) = of_kind(container, kind).cloned() else {
            return;
        };
        let running = self
            .state
            .containers
            .get(&name)
            .and_then(|m| m.running().cloned());
        let Some(running) = running else { return };
        let schedule = Schedule::of(&probe);
        let known = match kind {
            ProbeKind::Startup => None,
            ProbeKind::Liveness => Some(true),
            // A new writer keeps the last verdict until the first new one.
            ProbeKind::Readiness => Some(running.ready),
        };
        let mut tally = Tally::new(schedule, known);
        let place = Place {
            runtime: Arc::clone(&self.shared.runtime),
            id: ContainerId {
                sandbox: self.uid().to_owned(),
                name: name.clone(),
                attempt,
            },
            container: container.clone(),
            address: self.own_address(),
        };
        let due = running.started_at + schedule.initial_delay;
        let wait = due
            .duration_since(self.shared.clock.now())
            .unwrap_or_default();
        let sender = self.probes.sender.clone();
        let shared = Arc::clone(&self.shared);
        let pod = self.desired.pod.clone();
        let task = rkube_task::spawn(async move {
            tokio::time::sleep(wait).await;
            let mut ticks = tokio::time::interval(schedule.period);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let outcome = run::probe(&place, &probe, schedule.timeout).await;
                let (success, message) = match outcome {
                    Outcome::Success => (true, String::new()),
                    Outcome::Warning(message) => {
                        let text = format!("{kind} probe: {message}");
                        shared.journal.note(
                            &pod,
                            Some(&name),
                            Severity::Warning,
                            "ProbeWarning",
                            &text,
                        );
                        (true, message)
                    }
                    Outcome::Failure(message) => {
                        let text = format!("{kind} probe failed: {message}");
                        shared.journal.note(
                            &pod,
                            Some(&name),
                            Severity::Warning,
                            "Unhealthy",
                            &text,
                        );
                        (false, message)
                    }
                };
                if let Some(success) = tally.add(success) {
                    let report = Report::Probed {
                        name: name.clone(),
                        attempt,
                        probe: kind,
                        success,
                        message,
                    };
                    if sender.send(report).await.is_err() {
                        return;
                    }
                }
            }
        });
        self.probes.running.insert(key, task.abort_handle());
    }
}
