//! What the pods of each node use, kept in memory.
//!
//! The tables follow the store as those of roles do: before a decision, what
//! was written to pods since the last one is taken in, so that a pod that was
//! just bound counts for the very next request, and a decision does not read
//! all pods.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rkube_store::{Key, Range, StoreError, Watcher};
use serde_json::Value;

use crate::objects::Objects;

/// The prefix of the keys of all pods.
const PODS: &[u8] = b"pods/";
/// What the stored form of a bound pod has in it, and no string of any other:
/// quotes in strings are escaped.
const BOUND: &[u8] = b"\"nodeName\":\"";

/// Kinds that pods use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    ConfigMap,
    Secret,
    Claim,
    /// A ResourceClaim, the pod's own or one made from its template.
    Devices,
    Account,
}

/// An object that a pod on a node uses.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Use {
    node: String,
    namespace: String,
    kind: Kind,
    name: String,
}

#[derive(Debug, Default)]
struct Tables {
    /// What each pod uses; pods that use the same share it.
    pods: HashMap<Key, Vec<Arc<Use>>>,
    /// How many pods have each.
    counts: HashMap<Arc<Use>, usize>,
}

impl Tables {
    /// Takes a pod as it is stored now; `None`: it is gone.
    fn set(&mut self, key: &Key, stored: Option<&[u8]>) {
        for old in self.pods.remove(key).into_iter().flatten() {
            if let Some(count) = self.counts.get_mut(&old) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&old);
                }
            }
        }
        let mut uses = Vec::new();
        for one in stored.map(|s| uses_of(key, s)).unwrap_or_default() {
            let known = self.counts.get_key_value(&one).map(|(known, _)| known);
            let one = known.map_or_else(|| Arc::new(one), Arc::clone);
            *self.counts.entry(Arc::clone(&one)).or_default() += 1;
            uses.push(one);
        }
        if !uses.is_empty() {
            self.pods.insert(key.clone(), uses);
        }
    }
}

/// What a stored pod uses, if it is bound to a node; some of it twice.
fn uses_of(key: &[u8], stored: &[u8]) -> Vec<Use> {
    if !stored.windows(BOUND.len()).any(|window| window == BOUND) {
        return Vec::new();
    }
    let Ok(pod) = serde_json::from_slice::<Value>(stored) else {
        return Vec::new();
    };
    let node = pod["spec"]["nodeName"].as_str().unwrap_or("");
    let path = String::from_utf8_lossy(key);
    let namespace = path.split('/').nth(1).unwrap_or("");
    if node.is_empty() {
        return Vec::new();
    }
    let mut uses = Vec::new();
    each(&pod, |kind, name| {
        if let Some(name) = name.as_str() {
            uses.push(Use {
                node: node.to_owned(),
                namespace: namespace.to_owned(),
                kind,
                name: name.to_owned(),
            });
        }
    });
    uses
}

fn list<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value[field].as_array().into_iter().flatten()
}

/// Names of what a pod uses; `null` where a field is not there.
fn each(pod: &Value, mut found: impl FnMut(Kind, &Value)) {
    let spec = &pod["spec"];
    found(Kind::Account, &spec["serviceAccountName"]);
    for secret in list(spec, "imagePullSecrets") {
        found(Kind::Secret, &secret["name"]);
    }
    for field in ["initContainers", "containers", "ephemeralContainers"] {
        for container in list(spec, field) {
            for from in list(container, "envFrom") {
                found(Kind::ConfigMap, &from["configMapRef"]["name"]);
                found(Kind::Secret, &from["secretRef"]["name"]);
            }
            for env in list(container, "env") {
                let from = &env["valueFrom"];
                found(Kind::ConfigMap, &from["configMapKeyRef"]["name"]);
                found(Kind::Secret, &from["secretKeyRef"]["name"]);
            }
        }
    }
    for (of, field) in [
        (spec, "resourceClaims"),
        (&pod["status"], "resourceClaimStatuses"),
    ] {
        for claim in list(of, field) {
            found(Kind::Devices, &claim["resourceClaimName"]);
        }
    }
    for volume in list(spec, "volumes") {
        for source in std::iter::once(volume).chain(list(&volume["projected"], "sources")) {
            found(Kind::ConfigMap, &source["configMap"]["name"]);
            found(Kind::Secret, &source["secret"]["secretName"]);
            found(Kind::Secret, &source["secret"]["name"]);
            found(Kind::Claim, &source["persistentVolumeClaim"]["claimName"]);
        }
    }
}

struct State {
    watcher: Watcher,
    tables: Tables,
}

impl State {
    fn begin(objects: &Objects) -> Result<Self, StoreError> {
        let store = objects.store();
        let page = store.range(&Range::prefix(PODS))?;
        let watcher = store.watch(PODS, page.revision)?;
        let mut tables = Tables::default();
        for record in &page.records {
            tables.set(&record.key, Some(&record.value));
        }
        Ok(Self { watcher, tables })
    }

    fn catch_up(&mut self) -> Result<(), StoreError> {
        while let Some(batch) = self.watcher.wait(Duration::ZERO)? {
            for event in &batch.events {
                self.tables.set(&event.key, event.value.as_deref());
            }
        }
        Ok(())
    }
}

/// What the pods in a store use.
pub(super) struct Uses {
    objects: Objects,
    state: Mutex<Option<State>>,
}

impl fmt::Debug for Uses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uses").finish_non_exhaustive()
    }
}

impl Uses {
    pub(super) const fn new(objects: Objects) -> Self {
        Self {
            objects,
            state: Mutex::new(None),
        }
    }

    /// Whether a pod bound to `node` in a namespace uses an object. A store
    /// that does not answer gives no reason to say so.
    pub(super) fn has(&self, node: &str, namespace: &str, kind: Kind, name: &str) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let followed = state.as_mut().map(State::catch_up);
        if !matches!(followed, Some(Ok(()))) {
            // Too far behind, which a node that was silent may be.
            *state = match State::begin(&self.objects) {
                Ok(begun) => Some(begun),
                Err(error) => {
                    tracing::error!(%error, "read what pods use");
                    None
                }
            };
        }
        let wanted = Use {
            node: node.to_owned(),
            namespace: namespace.to_owned(),
            kind,
            name: name.to_owned(),
        };
        state
            .as_ref()
            .is_some_and(|state| state.tables.counts.contains_key(&wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rkube_store::{Embedded, Options, Revision, Store, Write};
    use serde_json::json;

    fn stored(node: Option<&str>) -> Vec<u8> {
        let mut pod = json!({"kind": "Pod", "metadata": {"name": "p",
            "annotations": {"note": "\"nodeName\":\"n\""}},
            "status": {"resourceClaimStatuses": [{"name": "d", "resourceClaimName": "made"}]},
            "spec": {"serviceAccountName": "account", "imagePullSecrets": [{"name": "pull"}],
                "containers": [{"envFrom": [{"secretRef": {"name": "all"}}],
                    "env": [{"valueFrom": {"configMapKeyRef": {"name": "one"}}}]}],
                "volumes": [{"secret": {"secretName": "files"}},
                    {"persistentVolumeClaim": {"claimName": "disk"}},
                    {"projected": {"sources": [{"configMap": {"name": "root"}}]}}]}});
        if let Some(node) = node {
            pod["spec"]["nodeName"] = node.into();
        }
        pod.to_string().into_bytes()
    }

    fn make(store: &Embedded, key: &str, node: Option<&str>) -> Revision {
        let write = Write::Create {
            key: Key::from(key),
            value: stored(node).into(),
            ttl_s: None,
        };
        store.submit(write).wait().unwrap().revision
    }

    #[test]
    fn a_node_uses_what_its_pods_use_as_long_as_they_are_there() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(folder.path(), Options::default()).unwrap());
        let uses = Uses::new(Objects::new(store.clone()));
        let all = [
            (Kind::Account, "account"),
            (Kind::Secret, "pull"),
            (Kind::Secret, "all"),
            (Kind::Secret, "files"),
            (Kind::ConfigMap, "one"),
            (Kind::ConfigMap, "root"),
            (Kind::Claim, "disk"),
            (Kind::Devices, "made"),
        ];
        let count = |node, namespace| {
            let used = |(kind, name): &&(Kind, &str)| uses.has(node, namespace, *kind, name);
            all.iter().filter(used).count()
        };
        make(&store, "pods/ns/early", None);
        assert_eq!(count("n", "ns"), 0, "bound to no node");
        let first = make(&store, "pods/ns/first", Some("n"));
        let second = make(&store, "pods/ns/second", Some("n"));
        assert_eq!(count("n", "ns"), all.len());
        assert_eq!((count("other", "ns"), count("n", "other")), (0, 0));
        assert!(!uses.has("n", "ns", Kind::ConfigMap, "pull"));
        for (name, expected) in [("first", first), ("second", second)] {
            assert_eq!(count("n", "ns"), all.len());
            let key = Key::from(format!("pods/ns/{name}").as_str());
            let write = Write::Delete { key, expected };
            store.submit(write).wait().unwrap();
        }
        assert_eq!(count("n", "ns"), 0);
        let state = uses.state.lock().unwrap();
        let tables = &state.as_ref().unwrap().tables;
        assert!(tables.pods.is_empty() && tables.counts.is_empty());
    }

    #[test]
    fn one_that_is_behind_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(folder.path(), Options::default()).unwrap());
        let uses = Uses::new(Objects::new(store.clone()));
        assert!(!uses.has("n", "ns", Kind::Account, "account"));
        let last = make(&store, "pods/ns/p", Some("n"));
        let last = make(&store, "pods/ns/q", None).max(last);
        store.compact(last).unwrap();
        assert!(uses.has("n", "ns", Kind::Account, "account"));
    }
}
