use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::types::{Type, by_kind, by_name};

fn pod_type() -> &'static Type {
    by_kind("v1", "Pod").unwrap()
}

#[track_caller]
fn smp(ty: &str, object: Value, patch: Value, want: &Value) {
    let got = strategic(object, patch, by_name(ty).unwrap()).unwrap();
    assert_eq!(&got, want, "{got:#}");
}

const SPEC: &str = "api.core.v1.PodSpec";

#[test]
fn rfc_7386_examples() {
    for (object, patch, want) in [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (
            json!({"a": "b"}),
            json!({"b": "c"}),
            json!({"a": "b", "b": "c"}),
        ),
        (json!({"a": "b"}), json!({"a": null}), json!({})),
        (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
        (
            json!({"a": {"b": "c"}}),
            json!({"a": {"b": "d", "c": null}}),
            json!({"a": {"b": "d"}}),
        ),
        (
            json!({"a": [{"b": "c"}]}),
            json!({"a": [1]}),
            json!({"a": [1]}),
        ),
        (
            json!({"e": null}),
            json!({"a": 1}),
            json!({"e": null, "a": 1}),
        ),
        (
            json!([1, 2]),
            json!({"a": "b", "c": null}),
            json!({"a": "b"}),
        ),
        (
            json!({}),
            json!({"a": {"bb": {"ccc": null}}}),
            json!({"a": {"bb": {}}}),
        ),
    ] {
        assert_eq!(merge(object, patch), Ok(want));
    }
    assert!(merge(json!({}), json!([1])).is_err());
}

#[test]
fn rfc_6902_examples() {
    for (object, patch, want) in [
        (
            json!({"a": 1}),
            json!([{"op": "add", "path": "/b", "value": 2}]),
            json!({"a": 1, "b": 2}),
        ),
        (
            json!([1, 3]),
            json!([{"op": "add", "path": "/1", "value": 2}]),
            json!([1, 2, 3]),
        ),
        (
            json!([1]),
            json!([{"op": "add", "path": "/-", "value": [2]}]),
            json!([1, [2]]),
        ),
        (
            json!({"a": 1, "b": 2}),
            json!([{"op": "remove", "path": "/b"}]),
            json!({"a": 1}),
        ),
        (
            json!({"a/b": 1, "m~n": 2}),
            json!([{"op": "replace", "path": "/a~1b", "value": 3}, {"op": "remove", "path": "/m~0n"}]),
            json!({"a/b": 3}),
        ),
        (
            json!({"a": {}}),
            json!([{"op": "replace", "path": "/a/x", "value": 1}]),
            json!({"a": {"x": 1}}),
        ),
        (
            json!({"a": {"x": 1}, "b": {}}),
            json!([{"op": "move", "from": "/a/x", "path": "/b/y"}]),
            json!({"a": {}, "b": {"y": 1}}),
        ),
        (
            json!({"a": {"x": 1}}),
            json!([{"op": "copy", "from": "/a", "path": "/b"}]),
            json!({"a": {"x": 1}, "b": {"x": 1}}),
        ),
        (
            json!({"a": 1}),
            json!([{"op": "test", "path": "/a", "value": 1.0}]),
            json!({"a": 1}),
        ),
    ] {
        assert_eq!(json(object, &patch), Ok(want), "{patch}");
    }
}

#[test]
fn json_patches_that_do_not_apply() {
    let object = || json!({"a": 1, "l": [1]});
    for (patch, unprocessable) in [
        (json!({"op": "add"}), false),
        (json!([{"op": "add", "path": "/a"}]), false),
        (json!([{"op": "frob", "path": "/a", "value": 1}]), true),
        (json!([{"op": "add", "path": "a", "value": 1}]), true),
        (json!([{"op": "move", "from": "/l", "path": "/l/0"}]), false),
        (json!([{"op": "remove", "path": "/x"}]), true),
        (json!([{"op": "remove", "path": ""}]), true),
        (json!([{"op": "replace", "path": "", "value": {}}]), true),
        (json!([{"op": "replace", "path": "/l/1", "value": 1}]), true),
        (json!([{"op": "replace", "path": "/x/y", "value": 1}]), true),
        (json!([{"op": "add", "path": "/l/2", "value": 1}]), true),
        (json!([{"op": "add", "path": "/l/01", "value": 1}]), true),
        (json!([{"op": "add", "path": "/x/y", "value": 1}]), true),
        (json!([{"op": "test", "path": "/a", "value": 2}]), true),
    ] {
        let error = json(object(), &patch).unwrap_err();
        assert_eq!(error.is_unprocessable(), unprocessable, "{patch}: {error}");
    }
    let many = Value::Array(vec![
        json!({"op": "test", "path": "/a", "value": 1});
        10_001
    ]);
    assert!(matches!(
        json(object(), &many),
        Err(PatchError::TooMuch { .. })
    ));
    // Doubling by copy stops at the budget.
    let mut doubling = vec![json!({"op": "add", "path": "/l", "value": ["x".repeat(1000)]})];
    for _ in 0..100 {
        doubling.push(json!({"op": "copy", "from": "/l", "path": "/l/-"}));
    }
    assert!(matches!(
        json(object(), &Value::Array(doubling)),
        Err(PatchError::TooMuch { .. })
    ));
}

#[test]
fn lists_merge_by_key() {
    smp(
        SPEC,
        json!({"containers": [{"name": "a", "image": "1", "tty": true}, {"name": "b", "image": "2"}], "dnsPolicy": "Default"}),
        json!({"containers": [{"name": "a", "image": "9", "tty": null}], "dnsPolicy": null}),
        &json!({"containers": [{"name": "a", "image": "9"}, {"name": "b", "image": "2"}]}),
    );
    // A new element takes the patch's place, before what only the server has.
    smp(
        SPEC,
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        json!({"containers": [{"name": "c", "image": null, "ports": [{"containerPort": 1}]}]}),
        &json!({"containers": [{"name": "c", "ports": [{"containerPort": 1}]}, {"name": "a"}, {"name": "b"}]}),
    );
    // Lists without a strategy are replaced.
    smp(
        SPEC,
        json!({"containers": [{"name": "a", "command": ["x", "y"]}]}),
        json!({"containers": [{"name": "a", "command": ["z"]}]}),
        &json!({"containers": [{"name": "a", "command": ["z"]}]}),
    );
    // Ports merge by containerPort, a number.
    smp(
        "api.core.v1.Container",
        json!({"ports": [{"containerPort": 80, "name": "x"}, {"containerPort": 81}]}),
        json!({"ports": [{"containerPort": 80, "protocol": "UDP"}]}),
        &json!({"ports": [{"containerPort": 80, "name": "x", "protocol": "UDP"}, {"containerPort": 81}]}),
    );
}

#[test]
fn directives_on_elements_and_maps() {
    let two = || json!({"containers": [{"name": "a", "image": "1"}, {"name": "b"}]});
    smp(
        SPEC,
        two(),
        json!({"containers": [{"$patch": "delete", "name": "a"}]}),
        &json!({"containers": [{"name": "b"}]}),
    );
    smp(
        SPEC,
        two(),
        json!({"containers": [{"name": "z"}, {"$patch": "replace"}]}),
        &json!({"containers": [{"name": "z"}]}),
    );
    smp(
        SPEC,
        two(),
        json!({"containers": [{"$patch": "replace"}]}),
        &json!({"containers": []}),
    );
    smp(
        SPEC,
        json!({"containers": [{"name": "a", "image": "1"}]}),
        json!({"containers": [{"name": "a", "resources": {"$patch": "replace", "limits": {"cpu": "1"}}}]}),
        &json!({"containers": [{"name": "a", "image": "1"}]}),
    );
    smp(
        SPEC,
        json!({"nodeSelector": {"a": "1", "b": "2"}}),
        json!({"nodeSelector": {"$patch": "replace", "c": "3"}}),
        &json!({"nodeSelector": {"c": "3"}}),
    );
    smp(
        SPEC,
        json!({"nodeSelector": {"a": "1"}}),
        json!({"nodeSelector": {"$patch": "delete"}}),
        &json!({"nodeSelector": {}}),
    );
    for bad in [
        json!({"containers": [{"$patch": "delete"}]}),
        json!({"containers": [{"image": "x"}]}),
        json!({"containers": [{"$patch": "merge", "name": "a"}]}),
        json!({"containers": ["a"]}),
        json!({"$patch": 3}),
        json!({"$retainKeys": "x"}),
        json!({"$setElementOrder/containers": 1}),
    ] {
        assert!(
            strategic(two(), bad.clone(), by_name(SPEC).unwrap()).is_err(),
            "{bad}"
        );
    }
    assert!(strategic(json!([]), json!({}), pod_type()).is_err());
}

#[test]
fn retain_keys_clears_the_other_members_of_a_union() {
    smp(
        "api.apps.v1.DeploymentSpec",
        json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}),
        json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}),
        &json!({"strategy": {"type": "Recreate"}}),
    );
    smp(
        SPEC,
        json!({"volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "emptyDir": {}}]}),
        json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}]}),
        &json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}, {"name": "w", "emptyDir": {}}]}),
    );
    let error = strategic(json!({}), json!({"$retainKeys": ["a"], "b": 1}), pod_type());
    assert_eq!(error, Err(PatchError::NotRetained { field: "b".into() }));
}

#[test]
fn primitive_lists() {
    let meta = "apimachinery.pkg.apis.meta.v1.ObjectMeta";
    smp(
        meta,
        json!({"finalizers": ["a", "b", "c"]}),
        json!({"$deleteFromPrimitiveList/finalizers": ["b"], "finalizers": ["d", "a"]}),
        // c stands before nothing of the patch's in the old list's order but
        // after a, so the patch's items come first.
        &json!({"finalizers": ["d", "a", "c"]}),
    );
    smp(
        meta,
        json!({"finalizers": ["a", "b"]}),
        json!({"$setElementOrder/finalizers": ["b", "c", "a"], "finalizers": ["c"]}),
        &json!({"finalizers": ["b", "c", "a"]}),
    );
    smp(
        meta,
        json!({}),
        json!({"$deleteFromPrimitiveList/finalizers": ["b"]}),
        &json!({}),
    );
}

#[test]
fn set_element_order() {
    let named = |names: &[&str]| -> Value { names.iter().map(|n| json!({"name": n})).collect() };
    // x and y were added by others: they keep their place relative to their neighbours.
    smp(
        SPEC,
        json!({"containers": named(&["x", "a", "y", "b"])}),
        json!({"$setElementOrder/containers": named(&["b", "c", "a"]), "containers": [{"name": "c"}]}),
        &json!({"containers": named(&["x", "y", "b", "c", "a"])}),
    );
    // Without a list the order alone changes.
    smp(
        SPEC,
        json!({"containers": named(&["a", "b"])}),
        json!({"$setElementOrder/containers": named(&["b", "a"])}),
        &json!({"containers": named(&["b", "a"])}),
    );
    let deletes = json!({"$setElementOrder/containers": named(&["b"]),
        "containers": [{"name": "b", "image": "x"}, {"$patch": "delete", "name": "a"}]});
    smp(
        SPEC,
        json!({"containers": named(&["a", "b"])}),
        deletes,
        &json!({"containers": [{"name": "b", "image": "x"}]}),
    );
    let wrong = json!({"$setElementOrder/containers": named(&["a", "b"]), "containers": named(&["b", "a"])});
    assert_eq!(
        strategic(
            json!({"containers": named(&["a"])}),
            wrong,
            by_name(SPEC).unwrap()
        ),
        Err(PatchError::OrderMismatch {
            field: "containers".into()
        })
    );
}

#[test]
fn kinds_with_special_strategies() {
    // A PodDisruptionBudget's selector is replaced whole.
    smp(
        "api.policy.v1.PodDisruptionBudgetSpec",
        json!({"selector": {"matchLabels": {"a": "1"}}}),
        json!({"selector": {"matchLabels": {"b": "1"}}}),
        &json!({"selector": {"matchLabels": {"b": "1"}}}),
    );
    // Schemas have fields that begin with a dollar sign and are no directives.
    smp(
        "apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceValidation",
        json!({}),
        json!({"openAPIV3Schema": {"properties": {"a": {"$ref": "#/x"}}}}),
        &json!({"openAPIV3Schema": {"properties": {"a": {"$ref": "#/x"}}}}),
    );
}

fn containers() -> impl Strategy<Value = Vec<(String, Option<u8>)>> {
    proptest::collection::btree_map("[a-e]", proptest::option::of(0u8..4), 0..5)
        .prop_map(|m| m.into_iter().collect::<Vec<_>>())
        .prop_shuffle()
}

fn list(items: &[(String, Option<u8>)]) -> Value {
    items
        .iter()
        .map(|(name, image)| match image {
            Some(image) => json!({"name": name, "image": image.to_string()}),
            None => json!({"name": name}),
        })
        .collect()
}

/// A body of 3 MiB holds some 100,000 elements (here 20,000): no step may cost their square.
#[test]
fn long_lists_are_merged_in_time() {
    let names =
        |from: usize| -> Vec<String> { (from..from + 20_000).map(|i| format!("f{i}")).collect() };
    let keyed = |from| -> Value { names(from).iter().map(|n| json!({"name": n})).collect() };
    let started = std::time::Instant::now();
    let object = json!({"metadata": {"finalizers": names(0)}, "spec": {"containers": keyed(0)}});
    let patch = json!({
        "metadata": {"finalizers": names(10_000), "$deleteFromPrimitiveList/finalizers": names(0)},
        "spec": {"containers": keyed(10_000), "$setElementOrder/containers": keyed(10_000)},
    });
    let patched = strategic(object, patch, pod_type()).unwrap();
    assert_eq!(
        patched["spec"]["containers"].as_array().unwrap().len(),
        30_000
    );
    assert_eq!(
        patched["metadata"]["finalizers"].as_array().unwrap().len(),
        20_000
    );
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
}

proptest! {
    /// What kubectl's apply sends for old -> new leads to new, whatever the
    /// server added meanwhile, and once more changes nothing.
    #[test]
    fn a_patch_made_from_two_lists_leads_to_the_second(old in containers(), new in containers()) {
        let mut patch_items = Vec::new();
        for (name, image) in &new {
            let before = old.iter().find(|(n, _)| n == name);
            if before.is_none_or(|(_, i)| i != image) {
                patch_items.push(json!({"name": name, "image": image.map(|i| i.to_string())}));
            }
        }
        for (name, _) in old.iter().filter(|(n, _)| !new.iter().any(|(m, _)| m == n)) {
            patch_items.push(json!({"$patch": "delete", "name": name}));
        }
        let order: Value = new.iter().map(|(n, _)| json!({"name": n})).collect();
        let patch = json!({"spec": {"$setElementOrder/containers": order, "containers": patch_items}});
        let object = json!({"spec": {"containers": list(&old)}});
        let once = strategic(object, patch.clone(), pod_type()).unwrap();
        prop_assert_eq!(&once["spec"]["containers"], &list(&new));
        prop_assert_eq!(strategic(once.clone(), patch, pod_type()).unwrap(), once);
    }

    /// Elements that the patch does not name stay, in their relative order.
    #[test]
    fn elements_of_others_stay_in_order(old in containers(), new in containers()) {
        let object = json!({"spec": {"containers": list(&old)}});
        let patched = strategic(object, json!({"spec": {"containers": list(&new)}}), pod_type()).unwrap();
        let names: Vec<&str> = patched["spec"]["containers"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
        let mine: Vec<&str> = new.iter().map(|(n, _)| n.as_str()).collect();
        let others: Vec<&str> = old.iter().map(|(n, _)| n.as_str()).filter(|n| !mine.contains(n)).collect();
        prop_assert_eq!(names.len(), mine.len() + others.len());
        let only = |keep: &[&str]| -> Vec<String> { names.iter().filter(|n| keep.contains(n)).map(ToString::to_string).collect() };
        prop_assert_eq!(only(&mine), mine.clone());
        prop_assert_eq!(only(&others), others.clone());
    }

    #[test]
    fn no_patch_breaks_anything(object in any_json(), patch in any_json()) {
        let _ = strategic(object.clone(), patch.clone(), pod_type());
        let _ = json(object.clone(), &patch);
        let merged = merge(object, patch.clone());
        if let Ok(merged) = merged {
            // Merging once more changes nothing.
            prop_assert_eq!(merge(merged.clone(), patch).unwrap(), merged);
        }
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        (0u8..3).prop_map(Value::from),
        "(delete|replace|merge|a|b)".prop_map(Value::from)
    ];
    leaf.prop_recursive(5, 40, 4, |inner| {
        let key = "(spec|metadata|containers|name|finalizers|labels|\\$patch|\\$retainKeys|\\$setElementOrder/containers|\\$deleteFromPrimitiveList/finalizers|volumes)";
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            proptest::collection::btree_map(key, inner, 0..4).prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}
