//! Events out of what a worker sees (node reference 1.7).

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::PodStatus;
use rkube_engine::api::ContainerRuntime;

use super::Worker;
use crate::events::Severity;
use crate::machine::{EndingCause, Report, Sandbox};
use crate::pod;

/// What was announced already.
#[derive(Debug, Default)]
pub(super) struct Announced {
    killing: BTreeSet<(String, u32)>,
    deadline: bool,
}

impl<R: ContainerRuntime> Worker<R> {
    pub(super) fn announce_report(&self, report: &Report) {
        let warn = |container: Option<&str>, reason: &str, message: &str| {
            self.note(container, Severity::Warning, reason, message);
        };
        match report {
            Report::VolumesMade(Err(refusal))
            | Report::SandboxMade(Err(refusal))
            | Report::SandboxRemoved(Err(refusal)) => warn(None, &refusal.reason, &refusal.message),
            Report::Blocked { name, refusal } => {
                let message = &refusal.message;
                let why = match refusal.reason.as_str() {
                    "ErrImageNeverPull" => Some(("ErrImageNeverPull", message.clone())),
                    "ImageInspectError" | "InvalidImageName" => {
                        Some(("InspectFailed", message.clone()))
                    }
                    "ErrImagePull" => {
                        let image = self.image_of(name);
                        Some((
                            "Failed",
                            format!("Failed to pull image {image:?}: {message}"),
                        ))
                    }
                    _ => None,
                };
                // The image's own event, and what it means for the container.
                if let Some((reason, text)) = why {
                    warn(Some(name), reason, &text);
                    warn(Some(name), "Failed", &format!("Error: {}", refusal.reason));
                } else {
                    warn(Some(name), "Failed", message);
                }
            }
            Report::VolumesRefreshed(Err(message)) => warn(None, "FailedMount", message),
            Report::StartFailed { name, message, .. } => warn(Some(name), "Failed", message),
            Report::PostStarted {
                name,
                result: Err(message),
                ..
            } => {
                warn(Some(name), "FailedPostStartHook", message);
            }
            _ => {}
        }
    }

    fn image_of(&self, name: &str) -> &str {
        let found = pod::container(&self.desired.pod, name);
        found
            .and_then(|(_, c)| c.image.as_deref())
            .unwrap_or_default()
    }

    /// Tells once that an attempt is being stopped.
    pub(super) fn announce_stop(&mut self, name: &str, attempt: u32) {
        if !self.announced.killing.insert((name.to_owned(), attempt)) {
            return;
        }
        let trouble = self
            .state
            .containers
            .get(name)
            .and_then(|m| m.running())
            .and_then(|r| r.stopping.as_ref().and_then(|s| s.trouble.clone()));
        let message = match (&trouble, self.state.ending.map(|e| e.cause)) {
            (Some((reason, _)), _) if reason == "LivenessProbeFailed" => {
                format!("Container {name} failed liveness probe, will be restarted")
            }
            (Some((reason, _)), _) if reason == "StartupProbeFailed" => {
                format!("Container {name} failed startup probe, will be restarted")
            }
            (Some((_, message)), _) => format!("Container {name} will be restarted: {message}"),
            // Why the image's change stops it was told with the change.
            (None, None) if matches!(self.state.sandbox, Sandbox::Ready { .. }) => return,
            (None, Some(EndingCause::Deleted | EndingCause::Deadline)) => {
                format!("Stopping container {name}")
            }
            (None, Some(EndingCause::Completed)) => {
                format!("Stopping container {name}: the pod's main containers have ended")
            }
            (None, None) => format!("Stopping container {name}: the pod's sandbox is lost"),
        };
        self.note(Some(name), Severity::Normal, "Killing", &message);
    }

    /// Tells of waits that have begun and of the deadline.
    pub(super) fn announce_status(&mut self, status: &PodStatus) {
        if status.reason.as_deref() == Some("DeadlineExceeded") && !self.announced.deadline {
            self.announced.deadline = true;
            let message = status.message.clone().unwrap_or_default();
            self.note(None, Severity::Normal, "DeadlineExceeded", &message);
        }
        for (_, container) in pod::containers(&self.desired.pod) {
            let now = waiting(Some(status), &container.name);
            let before = waiting(self.status.as_ref(), &container.name);
            let Some((reason, _)) = now.clone() else {
                continue;
            };
            let begins = before.is_none_or(|b| Some(b) != now);
            if !begins {
                continue;
            }
            let (severity, text) = match reason.as_str() {
                "CrashLoopBackOff" => {
                    let pod = &self.desired.pod;
                    let text = format!(
                        "Back-off restarting failed container {} in pod {}_{}({})",
                        container.name,
                        pod::name(pod),
                        pod::namespace(pod),
                        pod::uid(pod)
                    );
                    (Severity::Warning, text)
                }
                "ImagePullBackOff" => {
                    let text = "Error: ImagePullBackOff";
                    self.note(Some(&container.name), Severity::Warning, "Failed", text);
                    let image = container.image.as_deref().unwrap_or_default();
                    (
                        Severity::Normal,
                        format!("Back-off pulling image {image:?}"),
                    )
                }
                _ => continue,
            };
            self.note(Some(&container.name), severity, "BackOff", &text);
        }
    }
}

fn waiting(status: Option<&PodStatus>, name: &str) -> Option<(String, String)> {
    let status = status?;
    let lists = [&status.init_container_statuses, &status.container_statuses];
    let found = lists
        .into_iter()
        .flatten()
        .flatten()
        .find(|c| c.name == name)?;
    let waiting = found.state.as_ref()?.waiting.as_ref()?;
    Some((
        waiting.reason.clone()?,
        waiting.message.clone().unwrap_or_default(),
    ))
}
