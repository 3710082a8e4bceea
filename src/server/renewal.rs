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
    use super::*;
    use rkube_pki::resolver::RENEW_BEFORE_SECONDS;

    #[test]
    fn what_is_due_is_renewed_once() {
        let dir = tempfile::tempdir().unwrap();
        let begin = now_s();
        let pki = Arc::new(Pki::open(&dir.path().join("pki"), begin).unwrap());
        let names = ServerNames::default();
        let server = pki.server(&names, begin).unwrap();
        let client = pki.kubelet_client(begin).unwrap();
        let end = server.not_after().unwrap();
        let admin = dir.path().join("admin.conf");
        let mut renewal = Renewal {
            current: Arc::new(Current::new(&server).unwrap()),
            kubelets: Arc::new(KubeletClient::new(&client, pki.authority().pem()).unwrap()),
            kubelets_end: client.not_after().unwrap(),
            admin: (vec![admin.clone()], "https://127.0.0.1:6443".into()),
            pki,
            names,
        };
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
}
