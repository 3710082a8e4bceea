//! An import's own directory below `tmp`, and the commit that ends it.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};

use super::{ImportOptions, ImportedImage, copy_bounded};
use crate::digest::Digest;
use crate::document::Descriptor;
use crate::error::{Context, Error, Result};
use crate::fsutil;
use crate::layer::LayerInfo;
use crate::limits::SYNC_EACH_MAX_FILES;
use crate::partial::Partial;
use crate::pipe::{self, Compression};
use crate::settle::Made;
use crate::store::Store;
use crate::table::{LayerRecord, Record, Table};
use crate::tar::TarReader;
use crate::unpack::Unpacker;

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// An image whose parts are staged or in the store.
pub(crate) struct Staged {
    pub(crate) manifest: Digest,
    pub(crate) manifest_bytes: u64,
    pub(crate) config: Digest,
    pub(crate) config_bytes: u64,
    pub(crate) layers: Vec<LayerRecord>,
    pub(crate) platform: String,
    pub(crate) references: Vec<String>,
    /// `repository@digest` that it was fetched by or pushed to.
    pub(crate) digests: Vec<String>,
}

/// Several threads may take layers in at once.
pub(crate) struct Staging<'s> {
    pub(crate) store: &'s Store,
    pub(crate) name: String,
    dir: OwnedFd,
    blobs: OwnedFd,
    pub(crate) layers: OwnedFd,
    state: Mutex<State>,
    next: AtomicU64,
    /// Decompressed bytes that are left of `max_bytes`, over all layers.
    budget_bytes: AtomicU64,
    max_bytes: u64,
    builtin: Option<String>,
    /// Held shared until the commit is done: nobody sweeps meanwhile.
    _gc: File,
}

#[derive(Default)]
struct State {
    new_layers: HashMap<Digest, LayerInfo>,
    new_blobs: HashSet<Digest>,
    /// Whole blobs that lie among the partial ones, with their sizes.
    fetched: HashMap<Digest, u64>,
    files: usize,
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        if let Ok(name) = CString::new(self.name.as_str())
            && let Err(e) = fsutil::remove_tree(self.store.tmp.as_fd(), &name)
        {
            tracing::warn!(staging = %self.name, error = %e, "an unfinished import stays until the next sweep");
        }
    }
}

impl<'s> Staging<'s> {
    pub(crate) fn new(
        store: &'s Store,
        opts: &ImportOptions,
        builtin: Option<String>,
    ) -> Result<Self> {
        let gc = store.lock("gc.lock", FlockOperation::LockShared)?;
        // The directory's creation time keeps names of reused pids apart.
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("import-{}-{}-{number}", std::process::id(), now.as_nanos());
        let dir = fsutil::make_dir(store.tmp.as_fd(), &name, 0o700)?;
        let blobs = fsutil::make_dir(dir.as_fd(), "blobs", 0o700)?;
        let layers = fsutil::make_dir(dir.as_fd(), "layers", 0o700)?;
        Ok(Self {
            store,
            name,
            dir,
            blobs,
            layers,
            state: Mutex::default(),
            next: AtomicU64::new(0),
            budget_bytes: AtomicU64::new(opts.max_unpacked_bytes),
            max_bytes: opts.max_unpacked_bytes,
            builtin,
            _gc: gc,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fresh_name(&self, prefix: &str) -> String {
        format!("{prefix}{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn fresh_file(&self, dir: &OwnedFd, prefix: &str) -> Result<(File, String)> {
        let name = self.fresh_name(prefix);
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, &*name, flags, Mode::from_raw_mode(0o600))
            .ctx("create", &name)?;
        Ok((File::from(fd), name))
    }

    /// Copies a stream into a file without a name.
    pub(crate) fn spool(&self, from: &mut dyn Read, what: &str) -> Result<File> {
        let (mut file, name) = self.fresh_file(&self.dir, "spool")?;
        rustix::fs::unlinkat(&self.dir, &*name, AtFlags::empty()).ctx("unlink", &name)?;
        copy_bounded(from, &mut file, self.max_bytes, what)?;
        Ok(file)
    }

    /// Stages a document.
    pub(crate) fn document(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if self.store.blob_bytes(&digest).is_none() && self.state().new_blobs.insert(digest) {
            let (mut file, name) = self.fresh_file(&self.blobs, "doc")?;
            file.write_all(bytes).ctx("write", &name)?;
            self.keep_blob(&name, &digest)?;
        }
        Ok(digest)
    }

    fn keep_blob(&self, name: &str, digest: &Digest) -> Result<()> {
        self.state().files += 1;
        rustix::fs::renameat(&self.blobs, name, &self.blobs, digest.hex()).ctx("rename", name)
    }

    fn has_layer(&self, diff_id: &Digest) -> bool {
        self.state().new_layers.contains_key(diff_id) || self.store.has_layer(diff_id)
    }

    /// Takes one layer in: keeps the blob, unpacks it unless its diffID is
    /// there already, checks the digests that were announced.
    pub(crate) fn layer(
        &self,
        what: &str,
        src: impl Read + Send,
        blob: Option<Digest>,
        diff_id: Option<Digest>,
    ) -> Result<(LayerRecord, Compression)> {
        let (copy, copy_name) = self.fresh_file(&self.blobs, "blob")?;
        let (got, diff) = self.unpack(what, src, Some(&copy), blob, diff_id)?;
        let known = self.store.blob_bytes(&got.digest).is_some();
        if known || !self.state().new_blobs.insert(got.digest) {
            rustix::fs::unlinkat(&self.blobs, &*copy_name, AtFlags::empty())
                .ctx("unlink", &copy_name)?;
        } else {
            self.keep_blob(&copy_name, &got.digest)?;
        }
        let record = self.record(diff, got.digest, got.bytes)?;
        Ok((record, got.compression))
    }

    /// Takes one layer in whose blob is kept at its place among the partial
    /// ones: what is there is read from there, the rest from `open`.
    pub(crate) fn fetch(
        &self,
        what: &str,
        blob: &Descriptor,
        diff_id: &Digest,
        open: &dyn Fn(u64) -> std::io::Result<Box<dyn Read + Send>>,
    ) -> Result<LayerRecord> {
        let mut part = Partial::lock(self.store, &blob.digest)?;
        // Whoever held the lock may have brought it.
        if let Some(known) = self.known_layer(&blob.digest, diff_id)? {
            part.discard()?;
            return Ok(known);
        }
        let have = part.trim(blob.size)?;
        let first = self.fetch_from(what, blob, diff_id, &mut part, have, open);
        let record = match first {
            // What an earlier pull left, perhaps torn by a power cut.
            Err(ref e) if have > 0 && !resumable(e) => {
                tracing::info!(
                    layer = what,
                    "what was kept of the layer is not sound; it is fetched anew"
                );
                part.trim(0)?;
                self.fetch_from(what, blob, diff_id, &mut part, 0, open)
            }
            other => other,
        };
        match &record {
            Ok(_) => {
                let mut state = self.state();
                state.files += 1;
                state.fetched.insert(blob.digest, blob.size);
            }
            // The next pull goes on from here.
            Err(e) if resumable(e) => {}
            Err(_) => part.discard()?,
        }
        record
    }

    fn fetch_from(
        &self,
        what: &str,
        blob: &Descriptor,
        diff_id: &Digest,
        part: &mut Partial,
        have: u64,
        open: &dyn Fn(u64) -> std::io::Result<Box<dyn Read + Send>>,
    ) -> Result<LayerRecord> {
        let read = |source| Error::Read {
            what: format!("layer {what}"),
            source,
        };
        let rest = if have < blob.size {
            Some(open(have).map_err(read)?)
        } else {
            None
        };
        let src = part.reader(have, blob.size, rest).map_err(read)?;
        let (got, diff) = self.unpack(what, src, None, Some(blob.digest), Some(*diff_id))?;
        self.record(diff, got.digest, got.bytes)
    }

    /// Unpacks a layer of the store once more; the name of the new tree's
    /// directory below `layers`.
    pub(crate) fn unpack_again(&self, layer: &LayerRecord) -> Result<String> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
        let blob =
            fsutil::open_beneath(self.store.blobs.as_fd(), layer.blob.hex().as_bytes(), flags)
                .ctx("open blob", layer.blob.to_string())?;
        let what = layer.blob.to_string();
        let name = self.fresh_name("layer");
        let (got, diff, dir, info) = self.unpack_new(&what, &name, File::from(blob), None)?;
        check(&what, Some(&layer.blob), &got.digest)?;
        check(&what, Some(&layer.diff_id), &diff)?;
        describe(&dir, &info)?;
        Ok(name)
    }

    /// Sends a blob through the pipe; the tree is kept if it is new.
    fn unpack(
        &self,
        what: &str,
        src: impl Read + Send,
        copy: Option<&File>,
        blob: Option<Digest>,
        diff_id: Option<Digest>,
    ) -> Result<(pipe::Blob, Digest)> {
        let have = diff_id.is_some_and(|d| self.has_layer(&d));
        let budget = &self.budget_bytes;
        let (got, diff, fresh) = if have {
            let (got, diff, ()) = pipe::run(what, src, copy, budget, |_| Ok(()))?;
            (got, diff, None)
        } else {
            let name = self.fresh_name("layer");
            let (got, diff, dir, info) = self.unpack_new(what, &name, src, copy)?;
            (got, diff, Some((name, dir, info)))
        };
        check(what, blob.as_ref(), &got.digest)?;
        check(what, diff_id.as_ref(), &diff)?;
        if let Some((name, dir, info)) = fresh {
            // Without an announced diffID only now is it known to be there.
            if !self.has_layer(&diff) {
                self.keep_layer(&name, &dir, diff, info)?;
            }
        }
        Ok((got, diff))
    }

    fn unpack_new(
        &self,
        what: &str,
        name: &str,
        src: impl Read + Send,
        copy: Option<&File>,
    ) -> Result<(pipe::Blob, Digest, OwnedFd, LayerInfo)> {
        let dir = fsutil::make_dir(self.layers.as_fd(), name, 0o700)?;
        let root = fsutil::make_dir(dir.as_fd(), "diff", 0o755)?;
        fsutil::make_dir(dir.as_fd(), "empty", 0o755)?;
        let (got, diff, info) = pipe::run(what, src, copy, &self.budget_bytes, |input| {
            Unpacker::new(root.as_fd(), what, self.max_bytes).run(&mut TarReader::new(input))
        })?;
        Ok((got, diff, dir, info))
    }

    /// A layer of which blob and tree are there already, if so.
    pub(crate) fn known_layer(
        &self,
        blob: &Digest,
        diff_id: &Digest,
    ) -> Result<Option<LayerRecord>> {
        let fetched = self.state().fetched.get(blob).copied();
        let staged = self.state().new_blobs.contains(blob);
        if !self.has_layer(diff_id) {
            return Ok(None);
        }
        let bytes = if staged {
            let st = rustix::fs::statat(&self.blobs, blob.hex(), AtFlags::SYMLINK_NOFOLLOW);
            st.ok().and_then(|st| u64::try_from(st.st_size).ok())
        } else {
            fetched
        };
        match bytes.or_else(|| self.store.blob_bytes(blob)) {
            Some(bytes) => self.record(*diff_id, *blob, bytes).map(Some),
            None => Ok(None),
        }
    }

    fn record(&self, diff_id: Digest, blob: Digest, blob_bytes: u64) -> Result<LayerRecord> {
        let staged = self.state().new_layers.get(&diff_id).cloned();
        let info = match staged {
            Some(info) => info,
            None => self.store.layer_info(&diff_id)?,
        };
        let LayerInfo {
            disk_bytes,
            root_opaque,
            root,
            ..
        } = info;
        Ok(LayerRecord {
            diff_id,
            blob,
            blob_bytes,
            disk_bytes,
            root_opaque,
            root,
        })
    }

    fn keep_layer(&self, name: &str, dir: &OwnedFd, diff: Digest, info: LayerInfo) -> Result<()> {
        describe(dir, &info)?;
        if info.dropped_xattrs > 0 {
            tracing::debug!(layer = %diff, dropped = info.dropped_xattrs, "attributes left out");
        }
        let mut state = self.state();
        // Another thread may have unpacked the same from another blob.
        if !state.new_layers.contains_key(&diff) {
            state.files += 4 + usize::try_from(info.entries).unwrap_or(usize::MAX / 2);
            rustix::fs::renameat(&self.layers, name, &self.layers, diff.hex())
                .ctx("rename", name)?;
            state.new_layers.insert(diff, info);
        }
        Ok(())
    }

    /// Makes the images part of the store.
    pub(crate) fn commit(self, found: Vec<Staged>) -> Result<Vec<ImportedImage>> {
        let store = self.store;
        let state = std::mem::take(&mut *self.state());
        // The trees of a large image are left to the kernel: until they are
        // known to be on the disk, the table says in which boot they were made.
        let made = if state.files <= SYNC_EACH_MAX_FILES {
            fsutil::sync_tree(self.layers.as_fd()).ctx("sync", store.path())?;
            None
        } else {
            Some(Made::now(&self.name)?)
        };
        fsutil::sync_files(self.blobs.as_fd()).ctx("sync", store.path())?;
        for blob in state.fetched.keys() {
            Partial::sync(store, blob)?;
        }
        let _lock = store.lock("lock", FlockOperation::LockExclusive)?;
        for digest in state.fetched.keys() {
            Partial::settle(store, digest)?;
        }
        for digest in &state.new_blobs {
            store.settle(&self.blobs, &store.blobs, &digest.hex())?;
        }
        for digest in state.new_layers.keys() {
            store.settle(&self.layers, &store.layers, &digest.hex())?;
        }
        rustix::fs::fsync(&store.blobs).ctx("sync", "blobs")?;
        if made.is_none() {
            rustix::fs::fsync(&store.layers).ctx("sync", "layers")?;
        }
        let mut table = Table::load(store.dir.as_fd())?;
        if let Some(made) = made {
            let fresh = state.new_layers.keys();
            table.unsynced.extend(fresh.map(|d| (*d, made.clone())));
        }
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let mut out = Vec::new();
        for image in found {
            let fresh = |l: &&LayerRecord| state.new_layers.contains_key(&l.diff_id);
            out.push(ImportedImage {
                id: image.config,
                manifest_digest: image.manifest,
                references: image.references.clone(),
                platform: image.platform.clone(),
                layers: image.layers.len(),
                new_layers: image.layers.iter().filter(fresh).count(),
            });
            for name in image.references {
                table.references.insert(name, image.manifest);
            }
            for name in image.digests {
                table.digests.insert(name, image.manifest);
            }
            table.images.insert(
                image.manifest,
                Record {
                    config: image.config,
                    config_bytes: image.config_bytes,
                    manifest_bytes: image.manifest_bytes,
                    layers: image.layers,
                    platform: image.platform,
                    imported_unix_s: now.as_secs(),
                    builtin: self.builtin.clone(),
                },
            );
        }
        table.save(store.dir.as_fd())?;
        Ok(out)
    }
}

/// Writes what is known of a layer beside its tree.
fn describe(dir: &OwnedFd, info: &LayerInfo) -> Result<()> {
    let text = serde_json::to_vec(info).map_err(|source| Error::Document {
        what: "layer.json".into(),
        source,
    })?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, "layer.json", flags, Mode::from_raw_mode(0o600))
        .ctx("create", "layer.json")?;
    File::from(fd).write_all(&text).ctx("write", "layer.json")
}

/// Whether an error is of the way here and not of what came.
fn resumable(e: &Error) -> bool {
    use std::io::ErrorKind;
    let Error::Read { source, .. } = e else {
        return false;
    };
    matches!(
        source.kind(),
        ErrorKind::TimedOut
            | ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::NotConnected
            | ErrorKind::BrokenPipe
            | ErrorKind::Interrupted
            | ErrorKind::UnexpectedEof
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
    )
}

fn check(what: &str, expected: Option<&Digest>, actual: &Digest) -> Result<()> {
    match expected {
        Some(e) if e != actual => Err(Error::Digest {
            what: what.to_string(),
            expected: e.to_string(),
            actual: actual.to_string(),
        }),
        _ => Ok(()),
    }
}
