//! `bpf(2)` as far as a cgroup device filter needs it: load one program,
//! attach it to a cgroup v2 directory, ask which are attached, detach.
//!
//! Constants and structure layouts are those of `include/uapi/linux/bpf.h`.
//! All calls need `CAP_BPF` and `CAP_NET_ADMIN` (or `CAP_SYS_ADMIN`).
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// `BPF_PROG_ATTACH` (Linux 4.10 for cgroups).
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_DETACH: libc::c_long = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_PROG_QUERY: libc::c_long = 16;

/// `BPF_PROG_TYPE_CGROUP_DEVICE` (Linux 4.15).
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
/// `BPF_CGROUP_DEVICE`, the attach type (Linux 4.15).
const BPF_CGROUP_DEVICE: u32 = 6;
/// `BPF_F_ALLOW_MULTI`: programs of ancestors and siblings run as well and
/// all must allow.
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;
/// `BPF_F_REPLACE` (Linux 5.6): take the place of one program, atomically.
const BPF_F_REPLACE: u32 = 1 << 2;

/// Bytes of verifier log returned with a refused program.
pub const VERIFIER_LOG_BYTES: usize = 16 * 1024;

/// Programs that [`cgroup_device_query`] reports at most; the kernel's own
/// limit is `BPF_CGROUP_MAX_PROGS`, 64.
pub const MAX_CGROUP_PROGRAMS: usize = 64;

/// Encoded instruction (`struct bpf_insn` as one little or big endian word
/// in memory order: opcode, registers, offset, immediate).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    /// Opcode.
    pub code: u8,
    /// Destination register, 0 to 10.
    pub dst: u8,
    /// Source register, 0 to 10.
    pub src: u8,
    /// Jump distance in instructions, or memory offset in bytes.
    pub off: i16,
    /// Immediate.
    pub imm: i32,
}

impl Insn {
    /// The eight bytes of `struct bpf_insn` on this machine.
    fn to_bytes(self) -> [u8; 8] {
        // The registers are two C bit fields of one byte; their order
        // follows the byte order of the machine.
        let registers = if cfg!(target_endian = "little") {
            (self.src << 4) | (self.dst & 0xf)
        } else {
            (self.dst << 4) | (self.src & 0xf)
        };
        let off = self.off.to_ne_bytes();
        let imm = self.imm.to_ne_bytes();
        [
            self.code, registers, off[0], off[1], imm[0], imm[1], imm[2], imm[3],
        ]
    }
}

/// A program the kernel refused, with what its verifier said.
#[derive(Debug)]
pub struct LoadError {
    /// The errno of `bpf(BPF_PROG_LOAD)`.
    pub errno: Errno,
    /// The verifier's log, empty where it had nothing to say.
    pub log: String,
}

/// The first fields of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// `union bpf_attr` for `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// `union bpf_attr` for `BPF_PROG_QUERY`.
#[repr(C)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    _pad: u32,
    prog_attach_flags: u64,
}

/// `union bpf_attr` for `BPF_PROG_GET_FD_BY_ID`.
#[repr(C)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// One `bpf(2)` call on a typed attribute block.
fn bpf<T>(command: libc::c_long, attr: &mut T) -> Result<libc::c_long, Errno> {
    // SAFETY: `attr` is a live `repr(C)` block laid out as this command's
    // part of `union bpf_attr`, its true size is passed (the kernel treats
    // missing tail bytes as zero), and every pointer stored in it by the
    // callers in this module refers to memory that outlives this call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        // The C library stored the errno of the call above.
        let raw = std::io::Error::last_os_error().raw_os_error();
        return Err(Errno::from_raw_os_error(raw.unwrap_or(libc::EINVAL)));
    }
    Ok(result)
}

/// A descriptor number as the kernel's attribute blocks want it.
fn fd_number(fd: BorrowedFd<'_>) -> u32 {
    // A valid descriptor is never negative; -1 cannot be in a BorrowedFd.
    fd.as_raw_fd().unsigned_abs()
}

/// Wraps a descriptor number that a `bpf(2)` command returned.
fn own(raw: libc::c_long) -> Result<OwnedFd, Errno> {
    let raw = i32::try_from(raw).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just made this descriptor for us (bpf(2)
    // returns a new one, close-on-exec, for load and get-by-id), and
    // nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Loads a device filter. `name` is shown by `bpftool` (15 bytes at most
/// are used; letters, digits, `_` and `.` only, or the kernel says EINVAL).
///
/// The filter uses no helper function, so no licence is claimed for it
/// beyond the kernel's requirement of a non-null string.
///
/// # Errors
/// The errno and, for a refused program, the verifier's words: a refused
/// program is loaded a second time with logging on.
pub fn load_cgroup_device(program: &[Insn], name: &str) -> Result<OwnedFd, LoadError> {
    let code: Vec<[u8; 8]> = program.iter().map(|insn| insn.to_bytes()).collect();
    let mut prog_name = [0_u8; 16];
    for (to, from) in prog_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    let count = u32::try_from(code.len()).map_err(|_| LoadError {
        errno: Errno::TOOBIG,
        log: String::new(),
    })?;
    let mut attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: count,
        insns: code.as_ptr().expose_provenance() as u64,
        license: c"Apache-2.0".as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name,
        prog_ifindex: 0,
        expected_attach_type: BPF_CGROUP_DEVICE,
    };
    match bpf(BPF_PROG_LOAD, &mut attr).and_then(own) {
        Ok(fd) => Ok(fd),
        Err(errno) => {
            let mut log = vec![0_u8; VERIFIER_LOG_BYTES];
            attr.log_level = 1;
            attr.log_size = u32::try_from(log.len()).unwrap_or(0);
            attr.log_buf = log.as_mut_ptr().expose_provenance() as u64;
            // The result is the same refusal; a success here (memory was
            // short before) is as good as one above.
            if let Ok(fd) = bpf(BPF_PROG_LOAD, &mut attr).and_then(own) {
                return Ok(fd);
            }
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            Err(LoadError {
                errno,
                log: String::from_utf8_lossy(&log[..end]).trim().to_owned(),
            })
        }
    }
}

/// Attaches a device filter to a cgroup v2 directory beside those already
/// there (all of them must allow an access), or, with `replace`, in the
/// place of that one without a moment in between.
///
/// `cgroup` must be a real descriptor of the directory, not `O_PATH`.
///
/// # Errors
/// EPERM without the capabilities or where an ancestor holds an exclusive
/// program, E2BIG above 64 programs, ENOENT where `replace` is not attached.
pub fn cgroup_device_attach(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replace: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut attr = AttachAttr {
        target_fd: fd_number(cgroup),
        attach_bpf_fd: fd_number(program),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI | replace.map_or(0, |_| BPF_F_REPLACE),
        replace_bpf_fd: replace.map_or(0, fd_number),
    };
    bpf(BPF_PROG_ATTACH, &mut attr).map(|_| ())
}

/// Detaches one device filter from a cgroup v2 directory.
///
/// # Errors
/// ENOENT where it is not attached there.
pub fn cgroup_device_detach(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut attr = AttachAttr {
        target_fd: fd_number(cgroup),
        attach_bpf_fd: fd_number(program),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: 0,
        replace_bpf_fd: 0,
    };
    bpf(BPF_PROG_DETACH, &mut attr).map(|_| ())
}

/// The device filters attached to this very cgroup (not its ancestors), as
/// descriptors.
///
/// # Errors
/// Any errno of the two commands; a program that goes away between them is
/// left out.
pub fn cgroup_device_query(cgroup: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, Errno> {
    let mut ids = [0_u32; MAX_CGROUP_PROGRAMS];
    let mut attr = QueryAttr {
        target_fd: fd_number(cgroup),
        attach_type: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr().expose_provenance() as u64,
        prog_cnt: u32::try_from(ids.len()).unwrap_or(0),
        _pad: 0,
        prog_attach_flags: 0,
    };
    bpf(BPF_PROG_QUERY, &mut attr)?;
    let count = usize::try_from(attr.prog_cnt)
        .unwrap_or(0)
        .min(MAX_CGROUP_PROGRAMS);
    let mut programs = Vec::with_capacity(count);
    for id in &ids[..count] {
        let mut by_id = IdAttr {
            id: *id,
            next_id: 0,
            open_flags: 0,
        };
        match bpf(BPF_PROG_GET_FD_BY_ID, &mut by_id).and_then(own) {
            Ok(fd) => programs.push(fd),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(programs)
}

/// True where this process may load a device filter here: loads the
/// smallest one and drops it.
#[must_use]
pub fn cgroup_device_supported() -> bool {
    // mov64 r0, 1; exit
    let program = [
        Insn {
            code: 0xb7,
            dst: 0,
            src: 0,
            off: 0,
            imm: 1,
        },
        Insn {
            code: 0x95,
            dst: 0,
            src: 0,
            off: 0,
            imm: 0,
        },
    ];
    load_cgroup_device(&program, "rkube_probe").is_ok_and(|fd| fd.as_fd().as_raw_fd() >= 0)
}
