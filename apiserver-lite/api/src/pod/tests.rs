//! Tables of manifests against what upstream says about them.

use serde_json::{Value, json};

use super::*;
use crate::types;

fn pod(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "d"}, "spec": spec})
}

/// A pod with one container, `patch` merged over it (RFC 7386).
fn with(patch: &Value) -> Value {
    let mut pod = pod(json!({"containers": [{"name": "a", "image": "x:1"}]}));
    merge(&mut pod, patch);
    pod
}

/// `patch` merged into the first container.
fn with_container(patch: &Value) -> Value {
    let mut pod = with(&json!({"spec": {"volumes": [
        {"name": "v", "emptyDir": {}}, {"name": "pvc", "persistentVolumeClaim": {"claimName": "c"}}]}}));
    merge(&mut pod["spec"]["containers"][0], patch);
    pod
}

fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch.clone(),
    }
}

fn errors(mut pod: Value) -> Vec<String> {
    let ty = types::by_kind("v1", "Pod").unwrap();
    let strict = crate::strict::check(&pod, ty);
    assert!(strict.is_empty(), "{strict:?}");
    default(&mut pod);
    let strict = crate::strict::check(&pod, ty);
    assert!(strict.is_empty(), "defaults break the type: {strict:?}");
    validate(&pod).iter().map(ToString::to_string).collect()
}

#[track_caller]
fn one(pod: Value, want: &str) {
    assert_eq!(errors(pod), [want]);
}

#[test]
fn defaults_as_upstream() {
    let mut pod = with_container(&json!({
        "image": "nginx",
        "ports": [{"containerPort": 80}],
        "resources": {"limits": {"cpu": "1000m", "memory": "1024Mi"}, "requests": {"cpu": 0.25}},
        "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "C", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}],
        "livenessProbe": {"httpGet": {"port": 80}, "timeoutSeconds": 0},
        "lifecycle": {"preStop": {"httpGet": {"port": 80, "path": ""}}}
    }));
    pod["spec"]["volumes"] = json!([
        {"name": "none"}, {"name": "s", "secret": {"secretName": "s"}}, {"name": "h", "hostPath": {"path": "/"}},
        {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]);
    pod["spec"]["hostNetwork"] = json!(true);
    default(&mut pod);
    let spec = &pod["spec"];
    let container = &spec["containers"][0];
    for (value, want) in [
        (&spec["restartPolicy"], json!("Always")),
        (&spec["dnsPolicy"], json!("ClusterFirst")),
        (&spec["enableServiceLinks"], json!(true)),
        (&spec["terminationGracePeriodSeconds"], json!(30)),
        (&spec["schedulerName"], json!("default-scheduler")),
        (&spec["securityContext"], json!({})),
        (&spec["volumes"][0], json!({"name": "none", "emptyDir": {}})),
        (&spec["volumes"][1]["secret"]["defaultMode"], json!(420)),
        (&spec["volumes"][2]["hostPath"]["type"], json!("")),
        (
            &spec["volumes"][3]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"],
            json!(3600),
        ),
        (&container["imagePullPolicy"], json!("Always")),
        (
            &container["terminationMessagePath"],
            json!("/dev/termination-log"),
        ),
        (&container["terminationMessagePolicy"], json!("File")),
        (
            &container["ports"][0],
            json!({"containerPort": 80, "hostPort": 80, "protocol": "TCP"}),
        ),
        (
            &container["resources"],
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "250m", "memory": "1Gi"}}),
        ),
        (
            &container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"],
            json!("v1"),
        ),
        (
            &container["env"][1]["valueFrom"]["resourceFieldRef"]["divisor"],
            json!("0"),
        ),
        (
            &container["livenessProbe"],
            json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                   "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}),
        ),
        (
            &container["lifecycle"]["preStop"]["httpGet"]["path"],
            json!("/"),
        ),
    ] {
        assert_eq!(value, &want);
    }
    // Defaulting is idempotent.
    let once = pod.clone();
    default(&mut pod);
    assert_eq!(pod, once);
    // Values of wrong types are left for the strict check.
    for odd in [
        json!(null),
        json!({"spec": 3}),
        json!({"spec": {"containers": "x", "volumes": [1]}}),
    ] {
        let mut value = odd.clone();
        default(&mut value);
    }
}

#[test]
fn pull_policy_follows_the_tag() {
    for (image, want) in [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("nginx:1.25", "IfNotPresent"),
        ("host:5000/nginx", "Always"),
        ("host:5000/nginx:1", "IfNotPresent"),
        ("nginx@sha256:0123", "IfNotPresent"),
        ("", "IfNotPresent"),
    ] {
        assert_eq!(default_pull_policy(image), want, "{image}");
    }
}

#[test]
fn good_pods_have_no_errors() {
    let sidecar = json!({"name": "s", "image": "x", "restartPolicy": "Always",
        "startupProbe": {"exec": {"command": ["true"]}}, "lifecycle": {"preStop": {"sleep": {"seconds": 5}}}});
    for pod in [
        with(&json!({})),
        with(&json!({"spec": {"initContainers": [{"name": "i", "image": "x"}, sidecar]}})),
        with(
            &json!({"spec": {"hostAliases": [{"ip": "::1", "hostnames": ["a.b"]}],
            "dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["a.b.", "_x.y", "."]}}}),
        ),
        with(
            &json!({"spec": {"tolerations": [{"operator": "Exists"}, {"key": "a", "value": "b", "effect": "NoExecute", "tolerationSeconds": 0}]}}),
        ),
        with(
            &json!({"spec": {"securityContext": {"sysctls": [{"name": "net.ipv4.ip_local_port_range", "value": "1 2"}],
            "seccompProfile": {"type": "Localhost", "localhostProfile": "a/b.json"}}}}),
        ),
        with_container(
            &json!({"volumeMounts": [{"name": "v", "mountPath": "/a", "subPath": "x/y"}],
            "volumeDevices": [{"name": "pvc", "devicePath": "/dev/x"}],
            "ports": [{"containerPort": 1, "hostPort": 1}, {"containerPort": 1, "hostPort": 1, "protocol": "UDP"}],
            "envFrom": [{"configMapRef": {"name": "a"}, "prefix": "P_"}],
            "env": [{"name": "a.b-c", "value": "$(X)"}]}),
        ),
    ] {
        assert_eq!(errors(pod), Vec::<String>::new());
    }
}

#[test]
fn containers() {
    let label = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
    one(
        pod(json!({"containers": []})),
        "spec.containers: Required value",
    );
    one(
        with_container(&json!({"name": ""})),
        "spec.containers[0].name: Required value",
    );
    one(
        with_container(&json!({"name": "A"})),
        &format!("spec.containers[0].name: Invalid value: \"A\": {label}"),
    );
    one(
        with_container(&json!({"image": ""})),
        "spec.containers[0].image: Required value",
    );
    one(
        with_container(&json!({"image": " x"})),
        "spec.containers[0].image: Invalid value: \" x\": must not have leading or trailing whitespace",
    );
    one(
        with(&json!({"spec": {"initContainers": [{"name": "a", "image": "x"}]}})),
        "spec.initContainers[0].name: Duplicate value: \"a\"",
    );
    one(
        with(
            &json!({"spec": {"initContainers": [{"name": "i", "image": "x", "readinessProbe": {"tcpSocket": {"port": 1}}}]}}),
        ),
        "spec.initContainers[0].readinessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
    );
    one(
        with(&json!({"spec": {"ephemeralContainers": [{"name": "e", "image": "x"}]}})),
        "spec.ephemeralContainers: Forbidden: cannot be set on create",
    );
    one(
        with_container(
            &json!({"restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}]}),
        ),
        "spec.containers[0].restartPolicy: Required value: must specify restartPolicy when restart rules are used",
    );
}

#[test]
fn ports() {
    one(
        with_container(&json!({"ports": [{"containerPort": 0}]})),
        "spec.containers[0].ports[0].containerPort: Required value",
    );
    one(
        with_container(&json!({"ports": [{"containerPort": 65536}]})),
        "spec.containers[0].ports[0].containerPort: Invalid value: 65536: must be between 1 and 65535, inclusive",
    );
    one(
        with_container(
            &json!({"ports": [{"containerPort": 1, "name": "x"}, {"containerPort": 2, "name": "x"}]}),
        ),
        "spec.containers[0].ports[1].name: Duplicate value: \"x\"",
    );
    one(
        with_container(
            &json!({"ports": [{"containerPort": 1, "hostPort": 9}, {"containerPort": 2, "hostPort": 9}]}),
        ),
        "spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//9\"",
    );
    let mut host = with_container(&json!({"ports": [{"containerPort": 1, "hostPort": 9}]}));
    host["spec"]["hostNetwork"] = json!(true);
    one(
        host,
        "spec.containers[0].ports[0].hostPort: Invalid value: 9: must match `containerPort` when `hostNetwork` is true",
    );
    // As upstream: no rule looks at an address of the host.
    let odd = with_container(&json!({"ports": [{"containerPort": 1, "hostIP": "1.2.3"}]}));
    assert!(errors(odd).is_empty());
}

#[test]
fn environment() {
    let env = |v: Value| with_container(&json!({"env": [v]}));
    one(
        env(json!({"name": ""})),
        "spec.containers[0].env[0].name: Required value",
    );
    one(
        env(json!({"name": "a=b"})),
        "spec.containers[0].env[0].name: Invalid value: \"a=b\": a valid environment variable name must consist only of printable ASCII characters other than '='",
    );
    one(
        env(json!({"name": "A", "valueFrom": {}})),
        "spec.containers[0].env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
    );
    one(
        env(
            json!({"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}),
        ),
        "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
    );
    one(
        env(json!({"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}})),
        "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.x\": error converting fieldPath: field label not supported: spec.x",
    );
    one(
        env(json!({"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels"}}})),
        "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"metadata.labels\": supported values: \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \"spec.serviceAccountName\", \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \"status.podIPs\"",
    );
    assert!(
        errors(env(
            json!({"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a/b']"}}})
        ))
        .is_empty()
    );
    one(
        env(
            json!({"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "2"}}}),
        ),
        "spec.containers[0].env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"limits.cpu\": only divisor's values 1m and 1 are supported with the cpu resource",
    );
    one(
        with_container(&json!({"envFrom": [{}]})),
        "spec.containers[0].envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`",
    );
}

#[test]
fn mounts_and_volumes() {
    let mount = |v: Value| with_container(&json!({"volumeMounts": [v]}));
    let volume = |v: Value| with(&json!({"spec": {"volumes": [v]}}));
    one(
        mount(json!({"name": "w", "mountPath": "/a"})),
        "spec.containers[0].volumeMounts[0].name: Not found: \"w\"",
    );
    one(
        mount(json!({"name": "v", "mountPath": ""})),
        "spec.containers[0].volumeMounts[0].mountPath: Required value",
    );
    one(
        with_container(
            &json!({"volumeMounts": [{"name": "v", "mountPath": "/a"}, {"name": "v", "mountPath": "/a"}]}),
        ),
        "spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/a\": must be unique",
    );
    one(
        mount(json!({"name": "v", "mountPath": "/a", "subPath": "a/../b"})),
        "spec.containers[0].volumeMounts.subPath: Invalid value: \"a/../b\": must not contain '..'",
    );
    one(
        mount(json!({"name": "v", "mountPath": "/a", "mountPropagation": "Bidirectional"})),
        "spec.containers[0].volumeMounts.mountPropagation: Forbidden: Bidirectional mount propagation is available only to privileged containers",
    );
    one(
        mount(json!({"name": "v", "mountPath": "/a", "recursiveReadOnly": "Enabled"})),
        "spec.containers[0].volumeMounts.recursiveReadOnly: Forbidden: may only be specified when readOnly is true",
    );
    one(
        with_container(&json!({"volumeDevices": [{"name": "v", "devicePath": "/d"}]})),
        "spec.containers[0].volumeDevices[0].name: Invalid value: \"v\": can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
    );
    one(
        volume(json!({"name": "v", "hostPath": {"path": ""}})),
        "spec.volumes[0].hostPath.path: Required value",
    );
    one(
        volume(json!({"name": "v", "hostPath": {"path": "/a/.."}})),
        "spec.volumes[0].hostPath.path: Invalid value: \"/a/..\": must not contain '..'",
    );
    one(
        volume(json!({"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}})),
        "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
    );
    one(
        with(&json!({"spec": {"volumes": [{"name": "v"}, {"name": "v"}]}})),
        "spec.volumes[1].name: Duplicate value: \"v\"",
    );
    one(
        volume(json!({"name": "v", "secret": {"secretName": "s", "defaultMode": 0o1000}})),
        "spec.volumes[0].secret.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive",
    );
    one(
        volume(
            json!({"name": "v", "configMap": {"name": "c", "items": [{"key": "a", "path": "..a"}]}}),
        ),
        "spec.volumes[0].configMap.items[0].path: Invalid value: \"..a\": must not start with '..'",
    );
    one(
        volume(
            json!({"name": "v", "projected": {"sources": [{"secret": {"name": "s", "items": [{"key": "a", "path": "p"}]}},
            {"configMap": {"name": "c", "items": [{"key": "a", "path": "p"}]}}]}}),
        ),
        "spec.volumes[0].projected: Invalid value: \"c\": conflicting duplicate paths",
    );
    one(
        volume(
            json!({"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "p", "expirationSeconds": 60}}]}}),
        ),
        "spec.volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 60: may not specify a duration less than 10 minutes",
    );
    one(
        volume(json!({"name": "v", "downwardAPI": {"items": [{"path": "p"}]}})),
        "spec.volumes[0].downwardAPI: Required value: one of fieldRef and resourceFieldRef is required",
    );
}

#[test]
fn probes_and_hooks() {
    let probe = |v: Value| with_container(&json!({"livenessProbe": v}));
    one(
        probe(json!({})),
        "spec.containers[0].livenessProbe: Required value: must specify a handler type",
    );
    one(
        probe(json!({"exec": {"command": ["a"]}, "tcpSocket": {"port": 1}})),
        "spec.containers[0].livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
    );
    one(
        probe(json!({"exec": {"command": ["a"]}, "successThreshold": 2})),
        "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
    );
    one(
        probe(json!({"exec": {"command": ["a"]}, "periodSeconds": -1})),
        "spec.containers[0].livenessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0",
    );
    one(
        probe(json!({"httpGet": {"port": "hTTP"}})),
        "spec.containers[0].livenessProbe.httpGet.port: Invalid value: \"hTTP\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
    );
    let mut late = with_container(&json!({"lifecycle": {"preStop": {"sleep": {"seconds": 31}}}}));
    one(
        late.take(),
        "spec.containers[0].lifecycle.preStop.sleep.seconds: Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)",
    );
    let odd = with_container(&json!({"lifecycle": {"stopSignal": "SIGRTMINé"}}));
    assert_eq!(errors(odd).len(), 2);
}

#[test]
fn resources_and_security() {
    let resources = |v: Value| with_container(&json!({"resources": v}));
    one(
        resources(json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}})),
        "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
    );
    assert_eq!(
        errors(resources(json!({"requests": {"gpus": "2"}}))),
        [
            "spec.containers[0].resources.requests[gpus]: Invalid value: \"gpus\": must be a standard resource type or fully qualified",
            "spec.containers[0].resources.requests[gpus]: Invalid value: \"gpus\": must be a standard resource for containers",
        ]
    );
    let broken =
        resources(json!({"limits": {"a.b/gpu": "1500m"}, "requests": {"a.b/gpu": "1500m"}}));
    let want = |list| {
        format!(
            "spec.containers[0].resources.{list}[a.b/gpu]: Invalid value: \"1500m\": must be an integer"
        )
    };
    assert_eq!(errors(broken), [want("limits"), want("requests")]);
    one(
        resources(json!({"requests": {"a.b/gpu": "1"}})),
        "spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources",
    );
    one(
        resources(json!({"requests": {"memory": "-1"}})),
        "spec.containers[0].resources.requests[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
    );
    one(
        with_container(
            &json!({"securityContext": {"privileged": true, "allowPrivilegeEscalation": false}}),
        ),
        "spec.containers[0].securityContext: Invalid value: {\"allowPrivilegeEscalation\":false,\"privileged\":true}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
    );
    one(
        with_container(&json!({"securityContext": {"procMount": "Unmasked"}})),
        "spec.containers[0].securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use `Unmasked`",
    );
    one(
        with(&json!({"spec": {"shareProcessNamespace": true, "hostPID": true}})),
        "spec.securityContext.shareProcessNamespace: Invalid value: true: ShareProcessNamespace and HostPID cannot both be enabled",
    );
    one(
        with(&json!({"spec": {"hostUsers": false, "hostIPC": true}})),
        "spec.hostIPC: Forbidden: when `hostUsers` is false",
    );
    one(
        with(&json!({"spec": {"securityContext": {"seccompProfile": {"type": "Localhost"}}}})),
        "spec.securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost",
    );
    one(
        with(
            &json!({"spec": {"hostNetwork": true, "securityContext": {"sysctls": [{"name": "net/ipv4/tcp_syncookies", "value": "1"}]}}}),
        ),
        "spec.securityContext.sysctls[0].name: Invalid value: \"net/ipv4/tcp_syncookies\": may not be specified when 'hostNetwork' is true",
    );
    one(
        with(&json!({"spec": {"securityContext": {"runAsUser": -1}}})),
        "spec.securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
    );
}

#[test]
fn pod_level_fields() {
    let spec = |v: Value| with(&json!({"spec": v}));
    one(
        spec(json!({"dnsPolicy": "None"})),
        "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
    );
    one(
        spec(json!({"dnsConfig": {"nameservers": ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"]}})),
        "spec.dnsConfig.nameservers: Invalid value: [\"1.1.1.1\",\"1.1.1.2\",\"1.1.1.3\",\"1.1.1.4\"]: must not have more than 3 nameservers",
    );
    one(
        spec(json!({"activeDeadlineSeconds": 0})),
        "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
    );
    one(
        spec(json!({"hostAliases": [{"ip": "300.1.1.1"}]})),
        "spec.hostAliases[0].ip: Invalid value: \"300.1.1.1\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
    );
    one(
        spec(json!({"tolerations": [{"key": "a", "operator": "Exists", "value": "x"}]})),
        "spec.tolerations[0].operator: Invalid value: \"x\": value must be empty when `operator` is 'Exists'",
    );
    one(
        spec(json!({"tolerations": [{"key": "a", "tolerationSeconds": 1}]})),
        "spec.tolerations[0].effect: Invalid value: \"\": effect must be 'NoExecute' when `tolerationSeconds` is set",
    );
    one(
        spec(
            json!({"topologySpreadConstraints": [{"maxSkew": 0, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}]}),
        ),
        "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
    );
    one(
        spec(
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}}),
        ),
        "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term",
    );
    one(
        with(&json!({"metadata": {"name": ""}})),
        "metadata.name: Required value: name or generateName is required",
    );
    assert!(
        errors(with(&json!({"metadata": {"labels": {"a b": "c"}}})))[0]
            .starts_with("metadata.labels: Invalid value: \"a b\": name part must consist of")
    );
    one(
        with(&json!({"metadata": {"finalizers": ["x"]}})),
        "metadata.finalizers[0]: Invalid value: \"x\": name is neither a standard finalizer name nor is it fully qualified",
    );
}

#[test]
fn qos_classes() {
    let class = |mut pod: Value| {
        default(&mut pod);
        qos(&pod)
    };
    let resources = |v: Value| with_container(&json!({"resources": v}));
    assert_eq!(class(with(&json!({}))), Qos::BestEffort);
    assert_eq!(
        class(resources(json!({"limits": {"cpu": "1", "memory": "1Gi"}}))),
        Qos::Guaranteed
    );
    assert_eq!(
        class(resources(json!({"limits": {"cpu": "1"}}))),
        Qos::Burstable
    );
    assert_eq!(
        class(resources(json!({"requests": {"cpu": "1"}}))),
        Qos::Burstable
    );
    assert_eq!(
        class(resources(json!({"requests": {"cpu": "0"}}))),
        Qos::BestEffort
    );
    assert_eq!(
        class(resources(json!({"limits": {"ephemeral-storage": "1Gi"}}))),
        Qos::BestEffort
    );
    let mut two = resources(json!({"limits": {"cpu": "1", "memory": "1Gi"}}));
    two["spec"]["initContainers"] = json!([{"name": "i", "image": "x"}]);
    assert_eq!(class(two), Qos::Burstable);
    let mut level = with(&json!({}));
    level["spec"]["resources"] = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
    assert_eq!(class(level), Qos::Guaranteed);
}

#[test]
fn effective_resources_count_sidecars_and_overhead() {
    let r = |cpu: &str| json!({"requests": {"cpu": cpu}, "limits": {"cpu": cpu}});
    let mut pod = pod(json!({
        "containers": [{"name": "a", "image": "x", "resources": r("100m")}, {"name": "b", "image": "x", "resources": r("200m")}],
        "initContainers": [
            {"name": "i1", "image": "x", "resources": r("250m")},
            {"name": "s1", "image": "x", "restartPolicy": "Always", "resources": r("50m")},
            {"name": "i2", "image": "x", "resources": r("400m")},
            {"name": "s2", "image": "x", "restartPolicy": "Always", "resources": r("10m")}],
        "overhead": {"cpu": "1m", "memory": "1Mi"}
    }));
    default(&mut pod);
    let total = effective(&pod);
    // i2 beside s1 is 450m, more than a + b + s1 + s2 = 360m; plus overhead.
    assert_eq!(total.requests["cpu"].to_string(), "451m");
    assert_eq!(total.limits["cpu"].to_string(), "451m");
    assert_eq!(total.requests["memory"].to_string(), "1Mi");
    assert!(!total.limits.contains_key("memory"));
    assert_eq!(total.unbounded, ["memory"]);
    pod["spec"]["resources"] = json!({"limits": {"cpu": "2", "memory": "1Gi"}});
    default(&mut pod);
    assert_eq!(
        pod["spec"]["resources"]["requests"],
        json!({"cpu": "450m", "memory": "1Gi"})
    );
    let total = effective(&pod);
    assert_eq!(total.limits["cpu"].to_string(), "2001m");
    assert!(total.unbounded.is_empty());
}
