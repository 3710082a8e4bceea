//! The parts of the agent, joined.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use rkube_client::{ApiError, Client, Recorder};
use rkube_engine::Engine;
use rkube_kubelet::manager::{Manager, Source};
use rkube_kubelet::time::Clock;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::admit;
use crate::events;
use crate::images;
use crate::node::NodeKeeper;
use crate::node::object::{self, Fixed, NodeImage, Now, Registration};
use crate::pods::Pods;
use crate::streams::Streams;

/// What an agent works with.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The API, as this node.
    pub client: Client,
    /// How the node is registered.
    pub registration: Registration,
    /// What does not change about it.
    pub fixed: Fixed,
    /// The time.
    pub clock: Clock,
}

/// A node agent. Dropping it ends its tasks and leaves the pods running.
#[derive(Debug)]
pub struct Agent {
    name: String,
    engine: Arc<Engine>,
    manager: Manager<Engine>,
    pods: Arc<Pods<Engine>>,
    streams: Streams,
    /// Ended when the agent is dropped.
    _tasks: JoinSet<()>,
}

/// What pods of `rkube run` take, and the images of the store.
fn now(manager: &Manager<Engine>, engine: &Engine) -> Now {
    let mut now = Now::default();
    for view in manager.list() {
        if view.source == Source::File && !view.finished {
            let (cpu, memory) = admit::requests(&view.pod);
            now.other_cpu_millis = now.other_cpu_millis.saturating_add(cpu);
            now.other_memory_bytes = now.other_memory_bytes.saturating_add(memory);
            now.other_pods += 1;
        }
    }
    // A store that cannot be read shows no images; starts tell why.
    now.images = engine
        .images()
        .list()
        .unwrap_or_default()
        .into_iter()
        .map(|image| NodeImage {
            names: image.references.iter().map(ToString::to_string).collect(),
            bytes: image.size_bytes,
        })
        .collect();
    now
}

impl Agent {
    /// Registers the node and begins its work. Returns when the node's object
    /// is there; the node is Ready soon after.
    ///
    /// # Errors
    /// The first status cannot be written, though the node is registered.
    pub async fn start(
        config: AgentConfig,
        engine: Arc<Engine>,
        manager: Manager<Engine>,
    ) -> Result<(Self, Node), ApiError> {
        let changed = Arc::new(Notify::new());
        let asked = (manager.clone(), Arc::clone(&engine));
        let keeper = NodeKeeper::new(
            config.client.clone(),
            config.registration.clone(),
            config.fixed.clone(),
            config.clock.clone(),
            Box::new(move || now(&asked.0, &asked.1)),
            Arc::clone(&changed),
        );
        let node = keeper.registered().await;
        keeper.write_status(&now(&manager, &engine)).await?;
        let fixed = config.fixed.clone();
        let pods = Arc::new(Pods::new(
            config.client.clone(),
            manager.clone(),
            config.clock.clone(),
            &config.registration.name,
            // Pods of `rkube run` are among the running ones there.
            Arc::new(move || object::budget(&fixed, &Now::default())),
        ));
        let recorder = Recorder::start(config.client.clone(), events::COMPONENT);
        let mut tasks = JoinSet::new();
        tasks.spawn(images::run(
            Arc::clone(&engine),
            manager.clone(),
            recorder.clone(),
            images::node_reference(&node),
        ));
        tasks.spawn(async move { keeper.run().await });
        tasks.spawn(Arc::clone(&pods).run());
        tasks.spawn(events::forward(manager.clone(), recorder));
        tasks.spawn(notice(manager.clone(), changed));
        Ok((
            Self {
                name: config.registration.name,
                streams: Streams::new(Arc::clone(&engine), manager.clone()),
                engine,
                manager,
                pods,
                _tasks: tasks,
            },
            node,
        ))
    }

    /// The node's name.
    #[must_use]
    pub fn node_name(&self) -> &str {
        &self.name
    }

    /// What runs the containers.
    #[must_use]
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The pod workers.
    #[must_use]
    pub fn manager(&self) -> &Manager<Engine> {
        &self.manager
    }

    /// The pods that the API wants here.
    #[must_use]
    pub fn pods(&self) -> &Arc<Pods<Engine>> {
        &self.pods
    }

    /// Exec, attach, port-forward and logs of this node's pods.
    #[must_use]
    pub fn streams(&self) -> &Streams {
        &self.streams
    }
}

/// Has the node's status looked at whenever pods of `rkube run` come or go.
async fn notice(manager: Manager<Engine>, changed: Arc<Notify>) {
    use rkube_kubelet::manager::Change;
    use tokio::sync::broadcast::error::RecvError;
    let mut changes = manager.watch();
    loop {
        match changes.recv().await {
            Ok(Change::Updated(view) | Change::Removed(view)) => {
                if view.source == Source::File {
                    changed.notify_one();
                }
            }
            Err(RecvError::Lagged(_)) => changed.notify_one(),
            Err(RecvError::Closed) => return,
        }
    }
}
