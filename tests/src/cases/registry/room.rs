//! Images in a disk and a memory that are not endless, and pulls and imports
//! that are killed.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;

use super::{image, import_busybox, pulling};
use crate::case::{Case, skip};
use crate::generator::Generator;
use crate::host::TestHost;
use crate::images;
use crate::pods::with;
use crate::registry::{self, Options, Registry};
use crate::wait::until;

/// Environment variable: MiB of the long layer. `make soak` says 4096.
const LAYER_MIB: &str = "RKUBE_LAYER_MIB";
/// What `make test` takes.
const SAMPLE_LAYER_MIB: u64 = 192;
/// Most memory of a pull, whatever the layer's size: the program itself, and
/// the buffers between network, hash and disk.
const MOST_PEAK_KIB: u64 = 64 << 10;
/// The long form writes 8 GiB.
const LONG_SECS: u64 = 3600;
/// Times at which a pull or an import is killed.
const KILLS: u32 = 8;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("registry::a_long_layer_in_little_memory", a_long_layer).within_secs(LONG_SECS),
        Case::new("registry::killed_at_any_time", killed_at_any_time).within_secs(600),
        Case::new("registry::unused_images_make_room", unused_images_make_room).within_secs(300),
    ]
}

fn layer_mib() -> anyhow::Result<u64> {
    match std::env::var(LAYER_MIB) {
        Ok(text) => text.parse().with_context(|| format!("{LAYER_MIB}={text}")),
        Err(_) => Ok(SAMPLE_LAYER_MIB),
    }
}

/// Runs `rkube image pull` and gives the most memory that it had (`VmHWM`,
/// proc_pid_status(5)) in KiB.
fn pull_measured(host: &TestHost, name: &str) -> anyhow::Result<u64> {
    let said = host.file("said", "")?;
    let mut child = Command::new(host.program()?)
        .arg("--root")
        .arg(host.root())
        .args(["image", "pull", name])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&said)?)
        .spawn()
        .context("start rkube image pull")?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let ended = until("the pull to end", Duration::from_secs(LONG_SECS), || {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let now = line.and_then(|l| l.split_whitespace().next()?.parse().ok());
        peak = peak.max(now.unwrap_or(0));
        child.try_wait().context("wait for the pull")
    });
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let said = std::fs::read_to_string(&said)?;
    ensure!(ended?.success(), "the pull did not work: {said}");
    Ok(peak)
}

fn a_long_layer(host: &TestHost) -> anyhow::Result<()> {
    registry::demand()?;
    let registry = Generator::start(layer_mib()?)?;
    let name = registry.image();
    let peak = pull_measured(host, &name)?;
    let bytes = registry.layer_bytes();
    println!("{} MiB of layer, {} MiB of memory", bytes >> 20, peak >> 10);
    ensure!(peak > 0 && peak < MOST_PEAK_KIB, "{peak} KiB of memory");
    // It was cut in the middle, and nothing but what was on its way came twice.
    let sent = registry.sent_bytes();
    ensure!(
        sent >= bytes && sent < bytes + (16 << 20),
        "{sent} bytes sent of {bytes}"
    );
    let list = image(host, &["ls", "-o", "json"])?.ok()?.json()?;
    let size = list[0]["size_bytes"].as_u64().unwrap_or(0);
    ensure!(
        size > 2 * bytes && size < 2 * bytes + (4 << 20),
        "blob and tree of {bytes}: {size}"
    );
    let verify = image(host, &["verify", &name])?.within(Duration::from_secs(LONG_SECS));
    verify.ok()?;
    image(host, &["rm", &name])?.ok()?;
    Ok(())
}

/// Kills a command after a while; whether it was still running.
fn kill_after(host: &TestHost, args: &[&str], after: Duration) -> anyhow::Result<bool> {
    let mut child = Command::new(host.program()?)
        .arg("--root")
        .arg(host.root())
        .arg("image")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start rkube image")?;
    std::thread::sleep(after);
    let running = child.try_wait()?.is_none();
    // It may end just now.
    let _ = child.kill();
    child.wait()?;
    Ok(running)
}

/// The image is there whole or not at all, and nothing unfinished is left once
/// another command has looked.
fn whole_or_none(host: &TestHost, name: &str) -> anyhow::Result<bool> {
    let list = image(host, &["ls", "-o", "name"])?.ok()?.stdout;
    let there = list.lines().any(|l| l == name);
    image(host, &["verify"])?.ok()?;
    let tmp = host.root().join("var/lib/rkube/images/tmp");
    let left = std::fs::read_dir(&tmp)?.count();
    ensure!(left == 0, "{left} entries are left in {}", tmp.display());
    if there {
        image(host, &["rm", name])?.ok()?;
    }
    Ok(there)
}

fn killed_at_any_time(host: &TestHost) -> anyhow::Result<()> {
    registry::demand()?;
    let registry = Generator::start(SAMPLE_LAYER_MIB)?;
    let name = registry.image();
    let tar = images::busybox()?;
    let tar = tar.to_string_lossy().into_owned();
    let import = ["import", &tar, "cut.local/busybox:1"];
    let imported = "cut.local/busybox:1";
    let pull = ["pull", &name];
    for (args, what) in [(&import[..], imported), (&pull[..], &*name)] {
        // How long it takes undisturbed; a pull from the beginning.
        let begin = std::time::Instant::now();
        image(host, args)?.ok()?;
        let whole = begin.elapsed();
        image(host, &["rm", what])?.ok()?;
        let mut killed = 0;
        for nth in 0..KILLS {
            let after = whole.mul_f64(f64::from(nth) / f64::from(KILLS));
            killed += u32::from(kill_after(host, args, after)?);
            whole_or_none(host, what)
                .with_context(|| format!("{args:?} killed after {after:?}"))?;
        }
        ensure!(killed > 0, "{args:?} was never killed in {whole:?}");
        // The next one does not mind, and goes on where a pull was cut.
        image(host, args)?.ok()?;
        ensure!(whole_or_none(host, what)?, "{what} is not there");
    }
    Ok(())
}

fn unused_images_make_room(host: &TestHost) -> anyhow::Result<()> {
    // Any disk is too full for this one: what can go goes at once.
    let etc = host.root().join("etc/rkube");
    std::fs::create_dir_all(&etc)?;
    std::fs::write(
        etc.join("kubelet.yaml"),
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
         imageGCHighThresholdPercent: 1\nimageGCLowThresholdPercent: 0\nimageMinimumGCAge: 3s\n",
    )?;
    let disk = image(host, &["df", "-o", "json"])?.ok()?.json()?;
    let size = |name: &str| disk["fileSystem"][name].as_u64().unwrap_or(0);
    if size("total_bytes") / 100 > size("total_bytes") - size("available_bytes") {
        return Err(skip("this disk is not even used to one hundredth"));
    }
    let registry = Registry::start(host, "plain", Options::default())?;
    import_busybox(host, "local/source:1")?;
    // Four images with a layer of their own each, beside one that is in use.
    for name in ["unused", "pinned", "used", "pulled"] {
        let tree = host.files().join(name);
        std::fs::create_dir_all(tree.join("etc"))?;
        std::fs::write(tree.join("etc/name"), name)?;
        std::fs::copy("/bin/busybox", tree.join("sleep"))?;
        let local = format!("local/{name}:1");
        image(host, &["import", &tree.to_string_lossy(), &local])?.ok()?;
    }
    let pulled = registry.image("team/pulled:1");
    image(host, &["push", "local/pulled:1", &pulled])?.ok()?;
    image(host, &["rm", "local/pulled:1"])?.ok()?;
    image(host, &["pin", "local/pinned:1"])?.ok()?;
    let container = |image: &str, policy: &str| {
        let made = pulling(image, "");
        let change = json!({"imagePullPolicy": policy, "command": ["/sleep", "1000"]});
        with(made, "spec.containers.0", change)
    };
    let named = |pod, name: &str| with(pod, "metadata", json!({"name": name}));
    host.up(&[named(container("local/used:1", "Never"), "used")])?;
    // Now all of them are old enough to go; what comes next is not.
    std::thread::sleep(Duration::from_secs(4));
    host.up(&[named(container(&pulled, "Always"), "pulling")])?;
    until("the unused images to go", Duration::from_secs(60), || {
        let list = image(host, &["ls", "-o", "name"])?.ok()?.stdout;
        for name in ["local/used:1", "local/pinned:1", &pulled] {
            ensure!(list.contains(name), "{name} is gone: {list}");
        }
        ensure!(list.contains("rkube.local/toolbox"), "{list}");
        let gone = !list.contains("local/unused:1") && !list.contains("local/source:1");
        Ok(gone.then_some(()))
    })?;
    // What is said to be used is what is there.
    let usage = image(host, &["df", "-o", "json"])?.ok()?.json()?;
    let images = host.root().join("var/lib/rkube/images");
    let layers = std::fs::read_dir(images.join("layers"))?.count();
    ensure!(layers == 4, "{layers} layers are left");
    let mut bytes = 0;
    for blob in std::fs::read_dir(images.join("blobs/sha256"))? {
        bytes += blob?.metadata()?.len();
    }
    ensure!(
        usage["images"]["blob_bytes"] == bytes,
        "{bytes} bytes of blobs: {usage}"
    );
    host.rm(&["used", "pulling"])?;
    Ok(())
}
