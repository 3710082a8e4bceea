//! `/openapi/v2` and `/openapi/v3`.

use http::header::{CACHE_CONTROL, ETAG, HeaderValue, IF_NONE_MATCH, LOCATION};
use http::{HeaderMap, Response, StatusCode};
use rkube_api::status::Status;

use super::answer;
use super::body::Body;
use crate::engine::Engine;
use crate::negotiate::clauses;
use crate::openapi;

/// Answers a path; `None` where there is no such document.
///
/// # Errors
/// 406 where only a form is wanted that is not there.
pub(super) fn answer(
    engine: &Engine,
    path: &str,
    query: &[(String, String)],
    accept: &str,
    headers: &HeaderMap,
) -> Result<Option<Response<Body>>, Status> {
    let served = engine.served();
    let rest = path.trim_end_matches('/');
    if rest == "/openapi/v2" {
        let protobuf = clauses(accept)
            .iter()
            .any(|c| [openapi::V2_PROTOBUF, openapi::V2_PROTOBUF_ASKED].contains(&c.media));
        if protobuf && plain_json(accept).is_err() {
            let body = openapi::v2_protobuf(served);
            return Ok(Some(answer::bytes(200, openapi::V2_PROTOBUF, body)));
        }
        plain_json(accept)?;
        return Ok(Some(compressed(headers, &openapi::v2(served))));
    }
    if rest == "/openapi/v3" {
        plain_json(accept)?;
        return Ok(Some(answer::json(200, &openapi::v3_root(served))));
    }
    let Some((group, version)) = rest
        .strip_prefix("/openapi/v3/")
        .and_then(openapi::parse_document_path)
    else {
        return Ok(None);
    };
    plain_json(accept)?;
    let hash = openapi::hash(served, group, version);
    let etag = format!("\"{hash}\"");
    let known = headers.get(IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    if known == Some(&etag) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(Some(response));
    }
    let asked = query.iter().find(|(k, _)| k == "hash").map(|(_, v)| v);
    if asked.is_some_and(|asked| *asked != hash) {
        // The client's root is old: where the document is now.
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
        let place = HeaderValue::from_str(&format!("{rest}?hash={hash}"));
        if let Ok(place) = place {
            response.headers_mut().insert(LOCATION, place);
        }
        return Ok(Some(response));
    }
    let Some(document) = openapi::v3(served, group, version) else {
        return Ok(None);
    };
    let mut response = compressed(headers, &document);
    let response_headers = response.headers_mut();
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        response_headers.insert(ETAG, etag);
    }
    if asked.is_some() {
        let immutable = HeaderValue::from_static("public, immutable");
        response_headers.insert(CACHE_CONTROL, immutable);
    }
    Ok(Some(response))
}

fn compressed(headers: &HeaderMap, document: &serde_json::Value) -> Response<Body> {
    let body = crate::engine::AnswerBody::Whole(document.to_string().into());
    let whole = crate::engine::Answer {
        code: 200,
        content_type: "application/json",
        body,
    };
    answer::answer(whole, answer::takes_gzip(headers))
}

/// 406 for whoever takes no JSON.
fn plain_json(accept: &str) -> Result<(), Status> {
    let clauses = clauses(accept);
    if clauses.is_empty() || clauses.iter().any(|c| c.takes("application/json")) {
        return Ok(());
    }
    Err(Status::not_acceptable(&["application/json"]))
}
