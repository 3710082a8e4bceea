//! Service account tokens: JSON web tokens (RFC 7519) signed with ES256
//! (RFC 7518 section 3.4), with upstream's claims
//! (`k8s.io/kubernetes/pkg/serviceaccount/claims.go`).

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::digest;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use serde_json::{Value, json};

use crate::error::PkiError;

/// Who issues tokens, and the audience of the API server itself.
pub const DEFAULT_ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Longest token looked at, in bytes.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;
/// Most tokens that are known to be signed; then it is begun anew.
const SIGNED_COUNT_MAX: usize = 4096;
/// Users of service accounts: this, the namespace, `:` and the name.
pub const USER_PREFIX: &str = "system:serviceaccount:";

/// What stands before the 65 bytes of a P-256 point in a
/// SubjectPublicKeyInfo (RFC 5480).
const SPKI_HEAD: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Standard base64.
#[must_use]
pub(crate) fn base64_text(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Standard base64, read.
#[must_use]
pub fn from_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// An object that a token dies with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl Bound {
    fn to_value(&self) -> Value {
        json!({"name": self.name, "uid": self.uid})
    }

    fn from_value(value: &Value) -> Option<Self> {
        Some(Self {
            name: value.get("name")?.as_str()?.to_owned(),
            uid: value.get("uid")?.as_str()?.to_owned(),
        })
    }
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Whom it may be shown to; never empty.
    pub audiences: Vec<String>,
    /// When it was made, in seconds since 1970.
    pub issued_at: u64,
    /// When it ends, in seconds since 1970.
    pub expires_at: u64,
    /// A name of its own (`jti`).
    pub id: String,
    /// The account's namespace.
    pub namespace: String,
    /// The account.
    pub account: Bound,
    /// The pod that it is for.
    pub pod: Option<Bound>,
    /// The Secret that it is for.
    pub secret: Option<Bound>,
    /// The node that the pod runs on, or that it is for.
    pub node: Option<Bound>,
    /// A token that was given for longer than asked, for old clients, warns
    /// from then on.
    pub warn_after: Option<u64>,
}

impl Claims {
    /// The user's name.
    #[must_use]
    pub fn subject(&self) -> String {
        format!("{USER_PREFIX}{}:{}", self.namespace, self.account.name)
    }

    fn to_value(&self, issuer: &str) -> Value {
        let mut own = json!({
            "namespace": self.namespace,
            "serviceaccount": self.account.to_value(),
        });
        for (name, bound) in [
            ("pod", &self.pod),
            ("secret", &self.secret),
            ("node", &self.node),
        ] {
            if let Some(bound) = bound {
                own[name] = bound.to_value();
            }
        }
        if let Some(time) = self.warn_after {
            own["warnafter"] = time.into();
        }
        json!({
            "aud": self.audiences, "exp": self.expires_at, "iat": self.issued_at,
            "iss": issuer, "jti": self.id, "kubernetes.io": own,
            "nbf": self.issued_at, "sub": self.subject(),
        })
    }

    fn from_value(value: &Value) -> Option<Self> {
        let own = value.get("kubernetes.io")?;
        let bound = |name: &str| {
            own.get(name)
                .map_or(Some(None), |v| Bound::from_value(v).map(Some))
        };
        let audiences = match value.get("aud")? {
            Value::String(one) => vec![one.clone()],
            Value::Array(many) => many
                .iter()
                .map(|one| one.as_str().map(str::to_owned))
                .collect::<Option<_>>()?,
            _ => return None,
        };
        let claims = Self {
            audiences,
            issued_at: value.get("iat")?.as_u64()?,
            expires_at: value.get("exp")?.as_u64()?,
            id: value
                .get("jti")
                .and_then(Value::as_str)
                .unwrap_or("")
                .to_owned(),
            namespace: own.get("namespace")?.as_str()?.to_owned(),
            account: Bound::from_value(own.get("serviceaccount")?)?,
            pod: bound("pod")?,
            secret: bound("secret")?,
            node: bound("node")?,
            warn_after: own.get("warnafter").and_then(Value::as_u64),
        };
        (value.get("sub")?.as_str()? == claims.subject()).then_some(claims)
    }
}

/// What a token without an end says (the form before TokenRequest): it lives as
/// long as the Secret that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegacyClaims {
    /// The account's namespace.
    pub namespace: String,
    /// The account.
    pub account: Bound,
    /// The name of the Secret.
    pub secret: String,
}

/// The issuer of tokens without an end.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
const LEGACY_NAMESPACE: &str = "kubernetes.io/serviceaccount/namespace";
const LEGACY_SECRET: &str = "kubernetes.io/serviceaccount/secret.name";
const LEGACY_ACCOUNT: &str = "kubernetes.io/serviceaccount/service-account.name";
const LEGACY_UID: &str = "kubernetes.io/serviceaccount/service-account.uid";

impl LegacyClaims {
    /// The user's name.
    #[must_use]
    pub fn subject(&self) -> String {
        format!("{USER_PREFIX}{}:{}", self.namespace, self.account.name)
    }

    fn from_value(value: &Value) -> Option<Self> {
        let text = |name: &str| Some(value.get(name)?.as_str()?.to_owned());
        let claims = Self {
            namespace: text(LEGACY_NAMESPACE)?,
            account: Bound {
                name: text(LEGACY_ACCOUNT)?,
                uid: text(LEGACY_UID)?,
            },
            secret: text(LEGACY_SECRET)?,
        };
        (text("sub")? == claims.subject()).then_some(claims)
    }
}

/// Makes and checks tokens.
pub struct TokenKey {
    pair: EcdsaKeyPair,
    issuer: String,
    id: String,
    random: SystemRandom,
    signed: Mutex<HashSet<[u8; digest::SHA256_OUTPUT_LEN]>>,
}

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenKey")
            .field("issuer", &self.issuer)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

fn refused(reason: &'static str) -> PkiError {
    PkiError::refused("the token", reason)
}

impl TokenKey {
    /// A fresh key in PKCS #8.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn generate() -> Result<Vec<u8>, PkiError> {
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map(|document| document.as_ref().to_vec())
            .map_err(|e| PkiError::Make {
                what: "a key for tokens",
                reason: e.to_string(),
            })
    }

    /// Reads a key in PKCS #8.
    ///
    /// # Errors
    /// It is not one of P-256.
    pub fn load(pkcs8: &[u8], issuer: &str) -> Result<Self, PkiError> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random)
            .map_err(|e| PkiError::invalid("the key for tokens", e))?;
        let spki = [&SPKI_HEAD[..], pair.public_key().as_ref()].concat();
        // As upstream: the hash of the public key.
        let id = URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, &spki));
        Ok(Self {
            pair,
            issuer: issuer.to_owned(),
            id,
            random,
            signed: Mutex::default(),
        })
    }

    /// The issuer's name.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Makes a token.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn sign(&self, claims: &Claims) -> Result<String, PkiError> {
        self.sign_value(&claims.to_value(&self.issuer))
    }

    /// Makes a token without an end, for a Secret.
    ///
    /// # Errors
    /// As [`TokenKey::sign`].
    pub fn sign_legacy(
        &self,
        namespace: &str,
        account: &Bound,
        secret: &str,
    ) -> Result<String, PkiError> {
        self.sign_value(&json!({
            "iss": LEGACY_ISSUER,
            LEGACY_NAMESPACE: namespace,
            LEGACY_SECRET: secret,
            LEGACY_ACCOUNT: account.name,
            LEGACY_UID: account.uid,
            "sub": format!("{USER_PREFIX}{namespace}:{}", account.name),
        }))
    }

    fn sign_value(&self, claims: &Value) -> Result<String, PkiError> {
        let header = json!({"alg": "ES256", "kid": self.id, "typ": "JWT"});
        let mut text = URL_SAFE_NO_PAD.encode(header.to_string());
        text.push('.');
        text.push_str(&URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = self.pair.sign(&self.random, text.as_bytes());
        let signature = signature.map_err(|e| PkiError::Make {
            what: "a token",
            reason: e.to_string(),
        })?;
        text.push('.');
        text.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Ok(text)
    }

    /// Whether a text claims to be a token of this issuer; proves nothing.
    #[must_use]
    pub fn is_ours(&self, token: &str) -> bool {
        Self::names_issuer(token, &self.issuer)
    }

    /// The same of a token without an end.
    #[must_use]
    pub fn is_legacy(&self, token: &str) -> bool {
        Self::names_issuer(token, LEGACY_ISSUER)
    }

    fn names_issuer(token: &str, issuer: &str) -> bool {
        let payload = token
            .split('.')
            .nth(1)
            .filter(|_| token.len() <= TOKEN_BYTES_MAX);
        payload
            .and_then(|payload| URL_SAFE_NO_PAD.decode(payload).ok())
            .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
            .is_some_and(|claims| claims["iss"] == *issuer)
    }

    /// Checks signature, issuer, times and one of `audiences`. Whether the
    /// account and what the token is bound to still exist is for the caller.
    ///
    /// # Errors
    /// One of them does not hold.
    pub fn verify(&self, token: &str, audiences: &[&str], now: u64) -> Result<Claims, PkiError> {
        let payload = self.payload(token)?;
        if payload["iss"] != *self.issuer {
            return Err(refused("another issuer made it"));
        }
        if payload["nbf"].as_u64().is_some_and(|begin| begin > now) {
            return Err(refused("it is not valid yet"));
        }
        let claims = Claims::from_value(&payload).ok_or(refused("a claim is missing"))?;
        if claims.expires_at <= now {
            return Err(refused("it has expired"));
        }
        if !claims
            .audiences
            .iter()
            .any(|a| audiences.contains(&a.as_str()))
        {
            return Err(refused("it is for other audiences"));
        }
        Ok(claims)
    }

    /// Checks signature and issuer of a token without an end. Whether the
    /// account is there and the Secret still holds it is for the caller.
    ///
    /// # Errors
    /// One of them does not hold.
    pub fn verify_legacy(&self, token: &str) -> Result<LegacyClaims, PkiError> {
        let payload = self.payload(token)?;
        if payload["iss"] != LEGACY_ISSUER {
            return Err(refused("another issuer made it"));
        }
        LegacyClaims::from_value(&payload).ok_or(refused("a claim is missing"))
    }

    /// What a token says that this key signed.
    fn payload(&self, token: &str) -> Result<Value, PkiError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(refused("it is too long"));
        }
        let (signed, signature) = token
            .rsplit_once('.')
            .ok_or(refused("it has no signature"))?;
        let (header, payload) = signed.split_once('.').ok_or(refused("it has no payload"))?;
        let decode = |text: &str| {
            URL_SAFE_NO_PAD
                .decode(text)
                .map_err(|_| refused("it is not base64url"))
        };
        let parse = |bytes: &[u8]| {
            serde_json::from_slice::<Value>(bytes).map_err(|_| refused("it is not JSON"))
        };
        if parse(&decode(header)?)?["alg"] != "ES256" {
            return Err(refused("its algorithm is not ES256"));
        }
        self.check_signature(token, signed, &decode(signature)?)?;
        parse(&decode(payload)?)
    }

    /// Checks the signature of a token, once: it takes a tenth of a
    /// millisecond, and whoever has a token shows it with every request.
    fn check_signature(&self, token: &str, signed: &str, signature: &[u8]) -> Result<(), PkiError> {
        let known = || self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut hash = [0; digest::SHA256_OUTPUT_LEN];
        hash.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
        if known().contains(&hash) {
            return Ok(());
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key().as_ref())
            .verify(signed.as_bytes(), signature)
            .map_err(|_| refused("its signature is wrong"))?;
        let mut known = known();
        if known.len() >= SIGNED_COUNT_MAX {
            known.clear();
        }
        known.insert(hash);
        Ok(())
    }

    /// `/openid/v1/jwks` (RFC 7517).
    #[must_use]
    pub fn jwks(&self) -> Value {
        // An uncompressed point: 4, then x and y of 32 bytes each.
        let point = self.pair.public_key().as_ref();
        let half = |from: usize| URL_SAFE_NO_PAD.encode(point.get(from..from + 32).unwrap_or(&[]));
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256",
            "x": half(1), "y": half(33),
        }]})
    }

    /// `/.well-known/openid-configuration`; `server` is the URL of the API
    /// server, without a slash at its end.
    #[must_use]
    pub fn openid_configuration(&self, server: &str) -> Value {
        json!({
            "issuer": self.issuer, "jwks_uri": format!("{server}/openid/v1/jwks"),
            "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }
}

/// A random UUID (RFC 9562 version 4), as `jti` and for new objects.
///
/// # Errors
/// The system gives no random bytes.
pub fn new_uuid() -> Result<String, PkiError> {
    use ring::rand::SecureRandom as _;
    let mut bytes = [0u8; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|e| PkiError::Make {
            what: "a UUID",
            reason: e.to_string(),
        })?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    let digit = |half: u8| char::from_digit(half.into(), 16).unwrap_or('0');
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.extend([digit(byte >> 4), digit(byte & 0xf)]);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_without_an_end() {
        let key = TokenKey::load(&TokenKey::generate().unwrap(), DEFAULT_ISSUER).unwrap();
        let account = Bound {
            name: "a".into(),
            uid: "u".into(),
        };
        let token = key.sign_legacy("n", &account, "s").unwrap();
        assert!(key.is_legacy(&token) && !key.is_ours(&token));
        let claims = key.verify_legacy(&token).unwrap();
        assert_eq!(claims.subject(), "system:serviceaccount:n:a");
        assert_eq!((claims.account, claims.secret.as_str()), (account, "s"));
        assert!(key.verify(&token, &[DEFAULT_ISSUER], 0).is_err());
        let other = TokenKey::load(&TokenKey::generate().unwrap(), DEFAULT_ISSUER).unwrap();
        assert!(other.verify_legacy(&token).is_err());
    }
    use proptest::prelude::*;

    const NOW: u64 = 1_800_000_000;

    fn key() -> TokenKey {
        TokenKey::load(&TokenKey::generate().unwrap(), DEFAULT_ISSUER).unwrap()
    }

    fn claims() -> Claims {
        let bound = |name: &str| Bound {
            name: name.into(),
            uid: format!("uid-{name}"),
        };
        Claims {
            audiences: vec![DEFAULT_ISSUER.into()],
            issued_at: NOW,
            expires_at: NOW + 3600,
            id: new_uuid().unwrap(),
            namespace: "ns".into(),
            account: bound("sa"),
            pod: Some(bound("pod")),
            secret: None,
            node: Some(bound("node")),
            warn_after: None,
        }
    }

    #[test]
    fn what_is_signed_is_what_is_read() {
        let key = key();
        let claims = claims();
        let token = key.sign(&claims).unwrap();
        let audiences = [DEFAULT_ISSUER];
        assert_eq!(key.verify(&token, &audiences, NOW).unwrap(), claims);
        assert_eq!(claims.subject(), "system:serviceaccount:ns:sa");
        assert!(key.is_ours(&token) && !key.is_ours("abc"));
        let reason = |token: &str, audiences: &[&str], now| {
            key.verify(token, audiences, now).unwrap_err().to_string()
        };
        assert!(reason(&token, &["other"], NOW).contains("audiences"));
        assert!(reason(&token, &audiences, NOW + 3600).contains("expired"));
        assert!(reason(&token, &audiences, NOW - 1).contains("not valid yet"));
        let other = self::key().sign(&claims).unwrap();
        assert!(reason(&other, &audiences, NOW).contains("signature"));
        // No algorithm but ours, above all not none.
        let none = URL_SAFE_NO_PAD.encode("{\"alg\":\"none\"}");
        let payload = token.split('.').nth(1).unwrap();
        assert!(reason(&format!("{none}.{payload}."), &audiences, NOW).contains("ES256"));
    }

    #[test]
    fn the_published_key_checks_the_tokens() {
        let key = key();
        let token = key.sign(&claims()).unwrap();
        let jwk = key.jwks()["keys"][0].clone();
        let part = |name: &str| URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap();
        let point = [vec![4], part("x"), part("y")].concat();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
            .verify(
                signed.as_bytes(),
                &URL_SAFE_NO_PAD.decode(signature).unwrap(),
            )
            .unwrap();
        let header = URL_SAFE_NO_PAD
            .decode(token.split('.').next().unwrap())
            .unwrap();
        let header: Value = serde_json::from_slice(&header).unwrap();
        assert_eq!(header["kid"], jwk["kid"]);
        assert_eq!(
            key.openid_configuration("https://10.0.0.1:6443")["jwks_uri"],
            "https://10.0.0.1:6443/openid/v1/jwks"
        );
    }

    proptest! {
        #[test]
        fn a_changed_token_is_refused(at in 0usize..1000, to in "[A-Za-z0-9._-]") {
            let key = key();
            let mut token = key.sign(&claims()).unwrap();
            let at = at % token.len();
            // The last character of a base64 text has bits that do not count.
            prop_assume!(at + 1 < token.len() && token[at..=at] != *to);
            token.replace_range(at..=at, &to);
            prop_assert!(key.verify(&token, &[DEFAULT_ISSUER], NOW).is_err());
        }

        #[test]
        fn any_text_is_refused(text in ".{0,100}") {
            prop_assert!(key().verify(&text, &[DEFAULT_ISSUER], NOW).is_err());
        }
    }
}
