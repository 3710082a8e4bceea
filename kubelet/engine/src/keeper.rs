//! Keepers: how one is started, found again, heard and ended.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use rkube_cgroup::{Cgroup, Controller, Needs, Select, Version};
use rkube_keeper::protocol::{ProcessStatus, Reply, Request};
use rkube_keeper::wire::{PROTOCOL_VERSION, decode, encode};
use rkube_keeper::{process::record_name, socket};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use crate::engine::{GONE_LIMIT, Inner, Sandbox};
use crate::error::{Error, OnFile, Result};
use crate::link::{Link, lock};
use crate::record::SandboxRecord;

/// Connections that may wait at a keeper's socket.
const KEEPER_BACKLOG: i32 = 4;
/// How long a keeper may take to take a connection and to say what it holds.
/// It answers within microseconds, unless its host is overwhelmed.
const HELLO_LIMIT: Duration = Duration::from_secs(5);

/// What a keeper says of itself.
#[derive(Debug)]
pub(crate) struct Hello {
    pub(crate) pid: i32,
    pub(crate) processes: Vec<ProcessStatus>,
}

/// Why a keeper's first words were not heard.
#[derive(Debug)]
pub(crate) enum Mute {
    /// Nobody is there.
    Dead,
    /// Somebody is there and does not answer, or has just gone.
    Silent(String),
    /// It speaks an older version of the protocol: an rkube before an upgrade
    /// started it.
    Older(u32),
    /// It speaks another language, a newer one most likely.
    Foreign(String),
}

impl Mute {
    fn what(self) -> String {
        match self {
            Self::Dead => "it has ended".into(),
            Self::Older(version) => format!("it speaks protocol {version}"),
            Self::Silent(what) | Self::Foreign(what) => what,
        }
    }
}

impl Inner {
    pub(crate) fn pod_dir(&self, id: &str) -> PathBuf {
        self.config.instance.run_dir().join("pods").join(id)
    }

    /// Starts a keeper, which holds nothing yet.
    pub(crate) fn start_keeper(&self, id: &str) -> Result<(Child, Arc<Link>)> {
        let dir = self.pod_dir(id);
        crate::record::make_private_dir(&dir)?;
        let (ours, theirs) = socket::pair().on("make socket for", &dir)?;
        let child = self.family.bear(|| {
            let spawned = self.program.spawn("keeper", theirs);
            spawned.on("start keeper of", &dir)
        })?;
        match self.configure_keeper(id, &dir, ours) {
            Ok(link) => Ok((child, link)),
            Err(error) => {
                self.family.bury(child, false);
                Err(error)
            }
        }
    }

    /// Tells a new keeper what it has to know.
    fn configure_keeper(&self, id: &str, dir: &Path, ours: OwnedFd) -> Result<Arc<Link>> {
        let broken = |what: String| Error::Keeper {
            sandbox: id.to_owned(),
            what,
        };
        let mut fds = vec![listen(dir)?, open_dir(dir)?];
        fds.extend(self.own_cgroup()?);
        let writer = self
            .config
            .writer
            .iter()
            .map(|a| CString::new(a.clone().into_vec()));
        let writer = writer.collect::<std::result::Result<Vec<_>, _>>();
        let configure = Request::Configure {
            version: PROTOCOL_VERSION,
            pod: id.to_owned(),
            writer: writer.map_err(|e| broken(format!("writer's arguments: {e}")))?,
        };
        socket::send(ours.as_fd(), &encode(&configure), &socket::borrow(&fds))
            .on("configure keeper of", dir)?;
        limit(&ours, Some(HELLO_LIMIT)).on("limit the answer of", dir)?;
        hear_hello(&ours).map_err(|mute| broken(mute.what()))?;
        limit(&ours, None).on("unlimit the answers of", dir)?;
        self.reader()?.connect(id, ours)
    }

    /// Files through which a keeper enters rkube's own cgroup, so that it
    /// dies neither with a session, a unit nor a pod's memory limit.
    fn own_cgroup(&self) -> Result<Vec<OwnedFd>> {
        let path = self.cgroup_path("system")?;
        let on = |source| Error::Cgroup {
            object: path.to_string(),
            source,
        };
        // Of v1 what could end, starve or freeze it: whoever starts the first
        // pod may be in a limited group.
        let threats: Vec<Controller> = [
            Controller::Cpu,
            Controller::Memory,
            Controller::Pids,
            Controller::Freezer,
        ]
        .into_iter()
        .filter(|c| {
            let hierarchy = self.hierarchies.of(*c);
            hierarchy.is_some_and(|h| h.version() == Version::V1)
        })
        .collect();
        let select = Select::Only(Needs::none().and(&threats));
        let group = Cgroup::ensure(&self.hierarchies, &path, select).map_err(on)?;
        let fds = group.attach_fds().map_err(on)?;
        let mut files = fds.tasks;
        if let Some(dir) = fds.clone_into {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&dir, "cgroup.procs", flags, Mode::empty())
                .on("open cgroup.procs of", Path::new(path.as_str()))?;
            files.push(file);
        }
        Ok(files)
    }

    /// What a keeper, perhaps dead, wrote about one of its processes.
    pub(crate) fn keeper_wrote(&self, sandbox: &str, key: &str) -> Option<ProcessStatus> {
        let bytes = std::fs::read(self.pod_dir(sandbox).join(record_name(key))).ok()?;
        decode(&bytes).ok()
    }

    pub(crate) fn end_keeper(&self, cell: &Sandbox, record: &SandboxRecord) -> Result<()> {
        let (child, link) = {
            let mut state = lock(&cell.state);
            (state.keeper.take(), state.link.take())
        };
        let asked = link.is_some_and(|link| {
            let object = format!("keeper of {}", cell.id);
            // Its pause may not be reaped yet in its own view; it is killed
            // below when it refuses.
            link.call(|token| Request::Shutdown { token }, &[], &object)
                .is_ok()
        });
        if let Some(child) = child {
            self.family.bury(child, asked);
            return Ok(());
        }
        if asked {
            return Ok(());
        }
        self.kill_keeper(cell, record)
    }

    /// Makes sure that the keeper of a record runs no more.
    pub(crate) fn kill_keeper(&self, cell: &Sandbox, record: &SandboxRecord) -> Result<()> {
        let Some(pid) = record.keeper_pid.filter(|_| record.boot_id == self.boot_id) else {
            return Ok(());
        };
        crate::proc::kill_keeper(pid, &self.pod_dir(&cell.id), GONE_LIMIT).map_err(|what| {
            Error::Keeper {
                sandbox: cell.id.clone(),
                what,
            }
        })
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).on("open", path)
}

/// The address of a keeper's socket. It goes through a descriptor of its
/// directory, since an address holds 108 bytes and a root may be deep
/// (unix(7)).
fn address(dir: BorrowedFd<'_>) -> std::result::Result<SocketAddrUnix, Errno> {
    SocketAddrUnix::new(format!("/proc/self/fd/{}/keeper.sock", dir.as_raw_fd()))
}

fn make_socket() -> std::result::Result<OwnedFd, Errno> {
    let flags = rustix::net::SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

fn listen(dir: &Path) -> Result<OwnedFd> {
    let fd = open_dir(dir)?;
    let path = dir.join("keeper.sock");
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        other => other.on("remove", &path)?,
    }
    let socket = make_socket().on("make socket", &path)?;
    rustix::net::bind(&socket, &address(fd.as_fd()).on("bind", &path)?).on("bind", &path)?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .on("set mode of", &path)?;
    rustix::net::listen(&socket, KEEPER_BACKLOG).on("listen at", &path)?;
    Ok(socket)
}

/// How long one send, receive or connect may wait (`SO_RCVTIMEO` and
/// `SO_SNDTIMEO`, socket(7)).
fn limit(socket: &OwnedFd, limit: Option<Duration>) -> std::result::Result<(), Errno> {
    set_socket_timeout(socket, Timeout::Recv, limit)?;
    set_socket_timeout(socket, Timeout::Send, limit)
}

/// Connects to the keeper of a pod that an earlier connection or writer left.
pub(crate) fn contact(dir: &Path) -> std::result::Result<(OwnedFd, Hello), Mute> {
    let silent = |what: &'static str| move |e: Errno| Mute::Silent(format!("{what}: {e}"));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = match rustix::fs::open(dir, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Err(Mute::Dead),
        other => other.map_err(silent("open its directory"))?,
    };
    let socket = make_socket().map_err(silent("make socket"))?;
    limit(&socket, Some(HELLO_LIMIT)).map_err(silent("set time limit"))?;
    let address = address(fd.as_fd()).map_err(silent("name socket"))?;
    match rustix::net::connect(&socket, &address) {
        Err(Errno::CONNREFUSED | Errno::NOENT) => return Err(Mute::Dead),
        other => other.map_err(silent("connect"))?,
    }
    let hello = Request::Hello {
        version: PROTOCOL_VERSION,
    };
    socket::send(socket.as_fd(), &encode(&hello), &[]).map_err(silent("say hello"))?;
    let held = hear_hello(&socket)?;
    limit(&socket, None).map_err(silent("lift time limit"))?;
    Ok((socket, held))
}

/// The first words of a keeper: what it holds.
fn hear_hello(socket: &OwnedFd) -> std::result::Result<Hello, Mute> {
    let packet = match socket::receive(socket.as_fd()) {
        Err(Errno::AGAIN) => {
            let limit = HELLO_LIMIT.as_secs();
            return Err(Mute::Silent(format!("it said nothing within {limit} s")));
        }
        other => other.map_err(|e| Mute::Silent(format!("hear hello: {e}")))?,
    };
    if packet.bytes.is_empty() {
        return Err(Mute::Silent("it closed its end".into()));
    }
    match decode::<Reply>(&packet.bytes) {
        Ok(Reply::Hello {
            version,
            pid,
            processes,
        }) if version == PROTOCOL_VERSION => Ok(Hello { pid, processes }),
        Ok(Reply::Hello { version, .. }) if version < PROTOCOL_VERSION => Err(Mute::Older(version)),
        Ok(Reply::Hello { version, .. }) => Err(Mute::Foreign(format!(
            "it speaks protocol {version}, newer than {PROTOCOL_VERSION}: upgrade rkube"
        ))),
        Ok(other) => Err(Mute::Foreign(format!("unexpected first words {other:?}"))),
        Err(e) => Err(Mute::Foreign(format!("understand hello: {e}"))),
    }
}
