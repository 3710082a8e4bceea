//! The node of a server: registered, with its pod range, its workers and its
//! own HTTPS port.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::api::core::v1::{Node as NodeObject, Service};
use rkube_agent::http::{NodeServer, NodeServerConfig};
use rkube_agent::node::NodeKeeper;
use rkube_agent::node::facts::HostFacts;
use rkube_agent::node::object::{Fixed, Now};
use rkube_agent::services::ServiceVariables;
use rkube_agent::{Agent, AgentConfig};
use rkube_client::{BoxFuture, Client, Informers, ListParams, WatchParams};
use rkube_engine::instance::Instance;
use rkube_kubelet::node::NodeFacts;
use rkube_kubelet::time::Clock;
use rkube_pki::resolver::Current;
use rkube_pki::verify;
use rustls_pki_types::CertificateDer;

use super::api::now_s;
use super::config::NodeConfig;
use crate::supervisor::node::{Node, Setting};
use crate::wire::Role;

/// How long a node waits for its pod range before it uses the host's own.
const RANGE_PATIENCE: Duration = Duration::from_secs(10);
/// Version of the API that the node speaks, for its object.
const KUBERNETES_VERSION: &str = "v1.36.0";
/// The user by whose certificate the API server proves itself to a node.
const API_SERVER_USER: &str = "kube-apiserver-kubelet-client";

/// What a node needs from whoever starts it.
pub(crate) struct Start<'a> {
    pub(crate) instance: &'a Instance,
    pub(crate) role: Role,
    pub(crate) config: &'a NodeConfig,
    pub(crate) client: Client,
    pub(crate) informers: &'a Informers,
    pub(crate) cluster_dns: Vec<IpAddr>,
    pub(crate) cluster_domain: String,
    /// Ranges of the pods of all nodes together.
    pub(crate) cluster_ranges: Vec<IpNet>,
    /// Whose clients the node's own API lets in.
    pub(crate) authority: CertificateDer<'static>,
    /// Gets the node's own certificate, once the node's addresses are known
    /// to the API.
    pub(crate) certificate: BoxFuture<'a, anyhow::Result<Arc<Current>>>,
}

/// A running node.
pub(crate) struct RunningNode {
    pub(crate) node: Arc<Node>,
    pub(crate) agent: Arc<Agent>,
    /// The certificate of the node's own API.
    pub(crate) certificate: Arc<Current>,
    _server: NodeServer,
}

/// The host as this node's pods see it.
pub(crate) fn facts(config: &NodeConfig, dns: Vec<IpAddr>, domain: &str) -> NodeFacts {
    let mut facts = NodeFacts::of_host();
    facts.name.clone_from(&config.registration.name);
    if !config.ips.is_empty() {
        facts.addresses.clone_from(&config.ips);
    }
    facts.cluster_dns = dns;
    facts.cluster_domain = domain.to_owned();
    facts
}

/// What does not change about the node.
pub(crate) fn fixed(config: &NodeConfig, facts: &NodeFacts, instance: &Instance) -> Fixed {
    let version = env!("CARGO_PKG_VERSION");
    Fixed {
        host: HostFacts::of_host(facts, &instance.state_dir()),
        max_pods: config.max_pods,
        kubelet_port: config.kubelet_port,
        kubelet_version: format!("{KUBERNETES_VERSION}+rkube{version}"),
        runtime_version: format!("rkube://{version}"),
    }
}

impl RunningNode {
    /// Registers the node, waits for its pod range, takes its pods over.
    pub(crate) async fn start(start: Start<'_>) -> anyhow::Result<Self> {
        let facts = facts(start.config, start.cluster_dns, &start.cluster_domain);
        let fixed = fixed(start.config, &facts, start.instance);
        let registration = start.config.registration.clone();
        let keeper = NodeKeeper::new(
            start.client.clone(),
            registration.clone(),
            fixed.clone(),
            Clock::system(),
            Box::new(Now::default),
            Arc::default(),
        );
        let object = keeper.registered().await;
        let pod_ranges = ranges(&start.client, &registration.name, object).await;
        let services = start.informers.of::<Service>();
        let setting = Setting {
            role: start.role,
            pod_ranges,
            cluster_ranges: start.cluster_ranges,
            facts,
            surroundings: Arc::new(ServiceVariables::new(Arc::clone(&services))),
        };
        let node = Arc::new(Node::open(start.instance, setting).await?);
        // Pods learn of Services when they start.
        services.synced().await;
        let config = AgentConfig {
            client: start.client,
            registration,
            fixed,
            clock: Clock::system(),
        };
        let (agent, _) = Agent::start(config, Arc::clone(&node.engine), node.manager.clone())
            .await
            .context("start the node agent")?;
        let agent = Arc::new(agent);
        let authority = start.authority.clone();
        let certificate = start
            .certificate
            .await
            .context("get the node's certificate")?;
        let server = NodeServer::start(
            NodeServerConfig {
                listen: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), start.config.kubelet_port),
                tls: Arc::new(rkube_apiserver::authn::tls::server(Arc::clone(
                    &certificate,
                ))?),
                admit: Arc::new(move |chain| {
                    verify::client(chain, &authority, now_s()).is_ok_and(|subject| {
                        subject.user == API_SERVER_USER
                            || subject.groups.iter().any(|g| g == "system:masters")
                    })
                }),
            },
            Arc::clone(&agent),
        )
        .await?;
        Ok(Self {
            node,
            agent,
            certificate,
            _server: server,
        })
    }
}

type Ranges = (Ipv4Net, Option<Ipv6Net>);

/// The pod range that the node is given; `None` where nobody gives one.
async fn ranges(client: &Client, name: &str, object: NodeObject) -> Option<Ranges> {
    if let Some(ranges) = read_ranges(&object) {
        return Some(ranges);
    }
    let told = tokio::time::timeout(RANGE_PATIENCE, wait_for_ranges(client, name)).await;
    if told.is_err() {
        tracing::warn!(
            node = name,
            "nobody gives the node a pod range: it uses its own"
        );
    }
    told.ok()
}

async fn wait_for_ranges(client: &Client, name: &str) -> Ranges {
    let api = client.all::<NodeObject>();
    let fields = Some(format!("metadata.name={name}"));
    loop {
        let params = ListParams {
            fields: fields.clone(),
            ..ListParams::default()
        };
        if let Ok(list) = api.list(&params).await {
            if let Some(ranges) = list.items.iter().find_map(read_ranges) {
                return ranges;
            }
            let watch = WatchParams {
                fields: fields.clone(),
                resource_version: list.resource_version().to_owned(),
                ..WatchParams::default()
            };
            if let Ok(mut watch) = api.watch(&watch).await {
                while let Some(Ok(event)) = watch.next().await {
                    use rkube_client::Event;
                    if let Event::Added(node) | Event::Modified(node) = event
                        && let Some(ranges) = read_ranges(&node)
                    {
                        return ranges;
                    }
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// `spec.podCIDRs`, or `spec.podCIDR`.
fn read_ranges(node: &NodeObject) -> Option<Ranges> {
    let spec = node.spec.as_ref()?;
    let single = spec.pod_cidr.iter();
    let all: Vec<&String> = spec.pod_cidrs.iter().flatten().chain(single).collect();
    let v4 = all.iter().find_map(|c| c.parse::<Ipv4Net>().ok())?;
    let v6 = all.iter().find_map(|c| c.parse::<Ipv6Net>().ok());
    Some((v4, v6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_ranges_of_one_or_two_families() {
        let node = |spec: serde_json::Value| -> NodeObject {
            serde_json::from_value(serde_json::json!({"spec": spec})).unwrap()
        };
        let both = serde_json::json!({"podCIDR": "10.42.1.0/24",
            "podCIDRs": ["10.42.1.0/24", "fd42:0:0:1::/64"]});
        let (v4, v6) = read_ranges(&node(both)).unwrap();
        assert_eq!(v4.to_string(), "10.42.1.0/24");
        assert_eq!(v6.unwrap().to_string(), "fd42:0:0:1::/64");
        let one = serde_json::json!({"podCIDR": "10.42.1.0/24"});
        assert!(read_ranges(&node(one)).unwrap().1.is_none());
        assert!(read_ranges(&node(serde_json::json!({}))).is_none());
    }
}
