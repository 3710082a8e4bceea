//! Real handshakes with the certificates of a fresh directory.

#![allow(clippy::unwrap_used)]

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use rkube_pki::kubeconfig::Kubeconfig;
use rkube_pki::resolver::Current;
use rkube_pki::{Pki, ServerNames, bootstrap, verify};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Takes any certificate whose key the client holds, as the API server does;
/// who it is is asked afterwards.
#[derive(Debug)]
struct AnyClient(Arc<rustls::crypto::CryptoProvider>);

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: rustls::pki_types::UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_secs()
}

/// Connects as `config` to a server that answers with the client's name;
/// gives that name and the server's certificate.
async fn hello(
    config: &Kubeconfig,
    name: &str,
    current: &Arc<Current>,
    pki: &Arc<Pki>,
) -> Result<(String, Vec<u8>), std::io::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(Arc::new(AnyClient(Arc::clone(&provider))))
        .with_cert_resolver(Arc::clone(current) as _);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let pki = Arc::clone(pki);
    let serving = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await?;
        let mut tls = TlsAcceptor::from(Arc::new(server)).accept(tcp).await?;
        let chain = tls.get_ref().1.peer_certificates().unwrap_or(&[]).to_vec();
        let who = match verify::client(&chain, pki.authority().der(), now()) {
            Ok(subject) => format!("{}/{}", subject.user, subject.groups.join(",")),
            Err(error) => error.to_string(),
        };
        tls.write_all(who.as_bytes()).await?;
        tls.shutdown().await
    });
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(config.authority.as_bytes()).unwrap())
        .unwrap();
    let (certificate, key) = config.client.clone().unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut tls = TlsConnector::from(Arc::new(client))
        .connect(name, tcp)
        .await?;
    let mut who = String::new();
    tls.read_to_string(&mut who).await?;
    let shown = tls.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    serving.await.unwrap()?;
    Ok((who, shown))
}

#[tokio::test]
async fn names_addresses_clients_and_rotation() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("pki");
    let pki = Arc::new(Pki::open(&dir, now()).unwrap());
    for file in ["ca.crt", "ca.key", "sa.key"] {
        let mode = std::fs::metadata(dir.join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let names = ServerNames {
        dns: vec!["host.example".into()],
        ips: vec![IpAddr::from([10, 96, 0, 1]), "fd00::1".parse().unwrap()],
        domain: "cluster.local".into(),
    };
    let current = Arc::new(Current::new(&pki.server(&names, now()).unwrap()).unwrap());
    let path = root.path().join("etc/admin.conf");
    let url = "https://127.0.0.1:6443";
    assert!(pki.write_admin(&path, url, now()).unwrap());
    assert!(!pki.write_admin(&path, url, now()).unwrap(), "it is good");
    let admin = Kubeconfig::read(&path).unwrap();
    let mut shown = Vec::new();
    for name in [
        "kubernetes",
        "kubernetes.default.svc.cluster.local",
        "host.example",
        "10.96.0.1",
        "127.0.0.1",
        "fd00::1",
        "::1",
    ] {
        let (who, certificate) = hello(&admin, name, &current, &pki).await.unwrap();
        assert_eq!(who, "kubernetes-admin/system:masters", "{name}");
        shown = certificate;
    }
    assert!(
        hello(&admin, "other.example", &current, &pki)
            .await
            .is_err()
    );
    assert!(hello(&admin, "10.96.0.2", &current, &pki).await.is_err());

    // A new certificate in the running server; the kubeconfig stays good.
    assert!(!pki.renew(&current, &names, now()).unwrap());
    let later = current.not_after() - 24 * 3600;
    assert!(pki.renew(&current, &names, later).unwrap());
    assert!(current.not_after() > later + 300 * 24 * 3600);
    current
        .replace(&pki.server(&names, now()).unwrap())
        .unwrap();
    let (_, renewed) = hello(&admin, "kubernetes", &current, &pki).await.unwrap();
    assert_ne!(renewed, shown);
    assert!(
        pki.write_admin(&path, url, later).unwrap(),
        "the administrator's too"
    );

    // A restart finds the same authority and key of tokens.
    let again = Pki::open(&dir, now()).unwrap();
    assert_eq!(again.authority().pem(), pki.authority().pem());
    assert_eq!(again.tokens().jwks(), pki.tokens().jwks());
    let pin = again.authority().hash().unwrap();
    assert!(bootstrap::is_pinned(pki.authority().der(), &pin));
    let other = Pki::open(&root.path().join("other"), now()).unwrap();
    assert!(!bootstrap::is_pinned(other.authority().der(), &pin));
    let stranger = other.client(url, "eve", None, now()).unwrap();
    let stranger = Kubeconfig {
        authority: admin.authority.clone(),
        ..stranger
    };
    let (who, _) = hello(&stranger, "kubernetes", &current, &pki)
        .await
        .unwrap();
    assert!(
        who.starts_with("the client certificate is refused"),
        "{who}"
    );
}
