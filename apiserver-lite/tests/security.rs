//! Real kubectl against a server with certificates, tokens, roles and
//! admission, and streams to a node that echoes.

#![allow(clippy::unwrap_used)]

mod cluster;

use serde_json::{Value, json};

fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
    })
}

async fn account(cluster: &cluster::TestCluster) {
    cluster
        .apply(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "default"}}))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_asks_who_and_whether() {
    let Some(cluster) = cluster::start().await else {
        eprintln!("skipped: no kubectl");
        return;
    };
    let who = cluster.ok(&["auth", "whoami", "-o", "json"]).await;
    let who: Value = serde_json::from_str(&who).unwrap();
    let info = &who["status"]["userInfo"];
    assert_eq!(info["username"], "kubernetes-admin");
    assert_eq!(
        info["groups"],
        json!(["system:masters", "system:authenticated"])
    );
    assert_eq!(cluster.ok(&["auth", "can-i", "*", "*"]).await.trim(), "yes");

    // A service account may nothing until a role says so.
    cluster.ok(&["create", "serviceaccount", "reader"]).await;
    let reader = "--as=system:serviceaccount:default:reader";
    let denied = cluster
        .run(&["auth", "can-i", "list", "pods", reader], "")
        .await;
    assert_eq!(String::from_utf8_lossy(&denied.stdout).trim(), "no");
    let refused = cluster.run(&["get", "pods", reader], "").await;
    let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        stderr.contains("pods is forbidden: User \"system:serviceaccount:default:reader\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""),
        "{stderr}"
    );
    cluster
        .ok(&[
            "create",
            "rolebinding",
            "reader",
            "--clusterrole=view",
            "--serviceaccount=default:reader",
        ])
        .await;
    assert_eq!(
        cluster
            .ok(&["auth", "can-i", "list", "pods", reader])
            .await
            .trim(),
        "yes"
    );
    let list = cluster.ok(&["auth", "can-i", "--list", reader]).await;
    assert!(
        list.contains("pods/log") && list.contains("selfsubjectreviews"),
        "{list}"
    );
    cluster.ok(&["get", "pods", reader]).await;

    // A token on request is the account, and dies with it.
    let token = cluster
        .ok(&["create", "token", "reader", "--duration=10m"])
        .await;
    let token = token.trim().to_owned();
    let bare = cluster.folder.path().join("bare.conf");
    let config = rkube_pki::kubeconfig::Kubeconfig {
        server: format!("https://{}", cluster.server.address()),
        authority: cluster.pki.authority().pem().to_owned(),
        token: Some(token.clone()),
        ..Default::default()
    };
    config.write(&bare, "k", "u").unwrap();
    let bare = format!("--kubeconfig={}", bare.display());
    let who = cluster
        .ok(&[
            &bare,
            "auth",
            "whoami",
            "-o",
            "jsonpath={.status.userInfo.username}",
        ])
        .await;
    assert_eq!(who, "system:serviceaccount:default:reader");
    cluster.ok(&[&bare, "get", "pods"]).await;
    let refused = cluster.run(&[&bare, "get", "secrets"], "").await;
    assert!(!refused.status.success());
    cluster.ok(&["delete", "serviceaccount", "reader"]).await;
    let gone = cluster.run(&[&bare, "get", "pods"], "").await;
    let stderr = String::from_utf8_lossy(&gone.stderr).into_owned();
    assert!(
        stderr.contains("Unauthorized") || stderr.contains("logged in"),
        "{stderr}"
    );
    let short = cluster
        .run(&["create", "token", "reader", "--duration=1m"], "")
        .await;
    assert!(!short.status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gives_away_what_they_do_not_hold() {
    let Some(cluster) = cluster::start().await else {
        eprintln!("skipped: no kubectl");
        return;
    };
    cluster
        .ok(&[
            "create",
            "clusterrole",
            "granter",
            "--verb=create,get,list,update",
            "--resource=roles,rolebindings",
        ])
        .await;
    cluster
        .ok(&[
            "create",
            "clusterrolebinding",
            "eve",
            "--clusterrole=granter",
            "--user=eve",
        ])
        .await;
    cluster
        .ok(&[
            "create",
            "clusterrolebinding",
            "eve-view",
            "--clusterrole=view",
            "--user=eve",
        ])
        .await;
    let create = |name: &'static str, resource: &'static str| {
        let cluster = &cluster;
        async move {
            let arguments = ["create", "role", name, "--verb=get", resource, "--as=eve"];
            cluster.run(&arguments, "").await
        }
    };
    assert!(create("pods", "--resource=pods").await.status.success());
    let refused = create("secrets", "--resource=secrets").await;
    let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        stderr.contains("is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\"]}"),
        "{stderr}"
    );
    let bind = [
        "create",
        "rolebinding",
        "self",
        "--clusterrole=admin",
        "--user=eve",
        "--as=eve",
    ];
    assert!(!cluster.run(&bind, "").await.status.success());
    let bind = [
        "create",
        "rolebinding",
        "self",
        "--clusterrole=view",
        "--user=bob",
        "--as=eve",
    ];
    assert!(cluster.run(&bind, "").await.status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn admission_fills_in_and_refuses() {
    let Some(cluster) = cluster::start().await else {
        eprintln!("skipped: no kubectl");
        return;
    };
    let create = |object: Value, more: &'static [&'static str]| {
        let cluster = &cluster;
        async move {
            let mut arguments = vec!["create", "-f", "-"];
            arguments.extend(more);
            let output = cluster.run(&arguments, &object.to_string()).await;
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(stderr.is_empty(), output.status.success(), "{stderr}");
            stderr
        }
    };
    let stderr = create(pod("early", "echo"), &[]).await;
    assert!(
        stderr.contains(
            "error looking up service account default/default: serviceaccount \"default\" not found"
        ),
        "{stderr}"
    );
    account(&cluster).await;
    assert_eq!(create(pod("p", "echo"), &[]).await, "");
    let made = cluster.ok(&["get", "pod", "p", "-o", "json"]).await;
    let spec = serde_json::from_str::<Value>(&made).unwrap()["spec"].clone();
    assert_eq!(spec["serviceAccountName"], "default");
    assert_eq!(spec["priority"], 0);
    assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
    let volume = spec["volumes"][0]["name"].as_str().unwrap();
    assert!(volume.starts_with("kube-api-access-"), "{volume}");
    assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], volume);

    let mut critical = pod("critical", "echo");
    critical["spec"]["priorityClassName"] = "system-node-critical".into();
    assert_eq!(create(critical.clone(), &[]).await, "");
    let priority = cluster
        .ok(&["get", "pod", "critical", "-o", "jsonpath={.spec.priority}"])
        .await;
    assert_eq!(priority, "2000001000");
    critical["metadata"]["name"] = "other".into();
    critical["spec"]["priorityClassName"] = "nope".into();
    let stderr = create(critical, &[]).await;
    assert!(
        stderr.contains("no PriorityClass with name nope was found"),
        "{stderr}"
    );
    cluster
        .apply(
            json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": "usual"}, "value": 7, "globalDefault": true}),
        )
        .await;
    assert_eq!(create(pod("usual", "echo"), &[]).await, "");
    let priority = cluster
        .ok(&["get", "pod", "usual", "-o", "jsonpath={.spec.priority}"])
        .await;
    assert_eq!(priority, "7");

    let mut classed = pod("classed", "echo");
    classed["spec"]["runtimeClassName"] = "light".into();
    let stderr = create(classed.clone(), &[]).await;
    assert!(
        stderr.contains("pod rejected: RuntimeClass \"light\" not found"),
        "{stderr}"
    );
    let class = serde_json::json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
        "metadata": {"name": "light"}, "handler": "light", "overhead": {"podFixed": {"cpu": "10m"}},
        "scheduling": {"nodeSelector": {"a": "b"}, "tolerations": [{"key": "k", "operator": "Exists"}]}});
    let made = cluster
        .run(&["create", "-f", "-"], &class.to_string())
        .await;
    assert!(made.status.success());
    assert_eq!(create(classed, &[]).await, "");
    let made = cluster.ok(&["get", "pod", "classed", "-o", "json"]).await;
    let spec = serde_json::from_str::<Value>(&made).unwrap()["spec"].clone();
    assert_eq!(spec["overhead"]["cpu"], "10m");
    assert_eq!(spec["nodeSelector"]["a"], "b");
    assert_eq!(spec["tolerations"].as_array().unwrap().len(), 3);
    let mut heavy = pod("heavy", "echo");
    heavy["spec"]["overhead"]["cpu"] = "1".into();
    let stderr = create(heavy, &[]).await;
    assert!(
        stderr.contains("Pod Overhead set without corresponding RuntimeClass defined Overhead"),
        "{stderr}"
    );

    let mut nowhere = pod("p", "echo");
    nowhere["metadata"]["namespace"] = "nowhere".into();
    let stderr = create(nowhere, &[]).await;
    assert!(
        stderr.contains("namespaces \"nowhere\" not found"),
        "{stderr}"
    );
    let doomed = cluster
        .run(&["delete", "namespace", "kube-system", "--wait=false"], "")
        .await;
    let stderr = String::from_utf8_lossy(&doomed.stderr).into_owned();
    assert!(
        stderr.contains("this namespace may not be deleted"),
        "{stderr}"
    );

    // A node writes about itself and its pods only.
    let node = |name: &str| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
    let as_node = &["--as=system:node:a", "--as-group=system:nodes"];
    assert_eq!(create(node("a"), as_node).await, "");
    let taints = cluster
        .ok(&["get", "node", "a", "-o", "jsonpath={.spec.taints[0].key}"])
        .await;
    assert_eq!(taints, "node.kubernetes.io/not-ready");
    let stderr = create(node("b"), as_node).await;
    assert!(
        stderr.contains("node \"a\" is not allowed to modify node \"b\""),
        "{stderr}"
    );
    let get = |what: &'static [&'static str]| {
        let cluster = &cluster;
        async move {
            let arguments = [&["get", "-o", "name"], what, as_node].concat();
            cluster.run(&arguments, "").await.status.success()
        }
    };
    cluster
        .ok(&["create", "secret", "generic", "used", "--from-literal=a=b"])
        .await;
    cluster
        .ok(&[
            "create",
            "secret",
            "generic",
            "unused",
            "--from-literal=a=b",
        ])
        .await;
    let mut user = pod("user", "a");
    user["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "used"}}]);
    assert_eq!(create(user, &[]).await, "");
    assert!(get(&["secret", "used"]).await);
    assert!(!get(&["secret", "unused"]).await);
    assert!(!get(&["secrets"]).await);
    assert!(get(&["pods", "-A"]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_streams_over_both_protocols() {
    let Some(cluster) = cluster::start().await else {
        eprintln!("skipped: no kubectl");
        return;
    };
    streams(&cluster, "echo").await;
}

/// The same to a node behind its HTTPS port: each protocol of a client meets SPDY to the kubelet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_streams_to_a_node_behind_its_port() {
    let Some(cluster) = cluster::start().await else {
        eprintln!("skipped: no kubectl");
        return;
    };
    let port = cluster::kubelet::start(&cluster.pki, "far").await;
    cluster
        .apply(
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "far"}, "status": {
                "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            }}),
        )
        .await;
    streams(&cluster, "far").await;
}

async fn streams(cluster: &cluster::TestCluster, node: &str) {
    account(cluster).await;
    cluster.apply(pod("p", node)).await;
    let status = r#"{"status": {"phase": "Running"}}"#;
    cluster
        .ok(&[
            "patch",
            "pod",
            "p",
            "--subresource=status",
            "--type=merge",
            "-p",
            status,
        ])
        .await;
    let big = "0123456789abcde\n".repeat(20_000);
    for sockets in ["true", "false"] {
        let env = [
            ("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", sockets),
            ("KUBECTL_PORT_FORWARD_WEBSOCKETS", sockets),
        ];
        let run = |arguments: &'static [&'static str]| async move {
            cluster.run_with(arguments, "", &env).await
        };
        let output = run(&["exec", "p", "--", "both"]).await;
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "to stdout\n");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "to stderr\n");
        let cat = ["exec", "-i", "p", "--", "cat"];
        let output = cluster.run_with(&cat, &big, &env).await;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{stderr}");
        assert!(
            output.stdout == big.as_bytes(),
            "{sockets}: {}",
            output.stdout.len()
        );
        let output = run(&["exec", "p", "--", "exit", "7"]).await;
        assert_eq!(output.status.code(), Some(7), "{output:?}");
        let output = run(&["exec", "p", "--", "nope"]).await;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            stderr.contains("error executing command in container"),
            "{stderr}"
        );
        let output = run(&["exec", "p", "-c", "x", "--", "both"]).await;
        assert!(!output.status.success());
        let output = run(&["attach", "p"]).await;
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "to stdout\n",
            "{output:?}"
        );
        forward(cluster, &env).await;
    }
    let log = cluster.ok(&["logs", "p", "--tail=3"]).await;
    assert_eq!(log, "log of c Some(3)\n");
}

/// Two connections through one `kubectl port-forward`.
async fn forward(cluster: &cluster::TestCluster, env: &[(&str, &str)]) {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::process::Stdio;
    let mut command = cluster.command(&["port-forward", "p", ":80"]);
    command.envs(env.iter().copied()).stdout(Stdio::piped());
    tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        // "Forwarding from 127.0.0.1:PORT -> 80"
        let port = line
            .split(['>', ':', ' '])
            .find_map(|w| w.parse::<u16>().ok());
        for _ in 0..2 {
            let address = ("127.0.0.1", port.unwrap_or_else(|| panic!("{line}")));
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream.write_all(b"hello").unwrap();
            let mut back = String::new();
            stream.read_to_string(&mut back).unwrap();
            assert_eq!(back, "hello at 80");
        }
        child.kill().unwrap();
        child.wait().unwrap();
    })
    .await
    .unwrap();
}
