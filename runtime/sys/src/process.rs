//! Attributes of the calling process.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Join a new session keyring (`linux/keyctl.h`).
const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
/// `ioprio_set` on one process (`linux/ioprio.h`).
const IOPRIO_WHO_PROCESS: libc::c_int = 1;

/// Joins a new anonymous session keyring, so that the container does not
/// share its keys with rkube.
///
/// # Errors
/// keyctl(2)'s: `ENOSYS` without CONFIG_KEYS, `EDQUOT` over the key quota.
pub fn new_session_keyring() -> Result<(), Errno> {
    // SAFETY: a null name asks for an anonymous keyring.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        )
    };
    crate::check(ret).map(drop)
}

/// Sets the execution domain (personality(2)).
///
/// # Errors
/// personality(2)'s.
pub fn set_personality(persona: u32) -> Result<(), Errno> {
    // SAFETY: no memory is passed.
    let ret = unsafe { libc::personality(persona.into()) };
    crate::check(ret.into()).map(drop)
}

/// Sets the I/O priority of this process: `class` 1 to 3 and `level` 0 to 7
/// (ioprio_set(2)).
///
/// # Errors
/// ioprio_set(2)'s: `EPERM` for the real-time class without CAP_SYS_ADMIN.
pub fn set_io_priority(class: u8, level: u8) -> Result<(), Errno> {
    let value = (libc::c_int::from(class) << 13) | libc::c_int::from(level);
    // SAFETY: no memory is passed.
    let ret = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) };
    crate::check(ret).map(drop)
}

/// Sets the NUMA memory policy of this thread, which what it executes keeps
/// (set_mempolicy(2)): a mode of `linux/mempolicy.h` with its flags, and the
/// nodes as a bit mask.
///
/// # Errors
/// set_mempolicy(2)'s: `EINVAL` for nodes that are not there or not allowed.
pub fn set_memory_policy(mode: u32, nodes: &[u64]) -> Result<(), Errno> {
    // The kernel takes one bit less than it is told.
    let bits = if nodes.is_empty() {
        0
    } else {
        nodes.len() * 64 + 1
    };
    let mask = if nodes.is_empty() {
        std::ptr::null()
    } else {
        nodes.as_ptr()
    };
    // SAFETY: the mask is null with a length of 0, or has `bits - 1` bits, and
    // is only read.
    let ret = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) };
    crate::check(ret).map(drop)
}

/// Sets the processors that the calling thread may run on, by a bit mask.
///
/// # Errors
/// sched_setaffinity(2)'s: `EINVAL` for none that is there and allowed.
pub fn set_cpu_affinity(mask: &[u64]) -> Result<(), Errno> {
    let mut cpus = rustix::thread::CpuSet::new();
    for (word, bits) in mask.iter().enumerate() {
        for bit in (0..64).filter(|bit| bits & (1_u64 << bit) != 0) {
            let cpu = word * 64 + bit;
            if cpu >= rustix::thread::CpuSet::MAX_CPU {
                return Err(Errno::INVAL);
            }
            cpus.set(cpu);
        }
    }
    rustix::thread::sched_setaffinity(None, &cpus)
}

/// What `sched_setattr(2)` sets; the fields are those of `struct sched_attr`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SchedAttr {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For SCHED_OTHER and SCHED_BATCH, -20 to 19.
    pub nice: i32,
    /// For SCHED_FIFO and SCHED_RR, 1 to 99.
    pub priority: u32,
    /// For SCHED_DEADLINE, ns.
    pub runtime: u64,
    /// For SCHED_DEADLINE, ns.
    pub deadline: u64,
    /// For SCHED_DEADLINE, ns.
    pub period: u64,
}

/// Sets scheduling policy and attributes of this process.
///
/// # Errors
/// sched_setattr(2)'s.
pub fn set_scheduler(attr: SchedAttr) -> Result<(), Errno> {
    #[repr(C)]
    struct Raw {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    const SIZE: u32 = 48; // SCHED_ATTR_SIZE_VER0
    const _: () = assert!(size_of::<Raw>() == SIZE as usize);
    let raw = Raw {
        size: SIZE,
        policy: attr.policy,
        flags: attr.flags,
        nice: attr.nice,
        priority: attr.priority,
        runtime: attr.runtime,
        deadline: attr.deadline,
        period: attr.period,
    };
    // SAFETY: `raw` is a valid sched_attr of the size that it states.
    let ret = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const raw, 0) };
    crate::check(ret).map(drop)
}

/// Ends the calling process at once, without destructors or exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Gives free heap pages back to the kernel (malloc_trim(3)).
pub fn trim_heap() {
    // SAFETY: no preconditions; glibc locks its own arenas.
    unsafe { libc::malloc_trim(0) };
}

/// Joins namespaces: one by its file (`kinds` is its `CLONE_NEW*`, or 0 for
/// any), or several of a process by its pidfd (5.8). The process namespace
/// takes effect for children only.
///
/// # Errors
/// setns(2)'s: `EINVAL` for a file of another kind, `EPERM`.
pub fn join_namespaces(fd: BorrowedFd<'_>, kinds: u64) -> Result<(), Errno> {
    let kinds = libc::c_int::try_from(kinds).map_err(|_| Errno::INVAL)?;
    // SAFETY: no memory is passed.
    let ret = unsafe { libc::setns(fd.as_raw_fd(), kinds) };
    crate::check(ret.into()).map(drop)
}

/// Makes new namespaces for the calling thread (`CLONE_NEW*`).
///
/// # Errors
/// unshare(2)'s.
pub fn unshare_namespaces(kinds: u64) -> Result<(), Errno> {
    let kinds = libc::c_int::try_from(kinds).map_err(|_| Errno::INVAL)?;
    // SAFETY: `CLONE_NEW*` change neither memory nor descriptors.
    let ret = unsafe { libc::unshare(kinds) };
    crate::check(ret.into()).map(drop)
}
