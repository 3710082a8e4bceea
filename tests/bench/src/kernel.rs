//! What the kernel tells: processes and their memory, cgroups, its own memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

/// A process, as `/proc` shows it.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its name (`comm`).
    pub name: String,
    /// What `/proc/PID/exe` points to, in the process's own mount namespace.
    pub exe: String,
    /// Its command line, a space between the arguments.
    pub args: String,
    /// The text of `/proc/PID/cgroup`.
    pub cgroups: String,
}

impl Process {
    /// Proportional set size, in KiB (proc(5), `smaps_rollup`).
    ///
    /// # Errors
    /// It has ended.
    pub fn pss_kib(&self) -> anyhow::Result<u64> {
        pss_kib(self.pid)
    }

    /// How often each thread was put on a processor (`schedstat`, third
    /// number): unchanged means that the process did nothing at all.
    ///
    /// # Errors
    /// It has ended, or the kernel keeps no such statistics.
    pub fn turns(&self) -> anyhow::Result<u64> {
        let dir = format!("/proc/{}/task", self.pid);
        let mut turns = 0;
        for thread in fs::read_dir(&dir).with_context(|| format!("read {dir}"))? {
            let path = thread?.path().join("schedstat");
            let text =
                fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let third = text
                .split_whitespace()
                .nth(2)
                .context("schedstat is short")?;
            turns += third.parse::<u64>().context("schedstat has no number")?;
        }
        Ok(turns)
    }
}

fn field_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Proportional set size of a process, in KiB (proc(5), `smaps_rollup`).
///
/// # Errors
/// It has ended.
pub fn pss_kib(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    field_kib(&text, "Pss:").with_context(|| format!("{path} has no Pss"))
}

/// Processor time of a process and all its threads, those that ended too
/// (clock_getcpuclockid(3)).
///
/// # Errors
/// It has ended.
pub fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let raw = i32::try_from(pid).context("pid out of range")?;
    let clock = nix::time::clock_getcpuclockid(nix::unistd::Pid::from_raw(raw));
    let now = clock.and_then(nix::time::ClockId::now);
    Ok(now
        .with_context(|| format!("processor time of {pid}"))?
        .into())
}

/// Every process but kernel threads and zombies.
///
/// # Errors
/// `/proc` is not mounted.
pub fn processes() -> anyhow::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("read /proc")? {
        let dir = entry?.path();
        let name = dir.file_name().and_then(|n| n.to_str());
        let Some(pid) = name.and_then(|n| n.parse().ok()) else {
            continue;
        };
        // One that ends meanwhile is none any more.
        let read = |file: &str| fs::read_to_string(dir.join(file)).ok();
        let exe = fs::read_link(dir.join("exe")).ok();
        let args = fs::read(dir.join("cmdline")).unwrap_or_default();
        if let (Some(exe), Some(comm), Some(cgroups)) = (exe, read("comm"), read("cgroup")) {
            found.push(Process {
                pid,
                name: comm.trim_end().to_owned(),
                exe: exe.to_string_lossy().into_owned(),
                args: String::from_utf8_lossy(&args).replace('\0', " "),
                cgroups,
            });
        }
    }
    Ok(found)
}

/// Inode of a process's mount namespace.
///
/// # Errors
/// It has ended.
pub fn mount_namespace(process: &str) -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let path = format!("/proc/{process}/ns/mnt");
    Ok(fs::metadata(&path)
        .with_context(|| format!("stat {path}"))?
        .ino())
}

/// Memory that the kernel keeps for itself and for processes, in KiB: slabs,
/// stacks, page tables, per-processor data (proc(5), `meminfo`).
///
/// # Errors
/// `/proc` is not mounted.
pub fn kernel_memory_kib() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    ["Slab:", "KernelStack:", "PageTables:", "Percpu:"]
        .iter()
        .map(|name| field_kib(&text, name).with_context(|| format!("meminfo has no {name}")))
        .sum()
}

/// Directories of this name at the top of every mounted hierarchy.
pub fn cgroups_named(name: &str) -> impl Iterator<Item = PathBuf> + use<> {
    let top = Path::new("/sys/fs/cgroup");
    let below = fs::read_dir(top).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = below.map(|e| e.path().join(name)).collect();
    found.push(top.join(name));
    found.into_iter().filter(|group| group.is_dir())
}

/// Removes a cgroup and those below it, as far as they are empty.
pub fn remove_tree_of_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree_of_groups(&entry.path());
        }
    }
    // One that is in use belongs to somebody.
    let _ = fs::remove_dir(group);
}

/// A file whose path ends so, anywhere below a directory.
pub fn find_below(dir: &Path, end: &str) -> Option<PathBuf> {
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(path),
                Ok(kind) if kind.is_file() && path.ends_with(end) => return Some(path),
                _ => {}
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_listed_and_measured() {
        let all = processes().unwrap();
        let own = all.iter().find(|p| p.pid == std::process::id()).unwrap();
        assert!(own.pss_kib().unwrap() > 100);
        assert!(own.turns().unwrap() > 0);
        assert!(cpu_time(own.pid).unwrap() > Duration::ZERO);
        assert!(kernel_memory_kib().unwrap() > 1000);
        assert_eq!(field_kib("A: 1 kB\nPss:   42 kB\n", "Pss:"), Some(42));
    }
}
