//! Images that somebody else fetches: the crate above brings manifest,
//! configuration and readers of blobs, the store keeps, checks and unpacks.

use std::io::{self, Read};

use crate::digest::Digest;
use crate::document::{Descriptor, Manifest};
use crate::error::{Error, Result};
use crate::import::staging::{Staged, Staging};
use crate::import::{Config, ImportOptions, ImportedImage};
use crate::limits::DEFAULT_MAX_UNPACKED_BYTES;
use crate::store::Store;
use crate::table::LayerRecord;

/// Options of [`Store::ingest`].
#[derive(Debug, Clone, Copy)]
pub struct IngestOptions {
    /// Most bytes that the image may unpack to, over all layers.
    pub max_unpacked_bytes: u64,
}

impl Default for IngestOptions {
    fn default() -> Self {
        Self {
            max_unpacked_bytes: DEFAULT_MAX_UNPACKED_BYTES,
        }
    }
}

/// How a fetched image is called.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// References in normal form, by tag or by digest.
    pub references: Vec<String>,
    /// `repository@digest` of the manifest, and of the index it is from.
    pub digests: Vec<String>,
}

/// An image on its way into the store. Layers may be taken in by several
/// threads at once; nothing is visible before [`Ingest::commit`], and dropping
/// it leaves the partial blobs for the next try and nothing else.
#[allow(missing_debug_implementations)]
pub struct Ingest<'s> {
    staging: Staging<'s>,
    manifest: Vec<u8>,
    config: Config,
    layers: Vec<Descriptor>,
}

/// A layer that was taken in.
#[derive(Debug, Clone)]
pub struct TakenLayer(LayerRecord);

impl Store {
    /// Begins to take an image in.
    ///
    /// # Errors
    /// The configuration cannot be used or does not fit the manifest, or the
    /// store cannot be written.
    pub fn ingest(
        &self,
        opts: IngestOptions,
        what: &str,
        manifest_bytes: &[u8],
        manifest: &Manifest,
        config_bytes: Vec<u8>,
    ) -> Result<Ingest<'_>> {
        let actual = Digest::of(&config_bytes);
        if actual != manifest.config.digest {
            return Err(Error::Digest {
                what: format!("{what}: configuration"),
                expected: manifest.config.digest.to_string(),
                actual: actual.to_string(),
            });
        }
        let config = Config::parse(config_bytes, &format!("{what}: configuration"))?;
        if config.diff_ids.len() != manifest.layers.len() {
            return Err(Error::Malformed {
                what: what.to_string(),
                reason: format!(
                    "{} layers in the manifest, {} in the configuration",
                    manifest.layers.len(),
                    config.diff_ids.len()
                ),
            });
        }
        let import = ImportOptions {
            max_unpacked_bytes: opts.max_unpacked_bytes,
            ..ImportOptions::default()
        };
        Ok(Ingest {
            staging: Staging::new(self, &import, None)?,
            manifest: manifest_bytes.to_vec(),
            config,
            layers: manifest.layers.clone(),
        })
    }

    /// A small blob of the store (a configuration), if it is there and sound.
    #[must_use]
    pub fn small_blob(&self, digest: &Digest) -> Option<Vec<u8>> {
        self.read_blob(digest, crate::limits::MAX_CONFIG_BYTES).ok()
    }
}

impl Ingest<'_> {
    /// The layers, the lowest first; equal ones need be taken in once only.
    #[must_use]
    pub fn layers(&self) -> &[Descriptor] {
        &self.layers
    }

    fn diff_id(&self, index: usize) -> Result<(&Descriptor, &Digest)> {
        let pair = self.layers.get(index).zip(self.config.diff_ids.get(index));
        pair.ok_or_else(|| Error::Malformed {
            what: format!("layer {index}"),
            reason: "there is no such layer".into(),
        })
    }

    /// A layer that the store has already, blob and tree.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn known(&self, index: usize) -> Result<Option<TakenLayer>> {
        let (blob, diff_id) = self.diff_id(index)?;
        let known = self.staging.known_layer(&blob.digest, diff_id)?;
        Ok(known.map(TakenLayer))
    }

    /// Takes a layer in. `open` gives a reader of the blob from an offset on;
    /// errors of the way (time-outs, resets) keep what came for the next try.
    ///
    /// # Errors
    /// As [`Store::import`].
    pub fn take(
        &self,
        index: usize,
        open: &dyn Fn(u64) -> io::Result<Box<dyn Read + Send>>,
    ) -> Result<TakenLayer> {
        let (blob, diff_id) = self.diff_id(index)?;
        let what = format!("{index} ({})", blob.digest);
        let taken = self.staging.fetch(&what, blob, diff_id, open);
        taken.map(TakenLayer)
    }

    /// Makes the image part of the store.
    ///
    /// # Errors
    /// The disk.
    pub fn commit(self, layers: Vec<TakenLayer>, names: Names) -> Result<ImportedImage> {
        let staged = Staged {
            manifest: self.staging.document(&self.manifest)?,
            manifest_bytes: self.manifest.len() as u64,
            config: self.staging.document(&self.config.bytes)?,
            config_bytes: self.config.bytes.len() as u64,
            layers: layers.into_iter().map(|l| l.0).collect(),
            platform: self.config.platform,
            references: names.references,
            digests: names.digests,
        };
        let found = self.staging.commit(vec![staged])?;
        found.into_iter().next().ok_or_else(|| Error::Malformed {
            what: "commit".into(),
            reason: "no image came of it".into(),
        })
    }
}
