//! What the machine (a VM above all) must offer before a failure of rkube
//! means anything.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail, ensure};

use crate::case::Case;
use crate::command::Cmd;
use crate::host::TestHost;
use crate::layout::Layout;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("machine::unified_controllers", unified_controllers).on(Layout::UNIFIED),
        Case::new("machine::legacy_hierarchies", legacy_hierarchies).on(Layout::LEGACY),
        Case::new("machine::pressure_is_reported", pressure_is_reported)
            .on(Layout::UNIFIED)
            .vm_only(),
        Case::new(
            "machine::root_is_no_initial_ramfs",
            root_is_no_initial_ramfs,
        )
        .vm_only(),
        Case::new(
            "machine::modules_come_when_asked_for",
            modules_come_when_asked_for,
        )
        .vm_only(),
        Case::new("machine::systemd_answers", systemd_answers)
            .on(&[Layout::Systemd])
            .vm_only(),
    ]
}

const CGROUP: &str = "/sys/fs/cgroup";

fn unified_controllers(_: &TestHost) -> anyhow::Result<()> {
    let path = format!("{CGROUP}/cgroup.controllers");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    for wanted in ["cpu", "cpuset", "io", "memory", "pids"] {
        ensure!(
            text.split_whitespace().any(|c| c == wanted),
            "no {wanted} in {path}: {text}"
        );
    }
    Ok(())
}

fn legacy_hierarchies(_: &TestHost) -> anyhow::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    for wanted in [
        "cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids",
    ] {
        let mounted = mounts.lines().any(|line| {
            let mut fields = line.split(' ').skip(2);
            fields.next() == Some("cgroup")
                && fields
                    .next()
                    .is_some_and(|options| options.split(',').any(|o| o == wanted))
        });
        ensure!(mounted, "no hierarchy has {wanted}");
    }
    Ok(())
}

fn pressure_is_reported(_: &TestHost) -> anyhow::Result<()> {
    for kind in ["cpu", "memory", "io"] {
        let path = format!("/proc/pressure/{kind}");
        let text = fs::read_to_string(&path).with_context(|| format!("read {path} (psi=1)"))?;
        ensure!(text.starts_with("some "), "{path}: {text}");
    }
    Ok(())
}

/// pivot_root(2) refuses the initial ramfs, which is its own parent.
fn root_is_no_initial_ramfs(_: &TestHost) -> anyhow::Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let root = table
        .lines()
        .find(|l| l.split(' ').nth(4) == Some("/"))
        .context("no root mount")?;
    let mut fields = root.split(' ');
    let (id, parent) = (fields.next(), fields.next());
    ensure!(
        id.is_some() && id != parent,
        "the root mount has no parent: {root}"
    );
    Ok(())
}

/// As on a user's host, the kernel loads a module when somebody needs it.
fn modules_come_when_asked_for(_: &TestHost) -> anyhow::Result<()> {
    let filesystems = fs::read_to_string("/proc/filesystems")?;
    for wanted in ["ext4", "tmpfs", "mqueue"] {
        ensure!(
            filesystems.split_whitespace().any(|f| f == wanted),
            "no {wanted}"
        );
    }
    const ASK: &str = "set -e; mount -t tmpfs none /mnt; cd /mnt; mkdir l u w m
        mount -t overlay none m -o lowerdir=l,upperdir=u,workdir=w
        ip link add va type veth peer vb
        ip link add vx type vxlan id 1 dev lo dstport 4789
        ip link add wg type wireguard
        ip link add du type dummy
        nft add table ip t
        nft add chain ip t c '{ type nat hook postrouting priority 100; }'
        nft add rule ip t c ct state new masquerade";
    Cmd::new(
        "unshare",
        [
            "--mount",
            "--net",
            "--propagation",
            "private",
            "sh",
            "-c",
            ASK,
        ],
    )
    .ok()?;
    for module in [
        "overlay",
        "veth",
        "vxlan",
        "wireguard",
        "dummy",
        "nf_tables",
        "nf_conntrack",
        "nft_masq",
        "nft_chain_nat",
    ] {
        if !Path::new("/sys/module").join(module).exists() {
            bail!("module {module} is not loaded");
        }
    }
    Ok(())
}

/// Over D-Bus, as rkube's systemd driver will ask it.
fn systemd_answers(_: &TestHost) -> anyhow::Result<()> {
    let comm = fs::read_to_string("/proc/1/comm")?;
    ensure!(comm.trim() == "systemd", "PID 1 is {comm}");
    let bus = "/run/dbus/system_bus_socket";
    ensure!(Path::new(bus).exists(), "no {bus}");
    let out = Cmd::new(
        "busctl",
        ["get-property", "org.freedesktop.systemd1"]
            .into_iter()
            .chain([
                "/org/freedesktop/systemd1",
                "org.freedesktop.systemd1.Manager",
                "Version",
            ]),
    )
    .ok()?;
    ensure!(out.stdout.starts_with("s \""), "{out}");
    Ok(())
}
