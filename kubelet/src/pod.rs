//! How rkube reads a v1 Pod: the few questions that every part asks.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, SecurityContext};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// `terminationGracePeriodSeconds` where the pod names none.
pub const DEFAULT_GRACE_SECONDS: u64 = 30;

/// What a container is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always` (KEP-753).
    Sidecar,
    /// One of `spec.containers`.
    Main,
}

/// When an ended container runs again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whatever its exit code.
    Always,
    /// When its exit code was not 0.
    OnFailure,
    /// Not at all.
    Never,
}

impl RestartPolicy {
    fn parse(text: Option<&str>) -> Option<Self> {
        match text? {
            "Always" => Some(Self::Always),
            "OnFailure" => Some(Self::OnFailure),
            "Never" => Some(Self::Never),
            _ => None,
        }
    }
}

/// A pod's specification; an absent one reads as empty.
#[must_use]
pub fn spec(pod: &Pod) -> std::borrow::Cow<'_, PodSpec> {
    match &pod.spec {
        Some(spec) => std::borrow::Cow::Borrowed(spec),
        None => std::borrow::Cow::Owned(PodSpec::default()),
    }
}

/// `metadata.uid`, or the empty string.
#[must_use]
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// `metadata.name`, or the empty string.
#[must_use]
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// `metadata.namespace`, or `default`.
#[must_use]
pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

/// `<namespace>/<name>`.
#[must_use]
pub fn display_name(pod: &Pod) -> String {
    format!("{}/{}", namespace(pod), name(pod))
}

/// The pod's init containers and containers, in the order of their start.
pub fn containers(pod: &Pod) -> impl DoubleEndedIterator<Item = (Kind, &Container)> {
    let spec = pod.spec.as_ref();
    let inits = spec
        .and_then(|s| s.init_containers.as_deref())
        .unwrap_or_default()
        .iter()
        .map(|c| {
            let sidecar = c.restart_policy.as_deref() == Some("Always");
            (if sidecar { Kind::Sidecar } else { Kind::Init }, c)
        });
    let mains = spec
        .map(|s| s.containers.as_slice())
        .unwrap_or_default()
        .iter();
    inits.chain(mains.map(|c| (Kind::Main, c)))
}

/// The container of that name.
#[must_use]
pub fn container<'a>(pod: &'a Pod, name: &str) -> Option<(Kind, &'a Container)> {
    containers(pod).find(|(_, c)| c.name == name)
}

/// The pod's restart policy.
#[must_use]
pub fn restart_policy(pod: &Pod) -> RestartPolicy {
    let text = pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref());
    RestartPolicy::parse(text).unwrap_or(RestartPolicy::Always)
}

/// Whether a container that ended with `exit_code` runs again: its own rules
/// and policy first (KEP-5307), then the pod's. An init container is done
/// with exit code 0, whatever the policy says.
#[must_use]
pub fn restarts(pod: &Pod, kind: Kind, container: &Container, exit_code: i32) -> bool {
    if kind == Kind::Sidecar {
        return true;
    }
    if kind == Kind::Init && exit_code == 0 {
        return false;
    }
    for rule in container
        .restart_policy_rules
        .as_deref()
        .unwrap_or_default()
    {
        let Some(on) = &rule.exit_codes else { continue };
        let listed = on
            .values
            .as_deref()
            .unwrap_or_default()
            .contains(&exit_code);
        let hit = match on.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        if hit && rule.action == "Restart" {
            return true;
        }
    }
    let own = RestartPolicy::parse(container.restart_policy.as_deref());
    match own.unwrap_or_else(|| restart_policy(pod)) {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => exit_code != 0,
        RestartPolicy::Never => false,
    }
}

/// The pod's grace period in seconds.
#[must_use]
pub fn grace_seconds(pod: &Pod) -> u64 {
    pod.spec
        .as_ref()
        .and_then(|s| s.termination_grace_period_seconds)
        .and_then(|s| u64::try_from(s).ok())
        .unwrap_or(DEFAULT_GRACE_SECONDS)
}

/// The pod's active deadline.
#[must_use]
pub fn active_deadline(pod: &Pod) -> Option<Duration> {
    let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// Whether the pod uses the host's network.
#[must_use]
pub fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.host_network) == Some(true)
}

/// The container's security context, or an empty one.
#[must_use]
pub fn security(container: &Container) -> SecurityContext {
    container.security_context.clone().unwrap_or_default()
}

/// The host name of the pod: `hostnameOverride`, `hostname`, or its name cut
/// to 63 characters, without a trailing `-` or `.`.
#[must_use]
pub fn hostname(pod: &Pod) -> String {
    let spec = spec(pod);
    let over = spec.hostname_override.as_deref().filter(|h| !h.is_empty());
    if let Some(over) = over {
        return over.to_owned();
    }
    let text = spec
        .hostname
        .as_deref()
        .filter(|h| !h.is_empty())
        .unwrap_or_else(|| name(pod));
    let cut: String = text.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// The number of a port that a probe or hook names.
#[must_use]
pub fn port(container: &Container, port: &IntOrString) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok().filter(|p| *p > 0),
        IntOrString::String(name) => {
            if let Ok(number) = name.parse::<u16>() {
                return Some(number).filter(|p| *p > 0);
            }
            let ports = container.ports.as_deref().unwrap_or_default();
            let found = ports
                .iter()
                .find(|p| p.name.as_deref() == Some(name.as_str()))?;
            u16::try_from(found.container_port).ok()
        }
    }
}

/// Labels or annotations; none reads as empty.
#[must_use]
pub fn map_of(map: Option<&BTreeMap<String, String>>) -> BTreeMap<String, String> {
    map.cloned().unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A pod out of JSON, with the name, namespace and uid of tests.
    pub(crate) fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u-1"},
            "spec": spec,
        }))
        .unwrap()
    }

    #[test]
    fn restart_rules_come_before_policies() {
        let pod = pod(serde_json::json!({"restartPolicy": "Never", "containers": [
            {"name": "a", "restartPolicy": "OnFailure"},
            {"name": "b"},
            {"name": "c", "restartPolicyRules": [
                {"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]},
            {"name": "d", "restartPolicyRules": [
                {"action": "Restart", "exitCodes": {"operator": "NotIn", "values": [0, 1]}}]},
        ]}));
        let ask = |name: &str, code| {
            let (kind, c) = container(&pod, name).unwrap();
            restarts(&pod, kind, c, code)
        };
        assert!(ask("a", 1) && !ask("a", 0));
        assert!(!ask("b", 1) && !ask("b", 0));
        assert!(ask("c", 42) && !ask("c", 41));
        assert!(ask("d", 2) && !ask("d", 1));
    }

    #[test]
    fn host_names_are_cut_to_what_dns_allows() {
        let mut p = pod(serde_json::json!({"containers": []}));
        p.metadata.name = Some(format!("{}-{}", "a".repeat(62), "b".repeat(20)));
        assert_eq!(hostname(&p), "a".repeat(62));
    }

    #[test]
    fn ports_by_name_or_number() {
        let p = pod(serde_json::json!({"containers": [
            {"name": "a", "ports": [{"name": "http", "containerPort": 8080}]}]}));
        let (_, c) = container(&p, "a").unwrap();
        assert_eq!(port(c, &IntOrString::String("http".into())), Some(8080));
        assert_eq!(port(c, &IntOrString::String("none".into())), None);
        assert_eq!(port(c, &IntOrString::Int(0)), None);
        assert_eq!(port(c, &IntOrString::Int(70000)), None);
    }
}
