//! Register values: what keys, data and comparisons are made of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The register file: 16 registers of 4 bytes (`NFT_REG32_COUNT`).
pub const VALUE_MAX_BYTES: usize = 64;

/// An nft data type. The numbers are nft's own (`enum datatypes`, its
/// `include/datatype.h`); the kernel stores them unread and `nft list` needs
/// them to print a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum DataType {
    /// A verdict; only as map data.
    Verdict = 1,
    /// `ipv4_addr`.
    Ipv4Addr = 7,
    /// `ipv6_addr`.
    Ipv6Addr = 8,
    /// `inet_proto`.
    InetProto = 12,
    /// `inet_service`, a port in network order.
    InetService = 13,
    /// `mark`, host order.
    Mark = 19,
    /// `iface_index`, host order.
    IfIndex = 20,
    /// `devgroup`, host order.
    DevGroup = 35,
}

/// nft packs one data type into 6 bits of a concatenation's type number.
const TYPE_BITS: u32 = 6;

impl DataType {
    /// Bytes of one value, unpadded.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        match self {
            Self::InetProto => 1,
            Self::InetService => 2,
            Self::Verdict | Self::Ipv4Addr | Self::Mark | Self::IfIndex | Self::DevGroup => 4,
            Self::Ipv6Addr => 16,
        }
    }

    pub(crate) const fn is_host_order(self) -> bool {
        matches!(self, Self::Mark | Self::IfIndex | Self::DevGroup)
    }

    /// The type number of a concatenation.
    pub(crate) fn concat_number(types: &[Self]) -> u32 {
        // The enum is repr(u32) with small numbers.
        types
            .iter()
            .fold(0, |number, kind| number << TYPE_BITS | *kind as u32)
    }

    /// Key or data length: a lone value is unpadded, the fields of a
    /// concatenation fill whole registers.
    pub(crate) fn concat_bytes(types: &[Self]) -> u32 {
        match types {
            [one] => one.bytes(),
            many => many
                .iter()
                .map(|kind| kind.bytes().next_multiple_of(4))
                .sum(),
        }
    }
}

/// Up to 64 bytes as they stand in registers. Copied, never allocated.
#[derive(Debug, Clone, Copy)]
pub struct Value {
    bytes: [u8; VALUE_MAX_BYTES],
    len: usize,
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Value {}

impl Default for Value {
    fn default() -> Self {
        Self {
            bytes: [0; VALUE_MAX_BYTES],
            len: 0,
        }
    }
}

impl Value {
    /// An empty value; append fields with the methods below.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends one field, starting at a register boundary.
    ///
    /// # Panics
    /// When the fields exceed the register file; the shapes of our keys are
    /// fixed in the code.
    #[must_use]
    pub fn field(mut self, bytes: &[u8]) -> Self {
        let start = self.len.next_multiple_of(4);
        let end = start + bytes.len();
        assert!(
            end <= VALUE_MAX_BYTES,
            "a key of {end} bytes exceeds the register file"
        );
        self.bytes[start..end].copy_from_slice(bytes);
        self.len = end;
        self
    }

    /// Pads the last field to a whole register, as concatenations are.
    #[must_use]
    pub fn padded(mut self) -> Self {
        self.len = self.len.next_multiple_of(4);
        self
    }

    /// Appends an IPv4 address.
    #[must_use]
    pub fn v4(self, addr: Ipv4Addr) -> Self {
        self.field(&addr.octets())
    }

    /// Appends an IPv6 address.
    #[must_use]
    pub fn v6(self, addr: Ipv6Addr) -> Self {
        self.field(&addr.octets())
    }

    /// Appends an address of either family.
    #[must_use]
    pub fn ip(self, addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(addr) => self.v4(addr),
            IpAddr::V6(addr) => self.v6(addr),
        }
    }

    /// Appends an IP protocol number.
    #[must_use]
    pub fn proto(self, proto: u8) -> Self {
        self.field(&[proto])
    }

    /// Appends a port.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        self.field(&port.to_be_bytes())
    }

    /// Appends a host-order u32 (mark, device group, ct state).
    #[must_use]
    pub fn u32(self, value: u32) -> Self {
        self.field(&value.to_ne_bytes())
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_start_at_registers() {
        let key = Value::new().proto(6).port(0x1234).padded();
        assert_eq!(key.as_bytes(), [6, 0, 0, 0, 0x12, 0x34, 0, 0]);
        assert_eq!(Value::new().port(80).as_bytes(), [0, 80]);
    }

    #[test]
    fn concatenations_have_nfts_numbers() {
        // `nft --debug=netlink` shows inet_proto . inet_service as 12<<6|13.
        assert_eq!(
            DataType::concat_number(&[DataType::InetProto, DataType::InetService]),
            781
        );
        assert_eq!(
            DataType::concat_bytes(&[DataType::InetProto, DataType::InetService]),
            8
        );
        assert_eq!(DataType::concat_bytes(&[DataType::InetService]), 2);
    }
}
