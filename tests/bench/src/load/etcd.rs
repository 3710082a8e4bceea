//! What is asked of etcd, as `etcdserverpb/rpc.proto` has it: a field is its
//! number and wire type in one byte, then the length where it is bytes.

use bytes::{BufMut, Bytes, BytesMut};

/// The media type of gRPC (its `PROTOCOL-HTTP2.md`).
pub(super) const CONTENT_TYPE: &str = "application/grpc";
/// `KV.Put`.
pub(super) const PUT: &str = "/etcdserverpb.KV/Put";
/// `KV.Range`.
pub(super) const RANGE: &str = "/etcdserverpb.KV/Range";
/// `Watch.Watch`.
pub(super) const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// A message as gRPC frames it: not compressed, its length, itself.
pub(super) fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

fn field(message: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    /// The wire type of what has a length (protobuf's encoding).
    const LENGTH: u8 = 2;
    message.push(number << 3 | LENGTH);
    let mut length = bytes.len();
    while length >= 0x80 {
        message.push(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
        length >>= 7;
    }
    message.push(u8::try_from(length).unwrap_or(0));
    message.extend_from_slice(bytes);
}

/// `PutRequest`: key 1, value 2.
pub(super) fn put(key: &str, value: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    field(&mut message, 1, key.as_bytes());
    field(&mut message, 2, value);
    message
}

/// `RangeRequest` of one key: key 1.
pub(super) fn range(key: &str) -> Vec<u8> {
    let mut message = Vec::new();
    field(&mut message, 1, key.as_bytes());
    message
}

/// `WatchRequest` with create_request 1: key 1, range_end 2, of all keys that
/// begin so. The prefix does not end with the highest byte.
pub(super) fn watch(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    let mut create = Vec::new();
    field(&mut create, 1, prefix.as_bytes());
    field(&mut create, 2, &end);
    let mut message = Vec::new();
    field(&mut message, 1, &create);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_protobuf_in_a_frame() {
        assert_eq!(put("k", b"vv"), b"\x0a\x01k\x12\x02vv");
        assert_eq!(watch("a/"), b"\x0a\x08\x0a\x02a/\x12\x02a0");
        assert_eq!(put("k", &[7; 300])[3..6], [0x12, 0xac, 0x02]);
        assert_eq!(&framed(b"xy")[..], b"\0\0\0\0\x02xy");
    }
}
