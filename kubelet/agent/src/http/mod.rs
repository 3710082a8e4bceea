//! Exec, attach, port-forward and logs over HTTP, for both who serve them:
//! the node's own port, and the API server in the same process.

mod body;
mod listen;
mod query;
mod server;
mod stats;

use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rkube_stream::node::{AttachRequest, ExecRequest, LogRequest, NodeStreams, PodRef, Refused};
use rkube_stream::upgrade;
use rkube_stream::{StreamError, forward};

pub use body::NodeBody;
pub use query::Query;
pub use server::{Admit, NodeServer, NodeServerConfig, NodeServerError};

/// A request as it came.
pub type Http = http::Request<Incoming>;

/// The answer to something that is refused: a `Status`.
#[must_use]
pub fn refusal(refused: &Refused) -> Response<NodeBody> {
    let mut response = Response::new(NodeBody::full(refused.status().to_string()));
    *response.status_mut() =
        StatusCode::from_u16(refused.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// Runs a program in a container.
pub async fn exec(node: &dyn NodeStreams, asked: ExecRequest, http: Http) -> Response<NodeBody> {
    let upgrade = match upgrade::exec(http.headers()) {
        Ok(upgrade) => upgrade,
        Err(refused) => return exec_refusal(&refused),
    };
    let streams = asked.streams;
    match node.exec(asked).await {
        Ok(work) => {
            let response = upgrade.response();
            switch(http, response, move |io| async move {
                upgrade.serve(io, streams, work).await
            })
        }
        Err(refused) => refusal(&refused),
    }
}

/// Joins a container.
pub async fn attach(
    node: &dyn NodeStreams,
    asked: AttachRequest,
    http: Http,
) -> Response<NodeBody> {
    let upgrade = match upgrade::exec(http.headers()) {
        Ok(upgrade) => upgrade,
        Err(refused) => return exec_refusal(&refused),
    };
    let streams = asked.streams;
    match node.attach(asked).await {
        Ok(work) => {
            let response = upgrade.response();
            switch(http, response, move |io| async move {
                upgrade.serve(io, streams, work).await
            })
        }
        Err(refused) => refusal(&refused),
    }
}

/// A refused client may try another protocol, if it is told which.
fn exec_refusal(refused: &Refused) -> Response<NodeBody> {
    let mut response = refusal(refused);
    if let Some((name, value)) = upgrade::accepted_exec_protocols(refused) {
        response.headers_mut().insert(name, value);
    }
    response
}

/// Connects to ports of a pod; `ports` are those of the query, which only
/// the WebSocket form without tunnel needs.
pub async fn port_forward(
    node: &dyn NodeStreams,
    pod: PodRef,
    ports: &[String],
    http: Http,
) -> Response<NodeBody> {
    let upgrade = match upgrade::port_forward(http.headers()) {
        Ok(upgrade) => upgrade,
        Err(refused) => return refusal(&refused),
    };
    let listed = forward::parse_ports(upgrade.kind, ports.iter().map(String::as_str));
    let listed = match listed {
        Ok(listed) => listed,
        Err(refused) => return refusal(&refused),
    };
    match node.port_forward(pod).await {
        Ok(ports) => {
            let response = upgrade.response();
            switch(http, response, move |io| async move {
                upgrade.serve(io, ports, listed).await
            })
        }
        Err(refused) => refusal(&refused),
    }
}

/// A container's log.
pub async fn logs(node: &dyn NodeStreams, asked: LogRequest, http: Http) -> Response<NodeBody> {
    let upgrade = match upgrade::logs(http.headers()) {
        Ok(upgrade) => upgrade,
        Err(refused) => return refusal(&refused),
    };
    let body = match node.logs(asked).await {
        Ok(body) => body,
        Err(refused) => return refusal(&refused),
    };
    if let Some(upgrade) = upgrade {
        let response = upgrade.response();
        return switch(http, response, move |io| async move {
            upgrade.serve(io, body).await
        });
    }
    let mut response = Response::new(NodeBody::log(body));
    let text = HeaderValue::from_static("text/plain");
    response.headers_mut().insert(CONTENT_TYPE, text);
    response
}

/// Answers with 101 and serves the connection once the client has that.
fn switch<F, W>(mut http: Http, response: Response<()>, serve: F) -> Response<NodeBody>
where
    F: FnOnce(TokioIo<Upgraded>) -> W + Send + 'static,
    W: Future<Output = Result<(), StreamError>> + Send,
{
    let upgraded = hyper::upgrade::on(&mut http);
    rkube_task::spawn(async move {
        match upgraded.await {
            Ok(connection) => {
                if let Err(error) = serve(TokioIo::new(connection)).await {
                    tracing::debug!(%error, "a stream ended");
                }
            }
            Err(error) => tracing::debug!(%error, "upgrade a connection"),
        }
    });
    response.map(|()| NodeBody::empty())
}

/// A pod as a path names it.
#[must_use]
pub fn pod_ref(namespace: &str, name: &str, uid: Option<&str>) -> PodRef {
    PodRef {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: uid.map(str::to_owned),
    }
}

/// A node's streams, shared.
pub type SharedStreams = Arc<dyn NodeStreams>;
