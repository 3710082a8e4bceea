//! Snapshots: all keys at one revision, so that the log before it can go.
//!
//! A job reads the index at a pinned revision while writes go on, a thousand keys at a time, and
//! its file gets its name when it is durable. A crash at any point leaves the former snapshot and
//! all logs since.

use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::SCAN_KEYS_PER_LOCK;
use crate::commit::Shared;
use crate::disk::{Disk, DiskFile};
use crate::format::{FrameBuilder, FrameKind, HEADER_BYTES, Header, Kind, RecordBytes, UNFINISHED};
use crate::index::Version;
use crate::model::{Key, Revision};

/// A frame of a snapshot ends after so many bytes.
const BLOCK_BYTES: usize = 1 << 20;

/// The file is synced in such steps, so that the log's fsyncs never wait for all of it.
const SYNC_STEP_BYTES: u64 = 8 << 20;

/// A snapshot being written.
#[derive(Debug)]
pub(crate) struct SnapshotJob {
    disk: Arc<dyn Disk>,
    shared: Arc<Shared>,
    /// Shows this revision.
    header: Header,
    file: Box<dyn DiskFile>,
    unfinished: String,
    named: bool,
    offset: u64,
    synced: u64,
    chain: u32,
    frame: FrameBuilder,
    entries: u64,
    written: u64,
    from: Option<Key>,
}

impl SnapshotJob {
    /// Begins a snapshot of the newest revision. `position` is where the log goes on after it.
    pub(crate) fn begin(
        disk: Arc<dyn Disk>,
        shared: Arc<Shared>,
        position: &Header,
    ) -> io::Result<Self> {
        let header = Header {
            revision: position.revision - 1,
            ..*position
        };
        let unfinished = format!("{}{UNFINISHED}", Kind::Snapshot.name(header.revision));
        let mut file = disk.create(&unfinished)?;
        file.write_at(0, &header.encode(Kind::Snapshot))?;
        shared.snapshotting.store(true, Ordering::Release);
        shared.index_mut().pin(header.revision);
        Ok(Self {
            disk,
            shared,
            header,
            file,
            unfinished,
            named: false,
            offset: HEADER_BYTES as u64,
            synced: 0,
            chain: header.chain,
            frame: FrameBuilder::new(),
            entries: 0,
            written: 0,
            from: None,
        })
    }

    /// Writes some keys. Returns whether more are left.
    pub(crate) fn step(&mut self) -> io::Result<bool> {
        let mut part: Vec<(Key, Version)> = Vec::new();
        let next = {
            let from = self.from.as_deref();
            self.shared.index().scan(
                b"",
                from.map_or(Bound::Unbounded, Bound::Included),
                self.header.revision,
                SCAN_KEYS_PER_LOCK,
                |key, version| part.push((key.clone(), version.clone())),
            )
        };
        for (key, version) in &part {
            self.frame.push(&RecordBytes {
                key,
                value: version.value.as_deref(),
                expires_unix_s: version.expires_unix_s,
                revision: Some(version.revision),
            });
            self.entries += 1;
            if self.frame.len() >= BLOCK_BYTES {
                self.write(FrameKind::Records)?;
            }
        }
        let more = next.is_some();
        self.from = next;
        Ok(more)
    }

    fn write(&mut self, kind: FrameKind) -> io::Result<()> {
        let (bytes, chain) = self
            .frame
            .finish(kind, self.written, &self.header.id, self.chain);
        self.file.write_at(self.offset, bytes)?;
        self.offset += bytes.len() as u64;
        self.chain = chain;
        self.written = self.entries;
        self.frame.clear();
        if self.offset - self.synced >= SYNC_STEP_BYTES {
            self.file.sync()?;
            self.synced = self.offset;
        }
        Ok(())
    }

    /// Makes the snapshot durable and removes what it replaces.
    pub(crate) fn finish(mut self) -> io::Result<Revision> {
        if self.frame.count() > 0 {
            self.write(FrameKind::Records)?;
        }
        self.write(FrameKind::End)?;
        self.file.sync()?;
        let name = Kind::Snapshot.name(self.header.revision);
        self.disk.rename(&self.unfinished, &name)?;
        self.named = true;
        self.disk.sync_names()?;
        remove_before(&*self.disk, self.header.revision)?;
        Ok(self.header.revision)
    }

    /// All of it, unless the store closes.
    pub(crate) fn run(mut self) -> io::Result<Option<Revision>> {
        while self.step()? {
            if self.shared.closing.load(Ordering::Acquire) {
                return Ok(None);
            }
        }
        self.finish().map(Some)
    }
}

impl Drop for SnapshotJob {
    fn drop(&mut self) {
        if !self.named
            && let Err(error) = self.disk.remove(&self.unfinished)
        {
            tracing::debug!(file = self.unfinished, %error, "unfinished snapshot stays until the next start");
        }
        self.shared.index_mut().unpin();
        self.shared.snapshotting.store(false, Ordering::Release);
    }
}

/// Removes the snapshots and logs that a durable snapshot of `revision` replaces.
pub(crate) fn remove_before(disk: &dyn Disk, revision: Revision) -> io::Result<()> {
    for name in disk.list()? {
        let log = Kind::Log
            .parse(&name)
            .is_some_and(|first| first <= revision);
        let old = Kind::Snapshot
            .parse(&name)
            .is_some_and(|shown| shown < revision);
        if log || old {
            disk.remove(&name)?;
        }
    }
    Ok(())
}
