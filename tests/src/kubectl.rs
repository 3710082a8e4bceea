//! `rkube server` and the real kubectl in a test host.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::case::skip;
use crate::command::{Cmd, Output, Running};
use crate::debian;
use crate::host::TestHost;
use crate::wait::until;

/// How long a server may take to be ready.
const READY: Duration = Duration::from_secs(60);
/// How long one command of kubectl may take.
const COMMAND: Duration = Duration::from_secs(60);
/// How long things in the cluster may take.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long a server may take to end.
const END: Duration = Duration::from_secs(30);

/// Minor releases of kubectl that are looked for, the newest first.
const NEWEST: [u32; 4] = [33, 32, 31, 30];

/// The kubectl in the search path.
fn in_path() -> Option<PathBuf> {
    std::env::var_os("PATH")
        .into_iter()
        .flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
        .map(|dir| dir.join("kubectl"))
        .find(|path| path.is_file())
}

/// The kubectl of a minor release, beside what another one links to.
fn beside(program: &Path, minor: u32) -> Option<PathBuf> {
    let real = program.canonicalize().ok()?;
    let path = real.with_file_name(format!("kubectl.1.{minor}"));
    path.is_file().then_some(path)
}

/// A server that runs; killed when dropped.
#[derive(Debug)]
pub struct Server {
    running: Running,
}

/// kubectl with the administrator's configuration.
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: PathBuf,
    config: PathBuf,
    home: PathBuf,
}

impl TestHost {
    /// Starts `rkube server` and waits until it is ready.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn server(&self, flags: &[&str]) -> anyhow::Result<(Server, Kubectl)> {
        let kubectl = Kubectl::find(self)?;
        let mut args = vec!["server", "--node-name", "one"];
        args.extend(flags);
        let mut running = self.rkube(args)?.env("RKUBE_LOG", "info").spawn()?;
        running.line("readiness", READY, |l| l.contains("the server is ready"))?;
        Ok((Server { running }, kubectl))
    }
}

impl Server {
    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Ends it in good order.
    ///
    /// # Errors
    /// It does not end, or not well.
    pub fn end(self) -> anyhow::Result<()> {
        self.running.signal(Signal::TERM)?;
        let (status, lines) = self.running.end(END)?;
        ensure!(status.success(), "{status}:\n{}", lines.join("\n"));
        Ok(())
    }

    /// Kills it.
    ///
    /// # Errors
    /// It does not end.
    pub fn kill(self) -> anyhow::Result<()> {
        self.running.signal(Signal::KILL)?;
        self.running.end(END).map(drop)
    }
}

impl Kubectl {
    /// The newest that lies beside the one in the path, by its full name:
    /// what `kubectl` links to may choose another version by itself.
    fn find(host: &TestHost) -> anyhow::Result<Kubectl> {
        let program = in_path().ok_or_else(|| skip("kubectl is not installed"))?;
        let newest = NEWEST.iter().find_map(|minor| beside(&program, *minor));
        Ok(Kubectl {
            program: newest.unwrap_or(program),
            config: host.root().join("etc/rkube/admin.conf"),
            home: host.files().to_owned(),
        })
    }

    /// The same client of another minor release, with a cache of its own.
    ///
    /// # Errors
    /// It is not installed, which skips the case.
    pub fn of(&self, minor: u32) -> anyhow::Result<Kubectl> {
        let program = match minor {
            // Debian's, unpacked beside: never installed over a newer one.
            20 => debian::unpacked("kubernetes-client")
                .map(|tree| tree.join("usr/bin/kubectl"))
                .map_err(|e| skip(format!("kubectl 1.20 cannot be had: {e:#}")))?,
            _ => in_path()
                .and_then(|program| beside(&program, minor))
                .ok_or_else(|| skip(format!("kubectl 1.{minor} is not installed")))?,
        };
        let home = self.home.join(format!("home-{minor}"));
        std::fs::create_dir_all(&home).with_context(|| format!("make {}", home.display()))?;
        Ok(Kubectl {
            program,
            config: self.config.clone(),
            home,
        })
    }

    /// `kubectl ARGS...` with a terminal (script(1)).
    pub fn on_terminal(&self, args: &[&str]) -> Cmd {
        let quoted: Vec<String> = std::iter::once(&*self.program.to_string_lossy())
            .chain(args.iter().copied())
            .map(|word| format!("'{word}'"))
            .collect();
        self.with_home(Cmd::new("script", ["-qec", &quoted.join(" "), "/dev/null"]))
    }

    /// `kubectl ARGS...`, with a cache of its own.
    pub fn cmd(&self, args: &[&str]) -> Cmd {
        self.with_home(Cmd::new(&self.program, args))
    }

    fn with_home(&self, command: Cmd) -> Cmd {
        command
            .env("KUBECONFIG", &self.config)
            .env("HOME", &self.home)
            .within(COMMAND)
    }

    /// Runs a line of words; it must succeed. Its output, both streams.
    ///
    /// # Errors
    /// It fails.
    pub fn line(&self, words: &str) -> anyhow::Result<String> {
        let args: Vec<&str> = words.split_whitespace().collect();
        let output = self.run(&args)?;
        Ok(output.stdout + &output.stderr)
    }

    /// Runs a line of words that must succeed and print `expected`.
    ///
    /// # Errors
    /// It fails, or prints something else.
    pub fn says(&self, words: &str, expected: &str) -> anyhow::Result<String> {
        let said = self.line(words)?;
        ensure!(
            said.contains(expected),
            "kubectl {words}: no {expected:?} in:\n{said}"
        );
        Ok(said)
    }

    /// Runs a line of words that must fail and print `expected`.
    ///
    /// # Errors
    /// It succeeds, or prints something else.
    pub fn refuses(&self, words: &str, expected: &str) -> anyhow::Result<()> {
        let args: Vec<&str> = words.split_whitespace().collect();
        let output = self.cmd(&args).output()?;
        ensure!(!output.status.success(), "kubectl {words}: succeeds");
        ensure!(
            output.stderr.contains(expected),
            "kubectl {words}: no {expected:?} in:\n{output}"
        );
        Ok(())
    }

    /// Runs it; it must succeed.
    ///
    /// # Errors
    /// It fails.
    pub fn run(&self, args: &[&str]) -> anyhow::Result<Output> {
        self.cmd(args).ok()
    }

    /// Applies objects.
    ///
    /// # Errors
    /// It fails.
    pub fn apply(&self, objects: &[Value]) -> anyhow::Result<Output> {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.cmd(&["apply", "-f", "-"]).stdin(list.to_string()).ok()
    }

    /// One object, or a list.
    ///
    /// # Errors
    /// It is not there.
    pub fn get(&self, args: &[&str]) -> anyhow::Result<Value> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(args);
        self.run(&all)?.json()
    }

    /// Waits until `kubectl get ARGS -o json` shows what is wanted.
    ///
    /// # Errors
    /// It does not in time; what it shows then is told.
    pub fn wait(
        &self,
        what: &str,
        args: &[&str],
        wanted: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let mut last = Value::Null;
        let found = until(what, PATIENCE, || {
            // Not there yet is no failure.
            if let Ok(seen) = self.get(args) {
                last = seen;
                if wanted(&last) {
                    return Ok(Some(last.clone()));
                }
            }
            Ok(None)
        });
        found.with_context(|| {
            let events = self.run(&["get", "events", "-A"]);
            let events = events.map(|o| o.stdout).unwrap_or_default();
            format!("{args:?} shows {last:#}\nevents:\n{events}")
        })
    }
}
