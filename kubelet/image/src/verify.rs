//! Checks an image on demand: each blob against its digest, each unpacked
//! file against the layer that it is from.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, OFlags};
use serde::Serialize;

use crate::catalog::{find, not_found};
use crate::digest::{Digest, Hasher};
use crate::entry::is_whiteout_stat;
use crate::error::{Context, Error, Result};
use crate::fsutil::{self, DIR_FLAGS};
use crate::layer::{OPAQUE_MARKER, WHITEOUT_PREFIX, clean, split};
use crate::limits::{MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, PIPE_CHUNK_BYTES};
use crate::pipe::{self, Budget};
use crate::store::Store;
use crate::table::{LayerRecord, Table};
use crate::tar::{Entry, Input, Kind, TarReader};

/// Problems that one report names; more are counted no further.
const MAX_PROBLEMS: usize = 100;
/// Deepest directory that the search for foreign files enters.
const MAX_DEPTH: usize = 2048;

/// What a check found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Verified {
    /// The image's references.
    pub references: Vec<String>,
    /// Blobs that were read.
    pub blobs: usize,
    /// Unpacked entries that were compared.
    pub entries: u64,
    /// What is wrong; nothing, if the image is sound.
    pub problems: Vec<String>,
}

impl Verified {
    fn tell(&mut self, problem: String) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        }
    }
}

/// What a path of a layer has to be.
#[derive(Clone)]
enum Expected {
    File {
        owner: (u32, u32, u32),
        size: u64,
        /// Not for sparse files, whose holes the archive does not have.
        content: Option<Digest>,
    },
    Dir {
        owner: (u32, u32, u32),
    },
    Symlink(Vec<u8>),
    Node(FileType),
    /// Hides something below; may have become an opaque directory.
    Whiteout,
}

impl Store {
    /// Checks one image, found as [`Store::inspect`] finds it. Damage is in
    /// the report, not an error.
    ///
    /// # Errors
    /// There is no such image, or the disk cannot be read at all.
    pub fn verify(&self, query: &str) -> Result<Verified> {
        let _reading = self.reading()?;
        let table = Table::load(self.dir.as_fd())?;
        let (digest, _) = find(&table, query)?;
        let record = table
            .images
            .get(&digest)
            .ok_or_else(|| not_found(&table, query))?;
        let mut report = Verified {
            references: table.references_of(&digest),
            ..Verified::default()
        };
        for (what, blob, limit) in [
            ("manifest", &digest, MAX_MANIFEST_BYTES),
            ("configuration", &record.config, MAX_CONFIG_BYTES),
        ] {
            report.blobs += 1;
            if let Err(e) = self.read_blob(blob, limit) {
                report.tell(format!("{what} {blob}: {e}"));
            }
        }
        let mut seen = std::collections::HashSet::new();
        for layer in record
            .layers
            .iter()
            .filter(|l| seen.insert((l.blob, l.diff_id)))
        {
            report.blobs += 1;
            if let Err(e) = self.verify_layer(layer, &mut report) {
                report.tell(format!("layer {}: {}", layer.diff_id, chain(&e)));
            }
        }
        Ok(report)
    }

    fn verify_layer(&self, layer: &LayerRecord, report: &mut Verified) -> Result<()> {
        let name = layer.blob.hex();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
        let blob = fsutil::open_beneath(self.blobs.as_fd(), name.as_bytes(), flags)
            .ctx("open blob", layer.blob.to_string())?;
        let no_bound = Budget::new(u64::MAX);
        let what = layer.blob.to_string();
        let (got, diff, expected) = pipe::run(&what, File::from(blob), None, &no_bound, |input| {
            expect(&mut TarReader::new(input), &what)
        })?;
        if got.digest != layer.blob {
            report.tell(format!("blob {}: its digest is {}", layer.blob, got.digest));
        }
        if diff != layer.diff_id {
            report.tell(format!(
                "blob {}: it unpacks to {diff}, not {}",
                layer.blob, layer.diff_id
            ));
        }
        if got.bytes != layer.blob_bytes {
            report.tell(format!(
                "blob {}: it has {} bytes, not {}",
                layer.blob, got.bytes, layer.blob_bytes
            ));
        }
        let path = format!("{}/diff", layer.diff_id.hex());
        let root = fsutil::open_beneath(self.layers.as_fd(), path.as_bytes(), DIR_FLAGS)
            .ctx("open directory", &path)?;
        for (path, wanted) in &expected {
            report.entries += 1;
            if let Err(problem) = compare(&root, path, wanted) {
                let shown = String::from_utf8_lossy(path);
                report.tell(format!("layer {}: {shown}: {problem}", layer.diff_id));
            }
        }
        foreign(&root, &expected, &mut |path| {
            let shown = String::from_utf8_lossy(path);
            report.tell(format!(
                "layer {}: {shown}: it is not of this layer",
                layer.diff_id
            ));
        })
        .ctx("list", &path)
    }
}

fn chain(e: &Error) -> String {
    let source = std::error::Error::source(e).map(|s| format!(": {s}"));
    format!("{e}{}", source.unwrap_or_default())
}

type Tree = BTreeMap<Vec<u8>, Expected>;

/// What an archive says that its tree is.
fn expect<I: Input>(tar: &mut TarReader<I>, what: &str) -> Result<Tree> {
    let mut tree = Tree::new();
    loop {
        let entry = match tar.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(tree),
            Err(e) => return Err(crate::import::tar_error(what, tar.offset(), e)),
        };
        let Ok(path) = clean(&entry.path) else {
            continue;
        };
        let (dir, name) = split(&path);
        if path.is_empty() || name == OPAQUE_MARKER {
            continue;
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
            let path = if dir.is_empty() {
                hidden.to_vec()
            } else {
                [dir, b"/", hidden].concat()
            };
            tree.entry(path).or_insert(Expected::Whiteout);
            continue;
        }
        let Some(wanted) = wanted(&entry, tar, &tree, what)? else {
            continue;
        };
        if !matches!(wanted, Expected::Dir { .. }) {
            // What replaces a directory replaces all in it.
            let below = [&path[..], b"/"].concat();
            let gone: Vec<_> = tree
                .range(below.clone()..)
                .take_while(|(p, _)| p.starts_with(&below))
                .map(|(p, _)| p.clone())
                .collect();
            gone.iter().for_each(|p| drop(tree.remove(p)));
        }
        tree.insert(path, wanted);
    }
}

fn wanted<I: Input>(
    entry: &Entry,
    tar: &mut TarReader<I>,
    tree: &Tree,
    what: &str,
) -> Result<Option<Expected>> {
    let owner = (entry.mode, entry.uid, entry.gid);
    Ok(Some(match entry.kind {
        Kind::File => {
            let mut hasher = Hasher::default();
            while tar.remaining() > 0 {
                let offset = tar.offset();
                let data = tar
                    .fill_data()
                    .map_err(|e| crate::import::tar_error(what, offset, e))?;
                let n = data.len();
                hasher.update(data);
                tar.consume_data(n);
                if n == 0 {
                    break;
                }
            }
            Expected::File {
                owner,
                size: entry.size,
                content: entry.sparse.is_none().then(|| hasher.finish()),
            }
        }
        Kind::HardLink => match clean(&entry.link).ok().and_then(|l| tree.get(&l).cloned()) {
            Some(same) => same,
            None => return Ok(None),
        },
        Kind::Dir => Expected::Dir { owner },
        Kind::Symlink => Expected::Symlink(entry.link.clone()),
        Kind::Char => Expected::Node(FileType::CharacterDevice),
        Kind::Block => Expected::Node(FileType::BlockDevice),
        _ => Expected::Node(FileType::Fifo),
    }))
}

/// Compares one path; what is wrong with it.
fn compare(root: &OwnedFd, path: &[u8], wanted: &Expected) -> std::result::Result<(), String> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    let at = match fsutil::open_beneath(root.as_fd(), path, flags) {
        Ok(at) => at,
        Err(_) if matches!(wanted, Expected::Whiteout) => return Ok(()),
        // The last name may be a symbolic link: only its own kind is opened so.
        Err(_) if matches!(wanted, Expected::Symlink(_)) => return symlink(root, path, wanted),
        Err(e) => return Err(format!("open: {e}")),
    };
    let st = rustix::fs::fstat(&at).map_err(|e| format!("stat: {e}"))?;
    let kind = FileType::from_raw_mode(st.st_mode);
    let owner_is = |(mode, uid, gid): (u32, u32, u32)| {
        let now = (st.st_mode & 0o7777, st.st_uid, st.st_gid);
        if now == (mode & 0o7777, uid, gid) {
            Ok(())
        } else {
            Err(format!(
                "mode, owner and group are {:o} {} {}, not {mode:o} {uid} {gid}",
                now.0, now.1, now.2
            ))
        }
    };
    match wanted {
        Expected::Dir { owner } if kind == FileType::Directory => owner_is(*owner),
        Expected::File {
            owner,
            size,
            content,
        } if kind == FileType::RegularFile => {
            owner_is(*owner)?;
            if u64::try_from(st.st_size) != Ok(*size) {
                return Err(format!("it has {} bytes, not {size}", st.st_size));
            }
            let Some(content) = content else {
                return Ok(());
            };
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
            let file = fsutil::open_beneath(root.as_fd(), path, flags);
            let mut file = file.map(File::from).map_err(|e| format!("open: {e}"))?;
            let mut hasher = Hasher::default();
            let mut buf = vec![0; PIPE_CHUNK_BYTES];
            loop {
                let n = file.read(&mut buf).map_err(|e| format!("read: {e}"))?;
                if n == 0 {
                    break;
                }
                hasher.update(&buf[..n]);
            }
            if hasher.finish() == *content {
                Ok(())
            } else {
                Err("its content is another".into())
            }
        }
        Expected::Node(wanted) if kind == *wanted => Ok(()),
        Expected::Whiteout if is_whiteout_stat(&st) || kind == FileType::Directory => Ok(()),
        Expected::Symlink(_) => symlink(root, path, wanted),
        _ => Err(format!("it is of another kind ({kind:?})")),
    }
}

fn symlink(root: &OwnedFd, path: &[u8], wanted: &Expected) -> std::result::Result<(), String> {
    let (dir, name) = split(path);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let at = if dir.is_empty() {
        root.try_clone().map_err(|e| e.to_string())?
    } else {
        fsutil::open_beneath(root.as_fd(), dir, flags).map_err(|e| format!("open: {e}"))?
    };
    let target =
        rustix::fs::readlinkat(&at, name, Vec::new()).map_err(|e| format!("readlink: {e}"))?;
    match wanted {
        Expected::Symlink(link) if target.as_bytes() == &link[..] => Ok(()),
        _ => Err("it points elsewhere".into()),
    }
}

/// Tells of files that the archive does not have.
fn foreign(root: &OwnedFd, tree: &Tree, tell: &mut dyn FnMut(&[u8])) -> std::io::Result<()> {
    // Paths wait, not descriptors: a directory may hold any number of others.
    let mut todo: Vec<(Vec<u8>, usize)> = vec![(Vec::new(), 0)];
    while let Some((path, depth)) = todo.pop() {
        let dir = if path.is_empty() {
            root.try_clone()?
        } else {
            fsutil::open_beneath(root.as_fd(), &path, DIR_FLAGS)?
        };
        for (name, kind) in fsutil::list_dir(dir.as_fd(), usize::MAX)? {
            let own = if path.is_empty() {
                name.to_bytes().to_vec()
            } else {
                [&path[..], b"/", name.to_bytes()].concat()
            };
            let below = [&own[..], b"/"].concat();
            // Directories above an entry need none of their own.
            let implied = tree
                .range(below.clone()..)
                .next()
                .is_some_and(|(p, _)| p.starts_with(&below));
            if !tree.contains_key(&own) && !implied {
                tell(&own);
            } else if kind == FileType::Directory && depth < MAX_DEPTH {
                todo.push((own, depth + 1));
            }
        }
    }
    Ok(())
}
