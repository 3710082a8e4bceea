//! The node's object: pure functions from facts to what the API shows.

use std::collections::BTreeMap;
use std::time::SystemTime;

use rkube_kubelet::time::api_time;
use serde_json::{Map, Value, json};

use super::facts::HostFacts;
use crate::admit::Budget;

/// Most pods of a node (the kubelet's default).
pub const DEFAULT_MAX_PODS: usize = 110;
/// Memory that stays free for the host: the kubelet's default hard eviction
/// threshold, `memory.available<100Mi`.
pub const EVICTION_MEMORY_BYTES: u64 = 100 << 20;
/// Most images that a status names (the kubelet's `nodeStatusMaxImages`).
pub const MAX_IMAGES: usize = 50;
/// Share of the storage that stays free, in percent: `nodefs.available<10%`.
const EVICTION_STORAGE_PERCENT: u64 = 10;

/// What a node is registered with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Registration {
    /// Its name.
    pub name: String,
    /// Labels beside the well-known ones.
    pub labels: BTreeMap<String, String>,
    /// Taints, as `key=value:effect` was read.
    pub taints: Vec<Taint>,
    /// Not to be scheduled on at first.
    pub unschedulable: bool,
}

/// One taint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taint {
    /// The key.
    pub key: String,
    /// The value, may be empty.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

impl Taint {
    /// Reads `key[=value]:effect`.
    ///
    /// # Errors
    /// It is none; the sentence says why.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (rest, effect) = text
            .rsplit_once(':')
            .ok_or_else(|| format!("taint {text:?} is not KEY[=VALUE]:EFFECT"))?;
        if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
            return Err(format!(
                "taint {text:?}: the effect is NoSchedule, PreferNoSchedule or NoExecute"
            ));
        }
        let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
        if key.is_empty() {
            return Err(format!("taint {text:?} has no key"));
        }
        Ok(Self {
            key: key.to_owned(),
            value: value.to_owned(),
            effect: effect.to_owned(),
        })
    }
}

/// An image of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeImage {
    /// Its names.
    pub names: Vec<String>,
    /// Its size in bytes.
    pub bytes: u64,
}

/// What changes while the node runs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Now {
    /// CPU that pods of `rkube run` request, in thousandths.
    pub other_cpu_millis: u64,
    /// Memory that they request, in bytes.
    pub other_memory_bytes: u64,
    /// How many there are.
    pub other_pods: usize,
    /// Images, in any order.
    pub images: Vec<NodeImage>,
    /// Why the node is not ready; `None` if it is.
    pub not_ready: Option<String>,
}

/// Sizes and versions that do not change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fixed {
    /// The host.
    pub host: HostFacts,
    /// Most pods.
    pub max_pods: usize,
    /// The port of the node's own API.
    pub kubelet_port: u16,
    /// `v1.36.0+rkube...`: the API that the node speaks.
    pub kubelet_version: String,
    /// `rkube://VERSION`.
    pub runtime_version: String,
}

/// What pods of the API may request together.
#[must_use]
pub fn budget(fixed: &Fixed, now: &Now) -> Budget {
    let host = &fixed.host;
    Budget {
        cpu_millis: host.cpu_millis.saturating_sub(now.other_cpu_millis),
        memory_bytes: host
            .memory_bytes
            .saturating_sub(EVICTION_MEMORY_BYTES)
            .saturating_sub(now.other_memory_bytes),
        pods: fixed.max_pods.saturating_sub(now.other_pods),
    }
}

/// The labels that every node has.
#[must_use]
pub fn well_known_labels(host: &HostFacts, name: &str) -> BTreeMap<String, String> {
    let pairs = [
        ("beta.kubernetes.io/arch", host.architecture),
        ("beta.kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", host.architecture),
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
    ];
    pairs
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

/// A node as it is first created, without status.
#[must_use]
pub fn new_node(registration: &Registration, host: &HostFacts) -> Value {
    let mut labels = well_known_labels(host, &registration.name);
    labels.extend(registration.labels.clone());
    let taints: Vec<Value> = registration
        .taints
        .iter()
        .map(|t| json!({"key": t.key, "value": t.value, "effect": t.effect}))
        .collect();
    let mut spec = Map::new();
    if !taints.is_empty() {
        spec.insert("taints".to_owned(), taints.into());
    }
    if registration.unschedulable {
        spec.insert("unschedulable".to_owned(), true.into());
    }
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": registration.name,
            "labels": labels,
            "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
        },
        "spec": spec,
    })
}

fn resources(cpu_millis: u64, memory: u64, storage: u64, pods: usize, host: &HostFacts) -> Value {
    let cpu = if cpu_millis.is_multiple_of(1000) {
        (cpu_millis / 1000).to_string()
    } else {
        format!("{cpu_millis}m")
    };
    let mut out = json!({
        "cpu": cpu,
        "memory": format!("{}Ki", memory / 1024),
        "ephemeral-storage": storage.to_string(),
        "pods": pods.to_string(),
    });
    for (size, bytes) in &host.hugepages {
        let name = if *size >= 1 << 30 {
            format!("hugepages-{}Gi", size >> 30)
        } else if *size >= 1 << 20 {
            format!("hugepages-{}Mi", size >> 20)
        } else {
            format!("hugepages-{}Ki", size >> 10)
        };
        out[name] = if *bytes == 0 {
            "0".into()
        } else {
            format!("{}Ki", bytes / 1024).into()
        };
    }
    out
}

/// The whole status, with conditions whose times are `now`; what did not
/// change gets its times back from the API's ([`super::status_patch`]).
#[must_use]
pub fn status(fixed: &Fixed, now: &Now, at: SystemTime) -> Value {
    let host = &fixed.host;
    let left = budget(fixed, now);
    let mut addresses: Vec<Value> = host
        .addresses
        .iter()
        .map(|ip| json!({"type": "InternalIP", "address": ip.to_string()}))
        .collect();
    addresses.push(json!({"type": "Hostname", "address": host.hostname}));
    let mut images = now.images.clone();
    images.sort_unstable_by(|a, b| (b.bytes, &a.names).cmp(&(a.bytes, &b.names)));
    let images: Vec<Value> = images
        .into_iter()
        .take(MAX_IMAGES)
        .map(|i| json!({"names": i.names, "sizeBytes": i.bytes}))
        .collect();
    let storage_left = host.storage_bytes / 100 * (100 - EVICTION_STORAGE_PERCENT);
    json!({
        "capacity": resources(host.cpu_millis, host.memory_bytes, host.storage_bytes, fixed.max_pods, host),
        "allocatable": resources(left.cpu_millis, left.memory_bytes, storage_left, left.pods, host),
        "conditions": conditions(now, at),
        "addresses": addresses,
        "daemonEndpoints": {"kubeletEndpoint": {"Port": fixed.kubelet_port}},
        "nodeInfo": {
            "machineID": host.machine_id,
            "systemUUID": host.system_uuid,
            "bootID": host.boot_id,
            "kernelVersion": host.kernel,
            "osImage": host.os_image,
            "containerRuntimeVersion": fixed.runtime_version,
            "kubeletVersion": fixed.kubelet_version,
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": host.architecture,
        },
        "images": images,
        "runtimeHandlers": [{"name": "", "features": {"recursiveReadOnlyMounts": true, "userNamespaces": false}}],
    })
}

fn conditions(now: &Now, at: SystemTime) -> Vec<Value> {
    let time = api_time(at);
    let condition = |kind: &str, holds: bool, reason: &str, message: &str| {
        json!({
            "type": kind,
            "status": if holds { "True" } else { "False" },
            "lastHeartbeatTime": time,
            "lastTransitionTime": time,
            "reason": reason,
            "message": message,
        })
    };
    let ready = match &now.not_ready {
        None => condition(
            "Ready",
            true,
            "KubeletReady",
            "kubelet is posting ready status",
        ),
        Some(why) => condition("Ready", false, "KubeletNotReady", why),
    };
    vec![
        condition(
            "MemoryPressure",
            false,
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
        condition(
            "DiskPressure",
            false,
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure",
        ),
        condition(
            "PIDPressure",
            false,
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        ),
        // Upstream keeps Ready last, so that a reader sees the others first.
        ready,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn fixed() -> Fixed {
        Fixed {
            host: HostFacts {
                cpu_millis: 2000,
                memory_bytes: 1 << 30,
                storage_bytes: 1000,
                hugepages: vec![(2 << 20, 4 << 20), (1 << 30, 0)],
                addresses: vec!["192.0.2.1".parse().unwrap()],
                hostname: "h".to_owned(),
                architecture: "amd64",
                ..HostFacts::default()
            },
            max_pods: 110,
            kubelet_port: 10250,
            kubelet_version: "v1".to_owned(),
            runtime_version: "rkube://0".to_owned(),
        }
    }

    #[test]
    fn pods_of_rkube_run_are_taken_off() {
        let now = Now {
            other_cpu_millis: 250,
            other_memory_bytes: 100 << 20,
            other_pods: 2,
            not_ready: Some("no network".to_owned()),
            ..Now::default()
        };
        let status = status(&fixed(), &now, SystemTime::UNIX_EPOCH);
        assert_eq!(
            status["capacity"],
            json!({"cpu": "2", "memory": "1048576Ki", "ephemeral-storage": "1000", "pods": "110",
                "hugepages-2Mi": "4096Ki", "hugepages-1Gi": "0"})
        );
        assert_eq!(
            status["allocatable"],
            json!({"cpu": "1750m", "memory": "843776Ki", "ephemeral-storage": "900", "pods": "108",
                "hugepages-2Mi": "4096Ki", "hugepages-1Gi": "0"})
        );
        assert_eq!(status["conditions"][3]["status"], "False");
        assert_eq!(status["conditions"][3]["message"], "no network");
        let typed: k8s_openapi::api::core::v1::NodeStatus = serde_json::from_value(status).unwrap();
        assert_eq!(typed.addresses.unwrap().len(), 2);
    }

    #[test]
    fn the_largest_images_are_named() {
        let image = |n: u64| NodeImage {
            names: vec![format!("i{n}")],
            bytes: n,
        };
        let now = Now {
            images: (0..60).map(image).collect(),
            ..Now::default()
        };
        let status = status(&fixed(), &now, SystemTime::UNIX_EPOCH);
        let images = status["images"].as_array().unwrap();
        assert_eq!((images.len(), &images[0]["sizeBytes"]), (50, &json!(59)));
    }

    #[test]
    fn taints_are_read() {
        let taint = Taint::parse("a/b=c:NoExecute").unwrap();
        assert_eq!(
            (
                taint.key.as_str(),
                taint.value.as_str(),
                taint.effect.as_str()
            ),
            ("a/b", "c", "NoExecute")
        );
        assert_eq!(Taint::parse("a:NoSchedule").unwrap().value, "");
        for wrong in ["a", "a=b", "a=b:Never", ":NoSchedule"] {
            assert!(Taint::parse(wrong).is_err(), "{wrong}");
        }
    }
}
