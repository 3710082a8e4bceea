//! One request over TLS, with or without a certificate of the client's.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

/// How long the peer may be silent.
const PATIENCE: Duration = Duration::from_secs(10);

/// The status of the answer to `GET path`, from a server whose certificate for
/// this address is signed by `authority`. `client` is a certificate and its
/// key. All in PEM.
///
/// # Errors
/// There is no answer, or the server is another.
pub fn status(
    address: SocketAddr,
    authority: &str,
    client: Option<(&str, &str)>,
    path: &str,
) -> anyhow::Result<u16> {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(authority.as_bytes()).context("the authority")?;
    roots.add(root).context("the authority")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("versions of TLS")?
        .with_root_certificates(roots);
    let config = match client {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .context("the client's certificate")?;
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("the client's key")?;
            config.with_client_auth_cert(chain, key)?
        }
    };
    let name = ServerName::IpAddress(address.ip().into());
    let connection = ClientConnection::new(Arc::new(config), name)?;
    let stream = TcpStream::connect_timeout(&address, PATIENCE)
        .with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut stream = StreamOwned::new(connection, stream);
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    stream
        .write_all(request.as_bytes())
        .with_context(|| format!("ask {address} for {path}"))?;
    let mut head = [0; 12];
    stream
        .read_exact(&mut head)
        .with_context(|| format!("read the answer of {address}"))?;
    let head = String::from_utf8_lossy(&head);
    let code = head.strip_prefix("HTTP/1.1 ");
    code.and_then(|code| code.parse().ok())
        .with_context(|| format!("{address} answers {head:?}"))
}
