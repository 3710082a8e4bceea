//! Nobody gives away what they do not hold
//! (`k8s.io/kubernetes/pkg/registry/rbac/*/policybased`).

use std::sync::Arc;

use rkube_api::status::{Named, Status};

use super::rbac::{GROUP, Rbac};
use super::rules::{Rule, missing};
use crate::admission::{Admission, Call, Operation, Step, done};
use crate::auth::{Access, Authorize, Target};
use crate::request::GROUP_MASTERS;

/// Checks writes of roles and bindings. Upstream does it in the storage of
/// these resources; here it is the last plug-in of the chain.
#[derive(Debug)]
pub struct Escalation {
    rbac: Arc<Rbac>,
    authorize: Arc<dyn Authorize>,
}

impl Escalation {
    /// With the roles and all authorizers of a server.
    #[must_use]
    pub const fn new(rbac: Arc<Rbac>, authorize: Arc<dyn Authorize>) -> Self {
        Self { rbac, authorize }
    }

    fn check(&self, call: &Call) -> Result<(), Status> {
        if call.resource.gvk.group != GROUP || !call.subresource.is_empty() {
            return Ok(());
        }
        if call.user.in_group(GROUP_MASTERS) {
            return Ok(());
        }
        let (wanted, verb, resource, name) = match call.resource.plural {
            plural @ ("roles" | "clusterroles") => {
                let same = |field: &str| call.object[field] == call.old[field];
                if !call.old.is_null() && same("rules") && same("aggregationRule") {
                    return Ok(());
                }
                let rules = Rule::list(&call.object["rules"]);
                let takes = &call.object["aggregationRule"];
                if !takes.is_null() && *takes != call.old["aggregationRule"] {
                    // Whoever lets a role take from any other must hold all.
                    let all = |text: &str| vec![text.to_owned()];
                    let everything = Rule {
                        verbs: all("*"),
                        groups: all("*"),
                        resources: all("*"),
                        ..Rule::default()
                    };
                    let urls = Rule {
                        verbs: all("*"),
                        urls: all("*"),
                        ..Rule::default()
                    };
                    (
                        vec![everything, urls],
                        "escalate",
                        plural,
                        call.name.clone(),
                    )
                } else {
                    (rules, "escalate", plural, call.name.clone())
                }
            }
            "rolebindings" | "clusterrolebindings" => {
                let role = &call.object["roleRef"];
                let name = role["name"].as_str().unwrap_or("").to_owned();
                let is_cluster = role["kind"] == "ClusterRole";
                let same = |field: &str| call.object[field] == call.old[field];
                if !call.old.is_null() && same("roleRef") && same("subjects") {
                    return Ok(());
                }
                let tables = self.rbac.tables();
                let rules = tables.role(is_cluster, &call.namespace, &name);
                let plural = if is_cluster { "clusterroles" } else { "roles" };
                let Some(rules) = rules else {
                    // Only who may bind any role binds one that is not there.
                    if self.may(call, "bind", plural, &name) {
                        return Ok(());
                    }
                    return Err(Status::not_found(Named {
                        group: GROUP,
                        resource: plural,
                        name: &name,
                    }));
                };
                (rules.to_vec(), "bind", plural, name)
            }
            _ => return Ok(()),
        };
        if self.may(call, verb, resource, &name) {
            return Ok(());
        }
        let held = self.rbac.tables().rules(&call.user, &call.namespace);
        let missing = missing(&held, &wanted);
        if missing.is_empty() {
            return Ok(());
        }
        let groups: Vec<String> = call.user.groups.iter().map(|g| format!("{g:?}")).collect();
        let mut lines: Vec<String> = missing.iter().map(ToString::to_string).collect();
        lines.sort();
        let why = format!(
            "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
            call.user.name,
            groups.join(" "),
            lines.join("\n")
        );
        Err(Status::forbidden(
            Named {
                group: GROUP,
                resource: call.resource.plural,
                name: call.object["metadata"]["name"].as_str().unwrap_or(""),
            },
            &why,
        ))
    }

    fn may(&self, call: &Call, verb: &str, resource: &str, name: &str) -> bool {
        let access = Access {
            user: &call.user,
            verb,
            target: Target::Resource {
                group: GROUP,
                version: "v1",
                resource,
                subresource: "",
                namespace: &call.namespace,
                name,
            },
        };
        self.authorize.authorize(&access).is_allowed()
    }
}

impl Admission for Escalation {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    fn validate<'a>(&'a self, call: &'a mut Call) -> Step<'a> {
        done(self.check(call))
    }
}
