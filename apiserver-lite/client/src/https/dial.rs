//! TLS connections to one server.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::tls::{self, Identity, Roots, TlsError};
use crate::transport::BoxFuture;

/// The longest wait for a connection and its handshake, each.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often files of an identity are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The most of /etc/hosts that is read.
const MAX_HOSTS_BYTES: u64 = 1 << 20;

/// Finds the addresses of a host name that is no address.
pub type Resolve =
    Arc<dyn Fn(String) -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>> + Send + Sync>;

/// Names from /etc/hosts alone: enough where a server is named by address.
#[must_use]
pub fn hosts_file() -> Resolve {
    Arc::new(|name: String| {
        Box::pin(async move {
            use std::io::Read as _;
            let mut text = String::new();
            std::fs::File::open("/etc/hosts")?
                .take(MAX_HOSTS_BYTES)
                .read_to_string(&mut text)?;
            let found = in_hosts(&text, &name);
            if found.is_empty() {
                let why = format!("host name {name:?} is not in /etc/hosts");
                return Err(std::io::Error::new(std::io::ErrorKind::NotFound, why));
            }
            Ok(found)
        })
    })
}

/// The addresses of a name (hosts(5)).
fn in_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let lines = text
        .lines()
        .map(|l| l.split('#').next().unwrap_or_default());
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = words.next()?.parse().ok()?;
            words
                .any(|w| w.eq_ignore_ascii_case(name))
                .then_some(address)
        })
        .collect()
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The name that its certificate must hold, where it is not `host`.
    pub server_name: Option<String>,
}

impl Endpoint {
    /// Reads `https://HOST[:PORT][/]`; without a port it is 443.
    ///
    /// # Errors
    /// It is no such URL.
    pub fn parse(url: &str) -> Result<Self, TlsError> {
        let wrong = |reason: &str| TlsError::Unusable {
            what: format!("server URL {url:?}"),
            reason: reason.to_owned(),
        };
        let uri: http::Uri = url.parse().map_err(|_| wrong("is no URL"))?;
        if uri.scheme_str() != Some("https") {
            return Err(wrong("does not begin with https://"));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(wrong("has a path"));
        }
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(wrong("names no host"));
        }
        Ok(Self {
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(443),
            server_name: None,
        })
    }

    /// `host:port` as URLs write it.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

/// A connection, and which protocol was agreed on.
#[derive(Debug)]
pub struct Connection {
    /// The bytes.
    pub stream: TlsStream<TcpStream>,
    /// HTTP/2; HTTP/1.1 if not.
    pub http2: bool,
}

struct Loaded {
    config: Arc<ClientConfig>,
    token: Option<String>,
    stamps: Vec<Option<SystemTime>>,
    looked: Instant,
    generation: u64,
}

/// Connects to one server as one client, and follows the files of that
/// client's identity.
pub struct Dialer {
    endpoint: Endpoint,
    name: ServerName<'static>,
    roots: Roots,
    identity: Identity,
    resolve: Resolve,
    loaded: Mutex<Loaded>,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer")
            .field("endpoint", &self.endpoint)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

impl Dialer {
    /// A dialer; connects to nothing yet.
    ///
    /// # Errors
    /// Certificates or keys cannot be used.
    pub fn new(
        endpoint: Endpoint,
        roots: Roots,
        identity: Identity,
        resolve: Resolve,
    ) -> Result<Self, TlsError> {
        let name = endpoint.server_name.as_ref().unwrap_or(&endpoint.host);
        let name = ServerName::try_from(name.clone()).map_err(|e| TlsError::Unusable {
            what: format!("server name {name:?}"),
            reason: e.to_string(),
        })?;
        let loaded = load(&roots, &identity, 0)?;
        Ok(Self {
            endpoint,
            name,
            roots,
            identity,
            resolve,
            loaded: Mutex::new(loaded),
        })
    }

    /// Where it connects to.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn with<T>(&self, f: impl FnOnce(&Loaded) -> T) -> Result<T, TlsError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.looked.elapsed() >= LOOK_EVERY {
            loaded.looked = Instant::now();
            if loaded.stamps != stamps(&self.identity) {
                match load(&self.roots, &self.identity, loaded.generation + 1) {
                    Ok(new) => *loaded = new,
                    // Half a replacement: the next look sees the whole.
                    Err(error) => {
                        tracing::warn!(%error, "new files of a client's identity cannot be used");
                    }
                }
            }
        }
        Ok(f(&loaded))
    }

    /// The token to show with each request.
    ///
    /// # Errors
    /// None now; reserved for identities that must be fetched.
    pub fn token(&self) -> Result<Option<String>, TlsError> {
        self.with(|loaded| loaded.token.clone())
    }

    /// Grows when the identity was replaced: connections of before are then
    /// somebody else's.
    pub(super) fn generation(&self) -> u64 {
        self.with(|loaded| loaded.generation).unwrap_or_default()
    }

    /// A new connection; without `http2`, HTTP/1.1 is asked for.
    ///
    /// # Errors
    /// The name is unknown, nobody answers, or TLS fails.
    pub async fn connect(&self, http2: bool) -> std::io::Result<Connection> {
        let config = self
            .with(|loaded| Arc::clone(&loaded.config))
            .map_err(std::io::Error::other)?;
        let mut config = ClientConfig::clone(&config);
        config.alpn_protocols = if http2 {
            vec![b"h2".to_vec(), b"http/1.1".to_vec()]
        } else {
            vec![b"http/1.1".to_vec()]
        };
        let tcp = self.tcp().await?;
        let connector = TlsConnector::from(Arc::new(config));
        let handshake = connector.connect(self.name.clone(), tcp);
        let stream = timely("TLS handshake", handshake).await?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok(Connection { stream, http2 })
    }

    async fn tcp(&self) -> std::io::Result<TcpStream> {
        let addresses = match self.endpoint.host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => (self.resolve)(self.endpoint.host.clone()).await?,
        };
        let mut last = None;
        for address in addresses {
            let to = SocketAddr::new(address, self.endpoint.port);
            match timely("connect", TcpStream::connect(to)).await {
                Ok(stream) => {
                    // Requests are small and wait for answers (tcp(7)).
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Err(error) => {
                    let told = format!("connect to {to}: {error}");
                    last = Some(std::io::Error::new(error.kind(), told));
                }
            }
        }
        Err(last.unwrap_or_else(|| std::io::Error::other("the host name has no address")))
    }
}

async fn timely<T>(
    what: &str,
    work: impl Future<Output = std::io::Result<T>>,
) -> std::io::Result<T> {
    match tokio::time::timeout(CONNECT_TIMEOUT, work).await {
        Ok(result) => result,
        Err(_) => Err(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            format!("{what}: no answer for {CONNECT_TIMEOUT:?}"),
        )),
    }
}

fn files(identity: &Identity) -> Vec<&PathBuf> {
    match identity {
        Identity::TokenFile(path) => vec![path],
        Identity::CertificateFiles { certificate, key } => vec![certificate, key],
        Identity::Anonymous | Identity::Token(_) | Identity::Certificate { .. } => Vec::new(),
    }
}

fn stamps(identity: &Identity) -> Vec<Option<SystemTime>> {
    let stamp = |path: &&PathBuf| std::fs::metadata(path).ok()?.modified().ok();
    files(identity).iter().map(stamp).collect()
}

fn load(roots: &Roots, identity: &Identity, generation: u64) -> Result<Loaded, TlsError> {
    // Before the content: what changes while it is read is read again.
    let stamps = stamps(identity);
    let token = match identity {
        Identity::Token(token) => Some(token.clone()),
        Identity::TokenFile(path) => {
            let text = String::from_utf8_lossy(&tls::read(path)?).trim().to_owned();
            Some(text).filter(|t| !t.is_empty())
        }
        _ => None,
    };
    Ok(Loaded {
        config: Arc::new(tls::client(roots, identity)?),
        token,
        stamps,
        looked: Instant::now(),
        generation,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_servers() {
        let read = |url: &str| Endpoint::parse(url).map(|e| (e.host.clone(), e.authority()));
        let own = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            read("https://10.0.0.1:6443").unwrap(),
            own("10.0.0.1", "10.0.0.1:6443")
        );
        assert_eq!(
            read("https://[fd00::1]:6443/").unwrap(),
            own("fd00::1", "[fd00::1]:6443")
        );
        assert_eq!(read("https://api").unwrap(), own("api", "api:443"));
        for wrong in [
            "http://a",
            "a:6443",
            "https://",
            "https://a/b",
            "https://a?b",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_in_a_hosts_file() {
        let text = "127.0.0.1 localhost\n# 10.0.0.1 api\n10.0.0.2 x API # y\nfd00::1 api\n";
        let found: Vec<String> = in_hosts(text, "api")
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(found, ["10.0.0.2", "fd00::1"]);
        assert!(in_hosts(text, "y").is_empty());
    }
}
