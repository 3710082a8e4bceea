//! The reference table: which images the store holds and how they are called.
//!
//! One small JSON file, replaced whole. What it names is complete on the
//! disk; what it does not name is garbage. So its rename is the moment at
//! which an import happens.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fsutil;
use crate::limits::MAX_TABLE_BYTES;
use crate::settle::Made;

const TABLE: &str = "table.json";
const VERSION: u32 = 1;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Table {
    version: u32,
    /// By manifest digest.
    pub(crate) images: BTreeMap<Digest, Record>,
    /// Reference in normal form to manifest digest.
    pub(crate) references: BTreeMap<String, Digest>,
    /// `repository@digest` by which registries know images (of a manifest or
    /// of the index that it was taken from) to manifest digest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) digests: BTreeMap<String, Digest>,
    /// References that garbage collection keeps.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) pinned: BTreeSet<String>,
    /// Layers (by diffID) whose trees may not be on the disk yet.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) unsynced: BTreeMap<Digest, Made>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) config: Digest,
    pub(crate) config_bytes: u64,
    pub(crate) manifest_bytes: u64,
    pub(crate) layers: Vec<LayerRecord>,
    /// `os/arch[/variant]` of the configuration.
    pub(crate) platform: String,
    /// Seconds since 1970.
    pub(crate) imported_unix_s: u64,
    /// Content key of a built-in image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) builtin: Option<String>,
}

/// One layer of one image, the lowest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) diff_id: Digest,
    pub(crate) blob: Digest,
    pub(crate) blob_bytes: u64,
    pub(crate) disk_bytes: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) root_opaque: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) root: Option<(u32, u32, u32)>,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            version: VERSION,
            images: BTreeMap::new(),
            references: BTreeMap::new(),
            digests: BTreeMap::new(),
            pinned: BTreeSet::new(),
            unsynced: BTreeMap::new(),
        }
    }
}

impl Table {
    pub(crate) fn load(dir: BorrowedFd<'_>) -> Result<Self> {
        let Some(bytes) = fsutil::read_file(dir, TABLE, MAX_TABLE_BYTES)? else {
            return Ok(Self::default());
        };
        let document = |source| Error::Document {
            what: "image table".into(),
            source,
        };
        let table: Self = serde_json::from_slice(&bytes).map_err(document)?;
        if table.version != VERSION {
            return Err(Error::Malformed {
                what: "image table".into(),
                reason: format!(
                    "version {} is of another rkube, this one knows {VERSION}",
                    table.version
                ),
            });
        }
        Ok(table)
    }

    pub(crate) fn save(&self, dir: BorrowedFd<'_>) -> Result<()> {
        let document = |source| Error::Document {
            what: "image table".into(),
            source,
        };
        fsutil::replace_file(dir, TABLE, &serde_json::to_vec(self).map_err(document)?)
    }

    /// Registry names of an image, sorted.
    pub(crate) fn digests_of(&self, manifest: &Digest) -> Vec<String> {
        let hit = |(r, d): (&String, &Digest)| (d == manifest).then(|| r.clone());
        self.digests.iter().filter_map(hit).collect()
    }

    /// Whether garbage collection keeps an image: a built-in one, or one of
    /// which a reference is pinned.
    pub(crate) fn keeps(&self, manifest: &Digest) -> bool {
        let builtin = self
            .images
            .get(manifest)
            .is_some_and(|r| r.builtin.is_some());
        builtin
            || self
                .references_of(manifest)
                .iter()
                .any(|r| self.pinned.contains(r))
    }

    /// Takes an image out with its registry names.
    pub(crate) fn forget(&mut self, manifest: &Digest) -> Option<Record> {
        self.digests.retain(|_, d| d != manifest);
        self.images.remove(manifest)
    }

    /// The record of a layer, from any image that has it.
    pub(crate) fn layer(&self, diff_id: &Digest) -> Option<&LayerRecord> {
        let mut all = self.images.values().flat_map(|r| &r.layers);
        all.find(|l| l.diff_id == *diff_id)
    }

    /// References of an image, sorted.
    pub(crate) fn references_of(&self, manifest: &Digest) -> Vec<String> {
        let hit = |(r, d): (&String, &Digest)| (d == manifest).then(|| r.clone());
        self.references.iter().filter_map(hit).collect()
    }
}
