//! What is reached, entered and copied, and what ends by itself.

use std::net::SocketAddr;

use anyhow::{Context, ensure};

use super::super::nodes::BUSYBOX;
use super::super::{PATIENCE, page};
use super::Walk;
use crate::command::Cmd;
use crate::wait::until;

impl Walk<'_> {
    /// `kubectl run NAME FLAGS --command -- COMMAND` on the node of single pods.
    fn run(&self, name: &str, flags: &[&str], command: &[&str]) -> Cmd {
        let image = format!("--image={BUSYBOX}");
        let node = self.node();
        let there = format!(r#"--overrides={{"apiVersion":"v1","spec":{{"nodeName":"{node}"}}}}"#);
        let mut all = vec!["run", name, &image, &there, "--restart=Never"];
        all.extend(flags);
        all.extend(["--command", "--"]);
        all.extend(command);
        self.kubectl.cmd(&all)
    }

    fn ready(&self, pod: &str) -> anyhow::Result<()> {
        let wait = format!("wait --for=condition=Ready --timeout=60s pod/{pod}");
        self.says(&wait, "condition met")
    }

    /// A Service, and ways to it and to a pod of each node.
    pub(super) fn exposes(&self) -> anyhow::Result<()> {
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
        let mut targets = vec![
            ("deployment/web".to_owned(), ":8080"),
            ("service/web".to_owned(), ":80"),
        ];
        for node in self.nodes {
            let pods = format!(
                "get pods -l app=web -o jsonpath={{.items[?(@.spec.nodeName==\"{node}\")].metadata.name}}"
            );
            let pods = self.line(&pods)?;
            let pod = pods.split_whitespace().next();
            let pod = pod.with_context(|| format!("no pod of web on {node}"))?;
            targets.push((format!("pod/{pod}"), ":8080"));
        }
        for (target, port) in targets {
            let mut forward = self.kubectl.cmd(&["port-forward", &target, port]).spawn()?;
            let line = forward.line("a port", PATIENCE, |l| {
                l.contains("Forwarding from 127.0.0.1:")
            })?;
            let address = line.split(' ').find_map(|word| word.parse().ok());
            ensure!(page(address.context("an address")?)? == "first", "{target}");
        }
        self.says("delete service web", "deleted")
    }

    /// `run`, `logs`, `exec`, `attach`, with and without a terminal.
    pub(super) fn enters(&self) -> anyhow::Result<()> {
        let text = "i=0; while true; do echo tick $i; i=$((i+1)); sleep 0.2; done";
        let flags = ["--labels=a=b", "--env=COLOUR=green"];
        self.run("shell", &flags, &["sh", "-c", text]).ok()?;
        self.ready("shell")?;
        self.says("get pod shell -o wide", self.node())?;
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
        let reads = ["sh", "-c", "read x; echo got $x"];
        let once = self.run("once", &["--rm", "-i"], &reads);
        let once = once.stdin("word\n").ok()?;
        ensure!(once.stdout.contains("got word"), "{once}");
        self.kubectl.refuses("get pod once", "NotFound")
    }

    /// `attach` with an input, and with a terminal.
    pub(super) fn attaches(&self) -> anyhow::Result<()> {
        let text = "while read x; do echo got $x; done; echo end";
        let flags = ["--stdin", "--attach=false"];
        self.run("reader", &flags, &["sh", "-c", text]).ok()?;
        self.ready("reader")?;
        let attach = self.kubectl.cmd(&["attach", "-i", "reader"]);
        let attach = attach.stdin("one\ntwo\n").ok()?;
        ensure!(
            attach.stdout.contains("got one\ngot two\nend\n"),
            "{attach}"
        );
        let flags = ["--stdin", "--tty", "--attach=false"];
        self.run("terminal", &flags, &["sh"]).ok()?;
        self.ready("terminal")?;
        let attach = self.kubectl.on_terminal(&["attach", "-it", "terminal"]);
        let attach = attach.stdin("echo sum $((40+2))\nexit\n").output()?;
        ensure!(attach.stdout.contains("sum 42"), "{attach}");
        self.line("delete pod reader terminal").map(drop)
    }

    /// `cp` needs nothing but tar in the pod.
    pub(super) fn copies(&self) -> anyhow::Result<()> {
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
        std::fs::remove_file(&back).context("remove the copy")?;
        // A whole tree, there and back.
        let tree = self.host.files().join(format!("tree-{}", self.minor));
        std::fs::create_dir_all(tree.join("deep")).context("make a tree")?;
        std::fs::write(tree.join("top"), "top\n").context("fill the tree")?;
        std::fs::write(tree.join("deep/file"), "deep\n").context("fill the tree")?;
        self.line(&format!("cp {} shell:/tmp/tree", tree.display()))?;
        self.says(
            "exec shell -- cat /tmp/tree/top /tmp/tree/deep/file",
            "top\ndeep\n",
        )?;
        self.line("exec shell -- rm /tmp/tree/top")?;
        self.line(&format!("cp shell:/tmp/tree {}", back.display()))?;
        let deep = std::fs::read_to_string(back.join("deep/file"));
        ensure!(deep.context("the copy")? == "deep\n", "the copy differs");
        ensure!(!back.join("top").exists(), "more than there was");
        std::fs::remove_dir_all(&back).context("remove the copy")
    }

    /// What ends by itself.
    pub(super) fn runs_out(&self) -> anyhow::Result<()> {
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
}
