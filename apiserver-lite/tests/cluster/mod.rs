//! A whole API server with its own certificates, roles and plug-ins, a node
//! that echoes, and kubectl.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod kubelet;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use rkube_apiserver::bootstrap::{self, Cluster};
use rkube_apiserver::connect::Connect;
use rkube_apiserver::http::{Checks, Pages, Server, ServerConfig};
use rkube_apiserver::inprocess::InProcess;
use rkube_apiserver::objects::Objects;
use rkube_apiserver::request::User;
use rkube_apiserver::security::assemble;
use rkube_apiserver::streams::{KubeletClient, NodeConnector};
use rkube_apiserver::{Engine, authn, testing};
use rkube_client::https::{Endpoint, Identity, Roots, hosts_file};
use rkube_client::{Client, HttpsConfig, HttpsTransport};
use rkube_pki::kubeconfig::Kubeconfig;
use rkube_pki::resolver::Current;
use rkube_pki::{Pki, ServerNames};
use rkube_stream::node::{
    AttachRequest, Duplex, ExecRequest, Exit, LogBody, LogRequest, NodeStreams, PodRef, Ports,
    Refused, Session, Work,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Echoes: `cat` returns stdin, `both` writes on two streams, `exit N` ends so, `size` tells the
/// terminal's.
#[derive(Debug)]
pub(crate) struct EchoNode;

async fn command(words: Vec<String>, mut session: Session) -> Exit {
    let mut stdout = session.stdout.take().unwrap();
    match words.first().map(String::as_str) {
        Some("cat") => {
            let mut stdin = session.stdin.take().unwrap();
            tokio::io::copy(&mut stdin, &mut stdout).await.unwrap();
            Exit::Code(0)
        }
        Some("both") => {
            let mut stderr = session.stderr.take().unwrap();
            stdout.write_all(b"to stdout\n").await.unwrap();
            stderr.write_all(b"to stderr\n").await.unwrap();
            Exit::Code(0)
        }
        Some("exit") => Exit::Code(words[1].parse().unwrap()),
        other => Exit::Failed(format!(
            "error executing command in container: no {other:?}"
        )),
    }
}

struct EchoPorts;

impl Ports for EchoPorts {
    fn connect(&self, port: u16) -> BoxFuture<'static, Result<Box<dyn Duplex>, String>> {
        Box::pin(async move {
            let (near, far) = tokio::io::duplex(8 << 10);
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(far);
                let mut line = [0; 5];
                read.read_exact(&mut line).await.unwrap();
                write.write_all(&line).await.unwrap();
                let text = format!(" at {port}");
                write.write_all(text.as_bytes()).await.unwrap();
                write.shutdown().await.unwrap();
            });
            Ok(Box::new(near) as Box<dyn Duplex>)
        })
    }
}

impl NodeStreams for EchoNode {
    fn exec(&self, request: ExecRequest) -> BoxFuture<'static, Result<Work, Refused>> {
        Box::pin(async move {
            let words = request.command;
            let work: Work = Box::new(|session| Box::pin(command(words, session)));
            Ok(work)
        })
    }

    fn attach(&self, _: AttachRequest) -> BoxFuture<'static, Result<Work, Refused>> {
        Box::pin(async {
            let work: Work = Box::new(|session| Box::pin(command(vec!["both".into()], session)));
            Ok(work)
        })
    }

    fn port_forward(&self, _: PodRef) -> BoxFuture<'static, Result<Arc<dyn Ports>, Refused>> {
        Box::pin(async { Ok(Arc::new(EchoPorts) as Arc<dyn Ports>) })
    }

    fn logs(&self, request: LogRequest) -> BoxFuture<'static, Result<LogBody, Refused>> {
        Box::pin(async move {
            let text = format!("log of {} {:?}\n", request.container, request.tail_lines);
            Ok(Box::new(std::io::Cursor::new(text.into_bytes())) as LogBody)
        })
    }
}

/// The server and what is needed to drive it. Dropping it ends it.
pub(crate) struct TestCluster {
    pub(crate) engine: Engine,
    pub(crate) folder: TempDir,
    pub(crate) pki: Arc<Pki>,
    pub(crate) server: Server,
    pub(crate) admin: PathBuf,
    pub(crate) kubectl: PathBuf,
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// The kubectls beside the one in PATH, the newest last.
pub(crate) fn kubectls() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join("kubectl"))
        .find_map(|path| std::fs::canonicalize(path).ok());
    let Some(dir) = found.as_deref().and_then(Path::parent) else {
        return found.into_iter().collect();
    };
    let mut all: Vec<PathBuf> = (20..40)
        .map(|minor| dir.join(format!("kubectl.1.{minor}")))
        .filter(|path| path.exists())
        .collect();
    if all.is_empty() {
        all.extend(found);
    }
    all
}

/// Starts a server. `remote`: nodes are reached through their HTTPS port.
pub(crate) async fn start() -> Option<TestCluster> {
    let kubectl = kubectls().pop()?;
    Some(started(kubectl).await)
}

/// A server that no kubectl drives.
pub(crate) async fn bare() -> TestCluster {
    started(PathBuf::new()).await
}

async fn started(kubectl: PathBuf) -> TestCluster {
    let folder = tempfile::tempdir().unwrap();
    let pki = Arc::new(Pki::open(&folder.path().join("pki"), now()).unwrap());
    let mut config = testing::config(&folder.path().join("store")).unwrap();
    let objects = Objects::new(Arc::clone(&config.store));
    let identity = pki.kubelet_client(now()).unwrap();
    let kubelets = KubeletClient::new(&identity, pki.authority().pem()).unwrap();
    let connector = Arc::new(NodeConnector::new(Some(Arc::new(kubelets))));
    connector.add_local("echo", Arc::new(EchoNode));
    let connect: Arc<dyn Connect> = connector;
    let security = assemble(&objects, &pki, &connect).expect("TLS");
    config.authorize = security.authorize;
    config.admission = security.admission;
    config.hooks = security.hooks;
    let engine = Engine::new(config);
    let names = ServerNames {
        domain: "cluster.local".into(),
        ..ServerNames::default()
    };
    let current = Current::new(&pki.server(&names, now()).unwrap()).unwrap();
    let server = ServerConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        tls: Arc::new(authn::tls::server(Arc::new(current)).unwrap()),
        authenticate: security.authenticate,
        checks: Checks::default(),
        pages: Pages::new(),
    };
    let server = Server::start(engine.clone(), server).await.unwrap();
    let cluster = Cluster {
        service_ip: IpAddr::from(Ipv4Addr::new(10, 43, 0, 1)),
        address: IpAddr::from(Ipv4Addr::new(192, 0, 2, 1)),
        port: server.address().port(),
        authority: pki.authority().pem().to_owned(),
    };
    bootstrap::run(&engine, &cluster).await.unwrap();
    // A second start changes nothing.
    let revision = engine.store().revision();
    bootstrap::run(&engine, &cluster).await.unwrap();
    assert_eq!(engine.store().revision(), revision);
    let admin = folder.path().join("admin.conf");
    let url = format!("https://{}", server.address());
    pki.write_admin(&admin, &url, now()).unwrap();
    TestCluster {
        engine,
        folder,
        pki,
        server,
        admin,
        kubectl,
    }
}

/// A client that reaches a server as a kubeconfig says.
pub(crate) fn over_tls(config: &Kubeconfig) -> Client {
    let config = HttpsConfig {
        endpoint: Endpoint::parse(&config.server).unwrap(),
        roots: Roots::Pem(config.authority.clone().into_bytes()),
        identity: config
            .token
            .clone()
            .map_or(Identity::Anonymous, Identity::Token),
        resolve: hosts_file(),
        user_agent: "test".to_owned(),
    };
    Client::new(Arc::new(HttpsTransport::new(config).unwrap()))
}

impl TestCluster {
    /// A client in this process.
    pub(crate) fn client(&self, user: User) -> Client {
        Client::new(Arc::new(InProcess::new(self.engine.clone(), user)))
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command
            .arg("--kubeconfig")
            .arg(&self.admin)
            .args(arguments)
            .env("HOME", self.folder.path())
            .env_remove("KUBECONFIG")
            .stdin(Stdio::null());
        command
    }

    /// Runs kubectl off the server's threads.
    pub(crate) async fn run(&self, arguments: &[&str], stdin: &str) -> Output {
        self.run_with(arguments, stdin, &[]).await
    }

    pub(crate) async fn run_with(
        &self,
        arguments: &[&str],
        stdin: &str,
        env: &[(&str, &str)],
    ) -> Output {
        use std::io::Write as _;
        let mut command = self.command(arguments);
        command.envs(env.iter().copied());
        let stdin = stdin.to_owned();
        tokio::task::spawn_blocking(move || {
            let mut child = command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut pipe = child.stdin.take().unwrap();
            let feeding = std::thread::spawn(move || pipe.write_all(stdin.as_bytes()));
            let output = child.wait_with_output().unwrap();
            // A command that reads nothing breaks the pipe.
            let _ = feeding.join();
            output
        })
        .await
        .unwrap()
    }

    /// Runs kubectl, which must succeed, and gives its output.
    pub(crate) async fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments, "").await;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) async fn apply(&self, manifest: serde_json::Value) {
        let arguments = ["create", "-f", "-"];
        let output = self.run(&arguments, &manifest.to_string()).await;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{manifest}: {stderr}");
    }
}
