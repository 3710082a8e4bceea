//! `rkube server`, driven by the real kubectl.

mod crash;
mod joining;
mod nodes;
mod walk;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::case::Case;
use crate::command::Cmd;
use crate::host::TestHost;
use crate::kubectl::Kubectl;
use crate::outside::Outside;
use crate::pods::{script, tool, with};
use crate::wait::until;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("server::one_pod", one_pod).within_secs(240),
        Case::new("server::a_web_deployment", walk::seeds_on_one).within_secs(600),
        Case::new("server::a_web_deployment_on_two_nodes", walk::seeds_on_two).within_secs(600),
        Case::new("server::walk_of_kubectl_1_20", walk::of_1_20).within_secs(900),
        Case::new("server::walk_of_kubectl_1_32", walk::of_1_32).within_secs(900),
        Case::new("server::walk_of_kubectl_1_33", walk::of_1_33).within_secs(900),
        Case::new(
            "server::walk_of_kubectl_1_20_on_two_nodes",
            walk::of_1_20_on_two,
        )
        .within_secs(900),
        Case::new(
            "server::walk_of_kubectl_1_32_on_two_nodes",
            walk::of_1_32_on_two,
        )
        .within_secs(900),
        Case::new(
            "server::walk_of_kubectl_1_33_on_two_nodes",
            walk::of_1_33_on_two,
        )
        .within_secs(900),
        Case::new("server::walk_of_other_kubectls", walk::of_others).within_secs(1800),
        Case::new("server::beside_rkube_run", beside_rkube_run).within_secs(240),
        Case::new("server::objects_reach_pods", objects_reach_pods).within_secs(240),
        Case::new("server::proxy_to_pods_and_services", proxied).within_secs(240),
        Case::new("server::a_second_node", a_second_node).within_secs(300),
        Case::new("server::network_of_two_nodes", nodes::network).within_secs(600),
        Case::new("server::a_node_comes_and_goes", nodes::comes_and_goes).within_secs(600),
        Case::new("server::a_node_dies", nodes::dies).within_secs(600),
        Case::new("server::a_node_joins_by_kubeconfig", joining::by_kubeconfig).within_secs(300),
        Case::new("server::a_node_at_an_ipv6_address", joining::at_ipv6).within_secs(300),
        Case::new("server::certificates_of_a_node", joining::certificates).within_secs(300),
        Case::new("server::a_root_of_0_1_0", joining::an_old_root).within_secs(240),
        Case::new("server::legacy_tokens", joining::legacy_tokens).within_secs(240),
        Case::new("server::kube_rs", joining::kube_rs).within_secs(300),
        Case::new("server::killed_under_load", crash::killed_under_load).within_secs(600),
        Case::new("server::a_full_disk", crash::a_full_disk).within_secs(300),
        Case::new("server::a_failing_disk", crash::a_failing_disk).within_secs(300),
    ]
}

const PATIENCE: Duration = Duration::from_secs(60);

/// A pod for the API: its one container, on the server's node without asking
/// a scheduler.
fn bound(name: &str, container: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": "one", "terminationGracePeriodSeconds": 1, "containers": [container]},
    })
}

fn is_running(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running" && pod["status"]["containerStatuses"][0]["ready"] == true
}

fn exec(kubectl: &Kubectl, pod: &str, argv: &[&str]) -> anyhow::Result<String> {
    let mut args = vec!["exec", pod, "--"];
    args.extend(argv);
    Ok(kubectl.run(&args)?.stdout.trim().to_owned())
}

/// The walking skeleton: a pod runs, tells, obeys and goes; a server that is
/// ended or killed is not noticed by it.
fn one_pod(host: &TestHost) -> anyhow::Result<()> {
    let _outside = Outside::join()?;
    let (server, kubectl) = host.server(&[])?;
    kubectl.wait("a ready node", &["node", "one"], |node| {
        let conditions = node["status"]["conditions"].as_array();
        conditions.is_some_and(|c| {
            c.iter()
                .any(|c| c["type"] == "Ready" && c["status"] == "True")
        })
    })?;
    let text = "echo hello; echo there; sleep 1000";
    kubectl.apply(&[bound("p", script("a", text))])?;
    let pod = kubectl.wait("a running pod", &["pod", "p"], is_running)?;
    let status = &pod["status"];
    ensure!(status["qosClass"] == "BestEffort", "{status:#}");
    ensure!(
        status["hostIP"] == Outside::HOST_V4.to_string(),
        "{status:#}"
    );
    let started = status["containerStatuses"][0]["state"]["running"]["startedAt"].clone();
    let logs = kubectl.run(&["logs", "p"])?.stdout;
    ensure!(logs == "hello\nthere\n", "{logs:?}");
    let tail = kubectl.run(&["logs", "p", "--tail=1"])?.stdout;
    ensure!(tail == "there\n", "{tail:?}");
    ensure!(exec(&kubectl, "p", &["echo", "x y"])? == "x y", "exec");
    kubectl.cmd(&["exec", "p", "--", "exit", "7"]).exits(7)?;
    let cat = kubectl
        .cmd(&["exec", "-i", "p", "--", "cat"])
        .stdin("through\n")
        .ok()?;
    ensure!(cat.stdout == "through\n", "{cat}");
    // The end of what is typed is the end of its input, and so its own.
    let reads = with(
        script("a", "cat; echo end"),
        "",
        json!({"stdin": true, "stdinOnce": true}),
    );
    let never = json!({"restartPolicy": "Never"});
    kubectl.apply(&[with(bound("reads", reads), "spec", never)])?;
    kubectl.wait("a pod that reads", &["pod", "reads"], is_running)?;
    let attached = kubectl.cmd(&["attach", "-i", "reads"]);
    let attached = attached.stdin("typed\n").ok()?;
    ensure!(attached.stdout.contains("typed\nend\n"), "{attached}");
    kubectl.run(&["delete", "pod", "reads"])?;
    let events = kubectl.get(&["events", "--field-selector=involvedObject.name=p"])?;
    let reasons: BTreeSet<&str> = events["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|e| e["reason"].as_str())
        .collect();
    for reason in ["Pulled", "Created", "Started"] {
        ensure!(reasons.contains(reason), "{reasons:?}");
    }
    // A server that ends, and one that is killed: the pod does not notice.
    server.end()?;
    let (server, kubectl) = host.server(&[])?;
    server.kill()?;
    let (server, kubectl2) = host.server(&[])?;
    drop(kubectl);
    let pod = kubectl2.wait("the same pod", &["pod", "p"], is_running)?;
    let after = &pod["status"]["containerStatuses"][0];
    ensure!(
        after["state"]["running"]["startedAt"] == started && after["restartCount"] == 0,
        "{after:#}"
    );
    ensure!(exec(&kubectl2, "p", &["echo", "still"])? == "still", "exec");
    kubectl2.run(&["delete", "pod", "p"])?;
    let pods = kubectl2.get(&["pods"])?;
    ensure!(pods["items"] == json!([]), "{pods:#}");
    server.end()
}

fn page(address: SocketAddr) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))
        .with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    let (_, body) = reply.split_once("\r\n\r\n").context("no body")?;
    Ok(body.trim().to_owned())
}

/// A web server that tells its pod's name before `word`.
fn web(word: &str, replicas: u32) -> Value {
    let text = format!("$(POD) {word}");
    let container = with(
        tool("web", &["httpd", "-p", "8080", "--text", &text]),
        "",
        json!({
            "env": [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "ports": [{"containerPort": 8080}],
            "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
        }),
    );
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]},
            },
        },
    })
}

const NODE_PORT: u16 = 32600;

/// `rkube run` beside a server: its pods are no business of the API but for
/// what they take.
fn beside_rkube_run(host: &TestHost) -> anyhow::Result<()> {
    let _outside = Outside::join()?;
    let asks = json!({"resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}});
    let own = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "own"},
        "spec": {"terminationGracePeriodSeconds": 1, "containers":
            [with(tool("a", &["sleep", "1000"]), "", asks)]},
    });
    host.up(&[own])?;
    let before = host.life("own", "a")?;
    // The server takes the supervisor's place, and its pod.
    let (server, kubectl) = host.server(&[])?;
    ensure!(before.runs(), "the pod of before runs on");
    let node = kubectl.get(&["node", "one"])?;
    let (capacity, left) = (&node["status"]["capacity"], &node["status"]["allocatable"]);
    ensure!(left["pods"] == "109", "{left}");
    ensure!(
        left["cpu"].as_str().is_some_and(|c| c.ends_with("900m")),
        "{capacity} {left}"
    );
    kubectl.apply(&[bound("theirs", tool("a", &["sleep", "1000"]))])?;
    kubectl.wait("a running pod", &["pod", "theirs"], is_running)?;
    let listed = host.rkube(["ps"])?.ok()?.stdout;
    ensure!(
        listed.contains("own") && listed.contains("theirs"),
        "{listed}"
    );
    let refused = host.rkube(["rm", "--force", "theirs"])?.exits(1)?;
    ensure!(refused.stderr.contains("API server"), "{refused}");
    host.rm(&["own"])?;
    kubectl.wait("its place back", &["node", "one"], |node| {
        node["status"]["allocatable"]["pods"] == "110"
    })?;
    kubectl.run(&["delete", "pod", "theirs"])?;
    server.end()
}

/// `pods/proxy` and `services/proxy`, by name and number of a port.
fn proxied(host: &TestHost) -> anyhow::Result<()> {
    let _outside = Outside::join()?;
    let (server, kubectl) = host.server(&[])?;
    let ports = json!([{"name": "http", "port": 80, "targetPort": 8080}]);
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": ports}});
    kubectl.apply(&[web("v1", 1), service])?;
    kubectl.line("rollout status deployment/web --timeout=60s")?;
    let pods = kubectl.get(&["pods"])?;
    let pod = pods["items"][0]["metadata"]["name"]
        .as_str()
        .context("a pod")?;
    let at = |what: &str| format!("get --raw /api/v1/namespaces/default/{what}/proxy/");
    for what in [
        &*format!("pods/{pod}"),
        &format!("pods/{pod}:8080"),
        &format!("pods/http:{pod}:8080"),
    ] {
        kubectl.says(&at(what), &format!("{pod} v1"))?;
    }
    // The endpoint may come a moment after the pod is ready.
    until("an endpoint", PATIENCE, || {
        Ok(kubectl.says(&at("services/web:http"), "v1").ok())
    })?;
    kubectl.says(&at("services/web:80"), "v1")?;
    kubectl.refuses(&at("services/web:81"), "no service port 81")?;
    kubectl.refuses(&at("pods/absent"), "not found")?;
    kubectl.refuses(
        &at(&format!("pods/{pod}:9")),
        "error trying to reach service",
    )?;
    kubectl.line("delete deployment web --timeout=60s")?;
    server.end()
}

/// A node that joins by the server's token, from another network namespace.
fn a_second_node(host: &TestHost) -> anyhow::Result<()> {
    let outside = Outside::join()?;
    let (server, kubectl) = host.server(&[])?;
    let token = std::fs::read_to_string(host.root().join("var/lib/rkube/token"))?;
    let root = host.files().join("two");
    std::fs::create_dir(&root)?;
    let (program, place) = (host.program()?.to_owned(), root.clone());
    let rkube = move |args: &[&str]| {
        let root = place.to_string_lossy().into_owned();
        let mut all = vec!["--root", &root];
        all.extend(args);
        Cmd::new(&program, all).env("RKUBE_LOG", "info")
    };
    let url = format!("https://{}:6443", Outside::HOST_V4);
    let ip = Outside::V4.to_string();
    let flags = [
        "agent",
        "--server",
        &url,
        "--token",
        token.trim(),
        "--node-name",
        "two",
        "--node-ip",
        &ip,
    ];
    let agent = rkube(&flags);
    let mut agent = outside.run(move || agent.spawn())?;
    let worked = (|| {
        agent.line("readiness", PATIENCE, |l| l.contains("the agent is ready"))?;
        let mut pod = bound("far", script("a", "echo far; sleep 1000"));
        pod["spec"]["nodeName"] = "two".into();
        kubectl.apply(&[pod])?;
        let pod = kubectl.wait("a pod on the second node", &["pod", "far"], is_running)?;
        ensure!(
            pod["status"]["hostIP"] == ip.as_str(),
            "{:#}",
            pod["status"]
        );
        let logs = kubectl.run(&["logs", "far"])?.stdout;
        ensure!(logs == "far\n", "{logs:?}");
        ensure!(exec(&kubectl, "far", &["echo", "x"])? == "x", "exec");
        kubectl.run(&["delete", "pod", "far"])?;
        anyhow::Ok(())
    })();
    agent.signal(rustix::process::Signal::TERM)?;
    let (_, lines) = agent.end(PATIENCE)?;
    let reset = rkube(&["reset", "--force"]).within(PATIENCE);
    outside.run(move || reset.ok().map(drop))?;
    worked.with_context(|| format!("the agent said:\n{}", lines.join("\n")))?;
    server.end()
}

/// ConfigMaps and Secrets in variables and volumes, and their live update.
fn objects_reach_pods(host: &TestHost) -> anyhow::Result<()> {
    let _outside = Outside::join()?;
    let (server, kubectl) = host.server(&[])?;
    let map = |value: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"},
            "data": {"k": value}})
    };
    let mut pod = bound(
        "p",
        with(
            tool("a", &["sleep", "1000"]),
            "",
            json!({
                "env": [{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}],
                "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            }),
        ),
    );
    pod["spec"]["volumes"] = json!([{"name": "v", "projected": {"sources": [
        {"configMap": {"name": "m"}}, {"secret": {"name": "s", "optional": true}},
        {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}}]);
    // The pod waits for what it needs.
    kubectl.apply(&[pod])?;
    kubectl.wait("the wait for a ConfigMap", &["events"], |events| {
        events.to_string().contains("FailedMount")
    })?;
    kubectl.apply(&[map("1")])?;
    kubectl.wait("a running pod", &["pod", "p"], is_running)?;
    ensure!(exec(&kubectl, "p", &["cat", "/v/k"])? == "1", "the volume");
    ensure!(exec(&kubectl, "p", &["env", "K"])? == "1", "the variable");
    kubectl.apply(&[map("2")])?;
    kubectl.run(&[
        "create",
        "secret",
        "generic",
        "s",
        "--from-literal=key=hidden",
    ])?;
    kubectl.run(&["label", "pod", "p", "colour=green"])?;
    until("the new files", PATIENCE, || {
        let seen = exec(&kubectl, "p", &["cat", "/v/k", "/v/labels"])?;
        // The Secret's file is there later than the pod.
        let secret = kubectl
            .cmd(&["exec", "p", "--", "cat", "/v/key"])
            .output()?;
        let fresh = seen.starts_with('2') && seen.contains("green") && secret.stdout == "hidden";
        Ok(fresh.then_some(()))
    })?;
    kubectl.run(&["delete", "pod", "p", "--grace-period=1"])?;
    server.end()
}
