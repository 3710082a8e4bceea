//! An import's own directory below `tmp`, and the commit that ends it.

use std::collections::hash_map::Entry;
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
use crate::ingest::BlobSource;
use crate::layer::LayerInfo;
use crate::limits::SYNC_EACH_MAX_FILES;
use crate::partial::Partial;
use crate::pipe::{self, Budget, Compression};
use crate::settle::Made;
use crate::store::{Reading, Store};
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
    /// What is left of `max_bytes`, over all layers.
    budget: Budget,
    max_bytes: u64,
    builtin: Option<String>,
    /// Held until the commit is done: nobody sweeps meanwhile.
    _reading: Reading<'s>,
}

#[derive(Default)]
struct State {
    new_layers: HashMap<Digest, LayerInfo>,
    new_blobs: HashSet<Digest>,
    /// Layers of `new_layers` that are at their place in the store already,
    /// and blobs: others that want the same take them from there.
    published: HashSet<Digest>,
    fetched: HashSet<Digest>,
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        if let Ok(name) = CString::new(self.name.as_str())
            && let Err(e) = fsutil::remove_tree(self.store.tmp.as_fd(), &name)
        {
            tracing::warn!(staging = %self.name, error = %e, "an unfinished import stays until the next sweep");
        }
        // What was published and has no image goes when nobody is left who may
        // want it.
        if !self.state().published.is_empty() || !self.state().fetched.is_empty() {
            let swept = self.store.mark_unswept();
            if let Err(error) = swept {
                tracing::warn!(%error, "layers without an image stay until the next sweep");
            }
        }
    }
}

impl<'s> Staging<'s> {
    pub(crate) fn new(
        store: &'s Store,
        opts: &ImportOptions,
        builtin: Option<String>,
    ) -> Result<Self> {
        let reading = store.reading()?;
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
            budget: Budget::new(opts.max_unpacked_bytes),
            max_bytes: opts.max_unpacked_bytes,
            builtin,
            _reading: reading,
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
    /// ones: what is there is read from there, the rest from `source`. Nothing,
    /// if another brought it meanwhile.
    ///
    /// Blob and tree get their places in the store before the lock goes, so of
    /// several pulls that want them one fetches and unpacks, and the others
    /// need not wait for its other layers. No table names them yet: a sweep
    /// takes them if no pull ends well.
    pub(crate) fn fetch(
        &self,
        what: &str,
        blob: &Descriptor,
        diff_id: &Digest,
        source: &dyn BlobSource,
    ) -> Result<Option<LayerRecord>> {
        let over = || source.is_over();
        let Some(mut part) = Partial::lock(self.store, &blob.digest, &over)? else {
            return Err(Error::Read {
                what: format!("layer {what}"),
                source: std::io::Error::new(std::io::ErrorKind::Interrupted, "it was given up"),
            });
        };
        // Whoever held the lock may have brought it.
        if self.known_layer(&blob.digest, diff_id)?.is_some() {
            if !part.is_published()? {
                part.discard()?;
            }
            return Ok(None);
        }
        let have = part.begin(blob.size)?;
        let have = have.min(blob.size.saturating_sub(source.least_bytes()));
        let first = self.fetch_from(what, blob, diff_id, &mut part, have, source);
        // Where all of it is there, nothing is left to go on with.
        let cut = |e: &Error, part: &Partial<'_>| Ok(resumable(e) && part.bytes()? < blob.size);
        let record = match first {
            // What an earlier pull left, perhaps torn by a power cut.
            Err(ref e) if have > 0 && e.is_of_content() && !cut(e, &part)? => {
                tracing::info!(
                    layer = what,
                    "what was kept of the layer is not sound; it is fetched anew"
                );
                part.begin_anew()?;
                self.fetch_from(what, blob, diff_id, &mut part, 0, source)
            }
            other => other,
        };
        match &record {
            Ok(_) => {
                part.publish()?;
                let mut state = self.state();
                if state.new_layers.contains_key(diff_id) && state.published.insert(*diff_id) {
                    let store = self.store;
                    store.settle(&self.layers, &store.layers, &diff_id.hex())?;
                }
                state.fetched.insert(blob.digest);
            }
            // The next pull goes on from here; a full disk gets room first.
            Err(e) if cut(e, &part)? || !e.is_of_content() => {}
            Err(_) => part.discard()?,
        }
        record.map(Some)
    }

    fn fetch_from(
        &self,
        what: &str,
        blob: &Descriptor,
        diff_id: &Digest,
        part: &mut Partial,
        have: u64,
        source: &dyn BlobSource,
    ) -> Result<LayerRecord> {
        let read = |source| Error::Read {
            what: format!("layer {what}"),
            source,
        };
        let rest = if have < blob.size {
            Some(source.open(have).map_err(read)?)
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
        let blob = self.store.open_blob(&layer.blob)?;
        let what = layer.blob.to_string();
        let name = self.fresh_name("layer");
        let (got, diff, dir, info) = self.unpack_new(&what, &name, blob, None)?;
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
        let budget = &self.budget;
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
        let (got, diff, info) = pipe::run(what, src, copy, &self.budget, |input| {
            Unpacker::new(root.as_fd(), what, &self.budget).run(&mut TarReader::new(input))
        })?;
        Ok((got, diff, dir, info))
    }

    /// A layer of which blob and tree are there already, if so.
    pub(crate) fn known_layer(
        &self,
        blob: &Digest,
        diff_id: &Digest,
    ) -> Result<Option<LayerRecord>> {
        let staged = self.state().new_blobs.contains(blob);
        if !self.has_layer(diff_id) {
            return Ok(None);
        }
        let bytes = if staged {
            let st = rustix::fs::statat(&self.blobs, blob.hex(), AtFlags::SYMLINK_NOFOLLOW);
            st.ok().and_then(|st| u64::try_from(st.st_size).ok())
        } else {
            self.store.blob_bytes(blob)
        };
        match bytes {
            Some(bytes) => self.record(*diff_id, *blob, bytes).map(Some),
            None => Ok(None),
        }
    }

    /// A blob of a layer that is known.
    pub(crate) fn open_blob(&self, digest: &Digest) -> Result<File> {
        if !self.state().new_blobs.contains(digest) {
            return self.store.open_blob(digest);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
        fsutil::open_beneath(self.blobs.as_fd(), digest.hex().as_bytes(), flags)
            .map(File::from)
            .ctx("open blob", digest.to_string())
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
        if let Entry::Vacant(place) = state.new_layers.entry(diff) {
            rustix::fs::renameat(&self.layers, name, &self.layers, diff.hex())
                .ctx("rename", name)?;
            place.insert(info);
        }
        Ok(())
    }

    /// Makes the images part of the store.
    pub(crate) fn commit(self, found: Vec<Staged>) -> Result<Vec<ImportedImage>> {
        let state = std::mem::take(&mut *self.state());
        let done = self.commit_of(&state, found);
        if done.is_err() {
            // So that what was published is swept.
            *self.state() = state;
        }
        done
    }

    fn commit_of(&self, state: &State, found: Vec<Staged>) -> Result<Vec<ImportedImage>> {
        let store = self.store;
        let fresh = self.fresh(state, &found)?;
        // The trees of a large image are left to the kernel: until they are
        // known to be on the disk, the table says in which boot they were made.
        let made = if fresh.files <= SYNC_EACH_MAX_FILES {
            fsutil::sync_tree(self.layers.as_fd()).ctx("sync", store.path())?;
            None
        } else {
            Some(Made::now(&self.name)?)
        };
        fsutil::sync_files(self.blobs.as_fd()).ctx("sync", store.path())?;
        for digest in fresh.blobs.difference(&state.new_blobs) {
            store.sync_blob(digest)?;
        }
        let synced = |digest: &Digest| {
            let staged = state.new_layers.contains_key(digest);
            made.is_some() || staged && !state.published.contains(digest)
        };
        for digest in fresh.layers.iter().filter(|d| !synced(d)) {
            store.sync_layer(digest)?;
        }
        let _lock = store.lock("lock", FlockOperation::LockExclusive)?;
        for digest in &state.new_blobs {
            // One that is there already is perhaps of a pull that goes on.
            if !store.settle(&self.blobs, &store.blobs, &digest.hex())? {
                store.sync_blob(digest)?;
            }
        }
        for digest in state.new_layers.keys() {
            if !state.published.contains(digest)
                && !store.settle(&self.layers, &store.layers, &digest.hex())?
                && made.is_none()
            {
                store.sync_layer(digest)?;
            }
        }
        rustix::fs::fsync(&store.blobs).ctx("sync", "blobs")?;
        if made.is_none() {
            rustix::fs::fsync(&store.layers).ctx("sync", "layers")?;
        }
        let mut table = Table::load(store.dir.as_fd())?;
        if let Some(made) = made {
            let fresh = fresh.layers.iter();
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
        for digest in &state.fetched {
            // The blob has its place; what stays here goes with a sweep.
            if let Err(error) = Partial::settled(store, digest) {
                tracing::debug!(blob = %digest, %error, "a fetched blob keeps its first name");
            }
        }
        Ok(out)
    }

    /// What the images need that the table does not name yet: whoever brought
    /// it, it may not be on the disk.
    fn fresh(&self, state: &State, found: &[Staged]) -> Result<Fresh> {
        let table = Table::load(self.store.dir.as_fd())?;
        let named = |of: fn(&LayerRecord) -> Digest| -> HashSet<Digest> {
            let all = table.images.values().flat_map(|r| &r.layers);
            all.map(of).collect()
        };
        let (trees, blobs) = (named(|l| l.diff_id), named(|l| l.blob));
        let mut fresh = Fresh::default();
        for layer in found.iter().flat_map(|image| &image.layers) {
            if !blobs.contains(&layer.blob) && fresh.blobs.insert(layer.blob) {
                fresh.files += 1;
            }
            if trees.contains(&layer.diff_id) || !fresh.layers.insert(layer.diff_id) {
                continue;
            }
            let entries = match state.new_layers.get(&layer.diff_id) {
                Some(info) => info.entries,
                None => self.store.layer_info(&layer.diff_id)?.entries,
            };
            fresh.files += 4 + usize::try_from(entries).unwrap_or(usize::MAX / 2);
        }
        Ok(fresh)
    }
}

/// See [`Staging::fresh`].
#[derive(Default)]
struct Fresh {
    layers: HashSet<Digest>,
    blobs: HashSet<Digest>,
    /// Files that a sync of each would wait for.
    files: usize,
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
