//! When a request is tried again: a pure decision.

use std::time::{Duration, SystemTime};

use crate::limits::{LONGEST_PAUSE, MAX_RETRY_AFTER, MAX_TRIES};

/// The pause before the next try, or none when it is over. `tries` counts
/// those made, `spread` is 0 to 255 and spreads clients over half the pause.
#[must_use]
pub(crate) fn pause(
    tries: u32,
    first: Duration,
    retry_after: Option<Duration>,
    spread: u8,
) -> Option<Duration> {
    if tries >= MAX_TRIES {
        return None;
    }
    let doubled = first.saturating_mul(1 << tries.saturating_sub(1).min(10));
    let own = doubled.min(LONGEST_PAUSE);
    let own = own / 2 + own.mul_f64(f64::from(spread) / 510.0);
    match retry_after {
        Some(asked) if asked > MAX_RETRY_AFTER => None,
        Some(asked) => Some(asked.max(own)),
        None => Some(own),
    }
}

/// The value of `Retry-After`: seconds, or a date (RFC 9110, 10.2.3).
#[must_use]
pub(crate) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = http_date(value)?;
    Some(at.duration_since(now).unwrap_or_default())
}

/// An IMF-fixdate (RFC 9110, 5.6.7): `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (_, rest) = text.split_once(", ")?;
    let mut words = rest.split(' ');
    let day: u64 = words
        .next()?
        .parse()
        .ok()
        .filter(|d| (1..=31).contains(d))?;
    let name = words.next()?;
    let month = u64::try_from(MONTHS.iter().position(|m| *m == name)?).ok()? + 1;
    let year: u64 = words
        .next()?
        .parse()
        .ok()
        .filter(|y| (1970..10_000).contains(y))?;
    let mut clock = words.next()?.split(':').map(|p| p.parse::<u64>().ok());
    let (h, m, s) = (clock.next()??, clock.next()??, clock.next()??);
    if words.next()? != "GMT" || h > 23 || m > 59 || s > 60 {
        return None;
    }
    // Days since 1970 of a civil date: years begin in March, so that the leap
    // day is the last.
    let (y, mp) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * mp + 2) / 5 + day - 1;
    let since = days.checked_sub(719_468)? * 86_400 + h * 3600 + m * 60 + s;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(since))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        let ms = |tries, after, spread| {
            pause(tries, Duration::from_millis(500), after, spread).map(|d| d.as_millis())
        };
        assert_eq!(ms(1, None, 0), Some(250));
        assert_eq!(ms(1, None, 255), Some(500));
        assert_eq!(ms(3, None, 255), Some(2000));
        assert_eq!(ms(MAX_TRIES, None, 0), None);
        assert_eq!(ms(1, Some(Duration::from_secs(7)), 0), Some(7000));
        assert_eq!(ms(1, Some(Duration::ZERO), 0), Some(250));
        assert_eq!(ms(1, Some(MAX_RETRY_AFTER * 2), 0), None);
    }

    #[test]
    fn both_forms_of_retry_after() {
        let at = |s| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(http_date(date), Some(at(784_111_777)));
        assert_eq!(
            http_date("Thu, 29 Feb 2024 00:00:00 GMT"),
            Some(at(1_709_164_800))
        );
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(at(0)));
        assert_eq!(retry_after(" 3 ", at(0)), Some(Duration::from_secs(3)));
        assert_eq!(
            retry_after(date, at(784_111_770)),
            Some(Duration::from_secs(7))
        );
        assert_eq!(retry_after(date, at(999_999_999)), Some(Duration::ZERO));
        for bad in [
            "",
            "-1",
            "soon",
            "Sun, 99 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49 GMT",
        ] {
            assert_eq!(retry_after(bad, at(0)), None, "{bad}");
        }
    }
}
