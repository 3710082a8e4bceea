//! The new process: from the clone to the execution of its program.
//!
//! ```text
//!   clone3 ─► session, namespaces joined ─► steps of the plan, in order
//!                                           (attachments by descriptor only)
//!          ─► terminal, standard streams ─► identity ─► Ready
//!          ─► (waits for `start`) ─► filter, last capabilities ─► execve
//! ```
//! A step that fails is told to the parent with its operation, object and
//! errno, and the process ends. The end of the sync socket, closed by exec,
//! tells the parent that the program runs.

mod program;

use std::cell::OnceCell;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rkube_sys::clone::CLONE_NEWCGROUP;
use rkube_sys::mount::AttrChange;
use rustix::io::Errno;
use rustix::process::DumpableBehavior;

use crate::error::{Context, Result, failure, refusal};
use crate::files::{Node, PrivateProc, make_node, make_symlink};
use crate::identity::{self, PreparedFilter};
use crate::inroot::Root;
use crate::mounts::{self, Mounts, show};
use crate::plan::{Failure, FdIndex, Plan, StageMessage, Step};
use crate::{bridge, hook, socket, wire};

/// Exit code of a process that could not become its program.
const SETUP_FAILED: i32 = 127;

/// Everything that a stage works with.
#[derive(Debug)]
pub struct Stage<'a> {
    plan: &'a Plan,
    fds: &'a [OwnedFd],
    sync: BorrowedFd<'a>,
    /// Where `sync` is once descriptors were placed for the program.
    moved_sync: Option<OwnedFd>,
    /// Where this process has its root; another one after pivot_root(2).
    root: OnceCell<Rc<Root>>,
    mounts: Mounts,
    proc: Option<PrivateProc>,
    warnings: Vec<String>,
    in_cgroup: bool,
    /// Where the seccomp agent's socket is once descriptors were placed.
    moved_agent: Option<OwnedFd>,
    /// This process on the host, where the plan needs it; else 0.
    host_pid: i32,
}

/// Becomes the program of the plan, or tells the parent why not and ends.
pub fn run(plan: &Plan, fds: &[OwnedFd], sync: BorrowedFd<'_>) -> ! {
    let mut stage = Stage {
        plan,
        fds,
        sync,
        moved_sync: None,
        root: OnceCell::new(),
        mounts: Mounts::default(),
        proc: None,
        warnings: Vec::new(),
        in_cgroup: false,
        moved_agent: None,
        host_pid: 0,
    };
    if let Err(failure) = stage.all() {
        // Nobody is left to tell when this fails too: the exit code says it.
        let _ = stage.tell(&StageMessage::Failed { failure }, &[]);
    }
    rkube_sys::process::exit_now(SETUP_FAILED)
}

impl Stage<'_> {
    fn tell(&self, message: &StageMessage, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let sync = self.moved_sync.as_ref().map_or(self.sync, AsFd::as_fd);
        socket::send(sync, &wire::encode(message), fds).on("tell", "parent")
    }

    fn fd(&self, index: FdIndex) -> Result<&OwnedFd> {
        self.fds
            .get(usize::from(index))
            .ok_or_else(|| refusal("use descriptor", index.to_string(), "the plan has fewer"))
    }

    fn all(&mut self) -> Result<()> {
        rkube_sys::signal::reset_all();
        rustix::process::setsid().on("make", "session")?;
        // What is not said otherwise is made with the bits that are asked for.
        rustix::process::umask(rustix::fs::Mode::empty());
        self.close_foreign()?;
        self.join_namespaces()?;
        let in_user_namespace = bridge::enters_user_namespace(self.plan);
        if in_user_namespace || self.plan.seccomp_agent.is_some() {
            self.wait_for_parent()?;
        }
        if in_user_namespace {
            self.become_namespace_root()?;
        }
        Self::become_undumpable()?;
        for step in &self.plan.steps {
            self.step(step)?;
        }
        if !self.in_cgroup {
            self.enter_cgroup()?;
        }
        if self.plan.program.argv.is_empty() {
            self.pause()
        } else {
            self.program()
        }
    }

    /// Of the keeper's descriptors a stage keeps those of its plan alone:
    /// it may be born into a namespace where others can look at it.
    fn close_foreign(&self) -> Result<()> {
        let mut keep = socket::borrow(self.fds);
        keep.push(self.sync);
        // SAFETY: this process never returns to the code that owns the
        // others: it executes a program or ends by exit_now.
        #[allow(unsafe_code)]
        unsafe { rkube_sys::fd::close_others(&keep) }.on("close", "the keeper's descriptors")?;
        rkube_sys::fd::cloexec_from(3).on("mark close-on-exec", "all descriptors")
    }

    fn become_undumpable() -> Result<()> {
        // Nobody may trace this process or look into its descriptors while
        // it stands between host and container (prctl(2), PR_SET_DUMPABLE).
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .on("become", "non-dumpable")
    }

    /// Joins what exists, but for what the parent has joined already.
    fn join_namespaces(&self) -> Result<()> {
        for join in &self.plan.joins {
            let kind = bridge::left_to_the_stage(self.plan, join.kind);
            if kind == 0 {
                continue;
            }
            let fd = self.fd(join.fd)?;
            rkube_sys::process::join_namespaces(fd.as_fd(), kind)
                .on("join namespace", bridge::kind_names(kind))?;
        }
        Ok(())
    }

    /// In a user namespace: its root, with all its capabilities.
    fn become_namespace_root(&self) -> Result<()> {
        const WHOM: &str = "0 of the user namespace";
        let zero = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
        let unmapped = |mut failed: Failure| {
            if failed.errno == Errno::INVAL.raw_os_error() {
                failed.hint = "the id maps must have an entry for 0".to_owned();
            }
            failed
        };
        rustix::thread::set_thread_res_gid(zero.1, zero.1, zero.1)
            .on("set group", WHOM)
            .map_err(unmapped)?;
        rustix::thread::set_thread_res_uid(zero.0, zero.0, zero.0)
            .on("set user", WHOM)
            .map_err(unmapped)?;
        // The host's groups mean nothing here.
        match rustix::thread::set_thread_groups(&[]) {
            // Denied in this namespace (user_namespaces(7), setgroups).
            Ok(()) | Err(Errno::PERM) => Ok(()),
            Err(errno) => Err(failure("drop", "supplementary groups", errno)),
        }
    }

    /// Waits until the parent has done its part, and learns its own process
    /// id on the host.
    fn wait_for_parent(&mut self) -> Result<()> {
        self.tell(&StageMessage::Waiting {}, &[])?;
        let packet = socket::receive(self.sync).on("wait for", "parent")?;
        if packet.bytes.is_empty() {
            return Err(refusal("wait for", "parent", "it has gone"));
        }
        self.host_pid = wire::decode(&packet.bytes)
            .map_err(|e| refusal("understand", "parent", &e.to_string()))?;
        Ok(())
    }

    fn enter_cgroup(&mut self) -> Result<()> {
        for index in &self.plan.cgroup.tasks {
            let file = self.fd(*index)?;
            rustix::io::write(file, b"0").on("join", "cgroup (tasks)")?;
        }
        if self.plan.cgroup.namespace {
            rkube_sys::process::unshare_namespaces(CLONE_NEWCGROUP)
                .on("make", "cgroup namespace")?;
        }
        self.in_cgroup = true;
        Ok(())
    }

    fn root(&self) -> Result<Rc<Root>> {
        if let Some(root) = self.root.get() {
            return Ok(Rc::clone(root));
        }
        let root = Rc::new(Root::of_process().on("open", "/")?);
        Ok(Rc::clone(self.root.get_or_init(|| root)))
    }

    fn private_proc(&mut self) -> Result<&PrivateProc> {
        if self.proc.is_none() {
            self.proc = Some(PrivateProc::new()?);
        }
        self.proc
            .as_ref()
            .ok_or_else(|| refusal("make", "private procfs", "not kept"))
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Propagation { flag } => mounts::set_root_propagation(*flag, true),
            Step::PivotRoot { fd, no_pivot } => {
                mounts::pivot(self.fd(*fd)?.as_fd(), *no_pivot)?;
                self.root = OnceCell::new();
                Ok(())
            }
            Step::Filesystem {
                slot,
                kind,
                source,
                options,
                attributes,
            } => {
                let mount = mounts::new_filesystem(kind, source, options, *attributes)?;
                self.mounts.keep(*slot, mount);
                Ok(())
            }
            Step::Attach {
                slot,
                target,
                propagation,
            } => self
                .mounts
                .attach(self.root()?.as_ref(), *slot, target, *propagation),
            Step::CopyUp {
                slot,
                target,
                itself,
            } => self
                .mounts
                .copy_up(self.root()?.as_ref(), *slot, target, *itself),
            Step::AttachFd {
                fd,
                target,
                directory,
            } => mounts::attach_fd(
                self.root()?.as_ref(),
                self.fd(*fd)?.as_fd(),
                target,
                *directory,
            ),
            Step::Device {
                path,
                mode,
                major,
                minor,
                uid,
                gid,
            } => {
                let node = Node {
                    mode: *mode,
                    device: (*major, *minor),
                    owner: (*uid, *gid),
                };
                make_node(self.root()?.as_ref(), path, node)
            }
            Step::Symlink { path, target } => make_symlink(self.root()?.as_ref(), path, target),
            Step::Mask { path } => {
                let null = match self.plan.null {
                    Some(index) => Some(self.fds.get(usize::from(index)).map(AsFd::as_fd)),
                    None => None,
                };
                self.mounts
                    .mask(self.root()?.as_ref(), path, null.flatten())
            }
            Step::ReadOnly { path } => mounts::read_only(self.root()?.as_ref(), path),
            Step::RootReadOnly {} => {
                let change = AttrChange {
                    set: rkube_sys::mount::MOUNT_ATTR_RDONLY,
                    ..AttrChange::default()
                };
                mounts::remount(self.root()?.as_ref(), c"/", change, false)
            }
            Step::Sysctl { path, value } => {
                let mut whole = b"sys/".to_vec();
                whole.extend_from_slice(path.to_bytes());
                let whole = CString::new(whole)
                    .map_err(|_| failure("set kernel parameter", show(path), Errno::INVAL))?;
                self.private_proc()?.write(&whole, value.to_bytes())
            }
            Step::Hostname { name } => {
                rustix::system::sethostname(name.to_bytes()).on("set host name", show(name))
            }
            Step::Domainname { name } => {
                rustix::system::setdomainname(name.to_bytes()).on("set domain name", show(name))
            }
            Step::LoopbackUp {} => loopback_up(),
            Step::RootPropagation { flag, recursive } => {
                mounts::set_root_propagation(*flag, *recursive)
            }
            Step::EnterCgroup {} => self.enter_cgroup(),
            Step::MemoryPolicy { mode, nodes } => {
                rkube_sys::process::set_memory_policy(*mode, nodes)
                    .on("set", "memory policy (linux.memoryPolicy)")
            }
            Step::CpuAffinity { cpus } => rkube_sys::process::set_cpu_affinity(cpus)
                .on("set", "CPU affinity (process.execCPUAffinity)"),
            Step::Hook {
                path,
                argv,
                env,
                timeout_s,
                stdin,
            } => hook::run(path, argv, env, *timeout_s, stdin),
            Step::Remount {
                target,
                set,
                clear,
                propagation,
                recursive,
            } => {
                let change = AttrChange {
                    set: *set,
                    clear: *clear,
                    propagation: *propagation,
                };
                mounts::remount(self.root()?.as_ref(), target, change, *recursive)
            }
            Step::Rendezvous { fd } => {
                let socket = self.fd(*fd)?;
                let mut byte = [0_u8; 1];
                rustix::io::write(socket, &byte).on("report to", "rendezvous")?;
                match rustix::io::read(socket, &mut byte).on("wait for", "rendezvous")? {
                    1 => Ok(()),
                    _ => Err(refusal(
                        "wait for",
                        "rendezvous",
                        "the other side has given up",
                    )),
                }
            }
        }
    }

    /// Holds the namespaces, and reaps what is orphaned in them, until it is
    /// told to end.
    fn pause(&mut self) -> Result<()> {
        const SIGNALS: [i32; 3] = [15, 2, 17]; // SIGTERM, SIGINT, SIGCHLD (signal(7))
        rkube_sys::signal::block(&SIGNALS);
        rustix::thread::set_name(c"pause").on("set name", "pause")?;
        // It only waits: whoever got hold of it would gain nothing.
        let filter = self.plan.program.seccomp.as_ref();
        let filter = filter.map(PreparedFilter::new).transpose()?;
        identity::give_up_everything()?;
        Self::become_undumpable()?;
        if let Some(filter) = &filter {
            filter.load()?;
        }
        self.tell(
            &StageMessage::Ready {
                terminal: false,
                listener: false,
            },
            &[],
        )?;
        rustix::process::chdir(c"/").on("change directory to", "/")?;
        // SAFETY: this process never returns to code that owns a descriptor:
        // it ends by exit_now below.
        #[allow(unsafe_code)]
        unsafe { rkube_sys::fd::close_from(3) }.on("close", "all descriptors")?;
        rkube_sys::process::trim_heap();
        loop {
            if rkube_sys::signal::wait(&SIGNALS) != 17 {
                rkube_sys::process::exit_now(0);
            }
            while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
        }
    }
}

fn loopback_up() -> Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .on("open", "socket for lo")?;
    rkube_sys::net::loopback_up(socket.as_fd()).on("set up", "lo")
}
