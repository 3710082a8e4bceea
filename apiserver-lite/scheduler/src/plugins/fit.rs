//! Resources: does it fit, and how well.

use crate::framework::{ClusterEvent, CycleState, Filter, MAX_SCORE, Plugin, Rejection, Score};
use crate::info::{NodeInfo, PodInfo};

/// What the pods of a node ask for is at most what it has.
#[derive(Debug)]
pub struct Fit;

impl Plugin for Fit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn wakes_on(&self) -> &'static [ClusterEvent] {
        &[
            ClusterEvent::NodeAdded,
            ClusterEvent::NodeAllocatable,
            ClusterEvent::PodRemoved,
            ClusterEvent::PodUpdated,
        ]
    }
}

impl Filter for Fit {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let (have, used, want) = (&node.allocatable, &node.requested, &pod.requests);
        let mut reasons = Vec::new();
        // What the node would not have even without its pods.
        let mut hopeless = false;
        let pods = i64::try_from(node.pods.len()).unwrap_or(i64::MAX);
        if pods >= have.pods {
            reasons.push("Too many pods".to_owned());
            hopeless |= have.pods == 0;
        }
        let mut check = |name: &str, want: i64, have: i64, used: i64| {
            if want > 0 && want > have.saturating_sub(used) {
                reasons.push(format!("Insufficient {name}"));
                hopeless |= want > have;
            }
        };
        check("cpu", want.milli_cpu, have.milli_cpu, used.milli_cpu);
        check(
            "memory",
            want.memory_bytes,
            have.memory_bytes,
            used.memory_bytes,
        );
        check(
            "ephemeral-storage",
            want.ephemeral_bytes,
            have.ephemeral_bytes,
            used.ephemeral_bytes,
        );
        for (name, amount) in &want.scalar {
            let of = |r: &crate::resource::Resources| r.scalar.get(name).copied().unwrap_or(0);
            check(name, *amount, of(have), of(used));
        }
        if reasons.is_empty() {
            return Ok(());
        }
        Err(self.reject(reasons, !hopeless))
    }
}

/// `LeastAllocated` over cpu and memory: emptier nodes are better.
impl Score for Fit {
    fn weight(&self) -> i64 {
        1
    }

    fn score(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let part = |have: i64, used: i64| {
            if have == 0 || used > have {
                0
            } else {
                (have - used).saturating_mul(MAX_SCORE) / have
            }
        };
        let cpu = part(
            node.allocatable.milli_cpu,
            node.scored.0.saturating_add(pod.scored.0),
        );
        let memory = part(
            node.allocatable.memory_bytes,
            node.scored.1.saturating_add(pod.scored.1),
        );
        i64::midpoint(cpu, memory)
    }
}

/// Nodes whose cpu and memory would be used alike are better.
#[derive(Debug)]
pub struct BalancedAllocation;

impl Plugin for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }
}

impl Score for BalancedAllocation {
    fn weight(&self) -> i64 {
        1
    }

    fn score(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64 {
        /// Used share of a resource, in thousandths of a percent.
        const WHOLE: i128 = 100_000;
        let share = |have: i64, used: i64| {
            if have == 0 {
                WHOLE
            } else {
                (i128::from(used) * WHOLE / i128::from(have)).clamp(0, WHOLE)
            }
        };
        let (have, used, want) = (&node.allocatable, &node.requested, &pod.requests);
        let cpu = share(
            have.milli_cpu,
            used.milli_cpu.saturating_add(want.milli_cpu),
        );
        let memory = share(
            have.memory_bytes,
            used.memory_bytes.saturating_add(want.memory_bytes),
        );
        // The standard deviation of two values is half their distance.
        let deviation = (cpu - memory).abs() / 2;
        i64::try_from((WHOLE - deviation) * i128::from(MAX_SCORE) / WHOLE).unwrap_or(0)
    }
}
