//! Quantities: `100m`, `1.5Gi`, `1e3`.
//!
//! Exact: a value is a whole number of nano-units in an `i128`. The rules are
//! those of `k8s.io/apimachinery/pkg/api/resource`: what is finer than nano
//! rounds away from zero, the suffix decides the canonical form, binary
//! quantities stop at 2^63-1. One listed difference: a decimal quantity beyond
//! about 1.7e29 is an error here, upstream carries any size.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde_json::Value;

const NANOS: i128 = 1_000_000_000;

/// How a quantity is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// `n u m "" k M G T P E`.
    DecimalSi,
    /// `Ki Mi Gi Ti Pi Ei`.
    BinarySi,
    /// `e3`.
    DecimalExponent,
}

/// An amount of a resource.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why a text is no quantity; upstream's wording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The text has not the shape of a quantity.
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    /// The number before the suffix.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    /// The suffix.
    #[error("unable to parse quantity's suffix")]
    Suffix,
    /// More than this type holds.
    #[error("quantity is out of range")]
    Range,
}

const DECIMAL: [(&str, i32); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];
const BINARY: [(&str, u32); 6] = [
    ("Ki", 10),
    ("Mi", 20),
    ("Gi", 30),
    ("Ti", 40),
    ("Pi", 50),
    ("Ei", 60),
];

enum Scale {
    Ten(i32, Format),
    Two(u32),
}

fn scale_of(suffix: &str) -> Option<Scale> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Some(Scale::Ten(*exponent, Format::DecimalSi));
    }
    if let Some((_, shift)) = BINARY.iter().find(|(s, _)| *s == suffix) {
        return Some(Scale::Two(*shift));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    Some(Scale::Ten(exponent.parse().ok()?, Format::DecimalExponent))
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.is_empty() {
            return Err(ParseError::Format);
        }
        let (negative, rest) = match text.as_bytes()[0] {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let digits_end = |t: &str| t.find(|c: char| !c.is_ascii_digit()).unwrap_or(t.len());
        let (whole, rest) = rest.split_at(digits_end(rest));
        let (part, suffix) = match rest.strip_prefix('.') {
            Some(rest) => rest.split_at(digits_end(rest)),
            None => ("", rest),
        };
        let letters = suffix.trim_end_matches(|c: char| c.is_ascii_digit());
        let letters = letters.strip_suffix(['+', '-']).unwrap_or(letters);
        if !letters.chars().all(|c| "eEinumkKMGTP".contains(c)) {
            return Err(ParseError::Format);
        }
        let scale = scale_of(suffix).ok_or(ParseError::Suffix)?;
        if whole.is_empty() && part.is_empty() {
            return Err(ParseError::Numeric);
        }
        let digits = whole.bytes().chain(part.bytes()).map(|b| b - b'0');
        let places = i32::try_from(part.len()).map_err(|_| ParseError::Range)?;
        let (magnitude, format) = match scale {
            Scale::Ten(exponent, format) => {
                let shift = i64::from(exponent) - i64::from(places) + 9;
                (decimal(digits, shift)?, format)
            }
            Scale::Two(shift) => binary(whole, part, shift)?,
        };
        let nanos = if negative { -magnitude } else { magnitude };
        Ok(Self { nanos, format })
    }
}

/// `digits` * 10^`shift`, rounded up.
fn decimal(
    digits: impl DoubleEndedIterator<Item = u8> + Clone,
    shift: i64,
) -> Result<i128, ParseError> {
    // Digits that fall below the unit only matter for being zero or not.
    let dropped = usize::try_from(-shift).unwrap_or(0);
    let inexact = digits.clone().rev().take(dropped).any(|d| d != 0);
    let keep = digits.clone().count().saturating_sub(dropped);
    let mut value: i128 = 0;
    for digit in digits.take(keep) {
        value = push_digit(value, digit)?;
    }
    if value != 0 {
        for _ in 0..shift.max(0) {
            value = push_digit(value, 0)?;
        }
    }
    value
        .checked_add(i128::from(inexact))
        .ok_or(ParseError::Range)
}

fn push_digit(value: i128, digit: u8) -> Result<i128, ParseError> {
    let tenfold = value.checked_mul(10).ok_or(ParseError::Range)?;
    tenfold.checked_add(digit.into()).ok_or(ParseError::Range)
}

/// `whole.part` * 2^`shift` in nanos, rounded up and capped at 2^63-1.
fn binary(whole: &str, part: &str, shift: u32) -> Result<(i128, Format), ParseError> {
    let cap = i128::from(i64::MAX) * NANOS;
    let mut value: i128 = 0;
    for digit in whole.bytes() {
        value = push_digit(value, digit - b'0').unwrap_or(cap).min(cap);
    }
    let whole = value.checked_shl(shift).filter(|_| value <= cap >> shift);
    let Some(whole) = whole
        .and_then(|w| w.checked_mul(NANOS))
        .filter(|w| *w <= cap)
    else {
        return Ok((cap, Format::BinarySi));
    };
    // The fraction is exact in integers while 10^places fits; what comes after
    // 18 digits is below a nano even times 2^60 only if zero, so it is carried
    // as "something more".
    let (mut numerator, mut denominator) = (0i128, 1i128);
    for byte in part.bytes().take(18) {
        numerator = push_digit(numerator, byte - b'0')?;
        denominator *= 10;
    }
    let more = part.bytes().skip(18).any(|b| b != b'0');
    // numerator < 10^18 < 2^60 and the factor is 2^60 * 10^9 < 2^90 at most:
    // divide step by step to stay within i128.
    let scaled = numerator << shift; // < 2^120
    let (units, rest) = (scaled / denominator, scaled % denominator);
    let nanos = rest * NANOS; // rest < 10^18, times 10^9 < 2^90
    let mut value = whole + units * NANOS + nanos / denominator;
    if nanos % denominator != 0 || more {
        value += 1;
    }
    let value = value.min(cap);
    // Less than one whole unit is no binary quantity any more.
    let format = if value > 0 && value < NANOS {
        Format::DecimalSi
    } else {
        Format::BinarySi
    };
    Ok((value, format))
}

impl Quantity {
    /// Zero.
    pub const ZERO: Self = Self {
        nanos: 0,
        format: Format::DecimalSi,
    };

    /// A whole number of units.
    #[must_use]
    pub fn new(units: i64, format: Format) -> Self {
        Self {
            nanos: i128::from(units) * NANOS,
            format,
        }
    }

    /// A number of thousandths.
    #[must_use]
    pub fn from_milli(milli: i64, format: Format) -> Self {
        Self {
            nanos: i128::from(milli) * 1_000_000,
            format,
        }
    }

    /// The quantity that a JSON value holds: a text or a number.
    ///
    /// # Errors
    /// Where the text is no quantity, or the value neither text nor number.
    pub fn from_json(value: &Value) -> Result<Self, ParseError> {
        match value {
            Value::String(text) => text.trim().parse(),
            Value::Number(number) => number_text(number).parse(),
            _ => Err(ParseError::Format),
        }
    }

    /// How this is written.
    #[must_use]
    pub const fn format(&self) -> Format {
        self.format
    }

    /// The value in nano-units.
    #[must_use]
    pub const fn nanos(&self) -> i128 {
        self.nanos
    }

    /// Whole units, rounded away from zero; the ends of the range where the
    /// value lies beyond. Upstream's `Value`.
    #[must_use]
    pub fn value(&self) -> i64 {
        saturate(round_up(self.nanos, NANOS))
    }

    /// Thousandths, rounded away from zero. Upstream's `MilliValue`.
    #[must_use]
    pub fn milli_value(&self) -> i64 {
        saturate(round_up(self.nanos, 1_000_000))
    }

    /// Whether the value is a whole number of units.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.nanos % NANOS == 0
    }

    /// -1, 0 or 1.
    #[must_use]
    pub const fn sign(&self) -> i128 {
        self.nanos.signum()
    }

    /// Whether the value is zero.
    #[must_use]
    pub const fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// This rounded away from zero to thousandths, as upstream stores the
    /// quantities of resource lists.
    #[must_use]
    pub const fn round_up_to_milli(self) -> Self {
        Self {
            nanos: round_up(self.nanos, 1_000_000) * 1_000_000,
            format: self.format,
        }
    }

    /// The sum; zero takes the format of the other side.
    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        let format = if self.is_zero() {
            other.format
        } else {
            self.format
        };
        Some(Self {
            nanos: self.nanos.checked_add(other.nanos)?,
            format,
        })
    }

    /// The difference; zero takes the format of the other side.
    #[must_use]
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        let format = if self.is_zero() {
            other.format
        } else {
            self.format
        };
        Some(Self {
            nanos: self.nanos.checked_sub(other.nanos)?,
            format,
        })
    }
}

/// A JSON number as Go's encoder writes it, which is what upstream parses.
fn number_text(number: &serde_json::Number) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() => {
            let magnitude = float.abs();
            if magnitude != 0.0 && !(1e-6..1e21).contains(&magnitude) {
                format!("{float:e}")
            } else {
                format!("{float}")
            }
        }
        _ => number.to_string(),
    }
}

const fn round_up(nanos: i128, unit: i128) -> i128 {
    let quotient = nanos / unit;
    if nanos % unit == 0 {
        quotient
    } else {
        quotient + nanos.signum()
    }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// The canonical form.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let kilo = 1024 * NANOS;
        let small = self.nanos > -kilo && self.nanos < kilo;
        if self.format == Format::BinarySi && !small && self.is_whole() {
            let mut value = self.nanos / NANOS;
            let mut suffix = "";
            for (name, _) in BINARY {
                if value % 1024 != 0 {
                    break;
                }
                value /= 1024;
                suffix = name;
            }
            return write!(f, "{value}{suffix}");
        }
        // The largest exponent that is a multiple of three and leaves a whole number.
        let (mut value, mut exponent) = (self.nanos, -9);
        while value % 1000 == 0 && (exponent < 18 || self.format == Format::DecimalExponent) {
            value /= 1000;
            exponent += 3;
        }
        match self.format {
            Format::DecimalExponent if exponent == 0 => write!(f, "{value}"),
            Format::DecimalExponent => write!(f, "{value}e{exponent}"),
            _ => {
                let suffix = DECIMAL
                    .iter()
                    .find(|(_, e)| *e == exponent)
                    .map_or("", |(s, _)| s);
                write!(f, "{value}{suffix}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn q(text: &str) -> Quantity {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn canonical_forms_as_upstream() {
        for (text, want) in [
            ("0", "0"),
            ("0Gi", "0"),
            ("-0", "0"),
            ("1", "1"),
            ("+1", "1"),
            ("01", "1"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("1.5", "1500m"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("5.", "5"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("1024Ki", "1Mi"),
            ("1Gi", "1Gi"),
            ("1536Mi", "1536Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("0.1Ki", "102400m"),
            ("1000Ki", "1000Ki"),
            ("100Ki", "100Ki"),
            ("1023Ki", "1023Ki"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("1e4", "10e3"),
            ("123456e-3", "123456e-3"),
            ("1e0", "1"),
            ("1E", "1E"),
            ("1.2e3", "1200"),
            ("1Ei", "1Ei"),
            ("8Ei", "9223372036854775807"),
            ("9Ei", "9223372036854775807"),
            ("-9Ei", "-9223372036854775807"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("-0.1n", "-1n"),
            ("0.0000000001", "1n"),
            ("1e-10", "1e-9"),
            ("100000000000000000000", "100E"),
            ("1u", "1u"),
            ("1001m", "1001m"),
            ("0.001Ki", "1024m"),
            ("0.0001Ki", "102400u"),
            ("-1Mi", "-1Mi"),
            ("3000000000", "3G"),
            ("500Mi", "500Mi"),
        ] {
            assert_eq!(q(text).to_string(), want, "{text}");
        }
    }

    #[test]
    fn texts_that_are_no_quantities() {
        for (text, want) in [
            ("", ParseError::Format),
            ("1x", ParseError::Format),
            ("1 Gi", ParseError::Format),
            ("a", ParseError::Format),
            ("1GB", ParseError::Format),
            ("--1", ParseError::Suffix),
            (".", ParseError::Numeric),
            ("1.1.1", ParseError::Format),
            ("-", ParseError::Numeric),
            ("Mi", ParseError::Numeric),
            ("1K", ParseError::Suffix),
            ("1mm", ParseError::Suffix),
            ("1e", ParseError::Suffix),
            ("1Kin", ParseError::Suffix),
            ("1m3", ParseError::Suffix),
            ("1ki", ParseError::Suffix),
            ("1e99", ParseError::Range),
            ("1gi", ParseError::Format),
            ("é", ParseError::Format),
            ("1e+-3", ParseError::Format),
        ] {
            assert_eq!(text.parse::<Quantity>(), Err(want), "{text}");
        }
    }

    #[test]
    fn values_round_away_from_zero() {
        assert_eq!(q("100m").value(), 1);
        assert_eq!(q("-100m").value(), -1);
        assert_eq!(q("1.0001m").milli_value(), 2);
        assert_eq!(q("1Gi").value(), 1 << 30);
        assert_eq!(q("100E").value(), i64::MAX);
        assert_eq!(q("1n").round_up_to_milli().to_string(), "1m");
        assert_eq!(q("0.3333333333333333333333Ki").to_string(), "341333333334n");
    }

    #[test]
    fn json_values() {
        let from = |v: Value| Quantity::from_json(&v).map(|q| q.to_string());
        assert_eq!(from(serde_json::json!(2)), Ok("2".into()));
        assert_eq!(from(serde_json::json!(0.5)), Ok("500m".into()));
        assert_eq!(from(serde_json::json!(1e9)), Ok("1G".into()));
        assert_eq!(from(serde_json::json!(" 1Gi ")), Ok("1Gi".into()));
        assert_eq!(from(serde_json::json!(true)), Err(ParseError::Format));
    }

    proptest! {
        #[test]
        fn canonical_form_reads_back_the_same(n in any::<i64>(), places in 0usize..12, suffix in 0usize..17) {
            let names = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E",
                         "Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "e2"];
            let digits = n.unsigned_abs().to_string();
            let sign = if n < 0 { "-" } else { "" };
            let cut = digits.len().saturating_sub(places);
            let text = format!("{sign}{}.{}{}", &digits[..cut], &digits[cut..], names[suffix]);
            if let Ok(parsed) = text.parse::<Quantity>() {
                let again: Quantity = parsed.to_string().parse().unwrap();
                prop_assert_eq!(again, parsed);
                prop_assert_eq!(again.to_string(), parsed.to_string());
            }
        }

        #[test]
        fn decimals_are_exact(whole in 0u64..1_000_000_000, nanos in 0u32..1_000_000_000) {
            let parsed = q(&format!("{whole}.{nanos:09}"));
            prop_assert_eq!(parsed.nanos(), i128::from(whole) * NANOS + i128::from(nanos));
        }

        #[test]
        fn binary_fractions_round_up(numerator in 0u64..1_000_000, shift in 0usize..6) {
            let (name, bits) = BINARY[shift];
            let parsed = q(&format!("0.{numerator:06}{name}"));
            let exact = (i128::from(numerator) << bits) * 1000; // nanos
            prop_assert_eq!(parsed.nanos(), exact);
        }

        #[test]
        fn order_and_sums(a in any::<i32>(), b in any::<i32>()) {
            let (x, y) = (Quantity::from_milli(a.into(), Format::DecimalSi), Quantity::from_milli(b.into(), Format::BinarySi));
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
            let sum = x.checked_add(y).unwrap();
            prop_assert_eq!(sum.milli_value(), i64::from(a) + i64::from(b));
            prop_assert_eq!(sum.checked_sub(y).unwrap(), x);
        }

        #[test]
        fn any_text_is_refused_or_read(text in "[-+]?[0-9.]{0,6}[a-zA-Z+-]{0,3}[0-9]{0,3}") {
            let _ = text.parse::<Quantity>();
        }
    }
}
