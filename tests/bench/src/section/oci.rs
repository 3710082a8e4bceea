//! The OCI command line beside crun and runc: a static `true` with the default
//! spec, and exec, each in the same view of the cgroups.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use rkube_tests::layout::Layout;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{Bench, peer};
use crate::clock::{self, Timed};
use crate::peers;
use crate::place::Place;
use crate::report::Row;
use crate::stats::Samples;

const CGROUPS: &str = "/sys/fs/cgroup";

/// A runtime, and how to call it.
struct Runtime {
    who: &'static str,
    program: PathBuf,
    args: &'static [&'static str],
    target: Option<&'static str>,
    wall: Samples,
    cpu: Samples,
    exec: Samples,
    broken: Option<anyhow::Error>,
}

impl Runtime {
    fn new(who: &'static str, program: PathBuf, args: &'static [&'static str]) -> Runtime {
        Runtime {
            who,
            program,
            args,
            target: None,
            wall: Samples::default(),
            cpu: Samples::default(),
            exec: Samples::default(),
            broken: None,
        }
    }

    fn call(&self, place: &Place, args: &[&str]) -> anyhow::Result<Timed> {
        let mut command = Command::new(&self.program);
        command
            .args(self.args)
            .arg("--root")
            .arg(place.dir().join(format!("state-{}", self.who)))
            .args(args);
        place.run(move || clock::succeeds(command))
    }

    fn run_true(&mut self, place: &Place, bundle: &str) -> anyhow::Result<()> {
        let id = format!("rkube-bench-{}-{}", self.who, std::process::id());
        let done = self.call(place, &["run", "--bundle", bundle, &id])?;
        self.wall.push_ms(done.wall);
        self.cpu.push_ms(done.cpu);
        Ok(())
    }

    fn exec_true(&mut self, place: &Place, id: &str) -> anyhow::Result<()> {
        let done = self.call(place, &["exec", id, "/bin/true"])?;
        self.exec.push_ms(done.wall);
        Ok(())
    }
}

/// Hides the unified hierarchy of a hybrid layout from the calling thread's
/// mount namespace: crun refuses it.
fn only_legacy() -> anyhow::Result<()> {
    let path = "/proc/thread-self/mountinfo";
    let table = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    for line in table.lines().filter(|line| line.contains(" - cgroup2 ")) {
        let at = line.split(' ').nth(4).context("mountinfo is short")?;
        unmount(at, UnmountFlags::DETACH).with_context(|| format!("unmount {at}"))?;
    }
    Ok(())
}

/// Makes the calling thread's mount namespace show cgroup2 alone.
fn only_unified() -> anyhow::Result<()> {
    let path = "/proc/thread-self/mountinfo";
    let table = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let below = |at: &&str| Path::new(at).starts_with(CGROUPS);
    let mounts: Vec<&str> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(below)
        .collect();
    for at in mounts.iter().rev() {
        unmount(*at, UnmountFlags::DETACH).with_context(|| format!("unmount {at}"))?;
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("cgroup2", CGROUPS, "cgroup2", flags, None).context("mount cgroup2")
}

/// A bundle with the default spec, changed in the program alone.
fn bundle(
    dir: &Path,
    name: &str,
    toolbox: &Path,
    view: &View,
    args: &[&str],
) -> anyhow::Result<String> {
    let bundle = dir.join(name);
    let bin = bundle.join("rootfs/bin");
    std::fs::create_dir_all(&bin).with_context(|| format!("make {}", bin.display()))?;
    for applet in ["true", "sleep"] {
        std::fs::copy(toolbox, bin.join(applet)).context("copy the payload")?;
    }
    let maker = peers::need("runc").or_else(|_| peers::need("crun"))?;
    let mut command = Command::new(maker);
    command.arg("spec").current_dir(&bundle);
    clock::succeeds(command)?;
    let path = bundle.join("config.json");
    let text = std::fs::read_to_string(&path).context("read the default spec")?;
    let mut spec: serde_json::Value =
        serde_json::from_str(&text).context("parse the default spec")?;
    spec["process"]["args"] = args.into();
    spec["process"]["terminal"] = false.into();
    if !view.devices
        && let Some(resources) = spec["linux"]["resources"].as_object_mut()
    {
        resources.remove("devices");
    }
    std::fs::write(&path, spec.to_string()).context("write the spec")?;
    Ok(bundle.to_string_lossy().into_owned())
}

fn runtimes(bench: &Bench, unified: bool) -> (Vec<Runtime>, Vec<(&'static str, String)>) {
    let mut found = vec![Runtime::new("rkube", bench.program.clone(), &["oci"])];
    let mut absent = Vec::new();
    for who in ["crun", "runc"] {
        match peers::need(who) {
            Ok(program) => found.push(Runtime::new(who, program, &[])),
            Err(e) => absent.push((who, e.to_string())),
        }
    }
    found[0].target = Some(if unified {
        "0.55 of crun's, 2.5 ms exec"
    } else {
        "0.2 of runc's, 2.5 ms exec"
    });
    (found, absent)
}

/// What the runtimes see of the cgroups.
struct View {
    name: &'static str,
    unified: bool,
    /// Whether the spec keeps its device rules. On cgroup2 they are a program,
    /// for which Debian's crun raises a limit that needs CAP_SYS_RESOURCE.
    devices: bool,
    /// Makes the calling thread see the cgroups so.
    show: fn() -> anyhow::Result<()>,
}

pub(super) fn rows(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let layout = Layout::detect()?;
    let view = |name, unified, devices, show| View {
        name,
        unified,
        devices,
        show,
    };
    let unified = Layout::UNIFIED.contains(&layout);
    let mut views = vec![view(layout.as_str(), unified, true, || Ok(()))];
    if layout == Layout::Hybrid {
        views.push(view("v1 alone", false, true, only_legacy));
        views.push(view("cgroup2 alone", true, true, only_unified));
        let name = "cgroup2 alone, no device rules";
        views.push(view(name, true, false, only_unified));
    }
    let mut rows = Vec::new();
    for view in views {
        let place = Place::of_peer()?;
        place.run(view.show)?;
        rows.extend(measure(bench, &place, &view)?);
        place.close()?;
    }
    Ok(rows)
}

fn measure(bench: &Bench, place: &Place, view: &View) -> anyhow::Result<Vec<Row>> {
    let once = bundle(place.dir(), "once", &bench.toolbox, view, &["/bin/true"])?;
    let long = bundle(
        place.dir(),
        "long",
        &bench.toolbox,
        view,
        &["/bin/sleep", "inf"],
    )?;
    let (mut runtimes, absent) = runtimes(bench, view.unified);
    for _ in 0..bench.runs {
        for runtime in runtimes.iter_mut().filter(|r| r.broken.is_none()) {
            runtime.broken = runtime.run_true(place, &once).err();
        }
    }
    let ids: Vec<String> = runtimes
        .iter()
        .map(|r| format!("rkube-bench-long-{}-{}", r.who, std::process::id()))
        .collect();
    for (runtime, id) in runtimes.iter_mut().zip(&ids) {
        if runtime.broken.is_none() {
            let made = runtime
                .call(place, &["create", "--bundle", &long, id])
                .and_then(|_| runtime.call(place, &["start", id]));
            runtime.broken = made.err();
        }
    }
    for _ in 0..bench.runs {
        for (runtime, id) in runtimes.iter_mut().zip(&ids) {
            if runtime.broken.is_none() {
                runtime.broken = runtime.exec_true(place, id).err();
            }
        }
    }
    for (runtime, id) in runtimes.iter().zip(&ids) {
        // One that was never made has nothing to delete.
        let _ = runtime.call(place, &["delete", "--force", id]);
    }
    Ok(table(view.name, &runtimes, &absent))
}

fn table(name: &str, runtimes: &[Runtime], absent: &[(&'static str, String)]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for (what, of) in [
        (
            "OCI run of `true`, wall",
            (|r| &r.wall) as fn(&Runtime) -> &Samples,
        ),
        ("OCI run of `true`, processor", |r| &r.cpu),
        ("OCI exec of `true`, wall", |r| &r.exec),
    ] {
        let what = format!("{what} ({name})");
        let mut ours: Option<Row> = None;
        for runtime in runtimes {
            let result = match &runtime.broken {
                Some(e) if of(runtime).is_empty() => Err(anyhow::anyhow!("{e:#}")),
                _ => Ok(Row::new(&what, runtime.who, "ms", of(runtime).clone())),
            };
            let result = result.map(|row| match (&ours, runtime.target) {
                (Some(ours), _) => row.beside(ours),
                (None, Some(target)) => row.target(target),
                (None, None) => row,
            });
            if ours.is_none() {
                ours = result.as_ref().ok().cloned();
            }
            peer(&mut rows, &what, runtime.who, result);
        }
        for (who, why) in absent {
            rows.push(Row::missing(&what, who, why));
        }
    }
    rows
}
