//! What the conditions and taints of a node shall be: pure functions.
//!
//! Rules and words: upstream's `pkg/controller/nodelifecycle`.

use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::Timestamp;
use rkube_client::clock;
use tokio::time::{Duration, Instant};

use super::{condition, taints};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Taints that follow conditions: type, status, key.
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    (
        "MemoryPressure",
        "True",
        "node.kubernetes.io/memory-pressure",
    ),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    (
        "NetworkUnavailable",
        "True",
        "node.kubernetes.io/network-unavailable",
    ),
];

/// Conditions that become unknown with the node.
const FOLLOWED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// When a node was last heard of, by the clock of this process: the clocks of
/// nodes may differ.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    heartbeat: Option<Time>,
    renewal: Option<MicroTime>,
    pub(super) at: Instant,
    /// Whether it was ready then, as far as is known.
    pub(super) was_ready: bool,
}

impl Heard {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            heartbeat: None,
            renewal: None,
            at: now,
            was_ready: false,
        }
    }

    /// Notes a sign of life: another heartbeat in the status, or a renewed
    /// lease.
    pub(super) fn note(&mut self, node: &Node, renewal: Option<&MicroTime>, now: Instant) {
        let ready = condition(node, "Ready");
        let heartbeat = ready.and_then(|c| c.last_heartbeat_time.clone());
        if heartbeat != self.heartbeat || renewal != self.renewal.as_ref() {
            self.at = now;
        }
        self.heartbeat = heartbeat;
        self.renewal = renewal.cloned();
    }

    /// When it counts as silent, if nothing comes until then.
    pub(super) fn silent_at(&self, grace: Duration) -> Instant {
        self.at + grace
    }
}

/// `True`, `False` or `Unknown`; a node that never said anything is unknown.
pub(super) fn readiness(node: &Node) -> &str {
    condition(node, "Ready").map_or("Unknown", |c| c.status.as_str())
}

/// The conditions of a silent node that have to change.
pub(super) fn silence(node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    let mut changed = Vec::new();
    for kind in FOLLOWED {
        let new = match condition(node, kind) {
            Some(old) if old.status == "Unknown" => continue,
            Some(old) => NodeCondition {
                status: "Unknown".to_owned(),
                reason: Some("NodeStatusUnknown".to_owned()),
                message: Some("Kubelet stopped posting node status.".to_owned()),
                last_transition_time: Some(clock::time(now)),
                ..old.clone()
            },
            None => NodeCondition {
                type_: kind.to_owned(),
                status: "Unknown".to_owned(),
                reason: Some("NodeStatusNeverUpdated".to_owned()),
                message: Some("Kubelet never posted node status.".to_owned()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(clock::time(now)),
            },
        };
        changed.push(new);
    }
    changed
}

/// The taints of a node, or `None` where they are right already. With
/// `evicts`, a node that is not ready drives its pods away; without, no node
/// is ready and rather we are cut off than all of them.
pub(super) fn wanted_taints(node: &Node, evicts: bool, now: Timestamp) -> Option<Vec<Taint>> {
    let old = taints(node);
    let ready = condition(node, "Ready").map(|c| c.status.as_str());
    let driving = match ready {
        _ if !evicts => None,
        Some("False") => Some(NOT_READY),
        Some("Unknown") => Some(UNREACHABLE),
        _ => None,
    };
    let mut holding: Vec<&str> = BY_CONDITION
        .iter()
        .filter(|(kind, status, _)| condition(node, kind).is_some_and(|c| c.status == *status))
        .map(|(_, _, key)| *key)
        .collect();
    let spec = node.spec.as_ref();
    if spec.and_then(|s| s.unschedulable) == Some(true) {
        holding.push(UNSCHEDULABLE);
    }
    // Before the first word of a node its admission's taint stays.
    let ours = |key: &str| {
        key == UNSCHEDULABLE
            || BY_CONDITION
                .iter()
                .any(|(kind, _, k)| *k == key && (*kind != "Ready" || ready.is_some()))
    };
    let mut new: Vec<Taint> = old
        .iter()
        .filter(|t| match t.effect.as_str() {
            "NoSchedule" if ours(&t.key) => holding.contains(&t.key.as_str()),
            "NoExecute" if t.key == NOT_READY || t.key == UNREACHABLE => {
                driving == Some(t.key.as_str())
            }
            _ => true,
        })
        .cloned()
        .collect();
    let mut add = |key: &str, effect: &str| {
        if !new.iter().any(|t| t.key == key && t.effect == effect) {
            new.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                value: None,
                time_added: Some(clock::time(now)),
            });
        }
    };
    for key in holding {
        add(key, "NoSchedule");
    }
    if let Some(key) = driving {
        add(key, "NoExecute");
    }
    (new != old).then_some(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, object};
    use serde_json::{Value, json};

    fn node(ready: &str, extra: Value) -> Node {
        let base = json!({"metadata": {"name": "n"}, "spec": {}, "status": {"conditions": [
            {"type": "Ready", "status": ready, "lastHeartbeatTime": "2026-01-01T00:00:00Z"},
            {"type": "MemoryPressure", "status": "False"}]}});
        object(rkube_api::patch::merge(base, extra).unwrap())
    }

    fn keys(taints: Option<Vec<Taint>>) -> Vec<String> {
        let taints = taints.unwrap_or_default();
        taints
            .iter()
            .map(|t| format!("{}:{}", t.key, t.effect))
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn any_sign_of_life_counts() {
        let start = Instant::now();
        let mut heard = Heard::new(start);
        let renewal = MicroTime(at(1));
        heard.note(&node("True", json!({})), None, start);
        let later = start + Duration::from_secs(10);
        heard.note(&node("True", json!({})), None, later);
        assert_eq!(heard.at, start, "nothing new");
        heard.note(&node("True", json!({})), Some(&renewal), later);
        assert_eq!(
            heard.silent_at(Duration::from_secs(40)),
            later + Duration::from_secs(40)
        );
    }

    #[test]
    fn silence_makes_conditions_unknown() {
        let changed = silence(&node("True", json!({})), at(7));
        let told: Vec<_> = changed
            .iter()
            .map(|c| (c.type_.as_str(), c.reason.as_deref().unwrap()))
            .collect();
        assert_eq!(
            told,
            [
                ("Ready", "NodeStatusUnknown"),
                ("MemoryPressure", "NodeStatusUnknown"),
                ("DiskPressure", "NodeStatusNeverUpdated"),
                ("PIDPressure", "NodeStatusNeverUpdated"),
            ]
        );
        // The heartbeat stays: our own write is no sign of life.
        assert!(changed[0].last_heartbeat_time.is_some());
    }

    #[test]
    fn taints_follow_conditions() {
        let now = at(7);
        assert_eq!(wanted_taints(&node("True", json!({})), true, now), None);
        assert_eq!(
            keys(wanted_taints(&node("Unknown", json!({})), true, now)),
            [
                "node.kubernetes.io/unreachable:NoSchedule",
                "node.kubernetes.io/unreachable:NoExecute"
            ]
        );
        assert_eq!(
            keys(wanted_taints(&node("False", json!({})), false, now)),
            ["node.kubernetes.io/not-ready:NoSchedule"]
        );
        let back = json!({"spec": {"unschedulable": true, "taints": [
            {"key": "mine", "effect": "NoExecute"},
            {"key": UNREACHABLE, "effect": "NoSchedule"},
            {"key": UNREACHABLE, "effect": "NoExecute"}]}});
        assert_eq!(
            keys(wanted_taints(&node("True", back), true, now)),
            [
                "mine:NoExecute",
                "node.kubernetes.io/unschedulable:NoSchedule"
            ]
        );
        // A new node keeps what admission gave it.
        let new = json!({"status": null, "spec": {"taints": [{"key": NOT_READY, "effect": "NoSchedule"}]}});
        assert_eq!(wanted_taints(&node("True", new), true, now), None);
    }
}
