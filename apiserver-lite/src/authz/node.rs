//! The Node authorizer: a kubelet may read what the pods bound to its node
//! need, and nothing else of its kind
//! (`k8s.io/kubernetes/plugin/pkg/auth/authorizer/node`).

use serde_json::Value;

use super::defaults;
use super::rules::Rule;
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
    rules: Vec<Rule>,
}

impl NodeAuthorizer {
    /// Over the pods in a store.
    #[must_use]
    pub fn new(objects: Objects) -> Self {
        let rules = defaults::cluster_role("system:node").unwrap_or_default();
        Self { objects, rules }
    }

    /// Whether a pod bound to `node` in a namespace uses something.
    fn is_used(&self, node: &str, namespace: &str, uses: impl Fn(&Value) -> bool) -> bool {
        // A store that does not answer gives no reason to allow.
        let pods = self.objects.list("", "pods", namespace).unwrap_or_default();
        pods.iter()
            .any(|pod| pod["spec"]["nodeName"] == *node && uses(pod))
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
        match (plural, subresource) {
            ("secrets", "") => self.is_used(node, namespace, |pod| uses_secret(pod, name)),
            ("configmaps", "") => self.is_used(node, namespace, |pod| uses_config_map(pod, name)),
            ("persistentvolumeclaims", "") => {
                self.is_used(node, namespace, |pod| uses_claim(pod, name))
            }
            ("serviceaccounts", "token" | "") => self.is_used(node, namespace, |pod| {
                pod["spec"]["serviceAccountName"] == *name
            }),
            _ => false,
        }
    }
}

fn list<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value[field].as_array().into_iter().flatten()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let spec = &pod["spec"];
    list(spec, "initContainers")
        .chain(list(spec, "containers"))
        .chain(list(spec, "ephemeralContainers"))
}

fn sources(pod: &Value) -> impl Iterator<Item = &Value> {
    list(&pod["spec"], "volumes")
        .flat_map(|volume| std::iter::once(volume).chain(list(&volume["projected"], "sources")))
}

fn uses_config_map(pod: &Value, name: &str) -> bool {
    containers(pod).any(|container| {
        list(container, "envFrom").any(|from| from["configMapRef"]["name"] == *name)
            || list(container, "env")
                .any(|env| env["valueFrom"]["configMapKeyRef"]["name"] == *name)
    }) || sources(pod).any(|source| source["configMap"]["name"] == *name)
}

fn uses_secret(pod: &Value, name: &str) -> bool {
    containers(pod).any(|container| {
        list(container, "envFrom").any(|from| from["secretRef"]["name"] == *name)
            || list(container, "env").any(|env| env["valueFrom"]["secretKeyRef"]["name"] == *name)
    }) || sources(pod)
        .any(|source| source["secret"]["secretName"] == *name || source["secret"]["name"] == *name)
        || list(&pod["spec"], "imagePullSecrets").any(|secret| secret["name"] == *name)
}

fn uses_claim(pod: &Value, name: &str) -> bool {
    sources(pod).any(|source| source["persistentVolumeClaim"]["claimName"] == *name)
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
