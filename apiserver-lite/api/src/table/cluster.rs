//! The columns of Services, endpoints, nodes, volumes and events.

use serde_json::Value;

use super::workloads::labels;
use super::{AGE, Column, NAME, age, at, int, items, joined, or, str_at, text, wide};
use crate::time::{self, Time};

pub(super) const SERVICE: &[Column] = &[
    NAME,
    text("Type"),
    text("Cluster-IP"),
    text("External-IP"),
    text("Port(s)"),
    AGE,
    wide("Selector"),
];
pub(super) const NODE: &[Column] = &[
    NAME,
    text("Status"),
    text("Roles"),
    AGE,
    text("Version"),
    wide("Internal-IP"),
    wide("External-IP"),
    wide("OS-Image"),
    wide("Kernel-Version"),
    wide("Container-Runtime"),
];
pub(super) const EVENT: &[Column] = &[
    text("Last Seen"),
    text("Type"),
    text("Reason"),
    text("Object"),
    wide("Subobject"),
    wide("Source"),
    text("Message"),
    wide("First Seen"),
    wide("Count"),
    wide("Name"),
];
pub(super) const CLAIM: &[Column] = &[
    NAME,
    text("Status"),
    text("Volume"),
    text("Capacity"),
    text("Access Modes"),
    text("StorageClass"),
    text("VolumeAttributesClass"),
    AGE,
    wide("VolumeMode"),
];
pub(super) const VOLUME: &[Column] = &[
    NAME,
    text("Capacity"),
    text("Access Modes"),
    text("Reclaim Policy"),
    text("Status"),
    text("Claim"),
    text("StorageClass"),
    text("VolumeAttributesClass"),
    text("Reason"),
    AGE,
    wide("VolumeMode"),
];

pub(super) fn service(object: &Value, now: Time) -> Vec<Value> {
    let kind = str_at(object, "/spec/type");
    let cluster_ip = items(object, "/spec/clusterIPs")
        .next()
        .and_then(Value::as_str);
    let cluster_ip = cluster_ip.unwrap_or_else(|| str_at(object, "/spec/clusterIP"));
    let mut external: Vec<&str> = items(object, "/spec/externalIPs")
        .filter_map(Value::as_str)
        .collect();
    let external = match kind {
        "ExternalName" => str_at(object, "/spec/externalName").to_owned(),
        "LoadBalancer" => {
            let ingress = items(object, "/status/loadBalancer/ingress").map(|i| {
                let ip = str_at(i, "/ip");
                if ip.is_empty() {
                    str_at(i, "/hostname")
                } else {
                    ip
                }
            });
            external.splice(0..0, ingress);
            if external.is_empty() {
                "<pending>".to_owned()
            } else {
                external.join(",")
            }
        }
        _ => joined(external.into_iter()),
    };
    let port = |p: &Value| {
        let (number, protocol) = (int(p, "/port"), str_at(p, "/protocol"));
        match int(p, "/nodePort") {
            0 => format!("{number}/{protocol}"),
            node => format!("{number}:{node}/{protocol}"),
        }
    };
    let ports: Vec<String> = items(object, "/spec/ports").map(port).collect();
    vec![
        at(object, "/metadata/name").clone(),
        kind.into(),
        if cluster_ip.is_empty() {
            "<none>"
        } else {
            cluster_ip
        }
        .into(),
        external.into(),
        joined(ports.iter().map(String::as_str)).into(),
        age(object, now),
        labels(at(object, "/spec/selector")).into(),
    ]
}

pub(super) fn node(object: &Value, now: Time) -> Vec<Value> {
    let ready = items(object, "/status/conditions").find(|c| str_at(c, "/type") == "Ready");
    let mut status = match ready.map(|c| str_at(c, "/status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if at(object, "/spec/unschedulable") == &Value::Bool(true) {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = at(object, "/metadata/labels")
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(
            |(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
                Some(role) if !role.is_empty() => Some(role),
                _ if key == "kubernetes.io/role" => value.as_str().filter(|v| !v.is_empty()),
                _ => None,
            },
        )
        .collect();
    roles.sort_unstable();
    roles.dedup();
    let address = |kind: &str| {
        let found = items(object, "/status/addresses").find(|a| str_at(a, "/type") == kind);
        Value::from(found.map_or("<none>", |a| str_at(a, "/address")))
    };
    let info = |field: &str| {
        let text = str_at(object, &format!("/status/nodeInfo/{field}"));
        Value::from(if text.is_empty() { "<unknown>" } else { text })
    };
    vec![
        at(object, "/metadata/name").clone(),
        status.into(),
        joined(roles.into_iter()).into(),
        age(object, now),
        str_at(object, "/status/nodeInfo/kubeletVersion").into(),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

/// Both forms of events: core's, and the one of `events.k8s.io`, whose fields
/// have other names.
pub(super) fn event(object: &Value, now: Time) -> Vec<Value> {
    let either = |core: &str, new: &str| match str_at(object, core) {
        "" => str_at(object, new).to_owned(),
        text => text.to_owned(),
    };
    let first = match either("/firstTimestamp", "/deprecatedFirstTimestamp").as_str() {
        "" => time::age(str_at(object, "/eventTime"), now),
        text => time::age(text, now),
    };
    let last = match (
        str_at(object, "/series/lastObservedTime"),
        either("/lastTimestamp", "/deprecatedLastTimestamp"),
    ) {
        ("", text) if text.is_empty() => first.clone(),
        ("", text) => time::age(&text, now),
        (text, _) => time::age(text, now),
    };
    let series = at(object, "/series/count").as_i64();
    let count = series.unwrap_or_else(|| {
        int(object, "/count")
            .max(int(object, "/deprecatedCount"))
            .max(1)
    });
    let kind = either("/involvedObject/kind", "/regarding/kind").to_lowercase();
    let target = match either("/involvedObject/name", "/regarding/name").as_str() {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let component = match either("/source/component", "/deprecatedSource/component").as_str() {
        "" => {
            str_at(object, "/reportingComponent").to_owned()
                + str_at(object, "/reportingController")
        }
        text => text.to_owned(),
    };
    let host = match either("/source/host", "/deprecatedSource/host").as_str() {
        "" => str_at(object, "/reportingInstance").to_owned(),
        text => text.to_owned(),
    };
    let source = if host.is_empty() {
        component
    } else {
        format!("{component}, {host}")
    };
    let message = either("/message", "/note");
    vec![
        last.into(),
        str_at(object, "/type").into(),
        str_at(object, "/reason").into(),
        target.into(),
        either("/involvedObject/fieldPath", "/regarding/fieldPath").into(),
        source.into(),
        message.trim().into(),
        first.into(),
        count.into(),
        at(object, "/metadata/name").clone(),
    ]
}

/// At most three addresses, and how many more.
fn shortened(list: &[String]) -> String {
    const SHOWN_COUNT: usize = 3;
    let shown = joined(list.iter().take(SHOWN_COUNT).map(String::as_str));
    match list.len().checked_sub(SHOWN_COUNT) {
        Some(more) if more > 0 => format!("{shown} + {more} more..."),
        _ => shown,
    }
}

pub(super) fn endpoints(object: &Value) -> String {
    let mut list = Vec::new();
    for subset in items(object, "/subsets") {
        let ports: Vec<i64> = items(subset, "/ports").map(|p| int(p, "/port")).collect();
        for address in items(subset, "/addresses") {
            let ip = str_at(address, "/ip");
            if ports.is_empty() {
                list.push(ip.to_owned());
            }
            let host = if ip.contains(':') {
                format!("[{ip}]")
            } else {
                ip.to_owned()
            };
            list.extend(ports.iter().map(|port| format!("{host}:{port}")));
        }
    }
    shortened(&list)
}

pub(super) fn slice(object: &Value, now: Time) -> Vec<Value> {
    let addresses: Vec<String> = items(object, "/endpoints")
        .flat_map(|e| items(e, "/addresses"))
        .filter_map(|a| Some(a.as_str()?.to_owned()))
        .collect();
    let ports: Vec<String> = items(object, "/ports")
        .map(|p| {
            at(p, "/port")
                .as_i64()
                .map_or("*".to_owned(), |n| n.to_string())
        })
        .collect();
    let ports = if ports.is_empty() {
        "<unset>".to_owned()
    } else {
        shortened(&ports)
    };
    let addresses = if addresses.is_empty() {
        "<unset>".to_owned()
    } else {
        shortened(&addresses)
    };
    vec![
        at(object, "/metadata/name").clone(),
        str_at(object, "/addressType").into(),
        ports.into(),
        addresses.into(),
        age(object, now),
    ]
}

/// `RWO,ROX`: access modes in short, in a fixed order.
fn access_modes(list: &Value) -> String {
    let has = |mode: &str| list.as_array().is_some_and(|l| l.iter().any(|m| m == mode));
    let short = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let modes: Vec<&str> = short
        .iter()
        .filter(|(mode, _)| has(mode))
        .map(|(_, s)| *s)
        .collect();
    modes.join(",")
}

fn phase(object: &Value) -> Value {
    let deleted = at(object, "/metadata/deletionTimestamp").is_string();
    if deleted {
        "Terminating".into()
    } else {
        str_at(object, "/status/phase").into()
    }
}

pub(super) fn claim(object: &Value, now: Time) -> Vec<Value> {
    let volume = str_at(object, "/spec/volumeName");
    let bound = !volume.is_empty();
    let capacity = if bound {
        str_at(object, "/status/capacity/storage")
    } else {
        ""
    };
    let modes = if bound {
        access_modes(at(object, "/status/accessModes"))
    } else {
        String::new()
    };
    vec![
        at(object, "/metadata/name").clone(),
        phase(object),
        volume.into(),
        capacity.into(),
        modes.into(),
        str_at(object, "/spec/storageClassName").into(),
        or(object, "/spec/volumeAttributesClassName", "<unset>"),
        age(object, now),
        or(object, "/spec/volumeMode", "<unset>"),
    ]
}

pub(super) fn volume(object: &Value, now: Time) -> Vec<Value> {
    let claim = match str_at(object, "/spec/claimRef/name") {
        "" => String::new(),
        name => format!("{}/{name}", str_at(object, "/spec/claimRef/namespace")),
    };
    vec![
        at(object, "/metadata/name").clone(),
        str_at(object, "/spec/capacity/storage").into(),
        access_modes(at(object, "/spec/accessModes")).into(),
        str_at(object, "/spec/persistentVolumeReclaimPolicy").into(),
        phase(object),
        claim.into(),
        str_at(object, "/spec/storageClassName").into(),
        or(object, "/spec/volumeAttributesClassName", "<unset>"),
        str_at(object, "/status/reason").into(),
        age(object, now),
        or(object, "/spec/volumeMode", "<unset>"),
    ]
}
