//! Bytes as instructions of a seccomp filter.

use crate::seccomp::Instruction;

/// Decodes the memory format of `struct sock_filter` (native byte order);
/// `None` when the length is no multiple of 8.
#[must_use]
pub fn instructions(bytes: &[u8]) -> Option<Vec<Instruction>> {
    if !bytes.len().is_multiple_of(8) {
        return None;
    }
    Some(
        bytes
            .chunks_exact(8)
            .map(|c| Instruction {
                code: u16::from_ne_bytes([c[0], c[1]]),
                jt: c[2],
                jf: c[3],
                k: u32::from_ne_bytes([c[4], c[5], c[6], c[7]]),
            })
            .collect(),
    )
}
