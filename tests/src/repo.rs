//! Where things are: the program under test, the source tree, the caches.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

/// Environment variable that names the `rkube` program under test.
pub const RKUBE_BIN: &str = "RKUBE_BIN";
/// Environment variable that names the directory of test images.
pub const TEST_IMAGES: &str = "RKUBE_TEST_IMAGES";
/// Lets cases be skipped whose programs (docker-registry, skopeo, mmdebstrap)
/// are not installed; guests have none of them.
pub const MAY_SKIP: &str = "RKUBE_TESTS_MAY_SKIP";

/// Built here by `make test`: static, as users get it, with test optimisation.
pub const TEST_OPT_DIR: &str = "x86_64-unknown-linux-gnu/test-opt";

/// The root of the source tree (of the build, not of the current directory).
pub fn source_root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_path_buf()
}

/// Cargo's target directory.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| source_root().join("target"), PathBuf::from)
}

/// The program under test: `RKUBE_BIN`, else what `make test` built, else a
/// plain `cargo build --profile test-opt`.
pub fn rkube_program() -> Option<PathBuf> {
    let built = [TEST_OPT_DIR, "test-opt"].map(|d| target_dir().join(d).join("rkube"));
    named_program()
        .into_iter()
        .chain(built)
        .find(|p| p.is_file())
}

/// The program that `RKUBE_BIN` names.
pub fn named_program() -> Option<PathBuf> {
    std::env::var_os(RKUBE_BIN).map(PathBuf::from)
}

/// Where test images are kept between runs.
pub fn images_dir() -> PathBuf {
    std::env::var_os(TEST_IMAGES).map_or_else(|| target_dir().join("test-images"), PathBuf::from)
}

/// Every file that git tracks or would track, with `/`-separated paths
/// relative to the source tree.
///
/// # Errors
/// `git` is absent or this is no checkout.
pub fn tracked_files() -> anyhow::Result<Vec<String>> {
    let out = std::process::Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(source_root())
        .output()
        .context("run git ls-files")?;
    ensure!(
        out.status.success(),
        "git ls-files: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    let list = String::from_utf8(out.stdout).context("file names are UTF-8")?;
    let root = source_root();
    Ok(list
        .split('\0')
        .filter(|f| !f.is_empty() && root.join(f).is_file())
        .map(str::to_owned)
        .collect())
}
