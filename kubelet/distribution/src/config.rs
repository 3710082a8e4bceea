//! `registries.conf`: which hosts stand for a registry.
//!
//! A subset of containers-registries.conf(5), version 2: `[[registry]]` with
//! `prefix`, `location`, `insecure`, `blocked`, `mirror-by-digest-only`, and
//! `[[registry.mirror]]` with `location`, `insecure`, `pull-from-mirror`. A
//! key that is not known is an error: a mirror that is left out silently is
//! worse than none.

use std::path::{Path, PathBuf};

use rkube_image::Reference;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::limits::{MAX_CONFIG_BYTES, MAX_CONFIG_ENTRIES};

/// Docker Hub's API is not where its images are named.
const HUB_HOST: &str = "registry-1.docker.io";

/// A host that may have an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `host[:port]` to connect to.
    pub host: String,
    /// The repository there.
    pub repository: String,
    /// Unencrypted HTTP and certificates that nobody vouches for will do.
    pub insecure: bool,
    /// It stands in for the registry itself.
    pub mirror: bool,
}

/// The configuration of registries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    path: PathBuf,
    registries: Vec<Registry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Registry {
    prefix: String,
    location: Option<String>,
    insecure: bool,
    blocked: bool,
    mirrors: Vec<Mirror>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Mirror {
    location: String,
    insecure: bool,
    pull: PullFrom,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PullFrom {
    #[default]
    All,
    DigestOnly,
    TagOnly,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct File {
    #[serde(default)]
    unqualified_search_registries: Option<Vec<String>>,
    #[serde(default)]
    short_name_mode: Option<String>,
    #[serde(default)]
    registry: Vec<FileRegistry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct FileRegistry {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<FileMirror>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct FileMirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<PullFrom>,
}

impl Config {
    /// Reads a file; one that is missing is an empty configuration.
    ///
    /// # Errors
    /// It cannot be read or used.
    pub fn load(path: &Path) -> Result<Self> {
        match crate::file::read(path, MAX_CONFIG_BYTES)? {
            Some(bytes) => Self::parse(&bytes, path),
            None => Ok(Self {
                path: path.to_owned(),
                ..Self::default()
            }),
        }
    }

    /// Parses the text of a file that `path` names in errors.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let bad = |reason: String| Error::Config {
            path: path.to_owned(),
            reason,
        };
        let text = std::str::from_utf8(bytes).map_err(|_| bad("it is not UTF-8".into()))?;
        let file: File =
            toml::from_str(text).map_err(|e| bad(e.to_string().trim_end().to_owned()))?;
        let hub_only = |list: &Vec<String>| list.iter().all(|r| r == "docker.io");
        if !file
            .unqualified_search_registries
            .as_ref()
            .is_none_or(hub_only)
        {
            return Err(bad("unqualified-search-registries: a short name always means docker.io; write the registry before the name of the image".into()));
        }
        if file
            .short_name_mode
            .as_deref()
            .is_some_and(|m| m == "permissive")
        {
            return Err(bad("short-name-mode: a short name is never guessed".into()));
        }
        let count =
            file.registry.len() + file.registry.iter().map(|r| r.mirror.len()).sum::<usize>();
        if count > MAX_CONFIG_ENTRIES {
            return Err(bad(format!(
                "more than {MAX_CONFIG_ENTRIES} registries and mirrors"
            )));
        }
        let mut registries = Vec::new();
        for entry in file.registry {
            let one = Registry::of(entry).map_err(bad)?;
            if registries.iter().any(|r: &Registry| r.prefix == one.prefix) {
                return Err(bad(format!("prefix {:?} comes twice", one.prefix)));
            }
            registries.push(one);
        }
        Ok(Self {
            path: path.to_owned(),
            registries,
        })
    }

    /// The hosts to ask for an image, in order.
    ///
    /// # Errors
    /// [`Error::Blocked`].
    pub fn endpoints(&self, image: &Reference) -> Result<Vec<Endpoint>> {
        let name = lower_host(&image.repository());
        let best = self
            .registries
            .iter()
            .filter_map(|r| rest(&r.prefix, &name).map(|rest| (r, rest)))
            .max_by_key(|(r, _)| (!r.prefix.starts_with("*."), r.prefix.len()));
        let Some((registry, rest)) = best else {
            return Ok(vec![endpoint(&name, false, false)]);
        };
        if registry.blocked {
            return Err(Error::Blocked {
                registry: registry.prefix.clone(),
                path: self.path.clone(),
            });
        }
        let by_digest = image.digest().is_some();
        let mut out = Vec::new();
        for mirror in &registry.mirrors {
            let fits = match mirror.pull {
                PullFrom::All => true,
                PullFrom::DigestOnly => by_digest,
                PullFrom::TagOnly => !by_digest,
            };
            if fits {
                let name = format!("{}{rest}", mirror.location);
                out.push(endpoint(&name, mirror.insecure, true));
            }
        }
        let own = registry
            .location
            .as_ref()
            .map_or(name.clone(), |l| format!("{l}{rest}"));
        out.push(endpoint(&own, registry.insecure, false));
        Ok(out)
    }

    /// How a registry itself is reached, for logging in.
    ///
    /// # Errors
    /// [`Error::Blocked`].
    pub fn registry(&self, host: &str) -> Result<Endpoint> {
        let host = &lower_host(host);
        let hit = self
            .registries
            .iter()
            .find(|r| rest(&r.prefix, host).is_some());
        let mut out = match hit {
            Some(r) if r.blocked => {
                return Err(Error::Blocked {
                    registry: r.prefix.clone(),
                    path: self.path.clone(),
                });
            }
            Some(r) => {
                let location = r.location.clone().unwrap_or_else(|| host.to_owned());
                endpoint(&location, r.insecure, false)
            }
            None => endpoint(host, false, false),
        };
        out.repository = String::new();
        Ok(out)
    }
}

impl Registry {
    fn of(entry: FileRegistry) -> std::result::Result<Self, String> {
        let prefix = match (&entry.prefix, &entry.location) {
            (Some(p), _) if !p.is_empty() => lower_host(p.trim_end_matches('/')),
            (_, Some(l)) => lower_host(l.trim_end_matches('/')),
            _ => return Err("a [[registry]] has neither prefix nor location".into()),
        };
        check(prefix.strip_prefix("*.").unwrap_or(&prefix))?;
        if prefix.starts_with("*.") && (entry.location.is_some() || prefix.contains('/')) {
            return Err(format!(
                "prefix {prefix:?}: one with * stands for hosts and has no location"
            ));
        }
        let location = entry.location.map(|l| l.trim_end_matches('/').to_owned());
        location.iter().try_for_each(|l| check(l))?;
        let mut mirrors = Vec::new();
        for m in entry.mirror {
            let location = m.location.trim_end_matches('/').to_owned();
            check(&location)?;
            if prefix.starts_with("*.") {
                return Err(format!("prefix {prefix:?}: one with * has no mirrors"));
            }
            let pull = match (m.pull_from_mirror, entry.mirror_by_digest_only) {
                (Some(_), true) => {
                    return Err(format!(
                        "mirror {location:?}: mirror-by-digest-only and pull-from-mirror exclude each other"
                    ));
                }
                (Some(pull), false) => pull,
                (None, true) => PullFrom::DigestOnly,
                (None, false) => PullFrom::All,
            };
            mirrors.push(Mirror {
                location,
                insecure: m.insecure,
                pull,
            });
        }
        Ok(Self {
            prefix,
            location,
            insecure: entry.insecure,
            blocked: entry.blocked,
            mirrors,
        })
    }
}

/// `host[:port][/path]`, and nothing that an address would read otherwise.
fn check(location: &str) -> std::result::Result<(), String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-._:/[]".contains(&b);
    if location.contains("://") {
        return Err(format!(
            "{location:?}: host[:port][/path] without a scheme; use insecure = true for http"
        ));
    }
    if location.is_empty() || !location.bytes().all(fits) || location.starts_with('/') {
        return Err(format!("{location:?} is not host[:port][/path]"));
    }
    Ok(())
}

/// `host[:port][/path]` with the host in lower case: names of hosts are the
/// same in both (RFC 4343), paths are not.
fn lower_host(name: &str) -> String {
    let (host, path) = name.split_at(name.find('/').unwrap_or(name.len()));
    host.to_ascii_lowercase() + path
}

/// What follows a prefix in a name, if the prefix ends at a border.
fn rest<'n>(prefix: &str, name: &'n str) -> Option<&'n str> {
    if let Some(domain) = prefix.strip_prefix("*.") {
        let host = name.split('/').next().unwrap_or(name);
        let host = host.split(':').next().unwrap_or(host);
        let below = host
            .strip_suffix(domain)
            .is_some_and(|h| h.len() > 1 && h.ends_with('.'));
        return below.then_some("");
    }
    let rest = name.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

fn endpoint(name: &str, insecure: bool, mirror: bool) -> Endpoint {
    let (host, repository) = name.split_once('/').unwrap_or((name, ""));
    let host = if host == "docker.io" { HUB_HOST } else { host };
    Endpoint {
        host: host.to_owned(),
        repository: repository.to_owned(),
        insecure,
        mirror,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config> {
        Config::parse(text.as_bytes(), Path::new("registries.conf"))
    }

    fn of(config: &Config, image: &str) -> Vec<String> {
        let image = Reference::parse(image).unwrap();
        let mark = |e: &Endpoint| {
            let insecure = if e.insecure { "!" } else { "" };
            format!("{insecure}{}/{}", e.host, e.repository)
        };
        config.endpoints(&image).unwrap().iter().map(mark).collect()
    }

    #[test]
    fn short_names_are_docker_hubs() {
        let none = Config::default();
        assert_eq!(
            of(&none, "busybox"),
            ["registry-1.docker.io/library/busybox"]
        );
        assert_eq!(of(&none, "a.io:5000/x/y"), ["a.io:5000/x/y"]);
    }

    #[test]
    fn mirrors_and_rewrites() {
        let config = config(
            r#"
            unqualified-search-registries = ["docker.io"]
            [[registry]]
            prefix = "docker.io"
            [[registry.mirror]]
            location = "mirror:5000/hub"
            insecure = true
            [[registry.mirror]]
            location = "digests.io"
            pull-from-mirror = "digest-only"
            [[registry]]
            prefix = "docker.io/team"
            location = "team.io/pub"
            [[registry]]
            location = "plain:5000"
            insecure = true
            [[registry]]
            prefix = "*.lab"
            insecure = true
            [[registry]]
            prefix = "evil.io"
            blocked = true
            "#,
        )
        .unwrap();
        assert_eq!(
            of(&config, "busybox"),
            [
                "!mirror:5000/hub/library/busybox",
                "registry-1.docker.io/library/busybox"
            ]
        );
        assert_eq!(of(&config, "team/x"), ["team.io/pub/x"]);
        assert_eq!(of(&config, "teams/x")[1], "registry-1.docker.io/teams/x");
        assert_eq!(of(&config, "plain:5000/x"), ["!plain:5000/x"]);
        assert_eq!(of(&config, "a.lab:5000/x"), ["!a.lab:5000/x"]);
        assert_eq!(of(&config, "lab.io/x"), ["lab.io/x"]);
        let d = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(of(&config, &format!("busybox@{d}")).len(), 3);
        for evil in ["evil.io/x", "EVIL.IO/x", "Evil.io/y/z:1"] {
            let evil = Reference::parse(evil).unwrap();
            let blocked = config.endpoints(&evil);
            assert!(matches!(blocked, Err(Error::Blocked { .. })), "{evil}");
        }
        assert!(config.registry("Evil.IO").is_err());
        assert_eq!(of(&config, "A.Lab/x"), ["!a.lab/x"]);
        assert_eq!(of(&config, "Plain:5000/x"), ["!plain:5000/x"]);
        assert!(config.registry("plain:5000").unwrap().insecure);
        assert_eq!(config.registry("docker.io").unwrap().host, HUB_HOST);
    }

    #[test]
    fn what_is_not_understood_is_an_error_that_names_it() {
        for (text, part) in [
            ("[[registry]]\nlocation = 'a.io'\nlocaton = 'b'", "localton"),
            ("unqualified-search-registries = ['quay.io']", "short name"),
            ("[[registry]]\ninsecure = true", "neither"),
            ("[[registry]]\nlocation = 'https://a.io'", "scheme"),
            (
                "[[registry]]\nlocation = 'a.io'\n[[registry]]\nprefix = 'a.io'",
                "twice",
            ),
            ("[[registry]]\nprefix = '*.a.io'\nlocation = 'b.io'", "*"),
            (
                "[[registry]]\nlocation = 'a.io'\n[[registry.mirror]]\nlocation = 'b io'",
                "b io",
            ),
            ("[", "registries.conf"),
        ] {
            let error = config(text).unwrap_err().to_string();
            let part = part.replace("localton", "locaton");
            assert!(error.contains(&part), "{text}: {error}");
        }
    }
}
