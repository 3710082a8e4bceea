//! Bootstrap tokens: how a node that has nothing yet joins a cluster.

use ring::{digest, hmac};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::error::PkiError;
use crate::token::base64_text;

/// The type of Secrets that hold one.
pub const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
/// Their names: this and the token's id.
pub const SECRET_PREFIX: &str = "bootstrap-token-";
/// The group of all who come with such a token.
pub const GROUP: &str = "system:bootstrappers";

/// A token: `0123ab.0123456789abcdef` (the format of kubeadm's).
#[derive(Clone, PartialEq, Eq)]
pub struct BootstrapToken {
    /// The public half, 6 of `[a-z0-9]`.
    pub id: String,
    /// The secret half, 16 of `[a-z0-9]`.
    pub secret: String,
}

impl std::fmt::Debug for BootstrapToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BootstrapToken")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

fn is_part(text: &str, len: usize) -> bool {
    text.len() == len
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

impl BootstrapToken {
    /// Reads a token; `None` where the text has another form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.split_once('.')?;
        (is_part(id, 6) && is_part(secret, 16)).then(|| Self {
            id: id.to_owned(),
            secret: secret.to_owned(),
        })
    }

    /// A fresh one.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn generate() -> Result<Self, PkiError> {
        use ring::rand::SecureRandom as _;
        const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
        let mut bytes = [0; 22];
        let filled = ring::rand::SystemRandom::new().fill(&mut bytes);
        filled.map_err(|_| PkiError::Make {
            what: "a bootstrap token",
            reason: "no random bytes".into(),
        })?;
        // 32 letters: every value of a byte's low five bits is as likely.
        let text: String = bytes
            .iter()
            .map(|byte| char::from(LETTERS[usize::from(byte & 31)]))
            .collect();
        let (id, secret) = text.split_at(6);
        Ok(Self {
            id: id.to_owned(),
            secret: secret.to_owned(),
        })
    }

    /// The whole text; a secret.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    /// The detached signature (JWS, RFC 7515 appendix F, HS256) by which a
    /// holder of the token knows that `content` is the cluster's own: what
    /// upstream's `bootstrapsigner` writes into `cluster-info`.
    #[must_use]
    pub fn signature(&self, content: &str) -> String {
        use base64::Engine as _;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD as URL;
        let header = format!(r#"{{"alg":"HS256","kid":"{}"}}"#, self.id);
        let header = URL.encode(header);
        let signed = format!("{header}.{}", URL.encode(content));
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.secret.as_bytes());
        let tag = hmac::sign(&key, signed.as_bytes());
        format!("{header}..{}", URL.encode(tag.as_ref()))
    }

    /// The Secret that lets it in, as kubeadm makes it; `expiration` in RFC 3339.
    #[must_use]
    pub fn to_secret(&self, expiration: Option<&str>) -> Value {
        let mut data = json!({
            "token-id": base64_text(self.id.as_bytes()),
            "token-secret": base64_text(self.secret.as_bytes()),
            "usage-bootstrap-authentication": base64_text(b"true"),
            "usage-bootstrap-signing": base64_text(b"true"),
            "auth-extra-groups": base64_text(b"system:bootstrappers:kubeadm:default-node-token"),
        });
        if let (Some(expiration), Some(map)) = (expiration, data.as_object_mut()) {
            map.insert(
                "expiration".into(),
                base64_text(expiration.as_bytes()).into(),
            );
        }
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": SECRET_TYPE,
            "metadata": {"name": format!("{SECRET_PREFIX}{}", self.id), "namespace": "kube-system"},
            "data": data,
        })
    }

    /// The groups that a Secret gives to this token; `None` where it does not
    /// let it in. `is_expired` tells of a time in RFC 3339 whether it is past.
    #[must_use]
    pub fn check(&self, secret: &Value, is_expired: impl Fn(&str) -> bool) -> Option<Vec<String>> {
        let field = |name: &str| {
            let bytes = crate::token::from_base64(secret["data"].get(name)?.as_str()?)?;
            String::from_utf8(bytes).ok()
        };
        let same = |name: &str, ours: &str| {
            let theirs = field(name).unwrap_or_default();
            is_same(&theirs, ours)
        };
        let is_right = secret["type"] == SECRET_TYPE
            && secret["metadata"]["deletionTimestamp"].is_null()
            && same("token-id", &self.id)
            && same("token-secret", &self.secret)
            && field("usage-bootstrap-authentication").as_deref() == Some("true");
        if !is_right {
            return None;
        }
        if field("expiration").is_some_and(|time| is_expired(&time)) {
            return None;
        }
        let mut groups = vec![GROUP.to_owned()];
        let extra = field("auth-extra-groups").unwrap_or_default();
        for group in extra.split(',').map(str::trim).filter(|g| !g.is_empty()) {
            // Only groups below this one may be given, whoever wrote the Secret.
            group
                .strip_prefix("system:bootstrappers:")
                .filter(|rest| !rest.is_empty())?;
            groups.push(group.to_owned());
        }
        Some(groups)
    }
}

/// `sha256:` and the SHA-256 of a certificate's SubjectPublicKeyInfo.
///
/// # Errors
/// The certificate does not parse.
pub fn certificate_hash(certificate: &CertificateDer<'_>) -> Result<String, PkiError> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|e| PkiError::invalid("a certificate", e))?;
    let hash = crate::ca::sha256_hex(parsed.public_key().raw);
    Ok(format!("sha256:{hash}"))
}

/// Whether a certificate is the one that `pin` (`sha256:HEX`) names.
#[must_use]
pub fn is_pinned(certificate: &CertificateDer<'_>, pin: &str) -> bool {
    certificate_hash(certificate).is_ok_and(|hash| is_same(&hash, &pin.to_ascii_lowercase()))
}

/// Compares through a hash, so that the time taken tells nothing of where two
/// texts differ.
fn is_same(a: &str, b: &str) -> bool {
    let hash = |text: &str| digest::digest(&digest::SHA256, text.as_bytes());
    hash(a).as_ref() == hash(b).as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_detached_ones() {
        let token = BootstrapToken::parse("abcdef.0123456789abcdef").unwrap();
        // By Python's hmac and base64 modules.
        assert_eq!(token.signature("content"), EXPECTED);
        assert_ne!(token.signature("other"), EXPECTED);
    }

    const EXPECTED: &str =
        "eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9..psz1NayrXM3IaFzKZGsb5n_mBl7MjtlsZ1xE8MRmF_4";

    #[test]
    fn tokens_and_their_secrets() {
        let token = BootstrapToken::generate().unwrap();
        assert_eq!(BootstrapToken::parse(&token.reveal()), Some(token.clone()));
        for bad in [
            "",
            "abc.def",
            "ABCDEF.0123456789abcdef",
            "abcdef.0123456789abcdef0",
        ] {
            assert!(BootstrapToken::parse(bad).is_none(), "{bad}");
        }
        let secret = token.to_secret(Some("2030-01-01T00:00:00Z"));
        let groups = token.check(&secret, |_| false).unwrap();
        assert_eq!(
            groups,
            [GROUP, "system:bootstrappers:kubeadm:default-node-token"]
        );
        assert!(
            token
                .check(&secret, |time| time == "2030-01-01T00:00:00Z")
                .is_none()
        );
        let changed = |field: &str, value: &[u8]| {
            let mut secret = secret.clone();
            secret["data"][field] = base64_text(value).into();
            token.check(&secret, |_| false)
        };
        assert!(changed("token-secret", b"0123456789abcdef").is_none());
        assert!(changed("usage-bootstrap-authentication", b"false").is_none());
        assert!(changed("auth-extra-groups", b"system:masters").is_none());
        let mut wrong_type = secret.clone();
        wrong_type["type"] = "Opaque".into();
        assert!(token.check(&wrong_type, |_| false).is_none());
    }
}
