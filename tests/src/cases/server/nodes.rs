//! Two nodes: what joins them, and what becomes of the pods of one that ends.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{NODE_PORT, PATIENCE, bound, exec, is_running, page, web};
use crate::command::Cmd;
use crate::host::TestHost;
use crate::images;
use crate::kubectl::{Kubectl, Server};
use crate::outside::Outside;
use crate::pods::{Life, script, tool};
use crate::second::SecondNode;
use crate::wait::until;

/// Two families everywhere: pods, Services, nodes.
const RANGES: [&str; 4] = [
    "--cluster-cidr",
    "10.42.0.0/16,fd42::/56",
    "--service-cidr",
    "10.43.0.0/16,fd43::/112",
];
/// An image with a shell, tar and a name server client that knows all types.
pub(super) const BUSYBOX: &str = "local/busybox:1";
/// How long a node may be silent here (`--node-monitor-grace-period`).
const GRACE: &str = "20s";

/// Two nodes, joined by a link.
pub(super) struct Pair<'a> {
    pub(super) outside: &'a Outside,
    pub(super) kubectl: Kubectl,
    pub(super) two: SecondNode<'a>,
    token: String,
}

/// Does something with two nodes that are ready, and takes them away. `flags`
/// are the server's own.
pub(super) fn on_two(
    host: &TestHost,
    flags: &[&str],
    work: impl FnOnce(&mut Pair<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let outside = Outside::join()?;
    outside.route_back()?;
    let mut flags = [&RANGES, flags].concat();
    let ips = format!("{},{}", Outside::HOST_V4, Outside::HOST_V6);
    flags.extend(["--node-ip", &ips]);
    import(host)?;
    let (server, kubectl) = host.server(&flags)?;
    let token = std::fs::read_to_string(host.root().join("var/lib/rkube/token"))?;
    let mut flags = RANGES.to_vec();
    let ips = format!("{},{}", Outside::V4, Outside::V6);
    flags.extend(["--node-ip", &ips]);
    let two = SecondNode::new(host, &outside, &flags)?;
    let mut pair = Pair {
        outside: &outside,
        kubectl,
        two,
        token: token.trim().to_owned(),
    };
    let worked = pair.begin().and_then(|()| work(&mut pair));
    let (said, cleared) = pair.two.clear();
    worked.with_context(|| format!("the agent said:\n{}", said.join("\n")))?;
    cleared?;
    Server::end(server)
}

/// Brings the image with a shell to the first node.
pub(super) fn import(host: &TestHost) -> anyhow::Result<()> {
    let archive = images::busybox()?;
    let archive = archive.to_string_lossy();
    host.rkube(["image", "import", &archive, BUSYBOX])?.ok()?;
    Ok(())
}

impl Pair<'_> {
    fn begin(&mut self) -> anyhow::Result<()> {
        self.two.import(&images::busybox()?, BUSYBOX)?;
        self.two.start(Some(&self.token))?;
        for node in ["one", "two"] {
            self.ready(node, true)?;
        }
        Ok(())
    }

    /// Waits until a node is ready, or is not.
    pub(super) fn ready(&self, node: &str, wanted: bool) -> anyhow::Result<Value> {
        let what = format!("node {node}: Ready is {wanted}");
        self.kubectl.wait(&what, &["node", node], |node| {
            let conditions = node["status"]["conditions"].as_array();
            let ready = conditions.and_then(|all| all.iter().find(|c| c["type"] == "Ready"));
            ready.is_some_and(|c| (c["status"] == "True") == wanted)
        })
    }

    /// Pods of the Deployment `web` that are ready and stay.
    pub(super) fn web_pods(&self, count: usize) -> anyhow::Result<Vec<Value>> {
        let args = ["pods", "-l", "app=web"];
        let what = format!("{count} pods of web");
        let list = self
            .kubectl
            .wait(&what, &args, |list| staying(list).len() == count)?;
        Ok(staying(&list))
    }

    /// Asks a URL from a pod until `count` different pods have answered.
    fn answers(&self, pod: &str, url: &str, count: usize) -> anyhow::Result<()> {
        let mut seen = BTreeSet::new();
        let what = format!("{count} answers of {url} in {pod}");
        // Many questions in one exec: a client's start costs more than they.
        let ask = vec![format!("get --timeout 5 {url}"); 12].join("; ");
        until(&what, PATIENCE, || {
            let said = self
                .kubectl
                .cmd(&["exec", pod, "--", "run", &ask])
                .output()?;
            seen.extend(said.stdout.lines().map(str::to_owned));
            Ok((seen.len() >= count).then_some(()))
        })
        .with_context(|| format!("answers: {seen:?}"))
    }

    /// Asks an address from both hosts until `count` pods have answered each.
    fn answers_hosts(&self, address: SocketAddr, count: usize) -> anyhow::Result<()> {
        for from_two in [false, true] {
            let mut seen = BTreeSet::new();
            let host = if from_two { "two" } else { "one" };
            let what = format!("{count} answers of {address} on host {host}");
            until(&what, PATIENCE, || {
                let answer = match from_two {
                    true => self.outside.run(move || Ok(page(address).ok()))?,
                    false => page(address).ok(),
                };
                seen.extend(answer);
                Ok((seen.len() >= count).then_some(()))
            })
            .with_context(|| format!("answers: {seen:?}"))?;
        }
        Ok(())
    }
}

fn staying(list: &Value) -> Vec<Value> {
    let items = list["items"].as_array().into_iter().flatten();
    let stays = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null() && is_running(pod);
    items.filter(stays).cloned().collect()
}

fn node_of(pod: &Value) -> &str {
    pod["spec"]["nodeName"].as_str().unwrap_or_default()
}

fn name_of(pod: &Value) -> &str {
    pod["metadata"]["name"].as_str().unwrap_or_default()
}

/// A pod's addresses, as a URL writes them.
fn hosts_of(pod: &Value) -> Vec<String> {
    let ips = pod["status"]["podIPs"].as_array().into_iter().flatten();
    ips.filter_map(|ip| ip["ip"].as_str()?.parse::<IpAddr>().ok())
        .map(url_host)
        .collect()
}

fn url_host(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

/// A pod on a node that asks for pages, and, in its second container, for
/// records of any type.
fn shell_on(node: &str) -> Value {
    let mut pod = bound(&format!("at-{node}"), tool("get", &["sleep", "100000"]));
    pod["spec"]["nodeName"] = node.into();
    if let Some(containers) = pod["spec"]["containers"].as_array_mut() {
        containers.push(json!({"name": "ask", "image": BUSYBOX,
            "command": ["sh", "-c", "sleep 100000"]}));
    }
    pod
}

fn services() -> [Value; 2] {
    let service = |name: &str, spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    [
        service(
            "web",
            json!({"type": "NodePort", "selector": {"app": "web"}, "ipFamilyPolicy": "RequireDualStack",
                "ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": NODE_PORT}]}),
        ),
        service(
            "all",
            json!({"clusterIP": "None", "selector": {"app": "web"}, "ipFamilyPolicy": "RequireDualStack",
                "ports": [{"name": "http", "port": 8080}]}),
        ),
    ]
}

/// Pods, Services, node ports and names across two nodes, in both families.
pub(super) fn network(host: &TestHost) -> anyhow::Result<()> {
    on_two(host, &[], |pair| {
        let kubectl = pair.kubectl.clone();
        let nodes = kubectl.get(&["nodes"])?;
        let ranges: BTreeSet<&str> = nodes["items"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|node| node["spec"]["podCIDRs"].as_array().into_iter().flatten())
            .filter_map(Value::as_str)
            .collect();
        ensure!(ranges.len() == 4, "{ranges:?}");
        let [service, headless] = services();
        kubectl.apply(&[
            web("one", 4),
            service,
            headless,
            shell_on("one"),
            shell_on("two"),
        ])?;
        let pods = pair.web_pods(4)?;
        let nodes: BTreeSet<&str> = pods.iter().map(node_of).collect();
        ensure!(nodes.len() == 2, "the pods are spread: {nodes:?}");
        let shells = ["at-one", "at-two"];
        for shell in shells {
            let pod = kubectl.wait("a shell", &["pod", shell], is_running)?;
            ensure!(hosts_of(&pod).len() == 2, "{:#}", pod["status"]);
        }
        // Every pod from a pod of each node, by each of its addresses.
        for shell in shells {
            for pod in &pods {
                for ip in hosts_of(pod) {
                    pair.answers(shell, &format!("http://{ip}:8080"), 1)?;
                }
            }
        }
        let service = kubectl.get(&["service", "web"])?;
        let ips: Vec<IpAddr> = service["spec"]["clusterIPs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|ip| ip.as_str()?.parse().ok())
            .collect();
        ensure!(ips.len() == 2, "{service:#}");
        for ip in &ips {
            for shell in shells {
                pair.answers(shell, &format!("http://{}", url_host(*ip)), 4)?;
            }
            pair.answers_hosts(SocketAddr::new(*ip, 80), 4)?;
        }
        let hosts: [IpAddr; 4] = [
            Outside::HOST_V4.into(),
            Outside::HOST_V6.into(),
            Outside::V4.into(),
            Outside::V6.into(),
        ];
        for ip in hosts {
            pair.answers_hosts(SocketAddr::new(ip, NODE_PORT), 4)?;
        }
        for shell in shells {
            names(pair, shell, &pods, &ips).with_context(|| format!("names in {shell}"))?;
        }
        through_the_server(pair, &pods)
    })
}

/// What the cluster's DNS answers in a pod.
fn names(pair: &Pair<'_>, shell: &str, pods: &[Value], ips: &[IpAddr]) -> anyhow::Result<()> {
    let ask = |kind: &str, name: &str| {
        let question = format!("exec {shell} -c ask -- nslookup -type={kind} {name}");
        pair.kubectl.line(&question)
    };
    let v4 = ips.iter().find(|ip| ip.is_ipv4()).context("an address")?;
    let v6 = ips.iter().find(|ip| ip.is_ipv6()).context("an address")?;
    let name = "web.default.svc.cluster.local";
    let said = ask("a", name)?;
    ensure!(said.contains(&v4.to_string()), "{said}");
    let said = ask("aaaa", name)?;
    ensure!(said.contains(&v6.to_string()), "{said}");
    let said = ask("srv", &format!("_http._tcp.{name}"))?;
    ensure!(said.contains(name) && said.contains(" 80 "), "{said}");
    // 1.0.43.10.in-addr.arpa (RFC 1035 3.5).
    let mut parts: Vec<String> = v4.to_string().split('.').map(str::to_owned).collect();
    parts.reverse();
    let said = ask("ptr", &format!("{}.in-addr.arpa", parts.join(".")))?;
    ensure!(said.contains(name), "{said}");
    let said = ask("a", "all.default.svc.cluster.local")?;
    for pod in pods {
        let ip = hosts_of(pod).into_iter().next().unwrap_or_default();
        ensure!(said.contains(&ip), "{ip} is not in {said}");
    }
    // The search list of a pod's resolv.conf.
    pair.answers(shell, "http://web", 4)?;
    pair.answers(shell, "http://web.default", 1)?;
    pair.answers(shell, "http://all:8080", 1)
}

/// kubectl reaches the second node's pods through the API server.
fn through_the_server(pair: &Pair<'_>, pods: &[Value]) -> anyhow::Result<()> {
    let kubectl = &pair.kubectl;
    let far = pods.iter().find(|pod| node_of(pod) == "two");
    let far = name_of(far.context("a pod on two")?).to_owned();
    kubectl.says(&format!("logs {far}"), "serving on port 8080")?;
    ensure!(exec(kubectl, &far, &["hostname"])? == far, "exec");
    kubectl.cmd(&["exec", &far, "--", "exit", "7"]).exits(7)?;
    for (target, port) in [
        (format!("pod/{far}"), ":8080"),
        ("service/web".into(), ":80"),
    ] {
        let mut forward = kubectl.cmd(&["port-forward", &target, port]).spawn()?;
        let line = forward.line("a port", PATIENCE, |l| {
            l.contains("Forwarding from 127.0.0.1:")
        })?;
        let address = line
            .split(' ')
            .find_map(|word| word.parse::<SocketAddr>().ok())
            .with_context(|| format!("no address in {line:?}"))?;
        let said = page(address)?;
        ensure!(said.ends_with("one"), "{target}: {said:?}");
    }
    Ok(())
}

/// An agent that ends, or is killed, and comes back: its pods do not notice.
/// Then its node is cordoned, drained and deleted, and joins again.
pub(super) fn comes_and_goes(host: &TestHost) -> anyhow::Result<()> {
    on_two(host, &[], |pair| {
        let kubectl = pair.kubectl.clone();
        let mut far = bound("far", script("a", "echo far; sleep 100000"));
        far["spec"]["nodeName"] = "two".into();
        kubectl.apply(&[far])?;
        let before = kubectl.wait("a pod on two", &["pod", "far"], is_running)?;
        let container = &before["status"]["containerStatuses"][0];
        for signal in [Signal::TERM, Signal::KILL] {
            pair.two.stop(signal)?;
            // Its certificate is kept: the token is needed once.
            pair.two.start(None)?;
            pair.ready("two", true)?;
            ensure!(exec(&kubectl, "far", &["echo", "x"])? == "x", "exec");
            let after = kubectl.get(&["pod", "far"])?;
            ensure!(
                after["status"]["containerStatuses"][0] == *container,
                "{:#}",
                after["status"]
            );
        }
        // No new pod comes to a node that is cordoned.
        kubectl.says("cordon two", "cordoned")?;
        kubectl.apply(&[web("one", 4)])?;
        let pods = pair.web_pods(4)?;
        ensure!(pods.iter().all(|pod| node_of(pod) == "one"), "cordoned");
        kubectl.says("uncordon two", "uncordoned")?;
        kubectl.run(&["scale", "deployment/web", "--replicas=8"])?;
        let pods = pair.web_pods(8)?;
        let on_two = pods.iter().filter(|pod| node_of(pod) == "two").count();
        ensure!(on_two == 4, "{on_two} pods on two");
        // A drained node has none but those that nobody would make again.
        kubectl.refuses("drain two --timeout=60s", "far")?;
        kubectl.says("drain two --force --timeout=60s", "drained")?;
        let pods = pair.web_pods(8)?;
        ensure!(pods.iter().all(|pod| node_of(pod) == "one"), "drained");
        kubectl.refuses("get pod far", "NotFound")?;
        // A node that is gone takes its routes along.
        let node = kubectl.get(&["node", "two"])?;
        let range = node["spec"]["podCIDR"].as_str().context("a range")?;
        let has_route = || {
            let routes = Cmd::new("ip", ["route"]).ok()?.stdout;
            anyhow::Ok(routes.contains(&format!("{range} via {}", Outside::V4)))
        };
        ensure!(has_route()?, "no route to {range}");
        pair.two.stop(Signal::TERM)?;
        kubectl.says("delete node two", "deleted")?;
        until("an end of the route", PATIENCE, || {
            Ok((!has_route()?).then_some(()))
        })?;
        pair.two.start(None)?;
        pair.ready("two", true)?;
        kubectl.run(&["scale", "deployment/web", "--replicas=10"])?;
        let pods = pair.web_pods(10)?;
        ensure!(pods.iter().any(|pod| node_of(pod) == "two"), "not joined");
        Ok(())
    })
}

/// A machine that dies: its Deployment's pods are made anew on the other one.
pub(super) fn dies(host: &TestHost) -> anyhow::Result<()> {
    on_two(host, &["--node-monitor-grace-period", GRACE], |pair| {
        let kubectl = pair.kubectl.clone();
        let mut web = web("one", 4);
        web["spec"]["template"]["spec"]["tolerations"] = json!([
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": 1}]);
        let [service, _] = services();
        // One without an owner and with upstream's five minutes stays.
        let mut alone = bound("alone", tool("a", &["sleep", "100000"]));
        alone["spec"]["nodeName"] = "two".into();
        kubectl.apply(&[web, service, alone])?;
        let pods = pair.web_pods(4)?;
        ensure!(pods.iter().any(|pod| node_of(pod) == "two"), "not spread");
        kubectl.wait("a pod on two", &["pod", "alone"], is_running)?;
        pair.two.die()?;
        let node = pair.ready("two", false)?;
        ensure!(
            node.to_string()
                .contains("Kubelet stopped posting node status."),
            "{node:#}"
        );
        // Their toleration lasts for a second more.
        kubectl.wait("the pods on one", &["pods", "-l", "app=web"], |list| {
            let pods = staying(list);
            pods.len() == 4 && pods.iter().all(|pod| node_of(pod) == "one")
        })?;
        let left = kubectl.get(&["endpointslices", "-l", "kubernetes.io/service-name=web"])?;
        let ready = left["items"].as_array().into_iter().flatten();
        let ready = ready
            .flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten())
            .filter(|e| e["conditions"]["ready"] == true);
        for endpoint in ready {
            ensure!(endpoint["nodeName"] == "one", "{endpoint:#}");
        }
        let address = SocketAddr::from((Outside::HOST_V4, NODE_PORT));
        for _ in 0..20 {
            page(address)?;
        }
        let alone = kubectl.get(&["pod", "alone"])?;
        ensure!(
            alone["metadata"]["deletionTimestamp"].is_null(),
            "{alone:#}"
        );
        // Back again, it puts what was taken from it away.
        pair.two.start(None)?;
        pair.ready("two", true)?;
        kubectl.wait(
            "an end of the old pods",
            &["pods", "-l", "app=web"],
            |pods| pods["items"].as_array().is_some_and(|all| all.len() == 4),
        )?;
        let alone = kubectl.wait("the pod that stayed", &["pod", "alone"], is_running)?;
        let count = alone["status"]["containerStatuses"][0]["restartCount"].as_u64();
        ensure!(count.is_some_and(|n| n > 0), "{:#}", alone["status"]);
        Ok(())
    })
}

/// The pid of a pod's container on the first node, and its start.
pub(super) fn life_of(host: &TestHost, pod: &str, container: &str) -> anyhow::Result<Life> {
    until("the container", Duration::from_secs(30), || {
        Ok(host.life(pod, container).ok())
    })
}
