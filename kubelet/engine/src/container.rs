//! Making and removing containers.
//!
//! ```text
//!   image ─► record ─► snapshot, overlay ─► user ─► spec ─► cgroup ─► plan ─► keeper ─► record
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use oci_spec::runtime::LinuxNamespaceType;
use rkube_cgroup::{Cgroup, CgroupPath, Controller, Needs, Select, Version};
use rkube_image::{IdMap, Image, MountOptions};
use rkube_keeper::protocol::{Kind, LogTarget, Reply, Request, StartRequest};
use rkube_keeper::{socket, wire};
use rkube_runtime::{CgroupInput, ExtraMount, PlanInput, RootSource, plan_container};

use crate::api::{ContainerConfig, ContainerId, ContainerStatus, NamespaceMode, SandboxConfig};
use crate::engine::{Container, GONE_LIMIT, Inner, LOG_MAX_BYTES, LOG_MAX_FILES, Sandbox, key};
use crate::error::{Error, OnFile, Result, all};
use crate::ids::Ids;
use crate::link::{Link, lock};
use crate::mounts::Owners;
use crate::proc::Held;
use crate::record::{ContainerRecord, MAX_CONTAINER_NAME_BYTES, check_name};
use crate::spec::{self, typed_resources};

/// What a container's plan needs from its pod.
struct Pod {
    config: SandboxConfig,
    pause: Arc<Held>,
    /// Its user namespace and its ids, where it has one.
    users: Option<(OwnedFd, Ids)>,
}

impl Pod {
    fn owners(&self) -> Option<Owners<'_>> {
        let (namespace, ids) = self.users.as_ref()?;
        Some(Owners {
            namespace: namespace.as_fd(),
            ids: *ids,
        })
    }
}

impl Inner {
    pub(crate) fn start_container(
        self: &Arc<Self>,
        config: &ContainerConfig,
    ) -> Result<ContainerStatus> {
        let id = &config.id;
        check_name("container", &id.name, MAX_CONTAINER_NAME_BYTES)?;
        let cell = self.find(&id.sandbox)?;
        let _making = lock(&cell.making);
        if let Some(status) = self.known(&cell, id) {
            return Ok(status);
        }
        let reachable = |l: &Arc<Link>| l.is_open();
        if !(lock(&cell.state).link.as_ref().is_some_and(reachable)) {
            self.regain(&cell);
        }
        let image = self.resolve(&config.image)?;
        let record = ContainerRecord {
            config: config.clone(),
            image_id: registry_name(&image),
            stop_signal: config
                .stop_signal
                .unwrap_or_else(|| crate::identity::stop_signal(&image.config)),
            process: None,
            launched_at: None,
            running: None,
            exit: None,
            lost_at: None,
        };
        self.records.put_container(&record)?;
        let container = Container::new(record);
        lock(&cell.state).containers.insert(id.clone(), container);
        match self.make_container(&cell, config, &image) {
            Ok(()) => self
                .known(&cell, id)
                .ok_or_else(|| Error::NoContainer(id.to_string())),
            Err(error) => match self.remove_container_of(&cell, id) {
                Ok(()) => Err(error),
                Err(more) => Err(Error::Several(vec![error, more])),
            },
        }
    }

    fn known(&self, cell: &Sandbox, id: &ContainerId) -> Option<ContainerStatus> {
        let state = lock(&cell.state);
        let container = state.containers.get(id)?;
        Some(self.container_status(&state.record.config, container))
    }

    pub(crate) fn resolve(&self, reference: &str) -> Result<Image> {
        self.store
            .resolve(reference)
            .map_err(|source| Error::Image {
                image: reference.to_owned(),
                source,
            })
    }

    fn make_container(
        &self,
        cell: &Arc<Sandbox>,
        config: &ContainerConfig,
        image: &Image,
    ) -> Result<()> {
        let pod = {
            let state = lock(&cell.state);
            let pause = state.pause.clone();
            let pause = pause.ok_or_else(|| Error::NotRunning(format!("sandbox {}", cell.id)))?;
            let users = match state.record.ids {
                Some(ids) => Some((pause.namespace("user")?, ids)),
                None => None,
            };
            Pod {
                config: state.record.config.clone(),
                pause,
                users,
            }
        };
        let on_image = |source| Error::Image {
            image: config.image.clone(),
            source,
        };
        let snapshot = self
            .snapshots
            .create(&self.store, &snapshot_id(&config.id), image)
            .map_err(on_image)?;
        // A layer lives as long as one attempt: it need not be synced.
        let options = MountOptions {
            volatile: true,
            ..MountOptions::default()
        };
        let rootfs = match pod.owners() {
            None => snapshot.mount(image, options).map_err(on_image)?,
            Some(owners) => {
                let by = IdMap {
                    namespace: owners.namespace,
                    first: owners.ids.first,
                    count: owners.ids.count,
                };
                let (rootfs, shifted) = snapshot
                    .mount_mapped(image, options, by)
                    .map_err(on_image)?;
                if shifted {
                    self.warn_once(
                        "the file system of images and containers has no id-mapped mounts on this \
                         kernel: the owners of each container of a user namespace are changed \
                         one by one instead, which takes time",
                    );
                }
                rootfs
            }
        };
        let identity = crate::identity::of(&rootfs, config, &image.config)?;
        let below = cgroup_below(&pod.config, &config.id);
        let path = self.cgroup_path(&below)?;
        let spec = spec::build(spec::Input {
            container: config,
            sandbox: &pod.config,
            image: &image.config,
            identity: &identity,
            cgroup: path.as_str(),
            ids: pod.users.as_ref().map(|(_, ids)| *ids),
        })?;
        let group = self.make_container_cgroup(config, &path)?;
        let prepared = self.prepare(config, &pod, &spec, rootfs, &group, path)?;
        {
            let mut state = lock(&cell.state);
            if let Some(container) = state.containers.get_mut(&config.id) {
                container.record.process = spec.process().clone();
                container.record.launched_at = Some(SystemTime::now());
                self.records.put_container(&container.record)?;
            }
        }
        self.launch(cell, config, &pod, prepared, &group)
    }

    fn make_container_cgroup(&self, config: &ContainerConfig, path: &CgroupPath) -> Result<Cgroup> {
        let on = |source| Error::Cgroup {
            object: config.id.to_string(),
            source,
        };
        let privileged = config.security.privileged;
        let (resources, mut extras) =
            typed_resources(&config.id.to_string(), &config.resources, Some(privileged))?;
        // Pods ask for it on every host (Kubernetes since 1.28), and mean it
        // for v2; v1 kills single processes, whoever asks.
        if self.memory_version() != Some(Version::V2) {
            extras.oom_group = None;
        }
        // What statistics and OOM events need is there without a limit too.
        let common = [
            Controller::Cpu,
            Controller::Cpuacct,
            Controller::Memory,
            Controller::Pids,
            Controller::Devices,
        ];
        let present: Vec<Controller> = common
            .into_iter()
            .filter(|c| self.hierarchies.of(*c).is_some())
            .collect();
        let needs = Needs::of(&resources, &extras).and(&present);
        let group = Cgroup::create(&self.hierarchies, path, Select::Only(needs)).map_err(on)?;
        for warning in group.apply(&resources, &extras).map_err(on)? {
            self.warn_once(&format!("{}: {}", warning.setting, warning.message));
        }
        Ok(group)
    }

    pub(crate) fn memory_version(&self) -> Option<Version> {
        self.hierarchies
            .of(Controller::Memory)
            .map(rkube_cgroup::Hierarchy::version)
    }

    fn prepare(
        &self,
        config: &ContainerConfig,
        pod: &Pod,
        spec: &oci_spec::runtime::Spec,
        rootfs: OwnedFd,
        group: &Cgroup,
        path: CgroupPath,
    ) -> Result<rkube_runtime::Prepared> {
        let object = config.id.to_string();
        let on_cgroup = |source| Error::Cgroup {
            object: object.clone(),
            source,
        };
        let mut input = PlanInput::new(&object, spec, Path::new("/"));
        input.rootfs = RootSource::Mount(rootfs);
        input.mounts = self.extra_mounts(config, pod)?;
        input.joins = joins(pod)?;
        input.seccomp_cache = self.filters.as_ref();
        input.cgroup = Some(CgroupInput {
            attach: group.attach_fds().map_err(on_cgroup)?,
            hierarchies: Arc::clone(&self.hierarchies),
            path,
        });
        let on_runtime = |source| Error::Runtime {
            object: object.clone(),
            source,
        };
        plan_container(input)
            .and_then(rkube_runtime::Draft::open)
            .map_err(on_runtime)
    }

    fn extra_mounts(&self, config: &ContainerConfig, pod: &Pod) -> Result<Vec<ExtraMount>> {
        let mut mounts = crate::mounts::binds(config, pod.owners().as_ref())?;
        let covers = |m: &ExtraMount, path: &str| m.target.trim_end_matches('/') == path;
        if mounts.iter().any(|m| covers(m, "/dev/shm")) {
            return Ok(mounts);
        }
        let shm = match pod.config.ipc {
            NamespaceMode::Host => crate::mounts::host_shm()?,
            _ => Some(crate::mounts::pod_shm(&pod.pause)?),
        };
        // Below a volume at /dev, where there is one.
        let at = mounts
            .iter()
            .position(|m| covers(m, "/dev"))
            .map_or(0, |n| n + 1);
        if let Some(shm) = shm {
            mounts.insert(at, shm);
        }
        Ok(mounts)
    }

    fn launch(
        &self,
        cell: &Arc<Sandbox>,
        config: &ContainerConfig,
        pod: &Pod,
        prepared: rkube_runtime::Prepared,
        group: &Cgroup,
    ) -> Result<()> {
        let id = &config.id;
        let object = format!("container {id}");
        let log = log_path(&pod.config, id);
        if let Some(dir) = log.parent() {
            std::fs::create_dir_all(dir).on("create directory", dir)?;
        }
        prepared.warnings.iter().for_each(|w| self.warn_once(w));
        let memory = rkube_sys::memfd::sealed_data(c"plan", &wire::encode(&prepared.plan))
            .on("make plan of", Path::new(&object))?;
        let mut fds = vec![memory];
        fds.extend(prepared.fds);
        let counter = group.oom_counter_fd().ok();
        let request = StartRequest {
            key: key(id),
            kind: Kind::Container {},
            log: Some(LogTarget {
                path: log.to_string_lossy().into_owned(),
                max_bytes: LOG_MAX_BYTES,
                max_files: LOG_MAX_FILES,
            }),
            stdin: config.stdin,
            oom_counter: counter.is_some(),
        };
        fds.extend(counter);
        // Before the program: what it does first counts, too.
        self.set_alarms(id, &config.pressure_alarms, group)?;
        let watch = self.watch_oom(id, group);
        let link = lock(&cell.state).link.clone();
        let link = link.ok_or_else(|| Error::Keeper {
            sandbox: cell.id.clone(),
            what: "it has gone".into(),
        })?;
        let once = config.stdin && config.stdin_once;
        let called = link.call(
            |token| match once {
                true => Request::StartOnce { token, request },
                false => Request::Start { token, request },
            },
            &socket::borrow(&fds),
            &object,
        );
        let (reply, fds) = match called {
            Ok(answer) => answer,
            Err(error) => {
                if let Some(number) = watch {
                    self.unwatch(number);
                }
                return Err(error);
            }
        };
        let Reply::Started {
            status, warnings, ..
        } = reply
        else {
            return Err(Error::Keeper {
                sandbox: cell.id.clone(),
                what: format!("unexpected answer {reply:?}"),
            });
        };
        warnings.iter().for_each(|w| self.warn_once(w));
        let mut state = lock(&cell.state);
        if let Some(container) = state.containers.get_mut(id) {
            container.record.running = Some((&status).into());
            // A very short program may have been noted as ended already.
            if container.is_running() {
                let mut fds = fds.into_iter();
                container.process = fds.next().map(|fd| Arc::new(Held::new(status.pid, fd)));
                container.terminal = fds.next();
            }
            container.watch = watch;
        }
        Ok(())
    }

    pub(crate) fn remove_container(&self, id: &ContainerId) -> Result<()> {
        let cell = self.find(&id.sandbox)?;
        let _making = lock(&cell.making);
        self.remove_container_of(&cell, id)
    }

    /// Takes down everything of a container, from its record; what is gone
    /// already is no error. The caller holds `making`.
    pub(crate) fn remove_container_of(&self, cell: &Sandbox, id: &ContainerId) -> Result<()> {
        let (config, process, link, watch) = {
            let mut state = lock(&cell.state);
            let config = state.record.config.clone();
            let link = state.link.clone();
            let Some(container) = state.containers.get_mut(id) else {
                return Ok(());
            };
            let running = container
                .record
                .running
                .clone()
                .filter(|_| container.is_running());
            (config, running, link, container.watch.take())
        };
        let mut errors = Vec::new();
        if let Some(number) = watch {
            self.unwatch(number);
        }
        self.drop_alarms(id);
        if let Some(p) = process
            && lock(&cell.state).record.boot_id == self.boot_id
            && let Err(what) = crate::proc::kill(p.pid, p.start_ticks, GONE_LIMIT)
        {
            errors.push(Error::Invalid {
                object: id.to_string(),
                what,
            });
        }
        if let Err(error) = self.remove_cgroup(&cgroup_below(&config, id)) {
            errors.push(error);
        }
        if let Some(link) = link.filter(|l| l.is_open()) {
            let object = format!("container {id}");
            // It may never have been started.
            let _ = link.call(
                |token| Request::Forget {
                    token,
                    key: key(id),
                },
                &[],
                &object,
            );
        }
        let removed = self.snapshots.remove(&self.store, &snapshot_id(id));
        if let Err(source) = removed {
            errors.push(Error::Image {
                image: config_image(cell, id),
                source,
            });
        }
        if errors.is_empty() {
            self.records.remove_container(id)?;
            lock(&cell.state).containers.remove(id);
        }
        all(errors)
    }
}

fn config_image(cell: &Sandbox, id: &ContainerId) -> String {
    let state = lock(&cell.state);
    state
        .containers
        .get(id)
        .map(|c| c.record.config.image.clone())
        .unwrap_or_default()
}

/// Where a container's log is.
pub(crate) fn log_path(sandbox: &SandboxConfig, id: &ContainerId) -> PathBuf {
    sandbox
        .log_dir
        .join(&id.name)
        .join(format!("{}.log", id.attempt))
}

/// A container's cgroup, below the instance's parent.
pub(crate) fn cgroup_below(sandbox: &SandboxConfig, id: &ContainerId) -> String {
    format!("{}/{}.{}", sandbox.cgroup, id.name, id.attempt)
}

/// The name of a container's writable layer.
pub(crate) fn snapshot_id(id: &ContainerId) -> String {
    format!("{}_{}.{}", id.sandbox, id.name, id.attempt)
}

fn joins(pod: &Pod) -> Result<Vec<(LinuxNamespaceType, OwnedFd)>> {
    let mut joins = vec![(LinuxNamespaceType::Uts, pod.pause.namespace("uts")?)];
    if pod.users.is_some() {
        joins.push((LinuxNamespaceType::User, pod.pause.namespace("user")?));
    }
    if pod.config.network == NamespaceMode::Pod {
        joins.push((LinuxNamespaceType::Network, pod.pause.namespace("net")?));
    }
    if pod.config.ipc == NamespaceMode::Pod {
        joins.push((LinuxNamespaceType::Ipc, pod.pause.namespace("ipc")?));
    }
    if pod.config.pid == NamespaceMode::Pod {
        joins.push((LinuxNamespaceType::Pid, pod.pause.namespace("pid")?));
    }
    Ok(joins)
}

/// What tells an image from others wherever it is pulled: `repository@digest`
/// of its manifest where a registry has it, else its id.
fn registry_name(image: &Image) -> String {
    let own = format!("@{}", image.manifest_digest);
    let named = image.digests.iter().find(|d| d.ends_with(&own));
    let named = named.or(image.digests.first());
    named.map_or_else(|| image.id.to_string(), Clone::clone)
}
