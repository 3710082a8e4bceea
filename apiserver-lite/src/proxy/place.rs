//! Where a proxied name leads: `[SCHEME:]NAME[:PORT]`.

use std::net::{IpAddr, SocketAddr};

use rkube_api::status::{Named, Status};
use serde_json::Value;

use crate::engine::random;
use crate::objects::Objects;

/// A backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) ip: IpAddr,
    pub(super) port: u16,
    pub(super) tls: bool,
}

impl Place {
    /// `IP:PORT`.
    pub(super) fn authority(&self) -> String {
        SocketAddr::new(self.ip, self.port).to_string()
    }
}

/// A name with what may stand around it.
#[derive(Debug, PartialEq, Eq)]
struct Asked<'a> {
    tls: bool,
    name: &'a str,
    port: &'a str,
}

/// Takes a name apart (`SplitSchemeNamePort` of upstream).
fn split(text: &str) -> Option<Asked<'_>> {
    let parts: Vec<&str> = text.split(':').collect();
    let (scheme, name, port) = match parts[..] {
        [name] => ("", name, ""),
        [name, port] => ("", name, port),
        [scheme, name, port] => (scheme, name, port),
        _ => return None,
    };
    let fine = matches!(scheme, "" | "http" | "https") && !name.is_empty();
    fine.then_some(Asked {
        tls: scheme == "https",
        name,
        port,
    })
}

fn asked<'a>(kind: &str, text: &'a str) -> Result<Asked<'a>, Status> {
    split(text).ok_or_else(|| Status::bad_request(format!("invalid {kind} request {text:?}")))
}

fn get(objects: &Objects, plural: &str, namespace: &str, name: &str) -> Result<Value, Status> {
    let found = objects.find("", plural, namespace, name)?;
    found.ok_or_else(|| {
        Status::not_found(Named {
            group: "",
            resource: plural,
            name,
        })
    })
}

/// An address that a request may be sent to: none of the server's own host and link
/// (`IsProxyableIP` of upstream).
fn proxyable(text: &str) -> Option<IpAddr> {
    let ip: IpAddr = text.parse().ok()?;
    let forbidden = match ip.to_canonical() {
        IpAddr::V4(v4) => {
            v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.is_unspecified()
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_multicast()
                || v6.is_unspecified()
        }
    };
    (!forbidden).then_some(ip)
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The backend that a proxied pod's name means.
pub(super) fn of_pod(objects: &Objects, namespace: &str, text: &str) -> Result<Place, Status> {
    let asked = asked("pod", text)?;
    let pod = get(objects, "pods", namespace, asked.name)?;
    in_pod(&pod, &asked)
}

fn in_pod(pod: &Value, asked: &Asked<'_>) -> Result<Place, Status> {
    let ip = pod["status"]["podIP"].as_str().unwrap_or("");
    let ip = proxyable(ip).ok_or_else(|| Status::bad_request("address not allowed"))?;
    let port = match asked.port {
        "" => {
            // The first port of the first container that names one.
            let containers = array(&pod["spec"]["containers"]).iter();
            let mut first = containers.filter_map(|c| c["ports"][0]["containerPort"].as_u64());
            first.next().unwrap_or(if asked.tls { 443 } else { 80 })
        }
        text => text.parse().unwrap_or(0),
    };
    match u16::try_from(port) {
        Ok(port) if port > 0 => Ok(Place {
            ip,
            port,
            tls: asked.tls,
        }),
        _ => Err(Status::bad_request(format!(
            "{:?} is no port of a pod: give its number",
            asked.port
        ))),
    }
}

/// The backend that a proxied Service's name means: one of its ready endpoints, by chance.
pub(super) fn of_service(objects: &Objects, namespace: &str, text: &str) -> Result<Place, Status> {
    let asked = asked("service", text)?;
    let port = match asked.port.parse::<u64>() {
        Ok(number) => {
            let service = get(objects, "services", namespace, asked.name)?;
            named(&service, number).ok_or_else(|| {
                Status::unavailable(format!(
                    "no service port {number} found for service {:?}",
                    asked.name
                ))
            })?
        }
        Err(_) => asked.port.to_owned(),
    };
    let endpoints = get(objects, "endpoints", namespace, asked.name)?;
    let chance = random::<8>().map(u64::from_ne_bytes)?;
    let found = pick(&endpoints, &port, chance, |namespace, name| {
        objects.find("", "pods", namespace, name)
    })?;
    let (ip, port) = found.ok_or_else(|| {
        Status::unavailable(format!("no endpoints available for service {text:?}"))
    })?;
    Ok(Place {
        ip,
        port,
        tls: asked.tls,
    })
}

/// The name of a Service's port of this number.
fn named(service: &Value, number: u64) -> Option<String> {
    let ports = array(&service["spec"]["ports"]).iter();
    let mut fitting = ports.filter(|p| p["port"].as_u64() == Some(number));
    let port = fitting.next()?;
    Some(port["name"].as_str().unwrap_or("").to_owned())
}

/// An endpoint with a port of this name, that is the address of the pod that it names: whoever
/// may write Endpoints must not reach other hosts by the server.
fn pick(
    endpoints: &Value,
    port: &str,
    chance: u64,
    pod: impl Fn(&str, &str) -> Result<Option<Value>, Status>,
) -> Result<Option<(IpAddr, u16)>, Status> {
    let mut candidates = Vec::new();
    for subset in array(&endpoints["subsets"]) {
        let ports = array(&subset["ports"]).iter();
        let mut fitting = ports.filter(|p| p["name"].as_str().unwrap_or("") == port);
        let number = fitting.next().and_then(|p| p["port"].as_u64());
        let Some(number) = number.and_then(|n| u16::try_from(n).ok()) else {
            continue;
        };
        candidates.extend(array(&subset["addresses"]).iter().map(|a| (a, number)));
    }
    let Ok(count @ 1..) = u64::try_from(candidates.len()) else {
        return Ok(None);
    };
    let first = usize::try_from(chance % count).unwrap_or(0);
    let (later, sooner) = candidates.split_at(first);
    for (address, number) in sooner.iter().chain(later) {
        let (target, text) = (&address["targetRef"], &address["ip"]);
        let Some(ip) = text.as_str().and_then(proxyable) else {
            continue;
        };
        let part = |name: &str| target[name].as_str().unwrap_or("");
        if part("kind") != "Pod" {
            continue;
        }
        let Some(pod) = pod(part("namespace"), part("name"))? else {
            continue;
        };
        let status = &pod["status"];
        if status["podIP"] == *text || array(&status["podIPs"]).iter().any(|i| i["ip"] == *text) {
            return Ok(Some((ip, *number)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_taken_apart() {
        for (text, expected) in [
            ("a", Some((false, "a", ""))),
            ("a:80", Some((false, "a", "80"))),
            ("https:a:web", Some((true, "a", "web"))),
            ("http:a:", Some((false, "a", ""))),
            (":a:80", Some((false, "a", "80"))),
            ("ftp:a:80", None),
            (":80", None),
            ("", None),
            ("a:b:c:d", None),
        ] {
            let found = split(text).map(|a| (a.tls, a.name, a.port));
            assert_eq!(found, expected, "{text:?}");
        }
    }

    #[test]
    fn a_pods_port_is_given_or_its_first() {
        let pod = json!({
            "spec": {"containers": [{}, {"ports": [{"containerPort": 8080}, {"containerPort": 1}]}]},
            "status": {"podIP": "10.0.0.7"},
        });
        let at = |pod: &Value, text: &str| {
            let place = in_pod(pod, &split(text).unwrap());
            place.map(|p| (p.authority(), p.tls)).map_err(|s| s.code)
        };
        assert_eq!(at(&pod, "p"), Ok(("10.0.0.7:8080".to_owned(), false)));
        assert_eq!(at(&pod, "https:p:9"), Ok(("10.0.0.7:9".to_owned(), true)));
        assert_eq!(at(&pod, "p:web"), Err(400));
        assert_eq!(at(&pod, "p:70000"), Err(400));
        let bare = json!({"spec": {"containers": [{}]}, "status": {"podIP": "fd00::1"}});
        assert_eq!(
            at(&bare, "https:p:"),
            Ok(("[fd00::1]:443".to_owned(), true))
        );
        for ip in [
            "127.0.0.1",
            "169.254.169.254",
            "::1",
            "fe80::1",
            "224.0.0.1",
            "",
            "::ffff:127.0.0.1",
        ] {
            let pod = json!({"spec": {"containers": [{}]}, "status": {"podIP": ip}});
            assert_eq!(at(&pod, "p"), Err(400), "{ip}");
        }
    }

    #[test]
    fn a_services_backend_is_an_endpoint_that_is_its_pod() {
        let service = json!({"spec": {"ports": [{"name": "web", "port": 80}, {"port": 81}]}});
        assert_eq!(named(&service, 80).as_deref(), Some("web"));
        assert_eq!(named(&service, 81).as_deref(), Some(""));
        assert_eq!(named(&service, 82), None);
        let address = |ip: &str, pod: &str| json!({"ip": ip, "targetRef": {"kind": "Pod", "namespace": "n", "name": pod}});
        let endpoints = json!({"subsets": [
            {"addresses": [address("10.0.0.1", "a"), address("10.0.0.2", "other"),
                {"ip": "10.0.0.9"}, address("127.0.0.1", "local")],
             "ports": [{"name": "web", "port": 8080}]},
            {"notReadyAddresses": [address("10.0.0.3", "c")], "ports": [{"name": "slow", "port": 1}]},
        ]});
        let pods = |_: &str, name: &str| {
            let ip = match name {
                "a" => "10.0.0.1",
                "local" => "127.0.0.1",
                _ => "10.0.0.99",
            };
            Ok(Some(json!({"status": {"podIP": ip}})))
        };
        for chance in 0..8 {
            let found = pick(&endpoints, "web", chance, pods).unwrap();
            assert_eq!(found, Some(("10.0.0.1".parse().unwrap(), 8080)));
        }
        assert_eq!(pick(&endpoints, "slow", 0, pods).unwrap(), None);
        assert_eq!(pick(&endpoints, "", 0, pods).unwrap(), None);
        let gone = |_: &str, _: &str| Ok(None);
        assert_eq!(pick(&endpoints, "web", 0, gone).unwrap(), None);
    }
}
