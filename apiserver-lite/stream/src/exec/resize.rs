//! Terminal sizes: JSON objects one after the other, `{"Width":80,"Height":24}`.

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

use crate::node::TerminalSize;

/// Bytes that may wait for the end of an object.
const MAX_OBJECT_BYTES: usize = 1 << 10;

/// Reads objects from pieces of text.
#[derive(Debug, Default)]
pub(crate) struct Sizes {
    buffer: Vec<u8>,
}

impl Sizes {
    /// The sizes that `bytes` complete. `None`: this is not a sequence of
    /// sizes, and nothing after it can be read.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Option<Vec<TerminalSize>> {
        if self.buffer.len() + bytes.len() > MAX_OBJECT_BYTES {
            return None;
        }
        self.buffer.extend_from_slice(bytes);
        let mut sizes = Vec::new();
        let mut stream = serde_json::Deserializer::from_slice(&self.buffer).into_iter::<Value>();
        let mut used = 0;
        while let Some(object) = stream.next() {
            match object {
                Ok(object) => sizes.push(size(&object)?),
                Err(error) if error.is_eof() => break,
                Err(_) => return None,
            }
            used = stream.byte_offset();
        }
        self.buffer.drain(..used);
        Some(sizes)
    }
}

fn size(object: &Value) -> Option<TerminalSize> {
    let side = |name: &str| u16::try_from(object.get(name)?.as_u64()?).ok();
    Some(TerminalSize {
        width: side("Width")?,
        height: side("Height")?,
    })
}

/// Hands on what a stream of sizes says, until it ends.
pub(crate) async fn forward<R: AsyncRead + Unpin>(mut from: R, to: mpsc::Sender<TerminalSize>) {
    let mut sizes = Sizes::default();
    let mut buffer = [0; 256];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let Some(new) = sizes.feed(&buffer[..count]) else {
            return;
        };
        for size in new {
            if to.send(size).await.is_err() {
                return;
            }
        }
    }
}

/// The text of a size.
pub(crate) fn encode(size: TerminalSize) -> String {
    format!("{{\"Width\":{},\"Height\":{}}}\n", size.width, size.height)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn objects_in_any_pieces() {
        let text = encode(TerminalSize {
            width: 80,
            height: 24,
        }) + "{\"Width\":1,\"Height\":65535}";
        let all = [(80, 24), (1, 65_535)];
        for cut in 0..text.len() {
            let mut sizes = Sizes::default();
            let mut got = sizes.feed(&text.as_bytes()[..cut]).unwrap();
            got.extend(sizes.feed(&text.as_bytes()[cut..]).unwrap());
            let got: Vec<_> = got.iter().map(|s| (s.width, s.height)).collect();
            assert_eq!(got, all, "{cut}");
        }
        for bad in ["x", "{\"Width\":70000,\"Height\":1}", "{\"Width\":1}", "[]"] {
            assert!(Sizes::default().feed(bad.as_bytes()).is_none(), "{bad}");
        }
        let long = format!("{{\"Width\":{}", " ".repeat(MAX_OBJECT_BYTES));
        assert!(Sizes::default().feed(long.as_bytes()).is_none());
    }

    proptest! {
        #[test]
        fn any_text_is_sizes_or_nothing(text in ".{0,60}") {
            let _ = Sizes::default().feed(text.as_bytes());
        }
    }
}
