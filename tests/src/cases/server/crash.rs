//! A server that is killed, and disks that are full or fail: what was
//! answered is there, and what cannot be done is said.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::nodes::life_of;
use super::{PATIENCE, bound, is_running};
use crate::command::{Cmd, Running};
use crate::host::TestHost;
use crate::kubectl::Kubectl;
use crate::outside::Outside;
use crate::pods::tool;
use crate::wait::until;

/// How often the server is killed.
const KILLS: u32 = 6;
/// Clients that create objects all the time.
const WRITERS: u32 = 4;
/// Objects that they must have had answers for before a kill.
const BEFORE_A_KILL: usize = 60;

/// A plain HTTP door to the server (`kubectl proxy`), which outlives it.
struct Door {
    address: SocketAddr,
    _proxy: Running,
}

impl Door {
    fn open(kubectl: &Kubectl) -> anyhow::Result<Self> {
        let mut proxy = kubectl.cmd(&["proxy", "--port=0"]).spawn()?;
        let line = proxy.line("its port", PATIENCE, |l| l.contains("Starting to serve on"))?;
        let address = line.split(' ').find_map(|word| word.parse().ok());
        Ok(Self {
            address: address.with_context(|| format!("no address in {line:?}"))?,
            _proxy: proxy,
        })
    }
}

/// One request; status and body of the answer.
fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> anyhow::Result<(u16, Value)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    // HTTP/1.0: the body ends with the connection.
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
    let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
    let body = serde_json::from_str(body).unwrap_or_default();
    Ok((status.context("no status")?, body))
}

fn revision(object: &Value) -> u64 {
    let text = object["metadata"]["resourceVersion"].as_str();
    text.and_then(|t| t.parse().ok()).unwrap_or(0)
}

/// Creates objects until it is told to stop; those that were answered, with
/// their revisions.
fn create(
    address: SocketAddr,
    name: &str,
    over: &AtomicBool,
    seen: &dyn Fn(),
) -> Vec<(String, u64)> {
    let mut done = Vec::new();
    for number in 0.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("{name}-{number}");
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name}, "data": {"text": "x".repeat(500)}});
        let path = "/api/v1/namespaces/default/configmaps";
        // What is not answered may or may not be there.
        if let Ok((201, made)) = ask(address, "POST", path, &object.to_string()) {
            done.push((name, revision(&made)));
            seen();
        }
    }
    done
}

/// SIGKILL again and again while clients write: every answered write is
/// there, no revision names two writes, and pods do not notice.
pub(super) fn killed_under_load(host: &TestHost) -> anyhow::Result<()> {
    let _outside = Outside::join()?;
    let (mut server, kubectl) = host.server(&[])?;
    kubectl.apply(&[bound("p", tool("a", &["sleep", "100000"]))])?;
    kubectl.wait("a running pod", &["pod", "p"], is_running)?;
    let life = life_of(host, "p", "a")?;
    let door = Door::open(&kubectl)?;
    let address = door.address;
    let mut answered: BTreeMap<String, u64> = BTreeMap::new();
    let mut newest = 0;
    for kill in 0..KILLS {
        let over = AtomicBool::new(false);
        let count = std::sync::atomic::AtomicUsize::new(0);
        let written = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let (over, count) = (&over, &count);
                    scope.spawn(move || {
                        let seen = || {
                            count.fetch_add(1, Ordering::Relaxed);
                        };
                        create(address, &format!("c{kill}-{writer}"), over, &seen)
                    })
                })
                .collect();
            let enough = until("writes before a kill", PATIENCE, || {
                Ok((count.load(Ordering::Relaxed) >= BEFORE_A_KILL).then_some(()))
            });
            let killed = enough.and_then(|()| server.kill());
            over.store(true, Ordering::Relaxed);
            let written: Vec<(String, u64)> = writers
                .into_iter()
                .flat_map(|w| w.join().unwrap_or_default())
                .collect();
            killed.map(|()| written)
        })?;
        for (name, revision) in written {
            ensure!(
                revision > newest,
                "{name}: revision {revision} was used before ({newest})"
            );
            answered.insert(name, revision);
        }
        server = host.server(&[])?.0;
        let list = kubectl.get(&["configmaps"])?;
        let found: BTreeMap<&str, u64> = list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|o| {
                (
                    o["metadata"]["name"].as_str().unwrap_or_default(),
                    revision(o),
                )
            })
            .collect();
        for (name, revision) in &answered {
            ensure!(
                found.get(name.as_str()) == Some(revision),
                "kill {kill}: {name} was answered at {revision}, found {:?}",
                found.get(name.as_str())
            );
        }
        let revisions: BTreeSet<u64> = found.values().copied().collect();
        ensure!(revisions.len() == found.len(), "one revision, two writes");
        let path = "/api/v1/namespaces/default/configmaps?limit=1";
        newest = revision(&ask(address, "GET", path, "")?.1);
        ensure!(life.runs(), "kill {kill}: the pod's process is gone");
    }
    println!(
        "{} writes were answered before {KILLS} kills",
        answered.len()
    );
    let pod = kubectl.wait("the pod", &["pod", "p"], is_running)?;
    ensure!(
        pod["status"]["containerStatuses"][0]["restartCount"] == 0,
        "{:#}",
        pod["status"]
    );
    ensure!(life_of(host, "p", "a")? == life, "the pod was made anew");
    kubectl.run(&["delete", "pod", "p"])?;
    server.end()
}

/// A file system of its own for the server's store.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(at: &'a Path, bytes: u64) -> anyhow::Result<Self> {
        std::fs::create_dir_all(at).with_context(|| format!("make {}", at.display()))?;
        let size = std::ffi::CString::new(format!("size={bytes}"))?;
        mount("none", at, "tmpfs", MountFlags::empty(), size.as_c_str())
            .with_context(|| format!("mount a tmpfs on {}", at.display()))?;
        Ok(Self(at))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        // What stays mounted is found by the suite.
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

/// A ConfigMap of about a mebibyte.
fn large(host: &TestHost, name: &str) -> anyhow::Result<String> {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
        "data": {"text": "x".repeat(1_000_000)}});
    let path = host.file(&format!("{name}.json"), object.to_string())?;
    Ok(path.to_string_lossy().into_owned())
}

/// A disk that is full: writes are refused with the reason, reads and pods go
/// on, and once there is room the next write succeeds.
pub(super) fn a_full_disk(host: &TestHost) -> anyhow::Result<()> {
    let _outside = Outside::join()?;
    let store = host.root().join("var/lib/rkube/store");
    let disk = SmallDisk::mount(&store, 96 << 20)?;
    let (server, kubectl) = host.server(&[])?;
    kubectl.apply(&[bound("p", tool("a", &["sleep", "100000"]))])?;
    kubectl.wait("a running pod", &["pod", "p"], is_running)?;
    let life = life_of(host, "p", "a")?;
    // Somebody else's file takes all that is left.
    let foreign = store.join("foreign");
    let mut file = std::fs::File::create(&foreign)?;
    let block = vec![1_u8; 1 << 20];
    while file.write_all(&block).is_ok() {}
    let mut made = Vec::new();
    let refused = until("a refused write", PATIENCE, || {
        let name = format!("large-{}", made.len());
        let output = kubectl
            .cmd(&["create", "-f", &large(host, &name)?])
            .output()?;
        if output.status.success() {
            made.push(name);
            return Ok(None);
        }
        Ok(Some(output.stderr))
    })?;
    ensure!(
        refused.contains("no space left for the store's log"),
        "{refused}"
    );
    for name in &made {
        kubectl.run(&["get", "configmap", name, "-o", "name"])?;
    }
    ensure!(life.runs(), "the pod's process is gone");
    std::fs::remove_file(&foreign)?;
    drop(file);
    kubectl.run(&["create", "configmap", "small", "--from-literal=k=v"])?;
    server.kill()?;
    let (server, kubectl) = host.server(&[])?;
    made.push("small".to_owned());
    for name in &made {
        kubectl.run(&["get", "configmap", name, "-o", "name"])?;
    }
    ensure!(life.runs(), "the pod's process is gone");
    kubectl.run(&["delete", "pod", "p"])?;
    server.end()?;
    drop(disk);
    Ok(())
}

/// A disk that does not sync (EIO, by strace's injection): the write is told
/// to be unconfirmed, later ones are refused, reads and pods go on, and a
/// restart has all that was answered.
pub(super) fn a_failing_disk(host: &TestHost) -> anyhow::Result<()> {
    let _outside = Outside::join()?;
    let (server, kubectl) = host.server(&[])?;
    kubectl.apply(&[bound("p", tool("a", &["sleep", "100000"]))])?;
    kubectl.wait("a running pod", &["pod", "p"], is_running)?;
    kubectl.run(&["create", "configmap", "before", "--from-literal=k=v"])?;
    let pid = server.pid().to_string();
    let inject = [
        "-f",
        "-p",
        &pid,
        "-e",
        "trace=fdatasync,fsync",
        "-e",
        "inject=fdatasync,fsync:error=EIO",
    ];
    let mut strace = Cmd::new("strace", inject).spawn()?;
    strace.line("its hold", PATIENCE, |l| l.contains("attached"))?;
    let refused = until("a refused write", PATIENCE, || {
        let output = kubectl
            .cmd(&["create", "configmap", "unsure", "--from-literal=k=v"])
            .output()?;
        // A few threads may be held a little later than the first.
        if output.status.success() {
            kubectl.run(&["delete", "configmap", "unsure"])?;
            return Ok(None);
        }
        Ok(Some(output.stderr))
    })?;
    ensure!(
        refused.contains("did not confirm the write") || refused.contains("read-only since"),
        "{refused}"
    );
    strace.signal(Signal::TERM)?;
    strace.end(PATIENCE)?;
    kubectl.refuses(
        "create configmap later --from-literal=k=v",
        "read-only since an I/O error",
    )?;
    kubectl.run(&["get", "configmap", "before", "-o", "name"])?;
    let life = life_of(host, "p", "a")?;
    server.kill()?;
    let (server, kubectl) = host.server(&[])?;
    kubectl.run(&["get", "configmap", "before", "-o", "name"])?;
    kubectl.refuses("get configmap later", "NotFound")?;
    kubectl.run(&["create", "configmap", "later", "--from-literal=k=v"])?;
    ensure!(life.runs(), "the pod's process is gone");
    kubectl.run(&["delete", "pod", "p"])?;
    server.end()
}
