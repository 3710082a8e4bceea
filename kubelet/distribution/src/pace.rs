//! How fast bodies come and go.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::limits::PROGRESS_BYTES;

/// How fast a body comes: time in which nobody waits for it does not count.
#[derive(Debug)]
pub(crate) struct Pace {
    least: Duration,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// In `least`, [`PROGRESS_BYTES`] have to come.
    pub(crate) fn new(least: Duration) -> Self {
        Self {
            least,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// So many bytes came after so long a wait: whether that is too slow.
    pub(crate) fn is_too_slow(&mut self, bytes: u64, waited: Duration) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.bytes >= PROGRESS_BYTES {
            (self.waited, self.bytes) = (Duration::ZERO, 0);
        }
        self.waited > self.least
    }

    /// What is told then.
    pub(crate) fn told(&self) -> String {
        let seconds = self.least.as_secs_f32();
        format!("it is too slow: less than {PROGRESS_BYTES} bytes in {seconds} s")
    }
}

/// When the last piece of an upload went out.
#[derive(Debug)]
pub(crate) struct LastSent(Mutex<Instant>);

impl LastSent {
    pub(crate) fn now() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    /// One goes now.
    pub(crate) fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    pub(crate) fn ago(&self) -> Duration {
        let at = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        at.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_counts_until_enough_has_come() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(second * 3);
        for _ in 0..10 {
            assert!(!pace.is_too_slow(PROGRESS_BYTES / 2, second));
        }
        let slow: Vec<bool> = (0..4).map(|_| pace.is_too_slow(1, second)).collect();
        assert_eq!(slow, [false, false, false, true]);
    }
}
