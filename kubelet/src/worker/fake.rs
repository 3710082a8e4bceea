//! An engine of memory for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rkube_engine::api::*;
use rkube_image::pull::{Opened, PullError, PullFailure, PullRequest, PulledImage};
use rkube_image::{Digest, ImportedImage, Reference};

use super::lock;
use crate::manager::EventSink;
use crate::time::Clock;

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct FakeError(String);

/// Containers do what their image says: `run:<seconds>:<code>`, `serve`
/// (until a signal), `stubborn` (until SIGKILL), `broken` (does not execute).
#[derive(Debug)]
pub(super) struct Fake {
    pub(super) inner: Mutex<Inner>,
    pub(super) clock: Clock,
    pub(super) tokio: tokio::runtime::Handle,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) sandboxes: BTreeMap<String, SandboxStatus>,
    pub(super) images: Vec<String>,
    pub(super) pulled: BTreeSet<String>,
    pub(super) calls: Vec<String>,
    pub(super) sink: Option<EventSink>,
    pub(super) configs: Vec<ContainerConfig>,
}

impl Fake {
    pub(super) fn end(&self, id: &ContainerId, code: i32) {
        let mut inner = lock(&self.inner);
        let finished_at = self.clock.now();
        let exit = Exit {
            code,
            signal: None,
            finished_at,
            oom_killed: false,
        };
        let Some(sandbox) = inner.sandboxes.get_mut(&id.sandbox) else {
            return;
        };
        let Some(c) = sandbox.containers.iter_mut().find(|c| c.id == *id) else {
            return;
        };
        if c.state != ContainerState::Running {
            return;
        }
        c.state = ContainerState::Exited(exit.clone());
        let (sink, id) = (inner.sink.clone(), id.clone());
        drop(inner);
        self.tokio.spawn(async move {
            if let Some(sink) = sink {
                sink.send_async(Event::Exited {
                    id,
                    exit: Some(exit),
                })
                .await;
            }
        });
    }

    pub(super) fn call(&self, text: String) {
        lock(&self.inner).calls.push(text);
    }

    pub(super) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.inner).calls)
    }
}

/// The engine as the manager holds it.
#[derive(Debug)]
pub(super) struct Engine(pub(super) Arc<Fake>);

impl ContainerRuntime for Engine {
    type Error = FakeError;

    fn run_sandbox(&self, config: &SandboxConfig) -> Result<SandboxStatus, FakeError> {
        self.0.call("sandbox".into());
        let mut inner = lock(&self.0.inner);
        let number = inner.sandboxes.len() + 2;
        let status = inner
            .sandboxes
            .entry(config.id.clone())
            .or_insert_with(|| SandboxStatus {
                id: config.id.clone(),
                ready: true,
                pause_pid: Some(2),
                keeper_pid: Some(1),
                addresses: vec![format!("10.0.0.{number}").parse().unwrap()],
                created_at: self.0.clock.now(),
                containers: vec![],
                labels: config.labels.clone(),
            });
        Ok(status.clone())
    }

    fn remove_sandbox(&self, id: &SandboxId) -> Result<(), FakeError> {
        self.0.call("remove sandbox".into());
        lock(&self.0.inner).sandboxes.remove(id);
        Ok(())
    }

    fn start_container(&self, config: &ContainerConfig) -> Result<ContainerStatus, FakeError> {
        self.0
            .call(format!("start {}/{}", config.id.name, config.id.attempt));
        if config.image == "broken" {
            return Err(FakeError("exec /none: ENOENT".into()));
        }
        let status = ContainerStatus {
            id: config.id.clone(),
            state: ContainerState::Running,
            pid: Some(42),
            started_at: Some(self.0.clock.now()),
            image_id: "sha256:1".into(),
            log_path: "/l".into(),
            labels: config.labels.clone(),
        };
        let mut inner = lock(&self.0.inner);
        inner.configs.push(config.clone());
        inner
            .sandboxes
            .get_mut(&config.id.sandbox)
            .unwrap()
            .containers
            .push(status.clone());
        drop(inner);
        if let Some(rest) = config.image.strip_prefix("run:") {
            let (seconds, code) = rest.split_once(':').unwrap();
            let (seconds, code) = (seconds.parse().unwrap(), code.parse().unwrap());
            let (fake, id) = (Arc::clone(&self.0), config.id.clone());
            self.0.tokio.spawn(async move {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                fake.end(&id, code);
            });
        }
        Ok(status)
    }

    fn signal(&self, id: &ContainerId, signal: i32, _all: bool) -> Result<(), FakeError> {
        self.0.call(format!("signal {} {signal}", id.name));
        let stubborn = lock(&self.0.inner)
            .configs
            .iter()
            .any(|c| c.id == *id && c.image == "stubborn");
        if signal == 9 || !stubborn {
            self.0.end(id, 128 + signal);
        }
        Ok(())
    }

    fn stop_signal(&self, _id: &ContainerId) -> Result<i32, FakeError> {
        Ok(15)
    }

    fn remove_container(&self, id: &ContainerId) -> Result<(), FakeError> {
        self.0.call(format!("remove {}/{}", id.name, id.attempt));
        if let Some(s) = lock(&self.0.inner).sandboxes.get_mut(&id.sandbox) {
            s.containers.retain(|c| c.id != *id);
        }
        Ok(())
    }

    fn sandbox(&self, id: &SandboxId) -> Result<Option<SandboxStatus>, FakeError> {
        Ok(lock(&self.0.inner).sandboxes.get(id).cloned())
    }

    fn sandboxes(&self) -> Result<Vec<SandboxStatus>, FakeError> {
        Ok(lock(&self.0.inner).sandboxes.values().cloned().collect())
    }

    /// Runs the program on this machine, which is real enough for a probe.
    fn exec(
        &self,
        _id: &ContainerId,
        config: &ExecConfig,
        stdio: Stdio,
    ) -> Result<ExecHandle, FakeError> {
        let child = std::process::Command::new(&config.argv[0])
            .args(&config.argv[1..])
            .stdin(std::process::Stdio::null())
            .stdout(stdio.stdout.unwrap())
            .stderr(stdio.stderr.unwrap())
            .spawn()
            .map_err(|e| FakeError(e.to_string()))?;
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        Ok(ExecHandle {
            pid: child.id(),
            pidfd,
            terminal: None,
            token: u64::from(child.id()),
        })
    }

    fn exec_wait(&self, _id: &ContainerId, handle: &ExecHandle) -> Result<i32, FakeError> {
        let pid = rustix::process::Pid::from_raw(i32::try_from(handle.pid).unwrap()).unwrap();
        let status = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())
            .unwrap()
            .unwrap()
            .1;
        Ok(status
            .exit_status()
            .unwrap_or_else(|| 128 + status.terminating_signal().unwrap_or(0)))
    }

    fn update(&self, id: &ContainerId, resources: &Resources) -> Result<(), FakeError> {
        let memory = resources.memory_limit_bytes;
        self.0
            .call(format!("update {}/{} {memory:?}", id.name, id.attempt));
        match memory {
            // What is in use, as it were.
            Some(limit @ 0..1000) => Err(FakeError(format!("{limit} is in use"))),
            _ => Ok(()),
        }
    }

    fn update_sandbox(&self, _id: &SandboxId, resources: &Resources) -> Result<(), FakeError> {
        let memory = resources.memory_limit_bytes;
        self.0.call(format!("update pod {memory:?}"));
        Ok(())
    }

    fn invalid_image(_: &FakeError) -> bool {
        true
    }

    fn pull_image(&self, request: &PullRequest) -> Result<PulledImage, PullError> {
        let name = request.reference.familiar();
        let mut inner = lock(&self.0.inner);
        inner.calls.push(format!("pull {name}"));
        let fail = |kind, message: &str| PullError {
            kind,
            message: message.into(),
        };
        if name.starts_with("missing") {
            return Err(fail(
                PullFailure::NotFound,
                "the registry has no such image",
            ));
        }
        let credential =
            request.keyrings.iter().enumerate().find_map(|(i, ring)| {
                Some((i, ring.find(&request.reference).first()?.fingerprint()))
            });
        let opened = match credential {
            None if name.starts_with("private") => {
                return Err(fail(PullFailure::Denied, "access denied"));
            }
            None => Opened::Anonymous,
            Some((keyring, fingerprint)) => Opened::Request {
                keyring,
                fingerprint,
            },
        };
        inner.pulled.insert(request.reference.to_string());
        let id = Digest::of(b"image");
        Ok(PulledImage {
            image: ImportedImage {
                id,
                manifest_digest: id,
                references: vec![request.reference.to_string()],
                platform: "linux/amd64".into(),
                layers: 1,
                new_layers: 1,
            },
            opened,
            fetched_bytes: 1,
            endpoint: "registry.test".into(),
        })
    }

    fn image_id(&self, reference: &str) -> Result<Option<String>, FakeError> {
        let inner = lock(&self.0.inner);
        let absent = ["missing", "private"]
            .iter()
            .any(|p| reference.starts_with(p));
        let pulled =
            Reference::parse(reference).is_ok_and(|r| inner.pulled.contains(&r.to_string()));
        let known = inner.images.iter().any(|i| i == reference) || pulled || !absent;
        if known {
            return Ok(Some(Digest::of(b"image").to_string()));
        }
        match Reference::parse(reference) {
            Ok(_) => Ok(None),
            Err(e) => Err(FakeError(e.to_string())),
        }
    }
}
