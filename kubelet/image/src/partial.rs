//! Blobs on their way into the store: `partial/H` holds what was fetched of
//! the blob with that digest, in order from its first byte.
//!
//! A file here is never believed: its bytes go through the hash again when a
//! pull goes on from it. It is locked while somebody writes to it, so that one
//! process fetches and the others wait; it outlives a pull that was cut off,
//! and goes with the first sweep a day after its last byte, or before, where
//! the disk is full.
//!
//! A blob that is whole and checked gets a second name below `blobs/`. Nothing
//! is ever written to a file that has two: what begins anew does so in another
//! file. So the first name may serve the next pull if this one fails, and goes
//! when an image has the blob.

use std::ffi::CStr;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::digest::Digest;
use crate::error::{Context, Result};
use crate::fsutil;
use crate::pipe::Behind;
use crate::store::Store;

/// How long a partial blob stays for the next pull.
pub(crate) const KEEP: Duration = Duration::from_secs(24 * 3600);

/// Between two looks whether another pull is done with a blob.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The locked file of one blob.
#[derive(Debug)]
pub(crate) struct Partial<'s> {
    store: &'s Store,
    name: String,
    file: File,
}

impl<'s> Partial<'s> {
    /// Waits until nobody else fetches this blob, or until `over` says that it
    /// is not worth it any more: then there is none.
    pub(crate) fn lock(
        store: &'s Store,
        digest: &Digest,
        over: &dyn Fn() -> bool,
    ) -> Result<Option<Self>> {
        let name = digest.hex();
        loop {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mode = Mode::from_raw_mode(0o600);
            let fd = rustix::fs::openat(&store.partial, &*name, flags, mode).ctx("open", &name)?;
            let file = File::from(fd);
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::INTR) => continue,
                Err(Errno::WOULDBLOCK) if over() => return Ok(None),
                Err(Errno::WOULDBLOCK) => {
                    std::thread::sleep(LOCK_PAUSE);
                    continue;
                }
                other => other.ctx("lock", &name)?,
            }
            // Whoever held the lock may have moved or removed the file.
            let own = file.metadata().ctx("stat", &name)?;
            match rustix::fs::statat(&store.partial, &*name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(st) if st.st_ino == own.ino() => {
                    return Ok(Some(Self { store, name, file }));
                }
                Ok(_) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e).ctx("stat", &name),
            }
        }
    }

    /// How much is there.
    pub(crate) fn bytes(&self) -> Result<u64> {
        Ok(self.file.metadata().ctx("stat", &self.name)?.len())
    }

    /// Whether it has its name below `blobs/` too: then it is read only.
    pub(crate) fn is_published(&self) -> Result<bool> {
        let meta = self.file.metadata().ctx("stat", &self.name)?;
        Ok(meta.nlink() > 1)
    }

    /// How much is there to go on from; nothing, if that is more than the blob
    /// has or no longer ours to write.
    pub(crate) fn begin(&mut self, size: u64) -> Result<u64> {
        let have = self.file.metadata().ctx("stat", &self.name)?.len();
        if have <= size && !self.is_published()? {
            return Ok(have);
        }
        self.begin_anew()?;
        Ok(0)
    }

    /// Begins with an empty file. Who waits for the lock of the old one finds
    /// that it is another, and waits for this.
    pub(crate) fn begin_anew(&mut self) -> Result<()> {
        let tmp = format!("{}.new", self.name);
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let fd = rustix::fs::openat(&self.store.partial, &*tmp, flags, mode).ctx("create", &tmp)?;
        let file = File::from(fd);
        // It has no other name yet that anybody would lock.
        rustix::fs::flock(&file, FlockOperation::LockExclusive).ctx("lock", &tmp)?;
        let dir = &self.store.partial;
        rustix::fs::renameat(dir, &*tmp, dir, &*self.name).ctx("rename into place", &tmp)?;
        self.file = file;
        Ok(())
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

    /// Gives the whole, checked blob its name below `blobs/`.
    pub(crate) fn publish(&self) -> Result<()> {
        let (from, to) = (&self.store.partial, &self.store.blobs);
        match rustix::fs::linkat(from, &*self.name, to, &*self.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(e).ctx("link", &self.name),
        }
    }

    /// Takes the name here from a blob that an image has now, unless somebody
    /// works on it: then a sweep does.
    pub(crate) fn settled(store: &Store, digest: &Digest) -> Result<()> {
        let name = digest.hex();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(fd) = rustix::fs::openat(&store.partial, &*name, flags, Mode::empty()) else {
            return Ok(());
        };
        if !is_free(&File::from(fd), &store.partial, &name) {
            return Ok(());
        }
        match rustix::fs::unlinkat(&store.partial, &*name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e).ctx("remove", &name),
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

/// Whether nobody holds the file, and it still has this name. It is locked as
/// long as the handle is open.
fn is_free(file: &File, dir: &OwnedFd, name: &str) -> bool {
    // Whoever held the lock until now may have put another in its place.
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
        && file.metadata().is_ok_and(|own| {
            let named = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
            named.is_ok_and(|st| own.ino() == st.st_ino)
        })
}

impl Store {
    /// Removes the partial blobs that are old or that images have, and that
    /// nobody holds.
    pub(crate) fn sweep_partial(&self) -> Result<()> {
        let now = SystemTime::now();
        let old = |m: &Metadata| {
            let at = m.modified();
            at.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > KEEP))
        };
        self.drop_partial(|m| old(m) || m.nlink() > 1).map(drop)
    }

    /// Removes partial blobs that nobody holds, the oldest first, until so many
    /// bytes are free; how many are.
    pub(crate) fn shed_partial(&self, wanted_bytes: u64) -> Result<u64> {
        let mut freed = 0;
        self.drop_partial(|m| {
            let goes = freed < wanted_bytes;
            freed += if goes { m.blocks() * 512 } else { 0 };
            goes
        })
    }

    /// Removes those that nobody holds and that `goes` says, the oldest first;
    /// how many bytes that freed.
    fn drop_partial(&self, mut goes: impl FnMut(&Metadata) -> bool) -> Result<u64> {
        let dir = fsutil::open_beneath(self.dir.as_fd(), b"partial", fsutil::DIR_FLAGS)
            .ctx("open directory", "partial")?;
        let mut all = Vec::new();
        for (name, _) in fsutil::list_dir(dir.as_fd(), usize::MAX).ctx("list", "partial")? {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let Ok(fd) = rustix::fs::openat(&dir, &*name, flags, Mode::empty()) else {
                continue;
            };
            let file = File::from(fd);
            if let Ok(meta) = file.metadata() {
                all.push((meta.modified().ok(), name, meta));
            }
        }
        all.sort_unstable_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        let mut freed = 0;
        for (_, name, meta) in all {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let Ok(fd) = rustix::fs::openat(&dir, &*name, flags, Mode::empty()) else {
                continue;
            };
            let file = File::from(fd);
            let text = name.to_string_lossy();
            if is_free(&file, &dir, &text) && goes(&meta) {
                freed += if meta.nlink() > 1 {
                    0
                } else {
                    meta.blocks() * 512
                };
                fsutil::remove_tree(dir.as_fd(), &name)?;
            }
        }
        Ok(freed)
    }

    /// Disk use of the partial blobs that are nothing else yet, in bytes.
    pub(crate) fn partial_bytes(&self) -> Result<u64> {
        let dir = fsutil::open_beneath(self.dir.as_fd(), b"partial", fsutil::DIR_FLAGS)
            .ctx("open directory", "partial")?;
        let names = fsutil::list_dir(dir.as_fd(), usize::MAX).ctx("list", "partial")?;
        let size = |name: &CStr| {
            let st = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            u64::try_from(st.st_size).ok().filter(|_| st.st_nlink == 1)
        };
        Ok(names.iter().filter_map(|(name, _)| size(name)).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locked<'s>(store: &'s Store, digest: &Digest) -> Partial<'s> {
        Partial::lock(store, digest, &|| false).unwrap().unwrap()
    }

    #[test]
    fn a_file_with_two_names_is_never_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let digest = Digest::of(b"whole");
        let mut part = locked(&store, &digest);
        assert!(Partial::lock(&store, &digest, &|| true).unwrap().is_none());
        part.file.write_all_at(b"whole", 0).unwrap();
        part.publish().unwrap();
        assert_eq!(part.begin(5).unwrap(), 0);
        part.file.write_all_at(b"torn", 0).unwrap();
        // The new file is locked as the old one was.
        assert!(Partial::lock(&store, &digest, &|| true).unwrap().is_none());
        assert_eq!(store.read_blob(&digest, 5).unwrap(), b"whole");
        // It is not the one that the blob's image had here.
        Partial::settled(&store, &digest).unwrap();
        assert!(dir.path().join("partial").join(digest.hex()).exists());
        drop(part);
        Partial::settled(&store, &digest).unwrap();
        assert!(!dir.path().join("partial").join(digest.hex()).exists());
    }

    #[test]
    fn for_room_the_oldest_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let parts: Vec<_> = [b"a", b"b", b"c"].map(|n| Digest::of(n)).into();
        for (age, digest) in (1..).zip(&parts) {
            let part = locked(&store, digest);
            part.file.write_all_at(&[1; 5000], 0).unwrap();
            let at = SystemTime::now() - Duration::from_secs(age * 60);
            part.file.set_modified(at).unwrap();
        }
        let held = locked(&store, &parts[2]);
        assert_eq!(store.shed_partial(5000).unwrap(), 8192);
        let there = |d: &Digest| dir.path().join("partial").join(d.hex()).exists();
        assert_eq!([0, 1, 2].map(|i| there(&parts[i])), [true, false, true]);
        drop(held);
    }

    #[test]
    fn a_blob_is_read_on_from_where_it_was_left() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let digest = Digest::of(b"hello world");
        let mut part = locked(&store, &digest);
        let have = part.begin(11).unwrap();
        let mut text = Vec::new();
        let rest: Box<dyn Read + Send> = Box::new(&b"hello"[..]);
        let cut = part
            .reader(have, 11, Some(rest))
            .unwrap()
            .read_to_end(&mut text);
        assert_eq!(cut.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(part.begin(11).unwrap(), 5);
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
        assert_eq!(part.begin(3).unwrap(), 0);
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
        let [held, free] = names.map(|d| locked(&store, &d));
        held.file.set_modified(old).unwrap();
        free.file.set_modified(old).unwrap();
        drop(free);
        store.sweep().unwrap();
        let there = names.map(|d| dir.path().join("partial").join(d.hex()).exists());
        assert_eq!(there, [true, false]);
    }
}
