//! What one instance did to the host's network, as an append-only file.
//!
//! One line per record: 8 hexadecimal digits of checksum, a space, JSON. A
//! record is appended with one `write` before its side effects. There is no
//! fsync: network state does not survive a reboot, so the page cache is as
//! durable as what the file describes, and the boot id in the first line
//! tells a file of an earlier boot. A torn last line is cut off on open.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::attach::{Attachment, HostPort};
use crate::error::Error;
use crate::ipam::Lease;
use crate::names::{fold, hash};

/// Largest journal that is read back; compaction keeps it far below.
pub const JOURNAL_MAX_BYTES: u64 = 64 << 20;
/// Only root reads what pods run here.
const JOURNAL_MODE: u32 = 0o600;
/// Dead lines that are tolerated beyond the live ones before a rewrite.
const DEAD_LINES_MAX: usize = 1024;
/// Digits of checksum and the space behind them.
const CHECKSUM_BYTES: usize = 9;

/// A pod as the journal knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRecord {
    /// Addresses and names.
    pub attachment: Attachment,
    /// Its host ports.
    pub host_ports: Vec<HostPort>,
}

/// A kernel setting that was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SysctlRecord {
    /// What it was.
    pub before: String,
    /// What it was set to.
    pub after: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    Boot { id: String },
    Attach { pod: String, record: PodRecord },
    Release { pod: String },
    Cursor { lease: Lease },
    Sysctl { path: PathBuf, change: SysctlRecord },
}

/// State as the records tell it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct State {
    /// Pods by id.
    pub pods: BTreeMap<String, PodRecord>,
    /// The addresses given out last, where the round robin goes on.
    pub cursor: Option<Lease>,
    /// Changed settings by path.
    pub sysctls: BTreeMap<PathBuf, SysctlRecord>,
}

impl State {
    fn apply(&mut self, record: Record) {
        match record {
            Record::Boot { .. } => {}
            Record::Attach { pod, record } => {
                self.cursor = Some(record.attachment.lease());
                self.pods.insert(pod, record);
            }
            Record::Release { pod } => {
                self.pods.remove(&pod);
            }
            Record::Cursor { lease } => self.cursor = Some(lease),
            Record::Sysctl { path, change } => {
                self.sysctls.insert(path, change);
            }
        }
    }

    fn lines(&self) -> usize {
        self.pods.len() + self.sysctls.len() + 2
    }
}

/// The open journal with the state it tells.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    boot: String,
    file: File,
    lines: usize,
    state: State,
}

impl Journal {
    /// Opens or makes the journal of this boot.
    ///
    /// # Errors
    /// [`Error::Journal`], [`Error::JournalDamaged`].
    pub fn open(path: &Path, boot: &str) -> Result<Self, Error> {
        let failed = |action| {
            move |source| Error::Journal {
                action,
                path: path.to_owned(),
                source,
            }
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .mode(JOURNAL_MODE)
            .truncate(false)
            .open(path)
            .map_err(failed("open"))?;
        let mut bytes = Vec::new();
        (&file)
            .take(JOURNAL_MAX_BYTES)
            .read_to_end(&mut bytes)
            .map_err(failed("read"))?;
        if u64::try_from(bytes.len()).is_ok_and(|len| len == JOURNAL_MAX_BYTES) {
            return Err(failed("read")(std::io::ErrorKind::FileTooLarge.into()));
        }
        let replayed = replay(&bytes, boot).map_err(|line| Error::JournalDamaged {
            path: path.to_owned(),
            line,
        })?;
        let mut journal = Self {
            path: path.to_owned(),
            boot: boot.to_owned(),
            file,
            lines: replayed.lines,
            state: replayed.state,
        };
        if replayed.fresh {
            journal.rewrite()?;
        } else {
            if replayed.good_bytes < bytes.len() {
                tracing::warn!(path = %path.display(), "cut a torn line off the network journal");
            }
            let good = u64::try_from(replayed.good_bytes).unwrap_or(u64::MAX);
            journal.file.set_len(good).map_err(failed("truncate"))?;
            journal
                .file
                .seek(SeekFrom::Start(good))
                .map_err(failed("seek in"))?;
        }
        Ok(journal)
    }

    /// The state the records tell.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Records a pod before it is attached.
    ///
    /// # Errors
    /// [`Error::Journal`]; nothing is recorded then.
    pub fn attach(&mut self, pod: &str, record: PodRecord) -> Result<(), Error> {
        self.append(Record::Attach {
            pod: pod.to_owned(),
            record,
        })
    }

    /// Records that a pod is gone.
    ///
    /// # Errors
    /// [`Error::Journal`].
    pub fn release(&mut self, pod: &str) -> Result<(), Error> {
        if !self.state.pods.contains_key(pod) {
            return Ok(());
        }
        self.append(Record::Release {
            pod: pod.to_owned(),
        })
    }

    /// Records a setting before it is changed. The first `before` is kept.
    ///
    /// # Errors
    /// [`Error::Journal`].
    pub fn sysctl(&mut self, path: &Path, mut change: SysctlRecord) -> Result<(), Error> {
        if let Some(earlier) = self.state.sysctls.get(path) {
            change.before.clone_from(&earlier.before);
            if *earlier == change {
                return Ok(());
            }
        }
        self.append(Record::Sysctl {
            path: path.to_owned(),
            change,
        })
    }

    fn append(&mut self, record: Record) -> Result<(), Error> {
        let line = encode(&record);
        let start = self
            .file
            .stream_position()
            .map_err(|source| self.failed("seek in", source))?;
        if let Err(source) = self.file.write_all(&line) {
            // A half-written line (disk full) must not end up mid-file.
            let undone = self
                .file
                .set_len(start)
                .and_then(|()| self.file.seek(SeekFrom::Start(start)));
            if let Err(error) = undone {
                tracing::error!(%error, "cut a half-written line off the network journal");
            }
            return Err(self.failed("append to", source));
        }
        self.state.apply(record);
        self.lines += 1;
        if self.lines > self.state.lines() * 2 + DEAD_LINES_MAX {
            self.rewrite()?;
        }
        Ok(())
    }

    /// Writes the live state to a new file and puts it in place.
    fn rewrite(&mut self) -> Result<(), Error> {
        let mut bytes = encode(&Record::Boot {
            id: self.boot.clone(),
        });
        if let Some(lease) = self.state.cursor {
            bytes.extend(encode(&Record::Cursor { lease }));
        }
        for (path, change) in &self.state.sysctls {
            bytes.extend(encode(&Record::Sysctl {
                path: path.clone(),
                change: change.clone(),
            }));
        }
        // Attach records move the cursor, so it is written once more last.
        for (pod, record) in &self.state.pods {
            bytes.extend(encode(&Record::Attach {
                pod: pod.clone(),
                record: record.clone(),
            }));
        }
        if let Some(lease) = self.state.cursor {
            bytes.extend(encode(&Record::Cursor { lease }));
        }
        let beside = self.path.with_extension("new");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .mode(JOURNAL_MODE)
            .truncate(true)
            .open(&beside)
            .map_err(|source| self.failed("make a new", source))?;
        file.write_all(&bytes)
            .map_err(|source| self.failed("rewrite", source))?;
        std::fs::rename(&beside, &self.path).map_err(|source| self.failed("replace", source))?;
        self.file = file;
        self.lines = self.state.lines();
        Ok(())
    }

    fn failed(&self, action: &'static str, source: std::io::Error) -> Error {
        Error::Journal {
            action,
            path: self.path.clone(),
            source,
        }
    }
}

fn encode(record: &Record) -> Vec<u8> {
    // Records are plain enums of strings and numbers; paths come from us and
    // are UTF-8, so this cannot refuse.
    let json = serde_json::to_string(record).unwrap_or_default();
    format!("{:08x} {json}\n", checksum(json.as_bytes())).into_bytes()
}

fn checksum(json: &[u8]) -> u32 {
    fold(hash(&[json]))
}

fn decode(line: &[u8]) -> Option<Record> {
    let (sum, json) = line.split_at_checked(CHECKSUM_BYTES)?;
    let sum = u32::from_str_radix(std::str::from_utf8(sum).ok()?.trim_end(), 16).ok()?;
    (sum == checksum(json)).then(|| serde_json::from_slice(json).ok())?
}

struct Replayed {
    state: State,
    lines: usize,
    good_bytes: usize,
    /// Empty, or of another boot: nothing of it is true any more.
    fresh: bool,
}

/// `Err`: number of a damaged line that is not the last one.
fn replay(bytes: &[u8], boot: &str) -> Result<Replayed, usize> {
    let mut replayed = Replayed {
        state: State::default(),
        lines: 0,
        good_bytes: 0,
        fresh: true,
    };
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        let record = line.strip_suffix(b"\n").and_then(decode);
        let Some(record) = record else {
            let last = replayed.good_bytes + line.len() == bytes.len();
            return if last {
                Ok(replayed)
            } else {
                Err(replayed.lines + 1)
            };
        };
        if replayed.lines == 0 {
            replayed.fresh = !matches!(&record, Record::Boot { id } if id == boot);
            if replayed.fresh {
                return Ok(replayed);
            }
        }
        replayed.state.apply(record);
        replayed.lines += 1;
        replayed.good_bytes += line.len();
    }
    Ok(replayed)
}

/// This boot's id (`random(4)`: /proc/sys/kernel/random/boot_id).
///
/// # Errors
/// [`Error::Sysctl`].
pub fn boot_id() -> Result<String, Error> {
    crate::sysctl::read(Path::new("/proc/sys/kernel/random/boot_id"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(n: u8) -> PodRecord {
        let attachment = Attachment {
            host_if: format!("rk{n}"),
            v4: [10, 0, 0, n].into(),
            v6: None,
            mac: [2, 0, 0, 0, 0, n],
            mtu: 1500,
        };
        PodRecord {
            attachment,
            host_ports: Vec::new(),
        }
    }

    #[test]
    fn another_boot_starts_afresh() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        Journal::open(&path, "boot-1")
            .unwrap()
            .attach("a", record(1))
            .unwrap();
        assert_eq!(
            Journal::open(&path, "boot-1").unwrap().state().pods.len(),
            1
        );
        assert_eq!(
            Journal::open(&path, "boot-2").unwrap().state(),
            &State::default()
        );
    }

    #[test]
    fn damage_in_the_middle_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut journal = Journal::open(&path, "b").unwrap();
        journal.attach("a", record(1)).unwrap();
        journal.attach("b", record(2)).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let second = bytes.iter().position(|b| *b == b'\n').unwrap() + 20;
        bytes[second] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(
            Journal::open(&path, "b"),
            Err(Error::JournalDamaged { line: 2, .. })
        ));
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut journal = Journal::open(&path, "b").unwrap();
        for n in 0..5000_u32 {
            let pod = format!("p{n}");
            journal
                .attach(&pod, record(u8::try_from(n % 200).unwrap()))
                .unwrap();
            journal.release(&pod).unwrap();
        }
        journal.attach("live", record(7)).unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() < 512 * 1024);
        let again = Journal::open(&path, "b").unwrap();
        assert_eq!(again.state(), journal.state());
        assert_eq!(again.state().pods.len(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_file_cut_anywhere_is_a_prefix_of_history(cut in 0.0..1.0f64, steps in prop::collection::vec((0..6u8, any::<bool>()), 1..40)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("journal");
            let mut journal = Journal::open(&path, "b").unwrap();
            let mut history = vec![State::default(), journal.state().clone()];
            for (n, attach) in steps {
                let pod = format!("p{n}");
                if attach { journal.attach(&pod, record(n)).unwrap() } else { journal.release(&pod).unwrap() }
                history.push(journal.state().clone());
            }
            let bytes = std::fs::read(&path).unwrap();
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let end = (bytes.len() as f64 * cut) as usize;
            std::fs::write(&path, &bytes[..end]).unwrap();
            let mut reopened = Journal::open(&path, "b").unwrap();
            prop_assert!(history.contains(reopened.state()));
            reopened.attach("after", record(9)).unwrap();
            let again = Journal::open(&path, "b").unwrap();
            prop_assert_eq!(again.state(), reopened.state());
        }
    }
}
