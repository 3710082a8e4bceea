//! `WWW-Authenticate` (RFC 9110, 11.6.1), as registries use it: `Basic`, and
//! `Bearer` with `realm`, `service` and `scope` (distribution's token
//! specification). Untrusted text, bounded.

use crate::limits::{MAX_CHALLENGE_PARTS, MAX_HEADER_BYTES};

/// What a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token from elsewhere.
    Bearer {
        /// Where.
        realm: String,
        /// For whom.
        service: Option<String>,
        /// For what, as the registry sees it.
        scope: Option<String>,
    },
}

/// The challenges of all header lines that are understood; `Bearer` first.
#[must_use]
pub(crate) fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<Challenge> {
    let mut out = Vec::new();
    for line in lines.into_iter().filter(|l| l.len() <= MAX_HEADER_BYTES) {
        for (scheme, params) in split(line) {
            let get = |name: &str| {
                let hit = params.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
                hit.map(|(_, v)| v.clone())
            };
            if scheme.eq_ignore_ascii_case("basic") {
                out.push(Challenge::Basic);
            } else if scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = get("realm")
            {
                out.push(Challenge::Bearer {
                    realm,
                    service: get("service"),
                    scope: get("scope"),
                });
            }
        }
    }
    out.sort_by_key(|c| matches!(c, Challenge::Basic));
    out
}

type Params = Vec<(String, String)>;

fn split(line: &str) -> Vec<(String, Params)> {
    let mut out: Vec<(String, Params)> = Vec::new();
    let mut rest = line;
    for _ in 0..MAX_CHALLENGE_PARTS {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            break;
        }
        let value = after.trim_start_matches([' ', '\t']);
        match value.strip_prefix('=') {
            // `name=value`; a token68 ends with `=` too, but none has params.
            Some(value) if !out.is_empty() => {
                let (value, after) = unquote(value.trim_start_matches([' ', '\t']));
                if let Some((_, params)) = out.last_mut() {
                    params.push((word.to_owned(), value));
                }
                rest = after;
            }
            Some(value) => rest = unquote(value).1,
            None => {
                out.push((word.to_owned(), Vec::new()));
                rest = after;
            }
        }
    }
    out
}

/// A token or a quoted string, and what follows it.
fn unquote(text: &str) -> (String, &str) {
    let Some(inner) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut out = String::new();
    let mut chars = inner.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return (out, &inner[i + 1..]),
            '\\' => out.extend(chars.next().map(|(_, c)| c)),
            c => out.push(c),
        }
    }
    (out, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_of_registries() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| Challenge::Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
        };
        for (line, wanted) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull""#,
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:library/busybox:pull"),
                )],
            ),
            (r#"Basic realm="basic-realm""#, vec![Challenge::Basic]),
            (r#"basic"#, vec![Challenge::Basic]),
            (
                r#"Basic realm="a, b", BEARER Realm = "https://t" "#,
                vec![bearer("https://t", None, None), Challenge::Basic],
            ),
            (r#"Bearer realm="a\"b"#, vec![bearer("a\"b", None, None)]),
            (r#"Bearer service="x""#, vec![]),
            (r#"Negotiate abc==, Basic realm=x"#, vec![Challenge::Basic]),
            ("", vec![]),
            (",,,=,=\"", vec![]),
        ] {
            assert_eq!(parse([line]), wanted, "{line}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_taken(text in ".{0,200}") {
            let _ = parse([text.as_str()]);
        }
    }
}
