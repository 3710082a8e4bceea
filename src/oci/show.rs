//! What the commands show of containers and of the runtime.

use rkube_runtime::lifecycle::{Container, Status, Store};
use rkube_runtime::{Error, capability};
use serde_json::{Value, json};

use super::args::{List, Ps};
use super::commands::{Result, print, usage};
use super::log::Log;

fn shown_pid(container: &Container, status: Status) -> i32 {
    if status == Status::Stopped {
        0
    } else {
        container.record.pid
    }
}

fn state_value(container: &Container) -> Result<Value> {
    let record = &container.record;
    let status = container.status()?;
    Ok(json!({
        "ociVersion": record.oci_version,
        "id": record.id,
        "pid": shown_pid(container, status),
        "status": status.name(),
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
        "annotations": record.annotations,
    }))
}

pub(super) fn state(container: &Container) -> Result<()> {
    print(&format!("{:#}\n", state_value(container)?))
}

/// The runtime-spec's features document (features.md).
pub(super) fn features() -> Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.3.0",
        "hooks": [
            "prestart", "createRuntime", "createContainer", "startContainer", "poststart",
            "poststop"
        ],
        "mountOptions": [
            "async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "idmap",
            "iversion", "lazytime", "loud", "mand", "noatime", "nodev", "nodiratime", "noexec",
            "noiversion", "nolazytime", "nomand", "norelatime", "nostrictatime", "nosuid",
            "nosymfollow", "private", "ratime", "rbind", "rdev", "rdiratime", "relatime", "remount",
            "rexec", "ridmap", "rnoatime", "rnodev", "rnodiratime", "rnoexec", "rnorelatime",
            "rnostrictatime", "rnosuid", "rnosymfollow", "ro", "rprivate", "rrelatime", "rro",
            "rrw", "rshared", "rslave", "rstrictatime", "rsuid", "rsymfollow", "runbindable",
            "rw", "shared", "silent", "slave", "strictatime", "suid", "symfollow", "sync", "tmpcopyup",
            "unbindable"
        ],
        "linux": {
            "namespaces": [
                "cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"
            ],
            "capabilities": capability::names(capability::all()),
            "cgroup": {
                "v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": true
            },
            "seccomp": {
                "enabled": true,
                "actions": [
                    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL",
                    "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY",
                    "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"
                ],
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                    "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"
                ]
            },
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "intelRdt": {"enabled": false},
            "memoryPolicy": {
                "modes": [
                    "MPOL_BIND", "MPOL_DEFAULT", "MPOL_INTERLEAVE", "MPOL_LOCAL",
                    "MPOL_PREFERRED", "MPOL_PREFERRED_MANY", "MPOL_WEIGHTED_INTERLEAVE"
                ],
                "flags": [
                    "MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"
                ]
            },
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": false}
        },
        "potentiallyUnsafeConfigAnnotations": []
    })
}

pub(super) fn list(store: &Store, args: &List, log: &mut Log) -> Result<()> {
    let mut rows = Vec::new();
    let found = store.list()?;
    for error in &found.unreadable {
        log.warn(&error.chain());
    }
    for (container, owner) in found.containers {
        let mut row = match state_value(&container) {
            Ok(row) => row,
            // As one whose record cannot be read: it hides no other.
            Err(error) => {
                log.warn(&error.chain());
                continue;
            }
        };
        row["owner"] = owner_name(owner).into();
        rows.push(row);
    }
    let text = |row: &Value, key: &str| match &row[key] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if args.quiet {
        let ids: String = rows.iter().map(|r| text(r, "id") + "\n").collect();
        return print(&ids);
    }
    match args.format.as_str() {
        "json" => print(&format!("{}\n", Value::Array(rows))),
        "table" => {
            let mut lines = vec![
                ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
                    .map(str::to_owned)
                    .to_vec(),
            ];
            for row in &rows {
                let keys = ["id", "pid", "status", "bundle", "created", "owner"];
                lines.push(keys.iter().map(|key| text(row, key)).collect());
            }
            print(&table(&lines))
        }
        _ => Err(usage("--format must be table or json")),
    }
}

/// Columns as wide as their widest cell.
fn table(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |n: usize| {
        let cells = lines.iter().filter_map(|line| line.get(n));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for line in lines {
        let cells: Vec<String> = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        out.push_str(cells.join("   ").trim_end());
        out.push('\n');
    }
    out
}

fn owner_name(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    passwd
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
        })
        .unwrap_or_else(|| uid.to_string())
}

pub(super) fn ps(store: &Store, args: Ps) -> Result<i32> {
    let pids = store.load(&args.id)?.pids()?;
    match args.format.as_str() {
        "json" => {
            print(&format!("{}\n", json!(pids)))?;
            Ok(0)
        }
        "table" => {
            let options = if args.options.is_empty() {
                vec!["-ef".into()]
            } else {
                args.options
            };
            let output = std::process::Command::new("ps")
                .args(options)
                .output()
                .map_err(|source| Error::File {
                    operation: "run",
                    path: "ps".into(),
                    source,
                })?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                return Err(usage(&format!("ps: {}", said.trim())));
            }
            print(&only(&String::from_utf8_lossy(&output.stdout), &pids)?)?;
            Ok(0)
        }
        _ => Err(usage("--format must be table or json")),
    }
}

/// The lines of ps(1) that are about these processes.
pub(super) fn only(text: &str, pids: &[u32]) -> Result<String> {
    let head = text.lines().next().unwrap_or_default();
    let column = head
        .split_ascii_whitespace()
        .position(|name| name == "PID")
        .ok_or_else(|| usage("the options of ps must show a column PID"))?;
    let mut out = format!("{head}\n");
    for line in text.lines().skip(1) {
        let pid = line.split_ascii_whitespace().nth(column);
        if pid
            .and_then(|p| p.parse().ok())
            .is_some_and(|p| pids.contains(&p))
        {
            out.push_str(line);
            out.push('\n');
        }
    }
    Ok(out)
}
