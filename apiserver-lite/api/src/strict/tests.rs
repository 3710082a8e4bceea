use super::*;
use crate::decode::documents;
use crate::types::by_kind;

/// Checks a manifest and returns its errors with their places.
fn places(text: &str) -> Vec<String> {
    let docs = documents(text.as_bytes(), "pod.yaml").unwrap();
    docs.iter()
        .flat_map(|doc| {
            let ty = by_kind(&doc.api_version, &doc.kind).unwrap();
            check(&doc.value, ty)
                .into_iter()
                .map(|e| doc.place(e).to_string())
        })
        .collect()
}

#[test]
fn errors_name_file_document_line_and_path() {
    let text = "apiVersion: v1\nkind: ConfigMap\n---\napiVersion: v1\nkind: Pod\nspec:\n  containers:\n  \
                - name: a\n    imagePulPolicy: Always\n    ports:\n    - containerPort: http\n      hostport: 1\n";
    assert_eq!(
        places(text),
        [
            "pod.yaml: document 2, line 9: spec.containers[0].imagePulPolicy: unknown field; did you mean imagePullPolicy?",
            "pod.yaml: document 2, line 11: spec.containers[0].ports[0].containerPort: Invalid value: \"http\": must be an integer, not a string",
            "pod.yaml: document 2, line 12: spec.containers[0].ports[0].hostport: unknown field; did you mean hostPort?",
        ]
    );
}

#[test]
fn misplaced_fields_are_told_where_they_belong() {
    let text = "apiVersion: v1\nkind: Pod\nrestartPolicy: Never\nspec:\n  image: x\n  containers:\n  \
                - name: a\n    hostNetwork: true\n    wholly: 1\n";
    assert_eq!(
        places(text),
        [
            "pod.yaml: document 1, line 3: restartPolicy: unknown field; did you mean spec.restartPolicy?",
            "pod.yaml: document 1, line 8: spec.containers[0].hostNetwork: unknown field; did you mean spec.hostNetwork?",
            "pod.yaml: document 1, line 9: spec.containers[0].wholly: unknown field",
            "pod.yaml: document 1, line 5: spec.image: unknown field; did you mean containers[].image?",
        ]
    );
}

fn pod_errors(spec: &Value) -> Vec<String> {
    let pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "spec": spec});
    check(&pod, by_kind("v1", "Pod").unwrap())
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn values_that_do_not_fit() {
    for (spec, want) in [
        (
            serde_json::json!({"containers": {}}),
            "spec.containers: Invalid value: {}: must be a list, not an object",
        ),
        (
            serde_json::json!({"terminationGracePeriodSeconds": 1.5}),
            "spec.terminationGracePeriodSeconds: Invalid value: 1.5: must be an integer, not a fraction",
        ),
        (
            serde_json::json!({"priority": 3_000_000_000u64}),
            "spec.priority: Invalid value: 3000000000: must be between -2147483648 and 2147483647, inclusive",
        ),
        (
            serde_json::json!({"containers": [{"env": [{"name": "A", "value": true}]}]}),
            "spec.containers[0].env[0].value: Invalid value: true: must be a string, not a boolean; put it in quotes",
        ),
        (
            serde_json::json!({"containers": [{"resources": {"limits": {"cpu": "1x"}}}]}),
            "spec.containers[0].resources.limits[cpu]: Invalid value: \"1x\": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            serde_json::json!({"containers": [null]}),
            "spec.containers[0]: Invalid value: null: must be a value, not null",
        ),
        (
            serde_json::json!({"restartPolicy": "always"}),
            "spec.restartPolicy: Unsupported value: \"always\": supported values: \"Always\", \"Never\", \"OnFailure\"",
        ),
        (
            serde_json::json!({"nodeSelector": {"a": 1}}),
            "spec.nodeSelector[a]: Invalid value: 1: must be a string, not a number; put it in quotes",
        ),
    ] {
        assert_eq!(pod_errors(&spec), [want]);
    }
    assert!(pod_errors(&serde_json::json!({"containers": null, "volumes": null})).is_empty());
}

#[test]
fn base64_text() {
    assert_eq!(base64("aGk="), Some(b"hi".to_vec()));
    assert_eq!(base64("aG\nk=\r\n"), Some(b"hi".to_vec()));
    for bad in ["aGk", "a*==", "aGk==", "aGk= "] {
        assert_eq!(base64(bad), None, "{bad}");
    }
}

#[test]
fn required_fields_of_kinds_without_own_rules() {
    let role = serde_json::json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "subjects": [{"name": "x"}]});
    let ty = by_kind("rbac.authorization.k8s.io/v1", "RoleBinding").unwrap();
    let found: Vec<_> = check_required(&role, ty)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        found,
        [
            "subjects[0].kind: Required value",
            "roleRef: Required value"
        ]
    );
    assert!(check(&role, ty).is_empty());
}
