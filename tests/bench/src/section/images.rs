//! Images from an archive: import (until a container could start from it),
//! the same until all of it is on the disk, and the mount of its root, beside
//! skopeo and umoci, podman and containerd with the same archive.
//!
//! Everybody begins with an empty store and with nothing that waits to be
//! written, and they take turns.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rkube_image::{MountOptions, Snapshots, Store};
use rkube_tests::{images, wait};

use super::{Bench, peer};
use crate::clock;
use crate::peers;
use crate::place::Place;
use crate::report::Row;
use crate::stats::Samples;

/// Environment variable: the archive (`docker save`) to take instead of a
/// debootstrap tree, or of busybox where none can be made.
const ARCHIVE: &str = "RKUBE_BENCH_ARCHIVE";
/// The name in an archive of our making.
const NAME: &str = "localhost/bench:1";
/// Imports are slow beside pods: so many of the runs.
const SHARE: usize = 6;

/// Milliseconds of one run.
#[derive(Debug, Clone, Copy)]
struct Took {
    import: f64,
    /// With the wait for the disk.
    synced: f64,
    mount: Option<f64>,
}

#[derive(Debug, Default)]
struct All {
    import: Samples,
    synced: Samples,
    mount: Samples,
}

type Measure = fn(&Bench, &Place, &Path, usize) -> anyhow::Result<Took>;

const RKUBE: &str = "rkube";
/// Who is measured, and how.
const WHO: &[(&str, Measure)] = &[
    (RKUBE, rkube),
    ("skopeo copy + umoci unpack", skopeo_and_umoci),
    ("podman load", podman),
    ("ctr image import", containerd),
];

pub(super) fn rows(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let place = Place::of_rkube(&bench.program)?;
    let (archives, what) = archives(bench, place.dir())?;
    let runs = bench.runs.div_ceil(SHARE).max(2);
    let mut rows = Vec::new();
    for (archive, form) in &archives {
        let what = format!("{what}, {form}");
        rows.extend(beside_each_other(bench, archive, &what, runs)?);
    }
    place.close()?;
    Ok(rows)
}

fn beside_each_other(
    bench: &Bench,
    archive: &Path,
    what: &str,
    runs: usize,
) -> anyhow::Result<Vec<Row>> {
    let mut results: Vec<anyhow::Result<All>> = WHO.iter().map(|_| Ok(All::default())).collect();
    for run in 0..runs {
        for ((who, measure), result) in WHO.iter().zip(&mut results) {
            let Ok(all) = result else { continue };
            match once(bench, who, *measure, archive, run) {
                Ok(took) => {
                    all.import.push(took.import);
                    all.synced.push(took.synced);
                    took.mount.into_iter().for_each(|ms| all.mount.push(ms));
                }
                Err(e) => *result = Err(e),
            }
        }
    }
    let mut results = WHO.iter().map(|(who, _)| *who).zip(results);
    let (_, ours) = results.next().context("rkube is the first")?;
    let ours = ours?;
    let peers: Vec<_> = results.collect();
    let import = format!("import of {what}");
    let synced = format!("{import}, and all on the disk");
    let mount = format!("mount of {what}");
    let mut rows = Vec::new();
    for (name, of, note) in [
        (
            &import,
            (|all| &all.import) as fn(&All) -> &Samples,
            "unpacked, verified, blobs durable",
        ),
        (&synced, |all| &all.synced, "trees durable too"),
        (
            &mount,
            |all| &all.mount,
            "the call that starts of containers make",
        ),
    ] {
        let rkube = Row::new(name, RKUBE, "ms", of(&ours).clone()).note(note);
        rows.push(rkube.clone());
        for (who, result) in &peers {
            let row = match result {
                Ok(all) if of(all).is_empty() => continue,
                Ok(all) => Ok(Row::new(name, who, "ms", of(all).clone()).beside(&rkube)),
                Err(e) => Err(anyhow::anyhow!("{e:#}")),
            };
            peer(&mut rows, name, who, row);
        }
    }
    Ok(rows)
}

fn once(
    bench: &Bench,
    who: &str,
    measure: Measure,
    archive: &Path,
    run: usize,
) -> anyhow::Result<Took> {
    let place = if who == RKUBE {
        Place::of_rkube(&bench.program)?
    } else {
        Place::of_peer()?
    };
    // What another one wrote does not wait for the same disk.
    rustix::fs::sync();
    let took = measure(bench, &place, archive, run);
    place.close()?;
    took
}

/// The same image as archives of both forms, and what it is.
fn archives(bench: &Bench, dir: &Path) -> anyhow::Result<(Vec<(PathBuf, &'static str)>, String)> {
    let (plain, what) = plain_archive(bench, dir)?;
    let mut out = vec![(plain.clone(), "docker archive")];
    // Layers as registries have them: skopeo compresses what it writes.
    let packed = dir.join("bench-gzip.tar");
    let made = peers::need("skopeo").and_then(|skopeo| {
        let mut copy = Command::new(skopeo);
        copy.env("TMPDIR", dir)
            .args(["--insecure-policy", "copy", "--quiet"]);
        copy.arg(format!("docker-archive:{}", plain.display()));
        copy.arg(format!("oci-archive:{}:{NAME}", packed.display()));
        clock::succeeds(copy)
    });
    match made {
        Ok(_) => out.push((packed, "OCI archive, gzip")),
        Err(e) => println!("no compressed archive: {e:#}"),
    }
    Ok((out, what))
}

fn plain_archive(bench: &Bench, dir: &Path) -> anyhow::Result<(PathBuf, String)> {
    if let Some(path) = std::env::var_os(ARCHIVE) {
        let path = PathBuf::from(path);
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        return Ok((path, name));
    }
    let (tree, what) = match images::minbase() {
        Ok(tree) => (tree, "debian minbase"),
        Err(_) => (images::busybox()?, "busybox"),
    };
    let archive = dir.join("bench.tar");
    let root = dir.join("maker");
    for args in [
        vec!["image", "import", &*tree.to_string_lossy(), NAME],
        vec!["image", "save", "-o", &*archive.to_string_lossy(), NAME],
    ] {
        let mut command = Command::new(&bench.program);
        command.arg("--root").arg(&root).args(args);
        clock::succeeds(command)?;
    }
    std::fs::remove_dir_all(&root).context("remove the maker's root")?;
    Ok((archive, what.to_owned()))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Milliseconds of these commands in a row.
fn wall(place: &Place, commands: Vec<Command>) -> anyhow::Result<f64> {
    let mut sum = 0.0;
    for command in commands {
        sum += millis(place.run(move || clock::succeeds(command))?.wall);
    }
    Ok(sum)
}

/// Milliseconds until all that was written is on the disk.
fn sync() -> f64 {
    let begin = Instant::now();
    rustix::fs::sync();
    millis(begin.elapsed())
}

/// Runs a command and gives its output's first line.
fn first_line(place: &Place, command: Command) -> anyhow::Result<String> {
    let said = place.run(move || clock::succeeds(command))?.stdout;
    let line = said.lines().next().context("it says nothing")?;
    Ok(line.trim().to_owned())
}

fn rkube(bench: &Bench, place: &Place, archive: &Path, _: usize) -> anyhow::Result<Took> {
    let root = place.dir().join("root");
    let mut load = Command::new(&bench.program);
    load.arg("--root").arg(&root);
    load.args(["image", "load", "-i"]).arg(archive);
    let import = wall(place, vec![load])?;
    let synced = import + sync();
    let mount = place.run(move || {
        let state = root.join("var/lib/rkube");
        let begin = Instant::now();
        let store = Store::open(&state.join("images"))?;
        let snapshots = Snapshots::open(&state.join("containers"))?;
        let image = store.list()?.first().context("no image")?.id;
        let image = store.resolve(&image.to_string())?;
        let snapshot = snapshots.create(&store, "bench", &image)?;
        let mounted = snapshot.mount(&image, MountOptions::default())?;
        let took = begin.elapsed();
        drop(mounted);
        snapshots.remove(&store, "bench")?;
        Ok(millis(took))
    })?;
    Ok(Took {
        import,
        synced,
        mount: Some(mount),
    })
}

/// The unpacked bundle is the root: there is nothing to mount.
fn skopeo_and_umoci(_: &Bench, place: &Place, archive: &Path, run: usize) -> anyhow::Result<Took> {
    let (skopeo, umoci) = (peers::need("skopeo")?, peers::need("umoci")?);
    let dir = place.dir().join(format!("umoci-{run}"));
    std::fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
    let mut copy = Command::new(skopeo);
    copy.env("TMPDIR", &dir)
        .args(["--insecure-policy", "copy", "--quiet"]);
    copy.arg(format!("{}:{}", transport(archive), archive.display()));
    copy.arg(format!("oci:{}:bench", dir.join("layout").display()));
    let mut unpack = Command::new(umoci);
    unpack.args(["unpack", "--image"]);
    unpack.arg(format!("{}:bench", dir.join("layout").display()));
    unpack.arg(dir.join("bundle"));
    let import = wall(place, vec![copy, unpack])?;
    Ok(Took {
        import,
        synced: import + sync(),
        mount: None,
    })
}

/// What skopeo calls the archive's form.
fn transport(archive: &Path) -> &'static str {
    if archive.to_string_lossy().ends_with("-gzip.tar") {
        "oci-archive"
    } else {
        "docker-archive"
    }
}

fn podman(_: &Bench, place: &Place, archive: &Path, run: usize) -> anyhow::Result<Took> {
    let podman = peers::need("podman")?;
    let dir = place.dir().join(format!("podman-{run}"));
    let call = |args: &[&str]| {
        let mut command = Command::new(&podman);
        command.env("TMPDIR", place.dir());
        command.arg("--root").arg(dir.join("root"));
        command.arg("--runroot").arg(dir.join("run"));
        command.args(["--storage-driver", "overlay"]).args(args);
        command
    };
    let measured = || {
        let load = call(&["load", "--quiet", "-i", &archive.to_string_lossy()]);
        let import = wall(place, vec![load])?;
        let synced = import + sync();
        let id = first_line(place, call(&["images", "--quiet", "--no-trunc"]))?;
        let mount = wall(place, vec![call(&["image", "mount", &id])])?;
        wall(place, vec![call(&["image", "umount", &id])])?;
        Ok(Took {
            import,
            synced,
            mount: Some(mount),
        })
    };
    let took: anyhow::Result<Took> = measured();
    // Its storage is mounted below itself.
    let reset = wall(place, vec![call(&["system", "reset", "--force"])]);
    let took = took?;
    reset?;
    Ok(took)
}

fn containerd(_: &Bench, place: &Place, archive: &Path, run: usize) -> anyhow::Result<Took> {
    let (ctr, daemon) = (peers::need("ctr")?, peers::need("containerd")?);
    let dir = place.dir().join(format!("containerd-{run}"));
    let target = dir.join("mounted");
    std::fs::create_dir_all(&target).with_context(|| format!("make {}", target.display()))?;
    let socket = dir.join("sock");
    let config = dir.join("config.toml");
    let text = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = {:?}\n",
        dir.join("root"),
        dir.join("state"),
        socket
    );
    std::fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
    let log = std::fs::File::create(dir.join("log")).context("make the daemon's log")?;
    let mut command = Command::new(daemon);
    command.arg("--config").arg(&config);
    command.stdout(std::process::Stdio::null()).stderr(log);
    let mut child = place.run(move || command.spawn().context("start containerd"))?;
    let call = |args: &[&str]| {
        let mut command = Command::new(&ctr);
        command.arg("--address").arg(&socket).args(args);
        command
    };
    let measured = || {
        wait::until(
            "containerd to answer",
            Duration::from_secs(wait::WAIT_SECS),
            || Ok(wall(place, vec![call(&["version"])]).ok()),
        )?;
        let import = call(&["image", "import", &archive.to_string_lossy()]);
        let import = wall(place, vec![import])?;
        let synced = import + sync();
        let name = first_line(place, call(&["image", "ls", "--quiet"]))?;
        ensure!(!name.is_empty(), "ctr lists no image");
        let target = target.to_string_lossy();
        let mount = wall(place, vec![call(&["image", "mount", &name, &target])])?;
        wall(place, vec![call(&["image", "unmount", "--rm", &target])])?;
        Ok(Took {
            import,
            synced,
            mount: Some(mount),
        })
    };
    let took: anyhow::Result<Took> = measured();
    child.kill().context("end containerd")?;
    child.wait().context("wait for containerd")?;
    took
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_told_by_their_names() {
        assert_eq!(transport(Path::new("/x/bench.tar")), "docker-archive");
        assert_eq!(transport(Path::new("/x/bench-gzip.tar")), "oci-archive");
    }
}
