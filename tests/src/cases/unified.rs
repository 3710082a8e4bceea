//! What only the unified hierarchy has, set by rkube and felt in the kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::oci::bundle;
use crate::case::Case;
use crate::cgroups::{self, counter};
use crate::command::Cmd;
use crate::host::TestHost;
use crate::layout::Layout;
use crate::pods::{Life, pod, script, status, tool, with};
use crate::wait::{WAIT_SECS, until};

pub(super) fn cases() -> Vec<Case> {
    [
        Case::new("unified::memory_high_holds_back", memory_high_holds_back),
        Case::new("unified::pids_max_refuses", pids_max_refuses),
        Case::new("unified::io_max_slows_down", io_max_slows_down).alone(),
        Case::new("unified::pressure_is_told", pressure_is_told),
        Case::new("unified::a_kill_takes_all", a_kill_takes_all),
        Case::new("unified::the_freezer_stops_all", the_freezer_stops_all),
        Case::new("unified::devices_are_filtered", devices_are_filtered),
        Case::new(
            "unified::processes_are_born_inside",
            processes_are_born_inside,
        ),
        Case::new("unified::single_process_oom_kill", single_process_oom_kill),
        Case::new(
            "unified::annotations_hold_back_and_spare",
            annotations_hold_back_and_spare,
        ),
    ]
    .map(|case| case.on(Layout::UNIFIED).vm_only().vms(&[Layout::V2]))
    .to_vec()
}

const PATIENCE: Duration = Duration::from_secs(WAIT_SECS);

/// A container of the OCI command line that runs until it is dropped.
struct Contained<'a> {
    host: &'a TestHost,
    id: String,
    life: Life,
}

impl Contained<'_> {
    fn start<'a>(
        host: &'a TestHost,
        script: &str,
        resources: &Value,
    ) -> anyhow::Result<Contained<'a>> {
        let bundle = bundle(host, &["/bin/sh", "-c", script], |spec| {
            spec["root"]["readonly"] = false.into();
            spec["linux"]["resources"] = resources.clone();
            for set in ["bounding", "effective", "permitted"] {
                let list = spec["process"]["capabilities"][set].as_array_mut();
                list.into_iter().for_each(|l| l.push("CAP_MKNOD".into()));
            }
        })?;
        let id = format!("rkube-test-{}", std::process::id());
        let pid_file = host.files().join("pid");
        let (bundle, file) = (bundle.display().to_string(), pid_file.display().to_string());
        let run = [
            "run",
            "--detach",
            "--bundle",
            &bundle,
            "--pid-file",
            &file,
            &id,
        ];
        oci(host, &run)?.ok()?;
        let pid = fs::read_to_string(&pid_file)?.trim().parse()?;
        let life = Life::of(pid)?;
        Ok(Contained { host, id, life })
    }

    fn group(&self) -> anyhow::Result<PathBuf> {
        cgroups::of(self.life.pid, "memory")
    }

    fn file(&self, name: &str) -> anyhow::Result<String> {
        cgroups::file(self.life.pid, "memory", name)
    }

    fn root_file(&self, name: &str) -> PathBuf {
        self.host.files().join("bundle/rootfs").join(name)
    }
}

impl Drop for Contained<'_> {
    fn drop(&mut self) {
        // A failed case is told otherwise.
        if let Ok(delete) = oci(self.host, &["delete", "--force", &self.id]) {
            let _ = delete.output();
        }
    }
}

fn oci(host: &TestHost, args: &[&str]) -> anyhow::Result<Cmd> {
    let root = host.root().join("oci").display().to_string();
    let all = ["oci", "--root", &root]
        .into_iter()
        .chain(args.iter().copied());
    Ok(Cmd::new(host.program()?, all))
}

fn memory_high_holds_back(host: &TestHost) -> anyhow::Result<()> {
    let resources = json!({"unified": {"memory.high": "16777216"}});
    // tail keeps what may be the last line: all of it.
    let script = "head -c 40000000 /dev/zero | tail -c 40000000 | sleep 1000";
    let run = Contained::start(host, script, &resources)?;
    ensure!(run.file("memory.high")? == "16777216");
    until("the limit to be felt", PATIENCE, || {
        let events = run.file("memory.events")?;
        Ok((counter(&events, "high")? > 0).then_some(()))
    })?;
    let events = run.file("memory.events")?;
    ensure!(counter(&events, "oom_kill")? == 0, "{events}");
    ensure!(run.life.runs(), "it was killed");
    Ok(())
}

fn pids_max_refuses(host: &TestHost) -> anyhow::Result<()> {
    // The inner shell ends with the refusal.
    let script = "(for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done); sleep 1000";
    let run = Contained::start(host, script, &json!({"pids": {"limit": 6}}))?;
    ensure!(run.file("pids.max")? == "6");
    until("a fork to be refused", PATIENCE, || {
        let events = fs::read_to_string(run.group()?.join("pids.events"))?;
        Ok((counter(&events, "max")? > 0).then_some(()))
    })?;
    let current: u64 = run.file("pids.current")?.parse()?;
    ensure!((2..=6).contains(&current), "{current} processes");
    Ok(())
}

/// Major and minor number of the disk below a directory.
fn disk_of(path: &Path) -> anyhow::Result<(u32, u32)> {
    use std::os::unix::fs::MetadataExt;
    let dev = fs::metadata(path)?.dev();
    Ok((rustix::fs::major(dev), rustix::fs::minor(dev)))
}

fn io_max_slows_down(host: &TestHost) -> anyhow::Result<()> {
    const RATE: u64 = 1 << 20;
    let (major, minor) = disk_of(host.files())?;
    let rate = json!([{"major": major, "minor": minor, "rate": RATE}]);
    let write = |file: &str| format!("dd if=/dev/zero of={file} bs=64k count=64 oflag=direct");
    let resources = json!({"blockIO": {"throttleWriteBpsDevice": rate}});
    let script = format!("touch /begun; {}; touch /done; sleep 1000", write("/slow"));
    let run = Contained::start(host, &script, &resources)?;
    let max = run.file("io.max")?;
    ensure!(
        max.contains(&format!("{major}:{minor} ")) && max.contains(&format!("wbps={RATE}")),
        "{max}"
    );
    until("4 MiB at 1 MiB/s", PATIENCE, || {
        Ok(run.root_file("done").exists().then_some(()))
    })?;
    let at = |name: &str| fs::metadata(run.root_file(name))?.modified();
    let took = at("done")?.duration_since(at("begun")?)?;
    ensure!(fs::metadata(run.root_file("slow"))?.len() == 4 << 20);
    ensure!(took > Duration::from_secs(2), "4 MiB took {took:?}");
    let stat = run.file("io.stat")?;
    ensure!(stat.contains("wbytes="), "{stat}");
    Ok(())
}

/// The total of the line `some` of a pressure file, in µs.
fn some_total(text: &str) -> anyhow::Result<u64> {
    let line = text.lines().find(|l| l.starts_with("some "));
    let total = line.and_then(|l| l.rsplit("total=").next());
    total
        .with_context(|| format!("no total in {text}"))?
        .parse()
        .context("a number")
}

fn pressure_is_told(host: &TestHost) -> anyhow::Result<()> {
    let limits = json!({"resources": {"limits": {"cpu": "50m"}}});
    let burn = with(tool("a", &["burn-cpu", "--threads", "2"]), "", limits);
    host.up(&[pod("p", &[burn])])?;
    let pid = host.life("p", "a")?.pid;
    until("pressure", PATIENCE, || {
        let total = some_total(&cgroups::file(pid, "cpu", "cpu.pressure")?)?;
        Ok((total > 100_000).then_some(()))
    })?;
    for kind in ["memory", "io"] {
        some_total(&cgroups::file(pid, "cpu", &format!("{kind}.pressure"))?)?;
    }
    host.rm(&["p"])?;
    Ok(())
}

fn a_kill_takes_all(host: &TestHost) -> anyhow::Result<()> {
    let script = "for i in 1 2 3 4 5 6 7 8; do setsid sleep 1000 & done; wait";
    let run = Contained::start(host, script, &json!({}))?;
    let group = run.group()?;
    ensure!(
        group.join("cgroup.kill").exists(),
        "no cgroup.kill in {group:?}"
    );
    let inside = || -> anyhow::Result<Vec<u32>> {
        let list = fs::read_to_string(group.join("cgroup.procs"))?;
        Ok(list.lines().flat_map(str::parse).collect())
    };
    until("nine processes", PATIENCE, || {
        Ok((inside()?.len() == 9).then_some(()))
    })?;
    let lives: Vec<Life> = inside()?
        .into_iter()
        .map(Life::of)
        .collect::<anyhow::Result<_>>()?;
    let trace = host.files().join("trace").display().to_string();
    let program = host.program()?.display().to_string();
    let root = host.root().join("oci").display().to_string();
    let strace = ["-f", "-e", "trace=openat,openat2,write", "-o", &trace];
    let delete = [
        &program, "oci", "--root", &root, "delete", "--force", &run.id,
    ];
    Cmd::new(
        "strace",
        strace.into_iter().chain(delete.map(|s| s as &str)),
    )
    .ok()?;
    until("all to end", PATIENCE, || {
        Ok((!lives.iter().any(Life::runs)).then_some(()))
    })?;
    let text = fs::read_to_string(&trace)?;
    ensure!(text.contains("\"cgroup.kill\""), "it was not used:\n{text}");
    ensure!(!group.exists(), "{group:?} is left");
    Ok(())
}

fn the_freezer_stops_all(host: &TestHost) -> anyhow::Result<()> {
    let run = Contained::start(host, "while :; do :; done", &json!({}))?;
    let used = || -> anyhow::Result<u64> { counter(&run.file("cpu.stat")?, "usage_usec") };
    let frozen = || -> anyhow::Result<u64> { counter(&run.file("cgroup.events")?, "frozen") };
    until("it to run", PATIENCE, || {
        Ok((used()? > 10_000).then_some(()))
    })?;
    oci(host, &["pause", &run.id])?.ok()?;
    ensure!(run.file("cgroup.freeze")? == "1" && frozen()? == 1);
    let before = used()?;
    // The span in which a running loop would have used more.
    std::thread::sleep(Duration::from_millis(500));
    ensure!(used()? == before, "{before} µs became {}", used()?);
    let state = oci(host, &["state", &run.id])?.ok()?.json()?;
    ensure!(state["status"] == "paused", "{state:#}");
    oci(host, &["resume", &run.id])?.ok()?;
    ensure!(frozen()? == 0);
    until("it to run again", PATIENCE, || {
        Ok((used()? > before + 10_000).then_some(()))
    })
}

/// The device program of the cgroup, not a missing node, is what refuses.
fn devices_are_filtered(host: &TestHost) -> anyhow::Result<()> {
    let (major, minor) = disk_of(host.files())?;
    let script = format!(
        "mknod /disk b {major} {minor}; mknod /one c 1 3; \
         head -c 1 /disk >/dev/null 2>/refused; echo $? >/disk-status; \
         head -c 1 /one; echo $? >/one-status; touch /done; sleep 1000"
    );
    let devices = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
        {"allow": true, "type": "b", "access": "m"},
    ]);
    let bundle_caps = json!({"devices": devices});
    let run = Contained::start(host, &script, &bundle_caps)?;
    until("its verdict", PATIENCE, || {
        Ok(run.root_file("done").exists().then_some(()))
    })?;
    let read = |name: &str| fs::read_to_string(run.root_file(name)).unwrap_or_default();
    let refused = read("refused");
    ensure!(
        read("disk-status") == "1\n" && refused.contains("not permitted"),
        "{refused} {}",
        read("disk-status")
    );
    ensure!(read("one-status") == "0\n", "{}", read("one-status"));
    Ok(())
}

/// `clone3` with CLONE_INTO_CGROUP: no process is ever outside its limits.
fn processes_are_born_inside(host: &TestHost) -> anyhow::Result<()> {
    host.up(&[pod("p", &[tool("a", &["sleep", "inf"])])])?;
    let keeper = host.keeper("p")?.pid.to_string();
    let mut strace = Cmd::new("strace", ["-f", "-e", "trace=clone3", "-p", &keeper]).spawn()?;
    strace.line("its word", PATIENCE, |l| l.contains("attached"))?;
    host.tell("p", &["true"])?;
    let line = strace.line("a clone", PATIENCE, |l| l.contains("clone3("))?;
    ensure!(line.contains("CLONE_INTO_CGROUP"), "{line}");
    strace.signal(rustix::process::Signal::INT)?;
    strace.end(PATIENCE)?;
    host.rm(&["p"])?;
    Ok(())
}

/// As a node's configuration says: a child that is killed for its memory takes
/// its container along, or not.
fn single_process_oom_kill(host: &TestHost) -> anyhow::Result<()> {
    let config = host.root().join("etc/rkube");
    fs::create_dir_all(&config)?;
    let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
                singleProcessOOMKill: true\n";
    fs::write(config.join("kubelet.yaml"), text)?;
    let limits = json!({"resources": {"limits": {"memory": "32Mi"}}});
    let container = with(script("a", "sleep inf"), "", limits);
    host.up(&[pod("p", &[container])])?;
    let life = host.life("p", "a")?;
    ensure!(cgroups::file(life.pid, "memory", "memory.oom.group")? == "0");
    let hog = host.exec("p", &["hog-memory", "64Mi"])?.output()?;
    ensure!(!hog.status.success(), "{hog}");
    ensure!(life.runs(), "the container was killed for its child");
    let seen = host.inspect("p")?;
    ensure!(status(&seen, "a")["restartCount"] == 0, "{seen:#}");
    host.rm(&["p"])?;
    Ok(())
}

/// `memory-high.rkube.dev` and `oom-kill.rkube.dev`, for one container of two.
fn annotations_hold_back_and_spare(host: &TestHost) -> anyhow::Result<()> {
    let limits = json!({"resources": {"limits": {"memory": "32Mi"}}});
    let container = |name: &str| with(script(name, "sleep inf"), "", limits.clone());
    let asked = json!({"name": "p", "annotations": {
        "memory-high.rkube.dev/a": "16Mi", "oom-kill.rkube.dev/a": "process"}});
    let pod = pod("p", &[container("a"), container("b")]);
    host.up(&[with(pod, "metadata", asked)])?;
    let of = |name: &str, file: &str| -> anyhow::Result<String> {
        cgroups::file(host.life("p", name)?.pid, "memory", file)
    };
    ensure!(of("a", "memory.high")? == (16 << 20).to_string());
    ensure!(of("a", "memory.oom.group")? == "0" && of("b", "memory.oom.group")? == "1");
    ensure!(of("b", "memory.high")? == "max");
    host.rm(&["p"])?;
    Ok(())
}
