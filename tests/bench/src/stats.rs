//! Samples, and what is told of them.

use std::time::Duration;

use serde::Serialize;

/// A list of samples in one unit.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds a span, in milliseconds.
    pub fn push_ms(&mut self, span: Duration) {
        self.0.push(span.as_secs_f64() * 1e3);
    }

    /// Adds a number.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The middle one, or the mean of the two in the middle.
    pub fn median(&self) -> Option<f64> {
        let sorted = self.sorted();
        let n = sorted.len();
        if n == 0 {
            return None;
        }
        Some((sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0)
    }

    /// The smallest sample that at least 99 of 100 do not exceed (nearest
    /// rank): the largest one while there are fewer than 100.
    pub fn p99(&self) -> Option<f64> {
        let sorted = self.sorted();
        let rank = (sorted.len() * 99).div_ceil(100);
        sorted.get(rank.checked_sub(1)?).copied()
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(iter: I) -> Samples {
        Samples(iter.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ranks() {
        let s: Samples = [5.0, 1.0, 3.0].into_iter().collect();
        assert_eq!((s.median(), s.p99()), (Some(3.0), Some(5.0)));
        let s: Samples = (1..=200).map(f64::from).collect();
        assert_eq!((s.median(), s.p99()), (Some(100.5), Some(198.0)));
        assert_eq!(
            (Samples::default().median(), Samples::default().p99()),
            (None, None)
        );
    }
}
