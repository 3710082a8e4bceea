//! The certificate authority and what it signs.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use ring::digest;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::error::PkiError;

/// How long an authority lives: ten years, as kubeadm's.
pub const AUTHORITY_SECONDS: u64 = 3650 * 24 * 3600;
/// How long what it signs lives: a year, as kubeadm's.
pub const LEAF_SECONDS: u64 = 365 * 24 * 3600;
/// What clocks may differ: certificates begin this long before they are made.
const SKEW_SECONDS: u64 = 3600;

/// What a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// Proves a user to the API server.
    Client,
    /// Proves a server to its clients, by these names and addresses.
    Server {
        /// DNS names.
        dns: Vec<String>,
        /// Addresses.
        ips: Vec<IpAddr>,
    },
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// The key (PKCS #8).
    pub key: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl Identity {
    /// As rustls takes it.
    ///
    /// # Errors
    /// The certificate or key does not parse, or they do not belong together.
    pub fn certified_key(&self) -> Result<CertifiedKey, PkiError> {
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(self.certificate.as_bytes())
                .collect::<Result<_, _>>()
                .map_err(|e| PkiError::invalid("a certificate", e))?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes())
            .map_err(|e| PkiError::invalid("a private key", e))?;
        CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())
            .map_err(|e| PkiError::invalid("a certificate with its key", e))
    }

    /// When the certificate ends, in seconds since 1970.
    ///
    /// # Errors
    /// The certificate does not parse.
    pub fn not_after(&self) -> Result<u64, PkiError> {
        not_after(&self.certificate)
    }
}

/// When a certificate in PEM ends, in seconds since 1970.
pub(crate) fn not_after(pem: &str) -> Result<u64, PkiError> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|e| PkiError::invalid("a certificate", e))?;
    let (_, certificate) =
        X509Certificate::from_der(&der).map_err(|e| PkiError::invalid("a certificate", e))?;
    let end = certificate.validity().not_after.timestamp();
    Ok(u64::try_from(end).unwrap_or(0))
}

/// An authority: it signs.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
    not_after: u64,
}

impl Authority {
    /// A new one, and its identity to be kept.
    ///
    /// # Errors
    /// No random bytes.
    pub fn new(common_name: &str, now: u64) -> Result<(Self, Identity), PkiError> {
        const WHAT: &str = "a certificate authority";
        let key = KeyPair::generate().map_err(PkiError::make(WHAT))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(common_name, None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        validity(&mut params, now, AUTHORITY_SECONDS);
        let certificate = params.self_signed(&key).map_err(PkiError::make(WHAT))?;
        let identity = Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        };
        Ok((Self::load(&identity)?, identity))
    }

    /// One that was kept.
    ///
    /// # Errors
    /// The certificate or key does not parse, or the key is of another.
    pub fn load(identity: &Identity) -> Result<Self, PkiError> {
        const WHAT: &str = "the certificate authority";
        let key = KeyPair::from_pem(&identity.key).map_err(|e| PkiError::invalid(WHAT, e))?;
        // rustls compares key and certificate.
        identity.certified_key()?;
        let der = CertificateDer::from_pem_slice(identity.certificate.as_bytes())
            .map_err(|e| PkiError::invalid(WHAT, e))?;
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|e| PkiError::invalid(WHAT, e))?;
        Ok(Self {
            issuer,
            pem: identity.certificate.clone(),
            der,
            not_after: identity.not_after()?,
        })
    }

    /// Its certificate in PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Its certificate in DER.
    #[must_use]
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// When it ends, in seconds since 1970.
    #[must_use]
    pub const fn not_after(&self) -> u64 {
        self.not_after
    }

    /// `sha256:` and the hash of its public key, by which a joining node
    /// knows it (kubeadm's `--discovery-token-ca-cert-hash`, RFC 7469).
    ///
    /// # Errors
    /// The certificate does not parse.
    pub fn hash(&self) -> Result<String, PkiError> {
        crate::bootstrap::certificate_hash(&self.der)
    }

    /// A new certificate with a new key; the group becomes the organisation,
    /// as the API server reads it.
    ///
    /// # Errors
    /// A name that no certificate can hold, or no random bytes.
    pub fn issue(
        &self,
        user: &str,
        group: Option<&str>,
        purpose: &Purpose,
        now: u64,
    ) -> Result<Identity, PkiError> {
        let key = KeyPair::generate().map_err(PkiError::make("a key"))?;
        let certificate = self.sign(&key, user, group, purpose, now)?;
        Ok(Identity {
            certificate,
            key: key.serialize_pem(),
        })
    }

    /// A certificate in PEM for a key of somebody else.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn sign(
        &self,
        key: &impl PublicKeyData,
        user: &str,
        group: Option<&str>,
        purpose: &Purpose,
        now: u64,
    ) -> Result<String, PkiError> {
        const WHAT: &str = "a certificate";
        let mut params = CertificateParams::default();
        params.distinguished_name = name(user, group);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.is_ca = IsCa::ExplicitNoCa;
        match purpose {
            Purpose::Client => {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }
            Purpose::Server { dns, ips } => {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                for dns in dns {
                    let dns = dns.as_str().try_into().map_err(PkiError::make(WHAT))?;
                    params.subject_alt_names.push(SanType::DnsName(dns));
                }
                let ips = ips.iter().map(|ip| SanType::IpAddress(*ip));
                params.subject_alt_names.extend(ips);
            }
        }
        // Nothing outlives the one who vouches for it.
        let left = self.not_after.saturating_sub(now);
        validity(&mut params, now, LEAF_SECONDS.min(left));
        let signed = params.signed_by(key, &self.issuer);
        Ok(signed.map_err(PkiError::make(WHAT))?.pem())
    }
}

fn name(common_name: &str, organisation: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(organisation) = organisation {
        name.push(DnType::OrganizationName, organisation);
    }
    name.push(DnType::CommonName, common_name);
    name
}

fn validity(params: &mut CertificateParams, now: u64, seconds: u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(now.saturating_sub(SKEW_SECONDS));
    params.not_after = epoch + Duration::from_secs(now.saturating_add(seconds));
}

/// SHA-256 in hexadecimal.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let hash = digest::digest(&digest::SHA256, bytes);
    hash.as_ref().iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
