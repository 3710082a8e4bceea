//! Slices of Endpoints that somebody made by hand for a Service without
//! selector, so that whoever reads slices alone finds them.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use rkube_client::{Change, Client, Informer, ObjectKey, WorkQueue};

use super::facts::{self, Family};
use super::slices::{Group, MANAGED_BY, SERVICE_NAME, managed_by, new_slice, perform, reconcile};
use crate::error::Outcome;
use crate::expect::Expectations;
use crate::owner::{self, Labels};
use crate::starter::Starter;

const CONTROLLER: &str = "endpointslicemirroring-controller.k8s.io";
/// On Endpoints that have slices of their own.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// On Endpoints that only hold a leader's record.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Most addresses of a subset that are mirrored
/// (`--mirroring-max-endpoints-per-subset`).
const SUBSET_MAX_COUNT: usize = 1000;
const BY_SERVICE: &str = "mirrored";

struct Mirror {
    services: Arc<Informer<Service>>,
    endpoints: Arc<Informer<Endpoints>>,
    slices: Arc<Informer<EndpointSlice>>,
    queue: Arc<WorkQueue<ObjectKey>>,
    expectations: Expectations,
    client: Client,
}

pub(super) fn start(starter: &mut Starter<'_>) {
    let controller = Arc::new(Mirror {
        services: starter.informers.of(),
        endpoints: starter.informers.of(),
        slices: starter.informers.of(),
        queue: Arc::new(WorkQueue::new()),
        expectations: Expectations::default(),
        client: starter.client.clone(),
    });
    controller.slices.add_index(BY_SERVICE, |slice| {
        let service = managed_by(slice, CONTROLLER);
        service.map(|s| s.to_string()).into_iter().collect()
    });
    let own = Arc::clone(&controller);
    controller.services.on_change(move |change| {
        own.queue.add(ObjectKey::of(&**change.object()));
    });
    let own = Arc::clone(&controller);
    controller.endpoints.on_change(move |change| {
        own.queue.add(ObjectKey::of(&**change.object()));
    });
    let own = Arc::clone(&controller);
    controller.slices.on_change(move |change| {
        let slice = change.object();
        let Some(key) = managed_by(slice, CONTROLLER) else {
            return;
        };
        match change {
            Change::Added(_) => own.expectations.created(&key),
            Change::Deleted(_) => own.expectations.deleted(&key, &ObjectKey::of(&**slice)),
            Change::Modified(..) => {}
        }
        own.queue.add(key);
    });
    let own = Arc::clone(&controller);
    let synced = Box::pin(async move {
        own.services.synced().await;
        own.endpoints.synced().await;
        own.slices.synced().await;
    });
    let queue = Arc::clone(&controller.queue);
    starter.work(
        "endpoint-slice-mirroring-controller",
        &queue,
        synced,
        move |key| {
            let controller = Arc::clone(&controller);
            async move { controller.sync(key).await }
        },
    );
}

/// Whether Endpoints are to be mirrored.
fn wants_slices(endpoints: &Endpoints, service: &Service) -> bool {
    let meta = &endpoints.metadata;
    let skips = meta
        .labels
        .as_ref()
        .and_then(|l| l.get(SKIP))
        .map(String::as_str);
    let leads = meta
        .annotations
        .as_ref()
        .is_some_and(|a| a.contains_key(LEADER));
    let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
    skips != Some("true") && !leads && selector.is_none_or(std::collections::BTreeMap::is_empty)
}

fn labels(endpoints: &Endpoints) -> Labels {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.retain(|key, _| key != facts::HEADLESS);
    labels.insert(SERVICE_NAME.to_owned(), owner::name(endpoints).to_owned());
    labels.insert(MANAGED_BY.to_owned(), CONTROLLER.to_owned());
    labels
}

/// The slices of Endpoints: one for each subset and family.
fn groups(endpoints: &Endpoints) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports = ports(subset);
        let ready = subset.addresses.iter().flatten().map(|a| (a, true));
        let waiting = subset
            .not_ready_addresses
            .iter()
            .flatten()
            .map(|a| (a, false));
        for (address, ready) in ready.chain(waiting).take(SUBSET_MAX_COUNT) {
            let families = [Family::V4, Family::V6];
            let Some(family) = families.into_iter().find(|f| f.has(&address.ip)) else {
                continue;
            };
            let endpoint = endpoint(address, ready);
            let same = groups
                .iter_mut()
                .find(|g| g.family == family && g.ports == ports);
            match same {
                Some(group) => group.endpoints.push(endpoint),
                None => groups.push(Group {
                    family,
                    ports: ports.clone(),
                    endpoints: vec![endpoint],
                }),
            }
        }
    }
    groups
}

fn ports(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let ports = subset.ports.iter().flatten();
    ports
        .map(|port| EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(port.port),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            app_protocol: port.app_protocol.clone(),
        })
        .collect()
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

impl Mirror {
    async fn sync(&self, key: ObjectKey) -> Outcome {
        if !self.expectations.are_met(&key) {
            return Ok(());
        }
        let existing = self.slices.store().by_index(BY_SERVICE, &key.to_string());
        let service = self.services.store().get(&key);
        let endpoints = self.endpoints.store().get(&key);
        let mirrored = match (&endpoints, &service) {
            (Some(endpoints), Some(service)) if wants_slices(endpoints, service) => endpoints,
            _ => {
                let changes = reconcile(Vec::new(), &existing, &Labels::new());
                let none = |_: &Group| serde_json::Value::Null;
                return perform(&self.client, &self.expectations, &key, changes, none).await;
            }
        };
        let labels = labels(mirrored);
        let changes = reconcile(groups(mirrored), &existing, &labels);
        let body = |group: &Group| new_slice(&**mirrored, &labels, group);
        perform(&self.client, &self.expectations, &key, changes, body).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;
    use serde_json::json;

    #[test]
    fn each_subset_and_family_becomes_a_slice() {
        let endpoints: Endpoints = object(
            json!({"metadata": {"name": "db", "labels": {"a": "b"}}, "subsets": [
            {"addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}], "notReadyAddresses": [{"ip": "192.0.2.2"}], "ports": [{"port": 5432}]},
            {"addresses": [{"ip": "192.0.2.3"}], "ports": [{"port": 5433, "name": "x"}]}]}),
        );
        let groups = groups(&endpoints);
        let told: Vec<_> = groups
            .iter()
            .map(|g| (g.family, g.ports[0].port, g.endpoints.len()))
            .collect();
        assert_eq!(
            told,
            [
                (Family::V4, Some(5432), 2),
                (Family::V6, Some(5432), 1),
                (Family::V4, Some(5433), 1)
            ]
        );
        let conditions = groups[0].endpoints[1].conditions.as_ref().unwrap();
        assert_eq!(conditions.ready, Some(false));
        let labels = labels(&endpoints);
        assert_eq!(
            (labels["a"].as_str(), labels[SERVICE_NAME].as_str()),
            ("b", "db")
        );
        let service = |spec| object::<Service>(json!({"metadata": {}, "spec": spec}));
        assert!(wants_slices(&endpoints, &service(json!({}))));
        assert!(!wants_slices(
            &endpoints,
            &service(json!({"selector": {"a": "b"}}))
        ));
        let skipped: Endpoints = object(json!({"metadata": {"labels": {SKIP: "true"}}}));
        assert!(!wants_slices(&skipped, &service(json!({}))));
    }
}
