//! The token by which nodes join: `K10<fingerprint>::<id>.<secret>`, a
//! bootstrap token with the fingerprint of the cluster's authority before it,
//! so that whoever joins knows the server that it meets. Who has only the
//! bootstrap token finds the server in the ConfigMap `cluster-info`, signed
//! with the token's secret.

use anyhow::Context;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use rkube_client::https::ca_fingerprint;
use rkube_client::{Client, ListParams, Patch};
use rkube_pki::bootstrap::{BootstrapToken, SECRET_TYPE};
use rkube_pki::files;
use serde_json::{Value, json};

use super::api::{Api, Places};
use super::config::ServerConfig;

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
pub(super) async fn ensure(
    client: &Client,
    config: &ServerConfig,
    api: &Api,
    places: &Places,
) -> anyhow::Result<String> {
    let kept = files::read(&places.token)?.and_then(|text| JoinToken::parse(&text).ok());
    let text = config.token.clone().or(kept.map(|k| k.token));
    let token = match text.as_deref().and_then(BootstrapToken::parse) {
        Some(token) => token,
        None => BootstrapToken::generate()?,
    };
    let fingerprint = ca_fingerprint(api.pki.authority().der());
    let line = format!("{PREFIX}{fingerprint}::{}\n", token.reveal());
    if files::read(&places.token)?.as_deref() != Some(line.as_str()) {
        files::write_secret(&places.token, line.as_bytes())?;
    }
    let secrets = client.namespaced::<Secret>("kube-system");
    match secrets.create(&token.to_secret(None)).await {
        Ok(_) => {}
        Err(error) if error.is_already_exists() => {}
        Err(error) => return Err(error.into()),
    }
    Ok(token.id.clone())
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
    let field = |name: &str| {
        let bytes = secret.data.as_ref()?.get(name)?;
        std::str::from_utf8(&bytes.0).ok()
    };
    if field("usage-bootstrap-signing") != Some("true") {
        return None;
    }
    BootstrapToken::parse(&format!(
        "{}.{}",
        field("token-id")?,
        field("token-secret")?
    ))
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
