//! Pod affinity and anti-affinity.
//!
//! A *place* is a topology key and a value of it; everything is counted by
//! place once a cycle, and a node is looked at by its places.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::cache::Snapshot;
use crate::framework::{
    ClusterEvent, CycleState, Filter, MAX_SCORE, Plugin, PreFilter, PreScore, Rejection, Score,
};
use crate::info::{NodeInfo, PodInfo};
use crate::terms::{Labels, Term};

/// How much a required affinity of a pod that is there counts as a wish of
/// the new pod (`hardPodAffinityWeight`).
const HARD_WEIGHT: i64 = 1;

/// `InterPodAffinity`.
#[derive(Debug)]
pub struct InterPodAffinity;

type Place = (String, String);

/// What is known of places when nodes are looked at.
#[derive(Default)]
struct Places {
    /// Where pods that are there do not want the new one.
    repelled: HashSet<Place>,
    /// Where pods are that the new one does not want.
    avoided: HashSet<Place>,
    /// Where pods are that the new one wants, for each of its terms.
    wanted: Vec<HashSet<Place>>,
    /// The new pod is the first of its kind: it may start anywhere.
    is_first: bool,
}

/// Scores by place.
struct Scores(HashMap<Place, i64>);

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn wakes_on(&self) -> &'static [ClusterEvent] {
        &[
            ClusterEvent::NodeAdded,
            ClusterEvent::NodeLabels,
            ClusterEvent::PodAssigned,
            ClusterEvent::PodRemoved,
            ClusterEvent::PodUpdated,
        ]
    }
}

fn place(node: &NodeInfo, key: &str) -> Option<Place> {
    Some((key.to_owned(), node.label(key)?.to_owned()))
}

fn speak_of(terms: &[Term], pod: &Pod, namespaces: &HashMap<String, Labels>) -> bool {
    terms.iter().all(|t| t.matches(pod, namespaces))
}

impl PreFilter for InterPodAffinity {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        nodes: &Snapshot,
    ) -> Result<Option<BTreeSet<String>>, Rejection> {
        let own = &pod.terms;
        let mut places = Places {
            wanted: vec![HashSet::new(); own.affinity.len()],
            ..Places::default()
        };
        let mut found = false;
        for node in &nodes.nodes {
            for other in node.pods.values() {
                for term in &other.terms.anti_affinity {
                    if term.matches(&pod.pod, &nodes.namespaces) {
                        places.repelled.extend(place(node, &term.topology_key));
                    }
                }
                for term in &own.anti_affinity {
                    if term.matches(&other.pod, &nodes.namespaces) {
                        places.avoided.extend(place(node, &term.topology_key));
                    }
                }
                // A neighbour has to match all terms together.
                if !own.affinity.is_empty()
                    && speak_of(&own.affinity, &other.pod, &nodes.namespaces)
                {
                    for (term, wanted) in own.affinity.iter().zip(&mut places.wanted) {
                        let here = place(node, &term.topology_key);
                        found |= here.is_some();
                        wanted.extend(here);
                    }
                }
            }
        }
        places.is_first = !found && speak_of(&own.affinity, &pod.pod, &nodes.namespaces);
        state.set(places);
        Ok(None)
    }
}

impl Filter for InterPodAffinity {
    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let Some(places) = state.get::<Places>() else {
            return Ok(());
        };
        let own = &pod.terms;
        let reject = |reason: &str, resolvable| self.reject(vec![reason.to_owned()], resolvable);
        for (term, wanted) in own.affinity.iter().zip(&places.wanted) {
            let here = place(node, &term.topology_key);
            let fits = here.is_some_and(|h| places.is_first || wanted.contains(&h));
            if !fits {
                return Err(reject("node(s) didn't match pod affinity rules", false));
            }
        }
        let is_at = |all: &HashSet<Place>| {
            all.iter()
                .any(|(key, value)| node.label(key) == Some(value))
        };
        if is_at(&places.avoided) {
            return Err(reject("node(s) didn't match pod anti-affinity rules", true));
        }
        if is_at(&places.repelled) {
            let reason = "node(s) didn't satisfy existing pods anti-affinity rules";
            return Err(reject(reason, true));
        }
        Ok(())
    }
}

impl PreScore for InterPodAffinity {
    fn pre_score(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        all: &Snapshot,
        _: &[Arc<NodeInfo>],
    ) {
        let mut scores: HashMap<Place, i64> = HashMap::new();
        let mut add = |node: &NodeInfo, term: &Term, weight: i64| {
            if let Some(place) = place(node, &term.topology_key) {
                let score = scores.entry(place).or_default();
                *score = score.saturating_add(weight);
            }
        };
        for node in &all.nodes {
            for other in node.pods.values() {
                if other.terms.is_empty() && pod.terms.preferred.is_empty() {
                    continue;
                }
                for term in &pod.terms.preferred {
                    if term.matches(&other.pod, &all.namespaces) {
                        add(node, term, term.weight);
                    }
                }
                for term in &other.terms.preferred {
                    if term.matches(&pod.pod, &all.namespaces) {
                        add(node, term, term.weight);
                    }
                }
                for term in &other.terms.affinity {
                    if term.matches(&pod.pod, &all.namespaces) {
                        add(node, term, HARD_WEIGHT);
                    }
                }
            }
        }
        state.set(Scores(scores));
    }
}

impl Score for InterPodAffinity {
    fn weight(&self) -> i64 {
        2
    }

    fn score(&self, state: &CycleState, _: &PodInfo, node: &NodeInfo) -> i64 {
        let Some(Scores(scores)) = state.get() else {
            return 0;
        };
        let here = scores
            .iter()
            .filter(|((key, value), _)| node.label(key) == Some(value));
        here.map(|(_, score)| *score).fold(0, i64::saturating_add)
    }

    fn normalize(&self, _: &CycleState, scores: &mut [i64]) {
        let max = scores.iter().copied().max().unwrap_or(0);
        let min = scores.iter().copied().min().unwrap_or(0);
        let range = max.saturating_sub(min);
        for score in scores {
            *score = if range == 0 {
                0
            } else {
                MAX_SCORE * (*score - min) / range
            };
        }
    }
}
