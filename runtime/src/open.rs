//! Opening what a draft names, in the host's view.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::LinuxNamespaceType;
use rkube_keeper::plan::{FdIndex, Plan, Step};
use rkube_sys::mount::{AttrChange, MS_PRIVATE, MS_SHARED, set_attributes};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::draft::{Attributes, Draft, Lsm, Source};
use crate::error::{Context, Error, Result};

/// NSFS_MAGIC of `linux/magic.h`.
const NSFS_MAGIC: u64 = 0x6e73_6673;
/// Device number of /dev/null (Documentation/admin-guide/devices.txt).
const NULL_DEVICE: (u32, u32) = (1, 3);
const EMPTY: &CStr = c"";

/// A plan with its descriptors, ready for the small program.
#[derive(Debug)]
pub struct Prepared {
    /// What is done.
    pub plan: Plan,
    /// Its descriptors, by the plan's numbers.
    pub fds: Vec<OwnedFd>,
    /// What is not done as asked.
    pub warnings: Vec<String>,
}

impl Draft {
    /// Opens every source, in order.
    ///
    /// # Errors
    /// The source that could not be opened or is not what it must be.
    pub fn open(self) -> Result<Prepared> {
        let Self {
            mut plan,
            sources,
            mut warnings,
            labels,
        } = self;
        for (field, lsm) in labels {
            if lsm_is_on(lsm) {
                return Err(Error::unsupported(field, "a label while its module is on"));
            }
            warnings.push(format!(
                "{field}: ignored, since this kernel runs without that security module"
            ));
        }
        let mut fds = Vec::with_capacity(sources.len());
        for (index, source) in sources.into_iter().enumerate() {
            fds.push(match source {
                Source::Open(fd) => fd,
                Source::Null => null()?,
                Source::Agent { path } => {
                    let shown = path.display().to_string();
                    let stream = std::os::unix::net::UnixStream::connect(&path);
                    stream.on("connect to seccomp agent", shown)?.into()
                }
                Source::Namespace { path, kind } => namespace(&path, kind)?,
                Source::Tree {
                    path,
                    recursive,
                    attributes,
                    recursive_attributes,
                    propagation,
                    directory,
                } => {
                    let tree = Tree {
                        recursive,
                        attributes,
                        recursive_attributes,
                        propagation,
                        directory,
                    };
                    let (fd, is_directory) = tree.open(&path)?;
                    note_directory(&mut plan, index, is_directory);
                    fd
                }
            });
        }
        Ok(Prepared {
            plan,
            fds,
            warnings,
        })
    }
}

/// Tells the step that attaches a tree whether it is a directory.
fn note_directory(plan: &mut Plan, index: usize, is_directory: bool) {
    for step in &mut plan.steps {
        if let Step::AttachFd { fd, directory, .. } = step
            && FdIndex::try_from(index) == Ok(*fd)
        {
            *directory = is_directory;
        }
    }
}

struct Tree {
    recursive: bool,
    attributes: Attributes,
    recursive_attributes: Attributes,
    propagation: (u64, Option<(u64, bool)>),
    directory: bool,
}

impl Tree {
    fn open(&self, path: &Path) -> Result<(OwnedFd, bool)> {
        let shown = || path.display().to_string();
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if self.recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let fd = open_tree(CWD, path, flags).on("clone mount of", shown())?;
        let stat = rustix::fs::fstat(&fd).on("stat", shown())?;
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if self.directory && !is_directory {
            return Err(Errno::NOTDIR).on("use as root file system", shown());
        }
        // A peer of the host's mount stays one only where that is asked for.
        let (base, own) = self.propagation;
        let base = match own {
            Some((MS_SHARED, _)) => 0,
            _ => base,
        };
        let (deep, flat) = match own {
            Some((flag, true)) => (flag, 0),
            Some((flag, false)) => (base, flag),
            None => (base, 0),
        };
        change(&fd, self.recursive_attributes, deep, true).on("set attributes of", shown())?;
        change(&fd, self.attributes, flat, false).on("set attributes of", shown())?;
        Ok((fd, is_directory))
    }
}

fn change(
    fd: &OwnedFd,
    attributes: Attributes,
    propagation: u64,
    recursive: bool,
) -> std::result::Result<(), Errno> {
    if attributes.is_empty() && propagation == 0 {
        return Ok(());
    }
    let change = AttrChange {
        set: attributes.set,
        clear: attributes.clear,
        propagation,
    };
    set_attributes(fd.as_fd(), change, recursive)
}

/// A namespace file whose type is what the spec says.
fn namespace(path: &Path, kind: LinuxNamespaceType) -> Result<OwnedFd> {
    let shown = || format!("namespace {}", path.display());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let fd = rustix::fs::open(path, flags, Mode::empty()).on("open", shown())?;
    let magic = rustix::fs::fstatfs(&fd).on("look at", shown())?.f_type;
    if u64::try_from(magic) != Ok(NSFS_MAGIC) {
        return Err(Error::spec(
            "linux.namespaces",
            format!("{} is no namespace", path.display()),
        ));
    }
    // nsfs names a file by its type: "net:[4026531840]" (namespaces(7)).
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let name = rustix::fs::readlink(link, Vec::new()).on("look at", shown())?;
    let name = name.to_string_lossy();
    let found = name.split(':').next().unwrap_or_default();
    if found != kind.to_string() {
        return Err(Error::spec(
            "linux.namespaces",
            format!(
                "{} is a {found} namespace, not a {kind} one",
                path.display()
            ),
        ));
    }
    Ok(fd)
}

/// A detached mount of /dev/null, which must be that device: nobody else's
/// file may become what hides others (CVE-2025-31133).
pub(crate) fn null() -> Result<OwnedFd> {
    const PATH: &str = "/dev/null";
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let at = rustix::fs::open(PATH, flags, Mode::empty()).on("open", PATH)?;
    let stat = rustix::fs::fstat(&at).on("stat", PATH)?;
    let device = (
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    );
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || device != NULL_DEVICE {
        return Err(Error::spec(PATH, "it is not the null device"));
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = open_tree(at.as_fd(), EMPTY, flags).on("clone mount of", PATH)?;
    let private = AttrChange {
        propagation: MS_PRIVATE,
        ..AttrChange::default()
    };
    set_attributes(mount.as_fd(), private, false).on("set attributes of", PATH)?;
    Ok(mount)
}

fn lsm_is_on(lsm: Lsm) -> bool {
    match lsm {
        Lsm::AppArmor => std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
            .is_ok_and(|text| text.trim() == "Y"),
        Lsm::Selinux => Path::new("/sys/fs/selinux/enforce").exists(),
    }
}
