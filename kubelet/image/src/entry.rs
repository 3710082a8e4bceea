//! What is done for one entry of a layer archive, by descriptor.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, Gid, Timespec, Timestamps, Uid, XattrFlags};

use crate::error::{Error, Refusal};
use crate::tar::{Entry, Input, TarError, TarReader};

/// The attribute of an opaque directory (overlayfs.rst).
pub(crate) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// Why an entry could not be unpacked.
pub(crate) enum Fail {
    Refused(Refusal),
    Sys(&'static str, io::Error),
    Store(Error),
}

impl From<Refusal> for Fail {
    fn from(r: Refusal) -> Self {
        Self::Refused(r)
    }
}

pub(crate) trait Named<T> {
    fn named(self, op: &'static str) -> std::result::Result<T, Fail>;
}

impl<T, E: Into<io::Error>> Named<T> for std::result::Result<T, E> {
    fn named(self, op: &'static str) -> std::result::Result<T, Fail> {
        self.map_err(|e| Fail::Sys(op, e.into()))
    }
}

pub(crate) fn refuse<T>(rule: &'static str) -> std::result::Result<T, Fail> {
    Err(Fail::Refused(Refusal::Rule(rule)))
}

pub(crate) fn copy<I: Input>(
    tar: &mut TarReader<I>,
    file: &mut File,
    len: u64,
) -> std::result::Result<(), Fail> {
    let mut left = len;
    while left > 0 {
        let data = tar.fill_data().map_err(|e| match e {
            TarError::Io(e) => Fail::Sys("read", e),
            TarError::Bad(r) => Fail::Refused(r),
        })?;
        let n = usize::try_from(left).map_or(data.len(), |l| l.min(data.len()));
        if n == 0 {
            return refuse("its data is cut off");
        }
        file.write_all(&data[..n]).named("write")?;
        tar.consume_data(n);
        left -= n as u64;
    }
    Ok(())
}

pub(crate) fn own_at(at: BorrowedFd<'_>, name: &[u8], e: &Entry) -> std::result::Result<(), Fail> {
    let (uid, gid) = (Uid::from_raw(e.uid), Gid::from_raw(e.gid));
    rustix::fs::chownat(at, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).named("fchownat")
}

pub(crate) fn set_opaque(fd: BorrowedFd<'_>) -> std::result::Result<(), Fail> {
    rustix::fs::fsetxattr(fd, OPAQUE_XATTR, b"y", XattrFlags::empty())
        .named("fsetxattr trusted.overlay.opaque")
}

pub(crate) fn is_whiteout_stat(st: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(st.st_mode) == FileType::CharacterDevice && st.st_rdev == 0
}

pub(crate) fn times((tv_sec, nanos): (i64, u32)) -> Timestamps {
    let t = Timespec {
        tv_sec,
        tv_nsec: nanos.into(),
    };
    Timestamps {
        last_access: t,
        last_modification: t,
    }
}
