//! Debian's docker-registry on the loopback of a test host.

use std::fmt::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::case::lacking;
use crate::host::TestHost;
use crate::wait::{WAIT_SECS, until};

/// Where Debian's package puts it.
const PROGRAM: &str = "/usr/bin/docker-registry";
/// User and password of a registry with [`Options::password`].
pub const USER: (&str, &str) = ("user", "secret");
/// bcrypt (cost 4) of that password.
const HTPASSWD: &str = "user:$2b$04$wlAGm5wdly4G03MgC/EpzuZCqTLW49u5UHYLQc/JX9p5rmy99H5Sm\n";

/// How a registry is set up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// It speaks TLS with a certificate of its own making.
    pub tls: bool,
    /// It lets in only [`USER`].
    pub password: bool,
    /// The port; a free one if none.
    pub port: Option<u16>,
}

/// A running registry; it ends with the value.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    /// `127.0.0.1:PORT`.
    pub host: String,
    /// Its certificate, with TLS.
    pub certificate: PathBuf,
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    /// Starts a registry with its own directory below the host's files.
    ///
    /// # Errors
    /// It is not installed (a skip), or it does not come up; its log is shown.
    pub fn start(host: &TestHost, name: &str, options: Options) -> anyhow::Result<Registry> {
        demand()?;
        let dir = host.files().join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let address = match options.port {
            Some(port) => format!("127.0.0.1:{port}"),
            None => free_address()?,
        };
        let certificate = dir.join("tls.crt");
        let mut config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\nhttp:\n  addr: {address}\n",
            dir.join("data").display()
        );
        if options.tls {
            let key = rcgen::KeyPair::generate().context("make a key")?;
            let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
            let cert = params.self_signed(&key).context("sign a certificate")?;
            std::fs::write(&certificate, cert.pem())?;
            std::fs::write(dir.join("tls.key"), key.serialize_pem())?;
            let key = dir.join("tls.key");
            writeln!(
                config,
                "  tls: {{certificate: {}, key: {}}}",
                certificate.display(),
                key.display()
            )?;
        }
        if options.password {
            let path = dir.join("htpasswd");
            std::fs::write(&path, HTPASSWD)?;
            writeln!(
                config,
                "auth: {{htpasswd: {{realm: test, path: {}}}}}",
                path.display()
            )?;
        }
        let file = dir.join("config.yml");
        std::fs::write(&file, config)?;
        let log = dir.join("log");
        let child = Command::new(PROGRAM)
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .spawn()
            .context("start docker-registry")?;
        let registry = Registry {
            child,
            host: address,
            certificate,
        };
        let up = until(
            "docker-registry to listen",
            Duration::from_secs(WAIT_SECS),
            || Ok(std::net::TcpStream::connect(&registry.host).ok()),
        );
        up.with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?;
        Ok(registry)
    }

    /// `HOST/PATH`, the name of an image there.
    pub fn image(&self, path: &str) -> String {
        format!("{}/{path}", self.host)
    }

    /// The port.
    pub fn port(&self) -> Option<u16> {
        self.host.rsplit(':').next()?.parse().ok()
    }
}

/// Where there is no docker-registry, registries are not tested.
///
/// # Errors
/// [`lacking`].
pub fn demand() -> anyhow::Result<()> {
    if Path::new(PROGRAM).exists() {
        Ok(())
    } else {
        Err(lacking("docker-registry is not installed"))
    }
}

fn free_address() -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    let address = listener.local_addr()?;
    ensure!(address.port() != 0, "no free port");
    Ok(address.to_string())
}
