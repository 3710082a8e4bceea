//! The commonest host of users: a Debian system with systemd and D-Bus as PID 1
//! on the unified hierarchy. It is the root of the disk; the initramfs loads the
//! modules, shows itself below [`guest::PROGRAMS_DIR`], and hands over.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rkube_tests::debian;

use crate::guest;

/// What the tree has beside minbase: the system, sessions, and the oracles.
const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "dbus",
    "libpam-systemd",
    "netbase",
    "iproute2",
    "nftables",
    "strace",
];
/// Change it when the tree's making changes.
const RECIPE: &str = "systemd-4";

/// Makes the tree once, and gives its directory.
///
/// # Errors
/// debootstrap cannot make it.
pub fn tree(cache: &Path) -> anyhow::Result<PathBuf> {
    let place = cache.join(RECIPE);
    if !place.is_dir() {
        make_tree(cache, &place)?;
    }
    // Written each time: it changes with the suite's command line.
    let service = place.join("etc/systemd/system/rkube-suite.service");
    std::fs::write(&service, suite_service())
        .with_context(|| format!("write {}", service.display()))?;
    Ok(place)
}

fn make_tree(cache: &Path, place: &Path) -> anyhow::Result<()> {
    let partial = tempfile::Builder::new()
        .prefix("systemd-partial-")
        .tempdir_in(cache)
        .context("make a directory for the tree")?;
    let dir = partial.path().join("tree");
    std::fs::create_dir(&dir).context("make the tree's directory")?;
    debian::bootstrap(&dir, PACKAGES)?;
    furnish(&dir)?;
    std::fs::rename(&dir, place).with_context(|| format!("place {}", place.display()))
}

fn furnish(tree: &Path) -> anyhow::Result<()> {
    let write = |name: &str, text: &str| {
        let path = tree.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    for cache in ["var/cache/apt/archives", "var/lib/apt/lists"] {
        let path = tree.join(cache);
        std::fs::remove_dir_all(&path).with_context(|| format!("empty {}", path.display()))?;
    }
    for dir in [guest::DISK, guest::PROGRAMS_DIR, guest::PROGRAMS].map(|d| &d[1..]) {
        let path = tree.join(dir);
        std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
    }
    // A fixed id, so that the first boot is like every other.
    write("etc/machine-id", "5f1c2d3e4b5a69788796a5b4c3d2e1f0\n")?;
    // `make vm-shell LAYOUT=systemd` logs in as root without a password.
    let shadow = std::fs::read_to_string(tree.join("etc/shadow")).context("read etc/shadow")?;
    write("etc/shadow", &shadow.replacen("root:*:", "root::", 1))?;
    write("etc/hostname", "rkube-vm\n")?;
    write("etc/fstab", "/dev/vda / ext4 defaults 0 0\n")?;
    let wants = tree.join("etc/systemd/system/multi-user.target.wants");
    std::fs::create_dir_all(&wants).context("make multi-user.target.wants")?;
    symlink("../rkube-suite.service", wants.join("rkube-suite.service"))
        .context("enable rkube-suite.service")?;
    // Tests expect it where Debian's package has it.
    let busybox = format!("{}/bin/busybox", guest::PROGRAMS_DIR);
    symlink(busybox, tree.join("usr/bin/busybox")).context("link busybox")?;
    // Nothing of the day's chores runs beside the tests.
    for unit in [
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        "e2scrub_all.timer",
        "fstrim.timer",
        "dpkg-db-backup.timer",
    ] {
        let at = tree.join("etc/systemd/system").join(unit);
        symlink("/dev/null", &at).with_context(|| format!("mask {unit}"))?;
    }
    let default = tree.join("etc/systemd/system/default.target");
    let _ = std::fs::remove_file(&default);
    symlink("/lib/systemd/system/multi-user.target", &default).context("set the default target")
}

fn suite_service() -> String {
    let dir = guest::PROGRAMS_DIR;
    format!(
        "[Unit]\n\
         Description=Tests of rkube\n\
         After=basic.target dbus.service systemd-logind.service\n\
         Wants=dbus.service\n\
         SuccessAction=poweroff-force\n\
         FailureAction=poweroff-force\n\
         \n\
         [Service]\n\
         Type=simple\n\
         EnvironmentFile={env}\n\
         Environment=HOME=/root PATH=/usr/sbin:/usr/bin:{dir}/bin\n\
         ExecStart=/bin/sh -c 'exec {dir}{suite} $ARGS >$RESULTS'\n\
         StandardError=journal+console\n",
        env = guest::ENVIRONMENT,
        suite = guest::SUITE,
    )
}
