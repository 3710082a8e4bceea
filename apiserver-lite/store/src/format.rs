//! Bytes on disk: file headers, frames, records. All numbers are little-endian.
//!
//! ```text
//! file    = header frame* [zeros]                 log: any end; snapshot: ends with an end frame
//! header  = magic:8 version:u32 crc:u32 id:16 revision:u64 chain:u32 zeros to 64
//! frame   = magic:u32 body_len:u32 first:u64 count:u32 chain:u32 head_crc:u32 zero:u32
//!           body, zeros to a multiple of 8
//! record  = kind:u8 zero:u8 key_len:u16 value_len:u32 expires_unix_s:u64
//!           [snapshot: revision:u64] key value
//! ```
//!
//! `id` is random for every store. `head_crc` covers a frame's first 24 bytes and is seeded with
//! the id, so that no value a user stores can look like a frame. `chain` covers head and body and
//! is seeded with the chain of the frame before, the first one's with that of the file header,
//! which repeats the last chain of the file before. In a log, `first` is the revision of the
//! frame's first record and the others follow; in a snapshot it counts the records before.

use std::io::{self, BufReader, Read};
use std::ops::Range;

use crate::model::Revision;
use crate::{BATCH_BYTES_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX};

/// The format written, and the newest one read.
pub(crate) const VERSION: u32 = 1;

pub(crate) const HEADER_BYTES: usize = 64;
pub(crate) const HEAD_BYTES: usize = 32;
const HEAD_COVERED_BYTES: usize = 24;
const CHAIN_COVERED_BYTES: usize = 20;
const RECORD_BYTES: usize = 16;
const READ_BYTES: usize = 256 << 10;
const REVISION_BYTES: usize = 8;

/// Largest body of a frame: a full batch and one write more, with their heads.
pub(crate) const BODY_BYTES_MAX: usize = BATCH_BYTES_MAX
    + VALUE_BYTES_MAX
    + KEY_BYTES_MAX
    + (crate::BATCH_WRITES_MAX + 1) * (RECORD_BYTES + REVISION_BYTES);

/// Identity of one store.
pub(crate) type Id = [u8; 16];

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Log,
    Snapshot,
}

impl Kind {
    const fn magic(self) -> [u8; 8] {
        match self {
            Self::Log => *b"rkubelog",
            Self::Snapshot => *b"rkubesnp",
        }
    }

    const fn prefix(self) -> &'static str {
        match self {
            Self::Log => "log-",
            Self::Snapshot => "snap-",
        }
    }

    /// The file's name; names sort as revisions do.
    pub(crate) fn name(self, revision: Revision) -> String {
        format!("{}{revision:020}", self.prefix())
    }

    /// The revision in a file's name.
    pub(crate) fn parse(self, name: &str) -> Option<Revision> {
        let revision = name.strip_prefix(self.prefix())?.parse().ok()?;
        (self.name(revision) == name).then_some(revision)
    }
}

/// Suffix of files that are not complete.
pub(crate) const UNFINISHED: &str = ".tmp";

/// First bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) id: Id,
    /// Log: the first frame's; snapshot: the one it shows.
    pub(crate) revision: Revision,
    pub(crate) chain: u32,
}

/// Why bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderError {
    Damaged(&'static str),
    Newer(u32),
}

impl Header {
    pub(crate) fn encode(&self, kind: Kind) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&kind.magic());
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.id);
        bytes[32..40].copy_from_slice(&self.revision.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.chain.to_le_bytes());
        let crc = crc32fast::hash(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(kind: Kind, bytes: &[u8; HEADER_BYTES]) -> Result<Self, HeaderError> {
        if bytes[0..8] != kind.magic() {
            return Err(HeaderError::Damaged("no magic number"));
        }
        // The version and the checksum's place stay where they are in every format.
        let mut plain = *bytes;
        plain[12..16].fill(0);
        if crc32fast::hash(&plain) != u32_at(bytes, 12) {
            return Err(HeaderError::Damaged("checksum of the file header"));
        }
        let version = u32_at(bytes, 8);
        if version > VERSION {
            return Err(HeaderError::Newer(version));
        }
        let mut id = [0; 16];
        id.copy_from_slice(&bytes[16..32]);
        Ok(Self {
            id,
            revision: u64_at(bytes, 32),
            chain: u32_at(bytes, 40),
        })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let mut raw = [0; 2];
    raw.copy_from_slice(&bytes[at..at + 2]);
    u16::from_le_bytes(raw)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}

fn crc(seed: u32, parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

/// The chain before the first frame of a store.
pub(crate) fn first_chain(id: &Id) -> u32 {
    crc32fast::hash(id)
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// A batch of a log, or a block of a snapshot.
    Records,
    /// The end of a snapshot.
    End,
}

impl FrameKind {
    const fn magic(self) -> u32 {
        match self {
            Self::Records => 0x724b_f7a1,
            Self::End => 0x724b_f7ae,
        }
    }
}

/// Builds one frame in a buffer that is used again.
#[derive(Debug)]
pub(crate) struct FrameBuilder {
    bytes: Vec<u8>,
    count: u32,
}

/// One change or entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordBytes<'a> {
    pub(crate) key: &'a [u8],
    /// `None`: removed.
    pub(crate) value: Option<&'a [u8]>,
    /// 0: never.
    pub(crate) expires_unix_s: u64,
    /// In snapshots.
    pub(crate) revision: Option<Revision>,
}

const KIND_DELETE: u8 = 0;
const KIND_PUT: u8 = 1;
const KIND_ENTRY: u8 = 2;

impl FrameBuilder {
    pub(crate) fn new() -> Self {
        let mut builder = Self {
            bytes: Vec::new(),
            count: 0,
        };
        builder.clear();
        builder
    }

    pub(crate) fn clear(&mut self) {
        // A buffer grown by one large batch is not kept for ever.
        if self.bytes.capacity() > BATCH_BYTES_MAX / 4 {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
        self.bytes.resize(HEAD_BYTES, 0);
        self.count = 0;
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a record; key and value are within their limits.
    pub(crate) fn push(&mut self, record: &RecordBytes<'_>) {
        let kind = match (record.value, record.revision) {
            (None, _) => KIND_DELETE,
            (Some(_), None) => KIND_PUT,
            (Some(_), Some(_)) => KIND_ENTRY,
        };
        let value = record.value.unwrap_or_default();
        let key_len = u16::try_from(record.key.len()).expect("submit checks KEY_BYTES_MAX");
        let value_len = u32::try_from(value.len()).expect("submit checks VALUE_BYTES_MAX");
        self.bytes.extend_from_slice(&[kind, 0]);
        self.bytes.extend_from_slice(&key_len.to_le_bytes());
        self.bytes.extend_from_slice(&value_len.to_le_bytes());
        self.bytes
            .extend_from_slice(&record.expires_unix_s.to_le_bytes());
        if let Some(revision) = record.revision {
            self.bytes.extend_from_slice(&revision.to_le_bytes());
        }
        self.bytes.extend_from_slice(record.key);
        self.bytes.extend_from_slice(value);
        self.count += 1;
    }

    /// Completes the frame: its bytes and its chain.
    pub(crate) fn finish(
        &mut self,
        kind: FrameKind,
        first: u64,
        id: &Id,
        chain: u32,
    ) -> (&[u8], u32) {
        let body_len = u32::try_from(self.bytes.len() - HEAD_BYTES)
            .expect("batches and blocks end long before 4 GiB");
        self.bytes[0..4].copy_from_slice(&kind.magic().to_le_bytes());
        self.bytes[4..8].copy_from_slice(&body_len.to_le_bytes());
        self.bytes[8..16].copy_from_slice(&first.to_le_bytes());
        self.bytes[16..20].copy_from_slice(&self.count.to_le_bytes());
        let (head, body) = self.bytes.split_at(HEAD_BYTES);
        let chain = crc(chain, &[&head[..CHAIN_COVERED_BYTES], body]);
        self.bytes[20..24].copy_from_slice(&chain.to_le_bytes());
        let head_crc = crc(first_chain(id), &[&self.bytes[..HEAD_COVERED_BYTES]]);
        self.bytes[24..28].copy_from_slice(&head_crc.to_le_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        (&self.bytes, chain)
    }
}

/// A frame's head, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: FrameKind,
    body_len: usize,
    pub(crate) first: u64,
    pub(crate) count: u32,
    chain: u32,
}

impl Head {
    /// Reads a head; `None` if these bytes are none of this store's.
    pub(crate) fn decode(bytes: &[u8; HEAD_BYTES], id: &Id) -> Option<Self> {
        let kind = match u32_at(bytes, 0) {
            magic if magic == FrameKind::Records.magic() => FrameKind::Records,
            magic if magic == FrameKind::End.magic() => FrameKind::End,
            _ => return None,
        };
        if crc(first_chain(id), &[&bytes[..HEAD_COVERED_BYTES]]) != u32_at(bytes, 24) {
            return None;
        }
        let body_len = usize::try_from(u32_at(bytes, 4)).ok()?;
        (body_len <= BODY_BYTES_MAX).then_some(Self {
            kind,
            body_len,
            first: u64_at(bytes, 8),
            count: u32_at(bytes, 16),
            chain: u32_at(bytes, 20),
        })
    }
}

/// Reads frames one after the other.
pub(crate) struct FrameReader {
    input: BufReader<Box<dyn Read + Send>>,
    id: Id,
    chain: u32,
    offset: u64,
    body: Vec<u8>,
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Found {
    Frame(Head),
    /// No whole frame with the right chain.
    Nothing(&'static str),
}

impl FrameReader {
    /// Reads behind a header.
    pub(crate) fn new(input: Box<dyn Read + Send>, header: &Header) -> Self {
        Self {
            input: BufReader::with_capacity(READ_BYTES, input),
            id: header.id,
            chain: header.chain,
            offset: HEADER_BYTES as u64,
            body: Vec::new(),
        }
    }

    /// Where the next frame begins.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn chain(&self) -> u32 {
        self.chain
    }

    /// The last frame's records.
    pub(crate) fn records(&self) -> Records<'_> {
        Records { bytes: &self.body }
    }

    pub(crate) fn next(&mut self) -> io::Result<Found> {
        let mut raw = [0; HEAD_BYTES];
        if !read_whole(&mut self.input, &mut raw)? {
            return Ok(Found::Nothing("file ends"));
        }
        let Some(head) = Head::decode(&raw, &self.id) else {
            return Ok(Found::Nothing("no frame"));
        };
        let padded = head.body_len.next_multiple_of(8);
        self.body.resize(padded, 0);
        if !read_whole(&mut self.input, &mut self.body)? {
            return Ok(Found::Nothing("file ends in a frame"));
        }
        self.body.truncate(head.body_len);
        let chain = crc(self.chain, &[&raw[..CHAIN_COVERED_BYTES], &self.body]);
        if chain != head.chain {
            return Ok(Found::Nothing("checksum of a frame"));
        }
        self.chain = chain;
        self.offset += (HEAD_BYTES + padded) as u64;
        Ok(Found::Frame(head))
    }
}

/// Fills the buffer; `false` where the input ends before.
pub(crate) fn read_whole(input: &mut dyn Read, buffer: &mut [u8]) -> io::Result<bool> {
    match input.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether a head of a frame after `first` begins anywhere in the rest of a log: then the frame
/// at `first` had been synced, and its damage is not a crash's.
pub(crate) fn later_frame(mut input: impl Read, id: &Id, first: Revision) -> io::Result<bool> {
    const WINDOW_BYTES: usize = 1 << 20;
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut window: Vec<u8> = Vec::with_capacity(WINDOW_BYTES + HEAD_BYTES);
    loop {
        let read = Read::take(&mut input, WINDOW_BYTES as u64).read_to_end(&mut window)?;
        let mut at = 0;
        while let Some(bytes) = window.get(at..at + HEAD_BYTES) {
            // Reserved space is zeros.
            if window.get(at..at + ZEROS.len()) == Some(&ZEROS) {
                at += ZEROS.len();
                continue;
            }
            let bytes = bytes.try_into().expect("the slice has this length");
            if Head::decode(bytes, id).is_some_and(|head| head.first > first) {
                return Ok(true);
            }
            at += 8;
        }
        if read == 0 {
            return Ok(false);
        }
        window.drain(..at);
    }
}

/// The records of a frame whose checksum is right.
#[derive(Debug, Clone)]
pub(crate) struct Records<'a> {
    bytes: &'a [u8],
}

impl<'a> Records<'a> {
    fn take(&mut self, range: Range<usize>) -> Option<&'a [u8]> {
        let taken = self.bytes.get(range.clone())?;
        self.bytes = &self.bytes[range.end..];
        Some(taken)
    }

    /// The next record; `Err` where the bytes are none.
    pub(crate) fn next(&mut self) -> Option<Result<RecordBytes<'a>, ()>> {
        (!self.bytes.is_empty()).then(|| self.record().ok_or(()))
    }

    fn record(&mut self) -> Option<RecordBytes<'a>> {
        let head = self.take(0..RECORD_BYTES)?;
        let kind = head[0];
        let key_len = usize::from(u16_at(head, 2));
        let value_len = usize::try_from(u32_at(head, 4)).ok()?;
        if key_len == 0 || key_len > KEY_BYTES_MAX || value_len > VALUE_BYTES_MAX {
            return None;
        }
        let revision = match kind {
            KIND_ENTRY => Some(u64_at(self.take(0..REVISION_BYTES)?, 0)),
            KIND_PUT | KIND_DELETE => None,
            _ => return None,
        };
        let key = self.take(0..key_len)?;
        let value = self.take(0..value_len)?;
        Some(RecordBytes {
            key,
            value: (kind != KIND_DELETE).then_some(value),
            expires_unix_s: u64_at(head, 8),
            revision,
        })
    }
}
