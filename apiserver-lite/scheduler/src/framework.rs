//! The plug-in points, as upstream's scheduling framework has them.
//!
//! ```text
//! PreFilter ─► Filter (each node) ─┬─ none fits ─► PostFilter
//!                                  └─► PreScore ─► Score (each node) ─► pick
//!   ─► Reserve ─► Permit ─► PreBind ─► Bind          (undone by Unreserve)
//! ```

use std::any::{Any, TypeId};
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use rkube_client::{ApiError, BoxFuture};

use crate::cache::Snapshot;
use crate::info::{NodeInfo, PodInfo};

/// The highest score of a plugin (`MaxNodeScore`).
pub const MAX_SCORE: i64 = 100;

/// Something that happened in the cluster and may make a pod schedulable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClusterEvent {
    /// A node came.
    NodeAdded,
    /// A node has more or other resources.
    NodeAllocatable,
    /// A node's labels changed.
    NodeLabels,
    /// A node's taints changed, or it was uncordoned.
    NodeTaints,
    /// A pod on a node came.
    PodAssigned,
    /// A pod on a node went.
    PodRemoved,
    /// The pod itself changed.
    PodUpdated,
    /// It waited for long (5 minutes); whatever it waited for may be missed.
    Timeout,
}

/// Why a pod cannot go somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The plugin that says so.
    pub plugin: &'static str,
    /// Reasons in upstream's words.
    pub reasons: Vec<String>,
    /// Whether it may help to evict pods.
    pub resolvable: bool,
}

/// What plugins keep between their points within one cycle, by type.
#[derive(Default)]
pub struct CycleState(HashMap<TypeId, Box<dyn Any + Send + Sync>>);

impl fmt::Debug for CycleState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CycleState").field(&self.0.len()).finish()
    }
}

impl CycleState {
    /// Keeps a value.
    pub fn set<T: Any + Send + Sync>(&mut self, value: T) {
        self.0.insert(TypeId::of::<T>(), Box::new(value));
    }

    /// The value of a type.
    #[must_use]
    pub fn get<T: Any>(&self) -> Option<&T> {
        self.0.get(&TypeId::of::<T>())?.downcast_ref()
    }
}

/// What all plugins are.
pub trait Plugin: fmt::Debug + Send + Sync {
    /// Upstream's name of it.
    fn name(&self) -> &'static str;

    /// After which events a pod that this plugin rejected is worth another
    /// look.
    fn wakes_on(&self) -> &'static [ClusterEvent] {
        &[]
    }

    /// A rejection in this plugin's name.
    fn reject(&self, reasons: Vec<String>, resolvable: bool) -> Rejection {
        Rejection {
            plugin: self.name(),
            reasons,
            resolvable,
        }
    }
}

/// Looks at the pod once.
pub trait PreFilter: Plugin {
    /// `Some`: only these nodes come into question.
    ///
    /// # Errors
    /// No node comes into question.
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        nodes: &Snapshot,
    ) -> Result<Option<BTreeSet<String>>, Rejection>;
}

/// Looks at one node.
pub trait Filter: Plugin {
    /// # Errors
    /// The pod cannot go there.
    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection>;
}

/// Tries to make room when no node fits; preemption's place.
pub trait PostFilter: Plugin {
    /// The node that the pod is nominated for, and what the event shall add.
    fn post_filter(
        &self,
        state: &CycleState,
        pod: &PodInfo,
        nodes: &Snapshot,
        rejected: &HashMap<String, Rejection>,
    ) -> (Option<String>, String);
}

/// Looks at all nodes that fit, once.
pub trait PreScore: Plugin {
    /// Prepares the scores; `all` are all nodes, `fitting` those that fit.
    fn pre_score(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        all: &Snapshot,
        fitting: &[Arc<NodeInfo>],
    );
}

/// Gives a node a score.
pub trait Score: Plugin {
    /// How much the score counts.
    fn weight(&self) -> i64;

    /// A score; 0 to [`MAX_SCORE`] after [`Score::normalize`].
    fn score(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64;

    /// Brings the scores of all nodes into their range.
    fn normalize(&self, _state: &CycleState, _scores: &mut [i64]) {}
}

/// Takes and gives back what the pod uses besides its node.
pub trait Reserve: Plugin {
    /// # Errors
    /// It cannot be had any more.
    fn reserve(&self, state: &mut CycleState, pod: &PodInfo, node: &str) -> Result<(), Rejection>;
    /// Gives back; also called where `reserve` was not.
    fn unreserve(&self, state: &mut CycleState, pod: &PodInfo, node: &str);
}

/// May hold a pod that has its node; the place of gang scheduling.
pub trait Permit: Plugin {
    /// Ends when the pod may go on.
    fn permit<'a>(
        &'a self,
        pod: &'a PodInfo,
        node: &'a str,
    ) -> BoxFuture<'a, Result<(), Rejection>>;
}

/// Does what must be done before a pod is bound; volume binding's place.
pub trait PreBind: Plugin {
    /// Ends when the pod may be bound.
    fn pre_bind<'a>(
        &'a self,
        pod: &'a PodInfo,
        node: &'a str,
    ) -> BoxFuture<'a, Result<(), ApiError>>;
}

/// Binds a pod to its node.
pub trait Bind: Plugin {
    /// Ends when the API server has it.
    fn bind<'a>(&'a self, pod: &'a PodInfo, node: &'a str) -> BoxFuture<'a, Result<(), ApiError>>;
}

/// The plugins at each point, in their order.
#[derive(Debug, Default)]
pub struct Profile {
    /// [`PreFilter`]s.
    pub pre_filters: Vec<Arc<dyn PreFilter>>,
    /// [`Filter`]s, the cheapest first.
    pub filters: Vec<Arc<dyn Filter>>,
    /// [`PostFilter`]s.
    pub post_filters: Vec<Arc<dyn PostFilter>>,
    /// [`PreScore`]s.
    pub pre_scores: Vec<Arc<dyn PreScore>>,
    /// [`Score`]s.
    pub scores: Vec<Arc<dyn Score>>,
    /// [`Reserve`]s.
    pub reserves: Vec<Arc<dyn Reserve>>,
    /// [`Permit`]s.
    pub permits: Vec<Arc<dyn Permit>>,
    /// [`PreBind`]s.
    pub pre_binds: Vec<Arc<dyn PreBind>>,
    /// [`Bind`]; none binds nothing, for tests of a cycle alone.
    pub bind: Option<Arc<dyn Bind>>,
}

impl Profile {
    /// Whether an event may help a pod that these plugins rejected.
    #[must_use]
    pub fn wakes(&self, rejected_by: &BTreeSet<&'static str>, event: ClusterEvent) -> bool {
        if rejected_by.is_empty() || event == ClusterEvent::Timeout {
            return true;
        }
        let filters = self.filters.iter().map(|p| (p.name(), p.wakes_on()));
        let pre = self.pre_filters.iter().map(|p| (p.name(), p.wakes_on()));
        filters
            .chain(pre)
            .any(|(name, events)| rejected_by.contains(name) && events.contains(&event))
    }
}

/// Scales scores so that the highest is [`MAX_SCORE`]; `reverse` turns them
/// around (`DefaultNormalizeScore`).
pub fn normalize(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        if max == 0 {
            *score = if reverse { MAX_SCORE } else { 0 };
            continue;
        }
        let scaled = MAX_SCORE * *score / max;
        *score = if reverse { MAX_SCORE - scaled } else { scaled };
    }
}
