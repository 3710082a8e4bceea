//! Who a client's certificate proves (x509 authentication of the API server).

use std::ops::RangeInclusive;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::error::PkiError;

/// Longest certificate looked at, in bytes.
const CERTIFICATE_BYTES_MAX: usize = 16 << 10;
/// Most certificates of a chain.
const CHAIN_COUNT_MAX: usize = 8;

/// A name and groups out of a certificate's subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The common name.
    pub user: String,
    /// The organisations.
    pub groups: Vec<String>,
    /// SHA-256 of the certificate in hexadecimal, which upstream adds to the
    /// user as `authentication.kubernetes.io/credential-id`.
    pub fingerprint: String,
    /// When the certificate itself is valid, in seconds since 1970.
    pub valid: RangeInclusive<u64>,
}

/// Checks that `chain` (its own certificate first) leads to `authority`, is
/// valid at `now` and made for clients, and reads its subject.
///
/// # Errors
/// Any of these does not hold, or there is no common name.
pub fn client(
    chain: &[CertificateDer<'_>],
    authority: &CertificateDer<'_>,
    now: u64,
) -> Result<Subject, PkiError> {
    const WHAT: &str = "the client certificate";
    let refused = |reason: &dyn std::fmt::Display| PkiError::refused(WHAT, reason);
    let (own, others) = chain
        .split_first()
        .ok_or_else(|| refused(&"there is none"))?;
    if chain.len() > CHAIN_COUNT_MAX || chain.iter().any(|c| c.len() > CERTIFICATE_BYTES_MAX) {
        return Err(refused(&"the chain is too long"));
    }
    let anchor = anchor_from_trusted_cert(authority)
        .map_err(|e| PkiError::invalid("the certificate authority", format!("{e:?}")))?;
    let certificate = EndEntityCert::try_from(own).map_err(|e| refused(&format!("{e:?}")))?;
    certificate
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &[anchor],
            others,
            UnixTime::since_unix_epoch(Duration::from_secs(now)),
            KeyUsage::client_auth(),
            None,
            None,
        )
        .map_err(|e| refused(&format!("{e:?}")))?;
    let (_, parsed) = X509Certificate::from_der(own).map_err(|e| refused(&e))?;
    let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        value.as_str().map(str::to_owned).map_err(|e| refused(&e))
    };
    let user = match parsed.subject().iter_common_name().next() {
        Some(name) => text(name)?,
        None => return Err(refused(&"it has no common name")),
    };
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    let groups = parsed.subject().iter_organization();
    let groups = groups.map(text).collect::<Result<_, _>>()?;
    Ok(Subject {
        user,
        groups,
        fingerprint: crate::ca::sha256_hex(own),
        valid: seconds(parsed.validity().not_before)..=seconds(parsed.validity().not_after),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::{Authority, LEAF_SECONDS, Purpose};
    use proptest::prelude::*;
    use rustls_pki_types::pem::PemObject as _;

    const NOW: u64 = 1_800_000_000;

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    #[test]
    fn names_that_the_authority_vouches_for() {
        let (ca, _) = Authority::new("kubernetes", NOW).unwrap();
        let group = Some("system:nodes");
        let node = ca
            .issue("system:node:a", group, &Purpose::Client, NOW)
            .unwrap();
        let chain = [der(&node.certificate)];
        let subject = client(&chain, ca.der(), NOW).unwrap();
        assert_eq!(subject.user, "system:node:a");
        assert_eq!(subject.groups, ["system:nodes"]);
        assert_eq!(subject.fingerprint.len(), 64);
        assert!(subject.valid.contains(&NOW));
        assert_eq!(*subject.valid.end(), NOW + LEAF_SECONDS);

        assert!(
            client(&chain, ca.der(), NOW + LEAF_SECONDS + 1).is_err(),
            "too late"
        );
        assert!(client(&chain, ca.der(), NOW - 7200).is_err(), "too early");
        assert!(client(&[], ca.der(), NOW).is_err());
        let (other, _) = Authority::new("kubernetes", NOW).unwrap();
        assert!(
            client(&chain, other.der(), NOW).is_err(),
            "of the same name"
        );
        let server = Purpose::Server {
            dns: vec!["kubernetes".into()],
            ips: vec![],
        };
        let server = ca.issue("system:masters", None, &server, NOW).unwrap();
        assert!(client(&[der(&server.certificate)], ca.der(), NOW).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (ca, _) = Authority::new("kubernetes", NOW).unwrap();
            prop_assert!(client(&[CertificateDer::from(bytes)], ca.der(), NOW).is_err());
        }

        #[test]
        fn a_changed_certificate_is_refused(at in 0usize..4000, bit in 0u8..8) {
            let (ca, _) = Authority::new("kubernetes", NOW).unwrap();
            let node = ca.issue("system:node:a", Some("system:nodes"), &Purpose::Client, NOW).unwrap();
            let mut bytes = der(&node.certificate).to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(client(&[CertificateDer::from(bytes)], ca.der(), NOW).is_err());
        }
    }
}
