//! ConfigMaps and Secrets (`v1`): defaults and validation.

use serde_json::{Value, json};

use crate::field::{ErrorKind, Errors, FieldError};
use crate::meta;
use crate::names;
use crate::strict::base64;
use crate::view::At;

/// Most bytes of all values of a Secret (decoded) or ConfigMap.
pub const MAX_DATA_BYTES: usize = 1 << 20;

/// A ConfigMap has no defaults; kept beside [`default_secret`] so that callers
/// treat kinds alike.
pub const fn default_config_map(_: &mut Value) {}

/// Moves `stringData` into `data` and sets the type `Opaque`.
///
/// Upstream does the first in the conversion to its internal form, so
/// `stringData` wins over `data` and never comes back to readers.
pub fn default_secret(secret: &mut Value) {
    use base64::Engine as _;
    let Some(map) = secret.as_object_mut() else {
        return;
    };
    if map.get("stringData").is_some_and(Value::is_object)
        && let Some(Value::Object(strings)) = map.remove("stringData")
    {
        let data = map.entry("data").or_insert_with(|| json!({}));
        if data.is_null() {
            *data = json!({});
        }
        if let Value::Object(data) = data {
            for (key, value) in strings {
                let text = value.as_str().unwrap_or("");
                let engine = base64::engine::general_purpose::STANDARD;
                data.insert(key, engine.encode(text).into());
            }
        }
    }
    let kind = map.get("type").and_then(Value::as_str).unwrap_or("");
    if kind.is_empty() {
        map.insert("type".into(), json!("Opaque"));
    }
}

fn keys(errors: &mut Errors, at: &At<'_, '_>) {
    for (key, entry) in at.entries() {
        for rule in names::config_key(key) {
            entry.error_value(errors, ErrorKind::Invalid, format!("{key:?}"), rule);
        }
    }
}

fn decoded_bytes(at: &At<'_, '_>) -> usize {
    at.entries()
        .map(|(_, v)| base64(v.str()).map_or(0, |b| b.len()))
        .sum()
}

fn too_long(errors: &mut Errors, at: &At<'_, '_>, bytes: usize) {
    if bytes > MAX_DATA_BYTES {
        let rule = format!("may not be more than {MAX_DATA_BYTES} bytes");
        at.error(errors, ErrorKind::TooLong, rule);
    }
}

/// Every rule that a ConfigMap breaks.
#[must_use]
pub fn validate_config_map(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(object);
    meta::validate(
        &mut errors,
        &root.get("metadata"),
        true,
        names::dns1123_subdomain,
    );
    let (data, binary) = (root.get("data"), root.get("binaryData"));
    keys(&mut errors, &data);
    keys(&mut errors, &binary);
    for (key, entry) in data.entries() {
        if binary.get(key).is_some() {
            let rule = "duplicate of key present in binaryData";
            entry.error_value(&mut errors, ErrorKind::Invalid, format!("{key:?}"), rule);
        }
    }
    let bytes: usize = data.entries().map(|(_, v)| v.str().len()).sum();
    too_long(&mut errors, &root, bytes + decoded_bytes(&binary));
    errors.into_vec()
}

const SEALED: &str = "field is immutable when `immutable` is set";

/// What a ConfigMap or Secret that was made immutable keeps.
fn sealed(errors: &mut Errors, new: &At<'_, '_>, old: &Value, fields: &[&str]) {
    if old["immutable"] != true {
        return;
    }
    let flag = new.get("immutable");
    if !flag.is_true() {
        flag.forbidden(errors, SEALED);
    }
    for name in fields {
        let at = new.get(name);
        if *at.value() != old[*name] {
            at.forbidden(errors, SEALED);
        }
    }
}

/// Every rule that a change of a ConfigMap breaks.
#[must_use]
pub fn validate_update_config_map(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    sealed(&mut errors, &At::root(new), old, &["data", "binaryData"]);
    errors.into_vec()
}

/// Every rule that a change of a Secret breaks.
#[must_use]
pub fn validate_update_secret(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(new);
    let kind = root.get("type");
    if *kind.value() != old["type"] {
        kind.invalid(&mut errors, "field is immutable");
    }
    sealed(&mut errors, &root, old, &["data"]);
    errors.into_vec()
}

/// Every rule that a (defaulted) Secret breaks.
#[must_use]
pub fn validate_secret(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(object);
    let metadata = root.get("metadata");
    meta::validate(&mut errors, &metadata, true, names::dns1123_subdomain);
    let data = root.get("data");
    keys(&mut errors, &data);
    too_long(&mut errors, &data, decoded_bytes(&data));
    match root.get("type").str() {
        "kubernetes.io/service-account-token" => {
            let annotations = metadata.get("annotations");
            let name = annotations.key("kubernetes.io/service-account.name");
            if name.str().is_empty() {
                name.required(&mut errors, "");
            }
        }
        "kubernetes.io/dockercfg" => json_key(&mut errors, &data, ".dockercfg"),
        "kubernetes.io/dockerconfigjson" => json_key(&mut errors, &data, ".dockerconfigjson"),
        "kubernetes.io/basic-auth"
            if data.key("username").is_none() && data.key("password").is_none() =>
        {
            data.key("username").required(&mut errors, "");
            data.key("password").required(&mut errors, "");
        }
        "kubernetes.io/ssh-auth" => {
            // An empty key is none here.
            let key = data.key("ssh-privatekey");
            if key.str().is_empty() {
                key.required(&mut errors, "");
            }
        }
        "kubernetes.io/tls" => need_keys(&mut errors, &data, &["tls.crt", "tls.key"]),
        _ => {}
    }
    errors.into_vec()
}

fn need_keys(errors: &mut Errors, data: &At<'_, '_>, keys: &[&str]) {
    for key in keys {
        let entry = data.key(key);
        if entry.is_none() {
            entry.required(errors, "");
        }
    }
}

/// Why bytes are no JSON object, as Go's reader says.
fn no_object(bytes: &[u8]) -> Option<String> {
    if let Some(fault) = crate::syntax::fault(bytes) {
        return Some(fault);
    }
    let what = match serde_json::from_slice::<Value>(bytes) {
        Ok(Value::Array(_)) => "array",
        Ok(Value::String(_)) => "string",
        Ok(Value::Number(_)) => "number",
        Ok(Value::Bool(_)) => "bool",
        _ => return None,
    };
    Some(format!(
        "json: cannot unmarshal {what} into Go value of type map[string]interface {{}}"
    ))
}

fn json_key(errors: &mut Errors, data: &At<'_, '_>, key: &str) {
    let entry = data.key(key);
    if entry.is_none() {
        entry.required(errors, "");
        return;
    }
    let bytes = base64(entry.str()).unwrap_or_default();
    if let Some(rule) = no_object(&bytes) {
        entry.error_value(
            errors,
            ErrorKind::Invalid,
            "\"<secret contents redacted>\"",
            rule,
        );
    }
}
