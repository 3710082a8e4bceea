//! What a node offers to `exec`, `attach`, `port-forward` and `logs`: for its
//! own HTTPS port and, without a connection, for the API server of the same
//! process.

mod exec;
mod fd;
mod logs;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use rkube_engine::Engine;
use rkube_engine::api::{ContainerId, ContainerRuntime, ContainerState};
use rkube_kubelet::manager::{Manager, PodView, Source};
use rkube_kubelet::pod;
use rkube_stream::node::{
    AttachRequest, Duplex, ExecRequest, LogBody, LogRequest, NodeStreams, PodRef, Ports, Refused,
    Work,
};

/// The streams of this node's pods.
#[derive(Debug, Clone)]
pub struct Streams {
    engine: Arc<Engine>,
    manager: Manager<Engine>,
}

impl Streams {
    /// The streams of a manager's pods, which run in `engine`.
    #[must_use]
    pub fn new(engine: Arc<Engine>, manager: Manager<Engine>) -> Self {
        Self { engine, manager }
    }

    /// The pod that a request means.
    fn pod(&self, wanted: &PodRef) -> Result<Arc<PodView>, Refused> {
        let missing = || {
            Refused::not_found(format!(
                "pod {:?} not found",
                format!("{}_{}", wanted.name, wanted.namespace)
            ))
        };
        let fits = |view: &PodView| {
            view.source == Source::Api
                && pod::namespace(&view.pod) == wanted.namespace
                && pod::name(&view.pod) == wanted.name
                && wanted.uid.as_ref().is_none_or(|uid| *uid == view.uid)
        };
        let all = self.manager.list();
        // Of two with one name, the newer one: the other is being removed.
        all.into_iter()
            .filter(|view| fits(view))
            .max_by_key(|view| {
                let created = view.pod.metadata.creation_timestamp.as_ref();
                created.map(|t| t.0)
            })
            .ok_or_else(missing)
    }

    /// A container of the pod, by name.
    fn container<'a>(&self, view: &'a PodView, name: &str) -> Result<&'a str, Refused> {
        let found = pod::container(&view.pod, name).map(|(_, c)| c.name.as_str());
        found.ok_or_else(|| {
            Refused::bad_request(format!(
                "container {name} is not valid for pod {}",
                pod::name(&view.pod)
            ))
        })
    }

    /// The attempt of a container that runs.
    fn running(&self, view: &PodView, name: &str) -> Result<ContainerId, Refused> {
        let name = self.container(view, name)?;
        let sandbox = self.engine.sandbox(&view.uid);
        let sandbox = sandbox.map_err(Refused::internal)?;
        let found = sandbox
            .iter()
            .flat_map(|s| &s.containers)
            .filter(|c| c.id.name == name && c.state == ContainerState::Running)
            .max_by_key(|c| c.id.attempt);
        found.map(|c| c.id.clone()).ok_or_else(|| {
            Refused::not_found(format!(
                "container not found ({name:?}): it is not running in pod {}",
                pod::name(&view.pod)
            ))
        })
    }
}

/// Runs what blocks on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refused> + Send + 'static,
) -> Result<T, Refused> {
    match rkube_task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(crash) => Err(Refused::internal(crash)),
    }
}

impl NodeStreams for Streams {
    fn exec(&self, request: ExecRequest) -> BoxFuture<'static, Result<Work, Refused>> {
        let own = self.clone();
        Box::pin(async move {
            let streams = own.clone();
            blocking(move || {
                let view = streams.pod(&request.pod)?;
                let id = streams.running(&view, &request.container)?;
                Ok(exec::exec(Arc::clone(&streams.engine), id, request))
            })
            .await
        })
    }

    fn attach(&self, request: AttachRequest) -> BoxFuture<'static, Result<Work, Refused>> {
        let own = self.clone();
        Box::pin(async move {
            blocking(move || {
                let view = own.pod(&request.pod)?;
                let id = own.running(&view, &request.container)?;
                exec::attach(&own, id, request)
            })
            .await
        })
    }

    fn port_forward(&self, wanted: PodRef) -> BoxFuture<'static, Result<Arc<dyn Ports>, Refused>> {
        let own = self.clone();
        Box::pin(async move {
            let view = own.pod(&wanted)?;
            let phase = view.pod.status.as_ref().and_then(|s| s.phase.clone());
            if phase.as_deref() != Some("Running") {
                return Err(Refused::bad_request(format!(
                    "unable to forward port because pod is not running. Current status={}",
                    phase.unwrap_or_default()
                )));
            }
            let ports: Arc<dyn Ports> = Arc::new(PodPorts {
                engine: Arc::clone(&own.engine),
                uid: view.uid.clone(),
            });
            Ok(ports)
        })
    }

    fn logs(&self, request: LogRequest) -> BoxFuture<'static, Result<LogBody, Refused>> {
        let own = self.clone();
        Box::pin(async move { logs::open(&own, request) })
    }
}

/// The ports of one pod.
struct PodPorts {
    engine: Arc<Engine>,
    uid: String,
}

impl Ports for PodPorts {
    fn connect(&self, port: u16) -> BoxFuture<'static, Result<Box<dyn Duplex>, String>> {
        let (engine, uid) = (Arc::clone(&self.engine), self.uid.clone());
        Box::pin(async move {
            let dialled = rkube_task::spawn_blocking(move || engine.connect(&uid, port));
            let stream = match dialled.await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return Err(rkube_engine::chain(&error)),
                Err(crash) => return Err(crash.to_string()),
            };
            let ready = stream
                .set_nonblocking(true)
                .and_then(|()| tokio::net::TcpStream::from_std(stream));
            match ready {
                Ok(stream) => Ok(Box::new(stream) as Box<dyn Duplex>),
                Err(error) => Err(format!("watch the connection to port {port}: {error}")),
            }
        })
    }
}

/// The latest state of a container that a log request may ask for.
fn waiting_reason(pod: &Pod, name: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let lists = [&status.container_statuses, &status.init_container_statuses];
    let found = lists
        .into_iter()
        .flatten()
        .flatten()
        .find(|c| c.name == name)?;
    found.state.as_ref()?.waiting.as_ref()?.reason.clone()
}
