//! One conversation with one endpoint: authentication, redirects, retries.
//!
//! Credentials go to the endpoint itself and to the token server that it
//! names, the latter only over TLS (or to this machine, or where the user
//! calls the registry insecure). A redirect to another host gets none.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, LOCATION, RETRY_AFTER,
    USER_AGENT, WWW_AUTHENTICATE,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rkube_image::Credential;
use tokio::time::timeout;

use crate::answers::{message_of, token_of};
use crate::backoff;
use crate::challenge::{self, Challenge};
use crate::config::Endpoint;
use crate::error::{Error, Result};
use crate::limits::{MAX_ERROR_BYTES, MAX_REDIRECTS, MAX_TOKEN_BYTES};
use crate::pace::{LastSent, Pace};
use crate::transport::{Body, Transport, full, is_plain_http};
use crate::url::{Url, escape};

/// What we call ourselves.
const AGENT: &str = concat!("rkube/", env!("CARGO_PKG_VERSION"));

/// Makes a body anew for each try; its length in bytes.
pub(crate) type MakeBody<'a> = dyn Fn() -> io::Result<(Body, u64)> + Sync + 'a;

/// A request.
pub(crate) struct Ask<'a> {
    pub(crate) method: Method,
    pub(crate) place: Place<'a>,
    pub(crate) headers: Vec<(HeaderName, String)>,
    pub(crate) body: Option<&'a MakeBody<'a>>,
    /// What a token has to allow.
    pub(crate) scope: &'a str,
    /// The body goes out for as long as it takes, if it goes on: when its last
    /// piece went.
    pub(crate) upload: Option<&'a LastSent>,
    /// Statuses beside 2xx that the caller wants to see.
    pub(crate) wanted: &'a [u16],
    /// Whether the same may be asked again after a failure.
    pub(crate) again: bool,
}

/// Where a request goes.
#[derive(Clone)]
pub(crate) enum Place<'a> {
    /// A path of the endpoint.
    Path(&'a str),
    /// Somewhere that the endpoint named.
    Url(Url),
    /// A token server; what it is sent is for it.
    Token(Url),
}

impl<'a> Ask<'a> {
    pub(crate) fn get(path: &'a str, scope: &'a str) -> Self {
        Self {
            method: Method::GET,
            place: Place::Path(path),
            headers: Vec::new(),
            body: None,
            scope,
            upload: None,
            wanted: &[],
            again: true,
        }
    }

    pub(crate) fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    pub(crate) fn header(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn wanted(mut self, wanted: &'a [u16]) -> Self {
        self.wanted = wanted;
        self
    }
}

/// An answer, and where it came from in the end.
pub(crate) struct Answer {
    pub(crate) url: Url,
    pub(crate) response: Response<Incoming>,
}

impl Answer {
    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(crate) fn header(&self, name: &HeaderName) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }
}

#[derive(Debug, Default)]
struct Auth {
    challenge: Option<Challenge>,
    tokens: HashMap<String, String>,
    used: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Session<'t> {
    transport: &'t Transport,
    pub(crate) endpoint: Endpoint,
    credential: Option<Credential>,
    who: String,
    /// TLS or not, once it is known.
    tls: Mutex<Option<bool>>,
    auth: Mutex<Auth>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'t> Session<'t> {
    /// `who` says in errors whose the credential is.
    pub(crate) fn new(
        transport: &'t Transport,
        endpoint: Endpoint,
        credential: Option<Credential>,
        who: &str,
    ) -> Self {
        Self {
            transport,
            endpoint,
            credential,
            who: who.to_owned(),
            tls: Mutex::default(),
            auth: Mutex::default(),
        }
    }

    /// Whether the registry asked for credentials and got some.
    pub(crate) fn used_credential(&self) -> bool {
        self.credential.is_some() && lock(&self.auth).used
    }

    /// Sends a request until it is answered for good.
    pub(crate) async fn send(&self, ask: &Ask<'_>) -> Result<Answer> {
        self.send_noting(ask, &|| ()).await
    }

    /// As [`Session::send`]; `retrying` hears of each pause.
    pub(crate) async fn send_noting(
        &self,
        ask: &Ask<'_>,
        retrying: &(dyn Fn() + Sync),
    ) -> Result<Answer> {
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match self.authenticated(ask).await {
                Ok(answer) => return Ok(answer),
                Err(e) if e.is_transient() && ask.again => e,
                Err(e) => return Err(e),
            };
            let Some(pause) = self.pause(tries, &error) else {
                return Err(error);
            };
            retrying();
            tokio::time::sleep(pause).await;
        }
    }

    /// How long to wait after a failure, if it is worth it.
    pub(crate) fn pause(&self, tries: u32, error: &Error) -> Option<Duration> {
        let after = match error {
            Error::Status { retry_after, .. } => *retry_after,
            _ => None,
        };
        let mut spread = [0_u8; 1];
        // Without random numbers clients come back together; no harm for one.
        let _ = rustix::rand::getrandom(&mut spread, rustix::rand::GetRandomFlags::empty());
        let pause = backoff::pause(tries, self.transport.patience.first_pause, after, spread[0]);
        tracing::debug!(endpoint = %self.endpoint.host, tries, ?pause, %error, "a request was not answered");
        pause
    }

    async fn authenticated(&self, ask: &Ask<'_>) -> Result<Answer> {
        let mut fresh = false;
        loop {
            let value = self.authorization(ask.scope);
            let had = value.is_some();
            let answer = self.follow(ask, value.as_deref()).await?;
            let status = answer.status();
            if status != StatusCode::UNAUTHORIZED {
                return self.judge(ask, answer).await;
            }
            let challenges = challenges(&answer);
            let (request, message) = self.said(ask, answer).await;
            if fresh || challenges.is_empty() {
                return Err(self.denied(request, message, had));
            }
            // A token may have run out; once for each request it is renewed.
            lock(&self.auth).tokens.remove(ask.scope);
            let offered = challenges.into_iter().find(|c| self.can_meet(c));
            let Some(challenge) = offered else {
                return Err(self.denied(request, message, had));
            };
            if let Challenge::Bearer { .. } = &challenge {
                let token = self.token(&challenge, ask.scope).await?;
                lock(&self.auth).tokens.insert(ask.scope.to_owned(), token);
            }
            let mut auth = lock(&self.auth);
            auth.challenge = Some(challenge);
            auth.used = true;
            fresh = true;
        }
    }

    fn can_meet(&self, challenge: &Challenge) -> bool {
        match challenge {
            Challenge::Bearer { .. } => true,
            Challenge::Basic => self
                .credential
                .as_ref()
                .is_some_and(|c| !c.username.is_empty()),
        }
    }

    fn denied(&self, request: String, message: String, had: bool) -> Error {
        let tried = match (&self.credential, had) {
            (Some(_), _) => self.who.clone(),
            (None, _) => "no credentials".to_owned(),
        };
        Error::Denied {
            request,
            tried,
            message,
        }
    }

    /// The value of `Authorization` as far as it is known what is wanted.
    fn authorization(&self, scope: &str) -> Option<String> {
        let auth = lock(&self.auth);
        match auth.challenge.as_ref()? {
            Challenge::Basic => {
                let credential = self.credential.as_ref()?;
                Some(format!("Basic {}", credential.basic_value()))
            }
            Challenge::Bearer { .. } => auth.tokens.get(scope).map(|t| format!("Bearer {t}")),
        }
    }

    async fn token(&self, challenge: &Challenge, scope: &str) -> Result<String> {
        let Challenge::Bearer {
            realm,
            service,
            scope: asked,
        } = challenge
        else {
            return Ok(String::new());
        };
        if let Some(own) = self
            .credential
            .as_ref()
            .filter(|c| !c.registry_token.is_empty())
        {
            return Ok(own.registry_token.clone());
        }
        let mut url = Url::parse(realm, "realm of WWW-Authenticate")?;
        if !url.tls && !url.is_loopback() && !self.endpoint.insecure && self.credential.is_some() {
            return Err(Error::Protocol {
                request: url.shown(),
                reason: "the registry names a token server without TLS: no credentials go there"
                    .into(),
            });
        }
        // Our own scope says what is needed; a registry's may say less.
        let scopes: Vec<&str> = if scope.is_empty() {
            asked.iter().flat_map(|s| s.split(' ')).collect()
        } else {
            scope.split(' ').collect()
        };
        let refresh = self
            .credential
            .as_ref()
            .filter(|c| !c.identity_token.is_empty());
        let form;
        let mut headers = Vec::new();
        let mut basic = None;
        let mut method = Method::GET;
        if let Some(credential) = refresh {
            let mut text = format!(
                "grant_type=refresh_token&client_id=rkube&refresh_token={}",
                escape(&credential.identity_token)
            );
            for (name, value) in [
                ("service", service.as_deref()),
                ("scope", Some(&*scopes.join(" "))),
            ] {
                text.extend(value.map(|v| format!("&{name}={}", escape(v))));
            }
            form = text;
            method = Method::POST;
            headers.push((CONTENT_TYPE, "application/x-www-form-urlencoded".to_owned()));
        } else {
            form = String::new();
            if let Some(service) = service {
                url = url.with_query("service", service);
            }
            for scope in &scopes {
                url = url.with_query("scope", scope);
            }
            if let Some(credential) = &self.credential {
                url = url.with_query("account", &credential.username);
                basic = Some(format!("Basic {}", credential.basic_value()));
            }
        }
        let body = || {
            let bytes = Bytes::from(form.clone());
            let length = bytes.len() as u64;
            Ok((full(bytes), length))
        };
        let ask = Ask {
            headers,
            method: method.clone(),
            place: Place::Token(url),
            body: (method == Method::POST).then_some(&body as &MakeBody<'_>),
            ..Ask::get("", "")
        };
        let answer = self.follow(&ask, basic.as_deref()).await?;
        let name = format!("{method} {}", answer.url.shown());
        if matches!(answer.status().as_u16(), 400 | 401 | 403) {
            let (request, message) = self.said(&ask, answer).await;
            return Err(self.denied(request, message, self.credential.is_some()));
        }
        let answer = self.judge(&ask, answer).await?;
        let bytes = self.read_body(answer, MAX_TOKEN_BYTES, &name).await?;
        token_of(&bytes).ok_or_else(|| Error::Protocol {
            request: name,
            reason: "the token server's answer holds no token".into(),
        })
    }

    /// The address of a path at the endpoint, over TLS or not.
    fn at(&self, tls: bool, path: &str) -> Result<Url> {
        Url::of_host(tls, &self.endpoint.host, path)
    }

    /// Sends a request and follows redirects; no status is an error here.
    async fn follow(&self, ask: &Ask<'_>, authorization: Option<&str>) -> Result<Answer> {
        let (mut url, origin, mut response) = match &ask.place {
            Place::Url(url) => {
                // What the endpoint named: its own credentials go to itself only.
                let known = lock(&self.tls).unwrap_or(true);
                let own = self.at(known, "/")?;
                let value = authorization.filter(|_| own.same_origin(url));
                let response = self.exchange(url, ask, value).await?;
                (url.clone(), url.clone(), response)
            }
            Place::Token(url) => {
                let response = self.exchange(url, ask, authorization).await?;
                (url.clone(), url.clone(), response)
            }
            Place::Path(path) => {
                let (url, response) = self.first(path, ask, authorization).await?;
                (url.clone(), url, response)
            }
        };
        let mut hops = 0;
        while matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308)
            && matches!(ask.method, Method::GET | Method::HEAD)
        {
            let name = format!("{} {}", ask.method, url.shown());
            let protocol = |reason: &str| Error::Protocol {
                request: name.clone(),
                reason: reason.to_owned(),
            };
            hops += 1;
            if hops > MAX_REDIRECTS {
                return Err(protocol("it redirects too often"));
            }
            let location = response
                .headers()
                .get(LOCATION)
                .and_then(|v| v.to_str().ok());
            let location = location.ok_or_else(|| protocol("a redirect without a place"))?;
            let next = url.join(location, &name)?;
            if url.tls && !next.tls && !self.endpoint.insecure {
                return Err(protocol("it redirects from https to http"));
            }
            let value = authorization.filter(|_| origin.same_origin(&next));
            response = self.exchange(&next, ask, value).await?;
            url = next;
        }
        Ok(Answer { url, response })
    }

    /// The first request to the endpoint finds out whether it speaks TLS,
    /// where it need not: registries on this machine and insecure ones.
    async fn first(
        &self,
        path: &str,
        ask: &Ask<'_>,
        authorization: Option<&str>,
    ) -> Result<(Url, Response<Incoming>)> {
        let known = *lock(&self.tls);
        if let Some(tls) = known {
            let url = self.at(tls, path)?;
            let response = self.exchange(&url, ask, authorization).await?;
            return Ok((url, response));
        }
        let url = self.at(true, path)?;
        let may_fall_back = self.endpoint.insecure || url.is_loopback();
        match self.exchange(&url, ask, authorization).await {
            Err(e)
                if may_fall_back && (is_plain_http(&e) || matches!(e, Error::Connect { .. })) =>
            {
                let url = self.at(false, path)?;
                let response = self.exchange(&url, ask, authorization).await?;
                *lock(&self.tls) = Some(false);
                Ok((url, response))
            }
            Err(e) => Err(e),
            Ok(response) => {
                *lock(&self.tls) = Some(true);
                Ok((url, response))
            }
        }
    }

    /// One request, one answer.
    async fn exchange(
        &self,
        url: &Url,
        ask: &Ask<'_>,
        authorization: Option<&str>,
    ) -> Result<Response<Incoming>> {
        let name = || format!("{} {}", ask.method, url.shown());
        let transport = |source| Error::Transport {
            request: name(),
            source,
        };
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(&*url.path)
            .header(HOST, url.host_header())
            .header(USER_AGENT, AGENT);
        for (header, value) in &ask.headers {
            request = request.header(header, value);
        }
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        let body = match ask.body {
            Some(make) => {
                let (body, length) = make().map_err(transport)?;
                request = request.header(CONTENT_LENGTH, length);
                body
            }
            None => {
                if matches!(ask.method, Method::POST | Method::PUT | Method::PATCH) {
                    request = request.header(CONTENT_LENGTH, 0);
                }
                full(Bytes::new())
            }
        };
        let request = request.body(body).map_err(|e| Error::Protocol {
            request: name(),
            reason: e.to_string(),
        })?;
        let answer = self.transport.send(url, !self.endpoint.insecure, request);
        let late = |text: &str| transport(io::Error::new(io::ErrorKind::TimedOut, text));
        let patience = self.transport.patience;
        let Some(sent) = ask.upload else {
            let answer = timeout(patience.head, answer).await;
            return answer.unwrap_or_else(|_| Err(late("no answer in time")));
        };
        sent.note();
        tokio::pin!(answer);
        loop {
            let left = patience.upload.saturating_sub(sent.ago());
            if left.is_zero() {
                return Err(late("it takes no more, or does not answer in time"));
            }
            if let Ok(answer) = timeout(left, &mut answer).await {
                return answer;
            }
        }
    }

    /// An answer that is not what was asked for becomes an error.
    async fn judge(&self, ask: &Ask<'_>, answer: Answer) -> Result<Answer> {
        let status = answer.status();
        if status.is_success() || ask.wanted.contains(&status.as_u16()) {
            return Ok(answer);
        }
        let retry_after = answer
            .header(&RETRY_AFTER)
            .and_then(|v| backoff::retry_after(v, SystemTime::now()));
        let (request, message) = self.said(ask, answer).await;
        if status == StatusCode::FORBIDDEN {
            return Err(self.denied(request, message, true));
        }
        Err(Error::Status {
            request,
            status,
            message,
            retry_after,
        })
    }

    /// What a refused request was, and what the registry says about it.
    async fn said(&self, ask: &Ask<'_>, answer: Answer) -> (String, String) {
        let request = format!("{} {}", ask.method, answer.url.shown());
        let body = self.read_body(answer, MAX_ERROR_BYTES, &request).await;
        (request, body.map(|b| message_of(&b)).unwrap_or_default())
    }

    /// Reads a small body whole.
    pub(crate) async fn read_body(
        &self,
        answer: Answer,
        limit: usize,
        what: &str,
    ) -> Result<Vec<u8>> {
        let mut body = answer.response.into_body();
        let (mut out, mut pace) = (Vec::new(), self.pace());
        while let Some(bytes) = self.next_data(&mut body, &mut pace, what).await? {
            if out.len() + bytes.len() > limit {
                return Err(Error::Protocol {
                    request: what.to_owned(),
                    reason: format!("the answer has more than {limit} bytes"),
                });
            }
            out.extend_from_slice(&bytes);
        }
        Ok(out)
    }

    /// For [`Session::next_data`] of one body.
    pub(crate) fn pace(&self) -> Pace {
        Pace::new(self.transport.patience.least)
    }

    /// The next piece of a body; an error if it does not come in time, or, with
    /// those before it, too slowly.
    pub(crate) async fn next_data(
        &self,
        body: &mut Incoming,
        pace: &mut Pace,
        what: &str,
    ) -> Result<Option<Bytes>> {
        let transport = |source| Error::Transport {
            request: what.to_owned(),
            source,
        };
        let idle = self.transport.patience.idle;
        loop {
            let asked = Instant::now();
            let frame = timeout(idle, body.frame()).await.map_err(|_| {
                let text = format!("it stalled for {} s", idle.as_secs_f32());
                transport(io::Error::new(io::ErrorKind::TimedOut, text))
            })?;
            match frame {
                None => return Ok(None),
                Some(Err(e)) => return Err(transport(crate::transport::io_error(&e))),
                Some(Ok(frame)) => {
                    let data = frame.into_data().unwrap_or_default();
                    if pace.is_too_slow(data.len() as u64, asked.elapsed()) {
                        let text = pace.told();
                        return Err(transport(io::Error::new(io::ErrorKind::TimedOut, text)));
                    }
                    if !data.is_empty() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

fn challenges(answer: &Answer) -> Vec<Challenge> {
    let lines = answer.response.headers().get_all(WWW_AUTHENTICATE);
    challenge::parse(lines.iter().filter_map(|v| v.to_str().ok()))
}
