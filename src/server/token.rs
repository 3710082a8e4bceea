//! The token by which nodes join: `K10<fingerprint>::<id>.<secret>`, a
//! bootstrap token with the fingerprint of the cluster's authority before it,
//! so that whoever joins knows the server that it meets. Who has only the
//! bootstrap token finds the server in the ConfigMap `cluster-info`, signed
//! with the token's secret.

use std::path::Path;

use anyhow::Context;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use rkube_client::{Client, ListParams, Patch};
use rkube_pki::bootstrap::{BootstrapToken, SECRET_PREFIX, SECRET_TYPE};
use rkube_pki::files;
use serde_json::{Value, json};

use super::api::Api;

/// What such a token begins with (the form of k3s' tokens).
const PREFIX: &str = "K10";

/// A token in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JoinToken {
    /// SHA-256 of the authority's certificate, in hexadecimal.
    pub(crate) fingerprint: String,
    /// The bootstrap token, a secret.
    pub(crate) token: String,
}

impl JoinToken {
    /// Reads a token.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let wrong = "the token is K10<fingerprint>::<id>.<secret>, as the server's var/lib/rkube/token holds it";
        let rest = text.trim().strip_prefix(PREFIX).ok_or(wrong)?;
        let (fingerprint, token) = rest.split_once("::").ok_or(wrong)?;
        let hex = fingerprint.len() == 64
            && fingerprint
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !hex || BootstrapToken::parse(token).is_none() {
            return Err(wrong.to_owned());
        }
        Ok(Self {
            fingerprint: fingerprint.to_owned(),
            token: token.to_owned(),
        })
    }
}

/// Makes sure that there is a token, that the API knows it, and that it can
/// be read in a file; its public half.
///
/// A token that was `given` holds, whatever the API knew of its id. Without
/// one, the API's word counts: its secret goes into the file, and a token
/// that was deleted there stays deleted.
pub(super) async fn ensure(
    client: &Client,
    given: Option<&str>,
    fingerprint: &str,
    file: &Path,
) -> anyhow::Result<String> {
    let kept = files::read(file)?.and_then(|text| JoinToken::parse(&text).ok());
    let kept = kept.map(|k| k.token);
    let text = given.or(kept.as_deref());
    let mut token = match text.and_then(BootstrapToken::parse) {
        Some(token) => token,
        None => BootstrapToken::generate()?,
    };
    let secrets = client.namespaced::<Secret>("kube-system");
    let name = format!("{SECRET_PREFIX}{}", token.id);
    match secrets.get_opt(&name).await? {
        Some(secret) if given.is_some() => {
            if held(&secret).as_ref() != Some(&token) {
                let mut fields = token.to_secret(None);
                let change = json!({"data": fields["data"].take()});
                secrets
                    .patch(&name, &Patch::Merge(change))
                    .await
                    .with_context(|| format!("write the given token to Secret {name}"))?;
                tracing::warn!(secret = name, "another token had the id of the given one");
            }
        }
        Some(secret) => token = held(&secret).unwrap_or(token),
        // What was published has been there once.
        None if given.is_none() && kept.is_some() && is_published(client).await? => {
            tracing::warn!(
                file = %file.display(),
                secret = name,
                "the token of this file was deleted: no node joins by it; remove the file to get another one"
            );
        }
        None => drop(secrets.create(&token.to_secret(None)).await?),
    }
    let line = format!("{PREFIX}{fingerprint}::{}\n", token.reveal());
    if files::read(file)?.as_deref() != Some(line.as_str()) {
        files::write_secret(file, line.as_bytes())?;
    }
    Ok(token.id.clone())
}

/// The token that a Secret holds.
fn held(secret: &Secret) -> Option<BootstrapToken> {
    let field = |name: &str| {
        let bytes = secret.data.as_ref()?.get(name)?;
        std::str::from_utf8(&bytes.0).ok()
    };
    let (id, half) = (field("token-id")?, field("token-secret")?);
    BootstrapToken::parse(&format!("{id}.{half}"))
}

/// Whether this cluster has ever told where it is, which it does right after
/// it has made its first token.
async fn is_published(client: &Client) -> anyhow::Result<bool> {
    let maps = client.namespaced::<ConfigMap>(PUBLIC);
    Ok(maps.get_opt(CLUSTER_INFO).await?.is_some())
}

/// Where anybody finds the cluster (`kubeadm join`, `kubectl cluster-info`
/// aside): upstream's ConfigMap of this name, read by everyone.
const CLUSTER_INFO: &str = "cluster-info";
const PUBLIC: &str = "kube-public";

/// A kubeconfig that names the server and its authority and no user, in the
/// form in which upstream writes it.
fn public_kubeconfig(server: &str, authority: &str) -> String {
    let encoded = json!(ByteString(authority.as_bytes().to_vec()));
    let encoded = encoded.as_str().unwrap_or_default();
    format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {encoded}\n    \
         server: {server}\n  name: \"\"\ncontexts: null\ncurrent-context: \"\"\nkind: Config\n\
         preferences: {{}}\nusers: null\n"
    )
}

/// The token that a Secret holds, if it is one to sign with.
fn signing(secret: &Secret) -> Option<BootstrapToken> {
    let usage = secret.data.as_ref()?.get("usage-bootstrap-signing")?;
    held(secret).filter(|_| usage.0 == b"true")
}

/// Publishes where the cluster is, signed by every token that may sign.
/// Tokens that are made later sign at the next start.
pub(super) async fn publish(client: &Client, api: &Api, server: &str) -> anyhow::Result<()> {
    let content = public_kubeconfig(server, api.pki.authority().pem());
    let params = ListParams {
        fields: Some(format!("type={SECRET_TYPE}")),
        ..ListParams::default()
    };
    let secrets = client.namespaced::<Secret>("kube-system");
    let tokens = secrets
        .list(&params)
        .await
        .context("list bootstrap tokens")?;
    let mut data = json!({ "kubeconfig": content });
    for token in tokens.items.iter().filter_map(signing) {
        let key = format!("jws-kubeconfig-{}", token.id);
        data[key] = token.signature(&content).into();
    }
    let maps = client.namespaced::<ConfigMap>(PUBLIC);
    let Some(there) = maps.get_opt(CLUSTER_INFO).await? else {
        let map = json!({"metadata": {"name": CLUSTER_INFO}, "data": data});
        maps.create(&map).await?;
        return Ok(());
    };
    let have = json!(there.data.unwrap_or_default());
    if have == data {
        return Ok(());
    }
    for (key, _) in have.as_object().into_iter().flatten() {
        if data.get(key).is_none() {
            data[key] = Value::Null;
        }
    }
    let patch = Patch::Merge(json!({ "data": data }));
    maps.patch(CLUSTER_INFO, &patch).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_kubeconfig_reads_as_yaml() {
        let text = public_kubeconfig("https://192.0.2.1:6443", "PEM");
        let read: Value = serde_saphyr::from_str(&text).unwrap();
        let cluster = &read["clusters"][0]["cluster"];
        assert_eq!(cluster["server"], "https://192.0.2.1:6443");
        assert_eq!(cluster["certificate-authority-data"], "UEVN");
    }

    #[test]
    fn only_some_tokens_sign() {
        let secret = |signs: &str| -> Secret {
            let token = BootstrapToken::parse("abcdef.0123456789abcdef").unwrap();
            let mut secret = token.to_secret(None);
            secret["data"]["usage-bootstrap-signing"] = json!(ByteString(signs.into()));
            serde_json::from_value(secret).unwrap()
        };
        assert_eq!(signing(&secret("true")).unwrap().id, "abcdef");
        assert!(signing(&secret("false")).is_none());
    }

    /// What the API knows of a token's id: its secret half.
    async fn known(client: &Client) -> Option<String> {
        let secrets = client.namespaced::<Secret>("kube-system");
        let secret = secrets.get_opt("bootstrap-token-abcdef").await.unwrap()?;
        held(&secret).map(|token| token.secret)
    }

    #[tokio::test]
    async fn the_file_and_the_api_agree_about_the_token() {
        let folder = tempfile::tempdir().unwrap();
        let engine = rkube_apiserver::testing::engine(&folder.path().join("store")).unwrap();
        let client = rkube_apiserver::testing::client(&engine);
        let file = folder.path().join("token");
        let fingerprint = "0a".repeat(32);
        let (one, other) = ("0123456789abcdef", "fedcba9876543210");
        let token = |half: &str| format!("abcdef.{half}");
        let is_right = async |half: &str| {
            let text = std::fs::read_to_string(&file).unwrap();
            assert_eq!(JoinToken::parse(&text).unwrap().token, token(half));
            assert_eq!(known(&client).await.as_deref(), Some(half));
        };
        let start = async |given: Option<&str>| {
            let id = ensure(&client, given, &fingerprint, &file).await;
            assert_eq!(id.unwrap(), "abcdef");
        };
        start(Some(&token(one))).await;
        is_right(one).await;
        start(None).await;
        is_right(one).await;
        // A start that was cut off before it was published is made up for.
        let secrets = client.namespaced::<Secret>("kube-system");
        let gone = rkube_client::DeleteParams::default();
        secrets
            .delete("bootstrap-token-abcdef", &gone)
            .await
            .unwrap();
        start(None).await;
        is_right(one).await;
        // The same id with another secret is the token from now on.
        start(Some(&token(other))).await;
        is_right(other).await;
        // An administrator's change is told in the file.
        let half = ByteString(one.as_bytes().to_vec());
        let change = Patch::Merge(json!({"data": {"token-secret": half}}));
        secrets
            .patch("bootstrap-token-abcdef", &change)
            .await
            .unwrap();
        start(None).await;
        is_right(one).await;
        // What was deleted stays deleted, until it is given again.
        let map = json!({"metadata": {"name": CLUSTER_INFO}});
        let maps = client.namespaced::<ConfigMap>(PUBLIC);
        maps.create(&map).await.unwrap();
        secrets
            .delete("bootstrap-token-abcdef", &gone)
            .await
            .unwrap();
        start(None).await;
        assert_eq!(known(&client).await, None);
        start(Some(&token(other))).await;
        is_right(other).await;
    }

    #[test]
    fn tokens_are_read_or_refused() {
        let fine = format!("K10{}::abcdef.0123456789abcdef\n", "0a".repeat(32));
        let token = JoinToken::parse(&fine).unwrap();
        assert_eq!(token.token, "abcdef.0123456789abcdef");
        for wrong in [
            "abcdef.0123456789abcdef",
            "K10zz::abcdef.0123456789abcdef",
            &fine.replace("abcdef", "ABCDEF"),
            &fine.replace("::", ":"),
        ] {
            assert!(JoinToken::parse(wrong).is_err(), "{wrong}");
        }
    }
}
