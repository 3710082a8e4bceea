//! A disk that loses what was not synced.
//!
//! Content is kept per sector: at a crash each sector that has unsynced changes holds any of the
//! contents it had since the last sync, the length is any since then, and of the unsynced
//! changes of names any may be missing. A process that dies leaves everything readable, and
//! unsynced.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::disk::{Disk, DiskFile};

/// Disks write whole sectors; the smallest are this large.
const SECTOR_BYTES: usize = 512;

/// xorshift64*, Marsaglia and Vigna.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(high).unwrap() % bound
    }
}

/// Written bytes, and the length, behind which zeros follow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Content {
    bytes: Vec<u8>,
    len: usize,
}

impl Content {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[offset..end].copy_from_slice(bytes);
        self.len = self.len.max(end);
    }

    fn truncate(&mut self, len: usize) {
        self.bytes.truncate(len);
        self.len = len;
    }

    fn sector(&self, number: usize) -> [u8; SECTOR_BYTES] {
        let mut sector = [0; SECTOR_BYTES];
        let begin = (number * SECTOR_BYTES).min(self.bytes.len());
        let end = (begin + SECTOR_BYTES).min(self.bytes.len());
        sector[..end - begin].copy_from_slice(&self.bytes[begin..end]);
        sector
    }
}

#[derive(Debug, Clone, Default)]
struct Inode {
    /// The last is what reads see, the first is durable.
    states: Vec<Content>,
}

impl Inode {
    fn change(&mut self, change: impl FnOnce(&mut Content)) {
        let mut content = self.now().clone();
        change(&mut content);
        self.states.push(content);
    }

    fn now(&self) -> &Content {
        self.states.last().unwrap()
    }

    fn sync(&mut self) {
        self.states.drain(..self.states.len() - 1);
    }

    fn after_power_loss(&self, random: &mut Random) -> Content {
        let len = self.states[random.below(self.states.len())].len;
        let written = self.states.iter().map(|state| state.bytes.len()).max();
        let mut content = Content::default();
        for number in 0..written.unwrap_or(0).div_ceil(SECTOR_BYTES) {
            let state = &self.states[random.below(self.states.len())];
            content.write(number * SECTOR_BYTES, &state.sector(number));
        }
        content.bytes.truncate(len);
        content.len = len;
        content
    }
}

#[derive(Debug, Clone)]
enum NameChange {
    Link(String, usize),
    Unlink(String),
    Rename(String, String),
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Link(name, inode) => {
                names.insert(name.clone(), *inode);
            }
            Self::Unlink(name) => {
                names.remove(name);
            }
            Self::Rename(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
        }
    }
}

/// What an operation meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The machine or process stops in the middle of it.
    Crash,
    /// EIO, once.
    Io,
    /// ENOSPC, once.
    Full,
}

#[derive(Debug, Clone)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    changes: Vec<NameChange>,
    operations: u64,
    fault: Option<(u64, Fault)>,
    crashed: bool,
    random: Random,
    capacity: usize,
}

impl State {
    /// Counts an operation; `Err` with whether it still takes effect in part.
    fn operation(&mut self) -> Result<(), (io::Error, bool)> {
        if self.crashed {
            return Err((io::Error::other("after the crash"), false));
        }
        self.operations += 1;
        let Some((at, fault)) = self.fault else {
            return Ok(());
        };
        if at != self.operations {
            return Ok(());
        }
        let partly = self.random.below(2) == 0;
        match fault {
            Fault::Crash => {
                self.crashed = true;
                Err((io::Error::other("crash"), partly))
            }
            Fault::Io => Err((io::Error::from_raw_os_error(5), partly)),
            Fault::Full => Err((io::Error::from_raw_os_error(28), false)),
        }
    }

    fn next_is(&self, fault: Fault) -> bool {
        self.fault == Some((self.operations + 1, fault))
    }

    fn used(&self) -> usize {
        let used = self
            .names
            .values()
            .map(|inode| self.inodes[*inode].now().len);
        used.sum()
    }
}

#[derive(Debug, Clone)]
pub(super) struct SimDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    inode: usize,
}

impl SimDisk {
    pub(super) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            changes: Vec::new(),
            operations: 0,
            fault: None,
            crashed: false,
            random: Random::new(seed),
            capacity: usize::MAX,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The `after`th operation from now meets a fault.
    pub(super) fn fault(&self, after: u64, fault: Fault) {
        let mut state = self.lock();
        state.fault = Some((state.operations + after, fault));
    }

    /// Whether the fault was met.
    pub(super) fn met(&self) -> bool {
        let state = self.lock();
        state.fault.is_none_or(|(at, _)| state.operations >= at)
    }

    pub(super) fn set_capacity(&self, bytes: usize) {
        self.lock().capacity = bytes;
    }

    pub(super) fn used(&self) -> usize {
        self.lock().used()
    }

    /// The disk that a new process finds, after the power was lost or only the process died.
    pub(super) fn restart(&self, power_lost: bool) -> Self {
        let mut state = self.lock().clone();
        state.crashed = false;
        state.fault = None;
        if power_lost {
            let mut names = state.durable_names.clone();
            for change in std::mem::take(&mut state.changes) {
                if state.random.below(2) == 0 {
                    change.apply(&mut names);
                }
            }
            state.durable_names.clone_from(&names);
            state.names = names;
            for inode in &mut state.inodes {
                let content = inode.after_power_loss(&mut state.random);
                inode.states = vec![content];
            }
        }
        Self(Arc::new(Mutex::new(state)))
    }

    /// Flips a bit of a file, for good.
    pub(super) fn damage(&self, name: &str, offset: usize) {
        let mut state = self.lock();
        let inode = state.names[name];
        state.inodes[inode].change(|content| content.bytes[offset] ^= 1);
        state.inodes[inode].sync();
    }

    pub(super) fn written(&self, name: &str) -> usize {
        let state = self.lock();
        state.inodes[state.names[name]].now().bytes.len()
    }

    fn file(&self, inode: usize) -> Box<dyn DiskFile> {
        let disk = self.clone();
        Box::new(SimFile { disk, inode })
    }

    fn name_change(&self, change: NameChange) -> io::Result<()> {
        let mut state = self.lock();
        let result = state.operation();
        if let Err((error, false)) = result {
            return Err(error);
        }
        change.apply(&mut state.names);
        state.changes.push(change);
        result.map_err(|(error, _)| error)
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().names.keys().cloned().collect())
    }

    fn read(&self, name: &str, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let state = self.lock();
        let inode = state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        let content = state.inodes[*inode].now();
        let zeros = content.len - content.bytes.len();
        let offset = usize::try_from(offset).unwrap();
        let skipped = offset.saturating_sub(content.bytes.len());
        let bytes = content.bytes.get(offset..).unwrap_or_default().to_vec();
        let zeros = zeros.saturating_sub(skipped) as u64;
        Ok(Box::new(
            Cursor::new(bytes).chain(io::repeat(0).take(zeros)),
        ))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let inode = {
            let mut state = self.lock();
            state.inodes.push(Inode {
                states: vec![Content::default()],
            });
            state.inodes.len() - 1
        };
        self.name_change(NameChange::Link(name.to_owned(), inode))?;
        Ok(self.file(inode))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let inode = self.lock().names.get(name).copied();
        Ok(self.file(inode.ok_or(io::ErrorKind::NotFound)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.name_change(NameChange::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.name_change(NameChange::Unlink(name.to_owned()))
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut state = self.lock();
        let result = state.operation();
        if let Err((error, false)) = result {
            return Err(error);
        }
        state.changes.clear();
        state.durable_names = state.names.clone();
        result.map_err(|(error, _)| error)
    }
}

impl SimFile {
    fn change(&self, grow_to: usize, change: impl FnOnce(&mut Content)) -> io::Result<()> {
        let mut state = self.disk.lock();
        let len = state.inodes[self.inode].now().len;
        let growth = grow_to.saturating_sub(len);
        let result = if growth > 0 && state.used() + growth > state.capacity {
            Err((io::Error::from_raw_os_error(28), false))
        } else {
            state.operation()
        };
        if let Err((error, false)) = result {
            return Err(error);
        }
        state.inodes[self.inode].change(change);
        result.map_err(|(error, _)| error)
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.lock().inodes[self.inode].now().len as u64)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        if self.disk.lock().next_is(Fault::Full) {
            // All that a full disk takes before it refuses: here nearly everything.
            let most = &bytes[..bytes.len() - 1];
            let mut state = self.disk.lock();
            state.inodes[self.inode].change(|content| content.write(offset, most));
        }
        self.change(offset + bytes.len(), |content| content.write(offset, bytes))
    }

    fn reserve(&mut self, _from: u64, to: u64) -> io::Result<()> {
        let to = usize::try_from(to).unwrap();
        self.change(to, |content| content.len = content.len.max(to))
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).unwrap();
        self.change(0, |content| content.truncate(len))
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.lock();
        let result = state.operation();
        match &result {
            Err((_, false)) => {}
            // A failed fsync may leave pages readable, clean and not on the disk; that they
            // become durable is the best case, and not reported.
            _ => state.inodes[self.inode].sync(),
        }
        result.map_err(|(error, _)| error)
    }
}
