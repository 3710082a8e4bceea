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

    /// Whether a pod bound to `node` uses a claim that is bound to a volume.
    fn is_used_volume(&self, node: &str, volume: &str) -> bool {
        let claims = self.objects.list("", "persistentvolumeclaims", "");
        let claims = claims.unwrap_or_default();
        let mut bound = claims.iter().filter(|c| c["spec"]["volumeName"] == *volume);
        bound.any(|claim| {
            let text = |field: &str| claim["metadata"][field].as_str().unwrap_or_default();
            self.is_used(node, text("namespace"), |pod| uses_claim(pod, text("name")))
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
        match (plural, subresource) {
            ("persistentvolumes", "") => self.is_used_volume(node, name),
            ("resourceclaims", "") => self.is_used(node, namespace, |pod| takes(pod, name)),
            ("volumeattachments", "") => self.is_of_node(node, "storage.k8s.io", plural, name),
            ("resourceslices", "") => self.is_of_node(node, "resource.k8s.io", plural, name),
            ("secrets", "") => self.is_used(node, namespace, |pod| uses_secret(pod, name)),
            ("configmaps", "") => self.is_used(node, namespace, |pod| uses_config_map(pod, name)),
            ("persistentvolumeclaims", "" | "status") => {
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

/// Whether a pod takes devices by a claim, its own or one made from its template.
fn takes(pod: &Value, name: &str) -> bool {
    list(&pod["spec"], "resourceClaims")
        .chain(list(&pod["status"], "resourceClaimStatuses"))
        .any(|claim| claim["resourceClaimName"] == *name)
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
