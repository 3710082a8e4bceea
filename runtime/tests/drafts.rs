//! Drafts: what a spec becomes, without a look at the host.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use oci_spec::runtime::Spec;
use rkube_keeper::plan::Step;
use rkube_runtime::{Draft, Error, PlanInput, default, plan_container};
use serde_json::{Value, json};

fn draft(edit: impl FnOnce(&mut Value)) -> Result<Draft, Error> {
    let mut value = default::default_value();
    // Without a cgroup there is none to mount.
    value["mounts"].as_array_mut().unwrap().pop();
    edit(&mut value);
    let spec: Spec = serde_json::from_value(value).unwrap();
    plan_container(PlanInput::new("id", &spec, Path::new("/bundle")))
}

/// The names of the steps, each run of one kind once.
fn order(draft: &Draft) -> Vec<String> {
    let mut names: Vec<String> = draft
        .plan
        .steps
        .iter()
        .map(|step| format!("{step:?}").split(' ').next().unwrap().to_owned())
        .collect();
    names.dedup();
    names
}

#[test]
fn the_order_of_steps() {
    let draft = draft(|_| ()).unwrap();
    assert_eq!(
        order(&draft),
        [
            "Propagation",
            "LoopbackUp",
            "Hostname",
            "Filesystem",
            "PivotRoot",
            "Attach",
            "Device",
            "Symlink",
            "ReadOnly",
            "Mask",
            "RootReadOnly"
        ]
    );
    assert_eq!(draft.warnings, Vec::<String>::new());
    assert_eq!(draft.plan.program.argv, [c"sh".to_owned()]);
    assert!(draft.plan.terminal.is_some());
}

#[test]
fn a_read_only_tmpfs_is_filled_first() {
    let draft = draft(|v| {
        v["mounts"][1]["options"] = json!(["ro", "nosuid"]);
    })
    .unwrap();
    let steps = &draft.plan.steps;
    let at = |wanted: fn(&Step) -> bool| steps.iter().position(wanted).unwrap();
    let last = steps
        .iter()
        .rposition(|s| matches!(s, Step::Symlink { .. }));
    let remount = at(|s| {
        matches!(s, Step::Remount { target, set: 1, .. }
        if target.as_c_str() == c"/dev")
    });
    assert!(remount > last.unwrap());
    let made = at(|s| {
        matches!(s, Step::Filesystem { kind, attributes: 2, .. }
        if kind.as_c_str() == c"tmpfs")
    });
    assert!(made < remount);
}

#[test]
fn what_cannot_be_honoured_is_named() {
    type Edit = fn(&mut Value);
    let cases: [(&str, Edit); 19] = [
        ("linux.intelRdt", |v| {
            v["linux"]["intelRdt"] = json!({"closID": "x"})
        }),
        ("linux.memoryPolicy", |v| {
            v["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0-x"});
        }),
        ("linux.netDevices", |v| {
            v["linux"]["netDevices"] = json!({"eth0": {}})
        }),
        ("linux.timeOffsets", |v| {
            v["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 1}});
        }),
        ("linux.namespaces", |v| {
            v["linux"]["namespaces"] = json!([{"type": "pid"}])
        }),
        ("linux.namespaces[1]", |v| {
            v["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "mount"}]);
        }),
        ("linux.timeOffsets", |v| {
            v["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 1}});
        }),
        ("linux.uidMappings", |v| {
            v["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 1, "size": 1}]);
        }),
        ("hostname", |v| {
            v["linux"]["namespaces"] = json!([{"type": "mount"}]);
        }),
        ("linux.rootfsPropagation", |v| {
            v["linux"]["rootfsPropagation"] = "up".into()
        }),
        ("linux.devices[0].path", |v| {
            v["linux"]["devices"] = json!([{"path": "x", "type": "c", "major": 1, "minor": 1}]);
        }),
        ("mounts[0].type", |v| {
            v["mounts"][0] = json!({"destination": "/x"})
        }),
        ("mounts[0].source", |v| {
            v["mounts"][0] = json!({"destination": "/x", "type": "bind"});
        }),
        ("mounts[0].destination", |v| {
            v["mounts"][0]["destination"] = "/a/..".into()
        }),
        ("process.rlimits[1]", |v| {
            let limit = json!({"type": "RLIMIT_NOFILE", "hard": 1, "soft": 1});
            v["process"]["rlimits"] = json!([limit, limit]);
        }),
        ("process.args", |v| v["process"]["args"] = json!([])),
        ("process.cwd", |v| v["process"]["cwd"] = "x".into()),
        ("process.oomScoreAdj", |v| {
            v["process"]["oomScoreAdj"] = 1001.into()
        }),
        ("hooks.poststop[0]", |v| {
            v["hooks"] = json!({"poststop": [{"path": "x"}]})
        }),
    ];
    for (field, edit) in cases {
        let error = draft(edit).map(|d| d.plan.id).unwrap_err().to_string();
        assert!(error.starts_with(field), "{field}: {error}");
    }
}

#[test]
fn capabilities_that_cannot_be_granted_are_warned_about() {
    let value = default::default_value();
    let mut spec: Spec = serde_json::from_value(value).unwrap();
    spec.set_mounts(None);
    let mut input = PlanInput::new("id", &spec, Path::new("/bundle"));
    input.grantable = !(1 << 5);
    let draft = plan_container(input).unwrap();
    assert_eq!(draft.warnings.len(), 1);
    assert!(
        draft.warnings[0].contains("CAP_KILL"),
        "{:?}",
        draft.warnings
    );
    assert_eq!(draft.plan.program.capabilities.unwrap().inheritable, 0);
}
