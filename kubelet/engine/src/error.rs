//! What the engine could not do.

use std::path::PathBuf;

use rkube_keeper::plan::Failure;

/// The error of every engine call: the variant is the operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of the engine's own.
    #[error("{what} {}", path.display())]
    File {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel answered.
        source: std::io::Error,
    },
    /// A record on disk that is none.
    #[error("read record {}", path.display())]
    Record {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
    /// An id that cannot name anything.
    #[error("invalid {what} {name:?}: 1 to {limit} characters of a-z, 0-9, '-', '.'")]
    Name {
        /// What it names.
        what: &'static str,
        /// The name.
        name: String,
        /// Most characters.
        limit: usize,
    },
    /// There is no such sandbox.
    #[error("sandbox {0} does not exist")]
    NoSandbox(String),
    /// There is no such container.
    #[error("container {0} does not exist")]
    NoContainer(String),
    /// The container's program does not run.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// A sandbox with another configuration has this id.
    #[error("sandbox {0} exists with another configuration")]
    Differs(String),
    /// The keeper of a sandbox cannot be spoken to.
    #[error("talk to the keeper of {sandbox}: {what}")]
    Keeper {
        /// Which sandbox's.
        sandbox: String,
        /// What was wrong.
        what: String,
    },
    /// A step in the new container, or a request to its keeper.
    #[error("{object}: {failure}")]
    Stage {
        /// Which process.
        object: String,
        /// What was attempted, on what, and what the kernel answered.
        failure: Failure,
    },
    /// Cgroups.
    #[error("cgroup of {object}")]
    Cgroup {
        /// Whose.
        object: String,
        /// What could not be done.
        source: rkube_cgroup::Error,
    },
    /// The pod network.
    #[error("network of {object}")]
    Network {
        /// Whose.
        object: String,
        /// What could not be done.
        source: rkube_netns::Error,
    },
    /// Images, layers, users of an image.
    #[error("image {image}")]
    Image {
        /// Which.
        image: String,
        /// What could not be done.
        source: rkube_image::Error,
    },
    /// The OCI runtime.
    #[error("prepare {object}")]
    Runtime {
        /// What.
        object: String,
        /// Why not.
        source: rkube_runtime::Error,
    },
    /// A kernel without something that every pod needs.
    #[error("this host's kernel lacks {what}")]
    Lacking {
        /// Each with what the user can do.
        what: String,
    },
    /// A configuration that asks for what cannot be.
    #[error("{object}: {what}")]
    Invalid {
        /// Of what.
        object: String,
        /// What is wrong.
        what: String,
    },
    /// Several things went wrong while taking something down; everything was
    /// tried.
    #[error("{}", join(.0))]
    Several(Vec<Error>),
}

/// The engine's results.
pub type Result<T> = std::result::Result<T, Error>;

fn join(errors: &[Error]) -> String {
    let texts: Vec<String> = errors.iter().map(|e| chain(e)).collect();
    texts.join("; ")
}

/// An error with its sources, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

/// One error or several, or none.
pub(crate) fn all(errors: Vec<Error>) -> Result<()> {
    let mut errors = errors;
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(Error::Several(errors)),
    }
}

/// Says what was attempted on a file.
pub(crate) trait OnFile<T> {
    fn on(self, what: &'static str, path: &std::path::Path) -> Result<T>;
}

impl<T> OnFile<T> for std::io::Result<T> {
    fn on(self, what: &'static str, path: &std::path::Path) -> Result<T> {
        self.map_err(|source| Error::File {
            what,
            path: path.to_owned(),
            source,
        })
    }
}

impl<T> OnFile<T> for std::result::Result<T, rustix::io::Errno> {
    fn on(self, what: &'static str, path: &std::path::Path) -> Result<T> {
        self.map_err(|e| Error::File {
            what,
            path: path.to_owned(),
            source: e.into(),
        })
    }
}
