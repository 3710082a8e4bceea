//! Hooks of containers, of all kinds: order, input, limits of time, failure.
//! They need root, a static /bin/busybox and cgroups.
#![allow(clippy::unwrap_used)]

mod bundle;

use std::path::Path;

use rkube_runtime::Error;
use rkube_runtime::lifecycle::{self, Foreground, Status};
use serde_json::{Value, json};

use bundle::{Bundle, wait};

/// In the order in which they run.
const KINDS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// A hook that runs a script of the host's shell.
fn script(text: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", text], "env": ["PATH=/bin:/usr/bin"],
        "timeout": 10})
}

#[test]
fn hooks_run_in_order_and_see_the_state() {
    let mut bundle = Bundle::new(&["true"]);
    let log = bundle.dir.path().join("rootfs/log");
    let hook = |kind: &str| {
        // In the container the log is /log.
        let target = if kind == "startContainer" {
            Path::new("/log")
        } else {
            &log
        };
        let text = format!("echo \"{kind} $(cat)\" >> {}", target.display());
        json!([script(&text)])
    };
    bundle.spec["hooks"] = KINDS.map(|k| (k.to_owned(), hook(k))).into_iter().collect();
    bundle.spec["root"]["readonly"] = false.into();
    bundle.spec["annotations"] = json!({"a": "b"});
    assert_eq!(bundle.run().0, 0);
    let text = std::fs::read_to_string(&log).unwrap();
    let told: Vec<(&str, Value)> = text
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(kind, state)| (kind, serde_json::from_str(state).unwrap()))
        .collect();
    assert_eq!(told.iter().map(|t| t.0).collect::<Vec<_>>(), KINDS);
    let states = [
        "created", "created", "creating", "created", "running", "stopped",
    ];
    for ((kind, state), status) in told.iter().zip(states) {
        assert_eq!(state["status"], status, "{kind}");
        assert_eq!(state["id"], bundle.id, "{kind}");
        assert_eq!(state["annotations"]["a"], "b", "{kind}");
    }

    // One that fails undoes the container.
    bundle.spec["hooks"]["createRuntime"] = json!([{"path": "/bin/false"}]);
    let error = bundle.create().map(drop).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Hook {
                kind: "createRuntime",
                ..
            }
        ),
        "{error}"
    );
    bundle.nothing_is_left();
}

/// Those of one kind run one after the other, each with its own arguments and
/// environment and nothing of the runtime's.
#[test]
fn hooks_of_a_kind_run_in_order_with_their_own_arguments() {
    let mut bundle = Bundle::new(&["true"]);
    bundle.spec["root"]["readonly"] = false.into();
    let host = bundle.dir.path().join("rootfs/log").display().to_string();
    for kind in KINDS {
        let log = if kind == "startContainer" {
            "/log"
        } else {
            host.as_str()
        };
        let text = format!("echo $0 $1 $WHO $HOME. $(env | wc -l) >> {log}");
        let hook = |n: u32| {
            json!({"path": "/bin/sh", "args": ["sh", "-c", text, format!("{kind}{n}"), "arg"],
                "env": [format!("WHO=me{n}"), "PATH=/bin:/usr/bin"]})
        };
        bundle.spec["hooks"][kind] = json!([hook(1), hook(2)]);
    }
    bundle.applets(&["env", "wc"]);
    assert_eq!(bundle.run().0, 0);
    let text = std::fs::read_to_string(bundle.dir.path().join("rootfs/log")).unwrap();
    let seen: Vec<&str> = text.lines().collect();
    let mut wanted = Vec::new();
    for kind in KINDS {
        for n in [1, 2] {
            wanted.push(format!("{kind}{n} arg me{n} . "));
        }
    }
    assert_eq!(seen.len(), wanted.len(), "{text}");
    for (line, wanted) in seen.iter().zip(&wanted) {
        assert!(
            line.starts_with(wanted.as_str()),
            "{line:?} is not {wanted:?}"
        );
    }
}

/// Annotations that make the state larger than a pipe takes at once.
fn large_state(bundle: &mut Bundle) {
    bundle.spec["annotations"] = json!({"large": "x".repeat(200 << 10)});
}

/// A hook need not read what it is given, in whichever kind.
#[test]
fn a_hook_that_ignores_its_input_is_no_failure() {
    let mut bundle = Bundle::new(&["true"]);
    large_state(&mut bundle);
    let kinds = [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
    ];
    for _ in 0..2 {
        for kind in kinds {
            bundle.spec["hooks"] = json!({ kind: [script("exec 0<&-; true")] });
            assert_eq!(bundle.run().0, 0, "{kind}");
        }
        // The first process of a namespace ignores what would end another.
        let list = bundle.spec["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|n| n["type"] != "pid");
    }
}

#[test]
fn the_time_limit_holds_whether_or_not_the_input_is_read() {
    let mut bundle = Bundle::new(&["true"]);
    large_state(&mut bundle);
    for kind in ["createRuntime", "createContainer"] {
        let mut hook = script("exec sleep 5");
        hook["timeout"] = 1.into();
        bundle.spec["hooks"] = json!({ kind: [hook] });
        let error = bundle.create().map(drop).unwrap_err().chain();
        assert!(error.contains("time limit"), "{kind}: {error}");
        assert!(error.contains("/bin/sh"), "{kind}: {error}");
        bundle.nothing_is_left();
    }
}

/// A caller that catches signals by a descriptor has them blocked; its hooks
/// have not.
#[test]
fn a_hook_blocks_no_signal() {
    let mut bundle = Bundle::new(&["true"]);
    let seen = bundle.dir.path().join("seen");
    let text = format!("grep SigBlk /proc/self/status > {}", seen.display());
    bundle.spec["hooks"] = json!({ "createRuntime": [script(&text)] });
    let foreground = Foreground::new().unwrap();
    assert_eq!(bundle.run().0, 0);
    drop(foreground);
    let mask = std::fs::read_to_string(seen).unwrap();
    assert_eq!(mask, "SigBlk:\t0000000000000000\n");
}

/// A poststart hook that fails ends the container; a poststop hook that fails
/// is told, and the container is gone all the same (runtime.md, Lifecycle).
#[test]
fn what_comes_of_hooks_that_fail_late() {
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    let log = bundle.dir.path().join("log");
    let note = script(&format!("echo second >> {}", log.display()));
    bundle.spec["hooks"] = json!({ "poststart": [script("exit 7"), note.clone()] });
    let (made, _output) = bundle.create().unwrap();
    let error = made.container.start().unwrap_err();
    assert!(
        matches!(
            error,
            Error::Hook {
                kind: "poststart",
                ..
            }
        ),
        "{error}"
    );
    assert!(error.chain().contains("exit code 7"), "{error}");
    assert_eq!(wait(&made.pidfd), 128 + 9);
    assert_eq!(bundle.load().status().unwrap(), Status::Stopped);
    lifecycle::delete(&bundle.store(), &bundle.id, false).unwrap();
    assert!(
        !Path::new(&log).exists(),
        "a hook ran after one that failed"
    );

    bundle.spec["process"]["args"] = json!(["true"]);
    bundle.spec["hooks"] = json!({ "poststop": [script("kill -9 $$")] });
    let (made, _output) = bundle.create().unwrap();
    made.container.start().unwrap();
    wait(&made.pidfd);
    let warnings = lifecycle::delete(&bundle.store(), &bundle.id, false).unwrap();
    assert!(warnings[0].contains("signal 9"), "{warnings:?}");
    bundle.nothing_is_left();
}
