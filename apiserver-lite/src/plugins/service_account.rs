//! ServiceAccount: a pod gets its account, the token that proves it, and the
//! account's image pull secrets.

use rkube_api::status::Status;
use serde_json::{Map, Value, json};

use super::forbidden;
use crate::admission::{Admission, Call, Operation, Step, done};

/// Where programs look for the token.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The annotation of pods that come from a file on a node.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// How long the projected token is asked for, in seconds.
const TOKEN_SECONDS: i64 = 3607;

/// The plug-in.
#[derive(Debug)]
pub struct ServiceAccount;

fn admit(call: &mut Call) -> Result<(), Status> {
    if call.operation == Operation::Update {
        return Ok(());
    }
    if !call.object["metadata"]["annotations"][MIRROR].is_null() {
        return mirror(call);
    }
    let namespace = call.namespace.clone();
    let given = call.object["spec"]["serviceAccountName"].as_str();
    let name = given
        .filter(|name| !name.is_empty())
        .unwrap_or("default")
        .to_owned();
    let Some(account) = call
        .objects
        .find("", "serviceaccounts", &namespace, &name)?
    else {
        let why = format!(
            "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
        );
        return Err(forbidden(call, &why));
    };
    let Some(spec) = call.object["spec"].as_object_mut() else {
        return Ok(());
    };
    spec.insert("serviceAccountName".into(), name.as_str().into());
    spec.insert("serviceAccount".into(), name.into());
    let own = spec
        .get("automountServiceAccountToken")
        .and_then(Value::as_bool);
    let theirs = account["automountServiceAccountToken"].as_bool();
    if own.or(theirs).unwrap_or(true) {
        mount(spec)?;
    }
    let secrets = spec.get("imagePullSecrets").and_then(Value::as_array);
    if secrets.is_none_or(Vec::is_empty)
        && let Some(secrets) = account["imagePullSecrets"].as_array()
        && !secrets.is_empty()
    {
        spec.insert("imagePullSecrets".into(), secrets.clone().into());
    }
    Ok(())
}

/// A mirror pod has no identity at the API server.
fn mirror(call: &Call) -> Result<(), Status> {
    let spec = &call.object["spec"];
    if spec["serviceAccountName"]
        .as_str()
        .is_some_and(|name| !name.is_empty())
    {
        return Err(forbidden(
            call,
            "a mirror pod may not reference service accounts",
        ));
    }
    let volumes = spec["volumes"].as_array().map_or(&[][..], Vec::as_slice);
    if volumes.iter().any(|volume| !volume["secret"].is_null()) {
        return Err(forbidden(call, "a mirror pod may not reference secrets"));
    }
    if volumes.iter().any(|volume| !volume["projected"].is_null()) {
        return Err(forbidden(
            call,
            "a mirror pod may not use projected volumes",
        ));
    }
    Ok(())
}

/// Mounts a token into all containers that have nothing at its place.
fn mount(spec: &mut Map<String, Value>) -> Result<(), Status> {
    let volumes = spec.get("volumes").and_then(Value::as_array);
    let existing = volumes.into_iter().flatten().find_map(|volume| {
        let name = volume["name"].as_str()?;
        name.starts_with("kube-api-access-")
            .then(|| name.to_owned())
    });
    let is_new = existing.is_none();
    let name = match existing {
        Some(name) => name,
        None => format!("kube-api-access-{}", suffix()?),
    };
    let mut needed = false;
    for list in ["initContainers", "containers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let Some(container) = container.as_object_mut() else {
                continue;
            };
            let mounts = container
                .entry("volumeMounts")
                .or_insert_with(|| Value::Array(Vec::new()));
            if mounts.is_null() {
                *mounts = Value::Array(Vec::new());
            }
            let Some(mounts) = mounts.as_array_mut() else {
                continue;
            };
            if mounts.iter().any(|mount| mount["mountPath"] == MOUNT_PATH) {
                continue;
            }
            needed = true;
            mounts.push(json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}));
        }
    }
    if !needed || !is_new {
        return Ok(());
    }
    let volumes = spec
        .entry("volumes")
        .or_insert_with(|| Value::Array(Vec::new()));
    if volumes.is_null() {
        *volumes = Value::Array(Vec::new());
    }
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
            {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]}}));
    }
    Ok(())
}

/// Five letters, as upstream's generated names end.
fn suffix() -> Result<String, Status> {
    use ring::rand::SecureRandom as _;
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut bytes = [0; 5];
    let filled = ring::rand::SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| Status::internal("no random bytes"))?;
    let letter = |byte: u8| char::from(LETTERS[usize::from(byte) % LETTERS.len()]);
    Ok(bytes.into_iter().map(letter).collect())
}

impl Admission for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    fn admit<'a>(&'a self, call: &'a mut Call) -> Step<'a> {
        let is_pod = call.is("", "pods");
        done(if is_pod { admit(call) } else { Ok(()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_mounted_once() {
        let mut spec = json!({
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]}],
        });
        let map = spec.as_object_mut().unwrap();
        mount(map).unwrap();
        let once = map.clone();
        mount(map).unwrap();
        assert_eq!(*map, once);
        let volume = spec["volumes"][0]["name"].as_str().unwrap();
        assert_eq!(volume.len(), "kube-api-access-".len() + 5);
        for path in ["/initContainers/0", "/containers/0"] {
            let mounts = &spec.pointer(path).unwrap()["volumeMounts"];
            assert_eq!(mounts[0]["name"], volume);
        }
        assert_eq!(
            spec["containers"][1]["volumeMounts"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
        let sources = spec["volumes"][0]["projected"]["sources"]
            .as_array()
            .unwrap();
        assert_eq!(sources.len(), 3);
    }
}
