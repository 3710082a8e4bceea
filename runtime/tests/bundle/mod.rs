//! A bundle of a static busybox, and what is done with it.
#![allow(dead_code, clippy::unwrap_used, unreachable_pub)]

pub mod attack;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use oci_spec::runtime::Process;
use rkube_runtime::lifecycle::{self, Container, CreateOptions, ExecOptions, Made, Store};
use rkube_runtime::{Error, default};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use serde_json::{Value, json};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A bundle with its own store; what is left of its container goes with it.
pub struct Bundle {
    pub dir: tempfile::TempDir,
    pub id: String,
    pub spec: Value,
}

impl Bundle {
    pub fn new(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("rootfs/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::create_dir_all(dir.path().join("rootfs/etc")).unwrap();
        std::fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        for name in [
            "sh", "cat", "id", "ls", "sleep", "true", "hostname", "stat", "readlink",
        ] {
            std::os::unix::fs::symlink("busybox", bin.join(name)).unwrap();
        }
        let passwd = "root:x:0:0::/root:/bin/sh\nuser:x:7:7::/home/user:/bin/sh\n";
        std::fs::write(dir.path().join("rootfs/etc/passwd"), passwd).unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = format!("rkube-test-{}-{number}", std::process::id());
        let mut spec = default::default_value();
        spec["process"]["terminal"] = false.into();
        spec["process"]["args"] = json!(args);
        Self { dir, id, spec }
    }

    pub fn shell(script: &str) -> Self {
        Self::new(&["sh", "-c", script])
    }

    pub fn store(&self) -> Store {
        Store::new(&self.dir.path().join("state"))
    }

    pub fn create_with(&self, options: CreateOptions) -> Result<Made, Error> {
        let text = serde_json::to_vec(&self.spec).unwrap();
        std::fs::write(self.dir.path().join("config.json"), text).unwrap();
        lifecycle::create(
            &self.store(),
            CreateOptions {
                id: self.id.clone(),
                bundle: self.dir.path().to_owned(),
                ..options
            },
        )
    }

    pub fn create(&self) -> Result<(Made, File), Error> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let err = write.try_clone().unwrap();
        let made = self.create_with(CreateOptions {
            stdio: [None, Some(write), Some(err)],
            ..CreateOptions::default()
        })?;
        Ok((made, File::from(read)))
    }

    /// Runs it to its end: exit code and output.
    pub fn run(&self) -> (i32, String) {
        let (made, mut output) = self.create().unwrap();
        made.container.start().unwrap();
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        let code = wait(&made.pidfd);
        lifecycle::delete(&self.store(), &self.id, false).unwrap();
        (code, text)
    }

    pub fn load(&self) -> Container {
        self.store().load(&self.id).unwrap()
    }

    pub fn cgroups(&self) -> Vec<PathBuf> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        mounts
            .lines()
            .filter(|line| {
                line.split(' ')
                    .nth(2)
                    .is_some_and(|t| t.starts_with("cgroup"))
            })
            .map(|line| Path::new(line.split(' ').nth(1).unwrap()).join(&self.id))
            .filter(|path| path.exists())
            .collect()
    }

    pub fn nothing_is_left(&self) {
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new());
        assert!(!self.dir.path().join("state").join(&self.id).exists());
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = lifecycle::delete(&self.store(), &self.id, true);
    }
}

pub fn wait(pidfd: &OwnedFd) -> i32 {
    let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
        .unwrap()
        .unwrap();
    status
        .exit_status()
        .unwrap_or_else(|| 128 + status.terminating_signal().unwrap())
}

pub fn exec(container: &Container, edit: impl FnOnce(&mut Value)) -> Result<(i32, String), Error> {
    let mut process = json!({"cwd": "/", "user": {"uid": 0, "gid": 0}, "args": ["true"],
        "env": ["PATH=/bin"]});
    edit(&mut process);
    let process: Process = serde_json::from_value(process).unwrap();
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let launched = lifecycle::exec(
        container,
        ExecOptions {
            process,
            pid_file: None,
            console_socket: None,
            pidfd_socket: None,
            stdio: [None, Some(write), None],
            extra_fds: Vec::new(),
            keeps_terminal: false,
            ignore_paused: false,
        },
    )?;
    let mut text = String::new();
    File::from(read).read_to_string(&mut text).unwrap();
    Ok((wait(&launched.pidfd), text))
}
