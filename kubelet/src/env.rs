//! A container's environment, and `$(NAME)` in what refers to it
//! (node reference 1.6).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVar};

use crate::downward::{self, Facts};
use crate::objects::Objects;

/// Why an environment cannot be made: the container waits with
/// CreateContainerConfigError.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// A ConfigMap or Secret is missing.
    #[error("{kind} {name:?} is not there")]
    Missing {
        /// ConfigMap or Secret.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// It lacks a key.
    #[error("{kind} {name:?} has no key {key:?}")]
    MissingKey {
        /// ConfigMap or Secret.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// A value is no text that the kernel can pass on.
    #[error("the value of variable {name:?} is not UTF-8 or has a NUL in it")]
    NotText {
        /// The variable.
        name: String,
    },
    /// A `fieldPath` or resource that there is not.
    #[error("variable {name:?} refers to {path:?}, which there is not")]
    UnknownField {
        /// The variable.
        name: String,
        /// What it refers to.
        path: String,
    },
    /// A kind of reference that rkube does not know.
    #[error("variable {name:?} uses {field}, which rkube does not support")]
    Unsupported {
        /// The variable.
        name: String,
        /// The field.
        field: &'static str,
    },
}

/// An environment that was made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Environment {
    /// Variables in their order, each name once.
    pub variables: Vec<(String, String)>,
    /// Keys of `envFrom` sources that are no variable names, each with its
    /// source (event InvalidEnvironmentVariableNames).
    pub skipped: Vec<String>,
}

impl Environment {
    fn set(&mut self, name: &str, value: String) {
        match self.variables.iter_mut().find(|(n, _)| n == name) {
            Some(entry) => entry.1 = value,
            None => self.variables.push((name.to_owned(), value)),
        }
    }

    /// The variables by name.
    #[must_use]
    pub fn map(&self) -> BTreeMap<&str, &str> {
        self.variables
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect()
    }
}

/// Makes the environment: `services` first, then `envFrom` in order, then
/// `env`, where a later one wins and may refer to what came before it.
///
/// # Errors
/// A reference that is not optional leads nowhere.
pub fn environment(
    facts: Facts<'_>,
    container: &Container,
    objects: &Objects,
    services: &[(String, String)],
) -> Result<Environment, EnvError> {
    let mut out = Environment::default();
    for (name, value) in services {
        out.set(name, value.clone());
    }
    for from in container.env_from.as_deref().unwrap_or_default() {
        let (kind, name, optional, data) = if let Some(source) = &from.config_map_ref {
            (
                "ConfigMap",
                &source.name,
                source.optional,
                objects.config_map(&source.name),
            )
        } else if let Some(source) = &from.secret_ref {
            (
                "Secret",
                &source.name,
                source.optional,
                objects.secret(&source.name),
            )
        } else {
            continue;
        };
        let Some(data) = data else {
            if optional == Some(true) {
                continue;
            }
            return Err(EnvError::Missing {
                kind,
                name: name.clone(),
            });
        };
        let prefix = from.prefix.as_deref().unwrap_or_default();
        for (key, value) in data {
            let variable = format!("{prefix}{key}");
            if valid_name(&variable) {
                let value = text(&variable, value)?;
                out.set(&variable, value);
            } else {
                out.skipped.push(format!("{kind} {name}: {key}"));
            }
        }
    }
    for var in container.env.as_deref().unwrap_or_default() {
        if let Some(value) = value_of(facts, container, objects, var, &out)? {
            out.set(&var.name, value);
        }
    }
    Ok(out)
}

fn value_of(
    facts: Facts<'_>,
    container: &Container,
    objects: &Objects,
    var: &EnvVar,
    so_far: &Environment,
) -> Result<Option<String>, EnvError> {
    let Some(from) = &var.value_from else {
        return Ok(Some(expand(
            var.value.as_deref().unwrap_or_default(),
            &so_far.map(),
        )));
    };
    let unknown = |path: &str| EnvError::UnknownField {
        name: var.name.clone(),
        path: path.to_owned(),
    };
    if let Some(field) = &from.field_ref {
        let path = field.field_path.as_str();
        return downward::field(facts, path)
            .map(Some)
            .ok_or_else(|| unknown(path));
    }
    if let Some(selector) = &from.resource_field_ref {
        let value = downward::resource(facts, Some(container), selector);
        return value.map(Some).ok_or_else(|| unknown(&selector.resource));
    }
    let (kind, name, key, optional, data) = if let Some(s) = &from.config_map_key_ref {
        (
            "ConfigMap",
            &s.name,
            &s.key,
            s.optional,
            objects.config_map(&s.name),
        )
    } else if let Some(s) = &from.secret_key_ref {
        (
            "Secret",
            &s.name,
            &s.key,
            s.optional,
            objects.secret(&s.name),
        )
    } else {
        return Err(EnvError::Unsupported {
            name: var.name.clone(),
            field: "valueFrom.fileKeyRef",
        });
    };
    let optional = optional == Some(true);
    match data.map(|mut d| d.remove(key)) {
        Some(Some(value)) => text(&var.name, value).map(Some),
        _ if optional => Ok(None),
        Some(None) => Err(EnvError::MissingKey {
            kind,
            name: name.clone(),
            key: key.clone(),
        }),
        None => Err(EnvError::Missing {
            kind,
            name: name.clone(),
        }),
    }
}

fn text(name: &str, value: Vec<u8>) -> Result<String, EnvError> {
    match String::from_utf8(value) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(EnvError::NotText {
            name: name.to_owned(),
        }),
    }
}

/// Printable ASCII without `=` (KEP-4369).
fn valid_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=')
}

/// Replaces `$(NAME)` by the variable's value. `$$` is one `$`; a name that
/// there is not, and a `$` before anything else, stay as they are.
#[must_use]
pub fn expand(text: &str, variables: &BTreeMap<&str, &str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some(tail) = after.strip_prefix('(') {
            if let Some(end) = tail.find(')') {
                let name = &tail[..end];
                match variables.get(name) {
                    Some(value) => out.push_str(value),
                    None => out.push_str(&rest[at..at + name.len() + 3]),
                }
                rest = &tail[end + 1..];
            } else {
                out.push_str("$(");
                rest = tail;
            }
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::NodeFacts;
    use crate::pod::{self, tests::pod as pod_of};
    use serde_json::{Value, json};

    #[test]
    fn expansion() {
        let map = BTreeMap::from([("A", "1"), ("B", "$(A)")]);
        for (text, want) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(C)", "$(C)"),
            ("$(B)", "$(A)"),
            ("$A", "$A"),
            ("$", "$"),
            ("$(", "$("),
            ("$(A", "$(A"),
            ("$$", "$"),
            ("$()", "$()"),
            ("é$(A)é", "é1é"),
        ] {
            assert_eq!(expand(text, &map), want, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn expansion_never_panics_and_keeps_text_without_dollars(text in "\\PC*") {
            let map = BTreeMap::from([("A", "1")]);
            let out = expand(&text, &map);
            if !text.contains('$') {
                proptest::prop_assert_eq!(out, text);
            }
        }
    }

    fn make(container: Value, objects: Value) -> Result<Environment, EnvError> {
        let pod = pod_of(json!({"containers": [container]}));
        let node = NodeFacts {
            single_process_oom_kill: false,
            name: "n".into(),
            addresses: vec![],
            cpu_millis: 1000,
            memory_bytes: 1,
            cluster_dns: vec![],
            cluster_domain: "c".into(),
        };
        let objects: Objects = serde_json::from_value(objects).unwrap();
        let facts = Facts {
            pod: &pod,
            node: &node,
            addresses: &[],
        };
        let services = [("SVC".to_owned(), "s".to_owned())];
        environment(
            facts,
            pod::container(&pod, "a").unwrap().1,
            &objects,
            &services,
        )
    }

    fn objects() -> Value {
        json!({"config_maps": {"cm": {"metadata": {"name": "cm"}, "data": {"K": "v", "b=d": "x"}}},
               "secrets": {"s": {"metadata": {"name": "s"}, "data": {"P": "AP8="}, "stringData": {"Q": "q"}}}})
    }

    #[test]
    fn later_ones_win_and_refer_to_earlier_ones() {
        let env = make(json!({"name": "a",
            "envFrom": [{"configMapRef": {"name": "cm"}, "prefix": "p_"}, {"configMapRef": {"name": "none", "optional": true}}],
            "env": [{"name": "X", "value": "$(p_K)-$(SVC)-$(Y)"}, {"name": "Y", "value": "y"}, {"name": "p_K", "value": "z"},
                {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "Q", "valueFrom": {"secretKeyRef": {"name": "s", "key": "Q"}}},
                {"name": "O", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "none", "optional": true}}},
                {"name": "X", "value": "$(X)!"}]}), objects()).unwrap();
        let map = env.map();
        assert_eq!(map["X"], "v-s-$(Y)!");
        assert_eq!((map["p_K"], map["N"], map["Q"]), ("z", "web", "q"));
        assert!(!map.contains_key("O"));
        assert_eq!(env.skipped, ["ConfigMap cm: b=d"]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let get = |from: Value| {
            make(
                json!({"name": "a", "env": [{"name": "V", "valueFrom": from}]}),
                objects(),
            )
            .unwrap_err()
            .to_string()
        };
        assert_eq!(
            get(json!({"configMapKeyRef": {"name": "no", "key": "k"}})),
            "ConfigMap \"no\" is not there"
        );
        assert_eq!(
            get(json!({"secretKeyRef": {"name": "s", "key": "k"}})),
            "Secret \"s\" has no key \"k\""
        );
        assert!(get(json!({"secretKeyRef": {"name": "s", "key": "P"}})).contains("not UTF-8"));
        assert!(get(json!({"fieldRef": {"fieldPath": "spec.x"}})).contains("spec.x"));
        let err = make(
            json!({"name": "a", "envFrom": [{"secretRef": {"name": "no"}}]}),
            objects(),
        )
        .unwrap_err();
        assert_eq!(err.to_string(), "Secret \"no\" is not there");
    }
}
