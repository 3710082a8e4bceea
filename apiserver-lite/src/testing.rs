//! An engine and a server in a folder that allow everything: for tests of what is built on them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;

use rkube_client::Client;
use rkube_store::{Embedded, OpenError, Options};

use crate::admission::Chain;
use crate::auth::{AlwaysAllow, Authenticate, Credentials, Refused};
use crate::connect::Hooks;
use crate::engine::{Config, Engine, served_by_default};
use crate::http::{Checks, Pages, Server, ServerConfig, ServerError};
use crate::inprocess::InProcess;
use crate::request::User;

/// A configuration over a new or existing store in a folder: everything is allowed, nothing is
/// admitted or hooked. Change what a test is about.
///
/// # Errors
/// Where the store cannot be opened.
pub fn config(folder: &Path) -> Result<Config, OpenError> {
    let store = Embedded::open(folder, Options::default())?;
    Ok(Config {
        store: Arc::new(store),
        authorize: Arc::new(AlwaysAllow),
        admission: Chain::default(),
        hooks: Hooks::default(),
        served: served_by_default(),
    })
}

/// An engine with [`config`].
///
/// # Errors
/// Where the store cannot be opened.
pub fn engine(folder: &Path) -> Result<Engine, OpenError> {
    config(folder).map(Engine::new)
}

/// A client of an engine, as `system:admin`.
#[must_use]
pub fn client(engine: &Engine) -> Client {
    let user = User::named("system:admin", &["system:masters"]);
    Client::new(Arc::new(InProcess::new(engine.clone(), user)))
}

/// A server on 127.0.0.1 with certificates of its own, and a kubeconfig for it.
#[derive(Debug)]
pub struct TestServer {
    /// The server; drop it to stop.
    pub server: Server,
    /// Its engine.
    pub engine: Engine,
    /// The path of the kubeconfig, in the folder.
    pub kubeconfig: PathBuf,
    /// The CA that signed the server's certificate, in PEM.
    pub ca_pem: String,
}

/// Why a test server does not start.
#[derive(Debug, thiserror::Error)]
pub enum TestError {
    /// The store.
    #[error("open the store")]
    Store(#[from] OpenError),
    /// Its certificates.
    #[error("make certificates")]
    Certificate(#[from] rcgen::Error),
    /// TLS.
    #[error("set up TLS")]
    Tls(#[from] rustls::Error),
    /// The socket.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The kubeconfig.
    #[error("write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}

/// Takes everybody for `system:admin` in `system:masters`; a token `as:NAME` for that user.
#[derive(Debug, Clone, Copy)]
pub struct Everyone;

impl Authenticate for Everyone {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Option<User>, Refused> {
        Ok(Some(match credentials.bearer {
            Some("wrong") => {
                return Err(Refused {
                    reason: "the wrong token".to_owned(),
                });
            }
            Some(token) if token.starts_with("as:") => User::named(&token[3..], &[]),
            _ => User::named("system:admin", &["system:masters"]),
        }))
    }
}

/// Starts a server for an engine on a port (0: a free one).
///
/// # Errors
/// [`TestError`].
pub async fn serve(folder: &Path, engine: Engine, port: u16) -> Result<TestServer, TestError> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let (tls, ca_pem) = tls()?;
    let config = ServerConfig {
        listen: address,
        tls: Arc::new(tls),
        authenticate: Arc::new(Everyone),
        checks: Checks::default(),
        pages: Pages::new(),
    };
    let server = Server::start(engine.clone(), config).await?;
    let path = folder.join("kubeconfig");
    let text = kubeconfig(server.address(), &ca_pem, "test");
    std::fs::write(&path, text).map_err(|source| TestError::Write {
        path: path.clone(),
        source,
    })?;
    Ok(TestServer {
        server,
        engine,
        kubeconfig: path,
        ca_pem,
    })
}

/// Starts a server over a new engine in a folder, see [`engine`].
///
/// # Errors
/// [`TestError`].
pub async fn start(folder: &Path) -> Result<TestServer, TestError> {
    let engine = engine(&folder.join("store"))?;
    serve(folder, engine, 0).await
}

/// A kubeconfig with a token.
#[must_use]
pub fn kubeconfig(address: SocketAddr, ca_pem: &str, token: &str) -> String {
    let ca = base64::engine::general_purpose::STANDARD.encode(ca_pem);
    serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": format!("https://{address}"), "certificate-authority-data": ca}}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    })
    .to_string()
}

fn tls() -> Result<(rustls::ServerConfig, String), TestError> {
    let ca_key = rcgen::KeyPair::generate()?;
    let mut ca = rcgen::CertificateParams::new(Vec::new())?;
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    ca.distinguished_name
        .push(rcgen::DnType::CommonName, "rkube test CA");
    let ca_certificate = ca.self_signed(&ca_key)?;
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate()?;
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let certificate = rcgen::CertificateParams::new(names)?.signed_by(&key, &issuer)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der())
        .map_err(|e| rustls::Error::General(e.to_owned()))?;
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)?;
    Ok((config, ca_certificate.pem()))
}
