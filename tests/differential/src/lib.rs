//! The same requests to rkube's API server and to a real kube-apiserver.
//!
//! **Purpose.** `corpus/` holds requests as data: scenarios, each in a namespace of its own, of
//! steps that may use values of earlier answers. [`record`] sends them to a real kube-apiserver and
//! writes its answers, normalised, to `answers/`; the test `replay` sends them to rkube and
//! compares. So the comparison runs everywhere, and only recording needs the other program.
//!
//! **Boundary.** What differs on purpose, because the recorded release is older than the one whose
//! API rkube serves, stands in `differences.yaml`, each with the document that says so. Nothing else
//! may differ.
//!
//! **Invariants.**
//! 1. Answers come from a program that this crate started and whose hash it wrote down; rkube's own
//!    are never recorded.
//! 2. Answers belong to one corpus: a changed request without a new recording fails the test.
//! 3. A listed difference that no answer shows fails the test, as does an unlisted one.

pub mod client;
pub mod compare;
pub mod corpus;
pub mod differences;
pub mod drive;
pub mod normal;
pub mod oracle;
pub mod record;
pub mod subject;
pub mod template;

use std::path::PathBuf;

/// The token that both servers take for the administrator's.
pub const TOKEN: &str = "differential-administrator";
/// The range of Service addresses that both servers are given.
pub const SERVICE_RANGE: (std::net::Ipv4Addr, u8) = (std::net::Ipv4Addr::new(10, 111, 0, 0), 16);

/// The folder of this crate: corpus, answers, differences.
#[must_use]
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
