//! /etc/hosts of a pod.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::Pod;

use crate::node::NodeFacts;
use crate::pod;

/// First line of a file that the node manages.
const HEADER: &str = "# Kubernetes-managed hosts file.";
/// The first line of the host's file in a pod on its network: programs tell the
/// two apart by it.
const HOST_HEADER: &str = "# Kubernetes-managed hosts file (host network).";

/// Another pod that this one should find by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Its address.
    pub address: String,
    /// Its names, the preferred one first.
    pub names: Vec<String>,
}

impl Peer {
    /// The entries of a pod with these addresses.
    #[must_use]
    pub fn of(pod: &Pod, addresses: &[String]) -> Vec<Self> {
        let mut names = vec![
            pod::name(pod).to_owned(),
            format!("{}.{}", pod::name(pod), pod::namespace(pod)),
        ];
        let hostname = pod::hostname(pod);
        if hostname != names[0] {
            names.push(hostname);
        }
        addresses
            .iter()
            .map(|a| Self {
                address: a.clone(),
                names: names.clone(),
            })
            .collect()
    }
}

/// `<hostname>.<subdomain>.<namespace>.svc.<domain>` where the pod has a
/// subdomain.
#[must_use]
pub fn fqdn(pod: &Pod, node: &NodeFacts) -> Option<String> {
    let spec = pod::spec(pod);
    let subdomain = spec.subdomain.as_deref().filter(|s| !s.is_empty())?;
    let domain = &node.cluster_domain;
    Some(format!(
        "{}.{subdomain}.{}.svc.{domain}",
        pod::hostname(pod),
        pod::namespace(pod)
    ))
}

/// The file's text. With the host's network it is `host_file`, the host's
/// own, else it is made anew.
#[must_use]
pub fn render(
    pod: &Pod,
    node: &NodeFacts,
    addresses: &[String],
    host_file: &str,
    peers: &[Peer],
) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = (|| {
        if pod::host_network(pod) {
            writeln!(text, "{HOST_HEADER}")?;
            text.push_str(host_file);
            if !host_file.is_empty() && !host_file.ends_with('\n') {
                text.push('\n');
            }
        } else {
            writeln!(text, "{HEADER}")?;
            writeln!(text, "127.0.0.1\tlocalhost")?;
            writeln!(text, "::1\tlocalhost ip6-localhost ip6-loopback")?;
            for (address, name) in [
                ("fe00::0", "ip6-localnet"),
                ("fe00::0", "ip6-mcastprefix"),
                ("fe00::1", "ip6-allnodes"),
                ("fe00::2", "ip6-allrouters"),
            ] {
                writeln!(text, "{address}\t{name}")?;
            }
            let hostname = pod::hostname(pod);
            for address in addresses {
                match fqdn(pod, node) {
                    Some(fqdn) => writeln!(text, "{address}\t{fqdn}\t{hostname}")?,
                    None => writeln!(text, "{address}\t{hostname}")?,
                }
            }
        }
        if !peers.is_empty() {
            writeln!(text, "\n# Pods applied together with this one.")?;
            for peer in peers {
                writeln!(text, "{}\t{}", peer.address, peer.names.join("\t"))?;
            }
        }
        let spec = pod::spec(pod);
        let aliases = spec.host_aliases.as_deref().unwrap_or_default();
        if !aliases.is_empty() {
            writeln!(text, "\n# Entries added by HostAliases.")?;
            for alias in aliases {
                let names = alias.hostnames.as_deref().unwrap_or_default();
                writeln!(text, "{}\t{}", alias.ip, names.join("\t"))?;
            }
        }
        std::fmt::Result::Ok(())
    })();
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod as pod_of;
    use serde_json::json;

    fn node() -> NodeFacts {
        NodeFacts {
            single_process_oom_kill: false,
            name: "n".into(),
            addresses: vec![],
            cpu_millis: 1,
            memory_bytes: 1,
            cluster_dns: vec![],
            cluster_domain: "cluster.local".into(),
        }
    }

    #[test]
    fn a_pod_of_its_own_network() {
        let pod = pod_of(json!({"containers": [], "subdomain": "sub",
            "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["foo", "bar"]}]}));
        let peer = Peer {
            address: "10.0.0.3".into(),
            names: vec!["db".into(), "db.default".into()],
        };
        let text = render(&pod, &node(), &["10.0.0.2".into()], "ignored", &[peer]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "# Kubernetes-managed hosts file.");
        assert_eq!(lines[7], "10.0.0.2\tweb.sub.default.svc.cluster.local\tweb");
        assert!(text.contains("\n10.0.0.3\tdb\tdb.default\n"));
        assert!(text.ends_with("\n# Entries added by HostAliases.\n192.0.2.9\tfoo\tbar\n"));
    }

    #[test]
    fn a_pod_on_the_hosts_network_gets_the_hosts_file() {
        let pod = pod_of(json!({"containers": [], "hostNetwork": true}));
        assert_eq!(
            render(&pod, &node(), &[], "1.2.3.4 x", &[]),
            "# Kubernetes-managed hosts file (host network).\n1.2.3.4 x\n"
        );
    }
}
