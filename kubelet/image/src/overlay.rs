//! Overlay mounts that nobody sees: built by the new mount API, returned as a
//! descriptor, attached by whoever holds it (in the container's namespace).
//!
//! How the lower layers reach the kernel depends on its age:
//!
//! | kernel | method | limit |
//! |---|---|---|
//! | 6.13 | `lowerdir+` by descriptor (`FSCONFIG_SET_FD`) | 500 layers |
//! | 6.7 | `lowerdir+` by path, one call a layer; the path is `/proc/self/fd/N` | 500 |
//! | older | classic `lowerdir=N:N:...` by mount(2), with `/proc/self/fd` as working directory, in a mount namespace that a thread makes for the purpose and leaves; the result is cloned out with open_tree(2) | one page of options |
//!
//! The classic way cannot use fsconfig(2): a value there has at most 255 bytes
//! (fs/fsopen.c), and the old option parser keeps only the last `lowerdir`.
//! mount(2) takes 4095 bytes (`PAGE_SIZE` less the NUL). A layer costs the
//! digits of a descriptor and a colon: 128 layers with descriptors below
//! 10 000 need 128 * 5 = 640 bytes, [`crate::limits::MAX_LAYERS`] with seven
//! digits 2048.

use std::ffi::CString;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, OpenTreeFlags,
    fsconfig_create, fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    mount, mount_change, open_tree,
};

use crate::error::{Error, Result};
use crate::fsutil::DIR_FLAGS;
use crate::limits::MAX_LAYERS;
use crate::store::LayerPath;

/// Longest option text of mount(2), without its NUL.
const MAX_MOUNT_DATA_BYTES: usize = 4095;
/// procfs (linux/magic.h).
const PROC_SUPER_MAGIC: i64 = 0x9fa0;
/// Kernel messages read from a mount context after an error, in bytes.
const MAX_LOG_BYTES: usize = 2048;

/// How lower layers are handed to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverlayMethod {
    /// `lowerdir+` by descriptor (6.13).
    LowerFd,
    /// `lowerdir+` by path (6.7).
    LowerPath,
    /// `lowerdir=` by mount(2).
    Classic,
}

impl OverlayMethod {
    /// What this kernel can do; asked once per process.
    pub fn probed() -> Self {
        static METHOD: OnceLock<OverlayMethod> = OnceLock::new();
        *METHOD.get_or_init(probe)
    }

    fn name(self) -> &'static str {
        match self {
            Self::LowerFd => "lowerdir+ by descriptor",
            Self::LowerPath => "lowerdir+ by path",
            Self::Classic => "lowerdir= by mount(2)",
        }
    }
}

impl fmt::Display for OverlayMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Options of a mount.
#[derive(Debug, Clone, Copy, Default)]
pub struct MountOptions {
    /// The mount is read-only. With an upper directory only the mount is:
    /// whoever must still create mount points leaves this off and makes the
    /// root read-only later.
    pub read_only: bool,
    /// Never sync the upper directory (overlayfs.rst, "Volatile mount").
    /// For uppers that do not outlive a crash; such an upper can be mounted
    /// once only.
    pub volatile: bool,
    /// A change of owner or mode copies up no content (overlayfs.rst,
    /// "Metadata only copy up").
    pub metacopy: bool,
    /// Instead of the probed method.
    pub method: Option<OverlayMethod>,
}

/// The writable part of an overlay.
#[derive(Debug, Clone, Copy)]
pub struct UpperDirs<'a> {
    /// Where changes go.
    pub upper: &'a Path,
    /// An empty directory on the same file system.
    pub work: &'a Path,
}

/// Whether the kernel has overlayfs, loaded by the question where it is a
/// module.
#[must_use]
pub fn has_overlay() -> bool {
    // Another refusal (EPERM) is told where a mount meets it.
    !matches!(
        fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC),
        Err(Errno::NODEV)
    )
}

fn probe() -> OverlayMethod {
    let Ok(ctx) = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) else {
        return OverlayMethod::Classic;
    };
    // A file system that was not ported to the new API takes any option and
    // complains when it is made.
    if fsconfig_set_flag(&ctx, "rkube-probe").is_ok() {
        return OverlayMethod::Classic;
    }
    if let Ok(root) = rustix::fs::openat(CWD, "/", DIR_FLAGS, Mode::empty())
        && fsconfig_set_fd(&ctx, "lowerdir+", &root).is_ok()
    {
        return OverlayMethod::LowerFd;
    }
    match fsconfig_set_string(&ctx, "lowerdir+", "/") {
        Ok(()) => OverlayMethod::LowerPath,
        Err(_) => OverlayMethod::Classic,
    }
}

/// Mounts `layers` (the lowest first) and returns the detached mount.
///
/// Without upper directory the mount is read-only whatever the options say.
///
/// # Errors
/// [`Error::Mount`] with the step, the kernel's messages and its answer.
pub fn mount_overlay(
    layers: &[LayerPath],
    upper: Option<UpperDirs<'_>>,
    opts: MountOptions,
) -> Result<OwnedFd> {
    let method = opts.method.unwrap_or_else(OverlayMethod::probed);
    let Some(top) = layers.last() else {
        return Err(Error::Malformed {
            what: "image".into(),
            reason: "it has no layers".into(),
        });
    };
    if layers.len() > MAX_LAYERS {
        let limit = MAX_LAYERS as u64;
        return Err(Error::Limit {
            what: "image".into(),
            limit,
            unit: "layers",
        });
    }
    let mut lower: Vec<&Path> = layers.iter().rev().map(|l| l.path.as_path()).collect();
    let beside = top.path.parent().unwrap_or(&top.path);
    let empty = beside.join("empty");
    // Without upper overlayfs wants two layers. A bind mount would do, but a
    // container that may remount could then write to the layer itself.
    if upper.is_none() && lower.len() == 1 {
        lower.push(&empty);
    }
    match method {
        OverlayMethod::Classic => std::thread::scope(|scope| {
            let job = || classic(&lower, beside, upper, opts);
            std::thread::Builder::new()
                .name("rkube-mount".into())
                .spawn_scoped(scope, job)
                .map_err(|source| fail(method, "start a thread", source))?
                .join()
                .unwrap_or_else(|_| {
                    Err(fail(method, "thread", std::io::Error::other("it panicked")))
                })
        }),
        _ => modern(method, &lower, upper, opts),
    }
}

/// Mounts layers that are attached in the mount namespace of this thread
/// alone (the uppermost first); `at` is an empty directory of it, by its
/// parent and name.
pub(crate) fn mount_here(
    lower: &[&Path],
    at: (&Path, &str),
    upper: UpperDirs<'_>,
    opts: MountOptions,
) -> Result<OwnedFd> {
    match opts.method.unwrap_or_else(OverlayMethod::probed) {
        OverlayMethod::Classic => classic_here(lower, at, Some(upper), opts),
        method => modern(method, lower, Some(upper), opts),
    }
}

pub(crate) fn fail(
    method: OverlayMethod,
    step: impl Into<String>,
    source: impl Into<std::io::Error>,
) -> Error {
    Error::Mount {
        method: method.name(),
        step: step.into(),
        log: String::new(),
        source: source.into(),
    }
}

fn open(method: OverlayMethod, path: &Path) -> Result<OwnedFd> {
    rustix::fs::openat(CWD, path, DIR_FLAGS, Mode::empty())
        .map_err(|e| fail(method, format!("open {}", path.display()), e))
}

fn modern(
    method: OverlayMethod,
    lower: &[&Path],
    upper: Option<UpperDirs<'_>>,
    opts: MountOptions,
) -> Result<OwnedFd> {
    let ctx = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|e| fail(method, "fsopen overlay", e))?;
    let explain = |step: String, e: Errno| Error::Mount {
        method: method.name(),
        step,
        log: context_log(ctx.as_fd()),
        source: e.into(),
    };
    let set_dir = |key: &str, path: &Path| -> Result<()> {
        let fd = open(method, path)?;
        let set = if method == OverlayMethod::LowerFd {
            fsconfig_set_fd(&ctx, key, &fd)
        } else {
            fsconfig_set_string(&ctx, key, format!("/proc/self/fd/{}", fd.as_raw_fd()))
        };
        set.map_err(|e| explain(format!("fsconfig {key}={}", path.display()), e))
    };
    fsconfig_set_string(&ctx, "source", "rkube")
        .map_err(|e| explain("fsconfig source".into(), e))?;
    for path in lower {
        set_dir("lowerdir+", path)?;
    }
    if let Some(u) = upper {
        set_dir("upperdir", u.upper)?;
        set_dir("workdir", u.work)?;
        // An upper is used by one mount at a time, here by construction; the
        // index would tie it to these very layers' file handles.
        fsconfig_set_string(&ctx, "index", "off")
            .map_err(|e| explain("fsconfig index=off".into(), e))?;
        if opts.metacopy {
            fsconfig_set_string(&ctx, "metacopy", "on")
                .map_err(|e| explain("fsconfig metacopy=on".into(), e))?;
        }
        if opts.volatile {
            fsconfig_set_flag(&ctx, "volatile")
                .map_err(|e| explain("fsconfig volatile".into(), e))?;
        }
    }
    fsconfig_create(&ctx).map_err(|e| explain("fsconfig create".into(), e))?;
    let attr = if opts.read_only || upper.is_none() {
        MountAttrFlags::MOUNT_ATTR_RDONLY
    } else {
        MountAttrFlags::empty()
    };
    fsmount(&ctx, FsMountFlags::FSMOUNT_CLOEXEC, attr).map_err(|e| explain("fsmount".into(), e))
}

/// The messages that a mount context keeps (one per read, `e text` for an
/// error), joined.
fn context_log(ctx: BorrowedFd<'_>) -> String {
    let mut out = String::new();
    let mut buf = [0_u8; 256];
    while out.len() < MAX_LOG_BYTES {
        match rustix::io::read(ctx, &mut buf) {
            Ok(n) if n > 0 => {
                if !out.is_empty() {
                    out.push_str("; ");
                }
                let text = String::from_utf8_lossy(&buf[..n]);
                out.push_str(text.trim().get(2..).unwrap_or_default());
            }
            _ => break,
        }
    }
    out
}

/// Runs in a thread of its own: the new mount namespace and the working
/// directory are the thread's (unshare(2): `CLONE_NEWNS` implies `CLONE_FS`)
/// and end with it, and with them the mount that the clone was taken from.
fn classic(
    lower: &[&Path],
    beside: &Path,
    upper: Option<UpperDirs<'_>>,
    opts: MountOptions,
) -> Result<OwnedFd> {
    leave_namespace(OverlayMethod::Classic)?;
    classic_here(lower, (beside, "empty"), upper, opts)
}

/// Gives this thread a mount namespace of its own, of which nothing gets out.
pub(crate) fn leave_namespace(method: OverlayMethod) -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
        .map_err(|e| fail(method, "unshare(CLONE_NEWNS)", e))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(|e| fail(method, "make / private", e))
}

/// The same in the mount namespace of this thread, attached for a moment to a
/// directory by its parent and name.
fn classic_here(
    lower: &[&Path],
    at: (&Path, &str),
    upper: Option<UpperDirs<'_>>,
    opts: MountOptions,
) -> Result<OwnedFd> {
    let method = OverlayMethod::Classic;
    // Opened only now: overlayfs takes layers of the caller's namespace.
    let fds = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc_fds = rustix::fs::openat(CWD, "/proc/self/fd", fds, Mode::empty())
        .map_err(|e| fail(method, "open /proc/self/fd", e))?;
    let kind = rustix::fs::fstatfs(&proc_fds)
        .map_err(|e| fail(method, "fstatfs /proc", e))?
        .f_type;
    if kind != PROC_SUPER_MAGIC {
        return Err(fail(method, "/proc is not procfs", Errno::INVAL));
    }
    rustix::process::fchdir(&proc_fds).map_err(|e| fail(method, "fchdir /proc/self/fd", e))?;

    let mut held = Vec::new();
    let mut hold = |path: &Path| -> Result<String> {
        let fd = open(method, path)?;
        let text = fd.as_raw_fd().to_string();
        held.push(fd);
        Ok(text)
    };
    let names = lower.iter().map(|p| hold(p)).collect::<Result<Vec<_>>>()?;
    let mut data = format!("lowerdir={}", names.join(":"));
    if let Some(u) = upper {
        let (upper, work) = (hold(u.upper)?, hold(u.work)?);
        data.push_str(&format!(",upperdir={upper},workdir={work},index=off"));
        if opts.metacopy {
            data.push_str(",metacopy=on");
        }
        if opts.volatile {
            data.push_str(",volatile");
        }
    }
    if data.len() > MAX_MOUNT_DATA_BYTES {
        let limit = MAX_MOUNT_DATA_BYTES as u64;
        return Err(Error::Limit {
            what: "overlay mount options".into(),
            limit,
            unit: "bytes",
        });
    }
    let target = format!("{}/{}", hold(at.0)?, at.1);
    let flags = if opts.read_only {
        MountFlags::RDONLY
    } else {
        MountFlags::empty()
    };
    let options = CString::new(data.as_str())
        .map_err(|e| fail(method, "options", std::io::Error::from(e)))?;
    mount("rkube", &target, "overlay", flags, Some(&*options))
        .map_err(|e| fail(method, format!("mount overlay ({data})"), e))?;
    open_tree(
        CWD,
        &target,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
    .map_err(|e| fail(method, "open_tree(OPEN_TREE_CLONE)", e))
}
