//! Cluster DNS in process.
//!
//! **Purpose.** Answer the names of Services and pods after the Kubernetes DNS
//! specification 1.1.0, and hand all other names on to the host's resolvers.
//!
//! **Boundary.** Reads the API through the client and answers on sockets that
//! it is given: who binds them decides in which network namespace and under
//! which address. Names no sockets, rules or links of its own.
//!
//! **Invariants.**
//! - Answers come from an index that informers fill ([`index::entry`] is a
//!   pure function of one Service); a query looks its Service up once, by its
//!   own bytes, and allocates nothing.
//! - The decoder ([`wire`]) is bounded and never panics on what strangers
//!   send; pointers lead backwards only.
//! - A name below the zone is never asked elsewhere: a search list ends here
//!   with "no such name", without waiting for anybody.
//! - What others answer is kept no longer than they allow, in a cache with
//!   named limits.

pub mod answer;
pub mod cache;
pub mod forward;
pub mod index;
mod server;
pub mod wire;

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, PoisonError, Weak};

use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use rkube_client::{Change, Informer, Informers, ObjectKey, Store};

pub use forward::resolvers;
pub use server::Serving;

use crate::answer::Zone;
use crate::forward::Forwarder;
use crate::server::Core;
use crate::wire::Name;

/// Label of a slice that names its Service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Index of slices by the key of their Service.
const BY_SERVICE: &str = "dns/service";

/// How a server is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsConfig {
    /// The cluster's domain.
    pub domain: String,
    /// The addresses that clients know the server by.
    pub addresses: Vec<IpAddr>,
    /// Resolvers for all other names; at most three are asked.
    pub upstreams: Vec<SocketAddr>,
}

/// What goes wrong before the first query.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster's domain is no DNS name.
    #[error("{domain:?} is no DNS name: labels of 1 to 63 bytes, 253 together")]
    Domain {
        /// The domain.
        domain: String,
    },
    /// A socket cannot be served.
    #[error("serve a DNS socket")]
    Socket {
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}

/// The server; it follows the API until dropped.
#[derive(Debug)]
pub struct Dns {
    core: Arc<Core>,
    services: Arc<Informer<Service>>,
    slices: Arc<Informer<EndpointSlice>>,
    namespaces: Arc<Informer<Namespace>>,
}

impl Dns {
    /// Begins to follow the API, in the calling tokio runtime.
    ///
    /// # Errors
    /// [`Error::Domain`].
    pub fn start(informers: &Informers, config: DnsConfig) -> Result<Self, Error> {
        let name = Name::parse(&config.domain).ok_or(Error::Domain {
            domain: config.domain,
        })?;
        let own = config.addresses.clone();
        let upstreams = config.upstreams.into_iter();
        // A resolver that is this server would ask itself for ever.
        let upstreams = upstreams.filter(|a| !own.contains(&a.ip())).collect();
        let zone = Zone {
            name,
            servers: config.addresses,
        };
        let core = Arc::new(Core::new(zone, Forwarder::new(upstreams)));
        let services = informers.of::<Service>();
        let slices = informers.of::<EndpointSlice>();
        let namespaces = informers.of::<Namespace>();
        slices.add_index(BY_SERVICE, |slice| {
            let key = service_of(slice).map(|key| key.to_string());
            key.into_iter().collect()
        });
        let feed = Feed {
            core: Arc::downgrade(&core),
            services: Arc::clone(services.store()),
            slices: Arc::clone(slices.store()),
        };
        let for_slices = feed.clone();
        services.on_change(move |change| feed.set(&ObjectKey::of(&**change.object())));
        slices.on_change(move |change| {
            let mut keys: Vec<ObjectKey> = service_of(change.object()).into_iter().collect();
            if let Change::Modified(old, _) = change {
                keys.extend(service_of(old));
                keys.dedup();
            }
            keys.iter().for_each(|key| for_slices.set(key));
        });
        let weak = Arc::downgrade(&core);
        namespaces.on_change(move |change| {
            if let Some(core) = weak.upgrade() {
                let there = !matches!(change, Change::Deleted(_));
                let name = change.object().metadata.name.as_deref().unwrap_or("");
                let mut index = core.index.write().unwrap_or_else(PoisonError::into_inner);
                index.set_namespace(name, there);
            }
        });
        Ok(Self {
            core,
            services,
            slices,
            namespaces,
        })
    }

    /// Returns once the index has what the API said at the start.
    pub async fn synced(&self) {
        tokio::join!(
            self.services.synced(),
            self.slices.synced(),
            self.namespaces.synced()
        );
    }

    /// Asks other resolvers from now on: the host's may change.
    pub fn set_upstreams(&self, upstreams: Vec<SocketAddr>) {
        let own = &self.core.zone.servers;
        let upstreams = upstreams.into_iter();
        let upstreams = upstreams.filter(|a| !own.contains(&a.ip())).collect();
        self.core.forwarder.set_upstreams(upstreams);
    }

    /// Serves bound sockets, until the answer is dropped. UDP sockets should
    /// be bound to one address, from which the answers then come; several may
    /// share one with `SO_REUSEPORT`.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn serve(&self, udp: Vec<UdpSocket>, tcp: Vec<TcpListener>) -> Result<Serving, Error> {
        server::serve(&self.core, udp, tcp).map_err(|source| Error::Socket { source })
    }
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let labels = slice.metadata.labels.as_ref()?;
    let name = labels.get(SERVICE_NAME_LABEL)?;
    Some(ObjectKey::new(slice.metadata.namespace.as_deref()?, name))
}

/// Puts Services into the index.
#[derive(Clone)]
struct Feed {
    core: Weak<Core>,
    services: Arc<Store<Service>>,
    slices: Arc<Store<EndpointSlice>>,
}

impl Feed {
    fn set(&self, key: &ObjectKey) {
        let Some(core) = self.core.upgrade() else {
            return;
        };
        // Services and slices come from two tasks: what is read last is written
        // last.
        let mut index = core.index.write().unwrap_or_else(PoisonError::into_inner);
        let entry = self.services.get(key).and_then(|service| {
            let slices = self.slices.by_index(BY_SERVICE, &key.to_string());
            let slices: Vec<&EndpointSlice> = slices.iter().map(|slice| &**slice).collect();
            index::entry(&service, &slices)
        });
        index.set(key, entry);
    }
}
