//! Rules for names, label keys and values, with upstream's messages
//! (`k8s.io/apimachinery/pkg/util/validation`).
//!
//! Each function returns the broken rules; none means the text is fine.

/// Longest DNS label, in bytes (RFC 1123).
pub const DNS_LABEL_MAX_BYTES: usize = 63;
/// Longest DNS subdomain, in bytes.
pub const DNS_SUBDOMAIN_MAX_BYTES: usize = 253;
/// Longest label value and name part of a qualified name, in bytes.
pub const LABEL_MAX_BYTES: usize = 63;

const LABEL_1123: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_1123: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED_PART: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const QUALIFIED: &str = "a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const ENV_NAME: &str = "a valid environment variable name must consist only of printable ASCII characters other than '='";

/// The message for a text of more than `bytes` bytes.
#[must_use]
pub fn max_len(bytes: usize) -> String {
    format!("must be no more than {bytes} bytes")
}

/// The message for a number outside of a range.
#[must_use]
pub fn range(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

/// Starts and ends with `edge`, and has only `edge` or one of `inner` between.
fn shaped(text: &str, edge: fn(u8) -> bool, inner: &[u8]) -> bool {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    edge(*first) && edge(*last) && bytes.iter().all(|b| edge(*b) || inner.contains(b))
}

fn lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn alnum(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
}

fn check(text: &str, max: usize, fits: bool, rule: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > max {
        errors.push(max_len(max));
    }
    if !fits {
        errors.push(rule.to_owned());
    }
    errors
}

/// A DNS label: container and namespace names.
#[must_use]
pub fn dns1123_label(text: &str) -> Vec<String> {
    let is_subdomain = text.split('.').all(|part| shaped(part, lower, b"-"));
    let rule = if is_subdomain {
        "must not contain dots"
    } else {
        LABEL_1123
    };
    check(text, DNS_LABEL_MAX_BYTES, shaped(text, lower, b"-"), rule)
}

/// A DNS subdomain: the names of most objects.
#[must_use]
pub fn dns1123_subdomain(text: &str) -> Vec<String> {
    let fits = text.split('.').all(|part| shaped(part, lower, b"-"));
    check(text, DNS_SUBDOMAIN_MAX_BYTES, fits, SUBDOMAIN_1123)
}

/// A DNS label that starts with a letter: names of Services.
#[must_use]
pub fn dns1035_label(text: &str) -> Vec<String> {
    let fits = shaped(text, lower, b"-") && text.starts_with(|c: char| c.is_ascii_lowercase());
    check(text, DNS_LABEL_MAX_BYTES, fits, LABEL_1035)
}

/// A qualified name, `[prefix/]name`: label and annotation keys.
#[must_use]
pub fn qualified_name(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    let name = match text.split_once('/') {
        None => text,
        Some((_, name)) if name.contains('/') => return vec![QUALIFIED.to_owned()],
        Some((prefix, name)) => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                errors.extend(
                    dns1123_subdomain(prefix)
                        .iter()
                        .map(|e| format!("prefix part {e}")),
                );
            }
            name
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX_BYTES {
        errors.push(format!("name part {}", max_len(LABEL_MAX_BYTES)));
    }
    if !shaped(name, alnum, b"-_.") {
        errors.push(format!("name part {QUALIFIED_PART}"));
    }
    errors
}

/// A label's value.
#[must_use]
pub fn label_value(text: &str) -> Vec<String> {
    let fits = text.is_empty() || shaped(text, alnum, b"-_.");
    check(text, LABEL_MAX_BYTES, fits, LABEL_VALUE)
}

/// A key of a ConfigMap or Secret.
#[must_use]
pub fn config_key(text: &str) -> Vec<String> {
    let fits = !text.is_empty()
        && text
            .bytes()
            .all(|b| alnum(b) || matches!(b, b'-' | b'_' | b'.'));
    let mut errors = check(text, DNS_SUBDOMAIN_MAX_BYTES, fits, CONFIG_KEY);
    match text {
        "." => errors.push("must not be '.'".to_owned()),
        ".." => errors.push("must not be '..'".to_owned()),
        _ if text.starts_with("..") => errors.push("must not start with '..'".to_owned()),
        _ => {}
    }
    errors
}

/// An environment variable's name (the relaxed rule of 1.30 and later).
#[must_use]
pub fn env_name(text: &str) -> Vec<String> {
    if text.is_empty() {
        return vec!["environment variable name must be non-empty".to_owned()];
    }
    let fits = text
        .bytes()
        .all(|b| (0x20..=0x7e).contains(&b) && b != b'=');
    if fits {
        Vec::new()
    } else {
        vec![ENV_NAME.to_owned()]
    }
}

/// A port's name (RFC 6335).
#[must_use]
pub fn port_name(text: &str) -> Vec<String> {
    const MAX_BYTES: usize = 15;
    let mut errors = Vec::new();
    if text.len() > MAX_BYTES {
        errors.push(max_len(MAX_BYTES));
    }
    if text.is_empty() || !text.bytes().all(|b| lower(b) || b == b'-') {
        errors
            .push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".into());
    }
    if text.contains("--") {
        errors.push("must not contain consecutive hyphens".into());
    }
    if text.starts_with('-') || text.ends_with('-') {
        errors.push("must not begin or end with a hyphen".into());
    }
    errors
}

/// A port's number, 1 to 65535.
#[must_use]
pub fn port_number(port: i64) -> Vec<String> {
    if (1..=65535).contains(&port) {
        Vec::new()
    } else {
        vec![range(1, 65535)]
    }
}

/// An IPv4 or IPv6 address, without a zone.
#[must_use]
pub fn ip(text: &str) -> Vec<String> {
    match text.parse::<std::net::IpAddr>() {
        Ok(_) => Vec::new(),
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_fit_and_names_that_do_not() {
        type Rule = fn(&str) -> Vec<String>;
        let long64 = "a".repeat(64);
        let long63 = "a".repeat(63);
        let long254 = format!("{}.{}", "a".repeat(200), "b".repeat(53));
        let cases: [(Rule, &[&str], &[&str]); 8] = [
            (
                dns1123_label,
                &["a", "a-b", "1a", &long63],
                &["", "A", "-a", "a-", "a.b", "a_b", &long64],
            ),
            (
                dns1123_subdomain,
                &["a.b", "a-1.b", "1"],
                &["", "a..b", ".a", "a.", "a.-b", "A.b", &long254],
            ),
            (dns1035_label, &["a", "a-1"], &["1a", "", "a."]),
            (
                qualified_name,
                &["a", "A_b.c", "example.com/x", "1"],
                &["", "/a", "a/", "a/b/c", "-a", "Ex.com/a", "a b", &long64],
            ),
            (
                label_value,
                &["", "a", "A_b.1"],
                &["-a", "a-", "a b", "a/b", &long64],
            ),
            (
                config_key,
                &["a", ".a", "a..b", "A_-"],
                &["", ".", "..", "..a", "a/b", "a b"],
            ),
            (
                env_name,
                &["A", "a-b", "1", "my.var", "a b"],
                &["", "a=b", "é", "a\n"],
            ),
            (
                port_name,
                &["http", "a1-b"],
                &["", "1", "a--b", "-a", "HTTP", "a23456789012345z"],
            ),
        ];
        for (i, (rule, good, bad)) in cases.iter().enumerate() {
            for text in *good {
                assert!(rule(text).is_empty(), "{i}: {text:?} {:?}", rule(text));
            }
            for text in *bad {
                assert!(!rule(text).is_empty(), "{i}: {text:?}");
            }
        }
        assert!(ip("10.0.0.1").is_empty() && ip("fe80::1").is_empty());
        assert!(
            !ip("10.0.0.01").is_empty()
                && !ip("10.0.0").is_empty()
                && !ip("fe80::1%eth0").is_empty()
        );
        assert!(port_number(65535).is_empty() && !port_number(0).is_empty());
    }
}
