//! Every field of a process and every command of the OCI command line, seen
//! from the program that gets it.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::oci::bundle;
use crate::case::Case;
use crate::command::{Cmd, Output};
use crate::host::TestHost;
use crate::wait::{WAIT_SECS, until};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("oci::every_field_reaches_the_program", every_field),
        Case::new("oci::every_command_does_its_work", every_command),
        Case::new(
            "oci::nothing_leaks_under_shared_propagation",
            nothing_leaks_under_shared_propagation,
        ),
    ]
}

/// One container of one bundle.
struct Oci<'a> {
    host: &'a TestHost,
    bundle: PathBuf,
    id: String,
}

impl<'a> Oci<'a> {
    fn new(
        host: &'a TestHost,
        args: &[&str],
        edit: impl FnOnce(&mut Value),
    ) -> anyhow::Result<Self> {
        Ok(Self {
            host,
            bundle: bundle(host, args, edit)?,
            id: format!("rkube-fields-{}", std::process::id()),
        })
    }

    fn edit(&self, edit: impl FnOnce(&mut Value)) -> anyhow::Result<()> {
        let path = self.bundle.join("config.json");
        let mut spec: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        edit(&mut spec);
        std::fs::write(path, serde_json::to_vec(&spec)?).context("write the spec")
    }

    /// `rkube oci` with what a shell puts before it.
    fn words(&self, before: &[&str], args: &[&str]) -> anyhow::Result<Vec<String>> {
        let mut all: Vec<String> = before.iter().map(|w| (*w).to_owned()).collect();
        all.push(self.host.program()?.display().to_string());
        all.extend(["oci".to_owned(), "--root".to_owned()]);
        all.push(self.host.root().join("oci").display().to_string());
        all.extend(args.iter().map(|w| (*w).to_owned()));
        Ok(all)
    }

    fn cmd(&self, before: &[&str], args: &[&str]) -> anyhow::Result<Cmd> {
        let words = self.words(before, args)?;
        Ok(Cmd::new(&words[0], &words[1..]))
    }

    fn ok(&self, args: &[&str]) -> anyhow::Result<Output> {
        self.cmd(&[], args)?.ok()
    }

    fn run(&self, flags: &[&str]) -> anyhow::Result<String> {
        let bundle = self.bundle.display().to_string();
        let mut args = vec!["run", "--bundle", &bundle];
        args.extend(flags);
        args.push(&self.id);
        Ok(self.ok(&args)?.stdout)
    }
}

impl Drop for Oci<'_> {
    /// A case that fails leaves no container behind.
    fn drop(&mut self) {
        let _ = self.ok(&["delete", "--force", &self.id]);
    }
}

fn every_field(host: &TestHost) -> anyhow::Result<()> {
    // Fields 19 and 41 of stat are nice and policy (proc(5)).
    const LOOK: &str = "cut -d ' ' -f 19,41 /proc/self/stat; ionice; uname -m; \
        cat /proc/sys/kernel/domainname; echo \"listen $LISTEN_FDS $LISTEN_PID\"; \
        for n in 3 4 5; do [ -e /proc/self/fd/$n ] && echo fd $n; done; cat <&4";
    let oci = Oci::new(host, &["/bin/sh", "-c", LOOK], |spec| {
        spec["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5,
            "flags": ["SCHED_FLAG_RESET_ON_FORK"]});
        spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
        spec["linux"]["personality"] = json!({"domain": "LINUX32"});
        spec["domainname"] = "example.org".into();
    })?;
    let given = host.file("given", "what was given\n")?;
    let script = format!(
        "exec 3</dev/null 4<{}; LISTEN_FDS=1 exec \"$@\"",
        given.display()
    );
    let bundle = oci.bundle.display().to_string();
    let run = [
        "run",
        "--preserve-fds",
        "1",
        "--no-pivot",
        "--bundle",
        &bundle,
        &oci.id,
    ];
    let out = oci.cmd(&["sh", "-c", &script, "sh"], &run)?.ok()?;
    let seen: Vec<&str> = out.stdout.lines().collect();
    // A child of the program's begins anew, as the flag says: nice stays.
    ensure!(
        seen[0] == "5 3" || seen[0] == "0 0" || seen[0] == "5 0",
        "{out}"
    );
    let wanted = [
        "idle",
        "i686",
        "example.org",
        "listen 1 1",
        "fd 3",
        "fd 4",
        "what was given",
    ];
    ensure!(seen[1..] == wanted, "{out}");
    // By the program itself, which is no child.
    oci.edit(|spec| {
        spec["process"]["args"] = json!(["/bin/cut", "-d", " ", "-f", "19,41", "/proc/self/stat"]);
    })?;
    let text = oci.run(&[])?;
    ensure!(text == "5 3\n", "nice and policy: {text}");
    keyrings(&oci)
}

/// A session keyring is made for the container, unless the caller's is asked
/// for.
#[cfg(target_arch = "x86_64")]
fn keyrings(oci: &Oci<'_>) -> anyhow::Result<()> {
    use crate::tracer::{self, Act, End};
    let bundle = oci.bundle.display().to_string();
    let made = |flags: &[&str]| -> anyhow::Result<usize> {
        let mut args = vec!["run", "--bundle", &bundle];
        args.extend(flags);
        args.push(&oci.id);
        let output = tracer::Output {
            stdout: None,
            stderr: None,
        };
        let mut joined = 0;
        let end = tracer::run(&oci.words(&[], &args)?, output, &mut |call| {
            joined += usize::from(call.number == nix::libc::SYS_keyctl);
            Act::Go
        })?;
        ensure!(end == End::Exited(0), "{flags:?}: {end:?}");
        Ok(joined)
    };
    let (own, callers) = (made(&[])?, made(&["--no-new-keyring"])?);
    ensure!(own == 1 && callers == 0, "keyctl {own} and {callers} times");
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn keyrings(_: &Oci<'_>) -> anyhow::Result<()> {
    Ok(())
}

/// The descriptor that comes over a socket, and its name.
fn received(listener: &UnixListener) -> anyhow::Result<(String, OwnedFd)> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let (stream, _) = listener.accept().context("accept")?;
    let mut bytes = [0_u8; 256];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
    let got = recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
        _ => Vec::new(),
    });
    let fd = fds.next().context("no descriptor came")?;
    Ok((
        String::from_utf8_lossy(&bytes[..got.bytes]).into_owned(),
        fd,
    ))
}

/// The container's file of a v1 or v2 controller.
fn group_file(id: &str, name: &str) -> anyhow::Result<String> {
    let top = Path::new("/sys/fs/cgroup");
    let mut tops = vec![top.to_owned()];
    tops.extend(std::fs::read_dir(top)?.flatten().map(|entry| entry.path()));
    let mut files = tops.iter().map(|dir| dir.join(id).join(name));
    let file = files.find(|file| file.exists());
    let file = file.with_context(|| format!("no {name} of {id}"))?;
    Ok(std::fs::read_to_string(file)?.trim().to_owned())
}

fn every_command(host: &TestHost) -> anyhow::Result<()> {
    let oci = Oci::new(host, &["/bin/sh", "-c", "tty; exec sleep 100000"], |spec| {
        spec["process"]["terminal"] = true.into();
    })?;
    let id = oci.id.clone();
    oci.edit(|spec| spec["linux"]["cgroupsPath"] = format!("/{id}").into())?;
    let file = |name: &str| host.files().join(name).display().to_string();
    let (console, pidfd, pid) = (file("console"), file("pidfd"), file("pid"));
    let consoles = UnixListener::bind(&console)?;
    let pidfds = UnixListener::bind(&pidfd)?;
    let bundle = oci.bundle.display().to_string();
    oci.ok(&[
        "create",
        "--bundle",
        &bundle,
        "--console-socket",
        &console,
        "--pidfd-socket",
        &pidfd,
        "--pid-file",
        &pid,
        &id,
    ])?;
    let (name, master) = received(&consoles)?;
    ensure!(name.contains("ptmx") || name.contains("pts"), "{name}");
    let (_, process) = received(&pidfds)?;
    let number: u32 = std::fs::read_to_string(&pid)?.parse()?;
    let state: Value = serde_json::from_str(&oci.ok(&["state", &id])?.stdout)?;
    ensure!(
        state["status"] == "created" && state["pid"] == number,
        "{state}"
    );
    oci.ok(&["start", &id])?;
    let mut said = [0_u8; 64];
    let n = std::fs::File::from(master.try_clone()?).read(&mut said)?;
    let said = String::from_utf8_lossy(&said[..n]).into_owned();
    ensure!(said.starts_with("/dev/"), "no terminal: {said}");
    // ps, in both forms.
    let pids: Vec<u32> = serde_json::from_str(&oci.ok(&["ps", "--format", "json", &id])?.stdout)?;
    ensure!(pids.contains(&number), "{pids:?}");
    if Path::new("/bin/ps").exists() {
        let table = oci.ok(&["ps", &id])?.stdout;
        ensure!(table.contains(&number.to_string()), "{table}");
    }
    let listed = oci.ok(&["list", "--quiet"])?.stdout;
    ensure!(listed.lines().any(|line| line == id), "{listed}");
    freezing(&oci)?;
    limits(&oci)?;
    // A further process with a terminal of its own.
    oci.ok(&[
        "exec",
        "--tty",
        "--detach",
        "--console-socket",
        &console,
        &id,
        "/bin/sh",
        "-c",
        "tty",
    ])?;
    let (_, master) = received(&consoles)?;
    let mut said = [0_u8; 64];
    let n = std::fs::File::from(master).read(&mut said)?;
    ensure!(said[..n].starts_with(b"/dev/"), "{:?}", &said[..n]);
    oci.ok(&["kill", &id, "KILL"])?;
    let mut fds = [rustix::event::PollFd::new(
        &process,
        rustix::event::PollFlags::IN,
    )];
    let limit = rustix::event::Timespec {
        tv_sec: 30,
        tv_nsec: 0,
    };
    ensure!(
        rustix::event::poll(&mut fds, Some(&limit))? == 1,
        "the pidfd names another"
    );
    until(
        "the container to stop",
        Duration::from_secs(WAIT_SECS),
        || {
            let state: Value = serde_json::from_str(&oci.ok(&["state", &id])?.stdout)?;
            Ok((state["status"] == "stopped").then_some(()))
        },
    )?;
    oci.ok(&["delete", &id])?;
    let gone = oci.cmd(&[], &["state", &id])?.exits(1)?;
    ensure!(gone.stderr.contains("does not exist"), "{gone}");
    Ok(())
}

/// pause and resume, as `state` shows them; what is paused takes no exec.
fn freezing(oci: &Oci<'_>) -> anyhow::Result<()> {
    let id = oci.id.as_str();
    let status = || -> anyhow::Result<String> {
        let state: Value = serde_json::from_str(&oci.ok(&["state", id])?.stdout)?;
        Ok(state["status"].as_str().unwrap_or_default().to_owned())
    };
    if oci.cmd(&[], &["pause", id])?.output()?.status.success() {
        ensure!(status()? == "paused", "{}", status()?);
        let refused = oci.cmd(&[], &["exec", id, "/bin/true"])?.exits(255)?;
        ensure!(refused.stderr.contains("paused"), "{refused}");
        oci.ok(&["resume", id])?;
    }
    ensure!(status()? == "running", "{}", status()?);
    Ok(())
}

/// update by flags and by a document; events tell of it.
fn limits(oci: &Oci<'_>) -> anyhow::Result<()> {
    let id = oci.id.as_str();
    oci.ok(&["update", "--pids-limit", "77", id])?;
    ensure!(
        group_file(id, "pids.max")? == "77",
        "{}",
        group_file(id, "pids.max")?
    );
    let document = r#"{"pids": {"limit": 88}, "devices": [{"allow": false, "access": "rwm"}]}"#;
    oci.cmd(&[], &["update", "--resources", "-", id])?
        .stdin(document)
        .ok()?;
    ensure!(
        group_file(id, "pids.max")? == "88",
        "{}",
        group_file(id, "pids.max")?
    );
    oci.ok(&["exec", id, "/bin/sh", "-c", "echo > /dev/null"])?;
    let event: Value = serde_json::from_str(&oci.ok(&["events", "--stats", id])?.stdout)?;
    let limit = &event["data"]["pids"]["limit"];
    ensure!(event["type"] == "stats" && *limit == 88, "{event}");
    Ok(())
}

/// On hosts whose mounts are shared: no mount of a container gets out, nor of
/// one whose create was killed.
fn nothing_leaks_under_shared_propagation(host: &TestHost) -> anyhow::Result<()> {
    let oci = Oci::new(host, &["/bin/sleep", "100000"], |_| ())?;
    let volume = host.files().join("volume");
    std::fs::create_dir(&volume)?;
    oci.edit(|spec| {
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            mounts.push(
                json!({"destination": "/v", "type": "bind", "source": volume,
                "options": ["rbind", "rshared"]}),
            );
            mounts.push(json!({"destination": "/v/below", "type": "tmpfs", "source": "tmpfs"}));
        }
    })?;
    let bundle = oci.bundle.display().to_string();
    let rkube = oci.words(&[], &[])?.join(" ");
    let id = &oci.id;
    // A mount into a shared bind is the host's to see: that is what it is for.
    let script = format!(
        "set -e; count() {{ grep -vc ' {volume}' /proc/self/mountinfo; }}
         before=$(count)
         grep -q ' shared:' /proc/self/mountinfo
         {rkube} create --bundle {bundle} {id} > /dev/null < /dev/null
         created=$(count)
         {rkube} start {id}
         {rkube} exec {id} /bin/true
         during=$(count)
         {rkube} delete --force {id}
         (timeout -s KILL 0.02 {rkube} create --bundle {bundle} {id} > /dev/null < /dev/null) || true
         {rkube} delete --force {id}
         echo $before $created $during $(count)",
        volume = volume.display(),
    );
    let shared = ["-m", "--propagation", "shared", "sh", "-c", &script];
    let out = Cmd::new("unshare", shared).ok()?;
    let last = out.stdout.lines().last().context("no line")?;
    let counts: Vec<&str> = last.split(' ').collect();
    ensure!(
        counts.len() == 4 && counts.iter().all(|c| *c == counts[0]),
        "{out}"
    );
    Ok(())
}
