//! What a host has mounted, in the order in which it can be.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::Context;
use rkube_tests::layout::Layout;
use rkube_vm::guest;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};

const CGROUP: &str = "/sys/fs/cgroup";
/// Where systemd keeps itself, and what init keeps to: the root of a v2
/// hierarchy may have no processes beside controllers given to children.
const INIT_CGROUP: &str = "init.scope";

/// Makes the root a mount with a parent, as every host has it; pivot_root(2)
/// refuses the initial ramfs. A bind mount of it, moved over it, copies nothing.
pub(crate) fn leave_initial_ramfs() -> anyhow::Result<()> {
    mount_bind("/", "/mnt").context("bind / on /mnt")?;
    rustix::process::chdir("/mnt").context("chdir /mnt")?;
    mount_move(".", "/").context("move . on /")?;
    rustix::process::chroot(".").context("chroot .")?;
    rustix::process::chdir("/").context("chdir /")
}

pub(crate) fn mount_kernel_filesystems() -> anyhow::Result<()> {
    let harmless = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    on("proc", "/proc", harmless, "")?;
    on("sysfs", "/sys", harmless, "")?;
    on("devtmpfs", "/dev", MountFlags::NOSUID, "mode=755")?;
    on(
        "devpts",
        "/dev/pts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        "gid=5,mode=620,ptmxmode=666",
    )?;
    on(
        "tmpfs",
        "/dev/shm",
        MountFlags::NOSUID | MountFlags::NODEV,
        "mode=1777",
    )?;
    on("mqueue", "/dev/mqueue", harmless, "")?;
    on(
        "tmpfs",
        "/run",
        MountFlags::NOSUID | MountFlags::NODEV,
        "mode=755",
    )?;
    on(
        "tmpfs",
        "/tmp",
        MountFlags::NOSUID | MountFlags::NODEV,
        "mode=1777",
    )?;
    on("bpf", "/sys/fs/bpf", harmless, "mode=700")?;
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
    ] {
        symlink(target, Path::new("/dev").join(name))
            .with_context(|| format!("link /dev/{name}"))?;
    }
    // Hosts with systemd have it so; a leak into containers would show.
    rustix::mount::mount_change(
        "/",
        rustix::mount::MountPropagationFlags::SHARED | rustix::mount::MountPropagationFlags::REC,
    )
    .context("make / shared")
}

/// Mounts `kind` on a directory that is made if it is not there.
fn on(kind: &str, at: &str, flags: MountFlags, data: &str) -> anyhow::Result<()> {
    fs::create_dir_all(at).with_context(|| format!("make {at}"))?;
    let data = CString::new(data).context("mount options")?;
    mount(kind, at, kind, flags, data.as_c_str())
        .with_context(|| format!("mount {kind} on {at} ({data:?})"))
}

pub(crate) fn mount_cgroups(layout: Layout) -> anyhow::Result<()> {
    match layout {
        Layout::V2 | Layout::Systemd => mount_unified(CGROUP, "nsdelegate,memory_recursiveprot"),
        Layout::V1 => mount_legacy(),
        Layout::Hybrid => {
            mount_legacy()?;
            mount_unified(&format!("{CGROUP}/unified"), "nsdelegate")
        }
    }
}

fn cgroup_flags() -> MountFlags {
    MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC
}

fn mount_unified(at: &str, options: &str) -> anyhow::Result<()> {
    on("cgroup2", at, cgroup_flags(), options)?;
    let own = Path::new(at).join(INIT_CGROUP);
    fs::create_dir(&own).with_context(|| format!("make {}", own.display()))?;
    let procs = own.join("cgroup.procs");
    fs::write(&procs, "1").with_context(|| format!("write 1 to {}", procs.display()))
}

/// One hierarchy for each controller that the kernel has; cpu and cpuacct
/// together, and links by the single names, as distributions do it.
fn mount_legacy() -> anyhow::Result<()> {
    on("tmpfs", CGROUP, cgroup_flags(), "mode=755")?;
    let table = fs::read_to_string("/proc/cgroups").context("read /proc/cgroups")?;
    let mut groups: Vec<Vec<&str>> = Vec::new();
    for controller in enabled_controllers(&table) {
        let together = match controller {
            "cpuacct" => Some("cpu"),
            "net_prio" => Some("net_cls"),
            _ => None,
        };
        match groups
            .iter_mut()
            .find(|g| together.is_some_and(|t| g.contains(&t)))
        {
            Some(group) => group.push(controller),
            None => groups.push(vec![controller]),
        }
    }
    for group in groups {
        let name = group.join(",");
        on("cgroup", &format!("{CGROUP}/{name}"), cgroup_flags(), &name)?;
        for single in group.iter().filter(|_| group.len() > 1) {
            symlink(&name, Path::new(CGROUP).join(single))
                .with_context(|| format!("link {single}"))?;
        }
    }
    on(
        "cgroup",
        &format!("{CGROUP}/systemd"),
        cgroup_flags(),
        "none,name=systemd",
    )
}

/// Lines `name hierarchy cgroups enabled` of `/proc/cgroups` (cgroups(7)).
fn enabled_controllers(table: &str) -> impl Iterator<Item = &str> {
    table
        .lines()
        .filter(|l| !l.starts_with('#'))
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let name = fields.next()?;
            (fields.nth(2) == Some("1")).then_some(name)
        })
}

/// Mounts the disk that most programs of the initramfs are links into.
pub(crate) fn mount_programs() -> anyhow::Result<()> {
    mount(
        guest::PROGRAMS_DEVICE,
        guest::PROGRAMS,
        "ext4",
        MountFlags::RDONLY,
        None,
    )
    .with_context(|| format!("mount {} on {}", guest::PROGRAMS_DEVICE, guest::PROGRAMS))
}

/// Mounts the scratch disk if the machine has one.
pub(crate) fn mount_disk() -> anyhow::Result<()> {
    if !Path::new(guest::DISK_DEVICE).exists() {
        return Ok(());
    }
    mount(
        guest::DISK_DEVICE,
        guest::DISK,
        "ext4",
        MountFlags::empty(),
        None,
    )
    .with_context(|| format!("mount {} on {}", guest::DISK_DEVICE, guest::DISK))?;
    for dir in ["tmp", "images"] {
        fs::create_dir_all(Path::new(guest::DISK).join(dir))
            .with_context(|| format!("make {dir}"))?;
    }
    Ok(())
}

/// Makes the disk the root, with this initramfs below it, and takes the
/// kernel's file systems along.
pub(crate) fn enter_disk_system() -> anyhow::Result<()> {
    mount(
        guest::DISK_DEVICE,
        "/mnt",
        "ext4",
        MountFlags::empty(),
        None,
    )
    .with_context(|| format!("mount {} on /mnt", guest::DISK_DEVICE))?;
    fs::create_dir_all(format!("/mnt{}/tmp", guest::DISK))
        .context("make the directory of tests")?;
    // Shared mounts cannot be moved away from their parent; systemd shares all
    // again.
    rustix::mount::mount_change(
        "/",
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC,
    )
    .context("make / private")?;
    mount_bind("/", format!("/mnt{}", guest::PROGRAMS_DIR)).context("bind the initramfs")?;
    rustix::mount::unmount("/tmp", rustix::mount::UnmountFlags::empty()).context("unmount /tmp")?;
    for dir in ["/dev", "/proc", "/sys", "/run", guest::PROGRAMS] {
        mount_move(dir, format!("/mnt{dir}")).with_context(|| format!("move {dir}"))?;
    }
    rustix::process::chdir("/mnt").context("chdir /mnt")?;
    mount_move(".", "/").context("move . on /")?;
    rustix::process::chroot(".").context("chroot .")?;
    rustix::process::chdir("/").context("chdir /")
}
