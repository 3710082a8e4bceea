//! Programs run on an interpreter of classic BPF, against a naive reading of
//! the profile, against libseccomp, and in the kernel.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

mod field;
mod kernel;
mod machine;
mod naive;
mod oracle;
mod verdicts;
