//! Controllers on shared informers and work queues.
//!
//! Purpose: what upstream's controller manager does for the kinds that this
//! release runs. One file or folder each: a pure decision (`decide` and the
//! like) with table tests, and a thin driver that performs it.
//!
//! Boundary: know the API through the client only, and no Linux. They run
//! inside the server or alone against any conformant API server.
//!
//! Invariants:
//! - Nothing polls objects: informers tell, queues hold keys, a key that
//!   fails comes back after its back-off.
//! - A controller that made or removed something does not count again before
//!   its informer shows it (`expect`).
//! - A status is written at the revision that it was decided on; what is
//!   deleted is deleted by uid.

mod accounttokens;
mod certificates;
mod deployment;
mod disruption;
mod endpoints;
mod error;
mod expect;
mod gc;
mod job;
mod monitor;
mod namespace;
mod node;
mod owner;
mod pods;
mod replicas;
mod serviceaccount;
mod starter;
mod status;
mod system;
#[cfg(test)]
mod testing;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;
use rkube_client::Informers;
use tokio::sync::watch;

pub use crate::accounttokens::AccountTokens;
pub use crate::certificates::{NodeSigner, PkiSigner};
pub use crate::node::{CidrError, ClusterCidr};
pub use crate::system::ApiEndpoint;

use crate::monitor::Monitors;
use crate::starter::{Running, Starter};

/// What can be set.
#[derive(Debug, Clone)]
pub struct Config {
    /// How many workers each queue has (`--concurrent-*-syncs`, 5).
    pub workers_count: usize,
    /// The certificate of the API server's authority, for the ConfigMap
    /// `kube-root-ca.crt` of every namespace. `None`: nobody publishes it.
    pub root_ca_pem: Option<String>,
    /// How long a node may be silent before it counts as not ready
    /// (`--node-monitor-grace-period`, 40 s).
    pub node_grace: Duration,
    /// How many ended pods are kept (`--terminated-pod-gc-threshold`, 12500);
    /// 0 keeps all.
    pub ended_pods_max_count: usize,
    /// The ranges of pod addresses of which every node gets a part, at most
    /// one of each family; none: nobody gives nodes ranges.
    pub cluster_cidrs: Vec<ClusterCidr>,
    /// Where pods reach the API server, for the Service `kubernetes`; `None`:
    /// somebody else keeps it.
    pub api_endpoint: Option<ApiEndpoint>,
    /// Who makes the tokens of Secrets of type
    /// `kubernetes.io/service-account-token`; `None`: nobody fills them.
    pub account_tokens: Option<Arc<dyn AccountTokens>>,
    /// Whether every service account gets such a Secret, as before release
    /// 1.24.
    pub legacy_account_tokens: bool,
    /// Who signs the certificates of nodes; `None`: nobody approves or signs
    /// them.
    pub node_signer: Option<Arc<dyn NodeSigner>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers_count: 5,
            root_ca_pem: None,
            node_grace: Duration::from_secs(40),
            ended_pods_max_count: 12_500,
            cluster_cidrs: Vec::new(),
            api_endpoint: None,
            account_tokens: None,
            legacy_account_tokens: false,
            node_signer: None,
        }
    }
}

/// All controllers, running.
pub struct Controllers {
    stop: watch::Sender<bool>,
    running: Vec<Running>,
}

impl std::fmt::Debug for Controllers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.running.iter().map(|r| r.name);
        f.debug_list().entries(names).finish()
    }
}

impl Controllers {
    /// Starts all controllers. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(informers: &Informers, config: Config) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut starter = Starter {
            informers,
            client: informers.client().clone(),
            config: Arc::new(config),
            stop: stopped,
            running: Vec::new(),
        };
        system::start(&mut starter);
        let mut monitors = Monitors::default();
        namespace::start(&mut starter, &mut monitors);
        serviceaccount::start(&mut starter);
        accounttokens::start(&mut starter);
        deployment::start(&mut starter);
        replicas::start::<ReplicaSet>(&mut starter);
        replicas::start::<ReplicationController>(&mut starter);
        job::start(&mut starter);
        endpoints::start(&mut starter);
        certificates::start(&mut starter);
        node::start(&mut starter);
        disruption::start(&mut starter);
        let collector = gc::prepare(&starter, &mut monitors);
        let synced = monitor::start(&mut starter, monitors);
        gc::start(&mut starter, collector, synced);
        let running = starter.running;
        Self { stop, running }
    }

    /// Stops them in the order in which they were started; each finishes what
    /// it is at.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for running in self.running {
            running.stop().await;
        }
    }
}
