//! Endpoints: defaults and validation (`ValidateEndpointsCreate` of 1.36).

use serde_json::{Value, json};

use super::address;
use crate::field::{ErrorKind, Errors, FieldError};
use crate::meta::{self, rules};
use crate::names;
use crate::view::At;

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// Ports are TCP unless they say otherwise.
pub fn default(endpoints: &mut Value) {
    let subsets = endpoints.get_mut("subsets").and_then(Value::as_array_mut);
    for subset in subsets.into_iter().flatten() {
        let ports = subset.get_mut("ports").and_then(Value::as_array_mut);
        for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
            let protocol = port.get("protocol").and_then(Value::as_str);
            if protocol.is_none_or(str::is_empty) {
                port.insert("protocol".to_owned(), json!("TCP"));
            }
        }
    }
}

/// Every rule that Endpoints break.
#[must_use]
pub fn validate(endpoints: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = At::root(endpoints);
    let metadata = root.get("metadata");
    meta::validate(&mut errors, &metadata, true, names::dns1123_subdomain);
    for subset in root.get("subsets").items() {
        let (ready, not_ready) = (subset.get("addresses"), subset.get("notReadyAddresses"));
        if ready.is_empty() && not_ready.is_empty() {
            subset.required(
                &mut errors,
                "must specify `addresses` or `notReadyAddresses`",
            );
        }
        for at in ready.items().chain(not_ready.items()) {
            endpoint(&mut errors, &at);
        }
        let ports = subset.get("ports");
        for port in ports.items() {
            let name = port.get("name");
            if name.str().is_empty() {
                if ports.len() > 1 {
                    name.required(&mut errors, "");
                }
            } else {
                rules(&mut errors, &name, names::dns1123_label(name.str()));
            }
            let number = port.get("port").int().unwrap_or(0);
            for rule in names::port_number(number) {
                port.get("port").error_value(
                    &mut errors,
                    ErrorKind::Invalid,
                    number.to_string(),
                    rule,
                );
            }
            protocol_and_app(&mut errors, &port);
        }
    }
    errors.into_vec()
}

/// `protocol` and `appProtocol` of an endpoint port.
pub(super) fn protocol_and_app(errors: &mut Errors, port: &At<'_, '_>) {
    let protocol = port.get("protocol");
    if protocol.str().is_empty() {
        protocol.required(errors, "");
    } else if !PROTOCOLS.contains(&protocol.str()) {
        protocol.unsupported(errors, PROTOCOLS);
    }
    let app = port.get("appProtocol");
    if app.is_some() {
        rules(errors, &app, names::qualified_name(app.str()));
    }
}

fn endpoint(errors: &mut Errors, at: &At<'_, '_>) {
    let ip = at.get("ip");
    rules(errors, &ip, names::ip(ip.str()));
    let hostname = at.get("hostname");
    if !hostname.str().is_empty() {
        rules(errors, &hostname, names::dns1123_label(hostname.str()));
    }
    let node = at.get("nodeName");
    if node.is_some() {
        rules(errors, &node, names::dns1123_subdomain(node.str()));
    }
    address::not_special(errors, &ip);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_defaulted_and_checked() {
        let mut good = json!({
            "metadata": {"name": "a", "namespace": "b"},
            "subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}],
        });
        default(&mut good);
        assert_eq!(
            good.pointer("/subsets/0/ports/0/protocol"),
            Some(&json!("TCP"))
        );
        assert_eq!(validate(&good), []);

        let bad = json!({
            "metadata": {"name": "a", "namespace": "b"},
            "subsets": [
                {"ports": [{"port": 0, "protocol": "TCP"}, {"port": 1, "protocol": "X", "name": "b"}]},
                {"addresses": [{"ip": "127.0.0.1", "hostname": "A"}]},
            ],
        });
        let text: Vec<String> = validate(&bad).iter().map(ToString::to_string).collect();
        assert_eq!(
            text[0],
            "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`"
        );
        assert_eq!(text[1], "subsets[0].ports[0].name: Required value");
        assert_eq!(
            text[2],
            "subsets[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"
        );
        assert_eq!(
            text[3],
            r#"subsets[0].ports[1].protocol: Unsupported value: "X": supported values: "SCTP", "TCP", "UDP""#
        );
        assert!(text[4].starts_with("subsets[1].addresses[0].hostname: Invalid"));
        assert_eq!(
            text[5],
            r#"subsets[1].addresses[0].ip: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)"#
        );
    }
}
