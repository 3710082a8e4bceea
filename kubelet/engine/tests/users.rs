//! Sandboxes with a user namespace.

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use common::Host;
use rkube_engine::api::{
    ContainerRuntime, ExecConfig, MountConfig, MountSource, Propagation, Stdio,
};
use rkube_engine::chain;

fn volume(path: &std::path::Path, target: &str, of_sandbox: bool) -> MountConfig {
    MountConfig {
        source: MountSource::Bind {
            path: path.to_owned(),
            sub_path: None,
        },
        target: target.into(),
        read_only: false,
        recursive_read_only: false,
        of_sandbox,
        propagation: Propagation::Private,
    }
}

/// First id on the host, from the map of a process.
fn first_id(pid: u32) -> u32 {
    for file in ["uid_map", "gid_map"] {
        let map = std::fs::read_to_string(format!("/proc/{pid}/{file}")).expect("map");
        let words: Vec<&str> = map.split_whitespace().collect();
        assert_eq!((words[0], words[2]), ("0", "65536"), "{map}");
    }
    let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map")).expect("map");
    map.split_whitespace()
        .nth(1)
        .expect("id")
        .parse()
        .expect("number")
}

fn link(pid: u32, kind: &str) -> std::path::PathBuf {
    std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("namespace")
}

#[test]
fn a_range_of_ids_for_each_sandbox() {
    let mut host = Host::new();
    let dir = tempfile::tempdir().expect("temp dir");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).expect("mode");
    let mut firsts = Vec::new();
    for id in ["a", "b"] {
        let mut sandbox = host.sandbox(id);
        sandbox.user_namespace = true;
        sandbox.sysctls = [("net.ipv4.ip_unprivileged_port_start".into(), "80".into())].into();
        let status = host.engine().run_sandbox(&sandbox);
        let status = status.unwrap_or_else(|e| panic!("{}", chain(&e)));
        let pause = status.pause_pid.expect("pause");
        let mut main = host.container(id, "main", &["run", &format!("write /v/{id} x; sleep inf")]);
        main.mounts.push(volume(dir.path(), "/v", false));
        host.start(&main);
        let pid = host.status(id).containers[0].pid.expect("pid");
        let first = first_id(pid);
        assert!(first >= 65536 && first.is_multiple_of(65536), "{first}");
        assert_eq!(first_id(pause), first);
        assert_eq!(link(pid, "user"), link(pause, "user"));
        assert_ne!(link(pid, "user"), link(std::process::id(), "user"));
        for kind in ["net", "ipc", "uts"] {
            assert_eq!(link(pid, kind), link(pause, kind), "{kind}");
        }
        assert_ne!(link(pid, "pid"), link(pause, "pid"));
        let process = std::fs::metadata(format!("/proc/{pid}")).expect("process");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        let wanted = format!("Uid:\t{first}\t{first}\t{first}\t{first}");
        assert!(status.contains(&wanted), "{status} {}", process.uid());
        firsts.push(first);

        // Its own files are its root's, an exec is one of its own, and it may
        // write to its standard output by name.
        let (reader, writer) = std::io::pipe().expect("pipe");
        let script = "write /made x; write /dev/shm/made x; write /proc/self/fd/1 seen; \
                      cat /proc/self/uid_map; env";
        let config = ExecConfig {
            argv: vec!["/toolbox".into(), "run".into(), script.into()],
            ..ExecConfig::default()
        };
        let stdio = Stdio {
            stdout: Some(writer.into()),
            ..Stdio::default()
        };
        let handle = host.engine().exec(&main.id, &config, stdio);
        let handle = handle.unwrap_or_else(|e| panic!("{}", chain(&e)));
        assert_eq!(host.engine().exec_wait(&main.id, &handle).expect("wait"), 0);
        let text = std::io::read_to_string(reader).expect("output");
        assert!(
            text.contains("seen") && text.contains("GREETING=hello"),
            "{text}"
        );
        assert!(text.contains(&first.to_string()), "{text}");
    }
    assert_ne!(firsts[0], firsts[1]);
    // The volume has the owners that its file system has.
    common::until("both have written", || {
        ["a", "b"].iter().all(|n| dir.path().join(n).exists())
    });
    for name in ["a", "b"] {
        let meta = std::fs::metadata(dir.path().join(name)).expect("file");
        assert_eq!((meta.uid(), meta.gid()), (0, 0), "{name}");
    }
    // The ids are the record's: a new engine knows them, and gives no one of
    // them to another sandbox.
    host.crash();
    let mut third = host.sandbox("c");
    third.user_namespace = true;
    let status = host.engine().run_sandbox(&third).expect("sandbox");
    let new = first_id(status.pause_pid.expect("pause"));
    assert!(!firsts.contains(&new), "{new} of {firsts:?}");
    host.engine()
        .remove_sandbox(&"a".to_owned())
        .expect("remove");
    third.id = "d".into();
    third.cgroup = "kubepods/podd".into();
    let status = host.engine().run_sandbox(&third).expect("sandbox");
    let again = first_id(status.pause_pid.expect("pause"));
    assert_eq!(again, firsts[0], "free again with its record");
    host.end();
}

#[test]
fn host_namespaces_go_with_the_hosts_users_only() {
    let host = Host::new();
    let mut sandbox = host.sandbox("h");
    sandbox.user_namespace = true;
    sandbox.network = rkube_engine::api::NamespaceMode::Host;
    let error = host
        .engine()
        .run_sandbox(&sandbox)
        .map(drop)
        .expect_err("refused");
    assert!(
        chain(&error).contains("user namespace"),
        "{}",
        chain(&error)
    );
    host.end();
}

/// /proc stands for every file system that has no maps of owners.
#[test]
fn a_volume_that_cannot_be_mapped_is_refused() {
    let host = Host::new();
    let mut sandbox = host.sandbox("v");
    sandbox.user_namespace = true;
    host.engine().run_sandbox(&sandbox).expect("sandbox");
    let mut main = host.container("v", "main", &["sleep", "inf"]);
    main.mounts
        .push(volume(std::path::Path::new("/proc/sys"), "/v", false));
    let error = host
        .engine()
        .start_container(&main)
        .map(drop)
        .expect_err("refused");
    assert!(chain(&error).contains("hostUsers"), "{}", chain(&error));
    host.end();
}
