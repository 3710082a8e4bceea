//! EndpointSlices: at most 100 endpoints each, changed as little as possible.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use rkube_client::{
    Change, Client, DeleteParams, EventType, Informer, Object, ObjectKey, Patch, Recorder,
    WorkQueue, reference,
};
use serde_json::{Value, json};

use super::facts::{self, Family};
use super::wake_services;
use crate::error::{Error, Outcome, chain};
use crate::expect::Expectations;
use crate::owner::{self, Labels};
use crate::pods;
use crate::starter::Starter;

/// Most endpoints of one slice (`--max-endpoints-per-slice`).
const ENDPOINTS_MAX_COUNT: usize = 100;
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const CONTROLLER: &str = "endpointslice-controller.k8s.io";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Our slices by namespace and Service.
const BY_SERVICE: &str = "service";

struct Slices {
    services: Arc<Informer<Service>>,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
    slices: Arc<Informer<EndpointSlice>>,
    queue: Arc<WorkQueue<ObjectKey>>,
    expectations: Expectations,
    client: Client,
    recorder: Recorder,
}

pub(super) fn start(starter: &mut Starter<'_>) {
    let controller = Arc::new(Slices {
        services: starter.informers.of(),
        pods: starter.informers.of(),
        nodes: starter.informers.of(),
        slices: starter.informers.of(),
        queue: Arc::new(WorkQueue::new()),
        expectations: Expectations::default(),
        client: starter.client.clone(),
        recorder: starter.recorder("endpoint-slice-controller"),
    });
    controller.slices.add_index(BY_SERVICE, |slice| {
        let service = service_of(slice);
        service.map(|s| s.to_string()).into_iter().collect()
    });
    wake_services(&controller.services, &controller.pods, &controller.queue);
    let own = Arc::clone(&controller);
    controller
        .slices
        .on_change(move |change| own.slice_changed(change));
    let own = Arc::clone(&controller);
    let synced = Box::pin(async move {
        own.services.synced().await;
        own.pods.synced().await;
        own.nodes.synced().await;
        own.slices.synced().await;
    });
    let queue = Arc::clone(&controller.queue);
    starter.work("endpoint-slice-controller", &queue, synced, move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.sync(key).await }
    });
}

/// The Service of a slice that a controller manages.
pub(super) fn managed_by(slice: &EndpointSlice, controller: &str) -> Option<ObjectKey> {
    let labels = slice.metadata.labels.as_ref()?;
    if labels.get(MANAGED_BY).map(String::as_str) != Some(controller) {
        return None;
    }
    let name = labels.get(SERVICE_NAME)?;
    Some(ObjectKey::new(owner::namespace(slice), name))
}

/// The Service of a slice that is ours.
fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    managed_by(slice, CONTROLLER)
}

impl Slices {
    fn slice_changed(&self, change: &Change<EndpointSlice>) {
        let slice = change.object();
        if let Change::Modified(old, _) = change
            && let Some(key) = service_of(old)
        {
            self.queue.add(key);
        }
        let Some(key) = service_of(slice) else { return };
        match change {
            Change::Added(_) => self.expectations.created(&key),
            Change::Deleted(_) => self.expectations.deleted(&key, &ObjectKey::of(&**slice)),
            Change::Modified(..) => {}
        }
        self.queue.add(key);
    }

    async fn sync(&self, key: ObjectKey) -> Outcome {
        let Some(service) = self.services.store().get(&key) else {
            // Its slices go with it: it owns them.
            self.expectations.forget(&key);
            return Ok(());
        };
        let Some(selector) = facts::selector(&service) else {
            return Ok(());
        };
        if owner::is_deleting(&*service) || !self.expectations.are_met(&key) {
            return Ok(());
        }
        let pods: Vec<Arc<Pod>> = self
            .pods
            .store()
            .of_namespace(&key.namespace)
            .into_iter()
            .filter(|p| selector.matches(p.metadata.labels.as_ref()) && facts::belongs(p, true))
            .collect();
        let zone = |node: &str| {
            let node = self.nodes.store().get(&ObjectKey::new("", node))?;
            node.metadata.labels.as_ref()?.get(ZONE).cloned()
        };
        let existing = self.slices.store().by_index(BY_SERVICE, &key.to_string());
        let wanted = desired(&service, &pods, zone);
        let changes = reconcile(wanted, &existing, &labels(&service));
        let body = |group: &Group| new_slice(&*service, &labels(&service), group);
        let answer = perform(&self.client, &self.expectations, &key, changes, body).await;
        if let Err(error) = &answer
            && !error.is_conflict()
        {
            let about = reference(&*service);
            let message = format!(
                "Error updating Endpoint Slices for Service {key}: {}",
                chain(error)
            );
            let reason = "FailedToUpdateEndpointSlices";
            self.recorder
                .event(about, EventType::Warning, reason, &message);
        }
        answer
    }
}

/// Performs changes of slices; `body` makes that of a new one.
pub(super) async fn perform(
    client: &Client,
    expectations: &Expectations,
    key: &ObjectKey,
    changes: Changes,
    body: impl Fn(&Group) -> Value,
) -> Outcome {
    let api = client.namespaced::<EndpointSlice>(&key.namespace);
    let gone = changes.delete.iter().map(|s| ObjectKey::of(&**s));
    if !changes.create.is_empty() || !changes.delete.is_empty() {
        expectations.expect(key, changes.create.len(), gone);
    }
    let mut first = None;
    for new in changes.create {
        if let Err(error) = api.create(&body(&new)).await {
            expectations.created(key);
            if !error.is_namespace_terminating() {
                first.get_or_insert(Error::request("create a slice for", key)(error));
            }
        }
    }
    for (slice, patch) in changes.update {
        let name = owner::name(&*slice);
        if let Err(error) = api.patch(name, &Patch::Merge(patch)).await
            && !error.is_not_found()
        {
            first.get_or_insert(Error::request("update slice", name)(error));
        }
    }
    for slice in changes.delete {
        let params = DeleteParams {
            uid: slice.metadata.uid.clone(),
            ..DeleteParams::default()
        };
        let name = owner::name(&*slice);
        if let Err(error) = api.delete(name, &params).await {
            expectations.deleted(key, &ObjectKey::of(&*slice));
            if !error.is_not_found() {
                first.get_or_insert(Error::request("delete slice", name)(error));
            }
        }
    }
    first.map_or(Ok(()), Err)
}

/// The labels of a Service's slices.
pub(super) fn labels(service: &Service) -> Labels {
    let mut labels = facts::labels(service, &[SERVICE_NAME, MANAGED_BY]);
    labels.insert(SERVICE_NAME.to_owned(), owner::name(service).to_owned());
    labels.insert(MANAGED_BY.to_owned(), CONTROLLER.to_owned());
    labels
}

/// Endpoints that share a slice: of one family, with the same ports.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Group {
    pub(super) family: Family,
    pub(super) ports: Vec<EndpointPort>,
    pub(super) endpoints: Vec<Endpoint>,
}

/// Everything that shall be in slices. A family without endpoints has one
/// group that is empty, so that there is a slice that says so.
pub(super) fn desired(
    service: &Service,
    pods: &[Arc<Pod>],
    zone: impl Fn(&str) -> Option<String>,
) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for family in facts::families(service) {
        let before = groups.len();
        for pod in pods {
            let Some(address) = facts::address(pod, family) else {
                continue;
            };
            let ports = endpoint_ports(service, pod);
            if ports.is_empty() && !facts::ports(service).is_empty() {
                continue;
            }
            if ports.is_empty() && !facts::is_headless(service) {
                continue;
            }
            let endpoint = endpoint(service, pod, address, &zone);
            let same = groups
                .iter_mut()
                .find(|g| g.family == family && g.ports == ports);
            match same {
                Some(group) => group.endpoints.push(endpoint),
                None => groups.push(Group {
                    family,
                    ports,
                    endpoints: vec![endpoint],
                }),
            }
        }
        if groups.len() == before {
            groups.push(Group {
                family,
                ports: Vec::new(),
                endpoints: Vec::new(),
            });
        }
    }
    groups
}

fn endpoint_ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = facts::ports(service).iter();
    ports
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(facts::port_number(pod, port)?),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    address: String,
    zone: &impl Fn(&str) -> Option<String>,
) -> Endpoint {
    let serving = pods::is_ready(pod);
    let terminating = owner::is_deleting(pod);
    let ready = facts::publishes_not_ready(service) || (serving && !terminating);
    let node = facts::node(pod);
    Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        zone: node.as_deref().and_then(zone),
        node_name: node,
        hostname: facts::hostname(pod, service),
        target_ref: Some(facts::target(pod)),
        ..Endpoint::default()
    }
}

/// What to do about slices.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) create: Vec<Group>,
    pub(super) update: Vec<(Arc<EndpointSlice>, Value)>,
    pub(super) delete: Vec<Arc<EndpointSlice>>,
}

/// The same endpoint, whatever its conditions.
type Identity = (Vec<String>, Option<String>);

fn identity(endpoint: &Endpoint) -> Identity {
    let uid = endpoint.target_ref.as_ref().and_then(|t| t.uid.clone());
    (endpoint.addresses.clone(), uid)
}

/// Brings slices to what is wanted: what is there stays where it is, what is
/// new fills slices that change anyway, then those with room, then new ones.
pub(super) fn reconcile(
    wanted: Vec<Group>,
    existing: &[Arc<EndpointSlice>],
    labels: &Labels,
) -> Changes {
    let mut changes = Changes::default();
    let mut left: Vec<Arc<EndpointSlice>> = existing.to_vec();
    left.retain(|s| !owner::is_deleting(&**s));
    left.sort_unstable_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    for group in wanted {
        let (own, others): (Vec<_>, Vec<_>) = left.into_iter().partition(|slice| {
            slice.address_type == group.family.as_str()
                && slice.ports.clone().unwrap_or_default() == group.ports
        });
        left = others;
        reconcile_group(group, own, labels, &mut changes);
    }
    changes.delete.extend(left);
    changes
}

fn reconcile_group(
    group: Group,
    own: Vec<Arc<EndpointSlice>>,
    labels: &Labels,
    changes: &mut Changes,
) {
    let placeholder = group.endpoints.is_empty();
    let mut new: BTreeMap<Identity, Endpoint> = group
        .endpoints
        .into_iter()
        .map(|e| (identity(&e), e))
        .collect();
    let mut plans: Vec<(Arc<EndpointSlice>, Vec<Endpoint>)> = own
        .into_iter()
        .map(|slice| {
            let kept = slice.endpoints.iter().flatten();
            let kept = kept.filter_map(|e| new.remove(&identity(e))).collect();
            (slice, kept)
        })
        .collect();
    let mut new: Vec<Endpoint> = new.into_values().collect();
    let changed = |slice: &EndpointSlice, kept: &Vec<Endpoint>| {
        slice.endpoints.as_deref().unwrap_or_default() != kept.as_slice()
    };
    // First those that are written anyway, then the fullest that has room.
    for changing in [true, false] {
        for (slice, kept) in &mut plans {
            if changed(slice, kept) == changing && (changing || new.len() < ENDPOINTS_MAX_COUNT) {
                let room = ENDPOINTS_MAX_COUNT.saturating_sub(kept.len());
                kept.extend(new.drain(..room.min(new.len())));
            }
        }
    }
    let mut keeps_one = false;
    for (slice, kept) in plans {
        if kept.is_empty() && (!placeholder || keeps_one) {
            changes.delete.push(slice);
            continue;
        }
        keeps_one = true;
        let same_labels = slice.metadata.labels.as_ref() == Some(labels);
        if same_labels && !changed(&slice, &kept) {
            continue;
        }
        let have = slice.metadata.labels.clone().unwrap_or_default();
        let from = rkube_api::value_of(&have).unwrap_or_default();
        let to = rkube_api::value_of(labels).unwrap_or_default();
        let mut patch = json!({
            "metadata": {
                "uid": slice.metadata.uid,
                "resourceVersion": slice.metadata.resource_version,
            },
            "endpoints": kept,
        });
        if let Some(labels) = rkube_client::merge_diff(&from, &to) {
            patch["metadata"]["labels"] = labels;
        }
        changes.update.push((slice, patch));
    }
    let group = |endpoints: Vec<Endpoint>| Group {
        family: group.family,
        ports: group.ports.clone(),
        endpoints,
    };
    for chunk in new.chunks(ENDPOINTS_MAX_COUNT) {
        changes.create.push(group(chunk.to_vec()));
    }
    if placeholder && !keeps_one {
        changes.create.push(group(Vec::new()));
    }
}

/// The body of a slice that `parent` owns.
pub(super) fn new_slice<K: Object>(parent: &K, labels: &Labels, group: &Group) -> Value {
    json!({
        "metadata": {
            "generateName": format!("{}-", owner::name(parent)),
            "namespace": owner::namespace(parent),
            "labels": labels,
            "ownerReferences": [owner::controller_reference(parent)],
        },
        "addressType": group.family.as_str(),
        "ports": group.ports,
        "endpoints": group.endpoints,
    })
}
