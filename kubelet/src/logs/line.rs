//! Lines of the CRI log format: `<RFC 3339 time> <stream> <tags> <message>`.

use std::io::Write;
use std::time::SystemTime;

use k8s_openapi::jiff::Timestamp;

use crate::time::from_timestamp;

/// The longest line that is taken for one; the keeper splits messages at
/// 16 KiB.
pub const MAX_LINE_BYTES: usize = 64 * 1024;
/// The longest message that is joined out of partial lines; more comes in
/// pieces.
pub const MAX_JOINED_BYTES: usize = 1024 * 1024;

/// Where a message was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// When it was written.
    pub time: SystemTime,
    /// The time as it stands in the file.
    pub time_text: &'a str,
    /// Where it was written to.
    pub stream: Stream,
    /// The message goes on in the next line of this stream.
    pub partial: bool,
    /// The message, any bytes but a newline.
    pub message: &'a [u8],
}

/// Reads a line without its newline; `None` for what is none.
#[must_use]
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    if line.len() > MAX_LINE_BYTES {
        return None;
    }
    let (time, rest) = split(line)?;
    let (stream, rest) = split(rest)?;
    // An empty message may lack the space before it.
    let (tags, message) = split(rest).unwrap_or((rest, b""));
    let time_text = std::str::from_utf8(time).ok()?;
    let time: Timestamp = time_text.parse().ok()?;
    let stream = match stream {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // Tags are separated by colons and the first tells whether it is whole.
    let partial = match tags.split(|b| *b == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Line {
        time: from_timestamp(time),
        time_text,
        stream,
        partial,
        message,
    })
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|b| *b == b' ')?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

/// A message as the program wrote it, joined out of partial lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When its first part was written.
    pub time: SystemTime,
    /// That time as it stands in the file.
    pub time_text: String,
    /// Where it was written to.
    pub stream: Stream,
    /// The message without its newline.
    pub message: Vec<u8>,
    /// Whether a newline ended it.
    pub complete: bool,
}

impl Entry {
    /// Writes the message, with its time before it if that is wanted, and
    /// with the newline that it had.
    ///
    /// # Errors
    /// What `out` answered.
    pub fn write_to(&self, out: &mut impl Write, timestamps: bool) -> std::io::Result<()> {
        if timestamps {
            write!(out, "{} ", self.time_text)?;
        }
        out.write_all(&self.message)?;
        if self.complete {
            out.write_all(b"\n")
        } else {
            Ok(())
        }
    }
}

/// Joins partial lines, each stream by itself.
#[derive(Debug, Default)]
pub struct Joiner {
    pending: [Option<Entry>; 2],
}

impl Joiner {
    /// Takes a line in; a message that it completes comes back, or a piece
    /// of one that has grown too long.
    pub fn push(&mut self, line: Line<'_>) -> Option<Entry> {
        let slot = &mut self.pending[usize::from(line.stream == Stream::Stderr)];
        let entry = slot.get_or_insert_with(|| Entry {
            time: line.time,
            time_text: line.time_text.to_owned(),
            stream: line.stream,
            message: Vec::new(),
            complete: false,
        });
        entry.message.extend_from_slice(line.message);
        entry.complete = !line.partial;
        if entry.complete || entry.message.len() >= MAX_JOINED_BYTES {
            return slot.take();
        }
        None
    }

    /// What was begun and not ended.
    pub fn rest(&mut self) -> Option<Entry> {
        self.pending.iter_mut().find_map(Option::take)
    }
}
