//! One scheduling cycle: from a pod and a snapshot to a node.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use crate::cache::Snapshot;
use crate::framework::{CycleState, Profile, Rejection};
use crate::info::{NodeInfo, PodInfo};

/// Nodes below which all are looked at (`minFeasibleNodesToFind`).
const FEASIBLE_NODES_MIN: usize = 100;
/// Least share of nodes to find, in percent
/// (`minFeasibleNodesPercentageToFind`).
const FEASIBLE_PERCENT_MIN: usize = 5;

/// Why no node was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FitError {
    /// How many nodes there are.
    pub nodes: usize,
    /// How many nodes gave each reason.
    pub reasons: BTreeMap<String, usize>,
    /// Why no node at all came into question, if so.
    pub pre_filter: Option<String>,
    /// What a `PostFilter` says.
    pub post_filter: String,
    /// The plugins that said no.
    pub rejected_by: BTreeSet<&'static str>,
    /// A node that the pod is nominated for.
    pub nominated: Option<String>,
}

impl fmt::Display for FitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        write!(f, "0/{} nodes are available", self.nodes)?;
        if let Some(reason) = &self.pre_filter {
            write!(f, ": {reason}.")?;
        } else if !self.reasons.is_empty() {
            let mut told: Vec<String> = self
                .reasons
                .iter()
                .map(|(reason, count)| format!("{count} {reason}"))
                .collect();
            told.sort_unstable();
            write!(f, ": {}.", told.join(", "))?;
        }
        if !self.post_filter.is_empty() {
            write!(f, " {}", self.post_filter)?;
        }
        Ok(())
    }
}

impl std::error::Error for FitError {}

/// How many fitting nodes are enough among `all`.
fn enough(all: usize) -> usize {
    if all < FEASIBLE_NODES_MIN {
        return all;
    }
    let percent = 50_usize.saturating_sub(all / 125).max(FEASIBLE_PERCENT_MIN);
    (all * percent / 100).max(FEASIBLE_NODES_MIN)
}

/// Finds the node for a pod. `start` is where the search begins: it differs
/// from call to call, so that large clusters fill evenly and equal scores are
/// not always won by the same node.
///
/// # Errors
/// No node fits.
pub fn find(
    profile: &Profile,
    state: &mut CycleState,
    pod: &PodInfo,
    snapshot: &Snapshot,
    start: usize,
) -> Result<Arc<NodeInfo>, Box<FitError>> {
    let mut failed = FitError {
        nodes: snapshot.nodes.len(),
        reasons: BTreeMap::new(),
        pre_filter: None,
        post_filter: String::new(),
        rejected_by: BTreeSet::new(),
        nominated: None,
    };
    if snapshot.nodes.is_empty() {
        failed
            .rejected_by
            .extend(profile.filters.iter().map(|f| f.name()));
        return Err(Box::new(failed));
    }
    let only = match pre_filter(profile, state, pod, snapshot) {
        Ok(only) => only,
        Err(rejection) => {
            failed.rejected_by.insert(rejection.plugin);
            failed.pre_filter = Some(rejection.reasons.join(", "));
            return Err(Box::new(failed));
        }
    };
    let (fitting, rejected) = filter(profile, state, pod, snapshot, only.as_ref(), start);
    if fitting.is_empty() {
        for rejection in rejected.values() {
            failed.rejected_by.insert(rejection.plugin);
            for reason in &rejection.reasons {
                *failed.reasons.entry(reason.clone()).or_insert(0) += 1;
            }
        }
        for plugin in &profile.post_filters {
            let (nominated, told) = plugin.post_filter(state, pod, snapshot, &rejected);
            failed.nominated = failed.nominated.or(nominated);
            failed.post_filter = told;
        }
        return Err(Box::new(failed));
    }
    let mut fitting = fitting.into_iter();
    match (fitting.next(), fitting.len()) {
        (Some(one), 0) => Ok(one),
        (Some(first), _) => {
            let mut all = vec![first];
            all.extend(fitting);
            Ok(best(profile, state, pod, snapshot, all))
        }
        (None, _) => Err(Box::new(failed)),
    }
}

fn pre_filter(
    profile: &Profile,
    state: &mut CycleState,
    pod: &PodInfo,
    snapshot: &Snapshot,
) -> Result<Option<BTreeSet<String>>, Rejection> {
    let mut only: Option<BTreeSet<String>> = None;
    for plugin in &profile.pre_filters {
        if let Some(names) = plugin.pre_filter(state, pod, snapshot)? {
            let both = only.map_or(names.clone(), |o| &o & &names);
            only = Some(both);
        }
    }
    Ok(only)
}

/// The nodes that fit, and why the others do not.
fn filter(
    profile: &Profile,
    state: &CycleState,
    pod: &PodInfo,
    snapshot: &Snapshot,
    only: Option<&BTreeSet<String>>,
    start: usize,
) -> (Vec<Arc<NodeInfo>>, HashMap<String, Rejection>) {
    let all = snapshot.nodes.len();
    let wanted = enough(all);
    let mut fitting = Vec::new();
    let mut rejected = HashMap::new();
    for step in 0..all {
        let Some(node) = snapshot.nodes.get((start.wrapping_add(step)) % all) else {
            continue;
        };
        if only.is_some_and(|names| !names.contains(&node.name)) {
            // Upstream tells these as not matching the plugin's node set.
            let rejection = Rejection {
                plugin: "NodeAffinity",
                reasons: vec!["node(s) didn't satisfy plugin(s) [NodeAffinity]".to_owned()],
                resolvable: false,
            };
            rejected.insert(node.name.clone(), rejection);
            continue;
        }
        let mut filters = profile.filters.iter();
        match filters.try_for_each(|f| f.filter(state, pod, node)) {
            Ok(()) => {
                fitting.push(Arc::clone(node));
                if fitting.len() >= wanted {
                    break;
                }
            }
            Err(rejection) => {
                rejected.insert(node.name.clone(), rejection);
            }
        }
    }
    (fitting, rejected)
}

/// The node with the highest score; the first of equals.
fn best(
    profile: &Profile,
    state: &mut CycleState,
    pod: &PodInfo,
    snapshot: &Snapshot,
    mut nodes: Vec<Arc<NodeInfo>>,
) -> Arc<NodeInfo> {
    for plugin in &profile.pre_scores {
        plugin.pre_score(state, pod, snapshot, &nodes);
    }
    let mut totals = vec![0_i64; nodes.len()];
    for plugin in &profile.scores {
        let mut scores: Vec<i64> = nodes.iter().map(|n| plugin.score(state, pod, n)).collect();
        plugin.normalize(state, &mut scores);
        for (total, score) in totals.iter_mut().zip(scores) {
            *total = total.saturating_add(score.saturating_mul(plugin.weight()));
        }
    }
    let mut at = 0;
    for (i, total) in totals.iter().enumerate() {
        if totals.get(at).is_some_and(|best| total > best) {
            at = i;
        }
    }
    nodes.swap_remove(at)
}
