//! Import: from an archive, a layout or a tree to images in the store.
//!
//! An import works in a staging directory and ends with a commit: what it
//! staged is synced, renamed into place, and then the table is replaced. A
//! crash before that leaves the old state and some garbage in `tmp`.

mod contents;
mod docker;
mod oci;
mod parallel;
mod rootfs;
pub(crate) mod staging;

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use serde::Serialize;

use crate::catalog::tag_name;
use crate::digest::Digest;
use crate::error::{Context, Error, Result};
use crate::limits::{DEFAULT_MAX_UNPACKED_BYTES, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES};
use crate::pipe;
use crate::store::Store;
use crate::tar::TarReader;

pub use rootfs::RootfsConfig;

use contents::{Archive, Contents};
pub(crate) use contents::{ReaderInput, tar_error};
use staging::{Staged, Staging};

/// Where an image comes from.
#[allow(missing_debug_implementations)]
pub enum Source<'a> {
    /// A file (archive, maybe compressed), an OCI layout directory, or the
    /// directory of a root file system.
    Path(&'a Path),
    /// A stream, such as standard input, of any kind of archive.
    Reader(&'a mut (dyn Read + Send)),
}

/// What the source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Told by its first entries.
    #[default]
    Auto,
    /// An OCI layout or `docker save` archive.
    Image,
    /// The files of a root file system.
    Rootfs,
}

/// Options of an import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// The name to store the image under instead of the names in the source.
    /// Only for sources with one image.
    pub reference: Option<String>,
    /// What the source is.
    pub format: Format,
    /// Configuration of an image made from a root file system.
    pub rootfs: RootfsConfig,
    /// Which platform to take from an index.
    pub platform: Platform,
    /// Most bytes that this import may decompress, over all layers. The
    /// spooled copy of a stream is bounded by it too.
    pub max_unpacked_bytes: u64,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self {
            reference: None,
            format: Format::Auto,
            rootfs: RootfsConfig::default(),
            platform: Platform::host(),
            max_unpacked_bytes: DEFAULT_MAX_UNPACKED_BYTES,
        }
    }
}

/// A platform in OCI's (Go's) words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, ...
    pub architecture: String,
    /// `v7`, ... for arm.
    pub variant: Option<String>,
}

impl Platform {
    /// This machine's.
    #[must_use]
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", None),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: variant.map(Into::into),
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |v| write!(f, "/{v}"))
    }
}

/// One image that an import brought.
#[derive(Debug, Clone, Serialize)]
pub struct ImportedImage {
    /// Digest of its configuration.
    pub id: Digest,
    /// Digest of its manifest.
    pub manifest_digest: Digest,
    /// The names it is stored under. Empty if the source names none and the
    /// caller gave none: it can then be used by id only.
    pub references: Vec<String>,
    /// `os/arch[/variant]` of its configuration; may differ from the host's.
    pub platform: String,
    /// Number of layers.
    pub layers: usize,
    /// Layers that this import unpacked (the others were there).
    pub new_layers: usize,
}

impl Store {
    /// Imports all images of a source. All or none appear in the store, and
    /// when this returns they survive a power cut.
    ///
    /// # Errors
    /// The source cannot be read or is hostile or broken
    /// ([`Error::Entry`], [`Error::Tar`], [`Error::Digest`], [`Error::Limit`],
    /// [`Error::Malformed`], [`Error::Platform`]), or the disk is full.
    pub fn import(&self, source: Source<'_>, opts: &ImportOptions) -> Result<Vec<ImportedImage>> {
        self.import_as(source, opts, None)
    }

    /// As [`Store::import`], with the content key of a built-in image.
    pub(crate) fn import_as(
        &self,
        source: Source<'_>,
        opts: &ImportOptions,
        builtin: Option<String>,
    ) -> Result<Vec<ImportedImage>> {
        let reference = opts.reference.as_deref().map(tag_name).transpose()?;
        let staging = Staging::new(self, opts, builtin)?;
        let mut found = gather(&staging, source, opts)?;
        if let Some(name) = reference {
            match &mut found[..] {
                [one] => one.references = vec![name],
                many => {
                    return Err(Error::Malformed {
                        what: "source".into(),
                        reason: format!(
                            "it holds {} images, one name cannot be given to all",
                            many.len()
                        ),
                    });
                }
            }
        }
        staging.commit(found)
    }
}

fn gather(staging: &Staging<'_>, source: Source<'_>, opts: &ImportOptions) -> Result<Vec<Staged>> {
    let (file, name) = match source {
        Source::Reader(reader) => (staging.spool(reader, "stream")?, "stream".to_string()),
        Source::Path(path) => {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let fd = rustix::fs::open(path, flags, Mode::empty()).ctx("open", path)?;
            let st = rustix::fs::fstat(&fd).ctx("stat", path)?;
            let name = path.display().to_string();
            match FileType::from_raw_mode(st.st_mode) {
                FileType::Directory => {
                    return from_directory(staging, Contents::Dir(fd), path, opts);
                }
                FileType::RegularFile => (File::from(fd), name),
                // A pipe, a terminal, /dev/stdin.
                _ => (staging.spool(&mut File::from(fd), &name)?, name),
            }
        }
    };
    from_archive(staging, file, &name, opts)
}

fn from_directory(
    staging: &Staging<'_>,
    contents: Contents,
    path: &Path,
    opts: &ImportOptions,
) -> Result<Vec<Staged>> {
    let name = path.display().to_string();
    let layout = contents.read("oci-layout", 4096)?.is_some();
    if opts.format != Format::Rootfs
        && (layout || contents.read("index.json", MAX_MANIFEST_BYTES)?.is_some())
    {
        return oci::import(staging, &contents, &name, opts);
    }
    if opts.format == Format::Image {
        return Err(Error::Malformed {
            what: name,
            reason: "no OCI layout (oci-layout, index.json)".into(),
        });
    }
    let Contents::Dir(fd) = contents else {
        return Err(Error::Malformed {
            what: name,
            reason: "not a directory".into(),
        });
    };
    rootfs::import_directory(staging, fd, opts).map(|one| vec![one])
}

fn from_archive(
    staging: &Staging<'_>,
    file: File,
    name: &str,
    opts: &ImportOptions,
) -> Result<Vec<Staged>> {
    let as_image = match opts.format {
        Format::Image => true,
        Format::Rootfs => false,
        Format::Auto => looks_like_image(&file, name)?,
    };
    if as_image {
        let read = |source| Error::Read {
            what: name.to_string(),
            source,
        };
        let (how, mut plain) =
            pipe::decompress(contents::Section::whole(&file).map_err(read)?).map_err(read)?;
        let file = if how == pipe::Compression::Plain {
            drop(plain);
            file.try_clone().map_err(read)?
        } else {
            staging.spool(&mut plain, name)?
        };
        let contents = Contents::Archive(Archive::index(file, name)?);
        let has = |n: &str| contents.size(n).is_some();
        if has("index.json") && has("oci-layout") {
            return oci::import(staging, &contents, name, opts);
        }
        if has("manifest.json") {
            return docker::import(staging, &contents, name);
        }
        if opts.format == Format::Image {
            return Err(Error::Malformed {
                what: name.to_string(),
                reason: "neither an OCI layout (oci-layout, index.json) nor a docker archive (manifest.json)".into(),
            });
        }
    }
    let section = contents::Section::whole(&file).ctx("stat", name)?;
    rootfs::import(staging, section, opts).map(|one| vec![one])
}

/// Looks at the first entry that says something. Root file systems do not
/// begin with these names; `Format` decides where one does.
fn looks_like_image(file: &File, name: &str) -> Result<bool> {
    let read = |source| Error::Read {
        what: name.to_string(),
        source,
    };
    let section = contents::Section::whole(file).map_err(read)?;
    let (_, plain) = pipe::decompress(section).map_err(read)?;
    let mut tar = TarReader::new(ReaderInput::new(plain));
    loop {
        match tar.next() {
            Ok(Some(e)) => {
                let path = e.path.strip_prefix(b"./").unwrap_or(&e.path);
                if path.is_empty() || path == b"." {
                    continue;
                }
                let first = path.split(|b| *b == b'/').next().unwrap_or(path);
                let stem = first.split(|b| *b == b'.').next().unwrap_or(first);
                // Some writers begin with the configuration: `sha256:...`.
                let stem = stem.strip_prefix(b"sha256:").unwrap_or(stem);
                let id = stem.len() == 64 && stem.iter().all(u8::is_ascii_hexdigit);
                let known: [&[u8]; 7] = [
                    b"oci-layout",
                    b"index.json",
                    b"manifest.json",
                    b"repositories",
                    b"blobs",
                    b"VERSION",
                    b"version",
                ];
                return Ok(id || known.contains(&first));
            }
            Ok(None) => return Ok(false),
            Err(e) => return Err(contents::tar_error(name, tar.offset(), e)),
        }
    }
}

/// Equal items are taken once: the index of each first one, and for every item
/// the place of its like among those.
fn unique<T: PartialEq>(items: &[T]) -> (Vec<usize>, Vec<usize>) {
    let mut first: Vec<usize> = Vec::new();
    let mut place = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let known = first.iter().position(|f| items.get(*f) == Some(item));
        place.push(known.unwrap_or(first.len()));
        if known.is_none() {
            first.push(i);
        }
    }
    (first, place)
}

/// A JSON document of bounded size.
fn document<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|source| Error::Document {
        what: what.to_string(),
        source,
    })
}

/// A document of the source, checked against the digest it is named by.
fn read_verified(contents: &Contents, digest: &Digest, what: &str, limit: u64) -> Result<Vec<u8>> {
    let bytes = contents
        .read(&blob_name(digest), limit)?
        .ok_or_else(|| Error::Malformed {
            what: what.to_string(),
            reason: format!("blob {digest} is missing"),
        })?;
    let actual = Digest::of(&bytes);
    if actual == *digest {
        Ok(bytes)
    } else {
        let (expected, actual) = (digest.to_string(), actual.to_string());
        Err(Error::Digest {
            what: what.to_string(),
            expected,
            actual,
        })
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// What the importer needs of a configuration, checked.
pub(crate) struct Config {
    pub(crate) bytes: Vec<u8>,
    pub(crate) diff_ids: Vec<Digest>,
    pub(crate) platform: String,
}

impl Config {
    pub(crate) fn parse(bytes: Vec<u8>, what: &str) -> Result<Self> {
        if bytes.len() as u64 > MAX_CONFIG_BYTES {
            let what = what.to_string();
            return Err(Error::Limit {
                what,
                limit: MAX_CONFIG_BYTES,
                unit: "bytes",
            });
        }
        let config = crate::catalog::parse_config(&bytes, what)?;
        let bad = |e: crate::digest::BadDigest| Error::Malformed {
            what: what.to_string(),
            reason: format!("rootfs.diff_ids: {e}"),
        };
        let ids = config.rootfs().diff_ids();
        if ids.len() > crate::limits::MAX_LAYERS {
            let limit = crate::limits::MAX_LAYERS as u64;
            return Err(Error::Limit {
                what: what.to_string(),
                limit,
                unit: "layers",
            });
        }
        let diff_ids = ids
            .iter()
            .map(|d| d.parse().map_err(bad))
            .collect::<Result<_>>()?;
        let mut platform = format!("{}/{}", config.os(), config.architecture());
        if let Some(v) = config.variant() {
            platform = format!("{platform}/{v}");
        }
        Ok(Self {
            bytes,
            diff_ids,
            platform,
        })
    }
}

/// Copies with a bound.
fn copy_bounded(from: &mut dyn Read, to: &mut File, limit: u64, what: &str) -> Result<u64> {
    let read = |source| Error::Read {
        what: what.to_string(),
        source,
    };
    let mut buf = vec![0; crate::limits::PIPE_CHUNK_BYTES];
    let mut total = 0;
    loop {
        let n = match from.read(&mut buf) {
            Ok(0) => return Ok(total),
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(read(e)),
        };
        total += n as u64;
        if total > limit {
            return Err(Error::Limit {
                what: what.to_string(),
                limit,
                unit: "bytes",
            });
        }
        to.write_all(&buf[..n]).map_err(read)?;
    }
}
