//! `rkube lsns` and `rkube nsenter`.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;

use anyhow::Context;
use rkube_kubelet::pod;
use rustix::fs::{Mode, OFlags};
use serde_json::Value;

use crate::cli::{Lsns, Nsenter};
use crate::client::{Client, runtime, unexpected};
use crate::output::{self, Shape, Table};
use crate::wire::{Reply, Request};

/// What `rkube nsenter` joins: the pod's view of network, IPC and host name.
/// Files stay the host's.
const JOINED: [&str; 3] = ["net", "ipc", "uts"];

async fn namespaces(client: &mut Client) -> anyhow::Result<Vec<Value>> {
    match client.call(&Request::Namespaces).await? {
        Reply::Value(Value::Array(rows)) => Ok(rows),
        other => Err(unexpected(&other)),
    }
}

fn word<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_default()
}

pub(super) fn lsns(root: &Path, args: &Lsns) -> anyhow::Result<u8> {
    let rows = runtime()?.block_on(async {
        match Client::look(root).await? {
            Some(mut client) => namespaces(&mut client).await,
            None => Ok(Vec::new()),
        }
    })?;
    let text = match output::shape(args.output) {
        Shape::Document(format) => output::document(&rows, format)?,
        Shape::Names => rows
            .iter()
            .map(|r| format!("{}:[{}]\n", word(r, "kind"), r["inode"]))
            .collect(),
        Shape::Table { wide } => table(&rows, wide),
    };
    output::print(&text)?;
    Ok(0)
}

/// One line for each namespace of a pod, and who is in it. The host's own
/// are shown by `wide` only.
fn table(rows: &[Value], wide: bool) -> String {
    let mut table = Table::new(&["NAMESPACE", "POD", "TYPE", "NS", "HOST", "PID", "PROCESSES"]);
    let mut groups: BTreeMap<(String, String, u64), Vec<&Value>> = BTreeMap::new();
    for row in rows.iter().filter(|r| wide || r["host"] != true) {
        let pod = format!("{}/{}", word(row, "namespace"), word(row, "pod"));
        groups
            .entry((
                pod,
                word(row, "kind").to_owned(),
                row["inode"].as_u64().unwrap_or(0),
            ))
            .or_default()
            .push(row);
    }
    for ((_, kind, inode), rows) in groups {
        let Some(first) = rows.first() else { continue };
        let processes: Vec<&str> = rows.iter().map(|r| word(r, "process")).collect();
        table.row([
            word(first, "namespace").to_owned(),
            word(first, "pod").to_owned(),
            kind,
            inode.to_string(),
            if first["host"] == true { "yes" } else { "no" }.to_owned(),
            first["pid"].to_string(),
            processes.join(","),
        ]);
    }
    table.text()
}

pub(super) fn nsenter(root: &Path, args: Nsenter) -> anyhow::Result<u8> {
    let (pod, rows) = runtime()?.block_on(async {
        let (mut client, pods) =
            super::client_and_pods(root, &[args.pod.pod], &args.pod.namespace).await?;
        let pod = pods.into_iter().next().context("find the pod")?;
        Ok::<_, anyhow::Error>((pod, namespaces(&mut client).await?))
    })?;
    let wanted: Vec<&Value> = rows
        .iter()
        .filter(|r| word(r, "uid") == pod::uid(&pod) && word(r, "process") == "pause")
        .collect();
    let mut files: Vec<(&str, OwnedFd)> = Vec::new();
    for kind in JOINED {
        let row = wanted.iter().find(|r| word(r, "kind") == kind);
        let row = row.with_context(|| {
            format!(
                "pod {} has no {kind} namespace: it is not running",
                pod::display_name(&pod)
            )
        })?;
        if row["host"] != true {
            files.push((kind, open_namespace(row, kind)?));
        }
    }
    for (kind, file) in &files {
        rkube_sys::process::join_namespaces(file.as_fd(), 0)
            .with_context(|| format!("setns to the pod's {kind} namespace"))?;
    }
    let (program, rest) = args.command.split_first().context("no command was given")?;
    // What a shell's child expects.
    rkube_sys::signal::default_sigpipe();
    let error = std::process::Command::new(program).args(rest).exec();
    Err(error).with_context(|| format!("execute {}", program.display()))
}

/// Opens a namespace by its process, and makes sure that it is still the one
/// that the writer told: a pid may belong to another process by now.
fn open_namespace(row: &Value, kind: &str) -> anyhow::Result<OwnedFd> {
    let path = format!("/proc/{}/ns/{kind}", row["pid"]);
    let name = CString::new(path.as_str()).context("make path")?;
    let file = rustix::fs::open(name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("open {path}"))?;
    let found = rustix::fs::fstat(&file)
        .with_context(|| format!("stat {path}"))?
        .st_ino;
    anyhow::ensure!(
        row["inode"].as_u64() == Some(found),
        "the pod has ended meanwhile: {path} is another namespace"
    );
    Ok(file)
}
