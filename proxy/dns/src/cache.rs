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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{A, IN};

    const ID: u16 = 7;
    /// The name `a`, type A, class IN.
    const QUESTION: &[u8] = b"\x01a\0\0\x01\0\x01";
    /// Flags of an answer; the code goes into the last four bits.
    const ANSWER: u16 = 0x8180;
    const TRUNCATED: u16 = 0x0200;

    /// A record about the question's name.
    fn record(kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
        let mut out = b"\xc0\x0c".to_vec();
        for number in [kind, IN] {
            out.extend(number.to_be_bytes());
        }
        out.extend(ttl.to_be_bytes());
        out.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        out.extend(data);
        out
    }

    fn address(ttl: u32) -> Vec<u8> {
        record(A, ttl, &[192, 0, 2, 1])
    }

    fn soa(ttl: u32, minimum: u32) -> Vec<u8> {
        // Two root names and four numbers before the minimum.
        let mut data = vec![0; 2 + 4 * 4];
        data.extend(minimum.to_be_bytes());
        record(SOA, ttl, &data)
    }

    fn message(flags: u16, answers: &[Vec<u8>], authority: &[Vec<u8>]) -> Vec<u8> {
        let count = |list: &[Vec<u8>]| u16::try_from(list.len()).unwrap();
        let mut out = Vec::new();
        for number in [ID, flags, 1, count(answers), count(authority), 0] {
            out.extend(number.to_be_bytes());
        }
        out.extend(QUESTION);
        out.extend(answers.concat());
        out.extend(authority.concat());
        out
    }

    fn key(number: usize) -> Key {
        Key {
            question: number.to_be_bytes().into(),
            edns: false,
            dnssec: false,
        }
    }

    fn put(cache: &mut Cache, at: usize, message: &[u8], now: Instant) {
        let answer = Answer::read(message, ID, QUESTION).unwrap();
        cache.put(key(at), message, &answer, now);
    }

    fn ttls(message: &[u8]) -> Vec<u32> {
        let answer = Answer::read(message, ID, QUESTION).unwrap();
        let total = answer.counts.iter().sum();
        let records = Records::new(message, answer.records_at, total);
        records.map(|record| record.unwrap().ttl).collect()
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    /// For how many seconds a message is kept.
    fn kept(message: &[u8]) -> u64 {
        let start = Instant::now();
        let mut cache = Cache::default();
        put(&mut cache, 0, message, start);
        let is_there = |seconds| cache.get(&key(0), after(start, seconds)).is_some();
        (0..1000).take_while(|seconds| is_there(*seconds)).count() as u64
    }

    #[test]
    fn times_to_live_count_down_to_the_end_of_the_shortest() {
        let start = Instant::now();
        let mut cache = Cache::default();
        let text = message(ANSWER, &[address(60), address(90)], &[]);
        put(&mut cache, 0, &text, start);
        for (seconds, expected) in [(0, [60, 90]), (20, [40, 70]), (59, [1, 31])] {
            let got = cache.get(&key(0), after(start, seconds)).unwrap();
            assert_eq!(ttls(&got), expected, "after {seconds} s");
            assert_eq!(got.len(), text.len());
        }
        assert!(cache.get(&key(0), after(start, 60)).is_none());
        // Another question, or the same of a client with EDNS, is another entry.
        assert!(cache.get(&key(1), start).is_none());
        let edns = Key {
            edns: true,
            ..key(0)
        };
        assert!(cache.get(&edns, start).is_none());
    }

    #[test]
    fn how_long_answers_are_kept() {
        let nothing = |code: u16, authority: &[Vec<u8>]| message(ANSWER | code, &[], authority);
        let long = u64::from(TTL_MAX_SECONDS);
        let negative = u64::from(NEGATIVE_TTL_MAX_SECONDS);
        for (what, message, seconds) in [
            ("an hour", message(ANSWER, &[address(3600)], &[]), long),
            ("no time", message(ANSWER, &[address(0)], &[]), 0),
            ("no name, by its minimum", nothing(3, &[soa(600, 20)]), 20),
            ("no name, by its time", nothing(3, &[soa(10, 600)]), 10),
            ("no name, for long", nothing(3, &[soa(600, 600)]), negative),
            ("no data", nothing(0, &[soa(600, 600)]), negative),
            ("no name without SOA", nothing(3, &[]), 0),
            ("no data without SOA", nothing(0, &[]), 0),
            ("a failure", nothing(2, &[soa(600, 600)]), 0),
            (
                "the half",
                message(ANSWER | TRUNCATED, &[address(60)], &[]),
                0,
            ),
            (
                "too much",
                message(ANSWER, &vec![address(60); ENTRY_MAX_BYTES / 16 + 1], &[]),
                0,
            ),
        ] {
            assert_eq!(kept(&message), seconds, "{what}");
        }
    }

    #[test]
    fn a_full_cache_forgets_what_came_first() {
        let start = Instant::now();
        let small = message(ANSWER, &[address(60)], &[]);
        let mut cache = Cache::default();
        for at in 0..ENTRIES_MAX_COUNT {
            put(&mut cache, at, &small, start);
        }
        // The first one comes anew, so it is the second that goes.
        put(&mut cache, 0, &small, after(start, 1));
        put(&mut cache, ENTRIES_MAX_COUNT, &small, after(start, 1));
        assert_eq!(cache.len(), ENTRIES_MAX_COUNT);
        let is_there = |cache: &Cache, at| cache.get(&key(at), after(start, 2)).is_some();
        assert!(is_there(&cache, 0) && !is_there(&cache, 1) && is_there(&cache, 2));
        assert_eq!(cache.bytes, ENTRIES_MAX_COUNT * small.len());
        // Bytes have a limit too.
        let large = message(ANSWER, &vec![address(60); ENTRY_MAX_BYTES / 16 - 2], &[]);
        let mut cache = Cache::default();
        let fit = TOTAL_MAX_BYTES / large.len();
        for at in 0..fit + 10 {
            put(&mut cache, at, &large, after(start, 1));
        }
        assert_eq!(cache.len(), fit);
        assert!(cache.bytes <= TOTAL_MAX_BYTES);
        assert!(!is_there(&cache, 9) && is_there(&cache, 10));
    }
}
