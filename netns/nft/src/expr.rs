//! Rule expressions: the fixed vocabulary of rkube's rules.
//!
//! Registers are the 4-byte ones, counted from 0; the numbers on the wire are
//! those nft itself would choose, so that `nft list` prints the rules.

use crate::attr::Writer;
use crate::object::{Family, Verdict, write_value};
use crate::uapi::{EXPR_DATA, EXPR_NAME, LIST_ELEM};
use crate::value::Value;

/// A 4-byte register, 0 to 15.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reg(pub u8);

impl Reg {
    /// nft addresses 16-byte aligned values by the old numbers 1 to 4 and
    /// the others by `NFT_REG32_00` (8) and up.
    fn wire(self) -> u32 {
        let n = u32::from(self.0);
        if n.is_multiple_of(4) {
            n / 4 + 1
        } else {
            8 + n
        }
    }
}

/// `nft_meta_keys`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Meta {
    /// Packet mark.
    Mark = 3,
    /// Input interface index.
    Iif = 4,
    /// Output interface index.
    Oif = 5,
    /// Network protocol family.
    NfProto = 15,
    /// Transport protocol.
    L4Proto = 16,
    /// Group of the input interface.
    IifGroup = 21,
    /// Group of the output interface.
    OifGroup = 22,
}

/// `nft_ct_keys`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Ct {
    /// State bits.
    State = 0,
    /// Status bits.
    Status = 2,
}

/// `IPS_DST_NAT` of `nf_conntrack_common.h`.
pub const CT_STATUS_DNAT: u32 = 1 << 5;
/// `NF_CT_STATE_BIT(IP_CT_ESTABLISHED)`, as nft calls it.
pub const CT_STATE_ESTABLISHED: u32 = 2;
/// `NF_CT_STATE_BIT(IP_CT_RELATED)`.
pub const CT_STATE_RELATED: u32 = 4;
/// `RTN_LOCAL`: the address type of this host's own addresses.
pub const ADDRTYPE_LOCAL: u32 = 2;

/// `nft_payload_bases`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Base {
    /// IP header.
    Network = 1,
    /// TCP, UDP or SCTP header.
    Transport = 2,
}

/// `nft_cmp_ops`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Cmp {
    /// Equal.
    Eq = 0,
    /// Not equal.
    Neq = 1,
}

/// How to refuse (`nft_reject_types`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// TCP reset.
    TcpReset,
    /// ICMP or ICMPv6 "port unreachable", by the packet's family.
    PortUnreachable,
    /// ICMP or ICMPv6 "administratively prohibited".
    AdminProhibited,
}

/// One expression of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Loads a meta key.
    Meta(Meta, Reg),
    /// Stores a register into a meta key.
    MetaSet(Meta, Reg),
    /// Loads a conntrack key.
    Ct(Ct, Reg),
    /// Loads `len` bytes at `offset` of a header.
    Payload {
        /// Which header.
        base: Base,
        /// Offset in bytes.
        offset: u32,
        /// Length in bytes.
        len: u32,
        /// Where to.
        to: Reg,
    },
    /// Ends the rule unless the comparison holds.
    Cmp(Reg, Cmp, Value),
    /// `register = (register & mask) ^ xor`.
    Bitwise {
        /// Which register.
        reg: Reg,
        /// Mask.
        mask: Value,
        /// Bits to flip, as long as the mask.
        xor: Value,
    },
    /// Loads a constant.
    Immediate(Reg, Value),
    /// Ends with a verdict.
    Verdict(Verdict),
    /// Ends the rule unless the key is in the set.
    Lookup {
        /// Named set.
        set: String,
        /// First register of the key.
        key: Reg,
        /// Ends the rule if the key *is* in the set.
        invert: bool,
    },
    /// Ends the rule unless the key is in the map; loads its data.
    MapLookup {
        /// Named map.
        set: String,
        /// First register of the key.
        key: Reg,
        /// First register of the data.
        to: Reg,
    },
    /// Takes the verdict of a verdict map; misses fall through.
    VerdictLookup {
        /// Named verdict map.
        set: String,
        /// First register of the key.
        key: Reg,
    },
    /// Changes the destination.
    Dnat {
        /// `Ip` or `Ip6`.
        family: Family,
        /// Register of the address.
        addr: Reg,
        /// Register of the port.
        port: Option<Reg>,
    },
    /// Changes the source to the outgoing interface's address.
    Masquerade {
        /// Choose source ports at random (`NF_NAT_RANGE_PROTO_RANDOM_FULLY`),
        /// which avoids losing connections to port races.
        fully_random: bool,
    },
    /// Counts packets and bytes.
    Counter,
    /// Type of the destination address by the routing table.
    FibDaddrType(Reg),
    /// Refuses.
    Reject(Reject),
    /// A slot from `offset` to `offset + modulus - 1`, by chance.
    NumgenRandom {
        /// Number of slots.
        modulus: u32,
        /// First slot.
        offset: u32,
        /// Where to.
        to: Reg,
    },
    /// Adds an element to a dynamic map, or makes an existing one with this
    /// key last as long again; its data stays then.
    Update {
        /// Named map.
        map: String,
        /// First register of the key.
        key: Reg,
        /// First register of the data.
        data: Reg,
        /// How long the element lasts, in seconds.
        timeout_seconds: u32,
    },
    /// The packet belongs to no connection.
    Notrack,
}

impl Expr {
    /// The packet belongs to this family.
    #[must_use]
    pub fn nfproto(family: Family) -> [Self; 2] {
        // repr(u8) discriminants are the NFPROTO numbers.
        [
            Self::Meta(Meta::NfProto, Reg(0)),
            Self::Cmp(Reg(0), Cmp::Eq, Value::new().field(&[family as u8])),
        ]
    }

    /// The input or output interface is (not) in a group.
    #[must_use]
    pub fn group(which: Meta, cmp: Cmp, group: u32) -> [Self; 2] {
        [
            Self::Meta(which, Reg(0)),
            Self::Cmp(Reg(0), cmp, Value::new().u32(group)),
        ]
    }

    /// An IPv4 address at `offset` of the header is (not) in a network.
    #[must_use]
    pub fn v4_in(
        offset: u32,
        net: std::net::Ipv4Addr,
        mask: std::net::Ipv4Addr,
        cmp: Cmp,
    ) -> [Self; 3] {
        [
            Self::Payload {
                base: Base::Network,
                offset,
                len: 4,
                to: Reg(0),
            },
            Self::Bitwise {
                reg: Reg(0),
                mask: Value::new().v4(mask),
                xor: Value::new().u32(0),
            },
            Self::Cmp(Reg(0), cmp, Value::new().v4(net)),
        ]
    }

    /// An IPv6 address at `offset` of the header is (not) in a network.
    #[must_use]
    pub fn v6_in(
        offset: u32,
        net: std::net::Ipv6Addr,
        mask: std::net::Ipv6Addr,
        cmp: Cmp,
    ) -> [Self; 3] {
        [
            Self::Payload {
                base: Base::Network,
                offset,
                len: 16,
                to: Reg(0),
            },
            Self::Bitwise {
                reg: Reg(0),
                mask: Value::new().v6(mask),
                xor: Value::new().field(&[0; 16]),
            },
            Self::Cmp(Reg(0), cmp, Value::new().v6(net)),
        ]
    }

    /// The destination is one of this host's own addresses.
    #[must_use]
    pub fn daddr_is_local() -> [Self; 2] {
        [
            Self::FibDaddrType(Reg(0)),
            Self::Cmp(Reg(0), Cmp::Eq, Value::new().u32(ADDRTYPE_LOCAL)),
        ]
    }

    /// The connection's destination was translated.
    #[must_use]
    pub fn ct_is_dnat() -> [Self; 3] {
        [
            Self::Ct(Ct::Status, Reg(0)),
            Self::Bitwise {
                reg: Reg(0),
                mask: Value::new().u32(CT_STATUS_DNAT),
                xor: Value::new().u32(0),
            },
            Self::Cmp(Reg(0), Cmp::Neq, Value::new().u32(0)),
        ]
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Meta(..) | Self::MetaSet(..) => "meta",
            Self::Ct(..) => "ct",
            Self::Payload { .. } => "payload",
            Self::Cmp(..) => "cmp",
            Self::Bitwise { .. } => "bitwise",
            Self::Immediate(..) | Self::Verdict(..) => "immediate",
            Self::Lookup { .. } | Self::MapLookup { .. } | Self::VerdictLookup { .. } => "lookup",
            Self::Dnat { .. } => "nat",
            Self::Masquerade { .. } => "masq",
            Self::Counter => "counter",
            Self::FibDaddrType(_) => "fib",
            Self::Reject(_) => "reject",
            Self::NumgenRandom { .. } => "numgen",
            Self::Update { .. } => "dynset",
            Self::Notrack => "notrack",
        }
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        w.nest(LIST_ELEM, |w| {
            w.string(EXPR_NAME, self.name());
            w.nest(EXPR_DATA, |w| self.write_data(w));
        });
    }

    // The numbers are the `NFTA_<EXPR>_*` attributes in header order.
    fn write_data(&self, w: &mut Writer) {
        match self {
            Self::Meta(key, to) => {
                w.be32(1, to.wire());
                w.be32(2, *key as u32);
            }
            Self::MetaSet(key, from) => {
                w.be32(2, *key as u32);
                w.be32(3, from.wire());
            }
            Self::Ct(key, to) => {
                w.be32(1, to.wire());
                w.be32(2, *key as u32);
            }
            Self::Payload {
                base,
                offset,
                len,
                to,
            } => {
                w.be32(1, to.wire());
                w.be32(2, *base as u32);
                w.be32(3, *offset);
                w.be32(4, *len);
            }
            Self::Cmp(reg, op, value) => {
                w.be32(1, reg.wire());
                w.be32(2, *op as u32);
                write_value(w, 3, value);
            }
            Self::Bitwise { reg, mask, xor } => {
                w.be32(1, reg.wire());
                w.be32(2, reg.wire());
                // At most 64, the size of the register file.
                w.be32(3, u32::try_from(mask.as_bytes().len()).unwrap_or(u32::MAX));
                write_value(w, 4, mask);
                write_value(w, 5, xor);
            }
            Self::Immediate(to, value) => {
                w.be32(1, to.wire());
                write_value(w, 2, value);
            }
            Self::Verdict(verdict) => {
                w.be32(1, 0);
                w.nest(2, |w| verdict.write(w));
            }
            Self::Lookup { set, key, invert } => {
                w.string(1, set);
                w.be32(2, key.wire());
                if *invert {
                    w.be32(5, 1);
                }
            }
            Self::MapLookup { set, key, to } => {
                w.string(1, set);
                w.be32(2, key.wire());
                w.be32(3, to.wire());
            }
            Self::VerdictLookup { set, key } => {
                w.string(1, set);
                w.be32(2, key.wire());
                w.be32(3, 0);
            }
            Self::Dnat { family, addr, port } => {
                w.be32(1, 1);
                w.be32(2, u32::from(*family as u8));
                w.be32(3, addr.wire());
                if let Some(port) = port {
                    w.be32(5, port.wire());
                }
            }
            Self::Masquerade { fully_random } => {
                if *fully_random {
                    // NF_NAT_RANGE_PROTO_RANDOM_FULLY (linux/netfilter/nf_nat.h).
                    w.be32(1, 1 << 4);
                }
            }
            Self::Counter => {}
            Self::FibDaddrType(to) => {
                w.be32(1, to.wire());
                // NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_DADDR.
                w.be32(2, 3);
                w.be32(3, 2);
            }
            Self::Reject(how) => {
                let (kind, code) = match how {
                    Reject::TcpReset => (1, 0),
                    Reject::PortUnreachable => (2, 1),
                    Reject::AdminProhibited => (2, 3),
                };
                w.be32(1, kind);
                w.attr(2, &[code]);
            }
            Self::NumgenRandom {
                modulus,
                offset,
                to,
            } => {
                w.be32(1, to.wire());
                w.be32(2, *modulus);
                // NFT_NG_RANDOM.
                w.be32(3, 1);
                if *offset != 0 {
                    w.be32(4, *offset);
                }
            }
            Self::Update {
                map,
                key,
                data,
                timeout_seconds,
            } => {
                w.string(1, map);
                // NFT_DYNSET_OP_UPDATE.
                w.be32(3, 1);
                w.be32(4, key.wire());
                w.be32(5, data.wire());
                // Milliseconds on the wire.
                w.attr(6, &(u64::from(*timeout_seconds) * 1000).to_be_bytes());
            }
            Self::Notrack => {}
        }
    }
}
