//! What the node tells of its pods and their use of resources.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use rkube_engine::ContainerStats;
use rkube_kubelet::manager::Source;
use rkube_kubelet::pod;
use rkube_kubelet::time::api_time;
use serde_json::{Value, json};

use crate::Agent;

/// Nanoseconds in a microsecond.
const NS_PER_US: u64 = 1000;

/// The pods of the API on this node, as a list.
pub(super) fn pods(agent: &Agent) -> Value {
    let items: Vec<Value> = agent.pods().all().iter().map(|pod| json!(**pod)).collect();
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

fn usage(stats: &ContainerStats) -> (u64, u64) {
    let cpu = stats.stats.cpu.usage_usec.unwrap_or(0);
    let memory = stats.stats.memory.as_ref();
    (cpu, memory.map_or(0, |m| m.working_set_bytes))
}

/// `stats/v1alpha1` `Summary`: nodes, pods and containers with their use of
/// processors and memory. Rates are for whoever asks twice to compute.
pub(super) fn summary(agent: &Agent) -> Value {
    let now = json!(api_time(std::time::SystemTime::now()));
    let mut by_pod: BTreeMap<String, Vec<ContainerStats>> = BTreeMap::new();
    for stats in agent.engine().stats() {
        by_pod
            .entry(stats.id.sandbox.clone())
            .or_default()
            .push(stats);
    }
    let mut total = (0_u64, 0_u64);
    let mut pods = Vec::new();
    for view in agent.manager().list() {
        let Some(list) = by_pod.get(&view.uid) else {
            continue;
        };
        let mut sum = (0_u64, 0_u64);
        let mut containers = Vec::new();
        for stats in list {
            let (cpu, memory) = usage(stats);
            sum = (sum.0.saturating_add(cpu), sum.1.saturating_add(memory));
            containers.push(json!({
                "name": stats.id.name,
                "cpu": {"time": now, "usageCoreNanoSeconds": cpu.saturating_mul(NS_PER_US)},
                "memory": memory_of(stats, &now),
            }));
        }
        total = (total.0.saturating_add(sum.0), total.1.saturating_add(sum.1));
        if view.source == Source::Api {
            pods.push(json!({
                "podRef": {
                    "name": pod::name(&view.pod),
                    "namespace": pod::namespace(&view.pod),
                    "uid": view.uid,
                },
                "startTime": view.pod.status.as_ref().map(|s| &s.start_time),
                "containers": containers,
                "cpu": {"time": now, "usageCoreNanoSeconds": sum.0.saturating_mul(NS_PER_US)},
                "memory": {"time": now, "workingSetBytes": sum.1},
            }));
        }
    }
    json!({
        "node": {
            "nodeName": agent.node_name(),
            "cpu": {"time": now, "usageCoreNanoSeconds": total.0.saturating_mul(NS_PER_US)},
            "memory": {"time": now, "workingSetBytes": total.1},
        },
        "pods": pods,
    })
}

fn memory_of(stats: &ContainerStats, now: &Value) -> Value {
    let Some(memory) = &stats.stats.memory else {
        return Value::Null;
    };
    json!({
        "time": now,
        "usageBytes": memory.usage_bytes,
        "workingSetBytes": memory.working_set_bytes,
        "rssBytes": memory.rss_bytes,
        "pageFaults": memory.page_faults,
        "majorPageFaults": memory.major_faults,
    })
}

/// The Prometheus text format, with upstream's names.
pub(super) fn metrics(agent: &Agent) -> String {
    let (mut running, mut ended) = (0_u64, 0_u64);
    for view in agent.manager().list() {
        if view.finished {
            ended += 1;
        } else {
            running += 1;
        }
    }
    let containers = agent.engine().stats().len();
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = write!(
        text,
        "# TYPE kubelet_running_pods gauge\nkubelet_running_pods {running}\n\
         # TYPE kubelet_running_containers gauge\n\
         kubelet_running_containers{{container_state=\"running\"}} {containers}\n\
         # TYPE kubelet_desired_pods gauge\nkubelet_desired_pods {}\n",
        running + ended
    );
    text
}
