//! `/api`, `/apis` and below: which groups, versions and resources there are.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Response;
use rkube_api::discovery;
use rkube_api::resources::Resource;
use rkube_api::status::Status;
use serde_json::{Value, json};

use super::answer;
use super::body::Body;
use crate::engine::{Engine, encode};
use crate::negotiate::{self, clauses};
use crate::objects::stored_as;

/// What a server answers for one of its own paths; `None` where it is no discovery path, or there
/// is no such group or version.
pub(super) fn answer(
    engine: &Engine,
    path: &str,
    accept: &str,
    address: &str,
) -> Option<Result<Response<Body>, Status>> {
    let list = |group: &str, version: &str| {
        let list = discovery::resource_list(engine.served(), group, version)?;
        Some(with_hashes(engine.served(), group, version, list))
    };
    let plain = |value| plain(value, accept);
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let served = engine.served();
    let core = match segments.as_slice() {
        ["api"] => true,
        ["apis"] => false,
        ["api", version] => return plain(list("", version)),
        ["apis", group] => return plain(discovery::group(served, group)),
        ["apis", group, version] => {
            return plain(list(group, version));
        }
        _ => return None,
    };
    if let Some(version) = aggregated_version(accept) {
        let list = discovery::aggregated(served, core, version);
        let content_type =
            format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
        return Some(Ok(answer::bytes(200, &content_type, list.to_string())));
    }
    plain(Some(if core {
        discovery::api_versions(address)
    } else {
        discovery::group_list(served)
    }))
}

fn plain(value: Option<Value>, accept: &str) -> Option<Result<Response<Body>, Status>> {
    let value = value?;
    let format = match negotiate::accept(accept) {
        Ok(format) => format,
        Err(status) => return Some(Err(status)),
    };
    Some(encode(&value, format, false).map(|body| answer::bytes(200, format.content_type(), body)))
}

/// Names the form in which each resource is stored, so that clients see when it changes: the
/// beginning of a hash of group, version and kind (`StorageVersionHash` of upstream).
fn with_hashes(served: &[&'static Resource], group: &str, version: &str, mut list: Value) -> Value {
    const HASH_BYTES: usize = 8;
    let entries = list["resources"].as_array_mut();
    for entry in entries.into_iter().flatten() {
        let found = served.iter().find(|r| {
            r.gvk.group == group && r.gvk.version == version && entry["name"] == r.plural
        });
        // What cannot be watched is not stored.
        let Some(resource) = found.filter(|r| r.serves("watch")) else {
            continue;
        };
        let gvk = &stored_as(resource).gvk;
        let form = format!("{}/{}/{}", gvk.group, gvk.version, gvk.kind);
        let hash = ring::digest::digest(&ring::digest::SHA256, form.as_bytes());
        let part = &hash.as_ref()[..HASH_BYTES];
        entry["storageVersionHash"] = STANDARD.encode(part).into();
    }
    list
}

/// The version of the aggregated form that is asked for first, if it comes before the plain one.
fn aggregated_version(accept: &str) -> Option<&'static str> {
    for clause in clauses(accept) {
        if !clause.takes("application/json") {
            continue;
        }
        if clause.parameter("as").is_empty() {
            return None;
        }
        let form = (
            clause.parameter("g"),
            clause.parameter("as"),
            clause.parameter("v"),
        );
        match form {
            ("apidiscovery.k8s.io", "APIGroupDiscoveryList", "v2") => return Some("v2"),
            ("apidiscovery.k8s.io", "APIGroupDiscoveryList", "v2beta1") => return Some("v2beta1"),
            _ => {}
        }
    }
    None
}

/// What the program was built from; git's null id where nobody said it. Clients take an empty
/// one for no version at all.
const COMMIT: &str = match option_env!("RKUBE_COMMIT") {
    Some(commit) => commit,
    None => "0000000000000000000000000000000000000000",
};

/// `/version`: the release whose API this is.
pub(super) fn version() -> Value {
    json!({
        "major": "1",
        "minor": "36",
        "emulationMajor": "1",
        "emulationMinor": "36",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35",
        "gitVersion": concat!("v1.36.0+rkube-", env!("CARGO_PKG_VERSION")),
        "gitCommit": COMMIT,
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", go_architecture(std::env::consts::ARCH)),
    })
}

/// Go's name of an architecture.
fn go_architecture(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_forms_have_upstreams_hashes() {
        let served: Vec<&'static Resource> = rkube_api::resources::all().iter().collect();
        let hash = |group: &str, version: &str, name: &str| {
            let list = discovery::resource_list(&served, group, version).unwrap();
            let list = with_hashes(&served, group, version, list);
            let entries = list["resources"].as_array().unwrap();
            let entry = entries.iter().find(|e| e["name"] == name).unwrap();
            entry["storageVersionHash"].clone()
        };
        assert_eq!(hash("", "v1", "pods"), "xPOwRZ+Yhw8=");
        assert_eq!(hash("apps", "v1", "deployments"), "8aSe+NMegvE=");
        assert_eq!(hash("events.k8s.io", "v1", "events"), "r2yiGXH7wu8=");
        assert_eq!(hash("", "v1", "componentstatuses"), Value::Null);
        assert_eq!(hash("", "v1", "pods/status"), Value::Null);
    }

    #[test]
    fn what_kubectl_asks_for() {
        let both = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert_eq!(aggregated_version(both), Some("v2"));
        let older = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert_eq!(aggregated_version(older), Some("v2beta1"));
        assert_eq!(aggregated_version("application/json, */*"), None);
        assert_eq!(aggregated_version(""), None);
        // `kubectl version` of 1.20's suite wants one.
        let version = version();
        let commit = version["gitCommit"].as_str().unwrap();
        assert!(commit.len() >= 7 && commit.bytes().all(|b| b.is_ascii_hexdigit()));
    }
}
