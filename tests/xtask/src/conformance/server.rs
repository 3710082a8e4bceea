//! The cluster that the suite drives: one server in a test host.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, ensure};
use rkube_tests::command::{Next, Running};
use rkube_tests::host::TestHost;
use rkube_tests::outside::Outside;
use rustix::process::Signal;

use super::images::Archive;

/// How long the server may take to be ready, or to end.
const PATIENCE: Duration = Duration::from_secs(90);
/// No registry has these images: a disk that others filled must not take them.
const KUBELET: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nimageGCHighThresholdPercent: 100\nimageGCLowThresholdPercent: 99\n";
/// How long one image may take.
const IMPORT: Duration = Duration::from_secs(300);

/// A server that runs, with its output going to a file.
pub(super) struct Cluster {
    host: TestHost,
    _outside: Outside,
    stop: Arc<AtomicBool>,
    pid: u32,
    reader: JoinHandle<Running>,
}

impl Cluster {
    /// Imports the images into a new root and starts a server over it.
    pub(super) fn start(dir: &Path, archives: &[Archive], log: &Path) -> anyhow::Result<Cluster> {
        let host = TestHost::open(dir)?;
        let outside = Outside::join()?;
        let config = host.root().join("etc/rkube");
        std::fs::create_dir_all(&config)
            .and_then(|()| std::fs::write(config.join("kubelet.yaml"), KUBELET))
            .with_context(|| format!("write in {}", config.display()))?;
        for archive in archives {
            let path = archive.path.to_string_lossy();
            host.rkube(["image", "import", &path, archive.name])?
                .within(IMPORT)
                .ok()?;
        }
        // Cases of 1.20 wait for a Secret with the account's token.
        let flags = [
            "server",
            "--node-name",
            "one",
            "--legacy-service-account-tokens",
        ];
        let mut running = host.rkube(flags)?.env("RKUBE_LOG", "info").spawn()?;
        running.line("readiness", PATIENCE, |l| l.contains("the server is ready"))?;
        let mut file =
            std::fs::File::create(log).with_context(|| format!("make {}", log.display()))?;
        let (stop, pid) = (Arc::new(AtomicBool::new(false)), running.pid());
        let stopped = Arc::clone(&stop);
        let reader = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match running.next_line(Duration::from_secs(1)) {
                    // A log that cannot be written must not stop the server.
                    Next::Line(line) => drop(writeln!(file, "{line}")),
                    Next::Silence => {}
                    Next::End => break,
                }
            }
            running
        });
        println!(
            "the server is process {pid}, its root {}",
            host.root().display()
        );
        Ok(Cluster {
            host,
            _outside: outside,
            stop,
            pid,
            reader,
        })
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.host.root().join("etc/rkube/admin.conf")
    }

    pub(super) fn files(&self) -> &Path {
        self.host.files()
    }

    /// Ends the server in good order.
    pub(super) fn end(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let running = self.reader.join().map_err(|_| {
            anyhow::anyhow!("the reader of the output of process {} panicked", self.pid)
        })?;
        running.signal(Signal::TERM)?;
        let (status, lines) = running.end(PATIENCE)?;
        ensure!(status.success(), "{status}:\n{}", lines.join("\n"));
        Ok(())
    }
}
