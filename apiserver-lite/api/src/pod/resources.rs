//! Effective requests and limits of a pod, and its QoS class.
//!
//! Rules: `k8s.io/component-helpers/resource` and
//! `pkg/apis/core/v1/helper/qos` of release 1.36, pod-level resources included.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::field::{ErrorKind, Errors};
use crate::names;
use crate::quantity::Quantity;
use crate::view::At;

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

/// The quality of service class of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Qos {
    /// Every container has limits for cpu and memory equal to its requests.
    Guaranteed,
    /// Anything between.
    Burstable,
    /// No requests or limits for cpu and memory at all.
    BestEffort,
}

impl Qos {
    /// The name as in `status.qosClass`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// What a pod takes as a whole.
#[derive(Debug, Clone, Default)]
pub struct Effective {
    /// Requests, overhead included.
    pub requests: Amounts,
    /// Limits, overhead included. For a resource that some container does not
    /// limit this is a sum of the others, not a bound: see `unbounded`.
    pub limits: Amounts,
    /// Resources among `cpu` and `memory` that some container does not limit
    /// (and the pod does not either).
    pub unbounded: Vec<&'static str>,
}

/// Whether a resource may be given for a pod as a whole.
#[must_use]
pub fn supports_pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

fn amounts(list: Option<&Value>) -> Amounts {
    let entries = list.and_then(Value::as_object).into_iter().flatten();
    entries
        .filter_map(|(name, v)| Some((name.clone(), Quantity::from_json(v).ok()?)))
        .collect()
}

fn add(sum: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let old = sum.get(name).copied().unwrap_or(Quantity::ZERO);
        // The sum of what fits an i128 of nano-units 1e10 times over.
        sum.insert(name.clone(), old.checked_add(*amount).unwrap_or(*amount));
    }
}

fn raise(high: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        if high.get(name).is_none_or(|old| old < amount) {
            high.insert(name.clone(), *amount);
        }
    }
}

fn list<'a>(spec: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    spec.get(name)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// Whether an init container is a sidecar.
#[must_use]
pub fn is_sidecar(init_container: &Value) -> bool {
    init_container.get("restartPolicy").and_then(Value::as_str) == Some("Always")
}

/// Sums `requests` or `limits` over containers: those that run side by side,
/// or the largest moment of the init phase, whichever is more.
fn over_containers(spec: &Value, which: &str) -> Amounts {
    let of = |container: &Value| amounts(container.get("resources").and_then(|r| r.get(which)));
    let mut sum = Amounts::new();
    for container in list(spec, "containers") {
        add(&mut sum, &of(container));
    }
    let (mut sidecars, mut init_peak) = (Amounts::new(), Amounts::new());
    for container in list(spec, "initContainers") {
        let own = of(container);
        if is_sidecar(container) {
            add(&mut sum, &own);
            add(&mut sidecars, &own);
            raise(&mut init_peak, &sidecars);
        } else {
            let mut moment = sidecars.clone();
            add(&mut moment, &own);
            raise(&mut init_peak, &moment);
        }
    }
    raise(&mut sum, &init_peak);
    sum
}

/// The requests of all containers of a pod spec together.
pub(super) fn sum_container_requests(spec: &Value) -> Amounts {
    over_containers(spec, "requests")
}

/// What a (defaulted) pod takes as a whole.
#[must_use]
pub fn effective(pod: &Value) -> Effective {
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let pod_level = spec.get("resources");
    let mut requests = over_containers(spec, "requests");
    let mut limits = over_containers(spec, "limits");
    for (sum, which) in [(&mut requests, "requests"), (&mut limits, "limits")] {
        let own = amounts(pod_level.and_then(|r| r.get(which)));
        sum.extend(own.into_iter().filter(|(name, _)| supports_pod_level(name)));
    }
    let bounds = |container: &Value, name: &str| {
        let limits = container.get("resources").and_then(|r| r.get("limits"));
        amounts(limits).get(name).is_some_and(|q| !q.is_zero())
    };
    let pod_limits = amounts(pod_level.and_then(|r| r.get("limits")));
    let mut unbounded = Vec::new();
    for name in ["cpu", "memory"] {
        let mut bounding =
            list(spec, "containers").chain(list(spec, "initContainers").filter(|c| is_sidecar(c)));
        if !pod_limits.contains_key(name) && !bounding.all(|c| bounds(c, name)) {
            unbounded.push(name);
        }
    }
    let overhead = amounts(spec.get("overhead"));
    add(&mut requests, &overhead);
    let limited: Amounts = overhead
        .into_iter()
        .filter(|(n, _)| limits.get(n).is_some_and(|q| !q.is_zero()))
        .collect();
    add(&mut limits, &limited);
    Effective {
        requests,
        limits,
        unbounded,
    }
}

/// The QoS class of a (defaulted) pod.
#[must_use]
pub fn qos(pod: &Value) -> Qos {
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let positive = |resources: Option<&Value>, which: &str| -> Amounts {
        let mut found = amounts(resources.and_then(|r| r.get(which)));
        found.retain(|name, q| matches!(name.as_str(), "cpu" | "memory") && q.sign() > 0);
        found
    };
    let (mut requests, mut limits) = (Amounts::new(), Amounts::new());
    let mut guaranteed = true;
    if let Some(pod_level) = spec.get("resources").filter(|r| !r.is_null()) {
        requests = positive(Some(pod_level), "requests");
        limits = positive(Some(pod_level), "limits");
        guaranteed = limits.len() == 2;
    } else {
        for container in list(spec, "containers").chain(list(spec, "initContainers")) {
            let own = container.get("resources");
            add(&mut requests, &positive(own, "requests"));
            let own_limits = positive(own, "limits");
            guaranteed &= own_limits.len() == 2;
            add(&mut limits, &own_limits);
        }
    }
    if requests.is_empty() && limits.is_empty() {
        return Qos::BestEffort;
    }
    let equal = requests.len() == limits.len()
        && requests.iter().all(|(name, q)| limits.get(name) == Some(q));
    if guaranteed && equal {
        Qos::Guaranteed
    } else {
        Qos::Burstable
    }
}

fn is_hugepages(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Extended resources and huge pages cannot be overcommitted.
fn may_overcommit(name: &str) -> bool {
    is_native(name) && !is_hugepages(name)
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Names of one word that mean something somewhere in the API (`standardResources`).
fn is_standard(name: &str) -> bool {
    const NAMES: [&str; 18] = [
        "cpu",
        "memory",
        "ephemeral-storage",
        "requests.cpu",
        "requests.memory",
        "requests.ephemeral-storage",
        "limits.cpu",
        "limits.memory",
        "limits.ephemeral-storage",
        "pods",
        "resourcequotas",
        "services",
        "replicationcontrollers",
        "secrets",
        "configmaps",
        "persistentvolumeclaims",
        "storage",
        "requests.storage",
    ];
    NAMES.contains(&name) || is_hugepages(name)
}

/// A device's name: qualified, and so behind `requests.` as quotas write it.
fn is_extended(name: &str) -> bool {
    !name.starts_with("requests.") && names::qualified_name(&format!("requests.{name}")).is_empty()
}

fn validate_name(errors: &mut Errors, at: &At<'_, '_>, name: &str) {
    let mut rules = names::qualified_name(name);
    let broken = !rules.is_empty();
    let mut add = |rule: &str| rules.push(rule.to_owned());
    if !name.contains('/') {
        if !broken && !is_standard(name) {
            add("must be a standard resource type or fully qualified");
        }
        let ours = matches!(name, "cpu" | "memory" | "ephemeral-storage") || is_hugepages(name);
        if !ours {
            add("must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        add("doesn't follow extended resource name standard");
    }
    for rule in rules {
        at.error_value(errors, ErrorKind::Invalid, format!("{name:?}"), rule);
    }
}

/// Rules for one `resources` of a container, or of a pod.
pub(super) fn validate(errors: &mut Errors, at: &At<'_, '_>, pod_level: bool) {
    let limits_at = at.get("limits");
    let requests_at = at.get("requests");
    let (mut huge, mut cpu_or_memory) = (false, false);
    for list in [&limits_at, &requests_at] {
        for (name, value) in list.entries() {
            if pod_level && !supports_pod_level(name) {
                let shown = format!("{name:?}");
                value.error_value(
                    errors,
                    ErrorKind::NotSupported,
                    shown,
                    crate::view::supported_values(&["cpu", "hugepages-", "memory"]),
                );
                continue;
            }
            validate_name(errors, &value, name);
            validate_amount(errors, &value, name);
            huge |= is_hugepages(name);
            cpu_or_memory |= matches!(name, "cpu" | "memory");
        }
    }
    let (limits, requests) = (
        amounts(Some(limits_at.value())),
        amounts(Some(requests_at.value())),
    );
    for (name, request) in &requests {
        let shown = format!("\"{request}\"");
        match limits.get(name) {
            Some(limit) if request != limit && !may_overcommit(name) => {
                let rule = format!("must be equal to {name} limit of {limit}");
                requests_at.error_value(errors, ErrorKind::Invalid, shown, rule);
            }
            Some(limit) if request > limit => {
                let rule = format!("must be less than or equal to {name} limit of {limit}");
                requests_at.error_value(errors, ErrorKind::Invalid, shown, rule);
            }
            None if !may_overcommit(name) => {
                limits_at.required(errors, "Limit must be set for non overcommitable resources");
            }
            _ => {}
        }
    }
    if huge && !cpu_or_memory {
        at.forbidden(errors, "HugePages require cpu or memory");
    }
}

/// A quantity of a resource: not negative, whole where only whole makes sense.
pub(crate) fn validate_amount(errors: &mut Errors, at: &At<'_, '_>, name: &str) {
    let Ok(quantity) = Quantity::from_json(at.value()) else {
        return;
    };
    let shown = format!("\"{quantity}\"");
    if quantity.sign() < 0 {
        at.error_value(
            errors,
            ErrorKind::Invalid,
            shown.as_str(),
            "must be greater than or equal to 0",
        );
    }
    if (!is_native(name) || is_hugepages(name)) && quantity.milli_value() % 1000 != 0 {
        at.error_value(errors, ErrorKind::Invalid, shown, "must be an integer");
    }
}
