//! Making a container.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxResources, Spec};
use rkube_cgroup::{Cgroup, CgroupPath, Extras, Hierarchies, Needs, Select};
use rkube_keeper::protocol::Kind;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::record::{Container, Record, Store, boot_id, check_id, process_stat};
use super::{
    KILL_WAIT, cgroup_path, first_missing, grantable, hierarchies, hook, remove_group,
    remove_unused_groups, scope, user,
};
use crate::draft::{CgroupInput, HookKind, PlanInput, hooks_of, plan_container};
use crate::error::{Context, Error, Result};
use crate::launch::{Launched, Rendezvous, launch};
use crate::spec;

/// How a container is to be made.
#[derive(Debug, Default)]
pub struct CreateOptions {
    /// Its id.
    pub id: String,
    /// Directory with config.json.
    pub bundle: PathBuf,
    /// Where the pid is written.
    pub pid_file: Option<PathBuf>,
    /// Unix socket that gets the terminal's master.
    pub console_socket: Option<PathBuf>,
    /// Unix socket that gets the pidfd.
    pub pidfd_socket: Option<PathBuf>,
    /// Leave pivot_root(2) out.
    pub no_pivot: bool,
    /// Share the caller's session keyring.
    pub no_new_keyring: bool,
    /// Standard input, output and error of the program.
    pub stdio: [Option<OwnedFd>; 3],
    /// Descriptors 3, 4, ... of the program.
    pub extra_fds: Vec<OwnedFd>,
    /// `LISTEN_FDS` for its environment.
    pub listen_fds: Option<u32>,
    /// The caller stays and serves the terminal itself.
    pub keeps_terminal: bool,
    /// The program is executed at once, without a start.
    pub start_now: bool,
    /// Have systemd make the cgroup: `linux.cgroupsPath` is then
    /// `slice:prefix:name`.
    pub systemd: bool,
}

/// A container that was made.
#[derive(Debug)]
pub struct Made {
    /// Its record.
    pub container: Container,
    /// Its first process.
    pub pidfd: OwnedFd,
    /// The terminal's master, for a caller that keeps it.
    pub terminal: Option<OwnedFd>,
    /// What is not done as asked.
    pub warnings: Vec<String>,
}

/// Makes a container: record, cgroup, process. What fails is undone.
///
/// # Errors
/// The step that did not work.
pub fn create(store: &Store, mut options: CreateOptions) -> Result<Made> {
    check_id(&options.id)?;
    let shown = options.bundle.display().to_string();
    let bundle = std::fs::canonicalize(&options.bundle).on("open bundle", shown)?;
    let loaded = spec::load(&bundle.join("config.json"))?;
    let mut spec = loaded.spec;
    if let Some(n) = options.listen_fds
        && let Some(process) = spec.process_mut()
    {
        let mut env = process.env().clone().unwrap_or_default();
        env.retain(|e| !e.starts_with("LISTEN_FDS=") && !e.starts_with("LISTEN_PID="));
        env.push(format!("LISTEN_FDS={n}"));
        env.push("LISTEN_PID=1".to_owned());
        process.set_env(Some(env));
    }
    check_terminal(&spec, &options)?;
    let hierarchies = hierarchies()?;
    let scope = if options.systemd {
        Some(scope::of(&spec, &options.id, &hierarchies)?)
    } else {
        None
    };
    let cgroup = match &scope {
        Some(scope) => scope.path()?,
        None => cgroup_path(&spec, &options.id)?,
    };
    store.refuse_taken(&options.id)?;
    // A record says that what is in the group is the container's own, to be
    // killed at its deletion: there is none of one that is another's.
    Cgroup::open(&hierarchies, &cgroup)?.refuse_populated()?;
    let rootfs = spec.root().as_ref().map(|root| bundle.join(root.path()));
    let record = Record {
        id: options.id.clone(),
        oci_version: spec.version().clone(),
        bundle: bundle.clone(),
        rootfs: rootfs.unwrap_or_default(),
        created: super::time::rfc3339(SystemTime::now()),
        boot_id: boot_id()?.to_owned(),
        cgroup: cgroup.to_string(),
        // Slices are systemd's to make and to remove.
        cgroup_above: match &scope {
            Some(_) => None,
            None => first_missing(&hierarchies, &cgroup)?.map(|group| group.to_string()),
        },
        scope,
        pid: 0,
        start_ticks: 0,
        made: false,
        has_process: spec.process().is_some(),
        namespaces: spec::own_namespaces(&spec),
        annotations: spec
            .annotations()
            .iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
    };
    let mut container = store.reserve(record, &loaded.text)?;
    let job = Job {
        spec: &spec,
        bundle: &bundle,
        hierarchies: &hierarchies,
        cgroup: &cgroup,
    };
    let mut state = Progress::default();
    match job.make(&mut container, &mut options, &mut state) {
        Ok((pidfd, terminal)) => {
            let mut warnings = loaded.warnings;
            warnings.append(&mut state.warnings);
            Ok(Made {
                container,
                pidfd,
                terminal,
                warnings,
            })
        }
        Err(error) => Err(job.undo(&container, &state, error)),
    }
}

fn check_terminal(spec: &Spec, options: &CreateOptions) -> Result<()> {
    let process = spec.process().as_ref();
    let terminal = process.and_then(|p| p.terminal()).unwrap_or(false);
    if terminal && options.console_socket.is_none() && !options.keeps_terminal {
        return Err(Error::spec(
            "process.terminal",
            "cannot allocate a terminal without a console socket (--console-socket)",
        ));
    }
    if !terminal && options.console_socket.is_some() {
        return Err(Error::spec(
            "process.terminal",
            "cannot use a console socket for a process without a terminal",
        ));
    }
    Ok(())
}

#[derive(Default)]
struct Progress {
    warnings: Vec<String>,
    grouped: bool,
    hooked: bool,
    pidfd: Option<OwnedFd>,
}

struct Job<'a> {
    spec: &'a Spec,
    bundle: &'a Path,
    hierarchies: &'a std::sync::Arc<Hierarchies>,
    cgroup: &'a CgroupPath,
}

impl Job<'_> {
    fn make(
        &self,
        container: &mut Container,
        options: &mut CreateOptions,
        state: &mut Progress,
    ) -> Result<(OwnedFd, Option<OwnedFd>)> {
        let resources = resources(self.spec);
        let mut placeholder = None;
        let group = if let Some(wanted) = &container.record.scope {
            state.grouped = true;
            let (group, holder) =
                scope::start(&container.program()?, wanted, &resources, self.hierarchies)?;
            placeholder = Some(holder);
            group
        } else {
            let select = Select::All(Needs::of(&resources, &Extras::default()));
            let group = Cgroup::create(self.hierarchies, self.cgroup, select)?;
            state.grouped = true;
            group
        };
        for warning in group.apply(&resources, &Extras::default())? {
            let text = format!("linux.resources.{}: {}", warning.setting, warning.message);
            state.warnings.push(text);
        }
        let launched = self.launch(container, options, state, &group)?;
        // The scope has the container's process now.
        drop(placeholder);
        state.warnings.extend(launched.warnings);
        container.record.pid = launched.pid;
        container.record.start_ticks = launched.start_ticks;
        container.record.made = true;
        let pidfd = launched.pidfd;
        let keep = pidfd.try_clone().on("duplicate", "pidfd")?;
        state.pidfd = Some(keep);
        let mut terminal = launched.terminal;
        if let (Some(socket), Some(master)) = (&options.console_socket, &terminal) {
            send_descriptor(socket, "/dev/ptmx", master.as_fd())?;
            terminal = None;
        }
        if let Some(socket) = &options.pidfd_socket {
            send_descriptor(socket, "pidfd", pidfd.as_fd())?;
        }
        container.save()?;
        if let Some(path) = &options.pid_file {
            write_pid(path, launched.pid)?;
        }
        Ok((pidfd, terminal))
    }

    fn launch(
        &self,
        container: &mut Container,
        options: &mut CreateOptions,
        state: &mut Progress,
        group: &Cgroup,
    ) -> Result<Launched> {
        let id = options.id.clone();
        let profile = self
            .spec
            .linux()
            .as_ref()
            .and_then(|l| l.seccomp().as_ref());
        let filters = profile.and_then(|_| container.filters());
        let mut input = PlanInput::new(&id, self.spec, self.bundle);
        input.cgroup = Some(CgroupInput {
            attach: group.attach_fds()?,
            hierarchies: std::sync::Arc::clone(self.hierarchies),
            path: self.cgroup.clone(),
        });
        input.stdio = std::mem::take(&mut options.stdio);
        input.extra_fds = std::mem::take(&mut options.extra_fds);
        input.seccomp_cache = filters.as_ref();
        input.no_pivot = options.no_pivot;
        input.no_new_keyring = options.no_new_keyring;
        let new_user = container.record.namespaces & rkube_sys::clone::CLONE_NEWUSER != 0;
        input.grantable = if new_user { u64::MAX } else { grantable() };
        if let Some(process) = self.spec.process() {
            let has = |e: &String| e.len() > 5 && e.starts_with("HOME=");
            if !process.env().iter().flatten().any(has) {
                input.home = Some(user::home(&container.record.rootfs, process.user().uid())?);
            }
            if !options.start_now {
                input.start = Some(listen(container)?);
            }
        }
        let hooked = [HookKind::Prestart, HookKind::CreateRuntime]
            .iter()
            .any(|kind| !hooks_of(self.spec, *kind).is_empty());
        let meeting = if hooked {
            let (ours, theirs) = Rendezvous::new()?;
            input.rendezvous = Some(theirs);
            Some(ours)
        } else {
            None
        };
        let prepared = plan_container(input)?.open()?;
        let spec = self.spec;
        let program = container.program()?;
        let mut at_rendezvous = |pid: i32| {
            container.record.pid = pid;
            container.record.start_ticks = process_stat(pid).map_or(0, |(start, _)| start);
            container.save()?;
            state.hooked = true;
            for kind in [HookKind::Prestart, HookKind::CreateRuntime] {
                hook::run(spec, kind, &id, self.bundle, "created", pid)?;
            }
            Ok(())
        };
        let meeting = meeting.map(|m| (m, &mut at_rendezvous as &mut dyn FnMut(i32) -> Result<()>));
        launch(&program, prepared, Kind::Container {}, meeting)
    }

    /// Takes down what was made; the first error stays the one that is told.
    fn undo(&self, container: &Container, state: &Progress, error: Error) -> Error {
        let mut errors = vec![error];
        if let Some(pidfd) = &state.pidfd {
            let _ = rkube_sys::signal::pidfd_signal(pidfd.as_fd(), 9);
        }
        if state.grouped {
            let group = Cgroup::open(self.hierarchies, self.cgroup);
            let gone = group
                .and_then(|g| g.kill_all(KILL_WAIT))
                .map_err(Error::from)
                .and_then(|()| remove_group(self.hierarchies, &container.record));
            if let Err(error) = gone {
                errors.push(error);
            }
        } else if let Err(error) = remove_unused_groups(self.hierarchies, &container.record) {
            errors.push(error);
        }
        if state.hooked {
            let id = &container.record.id;
            let kind = HookKind::Poststop;
            if let Err(error) = hook::run(self.spec, kind, id, self.bundle, "stopped", 0) {
                errors.push(error);
            }
        }
        if let Err(error) = container.forget() {
            errors.push(error);
        }
        if errors.len() == 1 {
            errors.remove(0)
        } else {
            Error::Several(errors)
        }
    }
}

/// The limits of a spec, with the devices that every container may use
/// (runtime-spec, config-linux.md, Default Devices): nodes may be made, the
/// default devices and terminals used.
fn resources(spec: &Spec) -> LinuxResources {
    let linux = spec.linux().as_ref();
    let mut resources = linux
        .and_then(|l| l.resources().clone())
        .unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    if rules.is_empty() {
        return resources;
    }
    let mut allow = |kind, major: Option<i64>, minor: Option<i64>, access: &str| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true)
            .set_typ(Some(kind))
            .set_major(major)
            .set_minor(minor)
            .set_access(Some(access.to_owned()));
        rules.push(rule);
    };
    allow(LinuxDeviceType::C, None, None, "m");
    allow(LinuxDeviceType::B, None, None, "m");
    for (_, major, minor) in crate::draft::DEFAULT_DEVICES {
        allow(
            LinuxDeviceType::C,
            Some(major.into()),
            Some(minor.into()),
            "rwm",
        );
    }
    // ptmx, and slaves of devpts (Documentation/admin-guide/devices.txt).
    allow(LinuxDeviceType::C, Some(5), Some(2), "rwm");
    allow(LinuxDeviceType::C, Some(136), None, "rwm");
    resources.set_devices(Some(rules));
    resources
}

fn listen(container: &Container) -> Result<OwnedFd> {
    let (held, address) = container.start_address()?;
    let shown = || container.start_path().display().to_string();
    let listener = UnixListener::bind(&address).on("listen on", shown())?;
    drop(held);
    Ok(listener.into())
}

/// Hands a descriptor over a Unix socket, with a name as its only bytes.
pub(super) fn send_descriptor(socket: &Path, name: &str, fd: BorrowedFd<'_>) -> Result<()> {
    let shown = || socket.display().to_string();
    let stream = UnixStream::connect(socket).on("connect to", shown())?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(
        &stream,
        &[IoSlice::new(name.as_bytes())],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .map(drop)
    .on("send descriptor to", shown())
}

/// Writes a pid beside and renames it, so that a reader sees it whole.
pub(super) fn write_pid(path: &Path, pid: i32) -> Result<()> {
    let shown = || path.display().to_string();
    let name = path
        .file_name()
        .ok_or_else(|| Error::spec("--pid-file", "it names no file"))?;
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    let beside = path.with_file_name(beside);
    std::fs::write(&beside, pid.to_string()).on("write", shown())?;
    std::fs::rename(&beside, path).on("rename", shown())
}
