//! The real kubectl drives rollouts, drains and deletions.

use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::core::v1::Pod;
use rkube_apiserver::testing;

use crate::Cluster;

/// kubectl by its full name: what `kubectl` links to may pick another version.
fn kubectl() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path)
        .map(|d| d.join("kubectl"))
        .find(|p| p.exists())?;
    let real = found.canonicalize().ok()?;
    let folder = real.parent()?;
    let newest = ["1.33", "1.32", "1.31"].map(|v| folder.join(format!("kubectl.{v}")));
    newest.into_iter().find(|p| p.exists()).or(Some(real))
}

struct Shell {
    kubectl: PathBuf,
    config: PathBuf,
    home: PathBuf,
}

impl Shell {
    /// Runs a command line; answers what it prints.
    async fn run(&self, line: &str) -> String {
        let mut command = Command::new(&self.kubectl);
        command
            .args(line.split_whitespace())
            .env("KUBECONFIG", &self.config)
            .env("HOME", &self.home);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap())
            .await
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "kubectl {line}: {out}{err}");
        out + &err
    }

    async fn says(&self, line: &str, expected: &str) {
        let told = self.run(line).await;
        assert!(told.contains(expected), "kubectl {line}: {told}");
    }
}

async fn shell(cluster: &Cluster, folder: &Path) -> Option<(testing::TestServer, Shell)> {
    let kubectl = kubectl()?;
    let server = testing::serve(folder, cluster.engine.clone(), 0)
        .await
        .unwrap();
    let shell = Shell {
        kubectl,
        config: server.kubeconfig.clone(),
        home: folder.to_path_buf(),
    };
    Some((server, shell))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollouts_as_people_do_them() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(2).await;
    let Some((_server, shell)) = shell(&cluster, folder.path()).await else {
        eprintln!("skipped: no kubectl");
        return;
    };
    shell
        .run("create deployment web --image=v1 --replicas=2")
        .await;
    let rolled = "successfully rolled out";
    let status = "rollout status deployment/web --timeout=60s";
    shell.says(status, rolled).await;
    shell.run("set image deployment/web v1=v2").await;
    shell.says(status, rolled).await;
    let history = shell.run("rollout history deployment/web").await;
    assert!(
        history.contains("\n1 ") && history.contains("\n2 "),
        "{history}"
    );
    shell
        .says("rollout history deployment/web --revision=2", "Image:\tv2")
        .await;
    shell
        .says("rollout undo deployment/web", "rolled back")
        .await;
    shell.says(status, rolled).await;
    shell
        .says(
            "get deployment web -o jsonpath={.spec.template.spec.containers[0].image}",
            "v1",
        )
        .await;
    let history = shell.run("rollout history deployment/web").await;
    assert!(
        history.contains("\n2 ") && history.contains("\n3 ") && !history.contains("\n1 "),
        "{history}"
    );
    shell
        .says("rollout undo deployment/web --to-revision=2", "rolled back")
        .await;
    shell.says(status, rolled).await;
    shell.says("rollout pause deployment/web", "paused").await;
    shell.run("set image deployment/web v1=v3").await;
    shell.says("rollout resume deployment/web", "resumed").await;
    shell.says(status, rolled).await;
    shell
        .says("rollout restart deployment/web", "restarted")
        .await;
    shell.says(status, rolled).await;
    shell.run("scale deployment/web --replicas=4").await;
    shell
        .run("wait --for=condition=Available --timeout=60s deployment/web")
        .await;
    shell
        .run("wait --for=jsonpath={.status.readyReplicas}=4 --timeout=60s deployment/web")
        .await;
    let told = shell.run("describe deployment web").await;
    assert!(
        told.contains("ScalingReplicaSet") && told.contains("NewReplicaSetAvailable"),
        "{told}"
    );
    shell.says("get replicasets", "web-").await;
    // A node is emptied: its pods are on the other one.
    shell
        .says("drain node-0 --force --timeout=60s", "drained")
        .await;
    let moved = |pods: &[Pod]| {
        pods.iter()
            .filter(|p| p.metadata.deletion_timestamp.is_none())
            .count()
            == 4
            && pods
                .iter()
                .all(|p| p.spec.as_ref().unwrap().node_name.as_deref() == Some("node-1"))
    };
    cluster.until::<Pod>("moved", moved).await;
    shell.run("uncordon node-0").await;
    shell
        .says(
            "delete deployment web --cascade=foreground --timeout=60s",
            "deleted",
        )
        .await;
    cluster.until::<Pod>("no pods", <[_]>::is_empty).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_and_namespaces_as_people_do_them() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(1).await;
    let Some((_server, shell)) = shell(&cluster, folder.path()).await else {
        eprintln!("skipped: no kubectl");
        return;
    };
    shell.run("create job hello --image=done").await;
    shell
        .run("wait --for=condition=complete --timeout=60s job/hello")
        .await;
    shell.says("get job hello", "1/1").await;
    shell.says("describe job hello", "Completed").await;
    shell.run("delete job hello --timeout=60s").await;
    cluster.until::<Pod>("no pods", <[_]>::is_empty).await;
    shell.run("create namespace team").await;
    shell
        .run("wait --for=create --timeout=60s serviceaccount/default -n team")
        .await;
    shell.run("create deployment web --image=v1 -n team").await;
    shell
        .says(
            "rollout status deployment/web --timeout=60s -n team",
            "successfully",
        )
        .await;
    shell
        .says("delete namespace team --timeout=60s", "deleted")
        .await;
    let gone = shell.run("get namespaces -o name").await;
    assert!(!gone.contains("team"), "{gone}");
    cluster.stop().await;
}
