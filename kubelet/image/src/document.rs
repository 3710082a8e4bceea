//! The documents that describe an image: indexes and manifests, of OCI
//! (manifest.md, image-index.md) and of Docker (image manifest version 2,
//! schema 2). Untrusted: parsed from bytes of bounded size, and checked.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::import::Platform;
use crate::limits::{MAX_CONFIG_BYTES, MAX_LAYERS, MAX_MANIFEST_BYTES};

/// OCI's manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI's index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker's manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's list of manifests.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// OCI's image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Docker's image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Most entries of one index.
pub const MAX_INDEX_ENTRIES: usize = 4096;
/// Platforms named in an error.
const MAX_SHOWN_PLATFORMS: usize = 16;

/// Names a blob with its size (descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Media type; empty where the document has none.
    #[serde(default, rename = "mediaType")]
    pub media_type: String,
    /// Digest of the blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<HashMap<String, String>>,
    /// In an index: what the manifest is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<DescriptorPlatform>,
}

/// The platform of an index entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorPlatform {
    /// `linux`, ...
    #[serde(default)]
    pub os: String,
    /// `amd64`, ...
    #[serde(default)]
    pub architecture: String,
    /// `v7`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl DescriptorPlatform {
    fn text(&self) -> String {
        let v = self.variant.as_ref();
        let v = v.map(|v| format!("/{v}")).unwrap_or_default();
        format!("{}/{}{v}", self.os, self.architecture)
    }
}

/// An index of manifests.
#[derive(Debug, Clone, Deserialize)]
pub struct Index {
    /// Its entries.
    pub manifests: Vec<Descriptor>,
}

/// An image manifest.
#[derive(Debug, Clone, Deserialize)]
pub struct Manifest {
    /// The configuration.
    pub config: Descriptor,
    /// The layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

/// What a document turned out to be.
#[derive(Debug, Clone)]
pub enum Document {
    /// An index.
    Index(Index),
    /// The manifest of one image.
    Manifest(Manifest),
}

/// Enough of a document to tell an index from a manifest.
#[derive(Deserialize)]
struct Probe {
    #[serde(default, rename = "schemaVersion")]
    schema_version: Option<u64>,
    #[serde(default, rename = "mediaType")]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
    #[serde(default, rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// A JSON document.
pub(crate) fn json<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|source| Error::Document {
        what: what.to_string(),
        source,
    })
}

impl Document {
    /// Parses and checks a document that `what` names in errors.
    ///
    /// # Errors
    /// [`Error::Document`], [`Error::Malformed`] and [`Error::Limit`] for what
    /// is no image or more than the limits allow.
    pub fn parse(bytes: &[u8], what: &str) -> Result<Self> {
        let malformed = |reason: &str| {
            Err(Error::Malformed {
                what: what.to_string(),
                reason: reason.to_string(),
            })
        };
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return limit(what, MAX_MANIFEST_BYTES, "bytes");
        }
        let probe: Probe = json(bytes, what)?;
        if probe.fs_layers.is_some() || probe.schema_version == Some(1) {
            return malformed(
                "it is of Docker's old schema 1, which cannot be verified; push the image anew with a newer program",
            );
        }
        // A document that can be read as both means different things to
        // different readers (CVE-2021-41190).
        if probe.manifests.is_some() && probe.layers.is_some() {
            return malformed("it has both manifests and layers");
        }
        let media_type = probe.media_type.as_deref().unwrap_or_default();
        if probe.manifests.is_some() {
            if matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST) {
                return malformed("it says that it is a manifest and has the form of an index");
            }
            let index: Index = json(bytes, what)?;
            if index.manifests.len() > MAX_INDEX_ENTRIES {
                return limit(what, MAX_INDEX_ENTRIES as u64, "entries");
            }
            return Ok(Self::Index(index));
        }
        if matches!(media_type, OCI_INDEX | DOCKER_INDEX) {
            return malformed("it says that it is an index and has no manifests");
        }
        let manifest: Manifest = json(bytes, what)?;
        manifest.check(what)?;
        Ok(Self::Manifest(manifest))
    }
}

fn limit<T>(what: &str, limit: u64, unit: &'static str) -> Result<T> {
    let what = what.to_string();
    Err(Error::Limit { what, limit, unit })
}

impl Manifest {
    fn check(&self, what: &str) -> Result<()> {
        if self.layers.len() > MAX_LAYERS {
            return limit(what, MAX_LAYERS as u64, "layers");
        }
        if self.config.size > MAX_CONFIG_BYTES {
            return limit(&format!("{what}: configuration"), MAX_CONFIG_BYTES, "bytes");
        }
        let other = |reason: String| {
            Err(Error::Malformed {
                what: what.to_string(),
                reason,
            })
        };
        let kind = self.config.media_type.as_str();
        if !matches!(kind, "" | OCI_CONFIG | DOCKER_CONFIG) {
            let kind = shown(kind);
            return other(format!(
                "its configuration is {kind}: an artifact, not a container image"
            ));
        }
        for (i, layer) in self.layers.iter().enumerate() {
            if !layer.media_type.is_empty() && !layer.media_type.contains("tar") {
                let kind = shown(&layer.media_type);
                return other(format!("layer {i} is {kind}, not a file system"));
            }
            if layer.media_type.contains("encrypted") {
                return other(format!("layer {i} is encrypted"));
            }
        }
        Ok(())
    }
}

/// Foreign text for an error: no control characters, not too long.
fn shown(text: &str) -> String {
    let harmless = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(100).map(harmless).collect()
}

/// The entry for a platform: its variant, else none, else any; an entry that
/// names no platform only if there is no other entry.
///
/// # Errors
/// [`Error::Platform`].
pub fn choose(what: &str, list: &[Descriptor], want: &Platform) -> Result<Descriptor> {
    let fits = |p: &DescriptorPlatform| p.os == want.os && p.architecture == want.architecture;
    let rank = |d: &Descriptor| -> Option<u8> {
        match &d.platform {
            Some(p) if fits(p) && p.variant == want.variant => Some(0),
            Some(p) if fits(p) && p.variant.is_none() => Some(1),
            Some(p) if fits(p) => Some(2),
            None if list.len() == 1 => Some(3),
            _ => None,
        }
    };
    let best = list
        .iter()
        .filter_map(|d| rank(d).map(|r| (r, d)))
        .min_by_key(|(r, _)| *r);
    best.map(|(_, d)| d.clone()).ok_or_else(|| {
        let name = |d: &Descriptor| {
            d.platform
                .as_ref()
                .map_or("an unnamed one".into(), |p| shown(&p.text()))
        };
        Error::Platform {
            what: what.to_string(),
            wanted: want.to_string(),
            found: list.iter().take(MAX_SHOWN_PLATFORMS).map(name).collect(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(text: &str) -> Result<Document> {
        Document::parse(text.replace('$', D).as_bytes(), "test")
    }

    #[test]
    fn manifests_and_indexes_are_told_apart() {
        let manifest = r#"{"schemaVersion":2,"config":{"digest":"$","size":2},"layers":[{"digest":"$","size":0}]}"#;
        assert!(matches!(parse(manifest), Ok(Document::Manifest(m)) if m.layers.len() == 1));
        let index = r#"{"manifests":[{"digest":"$","size":2,"platform":{"os":"linux","architecture":"arm64"}}]}"#;
        let Ok(Document::Index(index)) = parse(index) else {
            panic!("no index");
        };
        let want = |architecture: &str| Platform {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: None,
        };
        assert!(choose("x", &index.manifests, &want("arm64")).is_ok());
        let error = choose("x", &index.manifests, &want("amd64")).unwrap_err();
        assert!(error.to_string().contains("linux/arm64"), "{error}");
    }

    #[test]
    fn what_is_no_image_is_refused_with_the_reason() {
        for (text, part) in [
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, "schema 1"),
            (
                r#"{"manifests":[],"layers":[],"config":{"digest":"$","size":0}}"#,
                "both",
            ),
            (
                r#"{"mediaType":"application/vnd.oci.image.index.v1+json","layers":[],"config":{"digest":"$","size":0}}"#,
                "no manifests",
            ),
            (
                r#"{"layers":[],"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"$","size":0}}"#,
                "artifact",
            ),
            (
                r#"{"layers":[{"mediaType":"application/octet-stream","digest":"$","size":0}],"config":{"digest":"$","size":0}}"#,
                "not a file system",
            ),
            (
                r#"{"layers":[],"config":{"digest":"$","size":99999999}}"#,
                "more than",
            ),
            (
                r#"{"layers":[],"config":{"digest":"sha256:../..","size":0}}"#,
                "test",
            ),
            ("[]", "test"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
        let layer = format!(r#"{{"digest":"{D}","size":1}}"#);
        let many = vec![layer; MAX_LAYERS + 1].join(",");
        let text = format!(r#"{{"config":{{"digest":"{D}","size":1}},"layers":[{many}]}}"#);
        assert!(matches!(
            Document::parse(text.as_bytes(), "test"),
            Err(Error::Limit { .. })
        ));
    }
}
