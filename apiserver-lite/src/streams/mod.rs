//! `exec`, `attach`, `portforward` and `log` of pods: from the client to the
//! pod's node.
//!
//! Client and node each speak a protocol of `rkube-stream`; between them the
//! streams are neutral, so that a WebSocket client meets a SPDY kubelet, and
//! the node in this process needs no protocol at all.

mod options;
mod remote;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use futures_util::stream;
use http::header::{CONTENT_TYPE, HeaderValue};
use hyper::Response;
use hyper_util::rt::TokioIo;
use rkube_api::status::{Named, Status};
use rkube_stream::forward;
use rkube_stream::node::{AttachRequest, ExecRequest, LogBody, NodeStreams, PodRef, Refused, Work};
use rkube_stream::upgrade;
use serde_json::{Map, Value};
use tokio::io::AsyncReadExt as _;

use crate::connect::{Connect, ConnectRequest, Later};
use crate::http::Body;
use crate::objects::Objects;
use options::Query;

pub use remote::{KubeletClient, RemoteNode};

/// Bytes of a log that are sent at a time.
const LOG_BYTES: usize = 32 << 10;

/// Finds a pod's node and joins the client to it.
pub struct NodeConnector {
    /// Nodes in this process, by name.
    local: RwLock<HashMap<String, Arc<dyn NodeStreams>>>,
    /// How other nodes are reached; `None`: not at all.
    remote: Option<Arc<KubeletClient>>,
}

impl fmt::Debug for NodeConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeConnector").finish_non_exhaustive()
    }
}

impl NodeConnector {
    /// A connector that reaches other nodes through `remote`.
    #[must_use]
    pub fn new(remote: Option<Arc<KubeletClient>>) -> Self {
        Self {
            local: RwLock::default(),
            remote,
        }
    }

    /// Serves a node in this process.
    pub fn add_local(&self, node: &str, streams: Arc<dyn NodeStreams>) {
        let mut local = self.local.write().unwrap_or_else(PoisonError::into_inner);
        local.insert(node.to_owned(), streams);
    }

    fn node(&self, name: &str, objects: &Objects) -> Result<Arc<dyn NodeStreams>, Status> {
        let local = self.local.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(streams) = local.get(name) {
            return Ok(Arc::clone(streams));
        }
        let node = objects.find("", "nodes", "", name)?.ok_or_else(|| {
            Status::not_found(Named {
                group: "",
                resource: "nodes",
                name,
            })
        })?;
        let client = self.remote.as_ref().ok_or_else(|| {
            Status::unavailable(format!(
                "this server does not reach other nodes, such as {name}"
            ))
        })?;
        let streams =
            RemoteNode::of(Arc::clone(client), &node).map_err(|why| Status::internal(&why))?;
        Ok(Arc::new(streams))
    }
}

fn refusal(refused: Refused) -> Status {
    Status {
        code: refused.code,
        reason: refused.reason,
        message: refused.message,
        details: Map::new(),
        bare: false,
        text: false,
        continue_token: String::new(),
    }
}

/// The container that is meant.
fn container(pod: &Value, asked: &str) -> Result<String, Status> {
    let names = |list: &str| -> Vec<String> {
        let items = pod["spec"][list].as_array().map_or(&[][..], Vec::as_slice);
        let names = items
            .iter()
            .filter_map(|container| container["name"].as_str());
        names.map(str::to_owned).collect()
    };
    let (own, init, late) = (
        names("containers"),
        names("initContainers"),
        names("ephemeralContainers"),
    );
    let pod_name = pod["metadata"]["name"].as_str().unwrap_or("");
    if !asked.is_empty() {
        let mut all = own.iter().chain(&init).chain(&late);
        return match all.find(|name| *name == asked) {
            Some(name) => Ok(name.clone()),
            None => Err(Status::bad_request(format!(
                "container {asked} is not valid for pod {pod_name}"
            ))),
        };
    }
    if let [one] = &own[..] {
        return Ok(one.clone());
    }
    let mut why = format!(
        "a container name must be specified for pod {pod_name}, choose one of: [{}]",
        own.join(" ")
    );
    if !init.is_empty() {
        why.push_str(&format!(
            " or one of the init containers: [{}]",
            init.join(" ")
        ));
    }
    Err(Status::bad_request(why))
}

impl NodeConnector {
    async fn serve(&self, request: ConnectRequest) -> Result<Response<Body>, Status> {
        let (namespace, name) = (&request.namespace, &request.name);
        let pod = request.objects.find("", "pods", namespace, name)?;
        let pod = pod.ok_or_else(|| {
            Status::not_found(Named {
                group: "",
                resource: "pods",
                name,
            })
        })?;
        let query = Query::parse(request.http.uri().query().unwrap_or(""));
        let reference = PodRef {
            namespace: namespace.clone(),
            name: name.clone(),
            uid: pod["metadata"]["uid"].as_str().map(str::to_owned),
        };
        let container = match request.subresource {
            "portforward" => String::new(),
            _ => container(&pod, query.text("container"))?,
        };
        let node = pod["spec"]["nodeName"].as_str().unwrap_or("");
        if node.is_empty() {
            return if request.subresource == "log" {
                // As upstream: a pod that has no node yet has an empty log.
                Ok(plain(Body::empty()))
            } else {
                Err(Status::bad_request(format!(
                    "pod {name} does not have a host assigned"
                )))
            };
        }
        let node = self.node(node, &request.objects)?;
        match request.subresource {
            "log" => {
                let wanted = query.log(reference, container).map_err(refusal)?;
                let upgrade = upgrade::logs(request.http.headers()).map_err(refusal)?;
                let body = node.logs(wanted).await.map_err(refusal)?;
                match upgrade {
                    None => Ok(plain(stream_of(body))),
                    Some(upgrade) => {
                        let response = switch(upgrade.response());
                        run(request.http, "log", move |io| async move {
                            upgrade.serve(io, body).await
                        });
                        Ok(response)
                    }
                }
            }
            "portforward" => {
                let upgrade = upgrade::port_forward(request.http.headers()).map_err(refusal)?;
                let listed =
                    forward::parse_ports(upgrade.kind, query.all("ports")).map_err(refusal)?;
                let ports = node.port_forward(reference).await.map_err(refusal)?;
                let response = switch(upgrade.response());
                run(request.http, "portforward", move |io| async move {
                    upgrade.serve(io, ports, listed).await
                });
                Ok(response)
            }
            "exec" | "attach" => {
                let streams = query.streams().map_err(refusal)?;
                let upgrade = upgrade::exec(request.http.headers()).map_err(refusal)?;
                let work: Work = if request.subresource == "exec" {
                    let command = query.command().map_err(refusal)?;
                    let wanted = ExecRequest {
                        pod: reference,
                        container,
                        command,
                        streams,
                    };
                    node.exec(wanted).await
                } else {
                    let wanted = AttachRequest {
                        pod: reference,
                        container,
                        streams,
                    };
                    node.attach(wanted).await
                }
                .map_err(refusal)?;
                let response = switch(upgrade.response());
                run(request.http, request.subresource, move |io| async move {
                    upgrade.serve(io, streams, work).await
                });
                Ok(response)
            }
            other => Err(Status::unavailable(format!(
                "pods/{other} is not served by this server"
            ))),
        }
    }
}

/// Runs a protocol on the connection when it has been upgraded.
fn run<F, T>(mut http: hyper::Request<hyper::body::Incoming>, what: &'static str, serve: F)
where
    F: FnOnce(TokioIo<hyper::upgrade::Upgraded>) -> T + Send + 'static,
    T: Future<Output = Result<(), rkube_stream::StreamError>> + Send + 'static,
{
    let upgraded = hyper::upgrade::on(&mut http);
    rkube_task::spawn(async move {
        match upgraded.await {
            Ok(io) => {
                if let Err(error) = serve(TokioIo::new(io)).await {
                    tracing::debug!(what, %error, "a stream ended early");
                }
            }
            Err(error) => tracing::debug!(what, %error, "a connection was not upgraded"),
        }
    });
}

fn switch(response: Response<()>) -> Response<Body> {
    response.map(|()| Body::empty())
}

fn plain(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

fn stream_of(body: LogBody) -> Body {
    Body::stream(stream::unfold(Some(body), |body| async move {
        let mut body = body?;
        let mut buffer = vec![0; LOG_BYTES];
        match body.read(&mut buffer).await {
            Ok(0) => None,
            Ok(count) => {
                buffer.truncate(count);
                Some((Ok(buffer.into()), Some(body)))
            }
            Err(error) => Some((Err(error.into()), None)),
        }
    }))
}

impl Connect for NodeConnector {
    fn connect(&self, request: ConnectRequest) -> Later<'_, Result<Response<Body>, Status>> {
        Box::pin(self.serve(request))
    }
}
