//! Blobs on their way into the store: `partial/H` holds what was fetched of
//! the blob with that digest, in order from its first byte.
//!
//! A file here is never believed: its bytes go through the hash again when a
//! pull goes on from it. It is locked while somebody writes to it, so that one
//! process fetches and the others wait; it outlives a pull that was cut off,
//! and goes with the first sweep a day after its last byte.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::digest::Digest;
use crate::error::{Context, Result};
use crate::pipe::Behind;
use crate::store::Store;

/// How long a partial blob stays for the next pull.
pub(crate) const KEEP: Duration = Duration::from_secs(24 * 3600);

/// The locked file of one blob.
#[derive(Debug)]
pub(crate) struct Partial<'s> {
    store: &'s Store,
    name: String,
    file: File,
}

impl<'s> Partial<'s> {
    /// Waits until nobody else fetches this blob.
    pub(crate) fn lock(store: &'s Store, digest: &Digest) -> Result<Self> {
        let name = digest.hex();
        loop {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mode = Mode::from_raw_mode(0o600);
            let fd = rustix::fs::openat(&store.partial, &*name, flags, mode).ctx("open", &name)?;
            let file = File::from(fd);
            match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => continue,
                other => other.ctx("lock", &name)?,
            }
            // Whoever held the lock may have moved or removed the file.
            let own = file.metadata().ctx("stat", &name)?;
            match rustix::fs::statat(&store.partial, &*name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(st) if st.st_ino == own.ino() => return Ok(Self { store, name, file }),
                Ok(_) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e).ctx("stat", &name),
            }
        }
    }

    /// How much is there; nothing, if that is more than the blob has.
    pub(crate) fn trim(&mut self, size: u64) -> Result<u64> {
        let have = self.file.metadata().ctx("stat", &self.name)?.len();
        if have <= size {
            return Ok(have);
        }
        self.file.set_len(0).ctx("truncate", &self.name)?;
        Ok(0)
    }

    /// The first `have` bytes from the file, then `rest`, which is written to
    /// the file as it comes. More than `size` bytes are an error.
    pub(crate) fn reader<'r>(
        &'r mut self,
        have: u64,
        size: u64,
        rest: Option<Box<dyn Read + Send + 'r>>,
    ) -> io::Result<Resumed<'r>> {
        self.file.set_len(have)?;
        Ok(Resumed {
            file: &self.file,
            behind: Behind::new(&self.file, have),
            at: 0,
            have,
            size,
            rest,
        })
    }

    /// Removes it.
    pub(crate) fn discard(&self) -> Result<()> {
        match rustix::fs::unlinkat(&self.store.partial, &*self.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e).ctx("remove", &self.name),
        }
    }

    /// Makes a whole blob durable.
    pub(crate) fn sync(store: &Store, digest: &Digest) -> Result<()> {
        let name = digest.hex();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&store.partial, &*name, flags, Mode::empty()) {
            Ok(fd) => rustix::fs::fsync(fd).ctx("sync", &name),
            // Another pull has brought it into its place meanwhile.
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e).ctx("open", &name),
        }
    }

    /// Moves a whole blob to its place.
    pub(crate) fn settle(store: &Store, digest: &Digest) -> Result<()> {
        let name = digest.hex();
        match rustix::fs::renameat(&store.partial, &*name, &store.blobs, &*name) {
            Err(Errno::NOENT) if store.blob_bytes(digest).is_some() => Ok(()),
            other => other.ctx("rename into place", &name),
        }
    }
}

/// See [`Partial::reader`].
pub(crate) struct Resumed<'r> {
    file: &'r File,
    behind: Behind<'r>,
    at: u64,
    have: u64,
    size: u64,
    rest: Option<Box<dyn Read + Send + 'r>>,
}

impl Read for Resumed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at < self.have {
            let left = usize::try_from(self.have - self.at).unwrap_or(buf.len());
            let most = left.min(buf.len());
            let n = self.file.read_at(&mut buf[..most], self.at)?;
            if n == 0 && most > 0 {
                return Err(io::Error::other("the partial blob was cut"));
            }
            self.at += n as u64;
            return Ok(n);
        }
        let Some(rest) = &mut self.rest else {
            return Ok(0);
        };
        let n = rest.read(buf)?;
        if self.at + n as u64 > self.size {
            let text = format!("it has more than the announced {} bytes", self.size);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        if n == 0 && self.at < self.size && !buf.is_empty() {
            let text = format!("it ended after {} of {} bytes", self.at, self.size);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        self.file.write_all_at(&buf[..n], self.at)?;
        self.behind.wrote(n);
        self.at += n as u64;
        Ok(n)
    }
}

impl std::fmt::Debug for Resumed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resumed")
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

/// Whether a sweep may take a file of `partial/`: it is old, and nobody holds
/// it.
pub(crate) fn abandoned(file: &File, now: SystemTime) -> bool {
    let old = file
        .metadata()
        .and_then(|m| m.modified())
        .is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > KEEP));
    old && rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_read_on_from_where_it_was_left() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let digest = Digest::of(b"hello world");
        let mut part = Partial::lock(&store, &digest).unwrap();
        let have = part.trim(11).unwrap();
        let mut text = Vec::new();
        let rest: Box<dyn Read + Send> = Box::new(&b"hello"[..]);
        let cut = part
            .reader(have, 11, Some(rest))
            .unwrap()
            .read_to_end(&mut text);
        assert_eq!(cut.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(part.trim(11).unwrap(), 5);
        text.clear();
        let rest: Box<dyn Read + Send> = Box::new(&b" world"[..]);
        part.reader(5, 11, Some(rest))
            .unwrap()
            .read_to_end(&mut text)
            .unwrap();
        assert_eq!(text, b"hello world");
        // More than was announced.
        let rest: Box<dyn Read + Send> = Box::new(&b" world!"[..]);
        let long = part
            .reader(5, 11, Some(rest))
            .unwrap()
            .read_to_end(&mut text);
        assert_eq!(long.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(part.trim(3).unwrap(), 0);
        drop(part);
        Store::open(dir.path()).unwrap();
        assert!(
            dir.path().join("partial").join(digest.hex()).exists(),
            "a fresh one stays"
        );
    }

    #[test]
    fn a_sweep_takes_old_ones_that_nobody_holds() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let old = SystemTime::now() - KEEP - Duration::from_secs(60);
        let names = [Digest::of(b"a"), Digest::of(b"b")];
        let [held, free] = names.map(|d| Partial::lock(&store, &d).unwrap());
        held.file.set_modified(old).unwrap();
        free.file.set_modified(old).unwrap();
        drop(free);
        store.sweep().unwrap();
        let there = names.map(|d| dir.path().join("partial").join(d.hex()).exists());
        assert_eq!(there, [true, false]);
    }
}
