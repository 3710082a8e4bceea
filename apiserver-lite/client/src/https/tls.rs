//! Whom the client believes, and what it shows of itself.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

/// The largest file of certificates, keys or tokens.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Why a certificate, key or token cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something is not what it should be.
    #[error("{what}: {reason}")]
    Unusable {
        /// What.
        what: String,
        /// Why.
        reason: String,
    },
}

/// Whose certificates are believed.
#[derive(Debug, Clone)]
pub enum Roots {
    /// Those signed by these certificate authorities (PEM).
    Pem(Vec<u8>),
    /// Those signed by the authority with this fingerprint
    /// ([`ca_fingerprint`]), which the server sends with its own certificate.
    /// The authority's certificate is put into `found`.
    Fingerprint {
        /// SHA-256 of the certificate's DER, in lower-case hexadecimal.
        sha256: String,
        /// The certificate's DER, once a server has shown it.
        found: Arc<Mutex<Option<Vec<u8>>>>,
    },
}

/// Who asks.
#[derive(Clone)]
pub enum Identity {
    /// Nobody.
    Anonymous,
    /// The holder of a token.
    Token(String),
    /// The holder of the token in a file, which may be replaced at any time.
    TokenFile(PathBuf),
    /// The holder of a certificate and its key, in PEM.
    Certificate {
        /// The certificate, its chain behind it.
        certificate: Vec<u8>,
        /// The key.
        key: Vec<u8>,
    },
    /// The same in files, which may be replaced at any time.
    CertificateFiles {
        /// The certificate, its chain behind it.
        certificate: PathBuf,
        /// The key; may be the same file.
        key: PathBuf,
    },
}

/// Secrets stay out of logs.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("Anonymous"),
            Self::Token(_) => f.write_str("Token"),
            Self::TokenFile(path) => f.debug_tuple("TokenFile").field(path).finish(),
            Self::Certificate { .. } => f.write_str("Certificate"),
            Self::CertificateFiles { certificate, .. } => f
                .debug_tuple("CertificateFiles")
                .field(certificate)
                .finish(),
        }
    }
}

/// The fingerprint of an authority's certificate: SHA-256 of its DER in
/// lower-case hexadecimal.
#[must_use]
pub fn ca_fingerprint(der: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

pub(super) fn read(path: &PathBuf) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read {
        path: path.clone(),
        source,
    };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > MAX_FILE_BYTES {
        return Err(TlsError::Unusable {
            what: path.display().to_string(),
            reason: format!("has {size} bytes, more than {MAX_FILE_BYTES}"),
        });
    }
    std::fs::read(path).map_err(failed)
}

fn unusable(what: &str, reason: impl fmt::Display) -> TlsError {
    TlsError::Unusable {
        what: what.to_owned(),
        reason: reason.to_string(),
    }
}

fn certificates(what: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match list {
        Ok(list) if list.is_empty() => Err(unusable(what, "no certificate in it")),
        Ok(list) => Ok(list),
        Err(error) => Err(unusable(what, error)),
    }
}

/// The TLS side of a client.
pub(super) fn client(roots: &Roots, identity: &Identity) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| unusable("TLS", e))?;
    let builder = match roots {
        Roots::Pem(pem) => {
            let mut store = RootCertStore::empty();
            for der in certificates("certificate authority", pem)? {
                store
                    .add(der)
                    .map_err(|e| unusable("certificate authority", e))?;
            }
            builder.with_root_certificates(store)
        }
        Roots::Fingerprint { sha256, found } => {
            let pin = Arc::new(Pinned {
                sha256: sha256.clone(),
                found: Arc::clone(found),
                provider,
            });
            builder.dangerous().with_custom_certificate_verifier(pin)
        }
    };
    let (certificate, key) = match identity {
        Identity::Certificate { certificate, key } => (certificate.clone(), key.clone()),
        Identity::CertificateFiles { certificate, key } => (read(certificate)?, read(key)?),
        Identity::Anonymous | Identity::Token(_) | Identity::TokenFile(_) => {
            return Ok(builder.with_no_client_auth());
        }
    };
    let chain = certificates("client certificate", &certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| unusable("client key", e))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|e| unusable("client certificate", e))
}

/// Believes what an authority signed that is known only by its fingerprint.
#[derive(Debug)]
struct Pinned {
    sha256: String,
    found: Arc<Mutex<Option<Vec<u8>>>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates
            .iter()
            .find(|der| ca_fingerprint(der) == self.sha256)
            .ok_or_else(|| {
                rustls::Error::General(
                    "the server shows no certificate authority with the token's fingerprint"
                        .to_owned(),
                )
            })?;
        let mut store = RootCertStore::empty();
        store.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(
            Arc::new(store),
            Arc::clone(&self.provider),
        )
        .build()
        .map_err(|e| rustls::Error::General(e.to_string()))?;
        let verified = verifier.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        *found = Some(authority.to_vec());
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, schemes)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
