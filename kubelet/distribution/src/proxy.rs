//! Proxies, as `HTTPS_PROXY` and `NO_PROXY` name them (with the meaning of Go's
//! golang.org/x/net/http/httpproxy, which other nodes have).
//!
//! TLS goes through by `CONNECT` (RFC 9110, 9.3.6), so a proxy sees no
//! credentials and no content. Registries without TLS are on this machine or
//! insecure by the user's word; they are reached directly.

use std::io;
use std::net::IpAddr;

use rkube_image::Credential;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::{Error, Result, shown};
use crate::limits::MAX_HEADER_BYTES;
use crate::url::Url;

/// Which hosts are reached through which proxy.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    https: Option<String>,
    direct: Vec<Direct>,
}

impl std::fmt::Debug for Proxies {
    /// An address may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxies")
            .field("https", &self.https.is_some())
            .field("direct", &self.direct)
            .finish()
    }
}

/// One entry of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Direct {
    All,
    /// Addresses that begin with these bits.
    Net(IpAddr, u8),
    /// A host; with `below` alone only those below it.
    Host {
        name: String,
        below: bool,
        port: Option<u16>,
    },
}

/// A proxy.
pub(crate) struct Proxy {
    pub(crate) host: String,
    pub(crate) port: u16,
    authorization: Option<String>,
}

impl Proxies {
    /// Those of this process' environment.
    #[must_use]
    pub fn of_environment() -> Self {
        Self::of(|name| std::env::var(name).ok())
    }

    /// Those of these variables.
    #[must_use]
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let either = |upper: &str, lower: &str| {
            let value = variable(upper).or_else(|| variable(lower));
            value.filter(|v| !v.is_empty())
        };
        let direct = either("NO_PROXY", "no_proxy").unwrap_or_default();
        Self {
            https: either("HTTPS_PROXY", "https_proxy"),
            direct: direct.split(',').filter_map(Direct::parse).collect(),
        }
    }

    /// The proxy for a host that is reached over TLS.
    pub(crate) fn find(&self, host: &str, port: u16) -> Result<Option<Proxy>> {
        let Some(text) = &self.https else {
            return Ok(None);
        };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let address = bare.parse::<IpAddr>().ok();
        let near = bare == "localhost" || address.is_some_and(|ip| ip.is_loopback());
        if near || self.direct.iter().any(|d| d.fits(bare, address, port)) {
            return Ok(None);
        }
        Proxy::parse(text).map(Some)
    }
}

impl Direct {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        if text.is_empty() {
            return None;
        }
        if text == "*" {
            return Some(Self::All);
        }
        if let Some((address, bits)) = text.split_once('/') {
            return Some(Self::Net(address.parse().ok()?, bits.parse().ok()?));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(Self::Net(address, 128));
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse().ok()?)),
            None => (&*text, None),
        };
        if let Ok(address) = name.trim_matches(['[', ']']).parse::<IpAddr>() {
            let name = address.to_string();
            let below = false;
            return Some(Self::Host { name, below, port });
        }
        let bare = name.strip_prefix('*').unwrap_or(name);
        let below = bare.starts_with('.');
        let name = bare.trim_start_matches('.').to_owned();
        Some(Self::Host { name, below, port })
    }

    fn fits(&self, host: &str, address: Option<IpAddr>, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Net(net, bits) => address.is_some_and(|ip| same_bits(*net, ip, *bits)),
            Self::Host {
                name,
                below,
                port: only,
            } => {
                let inside = host
                    .strip_suffix(name.as_str())
                    .is_some_and(|rest| rest.ends_with('.'));
                let same = !below && host == name;
                (same || inside) && only.is_none_or(|p| p == port)
            }
        }
    }
}

fn same_bits(a: IpAddr, b: IpAddr, bits: u8) -> bool {
    let (a, b, width) = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return false,
    };
    let rest = width - u32::from(bits).min(width);
    // All bits shifted away: every address is in it.
    a.checked_shr(rest).unwrap_or(0) == b.checked_shr(rest).unwrap_or(0)
}

impl Proxy {
    /// `[http://][user:password@]host[:port]`.
    fn parse(text: &str) -> Result<Self> {
        let bad = |reason: &str| Error::Protocol {
            request: "HTTPS_PROXY".into(),
            reason: reason.into(),
        };
        let rest = match text.split_once("://") {
            Some(("http", rest)) => rest,
            Some((scheme, _)) => {
                let scheme = shown(scheme);
                return Err(bad(&format!(
                    "a proxy is reached by http://, not {scheme}://"
                )));
            }
            None => text,
        };
        let (user, place) = match rest.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, rest),
        };
        let authorization = user.map(|user| {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            let plain = |part: &str| {
                percent_encoding::percent_decode_str(part)
                    .decode_utf8_lossy()
                    .into_owned()
            };
            Credential::basic(&plain(name), &plain(password)).basic_value()
        });
        let url = Url::parse(&format!("http://{place}"), "HTTPS_PROXY");
        let url = url.map_err(|_| bad("it is not [http://][user:password@]host[:port]"))?;
        Ok(Self {
            host: url.host,
            port: url.port,
            authorization,
        })
    }

    /// `host:port`, for messages.
    pub(crate) fn name(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Asks for a tunnel to `target` (`host:port`) on a connection to it.
    pub(crate) async fn tunnel(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        target: &str,
    ) -> io::Result<()> {
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        if let Some(value) = &self.authorization {
            request.push_str(&format!("Proxy-Authorization: Basic {value}\r\n"));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await?;
        // What follows the head is the target's: none of it may be read here.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() >= MAX_HEADER_BYTES {
                return Err(io::Error::other("the proxy's answer is too long"));
            }
            head.push(stream.read_u8().await?);
        }
        let line = String::from_utf8_lossy(&head);
        let line = line.lines().next().unwrap_or_default();
        let mut words = line.split(' ');
        let http = words.next().is_some_and(|w| w.starts_with("HTTP/1."));
        if http && words.next() == Some("200") {
            return Ok(());
        }
        let text = format!("the proxy answers {:?}", shown(line));
        Err(io::Error::other(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(https: &str, none: &str) -> Proxies {
        Proxies::of(|name| match name {
            "https_proxy" => Some(https.to_owned()),
            "NO_PROXY" => Some(none.to_owned()),
            _ => None,
        })
    }

    #[test]
    fn exceptions_are_those_of_other_nodes() {
        let none = "a.io, .b.io,*.c.io,d.io:5000,10.0.0.0/8,192.0.2.1,fd00::/8,[2001:db8::1]:443";
        let proxies = proxies("proxy:3128", none);
        let direct = |host: &str, port| proxies.find(host, port).unwrap().is_none();
        for (host, port) in [
            ("a.io", 443),
            ("x.a.io", 443),
            ("x.b.io", 443),
            ("x.c.io", 443),
            ("d.io", 5000),
            ("10.1.2.3", 443),
            ("192.0.2.1", 443),
            ("[fd00::7]", 443),
            ("[2001:db8::1]", 443),
            ("localhost", 443),
            ("127.9.9.9", 443),
            ("[::1]", 443),
        ] {
            assert!(direct(host, port), "{host}:{port}");
        }
        for (host, port) in [
            ("b.io", 443),
            ("ba.io", 443),
            ("d.io", 443),
            ("11.0.0.1", 443),
            ("192.0.2.2", 443),
            ("[fe00::1]", 443),
            ("[2001:db8::1]", 444),
        ] {
            assert!(!direct(host, port), "{host}:{port}");
        }
        assert!(
            super::Proxies::of(|_| None)
                .find("a.io", 443)
                .unwrap()
                .is_none()
        );
        let all = self::proxies("proxy:3128", "*");
        assert!(all.find("anything", 443).unwrap().is_none());
    }

    #[test]
    fn addresses_of_proxies() {
        let find = |text: &str| proxies(text, "").find("reg.io", 443);
        let proxy = find("http://us%20er:p%40ss@proxy.lan:3128/")
            .unwrap()
            .unwrap();
        assert_eq!(proxy.name(), "proxy.lan:3128");
        let wanted = Credential::basic("us er", "p@ss").basic_value();
        assert_eq!(proxy.authorization, Some(wanted));
        assert_eq!(find("proxy.lan").unwrap().unwrap().name(), "proxy.lan:80");
        for bad in ["https://p:1", "socks5://p:1", "http://", "http://p:x"] {
            assert!(find(bad).is_err(), "{bad}");
        }
        let shown = format!("{:?}", proxies("http://u:secret@p:1", ""));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
