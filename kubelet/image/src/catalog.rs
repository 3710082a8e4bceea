//! Finding images in the table by what users write, and describing them.

use std::collections::HashMap;

use oci_spec::image::ImageConfiguration;
use serde::Serialize;

use crate::collect::{Part, parts};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::Reference;
use crate::table::{Record, Table};

/// One line of a list of images. Sizes in bytes.
#[derive(Debug, Clone, Serialize)]
pub struct ImageSummary {
    /// Digest of the configuration.
    pub id: Digest,
    /// Digest of the manifest.
    pub manifest_digest: Digest,
    /// References in normal form; none for an image whose name another took.
    pub references: Vec<String>,
    /// `repository@digest` names by which registries know it.
    pub digests: Vec<String>,
    /// Whether garbage collection keeps it.
    pub pinned: bool,
    /// `os/arch[/variant]`.
    pub platform: String,
    /// When it was imported, seconds since 1970.
    pub imported_unix_s: u64,
    /// Number of layers.
    pub layers: usize,
    /// Disk use of everything the image needs.
    pub size_bytes: u64,
    /// The part of `size_bytes` that other images need too.
    pub shared_bytes: u64,
    /// Containers that use it.
    pub used_by: Vec<String>,
}

/// All that is known of one image.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// As in the list.
    #[serde(flatten)]
    pub summary: ImageSummary,
    /// The manifest as stored.
    pub manifest: serde_json::Value,
    /// The configuration as stored.
    pub config: serde_json::Value,
    /// diffIDs, the lowest first.
    pub diff_ids: Vec<Digest>,
}

/// What a removal did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// References that are gone.
    pub untagged: Vec<String>,
    /// Images (ids) that are gone.
    pub deleted: Vec<Digest>,
}

/// A reference that an image can be stored under.
pub(crate) fn tag_name(text: &str) -> Result<String> {
    let r = Reference::parse(text)?;
    if r.digest().is_some() {
        return Err(Error::InvalidReference {
            reference: text.to_string(),
            reason: "an image is stored under a tag, its digest is computed",
        });
    }
    Ok(r.to_string())
}

/// The image that a pod's `image` field means, and the name it was found by.
pub(crate) fn find_exact(table: &Table, text: &str) -> Result<(Digest, String)> {
    if text.starts_with("sha256:")
        && let Ok(d) = text.parse::<Digest>()
    {
        let hit = table.images.iter().find(|(m, r)| **m == d || r.config == d);
        return hit
            .map(|(m, _)| (*m, text.to_string()))
            .ok_or_else(|| not_found(table, text));
    }
    let r = Reference::parse(text)?;
    let mut name = r.to_string();
    let hit = match r.digest() {
        Some(d) => {
            // A tag beside a digest says nothing more.
            name = format!("{}@{d}", r.repository());
            let known = table.images.contains_key(&d).then_some(d);
            known
                .or_else(|| table.references.get(&name).copied())
                .or_else(|| table.digests.get(&name).copied())
        }
        None => table.references.get(&name).copied(),
    };
    hit.map(|d| (d, name)).ok_or_else(|| not_found(table, text))
}

/// As `find_exact`, and unique prefixes of ids and digests.
pub(crate) fn find(table: &Table, text: &str) -> Result<(Digest, String)> {
    /// Shorter prefixes are too easily a typing error.
    const MIN_PREFIX: usize = 4;
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let is_hex = |h: &str| h.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let exact = find_exact(table, text);
    if exact.is_ok() || hex.len() < MIN_PREFIX || hex.len() > 64 || !is_hex(hex) {
        return exact;
    }
    let fits = |d: &Digest| d.hex().starts_with(hex);
    let hits: Vec<Digest> = table
        .images
        .iter()
        .filter(|(m, r)| fits(m) || fits(&r.config))
        .map(|(m, _)| *m)
        .collect();
    match hits[..] {
        [] => Err(not_found(table, text)),
        [one] => Ok((one, one.to_string())),
        _ => Err(Error::Ambiguous {
            query: text.to_string(),
            matches: hits.iter().map(ToString::to_string).collect(),
        }),
    }
}

/// The error, with what the user may have meant.
pub(crate) fn not_found(table: &Table, query: &str) -> Error {
    /// Suggestions in one error.
    const MAX_SIMILAR: usize = 5;
    let last = |r: &Reference| r.path().rsplit('/').next().map(str::to_string);
    let wanted = Reference::parse(query).ok().and_then(|r| last(&r));
    let similar = table
        .references
        .keys()
        .filter(|k| Reference::parse(k).ok().and_then(|r| last(&r)) == wanted && wanted.is_some())
        .take(MAX_SIMILAR)
        .cloned()
        .collect();
    Error::NotFound {
        query: query.chars().take(400).collect(),
        similar,
    }
}

/// A configuration document; Go writes `null` where the specification has no
/// value, which typed parsers refuse.
pub(crate) fn parse_config(bytes: &[u8], what: &str) -> Result<ImageConfiguration> {
    fn drop_nulls(v: &mut serde_json::Value) {
        match v {
            serde_json::Value::Object(map) => {
                map.retain(|_, v| !v.is_null());
                map.values_mut().for_each(drop_nulls);
            }
            serde_json::Value::Array(list) => list.iter_mut().for_each(drop_nulls),
            _ => {}
        }
    }
    let document = |source| Error::Document {
        what: format!("configuration {what}"),
        source,
    };
    let mut value: serde_json::Value = serde_json::from_slice(bytes).map_err(document)?;
    drop_nulls(&mut value);
    // By text: a second deserializer for these types would be linked else.
    let text = serde_json::to_vec(&value).map_err(document)?;
    serde_json::from_slice(&text).map_err(document)
}

/// One image with its sizes; `users` says how many images need each part.
pub(crate) fn summary(
    table: &Table,
    users: &HashMap<Part, usize>,
    pins: &[(String, Digest)],
    digest: &Digest,
    r: &Record,
) -> ImageSummary {
    let parts = parts(digest, r);
    let shared = |(part, _): &&(Part, u64)| users.get(part).is_some_and(|n| *n > 1);
    ImageSummary {
        id: r.config,
        manifest_digest: *digest,
        references: table.references_of(digest),
        digests: table.digests_of(digest),
        pinned: table.keeps(digest),
        platform: r.platform.clone(),
        imported_unix_s: r.imported_unix_s,
        layers: r.layers.len(),
        size_bytes: parts.iter().map(|(_, bytes)| bytes).sum(),
        shared_bytes: parts.iter().filter(shared).map(|(_, bytes)| bytes).sum(),
        used_by: pins
            .iter()
            .filter(|(_, d)| d == digest)
            .map(|(id, _)| id.clone())
            .collect(),
    }
}
