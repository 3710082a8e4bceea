//! `demo`, `dist`, `bench`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, anyhow};
use rkube_tests::host::Ground;
use rkube_tests::repo;

use crate::builds;

/// Builds the release program and gives its path.
pub(crate) fn dist() -> anyhow::Result<PathBuf> {
    let built = builds::programs("release", &[("rkube", "rkube")])?.remove(0);
    let dir = repo::target_dir().join("dist");
    std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let place = dir.join("rkube");
    std::fs::copy(&built, &place).with_context(|| format!("place {}", place.display()))?;
    let size = std::fs::metadata(&place)?.len();
    println!("{} ({size} bytes)", place.display());
    Ok(place)
}

/// Runs the first example in a throw-away test host, so that nothing on this
/// machine changes.
pub(crate) fn demo() -> anyhow::Result<bool> {
    let program = dist()?;
    // A thread of its own: its network namespace ends with it.
    std::thread::spawn(move || show(&program))
        .join()
        .map_err(|_| anyhow!("the demo panicked"))?
}

fn show(program: &std::path::Path) -> anyhow::Result<bool> {
    // Ground resets with the program that it finds.
    let ground = Ground::with_program(program)?;
    let root = ground.dir().join("root");
    let example = repo::source_root().join("examples/hello.yaml");
    println!("$ rkube run -f examples/hello.yaml");
    let status = Command::new(program)
        .arg("--root")
        .arg(&root)
        .args(["run", "-f"])
        .arg(&example)
        .status()
        .with_context(|| format!("start {}", program.display()))?;
    println!("({status})");
    ground.clear()?;
    Ok(status.success())
}

/// Measures the release program beside its peers and prints a table; some
/// sections or all.
pub(crate) fn bench(sections: &[String]) -> anyhow::Result<bool> {
    let program = match repo::named_program() {
        Some(program) => program,
        None => dist()?,
    };
    let client = [("rkube-bench", "rkube-load")];
    let load = builds::programs("release", &client)?.remove(0);
    rkube_bench::run(&program, &load, sections)?;
    Ok(true)
}
