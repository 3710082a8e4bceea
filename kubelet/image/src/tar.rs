//! A streaming tar reader for bytes that nobody trusts.
//!
//! Formats: v7, ustar, GNU (long names, base-256 numbers, sparse 'S') and pax
//! (records `path linkpath size uid gid mtime SCHILY.xattr.* GNU.sparse.*`);
//! POSIX.1-2017 pax "ustar Interchange Format" and the GNU tar manual,
//! "Tar Internals". Everything that an archive could make large is bounded by
//! a constant of [`crate::limits`]; nothing is read into memory because a size
//! field says so.

use std::io;

use crate::error::Refusal;
use crate::limits::{MAX_FILE_BYTES, MAX_SPARSE_SEGMENTS, MAX_TAR_META_BYTES};
use crate::pax::{Pax, decimal, parse_pax};

/// Size of a tar block.
pub(crate) const BLOCK_BYTES: usize = 512;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// Where the archive's bytes come from.
pub(crate) trait Input {
    /// The bytes at hand, at least one unless the input ended.
    fn fill(&mut self) -> io::Result<&[u8]>;
    /// Marks `n` of them as used.
    fn consume(&mut self, n: usize);
    /// Skips up to `n` bytes, returns how many there were.
    fn skip(&mut self, n: u64) -> io::Result<u64> {
        let mut left = n;
        while left > 0 {
            let have = self.fill()?.len();
            if have == 0 {
                break;
            }
            let take = usize::try_from(left).map_or(have, |l| l.min(have));
            self.consume(take);
            left -= take as u64;
        }
        Ok(n - left)
    }
}

impl<I: Input> Input for &mut I {
    fn fill(&mut self) -> io::Result<&[u8]> {
        (**self).fill()
    }
    fn consume(&mut self, n: usize) {
        (**self).consume(n);
    }
    fn skip(&mut self, n: u64) -> io::Result<u64> {
        (**self).skip(n)
    }
}

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    Char,
    Block,
    Dir,
    Fifo,
}

/// One entry, its meta data whole, its data still in the input.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// Logical size of a file.
    pub(crate) size: u64,
    pub(crate) dev: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// `(offset, length)` of the data segments of a sparse file.
    pub(crate) sparse: Option<Vec<(u64, u64)>>,
}

/// Why reading ended.
#[derive(Debug)]
pub(crate) enum TarError {
    Io(io::Error),
    Bad(Refusal),
}

impl From<io::Error> for TarError {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

impl From<Refusal> for TarError {
    fn from(e: Refusal) -> Self {
        Self::Bad(e)
    }
}

pub(crate) fn rule<T>(text: &'static str) -> Result<T, TarError> {
    Err(TarError::Bad(Refusal::Rule(text)))
}

/// Reads one archive.
pub(crate) struct TarReader<I> {
    pub(crate) input: I,
    offset: u64,
    /// Physical bytes of the current entry not read yet.
    remaining: u64,
    padding: u64,
}

impl<I: Input> TarReader<I> {
    pub(crate) fn new(input: I) -> Self {
        Self {
            input,
            offset: 0,
            remaining: 0,
            padding: 0,
        }
    }

    /// Bytes of the archive read or skipped so far.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Physical bytes of the current entry's data still to be read.
    pub(crate) fn remaining(&self) -> u64 {
        self.remaining
    }

    /// The next entry; what is left of the one before is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let left = self.remaining.checked_add(self.padding);
        self.skip(left.ok_or(Refusal::Number("size"))?)?;
        (self.remaining, self.padding) = (0, 0);
        let mut pax = Pax::default();
        let mut long_name = None;
        let mut long_link = None;
        let mut pending = false;
        loop {
            let Some(header) = self.header()? else {
                if pending {
                    return rule("it ends after an extension header");
                }
                return Ok(None);
            };
            let kind = header[156];
            let size = number(&header[124..136], "size")?;
            match kind {
                b'x' | b'L' | b'K' => {
                    pending = true;
                    let data = self.meta(size)?;
                    match kind {
                        b'x' => parse_pax(&data, &mut pax)?,
                        b'L' => long_name = Some(until_nul(&data).to_vec()),
                        _ => long_link = Some(until_nul(&data).to_vec()),
                    }
                }
                // Global headers (git archive writes one) hold comments.
                b'g' => drop(self.meta(size)?),
                _ => {
                    return self
                        .entry(&header, size, pax, long_name, long_link)
                        .map(Some);
                }
            }
        }
    }

    /// The data at hand of the current entry, empty at its end.
    pub(crate) fn fill_data(&mut self) -> Result<&[u8], TarError> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        let have = self.input.fill()?;
        if have.is_empty() {
            return rule("it ends inside an entry");
        }
        let n = usize::try_from(self.remaining).map_or(have.len(), |r| r.min(have.len()));
        Ok(&have[..n])
    }

    /// Marks data as used; `n` is at most what `fill_data` gave.
    pub(crate) fn consume_data(&mut self, n: usize) {
        self.input.consume(n);
        self.remaining -= n as u64;
        self.offset += n as u64;
    }

    fn skip(&mut self, n: u64) -> Result<(), TarError> {
        let done = self.input.skip(n)?;
        self.offset += done;
        if done < n {
            rule("it ends inside an entry")
        } else {
            Ok(())
        }
    }

    /// The next header block; `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<[u8; BLOCK_BYTES]>, TarError> {
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if block.iter().all(|b| *b == 0) {
            return match self.block()? {
                Some(next) if next.iter().any(|b| *b != 0) => {
                    rule("an entry follows a block of zeros")
                }
                _ => Ok(None),
            };
        }
        let stored = number(&block[148..156], "checksum")?;
        let (mut unsigned, mut signed) = (0_u64, 0_i64);
        for (i, b) in block.iter().enumerate() {
            let b = if (148..156).contains(&i) { b' ' } else { *b };
            unsigned += u64::from(b);
            signed += i64::from(b.cast_signed());
        }
        if stored != unsigned && i64::try_from(stored) != Ok(signed) {
            return rule("a header's checksum is wrong");
        }
        Ok(Some(block))
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK_BYTES]>, TarError> {
        let mut block = [0; BLOCK_BYTES];
        let mut have = 0;
        while have < BLOCK_BYTES {
            let data = self.input.fill()?;
            if data.is_empty() {
                return if have == 0 {
                    Ok(None)
                } else {
                    rule("it ends inside a header")
                };
            }
            let n = data.len().min(BLOCK_BYTES - have);
            block[have..have + n].copy_from_slice(&data[..n]);
            self.input.consume(n);
            self.offset += n as u64;
            have += n;
        }
        Ok(Some(block))
    }

    /// Data of an extension header, bounded.
    fn meta(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_TAR_META_BYTES {
            return Err(Refusal::Limit {
                what: "an extension header",
                limit: MAX_TAR_META_BYTES,
                unit: "bytes",
            }
            .into());
        }
        let mut data = Vec::new();
        self.remaining = size;
        while self.remaining > 0 {
            let chunk = self.fill_data()?;
            data.extend_from_slice(chunk);
            let n = chunk.len();
            self.consume_data(n);
        }
        self.skip(pad(size))?;
        Ok(data)
    }

    fn entry(
        &mut self,
        h: &[u8; BLOCK_BYTES],
        header_size: u64,
        pax: Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, TarError> {
        let ustar = &h[257..263] == b"ustar\0";
        let mut path = match (pax.sparse_name, pax.path, long_name) {
            (Some(n), _, _) | (None, Some(n), _) | (None, None, Some(n)) => n,
            (None, None, None) => {
                let name = until_nul(&h[..100]);
                let prefix = if ustar { until_nul(&h[345..500]) } else { &[] };
                if prefix.is_empty() {
                    name.to_vec()
                } else {
                    [prefix, b"/", name].concat()
                }
            }
        };
        let link = pax
            .link
            .or(long_link)
            .unwrap_or_else(|| until_nul(&h[157..257]).to_vec());
        let kind = match h[156] {
            // v7 has no directory type: the name says it.
            b'0' | 0 if path.last() == Some(&b'/') => Kind::Dir,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            other => return Err(Refusal::UnknownType(other).into()),
        };
        while path.len() > 1 && path.last() == Some(&b'/') {
            path.pop();
        }
        // Sizes of everything but files are decoration (as Go's reader, which
        // Docker and containerd use, has it).
        let physical = if kind == Kind::File {
            pax.size.unwrap_or(header_size)
        } else {
            0
        };
        self.remaining = physical;
        self.padding = pad(physical);
        let is_device = matches!(kind, Kind::Char | Kind::Block);
        let id = |v: u64, what| u32::try_from(v).map_err(|_| Refusal::Number(what));
        let mut entry = Entry {
            kind,
            path,
            link,
            // Only permission bits: the type is the entry's.
            mode: id(number(&h[100..108], "mode")? & 0o7777, "mode")?,
            uid: match pax.uid {
                Some(v) => v,
                None => id(number(&h[108..116], "uid")?, "uid")?,
            },
            gid: match pax.gid {
                Some(v) => v,
                None => id(number(&h[116..124], "gid")?, "gid")?,
            },
            mtime: match pax.mtime {
                Some(t) => t,
                None => (signed_number(&h[136..148], "mtime")?, 0),
            },
            size: physical,
            dev: if is_device {
                (
                    id(number(&h[329..337], "device major")?, "device major")?,
                    id(number(&h[337..345], "device minor")?, "device minor")?,
                )
            } else {
                (0, 0)
            },
            xattrs: pax.xattrs,
            sparse: None,
        };
        // uid_t -1 means "unchanged" to chown(2), never an owner.
        if entry.uid == u32::MAX || entry.gid == u32::MAX {
            return Err(Refusal::Number("uid or gid").into());
        }
        if h[156] == b'S' {
            let (map, size) = self.gnu_sparse(h)?;
            entry.sparse = Some(map);
            entry.size = size;
        } else if kind == Kind::File && pax.sparse_in_data {
            entry.sparse = Some(self.sparse_map_in_data()?);
            entry.size = pax
                .sparse_size
                .ok_or(Refusal::Rule("a sparse file has no size"))?;
        } else if kind == Kind::File && pax.sparse_map.is_some() {
            entry.sparse = pax.sparse_map;
            entry.size = pax
                .sparse_size
                .ok_or(Refusal::Rule("a sparse file has no size"))?;
        }
        if entry.size > MAX_FILE_BYTES || physical > MAX_FILE_BYTES {
            let what = "a file";
            return Err(Refusal::Limit {
                what,
                limit: MAX_FILE_BYTES,
                unit: "bytes",
            }
            .into());
        }
        if let Some(map) = &entry.sparse {
            check_sparse(map, entry.size, self.remaining)?;
        }
        Ok(entry)
    }

    /// The map of an old GNU sparse file: four segments in the header, more
    /// in extension blocks of 21 (GNU tar manual, "Old GNU Format").
    fn gnu_sparse(&mut self, h: &[u8; 512]) -> Result<(Vec<(u64, u64)>, u64), TarError> {
        let mut map = Vec::new();
        let segments = |bytes: &[u8], map: &mut Vec<(u64, u64)>| -> Result<(), TarError> {
            for s in bytes.chunks_exact(24) {
                if s[0] == 0 {
                    break;
                }
                if map.len() >= MAX_SPARSE_SEGMENTS {
                    return Err(sparse_limit());
                }
                map.push((
                    number(&s[..12], "sparse offset")?,
                    number(&s[12..], "sparse length")?,
                ));
            }
            Ok(())
        };
        segments(&h[386..482], &mut map)?;
        let size = number(&h[483..495], "sparse size")?;
        let mut more = h[482] != 0;
        let mut blocks = 0;
        while more {
            blocks += 1;
            if blocks > MAX_SPARSE_SEGMENTS / 21 {
                return Err(sparse_limit());
            }
            let block = self
                .block()?
                .ok_or(Refusal::Rule("it ends inside a sparse map"))?;
            segments(&block[..504], &mut map)?;
            more = block[504] != 0;
        }
        Ok((map, size))
    }

    /// The map of a pax 1.0 sparse file: decimal numbers, one a line, padded
    /// to a block, in front of the data.
    fn sparse_map_in_data(&mut self) -> Result<Vec<(u64, u64)>, TarError> {
        let mut used: u64 = 0;
        let mut number = |this: &mut Self| -> Result<u64, TarError> {
            let mut text = Vec::new();
            loop {
                let b = *this
                    .fill_data()?
                    .first()
                    .ok_or(Refusal::Rule("a sparse map is cut off"))?;
                this.consume_data(1);
                used += 1;
                if b == b'\n' {
                    return decimal(&text, "sparse map");
                }
                if text.len() >= 20 {
                    return Err(Refusal::Number("sparse map").into());
                }
                text.push(b);
            }
        };
        let count = usize::try_from(number(self)?).unwrap_or(usize::MAX);
        if count > MAX_SPARSE_SEGMENTS {
            return Err(sparse_limit());
        }
        let mut map = Vec::new();
        for _ in 0..count {
            map.push((number(self)?, number(self)?));
        }
        let mut rest = pad(used);
        while rest > 0 {
            let have = self.fill_data()?.len() as u64;
            if have == 0 {
                return rule("a sparse map is cut off");
            }
            let n = have.min(rest);
            // At most one block.
            self.consume_data(usize::try_from(n).unwrap_or(0));
            rest -= n;
        }
        Ok(map)
    }
}

pub(crate) fn sparse_limit() -> TarError {
    let limit = MAX_SPARSE_SEGMENTS as u64;
    Refusal::Limit {
        what: "a sparse file",
        limit,
        unit: "segments",
    }
    .into()
}

fn check_sparse(map: &[(u64, u64)], size: u64, physical: u64) -> Result<(), TarError> {
    let (mut end, mut sum) = (0_u64, 0_u64);
    for (offset, len) in map {
        let next = offset
            .checked_add(*len)
            .ok_or(Refusal::Number("sparse map"))?;
        if *offset < end || next > size {
            return rule("a sparse map is out of order or beyond the file");
        }
        end = next;
        sum += len;
    }
    if sum == physical {
        Ok(())
    } else {
        rule("a sparse map does not fit its data")
    }
}

fn pad(size: u64) -> u64 {
    (BLOCK - size % BLOCK) % BLOCK
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or(&[])
}

/// A non-negative header number: octal digits between blanks and NULs, or
/// base 256 if the first byte's high bit is set.
fn number(field: &[u8], what: &'static str) -> Result<u64, TarError> {
    u64::try_from(signed_number(field, what)?).map_err(|_| Refusal::Number(what).into())
}

fn signed_number(field: &[u8], what: &'static str) -> Result<i64, TarError> {
    let bad = || TarError::from(Refusal::Number(what));
    let (Some(first), Some(rest)) = (field.first(), field.get(1..)) else {
        return Err(bad());
    };
    if first & 0x80 != 0 {
        // Two's complement, big endian; bit 6 of the first byte is the sign.
        let mut value: i128 = if first & 0x40 != 0 {
            i128::from(*first) - 0x100
        } else {
            i128::from(first & 0x3f)
        };
        for b in rest {
            value = value << 8 | i128::from(*b);
        }
        return i64::try_from(value).map_err(|_| bad());
    }
    let start = field
        .iter()
        .position(|b| !matches!(b, 0 | b' '))
        .unwrap_or(field.len());
    let digits = field[start..]
        .split(|b| *b == 0 || *b == b' ')
        .next()
        .unwrap_or(&[]);
    let mut value: i64 = 0;
    for b in digits {
        if !(b'0'..=b'7').contains(b) {
            return Err(bad());
        }
        value = value.checked_mul(8).ok_or_else(bad)? + i64::from(b - b'0');
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let n = |f: &[u8]| signed_number(f, "x").ok();
        assert_eq!(n(b"0000644\0"), Some(0o644));
        assert_eq!(n(b"   644 \0"), Some(0o644));
        assert_eq!(n(b"\0\0\0\0"), Some(0));
        assert_eq!(n(b"77777777777\0"), Some(0o77_777_777_777));
        assert_eq!(n(b"0008\0"), None);
        assert_eq!(n(b"-1\0"), None);
        assert_eq!(n(&[0x80, 0, 0, 1, 0, 0, 0, 0]), Some(1 << 32));
        assert_eq!(n(&[0xff; 12]), Some(-1));
        assert_eq!(
            n(&[
                0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff
            ]),
            None
        );
        assert!(number(&[0xff; 12], "x").is_err());
    }
}
