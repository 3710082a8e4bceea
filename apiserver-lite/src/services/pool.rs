//! A range of numbers (addresses as their bits, or ports) of which some are
//! taken.
//!
//! What is chosen for somebody comes from the upper part of the range by
//! chance, and from the lower part only when the upper is full: the lower one
//! is left to those who ask for a number by name (KEP-3070, KEP-3668).

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long a number stays reserved for a write that was checked and is about
/// to be stored, or that others (webhooks) still look at.
const RESERVED: Duration = Duration::from_secs(30);
/// How many numbers are tried by chance before all are gone through.
const CHANCES_MAX_COUNT: usize = 64;

/// Who has a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    /// Namespace and name of the Service; the name is empty while it is to be
    /// generated.
    pub(super) service: (String, String),
    /// Since when for a write that may not be stored yet; `None`: the store
    /// had it.
    pub(super) reserved: Option<Instant>,
}

impl Holder {
    /// Whether the store need not know of it yet.
    #[must_use]
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        self.reserved
            .is_some_and(|since| now.saturating_duration_since(since) < RESERVED)
    }
}

/// A range and its holders.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    first: u128,
    size: u128,
    /// Size of the lower part.
    lower: u128,
    taken: HashMap<u128, Holder>,
}

impl Pool {
    /// A range of `size` numbers from `first` on, of which `lower` are left
    /// to those who ask by name.
    #[must_use]
    pub(super) fn new(first: u128, size: u128, lower: u128) -> Self {
        Self {
            first,
            size,
            lower: lower.min(size),
            taken: HashMap::new(),
        }
    }

    /// Whether a number is in the range.
    #[must_use]
    pub(super) fn contains(&self, number: u128) -> bool {
        number
            .checked_sub(self.first)
            .is_some_and(|offset| offset < self.size)
    }

    /// Who has a number.
    #[must_use]
    pub(super) fn holder(&self, number: u128) -> Option<&Holder> {
        self.taken.get(&number)
    }

    /// Gives a number to somebody.
    pub(super) fn take(&mut self, number: u128, holder: Holder) {
        self.taken.insert(number, holder);
    }

    /// Takes a number back.
    pub(super) fn give_back(&mut self, number: u128) {
        self.taken.remove(&number);
    }

    /// Forgets all holders but those whose writes may not be stored yet.
    pub(super) fn forget_stored(&mut self, now: Instant) {
        self.taken.retain(|_, holder| holder.is_fresh(now));
    }

    /// A free number, if there is one. `random` gives 8 random bytes.
    ///
    /// # Errors
    /// Those of `random`.
    pub(super) fn choose<E>(
        &self,
        mut random: impl FnMut() -> Result<u64, E>,
    ) -> Result<Option<u128>, E> {
        let upper = (self.lower, self.size - self.lower);
        for (start, count) in [upper, (0, self.lower)] {
            if count == 0 {
                continue;
            }
            for _ in 0..CHANCES_MAX_COUNT {
                let number = self.first + start + u128::from(random()?) % count;
                if !self.taken.contains_key(&number) {
                    return Ok(Some(number));
                }
            }
            // Nearly full: at most one number more than are taken is looked at.
            let mut all = (start..start + count).map(|offset| self.first + offset);
            if let Some(free) = all.find(|number| !self.taken.contains_key(number)) {
                return Ok(Some(free));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use std::convert::Infallible;

    fn holder() -> Holder {
        Holder {
            service: ("n".into(), "a".into()),
            reserved: None,
        }
    }

    #[test]
    fn the_lower_part_is_chosen_last() {
        let mut pool = Pool::new(100, 20, 16);
        let mut count = 0_u64;
        let mut random = || {
            count += 7;
            Ok::<_, Infallible>(count)
        };
        let mut got = Vec::new();
        while let Some(number) = pool.choose(&mut random).unwrap() {
            pool.take(number, holder());
            got.push(number);
        }
        assert_eq!(got.len(), 20);
        assert!(got[..4].iter().all(|n| *n >= 116), "{got:?}");
        assert!(got[4..].iter().all(|n| *n < 116));
        pool.give_back(103);
        assert_eq!(pool.choose(&mut random).unwrap(), Some(103));
        assert!(pool.contains(119) && !pool.contains(120) && !pool.contains(99));
    }
}
