//! Pods and nodes with what the plugins ask of them, computed once.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Node, Pod, PodSpec, Taint, Toleration};
use rkube_api::pod::effective;
use rkube_client::ObjectKey;
use serde_json::{Value, json};

use crate::resource::Resources;
use crate::terms::{Spread, Terms};

/// What a container without a request counts as in scores, in thousandths of
/// a core (`DefaultMilliCPURequest`).
const SCORED_MILLI_CPU: &str = "100m";
/// The same for memory (`DefaultMemoryRequest`).
const SCORED_MEMORY: &str = "200Mi";
/// The address that stands for all of a node's.
const ANY_IP: &str = "0.0.0.0";

/// A port of the node that a pod holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// The node's address; `0.0.0.0` for all.
    pub ip: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The number.
    pub port: i32,
}

impl HostPort {
    /// Whether two pods cannot both have their port.
    #[must_use]
    pub fn conflicts(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == ANY_IP || other.ip == ANY_IP)
    }
}

/// A pod as the scheduler sees it.
#[derive(Debug, Clone)]
pub struct PodInfo {
    /// The object.
    pub pod: Arc<Pod>,
    /// Its namespace and name.
    pub key: ObjectKey,
    /// Its uid.
    pub uid: String,
    /// `spec.priority`.
    pub priority: i32,
    /// What it asks for, overhead included.
    pub requests: Resources,
    /// The same with upstream's stand-ins for containers that ask for
    /// nothing: cpu in thousandths, memory in bytes.
    pub scored: (i64, i64),
    /// The ports of the node that it takes.
    pub ports: Vec<HostPort>,
    /// The uid of the controller that owns it.
    pub owner: Option<String>,
    /// What it says of other pods.
    pub terms: Terms,
    /// Its topology spread constraints.
    pub spreads: Vec<Spread>,
}

impl PodInfo {
    /// Reads a pod.
    #[must_use]
    pub fn new(pod: Arc<Pod>) -> Self {
        let spec = rkube_api::value_of(&pod.spec).unwrap_or_default();
        let mut whole = json!({ "spec": spec });
        let requests = Resources::of_amounts(&effective(&whole).requests);
        let scored = if fill_requests(&mut whole) {
            let filled = Resources::of_amounts(&effective(&whole).requests);
            (filled.milli_cpu, filled.memory_bytes)
        } else {
            (requests.milli_cpu, requests.memory_bytes)
        };
        let meta = &pod.metadata;
        let owner = meta.owner_references.iter().flatten();
        let owner = owner
            .filter(|o| o.controller == Some(true))
            .map(|o| o.uid.clone())
            .next();
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        Self {
            terms: Terms::of(pod.spec.as_ref(), namespace),
            spreads: Spread::all_of(&pod),
            key: ObjectKey::of(&*pod),
            uid: meta.uid.clone().unwrap_or_default(),
            priority: pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0),
            requests,
            scored,
            ports: pod.spec.as_ref().map(host_ports).unwrap_or_default(),
            owner,
            pod,
        }
    }

    /// The spec, if there is one.
    #[must_use]
    pub fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }

    /// The tolerations.
    #[must_use]
    pub fn tolerations(&self) -> &[Toleration] {
        self.spec()
            .and_then(|s| s.tolerations.as_deref())
            .unwrap_or_default()
    }
}

/// Gives containers without requests upstream's stand-ins; tells whether any
/// needed one.
fn fill_requests(whole: &mut Value) -> bool {
    let mut filled = false;
    for list in ["containers", "initContainers"] {
        let containers = whole["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            for (name, amount) in [("cpu", SCORED_MILLI_CPU), ("memory", SCORED_MEMORY)] {
                if container["resources"]["requests"][name].is_null() {
                    if container["resources"].is_null() {
                        container["resources"] = json!({});
                    }
                    container["resources"]["requests"][name] = amount.into();
                    filled = true;
                }
            }
        }
    }
    filled
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let of = |container: &Container| -> Vec<HostPort> {
        let ports = container.ports.iter().flatten();
        ports
            .filter_map(|port| {
                let number = port.host_port.filter(|n| *n > 0)?;
                let ip = port.host_ip.clone().filter(|ip| !ip.is_empty());
                Some(HostPort {
                    ip: ip.unwrap_or_else(|| ANY_IP.to_owned()),
                    protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                    port: number,
                })
            })
            .collect()
    };
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(of)
        .collect()
}

/// A node as the scheduler sees it, with the pods that are on it or about to
/// be.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    /// The name.
    pub name: String,
    /// The object; `None` where pods are known and their node is not (yet, or
    /// any more).
    pub node: Option<Arc<Node>>,
    /// What it has for pods.
    pub allocatable: Resources,
    /// What its pods ask for.
    pub requested: Resources,
    /// What its pods count as in scores: cpu in thousandths, memory in bytes.
    pub scored: (i64, i64),
    /// Its pods by uid.
    pub pods: HashMap<String, Arc<PodInfo>>,
    /// Sizes of the images that it has, in bytes, by name.
    pub images: HashMap<String, i64>,
}

impl NodeInfo {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            node: None,
            allocatable: Resources::default(),
            requested: Resources::default(),
            scored: (0, 0),
            pods: HashMap::new(),
            images: HashMap::new(),
        }
    }

    pub(crate) fn set_node(&mut self, node: Arc<Node>) {
        let status = node.status.as_ref();
        let allocatable = status.and_then(|s| s.allocatable.as_ref());
        self.allocatable = allocatable.map(Resources::of_texts).unwrap_or_default();
        self.images.clear();
        for image in status.and_then(|s| s.images.as_ref()).into_iter().flatten() {
            for name in image.names.iter().flatten() {
                self.images
                    .insert(name.clone(), image.size_bytes.unwrap_or(0));
            }
        }
        self.node = Some(node);
    }

    /// Adds a pod; one of the same uid gives way.
    pub(crate) fn add(&mut self, pod: Arc<PodInfo>) {
        self.remove(&pod.uid);
        self.requested.add(&pod.requests);
        self.scored.0 += pod.scored.0;
        self.scored.1 += pod.scored.1;
        self.pods.insert(pod.uid.clone(), pod);
    }

    /// Takes a pod off; tells whether it was there.
    pub(crate) fn remove(&mut self, uid: &str) -> bool {
        let Some(pod) = self.pods.remove(uid) else {
            return false;
        };
        self.requested.subtract(&pod.requests);
        self.scored.0 -= pod.scored.0;
        self.scored.1 -= pod.scored.1;
        true
    }

    /// The labels of the node.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        let labels = self.node.as_ref()?.metadata.labels.as_ref()?;
        labels.get(key).map(String::as_str)
    }

    /// The taints of the node.
    #[must_use]
    pub fn taints(&self) -> &[Taint] {
        let spec = self.node.as_ref().and_then(|n| n.spec.as_ref());
        spec.and_then(|s| s.taints.as_deref()).unwrap_or_default()
    }

    /// Whether the node is cordoned.
    #[must_use]
    pub fn is_unschedulable(&self) -> bool {
        let spec = self.node.as_ref().and_then(|n| n.spec.as_ref());
        spec.and_then(|s| s.unschedulable).unwrap_or(false)
    }
}

/// Whether a toleration covers a taint (`ToleratesTaint`).
#[must_use]
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let effect = text(&toleration.effect);
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let key = text(&toleration.key);
    if !key.is_empty() && key != taint.key {
        return false;
    }
    let (own, other) = (text(&toleration.value), text(&taint.value));
    let numbers = || Some((own.parse::<i64>().ok()?, other.parse::<i64>().ok()?));
    match text(&toleration.operator).as_str() {
        "" | "Equal" => own == other,
        "Exists" => true,
        "Gt" => numbers().is_some_and(|(bound, value)| value > bound),
        "Lt" => numbers().is_some_and(|(bound, value)| value < bound),
        _ => false,
    }
}
