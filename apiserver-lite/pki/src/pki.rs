//! The certificates of one cluster, below one directory.
//!
//! Only what must outlive a restart is kept: the authority and the key of
//! tokens. Everything that the authority signs is made when it is needed.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;

use crate::ca::{Authority, Identity, Purpose};
use crate::error::PkiError;
use crate::files;
use crate::kubeconfig::Kubeconfig;
use crate::resolver::{Current, is_due};
use crate::token::{DEFAULT_ISSUER, TokenKey, base64_text};

/// What the API server is called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerNames {
    /// Host names, beside those of the Service `kubernetes`.
    pub dns: Vec<String>,
    /// Addresses: the host's, and the first of the Service range.
    pub ips: Vec<IpAddr>,
    /// The cluster's domain, such as `cluster.local`.
    pub domain: String,
}

impl ServerNames {
    /// All names: those given and those of the Service.
    fn purpose(&self) -> Purpose {
        let mut dns = vec![
            "kubernetes".to_owned(),
            "kubernetes.default".to_owned(),
            "kubernetes.default.svc".to_owned(),
            format!("kubernetes.default.svc.{}", self.domain),
            "localhost".to_owned(),
        ];
        dns.extend(self.dns.iter().cloned());
        dns.dedup();
        let mut ips = self.ips.clone();
        ips.extend([
            IpAddr::from([127, 0, 0, 1]),
            IpAddr::from([0u16, 0, 0, 0, 0, 0, 0, 1]),
        ]);
        ips.sort_unstable();
        ips.dedup();
        Purpose::Server { dns, ips }
    }
}

/// The certificates of a cluster.
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
    authority: Authority,
    tokens: Arc<TokenKey>,
}

impl Pki {
    /// Opens what lies in a directory, or makes it at the first start.
    ///
    /// # Errors
    /// A file cannot be read, written or understood; nothing that exists is
    /// overwritten.
    pub fn open(dir: &Path, now: u64) -> Result<Self, PkiError> {
        files::make_dir(dir)?;
        let (certificate_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        let authority = match (files::read(&certificate_path)?, files::read(&key_path)?) {
            (Some(certificate), Some(key)) => Authority::load(&Identity { certificate, key })?,
            (None, key) => {
                // A key alone is what a crash between the two writes left.
                drop(key);
                let (authority, identity) = Authority::new("kubernetes", now)?;
                files::write_secret(&key_path, identity.key.as_bytes())?;
                files::write_secret(&certificate_path, identity.certificate.as_bytes())?;
                authority
            }
            (Some(_), None) => {
                return Err(PkiError::invalid(
                    certificate_path.display().to_string(),
                    "its key ca.key is missing beside it",
                ));
            }
        };
        let path = dir.join("sa.key");
        let pem = match files::read(&path)? {
            Some(pem) => pem,
            None => {
                let text = base64_text(&TokenKey::generate()?);
                let pem =
                    format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
                files::write_secret(&path, pem.as_bytes())?;
                pem
            }
        };
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|e| PkiError::invalid(path.display().to_string(), e))?;
        Ok(Self {
            dir: dir.to_owned(),
            authority,
            tokens: Arc::new(TokenKey::load(key.secret_pkcs8_der(), DEFAULT_ISSUER)?),
        })
    }

    /// Where it lies.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The authority.
    #[must_use]
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The key of service account tokens.
    #[must_use]
    pub const fn tokens(&self) -> &Arc<TokenKey> {
        &self.tokens
    }

    /// The API server's certificate.
    ///
    /// # Errors
    /// A name that no certificate can hold.
    pub fn server(&self, names: &ServerNames, now: u64) -> Result<Identity, PkiError> {
        self.authority
            .issue("kube-apiserver", None, &names.purpose(), now)
    }

    /// Renews a server's certificate if it is time; whether it was.
    ///
    /// # Errors
    /// As [`Pki::server`]; the old one stays.
    pub fn renew(
        &self,
        current: &Current,
        names: &ServerNames,
        now: u64,
    ) -> Result<bool, PkiError> {
        if !current.is_due(now) {
            return Ok(false);
        }
        current.replace(&self.server(names, now)?)?;
        Ok(true)
    }

    /// The certificate by which the API server proves itself to kubelets.
    ///
    /// # Errors
    /// No random bytes.
    pub fn kubelet_client(&self, now: u64) -> Result<Identity, PkiError> {
        let group = Some("kubeadm:cluster-admins");
        self.authority.issue(
            "kube-apiserver-kubelet-client",
            group,
            &Purpose::Client,
            now,
        )
    }

    /// A kubelet's serving certificate (signer `kubernetes.io/kubelet-serving`).
    ///
    /// # Errors
    /// A name that no certificate can hold.
    pub fn kubelet_server(
        &self,
        node: &str,
        ips: &[IpAddr],
        now: u64,
    ) -> Result<Identity, PkiError> {
        let purpose = Purpose::Server {
            dns: vec![node.to_owned()],
            ips: ips.to_vec(),
        };
        let user = format!("{}{node}", crate::csr::NODE_USER_PREFIX);
        self.authority
            .issue(&user, Some(crate::csr::GROUP_NODES), &purpose, now)
    }

    /// A client of the API server, as a kubeconfig.
    ///
    /// # Errors
    /// A name that no certificate can hold.
    pub fn client(
        &self,
        server: &str,
        user: &str,
        group: Option<&str>,
        now: u64,
    ) -> Result<Kubeconfig, PkiError> {
        let identity = self.authority.issue(user, group, &Purpose::Client, now)?;
        Ok(Kubeconfig {
            server: server.to_owned(),
            authority: self.authority.pem().to_owned(),
            client: Some((identity.certificate, identity.key)),
            ..Kubeconfig::default()
        })
    }

    /// Writes the administrator's kubeconfig unless a good one is there: for
    /// this server, of this authority, with time left. Whether it wrote.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_admin(&self, path: &Path, server: &str, now: u64) -> Result<bool, PkiError> {
        let is_good = |config: &Kubeconfig| {
            let end = config
                .client
                .as_ref()
                .map(|(cert, _)| crate::ca::not_after(cert));
            config.server == server
                && config.authority == self.authority.pem()
                && end.is_some_and(|end| end.is_ok_and(|end| !is_due(end, now)))
        };
        if Kubeconfig::read(path).as_ref().is_ok_and(is_good) {
            return Ok(false);
        }
        if let Some(dir) = path.parent() {
            files::make_dir(dir)?;
        }
        let config = self.client(server, "kubernetes-admin", Some("system:masters"), now)?;
        config.write(path, "kubernetes", "kubernetes-admin")?;
        Ok(true)
    }
}
