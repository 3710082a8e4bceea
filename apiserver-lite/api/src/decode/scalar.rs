//! Plain YAML scalars by the rules of Kubernetes' YAML library (go-yaml v2
//! as carried by sigs.k8s.io/yaml), which mix YAML 1.1 and 1.2.

use serde_json::{Number, Value};

/// The value of an untagged plain scalar; `None` for `.inf` and `.nan`, which
/// JSON cannot hold.
pub(super) fn plain(text: &str) -> Option<Value> {
    // The first character decides what else is tried.
    let value = match text.as_bytes().first() {
        None => Value::Null,
        Some(b'~' | b'n' | b'N' | b'y' | b'Y' | b't' | b'T' | b'o' | b'O' | b'f' | b'F') => {
            match text {
                "~" | "null" | "Null" | "NULL" => Value::Null,
                "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On"
                | "ON" => Value::Bool(true),
                "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off"
                | "OFF" => Value::Bool(false),
                _ => text.into(),
            }
        }
        Some(b'0'..=b'9' | b'+' | b'-' | b'.') => {
            let bare = text.strip_prefix(['+', '-']).unwrap_or(text);
            if matches!(bare, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN")
            {
                return None;
            }
            number(text).map_or_else(|| text.into(), Value::Number)
        }
        _ => text.into(),
    };
    Some(value)
}

/// An integer (decimal, `0x`, `0o`, `0b`, leading-zero octal, `_` anywhere) or
/// a decimal fraction.
pub(super) fn number(text: &str) -> Option<Number> {
    let text = text.replace('_', "");
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, &text[..]),
    };
    let radix = |prefix: [&str; 2], radix| {
        prefix
            .iter()
            .find_map(|p| digits.strip_prefix(p))
            .map(|d| (d, radix))
    };
    let (body, base) = radix(["0x", "0X"], 16)
        .or_else(|| radix(["0o", "0O"], 8))
        .or_else(|| radix(["0b", "0B"], 2))
        .or_else(|| {
            digits
                .strip_prefix('0')
                .filter(|d| !d.is_empty())
                .map(|d| (d, 8))
        })
        .unwrap_or((digits, 10));
    // from_str_radix takes a sign of its own, which may not come second.
    let unsigned = body.starts_with(|c: char| c.is_ascii_alphanumeric());
    if let Some(n) = unsigned
        .then(|| u64::from_str_radix(body, base).ok())
        .flatten()
    {
        if !negative {
            return Some(n.into());
        }
        if let Some(n) = 0i64.checked_sub_unsigned(n) {
            return Some(n.into());
        }
    }
    if !is_fraction(digits) {
        return None;
    }
    let float: f64 = text.parse().ok()?;
    from_float(float)
}

/// A float as Kubernetes' YAML-to-JSON step writes it: whole numbers without
/// a fraction, so that `1e3` is an integer afterwards.
fn from_float(float: f64) -> Option<Number> {
    const WHOLE: f64 = 9_007_199_254_740_992.0; // 2^53: beyond, f64 has gaps
    if float.fract() == 0.0 && float.abs() <= WHOLE {
        // Whole and within 2^53: the text is exactly an integer.
        return format!("{float:.0}").parse::<i64>().ok().map(Number::from);
    }
    Number::from_f64(float)
}

/// `[0-9]+(\.[0-9]*)?` or `\.[0-9]+`, then an optional exponent.
fn is_fraction(text: &str) -> bool {
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(i) => (&text[..i], Some(&text[i + 1..])),
        None => (text, None),
    };
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mantissa_fits = digits(whole) && digits(part) && !(whole.is_empty() && part.is_empty());
    mantissa_fits
        && exponent.is_none_or(|e| {
            let e = e.strip_prefix(['+', '-']).unwrap_or(e);
            !e.is_empty() && digits(e)
        })
}

/// A key as Kubernetes' YAML-to-JSON step writes it.
pub(super) fn key_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Number(n) => Some(n.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn plain_scalars_resolve_as_in_kubernetes() {
        for (text, want) in [
            ("", json!(null)),
            ("~", json!(null)),
            ("null", json!(null)),
            ("yes", json!(true)),
            ("On", json!(true)),
            ("y", json!(true)),
            ("n", json!(false)),
            ("OFF", json!(false)),
            ("yEs", json!("yEs")),
            ("nope", json!("nope")),
            ("0644", json!(420)),
            ("0o644", json!(420)),
            ("08", json!(8)),
            ("0x1F", json!(31)),
            ("0b101", json!(5)),
            ("1_000", json!(1000)),
            ("+12", json!(12)),
            ("-12", json!(-12)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("18446744073709551615", json!(u64::MAX)),
            ("1e3", json!(1000)),
            ("1.5", json!(1.5)),
            (".5", json!(0.5)),
            ("5.", json!(5)),
            ("1.2.3", json!("1.2.3")),
            ("-", json!("-")),
            ("--1", json!("--1")),
            ("0x", json!("0x")),
            ("0x-1", json!("0x-1")),
            ("100m", json!("100m")),
            ("2024-01-01", json!("2024-01-01")),
            ("1:30", json!("1:30")),
            (".", json!(".")),
            ("<<", json!("<<")),
            ("=", json!("=")),
        ] {
            assert_eq!(plain(text), Some(want), "{text:?}");
        }
        for text in [".inf", "-.INF", "+.Inf", ".nan"] {
            assert_eq!(plain(text), None, "{text:?}");
        }
    }
}
