//! What attackers bring: links that climb, and names that change hands.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rkube_runtime::Error;
use rkube_runtime::lifecycle::{self, CreateOptions};
use serde_json::json;

use super::{Bundle, wait};

/// Containers that are made while an attacker swaps names; RKUBE_RACES sets
/// another number.
const RACES: u32 = 20;

impl Bundle {
    pub fn root(&self, path: &str) -> PathBuf {
        self.dir.path().join("rootfs").join(path)
    }

    pub fn link(&self, target: &str, path: &str) {
        let at = self.root(path);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        symlink(target, at).unwrap();
    }

    pub fn applets(&self, names: &[&str]) {
        for name in names {
            self.link("busybox", &format!("bin/{name}"));
        }
    }

    pub fn mount(&mut self, mount: serde_json::Value) {
        self.spec["mounts"].as_array_mut().unwrap().push(mount);
    }

    pub fn without_mount(&mut self, prefix: &str) {
        let mounts = self.spec["mounts"].as_array_mut().unwrap();
        mounts.retain(|m| !m["destination"].as_str().unwrap().starts_with(prefix));
    }

    /// Creates it, runs it if that worked, and takes it away.
    pub fn attempt(&self) -> Result<String, Error> {
        let (made, output) = self.create()?;
        let started = made.container.start();
        let text = std::io::read_to_string(output).unwrap();
        wait(&made.pidfd);
        lifecycle::delete(&self.store(), &self.id, true).unwrap();
        started.map(|()| text)
    }

    /// The same with a terminal, which nobody reads from; whether it was made.
    pub fn attempt_with_terminal(&self) -> bool {
        let made = self.create_with(CreateOptions {
            keeps_terminal: true,
            ..CreateOptions::default()
        });
        if let Ok(made) = &made {
            // What the program could write to is its own terminal alone.
            let _ = made.container.start();
            wait(&made.pidfd);
        }
        lifecycle::delete(&self.store(), &self.id, true).unwrap();
        made.is_ok()
    }

    /// Terminals of its own, in the place of those of the default /dev.
    pub fn own_terminals(&mut self) {
        self.mount(
            json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["newinstance", "ptmxmode=0666"]}),
        );
    }
}

/// A directory of the host that links of a container point at, with a way to
/// it that climbs out of the root.
pub struct Victim {
    pub dir: tempfile::TempDir,
}

impl Victim {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "host\n").unwrap();
        Self { dir }
    }

    pub fn climb(&self) -> String {
        format!("{}{}", "../".repeat(32), self.dir.path().display())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// One file, as it was, and nothing mounted on either.
    pub fn is_unharmed(&self) {
        let names: Vec<_> = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, ["file"]);
        let text = std::fs::read_to_string(self.path("file")).unwrap();
        assert_eq!(text, "host\n");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let shown = self.dir.path().display().to_string();
        assert!(!mounts.contains(&shown), "{mounts}");
    }
}

/// Exchanges two names without a pause while `round` runs again and again;
/// returns how many rounds were true.
pub fn race(one: &Path, two: &Path, mut round: impl FnMut() -> bool) -> u32 {
    let rounds = std::env::var("RKUBE_RACES").ok();
    let rounds = rounds.map_or(RACES, |n| n.parse().unwrap());
    let stop = AtomicBool::new(false);
    let mut won = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (flags, cwd) = (rustix::fs::RenameFlags::EXCHANGE, rustix::fs::CWD);
            while !stop.load(Ordering::Relaxed) {
                let _ = rustix::fs::renameat_with(cwd, one, cwd, two, flags);
            }
        });
        let all = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..rounds {
                won += u32::from(round());
            }
        }));
        stop.store(true, Ordering::Relaxed);
        all.unwrap();
    });
    won
}
