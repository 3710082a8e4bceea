//! Images that somebody else fetches: the crate above brings manifest,
//! configuration and readers of blobs, the store keeps, checks and unpacks.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use crate::digest::Digest;
use crate::document::{Descriptor, Manifest};
use crate::error::{Context, Error, Result};
use crate::import::staging::{Staged, Staging};
use crate::import::{Config, ImportOptions, ImportedImage};
use crate::limits::DEFAULT_MAX_UNPACKED_BYTES;
use crate::store::Store;
use crate::table::{LayerRecord, Table};

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

/// Where the bytes of a layer come from.
pub trait BlobSource {
    /// A reader of the blob from an offset on.
    ///
    /// # Errors
    /// It cannot be had.
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send + '_>>;

    /// Whether there is no use any more in waiting for another pull that
    /// fetches the same blob.
    fn is_over(&self) -> bool;

    /// How many of the last bytes have to come from here even if an earlier
    /// pull left them.
    fn least_bytes(&self) -> u64;
}

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
        // More than it may unpack to no image has to have packed.
        let sum = |all: u64, layer: &Descriptor| all.saturating_add(layer.size);
        if manifest.layers.iter().fold(0, sum) > opts.max_unpacked_bytes {
            return Err(Error::Limit {
                what: format!("{what}: layers of the manifest"),
                limit: opts.max_unpacked_bytes,
                unit: "bytes",
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

    /// Whether an image came from this repository (or went there).
    ///
    /// # Errors
    /// If the table cannot be read.
    pub fn is_of(&self, repository: &str, manifest: &Digest) -> Result<bool> {
        let table = Table::load(self.dir.as_fd())?;
        Ok(table.digests.get(&format!("{repository}@{manifest}")) == Some(manifest))
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

    /// Takes a layer in; nothing, if another pull brought it meanwhile and it
    /// is [`Ingest::known`]. Errors of the way (time-outs, resets) keep what
    /// came for the next try.
    ///
    /// # Errors
    /// As [`Store::import`].
    pub fn take(&self, index: usize, source: &dyn BlobSource) -> Result<Option<TakenLayer>> {
        let (blob, diff_id) = self.diff_id(index)?;
        let what = format!("{index} ({})", blob.digest);
        let taken = self.staging.fetch(&what, blob, diff_id, source)?;
        Ok(taken.map(TakenLayer))
    }

    /// Bytes of a known layer's blob, to compare others with.
    ///
    /// # Errors
    /// The disk, or the blob is shorter.
    pub fn peek(&self, index: usize, offset: u64, bytes: usize) -> Result<Vec<u8>> {
        let (blob, _) = self.diff_id(index)?;
        let file = self.staging.open_blob(&blob.digest)?;
        let mut out = vec![0; bytes];
        file.read_exact_at(&mut out, offset)
            .ctx("read blob", blob.digest.to_string())?;
        Ok(out)
    }

    /// The image's id: its configuration's digest.
    #[must_use]
    pub fn id(&self) -> Digest {
        Digest::of(&self.config.bytes)
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
