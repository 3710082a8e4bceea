//! The engine: what it holds, and how things that happen find their way.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, SystemTime};

use rkube_cgroup::{CgroupPath, Hierarchies};
use rkube_image::pull::Puller;
use rkube_image::{Snapshots, Store};
use rkube_keeper::protocol::{Kind, ProcessStatus, Request};
use rkube_runtime::program::Program;

use crate::api::{ContainerId, Event, Exit};
use crate::error::{Error, OnFile, Result};
use crate::exec::ExecEnd;
use crate::instance::Instance;
use crate::link::{Link, Reader, Told, lock};
use crate::oom::Ooms;
use crate::orphan::Family;
use crate::pressure::Alarms;
use crate::proc::Held;
use crate::record::{ContainerRecord, Records, SandboxRecord, make_private_dir};

/// Size at which a container's log is rotated, in bytes (the kubelet's
/// default).
pub const LOG_MAX_BYTES: u64 = 10 << 20;
/// Log files of one container that are kept (the kubelet's default).
pub const LOG_MAX_FILES: u32 = 5;
/// How long a removal waits for killed processes to be gone.
pub(crate) const GONE_LIMIT: Duration = Duration::from_secs(10);

/// How an engine is opened.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Directories and names.
    pub instance: Instance,
    /// Program and arguments that start a writer for this root; run by a
    /// keeper that has news and nobody to tell.
    pub writer: Vec<OsString>,
    /// Addresses of pods instead of the instance's own ranges.
    pub pod_ranges: Option<(ipnet::Ipv4Net, Option<ipnet::Ipv6Net>)>,
    /// Ranges of the pods of all nodes together: pods reach these under their
    /// own addresses.
    pub cluster_ranges: Vec<ipnet::IpNet>,
}

/// Where events go; called from the engine's reader thread, must not block.
pub type Sink = Box<dyn Fn(Event) + Send + Sync>;

/// Sandboxes and containers of one root.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(crate) inner: Arc<Inner>,
}

/// Everything behind [`Engine`].
pub(crate) struct Inner {
    pub(crate) config: EngineConfig,
    pub(crate) boot_id: String,
    pub(crate) records: Records,
    pub(crate) store: Store,
    pub(crate) snapshots: Snapshots,
    pub(crate) hierarchies: Arc<Hierarchies>,
    pub(crate) network: rkube_netns::Host,
    pub(crate) program: Program,
    /// Compiled seccomp filters; `None` where they cannot be kept.
    pub(crate) filters: Option<rkube_seccomp::Cache>,
    pub(crate) sandboxes: Mutex<HashMap<String, Arc<Sandbox>>>,
    pub(crate) ooms: Ooms,
    pub(crate) alarms: Alarms,
    pub(crate) warned: Mutex<BTreeSet<String>>,
    pub(crate) puller: OnceLock<Arc<dyn Puller>>,
    pub(crate) image_gc: OnceLock<rkube_image::GcPolicy>,
    pub(crate) tidying: crate::images::Tidying,
    pub(crate) family: Family,
    /// Held while ids of a user namespace are chosen.
    pub(crate) choosing: Mutex<()>,
    reader: OnceLock<Arc<Reader>>,
    sink: Sink,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("instance", &self.config.instance)
            .finish_non_exhaustive()
    }
}

/// One sandbox in memory.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) state: Mutex<SandboxState>,
    /// Held while the sandbox or one of its containers is made or removed.
    pub(crate) making: Mutex<()>,
}

/// What changes about it.
#[derive(Debug)]
pub(crate) struct SandboxState {
    pub(crate) record: SandboxRecord,
    pub(crate) link: Option<Arc<Link>>,
    pub(crate) keeper: Option<Child>,
    /// Its pause process, which alone holds its namespaces open, while it
    /// lives.
    pub(crate) pause: Option<Arc<Held>>,
    pub(crate) containers: BTreeMap<ContainerId, Container>,
    /// By token; see [`crate::api::ExecHandle`].
    pub(crate) execs: BTreeMap<u64, Arc<ExecEnd>>,
    pub(crate) last_exec: u64,
    /// Keys of containers whose records cannot be read: nothing is done to
    /// them before the sandbox is removed.
    pub(crate) left_alone: Vec<String>,
}

/// One container in memory.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) record: ContainerRecord,
    /// Its first process while it lives.
    pub(crate) process: Option<Arc<Held>>,
    /// The master of its terminal: held here too, it outlives its keeper.
    pub(crate) terminal: Option<OwnedFd>,
    /// Its OOM watch.
    pub(crate) watch: Option<u64>,
    /// Whether its end was told.
    pub(crate) told: bool,
}

impl Container {
    pub(crate) fn new(record: ContainerRecord) -> Self {
        Self {
            record,
            process: None,
            terminal: None,
            watch: None,
            told: false,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        let r = &self.record;
        r.running.is_some() && r.exit.is_none() && r.lost_at.is_none()
    }
}

/// The name of a container's process in its keeper.
pub(crate) fn key(id: &ContainerId) -> String {
    format!("{}.{}", id.name, id.attempt)
}

fn parse_key(sandbox: &str, key: &str) -> Option<ContainerId> {
    let (name, attempt) = key.rsplit_once('.')?;
    let attempt = attempt.parse().ok()?;
    Some(ContainerId {
        sandbox: sandbox.to_owned(),
        name: name.to_owned(),
        attempt,
    })
}

impl Engine {
    /// Opens the engine of an instance, whose writer lock the caller holds,
    /// and takes over what an earlier writer left.
    ///
    /// # Errors
    /// When the host cannot run containers (cgroups, network, directories).
    pub fn open(config: EngineConfig, sink: Sink) -> Result<Self> {
        let instance = config.instance.clone();
        let state = instance.state_dir();
        let run = instance.run_dir().join("pods");
        make_private_dir(&run)?;
        let hierarchies = Hierarchies::detect().map_err(|source| Error::Cgroup {
            object: "this host".into(),
            source,
        })?;
        crate::needs::demand(&hierarchies)?;
        let image = |source| Error::Image {
            image: "store".into(),
            source,
        };
        let inner = Arc::new(Inner {
            boot_id: boot_id()?,
            records: Records::open(state.join("sandboxes"))?,
            store: Store::open(&state.join("images")).map_err(image)?,
            snapshots: Snapshots::open(&state.join("containers")).map_err(image)?,
            hierarchies,
            network: open_network(&config)?,
            program: Program::new().on("make", &run.join("keeper program"))?,
            filters: filters(&instance),
            sandboxes: Mutex::new(HashMap::new()),
            ooms: Ooms::default(),
            alarms: Alarms::default(),
            warned: Mutex::new(BTreeSet::new()),
            puller: OnceLock::new(),
            image_gc: OnceLock::new(),
            tidying: crate::images::Tidying::default(),
            family: Family::default(),
            choosing: Mutex::new(()),
            reader: OnceLock::new(),
            sink,
            config,
        });
        let weak = Arc::downgrade(&inner);
        let reader = Reader::start(Box::new(move |told| on_told(&weak, told)))
            .on("start thread for", &run)?;
        // Set once, here.
        let _ = inner.reader.set(reader);
        inner.recover()?;
        Ok(Self { inner })
    }

    /// The image store.
    #[must_use]
    pub fn images(&self) -> &Store {
        &self.inner.store
    }

    /// Gives the engine its registry client, once; without one it pulls
    /// nothing.
    pub fn set_puller(&self, puller: Arc<dyn Puller>) {
        // A second client would be a second configuration of the same root.
        let _ = self.inner.puller.set(puller);
    }

    /// Odd but handled properties of this host, in words.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        self.inner.network.notes().to_vec()
    }

    /// Says goodbye to all keepers, which hold the pods from now on.
    pub fn close(&self) {
        for sandbox in self.inner.all() {
            let link = {
                let mut state = lock(&sandbox.state);
                // Without a link, the keeper's answer (it closes) is no loss;
                // a child that is dropped goes on.
                drop(state.keeper.take());
                state.link.take()
            };
            if let Some(link) = link {
                link.say(&Request::Goodbye {});
            }
        }
    }
}

/// Where compiled filters are kept. Without it each start compiles its own.
fn filters(instance: &Instance) -> Option<rkube_seccomp::Cache> {
    rkube_seccomp::Cache::open(&instance.run_dir().join("filters"))
        .inspect_err(|error| tracing::warn!(%error, "seccomp filters are not kept"))
        .ok()
}

/// The kernel's boot id: another one means another boot.
pub(crate) fn boot_id() -> Result<String> {
    let path = std::path::Path::new("/proc/sys/kernel/random/boot_id");
    Ok(std::fs::read_to_string(path)
        .on("read", path)?
        .trim()
        .to_owned())
}

pub(crate) fn network_config(config: &EngineConfig) -> Result<rkube_netns::HostConfig> {
    let instance = &config.instance;
    let network = |source| Error::Network {
        object: "this host".into(),
        source,
    };
    let iid = rkube_netns::Iid::parse(&instance.iid).map_err(network)?;
    let mut host = rkube_netns::HostConfig::new(iid, &instance.table(), &instance.state_dir());
    if let Some((v4, v6)) = config.pod_ranges {
        host.v4 = v4;
        host.v6 = v6;
    }
    host.cluster.clone_from(&config.cluster_ranges);
    Ok(host)
}

fn open_network(config: &EngineConfig) -> Result<rkube_netns::Host> {
    rkube_netns::Host::open(network_config(config)?).map_err(|source| Error::Network {
        object: "this host".into(),
        source,
    })
}

fn on_told(inner: &Weak<Inner>, told: Told) {
    let Some(inner) = inner.upgrade() else { return };
    match told {
        Told::Exited { sandbox, status } => inner.on_exit(&sandbox, &status),
        Told::Watch(number) => {
            if !inner.on_alarm(number) {
                inner.on_oom_watch(number);
            }
        }
        Told::Lost { sandbox } => {
            let Ok(cell) = inner.find(&sandbox) else {
                return;
            };
            // Taken down on purpose: the link is not the sandbox's any more.
            if lock(&cell.state).link.as_ref().is_none_or(|l| l.is_open()) {
                return;
            }
            // Not on the reader's thread: a new keeper's answers come there.
            let spawned = std::thread::Builder::new()
                .name("adopt".into())
                .spawn(move || inner.on_keeper_lost(&sandbox));
            if let Err(error) = spawned {
                tracing::error!(%error, "start a thread that replaces a keeper");
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.get() {
            reader.stop();
        }
    }
}

impl Inner {
    pub(crate) fn reader(&self) -> Result<&Arc<Reader>> {
        self.reader.get().ok_or_else(|| Error::Invalid {
            object: "engine".into(),
            what: "used before it was opened".into(),
        })
    }

    pub(crate) fn emit(&self, event: Event) {
        (self.sink)(event);
    }

    /// A warning about this host, told once for each text.
    pub(crate) fn warn_once(&self, text: &str) {
        if lock(&self.warned).insert(text.to_owned()) {
            tracing::warn!("{text}");
        }
    }

    pub(crate) fn all(&self) -> Vec<Arc<Sandbox>> {
        lock(&self.sandboxes).values().cloned().collect()
    }

    pub(crate) fn find(&self, id: &str) -> Result<Arc<Sandbox>> {
        lock(&self.sandboxes)
            .get(id)
            .cloned()
            .ok_or_else(|| Error::NoSandbox(id.to_owned()))
    }

    /// A path below the instance's cgroup.
    pub(crate) fn cgroup_path(&self, below: &str) -> Result<CgroupPath> {
        let whole = format!("{}/{below}", self.config.instance.cgroup_parent());
        CgroupPath::new(&whole).map_err(|source| Error::Cgroup {
            object: whole,
            source,
        })
    }

    fn on_exit(self: &Arc<Self>, sandbox: &str, status: &ProcessStatus) {
        let Ok(cell) = self.find(sandbox) else { return };
        match status.kind {
            Kind::Pause {} => {
                lock(&cell.state).pause = None;
                self.emit(Event::SandboxLost {
                    id: sandbox.to_owned(),
                });
            }
            Kind::Exec {} => cell.exec_ended(status),
            Kind::Container {} => {
                let Some(id) = parse_key(sandbox, &status.key) else {
                    return;
                };
                if !lock(&cell.state).containers.contains_key(&id) {
                    return cell.forget(&status.key);
                }
                let exit = self.note_exit(&cell, &id, status);
                self.oom_at_exit(&id, status);
                self.tell_exit(&cell, id, exit);
            }
        }
        self.reap_orphans();
    }

    /// Tells of an end, once.
    pub(crate) fn tell_exit(&self, cell: &Sandbox, id: ContainerId, exit: Option<Exit>) {
        let told = match lock(&cell.state).containers.get_mut(&id) {
            Some(container) => std::mem::replace(&mut container.told, true),
            None => false,
        };
        if !told {
            self.emit(Event::Exited { id, exit });
        }
    }

    /// Puts an end into the record; `None` when the kernel no longer tells.
    pub(crate) fn note_exit(
        &self,
        cell: &Sandbox,
        id: &ContainerId,
        status: &ProcessStatus,
    ) -> Option<Exit> {
        let mut state = lock(&cell.state);
        let container = state.containers.get_mut(id)?;
        let exit = status.exit.as_ref().and_then(to_exit);
        container.record.running = Some(status.into());
        match &exit {
            Some(exit) => container.record.exit = Some(exit.clone()),
            None => container.record.lost_at = Some(SystemTime::now()),
        }
        container.process = None;
        container.terminal = None;
        if let Err(error) = self.records.put_container(&container.record) {
            tracing::error!(container = %id, error = crate::error::chain(&error), "record the end");
        }
        exit
    }
}

impl Sandbox {
    /// The keeper drops what it knows of a process that has ended. This is
    /// the reader's thread or one that expects no news: nobody waits for the
    /// answer.
    pub(crate) fn forget(&self, key: &str) {
        let link = lock(&self.state).link.clone();
        if let Some(link) = link {
            link.say(&Request::Forget {
                token: 0,
                key: key.to_owned(),
            });
        }
    }
}

/// From the keeper's words; -1 is an end that nobody saw.
pub(crate) fn to_exit(e: &rkube_keeper::protocol::Exit) -> Option<Exit> {
    if e.code < 0 {
        return None;
    }
    let kills = rkube_cgroup::parse_oom_count(&e.oom).kills;
    Some(Exit {
        code: e.code,
        signal: (e.signal != 0).then_some(e.signal),
        finished_at: SystemTime::UNIX_EPOCH + Duration::from_nanos(e.finished_ns),
        oom_killed: e.signal == 9 && kills > 0,
    })
}
