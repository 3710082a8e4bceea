//! Seccomp profiles as the kernel takes them.
//!
//! Purpose: compile an OCI profile to a classic BPF program that is short and
//! quick, with the meaning that runc and libseccomp give it; hand out the
//! field's default profile; keep compiled programs by content.
//!
//! Boundary: pure values, and the files of the [`Cache`]. Loading a program and
//! probing the kernel's flags belong to the stages (`rkube_sys::seccomp`).
//!
//! Invariants:
//! - Every program ends each path with a return, jumps forward only, and
//!   looks at the architecture before anything else; an architecture that is
//!   not listed is killed.
//! - The same profile gives the same bytes.
//! - What has no effect in a profile is a [`Warning`], never silence.

mod arch;
mod assemble;
mod cache;
mod compile;
mod default;
mod error;
mod program;
mod rules;
mod table;

pub use arch::{Arch, is_syscall, syscall_names};
pub use cache::{Cache, CacheError, Cached, MAX_ENTRIES, Source};
pub use default::default_profile;
pub use error::{CompileError, Warning};
pub use program::{Program, flag};
pub use rkube_sys::seccomp::{Instruction, MAX_INSTRUCTIONS};
pub use rules::{MAX_RULES, ret};
