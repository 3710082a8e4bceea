//! The few file operations that the store needs, so that tests can put a disk that loses
//! unsynced writes below it.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::error::OpenError;

const LOCK_FILE: &str = "lock";

/// A folder of files. Nothing is durable before [`DiskFile::sync`] (content) and
/// [`Disk::sync_names`] (names).
pub trait Disk: fmt::Debug + Send + Sync {
    /// Names of all files.
    ///
    /// # Errors
    /// The kernel's answer.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Reads a file from an offset to its end.
    ///
    /// # Errors
    /// The kernel's answer.
    fn read(&self, name: &str, offset: u64) -> io::Result<Box<dyn Read + Send>>;

    /// Makes an empty file, or empties one.
    ///
    /// # Errors
    /// The kernel's answer.
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a file for writing.
    ///
    /// # Errors
    /// The kernel's answer.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;

    /// Renames a file over another.
    ///
    /// # Errors
    /// The kernel's answer.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// The kernel's answer.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes creations, renames and removals durable.
    ///
    /// # Errors
    /// The kernel's answer.
    fn sync_names(&self) -> io::Result<()>;
}

/// A file open for writing.
pub trait DiskFile: fmt::Debug + Send {
    /// Length in bytes.
    ///
    /// # Errors
    /// The kernel's answer.
    fn len(&self) -> io::Result<u64>;

    /// Whether the length is 0.
    ///
    /// # Errors
    /// The kernel's answer.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Writes all bytes at an offset.
    ///
    /// # Errors
    /// The kernel's answer; some of the bytes may have been written.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes the file `to` bytes long with real space for every byte behind `from`; they read as
    /// zeros.
    ///
    /// # Errors
    /// The kernel's answer; the length is then anything between the two.
    fn reserve(&mut self, from: u64, to: u64) -> io::Result<()>;

    /// Cuts the file.
    ///
    /// # Errors
    /// The kernel's answer.
    fn truncate(&mut self, len: u64) -> io::Result<()>;

    /// Makes content and length durable.
    ///
    /// # Errors
    /// The kernel's answer; what is durable is then unknown.
    fn sync(&mut self) -> io::Result<()>;
}

/// A folder of the host, held by one process at a time.
#[derive(Debug)]
pub struct RealDisk {
    folder: PathBuf,
    names: File,
    /// Its lock ends with the process, however it ends.
    _lock: File,
}

impl RealDisk {
    /// Opens a folder and locks it; makes it (mode 0700) where it is missing.
    ///
    /// # Errors
    /// [`OpenError::Io`], and [`OpenError::Locked`] where another process has it.
    pub fn open(folder: &Path) -> Result<Self, OpenError> {
        let failed = |operation, file: &str| {
            let file = file.to_owned();
            move |source| OpenError::Io {
                operation,
                file,
                source,
            }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed("make the folder", &folder.display().to_string()))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(folder.join(LOCK_FILE))
            .map_err(failed("open", LOCK_FILE))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(OpenError::Locked {
                    folder: folder.display().to_string(),
                });
            }
            Err(fs::TryLockError::Error(source)) => {
                return Err(failed("lock", LOCK_FILE)(source));
            }
        }
        let names =
            File::open(folder).map_err(failed("open the folder", &folder.display().to_string()))?;
        Ok(Self {
            folder: folder.to_owned(),
            names,
            _lock: lock,
        })
    }
}

impl Disk for RealDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            if let Ok(name) = entry?.file_name().into_string()
                && name != LOCK_FILE
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn read(&self, name: &str, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let mut file = File::open(self.folder.join(name))?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(Box::new(file))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(self.folder.join(name))?;
        Ok(Box::new(file))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new()
            .write(true)
            .open(self.folder.join(name))?;
        Ok(Box::new(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.folder.join(from), self.folder.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.folder.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        self.names.sync_all()
    }
}

impl DiskFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn reserve(&mut self, from: u64, to: u64) -> io::Result<()> {
        let bytes = to.saturating_sub(from);
        match fallocate(self.as_fd(), FallocateFlags::empty(), from, bytes) {
            // Some file systems cannot, fallocate(2): the write then meets a full disk itself.
            Err(Errno::OPNOTSUPP) => self.set_len(to),
            result => Ok(result?),
        }
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn sync(&mut self) -> io::Result<()> {
        // fdatasync: also the length and the extents that reading needs, fdatasync(2).
        self.sync_data()
    }
}
