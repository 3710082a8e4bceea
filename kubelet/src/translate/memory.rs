//! What a pod asks of its containers' cgroups beyond the fields of the API, by
//! annotations with the container's name behind the slash:
//!
//! | annotation | value | file |
//! |---|---|---|
//! | `pids-limit.rkube.dev/NAME` | a number | `pids.max` |
//! | `oom-kill.rkube.dev/NAME` | `group` (the default) or `process` | `memory.oom.group` |
//! | `memory-high.rkube.dev/NAME` | a quantity | `memory.high` |
//!
//! `process` leaves a container alive when the kernel kills one process of it
//! (what KEP-5507 asks for); `memory-high` slows a container down and reclaims
//! from it before its limit kills.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use rkube_engine::api::Resources;

use super::TranslateError;
use crate::quantity;

/// Prefix of the annotation that says what an OOM kill ends.
pub const OOM_KILL: &str = "oom-kill.rkube.dev/";
/// Prefix of the annotation with `memory.high`.
pub const MEMORY_HIGH: &str = "memory-high.rkube.dev/";

/// Prefix of the annotation with the most processes and threads.
pub const PIDS_LIMIT: &str = "pids-limit.rkube.dev/";

/// Adds what the pod's annotations ask for a container.
///
/// # Errors
/// A value that means nothing, or a `memory.high` that is no lower than the
/// limit and so would do nothing.
pub fn asked(pod: &Pod, container: &str, resources: &mut Resources) -> Result<(), TranslateError> {
    let value = |prefix: &str| {
        let annotations = pod.metadata.annotations.as_ref()?;
        annotations.get(&format!("{prefix}{container}"))
    };
    let wrong = |prefix: &str, value: &str, wanted: &'static str| TranslateError::Annotation {
        key: format!("{prefix}{container}"),
        value: value.to_owned(),
        wanted,
    };
    match value(OOM_KILL).map(String::as_str) {
        None => {}
        Some("group") => resources.oom_group = true,
        Some("process") => resources.oom_group = false,
        Some(other) => return Err(wrong(OOM_KILL, other, "group or process")),
    }
    if let Some(text) = value(PIDS_LIMIT) {
        let limit = quantity::units(&Quantity(text.clone()))
            .and_then(|n| i64::try_from(n).ok())
            .filter(|n| *n > 0);
        let limit = limit.ok_or_else(|| wrong(PIDS_LIMIT, text, "a number above 0"))?;
        resources.pids_limit = Some(limit);
    }
    if let Some(text) = value(MEMORY_HIGH) {
        let bytes = quantity::units(&Quantity(text.clone()))
            .and_then(|n| i64::try_from(n).ok())
            .filter(|n| *n > 0);
        let bytes = bytes.ok_or_else(|| wrong(MEMORY_HIGH, text, "a quantity above 0"))?;
        if resources.memory_limit_bytes.is_some_and(|max| bytes >= max) {
            return Err(wrong(MEMORY_HIGH, text, "below the container's limit"));
        }
        resources.memory_high_bytes = Some(bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(annotations: serde_json::Value) -> Result<Resources, TranslateError> {
        let pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "annotations": annotations}}));
        let mut resources = Resources {
            oom_group: true,
            memory_limit_bytes: Some(64 << 20),
            ..Resources::default()
        };
        asked(&pod.unwrap(), "a", &mut resources).map(|()| resources)
    }

    #[test]
    fn annotations_are_of_one_container() {
        let none = of(serde_json::json!({"oom-kill.rkube.dev/b": "process", "other/a": "x"}));
        assert!(none.unwrap().oom_group);
        let asked = of(serde_json::json!({
            "oom-kill.rkube.dev/a": "process", "memory-high.rkube.dev/a": "48Mi"}));
        let asked = asked.unwrap();
        assert!(!asked.oom_group);
        assert_eq!(asked.memory_high_bytes, Some(48 << 20));
    }

    #[test]
    fn values_without_a_meaning_are_refused() {
        for (key, value) in [
            ("oom-kill.rkube.dev/a", "container"),
            ("memory-high.rkube.dev/a", "much"),
            ("memory-high.rkube.dev/a", "0"),
            ("memory-high.rkube.dev/a", "64Mi"),
            ("pids-limit.rkube.dev/a", "0"),
            ("pids-limit.rkube.dev/a", "few"),
        ] {
            let error = of(serde_json::json!({ key: value }))
                .unwrap_err()
                .to_string();
            assert!(error.contains(key) && error.contains(value), "{error}");
        }
    }
}
