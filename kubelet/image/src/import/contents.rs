//! Named members of a source, whether it is a directory or a tar archive.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};
use crate::fsutil;
use crate::limits::{MAX_ARCHIVE_MEMBERS, PIPE_CHUNK_BYTES};
use crate::tar::{Input, Kind, TarError, TarReader};

/// Links followed from one archive member to another.
const MAX_MEMBER_LINKS: usize = 8;

pub(crate) enum Contents {
    Dir(OwnedFd),
    Archive(Archive),
}

impl Contents {
    /// Opens a member; `None` if there is none of this name.
    pub(crate) fn open(&self, name: &str) -> Result<Option<(Section, u64)>> {
        match self {
            Self::Dir(fd) => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK;
                let file = match fsutil::open_in_root(fd.as_fd(), name.as_bytes(), flags) {
                    Ok(fd) => File::from(fd),
                    Err(Errno::NOENT) => return Ok(None),
                    Err(e) => return Err(e).ctx("open", name),
                };
                let st = rustix::fs::fstat(&file).ctx("stat", name)?;
                if FileType::from_raw_mode(st.st_mode) != FileType::RegularFile {
                    let reason = "not a regular file".into();
                    return Err(Error::Malformed {
                        what: name.to_string(),
                        reason,
                    });
                }
                let section = Section::whole(&file).ctx("stat", name)?;
                let size = section.left;
                Ok(Some((section, size)))
            }
            Self::Archive(a) => match a.find(name) {
                Some((pos, left)) => {
                    let file = a.file.try_clone().ctx("dup", name)?;
                    Ok(Some((Section { file, pos, left }, left)))
                }
                None => Ok(None),
            },
        }
    }

    /// Reads a small member whole.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        match self.open(name)? {
            Some((section, _)) => fsutil::read_bounded(section, limit, name).map(Some),
            None => Ok(None),
        }
    }

    pub(crate) fn size(&self, name: &str) -> Option<u64> {
        self.open(name).ok().flatten().map(|(_, n)| n)
    }
}

/// A part of a file, read by offset: several can be read at once.
pub(crate) struct Section {
    file: File,
    pos: u64,
    left: u64,
}

impl Section {
    pub(crate) fn whole(file: &File) -> io::Result<Self> {
        Ok(Self {
            file: file.try_clone()?,
            pos: 0,
            left: file.metadata()?.len(),
        })
    }
}

impl Read for Section {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(buf.len(), |l| l.min(buf.len()));
        let n = self.file.read_at(&mut buf[..most], self.pos)?;
        self.pos += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

enum Member {
    Data { offset: u64, len: u64 },
    Link(String),
}

/// A seekable, uncompressed tar archive and where its members lie.
pub(crate) struct Archive {
    file: File,
    members: HashMap<String, Member>,
}

impl Archive {
    pub(crate) fn index(file: File, what: &str) -> Result<Self> {
        let input = SeekInput::new(&file).map_err(|source| Error::Read {
            what: what.into(),
            source,
        })?;
        let mut tar = TarReader::new(input);
        let mut members = HashMap::new();
        loop {
            let entry = match tar.next() {
                Ok(Some(e)) => e,
                Ok(None) => break,
                Err(e) => return Err(tar_error(what, tar.offset(), e)),
            };
            if members.len() >= MAX_ARCHIVE_MEMBERS {
                let limit = MAX_ARCHIVE_MEMBERS as u64;
                return Err(Error::Limit {
                    what: what.into(),
                    limit,
                    unit: "members",
                });
            }
            // Names that are not UTF-8 or leave the archive name nothing that
            // a manifest could ask for.
            let Some(name) = std::str::from_utf8(&entry.path)
                .ok()
                .and_then(|p| normal("", p))
            else {
                continue;
            };
            let member = match entry.kind {
                Kind::File if entry.sparse.is_none() => Member::Data {
                    offset: tar.offset(),
                    len: tar.remaining(),
                },
                Kind::Symlink | Kind::HardLink => {
                    let base = if entry.kind == Kind::Symlink {
                        parent(&name)
                    } else {
                        ""
                    };
                    let target = std::str::from_utf8(&entry.link)
                        .ok()
                        .and_then(|l| normal(base, l));
                    let Some(target) = target else { continue };
                    Member::Link(target)
                }
                _ => continue,
            };
            members.insert(name, member);
        }
        Ok(Self { file, members })
    }

    fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = normal("", name)?;
        for _ in 0..MAX_MEMBER_LINKS {
            match self.members.get(&name)? {
                Member::Data { offset, len } => return Some((*offset, *len)),
                Member::Link(to) => name.clone_from(to),
            }
        }
        None
    }
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(dir, _)| dir)
}

/// Joins and cleans member names; `None` if the result leaves the archive.
fn normal(base: &str, name: &str) -> Option<String> {
    if name.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in base.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            p => parts.push(p),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

pub(crate) fn tar_error(what: &str, offset: u64, e: TarError) -> Error {
    let what = what.to_string();
    match e {
        TarError::Io(source) => Error::Read { what, source },
        TarError::Bad(problem) => Error::Tar {
            what,
            offset,
            problem,
        },
    }
}

/// A tar input over a seekable file: skipping costs nothing.
struct SeekInput<'f> {
    file: &'f File,
    len: u64,
    pos: u64,
    buf: Vec<u8>,
    at: usize,
}

impl<'f> SeekInput<'f> {
    /// Headers are read a few at a time; data is skipped.
    const READ_BYTES: usize = 4096;

    fn new(file: &'f File) -> io::Result<Self> {
        Ok(Self {
            file,
            len: file.metadata()?.len(),
            pos: 0,
            buf: Vec::new(),
            at: 0,
        })
    }
}

impl Input for SeekInput<'_> {
    fn fill(&mut self) -> io::Result<&[u8]> {
        if self.at == self.buf.len() {
            self.buf.resize(Self::READ_BYTES, 0);
            let n = self.file.read_at(&mut self.buf, self.pos)?;
            self.buf.truncate(n);
            self.pos += n as u64;
            self.at = 0;
        }
        Ok(&self.buf[self.at..])
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }

    fn skip(&mut self, n: u64) -> io::Result<u64> {
        let have = (self.buf.len() - self.at) as u64;
        if n <= have {
            self.at += usize::try_from(n).unwrap_or(0);
            return Ok(n);
        }
        self.at = self.buf.len();
        let step = (n - have).min(self.len.saturating_sub(self.pos));
        self.pos += step;
        Ok(have + step)
    }
}

/// A tar input over any reader.
pub(crate) struct ReaderInput<R>(BufReader<R>);

impl<R: Read> ReaderInput<R> {
    pub(crate) fn new(r: R) -> Self {
        Self(BufReader::with_capacity(PIPE_CHUNK_BYTES, r))
    }
}

impl<R: Read> Input for ReaderInput<R> {
    fn fill(&mut self) -> io::Result<&[u8]> {
        self.0.fill_buf()
    }
    fn consume(&mut self, n: usize) {
        self.0.consume(n);
    }
}
