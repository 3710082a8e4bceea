//! Node selectors and node affinity.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use crate::cache::Snapshot;
use crate::framework::{
    ClusterEvent, CycleState, Filter, Plugin, PreFilter, Rejection, Score, normalize,
};
use crate::info::{NodeInfo, PodInfo};

/// `spec.nodeSelector` and `spec.affinity.nodeAffinity`.
#[derive(Debug)]
pub struct NodeAffinity;

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn wakes_on(&self) -> &'static [ClusterEvent] {
        &[
            ClusterEvent::NodeAdded,
            ClusterEvent::NodeLabels,
            ClusterEvent::PodUpdated,
        ]
    }
}

/// Whether a value fulfils a requirement; `None` is an absent label.
fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = || {
        let bound = values.first()?.parse::<i64>().ok()?;
        Some((value?.parse::<i64>().ok()?, bound))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|v| values.iter().any(|w| w == v)),
        "NotIn" => value.is_none_or(|v| values.iter().all(|w| w != v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number().is_some_and(|(value, bound)| value > bound),
        "Lt" => number().is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

/// Whether a node fulfils a term; an empty term matches nothing.
pub(crate) fn term_matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if labels.is_empty() && fields.is_empty() {
        return false;
    }
    labels.iter().all(|r| holds(r, node.label(&r.key)))
        && fields
            .iter()
            .all(|r| r.key == "metadata.name" && holds(r, Some(&node.name)))
}

fn required(pod: &PodInfo) -> Option<&[NodeSelectorTerm]> {
    let affinity = pod.spec()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = &affinity.required_during_scheduling_ignored_during_execution;
    required.as_ref().map(|r| r.node_selector_terms.as_slice())
}

/// The names that a term allows, if it says any.
fn names(term: &NodeSelectorTerm) -> Option<BTreeSet<String>> {
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let mut all: Option<BTreeSet<String>> = None;
    for field in fields
        .iter()
        .filter(|f| f.key == "metadata.name" && f.operator == "In")
    {
        let own: BTreeSet<String> = field.values.iter().flatten().cloned().collect();
        all = Some(all.map_or(own.clone(), |a| &a & &own));
    }
    all
}

impl PreFilter for NodeAffinity {
    fn pre_filter(
        &self,
        _: &mut CycleState,
        pod: &PodInfo,
        _: &Snapshot,
    ) -> Result<Option<BTreeSet<String>>, Rejection> {
        let Some(terms) = required(pod) else {
            return Ok(None);
        };
        // As each term is enough, every one has to name nodes.
        let mut union = BTreeSet::new();
        for term in terms {
            match names(term) {
                None => return Ok(None),
                Some(names) => union.extend(names),
            }
        }
        if union.is_empty() && !terms.is_empty() {
            return Err(self.reject(vec!["pod affinity terms conflict".to_owned()], false));
        }
        Ok(Some(union))
    }
}

impl Filter for NodeAffinity {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let mut selector = pod
            .spec()
            .and_then(|s| s.node_selector.as_ref())
            .into_iter();
        let selected = selector.all(|s| {
            s.iter()
                .all(|(key, value)| node.label(key) == Some(value.as_str()))
        });
        let liked = required(pod).is_none_or(|terms| terms.iter().any(|t| term_matches(t, node)));
        if selected && liked {
            return Ok(());
        }
        let reason = "node(s) didn't match Pod's node affinity/selector".to_owned();
        Err(self.reject(vec![reason], false))
    }
}

impl Score for NodeAffinity {
    fn weight(&self) -> i64 {
        2
    }

    fn score(&self, _: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let affinity = pod
            .spec()
            .and_then(|s| s.affinity.as_ref()?.node_affinity.as_ref());
        let preferred = affinity.and_then(|a| {
            a.preferred_during_scheduling_ignored_during_execution
                .as_ref()
        });
        preferred
            .into_iter()
            .flatten()
            .filter(|p| p.weight != 0 && prefers(&p.preference, node))
            .map(|p| i64::from(p.weight))
            .sum()
    }

    fn normalize(&self, _: &CycleState, scores: &mut [i64]) {
        normalize(scores, false);
    }
}

/// An empty preference is all nodes'.
fn prefers(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let empty = term.match_expressions.as_ref().is_none_or(Vec::is_empty)
        && term.match_fields.as_ref().is_none_or(Vec::is_empty);
    empty || term_matches(term, node)
}
