//! A second node of a test cluster: `rkube agent` in the network namespace
//! outside, with a root of its own beside the test host's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::Signal;

use crate::command::{Cmd, Running};
use crate::host::TestHost;
use crate::leaks;
use crate::net;
use crate::outside::Outside;

/// How long the agent may take to be ready or to end.
const PATIENCE: Duration = Duration::from_secs(90);

/// The node; [`SecondNode::clear`] takes it away.
#[derive(Debug)]
pub struct SecondNode<'a> {
    outside: &'a Outside,
    program: PathBuf,
    root: PathBuf,
    server: String,
    flags: Vec<String>,
    running: Option<Running>,
    said: Vec<String>,
}

impl<'a> SecondNode<'a> {
    /// Its name in the cluster.
    pub const NAME: &'static str = "two";

    /// A node that does not run yet. `flags` are those of each start.
    ///
    /// # Errors
    /// The root cannot be made, or the program is not built.
    pub fn new(host: &TestHost, outside: &'a Outside, flags: &[&str]) -> anyhow::Result<Self> {
        let root = host.files().join(Self::NAME);
        std::fs::create_dir(&root).with_context(|| format!("make {}", root.display()))?;
        Ok(Self {
            outside,
            program: host.program()?.to_owned(),
            root,
            server: format!("https://{}:6443", Outside::HOST_V4),
            flags: flags.iter().map(|f| (*f).to_owned()).collect(),
            running: None,
            said: Vec::new(),
        })
    }

    /// `rkube --root ROOT ARGS...`; it must run outside ([`Outside::run`]).
    pub fn rkube(&self, args: &[&str]) -> Cmd {
        let root = self.root.to_string_lossy();
        let mut all = vec!["--root", &root];
        all.extend(args);
        Cmd::new(&self.program, all).env("RKUBE_LOG", "info")
    }

    /// Its root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Imports an archive of an image.
    ///
    /// # Errors
    /// It is refused.
    pub fn import(&self, archive: &Path, name: &str) -> anyhow::Result<()> {
        let archive = archive.to_string_lossy();
        let import = self.rkube(&["image", "import", &archive, name]);
        self.outside.run(move || import.ok().map(drop))
    }

    /// Starts the agent, by a token where it has not joined yet, and waits
    /// until it is ready.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn start(&mut self, token: Option<&str>) -> anyhow::Result<()> {
        let server = self.server.clone();
        let mut by = vec!["--server", &server];
        if let Some(token) = token {
            by.extend(["--token", token]);
        }
        self.start_by(&by)
    }

    /// As [`SecondNode::start`], told by these flags where its server is.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn start_by(&mut self, by: &[&str]) -> anyhow::Result<()> {
        let mut args = vec!["agent", "--node-name", Self::NAME];
        args.extend(self.flags.iter().map(String::as_str));
        args.extend(by);
        let agent = self.rkube(&args);
        let mut running = self.outside.run(move || agent.spawn())?;
        let ready = running.line("readiness", PATIENCE, |l| l.contains("the agent is ready"));
        self.running = Some(running);
        ready.map(drop)
    }

    /// Ends the agent with a signal; its pods stay.
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub fn stop(&mut self, signal: Signal) -> anyhow::Result<()> {
        let running = self.running.take().context("the agent does not run")?;
        running.signal(signal)?;
        let (status, lines) = running.end(PATIENCE)?;
        self.said.extend(lines);
        ensure!(
            signal == Signal::KILL || status.success(),
            "the agent: {status}"
        );
        Ok(())
    }

    /// The end of a machine: every process of this node is killed at once,
    /// those in its pods too.
    ///
    /// # Errors
    /// The agent does not run.
    pub fn die(&mut self) -> anyhow::Result<()> {
        let running = self.running.take().context("the agent does not run")?;
        // The agent and the keepers, which would start another writer.
        self.outside.run(|| {
            leaks::end_processes(net::own_inode()?);
            Ok(())
        })?;
        leaks::Instance::read(&self.root).kill();
        let (_, lines) = running.end(PATIENCE)?;
        self.said.extend(lines);
        Ok(())
    }

    /// Ends and resets it, and tells what the agent said.
    ///
    /// # Errors
    /// The reset is refused; the message has the words of the agent.
    pub fn clear(mut self) -> (Vec<String>, anyhow::Result<()>) {
        let ended = match self.running {
            Some(_) => self.stop(Signal::TERM),
            None => Ok(()),
        };
        let reset = self.rkube(&["reset", "--force"]).within(PATIENCE);
        let reset = self.outside.run(move || reset.ok().map(drop));
        (std::mem::take(&mut self.said), ended.and(reset))
    }
}
