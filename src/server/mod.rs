//! `rkube server`: a whole cluster in one process.
//!
//! Order of a start: flags, the root's lock (a supervisor gives way), store
//! and certificates, the API, what every cluster has, controllers, this
//! host's node with the pods that run, proxy, ready. The end is the other way
//! round; pods are left to their keepers.

mod api;
mod asker;
mod certificate;
pub(crate) mod config;
mod dns;
mod join;
pub(crate) mod network;
mod node;
mod renewal;
mod signer;
mod token;
mod writer;

pub(crate) use join::serve as join;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rkube_apiserver::request::User;
use rkube_client::Informers;
use rkube_client::https::ca_fingerprint;
use rkube_controllers::Controllers;
use rkube_engine::instance::Instance;
use rkube_pki::csr::{GROUP_NODES, NODE_USER_PREFIX};
use rkube_pki::resolver::Current;
use rkube_scheduler::Scheduler;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::cli;
use crate::supervisor::{answer, home};
use crate::wire::{Role, socket};
use api::{Api, Places, now_s};
use config::{Part, ServerConfig};
use network::{Network, Wanted};
use node::{RunningNode, Start};

/// Threads for tasks: the API's work is spread, and two are enough for it.
const MAX_WORKER_THREADS: usize = 4;
/// Stack of threads for blocking calls, in bytes.
const BLOCKING_STACK_BYTES: usize = 512 << 10;
/// Most blocking calls at a time; more wait.
const MAX_BLOCKING_THREADS: usize = 64;
/// How long an idle thread stays for the next call.
const BLOCKING_KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Serves until a signal.
pub(crate) fn serve(root: &Path, args: &cli::Server) -> anyhow::Result<()> {
    let config = config::server(args)?;
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

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cpus.clamp(1, MAX_WORKER_THREADS))
        .enable_all()
        .thread_stack_size(BLOCKING_STACK_BYTES)
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .thread_keep_alive(BLOCKING_KEEP_ALIVE)
        .build()
        .context("start the async runtime")
}

/// The signals that end a server.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("handle SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("handle SIGINT")?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn run(
    instance: &Instance,
    config: &ServerConfig,
    listener: std::os::unix::net::UnixListener,
) -> anyhow::Result<()> {
    let mut ends = Ends::new()?;
    let orphans = signal(SignalKind::child()).context("handle SIGCHLD")?;
    listener
        .set_nonblocking(true)
        .context("set the socket non-blocking")?;
    let listener = UnixListener::from_std(listener).context("watch the socket")?;
    let started = tokio::select! {
        started = Cluster::start(instance, config) => started?,
        () = ends.wait() => return Ok(()),
    };
    let address = started.api.server.address();
    tracing::info!(%address, root = %instance.root.display(), "the server is ready");
    match &started.node {
        Some(running) => {
            rkube_task::spawn(home::tidy(running.node.changes()));
            let clients = Arc::new(watch::Sender::new(0_usize));
            answer(listener, &running.node, &clients, orphans, ends.wait()).await;
        }
        None => ends.wait().await,
    }
    tracing::info!("the server ends");
    started.stop().await;
    Ok(())
}

/// Everything that runs.
struct Cluster {
    api: Api,
    scheduler: Option<Scheduler>,
    controllers: Option<Controllers>,
    node: Option<RunningNode>,
    network: Option<Network>,
    /// Renews the node's certificate.
    renewal: Option<tokio::task::JoinHandle<()>>,
    /// Signs until it is dropped.
    _signer: signer::Signer,
}

impl Cluster {
    async fn start(instance: &Instance, config: &ServerConfig) -> anyhow::Result<Self> {
        rkube_task::spawn(home::move_in(instance.cgroup_parent()));
        let places = Places::new(&instance.root, &instance.state_dir());
        let facts = node::facts(
            &config.node,
            config.cluster_dns.clone(),
            &config.cluster_domain,
        );
        let own = config
            .advertise
            .or_else(|| facts.addresses.first().copied());
        let own = own.unwrap_or(IpAddr::from([127, 0, 0, 1]));
        let api = Api::start(config, &places, &facts.addresses).await?;
        let admin = api.client(User::server());
        api.make_first_objects(config, own).await?;
        api.write_admin()?;
        let fingerprint = ca_fingerprint(api.pki.authority().der());
        let given = config.token.as_deref();
        let token = token::ensure(&admin, given, &fingerprint, &places.token)
            .await
            .context("make the token by which nodes join")?;
        tracing::debug!(id = token, "nodes may join");
        let public = std::net::SocketAddr::new(own, api.server.address().port());
        token::publish(&admin, &api, &format!("https://{public}"))
            .await
            .context("publish where the cluster is")?;
        let informers = Informers::new(admin.clone());
        let signer = signer::start(&informers, Arc::clone(&api.pki));
        let controllers = config
            .has(Part::Controllers)
            .then(|| controllers_config(config, &api).map(|c| Controllers::start(&informers, c)))
            .transpose()?;
        let scheduler = config
            .has(Part::Scheduler)
            .then(|| Scheduler::start(&informers, rkube_scheduler::Config::default()));
        let mut cluster = Self {
            api,
            scheduler,
            controllers,
            node: None,
            network: None,
            renewal: None,
            _signer: signer,
        };
        if config.has(Part::Agent) {
            cluster.start_node(instance, config, &informers).await?;
        }
        cluster.api.ready.send_replace(true);
        Ok(cluster)
    }

    async fn start_node(
        &mut self,
        instance: &Instance,
        config: &ServerConfig,
        informers: &Informers,
    ) -> anyhow::Result<()> {
        let name = &config.node.registration.name;
        let facts = node::facts(&config.node, Vec::new(), &config.cluster_domain);
        let pki = &self.api.pki;
        let identity = pki.kubelet_server(name, &facts.addresses, now_s())?;
        let running = RunningNode::start(Start {
            instance,
            role: Role::Server,
            config: &config.node,
            client: self.api.client(User::named(
                &format!("{NODE_USER_PREFIX}{name}"),
                &[GROUP_NODES],
            )),
            informers,
            // The proxy gives this host the address of the DNS.
            cluster_dns: if config.has(Part::Dns) && config.has(Part::Proxy) {
                config.cluster_dns.clone()
            } else {
                Vec::new()
            },
            cluster_domain: config.cluster_domain.clone(),
            cluster_ranges: config.cluster_cidrs.clone(),
            authority: pki.authority().der().clone(),
            certificate: Box::pin(async move { Ok(Arc::new(Current::new(&identity)?)) }),
        })
        .await?;
        self.api
            .connect
            .add_local(name, Arc::new(running.agent.streams().clone()));
        if config.has(Part::Proxy) {
            let wanted = Wanted {
                node: name,
                service_ranges: &config.service_cidrs,
                dns: match config.has(Part::Dns) {
                    true => &config.cluster_dns,
                    false => &[],
                },
                domain: &config.cluster_domain,
            };
            self.network = Some(Network::start(instance, informers, &wanted)?);
        }
        self.renewal = Some(rkube_task::spawn(renewal::own_node(
            Arc::clone(pki),
            name.clone(),
            facts.addresses,
            Arc::clone(&running.certificate),
        )));
        self.node = Some(running);
        Ok(())
    }

    /// Ends everything, what uses others first.
    async fn stop(self) {
        if let Some(renewal) = self.renewal {
            renewal.abort();
        }
        drop(self.network);
        if let Some(scheduler) = self.scheduler {
            scheduler.stop().await;
        }
        if let Some(controllers) = self.controllers {
            controllers.stop().await;
        }
        if let Some(running) = self.node {
            running.node.leave().await;
        }
        self.api.stop().await;
    }
}

fn controllers_config(
    config: &ServerConfig,
    api: &Api,
) -> anyhow::Result<rkube_controllers::Config> {
    let ranges = config
        .cluster_cidrs
        .iter()
        .map(|net| net.to_string().parse());
    Ok(rkube_controllers::Config {
        root_ca_pem: Some(api.pki.authority().pem().to_owned()),
        cluster_cidrs: ranges.collect::<Result<_, _>>()?,
        node_grace: config.node_grace,
        account_tokens: Some(Arc::clone(api.pki.tokens()) as _),
        legacy_account_tokens: config.legacy_tokens,
        ended_pods_max_count: config.ended_pods,
        ..rkube_controllers::Config::default()
    })
}
