//! Tokens of pods' service accounts, by TokenRequest (KEP-1205).
//!
//! A token is bound to its pod and renewed when 80 % of its time, or 24
//! hours, are over (node reference 1.6); until the API server answers, the
//! old one stays.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use rkube_client::{ApiError, Client};
use rkube_kubelet::objects::TokenKey;
use rkube_kubelet::pod;
use serde_json::{Value, json};

use crate::references::service_account;

/// No token is used longer than this before it is renewed.
pub const MAX_TOKEN_AGE: Duration = Duration::from_secs(24 * 3600);
/// How long to wait after a renewal that failed while the old token is good.
pub const RENEW_RETRY: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
struct Token {
    text: String,
    renew_at: SystemTime,
    expires_at: SystemTime,
}

/// The tokens that pods have.
#[derive(Debug)]
pub struct Tokens {
    client: Client,
    held: Mutex<BTreeMap<(String, TokenKey), Token>>,
}

/// When a token that was issued now is renewed.
#[must_use]
pub fn renew_at(now: SystemTime, expires_at: SystemTime) -> SystemTime {
    let life = expires_at.duration_since(now).unwrap_or_default();
    now + (life / 10 * 8).min(MAX_TOKEN_AGE)
}

impl Tokens {
    /// None yet.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self {
            client,
            held: Mutex::default(),
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<(String, TokenKey), Token>) -> T) -> T {
        f(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A token for the pod, and when to ask again.
    ///
    /// # Errors
    /// There is none, and the API server gives none.
    pub async fn get(
        &self,
        pod: &Pod,
        key: &TokenKey,
        now: SystemTime,
    ) -> Result<(String, SystemTime), ApiError> {
        let id = (pod::uid(pod).to_owned(), key.clone());
        let held = self.with(|held| held.get(&id).cloned());
        if let Some(token) = held.as_ref().filter(|t| now < t.renew_at) {
            return Ok((token.text.clone(), token.renew_at));
        }
        match self.request(pod, key).await {
            Ok((text, expires_at)) => {
                let token = Token {
                    text: text.clone(),
                    renew_at: renew_at(now, expires_at),
                    expires_at,
                };
                let again = token.renew_at;
                self.with(|held| held.insert(id, token));
                Ok((text, again))
            }
            Err(error) => match held {
                Some(token) if now < token.expires_at => {
                    tracing::warn!(pod = %pod::display_name(pod), %error, "a token is not renewed yet");
                    Ok((token.text, now + RENEW_RETRY))
                }
                _ => Err(error),
            },
        }
    }

    async fn request(&self, pod: &Pod, key: &TokenKey) -> Result<(String, SystemTime), ApiError> {
        let audiences: Vec<&str> = Some(key.audience.as_str())
            .filter(|a| !a.is_empty())
            .into_iter()
            .collect();
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": audiences,
                "expirationSeconds": key.seconds,
                "boundObjectRef": {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "name": pod::name(pod),
                    "uid": pod::uid(pod),
                },
            },
        });
        let api = self
            .client
            .namespaced::<ServiceAccount>(pod::namespace(pod));
        let name = service_account(pod);
        let answer = api.create_sub(&name, "token", &body).await?;
        read(&answer).ok_or_else(|| ApiError::Decode {
            attempt: format!("create token of service account {name}"),
            reason: "no token in it".to_owned(),
        })
    }

    /// The pod is gone.
    pub fn forget(&self, uid: &str) {
        self.with(|held| held.retain(|(of, _), _| of != uid));
    }
}

fn read(answer: &Value) -> Option<(String, SystemTime)> {
    let status = answer.get("status")?;
    let text = status.get("token")?.as_str()?.to_owned();
    let expires = status.get("expirationTimestamp")?;
    let time: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time =
        rkube_api::typed(expires).ok()?;
    let seconds = u64::try_from(time.0.as_second()).ok()?;
    let expires_at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    (!text.is_empty()).then_some((text, expires_at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_in_time() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let after = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(renew_at(now, after(3600)), after(2880));
        assert_eq!(renew_at(now, after(30 * 24 * 3600)), after(24 * 3600));
        assert_eq!(renew_at(now, now), now);
    }

    #[test]
    fn answers_are_read() {
        let answer =
            json!({"status": {"token": "t", "expirationTimestamp": "1970-01-02T00:00:00Z"}});
        let day = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
        assert_eq!(read(&answer), Some(("t".to_owned(), day)));
        for wrong in [
            json!({}),
            json!({"status": {"token": "", "expirationTimestamp": "1970-01-02T00:00:00Z"}}),
            json!({"status": {"token": "t"}}),
        ] {
            assert_eq!(read(&wrong), None, "{wrong}");
        }
    }
}
