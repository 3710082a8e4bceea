//! Certificates that end while this process runs are renewed in it, at two
//! thirds of their life: those of the API server, its client of the nodes,
//! the administrator's kubeconfig, and a node's own two.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rkube_apiserver::streams::KubeletClient;
use rkube_pki::resolver::{Current, is_due};
use rkube_pki::{Identity, Pki, PkiError, ServerNames};

use super::api::now_s;

/// How often it is looked whether a certificate is due.
pub(super) const PERIOD: Duration = Duration::from_secs(3600);

/// The certificate with its authority behind it: whoever knows no more than
/// the authority's hash finds it there.
pub(super) fn with_authority(pki: &Pki, identity: Identity) -> Identity {
    Identity {
        certificate: format!("{}{}", identity.certificate, pki.authority().pem()),
        key: identity.key,
    }
}

/// What a server renews.
#[derive(Debug)]
pub(super) struct Renewal {
    pub(super) pki: Arc<Pki>,
    pub(super) names: ServerNames,
    pub(super) current: Arc<Current>,
    pub(super) kubelets: Arc<KubeletClient>,
    /// When the certificate of `kubelets` ends, in seconds since 1970.
    pub(super) kubelets_end: u64,
    /// Kubeconfigs of the administrator, and the server that they name.
    pub(super) admin: (Vec<PathBuf>, String),
}

impl Renewal {
    /// Looks again and again.
    pub(super) async fn run(mut self) {
        loop {
            tokio::time::sleep(PERIOD).await;
            let now = now_s();
            for (what, renewed) in self.step(now) {
                told(what, renewed);
            }
        }
    }

    /// Renews what is due; what became of it.
    fn step(&mut self, now: u64) -> Vec<(&'static str, Result<(), PkiError>)> {
        let mut done = Vec::new();
        let pki = &self.pki;
        if self.current.is_due(now) {
            let renewed = pki
                .server(&self.names, now)
                .and_then(|identity| self.current.replace(&with_authority(pki, identity)));
            done.push(("the API server's certificate", renewed));
        }
        if is_due(self.kubelets_end, now) {
            let renewed = pki.kubelet_client(now).and_then(|identity| {
                let end = identity.not_after()?;
                let replaced = self.kubelets.replace(&identity, pki.authority().pem());
                replaced.map_err(|e| PkiError::Invalid {
                    what: "the client of the nodes".to_owned(),
                    reason: e.to_string(),
                })?;
                self.kubelets_end = end;
                Ok(())
            });
            done.push(("the API server's client of the nodes", renewed));
        }
        let (paths, url) = &self.admin;
        for path in paths {
            match pki.write_admin(path, url, now) {
                Ok(false) => {}
                other => done.push(("the administrator's kubeconfig", other.map(drop))),
            }
        }
        done
    }
}

/// Renews the certificate of a server's own node.
pub(super) async fn own_node(
    pki: Arc<Pki>,
    name: String,
    addresses: Vec<std::net::IpAddr>,
    current: Arc<Current>,
) {
    loop {
        tokio::time::sleep(PERIOD).await;
        if current.is_due(now_s()) {
            let renewed = pki
                .kubelet_server(&name, &addresses, now_s())
                .and_then(|identity| current.replace(&identity));
            told("the node's certificate", renewed);
        }
    }
}

fn told(what: &str, renewed: Result<(), PkiError>) {
    match renewed {
        Ok(()) => tracing::info!("{what} is renewed"),
        Err(error) => tracing::error!(%error, "renew {what}"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, SocketAddr, TcpStream};
    use std::path::Path;

    use rkube_apiserver::authn::tls;
    use rkube_apiserver::http::{Checks, Pages};
    use rkube_apiserver::{Server, ServerConfig, testing};
    use rkube_pki::resolver::RENEW_BEFORE_SECONDS;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
    use rustls_pki_types::pem::PemObject as _;
    use rustls_pki_types::{CertificateDer, ServerName};

    use super::*;

    fn renewal(dir: &Path, begin: u64) -> Renewal {
        let pki = Arc::new(Pki::open(&dir.join("pki"), begin).unwrap());
        let names = ServerNames {
            ips: vec![Ipv4Addr::LOCALHOST.into()],
            ..ServerNames::default()
        };
        let server = with_authority(&pki, pki.server(&names, begin).unwrap());
        let client = pki.kubelet_client(begin).unwrap();
        Renewal {
            current: Arc::new(Current::new(&server).unwrap()),
            kubelets: Arc::new(KubeletClient::new(&client, pki.authority().pem()).unwrap()),
            kubelets_end: client.not_after().unwrap(),
            admin: (
                vec![dir.join("admin.conf")],
                "https://127.0.0.1:6443".into(),
            ),
            pki,
            names,
        }
    }

    #[test]
    fn what_is_due_is_renewed_once() {
        let dir = tempfile::tempdir().unwrap();
        let begin = now_s();
        let mut renewal = renewal(dir.path(), begin);
        let end = renewal.current.not_after();
        let count = |renewal: &mut Renewal, now| {
            let done = renewal.step(now);
            assert!(done.iter().all(|(_, result)| result.is_ok()), "{done:?}");
            done.len()
        };
        // At first only the kubeconfig is not there.
        assert_eq!(count(&mut renewal, begin), 1);
        assert_eq!(count(&mut renewal, begin), 0);
        let due = end - RENEW_BEFORE_SECONDS + 1;
        assert_eq!(count(&mut renewal, due), 3);
        assert!(renewal.current.not_after() > end);
        assert_eq!(count(&mut renewal, due), 0);
    }

    type Tls = StreamOwned<ClientConnection, TcpStream>;

    /// Connects; what the server shows as its own certificate.
    fn meet(address: SocketAddr, authority: &str) -> (Tls, CertificateDer<'static>) {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(authority.as_bytes()).unwrap();
        roots.add(root).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::IpAddress(address.ip().into());
        let connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut stream = StreamOwned::new(connection, TcpStream::connect(address).unwrap());
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).unwrap();
        }
        let shown = stream.conn.peer_certificates().unwrap()[0].clone();
        (stream, shown.into_owned())
    }

    fn asks(stream: &mut Tls) {
        let request = b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request).unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
    }

    /// A server whose certificate ends in an hour: who comes next sees
    /// another one, and who is there goes on.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_running_server_shows_the_next_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let life = 3 * RENEW_BEFORE_SECONDS;
        let mut renewal = renewal(dir.path(), now_s() - life + 3600);
        let authority = renewal.pki.authority().pem().to_owned();
        let engine = testing::engine(&dir.path().join("store")).unwrap();
        let config = ServerConfig {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            tls: Arc::new(tls::server(Arc::clone(&renewal.current)).unwrap()),
            authenticate: Arc::new(testing::Everyone),
            checks: Checks::default(),
            pages: Pages::new(),
        };
        let server = Server::start(engine, config).await.unwrap();
        let address = server.address();
        let clients = tokio::task::spawn_blocking(move || {
            let (mut before, old) = meet(address, &authority);
            let done = renewal.step(now_s());
            assert!(done.iter().all(|(_, result)| result.is_ok()), "{done:?}");
            let (mut after, new) = meet(address, &authority);
            assert_ne!(old, new);
            asks(&mut before);
            asks(&mut after);
            let (_, again) = meet(address, &authority);
            assert_eq!(new, again);
        });
        clients.await.unwrap();
        server.stop().await;
    }
}
