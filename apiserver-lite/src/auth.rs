//! Who asks, and whether they may: the two questions before every request, as traits.
//!
//! Both answer from memory: they run on the request's task and must not block.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::request::{GROUP_MASTERS, User};

/// What a connection and a request's headers prove.
#[derive(Debug, Clone, Copy)]
pub struct Credentials<'a> {
    /// The certificates of the TLS client in DER, its own first; empty without one. TLS has
    /// checked that the client holds the key; the chain is the authenticator's to verify.
    pub certificates: &'a [rustls::pki_types::CertificateDer<'static>],
    /// The token of `Authorization: Bearer`, or of a WebSocket's subprotocol.
    pub bearer: Option<&'a str>,
    /// Where the request comes from.
    pub remote: Option<SocketAddr>,
}

/// Why credentials are refused (HTTP 401; the reason is logged, never answered).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("credentials refused: {reason}")]
pub struct Refused {
    /// The reason, without secrets.
    pub reason: String,
}

/// Tells who sent a request.
pub trait Authenticate: Send + Sync + fmt::Debug {
    /// The user of the credentials; `None` where there are none that this authenticator knows.
    ///
    /// # Errors
    /// Where there are some, and they prove nothing.
    fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Option<User>, Refused>;
}

/// What a user wants to do; names as roles write them.
#[derive(Debug, Clone, Copy)]
pub struct Access<'a> {
    /// Who.
    pub user: &'a User,
    /// `get`, `list`, ...; for paths the HTTP method in lower case.
    pub verb: &'a str,
    /// To what.
    pub target: Target<'a>,
}

/// What an [`Access`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// A resource.
    Resource {
        /// The group; "" is core.
        group: &'a str,
        /// The version.
        version: &'a str,
        /// The plural.
        resource: &'a str,
        /// The subresource, or "".
        subresource: &'a str,
        /// The namespace; "" is all, or a cluster-wide resource.
        namespace: &'a str,
        /// The name; "" is all, or a new one.
        name: &'a str,
    },
    /// A path that is no resource, such as `/healthz`.
    Path(&'a str),
}

/// The answer of an authorizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Yes; nobody else is asked.
    Allow(String),
    /// No; nobody else is asked.
    Deny(String),
    /// This authorizer knows no reason to allow; others may.
    NoOpinion(String),
}

impl Decision {
    /// Whether it is a yes.
    #[must_use]
    pub const fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }

    /// The reason given, may be empty.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Allow(reason) | Self::Deny(reason) | Self::NoOpinion(reason) => reason,
        }
    }
}

/// Tells whether a user may.
pub trait Authorize: Send + Sync + fmt::Debug {
    /// The decision about one access.
    fn authorize(&self, access: &Access<'_>) -> Decision;
}

/// Authorizers asked in order until one decides. Members of `system:masters` may everything
/// before that, as upstream's privileged group.
#[derive(Debug, Clone, Default)]
pub struct Authorizers(pub Vec<Arc<dyn Authorize>>);

impl Authorize for Authorizers {
    fn authorize(&self, access: &Access<'_>) -> Decision {
        if access.user.in_group(GROUP_MASTERS) {
            return Decision::Allow(String::new());
        }
        let mut reasons = Vec::new();
        for authorizer in &self.0 {
            match authorizer.authorize(access) {
                Decision::NoOpinion(reason) if reason.is_empty() => {}
                Decision::NoOpinion(reason) => reasons.push(reason),
                decided => return decided,
            }
        }
        Decision::NoOpinion(reasons.join(", "))
    }
}

/// Authenticators asked in order until one knows the credentials. A refusal of one is final only
/// when no later one knows them.
#[derive(Debug, Clone, Default)]
pub struct Authenticators(pub Vec<Arc<dyn Authenticate>>);

impl Authenticate for Authenticators {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Option<User>, Refused> {
        let mut refused: Option<Refused> = None;
        for authenticator in &self.0 {
            match authenticator.authenticate(credentials) {
                Ok(Some(user)) => return Ok(Some(user)),
                Ok(None) => {}
                Err(error) => {
                    refused.get_or_insert(error);
                }
            }
        }
        refused.map_or(Ok(None), Err)
    }
}

/// Allows everything: for tests of other parts.
#[derive(Debug, Clone, Copy)]
pub struct AlwaysAllow;

impl Authorize for AlwaysAllow {
    fn authorize(&self, _: &Access<'_>) -> Decision {
        Decision::Allow(String::new())
    }
}
