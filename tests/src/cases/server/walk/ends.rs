//! What moves pods away, and what deletes things.

use anyhow::ensure;
use serde_json::{Value, json};

use super::super::PATIENCE;
use super::Walk;
use crate::pods::TOOLBOX;

impl Walk<'_> {
    /// Nodes that take no pods, and one whose pods may not go yet.
    pub(super) fn moves(&self) -> anyhow::Result<()> {
        for node in self.nodes {
            self.says(&format!("cordon {node}"), "cordoned")?;
            self.says(&format!("get node {node}"), "SchedulingDisabled")?;
            self.says(&format!("uncordon {node}"), "uncordoned")?;
        }
        let nodes = self.nodes.join(" ");
        let taint = format!("taint node {nodes} dedicated=x:NoSchedule");
        self.says(&taint, "tainted")?;
        self.says("scale deployment/web --replicas=4", "scaled")?;
        self.kubectl
            .wait("a pod that waits", &["events"], |events| {
                events.to_string().contains("untolerated taint")
            })?;
        self.says(&format!("taint node {nodes} dedicated-"), "untainted")?;
        self.rolled()?;
        let last = self.node();
        self.kubectl
            .refuses(&format!("drain {last} --timeout=60s"), "shell")?;
        self.waits_for_a_budget(last)?;
        self.kubectl.refuses("get pod shell", "NotFound")?;
        self.says(&format!("uncordon {last}"), "uncordoned")?;
        self.rolled()?;
        for node in self.nodes {
            self.says(&format!("drain {node} --timeout=90s"), "evicted")?;
            self.says(&format!("uncordon {node}"), "uncordoned")?;
            self.rolled()?;
        }
        Ok(())
    }

    /// A drain that a disruption budget holds back until it goes.
    fn waits_for_a_budget(&self, node: &str) -> anyhow::Result<()> {
        let budget = json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "web"},
            "spec": {"minAvailable": "100%", "selector": {"matchLabels": {"app": "web"}}},
        });
        let file = self.file("budget", budget.to_string())?;
        self.says(&format!("apply -f {file}"), "created")?;
        self.kubectl.wait("a budget", &["pdb", "web"], |budget| {
            budget["status"]["currentHealthy"] == 4
        })?;
        let words = ["drain", node, "--force", "--timeout=90s"];
        let mut drain = self.kubectl.cmd(&words).spawn()?;
        let why = "Cannot evict pod as it would violate the pod's disruption budget";
        drain.line("a refusal", PATIENCE, |l| l.contains(why))?;
        let pods = ["pods", "-l", "app=web"];
        let left = self.kubectl.get(&pods)?;
        let all = left["items"].as_array().map_or(&[][..], Vec::as_slice);
        let stays = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
        ensure!(all.iter().filter(stays).count() == 4, "{left:#}");
        self.says("delete pdb web", "deleted")?;
        let (status, lines) = drain.end(PATIENCE)?;
        ensure!(status.success(), "drain {node}: {}", lines.join("\n"));
        Ok(())
    }

    /// Each propagation policy, and the end of a namespace.
    pub(super) fn deletes(&self) -> anyhow::Result<()> {
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
