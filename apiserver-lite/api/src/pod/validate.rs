//! The rules for a pod on creation (`ValidatePodCreate` of release 1.36).

use std::collections::HashSet;

use serde_json::Value;

use super::resources::{self, is_sidecar};
use super::{container, scheduling, security, volume};
use crate::field::{ErrorKind, Errors, FieldError};
use crate::meta::{self, required_name, rules};
use crate::names;
use crate::view::At;

/// Most nameservers of `dnsConfig`.
pub const DNS_NAMESERVERS_MAX_COUNT: usize = 3;
/// Most search domains of `dnsConfig`.
pub const DNS_SEARCHES_MAX_COUNT: usize = 32;
/// Most bytes of all search domains of `dnsConfig`, separated by spaces.
pub const DNS_SEARCHES_MAX_BYTES: usize = 2048;

/// Every rule that a new (defaulted) pod breaks.
#[must_use]
pub fn validate(pod: &Value) -> Vec<FieldError> {
    let mut errors = validate_stored(pod);
    errors.extend(validate_create(pod));
    errors
}

/// Every rule that a (defaulted) pod breaks at any time.
#[must_use]
pub fn validate_stored(pod: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(pod);
    meta::validate(
        &mut errors,
        &root.get("metadata"),
        true,
        names::dns1123_subdomain,
    );
    let metadata = root.get("metadata");
    let mirror = metadata.get("annotations");
    let mirror = mirror.key("kubernetes.io/config.mirror");
    if mirror.is_some() && root.get("spec").get("nodeName").str().is_empty() {
        let rule = "must set spec.nodeName if mirror pod annotation is set";
        mirror.invalid(&mut errors, rule);
    }
    spec(&mut errors, &root.get("spec"));
    errors.into_vec()
}

/// What holds for a new pod besides.
#[must_use]
pub fn validate_create(pod: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(pod);
    let ephemeral = root.get("spec");
    let ephemeral = ephemeral.get("ephemeralContainers");
    if !ephemeral.is_empty() {
        ephemeral.forbidden(&mut errors, "cannot be set on create");
    }
    errors.into_vec()
}

/// The same rules for a pod template at `at` (`metadata` and `spec`), as the
/// kinds that hold one check them.
pub fn validate_template(errors: &mut Errors, at: &At<'_, '_>) {
    // Upstream leaves `metadata` out of these paths.
    let metadata = at.get("metadata");
    meta::labels(
        errors,
        &at.get("labels").with_value(metadata.get("labels").value()),
    );
    let annotations = metadata.get("annotations");
    meta::annotations(
        errors,
        &at.get("annotations").with_value(annotations.value()),
    );
    let spec_at = at.get("spec");
    spec(errors, &spec_at);
    let ephemeral = spec_at.get("ephemeralContainers");
    if !ephemeral.is_empty() {
        ephemeral.forbidden(errors, "ephemeral containers not allowed in pod template");
    }
}

/// A value of a closed set that must be there.
pub(super) fn one_of(errors: &mut Errors, at: &At<'_, '_>, supported: &[&str]) {
    if at.str().is_empty() {
        at.required(errors, "");
    } else if !supported.contains(&at.str()) {
        at.unsupported(errors, supported);
    }
}

/// A value of a closed set that may be absent.
pub(super) fn one_of_opt(errors: &mut Errors, at: &At<'_, '_>, supported: &[&str]) {
    if at.is_some() && !supported.contains(&at.str()) {
        at.unsupported(errors, supported);
    }
}

/// An integer that may be absent and is not negative.
pub(super) fn not_negative(errors: &mut Errors, at: &At<'_, '_>) {
    if at.int().is_some_and(|n| n < 0) {
        at.invalid(errors, "must be greater than or equal to 0");
    }
}

fn spec(errors: &mut Errors, spec: &At<'_, '_>) {
    let volumes = volume::validate(errors, spec);
    containers(errors, spec, &volumes);
    one_of(
        errors,
        &spec.get("restartPolicy"),
        &["Always", "OnFailure", "Never"],
    );
    dns(errors, spec);
    security::pod(errors, spec);
    scheduling::validate(errors, spec);
    for name in [
        "serviceAccountName",
        "priorityClassName",
        "runtimeClassName",
        "nodeName",
    ] {
        let at = spec.get(name);
        if !at.str().is_empty() {
            rules(errors, &at, names::dns1123_subdomain(at.str()));
        }
    }
    for name in ["hostname", "subdomain"] {
        let at = spec.get(name);
        if !at.str().is_empty() {
            rules(errors, &at, names::dns1123_label(at.str()));
        }
    }
    let hostname = spec.get("hostnameOverride");
    if hostname.is_some() {
        rules(errors, &hostname, names::dns1123_subdomain(hostname.str()));
        if hostname.str().len() > 64 {
            hostname.invalid(errors, names::max_len(64));
        }
        if spec.get("setHostnameAsFQDN").is_true() {
            hostname.forbidden(
                errors,
                "may not be specified when setHostnameAsFQDN is true",
            );
        }
    }
    let deadline = spec.get("activeDeadlineSeconds");
    if deadline
        .int()
        .is_some_and(|s| !(1..=i64::from(i32::MAX)).contains(&s))
    {
        deadline.invalid(errors, names::range(1, i32::MAX.into()));
    }
    let grace = spec.get("terminationGracePeriodSeconds");
    if grace.is_none() {
        grace.required(errors, "");
    }
    for alias in spec.get("hostAliases").items() {
        let ip = alias.get("ip");
        rules(errors, &ip, names::ip(ip.str()));
        for hostname in alias.get("hostnames").items() {
            rules(errors, &hostname, names::dns1123_subdomain(hostname.str()));
        }
    }
    for gate in spec.get("readinessGates").items() {
        let kind = gate.get("conditionType");
        rules(errors, &kind, names::qualified_name(kind.str()));
    }
    if spec.get("resources").is_some() {
        resources::validate(errors, &spec.get("resources"), true);
    }
    // Upstream checks an overhead as the limits of a container.
    let overhead = spec.get("overhead");
    let limits = overhead.get("limits").with_value(overhead.value());
    for (name, amount) in limits.entries() {
        resources::validate_amount(errors, &amount, name);
    }
    operating_system(errors, spec);
    claims(errors, spec);
}

fn operating_system(errors: &mut Errors, spec: &At<'_, '_>) {
    let os = spec.get("os");
    if os.is_none() {
        return;
    }
    one_of(errors, &os.get("name"), &["linux", "windows"]);
    let windows = spec.get("securityContext");
    let windows = windows.get("windowsOptions");
    if os.get("name").str() == "linux" && windows.is_some() {
        windows.forbidden(errors, "windows options cannot be set for a linux pod");
    }
}

/// Names of `resourceClaims`, and that containers refer to these only.
fn claims(errors: &mut Errors, spec: &At<'_, '_>) {
    let mut known = HashSet::new();
    for claim in spec.get("resourceClaims").items() {
        let name = claim.get("name");
        required_name(errors, &name, names::dns1123_label);
        if !known.insert(name.str()) {
            name.duplicate(errors);
        }
    }
    for list in ["initContainers", "containers"] {
        for container in spec.get(list).items() {
            for claim in container.get("resources").get("claims").items() {
                if !known.contains(claim.get("name").str()) {
                    claim.get("name").not_found(errors);
                }
            }
        }
    }
}

fn containers(errors: &mut Errors, spec: &At<'_, '_>, volumes: &volume::Volumes<'_>) {
    let list = spec.get("containers");
    if list.is_empty() {
        list.required(errors, "");
    }
    let mut seen = HashSet::new();
    let mut host_ports = HashSet::new();
    for (kind, name) in [
        (container::Kind::Main, "containers"),
        (container::Kind::Init, "initContainers"),
        (container::Kind::Ephemeral, "ephemeralContainers"),
    ] {
        for at in spec.get(name).items() {
            let kind = match kind {
                container::Kind::Init if is_sidecar(at.value()) => container::Kind::Sidecar,
                kind => kind,
            };
            container::validate(errors, &at, kind, spec, volumes);
            let own = at.get("name");
            if !own.str().is_empty() && !seen.insert(own.str()) {
                own.duplicate(errors);
            }
            // Init containers run one after the other: only sidecars hold a
            // host port together with others.
            if matches!(kind, container::Kind::Main | container::Kind::Sidecar) {
                for port in at.get("ports").items() {
                    host_port(errors, &port, &mut host_ports);
                }
            }
        }
    }
    for at in spec.get("ephemeralContainers").items() {
        let target = at.get("targetContainerName");
        let known = spec
            .get("containers")
            .items()
            .any(|c| c.get("name").str() == target.str());
        if !target.str().is_empty() && !known {
            target.not_found(errors);
        }
    }
}

fn host_port(errors: &mut Errors, port: &At<'_, '_>, taken: &mut HashSet<String>) {
    let at = port.get("hostPort");
    let Some(number) = at.int().filter(|n| *n != 0) else {
        return;
    };
    let key = format!(
        "{}/{}/{number}",
        port.get("protocol").str(),
        port.get("hostIP").str()
    );
    if !taken.insert(key.clone()) {
        at.error_value(errors, ErrorKind::Duplicate, format!("{key:?}"), "");
    }
}

fn dns(errors: &mut Errors, spec: &At<'_, '_>) {
    let policy = spec.get("dnsPolicy");
    let supported = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    one_of(errors, &policy, &supported);
    let config = spec.get("dnsConfig");
    let servers = config.get("nameservers");
    if policy.str() == "None" && servers.is_empty() {
        if config.is_none() {
            config.required(errors, "must provide `dnsConfig` when `dnsPolicy` is None");
        } else {
            servers.required(
                errors,
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            );
        }
    }
    if servers.len() > DNS_NAMESERVERS_MAX_COUNT {
        let rule = format!("must not have more than {DNS_NAMESERVERS_MAX_COUNT} nameservers");
        servers.invalid(errors, rule);
    }
    for server in servers.items() {
        rules(errors, &server, names::ip(server.str()));
    }
    let searches = config.get("searches");
    if searches.len() > DNS_SEARCHES_MAX_COUNT {
        let rule = format!("must not have more than {DNS_SEARCHES_MAX_COUNT} search paths");
        searches.invalid(errors, rule);
    }
    let bytes: usize = searches.items().map(|s| s.str().len() + 1).sum();
    if bytes > DNS_SEARCHES_MAX_BYTES + 1 {
        searches.invalid(
            errors,
            format!(
                "must not have more than {DNS_SEARCHES_MAX_BYTES} characters (including spaces) in the search list"
            ),
        );
    }
    for search in searches.items() {
        // A final dot and a lone dot are fine; so are underscores (1.33).
        let text = search.str();
        if text == "." {
            continue;
        }
        let bare = text.strip_suffix('.').unwrap_or(text).replace('_', "a");
        rules(errors, &search, names::dns1123_subdomain(&bare));
    }
    for option in config.get("options").items() {
        if option.get("name").str().is_empty() {
            option.required(errors, "must not be empty");
        }
    }
}
