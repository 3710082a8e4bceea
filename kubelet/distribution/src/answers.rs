//! Small documents that registries and token servers answer with.

use serde::Deserialize;

use crate::error::shown;

/// The messages of a registry's or token server's error document.
pub(crate) fn message_of(bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Document {
        #[serde(default)]
        errors: Vec<One>,
        #[serde(default)]
        details: Option<String>,
        #[serde(default)]
        error_description: Option<String>,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(document) = serde_json::from_slice::<Document>(bytes) else {
        return String::new();
    };
    let one = |e: &One| match (e.code.as_str(), e.message.as_str()) {
        (code, "") => code.to_owned(),
        ("", message) => message.to_owned(),
        (code, message) => format!("{code}: {message}"),
    };
    let all: Vec<String> = document.errors.iter().take(4).map(one).collect();
    let text = if all.is_empty() {
        document
            .details
            .or(document.error_description)
            .unwrap_or_default()
    } else {
        all.join("; ")
    };
    shown(&text)
}

/// The token in a token server's answer.
pub(crate) fn token_of(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Document {
        #[serde(default)]
        token: Option<String>,
        #[serde(default)]
        access_token: Option<String>,
    }
    let document: Document = serde_json::from_slice(bytes).ok()?;
    let token = document.token.filter(|t| !t.is_empty());
    let token = token.or(document.access_token)?;
    // It becomes a header's value.
    let fits = !token.is_empty() && token.bytes().all(|b| (0x21..=0x7e).contains(&b));
    fits.then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_of_registries_and_token_servers() {
        let text =
            br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{}}]}"#;
        assert_eq!(message_of(text), "MANIFEST_UNKNOWN: manifest unknown");
        assert_eq!(
            message_of(br#"{"details":"incorrect\nuser"}"#),
            "incorrect user"
        );
        assert_eq!(message_of(b"<html>"), "");
        assert_eq!(token_of(br#"{"token":"abc"}"#).as_deref(), Some("abc"));
        assert_eq!(
            token_of(br#"{"token":"","access_token":"x"}"#).as_deref(),
            Some("x")
        );
        for bad in [
            &br#"{"token":"a\r\nb"}"#[..],
            b"{}",
            b"[]",
            br#"{"token":5}"#,
        ] {
            assert_eq!(token_of(bad), None);
        }
    }
}
