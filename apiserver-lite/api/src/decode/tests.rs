use super::*;
use serde_json::json;

fn one(text: &str) -> Value {
    let mut docs = documents(text.as_bytes(), "t.yaml").unwrap();
    assert_eq!(docs.len(), 1);
    docs.remove(0).value
}

fn errors(text: &str) -> Vec<String> {
    let errors = documents(text.as_bytes(), "t.yaml").unwrap_err();
    errors.0.iter().map(ToString::to_string).collect()
}

const HEAD: &str = "apiVersion: v1\nkind: ConfigMap\n";

#[test]
fn several_documents_with_positions() {
    let text = "# first\napiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - name: a\n    image: x\n\
                ---\n---\n# nothing\n---\napiVersion: v1\nkind: ConfigMap\ndata: {k: v}\n";
    let docs = documents(text.as_bytes(), "pod.yaml").unwrap();
    assert_eq!(docs.len(), 2);
    let path = FieldPath::default()
        .field("spec")
        .field("containers")
        .index(0);
    assert_eq!(docs[0].locate(&path), Mark { line: 6, column: 5 });
    assert_eq!(
        docs[0].locate(&path.clone().field("image")),
        Mark { line: 7, column: 5 }
    );
    // A field that is absent is at its nearest ancestor.
    assert_eq!(docs[0].locate(&path.field("ports").index(3)).line, 6);
    assert_eq!(docs[1].number, 4);
    let k = FieldPath(vec![
        Segment::Field("data".into()),
        Segment::Key("k".into()),
    ]);
    assert_eq!(
        docs[1].locate(&k),
        Mark {
            line: 14,
            column: 8
        }
    );
}

#[test]
fn yaml_rules_of_kubernetes() {
    let value = one(&format!(
        "{HEAD}a: yes\nb: 0644\nc: 'yes'\nd: !!str 12\ne: 2024-01-01\n1: x\ntrue: why\nf: |\n  l1\n  l2\ng: 1e3\nh:\n"
    ));
    assert_eq!(value["a"], json!(true));
    assert_eq!(value["b"], json!(420));
    assert_eq!(value["c"], json!("yes"));
    assert_eq!(value["d"], json!("12"));
    assert_eq!(value["e"], json!("2024-01-01"));
    assert_eq!(value["1"], json!("x"));
    assert_eq!(value["true"], json!("why"));
    assert_eq!(value["f"], json!("l1\nl2\n"));
    assert_eq!(value["g"], json!(1000));
    assert_eq!(value["h"], json!(null));
}

#[test]
fn anchors_and_merge_keys() {
    let value = one(&format!(
        "{HEAD}base: &b {{x: 1, w: 2}}\nother: &o {{w: 3, z: 4}}\nd:\n  <<: *b\n  w: 9\n\
         e:\n  <<: [*b, *o]\nf: [*b, *b]\n"
    ));
    assert_eq!(value["d"], json!({"x": 1, "w": 9}));
    assert_eq!(value["e"], json!({"x": 1, "w": 2, "z": 4}));
    assert_eq!(value["f"], json!([{"x": 1, "w": 2}, {"x": 1, "w": 2}]));
    assert_eq!(
        errors(&format!("{HEAD}d: {{<<: 3}}\n")),
        ["t.yaml: document 1, line 3: d: `<<` merges a map or a list of maps only"]
    );
}

#[test]
fn duplicate_keys_are_errors_in_both_formats() {
    assert_eq!(
        errors("apiVersion: v1\nkind: Pod\nspec:\n  x: 1\n  y: 2\n  x: 3\n"),
        ["t.yaml: document 1, line 6: spec.x: key \"x\" is given twice, first in line 4"]
    );
    assert_eq!(
        errors("{\"apiVersion\": \"v1\", \"kind\": \"Pod\",\n\"spec\": {\"x\": 1,\n\"x\": 2}}"),
        ["t.yaml: document 1, line 3: spec.x: key \"x\" is given twice, first in line 2"]
    );
    // A merged key is overridden, not duplicated; keys are compared as JSON.
    one(&format!("{HEAD}a: &a {{x: 1}}\nb: {{<<: *a, x: 2}}\n"));
    assert_eq!(errors(&format!("{HEAD}1: a\n'1': b\n")).len(), 1);
}

#[test]
fn lists_are_flattened() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a}\n\
                - apiVersion: v1\n  kind: PodList\n  items:\n  - metadata: {name: b}\n";
    let docs = documents(text.as_bytes(), "l.yaml").unwrap();
    let names: Vec<_> = docs
        .iter()
        .map(|d| (&*d.kind, &d.value["metadata"]["name"]))
        .collect();
    assert_eq!(names, [("Pod", &json!("a")), ("Pod", &json!("b"))]);
    let path = FieldPath::default().field("metadata");
    assert_eq!(docs[1].locate(&path).line, 10);
    assert_eq!(
        errors("apiVersion: v1\nkind: List\nitems:\n- kind: Pod\n"),
        ["t.yaml: document 1, line 4: items[0].apiVersion: Required value: a non-empty string"]
    );
    assert_eq!(
        errors("- a\n")[0],
        "t.yaml: document 1, line 1: an object is expected, with apiVersion and kind"
    );
}

#[test]
fn json_is_read_with_positions() {
    let text = "{\"apiVersion\":\"v1\",\n \"kind\":\"Pod\", \"a\":[1, -2.5, \"\\u00e9\\ud83d\\ude00\\ud800x\", null, true]}\n{\"apiVersion\":\"v1\",\"kind\":\"Secret\"}";
    let docs = documents(text.as_bytes(), "x.json").unwrap();
    assert_eq!(
        docs[0].value["a"],
        json!([1, -2.5, "é😀\u{fffd}x", null, true])
    );
    let path = FieldPath::default().field("a").index(1);
    assert_eq!(
        docs[0].locate(&path),
        Mark {
            line: 2,
            column: 24
        }
    );
    assert_eq!((docs[1].number, &*docs[1].kind), (2, "Secret"));
    for bad in [
        "{",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{\"a\":[1,]}",
        "{\"a\":01}",
        "{\"a\":1.}",
        "{\"a\":\"\\x\"}",
        "{\"a\":\"\\u12\"}",
        "{\"a\":\"\u{1}\"}",
        "{\"a\":\"",
        "{\"a\":tru}",
        "{a:1}",
        "{\"apiVersion\":\"v1\",\"kind\":\"P\"} x",
        "{\"a\":+1}",
        "{\"a\":1-1}",
    ] {
        let found = errors(bad);
        assert!(found[0].contains("not valid JSON"), "{bad}: {found:?}");
    }
}

#[test]
fn broken_yaml_names_line_and_column() {
    let found = errors("apiVersion: v1\nkind: Pod\nspec: [a, b\n");
    assert!(
        found[0].starts_with("t.yaml: document 1, line "),
        "{found:?}"
    );
    assert!(found[0].contains("not valid YAML"), "{found:?}");
    let tab = errors("apiVersion: v1\nkind: Pod\nspec:\n\tx: 1\n");
    assert!(tab[0].contains("line 4"), "{tab:?}");
    assert_eq!(
        errors(&format!(
            "{HEAD}a: !vault x\nb: .inf\nc: !!int x\n? [a]\n: b\n"
        )),
        [
            "t.yaml: document 1, line 3: a: the tag \"!vault\" has no meaning in a manifest",
            "t.yaml: document 1, line 4: b: \".inf\" is not a number that JSON can hold",
            "t.yaml: document 1, line 5: c: \"x\" is not a integer",
            "t.yaml: document 1, line 6: a key must be a string, a number or a boolean",
        ]
    );
    let bytes = b"a: b\nc: \xff\n";
    let error = documents(bytes, "t.yaml").unwrap_err().to_string();
    assert_eq!(
        error,
        "t.yaml: document 1, line 2: byte 8 is not UTF-8 text"
    );
}

#[test]
fn hostile_inputs_are_refused_quickly() {
    let started = std::time::Instant::now();
    let mut laughs = String::from("apiVersion: v1\nkind: X\na0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for i in 1..30 {
        let list = vec![format!("*a{}", i - 1); 10].join(",");
        laughs.push_str(&format!("a{i}: &a{i} [{list}]\n"));
    }
    assert!(
        errors(&laughs)[0].contains("repeated by aliases"),
        "{:?}",
        errors(&laughs)
    );
    // Few values, many bytes.
    let mut text = format!("{HEAD}a: &a \"{}\"\nb: [", "x".repeat(100_000));
    text.push_str(&"*a,".repeat(1000));
    text.push(']');
    assert!(errors(&text)[0].contains("bytes repeated by aliases"));
    // A chain of aliases that nests.
    let mut chain = String::from("apiVersion: v1\nkind: X\na0: &a0 [x]\n");
    for i in 1..300 {
        chain.push_str(&format!("a{i}: &a{i} [*a{}]\n", i - 1));
    }
    assert!(
        errors(&chain)[0].contains("levels of nesting"),
        "{:?}",
        errors(&chain)
    );
    assert!(errors(&format!("{HEAD}a: &a [*a]\n"))[0].contains("contains it"));
    for text in [
        "[".repeat(100_000),
        format!("{HEAD}a: {}", "{b: ".repeat(50_000)),
        "- ".repeat(50_000),
    ] {
        assert_eq!(errors(&text).len(), 1);
    }
    let json = format!("{{\"a\":{}", "[".repeat(100_000));
    assert!(errors(&json)[0].contains("levels of nesting"));
    let long = "x".repeat(MAX_INPUT_BYTES + 1);
    assert!(errors(&long)[0].contains("more than the"));
    assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
}
