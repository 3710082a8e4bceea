//! resourceVersions and continue tokens: the opaque texts of list and watch.

use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// Longest continue token read, in bytes; a key has at most 253 + 1 + 253.
pub const MAX_CONTINUE_BYTES: usize = 4096;

const VERSION: &str = "meta.k8s.io/v1";

/// Why a text is no resourceVersion or continue token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RevisionError {
    /// A resourceVersion that is no number.
    #[error("strconv.ParseUint: parsing {text:?}: {why}")]
    Version {
        /// The text.
        text: String,
        /// Go's reason.
        why: &'static str,
    },
    /// A continue token that this server did not make.
    #[error("continue key is not valid: {reason}")]
    Continue {
        /// What is wrong with it.
        reason: String,
    },
}

/// The first byte of a token that is no base64, or where a group of letters stands alone.
fn base64_fault(token: &str) -> usize {
    let letter = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let bad = token.bytes().position(|b| !letter(b));
    bad.unwrap_or(token.len() - token.len() % 4)
}

/// Reads a resourceVersion: "" is `None` (the newest), "0" is any.
///
/// # Errors
/// Where it is no decimal number of 64 bits.
pub fn parse_version(text: &str) -> Result<Option<u64>, RevisionError> {
    if text.is_empty() {
        return Ok(None);
    }
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(number) if digits => Ok(Some(number)),
        _ => Err(RevisionError::Version {
            text: text.to_owned(),
            why: if digits {
                "value out of range"
            } else {
                "invalid syntax"
            },
        }),
    }
}

/// Where the next page of a list begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continue {
    /// The revision that all pages show; `None` for an inconsistent token,
    /// which goes on at the newest (after the first one expired).
    pub revision: Option<u64>,
    /// The first key of the page, relative to the list's prefix.
    pub start: String,
}

impl Continue {
    /// The token: base64 of the JSON form that upstream uses.
    #[must_use]
    pub fn encode(&self) -> String {
        // -1 stands for "inconsistent" in upstream's form.
        let revision = self.revision.map_or(json!(-1), Value::from);
        let text = json!({"v": VERSION, "rv": revision, "start": self.start}).to_string();
        URL_SAFE_NO_PAD.encode(text)
    }

    /// Reads a token.
    ///
    /// # Errors
    /// Where it is none, or its key leaves the list's prefix.
    pub fn decode(token: &str) -> Result<Self, RevisionError> {
        let bad = |reason: &str| RevisionError::Continue {
            reason: reason.to_owned(),
        };
        if token.len() > MAX_CONTINUE_BYTES {
            return Err(bad("too long"));
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(token)
            .or_else(|_| URL_SAFE.decode(token))
            .map_err(|_| {
                let at = base64_fault(token);
                bad(&format!("illegal base64 data at input byte {at}"))
            })?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| bad("not JSON"))?;
        if value.get("v").and_then(Value::as_str) != Some(VERSION) {
            return Err(bad("server does not recognize this encoded version"));
        }
        let start = value.get("start").and_then(Value::as_str).unwrap_or("");
        // The key is put behind the list's prefix: it must not climb out.
        if start.is_empty() {
            return Err(bad("encoded start resourceVersion or key is empty"));
        }
        if start.split('/').any(|part| part == "." || part == "..") || start.contains('\0') {
            return Err(bad("encoded start key leaves the list"));
        }
        let revision = match value.get("rv").and_then(Value::as_i64) {
            Some(-1) => None,
            Some(number) if number > 0 => u64::try_from(number).ok(),
            _ => return Err(bad("incorrect encoded start resourceVersion")),
        };
        Ok(Self {
            revision,
            start: start.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions() {
        assert_eq!(parse_version(""), Ok(None));
        assert_eq!(parse_version("0"), Ok(Some(0)));
        assert_eq!(parse_version("18446744073709551615"), Ok(Some(u64::MAX)));
        for bad in ["-1", "+1", "x", "1 ", "18446744073709551616", "1.0"] {
            assert!(parse_version(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tokens_of_others_are_refused() {
        let token = |v: Value| URL_SAFE_NO_PAD.encode(v.to_string());
        for bad in [
            String::new(),
            "***".into(),
            URL_SAFE_NO_PAD.encode("x"),
            token(json!({"v": "meta.k8s.io/v2", "rv": 1, "start": "a"})),
            token(json!({"v": VERSION, "rv": 0, "start": "a"})),
            token(json!({"v": VERSION, "rv": 1, "start": ""})),
            token(json!({"v": VERSION, "rv": 1, "start": "../secrets/a"})),
            token(json!({"v": VERSION, "rv": -2, "start": "a"})),
            "A".repeat(MAX_CONTINUE_BYTES + 1),
        ] {
            assert!(Continue::decode(&bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn tokens_survive(revision in proptest::option::of(1u64..=i64::MAX.cast_unsigned()), start in "[a-z]{1,9}/[a-z.-]{3,9}\0?") {
            let token = Continue { revision, start };
            let fine = !token.start.contains('\0') && !token.start.ends_with("/..") && !token.start.ends_with("/.");
            match Continue::decode(&token.encode()) {
                Ok(again) => prop_assert!(fine && again == token),
                Err(_) => prop_assert!(!fine),
            }
        }
    }
}
