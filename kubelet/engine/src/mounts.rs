//! Mounts that the engine makes itself, all of them detached: nothing of a
//! container is ever attached in the host's mount namespace.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rkube_runtime::ExtraMount;
use rkube_sys::mount::{
    AttrChange, MOUNT_ATTR_RDONLY, MS_PRIVATE, MS_SHARED, MS_SLAVE, set_attributes, set_idmap,
};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, open_tree,
};

use crate::api::{ContainerConfig, MountConfig, MountSource, Propagation};
use crate::error::{Error, OnFile, Result};
use crate::ids::Ids;
use crate::proc::Held;
use crate::sandbox::SHM_IN_PAUSE;

/// A sandbox's user namespace, and its ids on the host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owners<'a> {
    pub(crate) namespace: BorrowedFd<'a>,
    pub(crate) ids: Ids,
}

/// `CLONE_FS` of `linux/sched.h`: a thread's own root and working directory,
/// which entering a mount namespace needs.
const CLONE_FS: u64 = 0x200;
/// Directories that are made for a sub path (what the kubelet makes).
const SUB_PATH_MODE: u32 = 0o750;

/// An empty tmpfs of an owner, for the root of a pause process.
pub(crate) fn empty_root(owner: u32) -> Result<OwnedFd> {
    let what = Path::new("tmpfs for pause");
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).on("make", what)?;
    fsconfig_set_string(context.as_fd(), "size", "16k").on("set size of", what)?;
    fsconfig_set_string(context.as_fd(), "mode", "755").on("set mode of", what)?;
    for key in ["uid", "gid"] {
        fsconfig_set_string(context.as_fd(), key, owner.to_string()).on("set owner of", what)?;
    }
    fsconfig_create(context.as_fd()).on("make", what)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).on("mount", what)
}

/// A detached copy of what a descriptor is on.
fn copy(fd: BorrowedFd<'_>, recursive: bool, what: &Path) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(fd, "", flags).on("copy the mount of", what)
}

/// The shared memory file system of a pod, out of the mount namespace of its
/// pause process. A thread of its own goes there and ends.
pub(crate) fn pod_shm(pause: &Held) -> Result<ExtraMount> {
    let namespace = pause.namespace("mnt")?;
    let what = PathBuf::from(format!("/proc/{}/root{SHM_IN_PAUSE}", pause.pid));
    let thread = std::thread::Builder::new()
        .stack_size(64 << 10)
        .spawn(move || {
            let what = Path::new(SHM_IN_PAUSE);
            rkube_sys::process::unshare_namespaces(CLONE_FS).on("leave shared root for", what)?;
            rkube_sys::process::join_namespaces(namespace.as_fd(), 0)
                .on("enter namespace of", what)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let fd = rustix::fs::open(SHM_IN_PAUSE, flags, Mode::empty()).on("open", what)?;
            copy(fd.as_fd(), false, what)
        });
    let mount = thread
        .on("start a thread for", &what)?
        .join()
        .map_err(|_| Error::Invalid {
            object: what.display().to_string(),
            what: "the thread that opens it has died".into(),
        })??;
    Ok(ExtraMount {
        mount,
        target: "/dev/shm".into(),
        directory: true,
    })
}

/// The host's own shared memory, for pods in the host's IPC namespace.
pub(crate) fn host_shm() -> Result<Option<ExtraMount>> {
    let path = Path::new("/dev/shm");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) => Ok(None),
        other => {
            let fd = other.on("open", path)?;
            let mount = copy(fd.as_fd(), false, path)?;
            Ok(Some(ExtraMount {
                mount,
                target: "/dev/shm".into(),
                directory: true,
            }))
        }
    }
}

/// The bind mounts of a container, parents before children.
pub(crate) fn binds(
    config: &ContainerConfig,
    owners: Option<&Owners<'_>>,
) -> Result<Vec<ExtraMount>> {
    let depth = |m: &&MountConfig| m.target.split('/').filter(|c| !c.is_empty()).count();
    let mut sorted: Vec<&MountConfig> = config
        .mounts
        .iter()
        .filter(|m| matches!(m.source, MountSource::Bind { .. }))
        .collect();
    sorted.sort_by_key(depth);
    sorted.into_iter().map(|m| bind(m, owners)).collect()
}

/// Maps the owners in a volume; where its file system cannot, and the volume
/// belongs to the sandbox, changes them instead.
fn map_owners(mount: &OwnedFd, owners: &Owners<'_>, of_sandbox: bool, path: &Path) -> Result<()> {
    match set_idmap(mount.as_fd(), owners.namespace, true) {
        Err(Errno::INVAL) if of_sandbox => {
            let ids = owners.ids;
            rkube_image::shift_owners(mount.as_fd(), ids.first, ids.count).map_err(|source| {
                Error::Image {
                    image: format!("volume {}", path.display()),
                    source,
                }
            })
        }
        Err(Errno::INVAL) => Err(Error::Invalid {
            object: path.display().to_string(),
            what: "its file system has no id-mapped mounts on this kernel, which a pod with \
                   a user namespace (hostUsers: false) needs"
                .into(),
        }),
        other => other.on("map owners of volume", path),
    }
}

fn bind(m: &MountConfig, owners: Option<&Owners<'_>>) -> Result<ExtraMount> {
    let MountSource::Bind { path, sub_path } = &m.source else {
        return Err(Error::Invalid {
            object: m.target.clone(),
            what: "only bind mounts come here".into(),
        });
    };
    let source = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .on("open volume", path)?;
    let source = match sub_path {
        Some(sub) => open_sub_path(&source, sub, path)?,
        None => source,
    };
    let stat = rustix::fs::fstat(&source).on("stat volume", path)?;
    let mount = copy(source.as_fd(), true, path)?;
    if let Some(owners) = owners {
        map_owners(&mount, owners, m.of_sandbox, path)?;
    }
    let propagation = match m.propagation {
        Propagation::Private => MS_PRIVATE,
        Propagation::HostToContainer => MS_SLAVE,
        Propagation::Bidirectional => MS_SHARED,
    };
    let change = AttrChange {
        propagation,
        ..AttrChange::default()
    };
    set_attributes(mount.as_fd(), change, true).on("set propagation of", path)?;
    if m.read_only {
        let change = AttrChange {
            set: MOUNT_ATTR_RDONLY,
            ..AttrChange::default()
        };
        set_attributes(mount.as_fd(), change, m.recursive_read_only).on("make read-only", path)?;
    }
    Ok(ExtraMount {
        mount,
        target: m.target.clone(),
        directory: FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
    })
}

/// Opens a path below a volume without leaving it: symlinks of the volume's
/// own are followed inside it only (CVE-2021-25741). Missing directories are
/// made.
fn open_sub_path(volume: &OwnedFd, sub: &str, path: &Path) -> Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let open = |at: &str| loop {
        match openat2(
            volume,
            at,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        ) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    };
    let shown = path.join(sub);
    match open(sub) {
        Err(Errno::NOENT) => {}
        other => return other.on("open sub path", &shown),
    }
    let mut done = String::new();
    let mut at = open(".").on("open volume", path)?;
    for component in sub.split('/').filter(|c| !c.is_empty() && *c != ".") {
        if component == ".." {
            let what = format!("sub path {sub:?} contains \"..\"");
            return Err(Error::Invalid {
                object: path.display().to_string(),
                what,
            });
        }
        if !done.is_empty() {
            done.push('/');
        }
        done.push_str(component);
        at = match open(&done) {
            Err(Errno::NOENT) => {
                match mkdirat(&at, component, Mode::from_raw_mode(SUB_PATH_MODE)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno).on("make sub path", &shown),
                }
                open(&done).on("open sub path", &shown)?
            }
            other => other.on("open sub path", &shown)?,
        };
    }
    Ok(at)
}
