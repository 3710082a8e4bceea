//! The HTTP/1.1 client of probes and hooks: one GET, with or without TLS, no
//! keep-alive, a bounded answer.

use std::net::IpAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::tls;

/// The most of an answer that is read (upstream's limit).
pub const MAX_BODY_BYTES: usize = 10 * 1024;
/// The longest head of an answer.
pub const MAX_HEAD_BYTES: usize = 32 * 1024;
/// Most requests of one probe, those that redirects lead to included (Go's
/// client, which upstream uses).
pub const MAX_REQUESTS: usize = 10;
/// What upstream's probes call themselves, with this API's version.
pub const USER_AGENT: &str = "kube-probe/1.36";

/// Where to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// With TLS (`scheme: HTTPS`).
    pub tls: bool,
    /// The address to connect to.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The host's name in the URL; the address where none is given.
    pub host: Option<String>,
    /// Path and query.
    pub path: String,
    /// More headers.
    pub headers: Vec<(String, String)>,
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The status was 200 to 299.
    Success,
    /// It was 300 to 399, and not followed: one to another host, most likely.
    Redirected(String),
    /// Anything else.
    Failure(String),
}

/// Asks once, following redirects that stay on the host, whatever their port
/// and scheme.
pub async fn get(target: &Target) -> Outcome {
    let mut target = target.clone();
    for _ in 0..MAX_REQUESTS {
        let (status, location, body) = match ask(&target).await {
            Ok(answer) => answer,
            Err(message) => return Outcome::Failure(message),
        };
        match status {
            200..300 => return Outcome::Success,
            300..400 => {}
            _ => return Outcome::Failure(format!("HTTP status {status}: {body}")),
        }
        // Others of the class ask for no other URL (RFC 9110, 15.4).
        let followed = matches!(status, 301 | 302 | 303 | 307 | 308);
        let Some(location) = location.filter(|l| followed && !l.is_empty()) else {
            return Outcome::Redirected(format!("HTTP status {status}, which leads nowhere"));
        };
        match redirect(&target, &location) {
            Some(next) => target = next,
            None => {
                return Outcome::Redirected(format!(
                    "redirected to {location}, which is not followed"
                ));
            }
        }
    }
    Outcome::Failure(format!("stopped after {MAX_REQUESTS} redirects"))
}

/// Where a redirect leads, if it is the same host (RFC 3986, 5.2).
fn redirect(target: &Target, location: &str) -> Option<Target> {
    let location = location.split('#').next().unwrap_or_default();
    let scheme = location.split_once("://").map(|(scheme, rest)| {
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => Some(false),
            "https" => Some(true),
            _ => None,
        };
        (tls, rest)
    });
    let (tls, rest) = match scheme {
        Some((tls, rest)) if !location.starts_with('/') => (tls?, Some(rest)),
        _ => (target.tls, location.strip_prefix("//")),
    };
    let mut next = target.clone();
    let Some(rest) = rest else {
        next.path = merged(&target.path, location);
        return Some(next);
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let authority = authority.rsplit('@').next().unwrap_or_default();
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let port = match port {
        None | Some("") => Some(if tls { 443 } else { 80 }),
        Some(text) => text.parse().ok().filter(|p| *p > 0),
    };
    if host != host_of(target) {
        return None;
    }
    next.tls = tls;
    next.port = port?;
    next.path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    // The name that was asked for was that of another URL.
    next.headers
        .retain(|(name, _)| !name.eq_ignore_ascii_case("Host"));
    Some(next)
}

/// A reference without a host, seen from `path`.
fn merged(path: &str, reference: &str) -> String {
    if reference.starts_with('/') {
        return reference.to_owned();
    }
    let plain = path.split('?').next().unwrap_or_default();
    if reference.starts_with('?') {
        return format!("{plain}{reference}");
    }
    let dir = plain.rfind('/').map_or("/", |at| &plain[..=at]);
    format!("{dir}{reference}")
}

/// The host as a URL has it.
fn host_of(target: &Target) -> String {
    match (&target.host, target.address) {
        (Some(host), _) => host.clone(),
        (None, IpAddr::V6(v6)) => format!("[{v6}]"),
        (None, IpAddr::V4(v4)) => v4.to_string(),
    }
}

fn authority_of(target: &Target) -> String {
    format!("{}:{}", host_of(target), target.port)
}

/// Status, `Location` and body of an answer.
type Answer = (u16, Option<String>, String);

async fn ask(target: &Target) -> Result<Answer, String> {
    let stream = TcpStream::connect((target.address, target.port))
        .await
        .map_err(|e| format!("connect to {}: {e}", authority_of(target)))?;
    if target.tls {
        talk(tls::connect(stream, &host_of(target)).await?, target).await
    } else {
        talk(stream, target).await
    }
}

fn request(target: &Target) -> String {
    let clean = |text: &str| text.chars().filter(|c| !c.is_control()).collect::<String>();
    let path = if target.path.starts_with('/') {
        clean(&target.path)
    } else {
        format!("/{}", clean(&target.path))
    };
    let mut request = format!("GET {} HTTP/1.1\r\n", path.replace(' ', "%20"));
    let named = |name: &str| {
        target
            .headers
            .iter()
            .any(|(n, _)| n.eq_ignore_ascii_case(name))
    };
    if !named("Host") {
        request.push_str(&format!("Host: {}\r\n", authority_of(target)));
    }
    if !named("User-Agent") {
        request.push_str(&format!("User-Agent: {USER_AGENT}\r\n"));
    }
    if !named("Accept") {
        request.push_str("Accept: */*\r\n");
    }
    for (name, value) in &target.headers {
        request.push_str(&format!("{}: {}\r\n", clean(name), clean(value)));
    }
    request.push_str("Connection: close\r\n\r\n");
    request
}

async fn talk(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    target: &Target,
) -> Result<Answer, String> {
    stream
        .write_all(request(target).as_bytes())
        .await
        .map_err(|e| format!("send the request: {e}"))?;
    // TLS may hold bytes back.
    stream
        .flush()
        .await
        .map_err(|e| format!("send the request: {e}"))?;
    let mut answer = Vec::new();
    let mut buffer = [0u8; 4096];
    let head_end = loop {
        if let Some(at) = answer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        if answer.len() > MAX_HEAD_BYTES {
            return Err(format!(
                "the head of the answer is longer than {MAX_HEAD_BYTES} bytes"
            ));
        }
        let read = stream
            .read(&mut buffer)
            .await
            .map_err(|e| format!("read the answer: {e}"))?;
        if read == 0 {
            return Err("the connection was closed before an answer".to_owned());
        }
        answer.extend_from_slice(&buffer[..read]);
    };
    let head = String::from_utf8_lossy(&answer[..head_end]).into_owned();
    let (status, location) = parse_head(&head)?;
    let mut body = answer.split_off(head_end + 4);
    // Only a failure's text is shown.
    while !(200..400).contains(&status) && body.len() < MAX_BODY_BYTES {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(read) => body.extend_from_slice(&buffer[..read]),
        }
    }
    body.truncate(MAX_BODY_BYTES);
    Ok((
        status,
        location,
        String::from_utf8_lossy(&body).trim().to_owned(),
    ))
}

/// Status and `Location` of an answer's head.
pub(super) fn parse_head(head: &str) -> Result<(u16, Option<String>), String> {
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1))
        .and_then(|code| code.parse::<u16>().ok())
        .ok_or_else(|| "the answer is not HTTP/1".to_owned())?;
    let location = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("location")
            .then(|| value.trim().to_owned())
    });
    Ok((status, location))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_on_the_host() {
        let target = Target {
            tls: false,
            address: IpAddr::from([10, 0, 0, 7]),
            port: 8080,
            host: None,
            path: "/a/b?c".to_owned(),
            headers: vec![("host".to_owned(), "web".to_owned())],
        };
        let of = |location: &str| {
            redirect(&target, location).map(|t| (t.tls, t.port, t.path, t.headers.len()))
        };
        let to = |tls, port, path: &str, headers| Some((tls, port, path.to_owned(), headers));
        assert_eq!(of("/x"), to(false, 8080, "/x", 1));
        assert_eq!(of("x#y"), to(false, 8080, "/a/x", 1));
        assert_eq!(of("?x"), to(false, 8080, "/a/b?x", 1));
        assert_eq!(of("//10.0.0.7:1/x"), to(false, 1, "/x", 0));
        assert_eq!(of("https://10.0.0.7/x"), to(true, 443, "/x", 0));
        assert_eq!(of("HTTP://10.0.0.7"), to(false, 80, "/", 0));
        assert_eq!(of("https://10.0.0.7:8443?q"), to(true, 8443, "/?q", 0));
        for other in [
            "http://10.0.0.8/x",
            "http://web/x",
            "ftp://10.0.0.7/",
            "http://10.0.0.7:x/",
            "http://10.0.0.7:0/",
            "//evil/10.0.0.7",
            "http://10.0.0.7@evil/",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
        let six = Target {
            address: "fd00::1".parse().unwrap(),
            ..target
        };
        let next = redirect(&six, "https://[fd00::1]:9/x").unwrap();
        assert_eq!((next.port, next.path.as_str()), (9, "/x"));
        assert_eq!(redirect(&six, "https://[fd00::1]/").unwrap().port, 443);
        assert_eq!(redirect(&six, "https://[fd00::2]/"), None);
    }
}
