#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};

use super::*;

fn service(spec: Value) -> Value {
    let mut service = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec});
    default(&mut service);
    service
}

/// Defaulted, normalized and with families, as the allocators leave it.
fn ready(spec: Value, cluster: &[&str]) -> Value {
    let mut service = service(spec);
    families::normalize(&mut service, None);
    families::init(&mut service, None, cluster).unwrap();
    service
}

fn texts(errors: &[crate::field::FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn defaults_of_each_type() {
    let plain = service(json!({"ports": [{"port": 80}]}));
    assert_eq!(
        plain["spec"],
        json!({
            "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
        })
    );
    let balanced = service(json!({
        "type": "LoadBalancer", "sessionAffinity": "ClientIP",
        "ports": [{"port": 53, "protocol": "UDP", "targetPort": "dns"}],
    }));
    assert_eq!(
        balanced["spec"],
        json!({
            "type": "LoadBalancer", "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
            "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster",
            "allocateLoadBalancerNodePorts": true,
            "ports": [{"port": 53, "protocol": "UDP", "targetPort": "dns"}],
        })
    );
    let external = service(json!({"type": "ExternalName", "externalName": "a.b"}));
    assert_eq!(
        external["spec"],
        json!({"type": "ExternalName", "externalName": "a.b", "sessionAffinity": "None"})
    );
    let with_ips = service(json!({"externalIPs": ["192.0.2.1"], "ports": [{"port": 80}]}));
    assert_eq!(with_ips["spec"]["externalTrafficPolicy"], "Cluster");
}

#[test]
fn families_follow_the_cluster_and_the_wish() {
    let families = |spec: Value, cluster: &[&str]| {
        let got = ready(spec, cluster);
        (
            spec_str(&got, "ipFamilyPolicy").to_owned(),
            spec_strs(&got, "ipFamilies").join(","),
        )
    };
    let ports = json!([{"port": 80}]);
    let two = ["IPv4", "IPv6"];
    let case = |policy: &str, cluster: &[&str]| {
        families(json!({"ipFamilyPolicy": policy, "ports": ports}), cluster)
    };
    assert_eq!(
        families(json!({"ports": ports}), &["IPv6", "IPv4"]),
        ("SingleStack".into(), "IPv6".into())
    );
    assert_eq!(case("PreferDualStack", &two).1, "IPv4,IPv6");
    assert_eq!(case("PreferDualStack", &["IPv4"]).1, "IPv4");
    assert_eq!(case("RequireDualStack", &two).1, "IPv4,IPv6");
    let by_ip = json!({"clusterIP": "fd00::7", "ports": ports});
    assert_eq!(families(by_ip, &two).1, "IPv6");
    let headless = json!({"clusterIP": "None", "selector": {"a": "b"}});
    assert_eq!(
        families(headless, &["IPv4"]),
        ("SingleStack".into(), "IPv4".into())
    );
    // Nobody knows the families of endpoints that someone else keeps.
    let alone = json!({"clusterIP": "None"});
    assert_eq!(
        families(alone, &["IPv4"]),
        ("RequireDualStack".into(), "IPv4,IPv6".into())
    );
}

#[test]
fn families_that_the_cluster_lacks_are_told() {
    let fails = |spec: Value, cluster: &[&str]| {
        let mut service = service(spec);
        families::normalize(&mut service, None);
        texts(&families::init(&mut service, None, cluster).unwrap_err())
    };
    let ports = json!([{"port": 80}]);
    assert_eq!(
        fails(
            json!({"ipFamilyPolicy": "RequireDualStack", "ports": ports}),
            &["IPv4"]
        ),
        [
            r#"spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services"#
        ]
    );
    assert_eq!(
        fails(json!({"ipFamilies": ["IPv6"], "ports": ports}), &["IPv4"]),
        [r#"spec.ipFamilies[0]: Invalid value: "IPv6": not configured on this cluster"#]
    );
    assert_eq!(
        fails(json!({"clusterIP": "fd00::1", "ports": ports}), &["IPv4"]),
        [
            r#"spec.clusterIPs[0]: Invalid value: ["fd00::1"]: IPv6 is not configured on this cluster"#
        ]
    );
    assert_eq!(
        fails(
            json!({"clusterIPs": ["10.0.0.1"], "ports": ports}),
            &["IPv4"]
        ),
        [
            r#"spec.clusterIPs: Invalid value: ["10.0.0.1"]: must be empty when `clusterIP` is not specified"#
        ]
    );
    assert_eq!(
        fails(
            json!({"ipFamilies": ["IPv4", "IPv6"], "ports": ports}),
            &["IPv4", "IPv6"]
        ),
        [
            r#"spec.ipFamilyPolicy: Invalid value: "SingleStack": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"#
        ]
    );
}

#[test]
fn wrong_services_are_told_with_upstreams_words() {
    let told = |spec: Value| texts(&validate(&service(spec)));
    assert_eq!(told(json!({"ports": [{"port": 80}]})), [] as [String; 0]);
    assert_eq!(told(json!({})), ["spec.ports: Required value"]);
    assert_eq!(
        told(
            json!({"ports": [{"port": 0}, {"port": 70000, "name": "A", "nodePort": 5, "targetPort": "-"}]})
        ),
        [
            "spec.ports[0].name: Required value",
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
            &format!(
                r#"spec.ports[1].name: Invalid value: "A": {}"#,
                crate::names::dns1123_label("A")[0]
            ),
            "spec.ports[1].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
            r#"spec.ports[1].targetPort: Invalid value: "-": must contain at least one letter (a-z)"#,
            r#"spec.ports[1].targetPort: Invalid value: "-": must not begin or end with a hyphen"#,
            "spec.ports[1].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ]
    );
    assert_eq!(
        told(json!({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]})),
        [
            r#"spec.ports[1]: Duplicate value: {"Name":"","Protocol":"TCP","AppProtocol":null,"Port":80,"TargetPort":0,"NodePort":0}"#
        ]
    );
    assert_eq!(
        told(json!({"type": "ExternalName", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]})),
        [
            "spec.clusterIPs: Forbidden: may not be set for ExternalName services",
            "spec.externalName: Required value",
        ]
    );
    assert_eq!(
        told(json!({
            "ports": [{"port": 80}], "type": "Magic", "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}},
            "externalIPs": ["127.0.0.1", "x"], "loadBalancerSourceRanges": ["10.0.0.0/33"],
        })),
        [
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401: must be greater than 0 and less than 86400",
            r#"spec.externalIPs[0]: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)"#,
            r#"spec.externalIPs[1]: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"#,
            r#"spec.type: Unsupported value: "Magic": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort""#,
            "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
            r#"spec.LoadBalancerSourceRanges[0]: Invalid value: "10.0.0.0/33": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"#,
        ]
    );
    assert_eq!(
        told(
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]})
        ),
        ["spec.healthCheckNodePort: Required value"]
    );
}

#[test]
fn an_update_without_allocated_values_keeps_them() {
    let old = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {
        "type": "NodePort", "clusterIP": "10.0.0.9", "clusterIPs": ["10.0.0.9"],
        "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None",
        "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster",
        "ports": [{"name": "a", "port": 80, "targetPort": 80, "protocol": "TCP", "nodePort": 30001},
                  {"name": "b", "port": 81, "targetPort": 81, "protocol": "TCP", "nodePort": 30002}],
    }});
    let mut new = service(json!({
        "type": "NodePort",
        "ports": [{"name": "a", "port": 80}, {"name": "c", "port": 82, "nodePort": 30002}, {"name": "b", "port": 81}],
    }));
    patch_allocated(&mut new, &old);
    families::normalize(&mut new, Some(&old));
    families::init(&mut new, Some(&old), &["IPv4"]).unwrap();
    assert_eq!(spec_strs(&new, "clusterIPs"), ["10.0.0.9"]);
    assert_eq!(node_ports(&new), [30001, 30002], "b's port went to c");
    assert_eq!(texts(&validate_update(&new, &old)), [] as [String; 0]);

    // To a type without ports and addresses, and to another address.
    let mut external = old.clone();
    external["spec"]["type"] = json!("ExternalName");
    external["spec"]["externalName"] = json!("example.org");
    prepare_update(&mut external, &old);
    assert_eq!(texts(&validate(&external)), [] as [String; 0]);
    assert!(spec(&external, "clusterIP").is_null() && node_ports(&external).is_empty());
    assert!(spec(&external, "externalTrafficPolicy").is_null());

    let mut moved = old.clone();
    moved["spec"]["clusterIP"] = json!("10.0.0.10");
    families::normalize(&mut moved, Some(&old));
    assert_eq!(spec_strs(&moved, "clusterIPs"), ["10.0.0.10"]);
    assert_eq!(
        texts(&validate_update(&moved, &old)),
        [r#"spec.clusterIPs[0]: Invalid value: ["10.0.0.10"]: may not change once set"#]
    );
}

#[test]
fn addresses_of_load_balancers_only_and_true_ones() {
    let told = |kind: &str, ingress: Value| {
        let old = service(json!({"type": kind, "ports": [{"port": 80}]}));
        let mut new = old.clone();
        new["status"] = json!({"loadBalancer": {"ingress": ingress}});
        default(&mut new);
        texts(&validate_update(&new, &old))
    };
    let good = json!([{"ip": "192.0.2.1"}, {"hostname": "h.example"}]);
    assert_eq!(told("LoadBalancer", good.clone()), [] as [String; 0]);
    assert_eq!(
        told("ClusterIP", good),
        [
            "status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is 'LoadBalancer'"
        ]
    );
    assert_eq!(
        told(
            "LoadBalancer",
            json!([{"ip": "x"}, {"hostname": "192.0.2.1"}, {"hostname": "h", "ipMode": "VIP"}])
        ),
        [
            r#"status.loadBalancer.ingress[0].ip: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"#,
            r#"status.loadBalancer.ingress[1].hostname: Invalid value: "192.0.2.1": must be a DNS name, not an IP address"#,
            "status.loadBalancer.ingress[2].ipMode: Forbidden: may not be specified when `ip` is not set",
        ]
    );
}

#[test]
fn a_second_family_comes_and_goes_by_policy() {
    let two = ["IPv4", "IPv6"];
    let mut old = ready(
        json!({"ipFamilyPolicy": "PreferDualStack", "ports": [{"port": 80}]}),
        &two,
    );
    old["spec"]["clusterIP"] = json!("10.0.0.9");
    old["spec"]["clusterIPs"] = json!(["10.0.0.9", "fd00::9"]);
    let mut new = old.clone();
    new["spec"]["ipFamilyPolicy"] = json!("SingleStack");
    families::init(&mut new, Some(&old), &two).unwrap();
    assert_eq!(spec_strs(&new, "clusterIPs"), ["10.0.0.9"]);
    assert_eq!(spec_strs(&new, "ipFamilies"), ["IPv4"]);
    assert_eq!(texts(&validate_update(&new, &old)), [] as [String; 0]);

    let mut cut = old.clone();
    cut["spec"]["clusterIPs"] = json!(["10.0.0.9"]);
    assert_eq!(
        texts(&families::init(&mut cut, Some(&old), &two).unwrap_err()),
        [
            r#"spec.ipFamilyPolicy: Invalid value: "PreferDualStack": must be 'SingleStack' to release the secondary cluster IP"#
        ]
    );
    // A cluster that lost a family leaves it alone.
    let mut same = old.clone();
    assert!(families::is_unchanged_prefer_dual(&same, Some(&old)));
    families::init(&mut same, Some(&old), &["IPv4"]).unwrap();
    assert_eq!(same, old);
}
