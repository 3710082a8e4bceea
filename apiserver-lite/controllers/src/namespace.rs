//! The end of namespaces: everything in them is deleted, then they are.
//!
//! Rules and words: upstream's `pkg/controller/namespace/deletion`. Pods go
//! first, and the rest when no pod is left (KEP 5080).

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::jiff::Timestamp;
use rkube_api::discovery::is_on_by_default;
use rkube_api::resources::{self, Resource};
use rkube_client::{Client, DeleteParams, Informer, Partial, Seen, Target, Verb, WorkQueue, clock};
use serde_json::Value;

use crate::error::{Error, Outcome};
use crate::monitor::{self, Monitors};
use crate::owner;
use crate::starter::Starter;
use crate::status;

/// What keeps a namespace until it is empty.
const KUBERNETES: &str = "kubernetes";

struct Namespaces {
    namespaces: Arc<Informer<Namespace>>,
    queue: Arc<WorkQueue<String>>,
    client: Client,
    /// Those that are being emptied: whatever goes in them is news.
    ending: Mutex<HashSet<String>>,
}

/// What is still in a namespace after everything was deleted once.
#[derive(Debug, Default, PartialEq, Eq)]
struct Remains {
    /// Objects by resource, as `pods.` and `deployments.apps`.
    resources: BTreeMap<String, usize>,
    /// Objects by finalizer.
    finalizers: BTreeMap<String, usize>,
    /// What went wrong.
    failures: Vec<String>,
}

/// Starts the controller.
pub(crate) fn start(starter: &mut Starter<'_>, monitors: &mut Monitors) {
    let controller = Arc::new(Namespaces {
        namespaces: starter.informers.of(),
        queue: Arc::new(WorkQueue::new()),
        client: starter.client.clone(),
        ending: Mutex::default(),
    });
    let own = Arc::clone(&controller);
    controller.namespaces.on_change(move |change| {
        own.queue.add(owner::name(&**change.object()).to_owned());
    });
    let own = Arc::clone(&controller);
    monitors.listen(move |_, seen| {
        if let Seen::Gone(object) = seen {
            let namespace = object.metadata.namespace.clone().unwrap_or_default();
            if own.with(|ending| ending.contains(&namespace)) {
                own.queue.add(namespace);
            }
        }
    });
    let own = Arc::clone(&controller);
    let synced = Box::pin(async move { own.namespaces.synced().await });
    let queue = Arc::clone(&controller.queue);
    starter.work("namespace-controller", &queue, synced, move |name| {
        let controller = Arc::clone(&controller);
        async move { controller.sync(name).await }
    });
}

/// What can be in a namespace and be deleted from it: each stored resource
/// once.
fn contents() -> Vec<&'static Resource> {
    let mut contents = monitor::followed();
    contents.retain(|r| r.namespaced);
    let events = resources::by_plural("", "v1", "events").filter(|r| is_on_by_default(r));
    contents.extend(events);
    contents
}

fn qualified(resource: &Resource) -> String {
    format!("{}.{}", resource.plural, resource.gvk.group)
}

impl Namespaces {
    fn with<T>(&self, f: impl FnOnce(&mut HashSet<String>) -> T) -> T {
        f(&mut self.ending.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn sync(&self, name: String) -> Outcome {
        let found = self
            .namespaces
            .store()
            .get(&rkube_client::ObjectKey::new("", &name));
        let Some(namespace) = found.filter(|n| owner::is_deleting(&**n)) else {
            self.with(|ending| ending.remove(&name));
            return Ok(());
        };
        let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.as_ref());
        if !finalizers.is_some_and(|f| f.iter().any(|f| f == KUBERNETES)) {
            return Ok(());
        }
        self.with(|ending| ending.insert(name.clone()));
        let remains = self.empty(&name).await;
        let old = namespace.status.clone().unwrap_or_default();
        let mut new = old.clone();
        new.phase = Some("Terminating".to_owned());
        new.conditions = Some(conditions(
            &old.conditions.clone().unwrap_or_default(),
            &remains,
            clock::now(),
        ));
        status::write(&self.client, &*namespace, &old, &new).await?;
        if remains.resources.is_empty() && remains.failures.is_empty() {
            return self.finalize(&name, owner::uid(&*namespace)).await;
        }
        // Whatever goes wakes us; this is for what nobody tells.
        self.queue.add_rate_limited(name);
        Ok(())
    }

    /// Deletes everything once, and tells what is left.
    async fn empty(&self, namespace: &str) -> Remains {
        let mut remains = Remains::default();
        let (pods, others): (Vec<_>, Vec<_>) = contents()
            .into_iter()
            .partition(|r| r.gvk.group.is_empty() && r.plural == "pods");
        for resources in [pods, others] {
            for resource in resources {
                match self.empty_one(resource, namespace).await {
                    Ok(left) => note(&mut remains, resource, &left),
                    Err(error) => remains.failures.push(error.to_string()),
                }
            }
            if !remains.resources.is_empty() {
                break;
            }
        }
        remains
    }

    async fn empty_one(
        &self,
        resource: &Resource,
        namespace: &str,
    ) -> Result<Vec<Partial>, rkube_client::ApiError> {
        let target = monitor::collection(resource, Some(namespace));
        let list = |target: Target| async {
            match self.client.list_metadata(target).await {
                // It is not served here.
                Err(error) if error.is_not_found() || error.code() == 405 => Ok(Vec::new()),
                answer => answer.map(|(items, _)| items),
            }
        };
        let there = list(target.clone()).await?;
        if there.is_empty() {
            return Ok(there);
        }
        let params = DeleteParams {
            propagation: Some("Background"),
            ..DeleteParams::default()
        };
        let body = params.body().to_string();
        if resource.serves("deletecollection") {
            let mut request = Client::request(Verb::DeleteCollection, target.clone());
            request.body = Some(body.into());
            self.client.call(request).await?;
        } else {
            for object in there {
                let name = object.metadata.name.unwrap_or_default();
                let one = monitor::object(resource, namespace, &name);
                let mut request = Client::request(Verb::Delete, one);
                request.body = Some(body.clone().into());
                match self.client.call(request).await {
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => {}
                }
            }
        }
        list(target).await
    }

    /// Takes `kubernetes` from the namespace's finalizers, which ends it.
    async fn finalize(&self, name: &str, uid: &str) -> Outcome {
        let mut target = Target {
            version: "v1".to_owned(),
            resource: "namespaces".to_owned(),
            name: Some(name.to_owned()),
            ..Target::default()
        };
        let fresh = Client::request(Verb::Get, target.clone());
        let mut namespace = match self.client.call(fresh).await {
            Err(error) if error.is_not_found() => return Ok(()),
            answer => answer.map_err(Error::request("read namespace", name))?,
        };
        if namespace.pointer("/metadata/uid").and_then(Value::as_str) != Some(uid) {
            return Ok(());
        }
        let finalizers = namespace.pointer_mut("/spec/finalizers");
        if let Some(finalizers) = finalizers.and_then(Value::as_array_mut) {
            finalizers.retain(|f| f != KUBERNETES);
        }
        target.subresource = Some("finalize".to_owned());
        let mut request = Client::request(Verb::Update, target);
        request.body = Some(namespace.to_string().into());
        match self.client.call(request).await {
            Err(error) if !error.is_not_found() => {
                Err(Error::request("finalize namespace", name)(error))
            }
            _ => Ok(()),
        }
    }
}

fn note(remains: &mut Remains, resource: &Resource, left: &[Partial]) {
    if left.is_empty() {
        return;
    }
    remains.resources.insert(qualified(resource), left.len());
    for object in left {
        for finalizer in object.metadata.finalizers.iter().flatten() {
            *remains.finalizers.entry(finalizer.clone()).or_insert(0) += 1;
        }
    }
}

/// The five conditions of a namespace that ends.
fn conditions(
    old: &[NamespaceCondition],
    remains: &Remains,
    now: Timestamp,
) -> Vec<NamespaceCondition> {
    let list = |counts: &BTreeMap<String, usize>, word: &str| {
        let told: Vec<String> = counts
            .iter()
            .map(|(name, count)| format!("{name} {word} {count} resource instances"))
            .collect();
        told.join(", ")
    };
    let failed = (!remains.failures.is_empty()).then(|| {
        format!(
            "Failed to delete all resource types, {} remaining: {}",
            remains.failures.len(),
            remains.failures.join(", ")
        )
    });
    let left = (!remains.resources.is_empty()).then(|| {
        let told = list(&remains.resources, "has");
        format!("Some resources are remaining: {told}")
    });
    let held = (!remains.finalizers.is_empty()).then(|| {
        let told = list(&remains.finalizers, "in");
        format!("Some content in the namespace has finalizers remaining: {told}")
    });
    let all = [
        (
            "NamespaceDeletionDiscoveryFailure",
            None,
            ("", "ResourcesDiscovered"),
            "All resources successfully discovered",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            ("", "ParsedGroupVersions"),
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            failed,
            ("ContentDeletionFailed", "ContentDeleted"),
            "All content successfully deleted, may be waiting on finalization",
        ),
        (
            "NamespaceContentRemaining",
            left,
            ("SomeResourcesRemain", "ContentRemoved"),
            "All content successfully removed",
        ),
        (
            "NamespaceFinalizersRemaining",
            held,
            ("SomeFinalizersRemain", "ContentHasNoFinalizers"),
            "All content-preserving finalizers finished",
        ),
    ];
    let mut told = Vec::new();
    for (kind, trouble, (bad, good), fine) in all {
        let status = if trouble.is_some() { "True" } else { "False" };
        let reason = if trouble.is_some() { bad } else { good };
        let before = old.iter().find(|c| c.type_ == kind && c.status == status);
        told.push(NamespaceCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(trouble.unwrap_or_else(|| fine.to_owned())),
            last_transition_time: before
                .and_then(|c| c.last_transition_time.clone())
                .or_else(|| Some(clock::time(now))),
        });
    }
    let others = old
        .iter()
        .filter(|c| told.iter().all(|t| t.type_ != c.type_));
    told.splice(0..0, others.cloned().collect::<Vec<_>>());
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;
    use serde_json::json;

    #[test]
    fn everything_of_a_namespace_is_known() {
        let all: Vec<String> = contents().into_iter().map(qualified).collect();
        for name in [
            "pods.",
            "events.",
            "deployments.apps",
            "jobs.batch",
            "leases.coordination.k8s.io",
        ] {
            assert_eq!(all.iter().filter(|n| *n == name).count(), 1, "{name}");
        }
        assert!(!all.contains(&"nodes.".to_owned()));
    }

    #[test]
    fn conditions_in_upstreams_words() {
        let done = conditions(&[], &Remains::default(), at(5));
        assert!(done.len() == 5 && done.iter().all(|c| c.status == "False"));
        let pods = resources::by_plural("", "v1", "pods").unwrap();
        let held: Partial =
            serde_json::from_value(json!({"metadata": {"finalizers": ["example.com/x"]}})).unwrap();
        let mut remains = Remains::default();
        note(&mut remains, pods, &[held.clone(), held]);
        let told = conditions(&done, &remains, at(9));
        let find = |kind: &str| told.iter().find(|c| c.type_ == kind).unwrap();
        let left = find("NamespaceContentRemaining");
        assert_eq!(
            left.message.as_deref(),
            Some("Some resources are remaining: pods. has 2 resource instances")
        );
        assert_eq!(left.last_transition_time, Some(clock::time(at(9))));
        assert_eq!(
            find("NamespaceFinalizersRemaining").message.as_deref(),
            Some(
                "Some content in the namespace has finalizers remaining: example.com/x in 2 resource instances"
            )
        );
        assert_eq!(
            find("NamespaceDeletionDiscoveryFailure").last_transition_time,
            Some(clock::time(at(5)))
        );
    }
}
