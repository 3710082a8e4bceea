//! Taints and tolerations.

use k8s_openapi::api::core::v1::Taint;

use crate::framework::{ClusterEvent, CycleState, Filter, Plugin, Rejection, Score, normalize};
use crate::info::{NodeInfo, PodInfo, tolerates};

/// Taints that are not tolerated keep pods away, or make a node less liked.
#[derive(Debug)]
pub struct TaintToleration;

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn wakes_on(&self) -> &'static [ClusterEvent] {
        &[
            ClusterEvent::NodeAdded,
            ClusterEvent::NodeTaints,
            ClusterEvent::PodUpdated,
        ]
    }
}

fn tolerated(pod: &PodInfo, taint: &Taint) -> bool {
    pod.tolerations().iter().any(|t| tolerates(t, taint))
}

impl Filter for TaintToleration {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let mut hard = node.taints().iter();
        let repelled =
            hard.any(|t| matches!(&*t.effect, "NoSchedule" | "NoExecute") && !tolerated(pod, t));
        if repelled {
            // Which taint is not told: pods' owners need not know it (1.35).
            let reason = "node(s) had untolerated taint(s)".to_owned();
            return Err(self.reject(vec![reason], false));
        }
        Ok(())
    }
}

impl Score for TaintToleration {
    fn weight(&self) -> i64 {
        3
    }

    fn score(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let soft = node.taints().iter();
        let count = soft
            .filter(|t| t.effect == "PreferNoSchedule" && !tolerated(pod, t))
            .count();
        i64::try_from(count).unwrap_or(i64::MAX)
    }

    fn normalize(&self, _: &CycleState, scores: &mut [i64]) {
        normalize(scores, true);
    }
}
