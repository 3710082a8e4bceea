//! The objects that a pod refers to: as they were when it was applied, or
//! kept fresh by whoever watches them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolumeClaim, Secret, ServiceAccountTokenProjection,
};
use serde::{Deserialize, Serialize};

/// Objects of the pod's namespace by name.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Objects {
    /// ConfigMaps.
    #[serde(default)]
    pub config_maps: BTreeMap<String, ConfigMap>,
    /// Secrets.
    #[serde(default)]
    pub secrets: BTreeMap<String, Secret>,
    /// PersistentVolumeClaims; on one host each is a directory.
    #[serde(default)]
    pub claims: BTreeMap<String, PersistentVolumeClaim>,
    /// Tokens of the pod's service account; never on disk but in the volumes
    /// that they are for.
    #[serde(skip)]
    pub tokens: BTreeMap<TokenKey, String>,
}

/// Which token a projected volume asks for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenKey {
    /// For whom it is meant; empty is the API server.
    pub audience: String,
    /// How long it shall be valid, in seconds.
    pub seconds: i64,
}

/// How long a token is valid whose volume does not say
/// (`ServiceAccountTokenProjection.expirationSeconds`).
pub const DEFAULT_TOKEN_SECONDS: i64 = 3600;

impl TokenKey {
    /// What one source of a volume asks for.
    #[must_use]
    pub fn of(source: &ServiceAccountTokenProjection) -> Self {
        Self {
            audience: source.audience.clone().unwrap_or_default(),
            seconds: source.expiration_seconds.unwrap_or(DEFAULT_TOKEN_SECONDS),
        }
    }
}

/// Keys and values, sorted.
pub type Data = BTreeMap<String, Vec<u8>>;

impl Objects {
    /// All data of a ConfigMap.
    #[must_use]
    pub fn config_map(&self, name: &str) -> Option<Data> {
        let map = self.config_maps.get(name)?;
        let mut data = Data::new();
        for (key, value) in map.data.iter().flatten() {
            data.insert(key.clone(), value.clone().into_bytes());
        }
        for (key, value) in map.binary_data.iter().flatten() {
            data.insert(key.clone(), value.0.clone());
        }
        Some(data)
    }

    /// All data of a Secret; `stringData` wins over `data`.
    #[must_use]
    pub fn secret(&self, name: &str) -> Option<Data> {
        let secret = self.secrets.get(name)?;
        let mut data = Data::new();
        for (key, value) in secret.data.iter().flatten() {
            data.insert(key.clone(), value.0.clone());
        }
        for (key, value) in secret.string_data.iter().flatten() {
            data.insert(key.clone(), value.clone().into_bytes());
        }
        Some(data)
    }
}
