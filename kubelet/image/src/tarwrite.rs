//! Writing tar archives: built-in images and imported directories.
//!
//! Only what [`crate::tar`] reads back: ustar headers, pax records for what
//! does not fit. Owner names are left out, so archives do not depend on the
//! host's user table.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use crate::fsutil::{self, DIR_FLAGS};
use crate::tar::BLOCK_BYTES;

/// Meta data of an entry to write.
#[derive(Default)]
pub(crate) struct Meta<'a> {
    pub(crate) path: &'a [u8],
    pub(crate) link: &'a [u8],
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) mtime_s: i64,
    pub(crate) dev: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Writes the headers of one entry; `size` bytes of data and [`pad`] follow.
pub(crate) fn header(out: &mut impl Write, m: &Meta<'_>) -> io::Result<()> {
    let mut pax = Vec::new();
    if m.path.len() > 100 {
        record(&mut pax, b"path", m.path);
    }
    if m.link.len() > 100 {
        record(&mut pax, b"linkpath", m.link);
    }
    if m.size >= 1 << 33 {
        record(&mut pax, b"size", m.size.to_string().as_bytes());
    }
    for (key, v) in [(&b"uid"[..], m.uid), (b"gid", m.gid)] {
        if v >= 1 << 21 {
            record(&mut pax, key, v.to_string().as_bytes());
        }
    }
    if !(0..1 << 33).contains(&m.mtime_s) {
        record(&mut pax, b"mtime", m.mtime_s.to_string().as_bytes());
    }
    for (name, value) in &m.xattrs {
        record(&mut pax, &[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
    if !pax.is_empty() {
        let size = pax.len() as u64;
        block(
            out,
            &Meta {
                path: b"pax",
                kind: b'x',
                mode: 0o644,
                size,
                ..Meta::default()
            },
        )?;
        out.write_all(&pax)?;
        pad(out, size)?;
    }
    block(out, m)
}

/// Fills up to a whole block.
pub(crate) fn pad(out: &mut impl Write, size: u64) -> io::Result<()> {
    let block = BLOCK_BYTES as u64;
    // Below one block.
    let n = usize::try_from((block - size % block) % block).unwrap_or(0);
    out.write_all(&[0; BLOCK_BYTES][..n])
}

/// The end of an archive.
pub(crate) fn finish(out: &mut impl Write) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK_BYTES])
}

fn record(pax: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // The length counts its own digits.
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    pax.extend_from_slice(len.to_string().as_bytes());
    pax.push(b' ');
    pax.extend_from_slice(key);
    pax.push(b'=');
    pax.extend_from_slice(value);
    pax.push(b'\n');
}

fn block(out: &mut impl Write, m: &Meta<'_>) -> io::Result<()> {
    let mut b = [0_u8; BLOCK_BYTES];
    let name = &m.path[..m.path.len().min(100)];
    b[..name.len()].copy_from_slice(name);
    let link = &m.link[..m.link.len().min(100)];
    b[157..157 + link.len()].copy_from_slice(link);
    let mut octal = |at: std::ops::Range<usize>, v: u64| {
        let digits = at.len() - 1;
        // What does not fit stands in a pax record.
        let most = (1_u64 << (3 * digits)) - 1;
        let text = format!("{:0digits$o}", v.min(most));
        b[at.start..at.start + digits].copy_from_slice(text.as_bytes());
    };
    octal(100..108, m.mode.into());
    octal(108..116, m.uid.into());
    octal(116..124, m.gid.into());
    octal(124..136, m.size);
    octal(136..148, u64::try_from(m.mtime_s).unwrap_or(0));
    octal(329..337, m.dev.0.into());
    octal(337..345, m.dev.1.into());
    b[156] = m.kind;
    b[257..265].copy_from_slice(b"ustar\x0000");
    b[148..156].fill(b' ');
    let sum: u64 = b.iter().map(|x| u64::from(*x)).sum();
    b[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.write_all(&b)
}

/// Writes a whole directory, by descriptor; it stays on one file system.
/// Sockets are left out: they mean nothing in an image.
pub(crate) fn directory(root: &OwnedFd, mut out: impl Write) -> io::Result<()> {
    let mut links: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    let device = rustix::fs::fstat(root)?.st_dev;
    let top = rustix::fs::openat(root, ".", DIR_FLAGS, Mode::empty())?;
    one_dir(&mut out, &top, b".")?;
    let mut todo: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let dir = if path.is_empty() {
            rustix::fs::openat(root, ".", DIR_FLAGS, Mode::empty())?
        } else {
            fsutil::open_beneath(root.as_fd(), &path, DIR_FLAGS)?
        };
        let mut names = fsutil::list_dir(dir.as_fd(), usize::MAX)?;
        // A stable order gives the same tree the same digest.
        names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for (name, _) in names {
            let name = name.to_bytes();
            let full = if path.is_empty() {
                name.to_vec()
            } else {
                [&path, &b"/"[..], name].concat()
            };
            let st = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let kind = FileType::from_raw_mode(st.st_mode);
            if kind == FileType::Directory {
                if st.st_dev == device {
                    let fd = rustix::fs::openat(&dir, name, DIR_FLAGS, Mode::empty())?;
                    one_dir(&mut out, &fd, &full)?;
                    todo.push(full);
                }
                continue;
            }
            let first = if st.st_nlink > 1 {
                links.get(&(st.st_dev, st.st_ino)).cloned()
            } else {
                None
            };
            if let Some(first) = first {
                header(
                    &mut out,
                    &Meta {
                        link: &first,
                        ..meta(&full, b'1', &st)
                    },
                )?;
                continue;
            }
            one_node(&mut out, dir.as_fd(), name, &full, kind, &st)?;
            if st.st_nlink > 1 {
                links.insert((st.st_dev, st.st_ino), full);
            }
        }
    }
    finish(&mut out)?;
    out.flush()
}

fn one_dir(out: &mut impl Write, fd: &OwnedFd, path: &[u8]) -> io::Result<()> {
    let st = rustix::fs::fstat(fd)?;
    header(
        out,
        &Meta {
            xattrs: xattrs(fd.as_fd())?,
            ..meta(path, b'5', &st)
        },
    )
}

fn one_node(
    out: &mut impl Write,
    dir: BorrowedFd<'_>,
    name: &[u8],
    full: &[u8],
    kind: FileType,
    st: &rustix::fs::Stat,
) -> io::Result<()> {
    match kind {
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let mut file = File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?);
            let size = u64::try_from(st.st_size).unwrap_or(0);
            let xattrs = xattrs(file.as_fd())?;
            header(
                out,
                &Meta {
                    size,
                    xattrs,
                    ..meta(full, b'0', st)
                },
            )?;
            let copied = io::copy(&mut io::Read::take(&mut file, size), out)?;
            if copied != size {
                let name = String::from_utf8_lossy(full);
                return Err(io::Error::other(format!(
                    "{name} became shorter while it was read"
                )));
            }
            pad(out, size)
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(dir, name, Vec::new())?;
            header(
                out,
                &Meta {
                    link: target.to_bytes(),
                    ..meta(full, b'2', st)
                },
            )
        }
        FileType::CharacterDevice | FileType::BlockDevice => {
            let dev = (rustix::fs::major(st.st_rdev), rustix::fs::minor(st.st_rdev));
            let letter = if kind == FileType::CharacterDevice {
                b'3'
            } else {
                b'4'
            };
            header(
                out,
                &Meta {
                    dev,
                    ..meta(full, letter, st)
                },
            )
        }
        FileType::Fifo => header(out, &meta(full, b'6', st)),
        _ => Ok(()),
    }
}

fn meta<'a>(path: &'a [u8], kind: u8, st: &rustix::fs::Stat) -> Meta<'a> {
    let (uid, gid, mode) = (st.st_uid, st.st_gid, st.st_mode & 0o7777);
    Meta {
        path,
        kind,
        mode,
        uid,
        gid,
        mtime_s: st.st_mtime,
        ..Meta::default()
    }
}

/// The attributes that an unpacker would take.
fn xattrs(fd: BorrowedFd<'_>) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    // XATTR_LIST_MAX and XATTR_SIZE_MAX are 64 KiB.
    let mut list = vec![0_u8; 65_536];
    let n = match rustix::fs::flistxattr(fd, &mut list[..]) {
        Ok(n) => n,
        Err(rustix::io::Errno::NOTSUP) => 0,
        Err(e) => return Err(e.into()),
    };
    let mut out = Vec::new();
    for name in list[..n].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        if name.starts_with(b"user.") || name == b"security.capability" {
            let mut value = vec![0_u8; 65_536];
            let n = rustix::fs::fgetxattr(fd, name, &mut value[..])?;
            value.truncate(n);
            out.push((name.to_vec(), value));
        }
    }
    out.sort_unstable();
    Ok(out)
}
