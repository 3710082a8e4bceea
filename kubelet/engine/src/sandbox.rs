//! Making and removing sandboxes.
//!
//! ```text
//!   record ─► cgroups ─► keeper ─► pause (net, ipc, uts, mnt [, pid]) ─► network ─► record
//! ```

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use rkube_cgroup::{Cgroup, Needs, Select};
use rkube_keeper::plan::{CgroupEntry, IdRange, Plan, Step};
use rkube_keeper::protocol::{Kind, ProcessStatus, Reply, Request, StartRequest};
use rkube_keeper::{socket, wire};
use rkube_netns::{AttachRequest, HostPort, Proto};
use rkube_sys::clone::{
    CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, CLONE_NEWUTS,
};
use rkube_sys::mount::MS_SLAVE;

use crate::api::{NamespaceMode, Protocol, Resources, SandboxConfig, SandboxStatus};
use crate::engine::{GONE_LIMIT, Inner, Sandbox, SandboxState};
use crate::error::{Error, OnFile, Result, all};
use crate::ids::{self, Ids};
use crate::link::{Link, lock};
use crate::proc::Held;
use crate::record::{MAX_SANDBOX_ID_BYTES, SandboxRecord, check_name};
use crate::spec::typed_resources;

/// Where pause keeps the pod's shared memory file system, in its own root.
pub(crate) const SHM_IN_PAUSE: &str = "/shm";

impl Inner {
    pub(crate) fn run_sandbox(self: &Arc<Self>, config: &SandboxConfig) -> Result<SandboxStatus> {
        check_name("sandbox", &config.id, MAX_SANDBOX_ID_BYTES)?;
        let mut generation = 0;
        if let Ok(cell) = self.find(&config.id) {
            let (ready, same) = {
                let state = lock(&cell.state);
                generation = state.record.generation + 1;
                (state.pause.is_some(), state.record.config == *config)
            };
            match (ready, same) {
                (true, true) => return Ok(self.status_of(&cell)),
                (true, false) => return Err(Error::Differs(config.id.clone())),
                (false, _) => self.remove_sandbox(&config.id)?,
            }
        }
        check_user_namespace(config)?;
        let record = SandboxRecord {
            config: config.clone(),
            boot_id: self.boot_id.clone(),
            created_at: SystemTime::now(),
            generation,
            pause: None,
            keeper_pid: None,
            network: None,
            ids: None,
        };
        let cell = self.insert(record);
        let made = {
            let _making = lock(&cell.making);
            self.make_sandbox(&cell)
        };
        match made {
            Ok(()) => Ok(self.status_of(&cell)),
            Err(error) => {
                if let Err(more) = self.remove_sandbox(&config.id) {
                    return Err(Error::Several(vec![error, more]));
                }
                Err(error)
            }
        }
    }

    /// Puts a sandbox into memory.
    pub(crate) fn insert(&self, record: SandboxRecord) -> Arc<Sandbox> {
        let id = record.config.id.clone();
        let cell = Arc::new(Sandbox {
            id: id.clone(),
            making: Mutex::new(()),
            state: Mutex::new(SandboxState {
                record,
                link: None,
                keeper: None,
                pause: None,
                containers: BTreeMap::new(),
                execs: BTreeMap::new(),
                last_exec: 0,
                left_alone: Vec::new(),
            }),
        });
        lock(&self.sandboxes).insert(id, Arc::clone(&cell));
        cell
    }

    fn make_sandbox(self: &Arc<Self>, cell: &Arc<Sandbox>) -> Result<()> {
        let config = lock(&cell.state).record.config.clone();
        if config.user_namespace {
            self.give_ids(cell)?;
        }
        self.records.put_sandbox(&lock(&cell.state).record)?;
        std::fs::create_dir_all(&config.log_dir).on("create directory", &config.log_dir)?;
        self.make_cgroups(&config)?;
        let (child, link) = self.start_keeper(&config.id)?;
        {
            let mut state = lock(&cell.state);
            // A writer that dies before the next record hears it from the
            // keeper.
            state.record.keeper_pid = Some(child.id());
            state.keeper = Some(child);
            state.link = Some(Arc::clone(&link));
        }
        let ids = lock(&cell.state).record.ids;
        let (status, pause) = self.start_pause(&config, ids, &link)?;
        let pause = Arc::new(pause);
        {
            let mut state = lock(&cell.state);
            state.pause = Some(Arc::clone(&pause));
            state.record.pause = Some((&status).into());
            self.records.put_sandbox(&state.record)?;
        }
        if config.network == NamespaceMode::Pod {
            let attachment = self.attach_network(cell, &config, &pause)?;
            let mut state = lock(&cell.state);
            state.record.network = Some(attachment);
            self.records.put_sandbox(&state.record)?;
        }
        Ok(())
    }

    fn make_cgroups(&self, config: &SandboxConfig) -> Result<()> {
        for (path, resources) in &config.parent_resources {
            self.make_cgroup(path, resources)?;
        }
        self.make_cgroup(&config.cgroup, &config.resources)
    }

    pub(crate) fn make_cgroup(&self, below: &str, limits: &Resources) -> Result<()> {
        let path = self.cgroup_path(below)?;
        let on = |source| Error::Cgroup {
            object: path.to_string(),
            source,
        };
        let (resources, extras) = typed_resources(below, limits, None)?;
        let select = Select::Only(Needs::of(&resources, &extras));
        let group = Cgroup::ensure(&self.hierarchies, &path, select).map_err(on)?;
        for warning in group.apply(&resources, &extras).map_err(on)? {
            self.warn_once(&format!(
                "cgroup {path}: {}: {}",
                warning.setting, warning.message
            ));
        }
        Ok(())
    }

    /// Chooses ids for a sandbox that are no other's.
    fn give_ids(&self, cell: &Sandbox) -> Result<()> {
        // One at a time: a choice is seen as soon as it is made.
        let _choosing = lock(&self.choosing);
        let taken: Vec<Ids> = self
            .all()
            .iter()
            .filter_map(|other| lock(&other.state).record.ids)
            .collect();
        let chosen = ids::choose(&self.config.instance.iid, &taken, &ids::of_others());
        let mut state = lock(&cell.state);
        let chosen = chosen.ok_or_else(|| Error::Invalid {
            object: state.record.config.display_name.clone(),
            what: format!(
                "no ids are left for a user namespace ({} sandboxes can have one at a time; \
                 /etc/subuid and /etc/subgid may hold the rest)",
                ids::SANDBOXES_PER_INSTANCE
            ),
        })?;
        state.record.ids = Some(chosen);
        Ok(())
    }

    fn start_pause(
        &self,
        config: &SandboxConfig,
        ids: Option<Ids>,
        link: &Link,
    ) -> Result<(ProcessStatus, Held)> {
        let (plan, fds) = self.pause_plan(config, ids)?;
        let memory = rkube_sys::memfd::sealed_data(c"plan", &wire::encode(&plan))
            .on("make plan of", Path::new("pause"))?;
        let mut all = vec![memory];
        all.extend(fds);
        let request = StartRequest {
            key: "pause".into(),
            kind: Kind::Pause {},
            log: None,
            stdin: false,
            oom_counter: false,
        };
        let object = format!("sandbox {}", config.display_name);
        let (reply, fds) = link.call(
            |token| Request::Start { token, request },
            &socket::borrow(&all),
            &object,
        )?;
        let broken = |what: String| Error::Keeper {
            sandbox: config.id.clone(),
            what,
        };
        match reply {
            Reply::Started {
                status, warnings, ..
            } => {
                warnings.iter().for_each(|w| self.warn_once(w));
                let fd = fds.into_iter().next();
                let fd = fd.ok_or_else(|| broken("it sent no pidfd".into()))?;
                let held = Held::new(status.pid, fd);
                Ok((status, held))
            }
            other => Err(broken(format!("unexpected answer {other:?}"))),
        }
    }

    /// Pause gets a root of its own: an empty read-only file system with the
    /// pod's shared memory in it. Whoever shares its process namespace finds
    /// nothing of the host behind /proc/PID/root.
    pub(crate) fn pause_plan(
        &self,
        config: &SandboxConfig,
        ids: Option<Ids>,
    ) -> Result<(Plan, Vec<OwnedFd>)> {
        let c = |text: &str| {
            CString::new(text).map_err(|_| Error::Invalid {
                object: config.display_name.clone(),
                what: format!("{text:?} holds a NUL byte"),
            })
        };
        let mut namespaces = CLONE_NEWNS | CLONE_NEWUTS;
        let mut steps = vec![Step::Propagation { flag: MS_SLAVE }];
        let host_network = config.network == NamespaceMode::Host;
        if !host_network {
            namespaces |= CLONE_NEWNET;
            steps.push(Step::LoopbackUp {});
        }
        if config.ipc == NamespaceMode::Pod {
            namespaces |= CLONE_NEWIPC;
        }
        if config.pid == NamespaceMode::Pod {
            namespaces |= CLONE_NEWPID;
        }
        steps.push(Step::Hostname {
            name: c(&config.hostname)?,
        });
        if let Some(domain) = &config.domainname {
            steps.push(Step::Domainname { name: c(domain)? });
        }
        for (name, value) in &config.sysctls {
            let path = sysctl_path(config, name)?;
            steps.push(Step::Sysctl {
                path: c(&path)?,
                value: c(value)?,
            });
        }
        let option = |key: &str, value: String| Ok((c(key)?, Some(c(&value)?)));
        let options = vec![
            option("mode", "1777".into())?,
            option("size", config.shm_bytes.to_string())?,
        ];
        let attributes = rkube_sys::mount::MOUNT_ATTR_NOSUID
            | rkube_sys::mount::MOUNT_ATTR_NODEV
            | rkube_sys::mount::MOUNT_ATTR_NOEXEC;
        let shm = config.ipc == NamespaceMode::Pod;
        if shm {
            let (kind, source) = (c("tmpfs")?, c("shm")?);
            steps.push(Step::Filesystem {
                slot: 0,
                kind,
                source,
                options,
                attributes,
            });
        }
        steps.push(Step::PivotRoot {
            fd: 0,
            no_pivot: false,
        });
        if shm {
            steps.push(Step::Attach {
                slot: 0,
                target: c(SHM_IN_PAUSE)?,
                propagation: 0,
            });
        }
        steps.push(Step::RootReadOnly {});
        let cgroup = self.pause_cgroup(config)?;
        let map: Vec<IdRange> = ids
            .iter()
            .map(|ids| IdRange {
                inside: 0,
                outside: ids.first,
                count: ids.count,
            })
            .collect();
        if ids.is_some() {
            // A procfs of its own, through which it sets kernel parameters,
            // needs a process namespace that belongs to the user namespace.
            namespaces |= CLONE_NEWUSER | CLONE_NEWPID;
        }
        let mut fds = vec![crate::mounts::empty_root(ids.map_or(0, |ids| ids.first))?];
        let directory = cgroup.map(|fd| {
            fds.push(fd);
            1
        });
        let plan = Plan {
            id: "pause".into(),
            new_namespaces: namespaces,
            uid_map: map.clone(),
            gid_map: map,
            cgroup: CgroupEntry {
                directory,
                ..CgroupEntry::default()
            },
            steps,
            ..Plan::default()
        };
        Ok((plan, fds))
    }

    /// On v2 pause starts in a group of the pod, which costs nothing; on v1
    /// and hybrid hosts it stays in rkube's own, beside its keeper.
    fn pause_cgroup(&self, config: &SandboxConfig) -> Result<Option<OwnedFd>> {
        if self.hierarchies.mode() != rkube_cgroup::Mode::Unified {
            return Ok(None);
        }
        let path = self.cgroup_path(&format!("{}/pause", config.cgroup))?;
        let on = |source| Error::Cgroup {
            object: path.to_string(),
            source,
        };
        let select = Select::Only(Needs::none());
        let group = Cgroup::create(&self.hierarchies, &path, select).map_err(on)?;
        Ok(group.attach_fds().map_err(on)?.clone_into)
    }

    fn attach_network(
        &self,
        cell: &Sandbox,
        config: &SandboxConfig,
        pause: &Held,
    ) -> Result<rkube_netns::Attachment> {
        let netns = pause.namespace("net")?;
        let ports: Vec<HostPort> = config
            .ports
            .iter()
            .map(|p| HostPort {
                proto: match p.protocol {
                    Protocol::Tcp => Proto::Tcp,
                    Protocol::Udp => Proto::Udp,
                    Protocol::Sctp => Proto::Sctp,
                },
                host_ip: p.host_ip,
                host_port: p.host_port,
                container_port: p.container_port,
            })
            .collect();
        let name = network_name(&lock(&cell.state).record);
        self.network
            .attach(&AttachRequest {
                pod: &name,
                netns: netns.as_fd(),
                addresses: None,
                host_ports: &ports,
                mtu: None,
            })
            .map_err(|source| Error::Network {
                object: config.display_name.clone(),
                source: self.with_owner_shown(source),
            })
    }

    /// Names the pod that has a port by the name that its user knows.
    fn with_owner_shown(&self, error: rkube_netns::Error) -> rkube_netns::Error {
        let rkube_netns::Error::HostPortTaken { port, pod } = error else {
            return error;
        };
        let cells = self.all();
        let owner = cells.iter().find_map(|cell| {
            let record = &lock(&cell.state).record;
            (network_name(record) == pod).then(|| record.config.display_name.clone())
        });
        let pod = owner.unwrap_or(pod);
        rkube_netns::Error::HostPortTaken { port, pod }
    }

    pub(crate) fn remove_sandbox(self: &Arc<Self>, id: &str) -> Result<()> {
        let Ok(cell) = self.find(id) else {
            return Ok(());
        };
        let _making = lock(&cell.making);
        let mut errors = Vec::new();
        let mut attempt = |result: Result<()>| {
            if let Err(error) = result {
                errors.push(error);
            }
        };
        let (record, containers) = {
            let state = lock(&cell.state);
            let ids: Vec<_> = state.containers.keys().cloned().collect();
            (state.record.clone(), ids)
        };
        for container in containers {
            attempt(self.remove_container_of(&cell, &container));
        }
        attempt(self.kill_pause(&record));
        if record.config.network == NamespaceMode::Pod {
            let detached = self.network.detach(&network_name(&record));
            attempt(detached.map_err(|source| Error::Network {
                object: record.config.display_name.clone(),
                source,
            }));
        }
        attempt(self.remove_cgroup(&record.config.cgroup));
        attempt(self.end_keeper(&cell, &record));
        let dir = self.pod_dir(id);
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            other => attempt(other.on("remove directory", &dir)),
        }
        // Whoever waits for an exec learns from its pidfd.
        cell.lose_execs(&[]);
        if errors.is_empty() {
            self.records.remove_sandbox(id)?;
            lock(&self.sandboxes).remove(id);
        }
        self.reap_orphans();
        all(errors)
    }

    fn kill_pause(&self, record: &SandboxRecord) -> Result<()> {
        let Some(pause) = &record.pause else {
            return Ok(());
        };
        if record.boot_id != self.boot_id {
            return Ok(());
        }
        crate::proc::kill(pause.pid, pause.start_ticks, GONE_LIMIT).map_err(|what| Error::Invalid {
            object: format!("pause of {}", record.config.display_name),
            what,
        })
    }

    pub(crate) fn remove_cgroup(&self, below: &str) -> Result<()> {
        let path = self.cgroup_path(below)?;
        let on = |source| Error::Cgroup {
            object: path.to_string(),
            source,
        };
        let group = Cgroup::open(&self.hierarchies, &path).map_err(on)?;
        if !group.exists() {
            return Ok(());
        }
        group.kill_all(GONE_LIMIT).map_err(on)?;
        Cgroup::remove(&self.hierarchies, &path, GONE_LIMIT).map_err(on)
    }
}

/// Who gets a user namespace gets all others of its own, whose rights it would
/// lack otherwise.
fn check_user_namespace(config: &SandboxConfig) -> Result<()> {
    let modes = [config.network, config.ipc, config.pid];
    if config.user_namespace && modes.contains(&NamespaceMode::Host) {
        return Err(Error::Invalid {
            object: config.display_name.clone(),
            what: "a user namespace of its own goes with network, ipc and process namespaces \
                   of its own only"
                .into(),
        });
    }
    Ok(())
}

/// The id of a sandbox's network attachment: a new sandbox of the same pod
/// gets a new one.
pub(crate) fn network_name(record: &SandboxRecord) -> String {
    format!("{}.{}", record.config.id, record.generation)
}

/// Kernel parameters that belong to a namespace the pod has of its own
/// (Documentation/admin-guide/sysctl, namespaces(7)).
fn sysctl_path(config: &SandboxConfig, name: &str) -> Result<String> {
    let path = name.replace('.', "/");
    let ipc = ["kernel/sem", "kernel/msg", "kernel/shm", "fs/mqueue/"];
    let allowed = if path.starts_with("net/") {
        config.network == NamespaceMode::Pod
    } else if ipc.iter().any(|p| path.starts_with(p)) {
        config.ipc == NamespaceMode::Pod
    } else {
        false
    };
    if allowed && !path.split('/').any(|p| p.is_empty() || p == "..") {
        Ok(path)
    } else {
        Err(Error::Invalid {
            object: config.display_name.clone(),
            what: format!("kernel parameter {name} is of no namespace that the pod has of its own"),
        })
    }
}
