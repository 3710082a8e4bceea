//! The control plane: store, certificates, API server.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use k8s_openapi::api::core::v1::Service;
use rkube_apiserver::authn::tls;
use rkube_apiserver::bootstrap;
use rkube_apiserver::connect::Connect;
use rkube_apiserver::engine::served_by_default;
use rkube_apiserver::http::{Check, Checks, Pages, Server, ServerConfig as HttpConfig};
use rkube_apiserver::objects::Objects;
use rkube_apiserver::plugins::DefaultTolerationSeconds;
use rkube_apiserver::request::User;
use rkube_apiserver::security;
use rkube_apiserver::services::{ServiceAllocator, ServicesConfig};
use rkube_apiserver::streams::{KubeletClient, NodeConnector};
use rkube_apiserver::{Config as EngineConfig, Engine, InProcess};
use rkube_client::Client;
use rkube_pki::resolver::Current;
use rkube_pki::{Pki, ServerNames};
use rkube_store::{Embedded, Options};
use serde_json::json;
use tokio::sync::watch;

use super::config::{Part, ServerConfig};
use super::renewal::{Renewal, with_authority};

/// Seconds since 1970.
pub(crate) fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// A running control plane.
pub(crate) struct Api {
    pub(crate) engine: Engine,
    pub(crate) pki: Arc<Pki>,
    pub(crate) server: Server,
    pub(crate) connect: Arc<NodeConnector>,
    /// Set once the rest of the cluster runs.
    pub(crate) ready: watch::Sender<bool>,
    /// The administrator's kubeconfigs, and the server that they name.
    admin: (Vec<PathBuf>, String),
    renewal: tokio::task::JoinHandle<()>,
}

/// Where things of the control plane lie.
pub(crate) struct Places {
    state: PathBuf,
    /// The administrator's kubeconfig.
    pub(crate) admin: PathBuf,
    /// The token by which nodes join.
    pub(crate) token: PathBuf,
}

impl Places {
    pub(crate) fn new(root: &Path, state: &Path) -> Self {
        Self {
            state: state.to_owned(),
            admin: root.join("etc/rkube/admin.conf"),
            token: state.join("token"),
        }
    }
}

impl Api {
    /// Opens the store and listens.
    pub(crate) async fn start(
        config: &ServerConfig,
        places: &Places,
        addresses: &[IpAddr],
    ) -> anyhow::Result<Self> {
        let (store_dir, pki_dir) = (places.state.join("store"), places.state.join("pki"));
        let opened = rkube_task::spawn_blocking(move || {
            let store = Embedded::open(&store_dir, Options::default())
                .with_context(|| format!("open the store {}", store_dir.display()))?;
            let pki = Pki::open(&pki_dir, now_s())
                .with_context(|| format!("open the certificates in {}", pki_dir.display()))?;
            anyhow::Ok((store, pki))
        });
        let (store, pki) = opened.await.context("open the store")??;
        let pki = Arc::new(pki);
        let store = Arc::new(store);
        let identity = pki.kubelet_client(now_s())?;
        let kubelets_end = identity.not_after()?;
        let kubelets = KubeletClient::new(&identity, pki.authority().pem())
            .context("prepare to reach other nodes")?;
        let kubelets = Arc::new(kubelets);
        let connect = Arc::new(NodeConnector::new(Some(Arc::clone(&kubelets))));
        let as_hook: Arc<dyn Connect> = connect.clone();
        let objects = Objects::new(store.clone());
        let security =
            security::assemble(&objects, &pki, &as_hook).context("prepare to reach pods")?;
        let allocator = ServiceAllocator::new(&services(config))?;
        let [not_ready, unreachable] = config.tolerations;
        let engine = Engine::new(EngineConfig {
            store,
            authorize: security.authorize,
            admission: security
                .admission
                .with_instead(Arc::new(DefaultTolerationSeconds {
                    not_ready,
                    unreachable,
                }))
                .with(Arc::new(super::asker::Asker))
                .with(Arc::new(allocator)),
            hooks: security.hooks,
            served: served_by_default(),
        });
        let names = names(config, addresses);
        let identity = with_authority(&pki, pki.server(&names, now_s())?);
        let current = Arc::new(Current::new(&identity)?);
        let (ready, readiness) = watch::channel(false);
        let check = Check::ready("cluster", move || match *readiness.borrow() {
            true => Ok(()),
            false => Err("the cluster's parts are starting".to_owned()),
        });
        let server = Server::start(
            engine.clone(),
            HttpConfig {
                listen: config.listen,
                tls: Arc::new(tls::server(Arc::clone(&current))?),
                authenticate: security.authenticate,
                checks: Checks(vec![check]),
                pages: Pages::new(),
            },
        )
        .await?;
        let renewal = Renewal {
            pki: Arc::clone(&pki),
            names,
            current,
            kubelets,
            kubelets_end,
            admin: admin(config, places, server.address().port()),
        };
        let admin = renewal.admin.clone();
        let renewal = rkube_task::spawn(renewal.run());
        Ok(Self {
            admin,
            engine,
            pki,
            server,
            connect,
            ready,
            renewal,
        })
    }

    /// Makes what every cluster has from its first moment.
    pub(crate) async fn make_first_objects(
        &self,
        config: &ServerConfig,
        own: IpAddr,
    ) -> anyhow::Result<()> {
        let service_ip = config.api_service_ips().first().copied();
        let cluster = bootstrap::Cluster {
            service_ip: service_ip.context("the Service range has no address")?,
            address: own,
            port: self.server.address().port(),
            authority: self.pki.authority().pem().to_owned(),
        };
        let made = bootstrap::run(&self.engine, &cluster).await;
        made.map_err(|status| anyhow::anyhow!("make what every cluster has: {}", status.message))?;
        if config.has(Part::Dns) && !config.cluster_dns.is_empty() {
            self.make_dns_service(&config.cluster_dns).await?;
        }
        Ok(())
    }

    /// The Service that tells where the cluster DNS is; each node answers
    /// there itself.
    async fn make_dns_service(&self, ips: &[IpAddr]) -> anyhow::Result<()> {
        let service = json!({
            "metadata": {
                "name": "kube-dns",
                "labels": {
                    "k8s-app": "kube-dns",
                    "kubernetes.io/cluster-service": "true",
                    "kubernetes.io/name": "CoreDNS",
                },
            },
            "spec": {
                "clusterIP": ips.first(),
                "clusterIPs": ips,
                "ipFamilyPolicy": match ips.len() {
                    1 => "SingleStack",
                    _ => "RequireDualStack",
                },
                "ports": [
                    {"name": "dns", "port": 53, "protocol": "UDP"},
                    {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
                ],
            },
        });
        let services = self
            .client(User::server())
            .namespaced::<Service>("kube-system");
        match services.create(&service).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_already_exists() => Ok(()),
            Err(error) => Err(error).context("make the Service of the cluster DNS"),
        }
    }

    /// A client in this process.
    pub(crate) fn client(&self, user: User) -> Client {
        Client::new(Arc::new(InProcess::new(self.engine.clone(), user)))
    }

    /// Ends it: no more requests, then the store.
    pub(crate) async fn stop(self) {
        self.renewal.abort();
        self.server.stop().await;
    }

    /// Writes the administrator's kubeconfig.
    pub(crate) fn write_admin(&self) -> anyhow::Result<()> {
        let (paths, url) = &self.admin;
        for path in paths {
            self.pki
                .write_admin(path, url, now_s())
                .with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Where the administrator's kubeconfigs are written, and what they name: an
/// address that answers on this host.
fn admin(config: &ServerConfig, places: &Places, port: u16) -> (Vec<PathBuf>, String) {
    let listen = config.listen.ip();
    let address = match config.advertise {
        Some(ip) => ip,
        None if listen.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        None => listen,
    };
    let paths = [Some(&places.admin), config.write_kubeconfig.as_ref()];
    let paths = paths.into_iter().flatten().cloned().collect();
    let address = std::net::SocketAddr::new(address, port);
    (paths, format!("https://{address}"))
}

/// What Services get.
fn services(config: &ServerConfig) -> ServicesConfig {
    let ranges = config.service_cidrs.iter();
    ServicesConfig {
        ranges: ranges.map(|n| (n.addr(), n.prefix_len())).collect(),
        ..ServicesConfig::default()
    }
}

fn names(config: &ServerConfig, addresses: &[IpAddr]) -> ServerNames {
    let mut ips: Vec<IpAddr> = addresses.to_vec();
    ips.extend(config.api_service_ips());
    ips.extend(config.advertise);
    if !config.listen.ip().is_unspecified() {
        ips.push(config.listen.ip());
    }
    let mut dns = vec![config.node.registration.name.clone()];
    for name in &config.names {
        match name.parse() {
            Ok(ip) => ips.push(ip),
            Err(_) => dns.push(name.clone()),
        }
    }
    ServerNames {
        dns,
        ips,
        domain: config.cluster_domain.clone(),
    }
}
