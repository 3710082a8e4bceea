//! Peers: installed by apt-get where they are missing, found on `PATH`.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

/// Programs and the Debian packages that bring them. podman needs all but
/// crun and strace; `catatonit` is what it makes its pause image of.
const WANTED: &[(&str, &str)] = &[
    ("podman", "podman"),
    ("runc", "runc"),
    ("crun", "crun"),
    ("conmon", "conmon"),
    ("catatonit", "catatonit"),
    ("iptables", "iptables"),
    ("strace", "strace"),
    ("skopeo", "skopeo"),
    ("umoci", "umoci"),
    ("ctr", "containerd"),
    ("etcd", "etcd-server"),
];
/// What has no program on `PATH`.
const WANTED_FILES: &[(&str, &str)] = &[
    ("/usr/lib/podman/netavark", "netavark"),
    ("/usr/lib/podman/aardvark-dns", "aardvark-dns"),
    (
        "/usr/share/containers/seccomp.json",
        "golang-github-containers-common",
    ),
];

/// Where a program is.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(more)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// As [`find`], for a peer that the table has to name where it is absent.
///
/// # Errors
/// It is absent.
pub fn need(name: &str) -> anyhow::Result<PathBuf> {
    find(name).with_context(|| format!("{name} is not installed"))
}

/// The first line that `PROGRAM --version` prints.
pub fn version(name: &str) -> String {
    let said = find(name).and_then(|file| Command::new(file).arg("--version").output().ok());
    said.and_then(|out| {
        let text = String::from_utf8_lossy(&out.stdout);
        text.lines().next().map(|line| line.replace(" version", ""))
    })
    .unwrap_or_else(|| format!("{name}: absent"))
}

/// Installs what is missing. A host without apt-get keeps its gaps; the table
/// names them.
pub fn install() {
    let mut missing: Vec<&str> = WANTED
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    missing.extend(
        WANTED_FILES
            .iter()
            .filter(|(file, _)| !PathBuf::from(file).exists())
            .map(|(_, package)| *package),
    );
    if missing.is_empty() {
        return;
    }
    println!("installing peers: {}", missing.join(" "));
    if let Err(e) = apt_install(&missing) {
        println!("peers stay missing: {e:#}");
    }
}

fn apt_install(packages: &[&str]) -> anyhow::Result<()> {
    let update = ["-qq", "update"].as_slice();
    let install = ["-qq", "install", "-y", "--no-install-recommends"];
    let install = [install.as_slice(), packages].concat();
    for args in [update, &install] {
        let status = Command::new("apt-get")
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .context("start apt-get")?;
        ensure!(status.success(), "apt-get {}: {status}", args.join(" "));
    }
    Ok(())
}
