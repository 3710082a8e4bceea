//! Images on their way out: to a registry, or into an archive.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

use rustix::fs::{FlockOperation, OFlags};
use serde_json::json;

use crate::catalog::{find, not_found};
use crate::digest::Digest;
use crate::document::{Descriptor, Document, Manifest, OCI_MANIFEST};
use crate::error::{Context, Error, Result};
use crate::fsutil;
use crate::limits::{MAX_IMAGES_PER_IMPORT, MAX_MANIFEST_BYTES, PIPE_CHUNK_BYTES};
use crate::reference::Reference;
use crate::store::{Reading, Store};
use crate::table::Table;
use crate::tarwrite::{self, Meta};

/// An image that is read; while it is held, nothing of the store goes.
#[derive(Debug)]
pub struct Export<'s> {
    store: &'s Store,
    _reading: Reading<'s>,
    /// Digest of the manifest.
    pub manifest_digest: Digest,
    /// The manifest as it was pulled or made.
    pub manifest: Vec<u8>,
    /// Its media type.
    pub media_type: String,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, the lowest first.
    pub layers: Vec<Descriptor>,
    /// References by tag.
    pub references: Vec<String>,
    /// `repository@digest` by which registries know it.
    pub digests: Vec<String>,
}

impl Export<'_> {
    /// Opens a blob of the image.
    ///
    /// # Errors
    /// It is not there.
    pub fn open(&self, digest: &Digest) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
        let name = digest.hex();
        fsutil::open_beneath(self.store.blobs.as_fd(), name.as_bytes(), flags)
            .map(File::from)
            .ctx("open blob", digest.to_string())
    }
}

impl Store {
    /// Begins to read an image, found as [`Store::inspect`] finds it.
    ///
    /// # Errors
    /// As [`Store::inspect`]; a manifest that is damaged.
    pub fn export(&self, query: &str) -> Result<Export<'_>> {
        let reading = self.reading()?;
        let table = Table::load(self.dir.as_fd())?;
        let (digest, _) = find(&table, query)?;
        if !table.images.contains_key(&digest) {
            return Err(not_found(&table, query));
        }
        let manifest = self.read_blob(&digest, MAX_MANIFEST_BYTES)?;
        let what = digest.to_string();
        let Document::Manifest(Manifest { config, layers }) = Document::parse(&manifest, &what)?
        else {
            return Err(Error::Malformed {
                what,
                reason: "the store has an index in the place of a manifest".into(),
            });
        };
        let media_type = serde_json::from_slice::<serde_json::Value>(&manifest)
            .ok()
            .and_then(|v| v["mediaType"].as_str().map(str::to_owned))
            .unwrap_or_else(|| OCI_MANIFEST.to_owned());
        Ok(Export {
            store: self,
            _reading: reading,
            manifest_digest: digest,
            manifest,
            media_type,
            config,
            layers,
            references: table.references_of(&digest),
            digests: table.digests_of(&digest),
        })
    }

    /// Notes that a registry knows an image by `repository@digest`.
    ///
    /// # Errors
    /// If the table cannot be written. An image that is gone is no error.
    pub fn note_digest(&self, manifest: &Digest, name: &str) -> Result<()> {
        let _lock = self.lock("lock", FlockOperation::LockExclusive)?;
        let mut table = Table::load(self.dir.as_fd())?;
        if !table.images.contains_key(manifest) || table.digests.get(name) == Some(manifest) {
            return Ok(());
        }
        table.digests.insert(name.to_owned(), *manifest);
        table.save(self.dir.as_fd())
    }

    /// Writes images as an archive: an OCI layout that is a `docker save`
    /// archive too, as Docker writes it since version 25.
    ///
    /// # Errors
    /// As [`Store::export`]; `out` cannot be written.
    pub fn save(&self, queries: &[String], out: &mut dyn Write) -> Result<()> {
        if queries.len() > MAX_IMAGES_PER_IMPORT {
            return Err(Error::Limit {
                what: "archive".into(),
                limit: MAX_IMAGES_PER_IMPORT as u64,
                unit: "images",
            });
        }
        let images = queries.iter().map(|q| self.export(q).map(|e| (q, e)));
        let images = images.collect::<Result<Vec<_>>>()?;
        let blob = |d: &Digest| format!("blobs/sha256/{}", d.hex());
        let mut written = std::collections::HashSet::new();
        let (mut index, mut docker) = (Vec::new(), Vec::new());
        let mut tar = Tar { out };
        tar.bytes("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        for (query, image) in &images {
            // The name that was asked for, not all that it has.
            let name = Reference::parse(query)
                .ok()
                .filter(|r| r.digest().is_none());
            let name = name
                .map(|r| r.to_string())
                .filter(|n| image.references.contains(n));
            let mut entry = json!({
                "mediaType": image.media_type,
                "digest": image.manifest_digest,
                "size": image.manifest.len(),
            });
            if let Some(name) = &name {
                let tag = name.rsplit(':').next().unwrap_or_default();
                entry["annotations"] = json!({
                    "io.containerd.image.name": name,
                    "org.opencontainers.image.ref.name": tag,
                });
            }
            index.push(entry);
            docker.push(json!({
                "Config": blob(&image.config.digest),
                "RepoTags": name.iter().collect::<Vec<_>>(),
                "Layers": image.layers.iter().map(|l| blob(&l.digest)).collect::<Vec<_>>(),
            }));
            if written.insert(image.manifest_digest) {
                tar.bytes(&blob(&image.manifest_digest), &image.manifest)?;
            }
            for part in std::iter::once(&image.config).chain(&image.layers) {
                if written.insert(part.digest) {
                    tar.file(&blob(&part.digest), image.open(&part.digest)?, part.size)?;
                }
            }
        }
        let index = json!({"schemaVersion": 2, "mediaType": crate::document::OCI_INDEX, "manifests": index});
        tar.bytes("index.json", index.to_string().as_bytes())?;
        tar.bytes("manifest.json", json!(docker).to_string().as_bytes())?;
        tarwrite::finish(&mut tar.out).ctx("write", "archive")?;
        tar.out.flush().ctx("write", "archive")
    }
}

struct Tar<'w> {
    out: &'w mut dyn Write,
}

impl Tar<'_> {
    fn header(&mut self, name: &str, size: u64) -> Result<()> {
        let meta = Meta {
            path: name.as_bytes(),
            kind: b'0',
            mode: 0o644,
            size,
            ..Meta::default()
        };
        tarwrite::header(&mut self.out, &meta).ctx("write", "archive")
    }

    fn bytes(&mut self, name: &str, data: &[u8]) -> Result<()> {
        let size = data.len() as u64;
        self.header(name, size)?;
        self.out.write_all(data).ctx("write", "archive")?;
        tarwrite::pad(&mut self.out, size).ctx("write", "archive")
    }

    fn file(&mut self, name: &str, file: File, size: u64) -> Result<()> {
        use std::io::Read;
        self.header(name, size)?;
        let mut file = file.take(size);
        let mut buf = vec![0; PIPE_CHUNK_BYTES];
        let mut left = size;
        while left > 0 {
            let n = file.read(&mut buf).ctx("read", name)?;
            if n == 0 {
                return Err(Error::Malformed {
                    what: name.into(),
                    reason: "the blob in the store is cut".into(),
                });
            }
            self.out.write_all(&buf[..n]).ctx("write", "archive")?;
            left -= n as u64;
        }
        tarwrite::pad(&mut self.out, size).ctx("write", "archive")
    }
}
