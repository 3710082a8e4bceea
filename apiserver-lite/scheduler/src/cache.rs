//! What is known of nodes and their pods, and snapshots of it.
//!
//! A pod that was given a node is *assumed* there at once, before the API
//! server has it, so that the next pod sees its place taken. It is confirmed
//! by the watch, or forgotten when binding fails.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};

use crate::info::{NodeInfo, PodInfo};
use crate::terms::Labels;

/// A consistent view for one scheduling cycle. Nodes without an object (their
/// pods are known and they are not) are left out.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The nodes, ordered by name.
    pub nodes: Vec<Arc<NodeInfo>>,
    /// The labels of namespaces, for selectors of namespaces.
    pub namespaces: Arc<HashMap<String, Labels>>,
}

impl Snapshot {
    /// A node by name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<NodeInfo>> {
        let at = self.nodes.binary_search_by(|n| n.name.as_str().cmp(name));
        at.ok().and_then(|i| self.nodes.get(i))
    }
}

/// The cache. Every change costs what it changes, and a snapshot costs what
/// changed since the last one.
#[derive(Debug, Default)]
pub struct Cache {
    nodes: HashMap<String, Arc<NodeInfo>>,
    /// Where each pod is, by uid.
    places: HashMap<String, String>,
    assumed: HashSet<String>,
    /// Nodes that differ from the last snapshot.
    dirty: HashSet<String>,
    namespaces: Arc<HashMap<String, Labels>>,
    /// Whether nodes came or went since the last snapshot.
    set_changed: bool,
}

impl Cache {
    fn node(&mut self, name: &str) -> &mut NodeInfo {
        self.dirty.insert(name.to_owned());
        let node = self
            .nodes
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(NodeInfo::new(name)));
        Arc::make_mut(node)
    }

    /// A node is there, or changed.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let known = self.nodes.get(&name).is_some_and(|n| n.node.is_some());
        self.set_changed |= !known;
        self.node(&name).set_node(node);
    }

    /// A namespace is there with these labels, or (`None`) gone.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        let namespaces = Arc::make_mut(&mut self.namespaces);
        match labels {
            Some(labels) => namespaces.insert(name.to_owned(), labels),
            None => namespaces.remove(name),
        };
    }

    /// A node is gone. Its pods stay known until they go.
    pub fn remove_node(&mut self, name: &str) {
        self.set_changed = true;
        let info = self.node(name);
        info.node = None;
        if info.pods.is_empty() {
            self.nodes.remove(name);
        }
    }

    /// A pod is on a node, by the API server.
    pub fn set_pod(&mut self, pod: Arc<Pod>) {
        let info = Arc::new(PodInfo::new(pod));
        let node = info.spec().and_then(|s| s.node_name.clone());
        let node = node.unwrap_or_default();
        self.assumed.remove(&info.uid);
        self.place(info, &node);
    }

    /// A pod will be on a node.
    pub fn assume(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.assumed.insert(pod.uid.clone());
        self.place(pod, node);
    }

    fn place(&mut self, pod: Arc<PodInfo>, node: &str) {
        let before = self.places.insert(pod.uid.clone(), node.to_owned());
        if let Some(before) = before.filter(|b| b != node) {
            self.take_off(&before, &pod.uid);
        }
        self.node(node).add(pod);
    }

    /// A pod has left its node, or its binding failed.
    pub fn remove_pod(&mut self, uid: &str) {
        self.assumed.remove(uid);
        if let Some(node) = self.places.remove(uid) {
            self.take_off(&node, uid);
        }
    }

    /// Forgets an assumed pod; one that was confirmed meanwhile stays.
    pub fn forget(&mut self, uid: &str) {
        if self.assumed.contains(uid) {
            self.remove_pod(uid);
        }
    }

    /// Whether a pod is assumed and not yet confirmed.
    #[must_use]
    pub fn is_assumed(&self, uid: &str) -> bool {
        self.assumed.contains(uid)
    }

    fn take_off(&mut self, node: &str, uid: &str) {
        let info = self.node(node);
        info.remove(uid);
        if info.node.is_none() && info.pods.is_empty() {
            self.nodes.remove(node);
        }
    }

    /// Brings a snapshot up to date.
    pub fn refresh(&mut self, snapshot: &mut Snapshot) {
        if self.set_changed {
            let nodes = self.nodes.values().filter(|n| n.node.is_some());
            snapshot.nodes = nodes.map(Arc::clone).collect();
            snapshot.nodes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        } else {
            for name in &self.dirty {
                let at = snapshot.nodes.binary_search_by(|n| n.name.cmp(name));
                if let (Ok(at), Some(node)) = (at, self.nodes.get(name))
                    && let Some(slot) = snapshot.nodes.get_mut(at)
                {
                    *slot = Arc::clone(node);
                }
            }
        }
        snapshot.namespaces = Arc::clone(&self.namespaces);
        self.set_changed = false;
        self.dirty.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, pod, with_node};

    #[test]
    fn a_snapshot_shows_what_changed_and_shares_the_rest() {
        let mut cache = Cache::default();
        let mut snapshot = Snapshot::default();
        cache.set_node(node("a", "4", "8Gi"));
        cache.set_node(node("b", "4", "8Gi"));
        cache.refresh(&mut snapshot);
        assert_eq!(snapshot.nodes.len(), 2);
        let before = snapshot.clone();
        let assumed = Arc::new(PodInfo::new(pod("p", "1", "1Gi")));
        cache.assume(Arc::clone(&assumed), "b");
        cache.refresh(&mut snapshot);
        assert!(Arc::ptr_eq(&before.nodes[0], &snapshot.nodes[0]));
        assert_eq!(snapshot.get("b").unwrap().requested.milli_cpu, 1000);
        assert_eq!(before.get("b").unwrap().requested.milli_cpu, 0);
        // The watch confirms it, on the same node, once.
        cache.set_pod(with_node(&assumed.pod, "b"));
        assert!(!cache.is_assumed(&assumed.uid));
        cache.forget(&assumed.uid);
        cache.refresh(&mut snapshot);
        assert_eq!(snapshot.get("b").unwrap().requested.milli_cpu, 1000);
        cache.remove_pod(&assumed.uid);
        cache.remove_node("a");
        cache.refresh(&mut snapshot);
        assert_eq!(snapshot.nodes.len(), 1);
        assert_eq!(snapshot.get("b").unwrap().requested.milli_cpu, 0);
    }

    #[test]
    fn pods_of_an_unknown_node_wait_for_it() {
        let mut cache = Cache::default();
        let mut snapshot = Snapshot::default();
        cache.set_pod(with_node(&pod("p", "1", "1Gi"), "late"));
        cache.refresh(&mut snapshot);
        assert!(snapshot.nodes.is_empty());
        cache.set_node(node("late", "4", "8Gi"));
        cache.refresh(&mut snapshot);
        assert_eq!(snapshot.get("late").unwrap().requested.milli_cpu, 1000);
        cache.remove_node("late");
        cache.refresh(&mut snapshot);
        assert!(snapshot.nodes.is_empty());
        cache.set_node(node("late", "4", "8Gi"));
        cache.refresh(&mut snapshot);
        assert_eq!(snapshot.get("late").unwrap().requested.milli_cpu, 1000);
    }
}
