use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use serde_json::{Value, json};

use super::*;
use crate::node::NodeFacts;
use crate::pod::tests::pod as pod_of;

struct Case {
    dir: tempfile::TempDir,
    pod: Pod,
    objects: Objects,
}

impl Case {
    fn new(spec: Value, objects: Value) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            pod: pod_of(spec),
            objects: serde_json::from_value(objects).unwrap(),
        }
    }

    fn paths(&self) -> Paths {
        Paths::new(self.dir.path())
    }

    fn make(&self) -> Result<BTreeMap<String, VolumePath>, String> {
        let node = NodeFacts {
            single_process_oom_kill: false,
            name: "n".into(),
            addresses: vec![],
            cpu_millis: 2000,
            memory_bytes: 1 << 30,
            cluster_dns: vec![],
            cluster_domain: "c".into(),
        };
        let facts = Facts {
            pod: &self.pod,
            node: &node,
            addresses: &[],
        };
        make(facts, &self.objects, &self.paths()).map_err(|e| e.to_string())?;
        locate(&self.pod, &self.paths()).map_err(|e| e.to_string())
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        remove::path(&self.paths().pods()).unwrap();
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn empty_dirs_on_disk_and_in_memory() {
    let case = Case::new(
        json!({"securityContext": {"fsGroup": 4321}, "volumes": [
            {"name": "d", "emptyDir": {}}, {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]}),
        json!({}),
    );
    let at = case.make().unwrap();
    for name in ["d", "m"] {
        assert_eq!(mode(&at[name].path), 0o2777, "{name}");
        assert_eq!(std::fs::metadata(&at[name].path).unwrap().gid(), 4321);
    }
    assert!(tmpfs::is_mount_root(&at["m"].path).unwrap());
    let full = std::fs::write(at["m"].path.join("x"), vec![0u8; 2 << 20]).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(28), "the size limit holds");
    std::fs::write(at["d"].path.join("kept"), "1").unwrap();
    // A new writer makes them again without harm.
    case.make().unwrap();
    assert_eq!(read(&at["d"].path.join("kept")), "1");
    let mounts = read(Path::new("/proc/self/mountinfo"));
    assert_eq!(
        mounts
            .lines()
            .filter(|l| l.contains(at["m"].path.to_str().unwrap()))
            .count(),
        1
    );
    remove::path(&case.paths().pod("u-1")).unwrap();
    assert!(!read(Path::new("/proc/self/mountinfo")).contains(at["m"].path.to_str().unwrap()));
    assert!(!case.paths().pod("u-1").exists());
}

#[test]
fn config_maps_and_secrets_are_swapped_at_once() {
    let objects = |v: &str| {
        json!({
        "config_maps": {"cm": {"metadata": {"name": "cm"}, "data": {"a": v, "b": "2"}}},
        "secrets": {"s": {"metadata": {"name": "s"}, "stringData": {"p": "pw"}}}})
    };
    let mut case = Case::new(
        json!({"volumes": [
            {"name": "all", "configMap": {"name": "cm"}},
            {"name": "some", "configMap": {"name": "cm", "defaultMode": 0o400, "items": [
                {"key": "a", "path": "x/y/z", "mode": 0o755}, {"key": "a", "path": "x/again"}]}},
            {"name": "sec", "secret": {"secretName": "s"}},
            {"name": "none", "secret": {"secretName": "no", "optional": true}}]}),
        objects("1"),
    );
    let at = case.make().unwrap();
    assert!(at.values().all(|v| v.read_only));
    let all = &at["all"].path;
    assert_eq!(
        (read(&all.join("a")), mode(&all.join("a"))),
        ("1".to_owned(), 0o644)
    );
    assert_eq!(read(&at["some"].path.join("x/y/z")), "1");
    assert_eq!(
        (
            mode(&at["some"].path.join("x/y/z")),
            mode(&at["some"].path.join("x/again"))
        ),
        (0o755, 0o400)
    );
    assert!(
        tmpfs::is_mount_root(&at["sec"].path).unwrap(),
        "secrets do not reach the disk"
    );
    assert_eq!(
        std::fs::read_dir(&at["none"].path)
            .unwrap()
            .filter(|e| !e
                .as_ref()
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .starts_with(".."))
            .count(),
        0
    );
    let first = std::fs::read_link(all.join("..data")).unwrap();
    case.objects = serde_json::from_value(objects("new")).unwrap();
    case.objects
        .config_maps
        .get_mut("cm")
        .unwrap()
        .data
        .as_mut()
        .unwrap()
        .remove("b");
    case.make().unwrap();
    assert_eq!(read(&all.join("a")), "new");
    assert!(!all.join("b").exists() && !all.join(first).exists());
    assert_eq!(
        std::fs::read_link(all.join("a")).unwrap(),
        Path::new("..data/a")
    );
}

#[test]
fn projected_volumes_and_the_downward_api() {
    let mut case = Case::new(
        json!({"securityContext": {"fsGroup": 99}, "containers": [{"name": "a", "resources": {"limits": {"cpu": "250m"}}}],
            "volumes": [{"name": "p", "projected": {"defaultMode": 0o400, "sources": [
                {"configMap": {"name": "cm", "items": [{"key": "a", "path": "dir/a"}]}},
                {"secret": {"name": "s"}},
                {"downwardAPI": {"items": [
                    {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                    {"path": "cpu", "resourceFieldRef": {"containerName": "a", "resource": "limits.cpu", "divisor": "1m"}}]}}]}}]}),
        json!({"config_maps": {"cm": {"metadata": {"name": "cm"}, "binaryData": {"a": "AP8="}}},
            "secrets": {"s": {"metadata": {"name": "s"}, "data": {"k": "eA=="}}}}),
    );
    case.pod.metadata.labels = Some([("app".to_owned(), "x".to_owned())].into());
    let p = case.make().unwrap()["p"].path.clone();
    assert_eq!(std::fs::read(p.join("dir/a")).unwrap(), [0, 255]);
    assert_eq!(
        (
            read(&p.join("k")),
            read(&p.join("labels")),
            read(&p.join("cpu"))
        ),
        ("x".into(), "app=\"x\"".into(), "250".into())
    );
    assert_eq!(
        (
            mode(&p.join("k")),
            std::fs::metadata(p.join("k")).unwrap().gid()
        ),
        (0o440, 99)
    );
}

#[test]
fn what_is_missing_or_bad_is_named() {
    let fails = |volume: Value, objects: Value| {
        Case::new(json!({"volumes": [volume]}), objects)
            .make()
            .unwrap_err()
    };
    let cm = json!({"config_maps": {"cm": {"metadata": {}, "data": {"a": "1", "..x": "2"}}}});
    assert!(
        fails(
            json!({"name": "v", "configMap": {"name": "no"}}),
            cm.clone()
        )
        .contains("ConfigMap \"no\" is not there")
    );
    assert!(
        fails(
            json!({"name": "v", "configMap": {"name": "cm", "items": [{"key": "z", "path": "z"}]}}),
            cm.clone()
        )
        .contains("no key \"z\"")
    );
    for path in ["../x", "/x", "..x", "a/../../x"] {
        let v = json!({"name": "v", "configMap": {"name": "cm", "items": [{"key": "a", "path": path}]}});
        assert!(fails(v, cm.clone()).contains("the path"), "{path}");
    }
    let both = json!([{"key": "a", "path": "d"}, {"key": "a", "path": "d/e"}]);
    assert!(
        fails(
            json!({"name": "v", "configMap": {"name": "cm", "items": both}}),
            cm
        )
        .contains("at the same time")
    );
    assert!(
        fails(
            json!({"name": "v", "nfs": {"server": "s", "path": "/"}}),
            json!({})
        )
        .contains("not nfs")
    );
    assert!(
        fails(
            json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}}),
            json!({})
        )
        .contains("PersistentVolumeClaim \"c\"")
    );
    assert!(
        fails(
            json!({"name": "v", "emptyDir": {"medium": "HugePages"}}),
            json!({})
        )
        .contains("HugePages")
    );
}

#[test]
fn host_paths_by_type() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("file"), "").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("sock")).unwrap();
    let check = |name: &str, kind: &str| host_path::check("v", &at(name), kind);
    for (name, kind) in [
        ("", "Directory"),
        ("file", "File"),
        ("file", ""),
        ("sock", "Socket"),
        ("new/dir", "DirectoryOrCreate"),
        ("newfile", "FileOrCreate"),
    ] {
        check(name, kind).unwrap_or_else(|e| panic!("{name} {kind}: {e}"));
    }
    host_path::check("v", Path::new("/dev/null"), "CharDevice").unwrap();
    assert_eq!((mode(&at("new/dir")), mode(&at("newfile"))), (0o755, 0o644));
    for (name, kind) in [
        ("file", "Directory"),
        ("", "File"),
        ("file", "Socket"),
        ("file", "BlockDevice"),
        ("none", "File"),
        ("file", "DirectoryOrCreate"),
    ] {
        assert!(check(name, kind).is_err(), "{name} {kind}");
    }
}

#[test]
fn claims_are_directories_that_outlive_the_pod() {
    let case = Case::new(
        json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}),
        json!({"claims": {"c": {"metadata": {"name": "c"}}}}),
    );
    let at = case.make().unwrap()["v"].path.clone();
    assert_eq!(at, case.dir.path().join("var/lib/rkube/pvc/default/c"));
    std::fs::write(at.join("f"), "x").unwrap();
    remove::path(&case.paths().pods()).unwrap();
    assert_eq!(read(&at.join("f")), "x");
}

#[test]
fn fs_groups_reach_every_file_and_follow_no_link() {
    let case = Case::new(
        json!({"securityContext": {"fsGroup": 777, "fsGroupChangePolicy": "OnRootMismatch"},
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}),
        json!({"claims": {"c": {"metadata": {}}}}),
    );
    let claim = case.paths().claim("default", "c");
    let outside = case.dir.path().join("outside");
    std::fs::write(&outside, "").unwrap();
    std::fs::create_dir_all(claim.join("a/b")).unwrap();
    std::fs::write(claim.join("a/b/f"), "").unwrap();
    symlink(&outside, claim.join("a/link")).unwrap();
    case.make().unwrap();
    assert_eq!(std::fs::metadata(claim.join("a/b/f")).unwrap().gid(), 777);
    assert_eq!(mode(&claim.join("a/b")) & 0o2070, 0o2070);
    assert_ne!(std::fs::metadata(&outside).unwrap().gid(), 777);
    // The root matches now: what differs below stays.
    std::fs::write(claim.join("late"), "").unwrap();
    std::os::unix::fs::chown(claim.join("late"), None, Some(0)).unwrap();
    case.make().unwrap();
    assert_eq!(std::fs::metadata(claim.join("late")).unwrap().gid(), 0);
}

#[test]
fn removal_stays_inside_even_when_the_tree_is_hostile() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("precious"), "x").unwrap();
    let victim = dir.path().join("victim");
    std::fs::create_dir(&victim).unwrap();
    symlink(&outside, victim.join("link")).unwrap();
    // A tmpfs, and a bind mount of what must survive, inside the tree.
    std::fs::create_dir(victim.join("t")).unwrap();
    tmpfs::mount_once("v", &victim.join("t"), None, 0o755).unwrap();
    std::fs::create_dir(victim.join("t/bind")).unwrap();
    rustix::mount::mount_bind(&outside, victim.join("t/bind")).unwrap();
    std::fs::create_dir(victim.join("bind")).unwrap();
    rustix::mount::mount_bind(&outside, victim.join("bind")).unwrap();
    std::fs::write(victim.join("file"), "").unwrap();
    rustix::mount::mount_bind(outside.join("precious"), victim.join("file")).unwrap();
    // Deeper than a path name may be long.
    let mut at = rustix::fs::open(
        &victim,
        rustix::fs::OFlags::DIRECTORY,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    for _ in 0..600 {
        rustix::fs::mkdirat(
            &at,
            "deeeeeeep",
            rustix::fs::Mode::from_bits_truncate(0o700),
        )
        .unwrap();
        at = rustix::fs::openat(
            &at,
            "deeeeeeep",
            rustix::fs::OFlags::DIRECTORY,
            rustix::fs::Mode::empty(),
        )
        .unwrap();
    }
    drop(at);
    remove::path(&victim).unwrap();
    assert!(!victim.exists());
    assert_eq!(read(&outside.join("precious")), "x");
    assert!(!read(Path::new("/proc/self/mountinfo")).contains(victim.to_str().unwrap()));
    remove::path(&victim).unwrap();
}
