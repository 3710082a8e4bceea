//! Points in time: the wall clock as records and statuses hold it, and a
//! clock that tests can turn.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

/// Tells the time. Workers never ask the system themselves, so that a test
/// under tokio's paused time can let hours pass.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// The system's wall clock.
    #[must_use]
    pub fn system() -> Self {
        Self(Arc::new(SystemTime::now))
    }

    /// A clock that starts at `epoch` and advances with tokio's time.
    #[must_use]
    pub fn of_tokio(epoch: SystemTime) -> Self {
        let start = tokio::time::Instant::now();
        Self(Arc::new(move || epoch + start.elapsed()))
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        (self.0)()
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

/// A time as the API prints it: whole seconds (metav1.Time). Times before
/// 1970 become 1970, those after the year 9999 its end.
#[must_use]
pub fn api_time(at: SystemTime) -> Time {
    Time(timestamp(at, 0))
}

/// A time with microseconds (metav1.MicroTime).
#[must_use]
pub fn api_micro_time(at: SystemTime) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime {
    let micros = at
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .subsec_micros();
    k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(timestamp(at, micros))
}

/// RFC 3339 in UTC with whole seconds.
#[must_use]
pub fn rfc3339(at: SystemTime) -> String {
    timestamp(at, 0).to_string()
}

/// The instant of an API time.
#[must_use]
pub fn system_time(at: &Time) -> SystemTime {
    from_timestamp(at.0)
}

fn timestamp(at: SystemTime, micros: u32) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    let nanos = i32::try_from(micros.saturating_mul(1000)).unwrap_or(0);
    Timestamp::new(seconds, nanos).unwrap_or(Timestamp::MAX)
}

/// The instant of a timestamp; those before 1970 become 1970.
#[must_use]
pub fn from_timestamp(at: Timestamp) -> SystemTime {
    let seconds = u64::try_from(at.as_second()).unwrap_or(0);
    let nanos = u32::try_from(at.subsec_nanosecond()).unwrap_or(0);
    UNIX_EPOCH + Duration::new(seconds, nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_times_have_whole_seconds_and_round_trip() {
        let at = UNIX_EPOCH + Duration::from_millis(1_700_000_000_999);
        assert_eq!(rfc3339(at), "2023-11-14T22:13:20Z");
        let back = system_time(&api_time(at));
        assert_eq!(back, UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        assert_eq!(
            rfc3339(UNIX_EPOCH - Duration::from_secs(5)),
            "1970-01-01T00:00:00Z"
        );
    }
}
