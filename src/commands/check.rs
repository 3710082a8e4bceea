//! `rkube check`: what this host offers, found by looking.

use rkube_cgroup::{Controller, Hierarchies};
use serde::Serialize;

use crate::cli::Check;
use crate::error::FAILURE;
use crate::output::{self, Table};

/// The oldest kernel that is supported.
const OLDEST_KERNEL: (u32, u32) = (5, 15);

/// How a finding bears on pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Ok,
    /// Something works less well.
    Warn,
    /// Pods cannot run.
    Fail,
}

#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    verdict: Verdict,
    found: String,
}

fn finding(what: &'static str, verdict: Verdict, found: impl Into<String>) -> Finding {
    Finding {
        what,
        verdict,
        found: found.into(),
    }
}

pub(super) fn check(args: &Check) -> anyhow::Result<u8> {
    let findings = [
        vec![root(), kernel()],
        capabilities(),
        cgroups(),
        vec![forwarding()],
    ]
    .concat_all();
    let text = match args.output {
        Some(format) => output::document(&findings, format)?,
        None => {
            let mut table = Table::new(&["CHECK", "VERDICT", "FOUND"]);
            for f in &findings {
                table.row([
                    f.what.to_owned(),
                    format!("{:?}", f.verdict).to_lowercase(),
                    f.found.clone(),
                ]);
            }
            table.text()
        }
    };
    output::print(&text)?;
    Ok(if findings.iter().any(|f| f.verdict == Verdict::Fail) {
        FAILURE
    } else {
        0
    })
}

trait ConcatAll {
    fn concat_all(self) -> Vec<Finding>;
}

impl<const N: usize> ConcatAll for [Vec<Finding>; N] {
    fn concat_all(self) -> Vec<Finding> {
        self.into_iter().flatten().collect()
    }
}

fn root() -> Finding {
    if rustix::process::geteuid().is_root() {
        finding("root", Verdict::Ok, "uid 0")
    } else {
        finding("root", Verdict::Fail, "not uid 0: run rkube with sudo")
    }
}

/// Major and minor number of a release like `6.1.0-13-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let (major, rest) = release.split_once('.')?;
    let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn kernel() -> Finding {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let verdict = match version(&release) {
        Some(found) if found >= OLDEST_KERNEL => Verdict::Ok,
        Some(_) => Verdict::Fail,
        None => Verdict::Warn,
    };
    finding(
        "kernel",
        verdict,
        format!("{release} (5.15 or later is supported)"),
    )
}

/// Capabilities by number (capability(7)) and what they are for.
const CAPABILITIES: [(u32, &str, Verdict, &str); 6] = [
    (21, "CAP_SYS_ADMIN", Verdict::Fail, "mounts and namespaces"),
    (12, "CAP_NET_ADMIN", Verdict::Fail, "pod networks"),
    (
        1,
        "CAP_DAC_OVERRIDE",
        Verdict::Fail,
        "images of other users",
    ),
    (27, "CAP_MKNOD", Verdict::Warn, "device nodes of images"),
    (
        24,
        "CAP_SYS_RESOURCE",
        Verdict::Warn,
        "oom_score_adj below rkube's own and higher limits; values are clamped",
    ),
    (
        34,
        "CAP_SYSLOG",
        Verdict::Warn,
        "the culprit of an OOM-kill, from the kernel log",
    ),
];

fn capabilities() -> Vec<Finding> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let set = line
        .and_then(|l| u64::from_str_radix(l.trim(), 16).ok())
        .unwrap_or(0);
    CAPABILITIES
        .iter()
        .map(|(bit, name, lacking, purpose)| match set >> bit & 1 {
            1 => finding(name, Verdict::Ok, "held"),
            _ => finding(name, *lacking, format!("missing: needed for {purpose}")),
        })
        .collect()
}

fn cgroups() -> Vec<Finding> {
    let hierarchies = match Hierarchies::detect() {
        Ok(hierarchies) => hierarchies,
        Err(error) => {
            return vec![finding(
                "cgroups",
                Verdict::Fail,
                crate::error::chain(&error),
            )];
        }
    };
    let mut list = vec![finding(
        "cgroups",
        Verdict::Ok,
        format!("{:?}: {}", hierarchies.mode(), hierarchies.available()),
    )];
    for lack in rkube_engine::needs::lacking(&hierarchies) {
        let text = format!("no {}: {}", lack.what, lack.remedy);
        list.push(finding("kernel", Verdict::Fail, text));
    }
    for missing in hierarchies.missing(&[Controller::Cpuset]) {
        list.push(finding(
            "cgroups",
            Verdict::Warn,
            format!("no {missing} controller: its limits cannot be set"),
        ));
    }
    list
}

fn forwarding() -> Finding {
    let on = |path: &str| std::fs::read_to_string(path).is_ok_and(|t| t.trim() == "1");
    let v4 = on("/proc/sys/net/ipv4/ip_forward");
    let v6 = std::path::Path::new("/proc/sys/net/ipv6").exists();
    let text = format!(
        "IPv4 {}, IPv6 {}",
        if v4 {
            "forwards"
        } else {
            "does not forward yet; rkube turns it on with the first pod"
        },
        if v6 {
            "there"
        } else {
            "switched off: pods get IPv4 alone"
        }
    );
    finding("network", Verdict::Ok, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(version("6.1.0-13-amd64"), Some((6, 1)));
        assert_eq!(version("5.15-rc1"), Some((5, 15)));
        assert!(version("5.4.0") < Some(OLDEST_KERNEL) && version("10.0") > Some(OLDEST_KERNEL));
        assert_eq!(version("linux"), None);
    }
}
