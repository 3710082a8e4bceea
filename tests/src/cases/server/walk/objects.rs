//! What is looked at, rolled out, set and changed.

use anyhow::ensure;
use serde_json::json;

use super::super::PATIENCE;
use super::super::nodes::BUSYBOX;
use super::Walk;
use crate::pods::TOOLBOX;

impl Walk<'_> {
    pub(super) fn looks(&self) -> anyhow::Result<()> {
        self.says("version", "v1.36.0")?;
        self.says("api-resources", "deployments")?;
        self.says("api-versions", "apps/v1\n")?;
        self.says("explain deployment.spec.strategy", "RollingUpdate")?;
        self.says("cluster-info", "is running at")?;
        self.says("get nodes -o wide", "rkube://")?;
        for node in self.nodes {
            self.says(&format!("describe node {node}"), "Allocated resources")?;
        }
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
    pub(super) fn rolls(&self) -> anyhow::Result<()> {
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

    /// Every form of output that `rolls` has not asked for.
    pub(super) fn shows(&self) -> anyhow::Result<()> {
        let as_json = self.line("get deploy web -o jsonpath-as-json={.spec.replicas}")?;
        let as_json: serde_json::Value = serde_json::from_str(&as_json)?;
        ensure!(as_json == json!([3]), "{as_json}");
        for (form, content) in [
            ("jsonpath-file", "{.metadata.name} has {.spec.replicas}"),
            (
                "go-template-file",
                "{{.metadata.name}} has {{.spec.replicas}}",
            ),
        ] {
            let file = self.file(form, content)?;
            self.says(&format!("get deploy web -o {form}={file}"), "web has 3")?;
        }
        let columns = "NAME            COUNT\n.metadata.name  .spec.replicas\n";
        let file = self.file("columns", columns)?;
        let said = self.line(&format!("get deploy -o custom-columns-file={file}"))?;
        let words: Vec<&str> = said.split_whitespace().collect();
        ensure!(words == ["NAME", "COUNT", "web", "3"], "{said}");
        Ok(())
    }

    /// The other commands of `set`, and `autoscale`.
    pub(super) fn sets(&self) -> anyhow::Result<()> {
        self.says("create serviceaccount builder", "created")?;
        let set = "set serviceaccount deployment/web builder";
        self.says(set, "serviceaccount updated")?;
        self.rolled()?;
        let name = "get pods -l app=web -o jsonpath={.items[*].spec.serviceAccountName}";
        self.says(name, "builder")?;
        self.says("set serviceaccount deployment/web default", "updated")?;
        self.rolled()?;
        self.says("create service clusterip front --tcp=80:8080", "created")?;
        let set = "set selector service front tier=front";
        self.says(set, "selector updated")?;
        let selector = "get service front -o jsonpath={.spec.selector}";
        let selector = self.line(selector)?;
        ensure!(
            selector.contains("tier") && !selector.contains("app"),
            "{selector}"
        );
        let create = "create rolebinding readers --clusterrole=view --user=alice";
        self.says(create, "created")?;
        let set = "set subject rolebinding readers --user=bob --group=team";
        self.says(set, "subjects updated")?;
        let subjects = "get rolebinding readers -o jsonpath={.subjects[*].name}";
        let subjects = self.line(subjects)?;
        for subject in ["alice", "bob", "team"] {
            ensure!(subjects.contains(subject), "{subjects}");
        }
        self.says("autoscale deployment web --min=1 --max=4", "autoscaled")?;
        self.says("get hpa web -o jsonpath={.spec.maxReplicas}", "4")?;
        for gone in [
            "hpa web",
            "rolebinding readers",
            "service front",
            "serviceaccount builder",
        ] {
            self.says(&format!("delete {gone}"), "deleted")?;
        }
        Ok(())
    }

    /// The ways of changing an object.
    pub(super) fn changes(&self) -> anyhow::Result<()> {
        let object = |value: &str| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "conf"},
                "data": {"key": value}})
        };
        let file = |value: &str| self.file(value, object(value).to_string());
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
        let words = ["get", "configmaps", "-w", "--output-watch-events"];
        let mut watch = self.kubectl.cmd(&words).spawn()?;
        let mut told = |what: &str| {
            let is_told = |l: &str| l.starts_with(what) && l.contains(" conf ");
            watch.line(what, PATIENCE, is_told).map(drop)
        };
        told("ADDED")?;
        self.says("label configmap conf tier=front", "labeled")?;
        told("MODIFIED")?;
        self.kubectl
            .refuses("label configmap conf tier=back", "already has a value")?;
        self.says("label configmap conf tier-", "configmap/conf")?;
        // "annotate" in 1.27, "annotated" before and after.
        self.says("annotate configmap conf note=x", "configmap/conf annotate")?;
        self.says(&format!("replace -f {first}"), "replaced")?;
        self.says("create secret generic hidden --from-literal=k=v", "created")?;
        self.says("get secret hidden -o jsonpath={.data.k}", "dg==")?;
        self.line("delete configmap,secret conf hidden --ignore-not-found")?;
        told("DELETED")?;
        // A field that nobody knows is refused by the client or by the server.
        let mut wrong = super::super::web("x", 1);
        wrong["metadata"]["name"] = "wrong".into();
        wrong["spec"]["replica"] = 2.into();
        let wrong = self.file("wrong", wrong.to_string())?;
        let create = format!("create --validate=true -f {wrong}");
        self.kubectl.refuses(&create, "unknown field")?;
        self.kubectl.refuses("get deployment wrong", "NotFound")
    }
}
