//! The OCI command line while system calls kill it or fail: nothing is left
//! behind, and nothing is silently different.
//!
//! A sample of all points, seeded by the program under test (another build
//! looks at others); `RKUBE_EVERY_CALL=1` takes them all, as `make soak` does.

mod faults;
mod kills;

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::oci::bundle;
use crate::case::Case;
use crate::host::TestHost;
use crate::layout::Layout;
use crate::tracer::{self, Act, Call, End, Output};
use crate::wait::until;

/// The long forms take hours in a VM.
const LONG_SECS: u64 = 6 * 3600;
/// How long what a deletion leaves may take to be gone: dying processes alone.
const LEFT_SECS: u64 = 10;
const CGROUPS: &str = "/sys/fs/cgroup";

pub(super) fn cases() -> Vec<Case> {
    if cfg!(not(target_arch = "x86_64")) {
        return Vec::new();
    }
    const HYBRID: &[Layout] = &[Layout::Hybrid];
    const PLACES: &[Layout] = &[Layout::V2, Layout::V1, Layout::Hybrid];
    vec![
        Case::new("oci::a_kill_at_any_call", kills::at_any_call)
            .alone()
            .on(PLACES)
            .within_secs(LONG_SECS),
        Case::new("oci::a_kill_at_any_call_on_cgroup2", kills::on_cgroup2)
            .alone()
            .on(HYBRID)
            .within_secs(LONG_SECS),
        Case::new("oci::a_refused_call_is_told", faults::are_told)
            .alone()
            .on(PLACES)
            .within_secs(LONG_SECS),
        Case::new("oci::a_refused_call_is_told_on_cgroup2", faults::on_cgroup2)
            .alone()
            .on(HYBRID)
            .within_secs(LONG_SECS),
    ]
}

/// A part of all points, another one for another build.
fn sample<T>(host: &TestHost, size: usize, all: Vec<T>) -> anyhow::Result<Vec<T>> {
    if let Ok(wanted) = std::env::var("RKUBE_EVERY_CALL") {
        // All of them, or part K of N.
        let Some((part, parts)) = wanted.split_once('/') else {
            return Ok(all);
        };
        let (part, parts): (usize, usize) = (part.parse()?, parts.parse()?);
        ensure!((1..=parts).contains(&part), "RKUBE_EVERY_CALL={wanted:?}");
        return Ok(all.into_iter().skip(part - 1).step_by(parts).collect());
    }
    let seed = std::fs::metadata(host.program()?)?.len();
    let step = (all.len() / size).max(1);
    let skip = usize::try_from(seed % 1_000_003)? % step;
    Ok(all.into_iter().skip(skip).step_by(step).collect())
}

/// Runs something where cgroup v2 alone can be seen: in a mount namespace of
/// its own, with whatever controllers the v2 hierarchy has here.
fn where_cgroup2_is_alone(what: impl FnOnce() -> anyhow::Result<()> + Send) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
            let none = None::<&str>;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(none, "/", none, private, none).context("keep mounts private")?;
            let table = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
            let places = table.lines().filter_map(|line| line.split(' ').nth(4));
            let below: Vec<&str> = places.filter(|at| at.starts_with(CGROUPS)).collect();
            for at in below.iter().rev() {
                umount2(*at, MntFlags::MNT_DETACH).with_context(|| format!("unmount {at}"))?;
            }
            let kind = Some("cgroup2");
            mount(kind, CGROUPS, kind, MsFlags::MS_NOSUID, none).context("mount cgroup2")?;
            what()
        });
        there
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// One container of one bundle, and how it is driven.
struct Driven<'a> {
    host: &'a TestHost,
    bundle: String,
    root: PathBuf,
    id: String,
}

impl<'a> Driven<'a> {
    fn new(
        host: &'a TestHost,
        args: &[&str],
        edit: impl FnOnce(&mut serde_json::Value),
    ) -> anyhow::Result<Self> {
        let id = format!("rkube-injected-{}", std::process::id());
        // One after the other, in the place of the one before.
        match std::fs::remove_dir_all(host.files().join("bundle")) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
        let dir = bundle(host, args, |spec| {
            spec["linux"]["cgroupsPath"] = format!("/{id}").into();
            edit(spec);
        })?;
        Ok(Self {
            host,
            bundle: dir.display().to_string(),
            root: host.root().join("oci"),
            id,
        })
    }

    fn words(&self, args: &[&str]) -> anyhow::Result<Vec<String>> {
        let program = self.host.program()?.display().to_string();
        let root = self.root.display().to_string();
        let mut words = vec![program, "oci".into(), "--root".into(), root];
        words.extend(args.iter().map(|a| (*a).to_owned()));
        Ok(words)
    }

    /// Runs a command under the tracer: how it ended, its output, and what it
    /// said. A container keeps its streams: files and null, no pipes.
    fn traced(
        &self,
        args: &[&str],
        decide: &mut (dyn FnMut(&Call) -> Act + Send),
    ) -> anyhow::Result<(End, String, String)> {
        let (out, err) = (self.host.files().join("out"), self.host.files().join("err"));
        let output = Output {
            stdout: Some(File::create(&out)?),
            stderr: Some(File::create(&err)?),
        };
        let end = tracer::run(&self.words(args)?, output, decide)?;
        let text = |path| std::fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned());
        Ok((end, text(out)?, text(err)?))
    }

    fn run(&self, args: &[&str]) -> anyhow::Result<()> {
        let said = self.host.files().join("said");
        let words = self.words(args)?;
        let status = std::process::Command::new(&words[0])
            .args(&words[1..])
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(File::create(&said)?)
            .status()?;
        let said = std::fs::read_to_string(said)?;
        ensure!(status.success(), "{args:?}: {status}: {said}");
        Ok(())
    }

    /// What is left of the container.
    fn left(&self) -> anyhow::Result<Vec<String>> {
        let mut left = Vec::new();
        let top = std::path::Path::new(CGROUPS);
        let mut tops = vec![top.to_owned()];
        tops.extend(std::fs::read_dir(top)?.flatten().map(|e| e.path()));
        tops.push(self.root.clone());
        left.extend(
            tops.iter()
                .map(|dir| dir.join(&self.id))
                .filter(|path| path.exists())
                .map(|path| path.display().to_string()),
        );
        // Whoever has the container's root mounted.
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let mounts = std::fs::read_to_string(entry.path().join("mountinfo"));
            if mounts.is_ok_and(|text| text.contains(&self.bundle)) {
                left.push(entry.path().display().to_string());
            }
        }
        Ok(left)
    }

    fn nothing_is_left(&self, after: &str) -> anyhow::Result<()> {
        let gone = until("nothing to be left", Duration::from_secs(LEFT_SECS), || {
            Ok(self.left()?.is_empty().then_some(()))
        });
        gone.with_context(|| format!("{after}: {:?} is left", self.left()))
    }
}

impl Drop for Driven<'_> {
    /// A case that fails leaves no container behind.
    fn drop(&mut self) {
        let _ = self.run(&["delete", "--force", &self.id]);
    }
}
