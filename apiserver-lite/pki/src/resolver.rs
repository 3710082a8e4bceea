//! A server's certificate that changes while the server runs.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::ca::{Identity, LEAF_SECONDS};
use crate::error::PkiError;

/// A certificate is renewed when less than this is left of it.
pub const RENEW_BEFORE_SECONDS: u64 = LEAF_SECONDS / 3;

/// Hands out the newest certificate to each new connection.
#[derive(Debug)]
pub struct Current {
    state: RwLock<(Arc<CertifiedKey>, u64)>,
}

impl Current {
    /// # Errors
    /// The identity does not parse.
    pub fn new(identity: &Identity) -> Result<Self, PkiError> {
        let state = (Arc::new(identity.certified_key()?), identity.not_after()?);
        Ok(Self {
            state: RwLock::new(state),
        })
    }

    /// Puts another certificate in place; connections that stand go on.
    ///
    /// # Errors
    /// The identity does not parse; the old one stays.
    pub fn replace(&self, identity: &Identity) -> Result<(), PkiError> {
        let new = (Arc::new(identity.certified_key()?), identity.not_after()?);
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// When the certificate ends, in seconds since 1970.
    #[must_use]
    pub fn not_after(&self) -> u64 {
        self.state.read().unwrap_or_else(PoisonError::into_inner).1
    }

    /// Whether it is time for another one.
    #[must_use]
    pub fn is_due(&self, now: u64) -> bool {
        is_due(self.not_after(), now)
    }
}

/// Whether something that ends then is to be renewed.
#[must_use]
pub const fn is_due(not_after: u64, now: u64) -> bool {
    not_after.saturating_sub(now) < RENEW_BEFORE_SECONDS
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&state.0))
    }
}
