//! Frames of SPDY/3.1 (draft 3.1, section 2.6): pure encoding and decoding.
//! Header blocks stay compressed here; see [`super::headers`].

use bytes::Bytes;

use crate::error::StreamError;

/// The version in control frames; 3.1 says 3.
const VERSION: u16 = 3;
/// Bytes of a frame's head.
pub const HEAD_BYTES: usize = 8;
/// Longest control frame accepted, in bytes without the head. A stream's
/// headers here are a few dozen bytes.
pub const MAX_CONTROL_BYTES: u32 = 64 << 10;
/// The flag that ends a stream's half (sections 2.6.1 and 2.2.2).
pub const FLAG_FIN: u8 = 0x01;
/// The flag of a SYN_STREAM whose receiver may not answer with data.
pub const FLAG_UNIDIRECTIONAL: u8 = 0x02;
/// The window that every stream and the session start with, in bytes
/// (section 2.6.8).
pub const INITIAL_WINDOW_BYTES: u32 = 64 << 10;

/// RST_STREAM: the stream broke the protocol (section 2.6.3).
pub const RST_PROTOCOL_ERROR: u32 = 1;
/// RST_STREAM: no such stream.
pub const RST_INVALID_STREAM: u32 = 2;
/// RST_STREAM: the stream was not processed.
pub const RST_REFUSED_STREAM: u32 = 3;
/// RST_STREAM: the sender lost interest.
pub const RST_CANCEL: u32 = 5;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// The first eight bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// A control frame.
    Control {
        /// The type's number.
        kind: u16,
        /// Flags.
        flags: u8,
        /// Bytes that follow; at most [`MAX_CONTROL_BYTES`].
        len: u32,
    },
    /// Bytes of a stream.
    Data {
        /// The stream; never 0.
        stream: u32,
        /// Whether the sender's half ends.
        fin: bool,
        /// Bytes that follow; below 2^24.
        len: u32,
    },
}

/// A control frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// A stream begins.
    SynStream {
        /// Its id; never 0.
        stream: u32,
        /// Whether the sender sends no data.
        fin: bool,
        /// Whether the receiver may send none.
        unidirectional: bool,
        /// Compressed headers.
        block: Bytes,
    },
    /// A stream is accepted.
    SynReply {
        /// Which.
        stream: u32,
        /// Whether the sender sends no data.
        fin: bool,
        /// Compressed headers.
        block: Bytes,
    },
    /// A stream ends at once.
    RstStream {
        /// Which.
        stream: u32,
        /// Why (section 2.6.3).
        status: u32,
    },
    /// To be sent back if the id is of the peer's parity.
    Ping(u32),
    /// No new streams.
    GoAway,
    /// More headers of a stream.
    Headers {
        /// Which.
        stream: u32,
        /// Whether the sender's half ends.
        fin: bool,
        /// Compressed headers.
        block: Bytes,
    },
    /// More bytes may be sent.
    WindowUpdate {
        /// The stream; 0 is the session.
        stream: u32,
        /// How many.
        delta: u32,
    },
    /// Settings, and frame types that are to be ignored (section 2.2.1).
    Other(u16),
}

pub(crate) const fn broken(what: &'static str) -> StreamError {
    StreamError::Protocol {
        protocol: "SPDY",
        what,
    }
}

/// Reads a head.
///
/// # Errors
/// Another version, a control frame that is too long, data of stream 0.
pub fn decode_head(bytes: [u8; HEAD_BYTES]) -> Result<Head, StreamError> {
    let [a, b, c, d, flags, e, f, g] = bytes;
    let len = u32::from_be_bytes([0, e, f, g]);
    if a & 0x80 == 0 {
        let stream = u32::from_be_bytes([a, b, c, d]);
        if stream == 0 {
            return Err(broken("data of stream 0"));
        }
        let fin = flags & FLAG_FIN != 0;
        return Ok(Head::Data { stream, fin, len });
    }
    if u16::from_be_bytes([a & 0x7f, b]) != VERSION {
        return Err(broken("another version than 3"));
    }
    if len > MAX_CONTROL_BYTES {
        return Err(StreamError::Limit {
            protocol: "SPDY",
            what: "bytes of a control frame",
            value: len.into(),
            limit: MAX_CONTROL_BYTES.into(),
        });
    }
    let kind = u16::from_be_bytes([c, d]);
    Ok(Head::Control { kind, flags, len })
}

fn word(bytes: &[u8], at: usize) -> Result<u32, StreamError> {
    match bytes.get(at..at + 4) {
        Some(&[a, b, c, d]) => Ok(u32::from_be_bytes([a, b, c, d])),
        _ => Err(broken("a control frame that is too short")),
    }
}

fn stream_id(payload: &[u8]) -> Result<u32, StreamError> {
    match word(payload, 0)? & 0x7fff_ffff {
        0 => Err(broken("a stream of id 0")),
        stream => Ok(stream),
    }
}

/// Reads a control frame.
///
/// # Errors
/// It is too short, or names stream 0 where a stream is needed.
pub fn decode_control(kind: u16, flags: u8, payload: &Bytes) -> Result<Control, StreamError> {
    let fin = flags & FLAG_FIN != 0;
    Ok(match kind {
        SYN_STREAM if payload.len() >= 10 => Control::SynStream {
            stream: stream_id(payload)?,
            fin,
            unidirectional: flags & FLAG_UNIDIRECTIONAL != 0,
            block: payload.slice(10..),
        },
        SYN_STREAM => return Err(broken("a SYN_STREAM that is too short")),
        SYN_REPLY => Control::SynReply {
            stream: stream_id(payload)?,
            fin,
            block: payload.slice(4..),
        },
        RST_STREAM => Control::RstStream {
            stream: stream_id(payload)?,
            status: word(payload, 4)?,
        },
        PING => Control::Ping(word(payload, 0)?),
        GOAWAY => Control::GoAway,
        HEADERS => Control::Headers {
            stream: stream_id(payload)?,
            fin,
            block: payload.slice(4..),
        },
        WINDOW_UPDATE => Control::WindowUpdate {
            stream: word(payload, 0)? & 0x7fff_ffff,
            delta: word(payload, 4)? & 0x7fff_ffff,
        },
        SETTINGS => Control::Other(SETTINGS),
        other => Control::Other(other),
    })
}

fn control(kind: u16, flags: u8, words: &[u32], rest: &[u8], out: &mut Vec<u8>) {
    let len = words.len() * 4 + rest.len();
    // Longer control frames are never made: headers are ours.
    let len = u32::try_from(len).unwrap_or(u32::MAX) & 0x00ff_ffff;
    out.extend_from_slice(&(0x8000 | VERSION).to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(u32::from(flags) << 24 | len).to_be_bytes());
    for word in words {
        out.extend_from_slice(&word.to_be_bytes());
    }
    out.extend_from_slice(rest);
}

/// Appends a control frame.
pub fn encode_control(frame: &Control, out: &mut Vec<u8>) {
    let bit = |fin: bool| if fin { FLAG_FIN } else { 0 };
    match frame {
        Control::SynStream {
            stream,
            fin,
            unidirectional,
            block,
        } => {
            let one_way = if *unidirectional {
                FLAG_UNIDIRECTIONAL
            } else {
                0
            };
            // No associated stream, priority 0, slot 0.
            let rest = [&[0, 0][..], block].concat();
            control(SYN_STREAM, bit(*fin) | one_way, &[*stream, 0], &rest, out);
        }
        Control::SynReply { stream, fin, block } => {
            control(SYN_REPLY, bit(*fin), &[*stream], block, out);
        }
        Control::RstStream { stream, status } => {
            control(RST_STREAM, 0, &[*stream, *status], &[], out);
        }
        Control::Ping(id) => control(PING, 0, &[*id], &[], out),
        Control::GoAway => control(GOAWAY, 0, &[0, 0], &[], out),
        Control::Headers { stream, fin, block } => {
            control(HEADERS, bit(*fin), &[*stream], block, out);
        }
        Control::WindowUpdate { stream, delta } => {
            control(WINDOW_UPDATE, 0, &[*stream, *delta], &[], out);
        }
        Control::Other(kind) => control(*kind, 0, &[], &[], out),
    }
}

/// Appends a data frame; `bytes` is shorter than 2^24.
pub fn encode_data(stream: u32, fin: bool, bytes: &[u8], out: &mut Vec<u8>) {
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX) & 0x00ff_ffff;
    let flags = if fin { FLAG_FIN } else { 0 };
    out.extend_from_slice(&(stream & 0x7fff_ffff).to_be_bytes());
    out.extend_from_slice(&(u32::from(flags) << 24 | len).to_be_bytes());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(frame: &[u8]) -> (Head, Bytes) {
        let (head, payload) = frame.split_first_chunk::<HEAD_BYTES>().unwrap();
        (decode_head(*head).unwrap(), Bytes::copy_from_slice(payload))
    }

    #[test]
    fn frames_survive_encoding() {
        let block = Bytes::from_static(b"block");
        let frames = [
            Control::SynStream {
                stream: 5,
                fin: true,
                unidirectional: true,
                block: block.clone(),
            },
            Control::SynReply {
                stream: 7,
                fin: false,
                block: block.clone(),
            },
            Control::RstStream {
                stream: 7,
                status: RST_CANCEL,
            },
            Control::Ping(3),
            Control::GoAway,
            Control::Headers {
                stream: 9,
                fin: true,
                block,
            },
            Control::WindowUpdate {
                stream: 0,
                delta: 65_536,
            },
        ];
        for frame in frames {
            let mut out = Vec::new();
            encode_control(&frame, &mut out);
            let (Head::Control { kind, flags, len }, payload) = split(&out) else {
                panic!("{frame:?}");
            };
            assert_eq!(len as usize, payload.len());
            assert_eq!(decode_control(kind, flags, &payload).unwrap(), frame);
        }
        let mut out = Vec::new();
        encode_data(11, true, b"abc", &mut out);
        assert_eq!(
            split(&out),
            (
                Head::Data {
                    stream: 11,
                    fin: true,
                    len: 3
                },
                Bytes::from_static(b"abc")
            )
        );
    }

    #[test]
    fn what_is_refused() {
        assert!(decode_head([0, 0, 0, 0, 0, 0, 0, 1]).is_err(), "stream 0");
        assert!(
            decode_head([0x80, 2, 0, 1, 0, 0, 0, 1]).is_err(),
            "version 2"
        );
        let long = decode_head([0x80, 3, 0, 1, 0, 0xff, 0, 0]).unwrap_err();
        assert!(matches!(long, StreamError::Limit { .. }), "{long}");
        let short = Bytes::from_static(&[0, 0, 0]);
        for kind in [1, 2, 3, 6, 8, 9] {
            assert!(decode_control(kind, 0, &short).is_err(), "{kind}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(head: [u8; 8], payload in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(Head::Control { kind, flags, .. }) = decode_head(head) {
                let _ = decode_control(kind, flags, &Bytes::from(payload));
            }
        }
    }
}
