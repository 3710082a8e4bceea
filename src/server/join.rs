//! `rkube agent`: a node that joins a server.
//!
//! ```text
//! token ─► TLS, the authority known by the token's fingerprint
//!       ─► certificate request as system:bootstrap:<id> ─► own certificate
//!       ─► node, pod range, workers, serving certificate, proxy
//! ```
//!
//! Authority, certificate and key are kept; the token is needed once. A
//! kubeconfig may stand in for server and token: with a bootstrap token in
//! it, the way is the same; any other identity in it is used as it is, at any
//! Kubernetes API server.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Service;
use rkube_client::https::{Endpoint, Identity, Roots, hosts_file};
use rkube_client::{Client, HttpsConfig, HttpsTransport, Informers};
use rkube_engine::instance::Instance;
use rkube_pki::kubeconfig::Kubeconfig;
use rkube_pki::{bootstrap, csr, files};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::certificate::{self, CLIENT_SIGNER, Kept, pem_of, signed};
use super::config::{self, Access, AgentConfig};
use super::network::{Network, Wanted};
use super::node::{RunningNode, Start};
use super::{Ends, runtime, writer};
use crate::cli;
use crate::supervisor::{answer, home};
use crate::wire::{Role, socket};

/// How long a server that answers is asked for its cluster DNS.
const DNS_PATIENCE: Duration = Duration::from_secs(5);
/// How long after a failure it is asked again.
const DNS_RETRY: Duration = Duration::from_millis(500);

/// Serves until a signal.
pub(crate) fn serve(root: &Path, args: &cli::Agent) -> anyhow::Result<()> {
    let config = config::agent(args)?;
    rkube_sys::signal::ignore_sigpipe();
    let mut instance = Instance::open(root)?;
    let locks = writer::take(&instance)?;
    home::ask_systemd(&mut instance);
    let run_dir = instance.run_dir();
    let runtime = runtime()?;
    let listener =
        socket::listen(&run_dir).with_context(|| format!("listen in {}", run_dir.display()))?;
    drop(locks.start);
    let door = listener.try_clone().context("duplicate the socket")?;
    let ended = runtime.block_on(run(&instance, &config, listener));
    let end = crate::supervisor::locks::start(&run_dir)?;
    drop(door);
    socket::remove_socket(&run_dir)
        .with_context(|| format!("remove the socket in {}", run_dir.display()))?;
    runtime.shutdown_background();
    drop(locks.writer);
    drop(end);
    ended
}

async fn run(
    instance: &Instance,
    config: &AgentConfig,
    listener: std::os::unix::net::UnixListener,
) -> anyhow::Result<()> {
    let mut ends = Ends::new()?;
    let orphans = signal(SignalKind::child()).context("handle SIGCHLD")?;
    listener
        .set_nonblocking(true)
        .context("set the socket non-blocking")?;
    let listener = UnixListener::from_std(listener).context("watch the socket")?;
    rkube_task::spawn(home::move_in(instance.cgroup_parent()));
    let Started {
        running,
        network,
        renewal,
    } = tokio::select! {
        started = start(instance, config) => started?,
        () = ends.wait() => return Ok(()),
    };
    tracing::info!(node = %config.node.registration.name, "the agent is ready");
    rkube_task::spawn(home::tidy(running.node.changes()));
    let clients = Arc::new(watch::Sender::new(0_usize));
    answer(listener, &running.node, &clients, orphans, ends.wait()).await;
    renewal.abort();
    drop(network);
    running.node.leave().await;
    Ok(())
}

/// Everything that runs.
struct Started {
    running: RunningNode,
    network: Option<Network>,
    renewal: tokio::task::JoinHandle<()>,
}

fn transport(
    config: &AgentConfig,
    roots: Roots,
    identity: Identity,
) -> anyhow::Result<HttpsTransport> {
    Ok(HttpsTransport::new(HttpsConfig {
        endpoint: config.server.clone(),
        roots,
        identity,
        resolve: hosts_file(),
        user_agent: format!("rkube-agent/{}", env!("CARGO_PKG_VERSION")),
    })?)
}

/// How a server is reached for good.
struct Reached {
    /// Whose certificates are believed, in PEM.
    authority: String,
    /// Who asks.
    identity: Identity,
    /// The node's own certificate, if it is that.
    kept: Option<Kept>,
}

impl Reached {
    fn by(kept: Kept) -> anyhow::Result<Self> {
        let authority = files::read(&kept.authority)?.context("the server's authority is lost")?;
        Ok(Self {
            authority,
            identity: Identity::CertificateFiles {
                certificate: kept.identity.clone(),
                key: kept.identity.clone(),
            },
            kept: Some(kept),
        })
    }

    /// With what a kubeconfig holds, as it is.
    fn with(kubeconfig: &Kubeconfig) -> Self {
        let identity = match (
            &kubeconfig.client,
            &kubeconfig.token_file,
            &kubeconfig.token,
        ) {
            (Some((certificate, key)), _, _) => Identity::Certificate {
                certificate: certificate.clone().into_bytes(),
                key: key.clone().into_bytes(),
            },
            (None, Some(path), _) => Identity::TokenFile(path.clone()),
            (None, None, Some(token)) => Identity::Token(token.clone()),
            (None, None, None) => Identity::Anonymous,
        };
        Self {
            authority: kubeconfig.authority.clone(),
            identity,
            kept: None,
        }
    }
}

/// Joins, where that was not done before.
async fn reach(config: &AgentConfig, kept: Kept) -> anyhow::Result<Reached> {
    match &config.access {
        Access::Token(token) => {
            if !kept.is_good() {
                let token = token
                    .clone()
                    .context("no certificate is kept, and no --token is given")?;
                let found = Arc::new(Mutex::new(None));
                let roots = Roots::Fingerprint {
                    sha256: token.fingerprint,
                    found: Arc::clone(&found),
                };
                let signed = ask(config, roots, token.token).await?;
                let authority = found.lock().unwrap_or_else(PoisonError::into_inner).take();
                let der = authority.context("the server has not shown its authority")?;
                kept.keep(&pem_of(&der), &signed)?;
            }
            Reached::by(kept)
        }
        Access::Kubeconfig(kubeconfig) => {
            let token = kubeconfig.token.as_deref();
            let Some(token) = token.and_then(bootstrap::BootstrapToken::parse) else {
                return Ok(Reached::with(kubeconfig));
            };
            if !kept.is_good() {
                let roots = Roots::Pem(kubeconfig.authority.clone().into_bytes());
                let signed = ask(config, roots, token.reveal()).await?;
                kept.keep(&kubeconfig.authority, &signed)?;
            }
            Reached::by(kept)
        }
    }
}

/// Asks for the node's client certificate by a bootstrap token.
async fn ask(
    config: &AgentConfig,
    roots: Roots,
    token: String,
) -> anyhow::Result<rkube_pki::Identity> {
    let transport = transport(config, roots, Identity::Token(token))?;
    let client = Client::new(Arc::new(transport));
    let request = csr::node_request(&config.node.registration.name)?;
    let certificate = signed(&client, &request.csr, CLIENT_SIGNER, "client auth").await?;
    Ok(rkube_pki::Identity {
        certificate,
        key: request.key,
    })
}

async fn start(instance: &Instance, config: &AgentConfig) -> anyhow::Result<Started> {
    let reached = reach(config, Kept::new(instance))
        .await
        .with_context(|| format!("join {}", config.server))?;
    let Reached {
        authority,
        identity,
        kept,
    } = reached;
    let roots = Roots::Pem(authority.clone().into_bytes());
    let client = Client::new(Arc::new(transport(config, roots, identity)?));
    let informers = Informers::new(client.clone());
    let name = &config.node.registration.name;
    let authority = CertificateDer::from_pem_slice(authority.as_bytes())
        .context("read the server's authority")?;
    // The proxy gives this host the address of the DNS.
    let cluster_dns = match config.proxy && config.dns {
        true => cluster_dns(&client).await,
        false => Vec::new(),
    };
    let running = RunningNode::start(Start {
        instance,
        role: Role::Agent,
        config: &config.node,
        client: client.clone(),
        informers: &informers,
        cluster_dns: cluster_dns.clone(),
        cluster_domain: config.cluster_domain.clone(),
        cluster_ranges: config.cluster_cidrs.clone(),
        authority,
        certificate: Box::pin(certificate::serving(&client, name, kept.is_some())),
    })
    .await?;
    let mut network = None;
    if config.proxy {
        let wanted = Wanted {
            node: name,
            service_ranges: &config.service_cidrs,
            dns: &cluster_dns,
            domain: &config.cluster_domain,
        };
        network = Some(Network::start(instance, &informers, &wanted)?);
    }
    let current = Arc::clone(&running.certificate);
    let renewal = certificate::renew(client, kept, name.clone(), current);
    Ok(Started {
        running,
        network,
        renewal: rkube_task::spawn(renewal),
    })
}

/// The address of the Service `kube-dns`, where the cluster has one. It is
/// asked for until the server answers: an agent may start first.
async fn cluster_dns(client: &Client) -> Vec<IpAddr> {
    let services = client.namespaced::<Service>("kube-system");
    let mut waited = Duration::ZERO;
    let spec = loop {
        match services.get_opt("kube-dns").await {
            Ok(Some(service)) => break service.spec,
            Ok(None) if waited >= DNS_PATIENCE => break None,
            Ok(None) => waited += DNS_RETRY,
            Err(error) => tracing::warn!(%error, "look for the cluster DNS"),
        }
        tokio::time::sleep(DNS_RETRY).await;
    };
    let spec = spec.unwrap_or_default();
    let all = spec
        .cluster_ips
        .into_iter()
        .flatten()
        .chain(spec.cluster_ip);
    let mut ips: Vec<IpAddr> = all.filter_map(|ip| ip.parse().ok()).collect();
    ips.sort_unstable();
    ips.dedup();
    ips
}

/// Where the server is.
pub(super) fn endpoint(url: &str) -> Result<Endpoint, String> {
    Endpoint::parse(url).map_err(|e| e.to_string())
}
