//! The graph of owners and dependents: plain data.
//!
//! A node is *observed* once a watch has told it. An owner that is referred
//! to and not observed is there too, until somebody has asked for it.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use rkube_api::resources::{self, Resource};
use rkube_client::Partial;

/// The finalizer of a foreground deletion.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of a deletion that orphans.
pub(super) const ORPHAN: &str = "orphan";

/// Where an object is to be found.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) resource: &'static Resource,
    pub(super) namespace: String,
    pub(super) name: String,
}

/// What has to be looked at, by uid.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Work {
    /// An owner that nobody has observed: is it there?
    Verify(String),
    /// An object whose owners have changed: must it go?
    Check(String),
    /// An owner that goes and leaves its dependents.
    Orphan(String),
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) owners: Vec<OwnerReference>,
    pub(super) dependents: BTreeSet<String>,
    pub(super) observed: bool,
    pub(super) deleting: bool,
    /// It waits until its dependents are gone.
    pub(super) waits: bool,
    orphans: bool,
}

/// The graph, by uid.
#[derive(Debug, Default)]
pub(super) struct Graph {
    nodes: HashMap<String, Node>,
}

/// The place of an owner; `None` where its kind is not known, or where a
/// cluster-wide object names an owner in some namespace.
pub(super) fn place_of(owner: &OwnerReference, dependent: &Place) -> Option<Place> {
    let resource = resources::by_kind(&owner.api_version, &owner.kind)?;
    if resource.namespaced && !dependent.resource.namespaced {
        return None;
    }
    let namespace = if resource.namespaced {
        dependent.namespace.clone()
    } else {
        String::new()
    };
    Some(Place {
        resource,
        namespace,
        name: owner.name.clone(),
    })
}

impl Graph {
    pub(super) fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// All objects of a resource, as a list tells them.
    pub(super) fn replace(
        &mut self,
        resource: &'static Resource,
        objects: &[Partial],
    ) -> Vec<Work> {
        let told: BTreeSet<&str> = objects
            .iter()
            .filter_map(|o| o.metadata.uid.as_deref())
            .collect();
        let same = |r: &Resource| r.gvk == resource.gvk;
        let gone: Vec<String> = self
            .nodes
            .iter()
            .filter(|(uid, n)| n.observed && same(n.place.resource) && !told.contains(uid.as_str()))
            .map(|(uid, _)| uid.clone())
            .collect();
        let mut work = Vec::new();
        for object in objects {
            work.extend(self.set(resource, object));
        }
        for uid in gone {
            work.extend(self.gone(&uid));
        }
        work
    }

    /// An object is new or has changed.
    pub(super) fn set(&mut self, resource: &'static Resource, object: &Partial) -> Vec<Work> {
        let meta = &object.metadata;
        let Some(uid) = meta.uid.clone() else {
            return Vec::new();
        };
        let finalizers = meta.finalizers.as_deref().unwrap_or_default();
        let deleting = meta.deletion_timestamp.is_some();
        let has = |name: &str| deleting && finalizers.iter().any(|f| f == name);
        let mut new = Node {
            place: Place {
                resource,
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone().unwrap_or_default(),
            },
            owners: meta.owner_references.clone().unwrap_or_default(),
            dependents: BTreeSet::new(),
            observed: true,
            deleting,
            waits: has(FOREGROUND),
            orphans: has(ORPHAN),
        };
        let old = self.nodes.remove(&uid);
        let (mut before, mut was_orphaning, mut was_waiting) = (Vec::new(), false, false);
        if let Some(old) = old {
            new.dependents = old.dependents;
            before = old.owners;
            (was_orphaning, was_waiting) = (old.orphans, old.waits);
        }
        let mut work = self.relink(&uid, &new, &before);
        if new.orphans && !was_orphaning {
            work.push(Work::Orphan(uid.clone()));
        }
        if new.waits && !was_waiting {
            work.extend(new.dependents.iter().cloned().map(Work::Check));
            work.push(Work::Check(uid.clone()));
        }
        self.nodes.insert(uid, new);
        work
    }

    /// Brings the owners' sets of dependents up to date.
    fn relink(&mut self, uid: &str, new: &Node, before: &[OwnerReference]) -> Vec<Work> {
        let mut work = Vec::new();
        for owner in before {
            let kept = new.owners.iter().find(|o| o.uid == owner.uid);
            if kept.is_none()
                && let Some(node) = self.nodes.get_mut(&owner.uid)
            {
                node.dependents.remove(uid);
            }
            // An owner that waits for us may not have to any more.
            let blocked = owner.block_owner_deletion == Some(true);
            let blocks = kept.is_some_and(|o| o.block_owner_deletion == Some(true));
            let waits = self.nodes.get(&owner.uid).is_some_and(|n| n.waits);
            if blocked && !blocks && waits {
                work.push(Work::Check(owner.uid.clone()));
            }
        }
        for owner in &new.owners {
            let Some(place) = place_of(owner, &new.place) else {
                continue;
            };
            let fresh = !before.iter().any(|o| o.uid == owner.uid);
            let node = self.nodes.entry(owner.uid.clone()).or_insert_with(|| {
                work.push(Work::Verify(owner.uid.clone()));
                Node {
                    place,
                    owners: Vec::new(),
                    dependents: BTreeSet::new(),
                    observed: false,
                    deleting: false,
                    waits: false,
                    orphans: false,
                }
            });
            node.dependents.insert(uid.to_owned());
            if fresh && node.waits {
                // A dependent that came while its owner goes.
                work.push(Work::Check(uid.to_owned()));
            }
        }
        work
    }

    /// An object is gone.
    pub(super) fn gone(&mut self, uid: &str) -> Vec<Work> {
        let Some(node) = self.nodes.remove(uid) else {
            return Vec::new();
        };
        let mut work = Vec::new();
        for owner in &node.owners {
            if let Some(parent) = self.nodes.get_mut(&owner.uid) {
                parent.dependents.remove(uid);
                if parent.waits {
                    work.push(Work::Check(owner.uid.clone()));
                }
                if !parent.observed && parent.dependents.is_empty() {
                    self.nodes.remove(&owner.uid);
                }
            }
        }
        work.extend(node.dependents.into_iter().map(Work::Check));
        work
    }

    /// The dependents that hold an owner's foreground deletion up.
    pub(super) fn blocking(&self, uid: &str) -> Vec<String> {
        let Some(node) = self.nodes.get(uid) else {
            return Vec::new();
        };
        let dependents = node.dependents.iter();
        dependents
            .filter(|d| {
                self.nodes.get(*d).is_some_and(|n| {
                    let mut owners = n.owners.iter();
                    owners.any(|o| o.uid == uid && o.block_owner_deletion == Some(true))
                })
            })
            .cloned()
            .collect()
    }

    /// Whether some dependent waits for its own dependents: then a circle is
    /// possible.
    pub(super) fn has_waiting_dependent(&self, uid: &str) -> bool {
        self.nodes.get(uid).is_some_and(|n| {
            let mut dependents = n.dependents.iter();
            dependents.any(|d| self.nodes.get(d).is_some_and(|n| n.waits))
        })
    }
}
