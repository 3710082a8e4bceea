//! Which ReplicaSet is a Deployment's template, and the history of the others:
//! pure functions.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::{Value, json};

use super::{Sets, metadata_patch, sizes};
use crate::owner::{self, Labels};

/// Tells the pods of one set from those of another.
const HASH: &str = "pod-template-hash";
/// The number of a version.
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
/// The numbers that the version had before.
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// Longest list of former numbers, in bytes (`maxRevHistoryLengthInChars`).
const HISTORY_MAX_BYTES: usize = 2000;

/// What a Deployment's annotations do not give to its sets.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    sizes::DESIRED,
    sizes::MAX,
    "deprecated.deployment.rollback.revision",
];

/// A template without what the controller adds, and with empty maps gone.
fn comparable(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(meta) = &mut template.metadata {
        if let Some(labels) = &mut meta.labels {
            labels.remove(HASH);
        }
        meta.creation_timestamp = None;
        meta.labels = meta.labels.take().filter(|l| !l.is_empty());
        meta.annotations = meta.annotations.take().filter(|a| !a.is_empty());
    }
    template.metadata = template
        .metadata
        .take()
        .filter(|m| *m != Default::default());
    template
}

/// Whether a set is of the Deployment's template.
pub(super) fn is_of_template(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let own = deployment.spec.as_ref().map(|s| comparable(&s.template));
    let other = set.spec.as_ref().and_then(|s| s.template.as_ref());
    own.is_some() && own == other.map(comparable)
}

/// The set of the template (the oldest, should there be several) and the
/// others.
pub(super) fn split(deployment: &Deployment, mut owned: Vec<Arc<ReplicaSet>>) -> Sets {
    owned.sort_by(|a, b| sizes::age(a).cmp(&sizes::age(b)));
    let at = owned.iter().position(|s| is_of_template(deployment, s));
    let new = at.map(|at| owned.remove(at));
    Sets { new, old: owned }
}

fn annotation<'a>(annotations: Option<&'a Labels>, key: &str) -> &'a str {
    annotations
        .and_then(|a| a.get(key))
        .map(String::as_str)
        .unwrap_or_default()
}

/// The number of a set's version; 0 for none.
pub(super) fn of_set(set: &ReplicaSet) -> i64 {
    let text = annotation(set.metadata.annotations.as_ref(), REVISION);
    text.parse().unwrap_or(0)
}

/// The number that the new set shall have: one more than any old one.
pub(super) fn next(sets: &Sets) -> i64 {
    let highest = sets.old.iter().map(|s| of_set(s)).max().unwrap_or(0);
    highest.saturating_add(1)
}

/// What the Deployment's annotations give to its sets.
fn copied(deployment: &Deployment) -> Labels {
    let mut annotations = deployment.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !NOT_COPIED.contains(&key.as_str()));
    annotations
}

/// The annotations and the readiness time that the new set lacks, as a merge
/// patch. A set that becomes the newest again gets a new number and remembers
/// the one it had. What it was sized for stays: only who sizes it writes that,
/// since another size of the Deployment is told by it, and each set's share.
pub(super) fn refresh(deployment: &Deployment, set: &ReplicaSet, next: i64) -> Option<Value> {
    let have = set.metadata.annotations.clone().unwrap_or_default();
    let mut want = have.clone();
    want.extend(copied(deployment));
    let current = of_set(set);
    if current < next {
        want.insert(REVISION.to_owned(), next.to_string());
        if current > 0 {
            let history = history(have.get(HISTORY).map(String::as_str), current);
            want.insert(HISTORY.to_owned(), history);
        }
    }
    let ready = deployment.spec.as_ref().and_then(|s| s.min_ready_seconds);
    let own = set.spec.as_ref().and_then(|s| s.min_ready_seconds);
    let ready_differs = ready.unwrap_or(0) != own.unwrap_or(0);
    if want == have && !ready_differs {
        return None;
    }
    want.retain(|key, value| have.get(key) != Some(value));
    let mut metadata = metadata_patch(&set.metadata);
    if !want.is_empty() {
        metadata["annotations"] = json!(want);
    }
    let mut patch = json!({ "metadata": metadata });
    if ready_differs {
        patch["spec"] = json!({"minReadySeconds": ready.unwrap_or(0)});
    }
    Some(patch)
}

/// A list of former numbers with one more; the oldest give way.
fn history(old: Option<&str>, number: i64) -> String {
    let mut all: Vec<String> = old
        .unwrap_or_default()
        .split(',')
        .filter(|t| !t.is_empty())
        .map(str::to_owned)
        .collect();
    all.push(number.to_string());
    while all.join(",").len() > HISTORY_MAX_BYTES {
        all.remove(0);
    }
    all.join(",")
}

/// Gives the Deployment the number of its new set, as a merge patch.
pub(super) fn annotate(deployment: &Deployment, set: &ReplicaSet) -> Option<Value> {
    let number = annotation(set.metadata.annotations.as_ref(), REVISION);
    if number.is_empty() || annotation(deployment.metadata.annotations.as_ref(), REVISION) == number
    {
        return None;
    }
    let mut metadata = metadata_patch(&deployment.metadata);
    metadata["annotations"] = json!({ REVISION: number });
    Some(json!({ "metadata": metadata }))
}

/// A short text for a template that differs when the template does. Written
/// with letters and digits that form no words, as upstream's.
pub(super) fn hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    // FNV-1a, 32 bits: draft-eastlake-fnv, section 5.
    const OFFSET: u32 = 0x811c_9dc5;
    const PRIME: u32 = 0x0100_0193;
    let mut bytes = serde_json::to_vec(template).unwrap_or_default();
    if let Some(collisions) = collisions {
        bytes.extend(collisions.to_le_bytes());
    }
    let sum = bytes
        .iter()
        .fold(OFFSET, |sum, b| (sum ^ u32::from(*b)).wrapping_mul(PRIME));
    sum.to_string()
        .bytes()
        .map(|digit| char::from(LETTERS[usize::from(digit) % LETTERS.len()]))
        .collect()
}

/// The body of a new set.
pub(super) fn new_set(deployment: &Deployment, number: i64, size: i32) -> Value {
    let Some(spec) = deployment.spec.as_ref() else {
        return Value::Null;
    };
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count);
    let template = comparable(&spec.template);
    let hash = hash(&template, collisions);
    let mut template = spec.template.clone();
    let meta = template.metadata.get_or_insert_default();
    let labels = meta.labels.get_or_insert_default();
    labels.insert(HASH.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector.clone();
    selector
        .match_labels
        .get_or_insert_default()
        .insert(HASH.to_owned(), hash.clone());
    let mut annotations = copied(deployment);
    annotations.insert(REVISION.to_owned(), number.to_string());
    annotations.extend(sizes::annotations(deployment));
    let mut body = json!({
        "metadata": {
            "name": format!("{}-{hash}", owner::name(deployment)),
            "namespace": owner::namespace(deployment),
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner::controller_reference(deployment)],
        },
        "spec": {
            "replicas": size,
            "selector": selector,
            "template": template,
        },
    });
    if let Some(seconds) = spec.min_ready_seconds.filter(|s| *s != 0) {
        body["spec"]["minReadySeconds"] = seconds.into();
    }
    body
}

/// The old sets beyond the history's limit, the oldest versions first. Only
/// empty ones whose status is up to date may go.
pub(super) fn outdated(deployment: &Deployment, old: &[Arc<ReplicaSet>]) -> Vec<Arc<ReplicaSet>> {
    let limit = deployment
        .spec
        .as_ref()
        .and_then(|s| s.revision_history_limit)
        .and_then(|l| usize::try_from(l).ok());
    let Some(limit) = limit else {
        return Vec::new();
    };
    let mut alive: Vec<_> = old
        .iter()
        .filter(|s| !owner::is_deleting(&***s))
        .cloned()
        .collect();
    if alive.len() <= limit {
        return Vec::new();
    }
    alive.sort_by_key(|s| of_set(s));
    alive.truncate(alive.len() - limit);
    alive.retain(|set| {
        let status = set.status.as_ref();
        let observed = status.and_then(|s| s.observed_generation).unwrap_or(0);
        sizes::replicas(set) == 0
            && status.is_none_or(|s| s.replicas == 0)
            && set.metadata.generation.unwrap_or(0) <= observed
    });
    alive
}
