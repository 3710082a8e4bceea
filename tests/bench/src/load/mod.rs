//! Clients under whose load servers are measured: `rkube-load`.
//!
//! A program of its own, so that the client's processor time is told apart
//! from the server's and from the benchmark's. rkube and etcd get the same
//! client: HTTP over TLS, the same number of connections and of requests under
//! way; etcd's requests are gRPC (its `rpc.proto`), written by hand.

mod connection;
mod etcd;
mod pods;
mod rate;
mod ready;
mod watch;

use std::path::PathBuf;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// What to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// A kubeconfig: where the server is, whom it trusts, who asks.
    pub config: PathBuf,
    /// The work.
    pub task: Task,
}

/// The kinds of work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Task {
    /// One request after the other in each place.
    Rate(Rate),
    /// Writes that watchers wait for.
    Watch(Watch),
    /// Pods one after the other: created, seen running, deleted.
    Pods {
        /// How many.
        count: usize,
    },
    /// Pods at once, until all are seen running; then deleted.
    Crowd {
        /// How many.
        count: usize,
    },
    /// Until a server that is being started is ready.
    Ready {
        /// CLOCK_MONOTONIC at which it was started, in nanoseconds.
        since_ns: i64,
        /// The certificate authority, which a first start makes.
        authority: PathBuf,
        /// `https://HOST:PORT`.
        url: String,
        /// The node to become ready.
        node: String,
    },
}

/// As many requests as fit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rate {
    /// What is asked.
    pub ask: Ask,
    /// How long.
    pub seconds: u32,
    /// How many connections.
    pub connections: usize,
    /// Requests under way on each; more than one takes HTTP/2.
    pub streams: usize,
}

/// Requests of [`Rate`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Ask {
    /// POST of pods that no scheduler looks at.
    CreatePods {
        /// Part of their names.
        tag: String,
    },
    /// GET of such a pod, over and over.
    GetPods {
        /// As they were created.
        tag: String,
        /// How many there are at least.
        count: u32,
    },
    /// etcd's Put.
    Puts {
        /// Part of the keys.
        tag: String,
        /// Size of the values.
        bytes: usize,
    },
    /// etcd's Range of one key, linearizable.
    Ranges {
        /// As they were put.
        tag: String,
        /// How many there are at least.
        count: u32,
    },
}

/// Writes, one after the other, and everybody who sees each.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Watch {
    /// etcd's keys; else ConfigMaps.
    pub etcd: bool,
    /// Watchers, each on a connection of its own.
    pub watchers: usize,
    /// Writes.
    pub writes: u32,
    /// Pause before each, in milliseconds.
    pub pause_ms: u64,
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Done {
    /// Times in milliseconds, of what the task is about.
    pub times_ms: Vec<f64>,
    /// Requests that were answered.
    pub count: u32,
    /// How long all took, in seconds.
    pub seconds: f64,
}

/// Threads of the client: the machine's two cores are the server's as well.
const THREADS: usize = 2;

/// Does a job.
///
/// # Errors
/// The server refuses something, or cannot be reached.
pub fn run(job: &Job) -> anyhow::Result<Done> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .context("start the async runtime")?;
    runtime.block_on(async {
        if let Task::Ready {
            since_ns,
            authority,
            url,
            node,
        } = &job.task
        {
            return ready::run(*since_ns, authority, url, node, &job.config).await;
        }
        let server = connection::Server::of(&job.config)?;
        match &job.task {
            Task::Rate(rate) => rate::run(&server, rate).await,
            Task::Watch(watch) => watch::run(&server, watch).await,
            Task::Pods { count } => pods::one_by_one(&server, *count).await,
            Task::Crowd { count } => pods::at_once(&server, *count).await,
            Task::Ready { .. } => anyhow::bail!("done above"),
        }
    })
}
