//! Answers of the engine as HTTP: status, headers, warnings, gzip.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
    VARY, WARNING, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{Response, StatusCode};
use rkube_api::status::Status;

use super::body::Body;
use super::limits::GZIP_BYTES_MIN;
use crate::engine::{Answer, AnswerBody};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
/// Longest text of one warning, in bytes; all of them together are bounded by their count.
const WARNING_BYTES_MAX: usize = 1024;
/// Most warnings of one answer, so that its header stays below what clients take.
const WARNINGS_MAX: usize = 32;

/// The gzip level: 1 is what upstream takes, since the CPU is dearer than the wire.
const GZIP_LEVEL: u32 = 1;

fn base(code: u16, content_type: HeaderValue, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// An answer of plain bytes.
pub(super) fn bytes(code: u16, content_type: &str, body: impl Into<Bytes>) -> Response<Body> {
    let content_type = HeaderValue::from_str(content_type).unwrap_or(JSON);
    base(code, content_type, Body::full(body.into()))
}

/// An answer of JSON.
pub(super) fn json(code: u16, value: &serde_json::Value) -> Response<Body> {
    base(code, JSON, Body::full(value.to_string()))
}

/// A failure.
pub(super) fn status(status: &Status) -> Response<Body> {
    if status.text {
        const TEXT: &str = "text/plain; charset=utf-8";
        let mut response = bytes(status.code, TEXT, status.message.clone());
        let nosniff = HeaderValue::from_static("nosniff");
        let headers = response.headers_mut();
        headers.insert(X_CONTENT_TYPE_OPTIONS, nosniff);
        return response;
    }
    let mut response = json(status.code, &status.to_value());
    let headers = response.headers_mut();
    let retry = status
        .details
        .get("retryAfterSeconds")
        .and_then(serde_json::Value::as_u64);
    if let Some(seconds) = retry {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if status.code == 401 {
        let realm = HeaderValue::from_static("Bearer realm=\"kubernetes\"");
        headers.insert(WWW_AUTHENTICATE, realm);
    }
    response
}

/// An answer of the engine.
pub(super) fn answer(answer: Answer, gzip: bool) -> Response<Body> {
    let content_type = HeaderValue::from_static(answer.content_type);
    let vary = HeaderValue::from_static("Accept-Encoding");
    match answer.body {
        AnswerBody::Whole(whole) if gzip && whole.len() >= GZIP_BYTES_MIN => {
            let chunks = std::iter::once(whole);
            gzipped(answer.code, content_type, Box::new(chunks))
        }
        AnswerBody::Whole(whole) => base(answer.code, content_type, Body::full(whole)),
        AnswerBody::Chunks(chunks) if gzip => gzipped(answer.code, content_type, chunks),
        AnswerBody::Chunks(chunks) => {
            let stream = futures_util::stream::iter(chunks.map(Ok));
            let mut response = base(answer.code, content_type, Body::stream(stream));
            response.headers_mut().insert(VARY, vary);
            response
        }
    }
}

fn gzipped(
    code: u16,
    content_type: HeaderValue,
    chunks: Box<dyn Iterator<Item = Bytes> + Send>,
) -> Response<Body> {
    let compressed = Gzip {
        chunks,
        encoder: Some(GzEncoder::new(Vec::new(), Compression::new(GZIP_LEVEL))),
    };
    let stream = futures_util::stream::iter(compressed);
    let mut response = base(code, content_type, Body::stream(stream));
    let headers = response.headers_mut();
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    response
}

/// Chunks compressed one after the other.
struct Gzip {
    chunks: Box<dyn Iterator<Item = Bytes> + Send>,
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl Iterator for Gzip {
    type Item = Result<Bytes, super::BodyError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut encoder = self.encoder.take()?;
        loop {
            let Some(chunk) = self.chunks.next() else {
                return Some(encoder.finish().map(Bytes::from).map_err(Into::into));
            };
            if let Err(error) = encoder.write_all(&chunk) {
                return Some(Err(error.into()));
            }
            if !encoder.get_ref().is_empty() {
                let ready = std::mem::take(encoder.get_mut());
                self.encoder = Some(encoder);
                return Some(Ok(ready.into()));
            }
        }
    }
}

/// Puts `Warning: 299` headers (RFC 7234, 5.5; `net/http.NewWarningHeader` of upstream).
pub(super) fn warn(headers: &mut HeaderMap, warnings: &[String]) {
    let mut told: Vec<&str> = Vec::new();
    for warning in warnings {
        if told.contains(&warning.as_str()) || told.len() == WARNINGS_MAX {
            continue;
        }
        told.push(warning);
        let mut text = String::from("299 - \"");
        for c in warning.chars() {
            if text.len() > WARNING_BYTES_MAX {
                break;
            }
            match c {
                '"' | '\\' => {
                    text.push('\\');
                    text.push(c);
                }
                c if c.is_control() => text.push(' '),
                c => text.push(c),
            }
        }
        text.push('"');
        if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
            headers.append(WARNING, value);
        }
    }
}

/// Names the request, for logs of both sides.
pub(super) fn audit_id(headers: &mut HeaderMap, id: &str) {
    if let Ok(value) = HeaderValue::from_str(id) {
        headers.insert(AUDIT_ID, value);
    }
}

/// Whether a client takes gzip.
pub(super) fn takes_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(http::header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|coding| {
            let mut parts = coding.split(';').map(str::trim);
            let name = parts.next().unwrap_or("");
            let refused = parts.any(|p| matches!(p, "q=0" | "q=0.0"));
            matches!(name, "gzip" | "*") && !refused
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn warnings_are_quoted_and_told_once() {
        let mut headers = HeaderMap::new();
        let twice = "a \"b\"\n".to_owned();
        warn(&mut headers, &[twice.clone(), twice]);
        let all: Vec<_> = headers.get_all(WARNING).iter().collect();
        assert_eq!(all, ["299 - \"a \\\"b\\\" \""]);
    }

    #[test]
    fn compressed_chunks_are_one_gzip_stream() {
        let chunks: Vec<Bytes> = (0..50)
            .map(|i| Bytes::from(vec![b'a' + i % 7; 10_000]))
            .collect();
        let expected = chunks.concat();
        let gzip = Gzip {
            chunks: Box::new(chunks.into_iter()),
            encoder: Some(GzEncoder::new(Vec::new(), Compression::new(GZIP_LEVEL))),
        };
        let bytes: Vec<u8> = gzip.flat_map(|c| c.unwrap().to_vec()).collect();
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&bytes[..])
            .read_to_end(&mut plain)
            .unwrap();
        assert_eq!(plain, expected);
        let mut headers = HeaderMap::new();
        assert!(!takes_gzip(&headers));
        headers.insert(
            http::header::ACCEPT_ENCODING,
            "br, gzip;q=0.5".parse().unwrap(),
        );
        assert!(takes_gzip(&headers));
    }
}
