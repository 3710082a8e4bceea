//! A compiled filter.

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag};
use rkube_sys::seccomp::{Instruction, MAX_INSTRUCTIONS, SECCOMP_FILTER_FLAG_NEW_LISTENER};

use crate::compile::compile;
use crate::rules::Policy;
use crate::{Arch, CompileError, Warning};

/// Flags of seccomp(2), `SECCOMP_SET_MODE_FILTER` (linux/seccomp.h).
pub mod flag {
    /// All threads of the process (3.17).
    pub const TSYNC: u64 = 1 << 0;
    /// Log refusals (4.14).
    pub const LOG: u64 = 1 << 1;
    /// No mitigation of speculative store bypass (4.17).
    pub const SPEC_ALLOW: u64 = 1 << 2;
    /// A notification waits killably once it is received (5.19).
    pub const WAIT_KILLABLE_RECV: u64 = 1 << 5;
}

/// A filter, ready to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The instructions, at most 4096.
    pub instructions: Vec<Instruction>,
    /// [`flag`]s that the profile asks for, and `SECCOMP_FILTER_FLAG_NEW_LISTENER`
    /// if some call asks an agent. Kernels that lack one answer EINVAL: probing
    /// is the caller's.
    pub flags: u64,
    /// What is odd about the profile.
    pub warnings: Vec<Warning>,
}

impl Program {
    /// Compiles a profile for a machine of architecture `native`.
    ///
    /// # Errors
    /// [`CompileError`] if the profile means nothing the kernel can do.
    pub fn compile(spec: &LinuxSeccomp, native: Arch) -> Result<Self, CompileError> {
        let policy = Policy::new(spec, native)?;
        let instructions = compile(&policy);
        if instructions.len() > MAX_INSTRUCTIONS {
            let instructions = instructions.len();
            return Err(CompileError::TooLong { instructions });
        }
        let mut flags = 0;
        for wanted in spec.flags().as_deref().unwrap_or_default() {
            flags |= match wanted {
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => flag::LOG,
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => flag::TSYNC,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => flag::SPEC_ALLOW,
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                    flag::WAIT_KILLABLE_RECV
                }
            };
        }
        if policy.notifies {
            flags |= SECCOMP_FILTER_FLAG_NEW_LISTENER;
        }
        Ok(Self {
            instructions,
            flags,
            warnings: policy.warnings,
        })
    }

    /// Whether loading hands out a descriptor that an agent must get.
    #[must_use]
    pub fn notifies(&self) -> bool {
        self.flags & SECCOMP_FILTER_FLAG_NEW_LISTENER != 0
    }

    /// The instructions as `struct sock_filter` in memory: 8 bytes each, in
    /// native byte order, as `rkube_sys::bytes::instructions` reads them.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(8 * self.instructions.len());
        for instruction in &self.instructions {
            bytes.extend(instruction.code.to_ne_bytes());
            bytes.extend([instruction.jt, instruction.jf]);
            bytes.extend(instruction.k.to_ne_bytes());
        }
        bytes
    }
}
