//! What a pod refers to.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Pod, Volume};
use rkube_kubelet::objects::TokenKey;
use rkube_kubelet::pod;

/// Names in the pod's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct References {
    /// ConfigMaps.
    pub config_maps: BTreeSet<String>,
    /// Secrets, those for pulling images included.
    pub secrets: BTreeSet<String>,
    /// PersistentVolumeClaims.
    pub claims: BTreeSet<String>,
    /// Tokens of its service account.
    pub tokens: BTreeSet<TokenKey>,
}

impl References {
    /// All references of a pod.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let mut out = Self::default();
        let spec = pod::spec(pod);
        for secret in spec.image_pull_secrets.iter().flatten() {
            out.secrets.insert(secret.name.clone());
        }
        for volume in spec.volumes.iter().flatten() {
            out.volume(volume);
        }
        for (_, container) in pod::containers(pod) {
            for from in container.env_from.iter().flatten() {
                let maps = from.config_map_ref.iter().map(|r| r.name.clone());
                out.config_maps.extend(maps);
                let secrets = from.secret_ref.iter().map(|r| r.name.clone());
                out.secrets.extend(secrets);
            }
            for from in container
                .env
                .iter()
                .flatten()
                .filter_map(|e| e.value_from.as_ref())
            {
                let maps = from.config_map_key_ref.iter().map(|r| r.name.clone());
                out.config_maps.extend(maps);
                let secrets = from.secret_key_ref.iter().map(|r| r.name.clone());
                out.secrets.extend(secrets);
            }
        }
        out.config_maps.remove("");
        out.secrets.remove("");
        out
    }

    fn volume(&mut self, volume: &Volume) {
        if let Some(map) = &volume.config_map {
            self.config_maps.insert(map.name.clone());
        }
        if let Some(secret) = &volume.secret {
            self.secrets
                .insert(secret.secret_name.clone().unwrap_or_default());
        }
        if let Some(claim) = &volume.persistent_volume_claim {
            self.claims.insert(claim.claim_name.clone());
        }
        let sources = volume.projected.as_ref().and_then(|p| p.sources.as_ref());
        for source in sources.into_iter().flatten() {
            if let Some(map) = &source.config_map {
                self.config_maps.insert(map.name.clone());
            }
            if let Some(secret) = &source.secret {
                self.secrets.insert(secret.name.clone());
            }
            if let Some(token) = &source.service_account_token {
                self.tokens.insert(TokenKey::of(token));
            }
        }
    }
}

/// The annotation that the service account's pods share; for lookups.
#[must_use]
pub fn service_account(pod: &Pod) -> String {
    pod::spec(pod)
        .service_account_name
        .clone()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "default".to_owned())
}

/// Keeps of a map what is named.
pub(crate) fn only<T>(
    names: &BTreeSet<String>,
    get: impl Fn(&str) -> Option<T>,
) -> BTreeMap<String, T> {
    names
        .iter()
        .filter_map(|name| Some((name.clone(), get(name)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_place_that_names_an_object() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "s-from"}}]}],
            "containers": [{"name": "c", "env": [
                {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m-key", "key": "k"}}},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s-key", "key": "k"}}},
                {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "envFrom": [{"configMapRef": {"name": "m-from"}}]}],
            "volumes": [
                {"name": "1", "configMap": {"name": "m-vol"}},
                {"name": "2", "secret": {"secretName": "s-vol"}},
                {"name": "3", "persistentVolumeClaim": {"claimName": "p"}},
                {"name": "4", "projected": {"sources": [
                    {"configMap": {"name": "m-proj"}}, {"secret": {"name": "s-proj"}},
                    {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                    {"serviceAccountToken": {"path": "vault", "audience": "vault"}}]}},
                {"name": "5", "emptyDir": {}}],
        }}))
        .unwrap();
        let found = References::of(&pod);
        let list = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!(list(&found.config_maps), "m-from m-key m-proj m-vol");
        assert_eq!(list(&found.secrets), "pull s-from s-key s-proj s-vol");
        assert_eq!(list(&found.claims), "p");
        let tokens: Vec<(String, i64)> = found
            .tokens
            .into_iter()
            .map(|t| (t.audience, t.seconds))
            .collect();
        assert_eq!(tokens, [(String::new(), 3607), ("vault".to_owned(), 3600)]);
        assert_eq!(service_account(&pod), "default");
        assert_eq!(References::of(&Pod::default()), References::default());
    }
}
