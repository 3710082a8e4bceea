//! `make bench`: figures of rkube beside those of its peers, in one run.
//!
//! # What is compared
//! Each [`section`] measures one promise of SPECIFICATION.md. Wherever a peer
//! does the same work, both do it in turn, `n` times, on the same machine, with
//! the same static payload, limits, seccomp profile and network, each in a
//! throw-away test host of its own ([`place::Place`]).
//!
//! # Boundary
//! Programs are driven from outside, by command lines, requests and the
//! kernel's files; the payload is the file that the program under test unpacked
//! from its built-in image. Only [`parts`] measures crates of the program.
//!
//! # Invariants
//! - A benchmark asserts nothing about time: it prints.
//! - A peer that is absent or refuses is said, in the table, with its reason;
//!   no figure stands in for it.
//! - Peers keep their state below the place's directory, in a mount namespace
//!   of their own, so that nothing of them is left.

pub mod clock;
pub mod kernel;
pub mod load;
pub mod parts;
pub mod peers;
pub mod place;
pub mod podman;
pub mod program;
pub mod report;
pub mod rkube;
pub mod section;
pub mod stats;

pub use section::run;
