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
        settings(),
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
const CAPABILITIES: [(u32, &str, Verdict, &str); 11] = [
    (21, "CAP_SYS_ADMIN", Verdict::Fail, "mounts and namespaces"),
    (12, "CAP_NET_ADMIN", Verdict::Fail, "pod networks"),
    (
        1,
        "CAP_DAC_OVERRIDE",
        Verdict::Fail,
        "images of other users",
    ),
    (0, "CAP_CHOWN", Verdict::Fail, "owners of images' files"),
    (
        6,
        "CAP_SETGID",
        Verdict::Fail,
        "groups of containers' programs",
    ),
    (
        7,
        "CAP_SETUID",
        Verdict::Fail,
        "users of containers' programs",
    ),
    (
        8,
        "CAP_SETPCAP",
        Verdict::Fail,
        "taking capabilities from containers",
    ),
    (
        18,
        "CAP_SYS_CHROOT",
        Verdict::Fail,
        "joining the mounts of a container",
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

/// What gives a capability back.
const RIGHTS: &str = "start rkube from root's own shell or unit, not from a container or a unit whose \
    CapabilityBoundingSet= lacks it";

fn capabilities() -> Vec<Finding> {
    held(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

/// Findings from the text of /proc/PID/status.
fn held(status: &str) -> Vec<Finding> {
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let set = line
        .and_then(|l| u64::from_str_radix(l.trim(), 16).ok())
        .unwrap_or(0);
    CAPABILITIES
        .iter()
        .map(|(bit, name, lacking, purpose)| match set >> bit & 1 {
            1 => finding(name, Verdict::Ok, "held"),
            _ => {
                let text = format!("missing: needed for {purpose}; {RIGHTS}");
                finding(name, *lacking, text)
            }
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
            format!(
                "no {missing} controller: its limits cannot be set; boot with a kernel that has it, and \
                 without it in cgroup_disable="
            ),
        ));
    }
    list
}

/// What a file of /proc tells of the kernel.
struct Setting {
    what: &'static str,
    path: &'static str,
    /// From the file's text without white space at its ends; `None` where there
    /// is no such file.
    judge: fn(Option<&str>) -> (Verdict, &'static str),
}

const SETTINGS: [Setting; 5] = [
    Setting {
        what: "seccomp",
        path: "/proc/sys/kernel/seccomp/actions_avail",
        judge: |text| match text {
            None => (
                Verdict::Fail,
                "no filters of system calls: boot a kernel with CONFIG_SECCOMP_FILTER",
            ),
            Some(text) if !text.contains("user_notif") => (
                Verdict::Warn,
                "no notifications: profiles with SCMP_ACT_NOTIFY need Linux 5.0",
            ),
            Some(_) => (Verdict::Ok, "filters, with notifications"),
        },
    },
    Setting {
        what: "user namespaces",
        path: "/proc/sys/user/max_user_namespaces",
        judge: |text| match text {
            None => (
                Verdict::Warn,
                "none, so `hostUsers: false` is an error: boot a kernel with CONFIG_USER_NS",
            ),
            Some("0") => (
                Verdict::Warn,
                "switched off, so `hostUsers: false` is an error: \
                 sysctl -w user.max_user_namespaces=15000",
            ),
            Some(_) => (Verdict::Ok, "allowed"),
        },
    },
    Setting {
        what: "memory files",
        path: "/proc/sys/vm/memfd_noexec",
        judge: |text| match text {
            Some("2") => (
                Verdict::Fail,
                "may not be executed, as keepers are: sysctl -w vm.memfd_noexec=1",
            ),
            Some(_) | None => (Verdict::Ok, "may be executed"),
        },
    },
    Setting {
        what: "pressure",
        path: "/proc/pressure/memory",
        judge: |text| match text {
            None => (
                Verdict::Warn,
                "not measured, so pressure alarms are errors: boot with psi=1",
            ),
            Some(_) => (Verdict::Ok, "measured"),
        },
    },
    Setting {
        what: "keyrings",
        path: "/proc/sys/kernel/keys/maxkeys",
        judge: |text| match text {
            None => (Verdict::Ok, "the kernel has none, so none is shared"),
            Some(_) => (Verdict::Ok, "each container gets its own"),
        },
    },
];

fn settings() -> Vec<Finding> {
    let judged = SETTINGS.iter().map(|setting| {
        let text = std::fs::read_to_string(setting.path).ok();
        let (verdict, found) = (setting.judge)(text.as_deref().map(str::trim));
        finding(setting.what, verdict, found)
    });
    judged.collect()
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
    fn what_is_missing_comes_with_a_remedy() {
        // Every capability but CAP_SETPCAP (8) and CAP_MKNOD (27).
        let set = !(1_u64 << 8 | 1 << 27);
        let findings = held(&format!("Name:\tx\nCapEff:\t{set:016x}\n"));
        for found in &findings {
            let (verdict, text) = (found.verdict, &found.found);
            let wanted = match found.what {
                "CAP_SETPCAP" => Verdict::Fail,
                "CAP_MKNOD" => Verdict::Warn,
                _ => Verdict::Ok,
            };
            assert_eq!(verdict, wanted, "{}", found.what);
            assert!(
                verdict == Verdict::Ok || text.contains("start rkube"),
                "{text}"
            );
        }
        assert_eq!(findings.len(), CAPABILITIES.len());
    }

    #[test]
    fn settings_are_judged() {
        let judge = |what: &str, text: Option<&str>| {
            let setting = SETTINGS.iter().find(|s| s.what == what).unwrap();
            (setting.judge)(text)
        };
        for (what, text, verdict, remedy) in [
            ("seccomp", None, Verdict::Fail, "CONFIG_SECCOMP_FILTER"),
            (
                "seccomp",
                Some("kill errno log allow"),
                Verdict::Warn,
                "5.0",
            ),
            ("seccomp", Some("errno user_notif allow"), Verdict::Ok, ""),
            ("user namespaces", None, Verdict::Warn, "CONFIG_USER_NS"),
            ("user namespaces", Some("0"), Verdict::Warn, "sysctl -w"),
            ("user namespaces", Some("63"), Verdict::Ok, ""),
            ("memory files", None, Verdict::Ok, ""),
            ("memory files", Some("1"), Verdict::Ok, ""),
            ("memory files", Some("2"), Verdict::Fail, "sysctl -w"),
            ("pressure", None, Verdict::Warn, "psi=1"),
            ("pressure", Some("some avg10=0.00"), Verdict::Ok, ""),
            ("keyrings", None, Verdict::Ok, ""),
            ("keyrings", Some("200"), Verdict::Ok, ""),
        ] {
            let (found, said) = judge(what, text);
            assert_eq!(found, verdict, "{what} {text:?}");
            assert!(said.contains(remedy), "{what} {text:?}: {said}");
        }
    }

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(version("6.1.0-13-amd64"), Some((6, 1)));
        assert_eq!(version("5.15-rc1"), Some((5, 15)));
        assert!(version("5.4.0") < Some(OLDEST_KERNEL) && version("10.0") > Some(OLDEST_KERNEL));
        assert_eq!(version("linux"), None);
    }
}
