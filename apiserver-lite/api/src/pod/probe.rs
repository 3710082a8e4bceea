//! The rules for probes and life-cycle hooks.

use super::container::Kind;
use super::validate::{not_negative, one_of};
use crate::field::{ErrorKind, Errors};
use crate::meta::rules;
use crate::names;
use crate::view::At;

const HEADER: &str = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";

pub(super) fn validate(errors: &mut Errors, at: &At<'_, '_>, kind: Kind, spec: &At<'_, '_>) {
    let probes = ["livenessProbe", "readinessProbe", "startupProbe"];
    match kind {
        // Reported by the rules for ephemeral containers.
        Kind::Ephemeral => return,
        Kind::Init => {
            for name in probes.iter().chain(&["lifecycle"]) {
                let field = at.get(name);
                if field.is_some() {
                    field.forbidden(
                        errors,
                        "may not be set for init containers without restartPolicy=Always",
                    );
                }
            }
            return;
        }
        Kind::Main | Kind::Sidecar => {}
    }
    for name in probes {
        let field = at.get(name);
        if field.is_some() {
            probe(errors, &field, name);
        }
    }
    let lifecycle = at.get("lifecycle");
    let grace = spec.get("terminationGracePeriodSeconds").int().unwrap_or(0);
    for hook in ["postStart", "preStop"] {
        let field = lifecycle.get(hook);
        if field.is_some() {
            handler(errors, &field, Some(grace));
        }
    }
    let signal = lifecycle.get("stopSignal");
    if signal.is_some() {
        let text = signal.str();
        let realtime = ["SIGRTMIN", "SIGRTMAX"].iter().any(|p| {
            text.strip_prefix(p).is_some_and(|n| {
                let number = n
                    .strip_prefix(['+', '-'])
                    .and_then(|n| n.parse::<u8>().ok());
                n.is_empty() || number.is_some_and(|n| (1..=15).contains(&n))
            })
        });
        if !SIGNALS.contains(&text) && !realtime {
            signal.unsupported(errors, &SIGNALS);
        }
        if spec.get("os").get("name").str().is_empty() {
            signal.forbidden(
                errors,
                "may not be set for containers with empty `spec.os.name`",
            );
        }
    }
}

/// Signals that `stopSignal` may name, beside `SIGRTMIN+1` and the like
/// (signal(7)).
const SIGNALS: [&str; 34] = [
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
];

fn probe(errors: &mut Errors, at: &At<'_, '_>, name: &str) {
    handler(errors, at, None);
    for field in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        not_negative(errors, &at.get(field));
    }
    let success = at.get("successThreshold");
    if name != "readinessProbe" && success.int().is_some_and(|n| n != 1) {
        success.invalid(errors, "must be 1");
    }
    let grace = at.get("terminationGracePeriodSeconds");
    if grace.is_some() && name == "readinessProbe" {
        grace.invalid(errors, "must not be set for readinessProbes");
    } else if grace.int().is_some_and(|n| n <= 0) {
        grace.invalid(errors, "must be greater than 0");
    }
}

/// One handler: of a hook where `hook_grace` is the pod's grace period, else
/// of a probe.
fn handler(errors: &mut Errors, at: &At<'_, '_>, hook_grace: Option<i64>) {
    let last = if hook_grace.is_some() {
        "sleep"
    } else {
        "grpc"
    };
    let mut count = 0;
    for name in ["exec", "httpGet", "tcpSocket", last] {
        let field = at.get(name);
        if field.is_none() {
            continue;
        }
        count += 1;
        if count > 1 {
            field.forbidden(errors, "may not specify more than 1 handler type");
            continue;
        }
        match name {
            "exec" => {
                if field.get("command").is_empty() {
                    field.get("command").required(errors, "");
                }
            }
            "httpGet" => http(errors, &field),
            "sleep" => {
                let seconds = field.get("seconds");
                let grace = hook_grace.unwrap_or(0);
                if seconds.int().is_none_or(|s| s < 0 || s > grace) {
                    let rule = format!(
                        "must be non-negative and less than terminationGracePeriodSeconds ({grace})"
                    );
                    seconds.invalid(errors, rule);
                }
            }
            _ => port(errors, &field.get("port")),
        }
    }
    if count == 0 {
        at.required(errors, "must specify a handler type");
    }
}

fn http(errors: &mut Errors, at: &At<'_, '_>) {
    if at.get("path").str().is_empty() {
        at.get("path").required(errors, "");
    }
    port(errors, &at.get("port"));
    one_of(errors, &at.get("scheme"), &["HTTP", "HTTPS"]);
    let headers = at.get("httpHeaders");
    for header in headers.items() {
        let name = header.get("name");
        let fits = !name.str().is_empty()
            && name
                .str()
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !fits {
            // Upstream names the list, not the element.
            headers.with_value(name.value()).invalid(errors, HEADER);
        }
    }
}

fn port(errors: &mut Errors, at: &At<'_, '_>) {
    if at.value().is_string() {
        rules(errors, at, names::port_name(at.str()));
        return;
    }
    // A port that is not given is 0 to upstream.
    let number = at.int().unwrap_or(0);
    for rule in names::port_number(number) {
        at.error_value(errors, ErrorKind::Invalid, number.to_string(), rule);
    }
}
