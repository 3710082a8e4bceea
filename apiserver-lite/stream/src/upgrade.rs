//! Which protocol a request asks for, before the connection is upgraded.
//!
//! The three endpoints negotiate alike: `Sec-WebSocket-Protocol` for
//! WebSocket, `X-Stream-Protocol-Version` for SPDY
//! (`k8s.io/apimachinery/pkg/util/httpstream`, `k8s.io/streaming`).

use http::header::{CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, UPGRADE};
use http::header::{HeaderMap, SEC_WEBSOCKET_PROTOCOL};
use http::{Response, StatusCode};

use crate::node::Refused;
use crate::ws::handshake;

/// The name of SPDY in `Upgrade`.
pub const SPDY: &str = "SPDY/3.1";
/// The protocols of a SPDY connection, offered and chosen.
pub const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// What a server would have accepted, in a refusal.
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("accepted-stream-protocol-versions");
/// The WebSocket protocol that carries SPDY for port-forward (KEP-4006).
pub const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
/// The SPDY protocol of port-forward.
pub const FORWARD_PROTOCOL: &str = "portforward.k8s.io";

/// Version of the remote command protocol
/// (`k8s.io/apimachinery/pkg/util/remotecommand`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// Plain text on the error channel, no terminal sizes.
    V1,
    /// The same, without a defect of v1 that only clients had.
    V2,
    /// With terminal sizes.
    V3,
    /// A `Status` on the error channel.
    V4,
    /// With a message that closes one channel (WebSocket only).
    V5,
}

/// How the messages of a WebSocket carry channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Channels {
    /// Which version.
    pub version: Version,
    /// Text messages in base64, with a digit as channel, instead of binary.
    pub base64: bool,
}

/// Protocols by name, in the order of preference; "" is no name at all.
const EXEC_WEBSOCKET: &[(&str, Channels)] = &[
    ("v5.channel.k8s.io", channels(Version::V5, false)),
    ("v4.channel.k8s.io", channels(Version::V4, false)),
    ("v4.base64.channel.k8s.io", channels(Version::V4, true)),
    ("channel.k8s.io", channels(Version::V1, false)),
    ("base64.channel.k8s.io", channels(Version::V1, true)),
    ("", channels(Version::V1, false)),
];
const EXEC_SPDY: &[(&str, Version)] = &[
    ("v4.channel.k8s.io", Version::V4),
    ("v3.channel.k8s.io", Version::V3),
    ("v2.channel.k8s.io", Version::V2),
    ("channel.k8s.io", Version::V1),
    ("", Version::V1),
];
const FORWARD_SPDY: &[(&str, ())] = &[(FORWARD_PROTOCOL, ()), ("", ())];
const LOG_WEBSOCKET: &[(&str, bool)] = &[
    ("binary.k8s.io", false),
    ("base64.binary.k8s.io", true),
    ("", false),
];
const FORWARD_WEBSOCKET: &[(&str, ForwardKind)] = &[
    (TUNNEL_PROTOCOL, ForwardKind::Tunnel),
    ("v4.channel.k8s.io", ForwardKind::Channels { base64: false }),
    (
        "v4.base64.channel.k8s.io",
        ForwardKind::Channels { base64: true },
    ),
    (
        "portforward.k8s.io",
        ForwardKind::Channels { base64: false },
    ),
    ("", ForwardKind::Channels { base64: false }),
];

const fn channels(version: Version, base64: bool) -> Channels {
    Channels { version, base64 }
}

/// The protocol of an exec or attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecKind {
    /// One message a piece of a channel.
    WebSocket(Channels),
    /// One stream a channel.
    Spdy(Version),
}

/// The protocol of a port-forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardKind {
    /// Two streams a connection.
    Spdy,
    /// The same inside WebSocket messages.
    Tunnel,
    /// Two channels a port, one connection a port.
    Channels {
        /// Text messages in base64.
        base64: bool,
    },
}

/// A protocol that was agreed on: what to run, and the headers of the answer.
#[derive(Debug, Clone)]
pub struct Upgrade<K> {
    /// The protocol.
    pub kind: K,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl<K> Upgrade<K> {
    /// The answer `101 Switching Protocols`, without a body.
    #[must_use]
    pub fn response(&self) -> Response<()> {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().extend(self.headers.iter().cloned());
        response
    }
}

/// Exec and attach.
///
/// # Errors
/// No upgrade is asked for, or none of the offered protocols is served.
pub fn exec(headers: &HeaderMap) -> Result<Upgrade<ExecKind>, Refused> {
    if handshake::is_websocket(headers) {
        return websocket(headers, EXEC_WEBSOCKET, ExecKind::WebSocket);
    }
    spdy(headers, EXEC_SPDY, ExecKind::Spdy)
}

/// Port-forward.
///
/// # Errors
/// No upgrade is asked for, or none of the offered protocols is served.
pub fn port_forward(headers: &HeaderMap) -> Result<Upgrade<ForwardKind>, Refused> {
    if handshake::is_websocket(headers) {
        return websocket(headers, FORWARD_WEBSOCKET, |kind| kind);
    }
    spdy(headers, FORWARD_SPDY, |()| ForwardKind::Spdy)
}

/// Logs: `None` for a plain request, which is answered by a plain body. The
/// kind tells whether messages are base64 text.
///
/// # Errors
/// A WebSocket of a protocol that is not served.
pub fn logs(headers: &HeaderMap) -> Result<Option<Upgrade<bool>>, Refused> {
    if handshake::is_websocket(headers) {
        return websocket(headers, LOG_WEBSOCKET, |base64| base64).map(Some);
    }
    Ok(None)
}

/// The values of a header that is a list, over all its lines.
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|value| !value.is_empty())
        .collect()
}

/// The first protocol that the client offers and that is served; one without
/// a name where it offers none.
fn choose<T: Copy>(offered: &[&str], served: &[(&'static str, T)]) -> Option<(&'static str, T)> {
    let find = |name: &str| served.iter().find(|(served, _)| *served == name).copied();
    if offered.is_empty() {
        return find("");
    }
    offered.iter().find_map(|name| find(name))
}

fn websocket<T: Copy, K>(
    headers: &HeaderMap,
    served: &[(&'static str, T)],
    kind: impl Fn(T) -> K,
) -> Result<Upgrade<K>, Refused> {
    let accept = handshake::check(headers)?;
    let offered = list(headers, &SEC_WEBSOCKET_PROTOCOL);
    let Some((name, chosen)) = choose(&offered, served) else {
        return Err(Refused::bad_request(format!(
            "none of the WebSocket protocols {offered:?} is served here; these are: {:?}",
            names(served)
        )));
    };
    let mut answer = vec![
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static("websocket")),
    ];
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        answer.push((SEC_WEBSOCKET_ACCEPT, accept));
    }
    if !name.is_empty() {
        answer.push((SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name)));
    }
    Ok(Upgrade {
        kind: kind(chosen),
        headers: answer,
    })
}

fn spdy<T: Copy, K>(
    headers: &HeaderMap,
    served: &[(&'static str, T)],
    kind: impl Fn(T) -> K,
) -> Result<Upgrade<K>, Refused> {
    let asked = handshake::has_token(headers, &CONNECTION, "upgrade")
        && handshake::has_token(headers, &UPGRADE, SPDY);
    if !asked {
        return Err(Refused::bad_request("Upgrade request required"));
    }
    let offered = list(headers, &STREAM_PROTOCOL);
    let Some((name, chosen)) = choose(&offered, served) else {
        return Err(Refused {
            code: 403,
            reason: "Forbidden",
            message: format!(
                "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {:?}",
                names(served)
            ),
        });
    };
    let mut answer = vec![
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static(SPDY)),
    ];
    if !name.is_empty() {
        answer.push((STREAM_PROTOCOL, HeaderValue::from_static(name)));
    }
    Ok(Upgrade {
        kind: kind(chosen),
        headers: answer,
    })
}

fn names<T>(served: &[(&'static str, T)]) -> Vec<&'static str> {
    let names = served.iter().map(|(name, _)| *name);
    names.filter(|name| !name.is_empty()).collect()
}

/// The header that a refused SPDY client reads to try another protocol, if
/// the refusal is about protocols.
#[must_use]
pub fn accepted_exec_protocols(refused: &Refused) -> Option<(HeaderName, HeaderValue)> {
    (refused.code == 403).then(|| {
        let names = names(EXEC_SPDY).join(",");
        let value = HeaderValue::from_str(&names);
        (
            ACCEPTED_PROTOCOLS,
            value.unwrap_or_else(|_| HeaderValue::from_static("")),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        headers
    }

    const KEY: (&str, &str) = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");

    fn web(protocols: &str) -> HeaderMap {
        let mut headers = request(&[
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            KEY,
        ]);
        if !protocols.is_empty() {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, protocols.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_first_offer_that_is_served_wins() {
        let exec_kind = |headers: &HeaderMap| exec(headers).map(|u| u.kind);
        let ws = |version, base64| Ok(ExecKind::WebSocket(Channels { version, base64 }));
        assert_eq!(
            exec_kind(&web("v5.channel.k8s.io, v4.channel.k8s.io")),
            ws(Version::V5, false)
        );
        assert_eq!(
            exec_kind(&web("v9, base64.channel.k8s.io")),
            ws(Version::V1, true)
        );
        assert_eq!(exec_kind(&web("")), ws(Version::V1, false));
        assert_eq!(exec_kind(&web("nope")).unwrap_err().code, 400);

        let spdy = request(&[
            ("connection", "upgrade"),
            ("upgrade", "spdy/3.1"),
            ("x-stream-protocol-version", "v9"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("x-stream-protocol-version", "channel.k8s.io"),
        ]);
        let upgrade = exec(&spdy).unwrap();
        assert_eq!(upgrade.kind, ExecKind::Spdy(Version::V4));
        let response = upgrade.response();
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()[STREAM_PROTOCOL], "v4.channel.k8s.io");
        assert_eq!(response.headers()[UPGRADE], "SPDY/3.1");
        assert_eq!(
            exec(&HeaderMap::new()).unwrap_err().message,
            "Upgrade request required"
        );
        let refused = port_forward(&spdy).unwrap_err();
        assert_eq!(refused.code, 403);
        assert!(accepted_exec_protocols(&refused).is_some());
    }

    #[test]
    fn port_forward_and_logs() {
        let tunnel = port_forward(&web(TUNNEL_PROTOCOL)).unwrap();
        assert_eq!(tunnel.kind, ForwardKind::Tunnel);
        assert_eq!(
            tunnel.response().headers()[SEC_WEBSOCKET_PROTOCOL],
            TUNNEL_PROTOCOL
        );
        assert_eq!(
            port_forward(&web("")).unwrap().kind,
            ForwardKind::Channels { base64: false }
        );
        assert!(logs(&HeaderMap::new()).unwrap().is_none());
        assert!(logs(&web("base64.binary.k8s.io")).unwrap().unwrap().kind);
        assert!(!logs(&web("binary.k8s.io")).unwrap().unwrap().kind);
    }
}
