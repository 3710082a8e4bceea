//! The rules for tolerations, affinity, spreading and gates.

use std::collections::HashSet;

use super::validate::one_of;
use crate::field::{ErrorKind, Errors};
use crate::meta::{label_selector, labels, rules};
use crate::names;
use crate::view::At;

pub(super) fn validate(errors: &mut Errors, spec: &At<'_, '_>) {
    labels(errors, &spec.get("nodeSelector"));
    spec.get("tolerations")
        .items()
        .for_each(|t| toleration(errors, &t));
    let affinity = spec.get("affinity");
    node_affinity(errors, &affinity.get("nodeAffinity"));
    for name in ["podAffinity", "podAntiAffinity"] {
        pod_affinity(errors, &affinity.get(name));
    }
    spreading(errors, &spec.get("topologySpreadConstraints"));
    let mut seen = HashSet::new();
    for gate in spec.get("schedulingGates").items() {
        let name = gate.get("name");
        rules(errors, &name, names::qualified_name(name.str()));
        if !seen.insert(name.str()) {
            gate.duplicate(errors);
        }
    }
    let scheduler = spec.get("schedulerName");
    if !scheduler.str().is_empty() {
        rules(
            errors,
            &scheduler,
            names::dns1123_subdomain(scheduler.str()),
        );
    }
}

fn toleration(errors: &mut Errors, at: &At<'_, '_>) {
    let (key, operator, value) = (at.get("key"), at.get("operator"), at.get("value"));
    if !key.str().is_empty() {
        rules(errors, &key, names::qualified_name(key.str()));
    } else if operator.str() != "Exists" {
        operator.invalid(
            errors,
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        );
    }
    let effect = at.get("effect");
    if at.get("tolerationSeconds").is_some() && effect.str() != "NoExecute" {
        effect.invalid(
            errors,
            "effect must be 'NoExecute' when `tolerationSeconds` is set",
        );
    }
    match operator.str() {
        "" | "Equal" => {
            // Upstream reports the value as the operator's.
            let broken = names::label_value(value.str());
            if !broken.is_empty() {
                let shown = crate::field::shown(value.value());
                operator.error_value(errors, ErrorKind::Invalid, shown, broken.join(";"));
            }
        }
        "Exists" if !value.str().is_empty() => {
            operator.error_value(
                errors,
                ErrorKind::Invalid,
                crate::field::shown(value.value()),
                "value must be empty when `operator` is 'Exists'",
            );
        }
        "Exists" => {}
        _ => operator.unsupported(errors, &["Equal", "Exists"]),
    }
    if !effect.str().is_empty() {
        one_of(
            errors,
            &effect,
            &["NoSchedule", "PreferNoSchedule", "NoExecute"],
        );
    }
}

fn weight(errors: &mut Errors, at: &At<'_, '_>) {
    if !at.int().is_some_and(|w| (1..=100).contains(&w)) {
        at.invalid(errors, "must be in the range 1-100");
    }
}

fn node_affinity(errors: &mut Errors, at: &At<'_, '_>) {
    let required = at.get("requiredDuringSchedulingIgnoredDuringExecution");
    if required.is_some() {
        let terms = required.get("nodeSelectorTerms");
        if terms.is_empty() {
            terms.required(errors, "must have at least one node selector term");
        }
        terms.items().for_each(|term| node_term(errors, &term));
    }
    for preferred in at
        .get("preferredDuringSchedulingIgnoredDuringExecution")
        .items()
    {
        weight(errors, &preferred.get("weight"));
        node_term(errors, &preferred.get("preference"));
    }
}

fn node_term(errors: &mut Errors, term: &At<'_, '_>) {
    for requirement in term.get("matchExpressions").items() {
        node_requirement(errors, &requirement);
        let key = requirement.get("key");
        rules(errors, &key, names::qualified_name(key.str()));
        if matches!(requirement.get("operator").str(), "In" | "NotIn") {
            for value in requirement.get("values").items() {
                rules(errors, &value, names::label_value(value.str()));
            }
        }
    }
    for requirement in term.get("matchFields").items() {
        let (key, operator) = (requirement.get("key"), requirement.get("operator"));
        if !matches!(operator.str(), "In" | "NotIn") {
            operator.invalid(errors, "not a valid selector operator");
        } else if requirement.get("values").len() != 1 {
            requirement.get("values").required(
                errors,
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            );
        }
        if key.str() != "metadata.name" {
            key.invalid(errors, "not a valid field selector key");
        }
    }
}

fn node_requirement(errors: &mut Errors, at: &At<'_, '_>) {
    let (operator, values) = (at.get("operator"), at.get("values"));
    match operator.str() {
        "In" | "NotIn" if values.is_empty() => {
            values.required(
                errors,
                "must be specified when `operator` is 'In' or 'NotIn'",
            );
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            values.forbidden(
                errors,
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            );
        }
        "Gt" | "Lt" if values.len() != 1 => {
            values.required(
                errors,
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            );
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        _ => operator.invalid(errors, "not a valid selector operator"),
    }
}

fn pod_affinity(errors: &mut Errors, at: &At<'_, '_>) {
    for term in at
        .get("requiredDuringSchedulingIgnoredDuringExecution")
        .items()
    {
        pod_term(errors, &term);
    }
    for preferred in at
        .get("preferredDuringSchedulingIgnoredDuringExecution")
        .items()
    {
        weight(errors, &preferred.get("weight"));
        pod_term(errors, &preferred.get("podAffinityTerm"));
    }
}

fn pod_term(errors: &mut Errors, term: &At<'_, '_>) {
    for selector in ["labelSelector", "namespaceSelector"] {
        label_selector(errors, &term.get(selector));
    }
    for namespace in term.get("namespaces").items() {
        // Upstream calls the list so.
        let place = term.get("namespace").with_value(namespace.value());
        rules(errors, &place, names::dns1123_label(namespace.str()));
    }
    let key = term.get("topologyKey");
    if key.str().is_empty() {
        key.required(errors, "can not be empty");
    }
    rules(errors, &key, names::qualified_name(key.str()));
}

fn topology_key(errors: &mut Errors, at: &At<'_, '_>) {
    if at.str().is_empty() {
        at.required(errors, "can not be empty");
    } else {
        rules(errors, at, names::qualified_name(at.str()));
    }
}

fn spreading(errors: &mut Errors, list: &At<'_, '_>) {
    let pair = |constraint: &At<'_, '_>| {
        let (key, when) = (
            constraint.get("topologyKey"),
            constraint.get("whenUnsatisfiable"),
        );
        format!("{{{}, {}}}", key.str(), when.str())
    };
    let pairs: Vec<String> = list.items().map(|c| pair(&c)).collect();
    for (i, constraint) in list.items().enumerate() {
        let skew = constraint.get("maxSkew");
        if skew.int().is_none_or(|n| n <= 0) {
            skew.invalid(errors, "must be greater than zero");
        }
        let key = constraint.get("topologyKey");
        topology_key(errors, &key);
        let when = constraint.get("whenUnsatisfiable");
        if !matches!(when.str(), "DoNotSchedule" | "ScheduleAnyway") {
            when.unsupported(errors, &["DoNotSchedule", "ScheduleAnyway"]);
        }
        // The first of two equal ones is reported.
        if pairs[i + 1..].contains(&pairs[i]) {
            let place = constraint.get("{topologyKey, whenUnsatisfiable}");
            place.error_value(errors, ErrorKind::Duplicate, format!("{:?}", pairs[i]), "");
        }
        let domains = constraint.get("minDomains");
        if domains.int().is_some_and(|n| n <= 0) {
            domains.invalid(errors, "must be greater than zero");
        } else if domains.is_some() && when.str() != "DoNotSchedule" {
            domains.invalid(
                errors,
                "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway",
            );
        }
        label_selector(errors, &constraint.get("labelSelector"));
    }
}
