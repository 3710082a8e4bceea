//! What a power cut leaves on the disk. Before it, pods come and go, images
//! are imported, and a file is synced and renamed without end; after it, the
//! next boot on the same disk finds whole state, clears what is left, and its
//! images are what was imported.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::case::Case;
use crate::command::Cmd;
use crate::host::TestHost;
use crate::pods::{pod, script, tool, with};
use crate::wait::until;
use crate::{images, leaks, net};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("powercut::a_writer_never_ends", a_writer_never_ends)
            .before_cut()
            .within_secs(600),
        Case::new("powercut::pods_come_and_go", pods_come_and_go)
            .before_cut()
            .within_secs(600),
        Case::new("powercut::images_are_imported", images_are_imported)
            .before_cut()
            .within_secs(600),
        Case::new("powercut::all_are_at_work", all_are_at_work)
            .before_cut()
            .within_secs(600),
        Case::new("powercut::synced_state_is_whole", synced_state_is_whole).after_cut(),
        Case::new(
            "powercut::pods_and_images_are_whole",
            pods_and_images_are_whole,
        )
        .after_cut()
        .within_secs(240),
    ]
}

const STATE: &str = "powercut-state";
/// Bytes of each state, so that a torn one would show.
const STATE_BYTES: usize = 256 * 1024;
/// What is synced after each round of pods and of imports: `<name> <round>`.
const ROUNDS: [&str; 2] = ["pods-round", "images-round"];
/// Sums of the files of some packages of the large image.
const LISTS: &str = "var/lib/dpkg/info/coreutils.md5sums var/lib/dpkg/info/dpkg.md5sums \
                     var/lib/dpkg/info/perl-base.md5sums";

fn boot_id() -> anyhow::Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(path)
        .with_context(|| format!("read {path}"))?
        .trim()
        .to_owned())
}

/// Places a file durably: written, synced, renamed, its directory synced.
fn place(dir: &Path, name: &str, content: &[u8]) -> anyhow::Result<()> {
    let next = dir.join(format!("{name}.next"));
    let mut file = File::create(&next).with_context(|| format!("make the next {name}"))?;
    file.write_all(content)?;
    file.sync_all()
        .with_context(|| format!("sync the next {name}"))?;
    fs::rename(&next, dir.join(name)).with_context(|| format!("place {name}"))?;
    let dir = File::open(dir).context("open the directory")?;
    dir.sync_all().context("sync the directory")
}

/// Writes, syncs and renames without end, as every durable state is kept.
fn a_writer_never_ends(host: &TestHost) -> anyhow::Result<()> {
    let id = boot_id()?;
    for round in 1u64.. {
        let line = format!("{id} {round}\n");
        let text = line.repeat(STATE_BYTES / line.len());
        place(host.files(), STATE, text.as_bytes())?;
    }
    Ok(())
}

fn synced_state_is_whole(host: &TestHost) -> anyhow::Result<()> {
    let path: &Path = &host.files().join(STATE);
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let first = text.lines().next().context("the state is empty")?;
    let whole = format!("{first}\n").repeat(STATE_BYTES / (first.len() + 1));
    ensure!(
        text == whole,
        "a torn state: {} bytes that begin with {first:?}",
        text.len()
    );
    let (id, round) = first.split_once(' ').context("no round in the state")?;
    ensure!(round.parse::<u64>()? >= 1);
    ensure!(
        id != boot_id()?,
        "the power was not cut: it is the same boot"
    );
    Ok(())
}

/// A pod that writes to its log, its layer and its volume.
fn busy(name: &str) -> Value {
    let volume = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let text = "say --lines 20 --bytes 200; fill /layer 256Ki; fill /v/file 256Ki; sleep inf";
    let made = pod(name, &[with(script("a", text), "", volume)]);
    with(
        made,
        "spec",
        json!({"restartPolicy": "Always", "volumes": [{"name": "v", "emptyDir": {}}]}),
    )
}

/// One pod stays and is on the disk, others come and go beside it; their
/// records may be torn, since nothing flushes them: no process outlives what
/// they would be flushed for.
fn pods_come_and_go(host: &TestHost) -> anyhow::Result<()> {
    host.up(&[busy("stays")])?;
    rustix::fs::sync();
    for round in 1u64.. {
        let name = format!("comes-{round}");
        host.up(&[busy(&name)])?;
        place(host.files(), ROUNDS[0], round.to_string().as_bytes())?;
        host.rm(&[&name])?;
    }
    Ok(())
}

fn import(host: &TestHost, archive: &Path, name: &str) -> anyhow::Result<()> {
    let args = [
        Path::new("image"),
        Path::new("import"),
        archive,
        Path::new(name),
    ];
    host.rkube(args)?.ok().map(drop)
}

/// A small image, and one of many files, which takes most of the time.
fn archives() -> anyhow::Result<[PathBuf; 2]> {
    Ok([images::busybox()?, images::minbase()?])
}

fn images_are_imported(host: &TestHost) -> anyhow::Result<()> {
    let [small, large] = archives()?;
    for round in 1u64.. {
        import(host, &small, &format!("cut.local/small:{round}"))?;
        place(host.files(), ROUNDS[1], round.to_string().as_bytes())?;
        import(host, &large, &format!("cut.local/large:{round}"))?;
        if round > 1 {
            let old = format!("cut.local/large:{}", round - 1);
            host.rkube(["image", "rm", &old])?.ok()?;
        }
    }
    Ok(())
}

/// Its end tells the runner that the power may be cut.
fn all_are_at_work(host: &TestHost) -> anyhow::Result<()> {
    until("pods and images", Duration::from_secs(300), || {
        let there = |name: &&str| host.files().join(name).exists();
        Ok(ROUNDS.iter().chain(&[STATE]).all(there).then_some(()))
    })
}

fn pods_and_images_are_whole(host: &TestHost) -> anyhow::Result<()> {
    // Nothing that was promised is gone, and nothing is half there.
    for name in ROUNDS {
        let path = host.files().join(name);
        let round = fs::read_to_string(&path).with_context(|| format!("read {name}"))?;
        ensure!(round.parse::<u64>()? >= 1, "{name}: {round:?}");
    }
    // No process lived through it, so no pod is left, whole or torn; each can
    // be made anew under its name.
    let listed = host.rkube(["ps", "-a", "-o", "json"])?.ok()?.json()?;
    let names = names_of(&listed);
    ensure!(names.is_empty(), "pods of an earlier boot: {names:?}");
    host.up(&[busy("stays")])?;
    host.ran(&[pod("after", &[tool("a", &["echo", "it works"])])])?;
    images_verify(host)?;
    host.rm(&["stays"])?;
    // Leftovers are cleaned: no pod's directory, log or layer is without a pod.
    for below in [
        "var/lib/rkube/pods",
        "var/lib/rkube/sandboxes",
        "var/lib/rkube/containers",
        "var/log/pods",
    ] {
        let left = entries(&host.root().join(below))?;
        ensure!(left.is_empty(), "left in {below}: {left:?}");
    }
    let instance = leaks::Instance::read(host.root());
    host.rkube(["reset", "--force"])?.ok()?;
    let dir = host.root().parent().context("no test host")?;
    let left = instance.leftovers(dir, net::own_inode()?);
    // This case runs in the machine's own namespace, beside its init: there
    // processes and links tell nothing of rkube.
    let own = |l: &&String| !l.starts_with("process ") && !l.starts_with("link ");
    let left: Vec<&String> = left.iter().filter(own).collect();
    ensure!(left.is_empty(), "left behind after reset: {left:#?}");
    Ok(())
}

fn names_of(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().or_else(|| list.as_array());
    let name = |pod: &Value| pod["metadata"]["name"].as_str().map(str::to_owned);
    items.into_iter().flatten().filter_map(name).collect()
}

/// Names in a directory, without those by which rkube keeps notes of its own.
fn entries(dir: &Path) -> anyhow::Result<Vec<String>> {
    match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        list => Ok(list
            .with_context(|| format!("list {}", dir.display()))?
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .filter(|name| !name.starts_with('.'))
            .collect()),
    }
}

/// Every image in the list has the bytes that were imported.
fn images_verify(host: &TestHost) -> anyhow::Result<()> {
    let list = host.rkube(["image", "ls", "-o", "json"])?.ok()?.stdout;
    let words = list.split(['"', ' ', '\n']);
    let mut found: Vec<&str> = words.filter(|w| w.starts_with("cut.local/")).collect();
    found.sort_unstable();
    found.dedup();
    ensure!(found.iter().any(|i| i.contains("small")), "{list}");
    let sum = Cmd::new("sha256sum", ["/bin/busybox"]).ok()?.stdout;
    let sum = sum.split(' ').next().unwrap_or_default().to_owned();
    for image in found {
        let text = if image.contains("small") {
            format!("echo '{sum}  /bin/busybox' | sha256sum -c")
        } else {
            format!("cd / && cat {LISTS} | md5sum --quiet -c")
        };
        let verify = json!({"name": "a", "image": image, "command": ["/bin/sh", "-c", text]});
        host.ran(&[pod("verify", &[verify])])
            .with_context(|| format!("verify {image}"))?;
    }
    // The one that was being imported can be imported again.
    let [small, _] = archives()?;
    import(host, &small, "cut.local/again:1")
}
