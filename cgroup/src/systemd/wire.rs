//! The D-Bus wire format, as far as systemd's manager needs it (D-Bus
//! Specification, Marshaling; Message Protocol). Little-endian only: that is
//! what this side sends, and a bus hands messages on in the sender's order, so
//! big-endian ones are refused by name.

use crate::error::{Error, Result};

/// Largest message that is read, in bytes. systemd's answers here are below
/// one KiB; the protocol's own limit is 128 MiB.
pub(super) const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Protocol version 1.
const VERSION: u8 = 1;

/// Kinds of messages.
pub(super) const METHOD_CALL: u8 = 1;
pub(super) const METHOD_RETURN: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const SIGNAL: u8 = 4;

/// Codes of header fields.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// The value of a unit's property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Property {
    /// `s`.
    Text(String),
    /// `b`.
    Flag(bool),
    /// `t`.
    Number(u64),
    /// `au`.
    Pids(Vec<u32>),
    /// `ay`.
    Bytes(Vec<u8>),
}

/// Bytes of one message or body, aligned as they will lie in it.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn align(&mut self, to: usize) {
        while !self.0.len().is_multiple_of(to) {
            self.0.push(0);
        }
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.align(8);
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn flag(&mut self, value: bool) {
        self.u32(u32::from(value));
    }

    pub(super) fn text(&mut self, text: &str) {
        self.u32(length(text.len()));
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.0.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    /// An array: its length goes before the padding to its elements.
    pub(super) fn array(&mut self, element_align: usize, fill: impl FnOnce(&mut Self)) {
        self.u32(0);
        let at = self.0.len();
        self.align(element_align);
        let start = self.0.len();
        fill(self);
        let bytes = length(self.0.len() - start).to_le_bytes();
        if let Some(place) = self.0.get_mut(at - 4..at) {
            place.copy_from_slice(&bytes);
        }
    }

    /// `(sv)`.
    pub(super) fn property(&mut self, name: &str, value: &Property) {
        self.align(8);
        self.text(name);
        match value {
            Property::Text(text) => {
                self.signature("s");
                self.text(text);
            }
            Property::Flag(flag) => {
                self.signature("b");
                self.flag(*flag);
            }
            Property::Number(number) => {
                self.signature("t");
                self.u64(*number);
            }
            Property::Pids(pids) => {
                self.signature("au");
                self.array(4, |w| pids.iter().for_each(|pid| w.u32(*pid)));
            }
            Property::Bytes(bytes) => {
                self.signature("ay");
                self.array(1, |w| w.0.extend(bytes));
            }
        }
    }
}

fn length(n: usize) -> u32 {
    // Bodies here are far below MAX_MESSAGE_BYTES.
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// What a message is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: u8,
    pub(super) serial: u32,
    pub(super) reply_to: Option<u32>,
    pub(super) path: Option<String>,
    pub(super) interface: Option<String>,
    pub(super) member: Option<String>,
    pub(super) error: Option<String>,
    pub(super) destination: Option<String>,
    pub(super) signature: Option<String>,
}

/// A whole message.
pub(super) fn message(header: &Header, body: &[u8]) -> Vec<u8> {
    let mut out = Writer::default();
    out.0.extend([b'l', header.kind, 0, VERSION]);
    out.u32(length(body.len()));
    out.u32(header.serial);
    out.array(8, |w| {
        let mut field = |code: u8, kind: &str, put: &dyn Fn(&mut Writer)| {
            w.align(8);
            w.0.push(code);
            w.signature(kind);
            put(w);
        };
        for (code, kind, value) in [
            (PATH, "o", &header.path),
            (INTERFACE, "s", &header.interface),
            (MEMBER, "s", &header.member),
            (ERROR_NAME, "s", &header.error),
            (DESTINATION, "s", &header.destination),
        ] {
            if let Some(value) = value {
                field(code, kind, &|w| w.text(value));
            }
        }
        if let Some(serial) = header.reply_to {
            field(REPLY_SERIAL, "u", &|w| w.u32(serial));
        }
        if let Some(signature) = &header.signature {
            field(SIGNATURE, "g", &|w| w.signature(signature));
        }
    });
    out.align(8);
    out.0.extend(body);
    out.0
}

/// Reads values off a message.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

fn broken(reason: &'static str) -> Error {
    Error::Bus { reason }
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn align(&mut self, to: usize) -> Result<()> {
        self.at = self.at.next_multiple_of(to);
        if self.at <= self.bytes.len() {
            Ok(())
        } else {
            Err(broken("a message ends in its padding"))
        }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n);
        let bytes = end.and_then(|end| self.bytes.get(self.at..end));
        let bytes = bytes.ok_or_else(|| broken("a message ends within a value"))?;
        self.at += n;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.align(4)?;
        let bytes = self.take(4)?;
        let bytes = bytes.try_into();
        bytes
            .map(u32::from_le_bytes)
            .map_err(|_| broken("a message ends within a number"))
    }

    fn size(&mut self) -> Result<usize> {
        usize::try_from(self.u32()?).map_err(|_| broken("a length beyond memory"))
    }

    pub(super) fn text(&mut self) -> Result<String> {
        let n = self.size()?;
        let bytes = self.take(n)?;
        let text = std::str::from_utf8(bytes).map_err(|_| broken("a text is not UTF-8"))?;
        let text = text.to_owned();
        self.take(1)?;
        Ok(text)
    }

    pub(super) fn signature(&mut self) -> Result<String> {
        let n = self.take(1)?.first().copied().unwrap_or_default();
        let bytes = self.take(usize::from(n))?;
        let text = std::str::from_utf8(bytes).map_err(|_| broken("a signature is not UTF-8"))?;
        let text = text.to_owned();
        self.take(1)?;
        Ok(text)
    }

    /// A variant that holds a text.
    pub(super) fn text_variant(&mut self) -> Result<String> {
        match self.signature()?.as_str() {
            "s" | "o" => self.text(),
            _ => Err(broken("a property is no text")),
        }
    }
}

/// How many bytes a message has, from its first 16.
pub(super) fn size_of_message(start: &[u8; 16]) -> Result<usize> {
    if start[0] != b'l' {
        return Err(broken("a message is not little-endian"));
    }
    if start[3] != VERSION {
        return Err(broken("a message is not of protocol version 1"));
    }
    let mut reader = Reader::new(start);
    reader.take(4)?;
    let body = reader.size()?;
    reader.u32()?;
    let fields = reader.size()?;
    let whole = fields
        .checked_next_multiple_of(8)
        .and_then(|f| f.checked_add(16)?.checked_add(body));
    whole
        .filter(|n| *n <= MAX_MESSAGE_BYTES)
        .ok_or_else(|| broken("a message is larger than 1 MiB"))
}

/// The header of a whole message, and its body.
pub(super) fn parse(bytes: &[u8]) -> Result<(Header, &[u8])> {
    let mut reader = Reader::new(bytes);
    let first = reader.take(4)?;
    let mut header = Header {
        kind: first.get(1).copied().unwrap_or_default(),
        ..Header::default()
    };
    let body = reader.size()?;
    header.serial = reader.u32()?;
    let fields = reader.size()?;
    let end = reader.at.saturating_add(fields);
    while reader.at < end {
        reader.align(8)?;
        let code = reader.take(1)?.first().copied().unwrap_or_default();
        match reader.signature()?.as_str() {
            "s" | "o" => {
                let value = Some(reader.text()?);
                match code {
                    PATH => header.path = value,
                    INTERFACE => header.interface = value,
                    MEMBER => header.member = value,
                    ERROR_NAME => header.error = value,
                    DESTINATION => header.destination = value,
                    // A sender: known already.
                    _ => {}
                }
            }
            "u" => {
                let value = reader.u32()?;
                if code == REPLY_SERIAL {
                    header.reply_to = Some(value);
                }
            }
            "g" => header.signature = Some(reader.signature()?),
            _ => return Err(broken("a header field has a type that it cannot have")),
        }
    }
    reader.align(8)?;
    Ok((header, reader.take(body)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> (Header, Vec<u8>) {
        let header = Header {
            kind: METHOD_CALL,
            serial: 7,
            path: Some("/org/freedesktop/systemd1".into()),
            member: Some("StartTransientUnit".into()),
            reply_to: Some(3),
            signature: Some("sa(sv)".into()),
            ..Header::default()
        };
        let mut body = Writer::default();
        body.text("x.scope");
        body.array(8, |w| {
            w.property("Delegate", &Property::Flag(true));
            w.property("PIDs", &Property::Pids(vec![1, 2]));
            w.property("MemoryMax", &Property::Number(u64::MAX));
            w.property("Slice", &Property::Text("a.slice".into()));
            w.property("AllowedCPUs", &Property::Bytes(vec![3]));
        });
        (header, body.0)
    }

    #[test]
    fn a_message_comes_back() {
        let (header, body) = call();
        let bytes = message(&header, &body);
        let start: [u8; 16] = bytes[..16].try_into().unwrap();
        assert_eq!(size_of_message(&start).unwrap(), bytes.len());
        let (parsed, rest) = parse(&bytes).unwrap();
        assert_eq!((parsed, rest), (header, body.as_slice()));
        let mut reader = Reader::new(rest);
        assert_eq!(reader.text().unwrap(), "x.scope");
    }

    #[test]
    fn broken_messages_are_refused() {
        let (header, body) = call();
        let bytes = message(&header, &body);
        for n in 0..bytes.len() {
            assert!(parse(&bytes[..n]).is_err(), "{n} bytes");
        }
        let mut start: [u8; 16] = bytes[..16].try_into().unwrap();
        for (at, value) in [(0, b'B'), (3, 2), (7, 255), (15, 255)] {
            let old = std::mem::replace(&mut start[at], value);
            assert!(size_of_message(&start).is_err(), "byte {at}");
            start[at] = old;
        }
    }
}
