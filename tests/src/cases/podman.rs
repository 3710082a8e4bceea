//! podman with rkube in the place of runc: its own conmon, storage and
//! configuration, no network.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::case::{Case, skip};
use crate::command::Cmd;
use crate::host::TestHost;
use crate::images;
use crate::layout::Layout;

const IMAGE: &str = "localhost/busybox";

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("podman::run_and_its_exit_codes", run_and_its_exit_codes),
        Case::new("podman::detached_exec_pause_stop", detached_exec_pause_stop),
        Case::new("podman::limits_are_in_force", limits_are_in_force)
            .on(&[Layout::V1, Layout::Hybrid]),
        Case::new("podman::a_terminal", a_terminal),
        Case::new("podman::tmpfs_over_what_is_there", tmpfs_over_what_is_there),
    ]
}

/// A podman of its own, with the busybox image in it.
struct Podman<'a> {
    host: &'a TestHost,
    parent: String,
}

impl<'a> Podman<'a> {
    fn new(host: &'a TestHost) -> anyhow::Result<Self> {
        if Cmd::new("podman", ["--version"]).output().is_err() {
            return Err(skip("podman is not installed"));
        }
        let files = host.files();
        let show = |path: PathBuf| path.display().to_string();
        // No limit above this host's own: raising one needs a capability.
        let conf = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
            [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nlock_type = \"file\"\n";
        host.file("containers.conf", conf)?;
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = {:?}\nrunroot = {:?}\n",
            show(files.join("graph")),
            show(files.join("run")),
        );
        host.file("storage.conf", storage)?;
        std::fs::create_dir(files.join("tmp"))?;
        // The program answers as runc does when it is called so.
        std::os::unix::fs::symlink(host.program()?, files.join("runc"))?;
        let podman = Self {
            host,
            parent: format!("/rkube-test-{}", std::process::id()),
        };
        let tar = images::busybox()?;
        podman
            .cmd(&["import", &tar.display().to_string(), IMAGE])
            .ok()?;
        Ok(podman)
    }

    fn cmd(&self, args: &[&str]) -> Cmd {
        let files = self.host.files();
        let path = |name: &str| files.join(name).display().to_string();
        let mut all = vec![
            "--runtime".to_owned(),
            path("runc"),
            "--tmpdir".to_owned(),
            path("libpod"),
        ];
        all.extend(args.iter().map(|a| (*a).to_owned()));
        Cmd::new("podman", all)
            .env("CONTAINERS_CONF", path("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", path("storage.conf"))
            .env("CONTAINERS_REGISTRIES_CONF", "/dev/null")
            .env("TMPDIR", path("tmp"))
    }

    fn run(&self, options: &[&str], command: &[&str]) -> Cmd {
        let mut args = vec![
            "run",
            "--network",
            "none",
            "--cgroup-parent",
            self.parent.as_str(),
        ];
        args.extend(options);
        args.push(IMAGE);
        args.extend(command);
        self.cmd(&args)
    }

    /// Ends what runs, and names what the runtime left.
    fn clear(&self) -> anyhow::Result<Vec<String>> {
        self.cmd(&["rm", "--all", "--force", "--time", "0"]).ok()?;
        let mut left = Vec::new();
        for hierarchy in hierarchies()? {
            let top = hierarchy.join(self.parent.trim_start_matches('/'));
            for entry in directories(&top) {
                // conmon's own group is podman's.
                if entry.file_name().is_some_and(|name| name != "conmon") {
                    left.push(entry.display().to_string());
                }
                let _ = std::fs::remove_dir(&entry);
            }
            let _ = std::fs::remove_dir(&top);
        }
        Ok(left)
    }

    fn close(self) -> anyhow::Result<()> {
        let left = self.clear()?;
        ensure!(left.is_empty(), "cgroups are left: {left:?}");
        Ok(())
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        // After a failure, which is what is told.
        let _ = self.clear();
    }
}

fn hierarchies() -> anyhow::Result<Vec<PathBuf>> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("read mounts")?;
    Ok(mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(|words| words.get(2).is_some_and(|kind| kind.starts_with("cgroup")))
        .filter_map(|words| words.get(1).map(PathBuf::from))
        .collect())
}

fn directories(top: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(top).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths.filter(|path| path.is_dir()).collect()
}

fn run_and_its_exit_codes(host: &TestHost) -> anyhow::Result<()> {
    let podman = Podman::new(host)?;
    let out = podman.run(&["--rm"], &["echo", "hello"]).ok()?;
    ensure!(out.stdout == "hello\n", "{out}");
    podman.run(&["--rm"], &["sh", "-c", "exit 7"]).exits(7)?;
    podman.run(&["--rm"], &["not-there"]).exits(127)?;
    podman.run(&["--rm"], &["/etc/passwd"]).exits(126)?;
    let out = podman
        .run(&["--rm", "--user", "65534"], &["id", "-u"])
        .ok()?;
    ensure!(out.stdout == "65534\n", "{out}");
    podman.close()
}

fn detached_exec_pause_stop(host: &TestHost) -> anyhow::Result<()> {
    let podman = Podman::new(host)?;
    let script = "trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done";
    podman
        .run(&["--detach", "--name", "one"], &["sh", "-c", script])
        .ok()?;
    let out = podman.cmd(&["exec", "one", "cat", "/proc/1/comm"]).ok()?;
    ensure!(out.stdout == "sh\n", "{out}");
    podman
        .cmd(&["exec", "one", "sh", "-c", "exit 5"])
        .exits(5)?;
    let status = || -> anyhow::Result<String> {
        let format = ["inspect", "--format", "{{.State.Status}}", "one"];
        Ok(podman.cmd(&format).ok()?.stdout.trim().to_owned())
    };
    podman.cmd(&["pause", "one"]).ok()?;
    ensure!(status()? == "paused", "{}", status()?);
    podman.cmd(&["unpause", "one"]).ok()?;
    ensure!(status()? == "running", "{}", status()?);
    podman.cmd(&["stop", "--time", "20", "one"]).ok()?;
    let out = podman.cmd(&["wait", "one"]).ok()?;
    ensure!(out.stdout == "3\n", "{out}");
    let out = podman.cmd(&["logs", "one"]).ok()?;
    ensure!(out.stdout == "up\n", "{out}");
    podman.close()
}

fn limits_are_in_force(host: &TestHost) -> anyhow::Result<()> {
    let podman = Podman::new(host)?;
    let limits = ["--memory", "64m", "--pids-limit", "20", "--cpus", "0.5"];
    let files = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes \
        /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us";
    let mut options = vec!["--rm"];
    options.extend(limits);
    let out = podman.run(&options, &["sh", "-c", files]).ok()?;
    ensure!(out.stdout == "67108864\n20\n50000\n", "{out}");
    // More than it may: the kernel ends it.
    let hungry = ["sh", "-c", "dd if=/dev/zero of=/dev/null bs=100M count=1"];
    let mut options = vec!["--rm", "--memory-swap", "64m"];
    options.extend(limits);
    podman.run(&options, &hungry).exits(137)?;
    podman.close()
}

fn a_terminal(host: &TestHost) -> anyhow::Result<()> {
    let podman = Podman::new(host)?;
    // podman passes the terminal of its standard input on; script(1) makes one.
    let inner = format!(
        "podman --runtime {0}/runc --tmpdir {0}/libpod run --rm -it --network none \
         --cgroup-parent {1} {IMAGE} sh -c 'test -t 0 && tty && read x && echo got $x'",
        host.files().display(),
        podman.parent,
    );
    let files = host.files();
    let out = Cmd::new("script", ["-qec", inner.as_str(), "/dev/null"])
        .env("CONTAINERS_CONF", files.join("containers.conf"))
        .env("CONTAINERS_STORAGE_CONF", files.join("storage.conf"))
        .env("CONTAINERS_REGISTRIES_CONF", "/dev/null")
        .env("TMPDIR", files.join("tmp"))
        .stdin("typed\n")
        .ok()?;
    ensure!(out.stdout.contains("/dev/pts/0"), "{out}");
    ensure!(out.stdout.contains("got typed"), "{out}");
    podman.close()
}

fn tmpfs_over_what_is_there(host: &TestHost) -> anyhow::Result<()> {
    let podman = Podman::new(host)?;
    let script = "cat /etc/passwd | head -n 1 | cut -d: -f1; stat -c %a /etc; \
        touch /etc/new && echo written; touch /new 2>/dev/null || echo protected";
    let out = podman
        .run(
            &["--rm", "--read-only", "--tmpfs", "/etc"],
            &["sh", "-c", script],
        )
        .ok()?;
    ensure!(out.stdout == "root\n755\nwritten\nprotected\n", "{out}");
    podman.close()
}
