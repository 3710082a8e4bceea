//! What can be wrong with a profile, and what is odd about one.

use oci_spec::runtime::{Arch as OciArch, LinuxSeccompAction};
use serde::{Deserialize, Serialize};

/// A profile that cannot be compiled.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CompileError {
    /// The action takes no return value (runtime-spec, config-linux.md,
    /// seccomp: "the runtime MUST generate an error").
    #[error("seccomp action {action} of {object} takes no errno, but the profile gives {errno}")]
    ErrnoNotTaken {
        /// The action.
        action: LinuxSeccompAction,
        /// The system call, or `the default`.
        object: String,
        /// The value in the profile.
        errno: u32,
    },
    /// The kernel would clamp it to 4095 in silence (`MAX_ERRNO`, seccomp(2)).
    #[error("errno {errno} of {object} in the seccomp profile is above 4095")]
    ErrnoRange {
        /// The system call, or `the default`.
        object: String,
        /// The value in the profile.
        errno: u32,
    },
    /// Calls have six arguments.
    #[error("seccomp rule for {syscall} compares argument {index}; the last one is 5")]
    ArgumentIndex {
        /// The system call.
        syscall: String,
        /// The index in the profile.
        index: usize,
    },
    /// Every call, also the runtime's own, would wait for an agent.
    #[error("SCMP_ACT_NOTIFY cannot be the default action of a seccomp profile")]
    NotifyByDefault,
    /// `write` is how the container's start is told (as in runc).
    #[error("SCMP_ACT_NOTIFY cannot be used for write")]
    NotifyWrite,
    /// More than the kernel takes.
    #[error(
        "the seccomp profile compiles to {instructions} instructions; the kernel takes {limit}",
        limit = crate::MAX_INSTRUCTIONS
    )]
    TooLong {
        /// Instructions of the program.
        instructions: usize,
    },
    /// More than [`crate::MAX_RULES`].
    #[error("the seccomp profile has {rules} rules; the limit is {limit}", limit = crate::MAX_RULES)]
    TooManyRules {
        /// Names times entries of the profile.
        rules: usize,
    },
}

/// Something in a profile that has no effect, or another than it seems. Stays
/// with the program, so that a cached one warns too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Warning {
    /// No architecture has such a call; its rules are left out, as runc does.
    #[error("the seccomp profile names {name}, which is no system call known here")]
    UnknownSyscall {
        /// The name in the profile.
        name: String,
    },
    /// The kernel cannot run programs of that architecture.
    #[error("the seccomp profile lists {arch}, which this machine does not run")]
    ForeignArchitecture {
        /// The architecture in the profile.
        arch: OciArch,
    },
    /// Arguments behind a pointer cannot be compared: the multiplexed form
    /// gets the action whatever they are, as libseccomp does.
    #[error(
        "the seccomp profile compares arguments of {syscall}, which 32-bit x86 programs \
         can also reach by {multiplexer}, where the first argument is not compared"
    )]
    Multiplexed {
        /// The system call with conditions.
        syscall: String,
        /// `socketcall` or `ipc`.
        multiplexer: String,
    },
}
