//! The frame of RFC 6455 section 5: pure encoding and decoding.

use crate::error::StreamError;

/// Longest payload of a control frame, in bytes (section 5.5).
pub const MAX_CONTROL_BYTES: usize = 125;
/// Longest header: two bytes, eight of length, four of mask.
pub const MAX_HEAD_BYTES: usize = 14;

/// Which end of the connection this is: clients mask, servers do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Opened the connection.
    Client,
    /// Answered it.
    Server,
}

/// What a frame is (section 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    /// More of the message that is under way.
    Continuation,
    /// A message that is UTF-8.
    Text,
    /// A message of bytes.
    Binary,
    /// The last frame of this side.
    Close,
    /// Is answered by a pong with the same payload.
    Ping,
    /// Answers a ping.
    Pong,
}

impl Opcode {
    const fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }

    fn from_bits(bits: u8) -> Result<Self, StreamError> {
        Ok(match bits {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return Err(broken("an opcode that is not defined")),
        })
    }

    /// Close, ping and pong.
    #[must_use]
    pub const fn is_control(self) -> bool {
        self.bits() >= 8
    }
}

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Whether the message ends with this frame.
    pub fin: bool,
    /// What the frame is.
    pub opcode: Opcode,
    /// The key that the payload is masked with.
    pub mask: Option<[u8; 4]>,
    /// Bytes of payload that follow.
    pub len: u64,
}

pub(crate) const fn broken(what: &'static str) -> StreamError {
    StreamError::Protocol {
        protocol: "WebSocket",
        what,
    }
}

/// Reads a head from the start of `bytes`: the head and its own length.
/// `None`: not all of it is there yet.
///
/// # Errors
/// Reserved bits or opcodes, a missing or forbidden mask, a control frame
/// that is long or fragmented, a length not in its shortest form.
pub fn decode(bytes: &[u8], role: Role) -> Result<Option<(Head, usize)>, StreamError> {
    let [first, second, rest @ ..] = bytes else {
        return Ok(None);
    };
    if first & 0x70 != 0 {
        return Err(broken("a reserved bit without an extension"));
    }
    let opcode = Opcode::from_bits(first & 0x0f)?;
    let fin = first & 0x80 != 0;
    let masked = second & 0x80 != 0;
    if masked != (role == Role::Server) {
        return Err(broken("clients mask their frames and servers do not"));
    }
    let short = second & 0x7f;
    let (len, rest, used) = match short {
        126 => match rest.split_first_chunk::<2>() {
            Some((len, rest)) => (u64::from(u16::from_be_bytes(*len)), rest, 4),
            None => return Ok(None),
        },
        127 => match rest.split_first_chunk::<8>() {
            Some((len, rest)) => (u64::from_be_bytes(*len), rest, 10),
            None => return Ok(None),
        },
        short => (u64::from(short), rest, 2),
    };
    let shortest = match short {
        126 => len >= 126,
        127 => len > u64::from(u16::MAX) && len >> 63 == 0,
        _ => true,
    };
    if !shortest {
        return Err(broken("a length that is not in its shortest form"));
    }
    if opcode.is_control() && (!fin || short > 125) {
        return Err(broken("a control frame that is fragmented or too long"));
    }
    let (mask, used) = if masked {
        match rest.first_chunk::<4>() {
            Some(mask) => (Some(*mask), used + 4),
            None => return Ok(None),
        }
    } else {
        (None, used)
    };
    let head = Head {
        fin,
        opcode,
        mask,
        len,
    };
    Ok(Some((head, used)))
}

/// Appends a head.
pub fn encode(head: &Head, out: &mut Vec<u8>) {
    out.push(if head.fin { 0x80 } else { 0 } | head.opcode.bits());
    let mask_bit = if head.mask.is_some() { 0x80 } else { 0 };
    match (
        u8::try_from(head.len).ok().filter(|len| *len < 126),
        u16::try_from(head.len),
    ) {
        (Some(len), _) => out.push(mask_bit | len),
        (None, Ok(len)) => {
            out.push(mask_bit | 126);
            out.extend_from_slice(&len.to_be_bytes());
        }
        (None, Err(_)) => {
            out.push(mask_bit | 127);
            out.extend_from_slice(&head.len.to_be_bytes());
        }
    }
    if let Some(mask) = head.mask {
        out.extend_from_slice(&mask);
    }
}

/// Masks or unmasks bytes that stand `offset` bytes into the payload.
pub fn apply_mask(mask: [u8; 4], offset: u64, bytes: &mut [u8]) {
    let shift = usize::from(offset.to_be_bytes()[7] & 3);
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte ^= mask[(shift + i) & 3];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_examples_of_the_rfc() {
        // Section 5.7: "Hello" unmasked and masked.
        let (head, used) = decode(&[0x81, 0x05], Role::Client).unwrap().unwrap();
        assert_eq!((head.opcode, head.len, used), (Opcode::Text, 5, 2));
        let masked = [
            0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
        ];
        let (head, used) = decode(&masked, Role::Server).unwrap().unwrap();
        let mut payload = masked[used..].to_vec();
        apply_mask(head.mask.unwrap(), 0, &mut payload);
        assert_eq!(payload, b"Hello");
    }

    #[test]
    fn what_the_rfc_forbids() {
        let bad: [(&[u8], Role); 8] = [
            (&[0xc1, 0x00], Role::Client),                           // reserved bit
            (&[0x83, 0x00], Role::Client),                           // reserved opcode
            (&[0x81, 0x00], Role::Server),                           // unmasked client
            (&[0x81, 0x80], Role::Client),                           // masked server
            (&[0x09, 0x00], Role::Client),                           // fragmented ping
            (&[0x88, 126, 0, 126], Role::Client),                    // long close
            (&[0x82, 126, 0, 125], Role::Client),                    // not shortest
            (&[0x82, 127, 0x80, 0, 0, 0, 0, 1, 0, 0], Role::Client), // sign bit
        ];
        for (bytes, role) in bad {
            assert!(decode(bytes, role).is_err(), "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_head_an_error_or_too_few(bytes in proptest::collection::vec(any::<u8>(), 0..20), server: bool) {
            let role = if server { Role::Server } else { Role::Client };
            match decode(&bytes, role) {
                Ok(Some((head, used))) => {
                    prop_assert!(used <= MAX_HEAD_BYTES && used <= bytes.len());
                    let mut again = Vec::new();
                    encode(&head, &mut again);
                    prop_assert_eq!(&again[..], &bytes[..used]);
                }
                Ok(None) => prop_assert!(bytes.len() < MAX_HEAD_BYTES),
                Err(_) => {}
            }
        }

        #[test]
        fn masking_in_pieces_is_masking_at_once(mask: [u8; 4], mut payload in proptest::collection::vec(any::<u8>(), 0..64), cut in 0usize..64) {
            let cut = cut.min(payload.len());
            let mut whole = payload.clone();
            apply_mask(mask, 0, &mut whole);
            let (left, right) = payload.split_at_mut(cut);
            apply_mask(mask, 0, left);
            apply_mask(mask, cut as u64, right);
            prop_assert_eq!(payload, whole);
        }
    }
}
