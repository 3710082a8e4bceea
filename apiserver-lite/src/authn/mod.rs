//! Who asks: certificates, service account tokens, bootstrap tokens.
//!
//! What only the store knows (does the account still exist, is the pod that a
//! token is bound to the same one) is read from it on every request: a token
//! dies with its account, pod or Secret at once.

pub mod tls;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rkube_api::time::Time;
use rkube_pki::bootstrap::{BootstrapToken, SECRET_PREFIX};
use rkube_pki::token::{Bound, Claims, TokenKey, from_base64};
use rkube_pki::verify;
use rustls::pki_types::CertificateDer;

use crate::auth::{Authenticate, Credentials, Refused};
use crate::objects::Objects;
use crate::request::User;

/// The group of all service accounts; with `:` and a namespace, of those in it.
pub const GROUP_SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
/// The namespace of bootstrap tokens.
pub const BOOTSTRAP_NAMESPACE: &str = "kube-system";

/// Seconds since 1970.
#[must_use]
pub fn now_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn refused(reason: impl ToString) -> Refused {
    Refused {
        reason: reason.to_string(),
    }
}

/// Clients with a certificate of the cluster's authority: the common name is
/// the user, organisations are groups.
#[derive(Debug)]
pub struct Certificates {
    authority: CertificateDer<'static>,
}

impl Certificates {
    /// Certificates that lead to `authority`.
    #[must_use]
    pub const fn new(authority: CertificateDer<'static>) -> Self {
        Self { authority }
    }
}

impl Authenticate for Certificates {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Option<User>, Refused> {
        if credentials.certificates.is_empty() {
            return Ok(None);
        }
        let subject = verify::client(credentials.certificates, &self.authority, now_seconds())
            .map_err(refused)?;
        let id = format!("X509SHA256={}", subject.fingerprint);
        Ok(Some(User {
            name: subject.user,
            uid: String::new(),
            groups: subject.groups,
            extra: BTreeMap::from([(CREDENTIAL_ID.to_owned(), vec![id])]),
        }))
    }
}

const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Tokens of service accounts.
#[derive(Debug)]
pub struct ServiceAccountTokens {
    key: Arc<TokenKey>,
    objects: Objects,
}

impl ServiceAccountTokens {
    /// Tokens signed with `key`, of accounts in the store.
    #[must_use]
    pub const fn new(key: Arc<TokenKey>, objects: Objects) -> Self {
        Self { key, objects }
    }

    /// The user of a token for one of `audiences`, and the claims.
    ///
    /// # Errors
    /// It proves nothing.
    pub fn check(&self, token: &str, audiences: &[&str]) -> Result<(User, Claims), Refused> {
        let claims = self
            .key
            .verify(token, audiences, now_seconds())
            .map_err(refused)?;
        let namespace = &claims.namespace;
        self.is_alive("serviceaccounts", namespace, &claims.account)?;
        if let Some(pod) = &claims.pod {
            self.is_alive("pods", namespace, pod)?;
        }
        if let Some(secret) = &claims.secret {
            self.is_alive("secrets", namespace, secret)?;
        }
        if let (Some(node), None) = (&claims.node, &claims.pod) {
            self.is_alive("nodes", "", node)?;
        }
        Ok((user_of(&claims), claims))
    }

    /// The user of a token without an end: it is as good as the Secret that
    /// holds it (`legacy.go` of upstream).
    fn check_legacy(&self, token: &str) -> Result<User, Refused> {
        let claims = self.key.verify_legacy(token).map_err(refused)?;
        self.is_alive("serviceaccounts", &claims.namespace, &claims.account)?;
        let secret = self
            .objects
            .find("", "secrets", &claims.namespace, &claims.secret)
            .map_err(|status| refused(status.message))?
            .ok_or_else(|| refused("the token's Secret is gone"))?;
        let held = secret["data"]["token"].as_str().and_then(from_base64);
        if held.as_deref() != Some(token.as_bytes())
            || !secret["metadata"]["deletionTimestamp"].is_null()
        {
            return Err(refused("the token's Secret does not hold it any more"));
        }
        Ok(User {
            name: claims.subject(),
            uid: claims.account.uid,
            groups: vec![
                GROUP_SERVICE_ACCOUNTS.to_owned(),
                format!("{GROUP_SERVICE_ACCOUNTS}:{}", claims.namespace),
            ],
            extra: BTreeMap::new(),
        })
    }

    fn is_alive(&self, plural: &str, namespace: &str, bound: &Bound) -> Result<(), Refused> {
        let found = self
            .objects
            .find("", plural, namespace, &bound.name)
            .map_err(|status| refused(status.message))?;
        let is_same = found.is_some_and(|object| object["metadata"]["uid"] == *bound.uid);
        if is_same {
            return Ok(());
        }
        let name = &bound.name;
        Err(refused(format!(
            "the token is bound to {plural} {namespace}/{name}, which is gone"
        )))
    }
}

/// The user that a token's claims name.
fn user_of(claims: &Claims) -> User {
    let mut extra = BTreeMap::new();
    if !claims.id.is_empty() {
        extra.insert(CREDENTIAL_ID.to_owned(), vec![format!("JTI={}", claims.id)]);
    }
    for (what, bound) in [("pod", &claims.pod), ("node", &claims.node)] {
        if let Some(bound) = bound {
            let key = |part: &str| format!("authentication.kubernetes.io/{what}-{part}");
            extra.insert(key("name"), vec![bound.name.clone()]);
            extra.insert(key("uid"), vec![bound.uid.clone()]);
        }
    }
    User {
        name: claims.subject(),
        uid: claims.account.uid.clone(),
        groups: vec![
            GROUP_SERVICE_ACCOUNTS.to_owned(),
            format!("{GROUP_SERVICE_ACCOUNTS}:{}", claims.namespace),
        ],
        extra,
    }
}

impl Authenticate for ServiceAccountTokens {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Option<User>, Refused> {
        match credentials.bearer {
            Some(token) if self.key.is_ours(token) => {
                let (user, _) = self.check(token, &[self.key.issuer()])?;
                Ok(Some(user))
            }
            Some(token) if self.key.is_legacy(token) => self.check_legacy(token).map(Some),
            _ => Ok(None),
        }
    }
}

/// Tokens of nodes that join.
#[derive(Debug)]
pub struct BootstrapTokens {
    objects: Objects,
}

impl BootstrapTokens {
    /// Tokens whose Secrets are in the store.
    #[must_use]
    pub const fn new(objects: Objects) -> Self {
        Self { objects }
    }
}

impl Authenticate for BootstrapTokens {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Option<User>, Refused> {
        let Some(token) = credentials.bearer.and_then(BootstrapToken::parse) else {
            return Ok(None);
        };
        let name = format!("{SECRET_PREFIX}{}", token.id);
        let secret = self
            .objects
            .find("", "secrets", BOOTSTRAP_NAMESPACE, &name)
            .map_err(|status| refused(status.message))?
            .ok_or_else(|| refused("no such bootstrap token"))?;
        let now = i64::try_from(now_seconds()).unwrap_or(i64::MAX);
        // A time that does not parse lets nobody in.
        let is_expired = |text: &str| Time::parse(text).is_none_or(|time| time.seconds <= now);
        let groups = token
            .check(&secret, is_expired)
            .ok_or_else(|| refused("the bootstrap token is wrong or has expired"))?;
        Ok(Some(User {
            name: format!("system:bootstrap:{}", token.id),
            groups,
            ..User::default()
        }))
    }
}
