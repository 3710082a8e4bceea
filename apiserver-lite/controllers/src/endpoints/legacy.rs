//! Endpoints (`v1`): the older form, one object a Service, of one family.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service,
};
use rkube_client::{Client, DeleteParams, Informer, ObjectKey, Patch, WorkQueue};
use serde_json::{Value, json};

use super::facts;
use super::wake_services;
use crate::error::{Error, Outcome};
use crate::owner::Labels;
use crate::pods;
use crate::starter::Starter;

/// Most addresses of one object (`maxCapacity`).
const ADDRESSES_MAX_COUNT: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const CONTROLLER: &str = "endpoint-controller";
/// Where another election of a leader keeps its record, not endpoints.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

struct Legacy {
    services: Arc<Informer<Service>>,
    pods: Arc<Informer<Pod>>,
    endpoints: Arc<Informer<Endpoints>>,
    queue: Arc<WorkQueue<ObjectKey>>,
    client: Client,
}

pub(super) fn start(starter: &mut Starter<'_>) {
    let controller = Arc::new(Legacy {
        services: starter.informers.of(),
        pods: starter.informers.of(),
        endpoints: starter.informers.of(),
        queue: Arc::new(WorkQueue::new()),
        client: starter.client.clone(),
    });
    wake_services(&controller.services, &controller.pods, &controller.queue);
    let own = Arc::clone(&controller);
    controller.endpoints.on_change(move |change| {
        own.queue.add(ObjectKey::of(&**change.object()));
    });
    let own = Arc::clone(&controller);
    let synced = Box::pin(async move {
        own.services.synced().await;
        own.pods.synced().await;
        own.endpoints.synced().await;
    });
    let queue = Arc::clone(&controller.queue);
    starter.work(CONTROLLER, &queue, synced, move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.sync(key).await }
    });
}

impl Legacy {
    async fn sync(&self, key: ObjectKey) -> Outcome {
        let existing = self.endpoints.store().get(&key);
        let api = self.client.namespaced::<Endpoints>(&key.namespace);
        let Some(service) = self.services.store().get(&key) else {
            let ours = existing.filter(|e| is_ours(e));
            let Some(endpoints) = ours else { return Ok(()) };
            let params = DeleteParams {
                uid: endpoints.metadata.uid.clone(),
                ..DeleteParams::default()
            };
            return match api.delete(&key.name, &params).await {
                Err(error) if !error.is_not_found() => {
                    Err(Error::request("delete endpoints", key)(error))
                }
                _ => Ok(()),
            };
        };
        let Some(selector) = facts::selector(&service) else {
            return Ok(());
        };
        let pods: Vec<Arc<Pod>> = self
            .pods
            .store()
            .of_namespace(&key.namespace)
            .into_iter()
            .filter(|p| selector.matches(p.metadata.labels.as_ref()))
            .collect();
        let (mut subsets, total) = subsets(&service, &pods);
        if total > ADDRESSES_MAX_COUNT {
            truncate(&mut subsets, total);
        }
        let over = total > ADDRESSES_MAX_COUNT;
        let Some(existing) = existing else {
            let body = json!({
                "metadata": {
                    "name": key.name,
                    "labels": labels(&service),
                    "annotations": over.then(|| json!({OVER_CAPACITY: "truncated"})),
                },
                "subsets": subsets,
            });
            return match api.create(&body).await {
                Err(error) if error.is_namespace_terminating() => Ok(()),
                answer => answer
                    .map(|_| ())
                    .map_err(Error::request("create endpoints", key)),
            };
        };
        let Some(patch) = change(&existing, &service, &subsets, over) else {
            return Ok(());
        };
        let answer = api.patch(&key.name, &Patch::Merge(patch)).await;
        answer
            .map(|_| ())
            .map_err(Error::request("update endpoints", key))
    }
}

/// Endpoints that somebody made by hand for a Service without selector are
/// none of ours.
fn is_ours(endpoints: &Endpoints) -> bool {
    let annotations = endpoints.metadata.annotations.as_ref();
    let labels = endpoints.metadata.labels.as_ref();
    !annotations.is_some_and(|a| a.contains_key(LEADER))
        && labels.is_some_and(|l| l.get(MANAGED_BY).map(String::as_str) == Some(CONTROLLER))
}

fn labels(service: &Service) -> Labels {
    let mut labels = facts::labels(service, &[MANAGED_BY]);
    labels.insert(MANAGED_BY.to_owned(), CONTROLLER.to_owned());
    labels
}

/// The patch that makes Endpoints right; `None` where they are.
fn change(
    existing: &Endpoints,
    service: &Service,
    subsets: &[EndpointSubset],
    over: bool,
) -> Option<Value> {
    let mut patch = json!({});
    let have = existing.metadata.labels.clone().unwrap_or_default();
    let from = rkube_api::value_of(&have).unwrap_or_default();
    let to = rkube_api::value_of(&labels(service)).unwrap_or_default();
    let mut differs = false;
    if let Some(labels) = rkube_client::merge_diff(&from, &to) {
        patch["metadata"]["labels"] = labels;
        differs = true;
    }
    if existing.subsets.as_deref().unwrap_or_default() != subsets {
        patch["subsets"] = json!(subsets);
        differs = true;
    }
    let annotations = existing.metadata.annotations.as_ref();
    let was_over = annotations.is_some_and(|a| a.contains_key(OVER_CAPACITY));
    if was_over != over {
        patch["metadata"]["annotations"][OVER_CAPACITY] = if over {
            "truncated".into()
        } else {
            Value::Null
        };
        differs = true;
    }
    patch["metadata"]["resourceVersion"] = json!(existing.metadata.resource_version);
    differs.then_some(patch)
}

/// The subsets of a Service and how many addresses they have: addresses with
/// the same ports are together (`RepackSubsets`).
pub(super) fn subsets(service: &Service, pods: &[Arc<Pod>]) -> (Vec<EndpointSubset>, usize) {
    let not_ready_too = facts::publishes_not_ready(service);
    let Some(family) = facts::families(service).into_iter().next() else {
        return (Vec::new(), 0);
    };
    // Ports as sortable texts; the addresses that have them.
    let mut groups: BTreeMap<String, EndpointSubset> = BTreeMap::new();
    let mut total = 0;
    for pod in pods {
        if !facts::belongs(pod, not_ready_too) {
            continue;
        }
        let Some(ip) = facts::address(pod, family) else {
            continue;
        };
        let mut ports: Vec<EndpointPort> = facts::ports(service)
            .iter()
            .filter_map(|port| {
                Some(EndpointPort {
                    name: port.name.clone().filter(|n| !n.is_empty()),
                    port: facts::port_number(pod, port)?,
                    protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                    app_protocol: port.app_protocol.clone(),
                })
            })
            .collect();
        if ports.is_empty() && !(facts::ports(service).is_empty() && facts::is_headless(service)) {
            continue;
        }
        ports.sort_by_key(|p| (p.port, p.name.clone(), p.protocol.clone()));
        let address = EndpointAddress {
            ip,
            hostname: facts::hostname(pod, service),
            node_name: facts::node(pod),
            target_ref: Some(facts::target(pod)),
        };
        let key = serde_json::to_string(&ports).unwrap_or_default();
        let subset = groups.entry(key).or_insert_with(|| EndpointSubset {
            ports: Some(ports).filter(|p| !p.is_empty()),
            ..EndpointSubset::default()
        });
        total += 1;
        if not_ready_too || pods::is_ready(pod) {
            subset.addresses.get_or_insert_default().push(address);
        } else {
            subset
                .not_ready_addresses
                .get_or_insert_default()
                .push(address);
        }
    }
    let mut subsets: Vec<EndpointSubset> = groups.into_values().collect();
    for subset in &mut subsets {
        let lists = [&mut subset.addresses, &mut subset.not_ready_addresses];
        for list in lists.into_iter().flatten() {
            list.sort_by_key(|a| {
                let uid = a.target_ref.as_ref().and_then(|t| t.uid.clone());
                (a.ip.clone(), uid)
            });
        }
    }
    (subsets, total)
}

/// Cuts addresses off, those that are not ready first.
pub(super) fn truncate(subsets: &mut Vec<EndpointSubset>, total: usize) {
    let mut surplus = total.saturating_sub(ADDRESSES_MAX_COUNT);
    for ready in [false, true] {
        for subset in subsets.iter_mut().rev() {
            let list = if ready {
                &mut subset.addresses
            } else {
                &mut subset.not_ready_addresses
            };
            if let Some(addresses) = list {
                let cut = surplus.min(addresses.len());
                addresses.truncate(addresses.len() - cut);
                surplus -= cut;
                if addresses.is_empty() {
                    *list = None;
                }
            }
        }
    }
    subsets.retain(|s| s.addresses.is_some() || s.not_ready_addresses.is_some());
}
