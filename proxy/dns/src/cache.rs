//! Answers of other servers, for as long as they said and no longer than
//! named limits.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::wire::{Answer, OPT, Records, SOA};

/// Most answers.
pub const ENTRIES_MAX_COUNT: usize = 10_000;
/// Longest answer that is kept, in bytes.
pub const ENTRY_MAX_BYTES: usize = 4096;
/// Most bytes of all answers together.
pub const TOTAL_MAX_BYTES: usize = 8 << 20;
/// Longest time that an answer is kept, in seconds.
pub const TTL_MAX_SECONDS: u32 = 300;
/// Longest time that "no such name" is kept, in seconds.
pub const NEGATIVE_TTL_MAX_SECONDS: u32 = 30;

/// What was asked: the question in lower case and what EDNS asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// Name, type and class, as in the message.
    pub question: Box<[u8]>,
    /// Whether the client has EDNS.
    pub edns: bool,
    /// Whether DNSSEC records are wanted.
    pub dnssec: bool,
}

#[derive(Debug)]
struct Entry {
    message: Arc<[u8]>,
    /// Where TTLs lie in the message.
    ttls: Box<[usize]>,
    stored: Instant,
    until: Instant,
}

/// The cache. Full, it forgets what came first.
#[derive(Debug, Default)]
pub struct Cache {
    entries: HashMap<Key, Entry>,
    order: VecDeque<(Key, Instant)>,
    bytes: usize,
}

impl Cache {
    /// An answer with TTLs less the time that it lay here, if there is one.
    pub fn get(&self, key: &Key, now: Instant) -> Option<Vec<u8>> {
        let entry = self.entries.get(key).filter(|entry| now < entry.until)?;
        let mut message = entry.message.to_vec();
        let age = now.saturating_duration_since(entry.stored).as_secs();
        let age = u32::try_from(age).unwrap_or(u32::MAX);
        for at in &entry.ttls {
            if let Some(bytes) = message.get_mut(*at..*at + 4)
                && let Some(old) = bytes.first_chunk().map(|b| u32::from_be_bytes(*b))
            {
                bytes.copy_from_slice(&old.saturating_sub(age).to_be_bytes());
            }
        }
        Some(message)
    }

    /// Keeps an answer, if it may be kept.
    pub fn put(&mut self, key: Key, message: &[u8], answer: &Answer, now: Instant) {
        let Some((seconds, ttls)) = lifetime(message, answer) else {
            return;
        };
        if seconds == 0 || message.len() > ENTRY_MAX_BYTES {
            return;
        }
        self.remove(&key);
        while self.entries.len() >= ENTRIES_MAX_COUNT
            || self.bytes + message.len() > TOTAL_MAX_BYTES
        {
            let Some((oldest, stored)) = self.order.pop_front() else {
                return;
            };
            // One that was replaced since has a younger place in the order.
            if self
                .entries
                .get(&oldest)
                .is_some_and(|e| e.stored == stored)
            {
                self.remove(&oldest);
            }
        }
        // Places of what was removed are not looked for one by one.
        if self.order.len() > 2 * ENTRIES_MAX_COUNT {
            let entries = &self.entries;
            self.order
                .retain(|(key, stored)| entries.get(key).is_some_and(|e| e.stored == *stored));
        }
        self.bytes += message.len();
        self.order.push_back((key.clone(), now));
        self.entries.insert(
            key,
            Entry {
                message: message.into(),
                ttls,
                stored: now,
                until: now + Duration::from_secs(u64::from(seconds)),
            },
        );
    }

    fn remove(&mut self, key: &Key) {
        if let Some(old) = self.entries.remove(key) {
            self.bytes -= old.message.len();
        }
    }

    /// How many answers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// How long an answer may be kept, in seconds, and where its TTLs are.
/// `None`: not at all.
fn lifetime(message: &[u8], answer: &Answer) -> Option<(u32, Box<[usize]>)> {
    // NOERROR and NXDOMAIN (RFC 2308); failures are asked again.
    if !matches!(answer.rcode, 0 | 3) || answer.truncated {
        return None;
    }
    let mut ttls = Vec::new();
    let mut least = TTL_MAX_SECONDS;
    let mut soa = None;
    let total = answer.counts.iter().sum();
    for record in Records::new(message, answer.records_at, total) {
        let record = record?;
        if record.kind == OPT {
            continue;
        }
        ttls.push(record.ttl_at);
        least = least.min(record.ttl);
        if record.kind == SOA {
            // The minimum is the last number of the SOA.
            let minimum = message.get(record.data_end.checked_sub(4)?..record.data_end)?;
            let minimum = u32::from_be_bytes(*minimum.first_chunk()?);
            soa = Some(record.ttl.min(minimum));
        }
    }
    let negative = answer.rcode == 3 || answer.counts[0] == 0;
    let seconds = match (negative, soa) {
        (false, _) => least,
        (true, Some(soa)) => soa.min(NEGATIVE_TTL_MAX_SECONDS),
        // Without an SOA a negative answer is not to be kept.
        (true, None) => 0,
    };
    Some((seconds, ttls.into()))
}
