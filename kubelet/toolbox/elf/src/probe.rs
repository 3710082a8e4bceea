//! Applets that print what the kernel grants this process.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, MountFlags, OpenTreeFlags, fsopen, mount, open_tree};
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, Timespec};

use crate::applets::{DONE, Outcome};
use crate::error::{During, ToolError};
use crate::output;

/// The lines of `/proc/self/status` that tell privileges.
pub(crate) fn caps(_: &[String]) -> Outcome {
    const WANTED: &[&str] = &["Uid", "Gid", "Cap", "NoNewPrivs", "Seccomp"];
    let path = "/proc/self/status";
    let text = fs::read_to_string(path).during(|| format!("read {path}"))?;
    for line in text.lines() {
        if WANTED.iter().any(|name| line.starts_with(name)) {
            output::line(line)?;
        }
    }
    DONE
}

/// `PID PPID STATE COMMAND` of every process that /proc shows.
pub(crate) fn ps(_: &[String]) -> Outcome {
    let mut pids = Vec::new();
    for item in fs::read_dir("/proc").during(|| "list /proc".to_owned())? {
        let name = item.during(|| "list /proc".to_owned())?.file_name();
        if let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) {
            pids.push(pid);
        }
    }
    pids.sort_unstable();
    for pid in pids {
        let dir = Path::new("/proc").join(pid.to_string());
        // A process may end between the listing and here.
        let Ok(stat) = fs::read_to_string(dir.join("stat")) else {
            continue;
        };
        let Some((name, state, parent)) = stat_fields(&stat) else {
            continue;
        };
        let command = fs::read(dir.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let command = match command.trim_end() {
            "" => format!("[{name}]"),
            command => command.to_owned(),
        };
        output::line(&format!("{pid} {parent} {state} {command}"))?;
    }
    DONE
}

/// Name, state and parent in a line of proc(5) `stat`; the name may hold
/// blanks and parentheses, so it ends at the last one.
fn stat_fields(stat: &str) -> Option<(&str, &str, &str)> {
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let mut fields = tail.split_whitespace();
    Some((name, fields.next()?, fields.next()?))
}

/// `NAME SOFT HARD` for each resource limit.
pub(crate) fn ulimit(_: &[String]) -> Outcome {
    const LIMITS: &[(&str, Resource)] = &[
        ("as", Resource::As),
        ("core", Resource::Core),
        ("cpu", Resource::Cpu),
        ("data", Resource::Data),
        ("fsize", Resource::Fsize),
        ("locks", Resource::Locks),
        ("memlock", Resource::Memlock),
        ("msgqueue", Resource::Msgqueue),
        ("nice", Resource::Nice),
        ("nofile", Resource::Nofile),
        ("nproc", Resource::Nproc),
        ("rss", Resource::Rss),
        ("rtprio", Resource::Rtprio),
        ("rttime", Resource::Rttime),
        ("sigpending", Resource::Sigpending),
        ("stack", Resource::Stack),
    ];
    let text = |value: Option<u64>| value.map_or("unlimited".to_owned(), |v| v.to_string());
    for (name, resource) in LIMITS {
        let limit = getrlimit(*resource);
        let (soft, hard) = (text(limit.current), text(limit.maximum));
        output::line(&format!("{name} {soft} {hard}"))?;
    }
    DONE
}

/// For each standard stream: `NAME tty COLUMNSxROWS` or `NAME no`.
pub(crate) fn tty(_: &[String]) -> Outcome {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let streams = [
        ("stdin", stdin.as_fd()),
        ("stdout", stdout.as_fd()),
        ("stderr", stderr.as_fd()),
    ];
    let mut terminal = false;
    for (name, fd) in streams {
        match rustix::termios::tcgetwinsize(fd) {
            Ok(size) => {
                terminal |= name == "stdin";
                output::line(&format!("{name} tty {}x{}", size.ws_col, size.ws_row))?;
            }
            Err(_) => output::line(&format!("{name} no"))?,
        }
    }
    Ok(crate::applets::End::Status(u8::from(!terminal)))
}

type Attempt = fn() -> Result<(), Errno>;

/// Calls that a container's filter or capabilities commonly refuse, made so
/// that success changes nothing outside this process. Those that give it more
/// rights come last.
const ATTEMPTS: &[(&str, Attempt)] = &[
    // Allowed everywhere: shows that the filter does not refuse all.
    ("getcwd", || rustix::process::getcwd(Vec::new()).map(drop)),
    // An impossible time: EINVAL unless a filter answers first.
    ("clock_settime", || {
        rustix::time::clock_settime(ClockId::Realtime, NO_TIME)
    }),
    ("delete_module", || {
        rustix::system::delete_module(c"no-such-module", 0)
    }),
    ("fsopen", || {
        fsopen("no-such-filesystem", FsOpenFlags::empty()).map(drop)
    }),
    ("mknod-block", mknod_block),
    ("mount", || {
        mount("none", "/", "no-such-filesystem", MountFlags::empty(), None)
    }),
    ("open_tree", || {
        open_tree(CWD, "/", OpenTreeFlags::OPEN_TREE_CLONE).map(drop)
    }),
    ("packet-socket", || {
        attempt_socket(AddressFamily::PACKET, SocketType::RAW)
    }),
    ("pivot_root", || rustix::process::pivot_root("/", "/")),
    ("raw-socket", || {
        attempt_socket(AddressFamily::INET, SocketType::RAW)
    }),
    ("sethostname", || {
        rustix::system::sethostname(rustix::system::uname().nodename().to_bytes())
    }),
    ("vsock-socket", || {
        attempt_socket(AddressFamily::VSOCK, SocketType::STREAM)
    }),
    ("chroot", || rustix::process::chroot("/")),
    ("ptrace", || nix::sys::ptrace::traceme().map_err(from_nix)),
    ("unshare-mount", || {
        unshare(CloneFlags::CLONE_NEWNS).map_err(from_nix)
    }),
    ("unshare-net", || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(from_nix)
    }),
    ("unshare-user", || {
        unshare(CloneFlags::CLONE_NEWUSER).map_err(from_nix)
    }),
];

/// Nanoseconds beyond a second: no clock can be set to it.
const NO_TIME: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 2_000_000_000,
};

fn from_nix(errno: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(errno as i32)
}

fn attempt_socket(family: AddressFamily, kind: SocketType) -> Result<(), Errno> {
    socket(family, kind, None).map(drop)
}

/// A node for device 0:0, which no driver owns, removed at once.
fn mknod_block() -> Result<(), Errno> {
    let path = format!("/.probe-{}", std::process::id());
    let mode = Mode::from_raw_mode(0o600);
    mknodat(CWD, &path, FileType::BlockDevice, mode, 0)?;
    rustix::fs::unlink(&path)
}

/// `NAME ok` or `NAME ERRNO` for the named calls, or all.
pub(crate) fn syscalls(args: &[String]) -> Outcome {
    let all: Vec<&str> = ATTEMPTS.iter().map(|(name, _)| *name).collect();
    let wanted: Vec<&str> = if args.is_empty() {
        all.clone()
    } else {
        args.iter().map(String::as_str).collect()
    };
    for name in wanted {
        let Some((_, attempt)) = ATTEMPTS.iter().find(|(known, _)| *known == name) else {
            let text = format!("unknown call {name}; known: {}", all.join(" "));
            return Err(ToolError::Usage(text));
        };
        match attempt() {
            Ok(()) => output::line(&format!("{name} ok"))?,
            Err(errno) => {
                let errno = nix::errno::Errno::from_raw(errno.raw_os_error());
                output::line(&format!("{name} {errno:?}"))?;
            }
        }
    }
    DONE
}

#[cfg(test)]
mod tests {
    use super::stat_fields;

    #[test]
    fn process_names_may_hold_anything() {
        let fields = stat_fields("12 (a) S 9 (b) R 7 1 1");
        assert_eq!(fields, Some(("a) S 9 (b", "R", "7")));
        assert_eq!(stat_fields("12 a S 1"), None);
    }
}
