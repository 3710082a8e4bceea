//! What somebody asks of a pod that is there: to run again, now or after its
//! end, or to have other limits.

use k8s_openapi::api::core::v1::Pod;
use rkube_engine::api::{ContainerId, ContainerRuntime, Resources};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::oneshot;

use super::{Message, Shared, Worker};
use crate::events::Severity;
use crate::machine::{self, Failures, Report, Stage};
use crate::pod::{self, Kind};
use crate::record;
use crate::translate::limits::{self, ChangeError, LimitsChange};
use crate::translate::{TranslateError, memory, qos};

/// What is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Ask {
    /// To run again, if it is over; a pod that runs stays as it is.
    Start,
    /// To stop and run again: all containers, or those named.
    Restart {
        /// Which; all, init containers too, if none.
        containers: Vec<String>,
        /// Their grace period; the pod's own if none, 0 kills at once.
        grace_seconds: Option<u64>,
    },
    /// To have other limits, from now on and in every later run.
    Limit(LimitsChange),
}

/// Why not.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The pod is on its way to its end.
    #[error("the pod is ending")]
    Ending,
    /// It has no such container, or one that cannot be restarted by itself.
    #[error("{name:?} is {what}")]
    Container {
        /// The name.
        name: String,
        /// What it is.
        what: &'static str,
    },
    /// The limits make no sense.
    #[error(transparent)]
    Limits(#[from] ChangeError),
    /// What the limits stand for cannot be had.
    #[error(transparent)]
    Translate(#[from] TranslateError),
    /// The engine did not do it; nothing is changed.
    #[error("change the limits of {object}: {reason}")]
    Engine {
        /// Of what.
        object: String,
        /// Its error.
        reason: String,
    },
    /// The record cannot be written.
    #[error("write the pod's record")]
    Record(#[from] record::RecordError),
    /// The pod has gone meanwhile.
    #[error("the pod has gone")]
    Gone,
}

/// Where the answer goes; nobody may be waiting any more.
pub(crate) type Answer = oneshot::Sender<Result<(), AskError>>;

impl<R: ContainerRuntime> Worker<R> {
    pub(super) fn asked(&mut self, ask: Ask, answer: Answer) {
        let result = match ask {
            Ask::Start => self.start_again(),
            Ask::Restart {
                containers,
                grace_seconds,
            } => self.restart(&containers, grace_seconds),
            Ask::Limit(change) => return self.limit(change, answer),
        };
        // It holds from here on, whatever becomes of this process.
        self.save();
        let _ = answer.send(result);
    }

    fn start_again(&mut self) -> Result<(), AskError> {
        if !self.state.finished {
            return match self.state.ending {
                Some(_) => Err(AskError::Ending),
                None => Ok(()),
            };
        }
        let mut wanted = self.wanted.clone();
        wanted.deletion = None;
        record::write_wanted(&self.shared.paths, self.uid(), &wanted)?;
        self.wanted = wanted;
        self.desired.deletion = None;
        self.failures = Failures::default();
        machine::again::start(&mut self.state, self.shared.clock.now());
        self.note(
            None,
            Severity::Normal,
            "Starting",
            "the pod is started again",
        );
        Ok(())
    }

    fn restart(
        &mut self,
        containers: &[String],
        grace_seconds: Option<u64>,
    ) -> Result<(), AskError> {
        for name in containers {
            let what = match pod::container(&self.desired.pod, name) {
                None => "no container of the pod",
                Some((Kind::Init, _)) => "an init container, which runs before the others only",
                Some((Kind::Main | Kind::Sidecar, _)) => continue,
            };
            let name = name.clone();
            return Err(AskError::Container { name, what });
        }
        if self.state.finished {
            return self.start_again();
        }
        if self.state.ending.is_some() {
            return Err(AskError::Ending);
        }
        let all = pod::containers(&self.desired.pod).map(|(_, c)| c.name.clone());
        let named = |name: &String| containers.is_empty() || containers.contains(name);
        for name in all.filter(named).collect::<Vec<_>>() {
            if matches!(self.state.container(&name).stage, Stage::Running(_)) {
                let message = format!("Container {name} will be restarted, as was asked");
                self.note(Some(&name), Severity::Normal, "Killing", &message);
            }
        }
        if containers.is_empty() {
            self.fold(Report::RestartPod { grace_seconds });
        }
        for name in containers {
            self.fold(Report::RestartContainer {
                name: name.clone(),
                grace_seconds,
            });
        }
        Ok(())
    }

    /// First what runs, then the record: a limit that the kernel refuses is
    /// not recorded.
    fn limit(&mut self, change: LimitsChange, answer: Answer) {
        let new = match limits::changed(&self.desired.pod, &change) {
            Ok(new) => new,
            Err(error) => {
                let _ = answer.send(Err(error.into()));
                return;
            }
        };
        let memory = self.state.container(&change.container);
        let attempt = memory.running().and_then(|_| memory.attempt());
        let sandbox = matches!(self.state.sandbox, machine::Sandbox::Ready { .. });
        let (shared, old) = (Arc::clone(&self.shared), self.desired.pod.clone());
        let address = self.address.clone();
        rkube_task::spawn(async move {
            let name = change.container.clone();
            let work = rkube_task::spawn_blocking(move || {
                if sandbox {
                    put_in_force(&shared, &old, &new, &name, attempt)
                } else {
                    wanted(&shared, &new, &name).map(drop)
                }
            });
            let result = work.await.unwrap_or(Err(AskError::Gone));
            // A worker that has ended takes its pod's limits along.
            let _ = address
                .send(Message::Limited {
                    change,
                    result,
                    answer,
                })
                .await;
        });
    }

    /// The kernel has answered.
    pub(super) fn limited(
        &mut self,
        change: &LimitsChange,
        result: Result<(), AskError>,
        answer: Answer,
    ) {
        let recorded = result.and_then(|()| {
            // The pod may have changed meanwhile; the change is the same.
            let pod = limits::changed(&self.desired.pod, change)?;
            let mut wanted = self.wanted.clone();
            wanted.pod = pod.clone();
            record::write_wanted(&self.shared.paths, self.uid(), &wanted)?;
            self.wanted = wanted;
            self.desired.pod = pod;
            Ok(())
        });
        if recorded.is_ok() {
            let message = format!("the limits of container {} are changed", change.container);
            let container = Some(change.container.as_str());
            self.note(container, Severity::Normal, "LimitsChanged", &message);
        }
        let _ = answer.send(recorded);
    }
}

/// Limits of a container as the pod wants them.
fn wanted<R: ContainerRuntime>(
    shared: &Shared<R>,
    pod: &Pod,
    name: &str,
) -> Result<Resources, AskError> {
    let Some((_, container)) = pod::container(pod, name) else {
        return Err(AskError::Gone);
    };
    let mut resources = qos::container_resources(container, !shared.node.single_process_oom_kill);
    memory::asked(pod, name, &mut resources)?;
    Ok(resources)
}

/// Writes the new limits of a container and its pod. The pod's hold back
/// neither the old nor the new ones while the container's change.
fn put_in_force<R: ContainerRuntime>(
    shared: &Shared<R>,
    old: &Pod,
    new: &Pod,
    name: &str,
    attempt: Option<u32>,
) -> Result<(), AskError> {
    let uid = pod::uid(new).to_owned();
    let failed = |object: String| {
        move |e: R::Error| AskError::Engine {
            object,
            reason: e.to_string(),
        }
    };
    let (before, after) = (qos::pod_resources(old), qos::pod_resources(new));
    let (was, is) = (wanted(shared, old, name)?, wanted(shared, new, name)?);
    let of_pod = |from: &Resources, to: &Resources| {
        let limits = limits::in_force(from, to);
        shared.runtime.update_sandbox(&uid, &limits)
    };
    let wide = limits::widest(&before, &after);
    of_pod(&before, &wide).map_err(failed(format!("pod {uid}")))?;
    if let Some(attempt) = attempt {
        let id = ContainerId {
            sandbox: uid.clone(),
            name: name.to_owned(),
            attempt,
        };
        let done = shared.runtime.update(&id, &limits::in_force(&was, &is));
        if let Err(error) = done {
            // As before; the first error is the one to tell.
            let _ = shared.runtime.update(&id, &limits::in_force(&is, &was));
            let _ = of_pod(&wide, &before);
            return Err(failed(format!("container {name}"))(error));
        }
    }
    of_pod(&wide, &after).map_err(failed(format!("pod {uid}")))
}
