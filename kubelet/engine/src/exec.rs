//! Programs in running containers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use oci_spec::runtime::{LinuxNamespaceType, Process};
use rkube_cgroup::Cgroup;
use rkube_keeper::plan::Terminal;
use rkube_keeper::protocol::{Kind, ProcessStatus, Reply, Request, StartRequest};
use rkube_keeper::{socket, wire};
use rkube_runtime::spec::{NAMESPACE_FILES, namespace_flag};
use rkube_runtime::{ExecInput, plan_exec};
use rkube_sys::clone::{
    CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER,
    CLONE_NEWUTS,
};

use crate::api::{ContainerId, ExecConfig, ExecHandle, NamespaceMode, SandboxConfig, Stdio};
use crate::container::cgroup_below;
use crate::engine::{Inner, Sandbox};
use crate::error::{Error, OnFile, Result};
use crate::ids::Ids;
use crate::link::{Link, lock};
use crate::proc::Held;
use crate::spec::Identity;

/// Execs of a sandbox that are remembered; when there are more, those that
/// have ended and that nobody has asked for are forgotten.
const MAX_EXECS: usize = 256;
/// How long a keeper may take to tell of an exec that has ended.
const TOLD_LIMIT: Duration = Duration::from_secs(5);
/// `PIPEFS_MAGIC` and `SOCKFS_MAGIC` of `linux/magic.h`: where pipes and
/// sockets lie that have no name.
const PIPEFS_MAGIC: i64 = 0x5049_5045;
const SOCKFS_MAGIC: i64 = 0x534f_434b;
/// The part of an exec's key before its token. A container's key has no
/// underscore.
const KEY_PREFIX: &str = "exec_";

/// How an exec stands.
#[derive(Debug, Default)]
pub(crate) struct ExecEnd {
    told: Mutex<Told>,
    changed: Condvar,
}

#[derive(Debug, Clone, Copy, Default)]
enum Told {
    #[default]
    Running,
    /// With this exit code; -1 when its keeper did not learn it.
    Ended(i32),
    /// Nobody will tell.
    Lost,
}

impl ExecEnd {
    fn tell(&self, told: Told) {
        let mut now = lock(&self.told);
        if matches!(*now, Told::Running) {
            *now = told;
            self.changed.notify_all();
        }
    }

    fn is_over(&self) -> bool {
        !matches!(*lock(&self.told), Told::Running)
    }

    fn wait(&self, limit: Duration) -> Told {
        let running = |told: &mut Told| matches!(told, Told::Running);
        let waited = self
            .changed
            .wait_timeout_while(lock(&self.told), limit, running);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Sandbox {
    pub(crate) fn exec_ended(&self, status: &ProcessStatus) {
        let Some(token) = exec_token(&status.key) else {
            return;
        };
        let end = lock(&self.state).execs.get(&token).cloned();
        if let Some(end) = end {
            end.tell(Told::Ended(code(status)));
        }
    }

    /// What becomes of execs when the connection to a keeper was lost: those
    /// that it does not hold (any more) are nobody's.
    pub(crate) fn lose_execs(&self, held: &[ProcessStatus]) {
        let mut state = lock(&self.state);
        let tokens: Vec<u64> = held.iter().filter_map(|p| exec_token(&p.key)).collect();
        state.last_exec = tokens.iter().copied().fold(state.last_exec, u64::max);
        for (token, end) in &state.execs {
            if !tokens.contains(token) {
                end.tell(Told::Lost);
            }
        }
    }
}

struct Target {
    process: Process,
    seccomp: crate::api::Seccomp,
    privileged: bool,
    caps: Vec<String>,
    first: Arc<Held>,
    sandbox: SandboxConfig,
    ids: Option<Ids>,
}

impl Inner {
    fn target(&self, cell: &Sandbox, id: &ContainerId) -> Result<Target> {
        let state = lock(&cell.state);
        let container = state
            .containers
            .get(id)
            .ok_or_else(|| Error::NoContainer(id.to_string()))?;
        let not_running = || Error::NotRunning(id.to_string());
        let first = container.process.clone().ok_or_else(not_running)?;
        let process = container.record.process.clone().ok_or_else(not_running)?;
        let security = &container.record.config.security;
        let caps = process
            .capabilities()
            .as_ref()
            .and_then(|c| c.bounding().clone());
        Ok(Target {
            seccomp: security.seccomp.clone(),
            privileged: security.privileged,
            caps: caps
                .unwrap_or_default()
                .iter()
                .map(ToString::to_string)
                .collect(),
            process,
            first,
            sandbox: state.record.config.clone(),
            ids: state.record.ids,
        })
    }

    pub(crate) fn exec(
        &self,
        id: &ContainerId,
        config: &ExecConfig,
        stdio: Stdio,
    ) -> Result<ExecHandle> {
        let cell = self.find(&id.sandbox)?;
        let target = self.target(&cell, id)?;
        let object = format!("exec in {id}");
        check_streams(&object, &stdio)?;
        let process = self.exec_process(id, config, &target)?;
        let path = self.cgroup_path(&cgroup_below(&target.sandbox, id))?;
        let on_cgroup = |source| Error::Cgroup {
            object: id.to_string(),
            source,
        };
        let group = Cgroup::open(&self.hierarchies, &path).map_err(on_cgroup)?;
        let profile = crate::spec::seccomp(
            &target.seccomp,
            target.privileged || config.privileged,
            &target.caps,
        )?;
        let draft = plan_exec(ExecInput {
            id: &object,
            process: &process,
            target: (target.first.as_fd().try_clone_to_owned())
                .on("duplicate pidfd of", Path::new(&id.name))?,
            namespaces: namespaces(&target.sandbox),
            joins: match target.ids {
                Some(_) => one_by_one(&target)?,
                None => Vec::new(),
            },
            stream_owner: target.ids.and_then(|ids| ids.on_host(process.user().uid())),
            state: serde_json::json!({ "id": object, "status": "running" }),
            seccomp: profile.as_ref(),
            personality: None,
            attach: Some(
                group
                    .attach_fds_beside(target.first.pid.unsigned_abs())
                    .map_err(on_cgroup)?,
            ),
            stdio: [stdio.stdin, stdio.stdout, stdio.stderr],
            extra_fds: Vec::new(),
            home: None,
            grantable: u64::MAX,
            seccomp_cache: self.filters.as_ref(),
        });
        let on_runtime = |source| Error::Runtime {
            object: object.clone(),
            source,
        };
        let mut prepared = draft
            .and_then(rkube_runtime::Draft::open)
            .map_err(on_runtime)?;
        if config.tty {
            prepared.plan.terminal = Some(Terminal { size: config.size });
        }
        self.launch_exec(&cell, &object, &prepared)
    }

    fn launch_exec(
        &self,
        cell: &Sandbox,
        object: &str,
        prepared: &rkube_runtime::Prepared,
    ) -> Result<ExecHandle> {
        let memory = rkube_sys::memfd::sealed_data(c"plan", &wire::encode(&prepared.plan))
            .on("make plan of", Path::new(object))?;
        let mut fds = vec![memory.as_fd()];
        fds.extend(socket::borrow(&prepared.fds));
        let (token, link) = {
            let mut state = lock(&cell.state);
            let link = state.link.clone();
            if state.execs.len() >= MAX_EXECS {
                state.execs.retain(|_, end| !end.is_over());
            }
            state.last_exec += 1;
            let token = state.last_exec;
            // Before it runs: it may end at once.
            state.execs.insert(token, Arc::default());
            (token, link)
        };
        let started = self.call_exec(cell, object, token, link, &fds);
        if started.is_err() {
            lock(&cell.state).execs.remove(&token);
        }
        started
    }

    fn call_exec(
        &self,
        cell: &Sandbox,
        object: &str,
        number: u64,
        link: Option<Arc<Link>>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<ExecHandle> {
        let broken = |what: String| Error::Keeper {
            sandbox: cell.id.clone(),
            what,
        };
        let link = link.ok_or_else(|| broken("it has gone".into()))?;
        let request = StartRequest {
            key: exec_key(number),
            kind: Kind::Exec {},
            log: None,
            stdin: false,
            oom_counter: false,
        };
        let (reply, fds) = link.call(|token| Request::Start { token, request }, fds, object)?;
        let Reply::Started {
            status, terminal, ..
        } = reply
        else {
            return Err(broken(format!("unexpected answer {reply:?}")));
        };
        let mut fds = fds.into_iter();
        let pidfd = fds
            .next()
            .ok_or_else(|| broken("it sent no pidfd".into()))?;
        Ok(ExecHandle {
            pid: u32::try_from(status.pid).unwrap_or_default(),
            pidfd,
            terminal: if terminal { fds.next() } else { None },
            token: number,
        })
    }

    /// The container's process with another program, and what the caller
    /// wants different.
    fn exec_process(
        &self,
        id: &ContainerId,
        config: &ExecConfig,
        target: &Target,
    ) -> Result<Process> {
        let invalid = |what: String| Error::Invalid {
            object: id.to_string(),
            what,
        };
        if config.argv.first().is_none_or(String::is_empty) {
            return Err(invalid("no command to execute".into()));
        }
        let mut process = target.process.clone();
        process.set_args(Some(config.argv.clone()));
        process.set_terminal(Some(config.tty));
        let mut env = process.env().clone().unwrap_or_default();
        env.extend(config.env.iter().map(|(k, v)| format!("{k}={v}")));
        if config.tty && !env.iter().any(|e| e.starts_with("TERM=")) {
            env.push("TERM=xterm".into());
        }
        process.set_env(Some(env));
        if let Some(dir) = &config.working_dir {
            process.set_cwd(dir.into());
        }
        if let Some(user) = &config.user {
            let identity = user_in(id, &target.first, user)?;
            let mut own = process.user().clone();
            own.set_uid(identity.uid);
            own.set_gid(identity.gid);
            own.set_additional_gids(Some(identity.groups));
            process.set_user(own);
        }
        if config.privileged {
            process.set_capabilities(Some(crate::spec::all_capabilities(id)?));
        }
        Ok(process)
    }

    /// Never longer than the program runs, and a little.
    pub(crate) fn exec_wait(&self, id: &ContainerId, handle: &ExecHandle) -> i32 {
        let cell = self.find(&id.sandbox).ok();
        let end = cell
            .as_ref()
            .and_then(|cell| lock(&cell.state).execs.get(&handle.token).cloned());
        crate::proc::wait(&handle.pidfd, None);
        let told = end.map_or(Told::Lost, |end| end.wait(TOLD_LIMIT));
        if let Some(cell) = cell {
            lock(&cell.state).execs.remove(&handle.token);
        }
        match told {
            Told::Ended(code) if code >= 0 => code,
            _ => crate::proc::exit_code(&handle.pidfd).unwrap_or(-1),
        }
    }

    pub(crate) fn resize(&self, id: &ContainerId, size: (u16, u16)) -> Result<()> {
        let cell = self.find(&id.sandbox)?;
        let link = lock(&cell.state).link.clone();
        let link = link.ok_or_else(|| Error::NotRunning(id.to_string()))?;
        let key = crate::engine::key(id);
        let (columns, rows) = size;
        let object = format!("terminal of {id}");
        link.call(
            |token| Request::Resize {
                token,
                key,
                columns,
                rows,
            },
            &[],
            &object,
        )
        .map(drop)
    }
}

/// The namespaces of a container that has a user namespace.
fn one_by_one(target: &Target) -> Result<Vec<(LinuxNamespaceType, OwnedFd)>> {
    let wanted = namespaces(&target.sandbox);
    NAMESPACE_FILES
        .into_iter()
        .filter(|(kind, _)| wanted & namespace_flag(*kind) != 0)
        .map(|(kind, name)| Ok((kind, target.first.namespace(name)?)))
        .collect()
}

fn exec_key(token: u64) -> String {
    format!("{KEY_PREFIX}{token}")
}

fn exec_token(key: &str) -> Option<u64> {
    key.strip_prefix(KEY_PREFIX)?.parse().ok()
}

fn code(status: &ProcessStatus) -> i32 {
    status.exit.as_ref().map_or(-1, |e| e.code)
}

/// Streams come from outside and go into a container, which can open them
/// anew with any access (/proc/self/fd) and change their mode: only those may
/// that are nothing on the host.
fn check_streams(object: &str, stdio: &Stdio) -> Result<()> {
    let streams = [
        ("standard input", &stdio.stdin),
        ("standard output", &stdio.stdout),
        ("standard error", &stdio.stderr),
    ];
    for (name, fd) in streams {
        let Some(fd) = fd else { continue };
        let stat = rustix::fs::fstatfs(fd).on("stat", Path::new(name))?;
        if !matches!(stat.f_type, PIPEFS_MAGIC | SOCKFS_MAGIC) {
            return Err(Error::Invalid {
                object: object.to_owned(),
                what: format!("{name} is neither a nameless pipe nor a socket"),
            });
        }
    }
    Ok(())
}

/// Asks the container's own files, through a descriptor of its root.
fn user_in(id: &ContainerId, first: &Held, user: &str) -> Result<Identity> {
    let root = first.root()?;
    let found = rkube_image::resolve_user(root.as_fd(), Some(user));
    let found = found.map_err(|source| Error::Image {
        image: id.to_string(),
        source,
    })?;
    Ok(Identity {
        uid: found.uid,
        gid: found.gid,
        groups: found.additional_gids,
        home: found.home,
    })
}

/// What a container has of its own or shares with its pod: the kinds that an
/// exec joins through the container's first process.
fn namespaces(sandbox: &SandboxConfig) -> u64 {
    let mut kinds = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS;
    if sandbox.network == NamespaceMode::Pod {
        kinds |= CLONE_NEWNET;
    }
    if sandbox.ipc == NamespaceMode::Pod {
        kinds |= CLONE_NEWIPC;
    }
    if sandbox.pid != NamespaceMode::Host {
        kinds |= CLONE_NEWPID;
    }
    if sandbox.user_namespace {
        kinds |= CLONE_NEWUSER;
    }
    kinds
}
