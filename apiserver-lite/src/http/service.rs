//! One request from its header to its answer.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE};
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use rkube_api::status::Status;
use rkube_client::Verb;
use tokio::sync::watch;

use super::body::Body;
use super::health::Check;
use super::identity::{Peer, authenticate, impersonate};
use super::limits::{InFlight, REQUEST_TIMEOUT};
use super::metrics::{Kind, Metrics};
use super::route::{Route, Target, route};
use super::server::stopped;
use super::{answer, connect, discovery, health, openapi};
use crate::BODY_BYTES_MAX;
use crate::auth::{self, Access, Authenticate};
use crate::engine::{Engine, Warnings};
use crate::negotiate;
use crate::options::Options;
use crate::request::{self, BodyType, User, is_write};
use crate::watch::Watch;

/// A page that is no resource, such as `/openid/v1/jwks`.
pub trait Page: Send + Sync + fmt::Debug {
    /// The media type and the body.
    ///
    /// # Errors
    /// What is answered instead.
    fn page(&self, user: &User) -> Result<(&'static str, Bytes), Status>;
}

/// Pages by path.
pub type Pages = BTreeMap<String, Arc<dyn Page>>;

/// What all requests of a server share.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) engine: Engine,
    pub(super) authenticate: Arc<dyn Authenticate>,
    pub(super) checks: Vec<Check>,
    pub(super) pages: Pages,
    /// `HOST:PORT` that discovery names.
    pub(super) address: String,
    pub(super) in_flight: InFlight,
    pub(super) metrics: Metrics,
    /// Turns true when the server stops.
    pub(super) stopping: watch::Receiver<bool>,
}

/// The pairs of a query, decoded; `+` is a space.
pub(super) fn pairs(query: &str) -> Vec<(String, String)> {
    let decoded = |text: &str| {
        let spaced = text.replace('+', " ");
        percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
    };
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(key), decoded(value))
        })
        .collect()
}

impl Service {
    /// Answers a request. Failures are answers too.
    pub(super) async fn answer(
        self: Arc<Self>,
        peer: Peer,
        http: Request<Incoming>,
    ) -> Response<Body> {
        let started = Instant::now();
        let method = http.method().clone();
        let path = http.uri().path().to_owned();
        let mut kind = Kind {
            verb: method_label(&method),
            ..Kind::default()
        };
        let mut warnings = Warnings::new();
        let outcome = self.handle(&peer, http, &mut kind, &mut warnings).await;
        let mut response = match outcome {
            Ok(response) => response,
            Err(status) => answer::status(&status),
        };
        let code = response.status().as_u16();
        let took = started.elapsed();
        self.metrics.count(kind, code, took);
        tracing::debug!(
            %method,
            path,
            code,
            dur_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            "answered"
        );
        let headers = response.headers_mut();
        answer::warn(headers, &warnings);
        if let Ok(id) = crate::engine::uid() {
            answer::audit_id(headers, &id);
        }
        response
    }

    async fn handle(
        &self,
        peer: &Peer,
        mut http: Request<Incoming>,
        kind: &mut Kind,
        warnings: &mut Warnings,
    ) -> Result<Response<Body>, Status> {
        let user = authenticate(&*self.authenticate, peer, http.headers_mut())?;
        let user = impersonate(&self.engine, user, &mut http)?;
        let user = Arc::new(user);
        let path = http.uri().path().to_owned();
        match route(&self.engine, &path) {
            Route::Resource(target) => {
                let gvk = &target.resource.gvk;
                (kind.group, kind.version) = (gvk.group, gvk.version);
                kind.resource = target.resource.plural;
                kind.subresource = target.subresource.map_or("", |s| s.name);
                self.resource(user, target, http, kind, warnings).await
            }
            Route::Missing => {
                // Who may not even ask learns nothing about what is there.
                self.may_path(&user, &http, &path)?;
                Err(Status::no_such_resource())
            }
            Route::Path => self.path(&user, &http, &path),
        }
    }

    fn may_path(&self, user: &User, http: &Request<Incoming>, path: &str) -> Result<(), Status> {
        let verb = http.method().as_str().to_ascii_lowercase();
        self.engine.authorize(&Access {
            user,
            verb: &verb,
            target: auth::Target::Path(path),
        })
    }

    fn path(
        &self,
        user: &User,
        http: &Request<Incoming>,
        path: &str,
    ) -> Result<Response<Body>, Status> {
        self.may_path(user, http, path)?;
        if !matches!(*http.method(), Method::GET | Method::HEAD) {
            return Err(Status::no_such_method());
        }
        let accept = header(http, ACCEPT.as_str());
        let query = pairs(http.uri().query().unwrap_or(""));
        if let Some(page) = self.pages.get(path) {
            let (content_type, body) = page.page(user)?;
            return Ok(answer::bytes(200, content_type, body));
        }
        let first = path.trim_start_matches('/').split('/').next().unwrap_or("");
        let found = match first {
            "healthz" | "livez" | "readyz" => health::answer(&self.checks, path, &query),
            "version" if path == "/version" || path == "/version/" => {
                let forms = negotiate::clauses(&accept);
                if !forms.is_empty() && !forms.iter().any(|f| f.takes(JSON)) {
                    return Err(Status::no_such_form(&[JSON]));
                }
                Some(answer::json(200, &discovery::version()))
            }
            "metrics" if path == "/metrics" => {
                let text = self
                    .metrics
                    .text(&self.in_flight, self.engine.store().revision());
                Some(answer::bytes(200, "text/plain; version=0.0.4", text))
            }
            "api" | "apis" => {
                discovery::answer(&self.engine, path, &accept, &self.address).transpose()?
            }
            "openapi" => openapi::answer(&self.engine, path, &query, &accept, http.headers())?,
            "" => Some(answer::json(200, &self.roots())),
            _ => None,
        };
        // What is below a group that is served is a resource that is not.
        let group = path.trim_start_matches('/').split('/').nth(1).unwrap_or("");
        let served = |group: &str| self.engine.served().iter().any(|r| r.gvk.group == group);
        found.ok_or_else(|| match first {
            "api" => Status::no_such_resource(),
            "apis" if served(group) => Status::no_such_resource(),
            _ => Status::page_not_found(),
        })
    }

    /// `/`: the paths that there are.
    fn roots(&self) -> serde_json::Value {
        let mut paths: Vec<String> = [
            "/api",
            "/api/v1",
            "/apis",
            "/healthz",
            "/livez",
            "/metrics",
            "/openapi/v2",
            "/openapi/v3",
            "/readyz",
            "/version",
        ]
        .map(str::to_owned)
        .to_vec();
        for resource in self.engine.served() {
            let gvk = &resource.gvk;
            if !gvk.group.is_empty() {
                paths.push(format!("/apis/{}", gvk.group));
                paths.push(format!("/apis/{}/{}", gvk.group, gvk.version));
            }
        }
        paths.extend(self.pages.keys().cloned());
        paths.sort_unstable();
        paths.dedup();
        serde_json::json!({"paths": paths})
    }

    async fn resource(
        &self,
        user: Arc<User>,
        target: Target,
        http: Request<Incoming>,
        kind: &mut Kind,
        warnings: &mut Warnings,
    ) -> Result<Response<Body>, Status> {
        if let Some(part) = target.subresource.filter(|p| connect::is_connected(p)) {
            kind.verb = "CONNECT";
            return connect::connect(&self.engine, user, target, part, http).await;
        }
        let query = pairs(http.uri().query().unwrap_or(""));
        let options = Options::from_query(query.iter().map(|(k, v)| (k.as_str(), v.as_str())))?;
        let collection = target.name.is_empty();
        // Objects are made in their collection and changed at their name.
        let misplaced = match *http.method() {
            Method::POST => !collection && target.subresource.is_none(),
            Method::PUT | Method::PATCH => collection,
            Method::GET | Method::DELETE => false,
            _ => true,
        };
        if misplaced {
            return Err(Status::no_such_method());
        }
        let verb = match *http.method() {
            Method::GET | Method::HEAD if collection && (options.watch || target.watch) => {
                Verb::Watch
            }
            Method::GET | Method::HEAD if target.watch => Verb::Watch,
            Method::GET | Method::HEAD if collection => Verb::List,
            Method::GET | Method::HEAD => Verb::Get,
            Method::POST => Verb::Create,
            Method::PUT => Verb::Update,
            Method::PATCH => Verb::Patch,
            Method::DELETE if collection => Verb::DeleteCollection,
            Method::DELETE => Verb::Delete,
            _ => return Err(Status::no_such_resource()),
        };
        kind.verb = verb_label(verb);
        let mut asked = request::Request::new(user, verb, target.resource);
        asked.subresource = target.subresource;
        asked.namespace = target.namespace;
        asked.name = target.name;
        asked.options = options;
        asked.body_type = BodyType::parse(&header(&http, CONTENT_TYPE.as_str()));
        if verb == Verb::Watch {
            if !collection {
                name_selector(&mut asked);
            }
            // Who may watch is asked before what form they want.
            self.engine.authorize_request(&asked)?;
            asked.format = negotiate::accept(&header(&http, ACCEPT.as_str()))?;
            let watch = self.engine.watch(&asked).await?;
            return Ok(self.stream(watch));
        }
        let _permit = self.in_flight.enter(is_write(verb))?;
        // Nobody sends a body to be told that they may not.
        self.engine.authorize_request(&asked)?;
        asked.format = negotiate::accept(&header(&http, ACCEPT.as_str()))?;
        let gzip = matches!(verb, Verb::Get | Verb::List) && answer::takes_gzip(http.headers());
        let work = async {
            if is_write(verb) {
                asked.body = read_body(http).await?;
            }
            self.engine.call(&asked, warnings).await
        };
        let answer = within(work).await?;
        Ok(answer::answer(answer, gzip))
    }

    /// A watch as a body that lasts.
    fn stream(&self, watch: Watch) -> Response<Body> {
        let state = (watch, self.stopping.clone());
        let stream = futures_util::stream::unfold(state, |(mut watch, mut stopping)| async move {
            let next = tokio::select! {
                next = lines(&mut watch) => next,
                // The end of a watch is no error: the client begins another.
                () = stopped(&mut stopping) => None,
            };
            next.map(|bytes| (Ok(bytes), (watch, stopping)))
        });
        let mut response = answer::bytes(200, "application/json", Bytes::new());
        *response.body_mut() = Body::stream(stream);
        response
    }
}

/// The media type of answers that have no other.
const JSON: &str = "application/json";

/// Bytes of frames that are sent together.
const LINES_BYTES: usize = 32 << 10;

/// The next frames: one, and those that are there already.
async fn lines(watch: &mut Watch) -> Option<Bytes> {
    use futures_util::FutureExt as _;
    let first = watch.next().await?.line();
    let mut all: Option<Vec<u8>> = None;
    while all.as_ref().map_or(first.len(), Vec::len) < LINES_BYTES {
        // A watch that has ended says so again at the next call.
        let Some(Some(frame)) = watch.next().now_or_never() else {
            break;
        };
        all.get_or_insert_with(|| first.to_vec())
            .extend_from_slice(&frame.line());
    }
    Some(all.map_or(first, Bytes::from))
}

/// The older form of a watch on one object means a selector.
fn name_selector(asked: &mut request::Request) {
    let term = rkube_api::selector::FieldTerm {
        field: "metadata.name".to_owned(),
        value: std::mem::take(&mut asked.name),
        equal: true,
    };
    asked.options.fields.0.push(term);
}

async fn within<T>(work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(REQUEST_TIMEOUT, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Status::timeout(
            "request did not complete within the allotted timeout",
            0,
        )),
    }
}

/// A whole body, at most [`BODY_BYTES_MAX`].
async fn read_body(http: Request<Incoming>) -> Result<Bytes, Status> {
    let stated = header(&http, CONTENT_LENGTH.as_str())
        .parse::<u64>()
        .unwrap_or(0);
    if usize::try_from(stated).map_or(true, |bytes| bytes > BODY_BYTES_MAX) {
        return Err(Status::too_large(BODY_BYTES_MAX));
    }
    match Limited::new(http.into_body(), BODY_BYTES_MAX)
        .collect()
        .await
    {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Status::too_large(BODY_BYTES_MAX))
        }
        Err(error) => Err(Status::bad_request(format!(
            "unable to read the body: {error}"
        ))),
    }
}

/// All values of a header, joined.
fn header(http: &Request<Incoming>, name: &str) -> String {
    let values = http.headers().get_all(name).iter();
    let texts: Vec<&str> = values.filter_map(|v| v.to_str().ok()).collect();
    texts.join(",")
}

fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "OTHER",
    }
}

fn verb_label(verb: Verb) -> &'static str {
    match verb {
        Verb::Get => "GET",
        Verb::List => "LIST",
        Verb::Watch => "WATCH",
        Verb::Create => "POST",
        Verb::Update => "PUT",
        Verb::Patch => "PATCH",
        Verb::Delete => "DELETE",
        Verb::DeleteCollection => "DELETECOLLECTION",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        assert_eq!(
            pairs("labelSelector=a%3Db%2Cc+in+%28d%29&watch&x="),
            [
                ("labelSelector".to_owned(), "a=b,c in (d)".to_owned()),
                ("watch".to_owned(), String::new()),
                ("x".to_owned(), String::new())
            ]
        );
        assert!(pairs("").is_empty());
    }
}
