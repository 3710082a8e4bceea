//! What pods learn of Services from their environment (node reference 1.6).

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use rkube_client::Informer;
use rkube_kubelet::pod;
use rkube_kubelet::surroundings::Surroundings;

/// The Service that every pod hears of.
const MASTER: (&str, &str) = ("default", "kubernetes");

/// Variables out of a cache of Services.
#[derive(Debug)]
pub struct ServiceVariables {
    services: Arc<Informer<Service>>,
}

impl ServiceVariables {
    /// Over a cache that is followed already.
    #[must_use]
    pub fn new(services: Arc<Informer<Service>>) -> Self {
        Self { services }
    }
}

impl Surroundings for ServiceVariables {
    fn service_variables(&self, pod: &Pod) -> Vec<(String, String)> {
        let all = self.services.store().all();
        variables(pod, all.iter().map(AsRef::as_ref))
    }
}

/// The variables of a pod: those of the API server's Service always, those
/// of its namespace's Services unless it wants no links.
#[must_use]
pub fn variables<'a>(
    pod: &Pod,
    services: impl Iterator<Item = &'a Service>,
) -> Vec<(String, String)> {
    let links = pod::spec(pod).enable_service_links.unwrap_or(true);
    let namespace = pod::namespace(pod);
    let mut chosen: Vec<&Service> = services
        .filter(|service| {
            let of = service.metadata.namespace.as_deref().unwrap_or_default();
            let name = service.metadata.name.as_deref().unwrap_or_default();
            has_address(service) && ((links && of == namespace) || (of, name) == MASTER)
        })
        .collect();
    // One of the namespace wins over the API server's of the same name.
    chosen.sort_by_key(|s| s.metadata.namespace.as_deref() == Some(namespace));
    let mut out = Vec::new();
    for service in chosen {
        add(service, &mut out);
    }
    out
}

fn has_address(service: &Service) -> bool {
    let ip = service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref());
    ip.is_some_and(|ip| !ip.is_empty() && ip != "None")
}

fn add(service: &Service, out: &mut Vec<(String, String)>) {
    let Some(spec) = &service.spec else { return };
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let prefix = upper(name);
    let ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return };
    out.push((format!("{prefix}_SERVICE_HOST"), ip.to_owned()));
    out.push((format!("{prefix}_SERVICE_PORT"), first.port.to_string()));
    for port in ports {
        if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            let variable = format!("{prefix}_SERVICE_PORT_{}", upper(name));
            out.push((variable, port.port.to_string()));
        }
    }
    let host = if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.to_owned()
    };
    for (at, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if at == 0 {
            out.push((format!("{prefix}_PORT"), url.clone()));
        }
        let own = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        out.push((own.clone(), url));
        out.push((format!("{own}_PROTO"), protocol.to_lowercase()));
        out.push((format!("{own}_PORT"), port.port.to_string()));
        out.push((format!("{own}_ADDR"), ip.to_owned()));
    }
}

fn upper(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(namespace: &str, name: &str, spec: serde_json::Value) -> Service {
        let value = json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec});
        serde_json::from_value(value).unwrap()
    }

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"namespace": "a"}, "spec": spec})).unwrap()
    }

    #[test]
    fn variables_of_services() {
        let all = [
            service(
                "a",
                "my-db",
                json!({"clusterIP": "10.0.0.5", "ports": [
                    {"name": "sql-in", "port": 5432},
                    {"name": "log", "port": 514, "protocol": "UDP"}]}),
            ),
            service(
                "a",
                "none",
                json!({"clusterIP": "None", "ports": [{"port": 1}]}),
            ),
            service(
                "b",
                "other",
                json!({"clusterIP": "10.0.0.6", "ports": [{"port": 1}]}),
            ),
            service(
                "default",
                "kubernetes",
                json!({"clusterIP": "10.0.0.1", "ports": [{"name": "https", "port": 443}]}),
            ),
        ];
        let found = variables(&pod(json!({"containers": []})), all.iter());
        let text: Vec<String> = found.iter().map(|(k, v)| format!("{k}={v}")).collect();
        for line in [
            "MY_DB_SERVICE_HOST=10.0.0.5",
            "MY_DB_SERVICE_PORT=5432",
            "MY_DB_SERVICE_PORT_SQL_IN=5432",
            "MY_DB_SERVICE_PORT_LOG=514",
            "MY_DB_PORT=tcp://10.0.0.5:5432",
            "MY_DB_PORT_5432_TCP=tcp://10.0.0.5:5432",
            "MY_DB_PORT_5432_TCP_PROTO=tcp",
            "MY_DB_PORT_514_UDP_ADDR=10.0.0.5",
            "KUBERNETES_SERVICE_PORT_HTTPS=443",
        ] {
            assert!(text.contains(&line.to_owned()), "{line} in {text:#?}");
        }
        assert!(
            !text
                .iter()
                .any(|l| l.starts_with("NONE_") || l.starts_with("OTHER_"))
        );
        let unlinked = pod(json!({"containers": [], "enableServiceLinks": false}));
        let found = variables(&unlinked, all.iter());
        assert!(found.iter().all(|(k, _)| k.starts_with("KUBERNETES_")));
        assert_eq!(found.len(), 8);
    }
}
