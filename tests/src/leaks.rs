//! What a run left behind: looked for with the kernel's own lists, never with
//! the program under test.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

/// What is known of an instance before its reset removes the record.
#[derive(Debug)]
pub struct Instance {
    iid: Option<String>,
    used: bool,
}

impl Instance {
    /// Reads the instance id under a root.
    pub fn read(root: &Path) -> Instance {
        let iid = fs::read_to_string(root.join("var/lib/rkube/instance"))
            .ok()
            .and_then(|text| text.split_whitespace().next().map(str::to_owned))
            .filter(|id| id.len() == 8 && id.bytes().all(|b| b.is_ascii_hexdigit()));
        let used = ["var/lib/rkube", "run/rkube"]
            .iter()
            .any(|d| root.join(d).exists());
        Instance { iid, used }
    }

    /// Whether rkube was run with this root at all.
    pub fn used(&self) -> bool {
        self.used
    }

    /// Kills every process in the instance's cgroups.
    pub fn kill(&self) {
        let Some(iid) = &self.iid else { return };
        for dir in cgroups(|name| name.contains(iid.as_str())) {
            let dir = dir.trim_start_matches("cgroup ");
            kill_below(Path::new(dir));
        }
    }

    /// Everything of the instance that is still there.
    pub fn leftovers(&self, dir: &Path, netns: u64) -> Vec<String> {
        let mut found = Vec::new();
        let dir = dir.to_string_lossy();
        found.extend(mounts(|line| line.contains(&*dir)));
        if let Some(iid) = &self.iid {
            found.extend(cgroups(|name| name.contains(iid.as_str())));
        }
        found.extend(
            in_namespace(netns)
                .into_iter()
                .map(|p| format!("process {p}")),
        );
        found.extend(
            processes(|cmdline| cmdline.contains(&*dir))
                .into_iter()
                .map(|p| format!("process {p}")),
        );
        if crate::net::own_inode().is_ok_and(|own| own == netns) {
            let links = crate::net::links().unwrap_or_default();
            found.extend(links.into_iter().map(|l| format!("link {l}")));
            found.extend(nft_tables().into_iter().map(|t| format!("nft table {t}")));
        }
        found.sort();
        found.dedup();
        found
    }
}

/// Everything on this machine that carries rkube's names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Looks now.
    pub fn take() -> Snapshot {
        let mut all = BTreeSet::new();
        all.extend(mounts(|line| line.contains("rkube")));
        all.extend(cgroups(|name| name.starts_with("rkube")));
        all.extend(
            names_in("/run/netns")
                .filter(|n| n.starts_with("rk"))
                .map(|n| format!("netns {n}")),
        );
        all.extend(
            names_in("/sys/class/net")
                .filter(|n| n.starts_with("rk"))
                .map(|n| format!("link {n}")),
        );
        all.extend(
            nft_tables()
                .into_iter()
                .filter(|t| t.contains("rkube"))
                .map(|t| format!("nft table {t}")),
        );
        all.extend(
            processes_of_rkube()
                .into_iter()
                .map(|p| format!("process {p}")),
        );
        Snapshot(all)
    }

    /// What is in this look and was not in the earlier one.
    pub fn since(&self, earlier: &Snapshot) -> Vec<String> {
        self.0.difference(&earlier.0).cloned().collect()
    }
}

/// Kills every process in a throw-away network namespace but the caller.
pub fn end_processes(netns: u64) {
    for process in in_namespace(netns) {
        if let Some(pid) = process.pid() {
            // It may have ended by itself meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Detaches every mount below a directory, deepest first.
///
/// # Errors
/// One of them stays; then nothing below the directory may be deleted.
pub fn unmount_below(dir: &Path) -> anyhow::Result<()> {
    let prefix = format!("{}/", dir.display());
    loop {
        let table = fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
        let below = |at: &&str| format!("{at}/").starts_with(&prefix);
        let Some(at) = table
            .lines()
            .filter_map(|l| l.split(' ').nth(4))
            .rfind(below)
        else {
            return Ok(());
        };
        unmount(at, UnmountFlags::DETACH).with_context(|| format!("{at} cannot be unmounted"))?;
    }
}

struct Process {
    pid: i32,
    cmdline: String,
}

impl Process {
    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(self.pid)
    }
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.pid, self.cmdline)
    }
}

/// Every process but this one. One without a command line (in the middle of an
/// exec, a zombie, a kernel thread) is shown by its name.
fn all_processes() -> impl Iterator<Item = (PathBuf, Process)> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    names_in("/proc").filter_map(move |name| {
        let pid: i32 = name.parse().ok().filter(|p| *p != own)?;
        let dir = Path::new("/proc").join(name);
        let bytes = fs::read(dir.join("cmdline")).ok()?;
        let mut cmdline = String::from_utf8_lossy(&bytes)
            .replace('\0', " ")
            .trim_end()
            .to_owned();
        if cmdline.is_empty() {
            cmdline = format!(
                "[{}]",
                fs::read_to_string(dir.join("comm")).ok()?.trim_end()
            );
        }
        Some((dir, Process { pid, cmdline }))
    })
}

fn processes(wanted: impl Fn(&str) -> bool) -> Vec<Process> {
    all_processes()
        .map(|(_, p)| p)
        .filter(|p| wanted(&p.cmdline))
        .collect()
}

fn processes_of_rkube() -> Vec<Process> {
    all_processes()
        .filter(|(dir, _)| {
            let comm = fs::read_to_string(dir.join("comm")).unwrap_or_default();
            comm.starts_with("rkube")
                && !comm.starts_with("rkube-suite")
                && !comm.starts_with("rkube-xtask")
        })
        .map(|(_, p)| p)
        .collect()
}

fn in_namespace(netns: u64) -> Vec<Process> {
    use std::os::unix::fs::MetadataExt;
    all_processes()
        .filter(|(dir, _)| fs::metadata(dir.join("ns/net")).is_ok_and(|m| m.ino() == netns))
        .map(|(_, p)| p)
        .collect()
}

fn mounts(wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter(|line| wanted(line))
        .map(|line| format!("mount {}", line.split(' ').nth(4).unwrap_or(line)))
        .collect()
}

/// Depth at which rkube's cgroups may lie: its own parent, or a slice's child.
const CGROUP_LEVELS: usize = 5;

fn cgroups(wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((dir, level)) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|t| t.is_dir()) {
                continue;
            }
            if wanted(&entry.file_name().to_string_lossy()) {
                found.push(format!("cgroup {}", entry.path().display()));
            } else if level + 1 < CGROUP_LEVELS {
                open.push((entry.path(), level + 1));
            }
        }
    }
    found
}

/// Kills every process in a cgroup and in those below it.
fn kill_below(dir: &Path) {
    let list = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in list.lines().filter_map(|l| l.trim().parse().ok()) {
        if let Some(pid) = Pid::from_raw(pid) {
            // It may have ended by itself meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            kill_below(&entry.path());
        }
    }
}

/// Tables of the calling thread's namespace. Where `nft` is absent (it is a
/// peer, not a part of rkube) the list is empty.
fn nft_tables() -> Vec<String> {
    list_nft_tables().unwrap_or_default()
}

fn list_nft_tables() -> anyhow::Result<Vec<String>> {
    let out = std::process::Command::new("nft")
        .args(["list", "tables"])
        .output()
        .context("run nft")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    Ok(text
        .lines()
        .filter_map(|l| l.strip_prefix("table "))
        .map(str::to_owned)
        .collect())
}

fn names_in(dir: &str) -> impl Iterator<Item = String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_left_in_a_namespace_is_found_and_ended() {
        std::thread::spawn(|| {
            crate::net::enter_new().unwrap();
            let netns = crate::net::own_inode().unwrap();
            let mut child = std::process::Command::new("sleep")
                .arg("1000")
                .spawn()
                .unwrap();
            let dir = tempfile::tempdir().unwrap();
            let left = Instance::read(dir.path()).leftovers(dir.path(), netns);
            // In the middle of its exec it has no command line yet.
            let pid = format!("process {} ", child.id());
            assert!(left.iter().any(|l| l.starts_with(&pid)), "{left:?}");
            end_processes(netns);
            assert!(!child.wait().unwrap().success());
            assert!(
                Instance::read(dir.path())
                    .leftovers(dir.path(), netns)
                    .is_empty()
            );
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_mount_left_under_the_directory_is_found() {
        let dir = tempfile::tempdir().unwrap();
        rustix::mount::mount(
            "none",
            dir.path(),
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            None,
        )
        .unwrap();
        let found = Instance::read(dir.path()).leftovers(dir.path(), 0);
        unmount_below(dir.path()).unwrap();
        assert_eq!(found, [format!("mount {}", dir.path().display())]);
        assert!(
            Instance::read(dir.path())
                .leftovers(dir.path(), 0)
                .is_empty()
        );
    }
}
