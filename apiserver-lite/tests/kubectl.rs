//! Real kubectls against a real server: what users do all day.
#![allow(missing_docs)]

mod common;

use common::{Cluster, kubectl};

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {app: web}
spec:
  replicas: 2
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web}
    spec:
      containers:
      - name: c
        image: nginx:1
        ports:
        - containerPort: 80
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: conf
data:
  a: b
";

async fn walk(minor: u32) {
    let Some(program) = kubectl(minor) else {
        return;
    };
    let c = Cluster::start(&program).await;
    discovery(&c);
    create(&c);
    apply(&c);
    get(&c);
    change(&c);
    delete(&c);
}

fn discovery(c: &Cluster) {
    assert!(c.run("version -o json").contains("v1.36.0"));
    let resources = c.run("api-resources --no-headers");
    assert!(resources.lines().count() > 50, "{resources}");
    assert!(resources.contains("deployments"), "{resources}");
    assert!(c.run("api-versions").contains("apps/v1\n"));
    let pods = c.run("explain pods.spec.containers");
    assert!(pods.contains("imagePullPolicy"), "{pods}");
    assert!(pods.contains("A single application container"), "{pods}");
    let recursive = c.run("explain deployment --recursive");
    assert!(recursive.contains("progressDeadlineSeconds"));
    assert_eq!(c.run("get --raw /readyz"), "ok");
    let cluster = c.run("cluster-info");
    assert!(cluster.contains("is running at"), "{cluster}");
}

fn create(c: &Cluster) {
    // Typed clients send protobuf from release 1.32 on.
    c.run("create namespace demo");
    c.run("create configmap cm --from-literal=k=v -n demo");
    c.run("create secret generic s --from-literal=k=v -n demo");
    c.run("create serviceaccount sa -n demo");
    c.run("create deployment d --image=nginx --replicas=2 --port=80 -n demo");
    c.run("create job j --image=nginx -n demo -- echo hello");
    c.run("create role r --verb=get,list --resource=pods,deployments.apps -n demo");
    c.run("create rolebinding rb --role=r --serviceaccount=demo:sa -n demo");
    c.run("create service clusterip svc --tcp=80:8080 -n demo");
    c.run("create poddisruptionbudget pdb --selector=app=d --min-available=1 -n demo");
    c.run("create priorityclass high --value=1000");
    c.run("run p --image=nginx --port=80 --env=A=B -n demo");
    c.run("expose deployment d --port=80 -n demo");
    c.run("autoscale deployment d --max=3 --cpu-percent=50 -n demo");
    assert_eq!(c.run("get configmap cm -n demo -o jsonpath={.data.k}"), "v");
    assert_eq!(
        c.run("get job j -n demo -o jsonpath={.spec.template.spec.containers[0].command}"),
        r#"["echo","hello"]"#
    );
    assert_eq!(
        c.run("get role r -n demo -o jsonpath={.rules[*].resources}"),
        r#"["pods"] ["deployments"]"#
    );
    assert_eq!(
        c.run(
            "get hpa d -n demo -o jsonpath={.spec.metrics[0].resource.target.averageUtilization}"
        ),
        "50"
    );
    let twice = c.fail("create configmap cm -n demo");
    assert!(
        twice.contains("(AlreadyExists)") || twice.contains("already exists"),
        "{twice}"
    );
    let bad = c.fail("create configmap Bad_Name -n demo");
    assert!(
        bad.contains("metadata.name: Invalid value: \"Bad_Name\""),
        "{bad}"
    );
}

fn apply(c: &Cluster) {
    let first = c.feed("apply -f -", WEB);
    assert!(first.contains("deployment.apps/web created"), "{first}");
    let again = c.feed("apply -f -", WEB);
    assert_eq!(
        again,
        "deployment.apps/web unchanged\nconfigmap/conf unchanged\n"
    );
    let same = c.run_with("diff -f -", WEB);
    assert!(same.ok && same.out.is_empty(), "{same:?}");
    let changed = WEB.replace("nginx:1", "nginx:2");
    let differs = c.run_with("diff -f -", &changed);
    assert!(
        differs.out.contains("+      - image: nginx:2"),
        "{differs:?}"
    );
    let configured = c.feed("apply -f -", &changed);
    assert!(
        configured.contains("deployment.apps/web configured"),
        "{configured}"
    );
    let unset = changed.replace("  a: b", "  c: d");
    c.feed("apply -f -", &unset);
    assert_eq!(
        c.run("get configmap conf -o jsonpath={.data}"),
        r#"{"c":"d"}"#
    );
    let unknown = WEB.replace("replicas: 2", "replica: 2");
    let refused = c.run_with("apply --validate=strict -f -", &unknown);
    assert!(
        !refused.ok && refused.err.contains("unknown field \"spec.replica\""),
        "{refused:?}"
    );
    let dry = c.feed("apply --dry-run=server -f -", &changed);
    assert!(dry.contains("(server dry run)"), "{dry}");
    let warned = c.run_with(
        "create --validate=warn --dry-run=server -f -",
        &unknown.replace("web", "other").replace("conf", "conf2"),
    );
    assert!(
        warned
            .err
            .contains("Warning: unknown field \"spec.replica\""),
        "{warned:?}"
    );
}

fn get(c: &Cluster) {
    let wide = c.run("get deployments -o wide");
    assert!(
        wide.contains("CONTAINERS") && wide.contains("app=web"),
        "{wide}"
    );
    assert!(c.run("get all -n demo").contains("pod/p"));
    assert_eq!(
        c.run("get deploy,cm -o name -l app=web"),
        "deployment.apps/web\n"
    );
    assert!(c.run("get deploy web -o yaml").contains("replicas: 2"));
    assert!(c.run("get deploy web -o json").contains("\"replicas\": 2"));
    assert_eq!(
        c.run("get deploy -o custom-columns=N:.metadata.name --no-headers"),
        "web\n"
    );
    assert_eq!(
        c.run("get configmaps -A --field-selector=metadata.name=cm -o name"),
        "configmap/cm\n"
    );
    assert_eq!(
        c.run("get pods -n demo --field-selector=status.phase=Pending -o name"),
        "pod/p\n"
    );
    let sorted = c.run("get cm -A --sort-by=.metadata.name -o name --chunk-size=1");
    assert_eq!(sorted, "configmap/cm\nconfigmap/conf\n");
    let missing = c.fail("get deploy none");
    assert_eq!(
        missing.lines().last(),
        Some("Error from server (NotFound): deployments.apps \"none\" not found")
    );
    assert!(c.run("describe deployment web").contains("nginx:2"));
    assert!(c.run("describe pod p -n demo").contains("nginx"));
    assert!(
        c.run("get deploy web --subresource=status -o name")
            .contains("web")
    );
}

fn change(c: &Cluster) {
    c.run("label deployment web tier=front");
    c.run("annotate deployment web note=x");
    assert!(
        c.fail("label deployment web tier=back")
            .contains("already has a value")
    );
    c.run("label deployment web tier-");
    c.run("scale deployment web --replicas=3");
    assert_eq!(c.run("get deploy web -o jsonpath={.spec.replicas}"), "3");
    let stale = c.fail("scale deployment web --replicas=4 --current-replicas=2");
    assert!(
        stale.contains("Expected replicas to be 2, was 3"),
        "{stale}"
    );
    c.run("set image deployment/web c=nginx:3");
    c.run("set env deployment/web A=B");
    let patched = |kind: &str, patch: &str| {
        let output = c.run_args(&["patch", "deploy", "web", "--type", kind, "-p", patch], "");
        assert!(output.ok, "{kind}: {output:?}");
    };
    patched("merge", r#"{"spec":{"replicas":5}}"#);
    patched(
        "json",
        r#"[{"op":"replace","path":"/spec/replicas","value":6}]"#,
    );
    patched(
        "strategic",
        r#"{"spec":{"template":{"spec":{"containers":[{"name":"d","image":"busybox"}]}}}}"#,
    );
    assert_eq!(
        c.run(
            "get deploy web -o jsonpath={.spec.replicas}{.spec.template.spec.containers[*].name}"
        ),
        "6d c"
    );
    let bad = c.run_args(
        &[
            "patch",
            "deploy",
            "web",
            "--type",
            "json",
            "-p",
            r#"[{"op":"test","path":"/spec/replicas","value":1}]"#,
        ],
        "",
    );
    // Upstream does not say which test failed.
    let rejected = "The request is invalid: the server rejected our request";
    assert!(!bad.ok && bad.err.contains(rejected), "{bad:?}");
    c.run("annotate cm conf note=edit-me");
    c.run("edit cm conf");
    assert_eq!(
        c.run("get cm conf -o jsonpath={.metadata.annotations.note}"),
        "edited"
    );
    let limited = c.run_args(
        &[
            "set",
            "resources",
            "deployment",
            "web",
            "-c",
            "c",
            "--limits=cpu=1000m,memory=1Gi",
        ],
        "",
    );
    assert!(limited.ok, "{limited:?}");
    assert_eq!(
        c.run("get deploy web -o jsonpath={.spec.template.spec.containers[?(@.name==\"c\")].resources.limits.cpu}"),
        "1"
    );
    let replaced = c.run("get cm conf -o yaml").replace("c: d", "e: f");
    c.feed("replace -f -", &replaced);
    let conflict = c.run_with("replace -f -", &replaced.replace("e: f", "g: h"));
    assert!(
        !conflict.ok && conflict.err.contains("(Conflict)"),
        "{conflict:?}"
    );
}

fn delete(c: &Cluster) {
    c.run("wait --for=jsonpath={.spec.replicas}=6 deploy/web --timeout=20s");
    c.run("delete deployment d -n demo --cascade=background");
    c.run("delete pod p -n demo --grace-period=0 --force");
    let orphaned = c.run("delete deployment web --cascade=orphan --wait=false");
    assert!(orphaned.contains("deleted"), "{orphaned}");
    assert_eq!(
        c.run("get deploy web -o jsonpath={.metadata.finalizers}"),
        r#"["orphan"]"#
    );
    c.run_args(
        &[
            "patch",
            "deploy",
            "web",
            "--type",
            "merge",
            "-p",
            r#"{"metadata":{"finalizers":null}}"#,
        ],
        "",
    );
    c.run("wait --for=delete deploy/web --timeout=20s");
    c.run("delete configmap --all -n demo");
    assert!(c.run("get cm -n demo -o name").is_empty());
    let gone = c.fail("delete configmap none");
    assert!(gone.contains("(NotFound)"), "{gone}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn walk_1_33() {
    walk(33).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn walk_1_32() {
    walk(32).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn walk_1_27() {
    walk(27).await;
}
