//! Topology spread: pods are spread over nodes, zones and the like.
//!
//! A pod without constraints of its own is spread with the pods of its
//! controller, over nodes and zones, as upstream's system defaults do (which
//! tell such pods by the selectors of Services and ReplicaSets instead of by
//! their controller).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::affinity::NodeAffinity;
use super::taint::TaintToleration;
use crate::cache::Snapshot;
use crate::framework::{
    ClusterEvent, CycleState, Filter, MAX_SCORE, Plugin, PreFilter, PreScore, Rejection, Score,
};
use crate::info::{NodeInfo, PodInfo};
use crate::terms::{Spread, matches};

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// `PodTopologySpread`.
#[derive(Debug)]
pub struct TopologySpread;

/// Pods by the value of a constraint's topology key.
type Counts = HashMap<String, i64>;

/// The counts of each demand, and the smallest one that counts.
struct Demands(Vec<(Counts, i64)>);

/// The counts of each wish.
struct Wishes(Vec<(String, Counts)>);

impl Plugin for TopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn wakes_on(&self) -> &'static [ClusterEvent] {
        &[
            ClusterEvent::NodeAdded,
            ClusterEvent::NodeLabels,
            ClusterEvent::NodeTaints,
            ClusterEvent::PodAssigned,
            ClusterEvent::PodRemoved,
            ClusterEvent::PodUpdated,
        ]
    }
}

fn size(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Pods of a node that a constraint counts.
fn counted(spread: &Spread, pod: &PodInfo, node: &NodeInfo) -> i64 {
    let here = node.pods.values().filter(|other| {
        other.key.namespace == pod.key.namespace
            && other.pod.metadata.deletion_timestamp.is_none()
            && matches(&spread.selector, other.pod.metadata.labels.as_ref())
    });
    size(here.count())
}

/// Pods of the same controller on a node.
fn siblings(pod: &PodInfo, node: &NodeInfo) -> i64 {
    if pod.owner.is_none() {
        return 0;
    }
    let here = node.pods.values().filter(|p| {
        p.owner == pod.owner
            && p.key.namespace == pod.key.namespace
            && p.pod.metadata.deletion_timestamp.is_none()
    });
    size(here.count())
}

/// Whether a node is one that a constraint looks at.
fn is_eligible(all: &[&Spread], spread: &Spread, pod: &PodInfo, node: &NodeInfo) -> bool {
    let state = CycleState::default();
    all.iter().all(|s| node.label(&s.topology_key).is_some())
        && (!spread.honours_affinity || NodeAffinity.filter(&state, pod, node).is_ok())
        && (!spread.honours_taints || TaintToleration.filter(&state, pod, node).is_ok())
}

impl PreFilter for TopologySpread {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        nodes: &Snapshot,
    ) -> Result<Option<BTreeSet<String>>, Rejection> {
        let hard: Vec<&Spread> = pod.spreads.iter().filter(|s| s.hard).collect();
        let demands = hard.iter().map(|spread| {
            let mut counts = Counts::new();
            for node in &nodes.nodes {
                if let Some(value) = node.label(&spread.topology_key)
                    && is_eligible(&hard, spread, pod, node)
                {
                    let count = counts.entry(value.to_owned()).or_default();
                    *count += counted(spread, pod, node);
                }
            }
            let few = spread.min_domains.is_some_and(|least| counts.len() < least);
            let least = if few {
                0
            } else {
                counts.values().copied().min().unwrap_or(0)
            };
            (counts, least)
        });
        let demands = demands.collect();
        state.set(Demands(demands));
        Ok(None)
    }
}

impl Filter for TopologySpread {
    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let Some(Demands(demands)) = state.get() else {
            return Ok(());
        };
        let hard = pod.spreads.iter().filter(|s| s.hard);
        for (spread, (counts, least)) in hard.zip(demands) {
            let Some(value) = node.label(&spread.topology_key) else {
                let reason =
                    "node(s) didn't match pod topology spread constraints (missing required label)";
                return Err(self.reject(vec![reason.to_owned()], false));
            };
            let itself = matches(&spread.selector, pod.pod.metadata.labels.as_ref());
            let count = counts.get(value).copied().unwrap_or(0) + i64::from(itself);
            if count - least > spread.max_skew {
                let reason = "node(s) didn't match pod topology spread constraints";
                return Err(self.reject(vec![reason.to_owned()], true));
            }
        }
        Ok(())
    }
}

impl PreScore for TopologySpread {
    fn pre_score(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        all: &Snapshot,
        _: &[Arc<NodeInfo>],
    ) {
        let soft: Vec<&Spread> = pod.spreads.iter().filter(|s| !s.hard).collect();
        let mut wishes = Vec::new();
        for spread in &soft {
            let mut counts = Counts::new();
            for node in &all.nodes {
                if let Some(value) = node.label(&spread.topology_key)
                    && is_eligible(&soft, spread, pod, node)
                {
                    let count = counts.entry(value.to_owned()).or_default();
                    *count += counted(spread, pod, node);
                }
            }
            wishes.push((spread.topology_key.clone(), counts));
        }
        if pod.spreads.is_empty() && pod.owner.is_some() {
            for key in [HOSTNAME, ZONE] {
                let mut counts = Counts::new();
                for node in &all.nodes {
                    if let Some(value) = node.label(key) {
                        *counts.entry(value.to_owned()).or_default() += siblings(pod, node);
                    }
                }
                wishes.push((key.to_owned(), counts));
            }
        }
        state.set(Wishes(wishes));
    }
}

impl Score for TopologySpread {
    fn weight(&self) -> i64 {
        2
    }

    /// Fewer pods are better; [`Score::normalize`] turns it around.
    fn score(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let Some(Wishes(wishes)) = state.get() else {
            return 0;
        };
        let mut sum = 0_i64;
        for (key, counts) in wishes {
            let count = match node.label(key) {
                Some(value) => counts.get(value).copied().unwrap_or(0),
                // A node outside of the topology is as bad as the worst.
                None if pod.spreads.is_empty() => siblings(pod, node),
                None => counts.values().copied().max().unwrap_or(0) + 1,
            };
            sum = sum.saturating_add(count);
        }
        sum
    }

    fn normalize(&self, _: &CycleState, scores: &mut [i64]) {
        let max = scores.iter().copied().max().unwrap_or(0);
        let min = scores.iter().copied().min().unwrap_or(0);
        for score in scores {
            *score = if max == 0 {
                MAX_SCORE
            } else {
                MAX_SCORE * (max + min - *score) / max
            };
        }
    }
}
