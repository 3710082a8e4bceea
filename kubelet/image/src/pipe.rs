//! Two threads per layer: one reads, hashes, keeps and decompresses the blob
//! and hashes what comes out, the other unpacks it. A few fixed buffers go
//! round between them, so memory does not depend on the layer's size.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::limits::{MAX_ZSTD_WINDOW_LOG2, PIPE_CHUNK_BYTES, PIPE_CHUNKS, WRITE_BEHIND_BYTES};
use crate::tar::Input;

/// How a blob is compressed, told by its first bytes and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Plain,
    Gzip,
    Zstd,
}

impl Compression {
    pub(crate) fn detect(head: &[u8]) -> io::Result<Self> {
        let unsupported = |what: &str| {
            let msg = format!("{what} compression is not supported (gzip, zstd and none are)");
            Err(io::Error::new(io::ErrorKind::Unsupported, msg))
        };
        match head {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Self::Zstd),
            // A skippable frame in front (RFC 8878, 3.1.2).
            [b, 0x2a, 0x4d, 0x18, ..] if b & 0xf0 == 0x50 => Ok(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', ..] => unsupported("xz"),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => unsupported("bzip2"),
            _ => Ok(Self::Plain),
        }
    }

    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Plain => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// A reader that decompresses what it finds.
pub(crate) fn decompress<'a>(
    raw: impl Read + Send + 'a,
) -> io::Result<(Compression, Box<dyn Read + Send + 'a>)> {
    let mut raw = raw;
    let (how, head) = detect(&mut raw)?;
    Ok((how, plain(how, head, raw)?))
}

/// Reads the first bytes, which tell the compression.
fn detect(raw: &mut impl Read) -> io::Result<(Compression, Vec<u8>)> {
    let mut head = vec![0; 8];
    let have = read_full(raw, &mut head)?;
    head.truncate(have);
    Ok((Compression::detect(&head)?, head))
}

/// `head` and then `raw`, decompressed.
fn plain<'a>(
    how: Compression,
    head: Vec<u8>,
    raw: impl Read + Send + 'a,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    let whole = io::Cursor::new(head).chain(raw);
    if how == Compression::Plain {
        return Ok(Box::new(whole));
    }
    let raw = BufReader::with_capacity(PIPE_CHUNK_BYTES, whole);
    Ok(if how == Compression::Gzip {
        Box::new(flate2::bufread::MultiGzDecoder::new(raw))
    } else {
        let mut z = zstd::stream::read::Decoder::with_buffer(raw)?;
        z.window_log_max(MAX_ZSTD_WINDOW_LOG2)?;
        Box::new(z)
    })
}

/// The blob as it was read.
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
    pub(crate) compression: Compression,
    /// Digest of the decompressed bytes.
    diff_id: Digest,
}

/// Bytes that are left to an import, over all its layers.
#[derive(Debug)]
pub(crate) struct Budget {
    /// As they come. What decompresses to nothing costs room all the same.
    raw_bytes: AtomicU64,
    /// Decompressed.
    plain_bytes: AtomicU64,
    /// On the disk, in whole blocks.
    disk_bytes: AtomicU64,
    /// Of each at the beginning.
    pub(crate) max_bytes: u64,
}

impl Budget {
    /// So many of each.
    pub(crate) fn new(bytes: u64) -> Self {
        Self {
            raw_bytes: AtomicU64::new(bytes),
            plain_bytes: AtomicU64::new(bytes),
            disk_bytes: AtomicU64::new(bytes),
            max_bytes: bytes,
        }
    }

    /// Takes room on the disk; false if none is left.
    pub(crate) fn take_disk(&self, bytes: u64) -> bool {
        let order = Ordering::Relaxed;
        let take = |left: u64| left.checked_sub(bytes);
        self.disk_bytes.fetch_update(order, order, take).is_ok()
    }

    fn spend(left: &AtomicU64, bytes: usize, what: &str) -> io::Result<()> {
        let order = Ordering::Relaxed;
        let spend = |left: u64| left.checked_sub(bytes as u64);
        match left.fetch_update(order, order, spend) {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::new(io::ErrorKind::FileTooLarge, what)),
        }
    }
}

struct Tee<'w, R> {
    src: R,
    hasher: Hasher,
    copy: Option<Behind<'w>>,
    budget: &'w Budget,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.src.read(buf)?;
        let much = "the image has more bytes than it may unpack to";
        Budget::spend(&self.budget.raw_bytes, n, much)?;
        self.hasher.update(&buf[..n]);
        if let Some(copy) = &mut self.copy {
            copy.file.write_all(&buf[..n])?;
            copy.wrote(n);
        }
        Ok(n)
    }
}

/// A file that is written from its beginning to its end, and that the kernel
/// is asked to bring to the disk meanwhile: the sync at the end has little
/// left to wait for.
#[derive(Debug)]
pub(crate) struct Behind<'w> {
    pub(crate) file: &'w File,
    at: u64,
    begun: u64,
}

impl<'w> Behind<'w> {
    /// From an offset on.
    pub(crate) fn new(file: &'w File, at: u64) -> Self {
        Self {
            file,
            at,
            begun: at,
        }
    }

    /// So many more bytes were written.
    pub(crate) fn wrote(&mut self, n: usize) {
        self.at += n as u64;
        let fresh = self.at - self.begun;
        if fresh < WRITE_BEHIND_BYTES {
            return;
        }
        // posix_fadvise(2), POSIX_FADV_DONTNEED: begins to write the range and
        // does not wait; pages under way stay in memory. Where that does not
        // work the sync waits longer.
        let advice = rustix::fs::Advice::DontNeed;
        let _ = rustix::fs::fadvise(self.file, self.begun, NonZeroU64::new(fresh), advice);
        self.begun = self.at;
    }
}

/// The decompressed bytes on the consumer's side.
pub(crate) struct ChunkInput<'b> {
    full: Receiver<io::Result<Vec<u8>>>,
    empty: Sender<Vec<u8>>,
    now: Vec<u8>,
    pos: usize,
    ended: bool,
    budget: &'b Budget,
}

impl Input for ChunkInput<'_> {
    fn fill(&mut self) -> io::Result<&[u8]> {
        while self.pos == self.now.len() && !self.ended {
            match self.full.recv() {
                Ok(Ok(chunk)) => {
                    let much = "the image unpacks to more bytes than it may";
                    Budget::spend(&self.budget.plain_bytes, chunk.len(), much)?;
                    // The producer may be done and gone.
                    let _ = self.empty.send(std::mem::replace(&mut self.now, chunk));
                    self.pos = 0;
                }
                Ok(Err(e)) => {
                    self.ended = true;
                    return Err(e);
                }
                Err(_) => self.ended = true,
            }
        }
        Ok(&self.now[self.pos..])
    }

    fn consume(&mut self, n: usize) {
        self.pos += n;
    }
}

impl ChunkInput<'_> {
    /// Reads to the end: the digest covers what follows the archive too.
    fn drain(&mut self) -> io::Result<()> {
        loop {
            let n = self.fill()?.len();
            if n == 0 {
                return Ok(());
            }
            self.consume(n);
        }
    }
}

/// Sends a blob through both threads. `copy` receives its raw bytes, `sink`
/// reads the decompressed ones. Returns the blob, the digest of the
/// decompressed bytes (the diffID) and what `sink` made.
pub(crate) fn run<T>(
    what: &str,
    src: impl Read + Send,
    copy: Option<&File>,
    budget: &Budget,
    sink: impl FnOnce(&mut ChunkInput<'_>) -> Result<T>,
) -> Result<(Blob, Digest, T)> {
    let (full_tx, full_rx) = sync_channel(PIPE_CHUNKS);
    let (empty_tx, empty_rx) = channel();
    let mut input = ChunkInput {
        full: full_rx,
        empty: empty_tx,
        now: Vec::new(),
        pos: 0,
        ended: false,
        budget,
    };
    let read = |source| Error::Read {
        what: what.to_string(),
        source,
    };
    let tee = Tee {
        src,
        hasher: Hasher::default(),
        copy: copy.map(|file| Behind::new(file, 0)),
        budget,
    };
    std::thread::scope(|scope| {
        let producer = std::thread::Builder::new()
            .name("rkube-layer".into())
            .spawn_scoped(scope, move || produce(tee, &full_tx, &empty_rx))
            .map_err(read)?;
        let made = sink(&mut input).and_then(|made| {
            input.drain().map_err(read)?;
            Ok(made)
        });
        let ChunkInput { full, empty, .. } = input;
        // Unblocks a producer that nobody listens to any more.
        drop((full, empty));
        let produced = producer
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the reading thread panicked")));
        let made = made?;
        let blob = produced.map_err(read)?;
        let diff_id = blob.diff_id;
        Ok((blob, diff_id, made))
    })
}

fn produce(
    mut tee: Tee<'_, impl Read + Send>,
    full: &SyncSender<io::Result<Vec<u8>>>,
    empty: &Receiver<Vec<u8>>,
) -> io::Result<Blob> {
    let (compression, own) = match send(&mut tee, full, empty) {
        Ok(sent) => sent,
        Err(e) => {
            // Nobody may be listening any more.
            let _ = full.send(Err(clone_error(&e)));
            return Err(e);
        }
    };
    let bytes = tee.hasher.bytes();
    let digest = tee.hasher.finish();
    Ok(Blob {
        digest,
        bytes,
        compression,
        // What is not compressed has one digest.
        diff_id: own.map_or(digest, Hasher::finish),
    })
}

/// Sends the decompressed bytes, and reads what follows the compressed
/// stream: that belongs to the blob's digest. Returns the state of the
/// decompressed bytes' digest, if they are not the blob's.
fn send(
    tee: &mut Tee<'_, impl Read + Send>,
    full: &SyncSender<io::Result<Vec<u8>>>,
    empty: &Receiver<Vec<u8>>,
) -> io::Result<(Compression, Option<Hasher>)> {
    let (how, head) = detect(tee)?;
    let mut own = (how != Compression::Plain).then(Hasher::default);
    let mut heard = true;
    {
        let mut plain = plain(how, head, &mut *tee)?;
        while heard {
            let mut chunk = empty.try_recv().unwrap_or_default();
            chunk.resize(PIPE_CHUNK_BYTES, 0);
            let n = read_full(&mut plain, &mut chunk)?;
            if n == 0 {
                break;
            }
            chunk.truncate(n);
            if let Some(own) = &mut own {
                own.update(&chunk);
            }
            heard = full.send(Ok(chunk)).is_ok();
        }
    }
    if heard {
        let mut rest = vec![0; PIPE_CHUNK_BYTES];
        while tee.read(&mut rest)? > 0 {}
    }
    Ok((how, own))
}

fn clone_error(e: &io::Error) -> io::Error {
    match e.raw_os_error() {
        Some(n) => io::Error::from_raw_os_error(n),
        None => io::Error::new(e.kind(), e.to_string()),
    }
}

fn read_full(r: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < buf.len() {
        match r.read(&mut buf[have..]) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(have)
}
