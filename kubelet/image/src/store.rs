//! The store on the disk.
//!
//! ```text
//! images/            0700: layers hold setuid programs and device nodes
//!   table.json       references and images; replaced by rename
//!   blobs/sha256/H   manifests, configurations, layers as they were fetched
//!   layers/H/diff    the unpacked layer with diffID sha256:H
//!   layers/H/empty   an empty directory (second layer of a one-layer root)
//!   layers/H/layer.json
//!   pins/ID          manifest digest that container ID uses
//!   partial/H        what was fetched of a blob so far
//!   used/H           its time: when manifest H was last used by a container
//!   tmp/             unfinished imports
//!   lock, gc.lock, anew.lock
//!   unswept          a sweep could not be done
//! ```
//!
//! `lock` is held for the few renames of a commit. `gc.lock` is held shared
//! by an import for as long as it runs and exclusively by whoever removes
//! what the table does not name; a remover that cannot have it leaves the
//! sweep to those that hold it (`unswept`). Other readers take no lock. `anew.lock`: see [`Store::flush`].

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::catalog::{
    ImageSummary, Inspection, Removed, find, find_exact, not_found, parse_config, summary, tag_name,
};
use crate::collect::users;
use crate::digest::Digest;
use crate::error::{Context, Error, Result};
use crate::fsutil;
use crate::layer::LayerInfo;
use crate::limits::{MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES};
use crate::table::{Record, Table};

/// Says that a sweep could not be done.
const UNSWEPT: &str = "unswept";

/// An image store directory.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    pub(crate) dir: OwnedFd,
    pub(crate) blobs: OwnedFd,
    pub(crate) layers: OwnedFd,
    pub(crate) tmp: OwnedFd,
    pub(crate) pins: OwnedFd,
    pub(crate) partial: OwnedFd,
    pub(crate) used: OwnedFd,
}

/// An image that containers can be made from.
#[derive(Debug, Clone)]
pub struct Image {
    /// The image id: the digest of its configuration.
    pub id: Digest,
    /// Digest of its manifest.
    pub manifest_digest: Digest,
    /// The reference it was found by, in normal form; the id if by id.
    pub reference: String,
    /// `repository@digest` names by which registries know it, sorted.
    pub digests: Vec<String>,
    /// Its configuration.
    pub config: ImageConfiguration,
    /// Its unpacked layers, the lowest first, each once. Layers that an opaque
    /// root hides are not in the list.
    pub layers: Vec<LayerPath>,
    /// Mode, uid and gid of its root directory, if a layer says.
    pub root: Option<(u32, u32, u32)>,
}

/// One unpacked layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPath {
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
    /// The directory `diff`; `empty` stands beside it.
    pub path: PathBuf,
}

impl Store {
    /// Opens the store, making it if it is missing, and clears away what
    /// crashed imports and removals left, unless an import runs now.
    ///
    /// # Errors
    /// [`Error::Io`] for the directories, [`Error::Document`] for a table
    /// that cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path).ctx("create directory", path)?;
        let dir = fsutil::open_dir(path)?;
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o700)).ctx("set the mode of", path)?;
        let sub = |name: &str| fsutil::make_dir(dir.as_fd(), name, 0o700);
        let blobs = fsutil::make_dir(sub("blobs")?.as_fd(), "sha256", 0o700)?;
        let (layers, tmp, pins) = (sub("layers")?, sub("tmp")?, sub("pins")?);
        let (partial, used) = (sub("partial")?, sub("used")?);
        let path = path.canonicalize().ctx("resolve", path)?;
        let store = Self {
            path,
            partial,
            used,
            dir,
            blobs,
            layers,
            tmp,
            pins,
        };
        store.make_torn_anew()?;
        store.sweep()?;
        Ok(store)
    }

    /// Where the store is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All images, by their first reference.
    ///
    /// # Errors
    /// If the table cannot be read.
    pub fn list(&self) -> Result<Vec<ImageSummary>> {
        let table = Table::load(self.dir.as_fd())?;
        let (pins, users) = (self.pins()?, users(table.images.iter()));
        let mut all: Vec<_> = table
            .images
            .iter()
            .map(|(d, r)| summary(&table, &users, &pins, d, r))
            .collect();
        all.sort_by(|a, b| {
            (a.references.is_empty(), &a.references).cmp(&(b.references.is_empty(), &b.references))
        });
        Ok(all)
    }

    /// Finds the image for a container. Accepts what a pod's `image` field
    /// may hold: a reference, `name@sha256:...`, or `sha256:<64 digits>` of a
    /// configuration or manifest. Nothing is guessed: a short name means
    /// Docker Hub's.
    ///
    /// # Errors
    /// [`Error::InvalidReference`], [`Error::NotFound`], or a broken store.
    pub fn resolve(&self, text: &str) -> Result<Image> {
        let table = Table::load(self.dir.as_fd())?;
        let (manifest, name) = find_exact(&table, text)?;
        let record = table
            .images
            .get(&manifest)
            .ok_or_else(|| not_found(&table, text))?;
        let digests = table.digests_of(&manifest);
        self.image(manifest, name, record, digests)
    }

    fn image(
        &self,
        manifest_digest: Digest,
        reference: String,
        record: &Record,
        digests: Vec<String>,
    ) -> Result<Image> {
        let bytes = self.read_blob(&record.config, MAX_CONFIG_BYTES)?;
        let config = parse_config(&bytes, &record.config.to_string())?;
        let from = record
            .layers
            .iter()
            .rposition(|l| l.root_opaque)
            .unwrap_or(0);
        let visible = &record.layers[from..];
        // The kernel takes no directory twice. Of equal layers the highest
        // covers all that the others bring or hide, so those are left out.
        let mut seen = HashSet::new();
        let mut layers: Vec<LayerPath> = visible
            .iter()
            .rev()
            .filter(|l| seen.insert(l.diff_id))
            .map(|l| self.layer_path(&l.diff_id))
            .collect();
        layers.reverse();
        let root = visible.iter().rev().find_map(|l| l.root);
        Ok(Image {
            id: record.config,
            manifest_digest,
            reference,
            digests,
            config,
            layers,
            root,
        })
    }

    pub(crate) fn layer_path(&self, diff_id: &Digest) -> LayerPath {
        let path = self.path.join("layers").join(diff_id.hex()).join("diff");
        LayerPath {
            diff_id: *diff_id,
            path,
        }
    }

    /// Manifest, configuration and sizes of one image, found as
    /// [`Store::remove`] finds it.
    ///
    /// # Errors
    /// As [`Store::resolve`], and [`Error::Ambiguous`].
    pub fn inspect(&self, query: &str) -> Result<Inspection> {
        let table = Table::load(self.dir.as_fd())?;
        let (digest, _) = find(&table, query)?;
        let record = table
            .images
            .get(&digest)
            .ok_or_else(|| not_found(&table, query))?;
        let json = |d: &Digest, limit| -> Result<serde_json::Value> {
            let bytes = self.read_blob(d, limit)?;
            let what = d.to_string();
            serde_json::from_slice(&bytes).map_err(|source| Error::Document { what, source })
        };
        Ok(Inspection {
            summary: summary(
                &table,
                &users(table.images.iter()),
                &self.pins()?,
                &digest,
                record,
            ),
            manifest: json(&digest, MAX_MANIFEST_BYTES)?,
            config: json(&record.config, MAX_CONFIG_BYTES)?,
            diff_ids: record.layers.iter().map(|l| l.diff_id).collect(),
        })
    }

    /// Gives an image one more reference (or moves the reference to it).
    ///
    /// # Errors
    /// As [`Store::inspect`]; [`Error::InvalidReference`] for the new name.
    pub fn tag(&self, query: &str, reference: &str) -> Result<()> {
        let name = tag_name(reference)?;
        let _lock = self.lock("lock", FlockOperation::LockExclusive)?;
        let mut table = Table::load(self.dir.as_fd())?;
        let (digest, _) = find(&table, query)?;
        table.references.insert(name, digest);
        table.save(self.dir.as_fd())
    }

    /// Removes a reference; with the last one, or when the image is named by
    /// id, digest or a unique prefix (at least 4 digits), the image itself.
    ///
    /// # Errors
    /// [`Error::InUse`] if the image would go while a container uses it (a
    /// pin of the store, or `in_use`, the ids of images the caller knows to
    /// be used); [`Error::NotFound`]; [`Error::Ambiguous`].
    pub fn remove(&self, query: &str, in_use: &HashSet<Digest>) -> Result<Removed> {
        let removed = {
            let _lock = self.lock("lock", FlockOperation::LockExclusive)?;
            let mut table = Table::load(self.dir.as_fd())?;
            let (digest, name) = find(&table, query)?;
            let references = table.references_of(&digest);
            let mut removed = Removed::default();
            let only_name = references.len() > 1 && references.contains(&name);
            removed.untagged = if only_name { vec![name] } else { references };
            for r in &removed.untagged {
                table.references.remove(r);
            }
            if !only_name && let Some(record) = table.forget(&digest) {
                self.check_unused(&digest, &record, in_use)?;
                removed.deleted.push(record.config);
            }
            table.save(self.dir.as_fd())?;
            removed
        };
        self.sweep()?;
        Ok(removed)
    }

    pub(crate) fn check_unused(
        &self,
        digest: &Digest,
        record: &Record,
        in_use: &HashSet<Digest>,
    ) -> Result<()> {
        let mut by: Vec<String> = self
            .pins()?
            .into_iter()
            .filter(|(_, d)| d == digest)
            .map(|(id, _)| id)
            .collect();
        if by.is_empty() && in_use.contains(&record.config) {
            by.push("a container".into());
        }
        if by.is_empty() {
            return Ok(());
        }
        Err(Error::InUse {
            image: record.config.to_string(),
            by,
        })
    }

    /// A blob, checked against its digest.
    pub(crate) fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        let bytes =
            fsutil::read_file(self.blobs.as_fd(), &digest.hex(), limit)?.ok_or_else(|| {
                Error::Malformed {
                    what: digest.to_string(),
                    reason: "it is missing in the store".into(),
                }
            })?;
        let actual = Digest::of(&bytes);
        if actual != *digest {
            return Err(Error::Digest {
                what: "blob in the store".into(),
                expected: digest.to_string(),
                actual: actual.to_string(),
            });
        }
        Ok(bytes)
    }

    /// Container id and manifest digest of every pin.
    pub(crate) fn pins(&self) -> Result<Vec<(String, Digest)>> {
        // A handle of its own: the offset of a shared one would be shared too.
        let dir = fsutil::open_beneath(self.dir.as_fd(), b"pins", fsutil::DIR_FLAGS)
            .ctx("open directory", "pins")?;
        let mut out = Vec::new();
        for (name, _) in fsutil::list_dir(dir.as_fd(), usize::MAX).ctx("list", "pins")? {
            let Ok(id) = name.into_string() else { continue };
            let text = fsutil::read_file(dir.as_fd(), &id, 128)?.unwrap_or_default();
            if let Some(d) = std::str::from_utf8(&text)
                .ok()
                .and_then(|t| t.trim().parse().ok())
            {
                out.push((id, d));
            }
        }
        out.sort_unstable();
        Ok(out)
    }

    pub(crate) fn lock(&self, name: &str, how: FlockOperation) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.dir, name, flags, Mode::from_raw_mode(0o600))
            .ctx("open", self.path.join(name))?;
        loop {
            match rustix::fs::flock(&fd, how) {
                Err(Errno::INTR) => {}
                other => {
                    other.ctx("lock", self.path.join(name))?;
                    return Ok(File::from(fd));
                }
            }
        }
    }

    /// Keeps everything where it is for as long as the guard lives.
    pub(crate) fn reading(&self) -> Result<Reading<'_>> {
        let gc = self.lock("gc.lock", FlockOperation::LockShared)?;
        Ok(Reading {
            store: self,
            gc: Some(gc),
        })
    }

    /// Whoever may remove things; nobody, while an import runs.
    fn sweeper(&self) -> Result<Option<File>> {
        match self.lock("gc.lock", FlockOperation::NonBlockingLockExclusive) {
            Ok(guard) => Ok(Some(guard)),
            Err(Error::Io { source, .. })
                if source.raw_os_error() == Some(Errno::WOULDBLOCK.raw_os_error()) =>
            {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Removes what the table does not name, unless an import runs: then
    /// whoever keeps it from that does it when it is done. Whether it was done.
    pub(crate) fn sweep(&self) -> Result<bool> {
        let gc = match self.sweeper()? {
            Some(gc) => gc,
            None => {
                self.mark_unswept()?;
                // Perhaps the last of them has just looked for the mark.
                match self.sweeper()? {
                    Some(gc) => gc,
                    None => return Ok(false),
                }
            }
        };
        self.sweep_with(gc)?;
        Ok(true)
    }

    /// Leaves a sweep to whoever is the last to hold `gc.lock`.
    pub(crate) fn mark_unswept(&self) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.dir, UNSWEPT, flags, Mode::from_raw_mode(0o600))
            .map(drop)
            .ctx("create", self.path.join(UNSWEPT))
    }

    fn sweep_with(&self, _gc: File) -> Result<()> {
        match rustix::fs::unlinkat(&self.dir, UNSWEPT, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e).ctx("remove", self.path.join(UNSWEPT)),
        }
        let table = Table::load(self.dir.as_fd())?;
        let (mut blobs, mut layers) = (HashSet::new(), HashSet::new());
        for (digest, record) in &table.images {
            blobs.insert(digest.hex());
            blobs.insert(record.config.hex());
            for l in &record.layers {
                blobs.insert(l.blob.hex());
                layers.insert(l.diff_id.hex());
            }
        }
        let used: HashSet<String> = table.images.keys().map(Digest::hex).collect();
        let nothing = HashSet::new();
        for (name, keep) in [
            ("used", &used),
            ("blobs/sha256", &blobs),
            ("layers", &layers),
            ("tmp", &nothing),
        ] {
            let dir = fsutil::open_beneath(self.dir.as_fd(), name.as_bytes(), fsutil::DIR_FLAGS)
                .ctx("open directory", name)?;
            for (entry, _) in fsutil::list_dir(dir.as_fd(), usize::MAX).ctx("list", name)? {
                if entry.to_str().is_ok_and(|n| keep.contains(n)) {
                    continue;
                }
                tracing::debug!(what = %entry.to_string_lossy(), from = name, "sweep");
                // A layer's description goes last: a half removed layer must
                // not look whole. Moving it to tmp first does that.
                if name == "layers" {
                    let _ = rustix::fs::renameat(&dir, &*entry, &self.tmp, &*entry);
                    fsutil::remove_tree(self.tmp.as_fd(), &entry)?;
                }
                fsutil::remove_tree(dir.as_fd(), &entry)?;
            }
        }
        // After the blobs: of one that has just gone, the next pull may make
        // something.
        self.sweep_partial()
    }

    /// Pins an image for a container; fails if the image is gone.
    pub(crate) fn pin(&self, id: &str, manifest: &Digest) -> Result<()> {
        let _reading = self.reading()?;
        let _lock = self.lock("lock", FlockOperation::LockExclusive)?;
        let table = Table::load(self.dir.as_fd())?;
        if !table.images.contains_key(manifest) {
            return Err(not_found(&table, &manifest.to_string()));
        }
        let tmp = format!("pin-{id}");
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o600);
        let fd = rustix::fs::openat(&self.tmp, &*tmp, flags, mode).ctx("create", &tmp)?;
        std::io::Write::write_all(&mut File::from(fd), manifest.to_string().as_bytes())
            .ctx("write", &tmp)?;
        self.touch(manifest);
        rustix::fs::renameat(&self.tmp, &*tmp, &self.pins, id).ctx("rename into place", id)
    }

    pub(crate) fn unpin(&self, id: &str) -> Result<()> {
        let text = fsutil::read_file(self.pins.as_fd(), id, 128)?.unwrap_or_default();
        let pinned = std::str::from_utf8(&text).ok();
        if let Some(manifest) = pinned.and_then(|t| t.trim().parse().ok()) {
            self.touch(&manifest);
        }
        match rustix::fs::unlinkat(&self.pins, id, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e).ctx("remove", self.path.join("pins").join(id)),
        }
    }

    /// What is known of an unpacked layer.
    ///
    /// # Errors
    /// If the store does not have it.
    pub fn layer_info(&self, diff_id: &Digest) -> Result<LayerInfo> {
        /// `MAX_RECORDED_DEVICES` paths, escaped, and numbers.
        const MAX_LAYER_JSON_BYTES: u64 = 16 << 20;
        let name = format!("{}/layer.json", diff_id.hex());
        let what = format!("layer {diff_id}");
        let bytes = fsutil::read_file(self.layers.as_fd(), &name, MAX_LAYER_JSON_BYTES)?
            .ok_or_else(|| Error::Malformed {
                what: what.clone(),
                reason: "it is missing".into(),
            })?;
        serde_json::from_slice(&bytes).map_err(|source| Error::Document { what, source })
    }

    /// Whether a layer is unpacked.
    pub(crate) fn has_layer(&self, diff_id: &Digest) -> bool {
        let name = format!("{}/layer.json", diff_id.hex());
        rustix::fs::statat(&self.layers, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Size of a blob that is present.
    pub(crate) fn blob_bytes(&self, digest: &Digest) -> Option<u64> {
        let st = rustix::fs::statat(&self.blobs, digest.hex(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
        u64::try_from(st.st_size).ok()
    }

    /// Opens a blob.
    pub(crate) fn open_blob(&self, digest: &Digest) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
        fsutil::open_beneath(self.blobs.as_fd(), digest.hex().as_bytes(), flags)
            .map(File::from)
            .ctx("open blob", digest.to_string())
    }

    /// Brings a blob to the disk.
    pub(crate) fn sync_blob(&self, digest: &Digest) -> Result<()> {
        self.open_blob(digest)?
            .sync_all()
            .ctx("sync", digest.to_string())
    }

    /// Brings a layer's tree to the disk.
    pub(crate) fn sync_layer(&self, diff_id: &Digest) -> Result<()> {
        let name = diff_id.hex();
        let dir = fsutil::open_beneath(self.layers.as_fd(), name.as_bytes(), fsutil::DIR_FLAGS)
            .ctx("open directory", &name)?;
        fsutil::sync_tree(dir.as_fd()).ctx("sync", &name)
    }

    /// Moves a staged entry into place; false if one that is there already
    /// wins.
    pub(crate) fn settle(&self, from: &OwnedFd, to: &OwnedFd, name: &str) -> Result<bool> {
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(from, name, to, name, flags) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST | Errno::NOTEMPTY) => {
                let c = CString::new(name)
                    .map_err(std::io::Error::from)
                    .ctx("remove", name)?;
                fsutil::remove_tree(from.as_fd(), &c)?;
                Ok(false)
            }
            Err(e) => Err(e).ctx("rename into place", name),
        }
    }
}

/// Somebody who reads the store or brings something: nothing goes meanwhile.
#[derive(Debug)]
pub(crate) struct Reading<'s> {
    store: &'s Store,
    /// Only dropping takes it.
    gc: Option<File>,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        drop(self.gc.take());
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        if rustix::fs::statat(&self.store.dir, UNSWEPT, flags).is_err() {
            return;
        }
        if let Err(error) = self.store.sweep() {
            tracing::warn!(%error, "what no image needs stays until the next sweep");
        }
    }
}
