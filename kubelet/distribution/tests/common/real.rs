//! Debian's docker-registry on loopback.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rkube_image::{ImportOptions, Source};

use super::Host;

/// docker-registry of a directory; it ends with the value.
pub struct Real {
    child: Child,
    pub host: String,
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Real {
    /// `None` where it is not installed and `RKUBE_TESTS_MAY_SKIP` is set.
    pub fn start(dir: &Path, extra: &str) -> Option<Self> {
        let program = Path::new("/usr/bin/docker-registry");
        if !program.exists() {
            let may = std::env::var_os("RKUBE_TESTS_MAY_SKIP").is_some();
            assert!(
                may,
                "docker-registry is not installed; RKUBE_TESTS_MAY_SKIP=1 does without"
            );
            return None;
        }
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = free.local_addr().unwrap().to_string();
        drop(free);
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: {host}\n{extra}",
            dir.join("data").display()
        );
        std::fs::write(dir.join("config.yml"), config).unwrap();
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let child = Command::new(program)
            .args(["serve".as_ref(), dir.join("config.yml").as_os_str()])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let real = Self { child, host };
        let begin = Instant::now();
        while std::net::TcpStream::connect(&real.host).is_err() {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "docker-registry does not listen"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(real)
    }
}

/// Imports a layer as an image.
pub fn import(host: &Host, name: &str, archive: &[u8]) {
    let options = ImportOptions {
        reference: Some(name.to_owned()),
        format: rkube_image::Format::Rootfs,
        ..ImportOptions::default()
    };
    let mut archive = archive;
    host.store
        .import(Source::Reader(&mut archive), &options)
        .unwrap();
}
