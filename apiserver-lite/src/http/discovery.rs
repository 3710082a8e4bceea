//! `/api`, `/apis` and below: which groups, versions and resources there are.

use http::Response;
use rkube_api::discovery;
use serde_json::{Value, json};

use super::answer;
use super::body::Body;
use crate::engine::Engine;
use crate::negotiate::clauses;

/// What a server answers for one of its own paths; `None` where it is no discovery path.
pub(super) fn answer(
    engine: &Engine,
    path: &str,
    accept: &str,
    address: &str,
) -> Option<Response<Body>> {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let served = engine.served();
    let core = match segments.as_slice() {
        ["api"] => true,
        ["apis"] => false,
        ["api", version] => return plain(discovery::resource_list(served, "", version)),
        ["apis", group] => return plain(discovery::group(served, group)),
        ["apis", group, version] => {
            return plain(discovery::resource_list(served, group, version));
        }
        _ => return None,
    };
    if let Some(version) = aggregated_version(accept) {
        let list = discovery::aggregated(served, core, version);
        let content_type =
            format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
        return Some(answer::bytes(200, &content_type, list.to_string()));
    }
    plain(Some(if core {
        discovery::api_versions(address)
    } else {
        discovery::group_list(served)
    }))
}

fn plain(value: Option<Value>) -> Option<Response<Body>> {
    value.map(|value| answer::json(200, &value))
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
