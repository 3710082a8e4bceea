//! Controllers and scheduler on a real API server in this process, with real
//! storage. Only the nodes are played: [`kubelet`] marks pods as running.

#![allow(clippy::unwrap_used, reason = "tests")]

mod certificates;
mod collect;
mod jobs;
mod kubectl;
mod kubelet;
mod namespaces;
mod nodes;
mod rollout;
mod scheduling;
mod services;

use std::time::Duration;

use rkube_apiserver::{Engine, testing};
use rkube_client::{Client, Informers, Object};
use rkube_controllers::{Config, Controllers};
use rkube_scheduler::Scheduler;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longest wait for anything; machines may be slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster in this process.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) engine: Engine,
    _kubelet: kubelet::Kubelet,
    controllers: Controllers,
    scheduler: Scheduler,
    _folder: TempDir,
}

impl Cluster {
    /// A cluster with so many nodes, all ready.
    pub(crate) async fn start(nodes: usize) -> Self {
        Self::with(nodes, Config::default()).await
    }

    pub(crate) async fn with(nodes: usize, config: Config) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let engine = testing::engine(folder.path()).unwrap();
        let client = testing::client(&engine);
        create(
            &client,
            "",
            "v1",
            "namespaces",
            None,
            &json!({"metadata": {"name": "default"}}),
        )
        .await;
        let informers = Informers::new(client.clone());
        let kubelet = kubelet::Kubelet::start(&informers);
        for i in 0..nodes {
            kubelet.add_node(&client, &format!("node-{i}")).await;
        }
        let controllers = Controllers::start(&informers, config);
        let scheduler = Scheduler::start(&informers, rkube_scheduler::Config::default());
        Self {
            client,
            engine,
            _kubelet: kubelet,
            controllers,
            scheduler,
            _folder: folder,
        }
    }

    /// Stops everything but the server and the nodes, and starts it anew with
    /// empty caches.
    pub(crate) async fn restart(self) -> Self {
        self.scheduler.stop().await;
        self.controllers.stop().await;
        let informers = Informers::new(self.client.clone());
        let controllers = Controllers::start(&informers, Config::default());
        let scheduler = Scheduler::start(&informers, rkube_scheduler::Config::default());
        Self {
            controllers,
            scheduler,
            ..self
        }
    }

    pub(crate) async fn stop(self) {
        self.scheduler.stop().await;
        self.controllers.stop().await;
    }

    /// Waits until the objects of a kind in `default` are as wanted.
    pub(crate) async fn until<K: Object + Clone + std::fmt::Debug>(
        &self,
        what: &str,
        holds: impl Fn(&[K]) -> bool,
    ) -> Vec<K> {
        let api = self.client.namespaced::<K>("default");
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let list = api
                .list(&rkube_client::ListParams::default())
                .await
                .unwrap();
            if holds(&list.items) {
                return list.items;
            }
            assert!(
                tokio::time::Instant::now() < until,
                "{what}: {:#?}",
                list.items
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A Deployment of so many pods of an image.
pub(crate) fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": image}]},
            },
        },
    })
}

/// Creates an object of any resource.
pub(crate) async fn create(
    client: &Client,
    group: &str,
    version: &str,
    resource: &str,
    namespace: Option<&str>,
    body: &Value,
) -> Value {
    let target = rkube_client::Target {
        group: group.to_owned(),
        version: version.to_owned(),
        resource: resource.to_owned(),
        namespace: namespace.map(str::to_owned),
        ..rkube_client::Target::default()
    };
    let mut request = Client::request(rkube_client::Verb::Create, target);
    request.body = Some(serde_json::to_vec(body).unwrap().into());
    client.call(request).await.unwrap()
}
