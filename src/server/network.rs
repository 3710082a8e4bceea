//! What joins a node's pods to Services, names and the pods of other nodes.

use std::net::IpAddr;

use anyhow::Context;
use ipnet::IpNet;
use rkube_client::Informers;
use rkube_engine::instance::Instance;
use rkube_proxy::routes::Routes;
use rkube_proxy::{Proxy, ProxyConfig};

use super::dns::{self, ClusterDns};

/// What is wanted of it.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// The node's name.
    pub(super) node: &'a str,
    /// Ranges of Services' addresses.
    pub(super) service_ranges: &'a [IpNet],
    /// Addresses of the cluster DNS; none: it is not served here.
    pub(super) dns: &'a [IpAddr],
    /// Domain of cluster names.
    pub(super) domain: &'a str,
}

/// Runs until it is dropped, the DNS first: its addresses are the proxy's.
#[derive(Debug)]
pub(super) struct Network {
    _dns: Option<ClusterDns>,
    _proxy: Proxy,
    _routes: Routes,
}

impl Network {
    /// Starts all of it, in this thread's network namespace.
    pub(super) fn start(
        instance: &Instance,
        informers: &Informers,
        wanted: &Wanted<'_>,
    ) -> anyhow::Result<Self> {
        let iid = rkube_netns::Iid::parse(&instance.iid)?;
        let mut config = ProxyConfig::new(iid, &instance.table(), wanted.node);
        config.service_ranges = wanted.service_ranges.to_vec();
        config.answered = wanted.dns.to_vec();
        let proxy = Proxy::start(informers, &config).context("start the Service proxy")?;
        let routes = Routes::start(informers, iid, wanted.node)
            .context("start the routes to other nodes' pods")?;
        let dns = (!wanted.dns.is_empty())
            .then(|| dns::start(informers, wanted.dns, wanted.domain))
            .transpose()?;
        Ok(Self {
            _dns: dns,
            _proxy: proxy,
            _routes: routes,
        })
    }
}

/// Removes what a server or agent of this instance left in the kernel.
pub(crate) fn reset(instance: &Instance) -> anyhow::Result<()> {
    let iid = rkube_netns::Iid::parse(&instance.iid)?;
    let config = ProxyConfig::new(iid, &instance.table(), "");
    // A kernel without nf_tables has no table of ours.
    if rkube_netns::has_nf_tables() {
        Proxy::reset(&config).context("remove the Service proxy's table")?;
    }
    Routes::reset(iid).context("remove the routes to other nodes' pods")
}
