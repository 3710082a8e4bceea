//! Unpacked trees that are not on the disk yet.
//!
//! A commit makes blobs, documents and the table durable, and leaves large
//! trees to the kernel's write-back: they can be made again from their blobs.
//! The table says of each in which boot it was made. [`Store::flush`] brings
//! them to the disk and takes that note away. A store that is opened in
//! another boot unpacks the trees that still have it before anybody sees them:
//! a power cut may have torn them.
//!
//! So an image that was promised is there after a power cut, whole, and
//! neither a pull nor a pod waits for all that the host is about to write.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use rustix::fs::{FlockOperation, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Context, Error, Result};
use crate::import::ImportOptions;
use crate::import::staging::Staging;
use crate::store::Store;
use crate::table::{LayerRecord, Table};

/// proc_sys_kernel(5): another value after each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// When a tree was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Made {
    /// The boot.
    boot: String,
    /// The import, which tells a tree from one that was made anew meanwhile.
    import: String,
}

impl Made {
    /// In this boot, by this import.
    pub(crate) fn now(import: &str) -> Result<Self> {
        let boot = std::fs::read_to_string(BOOT_ID).ctx("read", BOOT_ID)?;
        Ok(Self {
            boot: boot.trim().to_owned(),
            import: import.to_owned(),
        })
    }

    fn same_boot(&self, other: &Self) -> bool {
        self.boot == other.boot
    }
}

impl Store {
    /// Brings unpacked trees to the disk that may not be there yet. It waits
    /// for the disk: nothing that a pod waits for should call it.
    ///
    /// # Errors
    /// The disk; then the trees are made anew after the next boot.
    pub fn flush(&self) -> Result<()> {
        let before = Table::load(self.dir.as_fd())?.unsynced;
        if before.is_empty() {
            return Ok(());
        }
        rustix::fs::syncfs(&self.dir).ctx("sync the file system of", self.path())?;
        let _lock = self.lock("lock", FlockOperation::LockExclusive)?;
        let mut table = Table::load(self.dir.as_fd())?;
        table.unsynced.retain(|d, made| before.get(d) != Some(made));
        table.save(self.dir.as_fd())
    }

    /// Makes trees anew that an earlier boot may not have brought to the disk.
    pub(crate) fn make_torn_anew(&self) -> Result<()> {
        let table = Table::load(self.dir.as_fd())?;
        if table.unsynced.is_empty() {
            return Ok(());
        }
        let now = Made::now("")?;
        let torn = |table: &Table| -> BTreeSet<Digest> {
            let other = table.unsynced.iter().filter(|(_, m)| !m.same_boot(&now));
            other.map(|(d, _)| *d).collect()
        };
        if torn(&table).is_empty() {
            return Ok(());
        }
        // One does it and the others wait: nobody may use what is torn.
        let _one = self.lock("anew.lock", FlockOperation::LockExclusive)?;
        let table = Table::load(self.dir.as_fd())?;
        let torn = torn(&table);
        tracing::info!(
            layers = torn.len(),
            "layers that may not have been on the disk before the boot are unpacked anew"
        );
        let opts = ImportOptions {
            max_unpacked_bytes: u64::MAX,
            ..ImportOptions::default()
        };
        let staging = Staging::new(self, &opts, None)?;
        let mut lost = BTreeSet::new();
        for diff_id in &torn {
            // Without an image a sweep takes the tree.
            let Some(layer) = table.layer(diff_id) else {
                continue;
            };
            match self.make_anew(&staging, layer) {
                Ok(()) => {}
                Err(e) if e.is_of_content() => {
                    tracing::error!(layer = %diff_id, error = %e, "its blob is damaged: images with this layer are given up");
                    lost.insert(*diff_id);
                }
                Err(e) => return Err(e),
            }
        }
        let made = Made::now(&staging.name)?;
        let _lock = self.lock("lock", FlockOperation::LockExclusive)?;
        let mut table = Table::load(self.dir.as_fd())?;
        for diff_id in &torn {
            table.unsynced.remove(diff_id);
            if table.layer(diff_id).is_some() && !lost.contains(diff_id) {
                table.unsynced.insert(*diff_id, made.clone());
            }
        }
        let gone: Vec<Digest> = table
            .images
            .iter()
            .filter(|(_, r)| r.layers.iter().any(|l| lost.contains(&l.diff_id)))
            .map(|(d, _)| *d)
            .collect();
        for image in &gone {
            table.references.retain(|_, d| d != image);
            table.forget(image);
        }
        table.save(self.dir.as_fd())
    }

    /// Unpacks one layer and lets it take the place of the one that is there.
    fn make_anew(&self, staging: &Staging<'_>, layer: &LayerRecord) -> Result<()> {
        let name = staging.unpack_again(layer)?;
        let place = layer.diff_id.hex();
        let exchange = RenameFlags::EXCHANGE;
        match rustix::fs::renameat_with(&staging.layers, &*name, &self.layers, &*place, exchange) {
            // The power went before the directory was there.
            Err(Errno::NOENT) => {
                rustix::fs::renameat(&staging.layers, &*name, &self.layers, &*place)
                    .ctx("rename into place", &place)
            }
            other => other.ctx("exchange", &place),
        }
    }
}

impl Error {
    /// Whether what was read is to blame, and not the disk or its room.
    pub(crate) fn is_of_content(&self) -> bool {
        match self {
            Error::Entry { .. }
            | Error::Tar { .. }
            | Error::Digest { .. }
            | Error::Limit { .. }
            | Error::Malformed { .. } => true,
            Error::Read { source, .. } => source.raw_os_error().is_none(),
            Error::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            _ => false,
        }
    }
}
