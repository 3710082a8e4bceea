//! Times as texts: RFC 3339 in and out, and kubectl's ages. No clock here:
//! callers say what time it is.

/// Seconds since 1970 and nanoseconds, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub seconds: i64,
    /// Nanoseconds of the second.
    pub nanos: u32,
}

/// Whether a time has exactly six digits of a second, as a `MicroTime` must.
#[must_use]
pub fn has_microseconds(text: &str) -> bool {
    let Some((_, fraction)) = text.split_once('.') else {
        return false;
    };
    let end = fraction.find(|c: char| !c.is_ascii_digit());
    end.unwrap_or(fraction.len()) == 6
}

/// Whether a text is a time as Go's RFC 3339 layout reads it.
#[must_use]
pub fn is_rfc3339(text: &str) -> bool {
    Time::parse(text).is_some()
}

impl Time {
    /// A whole second.
    #[must_use]
    pub const fn from_seconds(seconds: i64) -> Self {
        Self { seconds, nanos: 0 }
    }

    /// Reads RFC 3339 as Go's layout does: `2006-01-02T15:04:05[.fraction]`
    /// and `Z` or `+hh:mm`. Leap seconds have no reading.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let number = |from: usize, to: usize| {
            bytes.get(from..to)?.iter().try_fold(0i64, |n, d| {
                d.is_ascii_digit().then(|| n * 10 + i64::from(d - b'0'))
            })
        };
        let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
        if marks.iter().any(|(i, c)| bytes.get(*i) != Some(c)) {
            return None;
        }
        let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
        let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
        if !(1..=12).contains(&month) || !(1..=days_in(year, month)).contains(&day) {
            return None;
        }
        if hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let mut at = 19;
        let mut nanos = 0;
        if bytes.get(at) == Some(&b'.') {
            let digits = bytes[at + 1..]
                .iter()
                .take_while(|b| b.is_ascii_digit())
                .count();
            if digits == 0 {
                return None;
            }
            // What is finer than a nanosecond is cut.
            for place in 0..9 {
                let digit = if place < digits {
                    bytes[at + 1 + place] - b'0'
                } else {
                    0
                };
                nanos = nanos * 10 + u32::from(digit);
            }
            at += 1 + digits;
        }
        let offset = match *bytes.get(at..)? {
            [b'Z'] => 0,
            [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
                let (hours, minutes) = (number(at + 1, at + 3)?, number(at + 4, at + 6)?);
                if hours > 24 || minutes > 59 {
                    return None;
                }
                let offset = hours * 3600 + minutes * 60;
                if sign == b'-' { -offset } else { offset }
            }
            _ => return None,
        };
        let seconds =
            days_from_civil(year, month, day) * 86400 + hour * 3600 + minute * 60 + second;
        Some(Self {
            seconds: seconds - offset,
            nanos,
        })
    }

    /// `2006-01-02T15:04:05Z`, the form of `metav1.Time`.
    #[must_use]
    pub fn to_rfc3339(self) -> String {
        let (date, clock) = self.civil();
        format!("{date}T{clock}Z")
    }

    /// `2006-01-02T15:04:05.000000Z`, the form of `metav1.MicroTime`.
    #[must_use]
    pub fn to_rfc3339_micro(self) -> String {
        let (date, clock) = self.civil();
        format!("{date}T{clock}.{:06}Z", self.nanos / 1000)
    }

    fn civil(self) -> (String, String) {
        let (days, rest) = (
            self.seconds.div_euclid(86400),
            self.seconds.rem_euclid(86400),
        );
        let (year, month, day) = civil_from_days(days);
        let clock = format!("{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
        (format!("{year:04}-{month:02}-{day:02}"), clock)
    }
}

const fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a date of the Gregorian calendar. Years are
/// counted from March, in eras of 400 years (146,097 days).
const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The inverse of [`days_from_civil`].
const fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

/// A duration the way kubectl prints ages: two units at most, and the second
/// only while it matters.
#[must_use]
pub fn human_duration(seconds: i64) -> String {
    let two = |big: i64, b: &str, small: i64, s: &str| {
        if small == 0 {
            format!("{big}{b}")
        } else {
            format!("{big}{b}{small}{s}")
        }
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    match seconds {
        i64::MIN..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => two(days, "d", hours % 24, "h"),
        _ if days < 730 => format!("{days}d"),
        _ if years < 8 => two(years, "y", days % 365, "d"),
        _ => format!("{years}y"),
    }
}

/// The age of something created at `text`, seen at `now`.
#[must_use]
pub fn age(text: &str, now: Time) -> String {
    match Time::parse(text) {
        Some(then) => human_duration(now.seconds.saturating_sub(then.seconds)),
        None => "<unknown>".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rfc_3339() {
        for good in ["2024-02-29T23:59:59Z", "2024-01-01T00:00:00.123456+05:30"] {
            assert!(is_rfc3339(good), "{good}");
        }
        let micro = [".123456Z", ".123456+05:30", "Z", ".12345Z", ".1234567Z"];
        let fits = micro.map(|end| has_microseconds(&format!("2024-01-01T00:00:00{end}")));
        assert_eq!(fits, [true, true, false, false, false]);
        for bad in [
            "2023-02-29T00:00:00Z",
            "2024-01-01",
            "2024-01-01 00:00:00Z",
            "2024-13-01T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00:00.Z",
            "2024-01-01T00:00:00Zx",
            "éééééééééééééé",
        ] {
            assert!(!is_rfc3339(bad), "{bad}");
        }
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-03-01T00:00:00Z", 951_868_800),
            ("2024-02-29T12:00:00+01:00", 1_709_204_400),
            ("1969-12-31T23:59:59Z", -1),
        ] {
            assert_eq!(
                Time::parse(text).map(|t| t.seconds),
                Some(seconds),
                "{text}"
            );
        }
        let time = Time::parse("2024-01-01T00:00:00.1234567899Z").unwrap();
        assert_eq!(time.nanos, 123_456_789);
        assert_eq!(time.to_rfc3339_micro(), "2024-01-01T00:00:00.123456Z");
    }

    #[test]
    fn ages_as_kubectl_prints_them() {
        const H: i64 = 3600;
        for (seconds, want) in [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (599, "9m59s"),
            (600, "10m"),
            (3 * H - 1, "179m"),
            (3 * H, "3h"),
            (3 * H + 60, "3h1m"),
            (8 * H, "8h"),
            (47 * H, "47h"),
            (48 * H, "2d"),
            (49 * H, "2d1h"),
            (8 * 24 * H, "8d"),
            (729 * 24 * H, "729d"),
            (730 * 24 * H, "2y"),
            (731 * 24 * H, "2y1d"),
            (3000 * 24 * H, "8y"),
        ] {
            assert_eq!(human_duration(seconds), want, "{seconds}");
        }
        assert_eq!(age("x", Time::from_seconds(0)), "<unknown>");
    }

    proptest! {
        #[test]
        fn texts_read_back_the_same(seconds in -62_135_596_800i64..253_402_300_800) {
            let time = Time::from_seconds(seconds);
            prop_assert_eq!(Time::parse(&time.to_rfc3339()), Some(time));
        }
    }
}
