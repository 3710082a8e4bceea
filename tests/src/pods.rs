//! What cases say to `rkube` about pods, and what they look up of them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::command::{Cmd, Output};
use crate::host::TestHost;
use crate::wait::{WAIT_SECS, until};

/// The image that the program carries.
pub const TOOLBOX: &str = "rkube.local/toolbox";

/// A container of the built-in image.
pub fn tool(name: &str, command: &[&str]) -> Value {
    json!({"name": name, "image": TOOLBOX, "command": command})
}

/// A container that runs applets in a row: `"echo a; exit 3"`.
pub fn script(name: &str, text: &str) -> Value {
    tool(name, &["run", text])
}

/// A pod that is not restarted and may be ended within a second.
pub fn pod(name: &str, containers: &[Value]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": containers},
    })
}

/// Sets or replaces fields of an object: `with(pod, "spec", json!({...}))`.
/// The path is of names and numbers, with dots between.
pub fn with(mut object: Value, path: &str, fields: Value) -> Value {
    let mut at = &mut object;
    for step in path.split('.').filter(|s| !s.is_empty()) {
        at = match step.parse::<usize>() {
            Ok(number) => &mut at[number],
            Err(_) => &mut at[step],
        };
    }
    if let Value::Object(fields) = fields {
        for (name, value) in fields {
            at[name] = value;
        }
    }
    object
}

/// The lines that a container wrote, in the output of a foreground run.
pub fn said(output: &Output, container: &str) -> Vec<String> {
    let lines = output.stdout.lines().filter_map(|line| {
        let (name, text) = line.split_once(" |")?;
        (name.trim_end() == container).then(|| text.strip_prefix(' ').unwrap_or(text).to_owned())
    });
    lines.collect()
}

/// A container's status in a pod, whatever its kind.
pub fn status<'a>(pod: &'a Value, container: &str) -> &'a Value {
    ["initContainerStatuses", "containerStatuses"]
        .into_iter()
        .filter_map(|kind| pod["status"][kind].as_array())
        .flatten()
        .find(|s| s["name"] == container)
        .unwrap_or(&Value::Null)
}

/// A process and its start, which no other process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// On the host.
    pub pid: u32,
    /// Clock ticks after boot.
    pub started: u64,
}

impl Life {
    /// Of the process that now has this pid.
    ///
    /// # Errors
    /// There is none.
    pub fn of(pid: u32) -> anyhow::Result<Life> {
        let path = format!("/proc/{pid}/stat");
        let stat = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        // Field 22 of proc(5); the name in field 2 ends with the last parenthesis.
        let (_, tail) = stat.rsplit_once(')').context("no name in stat")?;
        let started = tail.split_whitespace().nth(19).context("a short stat")?;
        Ok(Life {
            pid,
            started: started.parse()?,
        })
    }

    /// Whether it still runs (a zombie does not).
    pub fn runs(&self) -> bool {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok();
        let zombie =
            state.is_some_and(|s| s.rsplit_once(") ").is_some_and(|(_, t)| t.starts_with('Z')));
        !zombie && Life::of(self.pid).is_ok_and(|now| now == *self)
    }

    /// `kill -9`, and waits for its end.
    ///
    /// # Errors
    /// It had ended, or it does not end.
    pub fn kill(&self) -> anyhow::Result<()> {
        ensure!(self.runs(), "process {} has ended already", self.pid);
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.pid)?).context("pid 0")?;
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)
            .with_context(|| format!("kill {}", self.pid))?;
        until(
            "a killed process to end",
            Duration::from_secs(WAIT_SECS),
            || Ok((!self.runs()).then_some(())),
        )
    }
}

/// The parent of a process.
///
/// # Errors
/// It has ended.
pub fn parent(pid: u32) -> anyhow::Result<u32> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find_map(|l| l.strip_prefix("PPid:"));
    Ok(line.context("no PPid")?.trim().parse()?)
}

impl TestHost {
    /// Writes objects into a file as one `List`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn manifest(&self, objects: &[Value]) -> anyhow::Result<PathBuf> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("manifest-{}.json", COUNT.fetch_add(1, Ordering::Relaxed));
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.file(&name, serde_json::to_vec_pretty(&list)?)
    }

    /// `rkube run -f` of these objects, in the foreground.
    ///
    /// # Errors
    /// The file cannot be written, or the program is not built.
    pub fn run(&self, objects: &[Value]) -> anyhow::Result<Cmd> {
        let file = self.manifest(objects)?;
        self.rkube([Path::new("run"), Path::new("-f"), &file])
    }

    /// Runs the objects in the foreground to a good end, and gives the output.
    ///
    /// # Errors
    /// A container failed.
    pub fn ran(&self, objects: &[Value]) -> anyhow::Result<Output> {
        self.run(objects)?.ok()
    }

    /// What the only container of a pod says until it ends well.
    ///
    /// # Errors
    /// It failed.
    pub fn lines_of(&self, pod: Value) -> anyhow::Result<Vec<String>> {
        let name = pod["spec"]["containers"][0]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        Ok(said(&self.ran(&[pod])?, &name))
    }

    /// `rkube run --detach -f` of these objects.
    ///
    /// # Errors
    /// They do not come up.
    pub fn up(&self, objects: &[Value]) -> anyhow::Result<Output> {
        let file = self.manifest(objects)?;
        self.rkube([
            Path::new("run"),
            Path::new("--detach"),
            Path::new("-f"),
            &file,
        ])?
        .ok()
    }

    /// The pod as the writer sees it.
    ///
    /// # Errors
    /// There is none of the name.
    pub fn inspect(&self, pod: &str) -> anyhow::Result<Value> {
        self.rkube(["inspect", pod, "-o", "json"])?.ok()?.json()
    }

    /// Waits until the pod satisfies `wanted`.
    ///
    /// # Errors
    /// It does not; the last state is shown.
    pub fn wait_pod(
        &self,
        pod: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let mut last = Value::Null;
        let found = until(what, Duration::from_secs(WAIT_SECS), || {
            last = self.inspect(pod)?;
            Ok(wanted(&last).then(|| last.clone()))
        });
        found.with_context(|| format!("{pod} is {:#}", last["status"]))
    }

    /// `rkube exec POD -- ARGV`.
    ///
    /// # Errors
    /// The program is not built.
    pub fn exec(&self, pod: &str, argv: &[&str]) -> anyhow::Result<Cmd> {
        self.rkube(["exec", pod, "--"].iter().chain(argv))
    }

    /// What a program in the pod's first container prints.
    ///
    /// # Errors
    /// It fails.
    pub fn tell(&self, pod: &str, argv: &[&str]) -> anyhow::Result<String> {
        Ok(self.exec(pod, argv)?.ok()?.stdout)
    }

    /// The events of a pod.
    ///
    /// # Errors
    /// They cannot be listed.
    pub fn events(&self, pod: &str) -> anyhow::Result<Vec<Value>> {
        let list = self.rkube(["events", pod, "-o", "json"])?.ok()?.json()?;
        list["items"].as_array().cloned().context("no items")
    }

    /// Waits for an event of this reason, and gives it.
    ///
    /// # Errors
    /// None comes.
    pub fn wait_event(&self, pod: &str, reason: &str) -> anyhow::Result<Value> {
        until(
            &format!("an event {reason}"),
            Duration::from_secs(WAIT_SECS),
            || {
                Ok(self
                    .events(pod)?
                    .into_iter()
                    .find(|e| e["reason"] == reason))
            },
        )
    }

    /// The namespaces of a pod's processes, as `rkube lsns` tells them.
    ///
    /// # Errors
    /// They cannot be listed.
    pub fn namespaces(&self, pod: &str) -> anyhow::Result<Vec<Value>> {
        let rows = self.rkube(["lsns", "-o", "json"])?.ok()?.json()?;
        let rows = rows.as_array().context("lsns gives no list")?;
        Ok(rows.iter().filter(|r| r["pod"] == pod).cloned().collect())
    }

    /// A process of a pod: `pause` or a container's name.
    ///
    /// # Errors
    /// It does not run.
    pub fn life(&self, pod: &str, process: &str) -> anyhow::Result<Life> {
        let rows = self.namespaces(pod)?;
        let pid = rows
            .iter()
            .find(|r| r["process"] == process)
            .and_then(|r| r["pid"].as_u64());
        Life::of(u32::try_from(pid.with_context(|| {
            format!("{pod} has no process {process}: {rows:?}")
        })?)?)
    }

    /// A pod's keeper: the parent of its pause process.
    ///
    /// # Errors
    /// The pod does not run.
    pub fn keeper(&self, pod: &str) -> anyhow::Result<Life> {
        let keeper = Life::of(parent(self.life(pod, "pause")?.pid)?)?;
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", keeper.pid))?;
        ensure!(
            comm.trim() == "rkube-keeper",
            "the parent of pause is {comm}"
        );
        Ok(keeper)
    }

    /// The supervisor that serves this root, if one runs.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn supervisor(&self) -> anyhow::Result<Option<Life>> {
        let root = self.root().to_string_lossy().into_owned();
        for entry in std::fs::read_dir("/proc").context("list /proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|n| n.parse::<u32>().ok()) else {
                continue;
            };
            // It may end while it is looked at.
            let Ok(bytes) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
                continue;
            };
            let words: Vec<&[u8]> = bytes.split(|b| *b == 0).collect();
            let is = |word: &str| words.contains(&word.as_bytes());
            if is("supervisor")
                && is("--serve")
                && is(&root)
                && let Ok(life) = Life::of(pid)
            {
                return Ok(Some(life));
            }
        }
        Ok(None)
    }

    /// Removes pods at once.
    ///
    /// # Errors
    /// It is refused.
    pub fn rm(&self, pods: &[&str]) -> anyhow::Result<Output> {
        self.rkube(["rm", "--force"].iter().chain(pods))?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_set_by_path() {
        let made = with(
            pod("p", &[tool("a", &["true"])]),
            "spec.containers.0",
            json!({"tty": true}),
        );
        assert_eq!(made["spec"]["containers"][0]["tty"], true);
        assert_eq!(made["spec"]["containers"][0]["name"], "a");
    }

    #[test]
    fn a_life_ends() {
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let life = Life::of(child.id()).unwrap();
        assert!(life.runs());
        life.kill().unwrap();
        child.wait().unwrap();
        assert!(!life.runs());
    }
}
