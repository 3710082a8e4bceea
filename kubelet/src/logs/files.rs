//! The files of a container's log.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::LogError;
use super::line::{self, MAX_LINE_BYTES};

/// How much is read at a time.
const BLOCK_BYTES: usize = 64 * 1024;

/// The attempts that have a log, in order.
///
/// # Errors
/// The directory cannot be read.
pub fn attempts(dir: &Path) -> Result<Vec<u32>, LogError> {
    let mut list: Vec<u32> = names(dir)?
        .iter()
        .filter_map(|n| split_name(n))
        .map(|(a, _)| a)
        .collect();
    list.sort_unstable();
    list.dedup();
    Ok(list)
}

/// The files of one attempt from the oldest to the present one.
///
/// # Errors
/// The directory cannot be read.
pub fn of_attempt(dir: &Path, attempt: u32) -> Result<Vec<PathBuf>, LogError> {
    let mut list: Vec<(Age, String)> = names(dir)?
        .into_iter()
        .filter_map(|name| {
            let (found, age) = split_name(&name)?;
            (found == attempt).then_some((age, name))
        })
        .collect();
    list.sort_unstable();
    Ok(list.into_iter().map(|(_, name)| dir.join(name)).collect())
}

/// A file of a log, as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    path: PathBuf,
    /// Device and inode, which stay when it is renamed.
    pub(super) identity: (u64, u64),
}

/// How often a log is looked at again that was rotated while it was looked
/// at. Ten MiB are written between two rotations.
pub(super) const MAX_LOOKS: u32 = 256;

/// The files of one attempt as they stood at one moment: names that are
/// listed while a rotation renames them may be old, new or missing, and then
/// lines would be told twice or not at all. Two looks that find the same had
/// no rotation between them.
pub(super) fn stand(dir: &Path, attempt: u32) -> Result<Vec<Found>, LogError> {
    let mut before = look(dir, attempt)?;
    for _ in 0..MAX_LOOKS {
        let now = look(dir, attempt)?;
        if now == before {
            return Ok(now);
        }
        before = now;
    }
    Err(moving(dir))
}

fn look(dir: &Path, attempt: u32) -> Result<Vec<Found>, LogError> {
    let mut found = Vec::new();
    for path in of_attempt(dir, attempt)? {
        match std::fs::metadata(&path) {
            Ok(stat) => found.push(Found {
                path,
                identity: (stat.dev(), stat.ino()),
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(LogError::Call {
                    call: "stat",
                    path,
                    source,
                });
            }
        }
    }
    Ok(found)
}

/// A log that is rotated faster than it can be looked at.
pub(super) fn moving(dir: &Path) -> LogError {
    LogError::Call {
        call: "find the files of a log that is rotated all the while in",
        path: dir.to_path_buf(),
        source: rustix::io::Errno::AGAIN.into(),
    }
}

impl Found {
    /// Opens it; `None` when its name means another file by now, or none.
    pub(super) fn open(&self) -> Result<Option<Reader>, LogError> {
        match Reader::open(&self.path) {
            Ok(reader) if reader.identity()? == self.identity => Ok(Some(reader)),
            Ok(_) => Ok(None),
            Err(LogError::Call { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }
}

/// The file of an attempt that is written to, if it is that one.
pub(super) fn is_present(dir: &Path, attempt: u32, identity: (u64, u64)) -> bool {
    std::fs::metadata(dir.join(format!("{attempt}.log")))
        .is_ok_and(|stat| (stat.dev(), stat.ino()) == identity)
}

/// Orders files of an attempt: rotated ones by time and number, then the
/// present one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Age {
    Rotated(String, u32),
    Present,
}

/// The attempt and age that a file name tells; `None` for other files.
pub(super) fn split_name(name: &str) -> Option<(u32, Age)> {
    let (attempt, rest) = name.split_once(".log")?;
    let attempt = attempt.parse().ok()?;
    if rest.is_empty() {
        return Some((attempt, Age::Present));
    }
    let rest = rest.strip_prefix('.')?;
    let (stamp, number) = match rest.split_once('.') {
        Some((stamp, number)) => (stamp, number.parse().ok()?),
        None => (rest, 0),
    };
    let dated = stamp.len() == "YYYYMMDD-HHMMSS".len()
        && stamp.bytes().enumerate().all(|(i, b)| {
            if i == 8 {
                b == b'-'
            } else {
                b.is_ascii_digit()
            }
        });
    dated.then(|| (attempt, Age::Rotated(stamp.to_owned(), number)))
}

fn names(dir: &Path) -> Result<Vec<String>, LogError> {
    let failed = |source| LogError::Call {
        call: "readdir",
        path: dir.to_path_buf(),
        source,
    };
    let mut names = Vec::new();
    match std::fs::read_dir(dir) {
        Ok(entries) => {
            for entry in entries {
                if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
                    names.push(name);
                }
            }
            Ok(names)
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(names),
        Err(e) => Err(failed(e)),
    }
}

/// An open log file that gives whole lines.
#[derive(Debug)]
pub struct Reader {
    file: File,
    path: PathBuf,
    buffer: Vec<u8>,
    /// Where in `buffer` the next line begins.
    start: usize,
    /// The line that is being read is too long and is left out.
    skipping: bool,
}

impl Reader {
    /// Opens a file at its beginning.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        let file = File::open(path).map_err(|source| LogError::Call {
            call: "open",
            path: path.to_path_buf(),
            source,
        })?;
        Ok(Self {
            file,
            path: path.to_path_buf(),
            buffer: Vec::new(),
            start: 0,
            skipping: false,
        })
    }

    /// Device and inode, which stay when the file is renamed.
    ///
    /// # Errors
    /// What fstat(2) answered.
    pub fn identity(&self) -> Result<(u64, u64), LogError> {
        let stat = self.file.metadata().map_err(|e| self.failed("fstat", e))?;
        Ok((stat.dev(), stat.ino()))
    }

    /// Whether the file has no name any more.
    ///
    /// # Errors
    /// What fstat(2) answered.
    pub fn removed(&self) -> Result<bool, LogError> {
        let stat = self.file.metadata().map_err(|e| self.failed("fstat", e))?;
        Ok(stat.nlink() == 0)
    }

    /// The next line without its newline; `None` while there is no whole one.
    ///
    /// # Errors
    /// What read(2) answered.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, LogError> {
        loop {
            let ready = self.buffer[self.start..].iter().position(|b| *b == b'\n');
            if let Some(length) = ready {
                let begin = self.start;
                self.start += length + 1;
                if std::mem::take(&mut self.skipping) {
                    continue;
                }
                return Ok(Some(&self.buffer[begin..begin + length]));
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            if self.buffer.len() > MAX_LINE_BYTES {
                self.buffer.clear();
                self.skipping = true;
            }
            let old = self.buffer.len();
            self.buffer.resize(old + BLOCK_BYTES, 0);
            let read = loop {
                match self.file.read(&mut self.buffer[old..]) {
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    other => break other,
                }
            };
            self.buffer.truncate(old + *read.as_ref().unwrap_or(&0));
            if read.map_err(|e| self.failed("read", e))? == 0 {
                return Ok(None);
            }
        }
    }

    /// Goes to where the last `lines` messages begin, and with them a message
    /// that has not ended yet; how many there are, at most `lines`, and the
    /// offset in the file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn seek_to_tail(&mut self, lines: u64) -> Result<(u64, u64), LogError> {
        let end = self
            .file
            .seek(SeekFrom::End(0))
            .map_err(|e| self.failed("lseek", e))?;
        let mut found = 0u64;
        let mut position = end;
        // The line that `position` lies in, from there to its newline.
        let mut tail: Vec<u8> = Vec::new();
        let mut begin = end;
        let mut done = false;
        while position > 0 && !done {
            let length = u64::try_from(BLOCK_BYTES).unwrap_or(u64::MAX).min(position);
            position -= length;
            self.file
                .seek(SeekFrom::Start(position))
                .map_err(|e| self.failed("lseek", e))?;
            let mut block = vec![0; usize::try_from(length).unwrap_or(BLOCK_BYTES)];
            self.file
                .read_exact(&mut block)
                .map_err(|e| self.failed("read", e))?;
            let mut stop = block.len();
            for at in (0..block.len())
                .rev()
                .filter(|at| block[*at] == b'\n')
                .collect::<Vec<_>>()
            {
                let mut text = block[at + 1..stop].to_vec();
                text.append(&mut tail);
                let start = position + u64::try_from(at).unwrap_or(0) + 1;
                if ends_message(&text) {
                    if found == lines {
                        done = true;
                        break;
                    }
                    found += 1;
                }
                begin = start;
                stop = at;
            }
            if !done {
                let mut text = block[..stop].to_vec();
                text.append(&mut tail);
                text.truncate(MAX_LINE_BYTES + 1);
                tail = text;
            }
        }
        if !done {
            // The first line of the file has no newline before it. One that
            // ends no message belongs to the one that follows.
            let ends = ends_message(&tail);
            if !ends || found < lines {
                found += u64::from(ends);
                begin = 0;
            }
        }
        self.file
            .seek(SeekFrom::Start(begin))
            .map_err(|e| self.failed("lseek", e))?;
        self.buffer.clear();
        self.start = 0;
        Ok((found, begin))
    }

    fn failed(&self, call: &'static str, source: std::io::Error) -> LogError {
        LogError::Call {
            call,
            path: self.path.clone(),
            source,
        }
    }
}

/// Whether a line is one that ends a message.
fn ends_message(text: &[u8]) -> bool {
    line::parse(text).is_some_and(|l| !l.partial)
}
