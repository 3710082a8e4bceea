//! What goes: pruning, garbage collection by use and disk pressure, and what
//! the disk holds.
//!
//! Which images go is decided by [`plan`], a pure function.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, Timespec, Timestamps, UTIME_NOW};
use serde::Serialize;

use crate::catalog::{Removed, find, tag_name};
use crate::digest::Digest;
use crate::error::{Context, Result};
use crate::fsutil;
use crate::store::Store;
use crate::table::{Record, Table};

/// Disk use of the whole store, in bytes; what images share is counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct DiskUsage {
    /// Compressed layers, manifests, configurations.
    pub blob_bytes: u64,
    /// Unpacked layers, as the file system counts them (`du`).
    pub layer_bytes: u64,
    /// What was fetched of blobs that no image has yet.
    pub partial_bytes: u64,
    /// Blobs and unpacked layers that no image needs: of images that are gone
    /// or not there yet. A sweep takes them when no import runs.
    pub unswept_bytes: u64,
    /// What imports have unpacked so far.
    pub staging_bytes: u64,
    /// What goes if every image without a container goes.
    pub reclaimable_bytes: u64,
    /// Images.
    pub images: usize,
}

/// When images go by themselves. The defaults are the kubelet's
/// (`imageGCHighThresholdPercent` and its neighbours).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GcPolicy {
    /// Used share of the file system from which images go, in percent; 100
    /// means never for want of room.
    pub high_percent: u8,
    /// Used share at which that ends, in percent.
    pub low_percent: u8,
    /// Younger images, and those used by a container more recently, stay.
    pub min_age: Duration,
    /// Images that were unused for longer go whatever the disk says.
    pub max_age: Option<Duration>,
}

impl Default for GcPolicy {
    fn default() -> Self {
        Self {
            high_percent: 85,
            low_percent: 80,
            min_age: Duration::from_secs(120),
            max_age: None,
        }
    }
}

/// The file system of the store, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FileSystem {
    /// Its size.
    pub total_bytes: u64,
    /// What is free for everybody.
    pub available_bytes: u64,
}

/// An image as [`plan`] sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Its manifest.
    pub manifest: Digest,
    /// When it came or was last used, whichever is later.
    pub last_used: SystemTime,
    /// A container uses it, or it is pinned.
    pub kept: bool,
    /// What it needs on the disk: each part with its bytes.
    pub parts: Vec<(Part, u64)>,
}

/// Something on the disk that images share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    /// A blob, by its digest.
    Blob(Digest),
    /// An unpacked layer, by its diffID.
    Tree(Digest),
}

/// How many images need each part.
pub(crate) fn users<'t>(
    images: impl Iterator<Item = (&'t Digest, &'t Record)>,
) -> HashMap<Part, usize> {
    let mut users = HashMap::new();
    for (part, _) in images.flat_map(|(digest, r)| parts(digest, r)) {
        *users.entry(part).or_default() += 1;
    }
    users
}

/// What a collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// How much of partial blobs went first, in bytes.
    pub partial_bytes: u64,
    /// What is gone.
    pub removed: Removed,
    /// How much more was to go than nobody uses, in bytes.
    pub short_bytes: u64,
}

/// How many bytes have to go for want of room.
#[must_use]
pub(crate) fn wanted(policy: &GcPolicy, disk: FileSystem) -> u64 {
    let used = disk.total_bytes.saturating_sub(disk.available_bytes);
    let share = |percent: u8| {
        let bytes = u128::from(disk.total_bytes) * u128::from(percent) / 100;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    };
    let full = policy.high_percent < 100 && used >= share(policy.high_percent);
    if full && disk.total_bytes > 0 {
        used.saturating_sub(share(policy.low_percent))
    } else {
        0
    }
}

/// Which images go, the least recently used first, and by how many bytes that
/// is less than what was wanted.
#[must_use]
pub(crate) fn plan(
    policy: &GcPolicy,
    mut wanted: u64,
    all: &[Candidate],
    now: SystemTime,
) -> (Vec<Digest>, u64) {
    let mut users: HashMap<Part, usize> = HashMap::new();
    for (part, _) in all.iter().flat_map(|c| &c.parts) {
        *users.entry(*part).or_default() += 1;
    }
    let idle = |c: &Candidate| now.duration_since(c.last_used).unwrap_or_default();
    let mut order: Vec<&Candidate> = all
        .iter()
        .filter(|c| !c.kept && idle(c) >= policy.min_age)
        .collect();
    order.sort_unstable_by_key(|c| (c.last_used, c.manifest));
    let mut out = Vec::new();
    for c in order {
        let too_old = policy.max_age.is_some_and(|max| idle(c) > max);
        if wanted == 0 && !too_old {
            continue;
        }
        for (part, bytes) in &c.parts {
            if let Some(left) = users.get_mut(part) {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    wanted = wanted.saturating_sub(*bytes);
                }
            }
        }
        out.push(c.manifest);
    }
    (out, wanted)
}

/// What an image needs on the disk, each part once.
pub(crate) fn parts(manifest: &Digest, r: &Record) -> Vec<(Part, u64)> {
    let mut seen = HashSet::new();
    let blobs = [(*manifest, r.manifest_bytes), (r.config, r.config_bytes)];
    let blobs = blobs
        .into_iter()
        .chain(r.layers.iter().map(|l| (l.blob, l.blob_bytes)));
    let trees = r.layers.iter().map(|l| (l.diff_id, l.disk_bytes));
    let mut out: Vec<_> = blobs.map(|(d, n)| (Part::Blob(d), n)).collect();
    out.extend(trees.map(|(d, n)| (Part::Tree(d), n)));
    out.retain(|(part, _)| seen.insert(*part));
    out
}

impl Store {
    /// Removes every image that has no tag and no user; with `all`, every one
    /// without a user that is not pinned.
    ///
    /// # Errors
    /// If the store cannot be changed.
    pub fn prune(&self, all: bool, in_use: &HashSet<Digest>) -> Result<Removed> {
        self.drop_images(|table, digest, record, pinned| {
            let named = table.references.values().any(|d| d == digest);
            let kept = if all { table.keeps(digest) } else { named };
            !kept && !pinned.contains(digest) && !in_use.contains(&record.config)
        })
    }

    /// Garbage collection. What no image needs goes first, then, where room is
    /// wanted, partial blobs that nobody fetches, then the images that [`plan`]
    /// says.
    ///
    /// # Errors
    /// If the store cannot be read or changed.
    pub fn collect(&self, policy: &GcPolicy) -> Result<Collected> {
        self.collect_as_of(policy, &|| self.file_system(), SystemTime::now())
    }

    /// As [`Store::collect`], of a file system and at a time.
    pub(crate) fn collect_as_of(
        &self,
        policy: &GcPolicy,
        disk: &dyn Fn() -> Result<FileSystem>,
        now: SystemTime,
    ) -> Result<Collected> {
        // While an import runs, what is gone from the table stays on the disk:
        // no more images go for it.
        let pending = if self.sweep()? {
            0
        } else {
            self.unswept_bytes(&Table::load(self.dir.as_fd())?)?
        };
        let mut wanted = wanted(policy, disk()?).saturating_sub(pending);
        let partial_bytes = match wanted {
            0 => 0,
            wanted => self.shed_partial(wanted)?,
        };
        wanted = wanted.saturating_sub(partial_bytes);
        let (gone, short_bytes) = plan(policy, wanted, &self.candidates()?, now);
        let mut done = Collected {
            partial_bytes,
            short_bytes,
            ..Collected::default()
        };
        if gone.is_empty() {
            return Ok(done);
        }
        let gone: HashSet<Digest> = gone.into_iter().collect();
        done.removed = self.drop_images(|table, digest, _, pinned| {
            gone.contains(digest) && !pinned.contains(digest) && !table.keeps(digest)
        })?;
        tracing::info!(
            images = done.removed.deleted.len(),
            "unused images were removed"
        );
        Ok(done)
    }

    fn candidates(&self) -> Result<Vec<Candidate>> {
        let table = Table::load(self.dir.as_fd())?;
        let in_use: HashSet<Digest> = self.pins()?.into_iter().map(|(_, d)| d).collect();
        let came = |r: &Record| SystemTime::UNIX_EPOCH + Duration::from_secs(r.imported_unix_s);
        let of = |(digest, r): (&Digest, &Record)| Candidate {
            manifest: *digest,
            last_used: self.last_used(digest).map_or(came(r), |at| at.max(came(r))),
            kept: in_use.contains(digest) || table.keeps(digest),
            parts: parts(digest, r),
        };
        Ok(table.images.iter().map(of).collect())
    }

    fn drop_images(
        &self,
        goes: impl Fn(&Table, &Digest, &Record, &HashSet<Digest>) -> bool,
    ) -> Result<Removed> {
        let mut removed = Removed::default();
        {
            let _lock = self.lock("lock", FlockOperation::LockExclusive)?;
            let mut table = Table::load(self.dir.as_fd())?;
            let pinned: HashSet<Digest> = self.pins()?.into_iter().map(|(_, d)| d).collect();
            let gone: Vec<Digest> = table
                .images
                .iter()
                .filter(|(d, r)| goes(&table, d, r, &pinned))
                .map(|(d, _)| *d)
                .collect();
            for digest in &gone {
                let names = table.references_of(digest);
                table.references.retain(|_, d| d != digest);
                table.pinned.retain(|name| !names.contains(name));
                removed.untagged.extend(names);
                removed
                    .deleted
                    .extend(table.forget(digest).map(|r| r.config));
            }
            if !gone.is_empty() {
                table.save(self.dir.as_fd())?;
            }
        }
        self.sweep()?;
        Ok(removed)
    }

    /// Removes an image that no reference names and nobody uses.
    pub(crate) fn remove_unnamed(&self, manifest: &Digest) -> Result<()> {
        {
            let _lock = self.lock("lock", FlockOperation::LockExclusive)?;
            let mut table = Table::load(self.dir.as_fd())?;
            if !table.references_of(manifest).is_empty() {
                return Ok(());
            }
            let Some(record) = table.forget(manifest) else {
                return Ok(());
            };
            self.check_unused(manifest, &record, &HashSet::new())?;
            table.save(self.dir.as_fd())?;
        }
        self.sweep().map(drop)
    }

    /// Pins a reference for garbage collection, or takes its pin away.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`] if the store has no image of that reference.
    pub fn keep(&self, query: &str, pinned: bool) -> Result<()> {
        let _lock = self.lock("lock", FlockOperation::LockExclusive)?;
        let mut table = Table::load(self.dir.as_fd())?;
        let (_, name) = find(&table, query)?;
        if !table.references.contains_key(&name) {
            // Ids have no pins: the reference says why an image is kept.
            return Err(match tag_name(query) {
                Err(e) => e,
                Ok(name) => crate::catalog::not_found(&table, &name),
            });
        }
        if pinned {
            table.pinned.insert(name);
        } else {
            table.pinned.remove(&name);
        }
        table.save(self.dir.as_fd())
    }

    /// Disk use of the store; what images share is counted once.
    ///
    /// # Errors
    /// If the table cannot be read.
    pub fn disk_usage(&self) -> Result<DiskUsage> {
        let table = Table::load(self.dir.as_fd())?;
        let in_use: HashSet<Digest> = self.pins()?.into_iter().map(|(_, d)| d).collect();
        let mut all: HashMap<Part, u64> = HashMap::new();
        let mut needed = HashSet::new();
        for (digest, r) in &table.images {
            let parts = parts(digest, r);
            if in_use.contains(digest) || table.keeps(digest) {
                needed.extend(parts.iter().map(|(part, _)| *part));
            }
            all.extend(parts);
        }
        let sum = |of: &dyn Fn(&Part) -> bool| {
            let hits = all.iter().filter(|(part, _)| of(part));
            hits.map(|(_, bytes)| bytes).sum()
        };
        Ok(DiskUsage {
            blob_bytes: sum(&|part| matches!(part, Part::Blob(_))),
            layer_bytes: sum(&|part| matches!(part, Part::Tree(_))),
            partial_bytes: self.partial_bytes()?,
            unswept_bytes: self.unswept_bytes(&table)?,
            staging_bytes: fsutil::disk_use(self.tmp.as_fd())
                .ctx("walk", self.path().join("tmp"))?,
            reclaimable_bytes: sum(&|part| !needed.contains(part)),
            images: table.images.len(),
        })
    }

    /// Disk use of blobs and layers that no image of the table needs.
    fn unswept_bytes(&self, table: &Table) -> Result<u64> {
        let needed: HashSet<Part> = table
            .images
            .iter()
            .flat_map(|(digest, r)| parts(digest, r))
            .map(|(part, _)| part)
            .collect();
        let mut sum = 0;
        for (name, part) in [
            ("blobs/sha256", Part::Blob as fn(Digest) -> Part),
            ("layers", Part::Tree),
        ] {
            let dir = fsutil::open_beneath(self.dir.as_fd(), name.as_bytes(), fsutil::DIR_FLAGS)
                .ctx("open directory", name)?;
            for (entry, _) in fsutil::list_dir(dir.as_fd(), usize::MAX).ctx("list", name)? {
                let digest = entry.to_str().ok().and_then(Digest::from_hex);
                let bytes = match digest.map(part).filter(|p| !needed.contains(p)) {
                    // What has just gone needs nothing.
                    Some(Part::Blob(digest)) => self.blob_bytes(&digest).unwrap_or(0),
                    Some(Part::Tree(id)) => self.layer_info(&id).map_or(0, |i| i.disk_bytes),
                    None => 0,
                };
                sum += bytes;
            }
        }
        Ok(sum)
    }

    /// The file system that the store lies on.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn file_system(&self) -> Result<FileSystem> {
        let st = rustix::fs::fstatvfs(&self.dir).ctx("statvfs", self.path())?;
        Ok(FileSystem {
            total_bytes: st.f_blocks.saturating_mul(st.f_frsize),
            available_bytes: st.f_bavail.saturating_mul(st.f_frsize),
        })
    }

    /// Notes that an image is used now. Losing the note costs nothing but the
    /// order in which images go.
    pub(crate) fn touch(&self, manifest: &Digest) {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        };
        let times = Timestamps {
            last_access: now,
            last_modification: now,
        };
        let done = rustix::fs::openat(&self.used, manifest.hex(), flags, mode)
            .and_then(|fd| rustix::fs::futimens(fd, &times));
        if let Err(error) = done {
            tracing::debug!(image = %manifest, %error, "the time of use is not noted");
        }
    }

    fn last_used(&self, manifest: &Digest) -> Option<SystemTime> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let st = rustix::fs::statat(&self.used, manifest.hex(), flags).ok()?;
        let seconds = u64::try_from(st.st_mtime).ok()?;
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn candidate(n: u8, last_used: u64, kept: bool, parts: &[(&str, u64)]) -> Candidate {
        Candidate {
            manifest: Digest::of(&[n]),
            last_used: at(last_used),
            kept,
            parts: parts
                .iter()
                .map(|(p, n)| (Part::Tree(Digest::of(p.as_bytes())), *n))
                .collect(),
        }
    }

    #[test]
    fn the_least_recently_used_go_until_there_is_room() {
        let disk = |available_bytes| FileSystem {
            total_bytes: 100 * GIB,
            available_bytes,
        };
        let all = [
            candidate(1, 100, false, &[("base", 3 * GIB), ("a", GIB)]),
            candidate(2, 50, false, &[("base", 3 * GIB), ("b", GIB)]),
            candidate(3, 10, true, &[("c", 50 * GIB)]),
            candidate(4, 400, false, &[("d", GIB)]),
            candidate(5, 990, false, &[("e", 50 * GIB)]),
        ];
        let plan = |available, policy: GcPolicy| {
            plan(&policy, wanted(&policy, disk(available)), &all, at(1000))
        };
        let gone = |available, policy: GcPolicy| plan(available, policy).0;
        let id = |n: u8| Digest::of(&[n]);
        let policy = GcPolicy::default();
        assert_eq!(gone(20 * GIB, policy), [], "80 % are used");
        // 85 % used, 5 GiB too many: the second frees one of its own only, the
        // first then frees what both had.
        assert_eq!(gone(15 * GIB, policy), [id(2), id(1)]);
        // More is wanted than can go: what is used, pinned or young stays.
        // 19 GiB are to go, 6 can.
        assert_eq!(plan(GIB, policy), (vec![id(2), id(1), id(4)], 13 * GIB));
        let high_percent = 100;
        let never = GcPolicy {
            high_percent,
            ..policy
        };
        assert_eq!(gone(GIB, never), []);
        let max_age = Some(Duration::from_secs(920));
        assert_eq!(gone(50 * GIB, GcPolicy { max_age, ..policy }), [id(2)]);
        let none = FileSystem {
            total_bytes: 0,
            available_bytes: 0,
        };
        assert_eq!(wanted(&policy, none), 0);
    }

    #[test]
    fn partial_blobs_go_before_images() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let options = crate::ImportOptions {
            reference: Some("a:1".into()),
            format: crate::Format::Rootfs,
            ..crate::ImportOptions::default()
        };
        let nothing = [0_u8; 1024];
        let source = crate::Source::Reader(&mut &nothing[..]);
        store.import(source, &options).unwrap();
        let partial = dir.path().join("partial").join(Digest::of(b"x").hex());
        std::fs::write(&partial, vec![1; 1 << 20]).unwrap();
        let full = |more: u64| FileSystem {
            total_bytes: 100 << 20,
            available_bytes: (20 << 20) - more,
        };
        let policy = GcPolicy {
            high_percent: 80,
            min_age: Duration::ZERO,
            ..GcPolicy::default()
        };
        let later = SystemTime::now() + Duration::from_secs(60);
        let collect = |disk| store.collect_as_of(&policy, &|| Ok(disk), later).unwrap();
        assert_eq!(collect(full(0)), Collected::default());
        assert!(partial.exists());
        let done = collect(full(1 << 20));
        assert_eq!(done.partial_bytes, 1 << 20);
        assert!(done.removed.deleted.is_empty() && !partial.exists());
        let done = collect(full(1 << 20));
        assert_eq!(done.removed.deleted.len(), 1);
    }
}
