//! Roles and their bindings, kept in memory as rules.
//!
//! The tables follow the store: before a decision, what was written to roles
//! or bindings since the last one is taken in. So a grant holds for the very
//! next request, and requests in between cost no parsing.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rkube_api::selector::LabelSelector;
use rkube_store::Watcher;
use serde_json::Value;

use super::rules::Rule;
use crate::auth::{Access, Authorize, Decision, Target};
use crate::objects::{self, Objects};
use crate::request::User;

/// The group of roles.
pub const GROUP: &str = "rbac.authorization.k8s.io";
const PLURALS: [&str; 4] = [
    "clusterroles",
    "clusterrolebindings",
    "roles",
    "rolebindings",
];

/// To whom a binding gives.
#[derive(Debug, Clone)]
enum Subject {
    User(String),
    Group(String),
    /// Namespace and name.
    Account(String, String),
}

impl Subject {
    fn from_value(value: &Value, namespace: &str) -> Option<Self> {
        let name = value["name"].as_str()?.to_owned();
        Some(match value["kind"].as_str()? {
            "User" => Self::User(name),
            "Group" => Self::Group(name),
            "ServiceAccount" => {
                let own = value["namespace"].as_str().unwrap_or(namespace);
                Self::Account(own.to_owned(), name)
            }
            _ => return None,
        })
    }

    fn is(&self, user: &User) -> bool {
        match self {
            Self::User(name) => user.name == *name,
            Self::Group(name) => user.in_group(name),
            Self::Account(namespace, name) => user
                .name
                .strip_prefix(rkube_pki::token::USER_PREFIX)
                .and_then(|rest| rest.split_once(':'))
                .is_some_and(|(ns, n)| ns == namespace && n == name),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => write!(f, "User {name:?}"),
            Self::Group(name) => write!(f, "Group {name:?}"),
            Self::Account(namespace, name) => write!(f, "ServiceAccount \"{name}/{namespace}\""),
        }
    }
}

#[derive(Debug, Clone)]
struct Binding {
    name: String,
    /// "" for cluster-wide ones.
    namespace: String,
    subjects: Vec<Subject>,
    /// Whether the role is a ClusterRole, and its name.
    role: (bool, String),
}

impl Binding {
    fn from_value(value: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
        let namespace = text(&value["metadata"]["namespace"]);
        let subjects = value["subjects"].as_array().map_or(&[][..], Vec::as_slice);
        Self {
            name: text(&value["metadata"]["name"]),
            subjects: subjects
                .iter()
                .filter_map(|subject| Subject::from_value(subject, &namespace))
                .collect(),
            role: (
                value["roleRef"]["kind"] == "ClusterRole",
                text(&value["roleRef"]["name"]),
            ),
            namespace,
        }
    }

    /// Why a request is allowed, as upstream says it.
    fn reason(&self, subject: &Subject) -> String {
        let role = if self.role.0 { "ClusterRole" } else { "Role" };
        let name = &self.role.1;
        if self.namespace.is_empty() {
            format!(
                "RBAC: allowed by ClusterRoleBinding {:?} of {role} {name:?} to {subject}",
                self.name
            )
        } else {
            let full = format!("{}/{}", self.name, self.namespace);
            format!("RBAC: allowed by RoleBinding {full:?} of {role} {name:?} to {subject}")
        }
    }
}

/// All roles and bindings at one time.
#[derive(Debug, Default)]
pub struct Tables {
    cluster_roles: HashMap<String, Vec<Rule>>,
    /// By namespace and name.
    roles: HashMap<(String, String), Vec<Rule>>,
    cluster_bindings: Vec<Binding>,
    /// By namespace.
    bindings: HashMap<String, Vec<Binding>>,
}

impl Tables {
    fn load(objects: &Objects) -> Result<Self, rkube_api::status::Status> {
        let mut tables = Self::default();
        let name = |object: &Value| object["metadata"]["name"].as_str().unwrap_or("").to_owned();
        let namespace = |object: &Value| {
            let namespace = object["metadata"]["namespace"].as_str();
            namespace.unwrap_or("").to_owned()
        };
        let cluster_roles = objects.list(GROUP, "clusterroles", "")?;
        for role in &cluster_roles {
            let rules = match aggregated(role, &cluster_roles) {
                Some(rules) => rules,
                None => Rule::list(&role["rules"]),
            };
            tables.cluster_roles.insert(name(role), rules);
        }
        for role in objects.list(GROUP, "roles", "")? {
            let key = (namespace(&role), name(&role));
            tables.roles.insert(key, Rule::list(&role["rules"]));
        }
        for binding in objects.list(GROUP, "clusterrolebindings", "")? {
            tables.cluster_bindings.push(Binding::from_value(&binding));
        }
        for binding in objects.list(GROUP, "rolebindings", "")? {
            let own = tables.bindings.entry(namespace(&binding)).or_default();
            own.push(Binding::from_value(&binding));
        }
        Ok(tables)
    }

    /// The bindings that hold in a namespace ("": cluster-wide only) for a
    /// user, with the subject that the user is and the rules.
    fn held<'a>(
        &'a self,
        user: &'a User,
        namespace: &str,
    ) -> impl Iterator<Item = (&'a Binding, &'a Subject, &'a [Rule])> {
        let own = self.bindings.get(namespace).map_or(&[][..], Vec::as_slice);
        self.cluster_bindings
            .iter()
            .chain(own)
            .filter_map(|binding| {
                let subject = binding.subjects.iter().find(|s| s.is(user))?;
                Some((binding, subject, self.rules_of(binding)?))
            })
    }

    fn rules_of(&self, binding: &Binding) -> Option<&[Rule]> {
        self.role(binding.role.0, &binding.namespace, &binding.role.1)
    }

    /// The rules of a role.
    #[must_use]
    pub fn role(&self, is_cluster: bool, namespace: &str, name: &str) -> Option<&[Rule]> {
        if is_cluster {
            return self.cluster_roles.get(name).map(Vec::as_slice);
        }
        let key = (namespace.to_owned(), name.to_owned());
        self.roles.get(&key).map(Vec::as_slice)
    }

    /// All rules that hold for a user in a namespace.
    #[must_use]
    pub fn rules(&self, user: &User, namespace: &str) -> Vec<Rule> {
        let held = self.held(user, namespace);
        held.flat_map(|(_, _, rules)| rules.iter().cloned())
            .collect()
    }
}

/// The rules that a ClusterRole takes from others, if it does.
fn aggregated(role: &Value, all: &[Value]) -> Option<Vec<Rule>> {
    let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array()?;
    let selectors: Vec<LabelSelector> = selectors
        .iter()
        .filter_map(|selector| LabelSelector::from_value(selector).ok())
        .collect();
    let mut rules = Vec::new();
    let own = &role["metadata"]["name"];
    for other in all.iter().filter(|other| other["metadata"]["name"] != *own) {
        let labels = other["metadata"]["labels"].as_object();
        if !selectors.iter().any(|selector| selector.matches(labels)) {
            continue;
        }
        // One that itself takes from others gives what it takes.
        let theirs = aggregated_once(other, all).unwrap_or_else(|| Rule::list(&other["rules"]));
        for rule in theirs {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
    }
    Some(rules)
}

/// As [`aggregated`], but deeper chains are cut: what they take is in their
/// stored rules.
fn aggregated_once(role: &Value, all: &[Value]) -> Option<Vec<Rule>> {
    let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array()?;
    let selectors: Vec<LabelSelector> = selectors
        .iter()
        .filter_map(|selector| LabelSelector::from_value(selector).ok())
        .collect();
    let labels = |other: &Value| {
        let labels = other["metadata"]["labels"].as_object();
        selectors.iter().any(|selector| selector.matches(labels))
    };
    let theirs = all.iter().filter(|other| labels(other));
    Some(
        theirs
            .flat_map(|other| Rule::list(&other["rules"]))
            .collect(),
    )
}

struct State {
    watchers: Vec<Watcher>,
    tables: Arc<Tables>,
}

/// The authorizer of roles.
pub struct Rbac {
    objects: Objects,
    state: Mutex<Option<State>>,
}

impl fmt::Debug for Rbac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rbac").finish_non_exhaustive()
    }
}

impl Rbac {
    /// Over the roles and bindings in a store.
    #[must_use]
    pub const fn new(objects: Objects) -> Self {
        Self {
            objects,
            state: Mutex::new(None),
        }
    }

    /// The tables as of now. A store that does not answer gives empty ones:
    /// nobody may anything then.
    #[must_use]
    pub fn tables(&self) -> Arc<Tables> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = state.as_mut() {
            match Self::has_news(&mut state.watchers) {
                Ok(false) => return Arc::clone(&state.tables),
                Ok(true) => match Tables::load(&self.objects) {
                    Ok(tables) => {
                        state.tables = Arc::new(tables);
                        return Arc::clone(&state.tables);
                    }
                    Err(status) => tracing::error!(error = status.message, "read roles"),
                },
                Err(error) => tracing::debug!(%error, "follow roles anew"),
            }
        }
        *state = None;
        match self.follow() {
            Ok(new) => {
                let tables = Arc::clone(&new.tables);
                *state = Some(new);
                tables
            }
            Err(error) => {
                tracing::error!(error, "read roles");
                Arc::new(Tables::default())
            }
        }
    }

    fn follow(&self) -> Result<State, String> {
        let store = self.objects.store();
        let after = store.revision();
        let mut watchers = Vec::new();
        for plural in PLURALS {
            let resource =
                rkube_api::resources::preferred(GROUP, plural).ok_or("no such resource")?;
            let prefix = objects::prefix(resource, "");
            let watcher = store.watch(prefix.as_bytes(), after);
            watchers.push(watcher.map_err(|e| e.to_string())?);
        }
        let tables = Tables::load(&self.objects).map_err(|status| status.message)?;
        Ok(State {
            watchers,
            tables: Arc::new(tables),
        })
    }

    fn has_news(watchers: &mut [Watcher]) -> Result<bool, rkube_store::StoreError> {
        let mut news = false;
        for watcher in watchers {
            while watcher.wait(Duration::ZERO)?.is_some() {
                news = true;
            }
        }
        Ok(news)
    }
}

impl Authorize for Rbac {
    fn authorize(&self, access: &Access<'_>) -> Decision {
        let tables = self.tables();
        let namespace = match access.target {
            Target::Resource { namespace, .. } => namespace,
            Target::Path(_) => "",
        };
        for (binding, subject, rules) in tables.held(access.user, namespace) {
            if rules
                .iter()
                .any(|rule| rule.allows(access.verb, &access.target))
            {
                return Decision::Allow(binding.reason(subject));
            }
        }
        Decision::NoOpinion(String::new())
    }
}
