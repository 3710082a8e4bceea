//! What becomes of pods, told line by line on standard error.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};

use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod};
use rkube_kubelet::pod::{self, Kind};

use crate::{output, view};

/// Remembers what was told.
#[derive(Debug)]
pub(super) struct Progress {
    quiet: bool,
    dim: bool,
    pods: BTreeMap<String, Pod>,
    warned: BTreeSet<String>,
}

impl Progress {
    /// Tells nothing if `quiet`.
    pub(super) fn new(quiet: bool) -> Self {
        let dim = std::io::stderr().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Self {
            quiet,
            dim,
            pods: BTreeMap::new(),
            warned: BTreeSet::new(),
        }
    }

    /// Takes a pod's state in and tells what is new.
    pub(super) fn pod(&mut self, pod: &Pod) {
        let before = self.pods.insert(pod::uid(pod).to_owned(), pod.clone());
        for line in steps(before.as_ref(), pod) {
            self.say(&line);
        }
    }

    /// Tells an event that somebody should look at, or where an image came
    /// from, once.
    pub(super) fn event(&mut self, event: &Event) {
        let reason = event.reason.as_deref().unwrap_or_default();
        let warning = event.type_.as_deref() == Some("Warning");
        if warning || reason == "Pulled" {
            let name = event.involved_object.name.as_deref().unwrap_or_default();
            let message = event.message.as_deref().unwrap_or_default();
            let line = if warning {
                format!("{name}: {reason}: {message}")
            } else {
                format!("{name}: {message}")
            };
            if self.warned.insert(line.clone()) {
                self.say(&line);
            }
        }
    }

    fn say(&self, line: &str) {
        if self.quiet {
            return;
        }
        let line = output::harmless(line);
        let mut err = std::io::stderr().lock();
        // Nobody is left to tell when that is closed.
        let _ = if self.dim {
            writeln!(err, "\x1b[2m{line}\x1b[0m")
        } else {
            writeln!(err, "{line}")
        };
    }
}

/// What has happened between two states of a pod.
fn steps(before: Option<&Pod>, now: &Pod) -> Vec<String> {
    let name = pod::name(now);
    let mut out = Vec::new();
    let ips = |pod: &Pod| -> Vec<String> {
        let ips = pod
            .status
            .as_ref()
            .and_then(|s| s.pod_ips.clone())
            .unwrap_or_default();
        ips.into_iter().map(|ip| ip.ip).collect()
    };
    let addresses = ips(now);
    if !addresses.is_empty() && before.is_none_or(|b| ips(b) != addresses) {
        out.push(format!("{name}: sandbox ready, {}", addresses.join(", ")));
    }
    for (kind, status) in view::statuses(now) {
        let old = before.and_then(|b| {
            view::statuses(b)
                .map(|(_, s)| s)
                .find(|s| s.name == status.name)
        });
        if let Some(text) = container_step(old, status) {
            let what = match kind {
                Kind::Init => "init container",
                Kind::Sidecar => "sidecar",
                Kind::Main => "container",
            };
            out.push(format!("{name}: {what} {} {text}", status.name));
        }
    }
    let ending = |p: &Pod| p.metadata.deletion_timestamp.is_some();
    if ending(now) && before.is_some_and(|b| !ending(b)) && !before.is_some_and(view::finished) {
        out.push(format!("{name}: ending"));
    }
    out
}

fn container_step(old: Option<&ContainerStatus>, now: &ContainerStatus) -> Option<String> {
    let state = now.state.as_ref()?;
    let same_run = old.is_some_and(|o| o.restart_count == now.restart_count);
    let old_state = old.and_then(|o| o.state.as_ref()).filter(|_| same_run);
    if state.running.is_some() && old_state.is_none_or(|s| s.running.is_none()) {
        let again = if now.restart_count > 0 {
            format!("again (restart {})", now.restart_count)
        } else {
            String::new()
        };
        return Some(format!("started {again}").trim_end().to_owned());
    }
    if let Some(end) = &state.terminated
        && old_state.is_none_or(|s| s.terminated.is_none())
    {
        let reason = end.reason.clone().unwrap_or_default();
        let message = end
            .message
            .as_deref()
            .map(|m| format!(": {}", m.trim_end()))
            .unwrap_or_default();
        return Some(format!(
            "ended: {reason}, exit code {}{message}",
            end.exit_code
        ));
    }
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        let quiet = ["", "ContainerCreating", "PodInitializing"].contains(&reason);
        let told = old
            .and_then(|o| o.state.as_ref()?.waiting.as_ref())
            .is_some_and(|w| w.reason == waiting.reason);
        if !quiet && !told {
            let message = waiting
                .message
                .as_deref()
                .map(|m| format!(": {m}"))
                .unwrap_or_default();
            return Some(format!("waits: {reason}{message}"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(ip: Option<&str>, restarts: i32, state: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "a"}]},
            "status": {"podIPs": ip.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>(), "containerStatuses": [
                {"name": "a", "ready": false, "restartCount": restarts, "image": "", "imageID": "", "state": state}]},
        }))
        .unwrap()
    }

    #[test]
    fn each_step_is_told_once() {
        let none = pod(None, 0, json!({"waiting": {"reason": "ContainerCreating"}}));
        let up = pod(Some("10.0.0.2"), 0, json!({"running": {}}));
        let down = pod(
            Some("10.0.0.2"),
            0,
            json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}),
        );
        let wait = pod(
            Some("10.0.0.2"),
            0,
            json!({"waiting": {"reason": "CrashLoopBackOff", "message": "10 s"}}),
        );
        let again = pod(Some("10.0.0.2"), 1, json!({"running": {}}));
        assert!(steps(None, &none).is_empty());
        assert_eq!(
            steps(Some(&none), &up),
            ["p: sandbox ready, 10.0.0.2", "p: container a started"]
        );
        assert!(steps(Some(&up), &up).is_empty());
        assert_eq!(
            steps(Some(&up), &down),
            ["p: container a ended: OOMKilled, exit code 137"]
        );
        assert_eq!(
            steps(Some(&down), &wait),
            ["p: container a waits: CrashLoopBackOff: 10 s"]
        );
        assert!(steps(Some(&wait), &wait).is_empty());
        assert_eq!(
            steps(Some(&wait), &again),
            ["p: container a started again (restart 1)"]
        );
        // A run that was too short to be seen running.
        assert_eq!(
            steps(
                Some(&up),
                &pod(
                    Some("10.0.0.2"),
                    1,
                    json!({"terminated": {"exitCode": 1, "reason": "Error"}})
                )
            ),
            ["p: container a ended: Error, exit code 1"]
        );
    }
}
