//! Paths inside a container's root.
//!
//! Every path is resolved by `openat2(2)` with RESOLVE_IN_ROOT and
//! RESOLVE_NO_MAGICLINKS from a descriptor of the root: absolute symlinks and
//! `..` stay inside, and magic links of /proc lead nowhere. What is made is
//! made by `*at` calls on the descriptor of its parent directory.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, mkdirat, openat2, readlinkat};
use rustix::io::Errno;

/// Symlinks that one path may go through (as the kernel's MAXSYMLINKS).
const MAX_SYMLINKS: usize = 40;
/// Longest path, in bytes (PATH_MAX of `linux/limits.h`).
const MAX_PATH_BYTES: usize = 4096;
/// Directories that are made for mount points.
const DIRECTORY_MODE: u32 = 0o755;
/// Files that are made for mount points.
const FILE_MODE: u32 = 0o644;

/// The root of a container.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    /// The root of the calling process.
    ///
    /// # Errors
    /// open(2)'s.
    pub fn of_process() -> Result<Self, Errno> {
        Self::at(c"/")
    }

    /// The root that a directory is.
    ///
    /// # Errors
    /// open(2)'s.
    pub fn at(path: impl rustix::path::Arg) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// The root's descriptor.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Opens what is at `path`, with symlinks followed inside the root unless
    /// `flags` has NOFOLLOW.
    ///
    /// # Errors
    /// openat2(2)'s.
    pub fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            match openat2(
                &self.0,
                path,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                resolve,
            ) {
                // EAGAIN: a rename or mount happened beside (openat2(2)).
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Opens a directory that is made, parents included, where it is missing.
    ///
    /// # Errors
    /// openat2(2)'s and mkdirat(2)'s; ELOOP after 40 dangling symlinks.
    pub fn ensure_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.ensure(path, true)
    }

    /// Opens the file that is at `path`; an empty one is made where nothing is.
    ///
    /// # Errors
    /// openat2(2)'s, mkdirat(2)'s and open(2)'s.
    pub fn ensure_file(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.ensure(path, false)
    }

    fn ensure(&self, path: &[u8], directory: bool) -> Result<OwnedFd, Errno> {
        let mut flags = OFlags::PATH;
        flags.set(OFlags::DIRECTORY, directory);
        match self.open(path, flags) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        // Most often the last component alone is missing.
        if let Some((parent, name)) = split(path)
            && let Ok(parent) = self.open(parent, OFlags::PATH | OFlags::DIRECTORY)
            && make_one(parent.as_fd(), name, directory).is_ok()
        {
            return self.open(path, flags);
        }
        self.make(path, directory)
    }

    /// Opens the parent directory of `path`, made where it is missing, and
    /// returns the last component beside it.
    ///
    /// # Errors
    /// As [`Self::ensure_directory`]; EINVAL for a path without a last
    /// component.
    pub fn ensure_parent<'p>(&self, path: &'p [u8]) -> Result<(OwnedFd, &'p [u8]), Errno> {
        let (parent, name) = split(path).ok_or(Errno::INVAL)?;
        Ok((self.ensure_directory(parent)?, name))
    }

    /// Walks component by component, since openat2 cannot make what is
    /// missing. A component that exists as a dangling symlink is replaced by
    /// its target, which is then made inside the root.
    fn make(&self, path: &[u8], directory: bool) -> Result<OwnedFd, Errno> {
        let mut pending = path.to_vec();
        let mut symlinks = 0;
        'restart: loop {
            if pending.len() > MAX_PATH_BYTES {
                return Err(Errno::NAMETOOLONG);
            }
            let components: Vec<&[u8]> = pending
                .split(|b| *b == b'/')
                .filter(|c| !c.is_empty() && *c != b".")
                .collect();
            let mut done: Vec<u8> = vec![b'/'];
            let mut at = self.open(b"/", OFlags::PATH | OFlags::DIRECTORY)?;
            for (n, component) in components.iter().enumerate() {
                let last = n + 1 == components.len();
                let mut next = done.clone();
                next.extend_from_slice(component);
                let want_directory = directory || !last;
                let extra = if want_directory {
                    OFlags::DIRECTORY
                } else {
                    OFlags::empty()
                };
                match self.open(&next, OFlags::PATH | extra) {
                    Ok(fd) => at = fd,
                    Err(Errno::NOENT) => match make_one(at.as_fd(), component, want_directory) {
                        Ok(()) => at = self.open(&next, OFlags::PATH | extra)?,
                        Err(Errno::EXIST) => {
                            // A dangling symlink.
                            symlinks += 1;
                            if symlinks > MAX_SYMLINKS {
                                return Err(Errno::LOOP);
                            }
                            let target = readlinkat(&at, *component, Vec::new())?.into_bytes();
                            let mut whole = if target.starts_with(b"/") {
                                Vec::new()
                            } else {
                                done
                            };
                            whole.extend_from_slice(&target);
                            for rest in &components[n + 1..] {
                                whole.push(b'/');
                                whole.extend_from_slice(rest);
                            }
                            pending = whole;
                            continue 'restart;
                        }
                        Err(e) => return Err(e),
                    },
                    Err(e) => return Err(e),
                }
                done = next;
                done.push(b'/');
            }
            return Ok(at);
        }
    }
}

fn make_one(at: BorrowedFd<'_>, name: &[u8], directory: bool) -> Result<(), Errno> {
    if directory {
        mkdirat(at, name, Mode::from_raw_mode(DIRECTORY_MODE))
    } else {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(at, name, flags, Mode::from_raw_mode(FILE_MODE)).map(drop)
    }
}

/// Parent and last component, if there is one.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let trimmed = trim_end(path);
    let slash = trimmed.iter().rposition(|b| *b == b'/');
    let (parent, name) = trimmed.split_at(slash.map_or(0, |n| n + 1));
    if name.is_empty() || name == b"." || name == b".." {
        return None;
    }
    Some((if parent.is_empty() { b"/" } else { parent }, name))
}

fn trim_end(path: &[u8]) -> &[u8] {
    let mut path = path;
    while let [head @ .., b'/'] = path {
        path = head;
    }
    path
}

/// The descriptor itself instead of a path below it.
pub const EMPTY: &CStr = c"";

/// Follow nothing: the name itself.
pub const NOFOLLOW: AtFlags = AtFlags::SYMLINK_NOFOLLOW;

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> (Root, std::path::PathBuf) {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("rkube-inroot-{}-{n}", std::process::id()));
        std::fs::create_dir(&dir).expect("temp dir");
        let fd = rustix::fs::open(&dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
        (Root(fd.expect("open")), dir)
    }

    #[test]
    fn symlinks_stay_inside() {
        let (root, dir) = root();
        let outside = dir.with_extension("outside");
        for (link, target) in [
            ("abs", "/not-there/x"),
            ("up", "../../../../etc"),
            ("self", "self"),
        ] {
            std::os::unix::fs::symlink(target, dir.join(link)).expect("symlink");
        }
        root.ensure_directory(b"/abs/deep")
            .expect("dangling absolute link");
        assert!(dir.join("not-there/x/deep").is_dir());
        root.ensure_file(b"/up/passwd").expect("link upwards");
        assert!(dir.join("etc/passwd").is_file());
        assert_eq!(
            root.ensure_directory(b"/self/x").map(drop),
            Err(Errno::LOOP)
        );
        root.ensure_directory(b"/../../a/../b/./c//d/")
            .expect("dots");
        assert!(dir.join("b/c/d").is_dir());
        assert!(!outside.exists());
        std::fs::remove_dir_all(&dir).expect("clean up");
    }

    #[test]
    fn a_parent_and_a_name() {
        let (root, dir) = root();
        let (_, name) = root.ensure_parent(b"/dev/pts/").expect("parent");
        assert_eq!(name, b"pts");
        assert!(dir.join("dev").is_dir());
        for bad in [b"/".as_slice(), b"/x/..", b""] {
            assert_eq!(root.ensure_parent(bad).map(drop), Err(Errno::INVAL));
        }
        std::fs::remove_dir_all(&dir).expect("clean up");
    }
}
