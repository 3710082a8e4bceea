//! The append-only log: one frame and one fsync per batch.

use std::io;
use std::sync::Arc;

use crate::disk::{Disk, DiskFile};
use crate::format::{
    FrameBuilder, FrameKind, HEADER_BYTES, Header, Id, Kind, RecordBytes, UNFINISHED,
};
use crate::model::Revision;

/// Why a batch is not durable.
#[derive(Debug)]
pub(crate) enum LogError {
    /// No space; the log is as before.
    Full(io::Error),
    /// What is on the disk is unknown: no further write may follow.
    Failed(io::Error),
}

/// Why there is no new file.
#[derive(Debug)]
pub(crate) enum CreateError {
    /// It has no name yet, the log goes on in the old one.
    Before(io::Error),
    /// It may have its name.
    Named(io::Error),
}

#[derive(Debug)]
pub(crate) struct Log {
    disk: Arc<dyn Disk>,
    file: Box<dyn DiskFile>,
    id: Id,
    /// Behind the last durable frame.
    end: u64,
    /// Up to here the file has space.
    reserved: u64,
    chain: u32,
    next: Revision,
    /// Bytes of frames that the next snapshot makes superfluous.
    unsnapshotted: u64,
    /// Space is reserved in such steps, so that most fsyncs change no length and no extents.
    step: u64,
    frame: FrameBuilder,
}

pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

impl Log {
    /// Begins a file: it gets its name when its header is durable, so a log without a whole
    /// header is damage, never a crash.
    pub(crate) fn create(
        disk: Arc<dyn Disk>,
        header: &Header,
        step: u64,
    ) -> Result<Self, CreateError> {
        let name = Kind::Log.name(header.revision);
        let unfinished = format!("{name}{UNFINISHED}");
        let begin = || {
            let mut file = disk.create(&unfinished)?;
            file.write_at(0, &header.encode(Kind::Log))?;
            file.sync()?;
            Ok(file)
        };
        let file = begin().map_err(CreateError::Before)?;
        disk.rename(&unfinished, &name)
            .and_then(|()| disk.sync_names())
            .map_err(CreateError::Named)?;
        Ok(Self::resume(disk, file, header, HEADER_BYTES as u64, step))
    }

    /// Goes on at the end of a file; `header` tells the next frame's revision and chain.
    pub(crate) fn resume(
        disk: Arc<dyn Disk>,
        file: Box<dyn DiskFile>,
        header: &Header,
        end: u64,
        step: u64,
    ) -> Self {
        Self {
            disk,
            file,
            id: header.id,
            end,
            reserved: end,
            chain: header.chain,
            next: header.revision,
            unsnapshotted: 0,
            step,
            frame: FrameBuilder::new(),
        }
    }

    /// Where the log stands, as the header of a file that begins here.
    pub(crate) fn position(&self) -> Header {
        Header {
            id: self.id,
            revision: self.next,
            chain: self.chain,
        }
    }

    pub(crate) fn replayed(mut self, bytes: u64) -> Self {
        self.unsnapshotted = bytes;
        self
    }

    pub(crate) fn unsnapshotted_bytes(&self) -> u64 {
        self.unsnapshotted
    }

    /// Adds a record to the batch and returns its revision.
    pub(crate) fn push(&mut self, record: &RecordBytes<'_>) -> Revision {
        let revision = self.next + u64::from(self.frame.count());
        self.frame.push(record);
        revision
    }

    /// Makes the batch durable, or takes it back.
    pub(crate) fn commit(&mut self) -> Result<(), LogError> {
        let result = self.write_frame();
        self.frame.clear();
        result
    }

    fn write_frame(&mut self) -> Result<(), LogError> {
        let count = u64::from(self.frame.count());
        let (bytes, chain) = self
            .frame
            .finish(FrameKind::Records, self.next, &self.id, self.chain);
        let end = self.end + bytes.len() as u64;
        if end > self.reserved {
            self.reserved = reserve(&mut *self.file, self.reserved, end, self.step)?;
        }
        match self.file.write_at(self.end, bytes) {
            Ok(()) => {}
            Err(error) if is_full(&error) => {
                self.reserved = self.end;
                self.file.truncate(self.end).map_err(LogError::Failed)?;
                self.file.sync().map_err(LogError::Failed)?;
                return Err(LogError::Full(error));
            }
            Err(error) => return Err(LogError::Failed(error)),
        }
        self.file.sync().map_err(LogError::Failed)?;
        self.unsnapshotted += bytes.len() as u64;
        self.end = end;
        self.chain = chain;
        self.next += count;
        Ok(())
    }

    /// Goes on in a new file, for a snapshot of all before it.
    pub(crate) fn rotate(&mut self) -> Result<(), CreateError> {
        *self = Self::create(Arc::clone(&self.disk), &self.position(), self.step)?;
        Ok(())
    }
}

/// Reserves a step, or on a nearly full disk just what is needed.
fn reserve(file: &mut dyn DiskFile, from: u64, needed: u64, step: u64) -> Result<u64, LogError> {
    let step = needed.next_multiple_of(step.max(1));
    match file.reserve(from, step) {
        Ok(()) => return Ok(step),
        Err(error) if is_full(&error) => {}
        Err(error) => return Err(LogError::Failed(error)),
    }
    match file.reserve(from, needed) {
        Ok(()) => Ok(needed),
        Err(error) if is_full(&error) => Err(LogError::Full(error)),
        Err(error) => Err(LogError::Failed(error)),
    }
}
