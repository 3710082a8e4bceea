//! Logging in and out of a registry.

use std::path::Path;

use rkube_image::Credential;

use crate::Registries;
use crate::config::Config;
use crate::credentials;
use crate::error::Result;
use crate::session::{Ask, Session};

impl Registries {
    /// Checks a credential at its registry and keeps it in `file`.
    ///
    /// # Errors
    /// The registry refuses it or cannot be reached; nothing is kept then.
    pub fn login(&self, file: &Path, registry: &str, credential: &Credential) -> Result<()> {
        let config = Config::load(&self.config_path())?;
        let endpoint = config.registry(registry)?;
        let transport = self.transport();
        let session = Session::new(&transport, endpoint, Some(credential.clone()), "as given");
        // The API's root: it answers 401 to those whom it does not know.
        self.runtime()?
            .block_on(session.send(&Ask::get("/v2/", "")))?;
        credentials::store(file, registry, credential)
    }

    /// Forgets the credential of a registry; whether there was one.
    ///
    /// # Errors
    /// The file or the credential helper.
    pub fn logout(&self, file: &Path, registry: &str) -> Result<bool> {
        credentials::remove(file, registry)
    }
}
