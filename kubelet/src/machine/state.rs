//! What a pod worker remembers of its pod.
//!
//! Everything here is plain data: it is written to the pod's record before an
//! action runs and read back by the next writer.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::SystemTime;

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

use super::backoff::Backoff;
use crate::pod::{self, Kind};

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// The pod, validated and with its defaults.
    pub pod: Pod,
    /// Set once the pod is to end.
    pub deletion: Option<Deletion>,
}

/// A request to end a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// When it was asked.
    pub at: SystemTime,
    /// The grace period; `None` is the pod's own, 0 kills at once.
    pub grace_seconds: Option<u64>,
    /// The pod stays known, with its status and logs, until it is deleted
    /// without this.
    #[serde(default)]
    pub keep: bool,
}

/// Memory of one pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodState {
    /// When this node took the pod (`status.startTime`).
    pub accepted_at: SystemTime,
    /// Its volumes and files.
    pub volumes: Volumes,
    /// Its sandbox.
    pub sandbox: Sandbox,
    /// Sandboxes made so far.
    pub sandboxes: u32,
    /// Its containers by name.
    pub containers: BTreeMap<String, ContainerMemory>,
    /// Set once the containers are to end.
    pub ending: Option<Ending>,
    /// Nothing of it runs or will run; sandbox and volumes are gone.
    pub finished: bool,
    /// Set while its containers stop because they are to run again.
    #[serde(default)]
    pub restarting: Option<Restarting>,
}

/// A pod's restart that somebody has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarting {
    /// When; the grace period counts from here.
    pub since: SystemTime,
    /// The grace period; `None` is the pod's own, 0 kills at once.
    pub grace_seconds: Option<u64>,
}

impl PodState {
    /// The memory of a pod that was just taken.
    #[must_use]
    pub fn new(pod: &Pod, now: SystemTime) -> Self {
        Self {
            accepted_at: now,
            volumes: Volumes::Absent,
            sandbox: Sandbox::Absent,
            sandboxes: 0,
            containers: pod::containers(pod)
                .map(|(_, c)| (c.name.clone(), ContainerMemory::default()))
                .collect(),
            ending: None,
            finished: false,
            restarting: None,
        }
    }

    /// The memory of one container (an unknown name reads as never started).
    #[must_use]
    pub fn container(&self, name: &str) -> ContainerMemory {
        self.containers.get(name).cloned().unwrap_or_default()
    }
}

/// How the volumes stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Volumes {
    /// Not made.
    Absent,
    /// Being made.
    Making,
    /// Made.
    Ready,
    /// Not to be made now.
    Failed(Trouble),
    /// Being removed.
    Removing,
}

/// How the sandbox stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sandbox {
    /// There is none.
    Absent,
    /// Being made.
    Making,
    /// Made.
    Ready {
        /// Its addresses.
        addresses: Vec<IpAddr>,
    },
    /// Not to be made now.
    Failed(Trouble),
    /// Its pause process or network is gone.
    Lost {
        /// When that was noticed.
        since: SystemTime,
    },
    /// Being removed.
    Removing,
    /// Its removal failed.
    Stuck(Trouble),
}

/// Something that did not work and is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// The reason, as statuses and events name it.
    pub reason: String,
    /// What went wrong.
    pub message: String,
    /// Failures in a row.
    pub failures: u32,
    /// When it is tried again.
    pub retry_at: SystemTime,
}

/// Why all containers end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// Since when; grace periods count from here.
    pub since: SystemTime,
    /// Why.
    pub cause: EndingCause,
}

/// See [`Ending`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndingCause {
    /// Somebody asked.
    Deleted,
    /// `activeDeadlineSeconds` are over.
    Deadline,
    /// The main containers are done, or an init container failed for good.
    Completed,
}

/// Memory of one container.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ContainerMemory {
    /// How it stands.
    pub stage: Stage,
    /// Attempts made so far; the present or latest one is `attempts - 1`.
    pub attempts: u32,
    /// Whether it was started in the present sandbox.
    pub fresh: bool,
    /// How the attempt before the present one ended.
    pub last: Option<Termination>,
    /// Delays of its restarts.
    pub backoff: Backoff,
    /// Id of the image that the latest attempt runs.
    pub image_id: String,
    /// Somebody wants it to run again, whatever its policy says; until its
    /// program runs.
    #[serde(default)]
    pub again: bool,
}

impl ContainerMemory {
    /// The latest attempt that was made.
    #[must_use]
    pub fn attempt(&self) -> Option<u32> {
        self.attempts.checked_sub(1)
    }

    /// `status.restartCount`.
    #[must_use]
    pub fn restart_count(&self) -> u32 {
        self.attempts.saturating_sub(1)
    }

    /// What runs, if it runs.
    #[must_use]
    pub fn running(&self) -> Option<&Running> {
        match &self.stage {
            Stage::Running(running) => Some(running),
            _ => None,
        }
    }

    /// How the latest attempt ended, if it has ended.
    #[must_use]
    pub fn exited(&self) -> Option<&Termination> {
        match &self.stage {
            Stage::Exited(end) => Some(end),
            _ => None,
        }
    }

    /// Whether something of it lives or is about to.
    #[must_use]
    pub fn active(&self) -> bool {
        matches!(self.stage, Stage::Starting { .. } | Stage::Running(_))
    }
}

/// How a container stands.
///
/// ```text
/// Idle ──► Starting ──► Running ──► Exited ──► Starting …
///             │  ▲                    ▲
///             ▼  │                    │
///           Blocked     Starting ─────┘ (its program did not execute)
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub enum Stage {
    /// Never started.
    #[default]
    Idle,
    /// Its image or configuration is not there; tried again.
    Blocked(Trouble),
    /// Being started.
    Starting {
        /// It ended before the news of its start arrived.
        ended: Option<Termination>,
    },
    /// Its program runs.
    Running(Running),
    /// Its program ended.
    Exited(Termination),
}

/// A running container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Since when.
    pub started_at: SystemTime,
    /// Its postStart hook.
    pub post_start: Hook,
    /// Its startup probe has succeeded, or it has none.
    pub startup: bool,
    /// Its readiness probe succeeds, or it has none.
    pub ready: bool,
    /// Set once it is to stop.
    pub stopping: Option<Stopping>,
}

impl Running {
    /// `status.started`: the postStart hook is done and the startup probe
    /// has succeeded.
    #[must_use]
    pub fn started(&self) -> bool {
        self.startup && self.post_start == Hook::Done
    }
}

/// A lifecycle hook; a container without one counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hook {
    /// To be run.
    Due,
    /// Runs.
    Working,
    /// Has ended, or there is none.
    Done,
}

/// A container that is being stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopping {
    /// When that began.
    pub since: SystemTime,
    /// From then to SIGKILL.
    pub grace_seconds: u64,
    /// Skips hook and signal and kills at once.
    pub force: bool,
    /// Why, for a status: a failed postStart hook or probe.
    pub trouble: Option<(String, String)>,
    /// Its preStop hook.
    pub pre_stop: Hook,
    /// When its stop signal was sent.
    pub signalled_at: Option<SystemTime>,
    /// When SIGKILL was last sent.
    pub killed_at: Option<SystemTime>,
}

/// How a program ended, as statuses show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Termination {
    /// The attempt that ended.
    pub attempt: u32,
    /// 0 to 255.
    pub exit_code: i32,
    /// The signal, where one ended it.
    pub signal: Option<i32>,
    /// Completed, Error, OOMKilled, StartError, ContainerStatusUnknown.
    pub reason: String,
    /// The termination message.
    pub message: Option<String>,
    /// When its program was started, where it was.
    pub started_at: Option<SystemTime>,
    /// When it ended.
    pub finished_at: SystemTime,
}

impl Termination {
    /// An end that the kernel told. The exit code of an OOM-killed program is
    /// 137, from SIGKILL.
    #[must_use]
    pub fn of_exit(attempt: u32, exit: &rkube_engine::api::Exit) -> Self {
        let reason = if exit.oom_killed {
            "OOMKilled"
        } else if exit.code == 0 {
            "Completed"
        } else {
            "Error"
        };
        Self {
            attempt,
            exit_code: exit.code,
            signal: exit.signal,
            reason: reason.to_owned(),
            message: None,
            started_at: None,
            finished_at: exit.finished_at,
        }
    }

    /// An end that nobody saw.
    #[must_use]
    pub fn unknown(attempt: u32, finished_at: SystemTime) -> Self {
        Self {
            attempt,
            exit_code: 137,
            signal: None,
            reason: "ContainerStatusUnknown".to_owned(),
            message: Some("the container is gone and its exit code was not kept".to_owned()),
            started_at: None,
            finished_at,
        }
    }

    /// A program that the kernel did not execute.
    #[must_use]
    pub fn start_error(attempt: u32, message: String, finished_at: SystemTime) -> Self {
        Self {
            attempt,
            exit_code: 128,
            signal: None,
            reason: "StartError".to_owned(),
            message: Some(message),
            started_at: None,
            finished_at,
        }
    }
}

/// What the worker has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make volumes and the pod's files.
    MakeVolumes,
    /// Make the sandbox.
    MakeSandbox,
    /// Remove the sandbox with what is in it.
    RemoveSandbox,
    /// Start attempt `attempt` of a container.
    Start {
        /// The container.
        name: String,
        /// The attempt.
        attempt: u32,
    },
    /// Run a postStart hook.
    PostStart {
        /// The container.
        name: String,
        /// The attempt.
        attempt: u32,
    },
    /// Run a preStop hook for at most `grace_seconds`.
    PreStop {
        /// The container.
        name: String,
        /// The attempt.
        attempt: u32,
        /// How long it may take.
        grace_seconds: u64,
    },
    /// Send the stop signal, or SIGKILL to every process.
    Signal {
        /// The container.
        name: String,
        /// The attempt.
        attempt: u32,
        /// SIGKILL.
        kill: bool,
    },
    /// Remove volumes.
    RemoveVolumes,
}

/// What has happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// Volumes were made, or not.
    VolumesMade(Result<(), Refusal>),
    /// Volumes were removed.
    VolumesRemoved,
    /// The sandbox was made, or not.
    SandboxMade(Result<Vec<IpAddr>, Refusal>),
    /// The sandbox was removed, or not.
    SandboxRemoved(Result<(), Refusal>),
    /// The sandbox is lost.
    SandboxLost,
    /// A container runs.
    Started {
        /// The container.
        name: String,
        /// The attempt.
        attempt: u32,
        /// Since when.
        started_at: SystemTime,
        /// Id of its image.
        image_id: String,
    },
    /// A container was not started: nothing of it was made.
    Blocked {
        /// The container.
        name: String,
        /// Why.
        refusal: Refusal,
    },
    /// A container was made and its program did not execute.
    StartFailed {
        /// The container.
        name: String,
        /// The attempt.
        attempt: u32,
        /// What went wrong.
        message: String,
    },
    /// A container's program ended.
    Exited {
        /// The container.
        name: String,
        /// How, the attempt included.
        end: Termination,
    },
    /// A postStart hook has ended; an error stops the container.
    PostStarted {
        /// The container.
        name: String,
        /// The attempt.
        attempt: u32,
        /// How it went.
        result: Result<(), String>,
    },
    /// A preStop hook has ended, however.
    PreStopped {
        /// The container.
        name: String,
        /// The attempt.
        attempt: u32,
    },
    /// A probe's verdict changed.
    Probed {
        /// The container.
        name: String,
        /// The attempt.
        attempt: u32,
        /// Which probe.
        probe: ProbeKind,
        /// What it says now.
        success: bool,
        /// Its last words.
        message: String,
    },
    /// An image was added: what waits for one need not wait longer.
    ImagesChanged,
    /// What the pod refers to is another: what waits for it looks again.
    ObjectsChanged,
    /// A container is to run another image.
    ContainerChanged {
        /// The container.
        name: String,
    },
    /// Volumes of files were written anew, or not all of them.
    VolumesRefreshed(Result<(), String>),
    /// Somebody wants the pod's containers to run again.
    RestartPod {
        /// The grace period; the pod's own if none, 0 kills at once.
        grace_seconds: Option<u64>,
    },
    /// Somebody wants one container to run again.
    RestartContainer {
        /// The container.
        name: String,
        /// As for the pod.
        grace_seconds: Option<u64>,
    },
}

/// Why something was not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The reason, as statuses and events name it.
    pub reason: String,
    /// What went wrong.
    pub message: String,
}

/// The three probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProbeKind {
    /// Holds the others back until it succeeds; its failure restarts.
    Startup,
    /// Its failure restarts the container.
    Liveness,
    /// Decides whether the container is ready.
    Readiness,
}

impl std::fmt::Display for ProbeKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        })
    }
}

/// What a step yields.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    /// To be done now, all of them at once.
    pub actions: Vec<Action>,
    /// When to step again though nothing has happened.
    pub wake_at: Option<SystemTime>,
    /// The pod is over and was deleted: forget it.
    pub forget: bool,
}

impl Step {
    pub(super) fn wake(&mut self, at: SystemTime) {
        self.wake_at = Some(self.wake_at.map_or(at, |w| w.min(at)));
    }

    pub(super) fn act(&mut self, action: Action) {
        self.actions.push(action);
    }
}

/// Whether init containers, of which a pod has some, are all done and its
/// main containers may run.
#[must_use]
pub fn initialized(pod: &Pod, state: &PodState) -> bool {
    let begun = pod::containers(pod).any(|(kind, c)| {
        kind == Kind::Main && state.containers.get(&c.name).is_some_and(|m| m.fresh)
    });
    begun
        || pod::containers(pod).all(|(kind, c)| {
            let memory = state.container(&c.name);
            match kind {
                Kind::Main => true,
                Kind::Init => memory.fresh && memory.exited().is_some_and(|e| e.exit_code == 0),
                Kind::Sidecar => memory.running().is_some_and(Running::started),
            }
        })
}
