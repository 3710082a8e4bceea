//! Programs by the content of their profile.
//!
//! A file is named by the hash of the profile, the architecture and this
//! compiler's version; it holds a hash of what follows, the flags, the
//! warnings and the instructions. It is written beside and renamed, so readers
//! see a whole one or none; nothing is flushed, for a torn one does not match
//! its hash and is made anew.
//!
//! The directory must be its owner's alone: who can write it decides what
//! containers may do.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use oci_spec::runtime::LinuxSeccomp;
use rkube_sys::bytes;
use rkube_sys::seccomp::MAX_INSTRUCTIONS;
use sha2::{Digest, Sha256};

use crate::{Arch, CompileError, Program, Warning};

/// Programs kept; the one stored longest ago makes place. A node sees a handful
/// of profiles.
pub const MAX_ENTRIES: usize = 128;

/// Raised with every change that makes another program of the same profile.
const COMPILER_VERSION: u32 = 1;

/// Begins every file; the digit is the format's version.
const MAGIC: &[u8; 8] = b"rkbpf\0\0\x01";
const HASH_BYTES: usize = 32;
/// Magic, hash, flags, length of the warnings.
const HEAD_BYTES: usize = 8 + HASH_BYTES + 8 + 4;
/// A file with 4096 instructions and warnings of 64 KiB.
const MAX_FILE_BYTES: u64 = 96 << 10;
const SUFFIX: &str = "bpf";

/// The cache's directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// It cannot be made.
    #[error("create seccomp cache directory {}", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// An entry cannot be written. The program is good all the same.
    #[error("write seccomp cache entry {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
}

/// Where a program came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// An entry of the cache.
    Cache,
    /// Compiled; there was no entry.
    Compiled,
    /// Compiled; the entry was damaged or could not be read, and is replaced.
    Recompiled,
}

/// A program and its way here.
#[derive(Debug)]
pub struct Cached {
    /// The program.
    pub program: Program,
    /// Where it came from.
    pub source: Source,
    /// Why it could not be stored for the next time, if so.
    pub unsaved: Option<CacheError>,
}

/// A directory of programs. Any number of processes may share it.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Opens the cache in `dir`, which is made with mode 0700 if missing.
    ///
    /// # Errors
    /// [`CacheError::Create`].
    pub fn open(dir: &Path) -> Result<Self, CacheError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| CacheError::Create {
                path: dir.to_owned(),
                source,
            })?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// The program of `spec`, from the cache if it is there.
    ///
    /// # Errors
    /// [`CompileError`]; trouble with the cache is none.
    pub fn program(&self, spec: &LinuxSeccomp, native: Arch) -> Result<Cached, CompileError> {
        let path = self.dir.join(file_name(spec, native));
        let source = match read(&path) {
            Ok(Some(program)) => {
                return Ok(Cached {
                    program,
                    source: Source::Cache,
                    unsaved: None,
                });
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Source::Compiled,
            Ok(None) | Err(_) => Source::Recompiled,
        };
        let program = Program::compile(spec, native)?;
        let unsaved = self
            .store(&path, &program)
            .err()
            .map(|source| CacheError::Write { path, source });
        Ok(Cached {
            program,
            source,
            unsaved,
        })
    }

    fn store(&self, path: &Path, program: &Program) -> io::Result<()> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let temporary = self
            .dir
            .join(format!("tmp-{}-{serial}", std::process::id()));
        self.make_place()?;
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| file.write_all(&encode(program)?))
            .and_then(|()| fs::rename(&temporary, path));
        if written.is_err() {
            // The error tells why; a file that is left makes place later.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// Removes the oldest files, temporary ones of dead writers included, until
    /// one more may come.
    fn make_place(&self) -> io::Result<()> {
        let mut files: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            // Another process may have removed it.
            if let Ok(modified) = entry.metadata().and_then(|meta| meta.modified()) {
                files.push((modified, entry.path()));
            }
        }
        if files.len() < MAX_ENTRIES {
            return Ok(());
        }
        files.sort_unstable();
        let surplus = files.len() + 1 - MAX_ENTRIES;
        for (_, path) in files.into_iter().take(surplus) {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The hash of all that the program depends on. The profile's own encoding is
/// canonical: fields in the order of their declaration, absent ones left out.
fn file_name(spec: &LinuxSeccomp, native: Arch) -> String {
    let mut hash = Sha256::new();
    hash.update(COMPILER_VERSION.to_le_bytes());
    hash.update(native.audit().to_le_bytes());
    hash.update([u8::from(native == Arch::X32)]);
    let encoded = serde_json::to_vec(spec).expect("a profile has only string keys");
    hash.update(encoded);
    let mut name = String::with_capacity(2 * HASH_BYTES + SUFFIX.len() + 1);
    for byte in hash.finalize() {
        for digit in [byte >> 4, byte & 15] {
            name.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
    }
    name.push('.');
    name.push_str(SUFFIX);
    name
}

fn encode(program: &Program) -> io::Result<Vec<u8>> {
    let warnings = serde_json::to_vec(&program.warnings)?;
    let length = u32::try_from(warnings.len()).map_err(io::Error::other)?;
    let instructions = program.to_bytes();
    let mut body = Vec::with_capacity(12 + warnings.len() + instructions.len());
    body.extend(program.flags.to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(warnings);
    body.extend(instructions);
    let mut file = Vec::with_capacity(HEAD_BYTES + body.len());
    file.extend(MAGIC);
    file.extend(Sha256::digest(&body));
    file.extend(body);
    if file.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("the entry is too large"));
    }
    Ok(file)
}

/// The program in the file at `path`, `None` if it is damaged.
fn read(path: &Path) -> io::Result<Option<Program>> {
    let mut data = Vec::new();
    File::open(path)?
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut data)?;
    Ok(decode(&data))
}

fn decode(data: &[u8]) -> Option<Program> {
    let (hash, body) = data.strip_prefix(MAGIC)?.split_at_checked(HASH_BYTES)?;
    if hash != Sha256::digest(body).as_slice() {
        return None;
    }
    let (flags, rest) = body.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (warnings, code) = rest.split_at_checked(length)?;
    let warnings: Vec<Warning> = serde_json::from_slice(warnings).ok()?;
    let instructions = bytes::instructions(code)?;
    if instructions.is_empty() || instructions.len() > MAX_INSTRUCTIONS {
        return None;
    }
    Some(Program {
        instructions,
        flags: u64::from_le_bytes(*flags),
        warnings,
    })
}
