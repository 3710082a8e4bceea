//! Which pods the node takes (node reference 1.2): the scheduler may have
//! decided on what is no longer so, and whoever sets `spec.nodeName` has not
//! asked it at all.

use k8s_openapi::api::core::v1::Pod;
use rkube_kubelet::pod;
use rkube_kubelet::translate::qos;

/// What pods may request together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// CPU in thousandths.
    pub cpu_millis: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Pods.
    pub pods: usize,
}

/// Why a pod is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The reason in the status.
    pub reason: &'static str,
    /// The sentence.
    pub message: String,
}

/// CPU in thousandths and memory in bytes that a pod requests.
#[must_use]
pub fn requests(pod: &Pod) -> (u64, u64) {
    let amounts = qos::pod_amounts(pod);
    (
        amounts.cpu_request.unwrap_or(0),
        amounts.memory_request.unwrap_or(0),
    )
}

/// Whether the node takes a pod beside those that run.
///
/// # Errors
/// The first reason not to.
pub fn admit<'a>(
    new: &Pod,
    running: impl Iterator<Item = &'a Pod>,
    budget: &Budget,
) -> Result<(), Rejection> {
    let os = pod::spec(new).os.as_ref().map(|os| os.name.clone());
    if let Some(os) = os.filter(|os| os != "linux") {
        return Err(Rejection {
            reason: "PodOSNotSupported",
            message: format!("Failed to admit pod as the OS field doesn't match node OS: {os}"),
        });
    }
    let mut used = (0_u64, 0_u64, 0_usize);
    let ports = host_ports(new);
    for other in running {
        let (cpu, memory) = requests(other);
        used.0 = used.0.saturating_add(cpu);
        used.1 = used.1.saturating_add(memory);
        used.2 += 1;
        let taken = host_ports(other);
        if ports.iter().any(|p| taken.iter().any(|t| collide(p, t))) {
            return Err(Rejection {
                reason: "NodePorts",
                message: "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports".to_owned(),
            });
        }
    }
    let (cpu, memory) = requests(new);
    let lacking = |resource: &str, wanted: u64, used: u64, capacity: u64| {
        format!(
            "Node didn't have enough resource: {resource}, requested: {wanted}, used: {used}, capacity: {capacity}"
        )
    };
    if used.2 >= budget.pods {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        return Err(Rejection {
            reason: "OutOfpods",
            message: lacking("pods", 1, count(used.2), count(budget.pods)),
        });
    }
    if cpu > 0 && used.0.saturating_add(cpu) > budget.cpu_millis {
        return Err(Rejection {
            reason: "OutOfcpu",
            message: lacking("cpu", cpu, used.0, budget.cpu_millis),
        });
    }
    if memory > 0 && used.1.saturating_add(memory) > budget.memory_bytes {
        return Err(Rejection {
            reason: "OutOfmemory",
            message: lacking("memory", memory, used.1, budget.memory_bytes),
        });
    }
    Ok(())
}

type HostPort = (String, i32, String);

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    pod::containers(pod)
        .flat_map(|(_, c)| c.ports.iter().flatten())
        .filter_map(|p| {
            let port = p.host_port.filter(|p| *p > 0)?;
            Some((
                p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                port,
                p.host_ip.clone().unwrap_or_default(),
            ))
        })
        .collect()
}

fn collide(a: &HostPort, b: &HostPort) -> bool {
    let any = |ip: &str| matches!(ip, "" | "0.0.0.0" | "::");
    a.0 == b.0 && a.1 == b.1 && (any(&a.2) || any(&b.2) || a.2 == b.2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(container: Value) -> Pod {
        let mut container = container;
        container["name"] = "c".into();
        serde_json::from_value(json!({"spec": {"containers": [container]}})).unwrap()
    }

    fn asks(cpu: &str, memory: &str) -> Pod {
        pod(json!({"resources": {"requests": {"cpu": cpu, "memory": memory}}}))
    }

    const BUDGET: Budget = Budget {
        cpu_millis: 1000,
        memory_bytes: 1000,
        pods: 2,
    };

    fn reason(new: &Pod, running: &[Pod]) -> &'static str {
        match admit(new, running.iter(), &BUDGET) {
            Ok(()) => "",
            Err(rejection) => rejection.reason,
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        assert_eq!(reason(&asks("600m", "500"), &[asks("400m", "500")]), "");
        assert_eq!(reason(&asks("601m", "1"), &[asks("400m", "1")]), "OutOfcpu");
        assert_eq!(
            reason(&asks("1m", "501"), &[asks("1m", "500")]),
            "OutOfmemory"
        );
        let none = || pod(json!({}));
        assert_eq!(reason(&none(), &[none(), none()]), "OutOfpods");
        // One without requests fits where others took all.
        assert_eq!(reason(&none(), &[asks("2", "2000")]), "");
    }

    #[test]
    fn ports_of_the_host_are_taken_once() {
        let with = |ip: &str, port: i32, protocol: &str| {
            pod(json!({"ports": [{"containerPort": 1, "hostPort": port,
                "hostIP": ip, "protocol": protocol}]}))
        };
        let running = [with("", 80, "TCP"), with("10.0.0.1", 90, "TCP")];
        let budget = Budget { pods: 9, ..BUDGET };
        let ask = |new: Pod| admit(&new, running.iter(), &budget).is_err();
        assert!(ask(with("10.0.0.9", 80, "TCP")));
        assert!(!ask(with("", 80, "UDP")));
        assert!(!ask(with("10.0.0.2", 90, "TCP")));
        assert!(ask(with("0.0.0.0", 90, "TCP")));
    }

    #[test]
    fn other_systems_are_refused() {
        let mut windows = pod(json!({}));
        windows.spec.as_mut().unwrap().os = serde_json::from_value(json!({"name": "windows"})).ok();
        assert_eq!(reason(&windows, &[]), "PodOSNotSupported");
    }
}
