//! Images made from the files of a root file system.

use std::io::Read;
use std::os::fd::OwnedFd;

use serde_json::json;

use super::staging::{Staged, Staging};
use super::{Config, ImportOptions, docker};
use crate::error::Result;
use crate::tarwrite;

/// The configuration of an image made from a root file system.
#[derive(Debug, Clone, Default)]
pub struct RootfsConfig {
    /// Program and first arguments that users rarely replace.
    pub entrypoint: Vec<String>,
    /// Default arguments, or the program if there is no entry point.
    pub cmd: Vec<String>,
    /// `NAME=value`; a `PATH` is added if there is none.
    pub env: Vec<String>,
    /// Working directory.
    pub workdir: Option<String>,
    /// `user[:group]`.
    pub user: Option<String>,
    /// Labels.
    pub labels: Vec<(String, String)>,
}

/// As Docker gives to images without one.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// From an archive, compressed or not.
pub(crate) fn import(
    staging: &Staging<'_>,
    src: impl Read + Send,
    opts: &ImportOptions,
) -> Result<Staged> {
    let (record, how) = staging.layer("0 (root file system)", src, None, None)?;
    // No creation time: the same tree gives the same image id.
    let mut config = json!({
        "architecture": opts.platform.architecture,
        "os": opts.platform.os,
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [record.diff_id]},
        "history": [{"created_by": "rkube image import"}],
    });
    if let Some(v) = &opts.platform.variant {
        config["variant"] = json!(v);
    }
    let r = &opts.rootfs;
    let c = &mut config["config"];
    let mut env = r.env.clone();
    if !env.iter().any(|e| e.starts_with("PATH=")) {
        env.insert(0, DEFAULT_PATH.into());
    }
    c["Env"] = json!(env);
    if !r.entrypoint.is_empty() {
        c["Entrypoint"] = json!(r.entrypoint);
    }
    if !r.cmd.is_empty() {
        c["Cmd"] = json!(r.cmd);
    }
    if let Some(w) = &r.workdir {
        c["WorkingDir"] = json!(w);
    }
    if let Some(u) = &r.user {
        c["User"] = json!(u);
    }
    if !r.labels.is_empty() {
        let map: serde_json::Map<_, _> = r
            .labels
            .iter()
            .map(|(k, v)| (k.clone(), json!(v)))
            .collect();
        c["Labels"] = json!(map);
    }
    let config = Config::parse(config.to_string().into_bytes(), "configuration")?;
    let described = [(record.clone(), how.media_type())];
    docker::stage(staging, config, vec![record], &described, Vec::new())
}

/// From a directory: it is written as an archive into a pipe and imported
/// from there, so that it gets a blob like any other.
pub(crate) fn import_directory(
    staging: &Staging<'_>,
    dir: OwnedFd,
    opts: &ImportOptions,
) -> Result<Staged> {
    use crate::error::Context;
    let (read, write) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).ctx("pipe2", "")?;
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            let out = std::io::BufWriter::with_capacity(1 << 16, std::fs::File::from(write));
            tarwrite::directory(&dir, out)
        });
        let staged = import(staging, std::fs::File::from(read), opts);
        let written = writer
            .join()
            .unwrap_or_else(|_| Err(std::io::Error::other("the writing thread panicked")));
        // A writer that ended early left an archive that looks whole, so its
        // error counts first; when the importer gave up, the writer's is EPIPE.
        match (staged, written) {
            (staged, Ok(())) => staged,
            (Err(e), Err(_)) => Err(e),
            (Ok(_), Err(e)) => Err(e).ctx("read the tree", "rootfs"),
        }
    })
}
