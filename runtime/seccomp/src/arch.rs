//! Architectures: what the kernel calls them and which numbers they use.

use oci_spec::runtime::Arch as OciArch;

use crate::table::{FOREIGN, N, SYSCALLS};

/// An architecture whose system calls this crate knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 32-bit x86.
    X86,
    /// 64-bit x86 with 32-bit pointers.
    X32,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit ARM, EABI.
    Arm,
}

/// Bit 30 marks x32 calls, which share `AUDIT_ARCH_X86_64`
/// (`__X32_SYSCALL_BIT`, asm/unistd.h of x86).
pub(crate) const X32_BIT: u32 = 0x4000_0000;

/// ARM's private calls begin here (`__ARM_NR_BASE`, asm/unistd.h of arm).
pub(crate) const ARM_PRIVATE: u32 = 0x000f_0000;

impl Arch {
    /// The architecture that this program was compiled for, `None` if its
    /// system calls are not known here.
    #[must_use]
    pub const fn native() -> Option<Self> {
        if cfg!(target_arch = "x86_64") {
            Some(Self::X86_64)
        } else if cfg!(target_arch = "aarch64") {
            Some(Self::Aarch64)
        } else {
            None
        }
    }

    /// The architecture of an OCI profile's entry; `None` if it is not known.
    pub(crate) fn from_oci(arch: OciArch, native: Self) -> Option<Self> {
        match arch {
            OciArch::ScmpArchNative => Some(native),
            OciArch::ScmpArchX86_64 => Some(Self::X86_64),
            OciArch::ScmpArchX86 => Some(Self::X86),
            OciArch::ScmpArchX32 => Some(Self::X32),
            OciArch::ScmpArchAarch64 => Some(Self::Aarch64),
            OciArch::ScmpArchArm => Some(Self::Arm),
            _ => None,
        }
    }

    pub(crate) fn to_oci(self) -> OciArch {
        match self {
            Self::X86_64 => OciArch::ScmpArchX86_64,
            Self::X86 => OciArch::ScmpArchX86,
            Self::X32 => OciArch::ScmpArchX32,
            Self::Aarch64 => OciArch::ScmpArchAarch64,
            Self::Arm => OciArch::ScmpArchArm,
        }
    }

    /// The kernel's `AUDIT_ARCH_*` (linux/audit.h).
    #[must_use]
    pub const fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// The architectures that a kernel of this one can run, itself first.
    #[must_use]
    pub const fn family(self) -> &'static [Self] {
        match self {
            Self::X86_64 => &[Self::X86_64, Self::X86, Self::X32],
            Self::X86 => &[Self::X86],
            Self::X32 => &[Self::X32],
            Self::Aarch64 => &[Self::Aarch64, Self::Arm],
            Self::Arm => &[Self::Arm],
        }
    }

    /// Whether arguments are compared with all their 64 bits.
    #[must_use]
    pub const fn is_64_bit(self) -> bool {
        matches!(self, Self::X86_64 | Self::Aarch64)
    }

    /// The number of the call, as `seccomp_data.nr` shows it.
    #[must_use]
    pub fn number(self, name: &str) -> Option<u32> {
        let at = SYSCALLS.binary_search_by_key(&name, |row| row.0).ok()?;
        let (column, bit) = match self {
            Self::X86_64 => (0, 0),
            Self::X86 => (1, 0),
            Self::X32 => (2, X32_BIT),
            Self::Aarch64 => (3, 0),
            Self::Arm => (4, 0),
        };
        let number = SYSCALLS[at].1[column];
        (number != N).then_some(number | bit)
    }

    /// The call of x86's `socketcall(2)` or `ipc(2)` that does what `name`
    /// does: the multiplexer and the value of its first argument (linux/net.h
    /// `SYS_*`, linux/ipc.h).
    #[must_use]
    pub fn multiplexed(self, name: &str) -> Option<(&'static str, u64)> {
        if self != Self::X86 {
            return None;
        }
        let socket = |n| Some(("socketcall", n));
        let ipc = |n| Some(("ipc", n));
        match name {
            "socket" => socket(1),
            "bind" => socket(2),
            "connect" => socket(3),
            "listen" => socket(4),
            "accept" => socket(5),
            "getsockname" => socket(6),
            "getpeername" => socket(7),
            "socketpair" => socket(8),
            "send" => socket(9),
            "recv" => socket(10),
            "sendto" => socket(11),
            "recvfrom" => socket(12),
            "shutdown" => socket(13),
            "setsockopt" => socket(14),
            "getsockopt" => socket(15),
            "sendmsg" => socket(16),
            "recvmsg" => socket(17),
            "accept4" => socket(18),
            "recvmmsg" => socket(19),
            "sendmmsg" => socket(20),
            "semop" => ipc(1),
            "semget" => ipc(2),
            "semctl" => ipc(3),
            "semtimedop" => ipc(4),
            "msgsnd" => ipc(11),
            "msgrcv" => ipc(12),
            "msgget" => ipc(13),
            "msgctl" => ipc(14),
            "shmat" => ipc(21),
            "shmdt" => ipc(22),
            "shmget" => ipc(23),
            "shmctl" => ipc(24),
            _ => None,
        }
    }
}

/// Whether any architecture of Linux has a call of this name.
#[must_use]
pub fn is_syscall(name: &str) -> bool {
    SYSCALLS.binary_search_by_key(&name, |row| row.0).is_ok()
        || FOREIGN.binary_search(&name).is_ok()
        // Calls of `socketcall` that never had a number of their own on the
        // architectures above are in no table of theirs.
        || Arch::X86.multiplexed(name).is_some()
}

/// All names with a number on some known architecture, sorted.
pub fn syscall_names() -> impl Iterator<Item = &'static str> {
    SYSCALLS.iter().map(|row| row.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted() {
        assert!(SYSCALLS.is_sorted_by(|a, b| a.0 < b.0));
        assert!(FOREIGN.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn numbers_of_the_machine_at_hand() {
        // A few that everybody knows, one for each column.
        assert_eq!(Arch::X86_64.number("execve"), Some(59));
        assert_eq!(Arch::X86.number("execve"), Some(11));
        assert_eq!(Arch::X32.number("execve"), Some(X32_BIT | 520));
        assert_eq!(Arch::Aarch64.number("execve"), Some(221));
        assert_eq!(Arch::Arm.number("set_tls"), Some(0x000f_0005));
        assert_eq!(Arch::Aarch64.number("fork"), None);
        assert_eq!(Arch::X86_64.number("nonsense"), None);
    }

    #[test]
    fn names_of_other_architectures_are_known() {
        assert!(is_syscall("s390_pci_mmio_read"));
        assert!(is_syscall("send"));
        assert!(!is_syscall("sned"));
    }
}
