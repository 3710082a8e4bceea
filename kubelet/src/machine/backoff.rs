//! When a container that keeps ending is started again.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// The delay before the second restart (node reference 1.3).
pub const FIRST_DELAY: Duration = Duration::from_secs(10);
/// The longest delay.
pub const LONGEST_DELAY: Duration = Duration::from_secs(300);
/// A container that ran this long since its last restart begins anew: twice
/// the longest delay.
pub const FORGET_AFTER: Duration = Duration::from_secs(600);

/// The memory of one container's restarts. The first restart is immediate;
/// then the delay doubles from 10 s to 300 s, counted from the moment that
/// the container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Backoff {
    entry: Option<Entry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    delay: Duration,
    restarted_at: SystemTime,
}

impl Backoff {
    /// When a container that ended at `finished_at` may start again; a time
    /// in the past means at once.
    #[must_use]
    pub fn ready_at(&self, finished_at: SystemTime) -> SystemTime {
        match self.entry {
            Some(entry) if !entry.forgotten(finished_at) => finished_at + entry.delay,
            _ => finished_at,
        }
    }

    /// The delay that the next restart has to wait for.
    #[must_use]
    pub fn delay(&self, finished_at: SystemTime) -> Duration {
        match self.entry {
            Some(entry) if !entry.forgotten(finished_at) => entry.delay,
            _ => Duration::ZERO,
        }
    }

    /// Notes that a container that ended at `finished_at` is started again.
    pub fn restarted(&mut self, finished_at: SystemTime, now: SystemTime) {
        let delay = match self.entry {
            Some(entry) if !entry.forgotten(finished_at) => (entry.delay * 2).min(LONGEST_DELAY),
            _ => FIRST_DELAY,
        };
        self.entry = Some(Entry {
            delay,
            restarted_at: now,
        });
    }
}

impl Entry {
    fn forgotten(&self, finished_at: SystemTime) -> bool {
        finished_at
            .duration_since(self.restarted_at)
            .is_ok_and(|healthy| healthy > FORGET_AFTER)
    }
}

/// Delays of things that are tried again without an end: `first`, doubling,
/// at most `cap`. `failures` counts from 1.
#[must_use]
pub fn retry_delay(failures: u32, first: Duration, cap: Duration) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    first.saturating_mul(1 << doublings).min(cap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::UNIX_EPOCH;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    #[test]
    fn the_curve() {
        let mut backoff = Backoff::default();
        let mut now = at(0);
        let mut seen = Vec::new();
        for _ in 0..8 {
            let ready = backoff.ready_at(now);
            seen.push(ready.duration_since(now).unwrap().as_secs());
            backoff.restarted(now, ready);
            now = ready + Duration::from_secs(1);
        }
        assert_eq!(seen, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn ten_healthy_minutes_reset_it() {
        let mut backoff = Backoff::default();
        backoff.restarted(at(0), at(0));
        backoff.restarted(at(10), at(20));
        assert_eq!(backoff.delay(at(620)), Duration::from_secs(20));
        assert_eq!(backoff.delay(at(621)), Duration::ZERO);
        backoff.restarted(at(621), at(621));
        assert_eq!(backoff.delay(at(622)), FIRST_DELAY);
    }

    proptest! {
        #[test]
        fn delays_stay_in_range_and_never_shrink_while_unhealthy(
            runs in proptest::collection::vec(0u64..600, 1..30),
        ) {
            let mut backoff = Backoff::default();
            let mut now = at(0);
            let mut last = Duration::ZERO;
            for run in runs {
                now += Duration::from_secs(run);
                let delay = backoff.delay(now);
                prop_assert!(delay >= last && delay <= LONGEST_DELAY);
                let ready = backoff.ready_at(now);
                prop_assert_eq!(ready, now + delay);
                backoff.restarted(now, ready);
                now = ready;
                last = delay;
            }
        }
    }
}
