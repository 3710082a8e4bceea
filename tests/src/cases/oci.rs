//! The OCI command line, looked at from outside.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::case::Case;
use crate::command::Cmd;
use crate::host::TestHost;
use crate::images;

/// System calls of one `oci run` with the default spec on a hybrid host with
/// ten hierarchies, the program's own left out, at most; it is the greatest
/// there is.
const MAX_RUN_CALLS: usize = 1400;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "oci::no_paths_after_the_root_is_entered",
            no_paths_after_the_root_is_entered,
        ),
        Case::new("oci::no_paths_in_other_ways_in", no_paths_in_other_ways_in),
        Case::new("oci::filters_are_kept", filters_are_kept),
    ]
}

/// A bundle with the busybox tree; its spec may be edited.
pub(super) fn bundle(
    host: &TestHost,
    args: &[&str],
    edit: impl FnOnce(&mut serde_json::Value),
) -> anyhow::Result<PathBuf> {
    let dir = host.files().join("bundle");
    let root = dir.join("rootfs");
    std::fs::create_dir_all(&root)?;
    let tar = std::fs::File::open(images::busybox()?)?;
    let mut archive = tar::Archive::new(tar);
    archive.set_preserve_permissions(true);
    archive.unpack(&root)?;
    let path = dir.display().to_string();
    host.rkube(["oci", "spec", "--bundle", &path])?.ok()?;
    let config = dir.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&std::fs::read(&config)?)?;
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = json!(args);
    edit(&mut spec);
    std::fs::write(config, serde_json::to_vec(&spec)?)?;
    Ok(dir)
}

fn id() -> String {
    format!("rkube-test-{}", std::process::id())
}

/// One system call of strace(1)'s output.
#[derive(Debug)]
struct Call<'a> {
    pid: &'a str,
    name: &'a str,
    args: &'a str,
    line: &'a str,
}

fn calls(text: &str) -> impl Iterator<Item = Call<'_>> {
    text.lines().filter_map(|line| {
        let (pid, rest) = line.split_once(' ')?;
        let (name, args) = rest.trim_start().split_once('(')?;
        Some(Call {
            pid,
            name,
            args,
            line,
        })
    })
}

/// Why a call of the stage after pivot_root is not one of those that are
/// allowed: by descriptor, by a single name below one, or a bounded openat2.
fn objection(call: &Call<'_>) -> Option<&'static str> {
    let named = call.args.split('"').nth(1).unwrap_or_default();
    let at_cwd = call.args.starts_with("AT_FDCWD");
    match call.name {
        "mount" | "mknod" | "symlink" | "unlink" | "mkdir" | "rename" | "link" | "chown"
        | "lchown" | "chmod" | "rmdir" | "creat" => Some("acts on a path"),
        "umount2" if named != "." => Some("unmounts by path"),
        "mknodat" | "mkdirat" | "symlinkat" | "unlinkat" | "fchownat" | "fchmodat" => {
            let name = call.args.rsplit('"').nth(1).unwrap_or_default();
            (at_cwd || name.contains('/')).then_some("acts on a path")
        }
        "move_mount" | "open_tree" | "mount_setattr" | "fspick" => {
            let mut names = call.args.split('"').skip(1).step_by(2);
            names
                .any(|name| !name.is_empty())
                .then_some("mounts by path")
        }
        "open" | "openat" if named == "/" => None,
        "open" | "openat" if named.starts_with("/proc") => Some("opens /proc by path"),
        "open" => Some("opens a path without a bound"),
        "openat" => (at_cwd || named.contains('/')).then_some("opens a path without a bound"),
        "openat2" => {
            let bounded = (call.args.contains("RESOLVE_IN_ROOT")
                || call.args.contains("RESOLVE_BENEATH"))
                && call.args.contains("RESOLVE_NO_MAGICLINKS");
            (!bounded).then_some("opens a path without a bound")
        }
        "chdir" if named != "/" => Some("changes directory by path"),
        _ => None,
    }
}

fn no_paths_after_the_root_is_entered(host: &TestHost) -> anyhow::Result<()> {
    let bundle = bundle(host, &["/bin/true"], |spec| {
        spec["process"]["oomScoreAdj"] = 500.into();
        spec["process"]["cwd"] = "/made/here".into();
        spec["root"]["readonly"] = false.into();
        spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
        spec["linux"]["devices"] =
            json!([{"path": "/dev/own", "type": "c", "major": 1, "minor": 5, "gid": 7}]);
        let mounts = spec["mounts"].as_array_mut();
        mounts.into_iter().for_each(|mounts| {
            mounts.push(
                json!({"destination": "/etc", "type": "tmpfs", "source": "tmpfs",
                "options": ["tmpcopyup", "ro"]}),
            );
            mounts.push(json!({"destination": "/data/deep", "source": "/etc",
                "options": ["rbind", "ro"]}));
        });
    })?;
    let run = ["run", "--bundle", &bundle.display().to_string(), &id()].map(str::to_owned);
    let text = trace(host, &run)?;
    let setup = judged(&text)?;
    // The trace must have seen what it judges.
    let seen: BTreeSet<_> = setup.iter().map(|call| call.name).collect();
    for name in ["move_mount", "mknodat", "symlinkat", "mkdirat", "openat2"] {
        ensure!(seen.contains(name), "no {name} in the trace");
    }
    let last = setup.last().context("no call")?;
    let program = calls(&text)
        .skip_while(|call| call.line != last.line)
        .filter(|call| call.pid == last.pid);
    let own = calls(&text).count() - program.count();
    println!("{own} system calls");
    ensure!(own <= MAX_RUN_CALLS, "{own} system calls in one run");
    Ok(())
}

/// The system calls of an `rkube oci` command and all that it starts.
fn trace(host: &TestHost, command: &[String]) -> anyhow::Result<String> {
    let path = host.files().join("trace");
    let root = host.root().join("oci");
    let mut args = vec!["-f".to_owned(), "-s".to_owned(), "4096".to_owned()];
    args.extend(["-o".to_owned(), path.display().to_string()]);
    args.push(host.program()?.display().to_string());
    args.extend(["oci".to_owned(), "--root".to_owned()]);
    args.push(root.display().to_string());
    args.extend(command.iter().cloned());
    Cmd::new("strace", &args).ok()?;
    std::fs::read_to_string(&path).context("read the trace")
}

/// The calls of a trace's stage from where it is in the container's root to
/// its program; one that could be led astray by a path is an error.
fn judged(text: &str) -> anyhow::Result<Vec<Call<'_>>> {
    // An exec enters by setns(2): the program's process is the last of those.
    let enters = |call: &Call<'_>| {
        call.name == "pivot_root" || (call.name == "setns" && !call.args.contains("CLONE_NEWPID)"))
    };
    let pivots = calls(text).filter(|call| call.name == "pivot_root").count();
    let entry = if pivots > 0 { "pivot_root" } else { "setns" };
    let stage = calls(text)
        .filter(enters)
        .filter(|call| call.name == entry)
        .last()
        .map(|call| call.pid.to_owned())
        .context("nobody enters a root in the trace")?;
    let all: Vec<_> = calls(text).filter(|call| call.pid == stage).collect();
    let begin = all.iter().rposition(|call| call.name == entry).unwrap_or(0);
    let inside: Vec<_> = all.into_iter().skip(begin).collect();
    let end = inside.iter().position(|call| call.name == "execve");
    let end = end.context("the program is not executed")?;
    let setup: Vec<_> = inside.into_iter().take(end).collect();
    let wrong: Vec<_> = setup
        .iter()
        .filter_map(|call| Some(format!("{}: {}", objection(call)?, call.line)))
        .collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    let before = calls(text).filter(|call| call.pid == stage);
    let by_path = before
        .take_while(|call| call.name != "execve")
        .find(|call| matches!(call.name, "open" | "openat") && call.args.contains("\"/proc"));
    ensure!(by_path.is_none(), "{by_path:?}");
    Ok(setup)
}

/// The same of an exec, of a terminal, and of a user namespace.
fn no_paths_in_other_ways_in(host: &TestHost) -> anyhow::Result<()> {
    let made = bundle(host, &["/bin/sleep", "100000"], |_| ())?;
    let words = |list: &[&str]| list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let (id, at) = (id(), made.display().to_string());
    let root = host.root().join("oci").display().to_string();
    let oci = |args: &[&str]| -> anyhow::Result<()> {
        let mut all = words(&["oci", "--root", &root]);
        all.extend(words(args));
        Cmd::new(host.program()?, &all).ok().map(drop)
    };
    oci(&["run", "--detach", "--bundle", &at, &id])?;
    let traced = trace(host, &words(&["exec", "--cwd", "/tmp", &id, "/bin/true"]));
    oci(&["delete", "--force", &id])?;
    let text = traced?;
    ensure!(judged(&text)?.len() > 10, "hardly a call of the exec");
    let config = made.join("config.json");
    let spec: serde_json::Value = serde_json::from_slice(&std::fs::read(&config)?)?;
    for (what, edit) in [
        (
            "terminal",
            (|spec| spec["process"]["terminal"] = true.into()) as fn(&mut serde_json::Value),
        ),
        ("user namespace", |spec| {
            let map = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
            spec["linux"]["uidMappings"] = map.clone();
            spec["linux"]["gidMappings"] = map;
            if let Some(list) = spec["linux"]["namespaces"].as_array_mut() {
                list.push(json!({"type": "user"}));
            }
        }),
    ] {
        let mut edited = spec.clone();
        edited["process"]["args"] = json!(["/bin/true"]);
        edit(&mut edited);
        std::fs::write(&config, serde_json::to_vec(&edited)?)?;
        let text = trace(host, &words(&["run", "--bundle", &at, &id])).context(what)?;
        ensure!(
            judged(&text).context(what)?.len() > 10,
            "{what}: hardly a call"
        );
    }
    Ok(())
}

fn filters_are_kept(host: &TestHost) -> anyhow::Result<()> {
    let bundle = bundle(
        host,
        &["/bin/grep", "Seccomp:", "/proc/self/status"],
        |spec| {
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["reboot"], "action": "SCMP_ACT_ERRNO"}]});
        },
    )?;
    let root = host.root().join("oci");
    let (root_text, bundle) = (root.display().to_string(), bundle.display().to_string());
    let run = || -> anyhow::Result<()> {
        let args = [
            "oci",
            "--root",
            &root_text,
            "run",
            "--bundle",
            &bundle,
            &id(),
        ];
        let out = Cmd::new(host.program()?, args).ok()?;
        ensure!(out.stdout == "Seccomp:\t2\n", "{out}");
        Ok(())
    };
    let kept = || -> anyhow::Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(root.join("@filters"))?;
        Ok(entries.flatten().map(|entry| entry.path()).collect())
    };
    run()?;
    let first = kept()?;
    ensure!(first.len() == 1, "{first:?}");
    // What is damaged is made anew; what is good is used.
    std::fs::write(&first[0], "nonsense")?;
    run()?;
    ensure!(kept()? == first && std::fs::metadata(&first[0])?.len() > 100);
    let before = std::fs::metadata(&first[0])?.modified()?;
    run()?;
    ensure!(std::fs::metadata(&first[0])?.modified()? == before);
    Ok(())
}
