//! A pod or what it refers to has changed while it runs.
//!
//! What a writer of before was given is not trusted to be whole: Secrets and
//! tokens of pods from an API are not kept in records, so nothing that needs
//! them is begun until they were told anew ([`Worker::hold`]).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use rkube_engine::api::ContainerRuntime;
use tokio::sync::oneshot;

use super::Worker;
use crate::downward::Facts;
use crate::machine::{Action, Refusal, Report, Volumes};
use crate::objects::Objects;
use crate::pod;
use crate::record::{self, Source};
use crate::volumes;

/// A pod as it is wanted now, with what it refers to.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// The pod. Only what may change in a running pod is looked at.
    pub pod: Pod,
    /// What it refers to.
    pub objects: Objects,
}

/// The state of what a pod from an API refers to.
#[derive(Debug, Default)]
pub(super) struct Freshness {
    /// Objects are whole; always so for pods from files.
    fetched: bool,
    /// Actions that wait for that.
    held: Vec<Action>,
    /// Volumes are being written anew.
    refreshing: bool,
    /// They are to be once more.
    again: bool,
    /// Digests of the volumes' files, by volume.
    written: BTreeMap<String, u64>,
    /// Brings them back from the thread that writes.
    back: Option<oneshot::Receiver<BTreeMap<String, u64>>>,
}

impl Freshness {
    pub(super) fn of(source: Source, recovered: bool) -> Self {
        Self {
            fetched: source == Source::File || !recovered,
            ..Self::default()
        }
    }
}

/// What of a pod counts here: its status is the worker's own matter but for
/// the conditions that readiness gates name.
pub(crate) fn as_wanted(mut pod: Pod) -> Pod {
    pod.metadata.deletion_timestamp = None;
    pod.metadata.deletion_grace_period_seconds = None;
    pod.metadata.managed_fields = None;
    pod.metadata.resource_version = None;
    let gates: Vec<String> = pod::spec(&pod)
        .readiness_gates
        .iter()
        .flatten()
        .map(|g| g.condition_type.clone())
        .collect();
    let mut conditions = pod
        .status
        .take()
        .and_then(|s| s.conditions)
        .unwrap_or_default();
    conditions.retain(|c| gates.contains(&c.type_));
    pod.status = (!conditions.is_empty()).then(|| PodStatus {
        conditions: Some(conditions),
        ..PodStatus::default()
    });
    pod
}

/// Containers whose image is another in `new`.
fn changed_images(old: &Pod, new: &Pod) -> Vec<String> {
    pod::containers(old)
        .filter(|(_, was)| {
            pod::container(new, &was.name).is_some_and(|(_, is)| is.image != was.image)
        })
        .map(|(_, c)| c.name.clone())
        .collect()
}

impl<R: ContainerRuntime> Worker<R> {
    /// Keeps an action back that needs what is not told yet.
    pub(super) fn hold(&mut self, action: Action) -> Option<Action> {
        let needs = matches!(action, Action::MakeVolumes | Action::Start { .. });
        if self.freshness.fetched || !needs {
            return Some(action);
        }
        self.freshness.held.push(action);
        if self.desired.deletion.is_some() {
            self.give_up_held();
        }
        None
    }

    /// A pod that ends need not wait for what it refers to.
    pub(super) fn give_up_held(&mut self) {
        let refusal = || Refusal {
            reason: "CreateContainerConfigError".to_owned(),
            message: "what the pod refers to was not fetched before its end".to_owned(),
        };
        for action in std::mem::take(&mut self.freshness.held) {
            match action {
                Action::MakeVolumes => self.fold(Report::VolumesMade(Err(refusal()))),
                Action::Start { name, .. } => {
                    let refusal = refusal();
                    self.fold(Report::Blocked { name, refusal });
                }
                _ => {}
            }
        }
    }

    pub(super) fn update(&mut self, update: Update) {
        let new = as_wanted(update.pod);
        let images = changed_images(&self.desired.pod, &new);
        let pod_changed = new != self.desired.pod;
        let objects_changed = update.objects != self.wanted.objects;
        let first = !std::mem::replace(&mut self.freshness.fetched, true);
        if !(pod_changed || objects_changed || first) {
            return;
        }
        self.desired.pod = new.clone();
        self.wanted.pod = new;
        self.wanted.objects = update.objects;
        if (pod_changed || objects_changed)
            && let Err(error) = record::write_wanted(&self.shared.paths, self.uid(), &self.wanted)
        {
            tracing::error!(pod = %self.name(), %error, "the record of a changed pod is not written");
        }
        for name in images {
            let running = self.state.container(&name).running().is_some();
            if running {
                let message = format!("Container {name} definition changed, will be restarted");
                self.note(
                    Some(&name),
                    crate::events::Severity::Normal,
                    "Killing",
                    &message,
                );
            }
            self.fold(Report::ContainerChanged { name });
        }
        if objects_changed || first {
            self.fold(Report::ObjectsChanged);
        }
        for action in std::mem::take(&mut self.freshness.held) {
            self.perform(action);
        }
        self.refresh_volumes();
    }

    /// Writes files anew that say what is no longer so.
    fn refresh_volumes(&mut self) {
        if self.state.volumes != Volumes::Ready || self.state.ending.is_some() {
            return;
        }
        if std::mem::replace(&mut self.freshness.refreshing, true) {
            self.freshness.again = true;
            return;
        }
        let (objects, addresses) = (self.objects(), self.addresses());
        let mut written = std::mem::take(&mut self.freshness.written);
        let (sender, receiver) = oneshot::channel();
        self.freshness.back = Some(receiver);
        self.block(move |shared, pod| {
            let facts = Facts {
                pod,
                node: &shared.node,
                addresses: &addresses,
            };
            let result = volumes::refresh(facts, &objects, &shared.paths, &mut written);
            // Whoever waited has ended with the pod.
            let _ = sender.send(written);
            Report::VolumesRefreshed(result.map_err(|problems| {
                let texts: Vec<String> =
                    problems.iter().map(|p| super::actions::chain(p)).collect();
                texts.join("; ")
            }))
        });
    }

    /// Takes the end of a refresh in.
    pub(super) fn after_refresh(&mut self, report: &Report) {
        let made = matches!(report, Report::VolumesMade(Ok(())));
        if !matches!(report, Report::VolumesRefreshed(_)) && !made {
            return;
        }
        if made {
            // Objects may have changed while the volumes were made.
            if self.wanted.source == Source::Api {
                self.freshness.again = true;
            }
        } else {
            self.freshness.refreshing = false;
            if let Some(mut receiver) = self.freshness.back.take()
                && let Ok(written) = receiver.try_recv()
            {
                self.freshness.written = written;
            }
        }
    }

    /// Begins what [`Worker::after_refresh`] found to be due.
    pub(super) fn refresh_if_due(&mut self) {
        if !self.freshness.refreshing && std::mem::take(&mut self.freshness.again) {
            self.refresh_volumes();
        }
    }
}
