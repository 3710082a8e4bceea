//! The columns of pods, and the word that stands under STATUS.

use serde_json::Value;

use super::{AGE, Column, NAME, age, at, int, items, str_at, text, wide};
use crate::pod::resources::is_sidecar;
use crate::time::{Time, human_duration};

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    text("Ready"),
    text("Status"),
    text("Restarts"),
    AGE,
    wide("IP"),
    wide("Node"),
    wide("Nominated Node"),
    wide("Readiness Gates"),
];

/// What the containers of a pod amount to.
#[derive(Debug, Default)]
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Time>,
}

impl Summary {
    fn restarted(&mut self, status: &Value) {
        self.restarts += int(status, "/restartCount");
        let ended = Time::parse(str_at(status, "/lastState/terminated/finishedAt"));
        self.last_restart = self.last_restart.max(ended);
    }
}

/// A terminated container's reason, else its signal or exit code.
fn why_ended(status: &Value) -> String {
    match str_at(status, "/state/terminated/reason") {
        "" => match int(status, "/state/terminated/signal") {
            0 => format!("ExitCode:{}", int(status, "/state/terminated/exitCode")),
            signal => format!("Signal:{signal}"),
        },
        reason => reason.to_owned(),
    }
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    items(pod, "/status/conditions").find(|c| str_at(c, "/type") == kind)
}

fn holds(pod: &Value, kind: &str) -> bool {
    condition(pod, kind).is_some_and(|c| str_at(c, "/status") == "True")
}

fn summary(pod: &Value) -> Summary {
    let phase = str_at(pod, "/status/phase");
    let status_reason = str_at(pod, "/status/reason");
    let mut all = Summary {
        reason: if status_reason.is_empty() {
            phase
        } else {
            status_reason
        }
        .to_owned(),
        total: items(pod, "/spec/containers").count(),
        ..Summary::default()
    };
    if condition(pod, "PodScheduled").is_some_and(|c| str_at(c, "/reason") == "SchedulingGated") {
        all.reason = "SchedulingGated".into();
    }
    all.total += items(pod, "/spec/initContainers")
        .filter(|c| is_sidecar(c))
        .count();
    // Restarts of sidecars go on counting after the init phase.
    let mut sidecars = Summary::default();
    let initializing = init_phase(pod, &mut all, &mut sidecars);
    if !initializing || holds(pod, "Initialized") {
        all.restarts = sidecars.restarts;
        all.last_restart = sidecars.last_restart;
        main_phase(pod, &mut all);
    }
    let deleted = at(pod, "/metadata/deletionTimestamp").is_string();
    if deleted && status_reason == "NodeLost" {
        all.reason = "Unknown".into();
    } else if deleted && !matches!(phase, "Succeeded" | "Failed") {
        all.reason = "Terminating".into();
    }
    all
}

/// Looks at init containers up to the first that is not done; `true` if there
/// is one.
fn init_phase(pod: &Value, all: &mut Summary, sidecars: &mut Summary) -> bool {
    for (i, status) in items(pod, "/status/initContainerStatuses").enumerate() {
        let name = str_at(status, "/name");
        let spec = items(pod, "/spec/initContainers").find(|c| str_at(c, "/name") == name);
        let sidecar = spec.is_some_and(is_sidecar);
        all.restarted(status);
        if sidecar {
            sidecars.restarted(status);
        }
        let ended = at(status, "/state/terminated").is_object();
        let waiting = str_at(status, "/state/waiting/reason");
        if ended && int(status, "/state/terminated/exitCode") == 0 {
            continue;
        }
        if sidecar && at(status, "/started") == &Value::Bool(true) {
            all.ready += usize::from(at(status, "/ready") == &Value::Bool(true));
            continue;
        }
        all.reason = if ended {
            format!("Init:{}", why_ended(status))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{}", items(pod, "/spec/initContainers").count())
        };
        return true;
    }
    false
}

fn main_phase(pod: &Value, all: &mut Summary) {
    let mut running = false;
    for status in items(pod, "/status/containerStatuses").rev() {
        all.restarted(status);
        let waiting = str_at(status, "/state/waiting/reason");
        if !waiting.is_empty() {
            all.reason = waiting.to_owned();
        } else if at(status, "/state/terminated").is_object() {
            all.reason = why_ended(status);
        } else if at(status, "/ready") == &Value::Bool(true)
            && at(status, "/state/running").is_object()
        {
            running = true;
            all.ready += 1;
        }
    }
    if all.reason == "Completed" && running {
        all.reason = if holds(pod, "Ready") {
            "Running"
        } else {
            "NotReady"
        }
        .to_owned();
    }
}

/// The word under STATUS, as `kubectl get pods` shows it.
#[must_use]
pub(super) fn cells(pod: &Value, now: Time) -> Vec<Value> {
    let all = summary(pod);
    let restarts = match all.last_restart {
        Some(last) if all.restarts > 0 => {
            let ago = human_duration(now.seconds.saturating_sub(last.seconds));
            format!("{} ({ago} ago)", all.restarts)
        }
        _ => all.restarts.to_string(),
    };
    let or_none = |text: &str| {
        if text.is_empty() {
            "<none>".into()
        } else {
            Value::from(text)
        }
    };
    let first_ip = items(pod, "/status/podIPs")
        .next()
        .map_or("", |ip| str_at(ip, "/ip"));
    let ip = if first_ip.is_empty() {
        str_at(pod, "/status/podIP")
    } else {
        first_ip
    };
    let gates = items(pod, "/spec/readinessGates");
    let (mut fulfilled, mut count) = (0, 0);
    for gate in gates {
        count += 1;
        fulfilled += usize::from(holds(pod, str_at(gate, "/conditionType")));
    }
    let gates = if count == 0 {
        "<none>".to_owned()
    } else {
        format!("{fulfilled}/{count}")
    };
    vec![
        at(pod, "/metadata/name").clone(),
        format!("{}/{}", all.ready, all.total).into(),
        all.reason.into(),
        restarts.into(),
        age(pod, now),
        or_none(ip),
        or_none(str_at(pod, "/spec/nodeName")),
        or_none(str_at(pod, "/status/nominatedNodeName")),
        gates.into(),
    ]
}
