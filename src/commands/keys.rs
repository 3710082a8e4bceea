//! The keys that end an attach.

/// Watches what is typed for a sequence of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Detach {
    keys: Vec<u8>,
    /// How many of them were typed last; they are held back.
    typed: usize,
}

impl Detach {
    /// Reads `ctrl-p,ctrl-q`: single characters and `ctrl-` with a letter or
    /// one of `@[\]^_`, as docker and podman have it. None, if empty.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut keys = Vec::new();
        for key in text.split(',').filter(|_| !text.is_empty()) {
            let wrong = || {
                format!("--detach-keys {text:?}: {key:?} is neither a character nor ctrl-LETTER")
            };
            let byte = match key.strip_prefix("ctrl-").map(str::as_bytes) {
                // A control character is its letter without the upper bits.
                Some([c @ (b'a'..=b'z' | b'@' | b'[' | b'\\' | b']' | b'^' | b'_')]) => c & 0x1f,
                Some(_) => return Err(wrong()),
                None => match key.as_bytes() {
                    [c] if c.is_ascii() => *c,
                    _ => return Err(wrong()),
                },
            };
            keys.push(byte);
        }
        Ok(Self { keys, typed: 0 })
    }

    /// What is to be passed on; `None` when the sequence is complete. Keys
    /// that may be its beginning are held back until the next one.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(bytes.len());
        for byte in bytes {
            if self.keys.get(self.typed) == Some(byte) {
                self.typed += 1;
                if self.typed == self.keys.len() {
                    self.typed = 0;
                    return None;
                }
                continue;
            }
            // What was held back was not it; this one may begin it anew.
            out.extend_from_slice(&self.keys[..self.typed]);
            self.typed = 0;
            if self.keys.first() == Some(byte) {
                self.typed = 1;
            } else {
                out.push(*byte);
            }
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_read() {
        let keys = |text: &str| Detach::parse(text).map(|d| d.keys);
        assert_eq!(keys("ctrl-p,ctrl-q"), Ok(vec![0x10, 0x11]));
        assert_eq!(keys("a,ctrl-@,ctrl-_"), Ok(vec![b'a', 0, 0x1f]));
        assert_eq!(keys(""), Ok(Vec::new()));
        for bad in ["ctrl-", "ctrl-1", "ab", "a,,b", "ctrl-P", "ä"] {
            assert!(keys(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_pass_but_the_sequence() {
        let mut detach = Detach::parse("ctrl-p,ctrl-q").unwrap();
        assert_eq!(detach.feed(b"ls\r"), Some(b"ls\r".to_vec()));
        assert_eq!(detach.feed(b"\x10"), Some(Vec::new()));
        assert_eq!(detach.feed(b"x"), Some(b"\x10x".to_vec()));
        assert_eq!(detach.feed(b"a\x10\x10"), Some(b"a\x10".to_vec()));
        assert_eq!(detach.feed(b"\x11"), None);
        assert_eq!(detach.feed(b"\x11"), Some(b"\x11".to_vec()));
        let mut none = Detach::parse("").unwrap();
        assert_eq!(none.feed(b"\x10\x11"), Some(b"\x10\x11".to_vec()));
    }
}
