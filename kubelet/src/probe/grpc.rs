//! gRPC probes: one call of `grpc.health.v1.Health/Check`
//! (grpc/doc/health-checking.md) over HTTP/2 without TLS.

use std::net::{IpAddr, SocketAddr};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::http::USER_AGENT;

/// The longest answer that is read: a status is one byte.
pub const MAX_ANSWER_BYTES: usize = 4096;
/// Bytes before a message: compression and length (grpc/doc/PROTOCOL-HTTP2.md).
const PREFIX_BYTES: usize = 5;
/// `grpc-status` of a method that there is not (grpc/doc/statuscodes.md).
const UNIMPLEMENTED: &str = "12";

/// Whether the service of that name ("" for all of the server) is SERVING.
///
/// # Errors
/// Why not, in upstream's words.
pub async fn check(address: IpAddr, port: u16, service: &str) -> Result<(), String> {
    let target = SocketAddr::new(address, port);
    let stream = TcpStream::connect(target).await;
    let stream = stream.map_err(|e| format!("connect to {target}: {e}"))?;
    let failed = |e: hyper::Error| format!("error: health rpc probe failed: {}", told(&e));
    let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = shaken.await.map_err(failed)?;
    let task = rkube_task::spawn(connection);
    let _end = End(task.abort_handle());
    let request = Request::post(format!("http://{target}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", USER_AGENT)
        .body(Full::new(question(service)))
        .map_err(|e| format!("make the request: {e}"))?;
    let answer = sender.send_request(request).await.map_err(failed)?;
    if answer.status() != http::StatusCode::OK {
        return Err(format!(
            "error: health rpc probe failed: HTTP status {}",
            answer.status().as_u16()
        ));
    }
    let mut trailers = answer.headers().clone();
    let mut body = answer.into_body();
    let mut message = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame.map_err(failed)?.into_data() {
            Ok(data) if message.len() + data.len() > MAX_ANSWER_BYTES => {
                return Err(format!(
                    "the answer is longer than {MAX_ANSWER_BYTES} bytes"
                ));
            }
            Ok(data) => message.extend_from_slice(&data),
            Err(frame) => {
                if let Ok(last) = frame.into_trailers() {
                    trailers = last;
                }
            }
        }
    }
    status_of(&trailers)?;
    match serving(&message)? {
        1 => Ok(()),
        other => Err(format!(
            "service unhealthy (responded with {:?})",
            name(other)
        )),
    }
}

/// Ends the connection with the call.
struct End(tokio::task::AbortHandle);

impl Drop for End {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An error with what caused it.
fn told(error: &hyper::Error) -> String {
    let cause = std::error::Error::source(error);
    cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// `HealthCheckRequest { string service = 1 }` behind its prefix.
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        // Field 1, wire type 2 (protobuf encoding).
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
            length >>= 7;
        }
        message.put_u8(u8::try_from(length).unwrap_or(0));
        message.put_slice(service.as_bytes());
    }
    let mut out = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    out.put_u8(0);
    out.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    out.put(message);
    out.freeze()
}

/// The call's own status: in the trailers, or in the headers of an answer
/// that has nothing else.
fn status_of(trailers: &HeaderMap) -> Result<(), String> {
    let text = |key: &str| trailers.get(key).and_then(|v| v.to_str().ok());
    let message = text("grpc-message").unwrap_or_default();
    match text("grpc-status") {
        Some("0") => Ok(()),
        Some(UNIMPLEMENTED) => Err(format!(
            "error: this server does not implement the grpc health protocol \
             (grpc.health.v1.Health): {message}"
        )),
        Some(code) => Err(format!(
            "error: health rpc probe failed: status {code}: {message}"
        )),
        None => Err("error: health rpc probe failed: the answer has no grpc-status".to_owned()),
    }
}

/// `HealthCheckResponse { ServingStatus status = 1 }` behind its prefix; a
/// missing status is 0.
fn serving(bytes: &[u8]) -> Result<u64, String> {
    let broken = |what: &str| Err(format!("error: health rpc probe failed: {what}"));
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX_BYTES>() else {
        return broken("the answer has no message");
    };
    if prefix[0] != 0 {
        return broken("the answer is compressed, which was not asked for");
    }
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    if usize::try_from(length) != Ok(rest.len()) {
        return broken("the answer is cut off, or more than one message");
    }
    let mut rest = rest;
    let mut status = 0;
    while !rest.is_empty() {
        let Some(tag) = varint(&mut rest) else {
            return broken("the answer is no protobuf message");
        };
        let skipped = match tag & 7 {
            0 => varint(&mut rest).inspect(|value| {
                if tag >> 3 == 1 {
                    status = *value;
                }
            }),
            1 => skip(&mut rest, 8),
            2 => varint(&mut rest).and_then(|n| skip(&mut rest, n)),
            5 => skip(&mut rest, 4),
            _ => None,
        };
        if skipped.is_none() {
            return broken("the answer is no protobuf message");
        }
    }
    Ok(status)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn skip(bytes: &mut &[u8], count: u64) -> Option<u64> {
    let (_, rest) = bytes.split_at_checked(usize::try_from(count).ok()?)?;
    *bytes = rest;
    Some(count)
}

/// As the enumeration names it.
fn name(status: u64) -> String {
    match status {
        0 => "UNKNOWN".to_owned(),
        1 => "SERVING".to_owned(),
        2 => "NOT_SERVING".to_owned(),
        3 => "SERVICE_UNKNOWN".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages() {
        assert_eq!(question("").as_ref(), [0, 0, 0, 0, 0]);
        assert_eq!(
            question("ab").as_ref(),
            [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']
        );
        let long = question(&"x".repeat(300));
        assert_eq!(&long[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 2]);
        assert_eq!(serving(&[0, 0, 0, 0, 2, 8, 1]), Ok(1));
        assert_eq!(serving(&[0, 0, 0, 0, 0]), Ok(0));
        // Fields of later versions are skipped.
        let later = [0, 0, 0, 0, 8, 0x12, 2, 9, 9, 0x18, 5, 8, 2];
        assert_eq!(serving(&later), Ok(2));
        for bad in [
            &[][..],
            &[0, 0, 0, 0],
            &[1, 0, 0, 0, 2, 8, 1],
            &[0, 0, 0, 0, 3, 8, 1],
            &[0, 0, 0, 0, 1, 8],
            &[0, 0, 0, 0, 1, 0x0b],
            &[0, 0, 0, 0, 2, 0x12, 200],
        ] {
            assert!(serving(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = serving(&bytes);
            let mut framed = vec![0, 0, 0, 0, u8::try_from(bytes.len()).unwrap()];
            framed.extend(&bytes);
            let _ = serving(&framed);
        }
    }
}
