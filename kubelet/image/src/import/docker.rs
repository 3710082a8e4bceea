//! `docker save` archives: a `manifest.json` that names a configuration and
//! layer archives (moby, image/spec/v1.2.md, "Combined Image JSON").

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::json;

use super::contents::Contents;
use super::staging::{Staged, Staging};
use super::{Config, document, parallel};
use crate::catalog::tag_name;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::limits::{MAX_CONFIG_BYTES, MAX_IMAGES_PER_IMPORT, MAX_MANIFEST_BYTES};
use crate::pipe::Compression;
use crate::table::LayerRecord;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn read_list(contents: &Contents) -> Result<Option<Vec<SavedImage>>> {
    match contents.read("manifest.json", MAX_MANIFEST_BYTES)? {
        Some(bytes) => document(&bytes, "manifest.json").map(Some),
        None => Ok(None),
    }
}

/// Names by configuration, for an OCI layout that has a `manifest.json` too.
pub(crate) fn tags_by_config(contents: &Contents) -> Result<HashMap<Digest, Vec<String>>> {
    let mut out: HashMap<Digest, Vec<String>> = HashMap::new();
    for image in read_list(contents)?.unwrap_or_default() {
        let file = image.config.rsplit('/').next().unwrap_or_default();
        if let Some(d) = Digest::from_hex(file.strip_suffix(".json").unwrap_or(file)) {
            out.entry(d).or_default().extend(names(image.repo_tags)?);
        }
    }
    Ok(out)
}

fn names(tags: Option<Vec<String>>) -> Result<Vec<String>> {
    tags.unwrap_or_default()
        .iter()
        .map(|t| tag_name(t))
        .collect()
}

pub(crate) fn import(
    staging: &Staging<'_>,
    contents: &Contents,
    name: &str,
) -> Result<Vec<Staged>> {
    let list = read_list(contents)?.unwrap_or_default();
    if list.is_empty() {
        return Err(Error::Malformed {
            what: name.to_string(),
            reason: "it holds no image".into(),
        });
    }
    if list.len() > MAX_IMAGES_PER_IMPORT {
        let limit = MAX_IMAGES_PER_IMPORT as u64;
        return Err(Error::Limit {
            what: name.to_string(),
            limit,
            unit: "images",
        });
    }
    list.into_iter()
        .map(|image| one(staging, contents, name, image))
        .collect()
}

fn one(
    staging: &Staging<'_>,
    contents: &Contents,
    name: &str,
    image: SavedImage,
) -> Result<Staged> {
    let what = format!("{name}: {}", image.config);
    let missing = |member: &str| Error::Malformed {
        what: name.to_string(),
        reason: format!("{member} is missing"),
    };
    let bytes = contents
        .read(&image.config, MAX_CONFIG_BYTES)?
        .ok_or_else(|| missing(&image.config))?;
    // The file is named by its digest; where it is, it is held to it.
    let stem = image.config.rsplit('/').next().unwrap_or_default();
    if let Some(expected) = Digest::from_hex(stem.strip_suffix(".json").unwrap_or(stem)) {
        let actual = Digest::of(&bytes);
        if expected != actual {
            let (expected, actual) = (expected.to_string(), actual.to_string());
            return Err(Error::Digest {
                what,
                expected,
                actual,
            });
        }
    }
    let config = Config::parse(bytes, &what)?;
    if config.diff_ids.len() != image.layers.len() {
        let (m, c) = (image.layers.len(), config.diff_ids.len());
        let reason = format!("{m} layers in manifest.json, {c} in the configuration");
        return Err(Error::Malformed { what, reason });
    }
    let pairs: Vec<_> = image.layers.iter().zip(&config.diff_ids).collect();
    let (unique, place) = super::unique(&pairs);
    let taken = parallel::each(&unique, |i| {
        let (member, diff_id) = pairs[*i];
        // Layers are saved uncompressed as a rule: then the blob is the
        // diffID's and a known one need not be read.
        if let Some(known) = staging.known_layer(diff_id, diff_id)? {
            return Ok((known, Compression::Plain.media_type()));
        }
        let (src, _) = contents.open(member)?.ok_or_else(|| missing(member))?;
        let name = format!("{i} ({member})");
        let (record, how) = staging.layer(&name, src, None, Some(*diff_id))?;
        Ok((record, how.media_type()))
    })?;
    let described: Vec<_> = place.iter().map(|i| taken[*i].clone()).collect();
    let layers = described.iter().map(|(record, _)| record.clone()).collect();
    let references = names(image.repo_tags)?;
    stage(staging, config, layers, &described, references)
}

/// Writes the manifest that the source does not have.
pub(crate) fn stage(
    staging: &Staging<'_>,
    config: Config,
    layers: Vec<LayerRecord>,
    described: &[(LayerRecord, &'static str)],
    references: Vec<String>,
) -> Result<Staged> {
    let digest = staging.document(&config.bytes)?;
    let layer = |(l, media_type): &(LayerRecord, &'static str)| json!({"mediaType": media_type, "digest": l.blob, "size": l.blob_bytes});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest,
            "size": config.bytes.len(),
        },
        "layers": described.iter().map(layer).collect::<Vec<_>>(),
    });
    let manifest = manifest.to_string();
    Ok(Staged {
        manifest: staging.document(manifest.as_bytes())?,
        manifest_bytes: manifest.len() as u64,
        config: digest,
        config_bytes: config.bytes.len() as u64,
        layers,
        platform: config.platform,
        references,
        digests: Vec::new(),
    })
}
