//! Opening: the newest snapshot, the logs after it, the torn tail.

use std::io::{self, Read};
use std::sync::Arc;

use crate::FIRST_REVISION;
use crate::disk::{Disk, DiskFile};
use crate::embedded::Options;
use crate::error::OpenError;
use crate::format::{
    Found, FrameKind, FrameReader, HEADER_BYTES, Header, HeaderError, Id, Kind, UNFINISHED,
    VERSION, first_chain, later_frame, read_whole,
};
use crate::index::{Change, Index, Version};
use crate::log::{CreateError, Log};
use crate::model::{Key, Revision, Value};
use crate::snapshot::remove_before;

fn failed(operation: &'static str, file: &str) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io {
        operation,
        file: file.to_owned(),
        source,
    }
}

fn corrupt(file: &str, offset: u64, what: &'static str) -> OpenError {
    OpenError::Corrupt {
        file: file.to_owned(),
        offset,
        what,
    }
}

/// Reads everything, and makes what was found durable before anyone sees it.
pub(crate) fn open(disk: &Arc<dyn Disk>, options: &Options) -> Result<(Index, Log), OpenError> {
    let names = disk.list().map_err(failed("list the folder", ""))?;
    for name in names.iter().filter(|name| name.ends_with(UNFINISHED)) {
        disk.remove(name).map_err(failed("remove", name))?;
    }
    let newest = |kind: Kind| names.iter().filter_map(move |name| kind.parse(name));
    let snapshot = newest(Kind::Snapshot).max();
    let shown = snapshot.unwrap_or(FIRST_REVISION);
    let mut logs: Vec<Revision> = newest(Kind::Log).filter(|first| *first > shown).collect();
    logs.sort_unstable();

    let mut recovery = match snapshot {
        Some(revision) => {
            let (index, header) = read_snapshot(&**disk, revision)?;
            Recovery::new(index, header)
        }
        None => match logs.first() {
            None => return create(disk, options.reserve_bytes),
            Some(first) => {
                let name = Kind::Log.name(*first);
                let header = read_header(&**disk, Kind::Log, *first, &name)?.0;
                Recovery::new(
                    Index::empty(),
                    Header {
                        id: header.id,
                        revision: FIRST_REVISION,
                        chain: first_chain(&header.id),
                    },
                )
            }
        },
    };
    let Some(last) = logs.last().copied() else {
        let name = Kind::Log.name(shown + 1);
        return Err(corrupt(
            &name,
            0,
            "the log after the newest snapshot is missing",
        ));
    };
    for first in logs {
        recovery.replay(&**disk, first, first == last)?;
    }
    let name = Kind::Log.name(last);
    let file = recovery
        .settle(&**disk, &name)
        .map_err(failed("write", &name))?;
    disk.sync_names().map_err(failed("sync the folder", ""))?;
    remove_before(&**disk, shown).map_err(failed("remove old files", ""))?;
    let position = recovery.position();
    let log = Log::resume(
        Arc::clone(disk),
        file,
        &position,
        recovery.end,
        options.reserve_bytes,
    )
    .replayed(recovery.replayed_bytes);
    Ok((recovery.index, log))
}

/// Begins an empty store.
fn create(disk: &Arc<dyn Disk>, step: u64) -> Result<(Index, Log), OpenError> {
    let mut id: Id = [0; 16];
    let random = rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty());
    // Requests up to 256 bytes are never cut short, getrandom(2).
    random.map_err(|errno| failed("draw an identity", "")(errno.into()))?;
    let header = Header {
        id,
        revision: FIRST_REVISION + 1,
        chain: first_chain(&id),
    };
    let log = Log::create(Arc::clone(disk), &header, step).map_err(|error| match error {
        CreateError::Before(source) | CreateError::Named(source) => {
            failed("create", &Kind::Log.name(header.revision))(source)
        }
    })?;
    Ok((Index::empty(), log))
}

fn read_header(
    disk: &dyn Disk,
    kind: Kind,
    revision: Revision,
    name: &str,
) -> Result<(Header, Box<dyn Read + Send>), OpenError> {
    let mut input = disk.read(name, 0).map_err(failed("open", name))?;
    let mut raw = [0; HEADER_BYTES];
    if !read_whole(&mut *input, &mut raw).map_err(failed("read", name))? {
        return Err(corrupt(name, 0, "shorter than a file header"));
    }
    let header = Header::decode(kind, &raw).map_err(|error| match error {
        HeaderError::Damaged(what) => corrupt(name, 0, what),
        HeaderError::Newer(found) => OpenError::Version {
            file: name.to_owned(),
            found,
            known: VERSION,
        },
    })?;
    if header.revision != revision {
        return Err(corrupt(name, 0, "the name is of another file"));
    }
    Ok((header, input))
}

fn read_snapshot(disk: &dyn Disk, revision: Revision) -> Result<(Index, Header), OpenError> {
    let name = Kind::Snapshot.name(revision);
    let (header, input) = read_header(disk, Kind::Snapshot, revision, &name)?;
    let mut reader = FrameReader::new(input, &header);
    let mut entries: Vec<Change> = Vec::new();
    loop {
        let offset = reader.offset();
        let head = match reader.next().map_err(failed("read", &name))? {
            Found::Frame(head) => head,
            Found::Nothing(what) => return Err(corrupt(&name, offset, what)),
        };
        if head.first != entries.len() as u64 {
            return Err(corrupt(&name, offset, "number of entries"));
        }
        if head.kind == FrameKind::End {
            return Ok((Index::new(revision, entries), header));
        }
        let mut records = reader.records();
        while let Some(record) = records.next() {
            let entry = record.ok().and_then(|record| {
                Some(Change {
                    key: Key::new(record.key),
                    version: Version {
                        revision: record.revision.filter(|at| *at <= revision)?,
                        value: Some(Value::new(record.value?)),
                        expires_unix_s: record.expires_unix_s,
                    },
                })
            });
            let Some(entry) = entry else {
                return Err(corrupt(&name, offset, "an entry"));
            };
            if entries.last().is_some_and(|last| last.key >= entry.key) {
                return Err(corrupt(&name, offset, "order of keys"));
            }
            entries.push(entry);
        }
    }
}

struct Recovery {
    index: Index,
    id: Id,
    chain: u32,
    next: Revision,
    replayed_bytes: u64,
    /// Of the last log: behind its last frame, and where that begins.
    end: u64,
    last_frame: Option<u64>,
}

impl Recovery {
    fn new(index: Index, shown: Header) -> Self {
        Self {
            index,
            id: shown.id,
            chain: shown.chain,
            next: shown.revision + 1,
            replayed_bytes: 0,
            end: 0,
            last_frame: None,
        }
    }

    fn position(&self) -> Header {
        Header {
            id: self.id,
            revision: self.next,
            chain: self.chain,
        }
    }

    fn replay(&mut self, disk: &dyn Disk, first: Revision, last: bool) -> Result<(), OpenError> {
        let name = Kind::Log.name(first);
        let (header, input) = read_header(disk, Kind::Log, first, &name)?;
        if header != self.position() {
            return Err(corrupt(
                &name,
                0,
                "does not follow what is before it: changes are missing",
            ));
        }
        let mut reader = FrameReader::new(input, &header);
        self.last_frame = None;
        loop {
            let offset = reader.offset();
            match reader.next().map_err(failed("read", &name))? {
                Found::Frame(head) => {
                    if head.kind != FrameKind::Records || head.first != self.next {
                        return Err(corrupt(&name, offset, "revision of a frame"));
                    }
                    self.apply(&reader, head.count)
                        .ok_or_else(|| corrupt(&name, offset, "a record"))?;
                    self.last_frame = Some(offset);
                    self.chain = reader.chain();
                    self.replayed_bytes += reader.offset() - offset;
                }
                Found::Nothing(what) => {
                    self.end = offset;
                    // In a log that another follows, the other's header tells what is missing.
                    if last {
                        let rest = disk.read(&name, offset).map_err(failed("open", &name))?;
                        let later = later_frame(rest, &self.id, self.next);
                        if later.map_err(failed("read", &name))? {
                            return Err(corrupt(&name, offset, what));
                        }
                    }
                    return Ok(());
                }
            }
        }
    }

    fn apply(&mut self, reader: &FrameReader, count: u32) -> Option<()> {
        let mut records = reader.records();
        for _ in 0..count {
            let record = records.next()?.ok()?;
            self.index.apply(Change {
                key: Key::new(record.key),
                version: Version {
                    revision: self.next,
                    value: record.value.map(Value::new),
                    expires_unix_s: record.expires_unix_s,
                },
            });
            self.index.publish(self.next);
            self.next += 1;
        }
        records.next().is_none().then_some(())
    }

    /// Cuts the torn tail and makes the last frame durable. A process that died between write
    /// and fsync, or after a failed fsync, leaves pages that can be read and are not on the disk,
    /// and that a further fsync may skip as clean: so the frame is written again.
    fn settle(&self, disk: &dyn Disk, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut file = disk.open(name)?;
        if let Some(begin) = self.last_frame {
            let mut frame = Vec::new();
            disk.read(name, begin)?
                .take(self.end - begin)
                .read_to_end(&mut frame)?;
            file.write_at(begin, &frame)?;
        }
        if file.len()? > self.end {
            file.truncate(self.end)?;
        }
        file.sync()?;
        Ok(file)
    }
}
