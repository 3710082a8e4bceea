//! TLS: whom to trust for which registry.
//!
//! The system's bundle, and for a registry the files of
//! `certs.d/HOST[:PORT]/`, as Docker has them: `*.crt` are authorities that
//! are trusted beside the system's, `NAME.cert` with `NAME.key` a certificate
//! of the client's own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rkube_pki::AnyCertificate;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;

use crate::error::{Error, Result};
use crate::limits::MAX_CA_BYTES;

/// Where distributions keep the bundle; the first that is there is taken.
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Names another bundle (OpenSSL's variable).
const BUNDLE_VARIABLE: &str = "SSL_CERT_FILE";

/// The client's side of TLS for one registry.
pub(crate) fn client_config(
    certs_d: &Path,
    host: &str,
    port: u16,
    verify: bool,
) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::Config {
            path: certs_d.to_owned(),
            reason: e.to_string(),
        })?;
    let dirs = [certs_d.join(format!("{host}:{port}")), certs_d.join(host)];
    let dir = dirs.into_iter().find(|d| d.is_dir());
    let builder = if verify {
        let mut roots = RootCertStore::empty();
        add_system(&mut roots)?;
        if let Some(dir) = &dir {
            for file in files(dir, "crt")? {
                add(&mut roots, &file)?;
            }
        }
        builder.with_root_certificates(roots)
    } else {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate::new(provider)))
    };
    let own = match &dir {
        Some(dir) => client_certificate(dir)?,
        None => None,
    };
    let mut config = match own {
        Some((path, chain, key)) => {
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|e| Error::Config {
                    path,
                    reason: e.to_string(),
                })?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn add_system(roots: &mut RootCertStore) -> Result<()> {
    let named = std::env::var_os(BUNDLE_VARIABLE).map(PathBuf::from);
    let known = BUNDLES.iter().map(PathBuf::from).find(|p| p.is_file());
    // A host without a bundle may still have certs.d; TLS tells what it lacks.
    named.or(known).map_or(Ok(()), |path| add(roots, &path))
}

fn add(roots: &mut RootCertStore, path: &Path) -> Result<()> {
    let bytes = crate::file::read(path, MAX_CA_BYTES)?.unwrap_or_default();
    let mut added = 0;
    for cert in CertificateDer::pem_slice_iter(&bytes) {
        let cert = cert.map_err(|e| bad(path, format!("not PEM: {e}")))?;
        // Bundles hold some that webpki cannot use; they vouch for nobody.
        added += usize::from(roots.add(cert).is_ok());
    }
    if added == 0 {
        return Err(bad(path, "it holds no certificate authority".into()));
    }
    Ok(())
}

fn bad(path: &Path, reason: String) -> Error {
    Error::Config {
        path: path.to_owned(),
        reason,
    }
}

fn files(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let on = |source| Error::File {
        op: "list",
        path: dir.to_owned(),
        source,
    };
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(on)? {
        let path = entry.map_err(on)?.path();
        if path.extension().is_some_and(|e| e == extension) {
            out.push(path);
        }
    }
    out.sort_unstable();
    Ok(out)
}

type ClientCertificate = (
    PathBuf,
    Vec<CertificateDer<'static>>,
    PrivateKeyDer<'static>,
);

fn client_certificate(dir: &Path) -> Result<Option<ClientCertificate>> {
    let Some(path) = files(dir, "cert")?.into_iter().next() else {
        return Ok(None);
    };
    let key_path = path.with_extension("key");
    let bytes = crate::file::read(&path, MAX_CA_BYTES)?.unwrap_or_default();
    let chain = CertificateDer::pem_slice_iter(&bytes)
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|e| bad(&path, format!("not PEM: {e}")))?;
    let bytes = crate::file::read(&key_path, MAX_CA_BYTES)?
        .ok_or_else(|| bad(&path, format!("{} is missing", key_path.display())))?;
    let key = PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|e| bad(&key_path, format!("no private key: {e}")))?;
    Ok(Some((path, chain, key)))
}
