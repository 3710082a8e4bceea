//! Namespaces, nodes, accounts, events, leases, roles, priority classes and
//! revisions: what their rules say.

use serde_json::{Value, json};

use super::{Rules, rules};

fn of(group: &str, kind: &str) -> &'static Rules {
    rules(group, kind).unwrap()
}

/// The errors of a defaulted object, as sentences.
fn broken(group: &str, kind: &str, object: &Value) -> Vec<String> {
    let rules = of(group, kind);
    let mut object = object.clone();
    (rules.default)(&mut object);
    let errors = (rules.validate)(&object);
    errors.iter().map(ToString::to_string).collect()
}

const RBAC: &str = "rbac.authorization.k8s.io";

#[test]
fn namespaces() {
    let rules = of("", "Namespace");
    let mut object = json!({"metadata": {"name": "a"}});
    (rules.default)(&mut object);
    (rules.prepare_create)(&mut object);
    assert_eq!(
        object,
        json!({"metadata": {"name": "a", "labels": {"kubernetes.io/metadata.name": "a"}},
               "spec": {"finalizers": ["kubernetes"]}})
    );
    assert!((rules.validate)(&object).is_empty());
    let mut changed = json!({"metadata": {"name": "a"}, "spec": {}});
    (rules.prepare_update)(&mut changed, &object);
    assert_eq!(changed, object);
    assert_eq!(
        broken("", "Namespace", &json!({"metadata": {"name": "a.b"}})).len(),
        1
    );
    let odd = json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["other"]}});
    assert_eq!(
        broken("", "Namespace", &odd),
        [
            "spec.finalizers: Invalid value: \"other\": name is neither a standard finalizer name nor is it fully qualified"
        ]
    );
}

#[test]
fn nodes() {
    let rules = of("", "Node");
    let mut node = json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.0.0.0/24"}, "status": {"capacity": {"cpu": "1"}}});
    (rules.default)(&mut node);
    assert_eq!(node["spec"]["podCIDRs"], json!(["10.0.0.0/24"]));
    assert_eq!(node["status"]["allocatable"], json!({"cpu": "1"}));
    let taint = |key: &str, effect: &str| json!({"key": key, "effect": effect});
    let bad = json!({"metadata": {"name": "n"}, "spec": {
        "taints": [taint("a", "NoSchedule"), taint("a", "NoSchedule"), taint("b", "Never")],
        "podCIDRs": ["10.0.0.0/24", "10.0.1.0/24"],
    }});
    let errors = broken("", "Node", &bad);
    assert_eq!(errors.len(), 3, "{errors:?}");
    assert!(
        errors[0].starts_with("metadata.taints[1]: Duplicate value"),
        "{errors:?}"
    );
    assert!(
        errors[1].contains("supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"")
    );
    assert!(errors[2].contains("no more than one CIDR for each IP family"));
    let mut other = node.clone();
    other["spec"]["podCIDRs"] = json!(["10.0.9.0/24"]);
    let errors = (rules.validate_update)(&other, &node);
    assert_eq!(
        errors[0].to_string(),
        "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"
    );
    assert!((rules.validate_update)(&node, &json!({"spec": {}})).is_empty());
}

#[test]
fn accounts_keep_names_of_secrets() {
    let rules = of("", "ServiceAccount");
    let mut account = json!({"metadata": {"name": "a", "namespace": "n"}, "secrets": [{"name": "s", "uid": "x"}]});
    (rules.prepare_create)(&mut account);
    assert_eq!(account["secrets"], json!([{"name": "s"}]));
    assert!((rules.validate)(&account).is_empty());
}

#[test]
fn events() {
    let event = |namespace: &str, about: &str| {
        json!({
            "metadata": {"name": "e.1", "namespace": namespace}, "involvedObject": {"namespace": about},
        })
    };
    assert!(broken("", "Event", &event("a", "a")).is_empty());
    assert!(broken("", "Event", &event("default", "")).is_empty());
    assert_eq!(
        broken("", "Event", &event("a", "b")),
        ["involvedObject.namespace: Invalid value: \"b\": does not match event.namespace"]
    );
    let mut modern = event("a", "a");
    modern["eventTime"] = "2030-01-01T00:00:00.000000Z".into();
    // The controller is missing and, as upstream says it, no qualified name either.
    assert_eq!(broken("", "Event", &modern).len(), 6);
    for field in [
        "reportingComponent",
        "reportingInstance",
        "action",
        "reason",
    ] {
        modern[field] = "word".into();
    }
    assert!(broken("", "Event", &modern).is_empty());
    modern["reason"] = "x".repeat(129).into();
    assert_eq!(broken("", "Event", &modern).len(), 1);
}

#[test]
fn leases_classes_and_revisions() {
    let meta = json!({"name": "a", "namespace": "n"});
    let lease =
        json!({"metadata": meta, "spec": {"leaseDurationSeconds": 0, "leaseTransitions": -1}});
    assert_eq!(
        broken("coordination.k8s.io", "Lease", &lease),
        [
            "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
            "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0"
        ]
    );
    let class = |name: &str, value: i64| json!({"metadata": {"name": name}, "value": value});
    const SCHEDULING: &str = "scheduling.k8s.io";
    let check = |name: &str, value| broken(SCHEDULING, "PriorityClass", &class(name, value));
    assert!(check("a", 1_000_000_000).is_empty());
    assert!(check("system-node-critical", 2_000_001_000).is_empty());
    assert_eq!(
        check("a", 1_000_000_001),
        ["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"]
    );
    assert_eq!(
        check("system-x", 1),
        [
            "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: system-x is not a known system priority class"
        ]
    );
    let changed = (of(SCHEDULING, "PriorityClass").validate_update)(&class("a", 2), &class("a", 1));
    assert_eq!(
        changed[0].to_string(),
        "Value: Forbidden: may not be changed in an update."
    );

    let revision = json!({"metadata": meta, "revision": -1});
    assert_eq!(broken("apps", "ControllerRevision", &revision).len(), 2);
    let data = |text: &str| json!({"metadata": meta, "data": {"a": text}, "revision": 1});
    let update = of("apps", "ControllerRevision").validate_update;
    assert!(update(&data("x"), &data("x")).is_empty());
    assert_eq!(update(&data("x"), &data("y")).len(), 1);
}

#[test]
fn roles_and_bindings() {
    let role =
        |rule: Value| json!({"metadata": {"name": "system:a", "namespace": "n"}, "rules": [rule]});
    let whole = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]});
    assert!(broken(RBAC, "Role", &role(whole)).is_empty());
    assert_eq!(
        broken(RBAC, "Role", &role(json!({}))),
        [
            "rules[0].verbs: Required value: verbs must contain at least one value",
            "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
            "rules[0].resources: Required value: resource rules must supply at least one resource"
        ]
    );
    let url = json!({"verbs": ["get"], "nonResourceURLs": ["/x"]});
    assert_eq!(broken(RBAC, "Role", &role(url)).len(), 1);
    let takes = json!({"metadata": {"name": "a"}, "aggregationRule": {}});
    assert_eq!(broken(RBAC, "ClusterRole", &takes).len(), 1);
    assert_eq!(
        broken(RBAC, "ClusterRole", &json!({"metadata": {"name": "a/b"}})).len(),
        1
    );

    let binding = |role: &str, subject: Value| {
        json!({
            "metadata": {"name": "b"}, "roleRef": {"kind": role, "name": "r"}, "subjects": [subject],
        })
    };
    let user = json!({"kind": "User", "name": "eve"});
    let check = |object: &Value| broken(RBAC, "ClusterRoleBinding", object);
    assert!(check(&binding("ClusterRole", user.clone())).is_empty());
    assert_eq!(
        check(&binding("Role", user.clone())),
        ["roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\""]
    );
    assert_eq!(
        check(&binding(
            "ClusterRole",
            json!({"kind": "ServiceAccount", "name": "s"})
        ))
        .len(),
        1
    );
    assert_eq!(
        check(&binding(
            "ClusterRole",
            json!({"kind": "Robot", "name": "s"})
        ))
        .len(),
        1
    );
    let update = of(RBAC, "ClusterRoleBinding").validate_update;
    let changed = update(
        &binding("ClusterRole", user.clone()),
        &binding("Role", user),
    );
    assert!(
        changed[0].to_string().ends_with("cannot change roleRef"),
        "{changed:?}"
    );
}
