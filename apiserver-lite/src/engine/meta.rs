//! `metadata` on the way into the store (`rest.BeforeCreate`, `rest.BeforeUpdate` and
//! `ValidateObjectMetaUpdate` of upstream).

use std::time::{SystemTime, UNIX_EPOCH};

use ring::rand::{SecureRandom, SystemRandom};
use rkube_api::field::{ErrorKind, FieldError, FieldPath, shown};
use rkube_api::status::Status;
use rkube_api::time::Time;
use serde_json::{Map, Value, json};

/// The time, for objects.
pub(crate) fn now() -> Time {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Time {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos(),
    }
}

/// Bytes that nobody can guess.
///
/// # Errors
/// Where the kernel gives none.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Status> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Status::internal("the kernel gives no random bytes"))?;
    Ok(bytes)
}

/// A random UUID (RFC 9562, version 4).
///
/// # Errors
/// As [`random`].
pub(crate) fn uid() -> Result<String, Status> {
    rkube_pki::token::new_uuid().map_err(|e| Status::internal(&e.to_string()))
}

/// Letters of generated names: no vowels, so no words (`pkg/util/rand` of upstream).
const NAME_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Random letters behind a prefix.
const NAME_LETTERS_COUNT: usize = 5;
/// Longest prefix kept, in bytes: 63 less the letters.
const NAME_PREFIX_BYTES_MAX: usize = 58;

/// A name from a prefix.
///
/// # Errors
/// As [`random`].
pub(crate) fn generated_name(prefix: &str) -> Result<String, Status> {
    let cut = (0..=prefix.len().min(NAME_PREFIX_BYTES_MAX))
        .rev()
        .find(|at| prefix.is_char_boundary(*at));
    let mut name = prefix[..cut.unwrap_or(0)].to_owned();
    let bytes: [u8; NAME_LETTERS_COUNT] = random()?;
    for byte in bytes {
        let letter = NAME_LETTERS[usize::from(byte) % NAME_LETTERS.len()];
        name.push(char::from(letter));
    }
    Ok(name)
}

/// The `metadata` of an object, made where it is missing.
pub(crate) fn of(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    let metadata = &mut object["metadata"];
    if !metadata.is_object() {
        *metadata = json!({});
    }
    match metadata {
        Value::Object(map) => map,
        // Just made one.
        _ => unreachable!("metadata is an object"),
    }
}

/// A text of `metadata`, or "".
pub(crate) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or("")
}

/// Whether a deletion was asked for and waits.
pub(crate) fn is_deleting(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// The finalizers.
pub(crate) fn finalizers(object: &Value) -> Vec<&str> {
    let list = object["metadata"]["finalizers"].as_array();
    list.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// `metadata.generation`, 0 where there is none.
pub(crate) fn generation(object: &Value) -> i64 {
    object["metadata"]["generation"].as_i64().unwrap_or(0)
}

/// What the server sets on a new object.
pub(crate) fn prepare_create(
    object: &mut Value,
    has_generation: bool,
    now: Time,
) -> Result<(), Status> {
    let uid = uid()?;
    let metadata = of(object);
    for field in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "resourceVersion",
    ] {
        metadata.remove(field);
    }
    metadata.insert("uid".into(), uid.into());
    metadata.insert(
        "creationTimestamp".into(),
        Time::from_seconds(now.seconds).to_rfc3339().into(),
    );
    if has_generation {
        metadata.insert("generation".into(), 1.into());
    }
    Ok(())
}

/// Fields that an update may not change, and nobody is told so.
fn is_silent(field: &str, before: &Value) -> bool {
    match field {
        "creationTimestamp" => true,
        "deletionTimestamp" => !before[field].is_null(),
        _ => false,
    }
}

/// Fields that an update may leave out, and may not change.
const KEPT: [&str; 6] = [
    "name",
    "namespace",
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
];

/// What the server keeps of the old object's metadata; the rules that the new one breaks.
pub(crate) fn prepare_update(new: &mut Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = FieldPath::default().field("metadata");
    let metadata = of(new);
    let before = &old["metadata"];
    metadata.remove("selfLink");
    for field in KEPT {
        match (metadata.get(field), before.get(field)) {
            (None, Some(kept)) => {
                metadata.insert(field.into(), kept.clone());
            }
            (Some(_), Some(kept)) if is_silent(field, before) => {
                metadata.insert(field.into(), kept.clone());
            }
            (Some(changed), kept) if Some(changed) != kept => errors.push(FieldError {
                path: path.clone().field(field),
                kind: ErrorKind::Invalid,
                value: Some(shown(changed)),
                detail: "field is immutable".into(),
            }),
            _ => {}
        }
    }
    match before.get("generation") {
        Some(generation) => metadata.insert("generation".into(), generation.clone()),
        None => metadata.remove("generation"),
    };
    if is_deleting(old) {
        let before = finalizers(old);
        let added: Vec<String> = finalizers(new)
            .into_iter()
            .filter(|f| !before.contains(f))
            .map(|f| format!("{f:?}"))
            .collect();
        if !added.is_empty() {
            errors.push(FieldError {
                path: path.field("finalizers"),
                kind: ErrorKind::Forbidden,
                value: None,
                detail: format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    added.join(", ")
                )
                .into(),
            });
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_uids() {
        let name = generated_name("web-").unwrap();
        assert_eq!(name.len(), 9);
        assert_ne!(name, generated_name("web-").unwrap());
        assert_eq!(generated_name(&"x".repeat(100)).unwrap().len(), 63);
        let uid = uid().unwrap();
        assert_eq!((uid.len(), &uid[14..15]), (36, "4"));
    }

    #[test]
    fn what_an_update_may_not_touch() {
        let old = json!({"metadata": {"name": "a", "uid": "u", "generation": 3, "creationTimestamp": "t",
            "deletionTimestamp": "d", "deletionGracePeriodSeconds": 0, "finalizers": ["x/y"]}});
        let mut new = json!({"metadata": {"name": "a", "generation": 9, "finalizers": []}});
        assert!(prepare_update(&mut new, &old).is_empty());
        assert_eq!(new["metadata"]["uid"], "u");
        assert_eq!(new["metadata"]["generation"], 3);
        assert_eq!(new["metadata"]["deletionTimestamp"], "d");
        let mut new = json!({"metadata": {"name": "a", "uid": "v", "finalizers": ["x/y", "x/z"]}});
        let texts: Vec<String> = prepare_update(&mut new, &old)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            texts,
            [
                "metadata.uid: Invalid value: \"v\": field is immutable",
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"x/z\"}"
            ]
        );
    }
}
