//! Who asks: certificates, service account tokens, bootstrap tokens.
//!
//! What only the store knows (does the account still exist, is the pod that a
//! token is bound to the same one) is read from it on every request: a token
//! dies with its account, pod or Secret at once.

pub mod tls;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rkube_api::time::Time;
use rkube_pki::PkiError;
use rkube_pki::bootstrap::{BootstrapToken, SECRET_PREFIX};
use rkube_pki::token::{Bound, Claims, TokenKey, from_base64};
use rkube_pki::verify::{self, Subject};
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

/// Most certificates whose subject is kept; then it is begun anew.
const KNOWN_COUNT_MAX: usize = 1024;

/// Clients with a certificate of the cluster's authority: the common name is
/// the user, organisations are groups.
///
/// A signature takes a tenth of a millisecond to check, and a connection shows
/// its certificate with every request. So what a certificate proved is kept,
/// where the authority itself signed it; its times are looked at anew.
#[derive(Debug)]
pub struct Certificates {
    authority: CertificateDer<'static>,
    known: Mutex<HashMap<CertificateDer<'static>, Arc<Subject>>>,
}

impl Certificates {
    /// Certificates that lead to `authority`.
    #[must_use]
    pub fn new(authority: CertificateDer<'static>) -> Self {
        Self {
            authority,
            known: Mutex::default(),
        }
    }

    fn subject(
        &self,
        chain: &[CertificateDer<'static>],
        now: u64,
    ) -> Result<Arc<Subject>, PkiError> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let own = match chain {
            [own] => own,
            _ => return verify::client(chain, &self.authority, now).map(Arc::new),
        };
        let kept = known().get(own).cloned();
        if let Some(subject) = kept.filter(|subject| subject.valid.contains(&now)) {
            return Ok(subject);
        }
        let subject = Arc::new(verify::client(chain, &self.authority, now)?);
        let mut known = known();
        if known.len() >= KNOWN_COUNT_MAX {
            known.clear();
        }
        known.insert(own.clone(), Arc::clone(&subject));
        Ok(subject)
    }
}

impl Authenticate for Certificates {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Option<User>, Refused> {
        if credentials.certificates.is_empty() {
            return Ok(None);
        }
        let subject = self.subject(credentials.certificates, now_seconds());
        let subject = subject.map_err(refused)?;
        let id = format!("X509SHA256={}", subject.fingerprint);
        Ok(Some(User {
            name: subject.user.clone(),
            uid: String::new(),
            groups: subject.groups.clone(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use rkube_pki::ca::{Authority, LEAF_SECONDS, Purpose};
    use rustls::pki_types::pem::PemObject as _;

    const NOW: u64 = 1_800_000_000;

    fn chain(authority: &Authority, user: &str) -> [CertificateDer<'static>; 1] {
        let identity = authority.issue(user, None, &Purpose::Client, NOW).unwrap();
        [CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap()]
    }

    #[test]
    fn what_a_certificate_proved_holds_in_its_time() {
        let (authority, _) = Authority::new("kubernetes", NOW).unwrap();
        let (other, _) = Authority::new("kubernetes", NOW).unwrap();
        let certificates = Certificates::new(authority.der().clone());
        let (ours, theirs) = (chain(&authority, "a"), chain(&other, "a"));
        for _ in 0..2 {
            assert_eq!(certificates.subject(&ours, NOW).unwrap().user, "a");
            assert!(certificates.subject(&theirs, NOW).is_err());
            assert!(certificates.subject(&[], NOW).is_err());
            assert!(certificates.subject(&ours, NOW + LEAF_SECONDS + 1).is_err());
            assert!(certificates.subject(&ours, NOW - 7200).is_err());
        }
    }

    #[test]
    fn only_so_many_certificates_are_kept() {
        let (authority, _) = Authority::new("kubernetes", NOW).unwrap();
        let certificates = Certificates::new(authority.der().clone());
        let subject = certificates.subject(&chain(&authority, "a"), NOW).unwrap();
        let mut known = certificates.known.lock().unwrap();
        known.extend((0..KNOWN_COUNT_MAX).map(|number| {
            let der = CertificateDer::from(number.to_be_bytes().to_vec());
            (der, Arc::clone(&subject))
        }));
        drop(known);
        certificates.subject(&chain(&authority, "b"), NOW).unwrap();
        assert_eq!(certificates.known.lock().unwrap().len(), 1);
    }
}
