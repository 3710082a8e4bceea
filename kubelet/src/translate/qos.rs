//! QoS classes, cgroup paths and the numbers written into cgroups
//! (node reference 1.5).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use rkube_engine::api::Resources;

use crate::pod::{self, Kind};
use crate::quantity;

/// Length of a CPU period.
pub const CPU_PERIOD_US: u64 = 100_000;
/// The least quota the kernel takes (`min_cfs_quota_period`, kernel/sched/core.c).
pub const MIN_CPU_QUOTA_US: u64 = 1_000;
/// The least shares (kernel/sched/fair.c, `MIN_SHARES`).
pub const MIN_CPU_SHARES: u64 = 2;
/// The most shares (kernel/sched/sched.h, `MAX_SHARES`).
pub const MAX_CPU_SHARES: u64 = 262_144;
/// `oom_score_adj` of Guaranteed containers.
pub const GUARANTEED_OOM_SCORE_ADJ: i32 = -997;
/// `oom_score_adj` of BestEffort containers.
pub const BEST_EFFORT_OOM_SCORE_ADJ: i32 = 1000;
/// Pods of this priority and above count as critical to the node.
pub const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// How a pod stands in the queue for resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QosClass {
    /// Every container has cpu and memory limits equal to its requests.
    Guaranteed,
    /// Something is requested or limited.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl QosClass {
    /// The name in `status.qosClass`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }

    /// The tier's path below rkube's cgroup parent.
    #[must_use]
    pub fn tier(self) -> &'static str {
        match self {
            Self::Guaranteed => "kubepods",
            Self::Burstable => "kubepods/burstable",
            Self::BestEffort => "kubepods/besteffort",
        }
    }

    /// A pod's cgroup path below rkube's parent.
    #[must_use]
    pub fn pod_cgroup(self, uid: &str) -> String {
        format!("{}/pod{uid}", self.tier())
    }
}

/// Requests and limits of a container or pod, requests defaulting to limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amounts {
    /// CPU requested, in thousandths.
    pub cpu_request: Option<u64>,
    /// CPU limit, in thousandths.
    pub cpu_limit: Option<u64>,
    /// Memory requested, in bytes.
    pub memory_request: Option<u64>,
    /// Memory limit, in bytes.
    pub memory_limit: Option<u64>,
}

impl Amounts {
    /// Reads requirements; zero counts as absent, as upstream has it.
    #[must_use]
    pub fn of(requirements: Option<&ResourceRequirements>) -> Self {
        let empty = BTreeMap::new();
        let requests = requirements
            .and_then(|r| r.requests.as_ref())
            .unwrap_or(&empty);
        let limits = requirements
            .and_then(|r| r.limits.as_ref())
            .unwrap_or(&empty);
        let read =
            |map: &BTreeMap<String, Quantity>, key: &str, f: fn(&Quantity) -> Option<u64>| {
                map.get(key).and_then(f).filter(|v| *v > 0)
            };
        // A request of zero is one, which no limit replaces.
        let default = |key: &str, request: Option<u64>, limit: Option<u64>| {
            if requests.contains_key(key) {
                request
            } else {
                limit
            }
        };
        let cpu_limit = read(limits, "cpu", quantity::millis);
        let memory_limit = read(limits, "memory", quantity::units);
        Self {
            cpu_request: default("cpu", read(requests, "cpu", quantity::millis), cpu_limit),
            cpu_limit,
            memory_request: default(
                "memory",
                read(requests, "memory", quantity::units),
                memory_limit,
            ),
            memory_limit,
        }
    }

    fn none(self) -> bool {
        self == Self::default()
    }

    fn guaranteed(self) -> bool {
        self.cpu_limit.is_some()
            && self.memory_limit.is_some()
            && self.cpu_limit == self.cpu_request
            && self.memory_limit == self.memory_request
    }
}

/// The pod's class: from `spec.resources` where the pod sets cpu or memory
/// there (KEP-2837), else from all its containers.
#[must_use]
pub fn class(pod: &Pod) -> QosClass {
    let own = Amounts::of(pod.spec.as_ref().and_then(|s| s.resources.as_ref()));
    let amounts: Vec<Amounts> = if own.none() {
        pod::containers(pod)
            .map(|(_, c)| Amounts::of(c.resources.as_ref()))
            .collect()
    } else {
        vec![own]
    };
    if amounts.iter().all(|a| a.none()) {
        QosClass::BestEffort
    } else if amounts.iter().all(|a| a.guaranteed()) {
        QosClass::Guaranteed
    } else {
        QosClass::Burstable
    }
}

/// Shares of so many thousandths of a CPU; none gives the least.
#[must_use]
pub fn cpu_shares(millis: Option<u64>) -> u64 {
    let shares = millis.unwrap_or(0).saturating_mul(1024) / 1000;
    shares.clamp(MIN_CPU_SHARES, MAX_CPU_SHARES)
}

/// Quota of so many thousandths of a CPU in each [`CPU_PERIOD_US`].
#[must_use]
pub fn cpu_quota_us(millis: u64) -> i64 {
    let quota = (millis.saturating_mul(CPU_PERIOD_US) / 1000).max(MIN_CPU_QUOTA_US);
    i64::try_from(quota).unwrap_or(i64::MAX)
}

/// `oom_score_adj` of a container: of Burstable pods, the less the more of
/// the host's memory it requested.
#[must_use]
pub fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity_bytes: u64) -> i32 {
    let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
    match class(pod) {
        _ if priority >= CRITICAL_PRIORITY => GUARANTEED_OOM_SCORE_ADJ,
        QosClass::Guaranteed => GUARANTEED_OOM_SCORE_ADJ,
        QosClass::BestEffort => BEST_EFFORT_OOM_SCORE_ADJ,
        QosClass::Burstable => {
            let request = Amounts::of(container.resources.as_ref())
                .memory_request
                .unwrap_or(0);
            let capacity = u128::from(memory_capacity_bytes.max(1));
            let thousandths = u128::from(request) * 1000 / capacity;
            let adj = 1000 - i32::try_from(thousandths.min(1000)).unwrap_or(1000);
            adj.clamp(
                1000 + GUARANTEED_OOM_SCORE_ADJ,
                BEST_EFFORT_OOM_SCORE_ADJ - 1,
            )
        }
    }
}

/// Limits of a container's cgroup. `oom_group`: one process that is OOM-killed
/// takes the others along.
#[must_use]
pub fn container_resources(container: &Container, oom_group: bool) -> Resources {
    let amounts = Amounts::of(container.resources.as_ref());
    Resources {
        cpu_shares: Some(cpu_shares(amounts.cpu_request)),
        cpu_quota_us: amounts.cpu_limit.map(cpu_quota_us),
        cpu_period_us: amounts.cpu_limit.map(|_| CPU_PERIOD_US),
        memory_limit_bytes: amounts.memory_limit.map(saturating_i64),
        // No swap for containers, as NoSwap has it.
        memory_swap_bytes: amounts.memory_limit.map(saturating_i64),
        oom_group,
        hugepages: hugepages(container),
        ..Resources::default()
    }
}

/// Hugepage limits by page size as the kernel names it (`hugepages-2Mi` is
/// `2MB`).
fn hugepages(container: &Container) -> BTreeMap<String, u64> {
    let Some(limits) = container.resources.as_ref().and_then(|r| r.limits.as_ref()) else {
        return BTreeMap::new();
    };
    let mut pages = BTreeMap::new();
    for (key, quantity) in limits {
        let Some(size) = key.strip_prefix("hugepages-") else {
            continue;
        };
        let kernel = size
            .replace("Ki", "KB")
            .replace("Mi", "MB")
            .replace("Gi", "GB");
        if let Some(bytes) = quantity::units(quantity) {
            pages.insert(kernel, bytes);
        }
    }
    pages
}

/// Requests and limits of a whole pod. Main containers and sidecars run
/// together and add up; an init container runs beside the sidecars before it,
/// and the largest need counts. A limit exists only if every container that
/// counts has one. `spec.resources` and `overhead` come on top (KEP-2837,
/// KEP-688).
#[must_use]
pub fn pod_amounts(pod: &Pod) -> Amounts {
    let field = |get: fn(&Amounts) -> Option<u64>, all: bool| {
        let mut sidecars = 0u64;
        let mut together = 0u64;
        let mut peak = 0u64;
        let mut missing = false;
        for (kind, container) in pod::containers(pod) {
            let amount = get(&Amounts::of(container.resources.as_ref()));
            missing |= amount.is_none();
            let amount = amount.unwrap_or(0);
            match kind {
                Kind::Init => peak = peak.max(sidecars.saturating_add(amount)),
                Kind::Sidecar => {
                    sidecars = sidecars.saturating_add(amount);
                    together = together.saturating_add(amount);
                    peak = peak.max(sidecars);
                }
                Kind::Main => together = together.saturating_add(amount),
            }
        }
        let sum = together.max(peak);
        (sum > 0 && !(all && missing)).then_some(sum)
    };
    let spec = pod::spec(pod);
    let own = Amounts::of(spec.resources.as_ref());
    let mut sum = Amounts {
        cpu_request: own.cpu_request.or_else(|| field(|a| a.cpu_request, false)),
        cpu_limit: own.cpu_limit.or_else(|| field(|a| a.cpu_limit, true)),
        memory_request: own
            .memory_request
            .or_else(|| field(|a| a.memory_request, false)),
        memory_limit: own.memory_limit.or_else(|| field(|a| a.memory_limit, true)),
    };
    if let Some(overhead) = &spec.overhead {
        let cpu = overhead.get("cpu").and_then(quantity::millis).unwrap_or(0);
        let memory = overhead
            .get("memory")
            .and_then(quantity::units)
            .unwrap_or(0);
        let add = |value: Option<u64>, more: u64| value.map(|v| v.saturating_add(more));
        sum.cpu_request = Some(sum.cpu_request.unwrap_or(0).saturating_add(cpu)).filter(|v| *v > 0);
        sum.memory_request =
            Some(sum.memory_request.unwrap_or(0).saturating_add(memory)).filter(|v| *v > 0);
        sum.cpu_limit = add(sum.cpu_limit, cpu);
        sum.memory_limit = add(sum.memory_limit, memory);
    }
    sum
}

/// Limits of a pod's cgroup.
#[must_use]
pub fn pod_resources(pod: &Pod) -> Resources {
    let amounts = pod_amounts(pod);
    Resources {
        cpu_shares: Some(cpu_shares(amounts.cpu_request)),
        cpu_quota_us: amounts.cpu_limit.map(cpu_quota_us),
        cpu_period_us: amounts.cpu_limit.map(|_| CPU_PERIOD_US),
        memory_limit_bytes: amounts.memory_limit.map(saturating_i64),
        ..Resources::default()
    }
}

/// Shares of the QoS tiers that pods share: Burstable gets the sum of its
/// pods' requests, BestEffort the least, and `kubepods` the host's CPUs.
/// `burstable_millis` is the sum over all Burstable pods of this writer.
#[must_use]
pub fn tier_resources(burstable_millis: u64, node_cpu_millis: u64) -> BTreeMap<String, Resources> {
    let shares = |millis| Resources {
        cpu_shares: Some(cpu_shares(millis)),
        ..Resources::default()
    };
    BTreeMap::from([
        (
            QosClass::Guaranteed.tier().to_owned(),
            shares(Some(node_cpu_millis)),
        ),
        (
            QosClass::Burstable.tier().to_owned(),
            shares(Some(burstable_millis)),
        ),
        (QosClass::BestEffort.tier().to_owned(), shares(None)),
    ])
}

fn saturating_i64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod as pod_of;
    use serde_json::json;

    fn with(resources: &[serde_json::Value]) -> Pod {
        let containers: Vec<_> = resources
            .iter()
            .enumerate()
            .map(|(i, r)| json!({"name": format!("c{i}"), "resources": r}))
            .collect();
        pod_of(json!({"containers": containers}))
    }

    #[test]
    fn classes() {
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        let equal = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}});
        assert_eq!(class(&with(&[full.clone(), equal])), QosClass::Guaranteed);
        assert_eq!(
            class(&with(&[full.clone(), json!({})])),
            QosClass::Burstable
        );
        assert_eq!(
            class(&with(&[json!({"requests": {"cpu": "1m"}})])),
            QosClass::Burstable
        );
        assert_eq!(
            class(&with(&[json!({}), json!({"limits": {"cpu": "0"}})])),
            QosClass::BestEffort
        );
        let mut pod = with(&[full]);
        pod.spec.as_mut().unwrap().init_containers = Some(vec![Container {
            name: "i".into(),
            ..Container::default()
        }]);
        assert_eq!(class(&pod), QosClass::Burstable);
        assert_eq!(class(&pod).pod_cgroup("x"), "kubepods/burstable/podx");
    }

    proptest::proptest! {
        /// The values crate decides the class for API objects; both agree.
        #[test]
        fn classes_agree_with_the_values_crate(
            parts in proptest::collection::vec((0usize..4, 0usize..4, 0usize..4, 0usize..4), 1..4),
        ) {
            let amounts = [None, Some("0"), Some("1"), Some("1000m")];
            let list: Vec<_> = parts.iter().map(|(a, b, c, d)| json!({
                "limits": {"cpu": amounts[*a], "memory": amounts[*b]},
                "requests": {"cpu": amounts[*c], "memory": amounts[*d]},
            })).collect();
            let strip = |value: &serde_json::Value| {
                let mut value = value.clone();
                for side in ["limits", "requests"] {
                    value[side].as_object_mut().unwrap().retain(|_, v| !v.is_null());
                }
                value
            };
            let pod = with(&list.iter().map(strip).collect::<Vec<_>>());
            let mut value = serde_json::to_value(&pod).unwrap();
            rkube_api::pod::default(&mut value);
            proptest::prop_assert_eq!(class(&pod).as_str(), rkube_api::pod::qos(&value).as_str(), "{}", value);
        }
    }

    #[test]
    fn numbers_of_the_reference() {
        assert_eq!(cpu_shares(None), 2);
        assert_eq!(cpu_shares(Some(1)), 2);
        assert_eq!(cpu_shares(Some(100)), 102);
        assert_eq!(cpu_shares(Some(1000)), 1024);
        assert_eq!(cpu_shares(Some(u64::MAX)), 262_144);
        assert_eq!(cpu_quota_us(100), 10_000);
        assert_eq!(cpu_quota_us(5), 1_000);
    }

    #[test]
    fn oom_scores() {
        let adj =
            |pod: &Pod| oom_score_adj(pod, &pod.spec.as_ref().unwrap().containers[0], 4 << 30);
        assert_eq!(adj(&with(&[json!({})])), 1000);
        assert_eq!(
            adj(&with(&[json!({"limits": {"cpu": "1", "memory": "1Gi"}})])),
            -997
        );
        assert_eq!(adj(&with(&[json!({"requests": {"memory": "1Gi"}})])), 750);
        assert_eq!(adj(&with(&[json!({"requests": {"memory": "1"}})])), 999);
        assert_eq!(adj(&with(&[json!({"requests": {"memory": "100Gi"}})])), 3);
    }

    #[test]
    fn pods_add_up_and_limits_need_every_container() {
        let limit = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        let both = pod_resources(&with(&[limit.clone(), limit.clone()]));
        assert_eq!(
            (both.cpu_quota_us, both.memory_limit_bytes),
            (Some(200_000), Some(2 << 30))
        );
        assert_eq!(both.cpu_shares, Some(2048));
        let one = pod_resources(&with(&[limit, json!({})]));
        assert_eq!((one.cpu_quota_us, one.memory_limit_bytes), (None, None));
        assert_eq!(one.cpu_shares, Some(1024));
    }

    #[test]
    fn init_containers_count_when_they_need_more() {
        let pod = pod_of(json!({
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "i", "resources": {"requests": {"cpu": "3"}}}],
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]}));
        assert_eq!(pod_amounts(&pod).cpu_request, Some(3100));
    }

    #[test]
    fn the_pods_own_resources_win() {
        let pod = pod_of(json!({"resources": {"limits": {"cpu": "2"}},
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]}));
        assert_eq!(pod_amounts(&pod).cpu_limit, Some(2000));
        assert_eq!(class(&pod), QosClass::Burstable);
    }
}
