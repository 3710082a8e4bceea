//! Certificates, tokens and kubeconfigs.
//!
//! Purpose: a cluster's own certificate authority ([`Pki`]), the certificates
//! that it gives to servers, clients and joining nodes ([`ca`], [`csr`]), the
//! check of a client's certificate ([`verify`]), service account tokens
//! ([`token`]), bootstrap tokens ([`bootstrap`]) and kubeconfig files
//! ([`kubeconfig`]).
//!
//! Boundary: makes and checks them; who may do what with them is the API server's matter.
//! Reads and writes files below one directory; opens no connection, reads no
//! clock (callers say what time it is, in seconds since 1970).
//!
//! Invariants:
//! - Private keys are written with mode 0600 and renamed into place whole.
//! - All keys are ECDSA on P-256, made by ring from the system's random bytes.
//! - The authority lives ten years; what it signs lives a year and is renewed
//!   in this process when two thirds of that are over ([`resolver`]).
//! - A token or certificate from outside meets bounded decoders, and proves
//!   nothing unless every check holds.

pub mod bootstrap;
pub mod ca;
pub mod csr;
pub mod error;
pub mod files;
pub mod kubeconfig;
pub mod resolver;
pub mod token;
pub mod verify;

mod any;
mod pki;

pub use any::AnyCertificate;
pub use ca::{Authority, Identity, Purpose};
pub use error::PkiError;
pub use pki::{Pki, ServerNames};
