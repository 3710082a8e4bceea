//! The few forms of addresses that registries use.

use crate::error::{Error, Result};
use crate::limits::MAX_HEADER_BYTES;

/// An absolute `http` or `https` address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) tls: bool,
    /// As in a URL: an IPv6 address in brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Path and query, beginning with `/`.
    pub(crate) path: String,
}

impl Url {
    /// Of a registry's `host[:port]`.
    pub(crate) fn of_host(tls: bool, host: &str, path: &str) -> Result<Self> {
        let scheme = if tls { "https" } else { "http" };
        Self::parse(&format!("{scheme}://{host}{path}"), "registry address")
    }

    /// Parses what a peer wrote into a header.
    pub(crate) fn parse(text: &str, what: &str) -> Result<Self> {
        let bad = |reason: &str| Error::Protocol {
            request: what.to_owned(),
            reason: format!("{:?} {reason}", crate::error::shown(text)),
        };
        if text.len() > MAX_HEADER_BYTES {
            return Err(bad("is too long"));
        }
        let uri: http::Uri = text.parse().map_err(|_| bad("is no address"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad("is neither http nor https")),
        };
        let authority = uri.authority().ok_or_else(|| bad("has no host"))?;
        if authority.as_str().contains('@') {
            return Err(bad("holds a user name"));
        }
        let port = match authority.port() {
            Some(port) => port.as_str().parse().map_err(|_| bad("has a bad port"))?,
            None if authority.as_str().len() != authority.host().len() => {
                return Err(bad("has a bad port"));
            }
            None if tls => 443,
            None => 80,
        };
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        Ok(Self {
            tls,
            host: authority.host().to_ascii_lowercase(),
            port,
            path: path.to_owned(),
        })
    }

    /// A `Location`: absolute, or relative to this address.
    pub(crate) fn join(&self, location: &str, what: &str) -> Result<Self> {
        if location.contains("://") {
            return Self::parse(location, what);
        }
        if let Some(rest) = location.strip_prefix("//") {
            let scheme = if self.tls { "https" } else { "http" };
            return Self::parse(&format!("{scheme}://{rest}"), what);
        }
        let base = self.path.split('?').next().unwrap_or("/");
        let path = if location.starts_with('/') {
            location.to_owned()
        } else if let Some(query) = location.strip_prefix('?') {
            format!("{base}?{query}")
        } else {
            let dir = base.rsplit_once('/').map_or("", |(dir, _)| dir);
            format!("{dir}/{location}")
        };
        Self::of_host(self.tls, &self.authority(), &path)
    }

    /// Adds a parameter to the query.
    pub(crate) fn with_query(mut self, name: &str, value: &str) -> Self {
        let mark = if self.path.contains('?') { '&' } else { '?' };
        let value = escape(value);
        self.path = format!("{}{mark}{name}={value}", self.path);
        self
    }

    /// `host:port`.
    pub(crate) fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The value of the `Host` header.
    pub(crate) fn host_header(&self) -> String {
        let default = if self.tls { 443 } else { 80 };
        if self.port == default {
            self.host.clone()
        } else {
            self.authority()
        }
    }

    /// Whether credentials of one may go to the other.
    pub(crate) fn same_origin(&self, other: &Self) -> bool {
        (self.tls, &self.host, self.port) == (other.tls, &other.host, other.port)
    }

    /// Whether nobody but this host can listen.
    pub(crate) fn is_loopback(&self) -> bool {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        bare == "localhost"
            || bare
                .parse::<std::net::IpAddr>()
                .is_ok_and(|ip| ip.is_loopback())
    }

    /// For messages: the query may hold signatures.
    pub(crate) fn shown(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        let path = self.path.split('?').next().unwrap_or_default();
        format!("{scheme}://{}{path}", self.host_header())
    }
}

/// Percent-encodes a query's value (RFC 3986: all but unreserved).
pub(crate) fn escape(value: &str) -> String {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
    const KEPT: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'.')
        .remove(b'_')
        .remove(b'~');
    utf8_percent_encode(value, KEPT).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_registries() {
        let url = Url::of_host(true, "a.io", "/v2/x?y=1").unwrap();
        assert_eq!((url.port, url.host_header()), (443, "a.io".to_owned()));
        assert_eq!(url.shown(), "https://a.io/v2/x");
        let v6 = Url::of_host(false, "[::1]:5000", "/v2/").unwrap();
        assert_eq!((v6.host.as_str(), v6.port), ("[::1]", 5000));
        assert!(v6.is_loopback() && !url.is_loopback());
        let at = |l: &str| {
            url.join(l, "t")
                .map(|u| format!("{}{}", u.authority(), u.path))
        };
        assert_eq!(at("/u/1?s=2").unwrap(), "a.io:443/u/1?s=2");
        assert_eq!(at("?s=2").unwrap(), "a.io:443/v2/x?s=2");
        assert_eq!(at("z").unwrap(), "a.io:443/v2/z");
        assert_eq!(at("http://B.io/q").unwrap(), "b.io:80/q");
        assert_eq!(at("//b.io/q").unwrap(), "b.io:443/q");
        for bad in [
            "ftp://a/b",
            "https://u:p@a.io/",
            "http://a:99999/",
            "http://",
        ] {
            assert!(at(bad).is_err(), "{bad}");
        }
        let next = url.clone().with_query("digest", "sha256:1");
        assert_eq!(next.path, "/v2/x?y=1&digest=sha256%3A1");
        assert!(url.same_origin(&next) && !url.same_origin(&v6));
    }
}
