//! OCI image layouts (image-layout.md, image-index.md, manifest.md of the OCI
//! image specification), and the ones that `docker save` writes since 25.

use super::contents::Contents;
use super::staging::{Staged, Staging};
use super::{Config, ImportOptions, blob_name, docker, document, parallel, read_verified};
use crate::document::{Descriptor, Document, Index, Manifest, choose};
use crate::error::{Error, Result};
use crate::limits::{MAX_CONFIG_BYTES, MAX_IMAGES_PER_IMPORT, MAX_INDEX_DEPTH, MAX_MANIFEST_BYTES};
use crate::reference::Reference;

/// The name of an image in a layout (annotations.md); often a mere tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// containerd's and Docker's annotation with the whole name.
const IMAGE_NAME: &str = "io.containerd.image.name";

pub(crate) fn import(
    staging: &Staging<'_>,
    contents: &Contents,
    name: &str,
    opts: &ImportOptions,
) -> Result<Vec<Staged>> {
    let bytes = contents
        .read("index.json", MAX_MANIFEST_BYTES)?
        .ok_or_else(|| Error::Malformed {
            what: name.to_string(),
            reason: "index.json is missing".into(),
        })?;
    let index: Index = document(&bytes, &format!("{name}: index.json"))?;
    // What has the same name is one image for several platforms.
    let mut groups: Vec<(Option<String>, Vec<Descriptor>)> = Vec::new();
    for d in index.manifests {
        let key = reference_of(&d);
        match groups.iter_mut().find(|(k, _)| *k == key && key.is_some()) {
            Some((_, list)) => list.push(d),
            None => {
                // Unnamed entries with platforms are one image too.
                match groups.iter_mut().find(|(k, l)| {
                    k.is_none() && key.is_none() && l.iter().all(|x| x.platform.is_some())
                }) {
                    Some((_, list)) if d.platform.is_some() => list.push(d),
                    _ => groups.push((key, vec![d])),
                }
            }
        }
        if groups.len() > MAX_IMAGES_PER_IMPORT {
            let limit = MAX_IMAGES_PER_IMPORT as u64;
            return Err(Error::Limit {
                what: name.to_string(),
                limit,
                unit: "images",
            });
        }
    }
    if groups.is_empty() {
        return Err(Error::Malformed {
            what: name.to_string(),
            reason: "it holds no image".into(),
        });
    }
    let tags = docker::tags_by_config(contents)?;
    let mut out: Vec<Staged> = Vec::new();
    for (reference, list) in groups {
        let chosen = if let [one] = &list[..] {
            one.clone()
        } else {
            choose(name, &list, &opts.platform)?
        };
        let mut image = descend(staging, contents, name, chosen, opts)?;
        image.references.extend(reference);
        image
            .references
            .extend(tags.get(&image.config).into_iter().flatten().cloned());
        image.references.sort_unstable();
        image.references.dedup();
        match out.iter_mut().find(|o| o.manifest == image.manifest) {
            Some(same) => same.references.extend(image.references),
            None => out.push(image),
        }
    }
    Ok(out)
}

/// The full name that an index entry carries. A mere tag (`latest`) or a
/// single word names nothing: it could be either, and is never guessed.
fn reference_of(d: &Descriptor) -> Option<String> {
    let a = d.annotations.as_ref()?;
    let full = a
        .get(IMAGE_NAME)
        .or_else(|| a.get(REF_NAME).filter(|n| n.contains(['/', ':'])))?;
    let r = Reference::parse(full).ok()?;
    r.tag().is_some().then(|| match r.digest() {
        None => r.to_string(),
        Some(_) => format!("{}:{}", r.repository(), r.tag().unwrap_or("latest")),
    })
}

/// From a descriptor through indexes to one staged image.
fn descend(
    staging: &Staging<'_>,
    contents: &Contents,
    name: &str,
    mut at: Descriptor,
    opts: &ImportOptions,
) -> Result<Staged> {
    for _ in 0..MAX_INDEX_DEPTH {
        let what = format!("{name}: {}", at.digest);
        let bytes = read_verified(contents, &at.digest, &what, MAX_MANIFEST_BYTES)?;
        if bytes.len() as u64 != at.size {
            let reason = format!("it has {} bytes, announced were {}", bytes.len(), at.size);
            return Err(Error::Malformed { what, reason });
        }
        match Document::parse(&bytes, &what)? {
            Document::Manifest(m) => return manifest(staging, contents, &what, &bytes, &m),
            Document::Index(index) => at = choose(&what, &index.manifests, &opts.platform)?,
        }
    }
    let limit = MAX_INDEX_DEPTH as u64;
    Err(Error::Limit {
        what: name.to_string(),
        limit,
        unit: "nested indexes",
    })
}

fn manifest(
    staging: &Staging<'_>,
    contents: &Contents,
    what: &str,
    bytes: &[u8],
    manifest: &Manifest,
) -> Result<Staged> {
    let malformed = |reason: String| Error::Malformed {
        what: what.to_string(),
        reason,
    };
    let config_what = format!("{what}: configuration");
    let config = read_verified(
        contents,
        &manifest.config.digest,
        &config_what,
        MAX_CONFIG_BYTES,
    )?;
    let config = Config::parse(config, &config_what)?;
    if config.diff_ids.len() != manifest.layers.len() {
        return Err(malformed(format!(
            "{} layers in the manifest, {} in the configuration",
            manifest.layers.len(),
            config.diff_ids.len()
        )));
    }
    let pairs: Vec<_> = manifest.layers.iter().zip(&config.diff_ids).collect();
    let (unique, place) = super::unique(&pairs);
    let taken = parallel::each(&unique, |i| {
        let (d, diff_id) = pairs[*i];
        if let Some(known) = staging.known_layer(&d.digest, diff_id)? {
            return Ok(known);
        }
        let Some((src, size)) = contents.open(&blob_name(&d.digest))? else {
            return Err(malformed(format!(
                "layer {i}: blob {} is missing",
                d.digest
            )));
        };
        if size != d.size {
            return Err(malformed(format!(
                "layer {i} has {size} bytes, announced were {}",
                d.size
            )));
        }
        let name = format!("{i} ({})", d.digest);
        let taken = staging.layer(&name, src, Some(d.digest), Some(*diff_id))?;
        Ok(taken.0)
    })?;
    let layers = place.iter().map(|i| taken[*i].clone()).collect();
    Ok(Staged {
        manifest: staging.document(bytes)?,
        manifest_bytes: bytes.len() as u64,
        config: staging.document(&config.bytes)?,
        config_bytes: config.bytes.len() as u64,
        layers,
        platform: config.platform,
        references: Vec::new(),
        digests: Vec::new(),
    })
}
