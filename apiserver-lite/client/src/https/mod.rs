//! The API over HTTPS: how a component on another machine reaches it.
//!
//! Requests share HTTP/2 connections; a server that offers only HTTP/1.1 gets
//! one connection for each request under way. A watch is lines of JSON.
//! Nothing is read without a bound, and nothing waits for ever: connecting,
//! answers and silent connections have limits of time, a watch lives as long
//! as its connection answers pings.

mod dial;
mod lines;
mod pool;
mod tls;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http_body_util::{BodyExt, Full, Limited};
use pool::Answer;
use serde_json::Value;

use crate::error::ApiError;
use crate::transport::{BoxFuture, Frames, Request, Transport, Verb};
pub use dial::{CONNECT_TIMEOUT, Connection, Dialer, Endpoint, Resolve, hosts_file};
pub use tls::{Identity, Roots, TlsError, ca_fingerprint};

/// The largest answer, 512 MiB: a list of 100,000 objects of 5 KiB fits.
pub const MAX_ANSWER_BYTES: usize = 512 << 20;
/// The largest answer of a refused request.
const MAX_REFUSAL_BYTES: usize = 1 << 20;
/// The longest wait for an answer. The API server gives up after 60 s, and
/// its answer to that has to arrive.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(65);

/// How to reach an API server, and as whom.
#[derive(Clone)]
pub struct HttpsConfig {
    /// Where it is.
    pub endpoint: Endpoint,
    /// Whose certificates are believed.
    pub roots: Roots,
    /// Who asks.
    pub identity: Identity,
    /// Finds the addresses of host names.
    pub resolve: Resolve,
    /// `User-Agent`.
    pub user_agent: String,
}

impl fmt::Debug for HttpsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpsConfig")
            .field("endpoint", &self.endpoint)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// The transport; clones share connections.
#[derive(Clone)]
pub struct HttpsTransport {
    pool: Arc<pool::Pool>,
    user_agent: http::HeaderValue,
}

impl fmt::Debug for HttpsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpsTransport")
            .field("endpoint", self.pool.dialer().endpoint())
            .finish_non_exhaustive()
    }
}

impl HttpsTransport {
    /// A transport; nothing is connected yet, but what files hold is read.
    ///
    /// # Errors
    /// Certificates or keys cannot be used.
    pub fn new(config: HttpsConfig) -> Result<Self, TlsError> {
        let user_agent =
            http::HeaderValue::from_str(&config.user_agent).map_err(|e| TlsError::Unusable {
                what: "user agent".to_owned(),
                reason: e.to_string(),
            })?;
        let dialer = Dialer::new(
            config.endpoint,
            config.roots,
            config.identity,
            config.resolve,
        )?;
        Ok(Self {
            pool: Arc::new(pool::Pool::new(dialer)),
            user_agent,
        })
    }

    /// Any path with GET: what is no object, such as `/version` or `/readyz`.
    ///
    /// # Errors
    /// The server refuses or cannot be reached.
    pub async fn get(&self, path: &str) -> Result<Bytes, ApiError> {
        let attempt = format!("GET {path}");
        let request = http::Request::get(path);
        let response = self.send(&attempt, request, None, true).await?;
        self.whole(&attempt, response).await
    }

    async fn send(
        &self,
        attempt: &str,
        request: http::request::Builder,
        body: Option<Bytes>,
        repeatable: bool,
    ) -> Result<http::Response<Answer>, ApiError> {
        let failed = |reason: String| ApiError::Connection {
            attempt: attempt.to_owned(),
            reason,
        };
        let mut request = request
            .header(HOST, self.pool.dialer().endpoint().authority())
            .header(USER_AGENT, self.user_agent.clone())
            .header(ACCEPT, "application/json");
        let token = self.pool.dialer().token().map_err(|e| failed(chain(&e)))?;
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request
            .body(Full::new(body.unwrap_or_default()))
            .map_err(|e| failed(e.to_string()))?;
        let exchange = self.pool.exchange(request, repeatable);
        match tokio::time::timeout(ANSWER_TIMEOUT, exchange).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(failed(chain(&error))),
            Err(_) => Err(failed(format!("no answer for {ANSWER_TIMEOUT:?}"))),
        }
    }

    /// Reads an answer to its end; a refusal is an error.
    async fn whole(
        &self,
        attempt: &str,
        response: http::Response<Answer>,
    ) -> Result<Bytes, ApiError> {
        let status = response.status();
        let limit = if status.is_success() {
            MAX_ANSWER_BYTES
        } else {
            MAX_REFUSAL_BYTES
        };
        let failed = |reason: String| ApiError::Connection {
            attempt: attempt.to_owned(),
            reason,
        };
        let body = Limited::new(response.into_body(), limit).collect();
        let bytes = match tokio::time::timeout(ANSWER_TIMEOUT, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => return Err(failed(chain(error.as_ref()))),
            Err(_) => return Err(failed(format!("the answer took over {ANSWER_TIMEOUT:?}"))),
        };
        if status.is_success() {
            return Ok(bytes);
        }
        // What stands in front of an API server may answer no `Status`.
        let value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let error = ApiError::from_status(&value, status.as_u16());
        if value.get("kind").and_then(Value::as_str) == Some("Status") {
            return Err(error);
        }
        let text = String::from_utf8_lossy(&bytes);
        let text: String = text.chars().take(200).collect();
        Err(failed(format!(
            "the server answered {status}: {}",
            text.trim()
        )))
    }

    async fn request(&self, request: Request) -> Result<http::Response<Answer>, ApiError> {
        let attempt = request.attempt();
        let (method, repeatable) = match request.verb {
            Verb::Get | Verb::List | Verb::Watch => (http::Method::GET, true),
            Verb::Create => (http::Method::POST, false),
            Verb::Update => (http::Method::PUT, false),
            Verb::Patch => (http::Method::PATCH, false),
            Verb::Delete | Verb::DeleteCollection => (http::Method::DELETE, false),
        };
        let mut uri = request.target.path();
        for (at, (name, value)) in request.query.iter().enumerate() {
            uri.push(if at == 0 { '?' } else { '&' });
            uri.push_str(name);
            uri.push('=');
            uri.extend(percent_encoding::utf8_percent_encode(
                value,
                percent_encoding::NON_ALPHANUMERIC,
            ));
        }
        let mut built = http::Request::builder().method(method).uri(uri);
        if request.body.is_some() {
            built = built.header(CONTENT_TYPE, request.content_type);
        }
        self.send(&attempt, built, request.body, repeatable).await
    }
}

impl Transport for HttpsTransport {
    fn call(&self, request: Request) -> BoxFuture<'_, Result<Bytes, ApiError>> {
        Box::pin(async move {
            let attempt = request.attempt();
            let response = self.request(request).await?;
            self.whole(&attempt, response).await
        })
    }

    fn watch(&self, request: Request) -> BoxFuture<'_, Result<Box<dyn Frames>, ApiError>> {
        Box::pin(async move {
            let attempt = request.attempt();
            let response = self.request(request).await?;
            if response.status().is_success() {
                let frames = lines::LineFrames::new(attempt, response.into_body());
                return Ok(Box::new(frames) as Box<dyn Frames>);
            }
            match self.whole(&attempt, response).await {
                Err(error) => Err(error),
                Ok(_) => Err(ApiError::Decode {
                    attempt,
                    reason: "no watch began".to_owned(),
                }),
            }
        })
    }
}

/// An error with what caused it, in one line; what a cause repeats is left out.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}
