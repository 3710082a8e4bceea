//! The `binding` subresource.

use k8s_openapi::api::core::v1::Pod;
use rkube_client::{ApiError, BoxFuture, Client};
use serde_json::json;

use crate::framework::{Bind, Plugin};
use crate::info::PodInfo;

/// Binds by a POST to `pods/binding`.
#[derive(Debug)]
pub struct DefaultBinder {
    client: Client,
}

impl DefaultBinder {
    /// A binder that writes with a client.
    #[must_use]
    pub const fn new(client: Client) -> Self {
        Self { client }
    }
}

impl Plugin for DefaultBinder {
    fn name(&self) -> &'static str {
        "DefaultBinder"
    }
}

impl Bind for DefaultBinder {
    fn bind<'a>(&'a self, pod: &'a PodInfo, node: &'a str) -> BoxFuture<'a, Result<(), ApiError>> {
        Box::pin(async move {
            let body = json!({
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": pod.key.name, "namespace": pod.key.namespace, "uid": pod.uid},
                "target": {"apiVersion": "v1", "kind": "Node", "name": node},
            });
            let pods = self.client.namespaced::<Pod>(&pod.key.namespace);
            pods.create_sub(&pod.key.name, "binding", &body).await?;
            Ok(())
        })
    }
}
