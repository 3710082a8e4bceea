//! A rule of a role, and what it covers
//! (`k8s.io/kubernetes/pkg/apis/rbac/v1/evaluation_helpers.go`).

use serde_json::{Map, Value};

use crate::auth::Target;

/// A `PolicyRule`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// `get`, `*`, ...
    pub verbs: Vec<String>,
    /// Groups; "" is core, `*` all.
    pub groups: Vec<String>,
    /// `pods`, `pods/log`, `*/scale`, `*`.
    pub resources: Vec<String>,
    /// Names; empty is all.
    pub names: Vec<String>,
    /// Paths that are no resources; a final `*` stands for any rest.
    pub urls: Vec<String>,
}

const FIELDS: [&str; 5] = [
    "verbs",
    "apiGroups",
    "resources",
    "resourceNames",
    "nonResourceURLs",
];

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == wanted)
}

fn has_or_all(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == wanted || item == "*")
}

fn resource_matches(list: &[String], combined: &str, subresource: &str) -> bool {
    list.iter().any(|item| {
        item == "*"
            || item == combined
            || (!subresource.is_empty() && item.strip_prefix("*/") == Some(subresource))
    })
}

fn url_matches(pattern: &str, url: &str) -> bool {
    pattern == "*"
        || pattern == url
        || pattern
            .strip_suffix('*')
            .is_some_and(|start| url.starts_with(start.trim_end_matches('*')))
}

impl Rule {
    /// Reads a rule.
    #[must_use]
    pub fn from_value(value: &Value) -> Self {
        let list = |field: &str| -> Vec<String> {
            let items = value[field].as_array().map_or(&[][..], Vec::as_slice);
            items
                .iter()
                .filter_map(|item| item.as_str().map(str::to_owned))
                .collect()
        };
        Self {
            verbs: list("verbs"),
            groups: list("apiGroups"),
            resources: list("resources"),
            names: list("resourceNames"),
            urls: list("nonResourceURLs"),
        }
    }

    /// The rules of a role.
    #[must_use]
    pub fn list(rules: &Value) -> Vec<Self> {
        let rules = rules.as_array().map_or(&[][..], Vec::as_slice);
        rules.iter().map(Self::from_value).collect()
    }

    /// The object; empty lists are left out, verbs stay.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let lists = [
            &self.verbs,
            &self.groups,
            &self.resources,
            &self.names,
            &self.urls,
        ];
        let mut map = Map::new();
        for (field, list) in FIELDS.iter().zip(lists) {
            if !list.is_empty() || *field == "verbs" {
                map.insert((*field).to_owned(), list.clone().into());
            }
        }
        Value::Object(map)
    }

    /// Whether the rule allows a verb on a target.
    #[must_use]
    pub fn allows(&self, verb: &str, target: &Target<'_>) -> bool {
        if !has_or_all(&self.verbs, verb) {
            return false;
        }
        match target {
            Target::Resource {
                group,
                resource,
                subresource,
                name,
                ..
            } => {
                let combined = if subresource.is_empty() {
                    (*resource).to_owned()
                } else {
                    format!("{resource}/{subresource}")
                };
                has_or_all(&self.groups, group)
                    && resource_matches(&self.resources, &combined, subresource)
                    && (self.names.is_empty() || has(&self.names, name))
            }
            Target::Path(path) => self.urls.iter().any(|url| url_matches(url, path)),
        }
    }

    /// Whether everything that `one` allows is allowed by this rule; `one`
    /// has at most one entry in each list.
    fn covers(&self, one: &Self) -> bool {
        let all = |ours: &[String], theirs: &[String]| {
            has(ours, "*") || theirs.iter().all(|item| has(ours, item))
        };
        if !all(&self.verbs, &one.verbs) {
            return false;
        }
        if !one.urls.is_empty() {
            return one
                .urls
                .iter()
                .all(|url| self.urls.iter().any(|ours| url_matches(ours, url)));
        }
        let resource = |item: &String| {
            let subresource = item.split_once('/').map_or("", |(_, sub)| sub);
            resource_matches(&self.resources, item, subresource)
        };
        let names = self.names.is_empty()
            || (!one.names.is_empty() && one.names.iter().all(|name| has(&self.names, name)));
        all(&self.groups, &one.groups) && one.resources.iter().all(resource) && names
    }

    /// The rule in pieces with one entry a list.
    fn pieces(&self) -> Vec<Self> {
        let one = |text: &String| vec![text.clone()];
        let mut pieces = Vec::new();
        for verb in &self.verbs {
            for url in &self.urls {
                pieces.push(Self {
                    verbs: one(verb),
                    urls: one(url),
                    ..Self::default()
                });
            }
            for group in &self.groups {
                for resource in &self.resources {
                    let names: Vec<Vec<String>> = if self.names.is_empty() {
                        vec![Vec::new()]
                    } else {
                        self.names.iter().map(one).collect()
                    };
                    for names in names {
                        pieces.push(Self {
                            verbs: one(verb),
                            groups: one(group),
                            resources: one(resource),
                            names,
                            urls: Vec::new(),
                        });
                    }
                }
            }
        }
        pieces
    }
}

/// The parts of `wanted` that `held` does not cover.
#[must_use]
pub fn missing(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let pieces = wanted.iter().flat_map(Rule::pieces);
    let open = pieces.filter(|piece| !held.iter().any(|rule| rule.covers(piece)));
    // As upstream tells them: the verbs of one resource together.
    let mut compact: Vec<Rule> = Vec::new();
    for piece in open {
        let same = compact.iter_mut().find(|rule| {
            rule.urls.is_empty()
                && piece.urls.is_empty()
                && (&rule.groups, &rule.resources, &rule.names)
                    == (&piece.groups, &piece.resources, &piece.names)
        });
        match same {
            Some(rule) => rule.verbs.extend(piece.verbs),
            None => compact.push(piece),
        }
    }
    compact
}

impl std::fmt::Display for Rule {
    /// As upstream prints what a user does not hold.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        let lists = [
            ("APIGroups", &self.groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.names),
            ("NonResourceURLs", &self.urls),
            ("Verbs", &self.verbs),
        ];
        for (name, list) in lists {
            if !list.is_empty() {
                let quoted: Vec<String> = list.iter().map(|item| format!("{item:?}")).collect();
                parts.push(format!("{name}:[{}]", quoted.join(" ")));
            }
        }
        write!(f, "{{{}}}", parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(value: Value) -> Rule {
        Rule::from_value(&value)
    }

    fn target<'a>(resource: &'a str, subresource: &'a str, name: &'a str) -> Target<'a> {
        Target::Resource {
            group: "",
            version: "v1",
            resource,
            subresource,
            namespace: "ns",
            name,
        }
    }

    #[test]
    fn what_a_rule_allows() {
        let pods = rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}));
        assert!(pods.allows("get", &target("pods", "", "a")));
        assert!(!pods.allows("get", &target("pods", "log", "a")));
        assert!(!pods.allows("list", &target("pods", "", "")));
        let scale = rule(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*/scale"]}));
        assert!(scale.allows("patch", &target("deployments", "scale", "a")));
        assert!(!scale.allows("patch", &target("deployments", "", "a")));
        let named = rule(
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"]}),
        );
        assert!(named.allows("get", &target("secrets", "", "a")));
        assert!(!named.allows("get", &target("secrets", "", "")));
        let urls = rule(json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/api/*"]}));
        assert!(urls.allows("get", &Target::Path("/api/v1")));
        assert!(urls.allows("get", &Target::Path("/healthz")));
        assert!(!urls.allows("get", &Target::Path("/healthz/x")));
        assert!(!urls.allows("get", &target("pods", "", "")));
    }

    #[test]
    fn what_is_not_held() {
        let held = [
            rule(
                json!({"verbs": ["get", "list"], "apiGroups": ["*"], "resources": ["pods", "*/status"]}),
            ),
            rule(
                json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"]}),
            ),
        ];
        let wanted = |value: Value| missing(&held, &[rule(value)]);
        assert!(wanted(json!({"verbs": ["get"], "apiGroups": ["", "x"], "resources": ["pods", "nodes/status"]})).is_empty());
        let more =
            wanted(json!({"verbs": ["get", "delete"], "apiGroups": [""], "resources": ["pods"]}));
        assert_eq!(more.len(), 1);
        assert_eq!(
            more[0].to_string(),
            "{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}"
        );
        assert_eq!(
            wanted(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]})).len(),
            1
        );
        let both = wanted(
            json!({"verbs": ["get", "delete"], "apiGroups": ["", "x"], "resources": ["nodes"]}),
        );
        let told: Vec<String> = both.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            ["", "x"].map(|group| format!(
                "{{APIGroups:[{group:?}], Resources:[\"nodes\"], Verbs:[\"get\" \"delete\"]}}"
            ))
        );
        assert!(wanted(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"]})).is_empty());
        assert_eq!(
            wanted(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})).len(),
            1
        );
    }
}
