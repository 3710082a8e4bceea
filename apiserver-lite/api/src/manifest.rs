//! From a document to an object that rkube can run: every check in one call.

use serde_json::{Value, json};

use crate::decode::{Document, Located};
use crate::field::{ErrorKind, FieldError, FieldPath};
use crate::{claim, config, pod, strict, types};

/// A kind that has defaults and validation of its own here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Known {
    /// `v1` Pod.
    Pod,
    /// `v1` ConfigMap.
    ConfigMap,
    /// `v1` Secret.
    Secret,
    /// `v1` PersistentVolumeClaim.
    PersistentVolumeClaim,
}

impl Known {
    /// The kind of an `apiVersion` and `kind`.
    #[must_use]
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        match (api_version, kind) {
            ("v1", "Pod") => Some(Self::Pod),
            ("v1", "ConfigMap") => Some(Self::ConfigMap),
            ("v1", "Secret") => Some(Self::Secret),
            ("v1", "PersistentVolumeClaim") => Some(Self::PersistentVolumeClaim),
            _ => None,
        }
    }

    /// Fills in the kind's defaults.
    pub fn default(self, object: &mut Value) {
        match self {
            Self::Pod => pod::default(object),
            Self::ConfigMap => config::default_config_map(object),
            Self::Secret => config::default_secret(object),
            Self::PersistentVolumeClaim => claim::default(object),
        }
    }

    /// Every rule that a defaulted object breaks.
    #[must_use]
    pub fn validate(self, object: &Value) -> Vec<FieldError> {
        match self {
            Self::Pod => pod::validate(object),
            Self::ConfigMap => config::validate_config_map(object),
            Self::Secret => config::validate_secret(object),
            Self::PersistentVolumeClaim => claim::validate(object),
        }
    }
}

/// Checks a document against its type, fills in the namespace and the kind's
/// defaults, and validates it. The document's marks stay those of the source.
///
/// # Errors
/// Every error with its place, in the order of the source. A kind that the
/// API does not have is one error about `kind`.
pub fn prepare(document: &mut Document, namespace: &str) -> Result<(), Vec<Located>> {
    let Some(ty) = types::by_kind(&document.api_version, &document.kind) else {
        let error = FieldError {
            path: FieldPath::default().field("kind"),
            kind: ErrorKind::NotFound,
            value: Some(format!("{:?}", document.kind).into()),
            detail: format!(
                "the Kubernetes API has no such kind in {}",
                document.api_version
            )
            .into(),
        };
        return Err(vec![document.place(error)]);
    };
    let known = Known::of(&document.api_version, &document.kind);
    let mut errors = if known.is_some() {
        strict::check(&document.value, ty)
    } else {
        strict::check_required(&document.value, ty)
    };
    strict::drop_nulls(&mut document.value, ty);
    if let Some(object) = document.value.as_object_mut() {
        let metadata = object.entry("metadata").or_insert_with(|| json!({}));
        if let Some(metadata) = metadata.as_object_mut() {
            let empty = metadata
                .get("namespace")
                .and_then(Value::as_str)
                .is_none_or(str::is_empty);
            if known.is_some() && empty {
                metadata.insert("namespace".into(), namespace.into());
            }
        }
    }
    if let Some(known) = known {
        known.default(&mut document.value);
        // A value of the wrong shape reads as absent to the rules: what they
        // say about a field that is already in the list adds nothing.
        for error in known.validate(&document.value) {
            if !errors.iter().any(|e| covers(&e.path, &error.path)) {
                errors.push(error);
            }
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    let mut located: Vec<Located> = errors.into_iter().map(|e| document.place(e)).collect();
    located.sort_by_key(|l| (l.mark.line, l.mark.column));
    Err(located)
}

/// Whether `outer` is `inner` or an ancestor of it.
fn covers(outer: &FieldPath, inner: &FieldPath) -> bool {
    inner.0.starts_with(&outer.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::documents;

    fn prepared(text: &str) -> Result<Vec<Value>, Vec<String>> {
        let mut errors = Vec::new();
        let mut values = Vec::new();
        for mut doc in documents(text.as_bytes(), "f.yaml").unwrap() {
            match prepare(&mut doc, "default") {
                Ok(()) => values.push(doc.value),
                Err(found) => errors.extend(found.iter().map(ToString::to_string)),
            }
        }
        if errors.is_empty() {
            Ok(values)
        } else {
            Err(errors)
        }
    }

    #[test]
    fn a_broken_manifest_gets_every_error_with_its_line() {
        let text = "apiVersion: v1
kind: Pod
metadata:
  name: web
spec:
  containers:
  - name: web
    imagee: nginx
    ports:
    - containerPort: 80
      hostPort: 70000
    volumeMounts:
    - {name: data, mountPath: /data}
    resources:
      limits: {memory: 1GB}
---
apiVersion: v1
kind: Secret
metadata: {name: s}
data: {a: '***'}
---
apiVersion: v1
kind: Pods
metadata: {name: s}
";
        assert_eq!(
            prepared(text).unwrap_err(),
            [
                "f.yaml: document 1, line 7: spec.containers[0].image: Required value",
                "f.yaml: document 1, line 8: spec.containers[0].imagee: unknown field; did you mean image?",
                "f.yaml: document 1, line 11: spec.containers[0].ports[0].hostPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                "f.yaml: document 1, line 13: spec.containers[0].volumeMounts[0].name: Not found: \"data\"",
                "f.yaml: document 1, line 15: spec.containers[0].resources.limits[memory]: Invalid value: \"1GB\": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
                "f.yaml: document 2, line 20: data[a]: Invalid value: \"***\": must be bytes in base64",
                "f.yaml: document 3, line 23: kind: Not found: \"Pods\": the Kubernetes API has no such kind in v1",
            ]
        );
    }

    #[test]
    fn config_maps_secrets_and_claims() {
        let text = "apiVersion: v1
kind: Secret
metadata: {name: s}
stringData: {a: hi, b: x}
data: {b: eQ==, c: eg==}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: c, namespace: other, labels: null}
data: {k: v}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: p}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Gi}}
";
        let values = prepared(text).unwrap();
        assert_eq!(
            values[0]["data"],
            json!({"a": "aGk=", "b": "eA==", "c": "eg=="})
        );
        assert!(values[0].get("stringData").is_none());
        assert_eq!(values[0]["type"], json!("Opaque"));
        assert_eq!(values[0]["metadata"]["namespace"], json!("default"));
        assert_eq!(
            values[1]["metadata"],
            json!({"name": "c", "namespace": "other"})
        );
        assert_eq!(values[2]["spec"]["volumeMode"], json!("Filesystem"));
        let bad = "apiVersion: v1
kind: ConfigMap
metadata: {name: C_}
data: {a/b: x, both: why}
binaryData: {both: eA==}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: p}
spec: {accessModes: [ReadWriteOncePod, ReadWriteMany], resources: {requests: {storage: '0'}}}
---
apiVersion: v1
kind: Secret
metadata: {name: s}
type: kubernetes.io/tls
data: {tls.crt: eA==}
";
        let found = prepared(bad).unwrap_err();
        assert_eq!(found.len(), 6, "{found:#?}");
        assert!(
            found[2].ends_with(
                "data[both]: Invalid value: \"both\": duplicate of key present in binaryData"
            ),
            "{}",
            found[2]
        );
        assert_eq!(
            found[5],
            "f.yaml: document 3, line 16: data[tls.key]: Required value"
        );
    }
}
