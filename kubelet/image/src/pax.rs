//! pax extended headers: `LEN KEY=VALUE\n` records (POSIX.1-2017 pax), the
//! ones that matter to an image layer; the others are skipped.

use crate::error::Refusal;
use crate::limits::{
    MAX_NAME_BYTES, MAX_SPARSE_SEGMENTS, MAX_XATTR_VALUE_BYTES, MAX_XATTRS_PER_ENTRY,
};
use crate::tar::{TarError, rule, sparse_limit};

/// What the records of one entry say.
#[derive(Default)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) mtime: Option<(i64, u32)>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse_name: Option<Vec<u8>>,
    pub(crate) sparse_size: Option<u64>,
    pub(crate) sparse_map: Option<Vec<(u64, u64)>>,
    /// An offset whose `numbytes` record is still to come (format 0.0).
    pub(crate) sparse_offset: Option<u64>,
    /// Format 1.0: the map stands before the data.
    pub(crate) sparse_in_data: bool,
}

/// A plain decimal number in range.
pub(crate) fn decimal<T: TryFrom<u64>>(text: &[u8], what: &'static str) -> Result<T, TarError> {
    let bad = || TarError::from(Refusal::Number(what));
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Err(bad());
    }
    let v = std::str::from_utf8(text)
        .ok()
        .and_then(|t| t.parse::<u64>().ok())
        .ok_or_else(bad)?;
    T::try_from(v).map_err(|_| bad())
}

/// Seconds with an optional fraction, maybe negative.
fn pax_time(text: &[u8]) -> Result<(i64, u32), TarError> {
    let bad = || TarError::from(Refusal::Number("mtime"));
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(t) => (true, t),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |b| *b == b'.');
    let whole = i64::try_from(decimal::<u64>(parts.next().unwrap_or(&[]), "mtime")?);
    let whole = whole.map_err(|_| bad())?;
    let mut nanos: u32 = 0;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return Err(bad());
        }
        for i in 0..9 {
            let digit = fraction.get(i).map_or(0, |b| u32::from(b - b'0'));
            nanos = nanos * 10 + digit;
        }
    }
    Ok(match (negative, nanos) {
        (false, n) => (whole, n),
        (true, 0) => (-whole, 0),
        (true, n) => (-whole - 1, 1_000_000_000 - n),
    })
}

/// Reads the records of one extended header.
pub(crate) fn parse_pax(mut data: &[u8], pax: &mut Pax) -> Result<(), TarError> {
    while !data.is_empty() {
        // Some writers fill up with NULs.
        if data[0] == 0 {
            break;
        }
        let broken = || TarError::from(Refusal::Rule("a pax record is broken"));
        let space = data
            .iter()
            .take(20)
            .position(|b| *b == b' ')
            .ok_or_else(broken)?;
        let len: usize = decimal::<u64>(&data[..space], "pax record length")
            .and_then(|n| usize::try_from(n).map_err(|_| broken()))?;
        if len <= space + 1 || len > data.len() || data[len - 1] != b'\n' {
            return Err(broken());
        }
        let record = &data[space + 1..len - 1];
        data = &data[len..];
        let eq = record.iter().position(|b| *b == b'=').ok_or_else(broken)?;
        pax_record(&record[..eq], &record[eq + 1..], pax)?;
    }
    if pax.sparse_offset.is_some() {
        rule("a sparse map is cut off")
    } else {
        Ok(())
    }
}

fn pax_record(key: &[u8], value: &[u8], pax: &mut Pax) -> Result<(), TarError> {
    let text = |v: &[u8]| -> Result<Vec<u8>, TarError> {
        if v.is_empty() || v.contains(&0) {
            Err(Refusal::Pax(String::from_utf8_lossy(key).into_owned()).into())
        } else {
            Ok(v.to_vec())
        }
    };
    match key {
        b"path" => pax.path = Some(text(value)?),
        b"linkpath" => pax.link = Some(text(value)?),
        b"size" => pax.size = Some(decimal(value, "size")?),
        b"uid" => pax.uid = Some(decimal(value, "uid")?),
        b"gid" => pax.gid = Some(decimal(value, "gid")?),
        b"mtime" => pax.mtime = Some(pax_time(value)?),
        b"GNU.sparse.name" => pax.sparse_name = Some(text(value)?),
        b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
            pax.sparse_size = Some(decimal(value, "sparse size")?);
        }
        b"GNU.sparse.major" => {
            pax.sparse_in_data = match value {
                b"1" => true,
                b"0" => false,
                _ => return Err(Refusal::Pax("GNU.sparse.major".into()).into()),
            }
        }
        b"GNU.sparse.offset" => pax.sparse_offset = Some(decimal(value, "sparse offset")?),
        b"GNU.sparse.numbytes" => {
            let offset = pax
                .sparse_offset
                .take()
                .ok_or(Refusal::Rule("a sparse map is broken"))?;
            let map = pax.sparse_map.get_or_insert_default();
            if map.len() >= MAX_SPARSE_SEGMENTS {
                return Err(sparse_limit());
            }
            map.push((offset, decimal(value, "sparse length")?));
        }
        b"GNU.sparse.map" => {
            let mut map = Vec::new();
            let mut numbers = value.split(|b| *b == b',').filter(|n| !n.is_empty());
            while let Some(offset) = numbers.next() {
                let len = numbers
                    .next()
                    .ok_or(Refusal::Rule("a sparse map is broken"))?;
                if map.len() >= MAX_SPARSE_SEGMENTS {
                    return Err(sparse_limit());
                }
                map.push((decimal(offset, "sparse map")?, decimal(len, "sparse map")?));
            }
            pax.sparse_map = Some(map);
        }
        _ => {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                return pax_xattr(name, value, pax);
            }
        }
    }
    Ok(())
}

fn pax_xattr(name: &[u8], value: &[u8], pax: &mut Pax) -> Result<(), TarError> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains(&0) {
        return rule("an xattr name is empty, too long or holds a NUL");
    }
    if value.len() > MAX_XATTR_VALUE_BYTES {
        let limit = MAX_XATTR_VALUE_BYTES as u64;
        return Err(Refusal::Limit {
            what: "an xattr",
            limit,
            unit: "bytes",
        }
        .into());
    }
    if let Some(old) = pax.xattrs.iter_mut().find(|(n, _)| n == name) {
        old.1 = value.to_vec();
    } else if pax.xattrs.len() >= MAX_XATTRS_PER_ENTRY {
        let limit = MAX_XATTRS_PER_ENTRY as u64;
        return Err(Refusal::Limit {
            what: "an entry",
            limit,
            unit: "xattrs",
        }
        .into());
    } else {
        pax.xattrs.push((name.to_vec(), value.to_vec()));
    }
    Ok(())
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(pax_time(b"12").ok(), Some((12, 0)));
        assert_eq!(pax_time(b"12.5").ok(), Some((12, 500_000_000)));
        assert_eq!(pax_time(b"-1.25").ok(), Some((-2, 750_000_000)));
        assert_eq!(pax_time(b"1.0000000019").ok(), Some((1, 1)));
        for bad in [
            &b""[..],
            b".",
            b"x",
            b"1.x",
            b"--1",
            b"99999999999999999999",
        ] {
            assert!(pax_time(bad).is_err());
        }
    }

    #[test]
    fn broken_pax_records() {
        for bad in [
            &b"5 a=b"[..],
            b"99 a=b\n",
            b"x a=b\n",
            b"6 ab\n\n",
            b"-6 a=b\n",
            b"3 \n",
            b"12 path=a\0b\n",
        ] {
            assert!(parse_pax(bad, &mut Pax::default()).is_err(), "{bad:?}");
        }
        let mut pax = Pax::default();
        assert!(parse_pax(b"12 path=abc\n8 uid=7\n", &mut pax).is_ok());
        assert_eq!((pax.path.as_deref(), pax.uid), (Some(&b"abc"[..]), Some(7)));
    }
}
