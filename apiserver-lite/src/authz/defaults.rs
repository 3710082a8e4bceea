//! Upstream's default roles and bindings, from the table `roles.txt`.

use serde_json::{Map, Value, json};

use super::rbac::GROUP;
use super::rules::Rule;

const TEXT: &str = include_str!("roles.txt");
const AGGREGATE: &str = "rbac.authorization.k8s.io/aggregate-to-";

/// The lines of one entry of the table: its first line, and its rules.
fn entries() -> Vec<(Vec<&'static str>, Vec<Rule>)> {
    let mut entries: Vec<(Vec<&'static str>, Vec<Rule>)> = Vec::new();
    for line in TEXT.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.starts_with(' ') {
            if let Some((_, rules)) = entries.last_mut() {
                rules.push(rule(&words));
            }
        } else if !words.is_empty() {
            entries.push((words, Vec::new()));
        }
    }
    entries
}

fn rule(words: &[&str]) -> Rule {
    const READ: &[&str] = &["get", "list", "watch"];
    const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
    let word = |at: usize| words.get(at).copied().unwrap_or("");
    let list = |text: &str| -> Vec<String> {
        let items = text.split(',').filter(|item| !item.is_empty());
        items
            .flat_map(|item| match item {
                "R" => READ.to_vec(),
                "W" => WRITE.to_vec(),
                "RW" => [WRITE, READ].concat(),
                item => vec![item],
            })
            .map(|item| {
                if item == "core" {
                    String::new()
                } else {
                    item.to_owned()
                }
            })
            .collect()
    };
    let mut rule = Rule {
        verbs: list(word(0)),
        ..Rule::default()
    };
    if word(1) == "@" {
        rule.urls = list(word(2));
    } else {
        rule.groups = list(word(1));
        rule.resources = list(word(2));
        rule.names = list(word(3));
    }
    rule
}

fn metadata(name: &str, namespace: &str) -> Value {
    let mut metadata = json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    });
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
    metadata
}

fn subjects(text: &str) -> Vec<Value> {
    let subject = |item: &str| {
        let (kind, name) = item.split_once(':').unwrap_or(("group", item));
        match kind {
            "sa" => {
                let (namespace, name) = name.split_once('/').unwrap_or(("", name));
                json!({"kind": "ServiceAccount", "name": name, "namespace": namespace})
            }
            "user" => json!({"apiGroup": GROUP, "kind": "User", "name": name}),
            _ => json!({"apiGroup": GROUP, "kind": "Group", "name": name}),
        }
    };
    let items = text.split(',').filter(|item| !item.is_empty());
    items.map(subject).collect()
}

fn object(kind: &str, metadata: Value) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("apiVersion".into(), format!("{GROUP}/v1").into());
    map.insert("kind".into(), kind.into());
    map.insert("metadata".into(), metadata);
    map
}

/// A default object: the resource's plural, and the object.
#[must_use]
pub fn objects() -> Vec<(&'static str, Value)> {
    entries()
        .iter()
        .filter_map(|(words, rules)| one(words, rules))
        .collect()
}

fn one(words: &[&'static str], rules: &[Rule]) -> Option<(&'static str, Value)> {
    let word = |at: usize| words.get(at).copied().unwrap_or("");
    let values: Vec<Value> = rules.iter().map(Rule::to_value).collect();
    Some(match word(0) {
        "clusterrole" => {
            let mut metadata = metadata(word(1), "");
            let mut from = None;
            for option in words.iter().skip(2) {
                match option.split_once('=') {
                    Some(("to", group)) => {
                        metadata["labels"][format!("{AGGREGATE}{group}")] = "true".into();
                    }
                    Some(("from", group)) => from = Some(group),
                    _ => {}
                }
            }
            let mut role = object("ClusterRole", metadata);
            match from {
                Some(group) => {
                    let labels = json!({"matchLabels": {format!("{AGGREGATE}{group}"): "true"}});
                    role.insert(
                        "aggregationRule".into(),
                        json!({"clusterRoleSelectors": [labels]}),
                    );
                    role.insert("rules".into(), taken(group).into());
                }
                None => {
                    role.insert("rules".into(), values.into());
                }
            }
            ("clusterroles", Value::Object(role))
        }
        "role" => {
            let mut role = object("Role", metadata(word(2), word(1)));
            role.insert("rules".into(), values.into());
            ("roles", Value::Object(role))
        }
        "clusterbinding" => {
            let mut binding = object("ClusterRoleBinding", metadata(word(1), ""));
            let role = json!({"apiGroup": GROUP, "kind": "ClusterRole", "name": word(2)});
            binding.insert("roleRef".into(), role);
            let subjects = subjects(word(3));
            if !subjects.is_empty() {
                binding.insert("subjects".into(), subjects.into());
            }
            ("clusterrolebindings", Value::Object(binding))
        }
        "binding" => {
            let mut binding = object("RoleBinding", metadata(word(2), word(1)));
            let role = json!({"apiGroup": GROUP, "kind": "Role", "name": word(3)});
            binding.insert("roleRef".into(), role);
            binding.insert("subjects".into(), subjects(word(4)).into());
            ("rolebindings", Value::Object(binding))
        }
        _ => return None,
    })
}

/// The rules that a role takes from the others of the table.
fn taken(group: &str) -> Vec<Value> {
    let gives = format!("to={group}");
    let mut rules = Vec::new();
    for (words, own) in entries() {
        if words.first() != Some(&"clusterrole") || !words.contains(&gives.as_str()) {
            continue;
        }
        let from = words.iter().find_map(|word| word.strip_prefix("from="));
        let theirs = match from {
            Some(deeper) => taken(deeper),
            None => own.iter().map(Rule::to_value).collect(),
        };
        for rule in theirs {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
    }
    rules
}

/// The rules of one default ClusterRole.
#[must_use]
pub fn cluster_role(name: &str) -> Option<Vec<Rule>> {
    let mut entries = entries().into_iter();
    let found = entries.find(|(words, _)| words.starts_with(&["clusterrole", name]));
    found.map(|(_, rules)| rules)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Target;
    use std::collections::HashSet;

    #[test]
    fn the_table_is_whole() {
        let objects = objects();
        assert_eq!(objects.len(), entries().len());
        let mut names = HashSet::new();
        for (plural, object) in &objects {
            let metadata = &object["metadata"];
            assert!(
                names.insert((
                    *plural,
                    metadata["namespace"].to_string(),
                    metadata["name"].to_string()
                )),
                "{metadata}"
            );
        }
        for (plural, object) in &objects {
            if plural.ends_with("bindings") {
                let role = &object["roleRef"];
                let target = if role["kind"] == "Role" {
                    "roles"
                } else {
                    "clusterroles"
                };
                let namespace = if target == "roles" {
                    object["metadata"]["namespace"].to_string()
                } else {
                    "null".into()
                };
                assert!(
                    names.contains(&(target, namespace, role["name"].to_string())),
                    "{object}"
                );
            } else {
                for rule in Rule::list(&object["rules"]) {
                    let is_resource = !rule.groups.is_empty() && !rule.resources.is_empty();
                    assert!(
                        !rule.verbs.is_empty() && (is_resource || !rule.urls.is_empty()),
                        "{object}"
                    );
                }
            }
        }
    }

    #[test]
    fn view_edit_and_admin_build_on_each_other() {
        let rules = |name: &str| {
            let objects = objects();
            let role = objects
                .iter()
                .find(|(_, o)| o["metadata"]["name"] == name)
                .unwrap();
            Rule::list(&role.1["rules"])
        };
        let may = |role: &str, verb: &str, resource: &str| {
            let target = Target::Resource {
                group: if resource == "rolebindings" {
                    GROUP
                } else {
                    ""
                },
                version: "v1",
                resource,
                subresource: "",
                namespace: "ns",
                name: "x",
            };
            rules(role).iter().any(|rule| rule.allows(verb, &target))
        };
        assert!(may("view", "get", "pods") && !may("view", "get", "secrets"));
        assert!(
            may("edit", "get", "pods")
                && may("edit", "get", "secrets")
                && may("edit", "create", "pods")
        );
        assert!(!may("edit", "create", "rolebindings") && may("admin", "create", "rolebindings"));
        assert!(may("admin", "create", "pods") && !may("admin", "update", "namespaces"));
    }
}
