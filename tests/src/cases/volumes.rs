//! Volumes of every kind.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::case::Case;
use crate::command::Output;
use crate::host::TestHost;
use crate::pods::{pod, said, script, tool, with};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("volumes::empty_dirs", empty_dirs),
        Case::new("volumes::host_path_types", host_path_types),
        Case::new("volumes::config_maps_and_secrets", config_maps_and_secrets),
        Case::new(
            "volumes::missing_objects_are_told",
            missing_objects_are_told,
        ),
        Case::new("volumes::projected_and_downward", projected_and_downward),
        Case::new("volumes::claims_keep_their_files", claims_keep_their_files),
        Case::new("volumes::sub_paths", sub_paths),
        Case::new(
            "volumes::sub_paths_do_not_lead_out",
            sub_paths_do_not_lead_out,
        ),
        Case::new("volumes::read_only_mounts", read_only_mounts),
        Case::new(
            "volumes::nothing_is_mounted_on_the_host",
            nothing_is_mounted_on_the_host,
        ),
    ]
}

/// A pod of one container with these volumes and mounts.
fn mounted(name: &str, text: &str, volumes: Value, mounts: Value) -> Value {
    let container = with(script("a", text), "", json!({"volumeMounts": mounts}));
    with(pod(name, &[container]), "spec", json!({"volumes": volumes}))
}

fn empty_dirs(host: &TestHost) -> anyhow::Result<()> {
    let volumes = json!([
        {"name": "disk", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
    ]);
    let mounts =
        json!([{"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"}]);
    let text = "stat /disk /memory; mounts; write /disk/f x; fill /memory/big 2Mi";
    let out = host
        .run(&[mounted("p", text, volumes.clone(), mounts.clone())])?
        .output()?;
    let lines = said(&out, "a");
    for path in ["/disk", "/memory"] {
        let stat = lines
            .iter()
            .find(|l| l.ends_with(&format!(" directory {path}")));
        ensure!(
            stat.is_some_and(|l| l.starts_with("0777 0 0 ")),
            "{path}: {lines:?}"
        );
    }
    ensure!(
        lines
            .iter()
            .any(|l| l.contains("/memory") && l.contains("tmpfs")),
        "{lines:?}"
    );
    let full = out.stdout.contains("No space")
        || out.stdout.contains("ENOSPC")
        || out.stdout.contains("1048576");
    ensure!(full, "2 MiB fit into 1 MiB: {out}");
    // It is there through restarts, and empty in the next pod.
    let again = with(
        mounted(
            "r",
            "write -a /disk/f x; cat /disk/f; exit 1",
            volumes.clone(),
            mounts.clone(),
        ),
        "spec",
        json!({"restartPolicy": "OnFailure"}),
    );
    host.up(&[again])?;
    crate::wait::until("a second line", std::time::Duration::from_secs(60), || {
        let text = host.rkube(["logs", "r"])?.ok()?.stdout;
        Ok((text == "x\nx\n").then_some(()))
    })?;
    host.rm(&["r"])?;
    let out = host.ran(&[mounted("p", "ls /disk; ls /memory", volumes, mounts)])?;
    ensure!(said(&out, "a").is_empty(), "{out}");
    Ok(())
}

/// The reason why a pod's container waits, in the words of a detached run.
fn refused(host: &TestHost, made: Value) -> anyhow::Result<Output> {
    let file = host.manifest(&[made])?;
    let args = ["run", "--detach", "--timeout", "3", "-f"].map(Path::new);
    host.rkube(args.into_iter().chain([file.as_path()]))?
        .exits(1)
}

fn host_path_types(host: &TestHost) -> anyhow::Result<()> {
    let dir = host.files().join("host");
    std::fs::create_dir(&dir)?;
    std::fs::write(dir.join("file"), "content\n")?;
    let of = |name: &str, path: &str, kind: &str, text: &str| {
        let source = json!({"path": dir.join(path), "type": kind});
        mounted(
            name,
            text,
            json!([{"name": "v", "hostPath": source}]),
            json!([{"name": "v", "mountPath": "/v"}]),
        )
    };
    let lines = host.lines_of(of("p", "", "Directory", "cat /v/file; write /v/back seen"))?;
    ensure!(
        lines == ["content"] && std::fs::read_to_string(dir.join("back"))? == "seen\n",
        "{lines:?}"
    );
    let lines = host.lines_of(of("p", "file", "File", "cat /v"))?;
    ensure!(lines == ["content"], "{lines:?}");
    host.lines_of(of("p", "made/deep", "DirectoryOrCreate", "touch /v/x"))?;
    let mode = std::fs::metadata(dir.join("made/deep"))?
        .permissions()
        .mode();
    ensure!(
        mode & 0o7777 == 0o755 && dir.join("made/deep/x").exists(),
        "{mode:o}"
    );
    host.lines_of(of("p", "made/file", "FileOrCreate", "write /v x"))?;
    ensure!(std::fs::read_to_string(dir.join("made/file"))? == "x\n");
    for (path, kind) in [
        ("file", "Directory"),
        ("", "File"),
        ("absent", "Directory"),
        ("file", "Socket"),
        ("file", "BlockDevice"),
    ] {
        let out = refused(host, of("bad", path, kind, "true"))?;
        ensure!(
            out.stderr.contains("volume \"v\"") && out.stderr.contains(&*dir.to_string_lossy()),
            "{kind}: {out}"
        );
        host.wait_event("bad", "FailedMount")?;
        host.rm(&["bad"])?;
    }
    ensure!(
        dir.join("file").is_file() && dir.join("back").is_file(),
        "removal took the host's files"
    );
    Ok(())
}

fn config_maps_and_secrets(host: &TestHost) -> anyhow::Result<()> {
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"},
        "data": {"one": "1\n", "two": "2\n"}, "binaryData": {"bin": "aGVsbG8K"}});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
        "stringData": {"key": "plain\n"}, "data": {"coded": "Y29kZWQK"}});
    let volumes = json!([
        {"name": "all", "configMap": {"name": "c"}},
        {"name": "some", "configMap": {"name": "c", "defaultMode": 0o440, "items": [
            {"key": "one", "path": "deep/first", "mode": 0o400}, {"key": "two", "path": "second"}]}},
        {"name": "secret", "secret": {"secretName": "s"}},
        {"name": "none", "configMap": {"name": "absent", "optional": true}},
    ]);
    let mount = |name: &str| json!({"name": name, "mountPath": format!("/{name}")});
    let mounts = json!([mount("all"), mount("some"), mount("secret"), mount("none")]);
    let text = "cat /all/one /all/two /all/bin /some/deep/first /some/second /secret/key /secret/coded; \
                stat /all/..data/one /some/..data/deep/first /some/..data/second; readlink /all/one; mounts";
    let out = host.ran(&[map, secret, mounted("p", text, volumes, mounts)])?;
    let lines = said(&out, "a");
    ensure!(
        lines[..7] == ["1", "2", "hello", "1", "2", "plain", "coded"],
        "{lines:?}"
    );
    let modes: Vec<&str> = lines[7..10]
        .iter()
        .filter_map(|l| l.split(' ').next())
        .collect();
    ensure!(modes == ["0644", "0400", "0440"], "{lines:?}");
    ensure!(lines[10].ends_with("..data/one"), "{lines:?}");
    ensure!(
        lines
            .iter()
            .any(|l| l.contains(" /secret ") && l.contains("tmpfs")),
        "a secret on a disk: {lines:?}"
    );
    Ok(())
}

fn missing_objects_are_told(host: &TestHost) -> anyhow::Result<()> {
    let volume = |source: Value| {
        mounted(
            "p",
            "true",
            json!([with(json!({"name": "v"}), "", source)]),
            json!([{"name": "v", "mountPath": "/v"}]),
        )
    };
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "b"}});
    for (made, names) in [
        (volume(json!({"configMap": {"name": "no-map"}})), "no-map"),
        (
            volume(json!({"secret": {"secretName": "no-secret"}})),
            "no-secret",
        ),
        (
            volume(json!({"configMap": {"name": "c", "items": [{"key": "no-key", "path": "x"}]}})),
            "no-key",
        ),
        (
            volume(json!({"persistentVolumeClaim": {"claimName": "no-claim"}})),
            "no-claim",
        ),
    ] {
        let file = host.manifest(&[map.clone(), made])?;
        let args = ["run", "--detach", "--timeout", "3", "-f"].map(Path::new);
        let out = host
            .rkube(args.into_iter().chain([file.as_path()]))?
            .output()?;
        ensure!(
            !out.status.success() && out.stderr.contains(names),
            "{names} is not named: {out}"
        );
        if host.inspect("p").is_ok() {
            host.rm(&["p"])?;
        }
    }
    Ok(())
}

fn projected_and_downward(host: &TestHost) -> anyhow::Result<()> {
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"k": "map\n"}});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"k": "secret\n"}});
    let volumes = json!([{"name": "v", "projected": {"sources": [
        {"configMap": {"name": "c", "items": [{"key": "k", "path": "map"}]}},
        {"secret": {"name": "s", "items": [{"key": "k", "path": "secret"}]}},
        {"downwardAPI": {"items": [
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}},
            {"path": "memory", "resourceFieldRef": {"containerName": "a", "resource": "limits.memory", "divisor": "1Mi"}},
        ]}},
    ]}}]);
    let made = mounted(
        "p",
        "cat /v/map /v/secret /v/labels; echo; cat /v/name; echo; cat /v/memory",
        volumes,
        json!([{"name": "v", "mountPath": "/v"}]),
    );
    let made = with(made, "metadata", json!({"labels": {"app": "web"}}));
    let made = with(
        made,
        "spec.containers.0",
        json!({"resources": {"limits": {"memory": "20Mi"}}}),
    );
    let out = host.ran(&[map, secret, made])?;
    ensure!(
        said(&out, "a") == ["map", "secret", "app=\"web\"", "p", "20"],
        "{out}"
    );
    Ok(())
}

fn claims_keep_their_files(host: &TestHost) -> anyhow::Result<()> {
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}});
    let user = |text: &str| {
        mounted(
            "p",
            text,
            json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]),
            json!([{"name": "v", "mountPath": "/v"}]),
        )
    };
    host.ran(&[claim.clone(), user("write -a /v/log one")])?;
    let out = host.ran(&[claim, user("write -a /v/log two; cat /v/log")])?;
    ensure!(said(&out, "a") == ["one", "two"], "{out}");
    Ok(())
}

fn sub_paths(host: &TestHost) -> anyhow::Result<()> {
    let dir = host.files().join("sub");
    std::fs::create_dir_all(dir.join("a"))?;
    std::fs::write(dir.join("a/file"), "in a\n")?;
    let volumes = json!([{"name": "v", "hostPath": {"path": dir}}]);
    let mounts = json!([
        {"name": "v", "mountPath": "/dir", "subPath": "a"},
        {"name": "v", "mountPath": "/etc/one-file", "subPath": "a/file"},
        {"name": "v", "mountPath": "/new", "subPath": "made/here"},
        {"name": "v", "mountPath": "/named", "subPathExpr": "$(POD)-dir"},
    ]);
    let made = mounted(
        "p",
        "cat /dir/file; cat /etc/one-file; touch /new/x; touch /named/y",
        volumes,
        mounts,
    );
    let made = with(
        made,
        "spec.containers.0",
        json!({"env": [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
    );
    let lines = host.lines_of(made)?;
    ensure!(lines == ["in a", "in a"], "{lines:?}");
    ensure!(dir.join("made/here/x").exists() && dir.join("p-dir/y").exists());
    Ok(())
}

fn sub_paths_do_not_lead_out(host: &TestHost) -> anyhow::Result<()> {
    let dir = host.files().join("sub");
    let outside = host.files().join("outside");
    std::fs::create_dir_all(&dir)?;
    std::fs::create_dir_all(&outside)?;
    std::fs::write(outside.join("secret"), "hidden\n")?;
    std::os::unix::fs::symlink(&outside, dir.join("absolute"))?;
    std::os::unix::fs::symlink("../outside", dir.join("relative"))?;
    for sub in ["absolute", "relative", "absolute/secret", "relative/new"] {
        let made = mounted(
            "p",
            "ls /v; cat /v/secret; cat /v",
            json!([{"name": "v", "hostPath": {"path": dir}}]),
            json!([{"name": "v", "mountPath": "/v", "subPath": sub}]),
        );
        let file = host.manifest(&[made])?;
        let args = ["run", "--detach", "--timeout", "3", "-f"].map(Path::new);
        let out = host
            .rkube(args.into_iter().chain([file.as_path()]))?
            .output()?;
        let logs = host.rkube(["logs", "p"])?.output()?;
        ensure!(
            !logs.stdout.contains("hidden") && !logs.stdout.contains("secret"),
            "{sub}: {out}{logs}"
        );
        ensure!(
            !outside.join("new").exists(),
            "{sub} made a directory outside"
        );
        host.rm(&["p"])?;
    }
    let dots = mounted(
        "p",
        "true",
        json!([{"name": "v", "hostPath": {"path": dir}}]),
        json!([{"name": "v", "mountPath": "/v", "subPath": "../outside"}]),
    );
    let out = host.run(&[dots])?.exits(64)?;
    ensure!(out.stderr.contains("subPath"), "{out}");
    Ok(())
}

fn read_only_mounts(host: &TestHost) -> anyhow::Result<()> {
    let dir = host.files().join("ro");
    std::fs::create_dir(&dir)?;
    let volumes = json!([{"name": "v", "hostPath": {"path": dir}}, {"name": "e", "emptyDir": {}}]);
    let mounts = json!([{"name": "v", "mountPath": "/v", "readOnly": true}, {"name": "e", "mountPath": "/e", "readOnly": true}]);
    for path in ["/v/x", "/e/x"] {
        let out = host
            .run(&[mounted(
                "p",
                &format!("touch {path}"),
                volumes.clone(),
                mounts.clone(),
            )])?
            .exits(1)?;
        ensure!(
            out.stdout.contains("ead-only") || out.stdout.contains("EROFS"),
            "{out}"
        );
    }
    ensure!(std::fs::read_dir(&dir)?.next().is_none());
    Ok(())
}

/// ARCHITECTURE.md, invariant 5: volumes in memory are the one exception.
fn nothing_is_mounted_on_the_host(host: &TestHost) -> anyhow::Result<()> {
    let volumes =
        json!([{"name": "v", "emptyDir": {}}, {"name": "h", "hostPath": {"path": host.files()}}]);
    let mounts =
        json!([{"name": "v", "mountPath": "/v"}, {"name": "h", "mountPath": "/h", "subPath": "x"}]);
    std::fs::create_dir(host.files().join("x"))?;
    let container = with(
        tool("a", &["sleep", "inf"]),
        "",
        json!({"volumeMounts": mounts}),
    );
    host.up(&[with(
        pod("p", &[container]),
        "spec",
        json!({"volumes": volumes}),
    )])?;
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let root = host.root().to_str().context("a path")?;
    let found: Vec<&str> = table.lines().filter(|l| l.contains(root)).collect();
    ensure!(found.is_empty(), "{found:?}");
    host.rm(&["p"])?;
    Ok(())
}
