//! Links in a page that is passed through, as it arrives.

/// Attributes that hold a link, by element (those of `k8s.io/apimachinery/pkg/util/proxy`,
/// after the HTML specification's index of attributes).
const LINKS: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];
/// Elements whose content is text, whatever it looks like.
const TEXT_IN: [&str; 4] = ["script", "style", "textarea", "title"];
/// Longest tag that is looked into, in bytes; a longer one is passed on as it is.
const TAG_BYTES_MAX: usize = 64 << 10;

/// Rewrites links while bytes pass.
pub(super) struct Rewriter<F> {
    link: F,
    /// The beginning of a tag whose end has not come.
    held: Vec<u8>,
    /// The element whose content is text now.
    text_in: Option<&'static str>,
}

/// The places in a tag.
#[derive(Debug, Default)]
struct Tag {
    name: String,
    /// Attributes and where their values are.
    attributes: Vec<(String, std::ops::Range<usize>)>,
    /// Its length with the closing `>`.
    length: usize,
}

impl<F: Fn(&str) -> Option<String>> Rewriter<F> {
    /// `link` gives what a link shall be instead.
    pub(super) fn new(link: F) -> Self {
        Self {
            link,
            held: Vec::new(),
            text_in: None,
        }
    }

    /// What can be passed on, now that these bytes have come.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut input = std::mem::take(&mut self.held);
        input.extend_from_slice(bytes);
        let mut out = Vec::with_capacity(input.len());
        let mut rest = &input[..];
        while let Some(at) = rest.iter().position(|b| *b == b'<') {
            out.extend_from_slice(&rest[..at]);
            rest = &rest[at..];
            match tag(rest) {
                Found::Tag(tag) => {
                    self.pass(&rest[..tag.length], &tag, &mut out);
                    rest = &rest[tag.length..];
                }
                Found::Unfinished if rest.len() < TAG_BYTES_MAX => {
                    self.held = rest.to_vec();
                    return out;
                }
                Found::Unfinished | Found::Text => {
                    out.push(b'<');
                    rest = &rest[1..];
                }
            }
        }
        out.extend_from_slice(rest);
        out
    }

    /// What is left when no more bytes come.
    pub(super) fn end(self) -> Vec<u8> {
        self.held
    }

    fn pass(&mut self, bytes: &[u8], tag: &Tag, out: &mut Vec<u8>) {
        if let Some(element) = self.text_in {
            if tag.name.strip_prefix('/') == Some(element) {
                self.text_in = None;
            }
            out.extend_from_slice(bytes);
            return;
        }
        self.text_in = TEXT_IN.into_iter().find(|name| *name == tag.name);
        let holds = LINKS.iter().find(|(name, _)| *name == tag.name);
        let mut from = 0;
        for (name, place) in &tag.attributes {
            if !holds.is_some_and(|(_, names)| names.contains(&name.as_str())) {
                continue;
            }
            let value = String::from_utf8_lossy(&bytes[place.clone()]);
            if let Some(other) = (self.link)(&value) {
                out.extend_from_slice(&bytes[from..place.start]);
                out.extend_from_slice(other.as_bytes());
                from = place.end;
            }
        }
        out.extend_from_slice(&bytes[from..]);
    }
}

enum Found {
    Tag(Tag),
    /// More bytes are needed.
    Unfinished,
    /// A `<` that begins no tag.
    Text,
}

/// Reads the tag that begins with the first byte, `<`.
fn tag(bytes: &[u8]) -> Found {
    let mut at = 1;
    if bytes.get(at) == Some(&b'/') {
        at += 1;
    }
    match bytes.get(at) {
        None => return Found::Unfinished,
        Some(first) if !first.is_ascii_alphabetic() => return Found::Text,
        Some(_) => {}
    }
    let word = |from: usize, ends: &dyn Fn(u8) -> bool| {
        let length = bytes[from..].iter().position(|b| ends(*b));
        length.map(|length| from + length)
    };
    let lower =
        |from: usize, to: usize| String::from_utf8_lossy(&bytes[from..to]).to_ascii_lowercase();
    let Some(end) = word(at, &|b| b.is_ascii_whitespace() || b == b'>' || b == b'/') else {
        return Found::Unfinished;
    };
    let mut tag = Tag {
        name: lower(1, end),
        ..Tag::default()
    };
    at = end;
    loop {
        let Some(start) = word(at, &|b| !b.is_ascii_whitespace() && b != b'/') else {
            return Found::Unfinished;
        };
        if bytes[start] == b'>' {
            tag.length = start + 1;
            return Found::Tag(tag);
        }
        // A `=` at the start belongs to the name (HTML specification, 13.2.5.32).
        let ends = |b: u8| b.is_ascii_whitespace() || matches!(b, b'=' | b'>' | b'/');
        let Some(end) = word(start + 1, &ends) else {
            return Found::Unfinished;
        };
        let name = lower(start, end);
        let Some(next) = word(end, &|b| !b.is_ascii_whitespace()) else {
            return Found::Unfinished;
        };
        if bytes[next] != b'=' {
            at = next;
            continue;
        }
        let Some(value) = word(next + 1, &|b| !b.is_ascii_whitespace()) else {
            return Found::Unfinished;
        };
        let (from, to, after) = match bytes[value] {
            quote @ (b'"' | b'\'') => match word(value + 1, &|b| b == quote) {
                Some(to) => (value + 1, to, to + 1),
                None => return Found::Unfinished,
            },
            _ => match word(value, &|b| b.is_ascii_whitespace() || b == b'>') {
                Some(to) => (value, to, to),
                None => return Found::Unfinished,
            },
        };
        tag.attributes.push((name, from..to));
        at = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewrite(page: &str, piece: usize) -> String {
        let link = |link: &str| link.starts_with('/').then(|| format!("/p{link}"));
        let mut rewriter = Rewriter::new(link);
        let mut out = Vec::new();
        for bytes in page.as_bytes().chunks(piece) {
            out.extend(rewriter.push(bytes));
        }
        out.extend(rewriter.end());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn links_are_rewritten_however_the_bytes_come() {
        for (page, expected) in [
            ("<a href=\"/x\">t</a>", "<a href=\"/p/x\">t</a>"),
            ("<A HREF='/x' class=b>", "<A HREF='/p/x' class=b>"),
            ("<img alt=a>b src = /i ><p>", "<img alt=a>b src = /i ><p>"),
            (
                "<img disabled src = /i ><p>",
                "<img disabled src = /p/i ><p>",
            ),
            ("<img src=/i/><br/>", "<img src=/p/i/><br/>"),
            ("<p href=\"/x\"> 1 < 2 <a", "<p href=\"/x\"> 1 < 2 <a"),
            (
                "<a href=\"x\"><a href='//h/y'>",
                "<a href=\"x\"><a href='/p//h/y'>",
            ),
            (
                "<script src=\"/s\">'<a href=\"/x\">'</script><a href=/y >",
                "<script src=\"/p/s\">'<a href=\"/x\">'</script><a href=/p/y >",
            ),
            (
                "<img longdesc=/l src='/s'>",
                "<img longdesc=/p/l src='/p/s'>",
            ),
        ] {
            for piece in [1, 2, 3, 7, 1000] {
                assert_eq!(rewrite(page, piece), expected, "in pieces of {piece}");
            }
        }
    }

    #[test]
    fn a_tag_without_end_passes() {
        let page = format!("<a href=\"{}\" <a href=\"/x\">", "y".repeat(TAG_BYTES_MAX));
        let seen = rewrite(&page, 4096);
        assert!(seen.len() >= page.len(), "{}", seen.len());
    }
}
