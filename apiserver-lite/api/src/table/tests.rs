use super::*;
use crate::resources;

fn now() -> Time {
    Time::parse("2026-01-01T01:00:00Z").unwrap()
}

fn line(group: &str, kind: &str, object: &Value) -> String {
    let cells = cells(group, kind, object, now());
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), ToOwned::to_owned);
    cells.iter().map(text).collect::<Vec<_>>().join(" | ")
}

fn pod(spec: Value, status: Value) -> Value {
    json!({"metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:58:00Z"}, "spec": spec, "status": status})
}

#[test]
fn every_kind_has_as_many_cells_as_columns() {
    for resource in resources::all() {
        let (group, kind) = (resource.gvk.group, resource.gvk.kind);
        for object in [
            json!({}),
            json!({"metadata": {"name": "x"}, "spec": [], "status": 3}),
        ] {
            let cells = cells(group, kind, &object, now());
            assert_eq!(cells.len(), columns(group, kind).len(), "{group}/{kind}");
        }
    }
}

#[test]
fn pods_show_the_word_that_kubectl_shows() {
    let two = json!({"containers": [{"name": "a"}, {"name": "b"}]});
    let running = json!({"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}});
    for (spec, status, want) in [
        (
            two.clone(),
            json!({"phase": "Pending"}),
            "p | 0/2 | Pending | 0 | 2m | <none> | <none> | <none> | <none>",
        ),
        (
            two.clone(),
            json!({"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [running,
                {"name": "b", "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                 "lastState": {"terminated": {"finishedAt": "2026-01-01T00:59:30Z"}}}]}),
            "p | 1/2 | CrashLoopBackOff | 3 (30s ago) | 2m | 10.0.0.1 | <none> | <none> | <none>",
        ),
        (
            two.clone(),
            json!({"phase": "Failed", "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]}),
            "p | 0/2 | OOMKilled | 0 | 2m | <none> | <none> | <none> | <none>",
        ),
        (
            json!({"containers": [{"name": "a"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "i"}]}),
            json!({"phase": "Pending", "initContainerStatuses": [
                {"name": "s", "started": true, "ready": true, "restartCount": 1, "state": {"running": {}}},
                {"name": "i", "restartCount": 2, "state": {"terminated": {"exitCode": 2}}}]}),
            "p | 1/2 | Init:ExitCode:2 | 3 | 2m | <none> | <none> | <none> | <none>",
        ),
        (
            json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]}),
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}),
            "p | 0/1 | Init:0/1 | 0 | 2m | <none> | <none> | <none> | <none>",
        ),
    ] {
        assert_eq!(line("", "Pod", &pod(spec, status)), want);
    }
    let mut gone = pod(
        two,
        json!({"phase": "Running", "containerStatuses": [running]}),
    );
    gone["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:59:00Z");
    assert!(line("", "Pod", &gone).starts_with("p | 1/2 | Terminating | 0"));
}

#[test]
fn other_kinds() {
    let meta = json!({"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z"});
    let template = json!({"spec": {"containers": [{"name": "a", "image": "i:1"}, {"name": "b", "image": "j"}]}});
    for (group, kind, object, want) in [
        (
            "apps",
            "Deployment",
            json!({"metadata": meta, "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "x"}}, "template": template},
                   "status": {"readyReplicas": 1, "updatedReplicas": 2, "availableReplicas": 1}}),
            "x | 1/3 | 2 | 1 | 60m | a,b | i:1,j | app=x",
        ),
        (
            "",
            "Service",
            json!({"metadata": meta, "spec": {"type": "NodePort", "clusterIPs": ["10.1.1.1"], "selector": {"b": "2", "a": "1"},
                   "ports": [{"port": 80, "nodePort": 32600, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}}),
            "x | NodePort | 10.1.1.1 | <none> | 80:32600/TCP,53/UDP | 60m | a=1,b=2",
        ),
        (
            "",
            "Service",
            json!({"metadata": meta, "spec": {"type": "LoadBalancer", "clusterIP": "10.1.1.1"}}),
            "x | LoadBalancer | 10.1.1.1 | <pending> | <none> | 60m | <none>",
        ),
        (
            "",
            "Node",
            json!({"metadata": {"name": "n", "creationTimestamp": "2025-12-31T00:00:00Z", "labels": {"node-role.kubernetes.io/control-plane": ""}},
                   "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}],
                   "addresses": [{"type": "InternalIP", "address": "1.2.3.4"}], "nodeInfo": {"kubeletVersion": "v1.36.0"}}}),
            "n | Ready,SchedulingDisabled | control-plane | 25h | v1.36.0 | 1.2.3.4 | <none> | <unknown> | <unknown> | <unknown>",
        ),
        (
            "batch",
            "Job",
            json!({"metadata": meta, "spec": {"completions": 2, "template": template}, "status": {"succeeded": 2,
                   "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:00:09Z", "conditions": [{"type": "Complete", "status": "True"}]}}),
            "x | Complete | 2/2 | 9s | 60m | a,b | i:1,j | <none>",
        ),
        (
            "",
            "Event",
            json!({"metadata": meta, "type": "Warning", "reason": "BackOff", "message": " Back-off \n", "count": 4,
                   "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:59:50Z",
                   "involvedObject": {"kind": "Pod", "name": "p"}, "source": {"component": "kubelet", "host": "n"}}),
            "10s | Warning | BackOff | pod/p |  | kubelet, n | Back-off | 60m | 4 | x",
        ),
        (
            "",
            "Endpoints",
            json!({"metadata": meta, "subsets": [{"addresses": [{"ip": "1.1.1.1"}, {"ip": "fe80::1"}], "ports": [{"port": 1}, {"port": 2}]}]}),
            "x | 1.1.1.1:1,1.1.1.1:2,[fe80::1]:1 + 1 more... | 60m",
        ),
        (
            "",
            "PersistentVolumeClaim",
            json!({"metadata": meta, "spec": {"volumeName": "v", "volumeMode": "Filesystem", "storageClassName": "s"},
                   "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"]}}),
            "x | Bound | v | 1Gi | RWO,RWX | s | <unset> | 60m | Filesystem",
        ),
        (
            "",
            "ConfigMap",
            json!({"metadata": meta, "data": {"a": "b"}, "binaryData": {"c": ""}}),
            "x | 2 | 60m",
        ),
        (
            "rbac.authorization.k8s.io",
            "Role",
            json!({"metadata": meta}),
            "x | 2026-01-01T00:00:00Z",
        ),
        (
            "apps",
            "ControllerRevision",
            json!({"metadata": {"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z", "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "controller": true}]}, "revision": 3}),
            "x | daemonset.apps/d | 3 | 60m",
        ),
    ] {
        assert_eq!(line(group, kind, &object), want, "{kind}");
    }
}

#[test]
fn a_table_carries_what_was_asked_for() {
    let object = json!({"metadata": {"name": "x"}, "data": {}});
    let get = |include| {
        table(
            "",
            "ConfigMap",
            &[&object],
            json!({"resourceVersion": "7"}),
            include,
            now(),
        )
    };
    let metadata = get(Include::Metadata);
    assert_eq!(metadata["metadata"]["resourceVersion"], "7");
    assert_eq!(
        metadata["columnDefinitions"][0],
        json!({"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0})
    );
    assert_eq!(
        metadata["rows"][0]["object"]["kind"],
        "PartialObjectMetadata"
    );
    assert_eq!(get(Include::Object)["rows"][0]["object"], object);
    assert!(get(Include::Nothing)["rows"][0].get("object").is_none());
    assert_eq!(Include::parse("Objekt"), None);
}
