//! What is fuzzed: decoders that meet bytes of registries, archives and
//! users. Each function takes any bytes and panics where a rule is broken.
//!
//! Two drivers share them: `make fuzz` (libFuzzer, guided by coverage) and the
//! test `corpus` of `rkube-distribution`, which replays the committed corpora
//! and deterministic mutations of them in every `make test`.

use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use rkube_image::document::{Document, choose};
use rkube_image::{
    BlobSource, Digest, Error, ImportOptions, IngestOptions, Keyring, Names, Platform, Reference,
    Source, Store,
};

/// A target.
pub type Target = fn(&[u8]);

/// All of them, by the name of their corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("image_archive", image_archive),
    ("image_config", image_config),
    ("image_layer", image_layer),
    ("image_manifest", image_manifest),
    ("image_reference", image_reference),
    ("registry_answers", registry_answers),
    ("registry_config", registry_config),
    ("registry_headers", registry_headers),
];

/// More than any input unpacks to by honest means.
const MAX_UNPACKED_BYTES: u64 = 4 << 20;
/// A tar header's magic, and where its checksum is (POSIX.1-2017, pax,
/// "ustar Interchange Format").
const MAGIC_AT: std::ops::Range<usize> = 257..262;
const CHECKSUM_AT: std::ops::Range<usize> = 148..156;

/// A directory in memory, where there is one: stores are made by the thousand.
fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    made.expect("a directory")
}

fn names(dir: &Path) -> usize {
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}

/// Gives the headers of a plain archive the checksums that they want: a
/// mutation that only breaks one teaches nothing.
fn seal(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for header in out.chunks_exact_mut(512) {
        if &header[MAGIC_AT] != b"ustar" {
            continue;
        }
        header[CHECKSUM_AT].fill(b' ');
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        let text = format!("{sum:06o}\0 ");
        header[CHECKSUM_AT].copy_from_slice(text.as_bytes());
    }
    out
}

/// Archives of images and of root file systems: whatever they hold, nothing
/// outside the store changes, and a refused one leaves nothing.
pub fn image_archive(bytes: &[u8]) {
    let dir = directory();
    let victim = dir.path().join("victim");
    std::fs::write(&victim, "mine").expect("write");
    let store = Store::open(&dir.path().join("images")).expect("a store");
    let options = ImportOptions {
        max_unpacked_bytes: MAX_UNPACKED_BYTES,
        ..ImportOptions::default()
    };
    let sealed = seal(bytes);
    let mut reader = &sealed[..];
    let imported = store.import(Source::Reader(&mut reader), &options);
    assert_eq!(std::fs::read(&victim).expect("read"), b"mine");
    assert_eq!(names(dir.path()), 2);
    match imported {
        Ok(images) => {
            // What was taken in is what the archive says.
            for image in images {
                let report = store.verify(&image.id.to_string()).expect("verify");
                assert!(report.problems.is_empty(), "{:?}", report.problems);
            }
        }
        Err(error) => {
            assert!(error.to_string().len() < 16_384);
            for part in ["tmp", "layers", "blobs/sha256"] {
                assert_eq!(names(&store.path().join(part)), 0, "{part}");
            }
        }
    }
}

/// The manifest of an image with this configuration and these layers.
fn manifest_of(config: &[u8], layers: &[&[u8]]) -> Vec<u8> {
    let part = |kind: &str, bytes: &[u8]| {
        let (digest, size) = (Digest::of(bytes), bytes.len());
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{digest}","size":{size}}}"#
        )
    };
    let layers: Vec<String> = layers.iter().map(|l| part("layer.v1.tar", l)).collect();
    format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}]}}"#,
        part("config.v1+json", config),
        layers.join(",")
    )
    .into_bytes()
}

/// A blob as a registry sends it that cuts the way once.
struct Cut<'b> {
    bytes: &'b [u8],
    /// How much comes the first time.
    first: usize,
    opened: AtomicUsize,
}

/// The connection is gone.
struct Gone;

impl Read for Gone {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ConnectionReset.into())
    }
}

impl BlobSource for Cut<'_> {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send + '_>> {
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|at| self.bytes.get(at..));
        let rest = rest.expect("an offset within the blob");
        if self.opened.fetch_add(1, Ordering::Relaxed) == 0 {
            let most = self.first.min(rest.len());
            return Ok(Box::new(rest[..most].chain(Gone)));
        }
        Ok(Box::new(rest))
    }

    fn is_over(&self) -> bool {
        false
    }

    fn least_bytes(&self) -> u64 {
        0
    }
}

/// Takes an image of one layer in as a pull does, over a way that is cut where
/// `first` says; what came of it.
fn pull(store: &Store, config: &[u8], layer: &[u8], first: usize) -> Result<(), Error> {
    let manifest = manifest_of(config, &[layer]);
    let Document::Manifest(parsed) = Document::parse(&manifest, "fuzz")? else {
        panic!("a manifest that is none");
    };
    let options = IngestOptions {
        max_unpacked_bytes: MAX_UNPACKED_BYTES,
    };
    let ingest = store.ingest(options, "fuzz", &manifest, &parsed, config.to_vec())?;
    let source = Cut {
        bytes: layer,
        first,
        opened: AtomicUsize::new(0),
    };
    let taken = match ingest.take(0, &source) {
        Ok(taken) => taken,
        Err(_) => ingest.take(0, &source)?,
    };
    let taken = taken.expect("nobody else brings it");
    let id = ingest.commit(vec![taken], Names::default())?.id;
    let report = store.verify(&id.to_string()).expect("verify");
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    Ok(())
}

/// Layers as they are pulled: the way is cut somewhere, and goes on. The first
/// two bytes say where.
pub fn image_layer(bytes: &[u8]) {
    let Some((at, layer)) = bytes.split_first_chunk() else {
        return;
    };
    let layer = seal(layer);
    let dir = directory();
    let store = Store::open(&dir.path().join("images")).expect("a store");
    // Of an uncompressed layer; the diffID of another is wrong, which is told.
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        Digest::of(&layer)
    );
    let first = usize::from(u16::from_le_bytes(*at));
    if pull(&store, config.as_bytes(), &layer, first).is_err() {
        for part in ["tmp", "layers", "blobs/sha256", "partial"] {
            assert_eq!(names(&store.path().join(part)), 0, "{part}");
        }
    }
    assert_eq!(names(dir.path()), 1);
}

/// Configurations of images, as a pull brings them.
pub fn image_config(bytes: &[u8]) {
    let dir = directory();
    let store = Store::open(&dir.path().join("images")).expect("a store");
    let layer = [0; 1024];
    if let Err(error) = pull(&store, bytes, &layer, layer.len()) {
        assert!(error.to_string().len() < 4096);
        for part in ["tmp", "layers", "blobs/sha256"] {
            assert_eq!(names(&store.path().join(part)), 0, "{part}");
        }
    }
}

/// What registries, token servers and credential helpers answer, and
/// `Content-Range`.
pub fn registry_answers(bytes: &[u8]) {
    rkube_distribution::fuzzing::answers(bytes);
}

/// Manifests and indexes: bounded, and never both.
pub fn image_manifest(bytes: &[u8]) {
    match Document::parse(bytes, "fuzz") {
        Ok(Document::Manifest(manifest)) => {
            assert!(manifest.layers.len() <= rkube_image::limits::MAX_LAYERS);
            assert!(manifest.config.size <= rkube_image::limits::MAX_CONFIG_BYTES);
        }
        Ok(Document::Index(index)) => {
            let _ = choose("fuzz", &index.manifests, &Platform::host());
        }
        Err(error) => assert!(error.to_string().len() < 4096),
    }
}

/// References: what parses has a normal form that means the same, and never
/// another registry than the one that is written.
pub fn image_reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(reference) = Reference::parse(text) else {
        return;
    };
    let normal = reference.to_string();
    let again = Reference::parse(&normal).expect("the normal form parses");
    assert_eq!(again, reference);
    assert_eq!(
        Reference::parse(&reference.familiar()).expect("the familiar form parses"),
        reference
    );
    assert!(!reference.path().contains("..") && !normal.contains(['\0', '\n', ' ']));
    let first = text.split('/').next().unwrap_or_default();
    if !text.contains('/') || !(first.contains(['.', ':']) || first == "localhost") {
        assert!(
            reference.registry() == "docker.io" || first.bytes().any(|b| b.is_ascii_uppercase())
        );
    }
}

/// `registries.conf`, and Docker's `config.json` and `.dockercfg`.
pub fn registry_config(bytes: &[u8]) {
    let _ = rkube_distribution::fuzzing::config(bytes);
    for ring in [Keyring::from_config(bytes), Keyring::from_dockercfg(bytes)]
        .into_iter()
        .flatten()
    {
        let _ = ring.find_at("registry.test:5000", "team/app");
        let _ = ring.find_at("docker.io", "library/busybox");
    }
}

/// Header fields of registries: `WWW-Authenticate`, `Location`, `Retry-After`.
pub fn registry_headers(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    assert!(rkube_distribution::fuzzing::challenge(text) <= 64);
    let _ = rkube_distribution::fuzzing::header(text);
}
