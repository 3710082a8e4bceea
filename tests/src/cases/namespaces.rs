//! What containers of a pod share, and what they do not.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::case::Case;
use crate::command::Cmd;
use crate::host::TestHost;
use crate::pods::{pod, tool, with};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("namespaces::shared_and_own", shared_and_own),
        Case::new(
            "namespaces::process_namespace_is_shared",
            process_namespace_is_shared,
        ),
        Case::new("namespaces::the_hosts_own", the_hosts_own),
        Case::new("namespaces::nsenter_joins_the_pod", nsenter_joins_the_pod),
        Case::new("namespaces::users_of_a_pod", users_of_a_pod),
        Case::new(
            "namespaces::host_name_and_hosts_file",
            host_name_and_hosts_file,
        ),
    ]
}

/// Inodes by (process, kind), from the kernel and not from rkube's word.
fn inodes(
    host: &TestHost,
    name: &str,
    processes: &[&str],
) -> anyhow::Result<BTreeMap<(String, String), String>> {
    let told = host.namespaces(name)?;
    let mut found = BTreeMap::new();
    for process in processes {
        let pid = host.life(name, process)?.pid;
        for kind in ["net", "ipc", "uts", "mnt", "pid", "cgroup", "user"] {
            let link = std::fs::read_link(format!("/proc/{pid}/ns/{kind}"))?
                .to_string_lossy()
                .into_owned();
            let row = told
                .iter()
                .find(|r| r["process"] == *process && r["kind"] == kind);
            let row = row.with_context(|| format!("lsns lacks {kind} of {process}"))?;
            ensure!(
                link == format!("{kind}:[{}]", row["inode"]),
                "{link} is told as {row}"
            );
            found.insert(((*process).to_owned(), kind.to_owned()), link);
        }
    }
    Ok(found)
}

fn own(kind: &str) -> anyhow::Result<String> {
    // The case's own network namespace is the test host's.
    Ok(std::fs::read_link(format!("/proc/thread-self/ns/{kind}"))?
        .to_string_lossy()
        .into_owned())
}

fn sleepers(name: &str) -> Value {
    pod(
        name,
        &[tool("a", &["sleep", "inf"]), tool("b", &["sleep", "inf"])],
    )
}

fn shared_and_own(host: &TestHost) -> anyhow::Result<()> {
    host.up(&[sleepers("p")])?;
    let found = inodes(host, "p", &["pause", "a", "b"])?;
    let of = |process: &str, kind: &str| &found[&(process.to_owned(), kind.to_owned())];
    for kind in ["net", "ipc", "uts"] {
        ensure!(
            of("a", kind) == of("pause", kind) && of("b", kind) == of("pause", kind),
            "{kind}: {found:?}"
        );
        ensure!(*of("pause", kind) != own(kind)?, "{kind} is the host's");
    }
    for kind in ["mnt", "pid", "cgroup"] {
        ensure!(
            of("a", kind) != of("b", kind) && of("a", kind) != of("pause", kind),
            "{kind}: {found:?}"
        );
        ensure!(*of("a", kind) != own(kind)?, "{kind} is the host's");
    }
    let ps = host.tell("p", &["ps"])?;
    ensure!(
        ps.starts_with("1 0 ") && !ps.contains("pause") && ps.lines().count() == 2,
        "{ps}"
    );
    let group = host.tell("p", &["cat", "/proc/self/cgroup"])?;
    ensure!(group.lines().all(|l| l.ends_with(":/")), "{group}");
    // Shared memory is one for the pod.
    host.tell("p", &["write", "/dev/shm/x", "seen"])?;
    let seen = host
        .rkube(["exec", "p", "-c", "b", "--", "cat", "/dev/shm/x"])?
        .ok()?;
    ensure!(seen.stdout == "seen\n", "{seen}");
    host.rm(&["p"])?;
    Ok(())
}

fn process_namespace_is_shared(host: &TestHost) -> anyhow::Result<()> {
    host.up(&[with(
        sleepers("p"),
        "spec",
        json!({"shareProcessNamespace": true}),
    )])?;
    let found = inodes(host, "p", &["pause", "a", "b"])?;
    let of = |process: &str| &found[&(process.to_owned(), "pid".to_owned())];
    ensure!(
        of("a") == of("pause") && of("b") == of("pause"),
        "{found:?}"
    );
    let ps = host.tell("p", &["ps"])?;
    let sleeping = ps.lines().filter(|l| l.contains("sleep inf")).count();
    ensure!(sleeping == 2 && ps.starts_with("1 0 "), "{ps}");
    // What dies unreaped is reaped by pause, and pause stays.
    let b = host.life("p", "b")?;
    b.kill()?;
    ensure!(host.life("p", "pause")?.runs());
    host.rm(&["p"])?;
    Ok(())
}

fn the_hosts_own(host: &TestHost) -> anyhow::Result<()> {
    let fields = json!({"hostNetwork": true, "hostPID": true, "hostIPC": true});
    host.up(&[with(sleepers("p"), "spec", fields)])?;
    let found = inodes(host, "p", &["a", "b"])?;
    for kind in ["net", "pid", "ipc"] {
        ensure!(
            found[&("a".to_owned(), kind.to_owned())] == own(kind)?,
            "{kind}: {found:?}"
        );
    }
    for kind in ["mnt", "cgroup"] {
        ensure!(
            found[&("a".to_owned(), kind.to_owned())] != own(kind)?,
            "{kind}: {found:?}"
        );
    }
    let pid = std::process::id();
    let ps = host.tell("p", &["ps"])?;
    ensure!(
        ps.lines().any(|l| l.starts_with(&format!("{pid} "))),
        "the case's own process {pid} is not seen: {ps}"
    );
    host.rm(&["p"])?;
    Ok(())
}

fn nsenter_joins_the_pod(host: &TestHost) -> anyhow::Result<()> {
    host.up(&[with(sleepers("p"), "spec", json!({"hostname": "inside"}))])?;
    let pid = host.life("p", "pause")?.pid;
    let script = "readlink /proc/self/ns/net; uname -n; readlink /proc/self/ns/mnt; exit 5";
    let out = host
        .rkube(["nsenter", "p", "--", "sh", "-c", script])?
        .exits(5)?;
    let lines: Vec<&str> = out.stdout.lines().collect();
    let net = std::fs::read_link(format!("/proc/{pid}/ns/net"))?
        .to_string_lossy()
        .into_owned();
    ensure!(
        lines == [net.as_str(), "inside", own("mnt")?.as_str()],
        "{out}"
    );
    let table = host.rkube(["lsns"])?.ok()?.stdout;
    ensure!(
        table.contains("net") && table.contains("pause,a,b"),
        "{table}"
    );
    host.rm(&["p"])?;
    let gone = host.rkube(["nsenter", "p", "--", "true"])?.exits(1)?;
    ensure!(gone.stderr.contains('p'), "{gone}");
    // The test host's own name is not touched.
    ensure!(Cmd::new("uname", ["-n"]).ok()?.stdout.trim() != "inside");
    Ok(())
}

fn host_name_and_hosts_file(host: &TestHost) -> anyhow::Result<()> {
    let fields = json!({
        "hostname": "myhost", "subdomain": "sub",
        "hostAliases": [{"ip": "10.9.8.7", "hostnames": ["db", "db.local"]}],
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["192.0.2.53"], "searches": ["a.example"], "options": [{"name": "ndots", "value": "3"}]},
    });
    host.up(&[with(sleepers("p"), "spec", fields)])?;
    ensure!(host.tell("p", &["hostname"])? == "myhost\n");
    let hosts = host.tell("p", &["cat", "/etc/hosts"])?;
    let ip = host.inspect("p")?["status"]["podIP"]
        .as_str()
        .context("no podIP")?
        .to_owned();
    ensure!(
        hosts
            .lines()
            .any(|l| l.starts_with(&ip) && l.ends_with("\tmyhost")),
        "{hosts}"
    );
    ensure!(
        hosts.contains("10.9.8.7\tdb\tdb.local") && hosts.contains("127.0.0.1\tlocalhost"),
        "{hosts}"
    );
    let resolv = host.tell("p", &["cat", "/etc/resolv.conf"])?;
    for line in [
        "nameserver 192.0.2.53",
        "search a.example",
        "options ndots:3",
    ] {
        ensure!(resolv.lines().any(|l| l == line), "{resolv}");
    }
    host.rm(&["p"])?;
    Ok(())
}

/// `hostUsers: false`: root of the pod is nobody on the host, in every kind of
/// volume the files are its own, and the range goes back with the pod.
fn users_of_a_pod(host: &TestHost) -> anyhow::Result<()> {
    let mount = |name: &str| json!({"name": name, "mountPath": format!("/{name}")});
    let mounts = json!([mount("disk"), mount("memory"), mount("map")]);
    let own = with(
        pod(
            "p",
            &[with(
                tool("a", &["sleep", "inf"]),
                "",
                json!({"volumeMounts": mounts}),
            )],
        ),
        "spec",
        json!({
            "hostUsers": false,
            "volumes": [
                {"name": "disk", "emptyDir": {}},
                {"name": "memory", "emptyDir": {"medium": "Memory"}},
                {"name": "map", "downwardAPI": {"items": [
                    {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
            ],
        }),
    );
    host.up(&[own, sleepers("q")])?;
    let found = inodes(host, "p", &["pause", "a"])?;
    let of = |process: &str, kind: &str| &found[&(process.to_owned(), kind.to_owned())];
    ensure!(of("a", "user") == of("pause", "user"), "{found:?}");
    ensure!(*of("a", "user") != own_user()?, "{found:?}");
    let pid = host.life("p", "a")?.pid;
    let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map"))?;
    let words: Vec<u32> = map
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    ensure!(
        words.len() == 3 && words[0] == 0 && words[1] >= 65536 && words[2] == 65536,
        "{map}"
    );
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    ensure!(status.contains(&format!("Uid:\t{}", words[1])), "{status}");
    for path in ["/disk/made", "/memory/made", "/made", "/dev/shm/made"] {
        host.tell("p", &["write", path, "seen"])?;
        ensure!(host.tell("p", &["cat", path])? == "seen\n", "{path}");
    }
    ensure!(host.tell("p", &["cat", "/map/name"])?.trim() == "p");
    // What belongs to the host is nobody's here, however it is reached.
    let hosts_file = host.tell("p", &["cat", "/etc/hosts"])?;
    ensure!(hosts_file.contains("localhost"), "{hosts_file}");
    // A pod beside it stays with the host's users.
    let other = host.life("q", "a")?.pid;
    ensure!(
        std::fs::read_link(format!("/proc/{other}/ns/user"))? == std::path::Path::new(&own_user()?)
    );
    host.rm(&["p", "q"])?;
    Ok(())
}

fn own_user() -> anyhow::Result<String> {
    own("user")
}
