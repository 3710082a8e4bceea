//! Image references: parsing and the normal form.
//!
//! Grammar and normalisation are those of the distribution project's
//! `reference` package, which Kubernetes, Docker and containerd share: a first
//! component is a registry only if it holds a `.` or a `:` or is `localhost`;
//! without one the registry is `docker.io`, and a single name is below
//! `library/` there.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;
use crate::error::{Error, Result};

/// Longest repository name, registry included, in bytes.
pub const MAX_REPOSITORY_BYTES: usize = 255;
/// Longest tag in bytes.
pub const MAX_TAG_BYTES: usize = 128;

/// A parsed reference in normal form: `registry/path[:tag][@digest]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses what a user wrote. A reference with neither tag nor digest gets
    /// the tag `latest`.
    ///
    /// # Errors
    /// [`Error::InvalidReference`] (Kubernetes: `InvalidImageName`).
    pub fn parse(text: &str) -> Result<Self> {
        parse(text).map_err(|reason| Error::InvalidReference {
            reference: text.chars().take(MAX_REPOSITORY_BYTES * 2).collect(),
            reason,
        })
    }

    /// Registry host, with its port if it has one.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Repository path below the registry.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `registry/path`.
    #[must_use]
    pub fn repository(&self) -> String {
        format!("{}/{}", self.registry, self.path)
    }

    /// The tag, if any.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if any.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The shortest text that users know this reference by
    /// (`docker.io/library/busybox:latest` is `busybox:latest`).
    #[must_use]
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let Some(rest) = full.strip_prefix("docker.io/") else {
            return full;
        };
        // Only what is read back as the same: `docker.io/a.io/b` is not `a.io/b`.
        let short = [rest.strip_prefix("library/").unwrap_or(rest), rest];
        let same = |text: &&&str| parse(text).as_ref() == Ok(self);
        short
            .iter()
            .find(same)
            .map_or(full.clone(), |text| (*text).to_owned())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        Self::parse(s)
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > MAX_REPOSITORY_BYTES + MAX_TAG_BYTES + 80 {
        return Err("it is too long");
    }
    if Digest::from_hex(text).is_some() {
        return Err("64 hexadecimal digits are an image id: write sha256: before them");
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, d)) => (
            name,
            Some(
                d.parse::<Digest>()
                    .map_err(|_| "after @ there must be a sha256 digest")?,
            ),
        ),
        None => (text, None),
    };
    // A colon after the last slash separates the tag; one before it is a port.
    let last = name.rfind('/').map_or(0, |i| i + 1);
    let (name, tag) = match name[last..].find(':') {
        Some(i) => (&name[..last + i], Some(&name[last + i + 1..])),
        None => (name, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            check_registry(first)?;
            (
                if first == "index.docker.io" {
                    "docker.io"
                } else {
                    first
                },
                rest,
            )
        }
        _ => ("docker.io", name),
    };
    check_path(path)?;
    let path = if registry == "docker.io" && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_string()
    };
    if registry.len() + 1 + path.len() > MAX_REPOSITORY_BYTES {
        return Err("the repository name has more than 255 bytes");
    }
    let tag = match (tag, digest) {
        (Some(tag), _) => Some(tag.to_string()),
        (None, Some(_)) => None,
        (None, None) => Some("latest".to_string()),
    };
    Ok(Reference {
        registry: registry.to_string(),
        path,
        tag,
        digest,
    })
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    match tag.as_bytes() {
        [] => Err("the tag is empty"),
        t if t.len() > MAX_TAG_BYTES => Err("the tag has more than 128 bytes"),
        [first, rest @ ..]
            if word(*first) && rest.iter().all(|b| word(*b) || matches!(b, b'.' | b'-')) =>
        {
            Ok(())
        }
        _ => Err("a tag holds letters, digits, _ . - and starts with a letter, digit or _"),
    }
}

fn check_registry(host: &str) -> Result<(), &'static str> {
    const BAD: &str = "the registry is not host[:port]";
    let (host, port) = if let Some(v6) = host.strip_prefix('[') {
        let (addr, rest) = v6.split_once(']').ok_or(BAD)?;
        addr.parse::<std::net::Ipv6Addr>().map_err(|_| BAD)?;
        (
            None,
            if rest.is_empty() {
                None
            } else {
                Some(rest.strip_prefix(':').ok_or(BAD)?)
            },
        )
    } else {
        match host.split_once(':') {
            Some((h, p)) => (Some(h), Some(p)),
            None => (Some(host), None),
        }
    };
    if let Some(port) = port
        && (!port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().is_err())
    {
        return Err(BAD);
    }
    let label = |l: &str| {
        let b = l.as_bytes();
        !b.is_empty()
            && b.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'-')
            && b[0] != b'-'
            && b[b.len() - 1] != b'-'
    };
    match host {
        Some(h) if !h.split('.').all(label) => Err(BAD),
        _ => Ok(()),
    }
}

fn check_path(path: &str) -> Result<(), &'static str> {
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("the repository name must be lower case");
    }
    if path.split('/').all(path_component) {
        Ok(())
    } else {
        Err("repository names are made of a-z 0-9, joined by . _ __ or dashes, parted by /")
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn path_component(c: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let b = c.as_bytes();
    if b.is_empty() || !alnum(b[0]) || !alnum(b[b.len() - 1]) {
        return false;
    }
    b.split(|x| alnum(*x))
        .all(|sep| matches!(sep, b"" | b"." | b"_" | b"__") || sep.iter().all(|x| *x == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_forms() {
        let d = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (text, normal, familiar) in [
            (
                "busybox",
                "docker.io/library/busybox:latest",
                "busybox:latest",
            ),
            (
                "busybox:1.36",
                "docker.io/library/busybox:1.36",
                "busybox:1.36",
            ),
            (
                "bitnami/redis",
                "docker.io/bitnami/redis:latest",
                "bitnami/redis:latest",
            ),
            (
                "index.docker.io/busybox",
                "docker.io/library/busybox:latest",
                "busybox:latest",
            ),
            ("docker.io/a/b:c", "docker.io/a/b:c", "a/b:c"),
            ("localhost/a", "localhost/a:latest", "localhost/a:latest"),
            (
                "localhost:5000/a:b",
                "localhost:5000/a:b",
                "localhost:5000/a:b",
            ),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
            (
                "rkube.local/toolbox",
                "rkube.local/toolbox:latest",
                "rkube.local/toolbox:latest",
            ),
            (
                "a__b/c--d/e.f",
                "docker.io/a__b/c--d/e.f:latest",
                "a__b/c--d/e.f:latest",
            ),
            ("REG/x", "REG/x:latest", "REG/x:latest"),
        ] {
            let r = Reference::parse(text).unwrap();
            assert_eq!(r.to_string(), normal);
            assert_eq!(r.familiar(), familiar);
            assert_eq!(
                Reference::parse(normal).unwrap(),
                r,
                "normal form is stable"
            );
        }
        for odd in [
            "docker.io/a.io/b",
            "docker.io/localhost/b",
            "docker.io/library/a/b",
        ] {
            let r = Reference::parse(odd).unwrap();
            assert_eq!(Reference::parse(&r.familiar()).unwrap(), r, "{odd}");
        }
        let r = Reference::parse(&format!("busybox@{d}")).unwrap();
        assert_eq!(
            (r.tag(), r.to_string()),
            (None, format!("docker.io/library/busybox@{d}"))
        );
        let r = Reference::parse(&format!("a.io/b:v1@{d}")).unwrap();
        assert_eq!((r.tag(), r.digest().is_some()), (Some("v1"), true));
    }

    #[test]
    fn invalid_names() {
        let long = "a".repeat(256);
        let long_tag = format!("a:{}", "t".repeat(129));
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for bad in [
            "",
            " ",
            "Busybox",
            "a/",
            "/a",
            "a//b",
            "a:",
            "a:b:c",
            "a:-t",
            ":tag",
            "@",
            "a@b",
            "a@sha256:12",
            "a_-b",
            "a...b",
            "-a",
            "a-",
            "../x",
            "a/../b",
            "a b",
            "a\0b",
            "a\n",
            "localhost:99999/a",
            "a.io:x/b",
            "a..io/b",
            "-a.io/b",
            "[zz]:1/a",
            "é",
            &long,
            &long_tag,
            hex,
            "https://a.io/b",
        ] {
            assert!(
                matches!(Reference::parse(bad), Err(Error::InvalidReference { .. })),
                "{bad:?}"
            );
        }
    }
}
