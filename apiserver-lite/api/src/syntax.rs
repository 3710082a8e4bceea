//! What is wrong with a text that is no JSON, in the words of Go's reader (`encoding/json` and
//! `sigs.k8s.io/json`, which reports the same), since that is what clients of upstream are told.

/// Deepest nesting that Go reads.
const DEPTH_MAX: usize = 10_000;

/// Why a text is no JSON value; `None` if it is one.
#[must_use]
pub fn fault(text: &[u8]) -> Option<String> {
    let mut scanner = Scanner { text, at: 0 };
    scanner
        .value(0)
        .and_then(|()| match scanner.peek() {
            None => Ok(()),
            Some(_) => Err(scanner.unexpected("after top-level value")),
        })
        .err()
}

/// Where base64 with padding goes wrong, as Go's decoder counts; `None` if it does not.
#[must_use]
pub fn base64_fault(text: &str) -> Option<usize> {
    if super::strict::base64(text).is_some() {
        return None;
    }
    // Letters of one group of three bytes so far, and where it began.
    let (mut letters, mut begin) = (0, 0);
    let line_break = |b: u8| matches!(b, b'\r' | b'\n');
    let mut bytes = text.bytes().enumerate().filter(|(_, b)| !line_break(*b));
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' => {
                if letters == 0 {
                    begin = at;
                }
                letters = (letters + 1) % 4;
            }
            b'=' if letters == 2 => {
                return Some(match bytes.next() {
                    Some((_, b'=')) => bytes.next().map_or(at, |(after, _)| after),
                    Some(_) => at,
                    None => text.len(),
                });
            }
            b'=' if letters == 3 => return Some(bytes.next().map_or(at, |(after, _)| after)),
            _ => return Some(at),
        }
    }
    Some(begin)
}

struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

const ENDED: &str = "unexpected end of JSON input";

impl Scanner<'_> {
    /// The next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.text.get(self.at) {
            self.at += 1;
        }
        self.text.get(self.at).copied()
    }

    fn unexpected(&self, context: &str) -> String {
        match self.text.get(self.at) {
            None => ENDED.to_owned(),
            Some(byte) => format!("invalid character {} {context}", quoted(*byte)),
        }
    }

    fn value(&mut self, depth: usize) -> Result<(), String> {
        if depth > DEPTH_MAX {
            return Err("exceeded max depth".to_owned());
        }
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.string(),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.literal("true"),
            Some(b'f') => self.literal("false"),
            Some(b'n') => self.literal("null"),
            _ => Err(self.unexpected("looking for beginning of value")),
        }
    }

    fn object(&mut self, depth: usize) -> Result<(), String> {
        self.at += 1;
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.unexpected("looking for beginning of object key string"));
            }
            self.string()?;
            if self.peek() != Some(b':') {
                return Err(self.unexpected("after object key"));
            }
            self.at += 1;
            self.value(depth + 1)?;
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(self.unexpected("after object key:value pair")),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<(), String> {
        self.at += 1;
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.value(depth + 1)?;
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(self.unexpected("after array element")),
            }
        }
    }

    fn string(&mut self) -> Result<(), String> {
        self.at += 1;
        loop {
            match self.text.get(self.at) {
                None => return Err(ENDED.to_owned()),
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => self.escape()?,
                Some(0..=0x1f) => return Err(self.unexpected("in string literal")),
                Some(_) => self.at += 1,
            }
        }
    }

    fn escape(&mut self) -> Result<(), String> {
        self.at += 1;
        match self.text.get(self.at) {
            Some(b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"') => {
                self.at += 1;
                Ok(())
            }
            Some(b'u') => {
                self.at += 1;
                for _ in 0..4 {
                    if !self.text.get(self.at).is_some_and(u8::is_ascii_hexdigit) {
                        return Err(self.unexpected("in \\u hexadecimal character escape"));
                    }
                    self.at += 1;
                }
                Ok(())
            }
            _ => Err(self.unexpected("in string escape code")),
        }
    }

    fn digits(&mut self) -> usize {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let count = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        self.at += count;
        count
    }

    fn number(&mut self) -> Result<(), String> {
        if self.text.get(self.at) == Some(&b'-') {
            self.at += 1;
        }
        if self.text.get(self.at) == Some(&b'0') {
            self.at += 1;
        } else if self.digits() == 0 {
            return Err(self.unexpected("in numeric literal"));
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            if self.digits() == 0 {
                return Err(self.unexpected("after decimal point in numeric literal"));
            }
        }
        if let Some(b'e' | b'E') = self.text.get(self.at) {
            self.at += 1;
            if let Some(b'+' | b'-') = self.text.get(self.at) {
                self.at += 1;
            }
            if self.digits() == 0 {
                return Err(self.unexpected("in exponent of numeric literal"));
            }
        }
        Ok(())
    }

    fn literal(&mut self, word: &str) -> Result<(), String> {
        for expected in word.bytes() {
            if self.text.get(self.at) != Some(&expected) {
                let context = format!("in literal {word} (expecting {})", quoted(expected));
                return Err(self.unexpected(&context));
            }
            self.at += 1;
        }
        Ok(())
    }
}

/// A byte as Go quotes a character.
fn quoted(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".to_owned(),
        b'"' => r#"'"'"#.to_owned(),
        byte => {
            let text = format!("{:?}", char::from(byte).to_string());
            format!("'{}'", text.trim_matches('"'))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_told_as_go_does() {
        for (text, why) in [
            ("", ENDED),
            ("{", ENDED),
            ("{\"a\"", ENDED),
            ("\"a", ENDED),
            ("x", "invalid character 'x' looking for beginning of value"),
            ("{} x", "invalid character 'x' after top-level value"),
            (
                "{a",
                "invalid character 'a' looking for beginning of object key string",
            ),
            ("{\"a\" 1", "invalid character '1' after object key"),
            (
                "{\"a\": 1 2",
                "invalid character '2' after object key:value pair",
            ),
            ("[1 2", "invalid character '2' after array element"),
            (
                "[1,]",
                "invalid character ']' looking for beginning of value",
            ),
            (
                "trap",
                "invalid character 'a' in literal true (expecting 'u')",
            ),
            ("\"\n\"", "invalid character '\\n' in string literal"),
            ("\"\\x\"", "invalid character 'x' in string escape code"),
            ("-x", "invalid character 'x' in numeric literal"),
            (
                "\"\\u12g4\"",
                "invalid character 'g' in \\u hexadecimal character escape",
            ),
        ] {
            assert_eq!(fault(text.as_bytes()).as_deref(), Some(why), "{text}");
        }
        for text in ["{}", " [1, 2.5e-3, \"\\u00e4\\n\", null, {\"a\": true}] "] {
            assert_eq!(fault(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn base64_goes_wrong_at_a_byte() {
        assert_eq!(base64_fault("eA=="), None);
        assert_eq!(base64_fault("no base 64!"), Some(2));
        assert_eq!(base64_fault("not base64!"), Some(3));
        assert_eq!(base64_fault("eHh4eA"), Some(4));
        assert_eq!(base64_fault("eA="), Some(3));
        assert_eq!(base64_fault("eA==eA"), Some(4));
    }

    proptest::proptest! {
        #[test]
        fn faults_are_where_serde_finds_some(text in "[\\[\\]{}:,\"a-c0-9.e+-]{0,30}") {
            let read: Result<serde_json::Value, _> = serde_json::from_str(&text);
            // Go reads `1e400` as a text and tells of its size later.
            let too_large = read.as_ref().is_err_and(|e| e.to_string().contains("out of range"));
            proptest::prop_assert!(too_large || read.is_ok() == fault(text.as_bytes()).is_none());
        }
    }
}
