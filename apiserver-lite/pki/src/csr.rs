//! Certificate requests of nodes (PKCS #10, RFC 2986).

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use crate::ca::{Authority, Purpose};
use crate::error::PkiError;

/// Longest request, in bytes of PEM.
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// The group of all nodes.
pub const GROUP_NODES: &str = "system:nodes";
/// Node users: this and the node's name.
pub const NODE_USER_PREFIX: &str = "system:node:";

/// A request and the key that it is for, both in PEM.
#[derive(Debug)]
pub struct Request {
    /// The request.
    pub csr: String,
    /// The key; a secret.
    pub key: String,
}

/// Asks for the client certificate of a node.
///
/// # Errors
/// A name that no certificate can hold, or no random bytes.
pub fn node_request(node: &str) -> Result<Request, PkiError> {
    request(&format!("{NODE_USER_PREFIX}{node}"), GROUP_NODES)
}

/// Asks for the client certificate of a user in a group.
///
/// # Errors
/// As [`node_request`].
pub fn request(user: &str, group: &str) -> Result<Request, PkiError> {
    const WHAT: &str = "a certificate request";
    let key = KeyPair::generate().map_err(PkiError::make(WHAT))?;
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, group);
    name.push(DnType::CommonName, user);
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    let csr = params
        .serialize_request(&key)
        .map_err(PkiError::make(WHAT))?;
    Ok(Request {
        csr: csr.pem().map_err(PkiError::make(WHAT))?,
        key: key.serialize_pem(),
    })
}

/// A request that was read: who it is for, and the key.
pub struct Parsed {
    /// The common name asked for.
    pub common_name: String,
    /// The organisations asked for.
    pub organisations: Vec<String>,
    /// Whether names or addresses are asked for, which a client needs not.
    pub has_alternative_names: bool,
    key: SubjectPublicKeyInfo,
}

impl std::fmt::Debug for Parsed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parsed")
            .field("common_name", &self.common_name)
            .field("organisations", &self.organisations)
            .finish_non_exhaustive()
    }
}

/// Reads a request and checks that its sender has the key.
///
/// # Errors
/// It does not parse, its signature is wrong, or its key is of an unknown kind.
pub fn parse(pem: &str) -> Result<Parsed, PkiError> {
    const WHAT: &str = "the certificate request";
    let invalid = |reason: &dyn std::fmt::Display| PkiError::invalid(WHAT, reason);
    if pem.len() > REQUEST_BYTES_MAX {
        return Err(invalid(&format!(
            "it is longer than {REQUEST_BYTES_MAX} bytes"
        )));
    }
    let der =
        CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|e| invalid(&e))?;
    let (_, request) = X509CertificationRequest::from_der(&der).map_err(|e| invalid(&e))?;
    request.verify_signature().map_err(|e| invalid(&e))?;
    let info = &request.certification_request_info;
    let texts = |values: Vec<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
        values
            .iter()
            .map(|value| value.as_str().map(str::to_owned).map_err(|e| invalid(&e)))
            .collect::<Result<Vec<_>, _>>()
    };
    let names = texts(info.subject.iter_common_name().collect())?;
    let [common_name] = &names[..] else {
        return Err(invalid(&"it needs one common name"));
    };
    let has_alternative_names = request.requested_extensions().is_some_and(|mut all| {
        all.any(|e| {
            matches!(
                e,
                x509_parser::extensions::ParsedExtension::SubjectAlternativeName(_)
            )
        })
    });
    Ok(Parsed {
        common_name: common_name.clone(),
        organisations: texts(info.subject.iter_organization().collect())?,
        has_alternative_names,
        key: SubjectPublicKeyInfo::from_der(info.subject_pki.raw).map_err(|e| invalid(&e))?,
    })
}

impl Authority {
    /// Signs the client certificate of a node (signer
    /// `kubernetes.io/kube-apiserver-client-kubelet`): the subject must be
    /// that of a node and nothing else, as upstream's signer demands.
    ///
    /// # Errors
    /// Another subject, or one that no certificate can hold.
    pub fn sign_node(&self, request: &Parsed, now: u64) -> Result<String, PkiError> {
        let node = request.common_name.strip_prefix(NODE_USER_PREFIX);
        let is_node = request.organisations == [GROUP_NODES]
            && node.is_some_and(|name| !name.is_empty())
            && !request.has_alternative_names;
        if !is_node {
            return Err(PkiError::refused(
                "the certificate request",
                "its subject is not O=system:nodes, CN=system:node:NAME alone",
            ));
        }
        let group = Some(GROUP_NODES);
        self.sign(
            &request.key,
            &request.common_name,
            group,
            &Purpose::Client,
            now,
        )
    }

    /// Signs the serving certificate of a node (signer
    /// `kubernetes.io/kubelet-serving`) for the addresses that its object
    /// shows; what the request names does not count.
    ///
    /// # Errors
    /// The subject is not the node's, or one that no certificate can hold.
    pub fn sign_node_server(
        &self,
        request: &Parsed,
        node: &str,
        ips: &[std::net::IpAddr],
        now: u64,
    ) -> Result<String, PkiError> {
        let is_node = request.organisations == [GROUP_NODES]
            && request.common_name.strip_prefix(NODE_USER_PREFIX) == Some(node);
        if !is_node {
            return Err(PkiError::refused(
                "the certificate request",
                format!("its subject is not that of node {node}"),
            ));
        }
        let purpose = Purpose::Server {
            dns: vec![node.to_owned()],
            ips: ips.to_vec(),
        };
        let group = Some(GROUP_NODES);
        self.sign(&request.key, &request.common_name, group, &purpose, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify;
    use proptest::prelude::*;
    use rustls_pki_types::CertificateDer;

    const NOW: u64 = 1_800_000_000;

    #[test]
    fn a_node_gets_the_certificate_it_asks_for() {
        let (ca, _) = Authority::new("kubernetes", NOW).unwrap();
        let request = node_request("worker-1").unwrap();
        let parsed = parse(&request.csr).unwrap();
        let certificate = ca.sign_node(&parsed, NOW).unwrap();
        let identity = crate::Identity {
            certificate: certificate.clone(),
            key: request.key,
        };
        identity.certified_key().unwrap();
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        let subject = verify::client(&[der], ca.der(), NOW).unwrap();
        assert_eq!(subject.user, "system:node:worker-1");
        assert_eq!(subject.groups, [GROUP_NODES]);
    }

    #[test]
    fn other_subjects_are_refused() {
        let (ca, _) = Authority::new("kubernetes", NOW).unwrap();
        for (organisation, common_name) in [
            ("system:masters", "system:node:a"),
            (GROUP_NODES, "admin"),
            (GROUP_NODES, "system:node:"),
        ] {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params
                .distinguished_name
                .push(DnType::OrganizationName, organisation);
            params
                .distinguished_name
                .push(DnType::CommonName, common_name);
            let pem = params.serialize_request(&key).unwrap().pem().unwrap();
            let parsed = parse(&pem).unwrap();
            assert!(ca.sign_node(&parsed, NOW).is_err(), "{common_name}");
        }
    }

    proptest! {
        #[test]
        fn a_changed_request_asks_for_nothing_else(at in 0usize..2000, to in any::<u8>()) {
            let request = node_request("a").unwrap();
            let der = CertificateSigningRequestDer::from_pem_slice(request.csr.as_bytes()).unwrap();
            let mut bytes = der.to_vec();
            let at = at % bytes.len();
            prop_assume!(bytes[at] != to);
            bytes[at] = to;
            let text = crate::token::base64_text(&bytes);
            let pem = format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n");
            // What stands outside the signed part may change without harm.
            if let Ok(parsed) = parse(&pem) {
                prop_assert_eq!(parsed.common_name, "system:node:a");
                prop_assert_eq!(parsed.organisations, [GROUP_NODES]);
            }
        }
    }
}
