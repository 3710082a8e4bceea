//! The engine as pod workers see it.

use rkube_image::pull::{PullError, PullFailure, PullRequest, PulledImage};

use crate::api::{
    ContainerConfig, ContainerId, ContainerRuntime, ContainerStatus, ExecConfig, ExecHandle,
    Resources, SandboxConfig, SandboxId, SandboxStatus, Stdio,
};
use crate::engine::Engine;
use crate::error::{Error, chain};
use crate::link::lock;

/// An engine error as pod workers put it into statuses and events: the whole
/// chain in one line.
#[derive(Debug, thiserror::Error)]
#[error("{}", chain(.0))]
pub struct RuntimeError(pub Error);

impl From<Error> for RuntimeError {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

type Result<T> = std::result::Result<T, RuntimeError>;

impl ContainerRuntime for Engine {
    type Error = RuntimeError;

    fn refuses(error: &RuntimeError) -> bool {
        matches!(error.0, Error::Invalid { .. })
    }

    fn invalid_image(error: &RuntimeError) -> bool {
        let Error::Image { source, .. } = &error.0 else {
            return false;
        };
        matches!(source, rkube_image::Error::InvalidReference { .. })
    }

    fn lost(error: &RuntimeError) -> bool {
        matches!(error.0, Error::Keeper { .. })
    }

    fn run_sandbox(&self, config: &SandboxConfig) -> Result<SandboxStatus> {
        Ok(self.inner.run_sandbox(config)?)
    }

    fn remove_sandbox(&self, id: &SandboxId) -> Result<()> {
        Ok(self.inner.remove_sandbox(id)?)
    }

    fn start_container(&self, config: &ContainerConfig) -> Result<ContainerStatus> {
        Ok(self.inner.start_container(config)?)
    }

    fn signal(&self, id: &ContainerId, signal: i32, all: bool) -> Result<()> {
        Ok(self.inner.signal(id, signal, all)?)
    }

    fn stop_signal(&self, id: &ContainerId) -> Result<i32> {
        let cell = self.inner.find(&id.sandbox)?;
        let state = lock(&cell.state);
        let container = state.containers.get(id);
        container
            .map(|c| c.record.stop_signal)
            .ok_or_else(|| Error::NoContainer(id.to_string()).into())
    }

    fn remove_container(&self, id: &ContainerId) -> Result<()> {
        Ok(self.inner.remove_container(id)?)
    }

    fn sandbox(&self, id: &SandboxId) -> Result<Option<SandboxStatus>> {
        Ok(self
            .inner
            .find(id)
            .ok()
            .map(|cell| self.inner.status_of(&cell)))
    }

    fn sandboxes(&self) -> Result<Vec<SandboxStatus>> {
        Ok(self.inner.statuses())
    }

    fn exec(&self, id: &ContainerId, config: &ExecConfig, stdio: Stdio) -> Result<ExecHandle> {
        Ok(self.inner.exec(id, config, stdio)?)
    }

    fn exec_wait(&self, id: &ContainerId, handle: &ExecHandle) -> Result<i32> {
        Ok(self.inner.exec_wait(id, handle))
    }

    fn update(&self, id: &ContainerId, resources: &Resources) -> Result<()> {
        Ok(self.inner.update(id, resources)?)
    }

    fn update_sandbox(&self, id: &SandboxId, resources: &Resources) -> Result<()> {
        Ok(self.inner.update_sandbox(id, resources)?)
    }

    fn image_id(&self, reference: &str) -> Result<Option<String>> {
        match self.inner.store.resolve(reference) {
            Ok(image) => Ok(Some(image.id.to_string())),
            Err(rkube_image::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(RuntimeError(Error::Image {
                image: reference.to_owned(),
                source,
            })),
        }
    }

    fn pull_image(&self, request: &PullRequest) -> std::result::Result<PulledImage, PullError> {
        let Some(puller) = self.inner.puller.get() else {
            return Err(PullError {
                kind: PullFailure::Other,
                message:
                    "this engine has no registry client; add the image with `rkube image import`"
                        .into(),
            });
        };
        let pulled = puller.pull(&self.inner.store, request)?;
        // The pod does not wait for the disk.
        self.inner.tidy_images();
        Ok(pulled)
    }
}
