//! Credentials for registries, as Docker's `config.json`, `.dockercfg` and
//! Kubernetes' pull secrets hold them. Pure: nothing here reads a file or
//! runs a helper.
//!
//! Keys are matched as Kubernetes does (kubernetes.io, "Images", "Interpretation
//! of config.json"): `host[:port][/path]`, `*` and `?` within one label of the
//! host, the port equal, the path a prefix of the image's; the most specific
//! key comes first.

use std::collections::BTreeMap;

use base64::Engine as _;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::reference::Reference;

/// Largest configuration document (a Secret holds 1 MiB).
pub const MAX_KEYRING_BYTES: usize = 1 << 20;
/// Most registries in one document.
const MAX_KEYRING_ENTRIES: usize = 4096;

/// What opens a registry. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Credential {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// A refresh token (OAuth 2) instead of a password.
    pub identity_token: String,
    /// A bearer token that is sent as it is.
    pub registry_token: String,
}

impl Credential {
    /// User and password.
    #[must_use]
    pub fn basic(username: &str, password: &str) -> Self {
        Self {
            username: username.into(),
            password: password.into(),
            ..Self::default()
        }
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Tells two credentials apart without holding either.
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        let mut text = Vec::new();
        for part in [
            &self.username,
            &self.password,
            &self.identity_token,
            &self.registry_token,
        ] {
            text.extend((part.len() as u64).to_le_bytes());
            text.extend(part.as_bytes());
        }
        Digest::of(&text)
    }

    /// The value of `Authorization: Basic`.
    #[must_use]
    pub fn basic_value(&self) -> String {
        let pair = format!("{}:{}", self.username, self.password);
        base64::engine::general_purpose::STANDARD.encode(pair)
    }
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// A document that holds no credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadKeyring(String);

/// The credentials of one document.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keyring {
    entries: Vec<(Key, Credential)>,
    /// Credential helper (`docker-credential-NAME`) by registry host.
    pub helpers: BTreeMap<String, String>,
    /// Helper for every registry.
    pub store: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    text: String,
    host: String,
    port: Option<String>,
    path: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigJson {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl Keyring {
    /// Docker's `config.json` (`kubernetes.io/dockerconfigjson`).
    ///
    /// # Errors
    /// It is no such document; the text names no secret.
    pub fn from_config(bytes: &[u8]) -> Result<Self, BadKeyring> {
        let config: ConfigJson = document(bytes)?;
        let mut ring = Self::from_entries(config.auths)?;
        ring.helpers = config.cred_helpers;
        ring.store = config.creds_store.filter(|s| !s.is_empty());
        let names = ring.helpers.values().chain(&ring.store);
        for name in names {
            // It becomes part of a program's name.
            let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            if name.is_empty() || !name.bytes().all(fits) {
                return Err(BadKeyring("the name of a credential helper holds something else than letters, digits, - _ .".into()));
            }
        }
        Ok(ring)
    }

    /// The older `.dockercfg` (`kubernetes.io/dockercfg`).
    ///
    /// # Errors
    /// As [`Keyring::from_config`].
    pub fn from_dockercfg(bytes: &[u8]) -> Result<Self, BadKeyring> {
        Self::from_entries(document(bytes)?)
    }

    /// One credential for one registry.
    #[must_use]
    pub fn single(registry: &str, credential: Credential) -> Self {
        Self {
            entries: Key::parse(registry)
                .map(|k| (k, credential))
                .into_iter()
                .collect(),
            ..Self::default()
        }
    }

    fn from_entries(all: BTreeMap<String, Entry>) -> Result<Self, BadKeyring> {
        if all.len() > MAX_KEYRING_ENTRIES {
            return Err(BadKeyring(format!(
                "it has more than {MAX_KEYRING_ENTRIES} registries"
            )));
        }
        let mut entries = Vec::new();
        for (key, entry) in all {
            let credential = entry.credential(&key)?;
            // A helper's entries are empty.
            if let Some(key) = Key::parse(&key).filter(|_| !credential.is_empty()) {
                entries.push((key, credential));
            }
        }
        // The most specific first: as Kubernetes, by the text backwards.
        entries.sort_by(|a, b| b.0.text.cmp(&a.0.text));
        Ok(Self {
            entries,
            ..Self::default()
        })
    }

    /// Credentials for an image, the most specific first.
    #[must_use]
    pub fn find(&self, image: &Reference) -> Vec<&Credential> {
        self.find_at(image.registry(), image.path())
    }

    /// Credentials for a repository of a registry (`host[:port]`).
    #[must_use]
    pub fn find_at(&self, registry: &str, path: &str) -> Vec<&Credential> {
        let hits = self
            .entries
            .iter()
            .filter(|(key, _)| key.fits(registry, path));
        hits.map(|(_, c)| c).collect()
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.helpers.is_empty() && self.store.is_none()
    }
}

fn document<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, BadKeyring> {
    if bytes.len() > MAX_KEYRING_BYTES {
        return Err(BadKeyring(format!(
            "it has more than {MAX_KEYRING_BYTES} bytes"
        )));
    }
    // The parser's message may quote a secret: line and column suffice.
    serde_json::from_slice(bytes).map_err(|e| {
        BadKeyring(format!(
            "not the JSON of Docker's config, at line {} column {}",
            e.line(),
            e.column()
        ))
    })
}

impl Entry {
    fn credential(self, key: &str) -> Result<Credential, BadKeyring> {
        let mut out = Credential {
            username: self.username.unwrap_or_default(),
            password: self.password.unwrap_or_default(),
            identity_token: self.identitytoken.unwrap_or_default(),
            registry_token: self.registrytoken.unwrap_or_default(),
        };
        let Some(auth) = self.auth.filter(|a| !a.is_empty()) else {
            return Ok(out);
        };
        let bad = || {
            BadKeyring(format!(
                "auth of {key:?} is not the base64 of user:password"
            ))
        };
        let engine = base64::engine::GeneralPurpose::new(
            &base64::alphabet::STANDARD,
            base64::engine::GeneralPurposeConfig::new()
                .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
        );
        let pair = engine.decode(auth.trim()).map_err(|_| bad())?;
        let pair = String::from_utf8(pair).map_err(|_| bad())?;
        let (user, password) = pair.split_once(':').ok_or_else(bad)?;
        out.username = user.to_owned();
        // Docker pads old passwords with NULs.
        out.password = password.trim_end_matches('\0').to_owned();
        Ok(out)
    }
}

impl Key {
    fn parse(text: &str) -> Option<Self> {
        let rest = text
            .strip_prefix("https://")
            .or_else(|| text.strip_prefix("http://"));
        let rest = rest.unwrap_or(text);
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if host.is_empty() {
            return None;
        }
        let path = path.trim_matches('/');
        // The ends of old API addresses are no repositories.
        let path = match path {
            "v1" | "v2" | "v1/users" | "v2/_catalog" => "",
            path => path,
        };
        let (host, port) = split_port(host);
        Some(Self {
            text: text.to_owned(),
            host: host.to_ascii_lowercase(),
            port: port.map(str::to_owned),
            path: path.to_owned(),
        })
    }

    fn fits(&self, registry: &str, path: &str) -> bool {
        let (host, port) = split_port(registry);
        let host = host.to_ascii_lowercase();
        let hub = |h: &str| matches!(h, "docker.io" | "index.docker.io" | "registry-1.docker.io");
        let same_host = (hub(&host) && hub(&self.host)) || host_fits(&self.host, &host);
        let same_port = self.port.as_deref() == port;
        let below = self.path.is_empty()
            || path == self.path
            || path
                .strip_prefix(&*self.path)
                .is_some_and(|r| r.starts_with('/'));
        same_host && same_port && below
    }
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`.
fn split_port(text: &str) -> (&str, Option<&str>) {
    if text.starts_with('[') {
        return match text.rsplit_once("]:") {
            Some((host, port)) => (&text[..=host.len()], Some(port)),
            None => (text, None),
        };
    }
    match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => (host, Some(port)),
        _ => (text, None),
    }
}

/// Label by label, as many on both sides.
fn host_fits(pattern: &str, host: &str) -> bool {
    if !pattern.contains(['*', '?']) {
        return pattern == host;
    }
    let (mut a, mut b) = (pattern.split('.'), host.split('.'));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return true,
            (Some(p), Some(h)) if glob(p.as_bytes(), h.as_bytes()) => {}
            _ => return false,
        }
    }
}

/// `*` and `?`; linear but for the last star.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                p = at + 1;
                t = from + 1;
            }
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(ring: &Keyring, image: &str) -> Vec<String> {
        let image = Reference::parse(image).unwrap();
        ring.find(&image)
            .iter()
            .map(|c| c.username.clone())
            .collect()
    }

    #[test]
    fn keys_are_matched_as_kubernetes_does() {
        let auths = [
            ("https://index.docker.io/v1/", "hub"),
            ("reg.io", "host"),
            ("reg.io/team", "team"),
            ("reg.io:5000", "port"),
            ("*.cloud.io", "glob"),
            ("[::1]:5000", "v6"),
        ];
        let auths: BTreeMap<_, _> = auths
            .iter()
            .map(|(k, u)| (*k, serde_json::json!({"username": u, "password": "p"})))
            .collect();
        let text = serde_json::json!({ "auths": auths }).to_string();
        let ring = Keyring::from_config(text.as_bytes()).unwrap();
        for (image, wanted) in [
            ("busybox", &["hub"][..]),
            ("reg.io/x", &["host"]),
            ("reg.io/team/x", &["team", "host"]),
            ("reg.io/teams/x", &["host"]),
            ("reg.io:5000/x", &["port"]),
            ("a.cloud.io/x", &["glob"]),
            ("a.b.cloud.io/x", &[]),
            ("cloud.io/x", &[]),
            ("evilreg.io/x", &[]),
            ("[::1]:5000/x", &["v6"]),
        ] {
            assert_eq!(users(&ring, image), wanted, "{image}");
        }
    }

    #[test]
    fn every_form_of_an_entry_is_read() {
        let text = br#"{"auths": {"a.io": {"auth": "dTpwOnE="}, "b.io": {"auth": "dTpw", "identitytoken": "t"}, "c.io": {}},
            "credHelpers": {"d.io": "secretservice"}, "credsStore": "pass", "HttpHeaders": {}}"#;
        let ring = Keyring::from_config(text).unwrap();
        let a = ring.find_at("a.io", "x")[0];
        assert_eq!((&*a.username, &*a.password), ("u", "p:q"));
        assert_eq!(ring.find_at("b.io", "x")[0].identity_token, "t");
        assert!(ring.find_at("c.io", "x").is_empty());
        assert_eq!(ring.helpers["d.io"], "secretservice");
        assert_eq!(ring.store.as_deref(), Some("pass"));
        let old = Keyring::from_dockercfg(br#"{"a.io": {"username": "u", "password": "p"}}"#);
        assert_eq!(old.unwrap().find_at("a.io", "x").len(), 1);
        assert_ne!(
            Credential::basic("a", "bc").fingerprint(),
            Credential::basic("ab", "c").fingerprint()
        );
    }

    #[test]
    fn errors_and_debug_show_no_secret() {
        for text in [
            r#"{"auths": {"a.io": {"auth": "!!secret!!"}}}"#,
            r#"{"auths": {"a.io": "secret"}}"#,
            r#"{"auths": {"a.io": {"auth": "c2VjcmV0"}}}"#,
            r#"{"credsStore": "../secret"}"#,
        ] {
            let error = Keyring::from_config(text.as_bytes())
                .unwrap_err()
                .to_string();
            assert!(!error.contains("secret"), "{error}");
        }
        let shown = format!(
            "{:?}",
            Keyring::single("a.io", Credential::basic("u", "secret"))
        );
        assert!(!shown.contains("secret"), "{shown}");
        assert!(Keyring::from_config(&vec![b' '; MAX_KEYRING_BYTES + 1]).is_err());
    }
}
