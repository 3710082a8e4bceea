//! The opening handshake (RFC 6455 section 4).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::{CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use ring::digest;

use crate::node::Refused;

/// The text that a server hashes with the client's key (section 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Whether a header that is a list of tokens has one, in any case.
pub(crate) fn has_token(headers: &HeaderMap, name: &http::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// Whether a request asks for an upgrade to WebSocket.
#[must_use]
pub fn is_websocket(headers: &HeaderMap) -> bool {
    has_token(headers, &CONNECTION, "upgrade") && has_token(headers, &UPGRADE, "websocket")
}

/// The answer to a client's key.
#[must_use]
pub fn accept(key: &str) -> String {
    let text = format!("{key}{GUID}");
    STANDARD.encode(digest::digest(
        &digest::SHA1_FOR_LEGACY_USE_ONLY,
        text.as_bytes(),
    ))
}

/// Checks the client's part of the handshake and gives the value of
/// `Sec-WebSocket-Accept`.
///
/// # Errors
/// Another version than 13, or a key that is not 16 bytes in base64.
pub fn check(headers: &HeaderMap) -> Result<String, Refused> {
    if !has_token(headers, &SEC_WEBSOCKET_VERSION, "13") {
        return Err(Refused::bad_request("missing or bad WebSocket Version"));
    }
    let key = headers
        .get(SEC_WEBSOCKET_KEY)
        .and_then(|key| key.to_str().ok())
        .unwrap_or("");
    if STANDARD.decode(key).is_ok_and(|key| key.len() == 16) {
        Ok(accept(key))
    } else {
        Err(Refused::bad_request("missing or bad WebSocket key"))
    }
}

/// A fresh key for a client's request.
///
/// # Errors
/// The system gives no random bytes.
pub fn new_key() -> Result<String, ring::error::Unspecified> {
    use ring::rand::SecureRandom as _;
    let mut key = [0; 16];
    ring::rand::SystemRandom::new().fill(&mut key)?;
    Ok(STANDARD.encode(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc() {
        // Section 1.3.
        assert_eq!(
            accept("dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, "keep-alive, Upgrade".parse().unwrap());
        headers.insert(UPGRADE, "WebSocket".parse().unwrap());
        assert!(is_websocket(&headers) && check(&headers).is_err());
        headers.insert(SEC_WEBSOCKET_VERSION, "13".parse().unwrap());
        headers.insert(SEC_WEBSOCKET_KEY, "c2hvcnQ=".parse().unwrap());
        assert!(check(&headers).is_err());
        headers.insert(SEC_WEBSOCKET_KEY, new_key().unwrap().parse().unwrap());
        assert!(check(&headers).is_ok());
    }
}
