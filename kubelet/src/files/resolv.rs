//! /etc/resolv.conf of a pod.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

use crate::node::NodeFacts;
use crate::pod;

/// Most name servers (glibc's MAXNS, resolv.h).
pub const MAX_NAMESERVERS: usize = 3;
/// Most search domains (upstream's limit since 1.28).
pub const MAX_SEARCHES: usize = 32;
/// Most characters of all search domains with spaces between them.
pub const MAX_SEARCH_CHARS: usize = 2048;
/// The most of a resolv.conf that is read.
pub const MAX_RESOLV_CONF_BYTES: usize = 64 * 1024;
/// systemd-resolved's file with the servers that it asks itself
/// (systemd-resolved.service(8)).
pub const SYSTEMD_RESOLVED_UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";

/// The directives of a resolv.conf that count.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolvConf {
    /// Name servers.
    pub nameservers: Vec<String>,
    /// Search domains; the last `search` line counts (resolv.conf(5)).
    pub searches: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Reads a file's text; lines that are no directive are left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => conf.nameservers.extend(words.next().map(str::to_owned)),
                Some("search") => conf.searches = words.map(str::to_owned).collect(),
                Some("options") => conf.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        conf
    }

    /// Whether every server is the stub that systemd-resolved listens on;
    /// it cannot be reached from a pod.
    #[must_use]
    pub fn is_local_stub(&self) -> bool {
        !self.nameservers.is_empty()
            && self
                .nameservers
                .iter()
                .all(|s| s.parse::<IpAddr>().is_ok_and(|a| a.is_loopback()))
    }

    /// The file's text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for server in &self.nameservers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}

/// The host's resolvers as a pod can use them: /etc/resolv.conf, or
/// systemd-resolved's upstream file where that names only a local stub.
#[must_use]
pub fn of_host() -> ResolvConf {
    let read = |path: &str| {
        let bytes = std::fs::read(path).unwrap_or_default();
        let bytes = &bytes[..bytes.len().min(MAX_RESOLV_CONF_BYTES)];
        ResolvConf::parse(&String::from_utf8_lossy(bytes))
    };
    let own = read("/etc/resolv.conf");
    if !own.is_local_stub() {
        return own;
    }
    let upstream = read(SYSTEMD_RESOLVED_UPSTREAM);
    if upstream.nameservers.is_empty() {
        own
    } else {
        upstream
    }
}

/// A remark about a pod's DNS, told as an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remark {
    /// `ClusterFirst` without a cluster DNS: the host's resolvers are used.
    MissingClusterDns,
    /// Something was cut to the limits.
    Cut,
}

/// The pod's configuration.
#[must_use]
pub fn for_pod(pod: &Pod, node: &NodeFacts, host: &ResolvConf) -> (ResolvConf, Vec<Remark>) {
    let mut remarks = Vec::new();
    let spec = pod::spec(pod);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !pod::host_network(pod),
        _ => false,
    };
    let mut conf = if policy == "None" {
        ResolvConf::default()
    } else if cluster && !node.cluster_dns.is_empty() {
        let domain = &node.cluster_domain;
        let mut searches = vec![
            format!("{}.svc.{domain}", pod::namespace(pod)),
            format!("svc.{domain}"),
            domain.clone(),
        ];
        searches.extend(host.searches.iter().cloned());
        ResolvConf {
            nameservers: node.cluster_dns.iter().map(ToString::to_string).collect(),
            searches,
            options: vec!["ndots:5".to_owned()],
        }
    } else {
        if cluster {
            remarks.push(Remark::MissingClusterDns);
        }
        host.clone()
    };
    if let Some(own) = &spec.dns_config {
        conf.nameservers
            .extend(own.nameservers.iter().flatten().cloned());
        conf.searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            // An option of the pod replaces one of the same name.
            conf.options.retain(|o| o.split(':').next() != Some(name));
            conf.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            });
        }
    }
    unique(&mut conf.nameservers);
    unique(&mut conf.searches);
    if cut(&mut conf) {
        remarks.push(Remark::Cut);
    }
    (conf, remarks)
}

fn unique(list: &mut Vec<String>) {
    let mut seen = std::collections::BTreeSet::new();
    list.retain(|item| seen.insert(item.clone()));
}

fn cut(conf: &mut ResolvConf) -> bool {
    let before = (conf.nameservers.len(), conf.searches.len());
    conf.nameservers.truncate(MAX_NAMESERVERS);
    conf.searches.truncate(MAX_SEARCHES);
    while conf.searches.iter().map(|s| s.len() + 1).sum::<usize>() > MAX_SEARCH_CHARS + 1 {
        conf.searches.pop();
    }
    before != (conf.nameservers.len(), conf.searches.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod as pod_of;
    use serde_json::json;

    fn node(dns: &[&str]) -> NodeFacts {
        NodeFacts {
            single_process_oom_kill: false,
            name: "n".into(),
            addresses: vec![],
            cpu_millis: 1,
            memory_bytes: 1,
            cluster_dns: dns.iter().map(|d| d.parse().unwrap()).collect(),
            cluster_domain: "c.local".into(),
        }
    }

    #[test]
    fn policies() {
        let host =
            ResolvConf::parse("# x\nnameserver 192.0.2.1\nsearch a b\nsearch lan\noptions edns0\n");
        assert_eq!(host.searches, ["lan"]);
        let p = pod_of(json!({"containers": []}));
        let (conf, remarks) = for_pod(&p, &node(&[]), &host);
        assert_eq!(
            (conf, remarks),
            (host.clone(), vec![Remark::MissingClusterDns])
        );
        let (conf, remarks) = for_pod(&p, &node(&["10.1.0.10"]), &host);
        assert_eq!(
            conf.render(),
            "search default.svc.c.local svc.c.local c.local lan\nnameserver 10.1.0.10\noptions ndots:5\n"
        );
        assert!(remarks.is_empty());
        let p = pod_of(
            json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.5"],
            "searches": ["x"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
        );
        assert_eq!(
            for_pod(&p, &node(&["10.1.0.10"]), &host).0.render(),
            "search x\nnameserver 192.0.2.5\noptions ndots:2 edns0\n"
        );
        let p = pod_of(json!({"containers": [], "hostNetwork": true}));
        assert_eq!(for_pod(&p, &node(&["10.1.0.10"]), &host).0, host);
        let p = pod_of(json!({"containers": [], "dnsPolicy": "Default"}));
        assert_eq!(for_pod(&p, &node(&[]), &host), (host, vec![]));
    }

    #[test]
    fn limits_are_kept_and_told() {
        let p = pod_of(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {
            "nameservers": ["192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.3", "192.0.2.4"],
            "searches": (0..40).map(|i| format!("{i}.{}", "x".repeat(100))).collect::<Vec<_>>()}}));
        let (conf, remarks) = for_pod(&p, &node(&[]), &ResolvConf::default());
        assert_eq!(conf.nameservers.len(), 3);
        assert!(conf.searches.join(" ").len() <= MAX_SEARCH_CHARS && conf.searches.len() > 15);
        assert_eq!(remarks, [Remark::Cut]);
    }

    #[test]
    fn local_stubs() {
        assert!(ResolvConf::parse("nameserver 127.0.0.53").is_local_stub());
        assert!(!ResolvConf::parse("nameserver 127.0.0.53\nnameserver 192.0.2.1").is_local_stub());
        assert!(!ResolvConf::default().is_local_stub());
    }
}
