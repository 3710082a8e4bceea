//! When a probe runs and what its results add up to (node reference 1.4).

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};

use crate::machine::ProbeKind;

/// A probe's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// From the container's start to the first run.
    pub initial_delay: Duration,
    /// From one run to the next.
    pub period: Duration,
    /// How long one run may take.
    pub timeout: Duration,
    /// Successes in a row that turn the verdict.
    pub successes: u32,
    /// Failures in a row that turn the verdict.
    pub failures: u32,
}

impl Schedule {
    /// Reads a probe; what it does not name has upstream's defaults.
    #[must_use]
    pub fn of(probe: &Probe) -> Self {
        let seconds = |value: Option<i32>, default: u64, least: u64| {
            let value = value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default);
            Duration::from_secs(value.max(least))
        };
        let count = |value: Option<i32>, default: u32| {
            value
                .and_then(|v| u32::try_from(v).ok())
                .unwrap_or(default)
                .max(1)
        };
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0, 0),
            period: seconds(probe.period_seconds, 10, 1),
            timeout: seconds(probe.timeout_seconds, 1, 1),
            successes: count(probe.success_threshold, 1),
            failures: count(probe.failure_threshold, 3),
        }
    }
}

/// The probe of a kind.
#[must_use]
pub fn of_kind(container: &Container, kind: ProbeKind) -> Option<&Probe> {
    match kind {
        ProbeKind::Startup => container.startup_probe.as_ref(),
        ProbeKind::Liveness => container.liveness_probe.as_ref(),
        ProbeKind::Readiness => container.readiness_probe.as_ref(),
    }
}

/// Adds results up to a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    schedule: Schedule,
    verdict: Option<bool>,
    last: bool,
    streak: u32,
}

impl Tally {
    /// Before the first run; `verdict` is what holds until then: liveness
    /// counts as succeeded, readiness as failed, startup is open.
    #[must_use]
    pub fn new(schedule: Schedule, verdict: Option<bool>) -> Self {
        Self {
            schedule,
            verdict,
            last: false,
            streak: 0,
        }
    }

    /// Takes a result in; a verdict that it turns comes back.
    pub fn add(&mut self, success: bool) -> Option<bool> {
        self.streak = if success == self.last {
            self.streak.saturating_add(1)
        } else {
            1
        };
        self.last = success;
        let enough = if success {
            self.schedule.successes
        } else {
            self.schedule.failures
        };
        if self.streak < enough || self.verdict == Some(success) {
            return None;
        }
        self.verdict = Some(success);
        Some(success)
    }
}
