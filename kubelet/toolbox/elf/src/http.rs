//! `httpd` and `get`: HTTP/1.0, one request for each connection.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use crate::applets::{DONE, End, Outcome};
use crate::error::{During, ToolError};
use crate::net::{REPLY_TIMEOUT, connect, listen, serve};
use crate::output;
use crate::parse::{self, Options};
use crate::process::node_name;
use crate::rest::rest;

/// A request's or reply's head may have this many bytes.
const MAX_HEAD_BYTES: u64 = 8 << 10;
/// `get` asks again this long after a failure.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Serves a line with the host name on every path, or the files below `-h`;
/// `/healthz` is always `ok`.
pub(crate) fn httpd(args: &[String]) -> Outcome {
    let options = Options::new(args, &["-p", "-h", "--text"], &[])?;
    let port: u16 = options.number("-p", 80)?;
    let root = options.value("-h").map(PathBuf::from);
    let text = options.value("--text").map_or_else(
        || format!("hello from {}\n", node_name()),
        |text| format!("{text}\n"),
    );
    let listener = listen(port)?;
    output::line(&format!("serving on port {port}"))?;
    serve(listener, move |stream| {
        // The client went away: nothing is left to do for it.
        let _ = reply(&stream, root.as_deref(), &text);
    })
}

fn reply(stream: &TcpStream, root: Option<&Path>, text: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
    stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
    let head = read_head(&mut BufReader::new(stream))?;
    let mut words = head.lines().next().unwrap_or("").split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let with_body = method == "GET";
    if !with_body && method != "HEAD" {
        return send(
            stream,
            "405 Method Not Allowed",
            b"GET and HEAD only\n",
            true,
        );
    }
    let path = target.split(['?', '#']).next().unwrap_or("");
    if path == "/healthz" {
        return send(stream, "200 OK", b"ok\n", with_body);
    }
    let Some(root) = root else {
        return send(stream, "200 OK", text.as_bytes(), with_body);
    };
    let Some(path) = below(root, path) else {
        return send(stream, "400 Bad Request", b"bad path\n", with_body);
    };
    let file = if path.is_dir() {
        path.join("index.html")
    } else {
        path
    };
    match File::open(&file).and_then(|file| file.metadata().map(|meta| (file, meta.len()))) {
        Ok((mut file, length)) => {
            send_head(stream, "200 OK", length)?;
            if with_body {
                io::copy(&mut file, &mut &*stream)?;
            }
            Ok(())
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            send(stream, "404 Not Found", b"not found\n", with_body)
        }
        Err(e) => {
            let reason = format!("{e}\n");
            send(stream, "403 Forbidden", reason.as_bytes(), with_body)
        }
    }
}

/// The file that `path` means below `root`, `None` if it would lead out.
fn below(root: &Path, path: &str) -> Option<PathBuf> {
    let relative = Path::new(path.trim_start_matches('/'));
    relative
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
        .then(|| root.join(relative))
}

fn send(stream: &TcpStream, status: &str, body: &[u8], with_body: bool) -> io::Result<()> {
    send_head(stream, status, body.len() as u64)?; // usize has at most 64 bits.
    let mut stream = stream;
    if with_body {
        stream.write_all(body)?;
    }
    Ok(())
}

fn send_head(mut stream: &TcpStream, status: &str, length: u64) -> io::Result<()> {
    let head = format!(
        "HTTP/1.0 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())
}

/// The head up to its empty line, which is an error if it is too long.
fn read_head(from: &mut impl BufRead) -> io::Result<String> {
    let mut from = from.take(MAX_HEAD_BYTES);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && !head.ends_with("\n\n") {
        if from.read_line(&mut head)? == 0 {
            let text = "the head ends early or is too long";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
    }
    Ok(head)
}

/// Prints the body of a URL; status 0 for answers 200 to 399, else 1.
/// `--timeout` bounds each wait, `--retry` asks again for that long.
pub(crate) fn get(args: &[String]) -> Outcome {
    let options = Options::new(args, &["--timeout", "--retry"], &[])?;
    let [url] = options.rest[..] else {
        return Err(ToolError::Usage("get [--timeout S] [--retry S] URL".into()));
    };
    let url = Url::parse(url)
        .ok_or_else(|| ToolError::Usage(format!("{url:?} is no http://host[:port]/path")))?;
    let timeout = options
        .seconds("--timeout", Some(REPLY_TIMEOUT))?
        .filter(|limit| !limit.is_zero())
        .unwrap_or(Duration::MAX);
    let retry = options
        .seconds("--retry", Some(Duration::ZERO))?
        .unwrap_or(Duration::MAX);
    let begin = Instant::now();
    loop {
        match fetch(&url, timeout) {
            Ok((status, body)) => {
                output::bytes(&body)?;
                if (200..400).contains(&status) {
                    return DONE;
                }
                return Err(ToolError::Answer(format!("{url} answers {status}")));
            }
            Err(e) if begin.elapsed() >= retry => return Err(e),
            Err(_) => {
                let end = rest(Some(RETRY_INTERVAL))?;
                if let End::Exit(_) = end {
                    return Ok(end);
                }
            }
        }
    }
}

fn fetch(url: &Url, timeout: Duration) -> Result<(u16, Vec<u8>), ToolError> {
    // A body beyond this is cut: the applet is for looking, not for downloads.
    const MAX_BODY_BYTES: u64 = 16 << 20;
    let mut stream = connect(&url.host, url.port, timeout)?;
    let during = || format!("get {url}");
    let request = format!(
        "GET {} HTTP/1.0\r\nHost: {}\r\nConnection: close\r\n\r\n",
        url.path, url.authority
    );
    stream.write_all(request.as_bytes()).during(during)?;
    let mut reader = BufReader::new(stream);
    let head = read_head(&mut reader).during(during)?;
    let status = status_of(&head)
        .ok_or_else(|| ToolError::Answer(format!("{url} does not answer in HTTP")))?;
    let mut body = Vec::new();
    reader
        .take(MAX_BODY_BYTES)
        .read_to_end(&mut body)
        .during(during)?;
    Ok((status, body))
}

fn status_of(head: &str) -> Option<u16> {
    let (version, rest) = head.split_once(' ')?;
    version.strip_prefix("HTTP/1.")?;
    let status = rest.get(..3)?.parse().ok()?;
    (100..600).contains(&status).then_some(status)
}

#[derive(Debug, PartialEq, Eq)]
struct Url {
    authority: String,
    host: String,
    port: u16,
    path: String,
}

impl Url {
    fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("http://").unwrap_or(text);
        if rest.contains("://") || rest.contains(|c: char| c.is_control() || c == ' ') {
            return None;
        }
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, parse::number(port).ok()?),
            _ => (authority, 80),
        };
        (!host.is_empty()).then(|| Self {
            authority: authority.to_owned(),
            host: host.to_owned(),
            port,
            path: path.to_owned(),
        })
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let url = Url::parse("http://web:8080/a?b=c").unwrap();
        assert_eq!((url.host.as_str(), url.port), ("web", 8080));
        assert_eq!(url.path, "/a?b=c");
        let url = Url::parse("[fd00::1]:81").unwrap();
        assert_eq!((url.host.as_str(), url.port), ("[fd00::1]", 81));
        assert_eq!(Url::parse("[fd00::1]").unwrap().port, 80);
        for wrong in [
            "https://x/",
            "http://",
            "http://x:99999/",
            "http://x/a\r\nb",
            ":80",
        ] {
            assert_eq!(Url::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn served_paths_stay_below_the_root() {
        let root = Path::new("/srv");
        assert_eq!(below(root, "/a/./b"), Some("/srv/a/b".into()));
        assert_eq!(below(root, "//a"), Some("/srv/a".into()));
        for wrong in ["/../etc/passwd", "/a/../../b", ".."] {
            assert_eq!(below(root, wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn heads_are_bounded() {
        let long = "x".repeat(9000) + "\r\n\r\n";
        assert!(read_head(&mut long.as_bytes()).is_err());
        assert!(read_head(&mut "GET / HTTP/1.0\r\n".as_bytes()).is_err());
        assert!(read_head(&mut "GET / HTTP/1.0\r\n\r\nx".as_bytes()).is_ok());
        assert_eq!(status_of("HTTP/1.1 404 Not Found\r\n\r\n"), Some(404));
        assert_eq!(status_of("SSH-2.0-x\r\n"), None);
        assert_eq!(status_of("HTTP/1.1 \u{e9}44 x"), None);
    }
}
