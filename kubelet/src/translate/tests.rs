use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use rkube_engine::api::*;
use serde_json::json;

use super::container::{Prepared, signal_number};
use super::*;
use crate::env::Environment;
use crate::node::{NodeFacts, Paths};
use crate::pod::{self, tests::pod as pod_of};
use crate::volumes::VolumePath;

fn node() -> NodeFacts {
    NodeFacts {
        single_process_oom_kill: false,
        name: "node-1".into(),
        addresses: vec![],
        cpu_millis: 2000,
        memory_bytes: 4 << 30,
        cluster_dns: vec![],
        cluster_domain: "cluster.local".into(),
    }
}

fn translate(pod: &Pod, env: &[(&str, &str)]) -> Result<ContainerConfig, TranslateError> {
    let environment = Environment {
        variables: env
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect(),
        skipped: vec![],
    };
    let volumes = BTreeMap::from([
        (
            "data".to_owned(),
            VolumePath {
                path: "/v/data".into(),
                read_only: false,
            },
        ),
        (
            "cm".to_owned(),
            VolumePath {
                path: "/v/cm".into(),
                read_only: true,
            },
        ),
    ]);
    let prepared = Prepared {
        attempt: 3,
        environment: &environment,
        volumes: &volumes,
        termination_log: Path::new("/t/log"),
    };
    container::container(
        pod,
        pod::container(pod, "a").unwrap().1,
        prepared,
        &node(),
        &Paths::new("/r"),
    )
}

fn target<'a>(config: &'a ContainerConfig, target: &str) -> &'a MountConfig {
    config.mounts.iter().find(|m| m.target == target).unwrap()
}

#[test]
fn a_full_container() {
    let pod = pod_of(json!({
        "securityContext": {"runAsUser": 1000, "runAsGroup": 1001, "fsGroup": 2000, "supplementalGroups": [5, 2000]},
        "containers": [{"name": "a", "image": "x", "command": ["$(P)", "$$(P)"], "args": ["-v", "$(Q)"], "tty": true,
            "securityContext": {"runAsUser": 7, "capabilities": {"add": ["NET_ADMIN"], "drop": ["cap_all"]},
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true},
            "lifecycle": {"stopSignal": "SIGUSR1"},
            "resources": {"limits": {"cpu": "100m", "memory": "64Mi"}},
            "volumeMounts": [
                {"name": "data", "mountPath": "/etc/hosts"},
                {"name": "data", "mountPath": "/d/e/f", "subPathExpr": "x/$(P)", "mountPropagation": "HostToContainer"},
                {"name": "cm", "mountPath": "/d", "recursiveReadOnly": "Enabled"}]}]}));
    let config = translate(&pod, &[("P", "p")]).unwrap();
    assert_eq!(config.id.to_string(), "u-1/a/3");
    assert_eq!(
        config.command,
        Some(vec!["p".to_owned(), "$(P)".to_owned()])
    );
    assert_eq!(config.args, Some(vec!["-v".to_owned(), "$(Q)".to_owned()]));
    let s = &config.security;
    assert_eq!(
        (s.uid, s.gid, s.supplemental_groups.as_slice()),
        (Some(7), Some(1001), &[5, 2000][..])
    );
    assert_eq!(
        (
            s.add_capabilities.as_slice(),
            s.drop_capabilities.as_slice()
        ),
        (&["NET_ADMIN".to_owned()][..], &["ALL".to_owned()][..])
    );
    assert!(s.no_new_privileges && s.read_only_root && s.seccomp == Seccomp::RuntimeDefault);
    assert_eq!(config.stop_signal, Some(10));
    assert_eq!(config.resources.cpu_quota_us, Some(10_000));
    assert_eq!(config.resources.memory_limit_bytes, Some(64 << 20));
    assert_eq!(config.resources.memory_swap_bytes, Some(64 << 20));
    assert_eq!(config.oom_score_adj, -997);
    assert!(target(&config, "/d").read_only && target(&config, "/d").recursive_read_only);
    let deep = target(&config, "/d/e/f");
    assert_eq!(
        deep.source,
        MountSource::Bind {
            path: "/v/data".into(),
            sub_path: Some("x/p".into())
        }
    );
    assert_eq!(deep.propagation, Propagation::HostToContainer);
    let at = |t: &str| config.mounts.iter().position(|m| m.target == t).unwrap();
    assert!(at("/d") < at("/d/e/f"));
    assert_eq!(
        config
            .mounts
            .iter()
            .filter(|m| m.target == "/etc/hosts")
            .count(),
        1
    );
    assert_eq!(
        target(&config, "/etc/resolv.conf").source,
        MountSource::Bind {
            path: "/r/var/lib/rkube/pods/u-1/resolv.conf".into(),
            sub_path: None
        }
    );
    assert_eq!(
        target(&config, "/dev/termination-log").source,
        MountSource::Bind {
            path: "/t/log".into(),
            sub_path: None
        }
    );
}

#[test]
fn what_cannot_be_translated_is_named() {
    let fails = |container: serde_json::Value| {
        translate(
            &pod_of(json!({"containers": [container]})),
            &[("E", "../x")],
        )
        .unwrap_err()
        .to_string()
    };
    let mount = |field: &str, value: &str| json!({"name": "a", "volumeMounts": [{"name": "data", "mountPath": "/d", field: value}]});
    for (field, value) in [
        ("subPath", "../x"),
        ("subPath", "/x"),
        ("subPathExpr", "$(E)"),
        ("subPath", "a/../b"),
    ] {
        assert!(fails(mount(field, value)).contains("\"..\""), "{value}");
    }
    assert!(fails(mount("subPathExpr", "$(NO)")).contains("not set"));
    assert!(
        fails(json!({"name": "a", "volumeMounts": [{"name": "no", "mountPath": "/d"}]}))
            .contains("no volume \"no\"")
    );
    assert!(
        fails(json!({"name": "a", "securityContext": {"runAsUser": -1}}))
            .contains("runAsUser is -1")
    );
    assert!(
        fails(json!({"name": "a", "securityContext": {"runAsUser": 4_294_967_295i64}}))
            .contains("out of range")
    );
    for profile in ["../x.json", "/etc/passwd", "", "none.json"] {
        let c = json!({"name": "a", "securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": profile}}});
        assert!(fails(c).contains("seccomp profile"), "{profile}");
    }
}

#[test]
fn seccomp_profiles_of_the_host_are_read() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("p.json"),
        r#"{"defaultAction": "SCMP_ACT_ERRNO"}"#,
    )
    .unwrap();
    let pod = pod_of(
        json!({"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "p.json"}},
        "containers": [{"name": "a"}, {"name": "b", "securityContext": {"seccompProfile": {"type": "Unconfined"}}}]}),
    );
    let get = |name: &str| {
        security::security(&pod, pod::container(&pod, name).unwrap().1, dir.path())
            .unwrap()
            .seccomp
    };
    assert!(matches!(get("a"), Seccomp::Profile(_)));
    assert_eq!(get("b"), Seccomp::Unconfined);
}

#[test]
fn sandboxes() {
    let make = |spec: serde_json::Value| {
        sandbox::sandbox(
            &pod_of(spec),
            &node(),
            &Paths::new("/r"),
            qos::tier_resources(500, 2000),
        )
    };
    let config = make(json!({
        "securityContext": {"sysctls": [{"name": "net/ipv4/ip_unprivileged_port_start", "value": "0"}]},
        "initContainers": [{"name": "i", "ports": [{"containerPort": 1, "hostPort": 1}]}],
        "containers": [{"name": "a", "ports": [
            {"containerPort": 80, "hostPort": 8080, "hostIP": "127.0.0.1"}, {"containerPort": 81},
            {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "0.0.0.0"}]}]})).unwrap();
    assert_eq!(
        (config.network, config.ipc, config.pid),
        (
            NamespaceMode::Pod,
            NamespaceMode::Pod,
            NamespaceMode::Container
        )
    );
    assert_eq!(config.ports.len(), 2);
    assert_eq!(config.ports[0].host_ip, Some("127.0.0.1".parse().unwrap()));
    assert_eq!(
        (config.ports[1].protocol, config.ports[1].host_ip),
        (Protocol::Udp, None)
    );
    assert_eq!(config.sysctls["net.ipv4.ip_unprivileged_port_start"], "0");
    assert_eq!(config.cgroup, "kubepods/besteffort/podu-1");
    assert_eq!(
        config.parent_resources["kubepods/burstable"].cpu_shares,
        Some(512)
    );
    assert_eq!(config.log_dir, Path::new("/r/var/log/pods/default_web_u-1"));

    let config = make(
        json!({"hostNetwork": true, "hostPID": true, "hostIPC": true,
        "containers": [{"name": "a", "ports": [{"containerPort": 80, "hostPort": 80}]}]}),
    )
    .unwrap();
    assert_eq!(
        (config.network, config.ipc, config.pid),
        (
            NamespaceMode::Host,
            NamespaceMode::Host,
            NamespaceMode::Host
        )
    );
    assert!(config.ports.is_empty());
    assert_eq!(config.hostname, "node-1");

    let config = make(json!({"shareProcessNamespace": true, "setHostnameAsFQDN": true, "hostname": "h", "subdomain": "s", "containers": []})).unwrap();
    assert_eq!(
        (config.pid, config.hostname.as_str()),
        (NamespaceMode::Pod, "h.s.default.svc.cluster.local")
    );
    let long = "x".repeat(60);
    assert!(
        make(
            json!({"setHostnameAsFQDN": true, "hostname": long, "subdomain": "s", "containers": []})
        )
        .is_err()
    );
    let bad = json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": "x"}]}]});
    assert!(make(bad).unwrap_err().to_string().contains("hostIP"));
}

#[test]
fn signals() {
    for (name, number) in [
        ("SIGTERM", 15),
        ("term", 15),
        ("9", 9),
        ("SIGRTMIN+3", 37),
        ("SIGRTMAX", 64),
        ("SIGRTMAX-1", 63),
        ("SIGSYS", 31),
    ] {
        assert_eq!(signal_number(name).unwrap(), number, "{name}");
    }
    for name in [
        "",
        "SIG",
        "SIGNO",
        "0",
        "65",
        "SIGRTMIN+31",
        "SIGRTMIN-1",
        "-1",
    ] {
        assert!(signal_number(name).is_err(), "{name}");
    }
}
