//! Follows the API and keeps the table in step: one thread, which sleeps
//! until an informer or the kernel tells of a change.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use rkube_client::{Informer, Informers, ObjectKey, Store};
use rkube_netns::route::{LOOPBACK_INDEX, Requests, RouteSocket};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::compile::compile;
use crate::config::ProxyConfig;
use crate::endpoints::NodeFacts;
use crate::error::Error;
use crate::health::{self, Checks};
use crate::model::Front;
use crate::splice;
use crate::state::State;
use crate::table::Table;
use crate::watch::Watcher;

/// Label of a slice that names its Service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Label of a node that names its zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Index of slices by the key of their Service.
const BY_SERVICE: &str = "proxy/service";
/// How long after a refusal by the kernel everything is made anew.
const RETRY: Duration = Duration::from_secs(1);

/// What the thread has to do.
#[derive(Debug, Default)]
struct Todo {
    services: HashSet<ObjectKey>,
    everything: bool,
    install: bool,
    ready: bool,
    stop: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Shared {
    todo: Mutex<Todo>,
    wake: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Todo> {
        self.todo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, change: impl FnOnce(&mut Todo)) {
        change(&mut self.lock());
        self.wake.notify_one();
    }

    /// Someone else changed the table.
    pub(crate) fn reinstall(&self) {
        self.tell(|todo| todo.install = true);
    }

    /// Waits for work; `None`: the end.
    fn next(&self, retry: bool) -> Option<Todo> {
        let mut todo = self.lock();
        let mut waited = false;
        loop {
            if todo.stop {
                return None;
            }
            let work = todo.everything || todo.install || !todo.services.is_empty();
            if todo.ready && ((work && !retry) || (retry && waited)) {
                todo.install |= retry;
                let ready = true;
                let rest = Todo {
                    ready,
                    ..Todo::default()
                };
                return Some(std::mem::replace(&mut *todo, rest));
            }
            if retry {
                let (guard, _) = self
                    .wake
                    .wait_timeout(todo, RETRY)
                    .unwrap_or_else(PoisonError::into_inner);
                todo = guard;
                waited = true;
            } else {
                todo = self.wake.wait(todo).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// A running proxy. Dropping it stops the work; the table stays, so that
/// Services answer while the next one starts.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    tasks: Vec<AbortHandle>,
    installed: watch::Receiver<u64>,
    answered: Vec<IpAddr>,
    _services: Arc<Informer<Service>>,
    _slices: Arc<Informer<EndpointSlice>>,
    _nodes: Arc<Informer<Node>>,
    _watcher: Option<Watcher>,
}

impl Proxy {
    /// Starts in the calling thread's network namespace and tokio runtime.
    /// What an earlier proxy programmed stays until the API was read.
    ///
    /// # Errors
    /// [`Error::Owned`] if another process is this instance's proxy;
    /// [`Error::Table`], [`Error::Route`], [`Error::Thread`].
    pub fn start(informers: &Informers, config: &ProxyConfig) -> Result<Self, Error> {
        let mut table = Table::open(&config.table, config.facts(), config.own_table)?;
        answer(&config.answered, true)?;
        let shared = Arc::new(Shared::default());
        let watcher = match config.own_table && table.can_be_owned()? {
            true => None,
            false => Some(Watcher::start(&config.table, table.port()?, &shared)?),
        };
        let services = informers.of::<Service>();
        let slices = informers.of::<EndpointSlice>();
        let nodes = informers.of::<Node>();
        slices.add_index(BY_SERVICE, |slice| {
            service_of(slice)
                .map(|key| key.to_string())
                .into_iter()
                .collect()
        });
        let (told, installed) = watch::channel(0);
        let (node_ports, node_ports_now) = watch::channel(BTreeMap::new());
        let (checks, checks_now) = watch::channel(Checks::default());
        let worker = Worker {
            table,
            state: State::default(),
            services: Arc::clone(services.store()),
            slices: Arc::clone(slices.store()),
            node: NodeFacts {
                name: config.node.clone(),
                zone: None,
            },
            nodes: Arc::clone(nodes.store()),
            skip: config.answered.iter().copied().collect(),
            node_ports: BTreeMap::new(),
            health: BTreeMap::new(),
            told,
            tell_node_ports: node_ports,
            tell_checks: checks,
        };
        follow(&shared, &services, &slices, &nodes, &config.node);
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("proxy".to_owned())
            .spawn(move || worker.run(&for_thread))
            .map_err(|source| Error::Thread { source })?;
        let mut tasks = Vec::new();
        let (a, b, c) = (services.clone(), slices.clone(), nodes.clone());
        let when_ready = Arc::clone(&shared);
        let begin = rkube_task::spawn(async move {
            tokio::join!(a.synced(), b.synced(), c.synced());
            when_ready.tell(|todo| {
                todo.ready = true;
                todo.everything = true;
                todo.install = true;
            });
        });
        tasks.push(begin.abort_handle());
        if config.loopback {
            let task = rkube_task::spawn(splice::run(node_ports_now));
            tasks.push(task.abort_handle());
        }
        tasks.push(rkube_task::spawn(health::run(checks_now)).abort_handle());
        Ok(Self {
            shared,
            thread: Some(thread),
            tasks,
            installed,
            answered: config.answered.clone(),
            _services: services,
            _slices: slices,
            _nodes: nodes,
            _watcher: watcher,
        })
    }

    /// Returns once what the API said at the start is programmed.
    pub async fn synced(&self) {
        let mut installed = self.installed.clone();
        // The sender goes only with the thread, when this proxy is dropped.
        let _ = installed.wait_for(|count| *count > 0).await;
    }

    /// How often something was programmed; changes with each time.
    #[must_use]
    pub fn programmed(&self) -> watch::Receiver<u64> {
        self.installed.clone()
    }

    /// Deletes an instance's table, whoever made it; for `rkube reset`.
    ///
    /// # Errors
    /// [`Error::Table`], [`Error::Owned`].
    pub fn reset(config: &ProxyConfig) -> Result<(), Error> {
        Table::open(&config.table, config.facts(), config.own_table)?.delete()?;
        answer(&config.answered, false)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.tell(|todo| todo.stop = true);
        for task in &self.tasks {
            task.abort();
        }
        if let Some(thread) = self.thread.take() {
            // It panicked, or it has ended: both are its end.
            let _ = thread.join();
        }
        if let Err(error) = answer(&self.answered, false) {
            tracing::warn!(%error, "give the cluster's DNS address back");
        }
    }
}

/// Puts addresses on `lo`, or takes them off.
fn answer(addresses: &[IpAddr], on: bool) -> Result<(), Error> {
    if addresses.is_empty() {
        return Ok(());
    }
    let failed = |source| Error::Route {
        what: format!("{addresses:?} on lo"),
        source,
    };
    let mut route = RouteSocket::open().map_err(failed)?;
    for address in addresses {
        let mut requests = Requests::new();
        if on {
            requests.add_address(LOOPBACK_INDEX, *address);
        } else {
            requests.delete_address(LOOPBACK_INDEX, (*address).into());
        }
        match route.run(&requests) {
            Err(error) if !on && error.errno() == Some(rustix::io::Errno::ADDRNOTAVAIL) => {}
            other => other.map(drop).map_err(failed)?,
        }
    }
    Ok(())
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let labels = slice.metadata.labels.as_ref()?;
    let name = labels.get(SERVICE_NAME_LABEL)?;
    Some(ObjectKey::new(slice.metadata.namespace.as_deref()?, name))
}

fn follow(
    shared: &Arc<Shared>,
    services: &Informer<Service>,
    slices: &Informer<EndpointSlice>,
    nodes: &Informer<Node>,
    name: &str,
) {
    // Handlers outlive the proxy with their informer: they hold no share.
    let weak = Arc::downgrade(shared);
    services.on_change(move |change| {
        if let Some(shared) = weak.upgrade() {
            let key = ObjectKey::of(&**change.object());
            shared.tell(|todo| todo.services.extend([key]));
        }
    });
    let weak = Arc::downgrade(shared);
    slices.on_change(move |change| {
        let Some(shared) = weak.upgrade() else { return };
        let mut keys: Vec<ObjectKey> = service_of(change.object()).into_iter().collect();
        if let rkube_client::Change::Modified(old, _) = change {
            keys.extend(service_of(old));
        }
        shared.tell(|todo| todo.services.extend(keys));
    });
    let weak = Arc::downgrade(shared);
    let name = name.to_owned();
    nodes.on_change(move |change| {
        if let Some(shared) = weak.upgrade()
            && change.object().metadata.name.as_deref() == Some(&*name)
        {
            shared.tell(|todo| todo.everything = true);
        }
    });
}

/// The thread's own.
struct Worker {
    table: Table,
    state: State,
    services: Arc<Store<Service>>,
    slices: Arc<Store<EndpointSlice>>,
    nodes: Arc<Store<Node>>,
    node: NodeFacts,
    skip: BTreeSet<IpAddr>,
    node_ports: BTreeMap<ObjectKey, BTreeMap<Front, SocketAddr>>,
    health: BTreeMap<ObjectKey, (u16, usize)>,
    told: watch::Sender<u64>,
    tell_node_ports: watch::Sender<BTreeMap<Front, SocketAddr>>,
    tell_checks: watch::Sender<Checks>,
}

impl Worker {
    fn run(mut self, shared: &Shared) {
        let mut retry = false;
        while let Some(todo) = shared.next(retry) {
            retry = match self.work(todo) {
                Ok(()) => false,
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "program Services");
                    true
                }
            };
        }
    }

    fn work(&mut self, todo: Todo) -> Result<(), Error> {
        let mut services = todo.services;
        if todo.everything && self.learn_node() || todo.install {
            let known = self.services.all();
            services.extend(known.iter().map(|service| ObjectKey::of(&**service)));
        }
        let mut loopback = false;
        for key in &services {
            loopback |= self.compile(key);
        }
        if loopback {
            self.tell_listeners();
        }
        let delta = self.state.take_delta();
        let used = match self.table.is_crowded() {
            true => self.state.choices().len(),
            false => usize::MAX,
        };
        if todo.install || self.table.has_too_many_spare_chains(used) {
            self.table.install(&self.state.all())?;
            self.told.send_modify(|count| *count += 1);
        } else if !delta.is_empty() {
            tracing::debug!(
                services = services.len(),
                remove = delta.remove.len(),
                add = delta.add.len(),
                "Services changed"
            );
            self.table.apply(&delta)?;
            self.told.send_modify(|count| *count += 1);
        }
        Ok(())
    }

    /// Whether something about the node changed that Services depend on.
    fn learn_node(&mut self) -> bool {
        let node = self.nodes.get(&ObjectKey::new("", &self.node.name));
        let zone = node.and_then(|node| node.metadata.labels.as_ref()?.get(ZONE_LABEL).cloned());
        let changed = zone != self.node.zone;
        self.node.zone = zone;
        changed
    }

    /// Compiles one Service; answers whether listeners may be concerned.
    fn compile(&mut self, key: &ObjectKey) -> bool {
        let compiled = match self.services.get(key) {
            None => crate::compile::Compiled::default(),
            Some(service) => {
                let slices = self.slices.by_index(BY_SERVICE, &key.to_string());
                let slices: Vec<&EndpointSlice> = slices.iter().map(|slice| &**slice).collect();
                compile(&service, &slices, &self.node, &self.skip)
            }
        };
        self.state.set(key, &compiled.entries);
        let before = (self.node_ports.remove(key), self.health.remove(key));
        let now = (compiled.node_ports, compiled.health);
        let same = before.0.as_ref().unwrap_or(&BTreeMap::new()) == &now.0 && before.1 == now.1;
        if !now.0.is_empty() {
            self.node_ports.insert(key.clone(), now.0);
        }
        if let Some(health) = now.1 {
            self.health.insert(key.clone(), health);
        }
        !same
    }

    fn tell_listeners(&self) {
        let ports = self.node_ports.values().flatten();
        let ports = ports.map(|(front, target)| (*front, *target)).collect();
        self.tell_node_ports.send_replace(ports);
        let checks = self.health.iter();
        let checks = checks.map(|(key, (port, count))| (*port, (key.clone(), *count)));
        self.tell_checks.send_replace(checks.collect());
    }
}
