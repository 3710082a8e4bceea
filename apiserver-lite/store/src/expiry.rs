//! Keys with a time to live.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::model::Key;

/// Keys that end within the same slot are deleted by one batch, up to this much late.
const SLOT_S: u64 = 10;

/// When which keys end.
#[derive(Debug, Default)]
pub(crate) struct Expiry {
    ends: BTreeSet<(u64, Key)>,
    /// After a failed batch: not again before this.
    not_before_unix_s: u64,
}

impl Expiry {
    pub(crate) fn new(ends: impl Iterator<Item = (u64, Key)>) -> Self {
        Self {
            ends: ends.collect(),
            not_before_unix_s: 0,
        }
    }

    /// A key's end moves; 0 is none.
    pub(crate) fn replace(&mut self, key: &Key, old_unix_s: u64, new_unix_s: u64) {
        if old_unix_s != 0 {
            self.ends.remove(&(old_unix_s, key.clone()));
        }
        if new_unix_s != 0 {
            self.ends.insert((new_unix_s, key.clone()));
        }
    }

    /// How long nothing ends; `None`: for ever.
    pub(crate) fn wait(&self, now_unix_s: u64) -> Option<Duration> {
        let (end, _) = self.ends.first()?;
        let due = end.next_multiple_of(SLOT_S).max(self.not_before_unix_s);
        Some(Duration::from_secs(due.saturating_sub(now_unix_s)))
    }

    /// Keys that have ended, at most `limit`.
    pub(crate) fn due(&self, now_unix_s: u64, limit: usize) -> Vec<Key> {
        if self.wait(now_unix_s) != Some(Duration::ZERO) {
            return Vec::new();
        }
        let ended = self.ends.iter().take_while(|(end, _)| *end <= now_unix_s);
        ended.take(limit).map(|(_, key)| key.clone()).collect()
    }

    /// The batch was refused: try again in a while.
    pub(crate) fn postpone(&mut self, now_unix_s: u64) {
        self.not_before_unix_s = now_unix_s + SLOT_S;
    }
}
