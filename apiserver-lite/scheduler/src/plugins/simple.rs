//! Two filters that look at one field: the name and the cordon.

use k8s_openapi::api::core::v1::Taint;

use crate::framework::{ClusterEvent, CycleState, Filter, Plugin, Rejection};
use crate::info::{NodeInfo, PodInfo, tolerates};

/// A pod that names its node goes there only.
#[derive(Debug)]
pub struct NodeName;

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn wakes_on(&self) -> &'static [ClusterEvent] {
        &[ClusterEvent::NodeAdded]
    }
}

impl Filter for NodeName {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let wanted = pod.spec().and_then(|s| s.node_name.as_deref());
        match wanted.filter(|n| !n.is_empty()) {
            Some(name) if name != node.name => {
                let reason = "node(s) didn't match the requested node name".to_owned();
                Err(self.reject(vec![reason], false))
            }
            _ => Ok(()),
        }
    }
}

/// A cordoned node takes only pods that tolerate that.
#[derive(Debug)]
pub struct NodeUnschedulable;

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn wakes_on(&self) -> &'static [ClusterEvent] {
        &[
            ClusterEvent::NodeAdded,
            ClusterEvent::NodeTaints,
            ClusterEvent::PodUpdated,
        ]
    }
}

impl Filter for NodeUnschedulable {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if !node.is_unschedulable() {
            return Ok(());
        }
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
        if pod.tolerations().iter().any(|t| tolerates(t, &taint)) {
            return Ok(());
        }
        Err(self.reject(vec!["node(s) were unschedulable".to_owned()], false))
    }
}
