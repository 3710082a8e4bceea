//! Black-box tests of rkube: the harness and the list of cases.
//!
//! # What a case is
//! A [`case::Case`] is a name, the cgroup layouts where it makes sense, and a
//! function over a [`host::TestHost`]. The same list runs on the developer's
//! host and inside every VM of `vm-images`: the program `rkube-suite` is both.
//! To add a case, write the function into the file of its topic under
//! `src/cases/` (or a new file, with one line in `cases/mod.rs`) and name it in
//! that file's `cases()`.
//!
//! # Boundary
//! Cases drive the `rkube` program from outside: its command line, the kernel
//! state it makes, the files it leaves. No crate of the program is linked here.
//!
//! # Invariants
//! - Each case runs in a process of its own, in a network namespace and a root
//!   directory of its own, so cases run in parallel and a case that hangs or
//!   aborts harms nobody.
//! - Whatever became of the case, the suite resets its instance afterwards and
//!   then looks for leftovers; a leftover fails the case.
//! - No case sleeps for a fixed time to "let things settle": it waits for an
//!   event with a generous deadline ([`wait`], [`command`]).
//! - A skip carries a reason, and `make test` fails on a skip that is not
//!   listed in `tests/SKIPS`.

pub mod case;
pub mod cases;
pub mod cgroups;
pub mod command;
pub mod debian;
pub mod generator;
pub mod host;
pub mod images;
pub mod kubectl;
pub mod layout;
pub mod leaks;
pub mod machines;
pub mod net;
pub mod outside;
pub mod pods;
pub mod registry;
pub mod repo;
pub mod report;
pub mod runner;
pub mod second;
pub mod tls;
pub mod tracer;
pub mod unit;
pub mod wait;
