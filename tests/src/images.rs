//! Root file systems for tests, made from Debian packages and kept between
//! runs. None is downloaded from an image registry.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::command::Cmd;
use crate::{debian, repo};

/// How long packing a tree may take.
const TAR_SECS: u64 = 300;

/// A tar of a root file system around Debian's static busybox: every applet
/// linked, `/etc/passwd` and `/etc/group` with root and nobody, `/tmp` 1777.
///
/// # Errors
/// busybox-static is not installed, or the cache cannot be written.
pub fn busybox() -> anyhow::Result<PathBuf> {
    cached("busybox.tar", write_busybox)
}

/// A tar of a debootstrap minbase tree of this host's release. In a VM it is
/// there only if the host made it first.
///
/// # Errors
/// debootstrap is not installed or its mirror cannot be reached.
pub fn minbase() -> anyhow::Result<PathBuf> {
    cached("minbase.tar", write_minbase)
}

/// Writes a tree as a `docker save` archive of one layer, with this `config`
/// of the image (`User`, `Cmd`, ...).
///
/// # Errors
/// The tree cannot be read, or the archive not written.
pub fn save(tree: &Path, archive: &Path, config: serde_json::Value) -> anyhow::Result<()> {
    let layer = archive.with_extension("layer.tar");
    let mut tar = tar::Builder::new(File::create(&layer)?);
    tar.follow_symlinks(false);
    tar.append_dir_all(".", tree).context("pack the tree")?;
    tar.into_inner()?;
    save_layers(std::slice::from_ref(&layer), archive, config)?;
    std::fs::remove_file(&layer).with_context(|| format!("remove {}", layer.display()))
}

/// Writes layers as a `docker save` archive.
///
/// # Errors
/// A layer cannot be read, or the archive not written.
pub fn save_layers(
    layers: &[PathBuf],
    archive: &Path,
    config: serde_json::Value,
) -> anyhow::Result<()> {
    let mut tar = tar::Builder::new(File::create(archive)?);
    let (mut names, mut ids) = (Vec::new(), Vec::new());
    for (number, layer) in layers.iter().enumerate() {
        let name = format!("layer-{number}.tar");
        let sum = Cmd::new("sha256sum", [layer]).ok()?.stdout;
        ids.push(format!(
            "sha256:{}",
            sum.split(' ').next().unwrap_or_default()
        ));
        names.push(name);
    }
    let image = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": ids},
    });
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [], "Layers": names}]);
    for (name, value) in [("manifest.json", manifest), ("config.json", image)] {
        append(
            &mut tar,
            name,
            tar::EntryType::Regular,
            0o644,
            value.to_string().as_bytes(),
        )?;
    }
    for (number, layer) in layers.iter().enumerate() {
        let name = format!("layer-{number}.tar");
        tar.append_path_with_name(layer, &name)
            .with_context(|| format!("append {name}"))?;
    }
    tar.into_inner()?;
    Ok(())
}

/// Makes a file or directory of the cache unless it is there, once even if
/// many ask.
///
/// # Errors
/// Those of `make`, or the cache cannot be written.
pub fn cached(name: &str, make: impl Fn(&Path) -> anyhow::Result<()>) -> anyhow::Result<PathBuf> {
    let dir = repo::images_dir();
    let path = dir.join(name);
    if path.exists() {
        return Ok(path);
    }
    std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let lock_path = dir.join(format!("{name}.lock"));
    let lock = File::create(&lock_path).with_context(|| format!("make {}", lock_path.display()))?;
    lock.lock()
        .with_context(|| format!("lock {}", lock_path.display()))?;
    if !path.exists() {
        let partial = dir.join(format!("{name}.partial"));
        make(&partial).with_context(|| format!("make the test image {name}"))?;
        std::fs::rename(&partial, &path).with_context(|| format!("place {}", path.display()))?;
    }
    Ok(path)
}

fn write_busybox(path: &Path) -> anyhow::Result<()> {
    let program = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .map(Path::new)
        .find(|p| p.is_file())
        .context("no busybox: install busybox-static")?;
    let applets = Cmd::new(program, ["--list"]).ok()?.stdout;
    let mut tar = tar::Builder::new(File::create(path)?);
    for (dir, mode) in [
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("proc", 0o755),
        ("root", 0o700),
        ("sys", 0o755),
        ("tmp", 0o1777),
        ("var", 0o755),
    ] {
        append(
            &mut tar,
            &format!("{dir}/"),
            tar::EntryType::Directory,
            mode,
            b"",
        )?;
    }
    append(
        &mut tar,
        "bin/busybox",
        tar::EntryType::Regular,
        0o755,
        &std::fs::read(program)?,
    )?;
    for applet in applets.lines().filter(|a| *a != "busybox") {
        let mut header = header_of(tar::EntryType::Symlink, 0o777, 0);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
    append(
        &mut tar,
        "etc/passwd",
        tar::EntryType::Regular,
        0o644,
        passwd.as_bytes(),
    )?;
    let group = "root:x:0:\nnobody:x:65534:\n";
    append(
        &mut tar,
        "etc/group",
        tar::EntryType::Regular,
        0o644,
        group.as_bytes(),
    )?;
    tar.into_inner()?.sync_all()?;
    Ok(())
}

fn header_of(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn append(
    tar: &mut tar::Builder<File>,
    name: &str,
    kind: tar::EntryType,
    mode: u32,
    content: &[u8],
) -> anyhow::Result<()> {
    let size = u64::try_from(content.len())?;
    tar.append_data(&mut header_of(kind, mode, size), name, content)
        .with_context(|| format!("append {name}"))
}

fn write_minbase(path: &Path) -> anyhow::Result<()> {
    let tree = tempfile::Builder::new()
        .prefix("rkube-test-minbase-")
        .tempdir()
        .context("make a directory for the tree")?;
    debian::bootstrap(tree.path(), &[])?;
    let dir = tree.path().to_string_lossy();
    let target = path.to_string_lossy();
    // Packages and lists are of no use in a test image and double its size.
    let excludes = [
        "--exclude=./var/cache/apt/*",
        "--exclude=./var/lib/apt/lists/*",
    ];
    let args = ["--xattrs", "--numeric-owner", "-C", &*dir, "-cf", &*target];
    Cmd::new("tar", excludes.into_iter().chain(args).chain(["."]))
        .within(Duration::from_secs(TAR_SECS))
        .ok()?;
    ensure!(path.is_file(), "tar made no {target}");
    Ok(())
}
