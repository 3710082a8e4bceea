//! What a failed pod means: pod failure policies (`pod_failure_policy.go`).

use k8s_openapi::api::batch::v1::{
    Job, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::owner;
use crate::pods;

/// What becomes of a failed pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// It counts as a failure.
    Count,
    /// It does not count.
    Ignore,
    /// The Job fails, with this message.
    FailJob(String),
    /// Its index fails.
    FailIndex,
}

/// The action of the first rule that matches.
pub(super) fn action(job: &Job, pod: &Pod) -> Action {
    let policy = job
        .spec
        .as_ref()
        .and_then(|s| s.pod_failure_policy.as_ref());
    if pods::phase(pod) != "Failed" {
        return Action::Count;
    }
    let rules = policy.map(|p| p.rules.as_slice()).unwrap_or_default();
    for (i, rule) in rules.iter().enumerate() {
        let Some(matched) = matches(rule, pod) else {
            continue;
        };
        return match rule.action.as_str() {
            "Ignore" => Action::Ignore,
            "FailIndex" => Action::FailIndex,
            "FailJob" => Action::FailJob(format!("{matched} matching FailJob rule at index {i}")),
            _ => Action::Count,
        };
    }
    Action::Count
}

/// What of a pod matches a rule, as a phrase.
fn matches(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let name = format!("{}/{}", owner::namespace(pod), owner::name(pod));
    if let Some(codes) = &rule.on_exit_codes {
        let status = pod.status.as_ref()?;
        let containers = status.container_statuses.iter().flatten();
        let init = status.init_container_statuses.iter().flatten();
        return containers.chain(init).find_map(|container| {
            let code = exit_code(container, codes)?;
            Some(format!(
                "Container {} for pod {name} failed with exit code {code}",
                container.name
            ))
        });
    }
    for pattern in rule.on_pod_conditions.iter().flatten() {
        let wanted = pattern.status.as_deref().unwrap_or("True");
        let found = pods::condition(pod, &pattern.type_).is_some_and(|c| c.status == wanted);
        if found {
            return Some(format!("Pod {name} has condition {}", pattern.type_));
        }
    }
    None
}

fn exit_code(
    container: &ContainerStatus,
    codes: &PodFailurePolicyOnExitCodesRequirement,
) -> Option<i32> {
    if codes
        .container_name
        .as_ref()
        .is_some_and(|n| *n != container.name)
    {
        return None;
    }
    let ended = container.state.as_ref()?.terminated.as_ref()?;
    let code = ended.exit_code;
    let listed = codes.values.contains(&code);
    let holds = match codes.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        _ => false,
    };
    (code != 0 && holds).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;
    use serde_json::json;

    #[test]
    fn the_first_rule_that_matches_decides() {
        let job: Job = object(
            json!({"spec": {"template": {}, "podFailurePolicy": {"rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [42]}},
                {"action": "Count", "onExitCodes": {"operator": "NotIn", "values": [1]}},
            ]}}}),
        );
        let pod = |container: &str, code: i32, disrupted: &str| -> Pod {
            object(
                json!({"metadata": {"namespace": "ns", "name": "p"}, "status": {"phase": "Failed",
                "conditions": [{"type": "DisruptionTarget", "status": disrupted}],
                "containerStatuses": [{"name": container, "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"terminated": {"exitCode": code}}}]}}),
            )
        };
        assert_eq!(action(&job, &pod("main", 42, "True")), Action::Ignore);
        assert_eq!(
            action(&job, &pod("main", 42, "False")),
            Action::FailJob("Container main for pod ns/p failed with exit code 42 matching FailJob rule at index 1".into())
        );
        assert_eq!(action(&job, &pod("other", 42, "False")), Action::Count);
        assert_eq!(action(&job, &pod("main", 1, "False")), Action::Count);
    }
}
