//! rkube's API server as `rkube server` joins it, in this process, without the rest of a cluster.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use rkube_apiserver::auth::{Authenticate, Credentials, Refused};
use rkube_apiserver::bootstrap::{self, Cluster};
use rkube_apiserver::connect::Connect;
use rkube_apiserver::http::{Checks, Pages, Server, ServerConfig};
use rkube_apiserver::objects::Objects;
use rkube_apiserver::request::User;
use rkube_apiserver::security::assemble;
use rkube_apiserver::services::{ServiceAllocator, ServicesConfig};
use rkube_apiserver::streams::NodeConnector;
use rkube_apiserver::{Engine, authn, testing};
use rkube_pki::resolver::Current;
use rkube_pki::{Pki, ServerNames};

use crate::client::Endpoint;
use crate::{SERVICE_RANGE, TOKEN};

/// The server; dropping it ends it.
#[derive(Debug)]
pub struct Subject {
    server: Server,
    authority: String,
}

/// Knows one token, as the recorded server's token file does.
#[derive(Debug)]
struct OneToken;

impl Authenticate for OneToken {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Option<User>, Refused> {
        match credentials.bearer {
            Some(TOKEN) => Ok(Some(User::named("admin", &["system:masters"]))),
            Some(_) => Err(Refused {
                reason: "no such token".to_owned(),
            }),
            None => Ok(None),
        }
    }
}

impl Subject {
    /// Starts it over a store in a folder.
    ///
    /// # Errors
    /// A part does not start.
    pub async fn start(folder: &Path) -> anyhow::Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let pki = Pki::open(&folder.join("pki"), now).context("make certificates")?;
        let mut config = testing::config(&folder.join("store")).context("open the store")?;
        let objects = Objects::new(Arc::clone(&config.store));
        let connect: Arc<dyn Connect> = Arc::new(NodeConnector::new(None));
        let security = assemble(&objects, &pki, &connect).context("prepare to reach pods")?;
        let (base, prefix) = SERVICE_RANGE;
        let allocator = ServiceAllocator::new(&ServicesConfig {
            ranges: vec![(IpAddr::from(base), prefix)],
            ..ServicesConfig::default()
        })?;
        config.authorize = security.authorize;
        config.admission = security.admission.with(Arc::new(allocator));
        config.hooks = security.hooks;
        let engine = Engine::new(config);
        let names = ServerNames {
            domain: "cluster.local".to_owned(),
            ..ServerNames::default()
        };
        let current = Current::new(&pki.server(&names, now)?)?;
        let server = ServerConfig {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            tls: Arc::new(authn::tls::server(Arc::new(current))?),
            authenticate: Arc::new(OneToken),
            checks: Checks::default(),
            pages: Pages::new(),
        };
        let server = Server::start(engine.clone(), server).await?;
        let cluster = Cluster {
            service_ip: IpAddr::from(Ipv4Addr::from_bits(base.to_bits() + 1)),
            address: IpAddr::from(Ipv4Addr::new(192, 0, 2, 1)),
            port: server.address().port(),
            authority: pki.authority().pem().to_owned(),
        };
        let made = bootstrap::run(&engine, &cluster).await;
        made.map_err(|status| anyhow::anyhow!("make the first objects: {}", status.message))?;
        Ok(Self {
            server,
            authority: pki.authority().pem().to_owned(),
        })
    }

    /// Where it is.
    ///
    /// # Errors
    /// Its authority cannot be read.
    pub fn endpoint(&self) -> anyhow::Result<Endpoint> {
        Endpoint::new(self.server.address(), &self.authority)
    }
}
