//! Where a copy comes from and goes to.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::{CopyError, OnPath, base_name, join, refused, split};

/// Times the kernel is asked again when a rename beside made it give up
/// (EAGAIN, openat2(2)).
const OPEN_TRIES: u32 = 128;
/// Ids of a user namespace of a pod (KEP-127).
const IDS: u32 = 65_536;
/// The owner of what a namespace has no id for (`overflowuid`).
const NOBODY: u32 = 65_534;

/// Whose files paths mean.
#[derive(Debug)]
pub enum Place {
    /// This process's own: the user's paths are taken as they are.
    Host,
    /// A container's: no path leads out of it.
    Container {
        /// Its root directory.
        root: OwnedFd,
        /// The id on the host that is its id 0.
        first_id: u32,
    },
}

impl Place {
    /// Opens what a user's path names; links are followed.
    pub(super) fn open(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        match self {
            Self::Host => rustix::fs::openat(CWD, path, flags, Mode::empty()),
            Self::Container { root, .. } => {
                let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
                open(root, if path.is_empty() { b"/" } else { path }, flags, how)
            }
        }
    }

    /// What is at a path, links followed; `None` where nothing is.
    fn kind(&self, path: &[u8]) -> Result<Option<FileType>, CopyError> {
        match self.open(path, OFlags::PATH) {
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e).on("open", path),
            Ok(fd) => {
                let stat = rustix::fs::fstat(&fd).on("stat", path)?;
                Ok(Some(FileType::from_raw_mode(stat.st_mode)))
            }
        }
    }

    /// An owner as the place's own numbers.
    pub(super) fn id_inside(&self, id: u32) -> u32 {
        match self {
            Self::Container { first_id, .. } if *first_id != 0 => id
                .checked_sub(*first_id)
                .filter(|inside| *inside < IDS)
                .unwrap_or(NOBODY),
            _ => id,
        }
    }

    /// One of the place's own numbers as the host's.
    pub(super) fn id_outside(&self, id: u32) -> u32 {
        match self {
            Self::Container { first_id, .. } if *first_id != 0 => {
                first_id.saturating_add(if id < IDS { id } else { NOBODY })
            }
            _ => id,
        }
    }
}

pub(super) fn open(
    dir: impl AsFd,
    path: &[u8],
    flags: OFlags,
    how: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    for _ in 0..OPEN_TRIES {
        let flags = flags | OFlags::CLOEXEC;
        match rustix::fs::openat2(&dir, path, flags, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Who owns what is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// This user and group, in the place's own numbers, with permission bits
    /// alone: no set-user-id program changes hands.
    Fixed(u32, u32),
    /// As the archive says, all mode bits included.
    Kept,
}

/// Where an archive's entries go.
#[derive(Debug)]
pub struct Target {
    pub(super) place: Place,
    pub(super) owner: Owner,
    /// The directory, as the user named it.
    pub(super) path: Vec<u8>,
    /// It, for a host's.
    pub(super) dir: OwnedFd,
}

/// Flags by which directories are opened.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

impl Target {
    /// A directory that is there: what an archive holds goes into it.
    ///
    /// # Errors
    /// There is no such directory.
    pub fn directory(place: Place, path: &[u8], owner: Owner) -> Result<Self, CopyError> {
        let path = if path.is_empty() { b"." } else { path };
        let dir = match place.open(path, DIRECTORY) {
            Err(Errno::NOTDIR) => return Err(refused(path, "it is no directory")),
            other => other.on("open", path)?,
        };
        Ok(Self {
            place,
            owner,
            path: path.to_vec(),
            dir,
        })
    }

    /// Where a copy of a file or directory goes, and the name that it gets
    /// there (empty: a directory's content goes there without it), as cp(1)
    /// has it: into a directory that is there, else under the name that
    /// `path` ends with.
    ///
    /// # Errors
    /// A directory would replace a file, or the directory above is missing.
    pub fn of_copy(
        place: Place,
        path: &[u8],
        owner: Owner,
        source: &super::Source,
    ) -> Result<(Self, Vec<u8>), CopyError> {
        let name = source.base_name().to_vec();
        match place.kind(path)? {
            Some(FileType::Directory) => Ok((Self::directory(place, path, owner)?, name)),
            Some(_) if source.is_directory() => Err(refused(path, "it is no directory")),
            None if path.ends_with(b"/") && !source.is_directory() => {
                Err(refused(path, "there is no such directory"))
            }
            _ => {
                let base = base_name(path);
                if base.is_empty() {
                    return Err(refused(path, "there is no such directory"));
                }
                let mut parent = path;
                while let [head @ .., b'/'] = parent {
                    parent = head;
                }
                let (dir, _) = split(parent);
                let dir = if dir.is_empty() && path.starts_with(b"/") {
                    b"/"
                } else {
                    dir
                };
                Ok((Self::directory(place, dir, owner)?, base.to_vec()))
            }
        }
    }

    /// Opens a directory below, `""` for itself.
    pub(super) fn open_dir(&self, below: &[u8]) -> rustix::io::Result<OwnedFd> {
        match &self.place {
            Place::Host if below.is_empty() => self
                .dir
                .try_clone()
                .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO)),
            Place::Host => open(&self.dir, below, DIRECTORY, beneath()),
            Place::Container { .. } => self.place.open(&join(&self.path, below), DIRECTORY),
        }
    }

    /// Opens what is below, itself where it is a link.
    pub(super) fn open_node(&self, below: &[u8]) -> rustix::io::Result<OwnedFd> {
        let (dir, name) = split(below);
        let dir = self.open_dir(dir)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        rustix::fs::openat(&dir, name, flags | OFlags::CLOEXEC, Mode::empty())
    }
}

/// How nothing leads out of a directory of the host.
pub(super) fn beneath() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
}

/// From now on this thread makes files as the root of a user namespace whose
/// id 0 is `first_id`: on its id-mapped mounts, a file of the host's root
/// cannot be (EOVERFLOW). It keeps its capabilities. The thread is of no use
/// for anything else.
///
/// # Errors
/// What capset(2) answered.
pub fn act_for(first_id: u32) -> io::Result<()> {
    if first_id == 0 {
        return Ok(());
    }
    let before = rustix::thread::capabilities(None)?;
    // Both take effect for this thread alone, and tell of no failure.
    nix::unistd::setfsgid(nix::unistd::Gid::from_raw(first_id));
    nix::unistd::setfsuid(nix::unistd::Uid::from_raw(first_id));
    // Leaving id 0 has cleared those that concern files (capabilities(7)).
    let mut sets = rustix::thread::capabilities(None)?;
    sets.effective = before.effective & CapabilitySet::all();
    Ok(rustix::thread::set_capabilities(None, sets)?)
}
