//! Images that the program carries with it.

use sha2::{Digest as _, Sha256};

use crate::catalog::tag_name;
use crate::digest::Digest;
use crate::error::{Context, Result};
use crate::import::{ImportOptions, RootfsConfig, Source};
use crate::store::{Image, Store};
use crate::table::Table;
use crate::tarwrite::{self, Meta};

/// A file (or, with `data` `None`, a directory) of a built-in image.
#[derive(Debug, Clone, Copy)]
pub struct BuiltinFile<'a> {
    /// Path without leading slash. Directories above it are made (0755).
    pub path: &'a str,
    /// Permission bits.
    pub mode: u32,
    /// What it is.
    pub content: BuiltinContent<'a>,
}

/// Content of a [`BuiltinFile`].
#[derive(Debug, Clone, Copy)]
pub enum BuiltinContent<'a> {
    /// A regular file.
    File(&'a [u8]),
    /// A directory.
    Dir,
    /// A symbolic link to this target.
    Symlink(&'a str),
    /// A hard link to an earlier path.
    HardLink(&'a str),
}

impl Store {
    /// Makes sure that `reference` is the image of these files, and returns
    /// it. With the image there this is one read of the table; after an
    /// upgrade of the program the new content takes the name and the old
    /// image goes unless a container uses it.
    ///
    /// `key` tells one content from another; a program knows it at build time.
    /// Without it the content is hashed at each call.
    ///
    /// # Errors
    /// As [`Store::import`].
    pub fn ensure_builtin(
        &self,
        reference: &str,
        key: Option<&str>,
        files: &[BuiltinFile<'_>],
        config: &RootfsConfig,
    ) -> Result<Image> {
        let name = tag_name(reference)?;
        let key = key.map_or_else(|| content_key(files, config), str::to_string);
        let table = Table::load(std::os::fd::AsFd::as_fd(&self.dir))?;
        let old = table.references.get(&name).copied();
        let old_key = old
            .and_then(|d| table.images.get(&d))
            .and_then(|r| r.builtin.clone());
        if old_key.as_deref() == Some(&key) {
            return self.resolve(&name);
        }
        let archive = archive(files).ctx("write the archive of", reference)?;
        let opts = ImportOptions {
            reference: Some(name.clone()),
            format: crate::import::Format::Rootfs,
            rootfs: config.clone(),
            ..ImportOptions::default()
        };
        self.import_as(Source::Reader(&mut &archive[..]), &opts, Some(key))?;
        let image = self.resolve(&name)?;
        if let (Some(old), Some(_)) = (old, old_key)
            && old != image.manifest_digest
        {
            // In use or named otherwise: then it stays.
            if let Err(e) = self.remove_unnamed(&old) {
                tracing::debug!(image = %old, error = %e, "the old built-in image stays");
            }
        }
        Ok(image)
    }
}

fn content_key(files: &[BuiltinFile<'_>], config: &RootfsConfig) -> String {
    let mut sha = Sha256::new();
    let mut part = |bytes: &[u8]| {
        sha.update((bytes.len() as u64).to_le_bytes());
        sha.update(bytes);
    };
    for f in files {
        part(f.path.as_bytes());
        part(&f.mode.to_le_bytes());
        match f.content {
            BuiltinContent::File(data) => part(data),
            other => part(format!("{other:?}").as_bytes()),
        }
    }
    part(format!("{config:?}").as_bytes());
    let bytes: [u8; 32] = sha.finalize().into();
    Digest::of(&bytes).hex()
}

fn archive(files: &[BuiltinFile<'_>]) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    tarwrite::header(
        &mut out,
        &Meta {
            path: b"./",
            kind: b'5',
            mode: 0o755,
            ..Meta::default()
        },
    )?;
    for f in files {
        let (kind, data, link): (u8, &[u8], &str) = match f.content {
            BuiltinContent::File(data) => (b'0', data, ""),
            BuiltinContent::Dir => (b'5', &[], ""),
            BuiltinContent::Symlink(to) => (b'2', &[], to),
            BuiltinContent::HardLink(to) => (b'1', &[], to),
        };
        let size = data.len() as u64;
        let (path, link) = (f.path.as_bytes(), link.as_bytes());
        tarwrite::header(
            &mut out,
            &Meta {
                path,
                link,
                kind,
                mode: f.mode,
                size,
                ..Meta::default()
            },
        )?;
        out.extend_from_slice(data);
        tarwrite::pad(&mut out, size)?;
    }
    tarwrite::finish(&mut out)?;
    Ok(out)
}
