//! Memory, processor and process limits, read back from the kernel.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::case::Case;
use crate::cgroups::{self, counter};
use crate::host::TestHost;
use crate::layout::Layout;
use crate::pods::{pod, status, tool, with};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("limits::out_of_memory_is_told", out_of_memory_is_told),
        Case::new("limits::cpu_quota_holds", cpu_quota_holds).alone(),
        Case::new("limits::process_count_is_counted", process_count_is_counted),
        Case::new("limits::qos_tree_v1", qos_tree_v1).on(Layout::LEGACY),
        Case::new("limits::qos_tree_v2", qos_tree_v2).on(Layout::UNIFIED),
        Case::new("limits::group_kill_v2", group_kill_v2).on(Layout::UNIFIED),
        Case::new(
            "limits::stats_tell_the_kernels_numbers",
            stats_tell_the_kernels_numbers,
        ),
        Case::new("limits::pressure_is_told", pressure_is_told),
        Case::new("limits::oom_scores", oom_scores),
        Case::new("limits::full_capabilities", full_capabilities).vm_only(),
    ]
}

fn limited(container: Value, resources: Value) -> Value {
    with(container, "", json!({"resources": resources}))
}

fn out_of_memory_is_told(host: &TestHost) -> anyhow::Result<()> {
    let hog = limited(
        tool("a", &["hog-memory", "64Mi", "--step", "4Mi"]),
        json!({"limits": {"memory": "32Mi"}}),
    );
    let out = host
        .run(&[pod("p", std::slice::from_ref(&hog))])?
        .exits(137)?;
    ensure!(out.stderr.contains("OOMKilled"), "{out}");
    let made = with(pod("q", &[hog]), "spec", json!({"restartPolicy": "Always"}));
    host.up(&[made])?;
    let seen = host.wait_pod("q", "a kill", |p| {
        status(p, "a")["lastState"]["terminated"]["reason"] == "OOMKilled"
    })?;
    ensure!(
        status(&seen, "a")["lastState"]["terminated"]["exitCode"] == 137,
        "{seen:#}"
    );
    host.wait_event("q", "OOMKilling")?;
    let events = host.events("q")?;
    let told = events.iter().any(|e| {
        let message = e["message"].as_str().unwrap_or_default();
        e["type"] == "Warning"
            && (message.contains("32Mi") || message.contains("33554432"))
            && message.to_lowercase().contains("memory")
    });
    ensure!(told, "no event tells of the memory limit: {events:#?}");
    host.rm(&["q"])?;
    // One that stays below its limit is left alone.
    let fits = limited(
        tool("a", &["hog-memory", "16Mi", "--seconds", "0"]),
        json!({"limits": {"memory": "64Mi"}}),
    );
    host.ran(&[pod("r", &[fits])])?;
    Ok(())
}

/// Nanoseconds of processor time, and throttled periods.
fn used(pid: u32) -> anyhow::Result<(u64, u64)> {
    let stat = cgroups::file(pid, "cpu", "cpu.stat")?;
    let throttled = counter(&stat, "nr_throttled")?;
    if let Ok(micros) = counter(&stat, "usage_usec") {
        return Ok((micros * 1000, throttled));
    }
    Ok((
        cgroups::file(pid, "cpuacct", "cpuacct.usage")?.parse()?,
        throttled,
    ))
}

/// Share of one processor in `span`, in percent, and throttled periods.
fn measured(pid: u32, span: Duration) -> anyhow::Result<(f64, u64)> {
    let (from, at) = (used(pid)?, Instant::now());
    // The measurement itself: the span is what is measured.
    std::thread::sleep(span);
    let (to, took) = (used(pid)?, at.elapsed());
    let share = Duration::from_nanos(to.0 - from.0).as_secs_f64() / took.as_secs_f64() * 100.0;
    Ok((share, to.1 - from.1))
}

fn cpu_quota_holds(host: &TestHost) -> anyhow::Result<()> {
    let burn = || tool("a", &["burn-cpu", "--threads", "2"]);
    host.up(&[pod(
        "quota",
        &[limited(burn(), json!({"limits": {"cpu": "100m"}}))],
    )])?;
    let (share, throttled) = measured(host.life("quota", "a")?.pid, Duration::from_secs(10))?;
    host.rm(&["quota"])?;
    host.up(&[pod("free", &[burn()])])?;
    let (free, never) = measured(host.life("free", "a")?.pid, Duration::from_secs(3))?;
    host.rm(&["free"])?;
    ensure!(
        (8.0..=12.0).contains(&share),
        "{share:.1}% under a limit of 10%"
    );
    ensure!(throttled > 50, "{throttled} throttled periods of about 100");
    ensure!(
        free > 3.0 * share,
        "{free:.1}% without a limit, {share:.1}% with one"
    );
    ensure!(never == 0, "{never} throttled periods without a limit");
    Ok(())
}

fn process_count_is_counted(host: &TestHost) -> anyhow::Result<()> {
    host.up(&[pod("p", &[tool("a", &["sleep", "inf"])])])?;
    let pid = host.life("p", "a")?.pid;
    let current: u64 = cgroups::file(pid, "pids", "pids.current")?.parse()?;
    ensure!(current == 1, "{current} processes in the cgroup of one");
    host.rm(&["p"])?;
    Ok(())
}

/// Three pods, one of each class; gives the pids of their containers.
fn three_classes(host: &TestHost) -> anyhow::Result<[u32; 3]> {
    let of = |name: &str, resources: Value| {
        pod(name, &[limited(tool("a", &["sleep", "inf"]), resources)])
    };
    host.up(&[
        of(
            "guaranteed",
            json!({"limits": {"cpu": "500m", "memory": "64Mi"}}),
        ),
        of(
            "burstable",
            json!({"requests": {"cpu": "250m", "memory": "16Mi"}, "limits": {"memory": "32Mi"}}),
        ),
        of("besteffort", json!({})),
    ])?;
    for (name, class) in [
        ("guaranteed", "Guaranteed"),
        ("burstable", "Burstable"),
        ("besteffort", "BestEffort"),
    ] {
        let seen = host.inspect(name)?;
        ensure!(seen["status"]["qosClass"] == class, "{seen:#}");
    }
    Ok([
        host.life("guaranteed", "a")?.pid,
        host.life("burstable", "a")?.pid,
        host.life("besteffort", "a")?.pid,
    ])
}

/// The path ends in `/kubepods[/CLASS]/podUID/CONTAINER` in this hierarchy.
fn in_tree(host: &TestHost, name: &str, pid: u32, controller: &str) -> anyhow::Result<()> {
    let uid = host.inspect(name)?["metadata"]["uid"]
        .as_str()
        .context("no uid")?
        .to_owned();
    let path = cgroups::of(pid, controller)?.to_string_lossy().into_owned();
    let class = if name == "guaranteed" {
        String::new()
    } else {
        format!("{name}/")
    };
    ensure!(
        path.contains(&format!("/kubepods/{class}pod{uid}/")),
        "{controller}: {path}"
    );
    Ok(())
}

fn qos_tree_v1(host: &TestHost) -> anyhow::Result<()> {
    let pids = three_classes(host)?;
    for (name, pid) in ["guaranteed", "burstable", "besteffort"]
        .into_iter()
        .zip(pids)
    {
        for controller in ["cpu", "memory", "pids", "devices"] {
            in_tree(host, name, pid, controller)?;
        }
    }
    let read = |pid, controller, file| cgroups::file(pid, controller, file);
    ensure!(
        read(pids[0], "cpu", "cpu.cfs_quota_us")? == "50000"
            && read(pids[0], "cpu", "cpu.cfs_period_us")? == "100000"
    );
    ensure!(
        read(pids[0], "cpu", "cpu.shares")? == "512"
            && read(pids[1], "cpu", "cpu.shares")? == "256"
    );
    ensure!(
        read(pids[2], "cpu", "cpu.shares")? == "2"
            && read(pids[1], "cpu", "cpu.cfs_quota_us")? == "-1"
    );
    ensure!(read(pids[0], "memory", "memory.limit_in_bytes")? == (64 << 20).to_string());
    ensure!(read(pids[1], "memory", "memory.limit_in_bytes")? == (32 << 20).to_string());
    // The pod's own cgroup has the sum.
    let parent = cgroups::of(pids[0], "memory")?;
    let of_pod = std::fs::read_to_string(parent.join("../memory.limit_in_bytes"))?;
    ensure!(of_pod.trim() == (64 << 20).to_string(), "{of_pod}");
    let devices = read(pids[2], "devices", "devices.list")?;
    ensure!(
        devices.contains("c 1:3 rwm") && !devices.contains("a *:* rwm"),
        "{devices}"
    );
    host.rm(&["guaranteed", "burstable", "besteffort"])?;
    Ok(())
}

fn qos_tree_v2(host: &TestHost) -> anyhow::Result<()> {
    let pids = three_classes(host)?;
    for (name, pid) in ["guaranteed", "burstable", "besteffort"]
        .into_iter()
        .zip(pids)
    {
        in_tree(host, name, pid, "memory")?;
    }
    let read = |pid, file| cgroups::file(pid, "memory", file);
    ensure!(
        read(pids[0], "cpu.max")? == "50000 100000" && read(pids[1], "cpu.max")? == "max 100000"
    );
    // The newer conversion: 1024 shares are a weight of 100, 2 are 1.
    ensure!(
        read(pids[2], "cpu.weight")? == "1",
        "{}",
        read(pids[2], "cpu.weight")?
    );
    ensure!(
        read(pids[0], "cpu.weight")? == "59",
        "{}",
        read(pids[0], "cpu.weight")?
    );
    ensure!(read(pids[0], "memory.max")? == (64 << 20).to_string());
    ensure!(read(pids[1], "memory.max")? == (32 << 20).to_string());
    ensure!(read(pids[2], "memory.max")? == "max" && read(pids[0], "memory.oom.group")? == "1");
    let parent = cgroups::of(pids[0], "memory")?;
    ensure!(
        std::fs::read_to_string(parent.join("../memory.max"))?.trim() == (64 << 20).to_string()
    );
    host.rm(&["guaranteed", "burstable", "besteffort"])?;
    Ok(())
}

fn group_kill_v2(host: &TestHost) -> anyhow::Result<()> {
    let container = limited(
        tool("a", &["sleep", "inf"]),
        json!({"limits": {"memory": "32Mi"}}),
    );
    host.up(&[pod("p", &[container])])?;
    // The child is the hog, yet the whole container ends.
    host.exec("p", &["hog-memory", "64Mi"])?.output()?;
    let ended = host.wait_pod("p", "its end", |p| p["status"]["phase"] == "Failed")?;
    ensure!(
        status(&ended, "a")["state"]["terminated"]["reason"] == "OOMKilled",
        "{ended:#}"
    );
    Ok(())
}

fn stats_tell_the_kernels_numbers(host: &TestHost) -> anyhow::Result<()> {
    let hog = limited(
        tool("a", &["hog-memory", "24Mi"]),
        json!({"limits": {"memory": "64Mi", "cpu": "200m"}}),
    );
    host.up(&[pod("p", &[hog])])?;
    crate::wait::until("24 MiB", Duration::from_secs(60), || {
        Ok(host
            .rkube(["logs", "p"])?
            .ok()?
            .stdout
            .contains("holding 25165824")
            .then_some(()))
    })?;
    let rows = host
        .rkube(["stats", "--no-stream", "-o", "json"])?
        .ok()?
        .json()?;
    let stats = &rows[0]["stats"];
    let bytes = find_number(stats, &["memory", "usage"])
        .with_context(|| format!("no memory in {stats:#}"))?;
    ensure!(((24 << 20)..(64 << 20)).contains(&bytes), "{stats:#}");
    let table = host.rkube(["stats", "--no-stream"])?.ok()?.stdout;
    ensure!(table.contains('p') && table.contains("Mi"), "{table}");
    host.rm(&["p"])?;
    Ok(())
}

/// An alarm on pressure is an event; on v1 alone the error names what lacks.
fn pressure_is_told(host: &TestHost) -> anyhow::Result<()> {
    let alarmed = |name: &str, text: &str| {
        with(
            pod(name, &[tool("a", &["burn-cpu", "--threads", "8"])]),
            "metadata",
            json!({"name": name, "annotations": {"pressure-alarm.rkube.dev/a": text}}),
        )
    };
    let bad = host.manifest(&[alarmed("bad", "memory some soon")])?;
    let words = ["run", "--detach", "--timeout", "5", "-f"].map(std::path::Path::new);
    host.rkube(words.into_iter().chain([bad.as_path()]))?
        .exits(1)?;
    let event = host.wait_event("bad", "Failed")?;
    let message = event["message"].as_str().unwrap_or_default();
    ensure!(message.contains("pressure-alarm.rkube.dev/a"), "{message}");
    let good = host.manifest(&[alarmed("p", "cpu some 50ms/2s")])?;
    let words = ["run", "--detach", "--timeout", "20", "-f"].map(std::path::Path::new);
    let run = host.rkube(words.into_iter().chain([good.as_path()]))?;
    let there = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .iter()
        .any(|dir| std::path::Path::new(dir).join("cpu.pressure").exists());
    if there {
        run.ok()?;
        let event = host.wait_event("p", "PressureHigh")?;
        let message = event["message"].as_str().unwrap_or_default();
        ensure!(
            message == "cpu pressure: some tasks waited for 50ms or more within 2s",
            "{message}"
        );
    } else {
        run.exits(1)?;
        let event = host.wait_event("p", "Failed")?;
        let message = event["message"].as_str().unwrap_or_default();
        ensure!(message.contains("pressure alarm"), "{message}");
    }
    host.rm(&["p", "bad"])?;
    Ok(())
}

/// The first number below keys that contain these words in turn.
fn find_number(value: &Value, words: &[&str]) -> Option<u64> {
    let Some((word, rest)) = words.split_first() else {
        return value.as_u64();
    };
    value
        .as_object()?
        .iter()
        .filter(|(k, _)| k.contains(word))
        .find_map(|(_, v)| find_number(v, rest))
}

fn oom_scores(host: &TestHost) -> anyhow::Result<()> {
    let pids = three_classes(host)?;
    let score = |pid: u32| -> anyhow::Result<i32> {
        Ok(
            std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?
                .trim()
                .parse()?,
        )
    };
    let own = score(std::process::id())?;
    let (guaranteed, burstable, besteffort) = (score(pids[0])?, score(pids[1])?, score(pids[2])?);
    ensure!(
        besteffort == 1000 && (3..1000).contains(&burstable),
        "{burstable} {besteffort}"
    );
    // Lowering it takes CAP_SYS_RESOURCE; without, it is clamped to our own.
    ensure!(
        guaranteed == -997 || guaranteed == own.max(-997),
        "{guaranteed}, own {own}"
    );
    host.rm(&["guaranteed", "burstable", "besteffort"])?;
    Ok(())
}

/// What this process must not have lost, so that the case is one (bits 0 to 40
/// of capability(7), CAP_CHECKPOINT_RESTORE the last).
const ALL_CAPABILITIES: u64 = (1 << 41) - 1;

/// What a shared host may forbid and a machine of one's own gives.
fn full_capabilities(host: &TestHost) -> anyhow::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let held = u64::from_str_radix(line.context("no CapEff")?.trim(), 16)?;
    ensure!(held & ALL_CAPABILITIES == ALL_CAPABILITIES, "{held:x}");
    let pids = three_classes(host)?;
    let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", pids[0]))?;
    ensure!(score.trim() == "-997", "{score}");
    host.rm(&["guaranteed", "burstable", "besteffort"])?;
    // Both above what this process has itself.
    let (own, _) = rlimit_of(std::process::id(), "Max open files")?;
    let wanted = own * 2;
    let bundle = super::oci::bundle(host, &["/bin/cat", "/proc/self/limits"], |spec| {
        spec["process"]["rlimits"] = json!([
            {"type": "RLIMIT_NOFILE", "soft": wanted, "hard": wanted},
            {"type": "RLIMIT_MEMLOCK", "soft": 1_u64 << 40, "hard": 1_u64 << 41},
            {"type": "RLIMIT_NICE", "soft": 30, "hard": 40},
        ]);
        spec["process"]["oomScoreAdj"] = (-500).into();
    })?;
    let root = host.root().join("oci").display().to_string();
    let (bundle, id) = (
        bundle.display().to_string(),
        format!("rkube-{}", std::process::id()),
    );
    let run = ["oci", "--root", &root, "run", "--bundle", &bundle, &id];
    let out = crate::command::Cmd::new(host.program()?, run).ok()?;
    ensure!(
        limit_in(&out.stdout, "Max open files")? == (wanted, wanted),
        "{out}"
    );
    ensure!(
        limit_in(&out.stdout, "Max locked memory")? == (1 << 40, 1 << 41),
        "{out}"
    );
    ensure!(
        limit_in(&out.stdout, "Max nice priority")? == (30, 40),
        "{out}"
    );
    ensure!(out.stderr.is_empty(), "a warning: {out}");
    Ok(())
}

fn rlimit_of(pid: u32, name: &str) -> anyhow::Result<(u64, u64)> {
    limit_in(
        &std::fs::read_to_string(format!("/proc/{pid}/limits"))?,
        name,
    )
}

/// Soft and hard limit in a line of /proc/PID/limits (proc(5)).
fn limit_in(text: &str, name: &str) -> anyhow::Result<(u64, u64)> {
    let line = text.lines().find_map(|l| l.strip_prefix(name));
    let mut words = line.context("no such limit")?.split_whitespace();
    let mut next = || {
        words
            .next()
            .context("a short line")
            .and_then(|w| Ok(w.parse()?))
    };
    Ok((next()?, next()?))
}
