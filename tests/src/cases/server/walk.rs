//! What people do all day, with real pods: the seeds of the project, and a
//! walk through kubectl's commands by several releases of it.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, ensure};
use serde_json::json;

use super::nodes::{self, BUSYBOX};
use super::{NODE_PORT, PATIENCE, page, web};
use crate::host::TestHost;
use crate::kubectl::Kubectl;
use crate::outside::Outside;
use crate::pods::TOOLBOX;
use crate::wait::until;

/// The release that users' scripts are written for.
const SEEDS_MINOR: u32 = 33;
/// Set: the walk is done by all releases that are there, as `make soak` does.
const EVERY: &str = "RKUBE_EVERY_KUBECTL";

/// Waits until `count` different pods have answered, all with `word`.
fn answering(
    outside: &Outside,
    address: SocketAddr,
    count: usize,
    word: &str,
) -> anyhow::Result<()> {
    let mut seen = BTreeSet::new();
    until("every replica's answer", PATIENCE, || {
        if let Ok(text) = outside.run(move || page(address))
            && text.ends_with(word)
        {
            seen.insert(text);
        }
        Ok((seen.len() >= count).then_some(()))
    })
    .with_context(|| format!("answers: {seen:?}"))
}

pub(super) fn seeds_on_one(host: &TestHost) -> anyhow::Result<()> {
    let outside = Outside::join()?;
    let (server, kubectl) = host.server(&[])?;
    let kubectl = kubectl.of(SEEDS_MINOR)?;
    seeds(&kubectl, &outside, &[Outside::HOST_V4.into()])?;
    server.end()
}

pub(super) fn seeds_on_two(host: &TestHost) -> anyhow::Result<()> {
    nodes::on_two(host, &[], |pair| {
        let kubectl = pair.kubectl.of(SEEDS_MINOR)?;
        let hosts = [Outside::HOST_V4.into(), Outside::V4.into()];
        seeds(&kubectl, pair.outside, &hosts)
    })
}

/// A web Deployment behind a node port: one replica, four, traffic over all
/// of them, a bad version out and back.
fn seeds(kubectl: &Kubectl, outside: &Outside, hosts: &[std::net::IpAddr]) -> anyhow::Result<()> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "selector": {"app": "web"},
            "ports": [{"port": 80, "targetPort": 8080, "nodePort": NODE_PORT}]},
    });
    let all = |count: usize, word: &str| {
        hosts
            .iter()
            .try_for_each(|ip| answering(outside, SocketAddr::new(*ip, NODE_PORT), count, word))
    };
    let rolled = || {
        let words = "rollout status deployment/web --timeout=50s";
        kubectl.says(words, "successfully rolled out").map(drop)
    };
    let said = kubectl.apply(&[web("one", 1), service.clone()])?.stdout;
    ensure!(
        said.contains("deployment.apps/web created") && said.contains("service/web created"),
        "{said}"
    );
    rolled()?;
    all(1, "one")?;
    let said = kubectl.apply(&[web("one", 4), service.clone()])?.stdout;
    ensure!(
        said.contains("deployment.apps/web configured") && said.contains("service/web unchanged"),
        "{said}"
    );
    rolled()?;
    all(4, "one")?;
    // A bad version does not replace the good one, and goes again.
    let mut bad = web("one", 4);
    bad["spec"]["template"]["spec"]["containers"][0]["image"] = "rkube.local/none:1".into();
    kubectl.apply(&[bad])?;
    kubectl.wait("a pod without image", &["pods"], |pods| {
        pods.to_string().contains("ErrImage") || pods.to_string().contains("ImagePull")
    })?;
    all(3, "one")?;
    kubectl.says("rollout undo deployment/web", "rolled back")?;
    rolled()?;
    all(4, "one")?;
    // A good one does.
    kubectl.apply(&[web("two", 4), service])?;
    rolled()?;
    all(4, "two")?;
    kubectl.run(&["delete", "deployment,service", "web"])?;
    kubectl.wait("an end of all pods", &["pods"], |pods| {
        pods["items"] == json!([])
    })?;
    Ok(())
}

pub(super) fn of_1_20(host: &TestHost) -> anyhow::Result<()> {
    walks(host, &[20])
}

pub(super) fn of_1_32(host: &TestHost) -> anyhow::Result<()> {
    walks(host, &[32])
}

pub(super) fn of_1_33(host: &TestHost) -> anyhow::Result<()> {
    walks(host, &[33])
}

pub(super) fn of_others(host: &TestHost) -> anyhow::Result<()> {
    let others = [27, 28, 29, 30, 31];
    let count = match std::env::var_os(EVERY) {
        Some(_) => others.len(),
        None => 1,
    };
    walks(host, &others[..count])
}

fn walks(host: &TestHost, minors: &[u32]) -> anyhow::Result<()> {
    let _outside = Outside::join()?;
    nodes::import(host)?;
    let (server, kubectl) = host.server(&[])?;
    for minor in minors {
        let walk = Walk {
            host,
            kubectl: kubectl.of(*minor)?,
            minor: *minor,
        };
        walk.all().with_context(|| format!("kubectl 1.{minor}"))?;
    }
    server.end()
}

/// One client's walk over a cluster that is empty before and after it.
struct Walk<'a> {
    host: &'a TestHost,
    kubectl: Kubectl,
    minor: u32,
}

impl Walk<'_> {
    fn all(&self) -> anyhow::Result<()> {
        self.looks().context("looks")?;
        self.rolls().context("rolls")?;
        self.changes().context("changes")?;
        self.exposes().context("exposes")?;
        self.enters().context("enters")?;
        self.copies().context("copies")?;
        self.runs_out().context("runs out")?;
        self.moves().context("moves")?;
        self.deletes().context("deletes")
    }

    fn says(&self, words: &str, expected: &str) -> anyhow::Result<()> {
        self.kubectl.says(words, expected).map(drop)
    }

    fn line(&self, words: &str) -> anyhow::Result<String> {
        self.kubectl.line(words)
    }

    /// Whether this release has a command that came with `minor`.
    fn has(&self, minor: u32) -> bool {
        self.minor >= minor
    }

    fn looks(&self) -> anyhow::Result<()> {
        self.says("version", "v1.36.0")?;
        self.says("api-resources", "deployments")?;
        self.says("api-versions", "apps/v1\n")?;
        self.says("explain deployment.spec.strategy", "RollingUpdate")?;
        self.says("cluster-info", "is running at")?;
        self.says("get nodes -o wide", "rkube://")?;
        self.says("describe node one", "Allocated resources")?;
        self.says("auth can-i create pods", "yes")?;
        self.says("auth can-i --list", "*.*")?;
        let other = "auth can-i list secrets --as=system:serviceaccount:default:default";
        self.kubectl
            .cmd(&other.split(' ').collect::<Vec<_>>())
            .exits(1)?;
        if self.has(24) {
            let token = self.line("create token default --duration=1h")?;
            let token = token.trim();
            ensure!(token.split('.').count() == 3, "{token}");
            self.kubectl
                .refuses(&format!("get secrets --token={token} --kubeconfig=/dev/null --server=https://127.0.0.1:6443 --insecure-skip-tls-verify"), "Forbidden")?;
        }
        Ok(())
    }

    /// A Deployment, its versions, and what is told of them.
    fn rolls(&self) -> anyhow::Result<()> {
        let image = format!("--image={TOOLBOX}");
        let create = [
            "create",
            "deployment",
            "web",
            &image,
            "--replicas=2",
            "--port=8080",
            "--",
            "httpd",
            "-p",
            "8080",
            "--text",
            "first",
        ];
        self.kubectl.run(&create)?;
        self.rolled()?;
        self.says("get deployment web", "2/2")?;
        self.says("get all -l app=web", "replicaset.apps/web-")?;
        self.says("get pods -o wide --show-labels", "app=web")?;
        self.says("get deployment web -o yaml", "replicas: 2")?;
        self.says("get deployment web -o json", "\"replicas\": 2")?;
        self.says("get deployment -o name", "deployment.apps/web")?;
        self.says("get deploy web -o jsonpath={.status.readyReplicas}", "2")?;
        self.says("get deploy web -o go-template={{.spec.replicas}}", "2")?;
        self.says("get deploy -o custom-columns=N:.metadata.name", "web")?;
        self.says("get pods --sort-by=.metadata.name", "Running")?;
        self.says("describe deployment web", "NewReplicaSetAvailable")?;
        self.says("describe replicasets", "SuccessfulCreate")?;
        self.says("describe pods", "Started")?;
        self.says("set env deployment/web A=B", "env updated")?;
        self.rolled()?;
        self.says("set env deployment/web --list", "A=B")?;
        self.says(
            "set resources deployment web --requests=cpu=10m,memory=16Mi",
            "resource requirements updated",
        )?;
        self.rolled()?;
        self.says("rollout history deployment/web", "\n3 ")?;
        self.says("rollout history deployment/web --revision=2", "A:\tB")?;
        self.says("rollout undo deployment/web --to-revision=1", "rolled back")?;
        self.rolled()?;
        self.says("rollout history deployment/web", "\n4 ")?;
        self.says("rollout pause deployment/web", "paused")?;
        self.says(
            &format!("set image deployment/web toolbox={BUSYBOX}"),
            "image updated",
        )?;
        let images = self.line("get pods -o jsonpath={.items[*].spec.containers[0].image}")?;
        ensure!(!images.contains(BUSYBOX), "it is paused: {images}");
        self.says(
            &format!("set image deployment/web toolbox={TOOLBOX}"),
            "image updated",
        )?;
        self.says("rollout resume deployment/web", "resumed")?;
        self.rolled()?;
        self.says("rollout restart deployment/web", "restarted")?;
        self.rolled()?;
        self.says("scale deployment/web --replicas=3", "scaled")?;
        self.says(
            "wait --for=condition=Available --timeout=60s deployment/web",
            "condition met",
        )?;
        self.rolled()?;
        if self.has(23) {
            self.says(
                "wait --for=jsonpath={.status.readyReplicas}=3 --timeout=60s deployment/web",
                "condition met",
            )?;
        }
        match self.minor {
            26.. => self.says("events --for=deployment/web", "ScalingReplicaSet"),
            _ => self.says("get events", "ScalingReplicaSet"),
        }
    }

    fn rolled(&self) -> anyhow::Result<()> {
        let words = "rollout status deployment/web --timeout=60s";
        self.says(words, "successfully rolled out")
    }

    /// The ways of changing an object.
    fn changes(&self) -> anyhow::Result<()> {
        let object = |value: &str| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "conf"},
                "data": {"key": value}})
        };
        let file = |value: &str| {
            let name = format!("conf-{}-{value}.json", self.minor);
            let path = self.host.file(&name, object(value).to_string())?;
            anyhow::Ok(path.to_string_lossy().into_owned())
        };
        let (first, second) = (file("first")?, file("second")?);
        self.says(&format!("apply -f {first}"), "configmap/conf created")?;
        self.says(&format!("apply -f {first}"), "configmap/conf unchanged")?;
        self.kubectl.cmd(&["diff", "-f", &first]).exits(0)?;
        let differs = self.kubectl.cmd(&["diff", "-f", &second]).exits(1)?;
        ensure!(differs.stdout.contains("+  key: second"), "{differs}");
        self.says(
            &format!("apply --dry-run=server -f {second}"),
            "server dry run",
        )?;
        self.says(&format!("apply -f {second}"), "configmap/conf configured")?;
        self.says("get configmap conf -o jsonpath={.data.key}", "second")?;
        self.kubectl
            .cmd(&["edit", "configmap", "conf"])
            .env("KUBE_EDITOR", "sed -i s/second/edited/")
            .ok()?;
        self.says("get configmap conf -o jsonpath={.data.key}", "edited")?;
        for (kind, patch) in [
            ("merge", r#"{"data":{"merged":"m"}}"#),
            ("json", r#"[{"op":"add","path":"/data/json","value":"j"}]"#),
            ("strategic", r#"{"data":{"strategic":"s"}}"#),
        ] {
            let args = ["patch", "configmap", "conf", "--type", kind, "-p", patch];
            self.kubectl.run(&args)?;
        }
        self.says(
            "get configmap conf -o jsonpath={.data.merged}{.data.json}{.data.strategic}",
            "mjs",
        )?;
        self.says("label configmap conf tier=front", "labeled")?;
        self.kubectl
            .refuses("label configmap conf tier=back", "already has a value")?;
        self.says("label configmap conf tier-", "configmap/conf")?;
        // "annotate" in 1.27, "annotated" before and after.
        self.says("annotate configmap conf note=x", "configmap/conf annotate")?;
        self.says(&format!("replace -f {first}"), "replaced")?;
        self.says("create secret generic hidden --from-literal=k=v", "created")?;
        self.says("get secret hidden -o jsonpath={.data.k}", "dg==")?;
        self.line("delete configmap,secret conf hidden --ignore-not-found")
            .map(drop)
    }

    fn exposes(&self) -> anyhow::Result<()> {
        let expose = "expose deployment web --port=80 --target-port=8080 --type=NodePort";
        self.says(expose, "service/web exposed")?;
        self.says("describe service web", "NodePort")?;
        self.kubectl.wait("endpoints", &["endpoints", "web"], |e| {
            let addresses = e["subsets"][0]["addresses"].as_array();
            addresses.is_some_and(|all| all.len() == 3)
        })?;
        let ip = self.line("get service web -o jsonpath={.spec.clusterIP}")?;
        let address = SocketAddr::new(ip.trim().parse().context("a cluster IP")?, 80);
        until("an answer of the Service", PATIENCE, || {
            Ok(page(address).ok().filter(|text| text == "first"))
        })?;
        for (target, port) in [("deployment/web", ":8080"), ("service/web", ":80")] {
            let mut forward = self.kubectl.cmd(&["port-forward", target, port]).spawn()?;
            let line = forward.line("a port", PATIENCE, |l| {
                l.contains("Forwarding from 127.0.0.1:")
            })?;
            let address = line.split(' ').find_map(|word| word.parse().ok());
            ensure!(page(address.context("an address")?)? == "first", "{target}");
        }
        self.says("delete service web", "deleted")
    }

    /// `run`, `logs`, `exec`, `attach`, with and without a terminal.
    fn enters(&self) -> anyhow::Result<()> {
        let text = "i=0; while true; do echo tick $i; i=$((i+1)); sleep 0.2; done";
        let image = format!("--image={BUSYBOX}");
        let run = [
            "run",
            "shell",
            &image,
            "--restart=Never",
            "--labels=a=b",
            "--env=COLOUR=green",
            "--command",
            "--",
            "sh",
            "-c",
            text,
        ];
        self.kubectl.run(&run)?;
        self.says(
            "wait --for=condition=Ready --timeout=60s pod/shell",
            "condition met",
        )?;
        self.says("get pod shell -o wide", "Running")?;
        self.says("describe pod shell", "COLOUR:  green")?;
        self.says("logs shell --tail=2", "tick")?;
        let mut follow = self
            .kubectl
            .cmd(&["logs", "-f", "shell", "--timestamps"])
            .spawn()?;
        for _ in 0..3 {
            follow.line("a tick", PATIENCE, |l| l.contains("Z tick "))?;
        }
        drop(follow);
        let mut attach = self.kubectl.cmd(&["attach", "shell"]).spawn()?;
        for _ in 0..2 {
            attach.line("a tick", PATIENCE, |l| l.starts_with("tick "))?;
        }
        drop(attach);
        self.says("exec shell -- env", "COLOUR=green")?;
        self.kubectl
            .cmd(&["exec", "shell", "--", "sh", "-c", "exit 9"])
            .exits(9)?;
        let cat = self.kubectl.cmd(&["exec", "-i", "shell", "--", "cat"]);
        let cat = cat.stdin("through\n").ok()?.stdout;
        ensure!(cat == "through\n", "{cat:?}");
        let tty = self
            .kubectl
            .on_terminal(&["exec", "-it", "shell", "--", "tty"])
            .ok()?;
        ensure!(tty.stdout.contains("/dev/pts/"), "{tty}");
        let sum = self
            .kubectl
            .on_terminal(&["exec", "-it", "shell", "--", "sh"]);
        let sum = sum.stdin("echo sum $((40+2))\nexit 3\n").output()?;
        ensure!(sum.stdout.contains("sum 42"), "{sum}");
        // A pod for one command, with its input and output.
        let once = [
            "run",
            "once",
            &image,
            "--restart=Never",
            "--rm",
            "-i",
            "--command",
            "--",
            "sh",
            "-c",
            "read x; echo got $x",
        ];
        let once = self.kubectl.cmd(&once).stdin("word\n").ok()?;
        ensure!(once.stdout.contains("got word"), "{once}");
        self.kubectl.refuses("get pod once", "NotFound")
    }

    /// `cp` needs nothing but tar in the pod.
    fn copies(&self) -> anyhow::Result<()> {
        let name = format!("copied-{}", self.minor);
        let content: String = (0..20_000).map(|n| format!("{n}\n")).collect();
        let file = self.host.file(&name, &content)?;
        let (file, back) = (file.to_string_lossy(), self.host.files().join("back"));
        self.line(&format!("cp {file} shell:/tmp/there"))?;
        self.says("exec shell -- wc -l /tmp/there", "20000")?;
        self.line(&format!("cp shell:/tmp/there {}", back.display()))?;
        ensure!(
            std::fs::read_to_string(&back)? == content,
            "the copy differs"
        );
        std::fs::remove_file(&back).context("remove the copy")
    }

    /// What ends by itself.
    fn runs_out(&self) -> anyhow::Result<()> {
        let image = format!("--image={BUSYBOX}");
        self.kubectl.run(&[
            "create",
            "job",
            "sum",
            &image,
            "--",
            "sh",
            "-c",
            "echo $((1+2))",
        ])?;
        self.says(
            "wait --for=condition=complete --timeout=60s job/sum",
            "condition met",
        )?;
        self.says("logs job/sum", "3\n")?;
        self.says("get job sum", "1/1")?;
        self.says("get pods -l job-name=sum", "Completed")?;
        self.line("delete job sum").map(drop)
    }

    /// Nodes that take no pods.
    fn moves(&self) -> anyhow::Result<()> {
        self.says("cordon one", "cordoned")?;
        self.says("get node one", "SchedulingDisabled")?;
        self.says("uncordon one", "uncordoned")?;
        self.says("taint node one dedicated=x:NoSchedule", "tainted")?;
        self.says("scale deployment/web --replicas=4", "scaled")?;
        self.kubectl
            .wait("a pod that waits", &["events"], |events| {
                events.to_string().contains("untolerated taint")
            })?;
        self.says("taint node one dedicated-", "untainted")?;
        self.rolled()?;
        self.kubectl.refuses("drain one --timeout=60s", "shell")?;
        self.says("drain one --force --timeout=90s", "evicted")?;
        self.kubectl.refuses("get pod shell", "NotFound")?;
        self.says("uncordon one", "uncordoned")?;
        self.rolled()
    }

    /// Each propagation policy, and the end of a namespace.
    fn deletes(&self) -> anyhow::Result<()> {
        let sets = "get replicasets -l app=web -o name";
        self.says("delete deployment web --cascade=orphan", "deleted")?;
        let left = self.line(sets)?;
        ensure!(!left.is_empty(), "no ReplicaSet is left");
        for set in left.lines() {
            self.says(&format!("delete {set} --cascade=background"), "deleted")?;
        }
        let pods = ["pods", "-l", "app=web"];
        self.kubectl.wait("an end of the pods", &pods, |pods| {
            pods["items"] == json!([])
        })?;
        let image = format!("--image={TOOLBOX}");
        self.kubectl
            .run(&["create", "deployment", "web", &image, "--", "sleep", "inf"])?;
        self.rolled()?;
        self.says("delete deployment web --cascade=foreground", "deleted")?;
        ensure!(self.line(sets)?.is_empty(), "a ReplicaSet is left");
        self.says("create namespace team", "created")?;
        let apart = [
            "create",
            "deployment",
            "web",
            &image,
            "-n",
            "team",
            "--",
            "sleep",
            "inf",
        ];
        self.kubectl.run(&apart)?;
        self.says(
            "rollout status deployment/web -n team --timeout=60s",
            "rolled out",
        )?;
        self.says("delete namespace team --timeout=60s", "deleted")?;
        self.kubectl.refuses("get namespace team", "NotFound")?;
        self.line("delete events --all").map(drop)
    }
}
