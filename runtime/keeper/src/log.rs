//! Container output, line by line in the CRI log format, with rotation.
//!
//! A line of the file is `<RFC 3339 time with ns> <stream> <F|P> <content>`;
//! `P` marks a piece of a line that goes on in the next entry of its stream
//! (Kubernetes, CRI logging design).

use std::os::fd::OwnedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::attach::Sinks;
use crate::error::{Context, Result};
use crate::protocol::LogTarget;

/// Longest content of one entry, in bytes (what containerd and CRI-O use).
pub const MAX_ENTRY_BYTES: usize = 16 << 10;

/// Size of one read from a stream, in bytes: as much as a pipe holds.
const READ_BYTES: usize = 64 << 10;

/// What is taken at most from a stream once its container has ended, in
/// bytes: more than a FIFO holds.
const MAX_LAST_BYTES: usize = 1 << 20;

/// Log files are for root's eyes only.
const LOG_MODE: u32 = 0o640;

/// Which output stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, and a terminal's.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What a stream gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pumped {
    /// Something; there may be more.
    More,
    /// Nothing now.
    Idle,
    /// Its end.
    Ended,
}

/// The log file of one container.
#[derive(Debug)]
pub struct Log {
    target: LogTarget,
    file: OwnedFd,
    bytes: u64,
    /// The unfinished line of each stream.
    partial: [Vec<u8>; 2],
    /// Who gets a copy of each stream.
    sinks: [Sinks; 2],
}

impl Log {
    /// Opens the log for appending.
    pub fn open(target: LogTarget) -> Result<Self> {
        let path = target.path.as_str();
        let file = open_append(path).on("open log", path)?;
        let stat = rustix::fs::fstat(&file).on("stat log", path)?;
        let bytes = u64::try_from(stat.st_size).unwrap_or_default();
        end_torn_line(path, &file, bytes);
        Ok(Self {
            target,
            file,
            bytes,
            partial: [Vec::new(), Vec::new()],
            sinks: [Sinks::default(), Sinks::default()],
        })
    }

    /// Reads once from a terminal and writes what became whole. Bytes of an
    /// unfinished line are kept in memory: a terminal cannot be looked into.
    ///
    /// # Errors
    /// read(2)'s.
    pub fn pump_terminal(&mut self, from: &OwnedFd) -> std::result::Result<Pumped, Errno> {
        let mut buffer = read_buffer();
        match rustix::io::read(from, rustix::buffer::spare_capacity(&mut buffer)) {
            // EIO: no slave is open now (tty_ioctl(4)).
            Ok(0) | Err(Errno::IO | Errno::AGAIN) => Ok(Pumped::Idle),
            Ok(_) => {
                self.sinks[index(Stream::Stdout)].copy(&buffer);
                self.take(Stream::Stdout, &buffer);
                Ok(Pumped::More)
            }
            Err(Errno::INTR) => Ok(Pumped::More),
            Err(errno) => Err(errno),
        }
    }

    /// Moves whole lines from a FIFO into the log.
    ///
    /// The bytes are looked at by tee(2) first, written to the log, and only
    /// then taken from the FIFO; the tail of an unfinished line stays in the
    /// FIFO. So a keeper that is killed loses nothing: what it had written and
    /// not yet taken is written once more by the next one.
    ///
    /// # Errors
    /// tee(2)'s and read(2)'s.
    pub fn pump_fifo(
        &mut self,
        stream: Stream,
        from: &OwnedFd,
        scratch: &Scratch,
    ) -> std::result::Result<Pumped, Errno> {
        let mut buffer = read_buffer();
        let bytes = match scratch.look(from, &mut buffer) {
            Ok([]) => return Ok(Pumped::Ended),
            Ok(bytes) => bytes,
            Err(Errno::AGAIN) => return Ok(Pumped::Idle),
            Err(Errno::INTR) => return Ok(Pumped::More),
            Err(errno) => return Err(errno),
        };
        let stamp = timestamp(now_ns());
        let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 2 + 64);
        let taken = split(&mut out, &stamp, stream, bytes);
        self.write(&out);
        self.sinks[index(stream)].copy_fifo(bytes, taken);
        if taken == 0 {
            return Ok(Pumped::Idle);
        }
        discard(from, taken)?;
        Ok(Pumped::More)
    }

    /// Takes everything that a FIFO holds, an unfinished line included: its
    /// container has ended. At most [`MAX_LAST_BYTES`], since a process that
    /// lives on may write for ever.
    pub fn finish_fifo(&mut self, stream: Stream, from: &OwnedFd, scratch: &Scratch) {
        let mut left = MAX_LAST_BYTES / READ_BYTES;
        while left > 0 && matches!(self.pump_fifo(stream, from, scratch), Ok(Pumped::More)) {
            left -= 1;
        }
        let mut buffer = read_buffer();
        let Ok(bytes) = scratch.look(from, &mut buffer) else {
            return;
        };
        if bytes.is_empty() {
            return;
        }
        let mut out = Vec::new();
        let stamp = timestamp(now_ns());
        let taken = split(&mut out, &stamp, stream, bytes);
        if let Some(tail) = bytes.get(taken..).filter(|t| !t.is_empty()) {
            entry(&mut out, &stamp, stream, b'P', &[], tail);
        }
        self.write(&out);
        self.sinks[index(stream)].copy_fifo(bytes, bytes.len());
        // What could not be taken is written once more, not lost.
        let _ = discard(from, bytes.len());
    }

    /// From now on a stream is copied to a pipe, too; an unfinished line that
    /// is there already comes first. `from` is the stream's FIFO, where it has
    /// one.
    ///
    /// # Errors
    /// ENOSPC beyond [`crate::attach::MAX_SINKS`] pipes, and fcntl(2)'s.
    pub fn attach(
        &mut self,
        stream: Stream,
        pipe: OwnedFd,
        from: Option<&OwnedFd>,
        scratch: &Scratch,
    ) -> std::result::Result<(), Errno> {
        let sinks = &mut self.sinks[index(stream)];
        let mut buffer = read_buffer();
        let first = match from.map(|from| scratch.look(from, &mut buffer)) {
            None => self.partial[index(stream)].as_slice(),
            Some(Ok(bytes)) => sinks.had(bytes),
            Some(Err(_)) => &[],
        };
        sinks.add(pipe, first)
    }

    /// Nothing more will be copied: whoever is attached sees the end.
    pub fn detach_all(&mut self) {
        self.sinks.iter_mut().for_each(Sinks::close);
    }

    /// Splits bytes of a terminal into entries and writes them.
    pub fn take(&mut self, stream: Stream, bytes: &[u8]) {
        let stamp = timestamp(now_ns());
        let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 2 + 64);
        let mut rest = bytes;
        let partial = &mut self.partial[index(stream)];
        while !rest.is_empty() {
            let room = MAX_ENTRY_BYTES - partial.len();
            let window = &rest[..rest.len().min(room)];
            if let Some(n) = window.iter().position(|b| *b == b'\n') {
                entry(&mut out, &stamp, stream, b'F', partial, &window[..n]);
                partial.clear();
                rest = &rest[n + 1..];
            } else if window.len() == room {
                entry(&mut out, &stamp, stream, b'P', partial, window);
                partial.clear();
                rest = &rest[room..];
            } else {
                partial.extend_from_slice(window);
                rest = &[];
            }
        }
        if partial.is_empty() {
            // A quiet container costs no buffer.
            *partial = Vec::new();
        }
        self.write(&out);
    }

    /// Writes unfinished lines, as the container is about to be forgotten.
    pub fn finish(&mut self) {
        let stamp = timestamp(now_ns());
        let mut out = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let partial = std::mem::take(&mut self.partial[index(stream)]);
            if !partial.is_empty() {
                entry(&mut out, &stamp, stream, b'P', &partial, &[]);
            }
        }
        self.write(&out);
    }

    /// A full disk loses lines, as it must: the container is not stopped for
    /// it, and the next line is tried again.
    fn write(&mut self, mut out: &[u8]) {
        if out.is_empty() {
            return;
        }
        if self.bytes > 0 && self.bytes + out.len() as u64 > self.target.max_bytes {
            self.rotate();
        }
        while !out.is_empty() {
            match rustix::io::write(&self.file, out) {
                Ok(n) => {
                    self.bytes += n as u64;
                    out = &out[n..];
                }
                Err(Errno::INTR) => {}
                Err(_) => {
                    // A torn entry is ended, so that the next stands alone.
                    let _ = rustix::io::write(&self.file, b"\n");
                    return;
                }
            }
        }
    }

    /// `x.log` becomes `x.log.<time>`, and the oldest ones go. A reader that
    /// follows still has the renamed file open and reads it to its end.
    fn rotate(&mut self) {
        let path = &self.target.path;
        let stamp = compact_time(now_ns());
        let mut rotated = format!("{path}.{stamp}");
        let mut n = 1;
        while rustix::fs::stat(rotated.as_str()).is_ok() {
            rotated = format!("{path}.{stamp}.{n:03}");
            n += 1;
        }
        match rustix::fs::rename(path.as_str(), rotated.as_str()) {
            // Renamed before, but a new file could not be made then.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(_) => return,
        }
        if let Ok(file) = open_append(path) {
            self.file = file;
            self.bytes = 0;
        }
        self.remove_old();
    }

    fn remove_old(&self) {
        let path = std::path::Path::new(&self.target.path);
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return;
        };
        let mut prefix = name.to_owned();
        prefix.push(".");
        let prefix = prefix.to_string_lossy().into_owned();
        let Ok(entries) = std::fs::read_dir(dir) else {
            return;
        };
        let mut rotated: Vec<_> = entries
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with(&prefix))
            .map(|e| e.path())
            .collect();
        rotated.sort_unstable();
        let keep = usize::try_from(self.target.max_files.max(2) - 1).unwrap_or(1);
        for old in rotated.iter().take(rotated.len().saturating_sub(keep)) {
            // What cannot be removed now is tried again at the next rotation.
            let _ = std::fs::remove_file(old);
        }
    }
}

/// A pipe into which bytes of FIFOs are copied to be looked at; one for all
/// logs of a keeper.
#[derive(Debug)]
pub struct Scratch {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Scratch {
    /// Makes it.
    ///
    /// # Errors
    /// pipe2(2)'s.
    pub fn new() -> Result<Self> {
        let flags = rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK;
        let (reader, writer) = rustix::pipe::pipe_with(flags).on("make", "scratch pipe")?;
        Ok(Self { reader, writer })
    }

    /// What a FIFO holds, without taking it; empty at its end.
    fn look<'b>(
        &self,
        from: &OwnedFd,
        buffer: &'b mut Vec<u8>,
    ) -> std::result::Result<&'b [u8], Errno> {
        let flags = rustix::pipe::SpliceFlags::NONBLOCK;
        if rustix::pipe::tee(from, &self.writer, READ_BYTES, flags)? == 0 {
            return Ok(&[]);
        }
        buffer.clear();
        rustix::io::read(&self.reader, rustix::buffer::spare_capacity(buffer))?;
        Ok(buffer)
    }
}

/// Room for one read, on the heap: a keeper's stack stays small, only pages
/// that the kernel fills are touched, and they are given back.
fn read_buffer() -> Vec<u8> {
    Vec::with_capacity(READ_BYTES)
}

/// Takes so many bytes from a FIFO, which holds at least as many.
fn discard(from: &OwnedFd, mut count: usize) -> std::result::Result<(), Errno> {
    let mut buffer = read_buffer();
    while count > 0 {
        buffer.clear();
        let spare = &mut buffer.spare_capacity_mut()[..count.min(READ_BYTES)];
        let (taken, _) = rustix::io::read(from, spare)?;
        if taken.is_empty() {
            return Ok(());
        }
        count -= taken.len();
    }
    Ok(())
}

/// Writes the whole lines of `bytes`, and pieces of those that are too long,
/// as entries; returns how many bytes these took.
fn split(out: &mut Vec<u8>, stamp: &str, stream: Stream, bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while !rest.is_empty() {
        let window = &rest[..rest.len().min(MAX_ENTRY_BYTES)];
        if let Some(n) = window.iter().position(|b| *b == b'\n') {
            entry(out, stamp, stream, b'F', &[], &window[..n]);
            rest = &rest[n + 1..];
        } else if window.len() == MAX_ENTRY_BYTES {
            entry(out, stamp, stream, b'P', &[], window);
            rest = &rest[MAX_ENTRY_BYTES..];
        } else {
            break;
        }
    }
    bytes.len() - rest.len()
}

/// A keeper that was killed in a write left a line without an end.
fn end_torn_line(path: &str, file: &OwnedFd, bytes: u64) {
    let Some(at) = bytes.checked_sub(1) else {
        return;
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let Ok(reader) = rustix::fs::open(path, flags, Mode::empty()) else {
        return;
    };
    let mut last = [0_u8; 1];
    if rustix::io::pread(&reader, &mut last, at) == Ok(1) && last[0] != b'\n' {
        let _ = rustix::io::write(file, b"\n");
    }
}

fn open_append(path: &str) -> std::result::Result<OwnedFd, Errno> {
    let flags =
        OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::from_raw_mode(LOG_MODE))
}

fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

fn entry(out: &mut Vec<u8>, stamp: &str, stream: Stream, tag: u8, head: &[u8], tail: &[u8]) {
    out.extend_from_slice(stamp.as_bytes());
    out.extend_from_slice(match stream {
        Stream::Stdout => b" stdout ",
        Stream::Stderr => b" stderr ",
    });
    out.push(tag);
    out.push(b' ');
    out.extend_from_slice(head);
    out.extend_from_slice(tail);
    out.push(b'\n');
}

/// ns since 1970; 0 before.
#[must_use]
pub fn now_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Year, month, day of a day count since 1970-01-01 (proleptic Gregorian
/// calendar, in 400-year eras that begin on March 1st).
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// RFC 3339 in UTC with nine digits of fraction.
#[must_use]
pub fn timestamp(ns: u64) -> String {
    let (s, fraction) = (ns / 1_000_000_000, ns % 1_000_000_000);
    let (year, month, day) = civil(s / 86_400);
    let (hour, minute, second) = (s / 3600 % 24, s / 60 % 60, s % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z")
}

/// The suffix of rotated files, as the kubelet writes it.
fn compact_time(ns: u64) -> String {
    let s = ns / 1_000_000_000;
    let (year, month, day) = civil(s / 86_400);
    let (hour, minute, second) = (s / 3600 % 24, s / 60 % 60, s % 60);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(max_bytes: u64) -> (Log, std::path::PathBuf) {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("rkube-log-{}-{n}", std::process::id()));
        std::fs::create_dir(&dir).expect("temp dir");
        let path = dir.join("0.log").to_string_lossy().into_owned();
        let target = LogTarget {
            path,
            max_bytes,
            max_files: 3,
        };
        (Log::open(target).expect("open"), dir)
    }

    fn tags(dir: &std::path::Path) -> Vec<(String, usize)> {
        let text = std::fs::read_to_string(dir.join("0.log")).expect("read");
        text.lines()
            .map(|line| {
                let parts: Vec<_> = line.splitn(4, ' ').collect();
                (format!("{} {}", parts[1], parts[2]), parts[3].len())
            })
            .collect()
    }

    #[test]
    fn times_of_the_calendar() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(
            timestamp(951_827_696_000_000_007),
            "2000-02-29T12:34:56.000000007Z"
        );
        assert_eq!(
            timestamp(4_107_542_399_999_999_999),
            "2100-02-28T23:59:59.999999999Z"
        );
        assert_eq!(compact_time(1_735_689_600_000_000_000), "20250101-000000");
    }

    #[test]
    fn lines_pieces_and_an_unfinished_end() {
        let (mut log, dir) = log(1 << 20);
        log.take(Stream::Stdout, b"one\ntw");
        log.take(Stream::Stderr, b"err\n");
        log.take(Stream::Stdout, b"o\n\n");
        log.take(Stream::Stdout, &vec![b'x'; MAX_ENTRY_BYTES + 5]);
        log.finish();
        let want = [
            ("stdout F", 3),
            ("stderr F", 3),
            ("stdout F", 3),
            ("stdout F", 0),
            ("stdout P", MAX_ENTRY_BYTES),
            ("stdout P", 5),
        ];
        let want: Vec<_> = want.iter().map(|(t, n)| ((*t).to_owned(), *n)).collect();
        assert_eq!(tags(&dir), want);
        std::fs::remove_dir_all(&dir).expect("clean up");
    }

    #[test]
    fn a_fifo_is_looked_at_before_it_is_taken() {
        let (mut log, dir) = log(1 << 20);
        let flags = rustix::pipe::PipeFlags::NONBLOCK;
        let (reader, writer) = rustix::pipe::pipe_with(flags).expect("pipe");
        let scratch = Scratch::new().expect("scratch");
        let write = |bytes: &[u8]| rustix::io::write(&writer, bytes).expect("write");
        write(b"one\ntwo\nunfin");
        assert_eq!(
            log.pump_fifo(Stream::Stdout, &reader, &scratch),
            Ok(Pumped::More)
        );
        assert_eq!(
            log.pump_fifo(Stream::Stdout, &reader, &scratch),
            Ok(Pumped::Idle)
        );
        // A keeper that dies here leaves the tail in the FIFO for the next.
        let target = log.target.clone();
        drop(log);
        std::fs::write(&target.path, "2020-01-01T00:00:00Z stdout F torn").expect("write");
        let mut log = Log::open(target).expect("open");
        write(b"ished\n");
        write(&vec![b'y'; MAX_ENTRY_BYTES + 1]);
        assert_eq!(
            log.pump_fifo(Stream::Stdout, &reader, &scratch),
            Ok(Pumped::More)
        );
        drop(writer);
        log.finish_fifo(Stream::Stdout, &reader, &scratch);
        let want = [
            ("stdout F", 4),
            ("stdout F", 10),
            ("stdout P", MAX_ENTRY_BYTES),
            // No newline came: a reader must not see one.
            ("stdout P", 1),
        ];
        let want: Vec<_> = want.iter().map(|(t, n)| ((*t).to_owned(), *n)).collect();
        assert_eq!(tags(&dir), want);
        assert_eq!(
            log.pump_fifo(Stream::Stdout, &reader, &scratch),
            Ok(Pumped::Ended)
        );
        std::fs::remove_dir_all(&dir).expect("clean up");
    }

    #[test]
    fn rotation_keeps_so_many_files() {
        let (mut log, dir) = log(200);
        for n in 0..40 {
            log.take(Stream::Stdout, format!("line {n}\n").as_bytes());
        }
        let files = std::fs::read_dir(&dir).expect("list").count();
        assert_eq!(files, 3);
        let last = std::fs::read_to_string(dir.join("0.log")).expect("read");
        assert!(last.ends_with("line 39\n"), "{last}");
        std::fs::remove_dir_all(&dir).expect("clean up");
    }
}
