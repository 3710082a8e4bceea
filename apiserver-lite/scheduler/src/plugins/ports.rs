//! Ports of the node.

use crate::framework::{ClusterEvent, CycleState, Filter, Plugin, Rejection};
use crate::info::{NodeInfo, PodInfo};

/// No two pods of a node have the same host port.
#[derive(Debug)]
pub struct NodePorts;

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn wakes_on(&self) -> &'static [ClusterEvent] {
        &[ClusterEvent::NodeAdded, ClusterEvent::PodRemoved]
    }
}

impl Filter for NodePorts {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if pod.ports.is_empty() {
            return Ok(());
        }
        let mut taken = node.pods.values().flat_map(|p| &p.ports);
        if taken.any(|t| pod.ports.iter().any(|p| p.conflicts(t))) {
            let reason = "node(s) didn't have free ports for the requested pod ports".to_owned();
            return Err(self.reject(vec![reason], true));
        }
        Ok(())
    }
}
