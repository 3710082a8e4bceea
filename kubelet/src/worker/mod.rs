//! The driver of one pod: one task that steps the machine, starts what it
//! asks for and folds the news back in.
//!
//! The task waits for its mailbox, for what it has started, and for the next
//! deadline; there is nothing else that wakes it. Everything that blocks runs
//! on a blocking thread.

mod actions;
mod announce;
pub(crate) mod asked;
#[cfg(test)]
mod fake;
mod files;
mod probes;
#[cfg(test)]
mod tests;
pub(crate) mod update;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rkube_engine::api::{self, ContainerRuntime};
use rkube_image::pull::Cancel;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;

use crate::events::{Journal, Severity};
use crate::files::hosts::Peer;
use crate::images::Images;
use crate::machine::{
    self, Deletion, Desired, Failures, PodState, Report, Sandbox, Stage, Step, Termination,
};
use crate::node::{NodeFacts, Paths};
use crate::objects::Objects;
use crate::pod;
use crate::record::{self, Source, Wanted};
use crate::status;
use crate::surroundings::Surroundings;
use crate::time::{Clock, api_time};
use crate::translate::limits::LimitsChange;
use crate::translate::pressure;
use crate::volumes::remove;
pub use asked::{Ask, AskError};
pub use update::Update;

/// Messages that may wait for a worker.
pub(crate) const MAILBOX_MESSAGES: usize = 256;

/// What all workers share.
#[derive(Debug)]
pub(crate) struct Shared<R> {
    pub(crate) runtime: Arc<R>,
    pub(crate) paths: Paths,
    pub(crate) node: NodeFacts,
    pub(crate) clock: Clock,
    pub(crate) journal: Journal,
    /// What a pod finds around it.
    pub(crate) surroundings: Arc<dyn Surroundings>,
    pub(crate) changes: broadcast::Sender<Change>,
    pub(crate) boot_id: String,
    pub(crate) images: Images,
    /// Set once the pods are left to the next writer; changes with the map
    /// of workers locked.
    pub(crate) leaving: AtomicBool,
    /// CPU requests of Burstable pods by uid, in thousandths.
    pub(crate) burstable: Mutex<BTreeMap<String, u64>>,
    /// Addresses and names by group and uid, and where to tell of a change.
    pub(crate) groups: Mutex<BTreeMap<String, BTreeMap<String, Member>>>,
}

#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) peers: Vec<Peer>,
    pub(crate) mailbox: mpsc::Sender<Message>,
}

/// What a worker is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// Something happened in the engine.
    Engine(api::Event),
    /// The pod is to end.
    Delete(Deletion),
    /// Another pod of the group has a new address.
    PeersChanged,
    /// An image was added.
    ImagesChanged,
    /// The pod, or what it refers to, is another.
    Update(Box<Update>),
    /// Somebody wants something of the pod and waits for the answer.
    Ask(Box<Ask>, asked::Answer),
    /// The kernel has other limits, or not; see [`Ask::Limit`].
    Limited {
        change: LimitsChange,
        result: Result<(), AskError>,
        answer: asked::Answer,
    },
    /// Leave the pod as it is and end.
    Leave,
}

/// A pod as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct PodView {
    /// Its uid.
    pub uid: String,
    /// The pod with its status.
    pub pod: Pod,
    /// The group that it was applied with.
    pub group: Option<String>,
    /// Where it came from.
    pub source: Source,
    /// Nothing of it runs or will run.
    pub finished: bool,
}

/// What has become of a pod.
#[derive(Debug, Clone)]
pub enum Change {
    /// It is there now, or its status is another.
    Updated(Arc<PodView>),
    /// It is forgotten.
    Removed(Arc<PodView>),
}

/// One pod's worker.
pub(crate) struct Worker<R> {
    shared: Arc<Shared<R>>,
    wanted: Wanted,
    desired: Desired,
    state: PodState,
    failures: Failures,
    status: Option<PodStatus>,
    saved: Option<PodState>,
    view: watch::Sender<Arc<PodView>>,
    mailbox: mpsc::Receiver<Message>,
    address: mpsc::Sender<Message>,
    tasks: JoinSet<Report>,
    probes: probes::Probes,
    announced: announce::Announced,
    freshness: update::Freshness,
    /// Ends the pull of a container's image.
    pulls: BTreeMap<String, Cancel>,
}

impl<R: ContainerRuntime> Worker<R> {
    pub(crate) fn new(
        shared: Arc<Shared<R>>,
        wanted: Wanted,
        state: PodState,
        recovered: bool,
        view: watch::Sender<Arc<PodView>>,
        (address, mailbox): (mpsc::Sender<Message>, mpsc::Receiver<Message>),
    ) -> Self {
        let desired = Desired {
            pod: wanted.pod.clone(),
            deletion: wanted.deletion,
        };
        let freshness = update::Freshness::of(wanted.source, recovered);
        Self {
            shared,
            wanted,
            desired,
            state,
            failures: Failures::default(),
            status: None,
            saved: None,
            view,
            mailbox,
            address,
            tasks: JoinSet::new(),
            probes: probes::Probes::default(),
            announced: announce::Announced::default(),
            freshness,
            pulls: BTreeMap::new(),
        }
    }

    /// Lives until the pod is forgotten or left.
    pub(crate) async fn run(mut self) {
        self.join_group();
        loop {
            let now = self.shared.clock.now();
            let step = machine::step(&self.desired, &mut self.state, now);
            self.save();
            self.publish(now);
            if step.forget {
                return self.forget().await;
            }
            let wake_at = self.carry_out(step);
            self.refresh_if_due();
            self.watch_probes();
            let deadline = wake_at.map(|at| {
                let wait = at.duration_since(now).unwrap_or_default();
                tokio::time::Instant::now() + wait
            });
            let asleep = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = self.mailbox.recv() => match message {
                    Some(Message::Leave) | None => return self.leave().await,
                    Some(message) => self.take(message),
                },
                Some(report) = self.tasks.join_next() => match report {
                    Ok(report) => self.fold(report),
                    Err(error) => self.crashed(&error),
                },
                report = self.probes.next() => self.fold(report),
                () = asleep => {}
            }
        }
    }

    fn carry_out(&mut self, step: Step) -> Option<SystemTime> {
        for action in step.actions {
            if let Some(action) = self.hold(action) {
                self.perform(action);
            }
        }
        step.wake_at
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Engine(event) => self.engine_event(event),
            Message::Delete(deletion) => {
                for pull in self.pulls.values() {
                    pull.cancel();
                }
                // A later request may shorten the grace period and no more.
                let grace_seconds = match (self.desired.deletion, deletion.grace_seconds) {
                    (Some(old), Some(new)) => Some(old.grace_seconds.map_or(new, |g| g.min(new))),
                    (Some(old), None) => old.grace_seconds,
                    (None, new) => new,
                };
                let at = self.desired.deletion.map_or(deletion.at, |d| d.at);
                let keep = deletion.keep && self.desired.deletion.is_none_or(|d| d.keep);
                let deletion = Deletion {
                    at,
                    grace_seconds,
                    keep,
                };
                self.desired.deletion = Some(deletion);
                self.wanted.deletion = Some(deletion);
                if let Err(error) =
                    record::write_wanted(&self.shared.paths, self.uid(), &self.wanted)
                {
                    tracing::error!(pod = %self.name(), %error, "the record of a deletion is not written");
                }
                self.give_up_held();
            }
            Message::Update(update) => self.update(*update),
            Message::PeersChanged => self.write_hosts(),
            Message::ImagesChanged => self.fold(Report::ImagesChanged),
            Message::Ask(ask, answer) => self.asked(*ask, answer),
            Message::Limited {
                change,
                result,
                answer,
            } => self.limited(&change, result, answer),
            Message::Leave => {}
        }
    }

    fn engine_event(&mut self, event: api::Event) {
        match event {
            api::Event::Exited { id, exit } => {
                let end = match &exit {
                    Some(exit) => Termination::of_exit(id.attempt, exit),
                    None => Termination::unknown(id.attempt, self.shared.clock.now()),
                };
                self.ended(id.name, end);
            }
            api::Event::Oom {
                id,
                kills,
                limit_bytes,
                culprit,
            } => {
                let who = culprit.map_or_else(String::new, |(pid, command)| {
                    format!(", process {pid} ({command})")
                });
                let limit = limit_bytes.map_or_else(String::new, |l| format!(" of {l} bytes"));
                let message = format!(
                    "a process exceeded the memory limit{limit} and was killed (kill {kills}){who}"
                );
                self.note(Some(&id.name), Severity::Warning, "OOMKilling", &message);
            }
            api::Event::Pressure { id, alarm } => {
                let message = pressure::told(&alarm);
                self.note(Some(&id.name), Severity::Warning, "PressureHigh", &message);
            }
            api::Event::SandboxLost { .. } => {
                // Pause ends with its sandbox, too.
                if self.state.ending.is_none()
                    && matches!(self.state.sandbox, Sandbox::Ready { .. })
                {
                    self.note(
                        None,
                        Severity::Normal,
                        "SandboxChanged",
                        "the pod's sandbox is lost and will be made anew",
                    );
                }
                self.fold(Report::SandboxLost);
            }
        }
    }

    fn fold(&mut self, report: Report) {
        self.announce_report(&report);
        self.after_refresh(&report);
        let sandbox = matches!(report, Report::SandboxMade(_) | Report::SandboxRemoved(_));
        let now = self.shared.clock.now();
        machine::fold(
            &self.desired,
            &mut self.state,
            &mut self.failures,
            report,
            now,
        );
        if sandbox {
            self.addresses_changed();
        }
    }

    /// A task of this worker panicked: a defect. What it was about stays
    /// marked as under way, so the pod goes on with a fresh look at the engine.
    fn crashed(&mut self, error: &tokio::task::JoinError) {
        if error.is_cancelled() {
            return;
        }
        tracing::error!(pod = %self.name(), %error, "a task of the pod's worker crashed");
        let runtime = &self.shared.runtime;
        let found = runtime.sandbox(&self.uid().to_owned()).ok().flatten();
        let now = self.shared.clock.now();
        machine::recover(&self.desired, &mut self.state, found.as_ref(), now);
    }

    /// Writes the record if it says something new. Nothing is done before it
    /// is written; where it cannot be written the pod goes on, since a pod
    /// that stops for a full disk helps nobody.
    fn save(&mut self) {
        if self.saved.as_ref() == Some(&self.state) {
            return;
        }
        match record::write_state(&self.shared.paths, self.uid(), &self.state) {
            Ok(()) => self.saved = Some(self.state.clone()),
            Err(error) => {
                tracing::error!(pod = %self.name(), %error, "the pod's record is not written")
            }
        }
    }

    fn publish(&mut self, now: SystemTime) {
        let status = status::pod_status(
            &self.desired,
            &self.state,
            &self.shared.node,
            self.status.as_ref(),
            now,
        );
        let deleted = self.desired.deletion.is_some();
        let was_deleted = self.view.borrow().pod.metadata.deletion_timestamp.is_some();
        let finished = self.view.borrow().finished;
        if self.status.as_ref() == Some(&status)
            && deleted == was_deleted
            && finished == self.state.finished
        {
            return;
        }
        self.announce_status(&status);
        let view = self.make_view(&status);
        self.status = Some(status);
        self.view.send_replace(Arc::clone(&view));
        // Nobody may be watching.
        let _ = self.shared.changes.send(Change::Updated(view));
    }

    fn make_view(&self, status: &PodStatus) -> Arc<PodView> {
        let mut pod = self.desired.pod.clone();
        pod.status = Some(status.clone());
        if let Some(deletion) = self.desired.deletion {
            let grace = deletion
                .grace_seconds
                .unwrap_or_else(|| pod::grace_seconds(&pod));
            let until: Time = api_time(deletion.at + std::time::Duration::from_secs(grace));
            pod.metadata.deletion_timestamp = Some(until);
            pod.metadata.deletion_grace_period_seconds = i64::try_from(grace).ok();
        }
        Arc::new(PodView {
            uid: self.uid().to_owned(),
            pod,
            group: self.wanted.group.clone(),
            source: self.wanted.source,
            finished: self.state.finished,
        })
    }

    /// Removes all that is left of the pod, its record last.
    async fn forget(mut self) {
        self.probes.stop_all();
        self.leave_group();
        let uid = self.uid().to_owned();
        lock(&self.shared.burstable).remove(&uid);
        let (logs, dir) = (
            self.shared.paths.pod_logs(&self.desired.pod),
            self.shared.paths.pod(&uid),
        );
        let removed = rkube_task::spawn_blocking(move || {
            let logs = remove::path(&logs).map_err(|e| (logs, e));
            let dir = remove::path(&dir).map_err(|e| (dir, e));
            [logs, dir]
        })
        .await;
        for (path, error) in removed.into_iter().flatten().filter_map(Result::err) {
            tracing::error!(pod = %self.name(), path = %path.display(), %error, "files of a removed pod are left");
        }
        let view = self.view.borrow().clone();
        let _ = self.shared.changes.send(Change::Removed(view));
    }

    /// Ends the worker and leaves the pod running, for the next writer.
    async fn leave(mut self) {
        self.probes.stop_all();
        self.leave_group();
        // What was begun is ended, so that the record tells of it.
        while let Ok(Some(report)) =
            tokio::time::timeout(std::time::Duration::from_secs(5), self.tasks.join_next()).await
        {
            if let Ok(report) = report {
                self.fold(report);
            }
        }
        self.save();
    }

    fn uid(&self) -> &str {
        pod::uid(&self.desired.pod)
    }

    fn name(&self) -> String {
        pod::display_name(&self.desired.pod)
    }

    fn note(&self, container: Option<&str>, severity: Severity, reason: &str, message: &str) {
        self.shared
            .journal
            .note(&self.desired.pod, container, severity, reason, message);
    }

    fn objects(&self) -> Objects {
        self.wanted.objects.clone()
    }

    fn addresses(&self) -> Vec<String> {
        status::pod_addresses(&self.desired.pod, &self.state, &self.shared.node)
    }

    /// Where the pod's ports are reached from the host: a host without an
    /// address of its own still has its loopback.
    fn own_address(&self) -> Option<std::net::IpAddr> {
        let first = self.addresses().first().and_then(|a| a.parse().ok());
        let loopback = std::net::Ipv4Addr::LOCALHOST.into();
        first.or_else(|| pod::host_network(&self.desired.pod).then_some(loopback))
    }

    fn join_group(&mut self) {
        if let Some(group) = self.wanted.group.clone() {
            let member = Member {
                peers: Vec::new(),
                mailbox: self.address.clone(),
            };
            lock(&self.shared.groups)
                .entry(group)
                .or_default()
                .insert(self.uid().to_owned(), member);
        }
        if matches!(self.state.sandbox, Sandbox::Ready { .. }) {
            self.addresses_changed();
        }
        // Ends that were found by the engine alone have no message yet.
        let ends: Vec<(String, Termination)> = self
            .state
            .containers
            .iter()
            .filter_map(|(name, m)| {
                Some((
                    name.clone(),
                    m.exited().filter(|e| e.message.is_none())?.clone(),
                ))
            })
            .collect();
        for (name, mut end) in ends {
            end.message =
                actions::termination_message(&self.shared.paths, &self.desired.pod, &name, &end);
            if let Some(memory) = self.state.containers.get_mut(&name) {
                memory.stage = Stage::Exited(end);
            }
        }
    }

    fn leave_group(&mut self) {
        let Some(group) = &self.wanted.group else {
            return;
        };
        let mut groups = lock(&self.shared.groups);
        if let Some(members) = groups.get_mut(group) {
            members.remove(self.uid());
            for member in members.values() {
                // A full mailbox is read soon, and then the file is written.
                let _ = member.mailbox.try_send(Message::PeersChanged);
            }
            if members.is_empty() {
                groups.remove(group);
            }
        }
    }

    /// Tells the group of this pod's addresses and writes its own file.
    fn addresses_changed(&mut self) {
        if let Some(group) = &self.wanted.group {
            let peers = Peer::of(&self.desired.pod, &self.addresses());
            let uid = self.uid().to_owned();
            let mut groups = lock(&self.shared.groups);
            if let Some(members) = groups.get_mut(group) {
                if let Some(me) = members.get_mut(&uid) {
                    me.peers = peers;
                }
                for (_, member) in members.iter().filter(|(other, _)| **other != uid) {
                    let _ = member.mailbox.try_send(Message::PeersChanged);
                }
            }
        }
        self.write_hosts();
    }
}

/// Locks past a panic of another thread: the maps are whole between calls.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
