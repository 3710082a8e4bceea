//! Terms that pods say about other pods, read once: pod affinity and topology
//! spread.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as TypedSelector;
use rkube_api::selector::LabelSelector;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

fn read(selector: Option<&TypedSelector>) -> LabelSelector {
    let nothing = LabelSelector {
        requirements: Vec::new(),
        nothing: true,
    };
    let Some(selector) = selector else {
        return nothing;
    };
    let value = rkube_api::value_of(selector).unwrap_or_default();
    LabelSelector::from_value(&value).unwrap_or(nothing)
}

pub(crate) fn matches(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    selector.matches_with(|key| labels.and_then(|l| l.get(key)).map(String::as_str))
}

/// One term of pod affinity or anti-affinity.
#[derive(Debug, Clone)]
pub struct Term {
    selector: LabelSelector,
    namespaces: BTreeSet<String>,
    /// `None`: only [`Term::namespaces`] count.
    namespace_selector: Option<LabelSelector>,
    /// The label of nodes that tells one place from another.
    pub topology_key: String,
    /// How much a preferred term counts; 0 for a required one.
    pub weight: i64,
}

impl Term {
    fn new(term: &PodAffinityTerm, weight: i32, own_namespace: &str) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(own_namespace.to_owned());
        }
        Self {
            selector: read(term.label_selector.as_ref()),
            namespaces,
            namespace_selector: term.namespace_selector.as_ref().map(|s| read(Some(s))),
            topology_key: term.topology_key.clone(),
            weight: weight.into(),
        }
    }

    /// Whether a pod is one that this term speaks of.
    #[must_use]
    pub fn matches(&self, pod: &Pod, namespaces: &HashMap<String, Labels>) -> bool {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let by_label = || {
            let selector = self.namespace_selector.as_ref();
            selector.is_some_and(|s| matches(s, namespaces.get(namespace)))
        };
        (self.namespaces.contains(namespace) || by_label())
            && matches(&self.selector, pod.metadata.labels.as_ref())
    }
}

/// What a pod demands and prefers of its neighbours.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// It must be with these.
    pub affinity: Vec<Term>,
    /// It must not be with these.
    pub anti_affinity: Vec<Term>,
    /// It likes to be with these, or (negative weights) away from them.
    pub preferred: Vec<Term>,
}

impl Terms {
    /// Reads a pod's terms.
    #[must_use]
    pub fn of(spec: Option<&PodSpec>, namespace: &str) -> Self {
        let mut terms = Self::default();
        let Some(affinity) = spec.and_then(|s| s.affinity.as_ref()) else {
            return terms;
        };
        if let Some(with) = &affinity.pod_affinity {
            let hard = with
                .required_during_scheduling_ignored_during_execution
                .iter();
            terms.affinity = hard.flatten().map(|t| Term::new(t, 0, namespace)).collect();
            let soft = with
                .preferred_during_scheduling_ignored_during_execution
                .iter();
            let soft = soft.flatten();
            terms
                .preferred
                .extend(soft.map(|t| Term::new(&t.pod_affinity_term, t.weight, namespace)));
        }
        if let Some(away) = &affinity.pod_anti_affinity {
            let hard = away
                .required_during_scheduling_ignored_during_execution
                .iter();
            terms.anti_affinity = hard.flatten().map(|t| Term::new(t, 0, namespace)).collect();
            let soft = away
                .preferred_during_scheduling_ignored_during_execution
                .iter();
            let soft = soft.flatten();
            terms
                .preferred
                .extend(soft.map(|t| Term::new(&t.pod_affinity_term, -t.weight, namespace)));
        }
        terms
    }

    /// Whether nothing is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.affinity.is_empty() && self.anti_affinity.is_empty() && self.preferred.is_empty()
    }
}

/// One topology spread constraint.
#[derive(Debug, Clone)]
pub struct Spread {
    /// Which pods are counted.
    pub selector: LabelSelector,
    /// The label of nodes that tells one place from another.
    pub topology_key: String,
    /// How many more pods than the emptiest place a place may have.
    pub max_skew: i64,
    /// In how many places pods have to be before the emptiest counts.
    pub min_domains: Option<usize>,
    /// Whether it is a demand, not a wish.
    pub hard: bool,
    /// Whether nodes that the pod's node affinity rules out are left out.
    pub honours_affinity: bool,
    /// Whether nodes whose taints the pod does not tolerate are left out.
    pub honours_taints: bool,
}

impl Spread {
    /// Reads a pod's constraints.
    #[must_use]
    pub fn all_of(pod: &Pod) -> Vec<Self> {
        let spec = pod.spec.as_ref();
        let constraints = spec.and_then(|s| s.topology_spread_constraints.as_ref());
        constraints
            .into_iter()
            .flatten()
            .map(|c| {
                let mut selector = read(c.label_selector.as_ref());
                for key in c.match_label_keys.iter().flatten() {
                    let labels = pod.metadata.labels.as_ref();
                    if let Some(value) = labels.and_then(|l| l.get(key)) {
                        selector
                            .requirements
                            .push(rkube_api::selector::Requirement {
                                key: key.clone(),
                                operator: rkube_api::selector::Operator::In(vec![value.clone()]),
                            });
                    }
                }
                Self {
                    selector,
                    topology_key: c.topology_key.clone(),
                    max_skew: c.max_skew.into(),
                    min_domains: c.min_domains.and_then(|n| usize::try_from(n).ok()),
                    hard: c.when_unsatisfiable == "DoNotSchedule",
                    honours_affinity: c.node_affinity_policy.as_deref() != Some("Ignore"),
                    honours_taints: c.node_taints_policy.as_deref() == Some("Honor"),
                }
            })
            .collect()
    }
}
