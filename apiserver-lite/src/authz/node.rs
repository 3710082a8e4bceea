//! The Node authorizer: a kubelet may read what the pods bound to its node
//! need, and nothing else of its kind
//! (`k8s.io/kubernetes/plugin/pkg/auth/authorizer/node`).

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
    uses: Uses,
    rules: Vec<Rule>,
}

impl NodeAuthorizer {
    /// Over the pods in a store.
    #[must_use]
    pub fn new(objects: Objects) -> Self {
        let rules = defaults::cluster_role("system:node").unwrap_or_default();
        Self {
            uses: Uses::new(objects),
            rules,
        }
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
            ("secrets", "") => Kind::Secret,
            ("configmaps", "") => Kind::ConfigMap,
            ("persistentvolumeclaims", "") => Kind::Claim,
            ("serviceaccounts", "token" | "") => Kind::Account,
            _ => return false,
        };
        self.uses.has(node, namespace, kind, name)
    }
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
            match (group, resource) {
                ("", "secrets" | "configmaps" | "persistentvolumeclaims" | "serviceaccounts") => {
                    let verbs: &[&str] = match (resource, subresource) {
                        ("serviceaccounts", "token") => &["create"],
                        ("serviceaccounts", "") => &["get"],
                        ("secrets" | "configmaps", "") => &["get", "list", "watch"],
                        ("persistentvolumeclaims", "") => &["get"],
                        _ => &[],
                    };
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
