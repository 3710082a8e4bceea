//! Archives for tests, written here byte by byte: nothing of the crate's own
//! writer, so that an error in it cannot hide one in the reader.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rkube_image::{Digest, Store};
use serde_json::{Value, json};

pub struct Host {
    pub dir: tempfile::TempDir,
    pub store: Store,
}

impl Host {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("images")).unwrap();
        Self { dir, store }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, data: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, data).unwrap();
        path
    }
}

#[derive(Clone, Default)]
pub struct Tar {
    pub bytes: Vec<u8>,
    pax: Vec<u8>,
}

pub struct E<'a> {
    pub kind: u8,
    pub name: &'a [u8],
    pub link: &'a [u8],
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
    pub dev: (u32, u32),
    pub data: &'a [u8],
}

impl Default for E<'_> {
    fn default() -> Self {
        Self {
            kind: b'0',
            name: b"",
            link: b"",
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 1_700_000_000,
            dev: (0, 0),
            data: b"",
        }
    }
}

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn raw_header(e: &E<'_>, size: u64) -> [u8; 512] {
        let mut h = [0_u8; 512];
        h[..e.name.len().min(100)].copy_from_slice(&e.name[..e.name.len().min(100)]);
        h[157..157 + e.link.len().min(100)].copy_from_slice(&e.link[..e.link.len().min(100)]);
        let put = |h: &mut [u8; 512], at: usize, n: usize, v: u64| {
            let text = format!("{v:0w$o}", w = n - 1);
            h[at..at + n - 1].copy_from_slice(&text.as_bytes()[..n - 1]);
        };
        put(&mut h, 100, 8, e.mode.into());
        put(&mut h, 108, 8, e.uid);
        put(&mut h, 116, 8, e.gid);
        put(&mut h, 124, 12, size);
        put(&mut h, 136, 12, e.mtime);
        put(&mut h, 329, 8, e.dev.0.into());
        put(&mut h, 337, 8, e.dev.1.into());
        h[156] = e.kind;
        h[257..263].copy_from_slice(b"ustar\0");
        h[263..265].copy_from_slice(b"00");
        h
    }

    pub fn seal(mut h: [u8; 512]) -> [u8; 512] {
        h[148..156].fill(b' ');
        let sum: u32 = h.iter().map(|b| u32::from(*b)).sum();
        h[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        h
    }

    pub fn pax(&mut self, key: &str, value: &[u8]) -> &mut Self {
        let mut len = key.len() + value.len() + 4;
        while len != key.len() + value.len() + 3 + len.to_string().len() {
            len = key.len() + value.len() + 3 + len.to_string().len();
        }
        self.pax.extend(format!("{len} {key}=").as_bytes());
        self.pax.extend(value);
        self.pax.push(b'\n');
        self
    }

    pub fn add(&mut self, e: &E<'_>) -> &mut Self {
        if !self.pax.is_empty() {
            let pax = std::mem::take(&mut self.pax);
            let x = E {
                kind: b'x',
                name: b"pax",
                ..E::default()
            };
            self.block(Self::seal(Self::raw_header(&x, pax.len() as u64)), &pax);
        }
        self.block(Self::seal(Self::raw_header(e, e.data.len() as u64)), e.data)
    }

    pub fn block(&mut self, header: [u8; 512], data: &[u8]) -> &mut Self {
        self.bytes.extend(header);
        self.bytes.extend(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub fn dir(&mut self, name: &str) -> &mut Self {
        self.add(&E {
            kind: b'5',
            name: name.as_bytes(),
            mode: 0o755,
            ..E::default()
        })
    }

    pub fn file(&mut self, name: &str, data: &[u8]) -> &mut Self {
        self.add(&E {
            name: name.as_bytes(),
            data,
            ..E::default()
        })
    }

    pub fn symlink(&mut self, name: &str, to: &str) -> &mut Self {
        let (name, link) = (name.as_bytes(), to.as_bytes());
        self.add(&E {
            kind: b'2',
            name,
            link,
            mode: 0o777,
            ..E::default()
        })
    }

    pub fn hardlink(&mut self, name: &str, to: &str) -> &mut Self {
        self.add(&E {
            kind: b'1',
            name: name.as_bytes(),
            link: to.as_bytes(),
            ..E::default()
        })
    }

    pub fn done(&self) -> Vec<u8> {
        let mut b = self.bytes.clone();
        b.extend([0; 1024]);
        b
    }
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut z = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    z.write_all(data).unwrap();
    z.finish().unwrap()
}

pub fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<Digest> = layers.iter().map(|l| Digest::of(l)).collect();
    json!({
        "architecture": rkube_image::Platform::host().architecture, "os": "linux",
        "config": {"Cmd": ["/bin/sh"], "Env": null, "Volumes": null, "ExposedPorts": {"80/tcp": {}}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string()
    .into_bytes()
}

/// Files of an OCI layout: uncompressed and gzipped layers in turn.
pub fn layout(layers: &[Vec<u8>], name: Option<&str>) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![(
        "oci-layout".to_string(),
        b"{\"imageLayoutVersion\":\"1.0.0\"}".to_vec(),
    )];
    let mut blob = |data: Vec<u8>, media: &str| -> Value {
        let d = Digest::of(&data);
        let size = data.len();
        files.push((format!("blobs/sha256/{}", d.hex()), data));
        json!({"mediaType": media, "digest": d, "size": size})
    };
    let described: Vec<Value> = layers
        .iter()
        .enumerate()
        .map(|(i, l)| match i % 2 {
            0 => blob(l.clone(), "application/vnd.oci.image.layer.v1.tar"),
            _ => blob(gzip(l), "application/vnd.oci.image.layer.v1.tar+gzip"),
        })
        .collect();
    let config = blob(config(layers), "application/vnd.oci.image.config.v1+json");
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": described});
    let mut top = blob(
        manifest.to_string().into_bytes(),
        "application/vnd.oci.image.manifest.v1+json",
    );
    if let Some(name) = name {
        top["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    }
    let index = json!({"schemaVersion": 2, "manifests": [top]})
        .to_string()
        .into_bytes();
    files.push(("index.json".into(), index));
    files
}

pub fn tar_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut t = Tar::new();
    for (name, data) in files {
        t.file(name, data);
    }
    t.done()
}

/// `docker save` before version 25.
pub fn docker(layers: &[Vec<u8>], tags: &[&str]) -> Vec<u8> {
    let config = config(layers);
    let config_name = format!("{}.json", Digest::of(&config).hex());
    let mut t = Tar::new();
    let mut names = Vec::new();
    for (i, l) in layers.iter().enumerate() {
        let dir = format!("{:064x}", i + 1);
        t.dir(&format!("{dir}/"));
        t.file(&format!("{dir}/VERSION"), b"1.0");
        t.file(&format!("{dir}/layer.tar"), l);
        names.push(format!("{dir}/layer.tar"));
    }
    t.file(&config_name, &config);
    let list = json!([{"Config": config_name, "RepoTags": tags, "Layers": names}]);
    t.file("manifest.json", list.to_string().as_bytes());
    t.done()
}

/// Reads a file through a detached mount.
pub fn read_at(root: &OwnedFd, path: &str) -> std::io::Result<Vec<u8>> {
    use rustix::fs::{Mode, OFlags};
    let fd = rustix::fs::openat(root.as_fd(), path, OFlags::RDONLY, Mode::empty())?;
    let mut out = Vec::new();
    std::io::Read::read_to_end(&mut std::fs::File::from(fd), &mut out)?;
    Ok(out)
}

/// The layers of an image as one call sees them.
pub fn diff(store: &Store, reference: &str, layer: usize) -> PathBuf {
    store.resolve(reference).unwrap().layers[layer].path.clone()
}

pub fn busybox() -> Option<Vec<u8>> {
    std::fs::read("/bin/busybox").ok()
}

pub fn count_files(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}
