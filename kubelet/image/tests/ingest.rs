//! Images that come layer by layer: what is kept of a layer that did not come
//! whole, and how much room an image may take.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::cell::Cell;
use std::io::{self, Read};

use common::{Host, Tar, config, count_files};
use rkube_image::document::{Document, Manifest};
use rkube_image::{
    BlobSource, Digest, Error, Format, ImportOptions, Ingest, IngestOptions, Names, Source,
};
use serde_json::json;

/// One layer, as a registry would send it.
struct Sent<'s> {
    bytes: &'s [u8],
    /// The error that ends it, and after how many bytes.
    ends: Option<(usize, i32)>,
    opened: Cell<usize>,
}

impl<'s> Sent<'s> {
    fn new(bytes: &'s [u8], ends: Option<(usize, i32)>) -> Self {
        Self {
            bytes,
            ends,
            opened: Cell::new(0),
        }
    }
}

struct Broken(i32);

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(self.0))
    }
}

impl BlobSource for Sent<'_> {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send + '_>> {
        self.opened.set(self.opened.get() + 1);
        let rest = &self.bytes[usize::try_from(offset).unwrap()..];
        Ok(match self.ends {
            Some((after, errno)) => Box::new(rest[..after].chain(Broken(errno))),
            None => Box::new(rest),
        })
    }

    fn is_over(&self) -> bool {
        false
    }

    fn least_bytes(&self) -> u64 {
        0
    }
}

fn manifest(config: &[u8], layer: &[u8], size: u64) -> (Vec<u8>, Manifest) {
    let text = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::of(config).to_string(), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": Digest::of(layer).to_string(), "size": size}],
    });
    let bytes = text.to_string().into_bytes();
    let Document::Manifest(parsed) = Document::parse(&bytes, "test").unwrap() else {
        panic!("no manifest");
    };
    (bytes, parsed)
}

fn ingest<'h>(host: &'h Host, layer: &[u8]) -> Ingest<'h> {
    let config = config(&[layer.to_vec()]);
    let (bytes, parsed) = manifest(&config, layer, layer.len() as u64);
    let options = IngestOptions::default();
    host.store
        .ingest(options, "test", &bytes, &parsed, config)
        .unwrap()
}

#[test]
fn a_full_disk_is_no_reason_to_fetch_a_layer_again() {
    let host = Host::new();
    let mut tar = Tar::new();
    tar.file("f", &[7; 50_000]);
    let layer = tar.done();
    let image = ingest(&host, &layer);
    let cut = Sent::new(&layer, Some((20_000, 104)));
    assert!(image.take(0, &cut).is_err(), "ECONNRESET");
    let partial = host.path("images/partial").join(Digest::of(&layer).hex());
    let kept = || partial.metadata().unwrap().len();
    assert_eq!(kept(), 20_000);
    let full = Sent::new(&layer, Some((10_000, 28)));
    assert!(image.take(0, &full).is_err(), "ENOSPC");
    assert_eq!((full.opened.get(), kept()), (1, 30_000));
    // What is not sound is fetched again, once.
    std::fs::write(&partial, vec![1; 30_000]).unwrap();
    let sound = Sent::new(&layer, None);
    let taken = image.take(0, &sound).unwrap().unwrap();
    assert_eq!(sound.opened.get(), 2);
    let names = Names {
        references: vec!["docker.io/library/a:1".into()],
        ..Names::default()
    };
    image.commit(vec![taken], names).unwrap();
    assert_eq!(count_files(&host.path("images/partial")), 0);
    assert!(host.store.verify("a:1").unwrap().problems.is_empty());
}

#[test]
fn a_whole_partial_blob_that_ends_too_early_is_fetched_again() {
    let host = Host::new();
    let mut tar = Tar::new();
    tar.file("f", &[7; 50_000]);
    let layer = common::gzip(&tar.done());
    let config = config(&[tar.done()]);
    let (bytes, parsed) = manifest(&config, &layer, layer.len() as u64);
    let options = IngestOptions::default();
    let image = host
        .store
        .ingest(options, "test", &bytes, &parsed, config)
        .unwrap();
    // Torn by a power cut: an empty stored block (RFC 1951, 3.2.4) over and
    // over, and the end never comes.
    let mut torn = layer[..10].to_vec();
    while torn.len() < layer.len() {
        torn.extend([0, 0, 0, 0xff, 0xff]);
    }
    torn.truncate(layer.len());
    let partial = host.path("images/partial").join(Digest::of(&layer).hex());
    std::fs::write(&partial, torn).unwrap();
    let sound = Sent::new(&layer, None);
    image.take(0, &sound).unwrap().unwrap();
    assert_eq!(sound.opened.get(), 1);
}

#[test]
fn a_layer_that_no_image_got_is_swept() {
    let host = Host::new();
    let mut tar = Tar::new();
    tar.file("f", &[7; 50_000]);
    let layer = tar.done();
    let image = ingest(&host, &layer);
    image.take(0, &Sent::new(&layer, None)).unwrap();
    assert!(host.store.disk_usage().unwrap().unswept_bytes > 50_000);
    // Another image may use it, until nobody is left.
    let other = ingest(&host, &layer);
    drop(image);
    assert!(other.known(0).unwrap().is_some());
    drop(other);
    for part in ["layers", "blobs/sha256", "tmp"] {
        assert_eq!(count_files(&host.path("images").join(part)), 0, "{part}");
    }
    // The blob waits for the next try.
    assert_eq!(count_files(&host.path("images/partial")), 1);
    let again = ingest(&host, &layer);
    let source = Sent::new(&layer, None);
    again.take(0, &source).unwrap().unwrap();
    assert_eq!(source.opened.get(), 0);
}

fn import(host: &Host, layer: &[u8], max_unpacked_bytes: u64) -> Result<(), Error> {
    let options = ImportOptions {
        reference: Some("a:1".into()),
        format: Format::Rootfs,
        max_unpacked_bytes,
        ..ImportOptions::default()
    };
    let done = host.store.import(Source::Reader(&mut &layer[..]), &options);
    done.map(drop)
}

#[test]
fn what_unpacks_to_nothing_costs_room_too() {
    const MIB: usize = 1 << 20;
    let mut tar = Tar::new();
    tar.file("f", b"small");
    let frame = zstd::encode_all(&tar.done()[..], 1).unwrap();
    // Skippable frames (RFC 8878, 3.1.2), and empty gzip members.
    let skip = [&[0x50, 0x2a, 0x4d, 0x18, 0, 0, 1, 0][..], &[0; 65536]].concat();
    let mut frames = skip.repeat(40);
    frames.extend(&frame);
    let empty = common::gzip(b"");
    let mut members = empty.repeat(3 * MIB / empty.len());
    members.extend(common::gzip(&tar.done()));
    for (name, layer) in [("zstd", frames), ("gzip", members)] {
        let host = Host::new();
        let error = import(&host, &layer, MIB as u64).unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string);
        let text = format!("{error}: {}", source.unwrap_or_default());
        assert!(text.contains("more"), "{name}: {text}");
        for part in ["layers", "blobs/sha256", "tmp"] {
            assert_eq!(count_files(&host.path("images").join(part)), 0, "{part}");
        }
        import(&host, &layer, 8 * MIB as u64).unwrap();
    }
}

#[test]
fn directories_and_small_files_cost_whole_blocks() {
    for kind in ["directories", "files"] {
        let mut tar = Tar::new();
        for i in 0..300 {
            match kind {
                "files" => tar.file(&i.to_string(), b"1"),
                _ => tar.dir(&i.to_string()),
            };
        }
        let layer = tar.done();
        let host = Host::new();
        let error = import(&host, &layer, 1 << 20).unwrap_err();
        assert!(error.to_string().contains("more than 1048576"), "{error}");
        import(&host, &layer, 2 << 20).unwrap();
    }
}

#[test]
fn a_manifest_that_announces_too_much_is_refused_at_once() {
    let host = Host::new();
    let layer = Tar::new().done();
    let config = config(std::slice::from_ref(&layer));
    for size in [65 << 30, u64::from(u32::MAX) << 31] {
        let (bytes, parsed) = manifest(&config, &layer, size);
        let options = IngestOptions::default();
        let got = host
            .store
            .ingest(options, "test", &bytes, &parsed, config.clone());
        assert!(matches!(got, Err(Error::Limit { .. })));
    }
}
