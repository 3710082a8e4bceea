//! A kernel to boot: out of a Debian package, or one that the user names.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rkube_tests::command::{Cmd, Output};

/// Meta packages whose dependency is the newest small kernel: Debian's, and
/// Ubuntu's.
const META_PACKAGES: [&str; 2] = ["linux-image-cloud-amd64", "linux-image-virtual"];
/// How long a download may take.
const DOWNLOAD_SECS: u64 = 300;

/// A kernel image and its modules.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    /// The directory of its modules; none if all is built in.
    pub modules: Option<PathBuf>,
}

impl Kernel {
    /// A kernel of the user's own. Its modules are taken from
    /// `lib/modules` beside or above the image, if there are any.
    ///
    /// # Errors
    /// There is no such file.
    pub fn named(image: &Path) -> anyhow::Result<Kernel> {
        ensure!(image.is_file(), "{}: no such kernel", image.display());
        let version = image
            .file_name()
            .and_then(|n| n.to_str())
            .and_then(|n| n.split_once('-'))
            .map(|(_, version)| version.to_owned());
        let modules = image.ancestors().skip(1).find_map(|dir| {
            let all = dir.join("lib/modules");
            let own = version.as_ref().map(|v| all.join(v)).filter(|p| p.is_dir());
            own.or_else(|| only_dir(&all))
        });
        Ok(Kernel {
            image: image.to_path_buf(),
            modules,
        })
    }

    /// Debian's cloud kernel, downloaded and unpacked into the cache once.
    ///
    /// # Errors
    /// No such package is known to apt, or it cannot be had.
    pub fn debian(cache: &Path) -> anyhow::Result<Kernel> {
        let kernels = cache.join("kernel");
        if let Some(kernel) = newest(&kernels) {
            return Ok(kernel);
        }
        let packages = resolve()?;
        std::fs::create_dir_all(&kernels).with_context(|| format!("make {}", kernels.display()))?;
        let work = tempfile::Builder::new()
            .prefix("unpack-")
            .tempdir_in(&kernels)
            .context("make a directory to unpack in")?;
        let tree = work.path().join("tree");
        for package in &packages {
            download(package, work.path())?;
        }
        for deb in entries(work.path())?
            .into_iter()
            .filter(|p| p.extension().is_some_and(|e| e == "deb"))
        {
            Cmd::new("dpkg", ["-x".as_ref(), deb.as_os_str(), tree.as_os_str()]).ok()?;
        }
        let place = kernels.join(&packages[0]);
        if !place.exists() {
            std::fs::rename(&tree, &place).with_context(|| format!("place {}", place.display()))?;
        }
        newest(&kernels).with_context(|| format!("{}: no vmlinuz in the package", packages[0]))
    }
}

/// A kernel that was unpacked before; the last by name, if several.
fn newest(kernels: &Path) -> Option<Kernel> {
    let mut trees = entries(kernels).ok()?;
    trees.sort();
    trees.into_iter().rev().find_map(|tree| {
        let image = entries(&tree.join("boot")).ok()?.into_iter().find(|p| {
            p.file_name()
                .and_then(|n| n.to_str())
                .is_some_and(|n| n.starts_with("vmlinuz-"))
        })?;
        Some(Kernel {
            image,
            modules: only_dir(&tree.join("lib/modules")),
        })
    })
}

/// The package of the image first, then that of its modules where it has one.
fn resolve() -> anyhow::Result<Vec<String>> {
    for update in [false, true] {
        if update {
            // A fresh container has no package lists.
            apt("apt-get", &["update", "-qq"])?;
        }
        for meta in META_PACKAGES {
            let Some(image) = dependency(meta, "linux-image-")? else {
                continue;
            };
            let modules = dependency(&image, "linux-modules-")?;
            return Ok([image].into_iter().chain(modules).collect());
        }
    }
    bail!("apt knows none of {}", META_PACKAGES.join(", "));
}

fn dependency(package: &str, prefix: &str) -> anyhow::Result<Option<String>> {
    let out = Cmd::new("apt-cache", ["depends", "--important", package]).output()?;
    Ok(out
        .stdout
        .lines()
        .filter_map(|l| l.trim().strip_prefix("Depends: "))
        .find(|d| d.starts_with(prefix) && d.as_bytes().iter().any(u8::is_ascii_digit))
        .map(str::to_owned))
}

fn download(package: &str, dir: &Path) -> anyhow::Result<()> {
    let command = || {
        // apt drops to its own user, which cannot write into our directory.
        Cmd::new(
            "apt-get",
            ["-qq", "-o", "APT::Sandbox::User=root", "download", package],
        )
        .dir(dir)
        .within(Duration::from_secs(DOWNLOAD_SECS))
    };
    if !command().output()?.status.success() {
        // A list older than the mirror names a package that is gone.
        apt("apt-get", &["update", "-qq"])?;
        command().ok()?;
    }
    Ok(())
}

fn apt(program: &str, args: &[&str]) -> anyhow::Result<Output> {
    Cmd::new(program, args)
        .within(Duration::from_secs(DOWNLOAD_SECS))
        .ok()
}

fn entries(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    std::fs::read_dir(dir)
        .with_context(|| format!("read {}", dir.display()))?
        .map(|e| Ok(e?.path()))
        .collect()
}

fn only_dir(dir: &Path) -> Option<PathBuf> {
    let mut dirs: Vec<PathBuf> = entries(dir)
        .ok()?
        .into_iter()
        .filter(|p| p.is_dir())
        .collect();
    (dirs.len() == 1).then(|| dirs.remove(0))
}
