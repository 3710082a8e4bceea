//! Starting a supervisor that belongs to nobody.
//!
//! It inherits no descriptor, no environment but [`KEPT`], and no session;
//! its standard error is its log file. Whoever starts it hears through a pipe
//! when it serves, or why it does not.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;
use rkube_engine::instance::Instance;
use serde::{Deserialize, Serialize};

use crate::wire::Failure;

/// The log is put aside at this size when a supervisor starts.
const MAX_LOG_BYTES: u64 = 4 << 20;
/// Variables of the environment that a supervisor is given: how much it logs,
/// and how it reaches registries.
const KEPT: [&str; 5] = [
    "RKUBE_LOG",
    "HTTPS_PROXY",
    "https_proxy",
    "NO_PROXY",
    "no_proxy",
];
/// Most that a supervisor says about its start.
const MAX_NEWS_BYTES: u64 = 64 << 10;

/// What a supervisor says once, about its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum News {
    /// It serves.
    Ready,
    /// Another one serves.
    Busy,
    /// It cannot.
    Failed(Failure),
}

/// The arguments that start a supervisor of a root, program first.
pub(crate) fn argv(root: &Path) -> anyhow::Result<Vec<std::ffi::OsString>> {
    let program = std::env::current_exe().context("find this program's file")?;
    Ok(vec![
        program.into(),
        "--root".into(),
        root.into(),
        "supervisor".into(),
    ])
}

fn log_file(instance: &Instance) -> anyhow::Result<File> {
    let dir = instance.root.join("var/log/rkube");
    std::fs::create_dir_all(&dir).with_context(|| format!("create directory {}", dir.display()))?;
    let path = dir.join("supervisor.log");
    if std::fs::metadata(&path).is_ok_and(|m| m.len() > MAX_LOG_BYTES) {
        // Lost logs are no reason to start no pod.
        let _ = std::fs::rename(&path, dir.join("supervisor.log.1"));
    }
    let mut options = File::options();
    options.append(true).create(true).mode(0o600);
    options
        .open(&path)
        .with_context(|| format!("open {}", path.display()))
}

fn command(instance: &Instance) -> anyhow::Result<Command> {
    // What this process was started with must not be held open by another.
    rkube_sys::fd::cloexec_from(3)
        .context("close_range: mark inherited descriptors close-on-exec")?;
    // The file may have been replaced since; the process image has not.
    let mut command = Command::new("/proc/self/exe");
    command.arg0_rkube();
    command
        .arg("--root")
        .arg(&instance.root)
        .args(["supervisor", "--serve"]);
    command.env_clear().current_dir("/");
    for name in KEPT {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.stdin(Stdio::null()).stderr(log_file(instance)?);
    Ok(command)
}

/// Names the new process in lists of processes.
trait Named {
    fn arg0_rkube(&mut self);
}

impl Named for Command {
    fn arg0_rkube(&mut self) {
        std::os::unix::process::CommandExt::arg0(self, "rkube");
    }
}

/// Starts a supervisor and waits for its news.
pub(crate) fn start(instance: &Instance) -> anyhow::Result<News> {
    let mut child = command(instance)?
        .stdout(Stdio::piped())
        .spawn()
        .context("start supervisor")?;
    let mut text = String::new();
    if let Some(pipe) = child.stdout.take() {
        pipe.take(MAX_NEWS_BYTES)
            .read_to_string(&mut text)
            .context("read news of the supervisor")?;
    }
    if let Ok(news) = serde_json::from_str(&text) {
        if news != News::Ready {
            // It ends by itself.
            let _ = child.wait();
        }
        return Ok(news);
    }
    let status = child.wait().context("wait for the supervisor")?;
    let log = instance.root.join("var/log/rkube/supervisor.log");
    anyhow::bail!(
        "the supervisor ended before it served ({status}); see {}",
        log.display()
    )
}

/// Starts a supervisor for pods that are there already, and waits for nothing.
pub(crate) fn start_and_leave(instance: &Instance) -> anyhow::Result<()> {
    command(instance)?
        .arg("--adopt")
        .stdout(Stdio::null())
        .spawn()
        .context("start supervisor")?;
    Ok(())
}

/// Says it, and closes the pipe: standard output is /dev/null from now on.
pub(crate) fn tell(news: &News) {
    // Whoever waited may be gone.
    let mut out = std::io::stdout();
    let text = serde_json::to_string(news).unwrap_or_default();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = rkube_sys::fd::dup_to_stdio(std::os::fd::AsFd::as_fd(&null), 1);
    }
}
