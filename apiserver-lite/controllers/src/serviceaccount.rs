//! Every namespace has a `default` service account, and knows how to check
//! the API server's certificate.
//!
//! Rules: upstream's `serviceaccounts_controller.go` and
//! `rootcacertpublisher`.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use rkube_client::{Change, Client, Informer, ListParams, Object, ObjectKey, Patch, WorkQueue};
use serde_json::{Value, json};

use crate::error::{Error, Outcome};
use crate::owner;
use crate::starter::Starter;

const DEFAULT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";
const CA_KEY: &str = "ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

/// Keeps one object in every namespace.
struct PerNamespace<K: Object> {
    name: &'static str,
    namespaces: Arc<Informer<Namespace>>,
    objects: Arc<Informer<K>>,
    queue: Arc<WorkQueue<String>>,
    client: Client,
    body: Value,
    /// What an object that is there lacks, as a merge patch.
    lacks: fn(&K, &Value) -> Option<Value>,
}

/// Starts both controllers; the second only where a certificate is given.
pub(crate) fn start(starter: &mut Starter<'_>) {
    let accounts = starter.informers.of::<ServiceAccount>();
    start_one(
        starter,
        "serviceaccount-controller",
        accounts,
        DEFAULT,
        json!({"metadata": {"name": DEFAULT}}),
        |_, _| None,
    );
    let Some(certificate) = starter.config.root_ca_pem.clone() else {
        return;
    };
    let only = ListParams {
        fields: Some(format!("metadata.name={ROOT_CA}")),
        ..ListParams::default()
    };
    let maps = Arc::new(Informer::start(starter.client.all::<ConfigMap>(), only));
    let body = json!({
        "metadata": {
            "name": ROOT_CA,
            "annotations": {"kubernetes.io/description": DESCRIPTION},
        },
        "data": {CA_KEY: certificate},
    });
    start_one(
        starter,
        "root-ca-cert-publisher",
        maps,
        ROOT_CA,
        body,
        lacks_certificate,
    );
}

/// What a ConfigMap that was changed by somebody needs to be right again.
fn lacks_certificate(map: &ConfigMap, body: &Value) -> Option<Value> {
    let wanted = &body["data"];
    let have = rkube_api::value_of(&map.data).unwrap_or_default();
    let change = rkube_client::merge_diff(&have, wanted)?;
    Some(json!({ "data": change }))
}

fn start_one<K: Object>(
    starter: &mut Starter<'_>,
    controller: &'static str,
    objects: Arc<Informer<K>>,
    name: &'static str,
    body: Value,
    lacks: fn(&K, &Value) -> Option<Value>,
) {
    let own = Arc::new(PerNamespace {
        name,
        namespaces: starter.informers.of(),
        objects,
        queue: Arc::new(WorkQueue::new()),
        client: starter.client.clone(),
        body,
        lacks,
    });
    let this = Arc::clone(&own);
    own.namespaces.on_change(move |change| {
        if !matches!(change, Change::Deleted(_)) {
            this.queue.add(owner::name(&**change.object()).to_owned());
        }
    });
    let this = Arc::clone(&own);
    own.objects.on_change(move |change| {
        let object = change.object();
        if owner::name(&**object) == name && !matches!(change, Change::Added(_)) {
            this.queue.add(owner::namespace(&**object).to_owned());
        }
    });
    let this = Arc::clone(&own);
    let synced = Box::pin(async move {
        this.namespaces.synced().await;
        this.objects.synced().await;
    });
    let queue = Arc::clone(&own.queue);
    starter.work(controller, &queue, synced, move |namespace| {
        let own = Arc::clone(&own);
        async move { own.sync(&namespace).await }
    });
}

impl<K: Object> PerNamespace<K> {
    async fn sync(&self, namespace: &str) -> Outcome {
        let found = self.namespaces.store().get(&ObjectKey::new("", namespace));
        if found.is_none_or(|n| owner::is_deleting(&*n)) {
            return Ok(());
        }
        let key = ObjectKey::new(namespace, self.name);
        let api = self.client.namespaced::<K>(namespace);
        let answer = match self.objects.store().get(&key) {
            None => api.create(&self.body).await.map(|_| ()),
            Some(object) => match (self.lacks)(&object, &self.body) {
                None => Ok(()),
                Some(patch) => api.patch(self.name, &Patch::Merge(patch)).await.map(|_| ()),
            },
        };
        match answer {
            Err(error)
                if error.is_already_exists()
                    || error.is_namespace_terminating()
                    || error.is_not_found() =>
            {
                Ok(())
            }
            answer => answer.map_err(Error::request("keep", key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;

    #[test]
    fn a_changed_bundle_is_put_right() {
        let body = json!({"data": {CA_KEY: "pem"}});
        let map = |data: Value| object::<ConfigMap>(json!({"metadata": {}, "data": data}));
        assert_eq!(lacks_certificate(&map(json!({CA_KEY: "pem"})), &body), None);
        assert_eq!(
            lacks_certificate(&map(json!({CA_KEY: "x", "more": "y"})), &body),
            Some(json!({"data": {CA_KEY: "pem", "more": null}}))
        );
        assert_eq!(
            lacks_certificate(&map(json!(null)), &body),
            Some(json!({"data": {CA_KEY: "pem"}}))
        );
    }
}
