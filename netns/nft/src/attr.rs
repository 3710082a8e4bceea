//! Netlink attributes: a writer that patches lengths, and a bounded reader.
//!
//! Layout (`linux/netlink.h`): u16 length including the 4-byte header, u16
//! type, payload, padding to 4 bytes.

use crate::netlink::{HEADER_BYTES, put_header};

/// `NLA_F_NESTED`: the payload is itself a list of attributes.
const NESTED: u16 = 1 << 15;
/// `NLA_TYPE_MASK`: type without the nested and byte-order bits.
const TYPE_MASK: u16 = 0x3fff;
/// Bytes of an attribute header.
pub const ATTR_HEADER_BYTES: usize = 4;

/// Builds a run of netlink messages in one buffer.
///
/// An attribute longer than a u16 can tell marks the whole buffer as
/// [overflowed](Self::overflowed); it is never sent.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    overflowed: bool,
}

impl Writer {
    /// An empty buffer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The bytes written so far.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of bytes written so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True before the first message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// True if some attribute or message did not fit its length field.
    #[must_use]
    pub fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// Writes one message: header, then whatever `body` appends.
    pub fn message(&mut self, kind: u16, flags: u16, seq: u32, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.resize(start + HEADER_BYTES, 0);
        body(self);
        match u32::try_from(self.bytes.len() - start) {
            Ok(len) => put_header(&mut self.bytes[start..], len, kind, flags, seq),
            Err(_) => self.overflowed = true,
        }
        self.pad();
    }

    /// Appends raw bytes (a fixed family header), padded.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    /// Appends one attribute.
    pub fn attr(&mut self, kind: u16, payload: &[u8]) {
        let start = self.open(kind);
        self.bytes.extend_from_slice(payload);
        self.close(start);
    }

    /// Appends a big-endian u32, the byte order of all nfnetlink numbers.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// Appends a string with its NUL.
    pub fn string(&mut self, kind: u16, value: &str) {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.close(start);
    }

    /// Appends an attribute that holds attributes.
    pub fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.open(kind | NESTED);
        body(self);
        self.close(start);
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        match u16::try_from(self.bytes.len() - start) {
            Ok(len) => self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes()),
            Err(_) => self.overflowed = true,
        }
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// One attribute as read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr<'a> {
    /// Type without flag bits.
    pub kind: u16,
    /// Payload without padding.
    pub payload: &'a [u8],
}

impl<'a> Attr<'a> {
    /// The payload as nested attributes.
    #[must_use]
    pub fn nested(&self) -> Reader<'a> {
        Reader::new(self.payload)
    }

    /// The payload as a big-endian u32, if it has 4 bytes.
    #[must_use]
    pub fn be32(&self) -> Option<u32> {
        Some(u32::from_be_bytes(self.payload.try_into().ok()?))
    }

    /// The payload as a big-endian u16, if it has 2 bytes.
    #[must_use]
    pub fn be16(&self) -> Option<u16> {
        Some(u16::from_be_bytes(self.payload.try_into().ok()?))
    }

    /// The payload as text up to the first NUL; invalid UTF-8 is replaced.
    #[must_use]
    pub fn text(&self) -> String {
        let end = self
            .payload
            .iter()
            .position(|b| *b == 0)
            .unwrap_or(self.payload.len());
        String::from_utf8_lossy(&self.payload[..end]).into_owned()
    }
}

/// Iterates over attributes and stops at the first malformed one.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads the attributes in `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The first attribute of the given type.
    #[must_use]
    pub fn get(&self, kind: u16) -> Option<Attr<'a>> {
        self.clone().find(|a| a.kind == kind)
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Attr<'a>;

    fn next(&mut self) -> Option<Attr<'a>> {
        let (len, rest) = self.rest.split_first_chunk::<2>()?;
        let (kind, _) = rest.split_first_chunk::<2>()?;
        let len = usize::from(u16::from_ne_bytes(*len));
        let kind = u16::from_ne_bytes(*kind) & TYPE_MASK;
        let payload = self.rest.get(ATTR_HEADER_BYTES..len)?;
        self.rest = self.rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Attr { kind, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut w = Writer::new();
        w.nest(1, |w| {
            w.string(2, "abc");
            w.be32(3, 7);
        });
        let outer: Vec<_> = Reader::new(w.as_bytes()).collect();
        assert_eq!(outer.len(), 1);
        assert_eq!(outer[0].nested().get(2).unwrap().text(), "abc");
        assert_eq!(outer[0].nested().get(3).unwrap().be32(), Some(7));
    }

    #[test]
    fn a_too_long_attribute_is_told() {
        let mut w = Writer::new();
        w.attr(1, &vec![0; 70_000]);
        assert!(w.overflowed());
    }

    #[test]
    fn malformed_attributes_end_the_walk() {
        for bytes in [&[3u8, 0, 1, 0][..], &[9, 0, 1, 0, 1], &[4], &[0, 0, 0, 0]] {
            assert_eq!(Reader::new(bytes).count(), 0, "{bytes:?}");
        }
    }
}
