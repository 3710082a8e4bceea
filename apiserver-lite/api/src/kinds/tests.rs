//! Defaults and rules of the kinds with pod templates.

use serde_json::{Value, json};

use super::rules;

fn template(labels: Value) -> Value {
    json!({"metadata": {"labels": labels}, "spec": {"containers": [
        {"name": "c", "image": "web", "resources": {"limits": {"cpu": "1"}}, "ports": [{"containerPort": 80}]}]}})
}

fn deployment(spec: Value) -> Value {
    let mut object = json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": {
        "selector": {"matchLabels": {"app": "web"}}, "template": template(json!({"app": "web"}))}});
    merge(&mut object["spec"], spec);
    (rules("apps", "Deployment").unwrap().default)(&mut object);
    object
}

fn merge(into: &mut Value, from: Value) {
    for (key, value) in from.as_object().unwrap() {
        into[key] = value.clone();
    }
}

fn messages(group: &str, kind: &str, object: &Value) -> Vec<String> {
    let errors = (rules(group, kind).unwrap().validate)(object);
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn defaults_of_a_deployment() {
    let object = deployment(json!({}));
    let spec = &object["spec"];
    assert_eq!(
        (
            &spec["replicas"],
            &spec["revisionHistoryLimit"],
            &spec["progressDeadlineSeconds"]
        ),
        (&json!(1), &json!(10), &json!(600))
    );
    assert_eq!(
        spec["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
    );
    let pod = &spec["template"]["spec"];
    assert_eq!(pod["restartPolicy"], "Always");
    assert_eq!(pod["containers"][0]["ports"][0]["protocol"], "TCP");
    assert_eq!(pod["containers"][0]["imagePullPolicy"], "Always");
    // Only pods get these.
    assert!(pod.get("enableServiceLinks").is_none());
    assert!(pod["containers"][0]["resources"].get("requests").is_none());
    assert!(messages("apps", "Deployment", &object).is_empty());
    let recreate = deployment(json!({"strategy": {"type": "Recreate"}}));
    assert_eq!(recreate["spec"]["strategy"], json!({"type": "Recreate"}));
}

#[test]
fn rules_of_a_deployment() {
    for (spec, expected) in [
        (
            json!({"replicas": -1}),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            json!({"selector": {}}),
            "spec.selector: Invalid value: {}: empty selector is invalid for deployment",
        ),
        (
            json!({"selector": {"matchLabels": {"app": "other"}}}),
            "spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`",
        ),
        (
            json!({"strategy": {"type": "Recreate", "rollingUpdate": {}}}),
            "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
        ),
        (
            json!({"strategy": {"type": "x"}}),
            "spec.strategy: Unsupported value: {\"RollingUpdate\":null,\"Type\":\"x\"}: supported values: \"Recreate\", \"RollingUpdate\"",
        ),
        (
            json!({"strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": "0%"}}}),
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
        ),
        (
            json!({"strategy": {"rollingUpdate": {"maxUnavailable": "101%"}}}),
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%",
        ),
        (
            json!({"minReadySeconds": 600}),
            "spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds",
        ),
    ] {
        let object = deployment(spec);
        assert_eq!(messages("apps", "Deployment", &object), [expected]);
    }
    // An absent selector matches nothing, so upstream tells both.
    let none = messages("apps", "Deployment", &deployment(json!({"selector": null})));
    assert_eq!(none[0], "spec.selector: Required value");
    assert!(none[1].ends_with("`selector` does not match template `labels`"));
    let (old, new) = (
        deployment(json!({})),
        deployment(json!({"selector": {"matchLabels": {"a": "b"}}})),
    );
    let errors = (rules("apps", "Deployment").unwrap().validate_update)(&new, &old);
    assert_eq!(errors.len(), 1);
    assert!(errors[0].to_string().ends_with("field is immutable"));
}

#[test]
fn a_controller_takes_selector_and_labels_from_its_template() {
    let rules_of = rules("", "ReplicationController").unwrap();
    let mut object = json!({"metadata": {"name": "rc", "namespace": "ns"}, "spec": {
        "template": template(json!({"a": "b"}))}});
    (rules_of.default)(&mut object);
    assert_eq!(object["spec"]["selector"], json!({"a": "b"}));
    assert_eq!(object["metadata"]["labels"], json!({"a": "b"}));
    assert_eq!(object["spec"]["replicas"], 1);
    assert!(messages("", "ReplicationController", &object).is_empty());
    object["spec"]["selector"] = json!({});
    assert_eq!(
        messages("", "ReplicationController", &object),
        ["spec.selector: Required value"]
    );
}

fn job(spec: Value) -> Value {
    let mut object = json!({"metadata": {"name": "j", "namespace": "ns", "uid": "u1"}, "spec": {
        "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]}}}});
    merge(&mut object["spec"], spec);
    let rules = rules("batch", "Job").unwrap();
    (rules.default)(&mut object);
    (rules.prepare_create)(&mut object);
    object
}

#[test]
fn a_job_gets_its_selector() {
    let object = job(json!({}));
    let spec = &object["spec"];
    assert_eq!(
        spec["selector"],
        json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u1"}})
    );
    let labels = json!({"job-name": "j", "batch.kubernetes.io/job-name": "j",
        "controller-uid": "u1", "batch.kubernetes.io/controller-uid": "u1"});
    assert_eq!(spec["template"]["metadata"]["labels"], labels);
    assert_eq!(object["metadata"]["labels"], labels);
    for (name, value) in [
        ("completions", json!(1)),
        ("parallelism", json!(1)),
        ("backoffLimit", json!(6)),
        ("completionMode", json!("NonIndexed")),
        ("suspend", json!(false)),
        ("podReplacementPolicy", json!("TerminatingOrFailed")),
        ("manualSelector", json!(false)),
    ] {
        assert_eq!(spec[name], value, "{name}");
    }
    assert!(messages("batch", "Job", &object).is_empty());
    // Labels that are the template's own are those of the template ever after.
    let own = json!({"metadata": {"labels": {"a": "b"}}});
    let shared = job(json!({"template": own.clone()}));
    let all = &shared["spec"]["template"]["metadata"]["labels"];
    assert_eq!(all.as_object().unwrap().len(), 5);
    assert_eq!(shared["metadata"]["labels"], *all);
    // A work queue: completions stay open.
    let queue = job(json!({"parallelism": 3}));
    assert!(queue["spec"].get("completions").is_none());
}

#[test]
fn rules_of_a_job() {
    let always = json!({"template": {"spec": {"containers": [{"name": "c", "image": "x"}]}}});
    assert_eq!(
        messages("batch", "Job", &job(always)),
        [
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""
        ]
    );
    assert_eq!(
        messages(
            "batch",
            "Job",
            &job(json!({"completionMode": "Indexed", "parallelism": 1}))
        ),
        ["spec.completions: Required value: when completion mode is Indexed"]
    );
    let update = rules("batch", "Job").unwrap().validate_update;
    let old = job(json!({"suspend": true}));
    let mut new = old.clone();
    new["spec"]["parallelism"] = json!(4);
    new["spec"]["template"]["spec"]["nodeSelector"] = json!({"a": "b"});
    assert!(
        update(&new, &old).is_empty(),
        "a suspended Job may be moved"
    );
    new["spec"]["template"]["spec"]["containers"][0]["image"] = json!("y");
    assert_eq!(update(&new, &old).len(), 1);
    let (old, mut new) = (job(json!({})), job(json!({})));
    new["spec"]["completions"] = json!(2);
    new["spec"]["template"]["spec"]["nodeSelector"] = json!({"a": "b"});
    assert_eq!(update(&new, &old).len(), 2);
}

#[test]
fn rules_of_a_disruption_budget() {
    let of = |spec: Value| {
        let object = json!({"metadata": {"name": "b", "namespace": "ns"}, "spec": spec});
        messages("policy", "PodDisruptionBudget", &object)
    };
    assert!(of(json!({"minAvailable": "50%", "selector": {}})).is_empty());
    assert!(of(json!({"minAvailable": 1, "maxUnavailable": 1}))[0].contains("cannot be both set"));
    assert_eq!(
        of(json!({"maxUnavailable": "120%"})),
        ["spec.maxUnavailable: Invalid value: \"120%\": must not be greater than 100%"]
    );
    assert!(of(json!({"minAvailable": "x"}))[0].contains("a valid percent string"));
    assert_eq!(
        of(json!({"unhealthyPodEvictionPolicy": "x"})),
        [
            "spec.unhealthyPodEvictionPolicy: Unsupported value: \"x\": supported values: \"AlwaysAllow\", \"IfHealthyBudget\""
        ]
    );
}
