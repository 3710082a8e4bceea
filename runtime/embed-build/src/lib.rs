//! Build-script helper: compiles a small static ELF that another crate embeds.
//!
//! Purpose: the keeper and the toolbox are programs of their own inside the
//! `rkube` binary. They must be tiny, static and position-dependent (a large
//! static-pie dirties about 1 MB for its relocations in every copy), whatever
//! flags the outer build uses. So a build script calls [`build`], which runs a
//! second cargo with its own flags, profile and target folder.
//!
//! Boundary: for build scripts only; on any error the reason goes to standard
//! error and the process ends with status 1, which is how cargo learns of it.
//!
//! Invariants:
//! - The inner build depends on the sources, the lock file and the flags here,
//!   never on the outer profile, `RUSTFLAGS`, wrappers (clippy, sccache) or
//!   target folder. So every outer profile embeds the same bytes.
//! - It never changes `Cargo.lock` (`--locked`) and never needs the network, as
//!   long as the embedding crate depends on the embedded package's library:
//!   then the outer cargo has already downloaded all that the inner one reads.
//! - The build script runs again exactly when a source, manifest or the lock
//!   file of what was compiled changes.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

mod depinfo;

/// Flags of every embedded ELF: no dynamic loader, fixed addresses, no
/// relocations to apply at start, and code and data in as few pages as can be.
const RUSTFLAGS: &[&str] = &[
    "-Ctarget-feature=+crt-static",
    "-Crelocation-model=static",
    "-Clink-arg=-Wl,-z,noseparate-code",
    "-Clink-arg=-Wl,--build-id=none",
];

/// The inner profile, given as environment so that neither the workspace's
/// `[profile.release]` nor the caller's environment has a say.
const PROFILE: &[(&str, &str)] = &[
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s"),
    ("CARGO_PROFILE_RELEASE_LTO", "fat"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
    ("CARGO_PROFILE_RELEASE_STRIP", "symbols"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "none"),
    ("CARGO_PROFILE_RELEASE_INCREMENTAL", "false"),
    ("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "false"),
    ("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false"),
];

/// `CARGO_*` variables that the inner cargo keeps: where things are stored, how
/// the network is reached, the shared job server, and the target's linker.
const KEPT_CARGO_PREFIXES: &[&str] = &[
    "CARGO_HOME",
    "CARGO_MAKEFLAGS",
    "CARGO_NET_",
    "CARGO_HTTP_",
    "CARGO_REGISTRY_",
    "CARGO_REGISTRIES_",
    "CARGO_SOURCE_",
    "CARGO_TARGET_",
];

/// Variables without the prefix that steer rustc or cargo, or that cargo set
/// for this build script alone.
const DROPPED: &[&str] = &[
    "RUSTFLAGS",
    "RUSTDOCFLAGS",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_LINKER",
    "CLIPPY_ARGS",
    "CLIPPY_CONF_DIR",
    "LLVM_PROFILE_FILE",
    "TARGET",
    "HOST",
    "PROFILE",
    "OPT_LEVEL",
    "DEBUG",
    "NUM_JOBS",
    "OUT_DIR",
];

/// Compiles the binary `bin` of the package in folder `package` (absolute, or
/// relative to the calling package) for the outer build's target and returns
/// the absolute path of the stripped static ELF, below `OUT_DIR`.
///
/// Prints the `rerun-if-changed` lines that belong to it. Ends the process with
/// status 1 if the inner build does not succeed; its messages precede.
#[must_use]
pub fn build(package: &Path, bin: &str) -> PathBuf {
    match try_build(package, bin) {
        Ok(elf) => elf,
        Err(message) => {
            eprintln!("embed {bin} of {}: {message}", package.display());
            std::process::exit(1);
        }
    }
}

/// Compresses what [`build`] gave (gzip, RFC 1952): an ELF is needed once in a
/// process' life at most, and half as large so (stored where the package is not optimised). Returns the packed file's path;
/// ends the process with status 1 where it cannot be written.
#[must_use]
pub fn pack(elf: &Path) -> PathBuf {
    let packed = elf.with_extension("gz");
    if let Err(e) = try_pack(elf, &packed) {
        eprintln!("pack {} into {}: {e}", elf.display(), packed.display());
        std::process::exit(1);
    }
    packed
}

fn try_pack(elf: &Path, packed: &Path) -> io::Result<()> {
    // An unoptimised program is there to be tested, where each starts anew:
    // time counts there and size does not.
    let level = match variable("OPT_LEVEL").as_deref() {
        Ok("0") => flate2::Compression::none(),
        _ => flate2::Compression::best(),
    };
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), level);
    gzip.write_all(&fs::read(elf)?)?;
    let new = gzip.finish()?;
    match fs::read(packed) {
        Ok(old) if old == new => Ok(()),
        _ => fs::write(packed, new),
    }
}

fn try_build(package: &Path, bin: &str) -> Result<PathBuf, String> {
    let outer = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let target = variable("TARGET")?;
    let cargo = variable("CARGO")?;
    let package = outer.join(package);
    let manifest = package.join("Cargo.toml");
    let target_dir = out_dir.join("elf-target");

    let mut command = Command::new(cargo);
    command
        .current_dir(&package)
        .args(["build", "--release", "--locked", "--quiet"])
        .arg("--manifest-path")
        .arg(&manifest)
        .args(["--bin", bin, "--target", &target, "--target-dir"])
        .arg(&target_dir);
    clean_environment(&mut command);
    command
        .env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\u{1f}"))
        .env("CARGO_BUILD_BUILD_DIR", &target_dir)
        .envs(PROFILE.iter().copied());
    let status = command
        .status()
        .map_err(|e| format!("start {command:?}: {e}"))?;
    if !status.success() {
        return Err(format!("{command:?}: {status}"));
    }

    let built = target_dir.join(&target).join("release").join(bin);
    watch(&outer, &package, &built)?;
    let elf = out_dir.join(bin);
    copy_if_different(&built, &elf)
        .map_err(|e| format!("copy {} to {}: {e}", built.display(), elf.display()))?;
    Ok(elf)
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|e| format!("environment variable {name} (set by cargo): {e}"))
}

/// Takes from `command` what the outer cargo set for itself or this script.
fn clean_environment(command: &mut Command) {
    for (name, _) in env::vars_os() {
        if !is_kept(&name) {
            command.env_remove(&name);
        }
    }
}

fn is_kept(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return true;
    };
    if DROPPED.contains(&name) {
        return false;
    }
    if !name.starts_with("CARGO") {
        return true;
    }
    // `CARGO_TARGET_DIR` shares its prefix with the per-target settings, of
    // which the rustflags and runner would again be the outer build's.
    let outer_only = name == "CARGO_TARGET_DIR"
        || name.ends_with("_RUSTFLAGS")
        || name.ends_with("_RUNNER")
        || name == "CARGO_TARGET_APPLIES_TO_HOST";
    !outer_only && KEPT_CARGO_PREFIXES.iter().any(|p| name.starts_with(p))
}

/// Prints `rerun-if-changed` for every file that made `built`: the sources in
/// its dep-info, the manifests of their packages, workspace manifest and lock.
fn watch(outer: &Path, package: &Path, built: &Path) -> Result<(), String> {
    let info = built.with_extension("d");
    let text = fs::read_to_string(&info).map_err(|e| format!("read {}: {e}", info.display()))?;
    let mut files: BTreeSet<PathBuf> = depinfo::inputs(&text).into_iter().collect();
    if files.is_empty() {
        return Err(format!("{}: names no source", info.display()));
    }
    let manifests: Vec<PathBuf> = files
        .iter()
        .filter_map(|file| file.ancestors().skip(1).find_map(manifest_in))
        .collect();
    files.extend(manifests);
    files.insert(package.join("Cargo.toml"));
    files.insert(outer.join("build.rs"));
    // The workspace root is the nearest ancestor with a lock file.
    if let Some(root) = package
        .ancestors()
        .find(|dir| dir.join("Cargo.lock").is_file())
    {
        files.insert(root.join("Cargo.lock"));
        files.insert(root.join("Cargo.toml"));
    }
    for file in files {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    Ok(())
}

fn manifest_in(dir: &Path) -> Option<PathBuf> {
    let manifest = dir.join("Cargo.toml");
    manifest.is_file().then_some(manifest)
}

/// An unchanged ELF keeps its time stamp, so that nothing embeds it anew.
fn copy_if_different(from: &Path, to: &Path) -> io::Result<()> {
    let new = fs::read(from)?;
    match fs::read(to) {
        Ok(old) if old == new => Ok(()),
        _ => fs::write(to, new),
    }
}

#[cfg(test)]
mod tests {
    use super::is_kept;

    #[test]
    fn outer_flags_do_not_reach_the_inner_build() {
        for name in [
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_RUSTFLAGS",
            "CARGO_BUILD_TARGET_DIR",
            "CARGO_TARGET_DIR",
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            "CARGO_PROFILE_RELEASE_LTO",
            "CARGO_CFG_TARGET_OS",
            "CARGO_FEATURE_STD",
            "CARGO",
            "RUSTFLAGS",
            "RUSTC_WORKSPACE_WRAPPER",
        ] {
            assert!(!is_kept(name.as_ref()), "{name}");
        }
        for name in [
            "PATH",
            "RUSTC",
            "RUSTUP_TOOLCHAIN",
            "CARGO_HOME",
            "CARGO_MAKEFLAGS",
            "CARGO_NET_OFFLINE",
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER",
        ] {
            assert!(is_kept(name.as_ref()), "{name}");
        }
    }
}
