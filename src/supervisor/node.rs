//! The engine and the pod workers, as the supervisor wires them.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Event, Pod};
use rkube_distribution::Registries;
use rkube_engine::api::ContainerRuntime;
use rkube_engine::{Engine, EngineConfig, Instance};
use rkube_kubelet::manager::{
    Applied, Ask, AskError, Bundle, Change, Config, IfExists, Manager, ManagerError, Source,
    event_channel,
};
use rkube_kubelet::node::{NodeFacts, Paths};
use rkube_kubelet::pod;
use rkube_kubelet::surroundings::{Alone, Surroundings};
use rkube_kubelet::time::Clock;
use tokio::sync::broadcast;

use crate::wire::{Apply, End, Failure, Role, Taken};

/// Everything that a root's writer holds.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) engine: Arc<Engine>,
    pub(crate) manager: Manager<Engine>,
    pub(super) role: Role,
}

/// In what the pods of a node are to live.
#[derive(Debug)]
pub(crate) struct Setting {
    /// What the writer is.
    pub(crate) role: Role,
    /// Addresses of new pods instead of the instance's own.
    pub(crate) pod_ranges: Option<(ipnet::Ipv4Net, Option<ipnet::Ipv6Net>)>,
    /// Ranges of the pods of all nodes together.
    pub(crate) cluster_ranges: Vec<ipnet::IpNet>,
    /// The host.
    pub(crate) facts: NodeFacts,
    /// What pods find around them.
    pub(crate) surroundings: Arc<dyn Surroundings>,
}

impl Setting {
    /// A host without a cluster.
    pub(crate) fn alone() -> Self {
        Self {
            role: Role::Supervisor,
            pod_ranges: None,
            cluster_ranges: Vec::new(),
            facts: NodeFacts::of_host(),
            surroundings: Arc::new(Alone),
        }
    }
}

/// The image that the program carries.
pub(crate) const TOOLBOX_IMAGE: &str = "rkube.local/toolbox";

impl Node {
    /// Opens the engine, takes over what runs, and finds the pods again.
    pub(crate) async fn open(instance: &Instance, setting: Setting) -> anyhow::Result<Self> {
        let writer = super::launch::argv(&instance.root)?;
        let configuration = super::config::read(&instance.root)?;
        let image_gc = configuration
            .image_gc()
            .with_context(|| super::config::path(&instance.root).display().to_string())?;
        let (sink, events) = event_channel();
        let config = EngineConfig {
            instance: instance.clone(),
            writer,
            pod_ranges: setting.pod_ranges,
            cluster_ranges: setting.cluster_ranges,
        };
        let opened = rkube_task::spawn_blocking(move || {
            let engine = Engine::open(
                config,
                Box::new(move |event| {
                    // Nobody listens any more once the supervisor ends.
                    let _ = sink.send(event);
                }),
            )?;
            crate::commands::image::ensure_toolbox(engine.images())?;
            anyhow::Ok(Arc::new(engine))
        });
        let engine = opened.await.context("open the engine")??;
        engine.set_puller(Arc::new(Registries::of_root(&instance.root)));
        engine.set_image_gc(image_gc);
        // What a command brought while nobody served may not be on the disk.
        engine.flush_images();
        if let Err(error) = engine.adopt_orphans() {
            // Exit codes may stay unknown after a keeper's death.
            tracing::warn!(error = rkube_engine::chain(&error), "become a subreaper");
        }
        for note in engine.notes() {
            tracing::warn!("{note}");
        }
        let manager = Manager::new(Config {
            runtime: Arc::clone(&engine),
            paths: Paths::new(&instance.root),
            node: NodeFacts {
                single_process_oom_kill: configuration.single_process_oom_kill,
                ..setting.facts
            },
            clock: Clock::system(),
            events,
            surroundings: setting.surroundings,
        });
        let recovery = manager.recover().await.context("find the pods again")?;
        for problem in &recovery.problems {
            tracing::error!("{problem}");
        }
        tracing::info!(
            adopted = recovery.adopted.len(),
            cleaned = recovery.cleaned.len(),
            "pods of an earlier writer"
        );
        Ok(Self {
            engine,
            manager,
            role: setting.role,
        })
    }

    /// Leaves all pods to their keepers.
    pub(crate) async fn leave(&self) {
        self.manager.leave().await;
        let engine = Arc::clone(&self.engine);
        // Only a panic could be lost here, and it is printed where it happens.
        let _ = rkube_task::spawn_blocking(move || engine.close()).await;
    }

    /// Lets pods that wait for an image look again; and others' images came or
    /// went.
    pub(super) fn images_changed(&self) {
        self.manager.images_changed();
        self.manager.forget_removed_images();
        self.engine.tidy_images();
    }

    /// Whether a pod is not over.
    pub(super) fn any_active(&self) -> bool {
        self.manager.list().iter().any(|v| !v.finished)
    }

    /// What becomes of pods from now on.
    pub(crate) fn changes(&self) -> broadcast::Receiver<Change> {
        self.manager.watch()
    }

    /// All pods, by namespace and name.
    pub(super) fn pods(&self) -> Vec<Pod> {
        let mut pods: Vec<Pod> = self.manager.list().iter().map(|v| v.pod.clone()).collect();
        pods.sort_by(|a, b| {
            (pod::namespace(a), pod::name(a)).cmp(&(pod::namespace(b), pod::name(b)))
        });
        pods
    }

    /// The pod of a uid.
    pub(super) fn pod(&self, uid: &str) -> Option<Pod> {
        self.manager.get(uid).map(|v| v.pod.clone())
    }

    /// Events that are kept.
    pub(super) fn events(&self, uid: Option<&str>) -> Vec<Event> {
        self.manager.journal().list(uid)
    }

    /// Events from now on.
    pub(super) fn events_to_come(&self) -> broadcast::Receiver<Event> {
        self.manager.journal().watch()
    }

    /// Takes pods on, all or none where a name is taken.
    pub(super) async fn apply(&self, request: Apply) -> Result<Vec<(Taken, Pod)>, Failure> {
        let if_exists = if request.replace {
            IfExists::Replace
        } else {
            IfExists::Attach
        };
        let mut out = Vec::new();
        for pod in request.pods {
            let objects = request
                .objects
                .get(pod::namespace(&pod))
                .cloned()
                .unwrap_or_default();
            let before = self.manager.find(pod::namespace(&pod), pod::name(&pod));
            let bundle = Bundle {
                pod,
                objects,
                group: request.group.clone(),
                source: Source::File,
            };
            let applied = match self.manager.apply(bundle, if_exists).await {
                Ok(applied) => applied,
                Err(error) => {
                    self.undo(&out).await;
                    return Err(refusal(&error));
                }
            };
            let taken = match (&applied, before) {
                (Applied::Attached(_), _) => Taken::Attached,
                (Applied::Created(_), Some(_)) => Taken::Replaced,
                (Applied::Created(_), None) => Taken::Created,
            };
            out.push((taken, applied.view().pod.clone()));
        }
        Ok(out)
    }

    /// Ends the pods of a request that could not be carried out as a whole.
    async fn undo(&self, taken: &[(Taken, Pod)]) {
        for (how, pod) in taken {
            if *how != Taken::Attached {
                // It may have ended by itself.
                let _ = self.manager.delete(pod::uid(pod), Some(0)).await;
            }
        }
    }

    /// Ends a pod and waits for that.
    pub(super) async fn end(&self, request: &End) -> Result<(), Failure> {
        let (uid, grace) = (request.uid.as_str(), request.grace_seconds);
        if let Some(view) = self.manager.get(uid).filter(|v| v.source == Source::Api) {
            return Err(belongs_to_api(&pod::display_name(&view.pod)));
        }
        if request.forget {
            self.manager
                .delete(uid, grace)
                .await
                .map_err(|e| refusal(&e))?;
            self.manager.gone(uid).await;
        } else {
            self.manager
                .stop(uid, grace)
                .await
                .map_err(|e| refusal(&e))?;
            self.manager.over(uid).await;
        }
        Ok(())
    }

    /// Has a pod start, restart, or get other limits.
    pub(super) async fn obey(&self, uid: &str, ask: Ask) -> Result<(), Failure> {
        self.manager.ask(uid, ask).await.map_err(|e| refusal(&e))
    }

    /// Ends all pods and waits for that.
    pub(super) async fn end_all(&self, grace_seconds: Option<u64>) -> Result<(), Failure> {
        if self.role != Role::Supervisor {
            let command = self.role.command();
            return Err(Failure::new(format!("`{command}` serves this root"))
                .hint("end it with SIGTERM first"));
        }
        let uids: Vec<String> = self.manager.list().iter().map(|v| v.uid.clone()).collect();
        for uid in &uids {
            // It may go by itself meanwhile.
            let _ = self.manager.delete(uid, grace_seconds).await;
        }
        for uid in &uids {
            self.manager.gone(uid).await;
        }
        Ok(())
    }

    /// What the engine knows of a pod.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Engine) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let engine = Arc::clone(&self.engine);
        let answer = rkube_task::spawn_blocking(move || question(&engine));
        answer
            .await
            .map_err(|e| Failure::new(format!("ask the engine: {e}")))
    }

    /// The attempt of a container that runs now.
    pub(super) fn running(
        engine: &Engine,
        uid: &str,
        container: &str,
    ) -> Result<rkube_engine::api::ContainerId, Failure> {
        let sandbox = engine.sandbox(&uid.to_owned()).map_err(|e| failed(&e))?;
        let sandbox = sandbox.ok_or_else(|| Failure::new("the pod has no sandbox"))?;
        let running = |c: &&rkube_engine::api::ContainerStatus| {
            c.id.name == container && c.state == rkube_engine::api::ContainerState::Running
        };
        let found = sandbox
            .containers
            .iter()
            .filter(running)
            .max_by_key(|c| c.id.attempt);
        found.map(|c| c.id.clone()).ok_or_else(|| {
            Failure::new(format!("container {container} is not running"))
                .hint("`rkube inspect` tells its state")
        })
    }
}

/// An error with its chain.
pub(super) fn failed(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new(crate::error::chain(error))
}

fn refusal(error: &ManagerError) -> Failure {
    let failure = failed(error);
    match error {
        ManagerError::OfApi { name } => belongs_to_api(name),
        ManagerError::Leaving { .. } => failure.hint("try again"),
        ManagerError::Exists { .. } => {
            failure.hint("remove it with `rkube rm --force`, or run with --replace")
        }
        ManagerError::Refused {
            source: AskError::Ending,
            ..
        } => failure.hint("wait for its end with `rkube wait`"),
        ManagerError::Ending { .. } => failure.hint("wait for its end, or run with --replace"),
        _ => failure,
    }
}

fn belongs_to_api(name: &str) -> Failure {
    Failure::new(format!("pod {name} belongs to the API server"))
        .hint("use kubectl for it, or another name")
}

/// Whether a root has records of pods.
pub(crate) fn has_records(root: &Path) -> anyhow::Result<bool> {
    Ok(!rkube_kubelet::record::uids(&Paths::new(root))?.is_empty())
}
