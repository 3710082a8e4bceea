//! The cgroup of a process in any layout, read with no help of rkube.

use std::path::PathBuf;

use anyhow::Context;

/// The directory of a process's cgroup in the hierarchy of a controller (the
/// unified one if no v1 hierarchy has it).
///
/// # Errors
/// The process has ended, or nothing has the controller.
pub fn of(pid: u32, controller: &str) -> anyhow::Result<PathBuf> {
    let path = format!("/proc/{pid}/cgroup");
    let groups = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
    find(&groups, &mounts, controller)
        .with_context(|| format!("{controller} of {pid} in\n{groups}"))
}

fn find(groups: &str, mounts: &str, controller: &str) -> Option<PathBuf> {
    let rows: Vec<Vec<&str>> = groups.lines().map(|l| l.splitn(3, ':').collect()).collect();
    let legacy = rows.iter().find(|r| {
        r.get(1)
            .is_some_and(|c| c.split(',').any(|c| c == controller))
    });
    let path = *legacy
        .or_else(|| rows.iter().find(|r| r.first() == Some(&"0")))?
        .get(2)?;
    mounts.lines().find_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        let fields: Vec<&str> = head.split(' ').collect();
        let mut tail = tail.split(' ');
        let (kind, options) = (tail.next()?, tail.nth(1)?);
        let fits = match legacy {
            Some(_) => kind == "cgroup" && options.split(',').any(|o| o == controller),
            None => kind == "cgroup2",
        };
        let below = path.strip_prefix(fields.get(3)?.trim_end_matches('/'))?;
        fits.then(|| PathBuf::from(format!("{}{below}", fields.get(4).unwrap_or(&""))))
    })
}

/// A file of a process's cgroup, without the newline at its end.
///
/// # Errors
/// As [`of`], or the file is not there.
pub fn file(pid: u32, controller: &str, name: &str) -> anyhow::Result<String> {
    let path = of(pid, controller)?.join(name);
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.trim_end().to_owned())
}

/// The number after a word at the start of a line (`cpu.stat` and others).
///
/// # Errors
/// There is no such line.
pub fn counter(text: &str, word: &str) -> anyhow::Result<u64> {
    let found = text
        .lines()
        .find_map(|l| l.strip_prefix(word)?.strip_prefix(' '));
    found
        .with_context(|| format!("no {word} in\n{text}"))?
        .trim()
        .parse()
        .context("a number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_hierarchy_are_found() {
        let mounts = "31 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      32 23 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let groups = "3:cpu,cpuacct:/a/b\n0::/c\n";
        assert_eq!(
            find(groups, mounts, "cpu").unwrap(),
            PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/a/b")
        );
        assert_eq!(
            find(groups, mounts, "memory").unwrap(),
            PathBuf::from("/sys/fs/cgroup/unified/c")
        );
    }
}
