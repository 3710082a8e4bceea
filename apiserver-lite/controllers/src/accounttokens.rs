//! Token Secrets of service accounts: those that somebody makes are filled,
//! those whose account is gone go, and, where old clients wait for them
//! (`--legacy-service-account-tokens`), every account has one.
//!
//! Rules: upstream's `tokens_controller.go`; that every account has one is
//! what it did before release 1.24.

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use rkube_client::{
    Change, Client, DeleteParams, Informer, ListParams, ObjectKey, Patch, WorkQueue,
};
use rkube_pki::token::{Bound, TokenKey};
use serde_json::{Value, json};

use crate::error::{Error, Outcome, chain};
use crate::owner;
use crate::starter::Starter;

const SECRET_TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

/// Who makes the tokens.
pub trait AccountTokens: Debug + Send + Sync {
    /// A token without an end, for an account and the Secret that holds it.
    ///
    /// # Errors
    /// Why there is none.
    fn token(&self, namespace: &str, account: &Bound, secret: &str) -> Result<String, String>;
}

impl AccountTokens for TokenKey {
    fn token(&self, namespace: &str, account: &Bound, secret: &str) -> Result<String, String> {
        self.sign_legacy(namespace, account, secret)
            .map_err(|e| chain(&e))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Secret(ObjectKey),
    Account(ObjectKey),
}

struct Controller {
    secrets: Arc<Informer<Secret>>,
    accounts: Arc<Informer<ServiceAccount>>,
    queue: Arc<WorkQueue<Key>>,
    client: Client,
    tokens: Arc<dyn AccountTokens>,
    authority: String,
    everyone: bool,
}

/// Starts the controller where somebody makes tokens.
pub(crate) fn start(starter: &mut Starter<'_>) {
    let config = Arc::clone(&starter.config);
    let Some(tokens) = config.account_tokens.clone() else {
        return;
    };
    let only = ListParams {
        fields: Some(format!("type={SECRET_TYPE}")),
        ..ListParams::default()
    };
    let controller = Arc::new(Controller {
        secrets: Arc::new(Informer::start(starter.client.all(), only)),
        accounts: starter.informers.of(),
        queue: Arc::default(),
        client: starter.client.clone(),
        tokens,
        authority: config.root_ca_pem.clone().unwrap_or_default(),
        everyone: config.legacy_account_tokens,
    });
    let weak = Arc::downgrade(&controller);
    controller.secrets.on_change(move |change| {
        let Some(own) = weak.upgrade() else { return };
        let secret = change.object();
        own.queue.add(Key::Secret(ObjectKey::of(&**secret)));
        own.queue.add(Key::Account(account_of(secret)));
    });
    let weak = Arc::downgrade(&controller);
    controller.accounts.on_change(move |change| {
        let Some(own) = weak.upgrade() else { return };
        let key = ObjectKey::of(&**change.object());
        if matches!(change, Change::Deleted(_) | Change::Added(_)) {
            for secret in own.secrets.store().all() {
                if account_of(&secret) == key {
                    own.queue.add(Key::Secret(ObjectKey::of(&*secret)));
                }
            }
        }
        own.queue.add(Key::Account(key));
    });
    let own = Arc::clone(&controller);
    let synced = Box::pin(async move {
        own.secrets.synced().await;
        own.accounts.synced().await;
    });
    let queue = Arc::clone(&controller.queue);
    starter.work("serviceaccount-token", &queue, synced, move |key| {
        let controller = Arc::clone(&controller);
        async move {
            match key {
                Key::Secret(key) => controller.secret(&key).await,
                Key::Account(key) => controller.account(&key).await,
            }
        }
    });
}

fn annotation<'a>(secret: &'a Secret, name: &str) -> &'a str {
    let annotations = secret.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(name)).map_or("", |v| v)
}

/// The account that a Secret names.
fn account_of(secret: &Secret) -> ObjectKey {
    ObjectKey::new(owner::namespace(secret), annotation(secret, ACCOUNT_NAME))
}

/// What becomes of a Secret.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// It is as it should be.
    Nothing,
    /// Its account is gone, or was made anew.
    Remove,
    /// Something of it is not there, or another cluster's.
    Fill,
}

fn decide(secret: &Secret, account: Option<&ServiceAccount>, authority: &str) -> Step {
    if owner::is_deleting(secret) || annotation(secret, ACCOUNT_NAME).is_empty() {
        return Step::Nothing;
    }
    let Some(account) = account else {
        return Step::Remove;
    };
    let uid = account.metadata.uid.as_deref().unwrap_or_default();
    let told = annotation(secret, ACCOUNT_UID);
    if !told.is_empty() && told != uid {
        return Step::Remove;
    }
    let field = |name: &str| secret.data.as_ref().and_then(|d| d.get(name));
    let is = |name: &str, wanted: &str| field(name).is_some_and(|v| v.0 == wanted.as_bytes());
    let has_token = field("token").is_some_and(|t| !t.0.is_empty());
    let fine = told == uid
        && has_token
        && (authority.is_empty() || is("ca.crt", authority))
        && is("namespace", owner::namespace(secret));
    if fine { Step::Nothing } else { Step::Fill }
}

/// The Secrets of an account's list, with one more.
fn with_reference(account: &ServiceAccount, secret: &str) -> Option<Value> {
    let list = account.secrets.clone().unwrap_or_default();
    if list.iter().any(|s| s.name.as_deref() == Some(secret)) {
        return None;
    }
    let mut list = json!(list);
    if let Some(list) = list.as_array_mut() {
        list.push(json!({ "name": secret }));
    }
    Some(json!({
        "metadata": {"resourceVersion": account.metadata.resource_version},
        "secrets": list,
    }))
}

impl Controller {
    async fn secret(&self, key: &ObjectKey) -> Outcome {
        let Some(secret) = self.secrets.store().get(key) else {
            return Ok(());
        };
        let account = self.accounts.store().get(&account_of(&secret));
        let api = self.client.namespaced::<Secret>(&key.namespace);
        let done = match decide(&secret, account.as_deref(), &self.authority) {
            Step::Nothing => return Ok(()),
            Step::Remove => {
                let params = DeleteParams {
                    uid: secret.metadata.uid.clone(),
                    ..DeleteParams::default()
                };
                api.delete(&key.name, &params).await.map(drop)
            }
            Step::Fill => {
                let Some(account) = account else {
                    return Ok(());
                };
                let mut patch = self.filled(&key.namespace, &account, &key.name)?;
                patch["metadata"]["resourceVersion"] = json!(secret.metadata.resource_version);
                api.patch(&key.name, &Patch::Merge(patch)).await.map(drop)
            }
        };
        match done {
            Err(error) if error.is_not_found() => Ok(()),
            done => done.map_err(Error::request("keep the token in", key)),
        }
    }

    /// What a token Secret holds.
    fn filled(
        &self,
        namespace: &str,
        account: &ServiceAccount,
        secret: &str,
    ) -> Result<Value, Error> {
        let bound = Bound {
            name: owner::name(account).to_owned(),
            uid: account.metadata.uid.clone().unwrap_or_default(),
        };
        let token = self.tokens.token(namespace, &bound, secret);
        let token = token.map_err(|reason| Error::Token {
            account: format!("{namespace}/{}", bound.name),
            reason,
        })?;
        let bytes = |text: &str| json!(ByteString(text.as_bytes().to_vec()));
        let mut data = json!({"token": bytes(&token), "namespace": bytes(namespace)});
        if !self.authority.is_empty() {
            data["ca.crt"] = bytes(&self.authority);
        }
        Ok(json!({
            "metadata": {"annotations": {ACCOUNT_NAME: bound.name, ACCOUNT_UID: bound.uid}},
            "data": data,
        }))
    }

    /// Gives an account its Secret.
    async fn account(&self, key: &ObjectKey) -> Outcome {
        let account = self.accounts.store().get(key);
        let Some(account) = account.filter(|a| self.everyone && !owner::is_deleting(&**a)) else {
            return Ok(());
        };
        // One that is there and was not told of is taken before one is made.
        let stem = format!("{}-token-", key.name);
        let uid = account.metadata.uid.as_deref().unwrap_or_default();
        let own = self.secrets.store().all().into_iter().find(|secret| {
            account_of(secret) == *key
                && annotation(secret, ACCOUNT_UID) == uid
                && owner::name(&**secret).starts_with(&stem)
        });
        let name = match own {
            Some(secret) => owner::name(&*secret).to_owned(),
            None => match self.make(key, uid).await? {
                Some(name) => name,
                None => return Ok(()),
            },
        };
        let Some(patch) = with_reference(&account, &name) else {
            return Ok(());
        };
        let api = self.client.namespaced::<ServiceAccount>(&key.namespace);
        match api.patch(&key.name, &Patch::Merge(patch)).await {
            Err(error) if error.is_not_found() => Ok(()),
            done => done
                .map(drop)
                .map_err(Error::request("tell the account of its token", key)),
        }
    }

    /// Makes a Secret, which is filled when it is seen. Its name derives from
    /// the account's uid, so that one that was made and is not seen yet is not
    /// made again.
    async fn make(&self, key: &ObjectKey, uid: &str) -> Result<Option<String>, Error> {
        let hash = uid.rsplit('-').next().unwrap_or(uid);
        let name = format!("{}-token-{}", key.name, hash.get(..5).unwrap_or(hash));
        let secret = json!({
            "metadata": {
                "name": name,
                "annotations": {ACCOUNT_NAME: key.name, ACCOUNT_UID: uid},
            },
            "type": SECRET_TYPE,
        });
        let api = self.client.namespaced::<Secret>(&key.namespace);
        match api.create(&secret).await {
            Ok(_) => Ok(Some(name)),
            Err(error) if error.is_already_exists() => Ok(Some(name)),
            Err(error) if error.is_namespace_terminating() || error.is_not_found() => Ok(None),
            Err(error) => Err(Error::request("make the token of", key)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;

    fn account(uid: &str) -> ServiceAccount {
        object(json!({"metadata": {"name": "a", "namespace": "n", "uid": uid}}))
    }

    fn secret(annotations: Value, data: Value) -> Secret {
        object(
            json!({"metadata": {"name": "s", "namespace": "n", "annotations": annotations},
            "type": SECRET_TYPE, "data": data}),
        )
    }

    #[test]
    fn what_becomes_of_a_secret() {
        let named = json!({ACCOUNT_NAME: "a"});
        let full = json!({ACCOUNT_NAME: "a", ACCOUNT_UID: "u"});
        let data = json!({"token": "eA==", "ca.crt": "UEVN", "namespace": "bg=="});
        let step = |secret: &Secret, uid: &str| decide(secret, Some(&account(uid)), "PEM");
        assert_eq!(step(&secret(named.clone(), json!({})), "u"), Step::Fill);
        assert_eq!(
            step(&secret(full.clone(), data.clone()), "u"),
            Step::Nothing
        );
        assert_eq!(step(&secret(full.clone(), data.clone()), "v"), Step::Remove);
        assert_eq!(step(&secret(json!({}), data.clone()), "u"), Step::Nothing);
        assert_eq!(
            decide(&secret(named, data.clone()), None, "PEM"),
            Step::Remove
        );
        let mut old = data;
        old["ca.crt"] = "eA==".into();
        assert_eq!(step(&secret(full, old), "u"), Step::Fill);
    }

    #[test]
    fn an_account_is_told_once() {
        let mut account = account("u");
        let patch = with_reference(&account, "s").unwrap();
        assert_eq!(patch["secrets"], json!([{"name": "s"}]));
        account.secrets = serde_json::from_value(patch["secrets"].clone()).unwrap();
        assert!(with_reference(&account, "s").is_none());
    }
}
