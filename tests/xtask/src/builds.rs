//! What cargo builds for the chores.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use rkube_tests::repo;

/// The target is named so that `+crt-static` does not reach build scripts and
/// procedural macros, which cannot be static.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What the black-box suites drive.
pub(crate) const TEST_PROFILE: &str = "test-opt";

/// A libtest program that was built.
#[derive(Debug, Clone)]
pub(crate) struct TestProgram {
    /// Package, and the target where it is not the library: `rkube-vm`,
    /// `rkube-tests.layering`.
    pub(crate) name: String,
    /// The package alone.
    pub(crate) package: String,
    pub(crate) path: PathBuf,
    /// The package's directory, where cargo runs tests.
    pub(crate) dir: PathBuf,
}

/// What `cargo test --no-run` built.
#[derive(Debug, Default)]
pub(crate) struct Built {
    pub(crate) tests: Vec<TestProgram>,
    /// Programs that integration tests start: `(package, path)`.
    pub(crate) helpers: Vec<(String, PathBuf)>,
}

pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(args)
        .current_dir(repo::source_root())
        .stdin(Stdio::null());
    command
}

pub(crate) fn run(mut command: Command, what: &str) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("start {what}"))?;
    ensure!(status.success(), "{what}: {status}");
    Ok(())
}

const STATIC: &str = "-Ctarget-feature=+crt-static";
/// What makes the release program smaller: no tables for unwinding, which it
/// never does (its panics abort), equal functions kept once, and equal runs of
/// instructions made a function.
const SMALL: &str = " -Cforce-unwind-tables=no -Clink-arg=-Wl,--no-eh-frame-hdr \
    -Clink-arg=-Wl,--icf=all -Cllvm-args=-enable-machine-outliner=always";
/// Leaves those tables out that the flag does not spare.
const NO_TABLES: &str = "tests/xtask/no-unwind.ld";
/// Relative relocations as a bitmap (DT_RELR), where the C library that is
/// linked in applies them.
const PACKED_RELOCATIONS: &str = " -Clink-arg=-Wl,--pack-dyn-relocs=relr";
/// The first such release of the GNU C library (its NEWS).
const PACKED_RELOCATIONS_GLIBC: (u32, u32) = (2, 36);

fn make_static(command: &mut Command, profile: &str) {
    let mut flags = STATIC.to_owned();
    if profile == "release" {
        flags.push_str(SMALL);
        let script = repo::source_root().join(NO_TABLES);
        flags.push_str(&format!(" -Clink-arg=-Wl,-T,{}", script.display()));
        if glibc().is_some_and(|version| version >= PACKED_RELOCATIONS_GLIBC) {
            flags.push_str(PACKED_RELOCATIONS);
        }
    }
    command.args(["--target", TARGET]);
    command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", flags);
}

/// The release of the host's GNU C library: `getconf` prints `glibc 2.36`.
fn glibc() -> Option<(u32, u32)> {
    let out = Command::new("getconf")
        .arg("GNU_LIBC_VERSION")
        .output()
        .ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Builds programs, static; `(package, program)` each. Gives their paths.
pub(crate) fn programs(profile: &str, wanted: &[(&str, &str)]) -> anyhow::Result<Vec<PathBuf>> {
    let mut command = cargo(&["build", "--quiet", "--profile", profile]);
    make_static(&mut command, profile);
    if let Some(commit) = commit().filter(|_| profile == "release") {
        // `/version` shows it.
        command.env("RKUBE_COMMIT", commit);
    }
    for (package, program) in wanted {
        command.args(["--package", package, "--bin", program]);
    }
    run(command, "cargo build")?;
    let dir = repo::target_dir().join(TARGET).join(profile);
    Ok(wanted
        .iter()
        .map(|(_, program)| dir.join(program))
        .collect())
}

/// The commit that is checked out, if this is a checkout.
fn commit() -> Option<String> {
    let mut git = Command::new("git");
    git.args(["rev-parse", "HEAD"])
        .current_dir(repo::source_root());
    let output = git.output().ok().filter(|o| o.status.success())?;
    let commit = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!commit.is_empty()).then_some(commit)
}

/// Builds kube-rs' part of the black-box suite, a workspace of its own beside
/// the others' builds: its packages are no part of `make test`.
pub(crate) fn kube_rs() -> anyhow::Result<()> {
    let mut command = cargo(&["build", "--quiet", "--manifest-path"]);
    command
        .arg("tests/kube-rs/Cargo.toml")
        .arg("--target-dir")
        .arg(repo::target_dir().join("kube-rs"));
    run(command, "cargo build of tests/kube-rs")
}

/// Builds the unit and integration tests of these packages (of all, if none
/// is named), static.
pub(crate) fn test_programs(profile: &str, packages: &[&str]) -> anyhow::Result<Built> {
    let mut command = cargo(&[
        "test",
        "--no-run",
        "--quiet",
        "--message-format",
        "json-render-diagnostics",
    ]);
    for package in packages {
        command.args(["--package", package]);
    }
    if packages.is_empty() {
        command.arg("--workspace");
    }
    command.args(["--profile", profile]);
    make_static(&mut command, profile);
    let out = command
        .stderr(Stdio::inherit())
        .output()
        .context("start cargo test --no-run")?;
    ensure!(out.status.success(), "cargo test --no-run: {}", out.status);
    let text = String::from_utf8(out.stdout).context("cargo's messages are UTF-8")?;
    let mut built = Built::default();
    for line in text.lines().filter(|l| l.starts_with('{')) {
        let message = serde_json::from_str(line).context("parse a message of cargo")?;
        built.tests.extend(test_program(&message));
        built.helpers.extend(helper(&message));
    }
    built.tests.sort_by(|a, b| a.name.cmp(&b.name));
    built.helpers.sort();
    Ok(built)
}

fn test_program(message: &serde_json::Value) -> Option<TestProgram> {
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let path = PathBuf::from(message["executable"].as_str()?);
    let manifest = PathBuf::from(message["manifest_path"].as_str()?);
    let dir = manifest.parent()?.to_path_buf();
    let package = package_name(message["package_id"].as_str()?, &dir)?;
    let target = message["target"]["name"].as_str()?;
    let library = message["target"]["kind"]
        .as_array()?
        .iter()
        .any(|k| k == "lib");
    let name = if library {
        package.clone()
    } else {
        format!("{package}.{target}")
    };
    Some(TestProgram {
        name,
        package,
        path,
        dir,
    })
}

fn helper(message: &serde_json::Value) -> Option<(String, PathBuf)> {
    let kinds = message["target"]["kind"].as_array()?;
    if message["profile"]["test"] != false || !kinds.iter().any(|k| k == "bin") {
        return None;
    }
    let path = PathBuf::from(message["executable"].as_str()?);
    let manifest = PathBuf::from(message["manifest_path"].as_str()?);
    let package = package_name(message["package_id"].as_str()?, manifest.parent()?)?;
    Some((package, path))
}

/// `path+file:///dir#name@version`, or `path+file:///dir/name#version`.
fn package_name(id: &str, dir: &std::path::Path) -> Option<String> {
    let (_, fragment) = id.rsplit_once('#')?;
    match fragment.split_once('@') {
        Some((name, _)) => Some(name.to_owned()),
        None => dir.file_name()?.to_str().map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_test_programs() {
        let message = serde_json::json!({
            "reason": "compiler-artifact", "profile": {"test": true},
            "executable": "/t/deps/layering-1", "manifest_path": "/src/tests/Cargo.toml",
            "package_id": "path+file:///src/tests#rkube-tests@0.1.0",
            "target": {"name": "layering", "kind": ["test"]},
        });
        let program = test_program(&message).unwrap();
        assert_eq!(program.name, "rkube-tests.layering");
        assert_eq!(program.dir, PathBuf::from("/src/tests"));
        assert_eq!(
            package_name("path+file:///src/rkube#0.1.0", "/src/rkube".as_ref()).as_deref(),
            Some("rkube")
        );
    }
}
