//! A registry of the tests' own, on loopback: it has what it is given and
//! misbehaves as it is told.

#![allow(
    clippy::unwrap_used,
    dead_code,
    missing_debug_implementations,
    missing_docs,
    unreachable_pub
)]

pub mod real;
pub mod tls;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use rkube_distribution::{Patience, Registries};
use rkube_image::pull::{LayerEvent, Progress, PullRequest};
use rkube_image::{Digest, Reference, Store};
use serde_json::{Value, json};

/// A request as a handler sees it.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
    /// How many requests for the same method and path came before.
    pub seen: usize,
    pub body: Vec<u8>,
}

/// What a handler answers.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Sends only so many bytes of the body, then closes.
    pub cut: Option<usize>,
    /// Sends only so many bytes of the body, then says nothing for long.
    pub stall: Option<usize>,
    /// Sends the body byte by byte with this pause between them.
    pub trickle: Option<Duration>,
}

pub fn reply(status: u16, body: impl Into<Vec<u8>>) -> Reply {
    Reply {
        status,
        body: body.into(),
        ..Reply::default()
    }
}

impl Reply {
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

type Handler = dyn Fn(&Request) -> Option<Reply> + Send + Sync;

/// A running registry; its threads end with the test's process.
pub struct Server {
    pub host: String,
    pub log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Answers by `special`, else from `blobs` by digest and name.
    pub fn start(
        blobs: HashMap<String, Vec<u8>>,
        special: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        Self::start_slow(blobs, Duration::ZERO, special)
    }

    /// As [`Server::start`]; waits after each MiB of a body that it reads.
    pub fn start_slow(
        blobs: HashMap<String, Vec<u8>>,
        pause: Duration,
        special: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (blobs, special, seen) = (Arc::new(blobs), Arc::new(special), Arc::clone(&log));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (blobs, special, log) =
                    (Arc::clone(&blobs), Arc::clone(&special), Arc::clone(&seen));
                std::thread::spawn(move || serve(stream, pause, &blobs, &*special, &log));
            }
        });
        Self { host, log }
    }

    /// Requests whose path holds this.
    pub fn requests(&self, part: &str) -> Vec<Request> {
        let log = self.log.lock().unwrap();
        log.iter()
            .filter(|r| r.path.contains(part))
            .cloned()
            .collect()
    }
}

fn serve(
    mut stream: TcpStream,
    pause: Duration,
    blobs: &HashMap<String, Vec<u8>>,
    special: &Handler,
    log: &Mutex<Vec<Request>>,
) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(0) => return,
            Ok(_) if line.contains("HTTP/1.1") => {}
            // A TLS greeting: say something that is no TLS.
            _ => {
                let _ = stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n");
                return;
            }
        }
        let mut words = line.split(' ');
        let (method, path) = (
            words.next().unwrap().to_owned(),
            words.next().unwrap().to_owned(),
        );
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers
            .get("content-length")
            .and_then(|v| v.parse().ok())
            .unwrap_or(0);
        let mut body = vec![0; length];
        for part in body.chunks_mut(1 << 20) {
            if reader.read_exact(part).is_err() {
                return;
            }
            std::thread::sleep(pause);
        }
        let request = {
            let mut log = log.lock().unwrap();
            let seen = log
                .iter()
                .filter(|r: &&Request| r.method == method && r.path == path)
                .count();
            let request = Request {
                method,
                path,
                headers,
                seen,
                body,
            };
            log.push(request.clone());
            request
        };
        let reply = special(&request).unwrap_or_else(|| plain(&request, blobs));
        if !send(&mut stream, &request, &reply) {
            return;
        }
    }
}

/// What an honest registry says.
pub fn plain(request: &Request, blobs: &HashMap<String, Vec<u8>>) -> Reply {
    let name = request.path.rsplit('/').next().unwrap_or_default();
    let Some(bytes) = blobs.get(name) else {
        return reply(
            404,
            r#"{"errors":[{"code":"NAME_UNKNOWN","message":"not here"}]}"#,
        );
    };
    let range = request.headers.get("range").and_then(|v| {
        v.strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse::<usize>()
            .ok()
    });
    match range {
        Some(at) => reply(206, &bytes[at..]).header(
            "Content-Range",
            format!("bytes {at}-{}/{}", bytes.len() - 1, bytes.len()),
        ),
        None => reply(200, bytes.clone()),
    }
}

fn send(stream: &mut TcpStream, request: &Request, reply: &Reply) -> bool {
    let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
    let chunked = reply.headers.iter().any(|(n, _)| n == "Transfer-Encoding");
    let body = if chunked {
        let size = format!("{:x}\r\n", reply.body.len()).into_bytes();
        [&size[..], &reply.body, b"\r\n0\r\n\r\n"].concat()
    } else {
        head.push_str(&format!("Content-Length: {}\r\n", reply.body.len()));
        reply.body.clone()
    };
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    if stream.write_all(head.as_bytes()).is_err() {
        return false;
    }
    if request.method == "HEAD" {
        return true;
    }
    if let Some(pause) = reply.trickle {
        for byte in body {
            std::thread::sleep(pause);
            if stream.write_all(&[byte]).is_err() {
                return false;
            }
        }
        return true;
    }
    let most = reply
        .cut
        .or(reply.stall)
        .unwrap_or(body.len())
        .min(body.len());
    let sent = stream.write_all(&body[..most]).is_ok();
    if reply.stall.is_some() {
        std::thread::sleep(Duration::from_secs(30));
    }
    sent && reply.cut.is_none() && reply.stall.is_none()
}

/// An image of some layers, as a registry has it.
pub struct Made {
    pub blobs: HashMap<String, Vec<u8>>,
    pub layers: Vec<(Digest, Vec<u8>)>,
    pub manifest: Digest,
}

/// A layer archive with one file of this many bytes.
pub fn layer(name: &str, bytes: usize) -> Vec<u8> {
    let mut data: Vec<u8> = Vec::new();
    let mut seed = 12345_u32;
    while data.len() < bytes {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        data.extend(seed.to_le_bytes());
    }
    data.truncate(bytes);
    let mut header = [0_u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[108..115].copy_from_slice(b"0000000");
    header[116..123].copy_from_slice(b"0000000");
    header[124..135].copy_from_slice(format!("{bytes:011o}").as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[148..156].copy_from_slice(b"        ");
    header[156] = b'0';
    header[257..262].copy_from_slice(b"ustar");
    header[263..265].copy_from_slice(b"00");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    header[154] = 0;
    let mut out = header.to_vec();
    out.extend(&data);
    out.resize(out.len().div_ceil(512) * 512 + 1024, 0);
    out
}

pub fn image(layers: Vec<Vec<u8>>, tag: &str) -> Made {
    let mut blobs = HashMap::new();
    let mut keep = |bytes: Vec<u8>| {
        let digest = Digest::of(&bytes);
        blobs.insert(digest.to_string(), bytes);
        digest
    };
    let described: Vec<(Digest, Vec<u8>)> =
        layers.into_iter().map(|l| (keep(l.clone()), l)).collect();
    let ids: Vec<String> = described.iter().map(|(d, _)| d.to_string()).collect();
    let config = json!({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": ids}});
    let config_bytes = config.to_string().into_bytes();
    let config_size = config_bytes.len();
    let config = keep(config_bytes);
    let list: Vec<Value> = described
        .iter()
        .map(|(d, l)| json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": d.to_string(), "size": l.len()}))
        .collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.to_string(), "size": config_size},
        "layers": list,
    });
    let bytes = manifest.to_string().into_bytes();
    let manifest = keep(bytes.clone());
    blobs.insert(tag.to_owned(), bytes);
    Made {
        blobs,
        layers: described,
        manifest,
    }
}

/// A door that a handler waits at until the test opens it.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    /// Waits; false if it stays shut for a minute.
    pub fn pass(&self) -> bool {
        let shut = self.0.0.lock().unwrap();
        let wait = Duration::from_secs(60);
        *self
            .0
            .1
            .wait_timeout_while(shut, wait, |open| !*open)
            .unwrap()
            .0
    }
}

/// Opens gates as layers are done.
#[derive(Default)]
pub struct Watch {
    pub done: Gate,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

impl Progress for Watch {
    fn layer(&self, _: usize, event: LayerEvent) {
        if event == LayerEvent::Done {
            self.done.open();
        }
    }
}

/// A root with a store, and the registries of its configuration.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub store: Store,
    pub registries: Registries,
}

impl Host {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("images")).unwrap();
        let registries = Registries::of_root(dir.path()).with_patience(Patience {
            head: Duration::from_secs(5),
            idle: Duration::from_millis(500),
            least: Duration::from_secs(1),
            upload: Duration::from_secs(2),
            first_pause: Duration::from_millis(2),
        });
        Self {
            dir,
            store,
            registries,
        }
    }

    pub fn pull(&self, image: &str) -> rkube_distribution::Result<rkube_image::pull::PulledImage> {
        self.registries.pull_image(
            &self.store,
            &PullRequest::new(Reference::parse(image).unwrap()),
        )
    }

    /// Nothing of an image is visible, nothing lies in the way.
    pub fn assert_nothing(&self) {
        assert!(self.store.list().unwrap().is_empty());
        for part in ["tmp", "layers", "blobs/sha256"] {
            let dir = self.dir.path().join("images").join(part);
            let left: Vec<_> = std::fs::read_dir(&dir)
                .unwrap()
                .flatten()
                .map(|e| e.file_name())
                .collect();
            assert!(left.is_empty(), "{part}: {left:?}");
        }
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join("etc/rkube").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn partial(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("images/partial"))
            .unwrap()
            .count()
    }
}
