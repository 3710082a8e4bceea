//! The Node authorizer: a kubelet may read what the pods bound to its node
//! need, and nothing else of its kind
//! (`k8s.io/kubernetes/plugin/pkg/auth/authorizer/node`).

use serde_json::Value;

use super::defaults;
use super::rules::Rule;
use super::uses::{Kind, Uses};
use crate::auth::{Access, Authorize, Decision, Target};
use crate::objects::Objects;
use crate::request::User;
use rkube_pki::csr::{GROUP_NODES, NODE_USER_PREFIX};

/// The namespace of the nodes' leases.
pub const LEASE_NAMESPACE: &str = "kube-node-lease";

/// The node that a user is, if it is one.
#[must_use]
pub fn node_of(user: &User) -> Option<&str> {
    let name = user.name.strip_prefix(NODE_USER_PREFIX)?;
    (user.in_group(GROUP_NODES) && !name.is_empty()).then_some(name)
}

/// Decides about nodes.
#[derive(Debug)]
pub struct NodeAuthorizer {
    objects: Objects,
    uses: Uses,
    rules: Vec<Rule>,
}

impl NodeAuthorizer {
    /// Over the pods in a store.
    #[must_use]
    pub fn new(objects: Objects) -> Self {
        let rules = defaults::cluster_role("system:node").unwrap_or_default();
        Self {
            uses: Uses::new(objects.clone()),
            objects,
            rules,
        }
    }

    /// Whether a pod bound to `node` uses a claim that is bound to a volume.
    fn is_used_volume(&self, node: &str, volume: &str) -> bool {
        let field = format!("\"volumeName\":{}", Value::from(volume));
        let claims = self
            .objects
            .list_with("", "persistentvolumeclaims", "", field.as_bytes());
        let claims = claims.unwrap_or_default();
        let mut bound = claims.iter().filter(|c| c["spec"]["volumeName"] == *volume);
        bound.any(|claim| {
            let text = |field: &str| claim["metadata"][field].as_str().unwrap_or_default();
            self.uses
                .has(node, text("namespace"), Kind::Claim, text("name"))
        })
    }

    /// Whether an object without a namespace says that it is about `node`.
    fn is_of_node(&self, node: &str, group: &str, plural: &str, name: &str) -> bool {
        let found = self.objects.find(group, plural, "", name);
        matches!(found, Ok(Some(object)) if object["spec"]["nodeName"] == *node)
    }

    fn related(
        &self,
        node: &str,
        plural: &str,
        subresource: &str,
        namespace: &str,
        name: &str,
    ) -> bool {
        if name.is_empty() {
            return false;
        }
        let kind = match (plural, subresource) {
            ("persistentvolumes", "") => return self.is_used_volume(node, name),
            ("volumeattachments", "") => {
                return self.is_of_node(node, "storage.k8s.io", plural, name);
            }
            ("resourceslices", "") => {
                return self.is_of_node(node, "resource.k8s.io", plural, name);
            }
            ("resourceclaims", "") => Kind::Devices,
            ("secrets", "") => Kind::Secret,
            ("configmaps", "") => Kind::ConfigMap,
            ("persistentvolumeclaims", "" | "status") => Kind::Claim,
            ("serviceaccounts", "token" | "") => Kind::Account,
            _ => return false,
        };
        self.uses.has(node, namespace, kind, name)
    }
}

/// What a node may do with objects that its pods use, or that are about itself.
fn verbs(group: &str, resource: &str, subresource: &str) -> Option<&'static [&'static str]> {
    Some(match (group, resource, subresource) {
        ("", "serviceaccounts", "token") => &["create"],
        ("", "secrets" | "configmaps", "") => &["get", "list", "watch"],
        ("", "persistentvolumeclaims", "status") => &["update", "patch"],
        ("", "serviceaccounts" | "persistentvolumeclaims" | "persistentvolumes", "")
        | ("resource.k8s.io", "resourceclaims", "")
        | ("storage.k8s.io", "volumeattachments", "") => &["get"],
        ("resource.k8s.io", "resourceslices", "") => &["get", "update", "patch", "delete"],
        (
            "",
            "secrets"
            | "configmaps"
            | "serviceaccounts"
            | "persistentvolumeclaims"
            | "persistentvolumes",
            _,
        )
        | ("resource.k8s.io", "resourceclaims" | "resourceslices", _)
        | ("storage.k8s.io", "volumeattachments", _) => &[],
        _ => return None,
    })
}

impl Authorize for NodeAuthorizer {
    fn authorize(&self, access: &Access<'_>) -> Decision {
        let Some(node) = node_of(access.user) else {
            return Decision::NoOpinion(String::new());
        };
        let none = |why: String| Decision::NoOpinion(why);
        if let Target::Resource {
            group,
            resource,
            subresource,
            namespace,
            name,
            ..
        } = access.target
        {
            // Lists of slices, and new ones, are for the static rules and for NodeRestriction.
            let is_of_all = resource == "resourceslices"
                && matches!(
                    access.verb,
                    "create" | "list" | "watch" | "deletecollection"
                );
            if let Some(verbs) = verbs(group, resource, subresource).filter(|_| !is_of_all) {
                if !verbs.contains(&access.verb) {
                    return none(format!("node may not {} {resource}", access.verb));
                }
                if self.related(node, resource, subresource, namespace, name) {
                    return Decision::Allow(String::new());
                }
                return none(format!(
                    "no relationship found between node '{node}' and this object"
                ));
            }
            match (group, resource) {
                ("storage.k8s.io", "csinodes") => {
                    let is_own = name == node || (name.is_empty() && access.verb == "create");
                    let verbs = ["get", "create", "update", "patch", "delete"];
                    if is_own && verbs.contains(&access.verb) {
                        return Decision::Allow(String::new());
                    }
                    return none(
                        "can only access CSINode with the same name as the requesting node"
                            .to_owned(),
                    );
                }
                ("coordination.k8s.io", "leases") => {
                    let is_own = namespace == LEASE_NAMESPACE
                        && (name == node || (name.is_empty() && access.verb == "create"));
                    let verbs = ["get", "create", "update", "patch", "delete"];
                    if is_own && verbs.contains(&access.verb) {
                        return Decision::Allow(String::new());
                    }
                    return none(format!(
                        "can only access node lease with the same name as the requesting node in {LEASE_NAMESPACE}"
                    ));
                }
                _ => {}
            }
        }
        if self
            .rules
            .iter()
            .any(|rule| rule.allows(access.verb, &access.target))
        {
            return Decision::Allow(String::new());
        }
        none(String::new())
    }
}
