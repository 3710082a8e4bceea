//! The rules for a Service (`ValidateService` and `ValidateServiceUpdate`).

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::{
    AFFINITY_TIMEOUT_MAX_SECONDS, CLUSTER_IP_NONE, family_of, int, is_absent,
    is_externally_accessible, is_headless, needs_health_check, spec, spec_str, spec_strs,
};
use crate::field::{ErrorKind, Errors, FieldError, shown};
use crate::kinds::address;
use crate::meta::{self, rules};
use crate::names;
use crate::view::At;

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const SOURCE_RANGES_ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const HINTS_ANNOTATION: &str = "service.kubernetes.io/topology-aware-hints";
const MODE_ANNOTATION: &str = "service.kubernetes.io/topology-mode";
const ONLY_BALANCED: &str = "may only be used when `type` is 'LoadBalancer'";
const SET_ONCE: &str = "may not change once set";

/// Every rule that a Service with all of its addresses and ports breaks.
#[must_use]
pub fn validate(service: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(service);
    let metadata = root.get("metadata");
    meta::validate(&mut errors, &metadata, true, names::dns1035_label);
    topology(&mut errors, &metadata);
    let at = root.get("spec");
    kind(&mut errors, service, &at);
    ports(&mut errors, &at);
    meta::labels(&mut errors, &at.get("selector"));
    affinity(&mut errors, &at);
    cluster_ips(&mut errors, &root);
    for ip in at.get("externalIPs").items() {
        let broken = names::ip(ip.str());
        if broken.is_empty() {
            address::not_special(&mut errors, &ip);
        }
        rules(&mut errors, &ip, broken);
    }
    required_of(
        &mut errors,
        &at.get("type"),
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
    );
    duplicates(&mut errors, &at);
    load_balancer(&mut errors, &root, &at);
    traffic(&mut errors, service, &at);
    errors.into_vec()
}

fn required_of(errors: &mut Errors, at: &At<'_, '_>, supported: &[&str]) {
    if at.str().is_empty() {
        at.required(errors, "");
    } else if !supported.contains(&at.str()) {
        at.unsupported(errors, supported);
    }
}

fn topology(errors: &mut Errors, metadata: &At<'_, '_>) {
    let annotations = metadata.get("annotations");
    let (hints, mode) = (
        annotations.key(HINTS_ANNOTATION),
        annotations.key(MODE_ANNOTATION),
    );
    if hints.is_some() && mode.is_some() && hints.str() != mode.str() {
        let rule = format!("must match annotations[{HINTS_ANNOTATION}] when both are specified");
        mode.invalid(errors, rule);
    }
}

fn kind(errors: &mut Errors, service: &Value, at: &At<'_, '_>) {
    let kind = spec_str(service, "type");
    let headless = is_headless(service);
    if at.get("ports").is_empty() && !headless && kind != "ExternalName" {
        at.get("ports").required(errors, "");
    }
    if headless && matches!(kind, "LoadBalancer" | "NodePort") {
        let list = at.get("clusterIPs");
        let rule = format!("may not be set to 'None' for {kind} services");
        if let Some(first) = list.items().next() {
            first.invalid(errors, rule);
        }
    }
    if kind != "ExternalName" {
        return;
    }
    let rule = "may not be set for ExternalName services";
    for list in ["clusterIPs", "ipFamilies"] {
        if !at.get(list).is_empty() {
            at.get(list).forbidden(errors, rule);
        }
    }
    if at.get("ipFamilyPolicy").is_some() {
        at.get("ipFamilyPolicy").forbidden(errors, rule);
    }
    let name = at.get("externalName");
    let bare = name.str().strip_suffix('.').unwrap_or(name.str());
    if bare.is_empty() {
        name.required(errors, "");
    } else {
        rules(errors, &name, names::dns1123_subdomain(bare));
    }
}

fn ports(errors: &mut Errors, at: &At<'_, '_>) {
    let list = at.get("ports");
    let mut seen = HashSet::new();
    for port in list.items() {
        let name = port.get("name");
        if name.str().is_empty() {
            if list.len() > 1 {
                name.required(errors, "");
            }
        } else {
            rules(errors, &name, names::dns1123_label(name.str()));
            if !seen.insert(name.str()) {
                name.duplicate(errors);
            }
        }
        number(errors, &port.get("port"));
        required_of(errors, &port.get("protocol"), PROTOCOLS);
        let target = port.get("targetPort");
        if target.value().is_string() {
            rules(errors, &target, names::port_name(target.str()));
        } else {
            number(errors, &target);
        }
        let app = port.get("appProtocol");
        if app.is_some() {
            rules(errors, &app, names::qualified_name(app.str()));
        }
    }
}

fn number(errors: &mut Errors, at: &At<'_, '_>) {
    let value = at.int().unwrap_or(0);
    for rule in names::port_number(value) {
        at.error_value(errors, ErrorKind::Invalid, value.to_string(), rule);
    }
}

fn duplicates(errors: &mut Errors, at: &At<'_, '_>) {
    let list = at.get("ports");
    if at.get("type").str() == "ClusterIP" {
        for port in list.items().filter(|p| int(p.value(), "nodePort") != 0) {
            let rule = "may not be used when `type` is 'ClusterIP'";
            port.get("nodePort").forbidden(errors, rule);
        }
    }
    let (mut node_ports, mut numbers) = (HashSet::new(), HashSet::new());
    for port in list.items() {
        let protocol = port.get("protocol");
        let node_port = int(port.value(), "nodePort");
        if node_port != 0 && !node_ports.insert((protocol.str(), node_port)) {
            port.get("nodePort").duplicate(errors);
        }
    }
    for port in list.items() {
        let protocol = port.get("protocol");
        let number = int(port.value(), "port");
        if !numbers.insert((protocol.str(), number)) {
            // The message shows upstream's internal type.
            let key = format!(
                r#"{{"Name":"","Protocol":{:?},"AppProtocol":null,"Port":{number},"TargetPort":0,"NodePort":0}}"#,
                protocol.str()
            );
            port.error_value(errors, ErrorKind::Duplicate, key, "");
        }
    }
}

fn affinity(errors: &mut Errors, at: &At<'_, '_>) {
    let affinity = at.get("sessionAffinity");
    required_of(errors, &affinity, &["ClientIP", "None"]);
    let config = at.get("sessionAffinityConfig");
    match affinity.str() {
        "None" if config.is_some() => {
            config.forbidden(errors, "must not be set when session affinity is None");
        }
        "ClientIP" => {
            let client = config.get("clientIP");
            let timeout = client.get("timeoutSeconds");
            let missing = [&config, &client, &timeout]
                .into_iter()
                .find(|a| a.is_none());
            if let Some(missing) = missing {
                missing.required(errors, "when session affinity type is ClientIP");
            } else if !timeout
                .int()
                .is_some_and(|t| (1..=AFFINITY_TIMEOUT_MAX_SECONDS).contains(&t))
            {
                let rule =
                    format!("must be greater than 0 and less than {AFFINITY_TIMEOUT_MAX_SECONDS}");
                timeout.invalid(errors, rule);
            }
        }
        _ => {}
    }
}

/// `clusterIP`, `clusterIPs`, `ipFamilies`, `ipFamilyPolicy` against each
/// other, before or after allocation.
pub(super) fn cluster_ips(errors: &mut Errors, root: &At<'_, '_>) {
    let at = root.get("spec");
    if at.get("type").str() == "ExternalName" {
        return;
    }
    let list = at.get("clusterIPs");
    let first = at.get("clusterIP");
    let ips = spec_strs(root.value(), "clusterIPs");
    match (first.str(), ips.first()) {
        ("", None) => {}
        ("", Some(_)) => list.invalid(errors, "must be empty when `clusterIP` is not specified"),
        (_, None) => list.required(errors, ""),
        (first, Some(ip)) if first != *ip => {
            list.invalid(errors, "first value must match `clusterIP`");
        }
        _ => {}
    }
    let mut seen = HashSet::new();
    for family in at.get("ipFamilies").items() {
        if !["IPv4", "IPv6"].contains(&family.str()) {
            family.unsupported(errors, &["IPv4", "IPv6"]);
        }
        if !seen.insert(family.str()) {
            family.duplicate(errors);
        }
    }
    let policy = at.get("ipFamilyPolicy");
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    if policy.is_some() && !policies.contains(&policy.str()) {
        policy.unsupported(errors, &policies);
    }
    addresses(errors, &at, &list);
}

fn addresses(errors: &mut Errors, at: &At<'_, '_>, list: &At<'_, '_>) {
    let mut broken = false;
    let mut parsed = Vec::new();
    for (i, ip) in list.items().enumerate() {
        if i == 0 && ip.str() == CLUSTER_IP_NONE {
            if list.len() > 1 {
                broken = true;
                list.invalid(errors, "'None' must be the first and only value");
            }
            continue;
        }
        let rule = names::ip(ip.str());
        broken |= !rule.is_empty();
        rules(errors, &ip, rule);
        parsed.extend(ip.str().parse::<IpAddr>());
    }
    if list.len() > 2 {
        list.invalid(errors, "may only hold up to 2 values");
    }
    if broken {
        return;
    }
    let both = parsed.iter().any(IpAddr::is_ipv4) && parsed.iter().any(IpAddr::is_ipv6);
    if list.len() > 1 && !both {
        let rule = "may specify no more than one IP for each IP family";
        list.invalid(errors, rule);
    }
    // `None` has no family: it is not in `parsed`.
    let families = at.get("ipFamilies");
    for (i, ((ip, item), family)) in parsed
        .iter()
        .zip(list.items())
        .zip(families.items())
        .enumerate()
    {
        if ["IPv4", "IPv6"].contains(&family.str()) && family.str() != family_of(*ip) {
            let rule = format!(
                "expected an {} value as indicated by `ipFamilies[{i}]`",
                family.str()
            );
            item.invalid(errors, rule);
        }
    }
}

fn load_balancer(errors: &mut Errors, root: &At<'_, '_>, at: &At<'_, '_>) {
    let balanced = at.get("type").str() == "LoadBalancer";
    let ranges = at.get("loadBalancerSourceRanges");
    let metadata = root.get("metadata");
    let annotations = metadata.get("annotations");
    let annotation = annotations.key(SOURCE_RANGES_ANNOTATION);
    if !ranges.is_empty() {
        // Upstream names this field with a capital.
        let named = at.get("LoadBalancerSourceRanges");
        if !balanced {
            named.forbidden(errors, ONLY_BALANCED);
        }
        for (i, range) in ranges.items().enumerate() {
            if !address::is_cidr(range.str().trim()) {
                errors.push(FieldError {
                    path: named.path().index(i),
                    kind: ErrorKind::Invalid,
                    value: Some(shown(&json!(range.str().trim()))),
                    detail: address::CIDR_RULE.into(),
                });
            }
        }
    } else if annotation.is_some() {
        if !balanced {
            annotation.forbidden(errors, ONLY_BALANCED);
        }
        let text = annotation.str().trim();
        for range in text.split(',').filter(|_| !text.is_empty()).map(str::trim) {
            if !address::is_cidr(range) {
                let value = shown(&json!(range));
                annotation.error_value(errors, ErrorKind::Invalid, value, address::CIDR_RULE);
            }
        }
    }
    let allocate = at.get("allocateLoadBalancerNodePorts");
    if allocate.is_some() && !balanced {
        allocate.forbidden(errors, ONLY_BALANCED);
    }
    if allocate.is_none() && balanced {
        // Upstream's path lacks `spec`.
        root.get("allocateLoadBalancerNodePorts")
            .required(errors, "");
    }
    let class = at.get("loadBalancerClass");
    if class.is_some() && balanced {
        rules(errors, &class, names::qualified_name(class.str()));
    } else if class.is_some() {
        class.forbidden(errors, ONLY_BALANCED);
    }
}

fn traffic(errors: &mut Errors, service: &Value, at: &At<'_, '_>) {
    let external = at.get("externalTrafficPolicy");
    if is_externally_accessible(service) {
        required_of(errors, &external, &["Cluster", "Local"]);
    } else if !external.str().is_empty() {
        let rule = "may only be set for externally-accessible services";
        external.invalid(errors, rule);
    }
    let check = at.get("healthCheckNodePort");
    match (needs_health_check(service), check.int().unwrap_or(0)) {
        (false, 0) => {}
        (false, _) => check.invalid(
            errors,
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ),
        (true, 0) => check.required(errors, ""),
        (true, port) => rules(errors, &check, names::port_number(port)),
    }
    let internal = at.get("internalTrafficPolicy");
    if internal.is_some() {
        if !["Cluster", "Local"].contains(&internal.str()) {
            internal.unsupported(errors, &["Cluster", "Local"]);
        }
    } else if super::needs_cluster_ip(service) {
        internal.required(errors, "");
    }
    let distribution = at.get("trafficDistribution");
    let supported = ["PreferClose", "PreferSameNode", "PreferSameZone"];
    if distribution.is_some() && !supported.contains(&distribution.str()) {
        distribution.unsupported(errors, &supported);
    }
}

/// Every rule that an update breaks besides.
#[must_use]
pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(new);
    let at = root.get("spec");
    let external = |service| spec_str(service, "type") == "ExternalName";
    if !external(new) && !external(old) {
        changed_addresses(&mut errors, &at, new, old);
        changed_families(&mut errors, &at, new, old);
    }
    let balanced = |service| spec_str(service, "type") == "LoadBalancer";
    if balanced(new)
        && balanced(old)
        && spec(new, "loadBalancerClass") != spec(old, "loadBalancerClass")
    {
        let class = at.get("loadBalancerClass");
        class.error(&mut errors, ErrorKind::Invalid, SET_ONCE);
    }
    if needs_health_check(new)
        && needs_health_check(old)
        && spec(new, "healthCheckNodePort") != spec(old, "healthCheckNodePort")
    {
        let check = at.get("healthCheckNodePort");
        check.forbidden(&mut errors, "field is immutable");
    }
    if new["status"] != old["status"] {
        balancer_status(&mut errors, &root, new);
    }
    errors.into_vec()
}

/// Where a load balancer is reached (`ValidateLoadBalancerStatus`).
fn balancer_status(errors: &mut Errors, root: &At<'_, '_>, service: &Value) {
    let status = root.get("status");
    let balancer = status.get("loadBalancer");
    let ingress = balancer.get("ingress");
    if spec_str(service, "type") != "LoadBalancer" {
        if !ingress.is_empty() {
            ingress.forbidden(
                errors,
                "may only be used when `spec.type` is 'LoadBalancer'",
            );
        }
        return;
    }
    for way in ingress.items() {
        let (ip, mode, host) = (way.get("ip"), way.get("ipMode"), way.get("hostname"));
        if !ip.str().is_empty() {
            rules(errors, &ip, names::ip(ip.str()));
            if mode.is_none() {
                mode.required(errors, "must be specified when `ip` is set");
            }
        } else if mode.is_some() {
            mode.forbidden(errors, "may not be specified when `ip` is not set");
        }
        if mode.is_some() && !["Proxy", "VIP"].contains(&mode.str()) {
            mode.unsupported(errors, &["Proxy", "VIP"]);
        }
        if !host.str().is_empty() {
            rules(errors, &host, names::dns1123_subdomain(host.str()));
            if host.str().parse::<IpAddr>().is_ok() {
                host.invalid(errors, "must be a DNS name, not an IP address");
            }
        }
    }
}

/// An error at an element that may not be there, which shows the whole list.
fn at_index(errors: &mut Errors, list: &At<'_, '_>, index: usize, rule: &str) {
    let value = if is_absent(list.value()) {
        "null".into()
    } else {
        shown(list.value())
    };
    errors.push(FieldError {
        path: list.path().index(index),
        kind: ErrorKind::Invalid,
        value: Some(value),
        detail: rule.into(),
    });
}

fn changed_addresses(errors: &mut Errors, at: &At<'_, '_>, new: &Value, old: &Value) {
    if is_headless(new) && is_headless(old) {
        return;
    }
    let list = at.get("clusterIPs");
    let (now, before) = (spec_strs(new, "clusterIPs"), spec_strs(old, "clusterIPs"));
    if now.len() == before.len() {
        for (i, _) in now
            .iter()
            .zip(&before)
            .enumerate()
            .filter(|(_, (a, b))| a != b)
        {
            at_index(errors, &list, i, SET_ONCE);
        }
        return;
    }
    if now.is_empty() {
        at_index(errors, &list, 0, "primary clusterIP can not be unset");
    }
    if let (Some(now), Some(before)) = (now.first(), before.first())
        && now != before
    {
        at_index(errors, &list, 0, SET_ONCE);
    }
    if before.len() > now.len()
        && now.len() == 1
        && spec_str(new, "ipFamilyPolicy") != "SingleStack"
    {
        let rule = "must be set to 'SingleStack' when releasing the secondary clusterIP";
        at.get("ipFamilyPolicy").invalid(errors, rule);
    }
}

fn changed_families(errors: &mut Errors, at: &At<'_, '_>, new: &Value, old: &Value) {
    if is_headless(new) || is_headless(old) {
        return;
    }
    let list = at.get("ipFamilies");
    let (now, before) = (spec_strs(new, "ipFamilies"), spec_strs(old, "ipFamilies"));
    if now.len() == before.len() {
        for _ in now.iter().zip(&before).filter(|(a, b)| a != b) {
            at_index(errors, &list, 0, SET_ONCE);
        }
        return;
    }
    if before.len() > now.len() && spec_strs(new, "clusterIPs").is_empty() {
        at_index(errors, &list, 0, "primary ipFamily can not be unset");
    }
    if let (Some(now), Some(before)) = (now.first(), before.first())
        && now != before
    {
        at_index(errors, &list, 0, SET_ONCE);
    }
    if before.len() > now.len()
        && now.len() == 1
        && spec_str(new, "ipFamilyPolicy") != "SingleStack"
    {
        let rule = "must be set to 'SingleStack' when releasing the secondary ipFamily";
        at.get("ipFamilyPolicy").invalid(errors, rule);
    }
}
