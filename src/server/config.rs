//! The flags of `rkube server` and `rkube agent`, read whole before anything
//! is done.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use rkube_agent::node::LEASE_PERIOD;
use rkube_agent::node::object::{DEFAULT_MAX_PODS, Registration, Taint};

use rkube_client::https::Endpoint;
use rkube_pki::kubeconfig::Kubeconfig;

use super::token::JoinToken;
use crate::cli;
use crate::error::BadInput;

/// The last number of the cluster DNS' address in the Service range (the
/// convention of kubeadm and k3s).
const DNS_OFFSET: u32 = 10;

/// What can be left out of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Part {
    /// No node: pods run on others.
    Agent,
    /// No Service proxy on this node.
    Proxy,
    /// No cluster DNS on this node.
    Dns,
    /// No scheduler.
    Scheduler,
    /// No controllers.
    Controllers,
}

/// A node, of a server or joined to one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeConfig {
    /// How it is registered.
    pub(crate) registration: Registration,
    /// Its addresses instead of those that the host would use.
    pub(crate) ips: Vec<IpAddr>,
    /// The port of its own API.
    pub(crate) kubelet_port: u16,
    /// Most pods.
    pub(crate) max_pods: usize,
}

/// A server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerConfig {
    /// Where the API listens.
    pub(crate) listen: SocketAddr,
    /// The address that others reach it by.
    pub(crate) advertise: Option<IpAddr>,
    /// More names and addresses for its certificate.
    pub(crate) names: Vec<String>,
    /// Pods' addresses.
    pub(crate) cluster_cidrs: Vec<IpNet>,
    /// Services' addresses.
    pub(crate) service_cidrs: Vec<IpNet>,
    /// The cluster DNS.
    pub(crate) cluster_dns: Vec<IpAddr>,
    /// The domain of cluster names.
    pub(crate) cluster_domain: String,
    /// The token by which nodes join.
    pub(crate) token: Option<String>,
    /// Where the administrator's kubeconfig is written, too.
    pub(crate) write_kubeconfig: Option<PathBuf>,
    /// How long a node may be silent.
    pub(crate) node_grace: Duration,
    /// How many ended pods are kept; 0 keeps all.
    pub(crate) ended_pods: usize,
    /// Whether every service account gets a Secret with a token.
    pub(crate) legacy_tokens: bool,
    /// What pods tolerate that do not say: a node that is not ready, and one
    /// that is silent, in seconds.
    pub(crate) tolerations: [u32; 2],
    /// What is left out.
    pub(crate) without: BTreeSet<Part>,
    /// Its own node.
    pub(crate) node: NodeConfig,
}

impl ServerConfig {
    /// Whether a part is wanted.
    pub(crate) fn has(&self, part: Part) -> bool {
        !self.without.contains(&part)
    }

    /// The first address of each Service range: the Service `kubernetes`.
    pub(crate) fn api_service_ips(&self) -> Vec<IpAddr> {
        self.service_cidrs
            .iter()
            .filter_map(|net| nth(net, 1))
            .collect()
    }
}

/// By what a node comes to its server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Access {
    /// The token of a server of ours; not needed again.
    Token(Option<JoinToken>),
    /// What a kubeconfig holds.
    Kubeconfig(Box<Kubeconfig>),
}

/// A node that joins a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AgentConfig {
    /// The server.
    pub(crate) server: Endpoint,
    /// By what it comes.
    pub(crate) access: Access,
    /// The domain of cluster names.
    pub(crate) cluster_domain: String,
    /// Ranges of pods' addresses, as the server's.
    pub(crate) cluster_cidrs: Vec<IpNet>,
    /// Ranges of Services' addresses, as the server's.
    pub(crate) service_cidrs: Vec<IpNet>,
    /// With a Service proxy.
    pub(crate) proxy: bool,
    /// With the cluster DNS.
    pub(crate) dns: bool,
    /// The node.
    pub(crate) node: NodeConfig,
}

/// Reads the flags of `rkube agent`.
pub(crate) fn agent(args: &cli::Agent) -> anyhow::Result<AgentConfig> {
    let mut problems = Problems::default();
    let reached = match &args.kubeconfig {
        Some(path) => problems.check(kubeconfig(path)),
        None => {
            let token = args
                .token
                .as_deref()
                .and_then(|text| problems.check(JoinToken::parse(text)));
            let server = args.server.as_deref().unwrap_or_default();
            let server = problems.check(super::join::endpoint(server));
            server.map(|server| (server, Access::Token(token)))
        }
    };
    let cluster_cidrs = ranges("cluster-cidr", &args.cluster_cidr, &mut problems);
    let service_cidrs = ranges("service-cidr", &args.service_cidr, &mut problems);
    let node = node(&args.node, &mut problems);
    let config = reached.map(|(server, access)| AgentConfig {
        server,
        access,
        cluster_domain: args.cluster_domain.clone(),
        cluster_cidrs,
        service_cidrs,
        proxy: !args.disable.contains(&Part::Proxy),
        dns: !args.disable.contains(&Part::Dns),
        node,
    });
    let config = problems.done(config)?;
    config.ok_or_else(|| crate::error::bad_input("--server is needed"))
}

/// The server that a kubeconfig names, and what it is reached by.
fn kubeconfig(path: &Path) -> Result<(Endpoint, Access), String> {
    let config = Kubeconfig::read(path).map_err(|e| crate::error::chain(&e))?;
    let wrong = |what: &str| Err(format!("kubeconfig {}: {what}", path.display()));
    if config.skip_verify {
        return wrong("insecure-skip-tls-verify: a node must know its server");
    }
    if config.authority.is_empty() {
        return wrong("certificate-authority(-data) is needed");
    }
    let mut server = super::join::endpoint(&config.server)?;
    server.server_name.clone_from(&config.server_name);
    Ok((server, Access::Kubeconfig(Box::new(config))))
}

/// The `n`th address of a range, where it has so many.
pub(crate) fn nth(net: &IpNet, n: u32) -> Option<IpAddr> {
    let address: IpAddr = match net.network() {
        IpAddr::V4(base) => u32::from(base)
            .checked_add(n)
            .map(|a| IpAddr::V4(a.into()))?,
        IpAddr::V6(base) => u128::from(base)
            .checked_add(n.into())
            .map(|a| IpAddr::V6(a.into()))?,
    };
    net.contains(&address).then_some(address)
}

/// Collects what is wrong, so that all of it is told at once.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn check<T>(&mut self, result: Result<T, String>) -> Option<T> {
        result.map_err(|problem| self.0.push(problem)).ok()
    }

    fn done<T>(self, value: T) -> anyhow::Result<T> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(BadInput(self.0).into())
        }
    }
}

fn node(args: &cli::NodeArgs, problems: &mut Problems) -> NodeConfig {
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .to_lowercase();
    let name = args.node_name.clone().unwrap_or(host);
    let fine = !name.is_empty()
        && name.len() <= 63
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric());
    if !fine {
        problems.0.push(format!(
            "node name {name:?}: 1 to 63 of a-z, 0-9, '-' and '.' are needed; give --node-name"
        ));
    }
    let mut labels = BTreeMap::new();
    for text in &args.node_label {
        let pair = text
            .split_once('=')
            .map(|(k, v)| (k.to_owned(), v.to_owned()));
        labels
            .extend(problems.check(pair.ok_or(format!("--node-label {text:?} is not KEY=VALUE"))));
    }
    let taints = args
        .node_taint
        .iter()
        .filter_map(|text| problems.check(Taint::parse(text)))
        .collect();
    NodeConfig {
        registration: Registration {
            name,
            labels,
            taints,
            unschedulable: false,
        },
        ips: args.node_ip.clone(),
        kubelet_port: args.kubelet_port,
        max_pods: args.max_pods.unwrap_or(DEFAULT_MAX_PODS),
    }
}

/// Ranges of one or both families, IPv4 first as given.
fn ranges(what: &str, list: &[IpNet], problems: &mut Problems) -> Vec<IpNet> {
    let families: BTreeSet<bool> = list.iter().map(|n| n.addr().is_ipv4()).collect();
    if list.is_empty() || list.len() > 2 || families.len() != list.len() {
        problems.0.push(format!(
            "--{what}: one range, or one of IPv4 and one of IPv6"
        ));
    }
    list.iter().map(IpNet::trunc).collect()
}

/// Reads the flags of `rkube server`.
pub(crate) fn server(args: &cli::Server) -> anyhow::Result<ServerConfig> {
    let mut problems = Problems::default();
    let cluster_cidrs = ranges("cluster-cidr", &args.cluster_cidr, &mut problems);
    let service_cidrs = ranges("service-cidr", &args.service_cidr, &mut problems);
    for pods in &cluster_cidrs {
        for services in &service_cidrs {
            if pods.contains(services) || services.contains(pods) {
                problems.0.push(format!(
                    "--cluster-cidr {pods} and --service-cidr {services} overlap"
                ));
            }
        }
        if pods.addr().is_ipv4() && pods.prefix_len() > 24 {
            problems.0.push(format!(
                "--cluster-cidr {pods} holds no /24, which each node gets"
            ));
        }
    }
    if args.node_monitor_grace_period <= LEASE_PERIOD {
        problems.0.push(format!(
            "--node-monitor-grace-period: nodes speak every {LEASE_PERIOD:?}, so it must be longer"
        ));
    }
    let mut cluster_dns = args.cluster_dns.clone();
    if cluster_dns.is_empty() {
        cluster_dns = service_cidrs
            .iter()
            .filter_map(|net| nth(net, DNS_OFFSET))
            .collect();
    }
    for ip in &cluster_dns {
        if !service_cidrs.iter().any(|net| net.contains(ip)) {
            problems
                .0
                .push(format!("--cluster-dns {ip} is in no --service-cidr"));
        }
    }
    if let Some(token) = &args.token
        && rkube_pki::bootstrap::BootstrapToken::parse(token).is_none()
    {
        problems
            .0
            .push("--token: 6 and 16 characters of a-z and 0-9 with a dot between them".to_owned());
    }
    let config = ServerConfig {
        listen: SocketAddr::new(args.bind_address, args.https_listen_port),
        advertise: args.advertise_address,
        names: args.tls_san.clone(),
        cluster_cidrs,
        service_cidrs,
        cluster_dns,
        cluster_domain: args.cluster_domain.clone(),
        token: args.token.clone(),
        write_kubeconfig: args.write_kubeconfig.clone(),
        node_grace: args.node_monitor_grace_period,
        ended_pods: args.terminated_pod_gc_threshold,
        legacy_tokens: args.legacy_service_account_tokens,
        tolerations: [
            args.default_not_ready_toleration_seconds,
            args.default_unreachable_toleration_seconds,
        ],
        without: args.disable.iter().copied().collect(),
        node: node(&args.node, &mut problems),
    };
    problems.done(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn read(line: &str) -> anyhow::Result<ServerConfig> {
        let words = ["rkube", "server"]
            .into_iter()
            .chain(line.split_whitespace());
        match cli::Cli::try_parse_from(words)?.command {
            cli::Command::Server(args) => server(&args),
            other => anyhow::bail!("{other:?}"),
        }
    }

    #[test]
    fn defaults_are_what_k3s_users_expect() {
        let config = read("--node-name n1").unwrap();
        assert_eq!(config.listen.to_string(), "0.0.0.0:6443");
        assert_eq!(config.cluster_cidrs[0].to_string(), "10.42.0.0/16");
        assert_eq!(config.cluster_dns[0].to_string(), "10.43.0.10");
        assert_eq!(config.api_service_ips()[0].to_string(), "10.43.0.1");
        assert!(config.has(Part::Agent) && config.node.kubelet_port == 10250);
    }

    #[test]
    fn agents_are_told_their_server_once() {
        let parse = |line: &str| {
            let words = ["rkube", "agent"].into_iter().chain(line.split(' '));
            match cli::Cli::try_parse_from(words)?.command {
                cli::Command::Agent(args) => agent(&args),
                other => anyhow::bail!("{other:?}"),
            }
        };
        let config = parse("--server https://a:6443 --node-name n").unwrap();
        assert_eq!(config.access, Access::Token(None));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config");
        let mut content = Kubeconfig {
            server: "https://b:1".into(),
            token: Some("x".into()),
            ..Kubeconfig::default()
        };
        let line = format!("--node-name n --kubeconfig {}", file.display());
        content.write(&file, "c", "u").unwrap();
        let error = parse(&line).unwrap_err().to_string();
        assert!(error.contains("certificate-authority"), "{error}");
        content.authority = "PEM".into();
        content.write(&file, "c", "u").unwrap();
        let config = parse(&line).unwrap();
        assert_eq!(config.server.to_string(), "https://b:1");
        assert!(parse(&format!("{line} --server https://a")).is_err());
        assert!(parse("--node-name n").is_err());
    }

    #[test]
    fn all_that_is_wrong_is_told_before_anything_is_done() {
        let error = read(
            "--node-name UPPER --cluster-cidr 10.43.0.0/16 --node-label x --node-taint a:b \
             --cluster-dns 1.2.3.4 --token abc --node-monitor-grace-period 9s",
        )
        .unwrap_err();
        let BadInput(list) = error.downcast_ref::<BadInput>().unwrap();
        assert_eq!(list.len(), 7, "{list:#?}");
        assert!(read("--node-name n --service-cidr 10.0.0.0/16,10.1.0.0/16").is_err());
        assert!(read("--node-name n --cluster-cidr 10.42.0.0/16,fd42::/56 --service-cidr 10.43.0.0/16,fd43::/112").is_ok());
        assert!(read("--disable nothing").is_err());
    }
}
