//! Performs what the machine asks for.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use rkube_engine::api::{ContainerId, ContainerRuntime};
use rkube_image::pull::Cancel;

use super::files::prepare;
use super::{Shared, Worker, lock};
use crate::downward::Facts;
use crate::env;
use crate::events::Severity;
use crate::images;
use crate::logs;
use crate::machine::backoff::retry_delay;
use crate::machine::{Action, Refusal, Report, Termination};
use crate::node::Paths;
use crate::objects::Objects;
use crate::pod;
use crate::probe::run::{self, Place};
use crate::record::Source;
use crate::translate::{container as translate, qos, sandbox};
use crate::volumes::{self, remove};

/// The longest termination message (node reference 1.4).
const MAX_TERMINATION_MESSAGE_BYTES: usize = 4096;
/// Lines of the log that stand in for a missing message.
const FALLBACK_LOG_LINES: u64 = 80;
/// Bytes of the log that stand in for a missing message.
const FALLBACK_LOG_BYTES: usize = 2048;
impl<R: ContainerRuntime> Worker<R> {
    pub(super) fn perform(&mut self, action: Action) {
        match action {
            Action::MakeVolumes => self.make_volumes(),
            Action::RemoveVolumes => self.remove_volumes(),
            Action::MakeSandbox => self.make_sandbox(),
            Action::RemoveSandbox => self.remove_sandbox(),
            Action::Start { name, attempt } => self.start(name, attempt),
            Action::PostStart { name, attempt } => self.post_start(name, attempt),
            Action::PreStop {
                name,
                attempt,
                grace_seconds,
            } => {
                self.announce_stop(&name, attempt);
                self.pre_stop(name, attempt, Duration::from_secs(grace_seconds));
            }
            Action::Signal {
                name,
                attempt,
                kill,
            } => {
                self.announce_stop(&name, attempt);
                self.signal(name, attempt, kill);
            }
        }
    }

    /// Runs `work` on a blocking thread; its report is folded in.
    pub(super) fn block(&mut self, work: impl FnOnce(&Shared<R>, &Pod) -> Report + Send + 'static) {
        let (shared, pod) = (Arc::clone(&self.shared), self.desired.pod.clone());
        self.tasks.spawn_blocking(move || work(&shared, &pod));
    }

    fn make_volumes(&mut self) {
        let (objects, addresses) = (self.objects(), self.addresses());
        let hosts = self.hosts_text();
        let mut node = self.shared.node.clone();
        if self.wanted.source == Source::File {
            // The cluster may go, and the pod stays.
            node.cluster_dns.clear();
        }
        self.block(move |shared, pod| {
            let facts = Facts {
                pod,
                node: &node,
                addresses: &addresses,
            };
            Report::VolumesMade(prepare(shared, facts, &objects, &hosts).map_err(|message| {
                Refusal {
                    reason: "FailedMount".to_owned(),
                    message,
                }
            }))
        });
    }

    fn remove_volumes(&mut self) {
        let (shared, pod) = (Arc::clone(&self.shared), self.desired.pod.clone());
        self.tasks.spawn(async move {
            let dir = shared.paths.pod(pod::uid(&pod)).join("volumes");
            let mut failures = 0u32;
            loop {
                let path = dir.clone();
                let result = rkube_task::spawn_blocking(move || remove::path(&path)).await;
                let Ok(Err(error)) = result else {
                    return Report::VolumesRemoved;
                };
                failures = failures.saturating_add(1);
                let message = format!("remove {}: {error}", dir.display());
                shared
                    .journal
                    .note(&pod, None, Severity::Warning, "FailedUnmount", &message);
                let delay = retry_delay(failures, Duration::from_secs(1), Duration::from_secs(10));
                tokio::time::sleep(delay).await;
            }
        });
    }

    fn make_sandbox(&mut self) {
        self.block(|shared, pod| {
            let refused = |message: String| {
                Report::SandboxMade(Err(Refusal {
                    reason: "FailedCreatePodSandBox".to_owned(),
                    message,
                }))
            };
            let burstable = {
                let mut all = lock(&shared.burstable);
                if qos::class(pod) == qos::QosClass::Burstable {
                    let request = qos::pod_amounts(pod).cpu_request.unwrap_or(0);
                    all.insert(pod::uid(pod).to_owned(), request);
                }
                all.values().fold(0u64, |sum, v| sum.saturating_add(*v))
            };
            let parents = qos::tier_resources(burstable, shared.node.cpu_millis);
            let config = match sandbox::sandbox(pod, &shared.node, &shared.paths, parents) {
                Ok(config) => config,
                Err(e) => return refused(e.to_string()),
            };
            match shared.runtime.run_sandbox(&config) {
                Ok(status) => Report::SandboxMade(Ok(status.addresses)),
                Err(e) => refused(e.to_string()),
            }
        });
    }

    fn remove_sandbox(&mut self) {
        self.block(|shared, pod| {
            let result = shared.runtime.remove_sandbox(&pod::uid(pod).to_owned());
            Report::SandboxRemoved(result.map_err(|e| Refusal {
                reason: "FailedKillPod".to_owned(),
                message: e.to_string(),
            }))
        });
    }

    fn start(&mut self, name: String, attempt: u32) {
        let (objects, addresses) = (self.objects(), self.addresses());
        let source = self.wanted.source;
        let (shared, pod) = (Arc::clone(&self.shared), self.desired.pod.clone());
        let cancel = Cancel::default();
        self.pulls.insert(name.clone(), cancel.clone());
        self.tasks.spawn(async move {
            let ensured = images::ensure(&shared, &pod, &objects, &name, cancel).await;
            let image_id = match ensured {
                Ok(id) => id,
                Err(refusal) => return Report::Blocked { name, refusal },
            };
            let who = name.clone();
            let work = move || {
                let services = match source {
                    Source::File => Vec::new(),
                    Source::Api => shared.surroundings.service_variables(&pod),
                };
                let given = Given {
                    objects: &objects,
                    addresses: &addresses,
                    services: &services,
                };
                start(&shared, &pod, given, name, attempt, image_id)
            };
            // A panic there is this task's too.
            rkube_task::spawn_blocking(work)
                .await
                .unwrap_or_else(|e| Report::StartFailed {
                    name: who,
                    attempt,
                    message: format!("start the container: {e}"),
                })
        });
    }

    fn place(&self, name: &str, attempt: u32) -> Option<Place<R>> {
        let (_, container) = pod::container(&self.desired.pod, name)?;
        Some(Place {
            runtime: Arc::clone(&self.shared.runtime),
            id: ContainerId {
                sandbox: self.uid().to_owned(),
                name: name.to_owned(),
                attempt,
            },
            container: container.clone(),
            address: self.own_address(),
        })
    }

    fn post_start(&mut self, name: String, attempt: u32) {
        let place = self.place(&name, attempt);
        self.tasks.spawn(async move {
            let hook = place
                .as_ref()
                .and_then(|p| p.container.lifecycle.as_ref()?.post_start.clone());
            let result = match (&place, &hook) {
                (Some(place), Some(hook)) => run::hook(place, hook).await,
                _ => Ok(()),
            };
            Report::PostStarted {
                name,
                attempt,
                result,
            }
        });
    }

    fn pre_stop(&mut self, name: String, attempt: u32, limit: Duration) {
        let place = self.place(&name, attempt);
        let (shared, pod) = (Arc::clone(&self.shared), self.desired.pod.clone());
        self.tasks.spawn(async move {
            let hook = place
                .as_ref()
                .and_then(|p| p.container.lifecycle.as_ref()?.pre_stop.clone());
            if let (Some(place), Some(hook)) = (&place, &hook) {
                let message = match tokio::time::timeout(limit, run::hook(place, hook)).await {
                    Ok(Ok(())) => None,
                    Ok(Err(message)) => Some(message),
                    Err(_) => Some(format!(
                        "still ran after the grace period of {} s",
                        limit.as_secs()
                    )),
                };
                if let Some(message) = message {
                    shared.journal.note(
                        &pod,
                        Some(&name),
                        Severity::Warning,
                        "FailedPreStopHook",
                        &message,
                    );
                }
            }
            Report::PreStopped { name, attempt }
        });
    }

    /// A signal has no report: what comes of it is told by the engine.
    fn signal(&mut self, name: String, attempt: u32, kill: bool) {
        let (shared, pod) = (Arc::clone(&self.shared), self.desired.pod.clone());
        let id = ContainerId {
            sandbox: pod::uid(&pod).to_owned(),
            name,
            attempt,
        };
        rkube_task::spawn_blocking(move || {
            /// SIGKILL on every architecture (signal(7)).
            const SIGKILL: i32 = 9;
            let result = if kill {
                shared.runtime.signal(&id, SIGKILL, true)
            } else {
                shared
                    .runtime
                    .stop_signal(&id)
                    .and_then(|signal| shared.runtime.signal(&id, signal, false))
            };
            if let Err(error) = result {
                shared.journal.note(
                    &pod,
                    Some(&id.name),
                    Severity::Warning,
                    "FailedKillPod",
                    &error.to_string(),
                );
            }
        });
    }

    /// A container has ended: its message is read before that is told.
    pub(super) fn ended(&mut self, name: String, mut end: Termination) {
        self.block(move |shared, pod| {
            end.message = termination_message(&shared.paths, pod, &name, &end);
            Report::Exited { name, end }
        });
    }
}

/// An error with what caused it, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// What an attempt is made with.
#[derive(Clone, Copy)]
struct Given<'a> {
    objects: &'a Objects,
    addresses: &'a [String],
    services: &'a [(String, String)],
}

/// Prepares and starts one attempt.
fn start<R: ContainerRuntime>(
    shared: &Shared<R>,
    pod: &Pod,
    given: Given<'_>,
    name: String,
    attempt: u32,
    image_id: String,
) -> Report {
    let blocked = |reason: &str, message: String| Report::Blocked {
        name: name.clone(),
        refusal: Refusal {
            reason: reason.to_owned(),
            message,
        },
    };
    let note = |severity, reason: &str, message: &str| {
        shared
            .journal
            .note(pod, Some(&name), severity, reason, message);
    };
    let Some((_, container)) = pod::container(pod, &name) else {
        return blocked(
            "CreateContainerConfigError",
            format!("there is no container {name:?}"),
        );
    };
    let facts = Facts {
        pod,
        node: &shared.node,
        addresses: given.addresses,
    };
    let environment = match env::environment(facts, container, given.objects, given.services) {
        Ok(environment) => environment,
        Err(e) => return blocked("CreateContainerConfigError", e.to_string()),
    };
    if !environment.skipped.is_empty() {
        let text = format!(
            "left out, since they are no variable names: {}",
            environment.skipped.join(", ")
        );
        note(Severity::Warning, "InvalidEnvironmentVariableNames", &text);
    }
    let log = termination_log(&shared.paths, pod, &name, attempt);
    if let Err(e) = make_termination_log(&log) {
        return blocked(
            "CreateContainerConfigError",
            format!("create {}: {e}", log.display()),
        );
    }
    let volumes = match volumes::locate(pod, &shared.paths) {
        Ok(volumes) => volumes,
        Err(e) => return blocked("CreateContainerConfigError", e.to_string()),
    };
    let prepared = translate::Prepared {
        attempt,
        environment: &environment,
        volumes: &volumes,
        termination_log: &log,
    };
    let config = match translate::container(pod, container, prepared, &shared.node, &shared.paths) {
        Ok(config) => config,
        Err(e) => return blocked("CreateContainerConfigError", e.to_string()),
    };
    let result = shared.runtime.start_container(&config);
    // Of the attempts that have ended only the last one is kept.
    if let Some(old) = attempt.checked_sub(2) {
        forget_attempt(shared, pod, &name, old);
    }
    match result {
        Ok(status) => {
            note(
                Severity::Normal,
                "Created",
                &format!("Created container: {name}"),
            );
            note(
                Severity::Normal,
                "Started",
                &format!("Started container {name}"),
            );
            let id = if status.image_id.is_empty() {
                image_id
            } else {
                status.image_id
            };
            let started_at = status.started_at.unwrap_or_else(|| shared.clock.now());
            Report::Started {
                name,
                attempt,
                started_at,
                image_id: id,
            }
        }
        Err(e) => {
            let _ = shared.runtime.remove_container(&config.id);
            if R::refuses(&e) {
                return blocked("CreateContainerConfigError", e.to_string());
            }
            if R::lost(&e) {
                return blocked("CreateContainerError", e.to_string());
            }
            Report::StartFailed {
                name,
                attempt,
                message: e.to_string(),
            }
        }
    }
}

/// Removes what is left of an old attempt but its logs, of which the last
/// one is kept too.
fn forget_attempt<R: ContainerRuntime>(shared: &Shared<R>, pod: &Pod, name: &str, attempt: u32) {
    let id = ContainerId {
        sandbox: pod::uid(pod).to_owned(),
        name: name.to_owned(),
        attempt,
    };
    if let Err(error) = shared.runtime.remove_container(&id) {
        tracing::warn!(pod = %pod::display_name(pod), container = %id, %error, "an old attempt is not removed");
    }
    let logs = shared.paths.pod_logs(pod).join(name);
    let mut files = logs::files::of_attempt(&logs, attempt).unwrap_or_default();
    files.push(termination_log(&shared.paths, pod, name, attempt));
    for file in files {
        // Removing it again is the next attempt's matter.
        let _ = std::fs::remove_file(file);
    }
}

fn termination_log(paths: &Paths, pod: &Pod, name: &str, attempt: u32) -> PathBuf {
    paths
        .pod(pod::uid(pod))
        .join("containers")
        .join(name)
        .join(attempt.to_string())
}

/// An empty file that any user of the container may write to.
fn make_termination_log(path: &Path) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o666))
}

/// The message that a container left behind: its file, or with
/// `FallbackToLogsOnError` the end of its log if it failed and wrote none.
pub(super) fn termination_message(
    paths: &Paths,
    pod: &Pod,
    name: &str,
    end: &Termination,
) -> Option<String> {
    let (_, container) = pod::container(pod, name)?;
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(termination_log(paths, pod, name, end.attempt)) {
        let limit = u64::try_from(MAX_TERMINATION_MESSAGE_BYTES).unwrap_or(u64::MAX);
        // An unreadable file says nothing.
        let _ = file.take(limit).read_to_end(&mut bytes);
    }
    let fallback = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    if bytes.is_empty() && fallback && end.exit_code != 0 {
        bytes = log_tail(&paths.pod_logs(pod).join(name), end.attempt);
    }
    if bytes.is_empty() {
        return end.message.clone();
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last lines of an attempt's log, cut at the front.
fn log_tail(dir: &Path, attempt: u32) -> Vec<u8> {
    let mut text = Vec::new();
    let options = logs::Options {
        tail: Some(FALLBACK_LOG_LINES),
        ..logs::Options::default()
    };
    // A log that cannot be read says nothing.
    let _ = logs::read::read_attempt(dir, attempt, &options, |entry| {
        entry.write_to(&mut text, false).is_ok()
    });
    let cut = text.len().saturating_sub(FALLBACK_LOG_BYTES);
    text.split_off(cut)
}
