//! A real kube-apiserver over etcd, started for a recording.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use rkube_pki::{Pki, ServerNames};

use crate::client::{Client, Endpoint};
use crate::corpus::sha256;
use crate::drive::{Dialect, Words};
use crate::{SERVICE_RANGE, TOKEN};

/// How long both programs may take to be ready.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Pause between looks at a starting server.
const START_PAUSE: Duration = Duration::from_millis(200);

/// What became the rule after the release: switched on where the release knows it. Without
/// server-side apply there are no managed fields, which rkube does not keep yet.
const FEATURE_GATES: &str =
    "BoundServiceAccountTokenVolume=true,IPv6DualStack=true,ServerSideApply=false";
/// A text that is in every kube-apiserver.
const MARK: &[u8] = b"k8s.io/kubernetes/cmd/kube-apiserver";

/// Versions that the release has under an older name. Their objects are the same but for what
/// `differences.yaml` says; the corpus leaves out fields that only one of the two has.
pub const DIALECT: Dialect = Dialect(&[
    Words {
        corpus: "/apis/policy/v1/",
        server: "/apis/policy/v1beta1/",
    },
    Words {
        corpus: "/apis/discovery.k8s.io/v1/",
        server: "/apis/discovery.k8s.io/v1beta1/",
    },
    Words {
        corpus: "\"policy/v1\"",
        server: "\"policy/v1beta1\"",
    },
    Words {
        corpus: "\"discovery.k8s.io/v1\"",
        server: "\"discovery.k8s.io/v1beta1\"",
    },
]);

/// The programs of a recording.
#[derive(Debug, Clone)]
pub struct Programs {
    /// kube-apiserver.
    pub apiserver: PathBuf,
    /// etcd.
    pub etcd: PathBuf,
}

/// Both programs, running; dropping it ends them.
#[derive(Debug)]
pub struct Oracle {
    children: Vec<Running>,
    folder: tempfile::TempDir,
    endpoint: Endpoint,
    /// `/version` of the server.
    pub version: serde_json::Value,
    /// SHA-256 of the server's program.
    pub program_hash: String,
}

#[derive(Debug)]
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    Ok(listener.local_addr()?.port())
}

fn start(program: &Path, args: &[String], log: &Path) -> anyhow::Result<Running> {
    let file = std::fs::File::create(log).with_context(|| format!("write {}", log.display()))?;
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    Ok(Running(child))
}

/// SHA-256 of a program that has what every kube-apiserver has in it.
fn kube_apiserver(program: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(program).with_context(|| format!("read {}", program.display()))?;
    ensure!(
        bytes.windows(MARK.len()).any(|w| w == MARK),
        "{} is no kube-apiserver",
        program.display()
    );
    Ok(sha256(&bytes))
}

/// Whether a version (`gitVersion`) is not rkube's own.
fn is_foreign(version: &str) -> bool {
    version.starts_with('v') && !version.contains("rkube")
}

impl Oracle {
    /// Starts etcd and kube-apiserver on free ports of 127.0.0.1 and waits until they are ready.
    ///
    /// # Errors
    /// A program that does not start, or is no kube-apiserver.
    pub async fn start(programs: &Programs) -> anyhow::Result<Self> {
        let program_hash = kube_apiserver(&programs.apiserver)?;
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        let flag = |name: &str, value: &dyn std::fmt::Display| format!("--{name}={value}");

        let (etcd_port, peer_port, port) = (free_port()?, free_port()?, free_port()?);
        let etcd_url = format!("http://127.0.0.1:{etcd_port}");
        let peer_url = format!("http://127.0.0.1:{peer_port}");
        let etcd = start(
            &programs.etcd,
            &[
                flag("data-dir", &at("etcd").display()),
                flag("listen-client-urls", &etcd_url),
                flag("advertise-client-urls", &etcd_url),
                flag("listen-peer-urls", &peer_url),
                flag("initial-advertise-peer-urls", &peer_url),
                flag("initial-cluster", &format!("default={peer_url}")),
            ],
            &at("etcd.log"),
        )?;

        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let pki = Pki::open(&at("pki"), now)?;
        let identity = pki.server(&ServerNames::default(), now)?;
        std::fs::write(at("server.crt"), &identity.certificate)?;
        std::fs::write(at("server.key"), &identity.key)?;
        std::fs::write(
            at("tokens"),
            format!("{TOKEN},admin,admin,\"system:masters\"\n"),
        )?;
        let (base, prefix) = SERVICE_RANGE;
        let key = at("server.key");
        let server = start(
            &programs.apiserver,
            &[
                flag("etcd-servers", &etcd_url),
                flag("bind-address", &"127.0.0.1"),
                flag("secure-port", &port),
                flag("insecure-port", &0),
                flag("advertise-address", &"192.0.2.1"),
                flag("tls-cert-file", &at("server.crt").display()),
                flag("tls-private-key-file", &key.display()),
                flag("cert-dir", &at("certs").display()),
                flag("token-auth-file", &at("tokens").display()),
                flag("authorization-mode", &"Node,RBAC"),
                flag("enable-admission-plugins", &"NodeRestriction"),
                flag("allow-privileged", &true),
                flag(
                    "service-account-issuer",
                    &"https://kubernetes.default.svc.cluster.local",
                ),
                flag("service-account-signing-key-file", &key.display()),
                // It reads the public part from a certificate.
                flag("service-account-key-file", &at("server.crt").display()),
                flag("service-cluster-ip-range", &format!("{base}/{prefix}")),
                flag("feature-gates", &FEATURE_GATES),
            ],
            &at("server.log"),
        )?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let endpoint = Endpoint::new(address, pki.authority().pem())?;
        let mut oracle = Self {
            children: vec![server, etcd],
            folder,
            endpoint,
            version: serde_json::Value::Null,
            program_hash,
        };
        oracle.wait_until_ready().await?;
        let git = oracle.version["gitVersion"].as_str().unwrap_or("");
        ensure!(is_foreign(git), "{git:?} is no version of a kube-apiserver");
        Ok(oracle)
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            if let Some((200, _)) = self.ask("/readyz").await {
                break;
            }
            for child in &mut self.children {
                if let Some(status) = child.0.try_wait()? {
                    bail!("a program ended with {status}:\n{}", self.log_end());
                }
            }
            if begun.elapsed() > START_TIMEOUT {
                bail!("not ready:\n{}", self.log_end());
            }
            tokio::time::sleep(START_PAUSE).await;
        }
        let (_, version) = self.ask("/version").await.context("ask for /version")?;
        self.version = serde_json::from_slice(&version).context("read /version")?;
        Ok(())
    }

    async fn ask(&self, path: &str) -> Option<(u16, bytes::Bytes)> {
        let request = hyper::Request::get(path)
            .header("host", "localhost")
            .header("authorization", format!("Bearer {TOKEN}"))
            .body(http_body_util::Full::default())
            .ok()?;
        let answer = Client::new(&self.endpoint).send(request).await.ok()?;
        Some((answer.code, answer.body))
    }

    fn log_end(&self) -> String {
        const LINES: usize = 20;
        let mut out = String::new();
        for name in ["etcd.log", "server.log"] {
            let text = std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(LINES).collect();
            for line in lines.iter().rev() {
                out.push_str(line);
                out.push('\n');
            }
        }
        out
    }

    /// Where it is.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_recording_of_anything_else_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("server");
        std::fs::write(&program, "rkube server").unwrap();
        let programs = Programs {
            apiserver: program.clone(),
            etcd: folder.path().join("none"),
        };
        let refused = Oracle::start(&programs).await.unwrap_err().to_string();
        assert!(refused.ends_with("is no kube-apiserver"), "{refused}");
        std::fs::write(&program, [b"\0", MARK, b"\0"].concat()).unwrap();
        assert_eq!(kube_apiserver(&program).unwrap().len(), 64);
        // Whatever the program holds, what answers must not be rkube.
        assert!(!is_foreign("v1.36.0+rkube-0.1.0") && !is_foreign("1.20.2"));
        assert!(is_foreign("v1.20.2"));
    }
}
