//! The client's transport to an engine in the same process.
//!
//! The same path as HTTP behind authentication: authorization, admission, validation, and JSON
//! bytes as bodies; only sockets and TLS are left out.

use std::sync::Arc;

use bytes::Bytes;
use rkube_api::status::Status;
use rkube_client::{ApiError, BoxFuture, Frame, Frames, Request as ClientRequest, Transport, Verb};

use crate::engine::Engine;
use crate::options::Options;
use crate::request::{BodyType, Request, User};
use crate::watch::Watch;

/// Carries requests of one identity to an engine.
#[derive(Debug, Clone)]
pub struct InProcess {
    engine: Engine,
    user: Arc<User>,
}

impl InProcess {
    /// A transport that acts as `user`.
    #[must_use]
    pub fn new(engine: Engine, user: User) -> Self {
        Self {
            engine,
            user: Arc::new(user),
        }
    }

    fn request(&self, request: ClientRequest) -> Result<Request, Status> {
        let target = request.target;
        let resource = self
            .engine
            .resource(&target.group, &target.version, &target.resource)
            .ok_or_else(Status::no_such_resource)?;
        let subresource = target
            .subresource
            .map(|name| {
                resource
                    .subresource(&name)
                    .ok_or_else(Status::no_such_resource)
            })
            .transpose()?;
        let pairs = request.query.iter().map(|(k, v)| (*k, v.as_str()));
        Ok(Request {
            user: Arc::clone(&self.user),
            verb: request.verb,
            resource,
            subresource,
            namespace: target.namespace.unwrap_or_default(),
            name: target.name.unwrap_or_default(),
            options: Options::from_query(pairs)?,
            body: request.body.unwrap_or_default(),
            body_type: BodyType::parse(request.content_type),
            format: crate::negotiate::Format::JSON,
        })
    }

    async fn answer(&self, request: ClientRequest) -> Result<Bytes, Status> {
        if request
            .body
            .as_ref()
            .is_some_and(|b| b.len() > crate::BODY_BYTES_MAX)
        {
            return Err(Status::too_large(crate::BODY_BYTES_MAX));
        }
        let attempt = request.attempt();
        let mut request = self.request(request)?;
        // A list of one namespace's name is a read of the namespace itself.
        if request.verb == Verb::List && !request.resource.namespaced {
            request.namespace.clear();
        }
        let mut warnings = Vec::new();
        let answer = self.engine.call(&request, &mut warnings).await;
        for warning in warnings {
            tracing::debug!(attempt, warning, "the API server warns");
        }
        answer.map(|a| a.body.into_bytes())
    }
}

impl Transport for InProcess {
    fn call(&self, request: ClientRequest) -> BoxFuture<'_, Result<Bytes, ApiError>> {
        Box::pin(async move { self.answer(request).await.map_err(ApiError::from) })
    }

    fn watch(&self, request: ClientRequest) -> BoxFuture<'_, Result<Box<dyn Frames>, ApiError>> {
        Box::pin(async move {
            let watch = self.engine.watch(&self.request(request)?).await?;
            let frames: Box<dyn Frames> = Box::new(InProcessFrames { watch });
            Ok(frames)
        })
    }
}

struct InProcessFrames {
    watch: Watch,
}

impl Frames for InProcessFrames {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Frame, ApiError>>> {
        Box::pin(async move {
            let frame = self.watch.next().await?;
            let object = frame.object();
            Some(match frame.kind {
                Some(kind) => Ok(Frame { kind, object }),
                None => {
                    const INTERNAL: u16 = 500;
                    let value = serde_json::from_slice(&object).unwrap_or_default();
                    Err(ApiError::from_status(&value, INTERNAL))
                }
            })
        })
    }
}
