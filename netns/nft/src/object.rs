//! Tables, chains, sets and elements as plain values.

use crate::attr::Writer;
use crate::uapi;
use crate::value::{DataType, Value};

/// Address family of a table (`NFPROTO_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    /// IPv4 and IPv6 together.
    Inet = 1,
    /// IPv4.
    Ip = 2,
    /// IPv6.
    Ip6 = 10,
}

/// `NFT_TABLE_F_OWNER` (5.12): only the creating socket may change the table.
pub const TABLE_F_OWNER: u32 = 0x2;
/// `NFT_TABLE_F_PERSIST` (6.9): an owned table outlives its socket.
pub const TABLE_F_PERSIST: u32 = 0x4;

/// A table: family and name identify it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Family.
    pub family: Family,
    /// Name.
    pub name: String,
    /// `TABLE_F_*`.
    pub flags: u32,
    /// A comment of at most 127 bytes that `nft list` shows.
    pub comment: Option<String>,
}

/// Netfilter hook (`nf_inet_hooks`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// Before routing.
    Prerouting = 0,
    /// To this host.
    Input = 1,
    /// Through this host.
    Forward = 2,
    /// From this host.
    Output = 3,
    /// After routing.
    Postrouting = 4,
}

/// What a base chain is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// Accept and drop.
    Filter,
    /// Address translation; sees the first packet of a connection only.
    Nat,
    /// Reroutes after changes.
    Route,
}

/// A chain; with a hook it is a base chain (policy accept).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name.
    pub name: String,
    /// Type, hook and priority of a base chain.
    pub base: Option<(ChainKind, Hook, i32)>,
}

/// What a set maps to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetKind {
    /// A plain set.
    Set,
    /// Values of these types.
    Map(Vec<DataType>),
    /// Verdicts.
    VerdictMap,
}

/// A named set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Name.
    pub name: String,
    /// Types of the key's fields.
    pub key: Vec<DataType>,
    /// Data.
    pub kind: SetKind,
    /// Keys are ranges.
    pub interval: bool,
    /// Rules add elements ([`Expr::Update`](crate::Expr::Update)), which end
    /// by themselves.
    pub dynamic: bool,
    /// Upper bound of elements, if any.
    pub size: Option<u32>,
}

/// What a packet does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Let it pass this hook.
    Accept,
    /// Drop it.
    Drop,
    /// Back to the calling chain.
    Return,
    /// Into a chain, and back.
    Jump(String),
    /// Into a chain, not back.
    Goto(String),
}

impl Verdict {
    pub(crate) fn write(&self, w: &mut Writer) {
        // NF_ACCEPT, NF_DROP (linux/netfilter.h) and nft_verdicts.
        let (code, chain): (i32, Option<&str>) = match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
            Self::Return => (-5, None),
        };
        w.nest(uapi::DATA_VERDICT, |w| {
            w.attr(uapi::VERDICT_CODE, &code.to_be_bytes());
            if let Some(chain) = chain {
                w.string(uapi::VERDICT_CHAIN, chain);
            }
        });
    }
}

/// Data of an element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// None: the element of a plain set, or a deletion.
    None,
    /// A value.
    Value(Value),
    /// A verdict.
    Verdict(Verdict),
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// Key, or first key of a range.
    pub key: Value,
    /// Last key of a range in a concatenated interval set.
    pub key_end: Option<Value>,
    /// This element only ends the range before it (single-field interval
    /// sets hold the first key behind a range as an element of its own).
    pub interval_end: bool,
    /// Data.
    pub data: Data,
}

impl Element {
    /// An element of a plain set.
    #[must_use]
    pub fn key(key: Value) -> Self {
        Self {
            key,
            key_end: None,
            interval_end: false,
            data: Data::None,
        }
    }

    /// A key with a value.
    #[must_use]
    pub fn map(key: Value, data: Value) -> Self {
        Self {
            data: Data::Value(data),
            ..Self::key(key)
        }
    }

    /// A key with a verdict.
    #[must_use]
    pub fn verdict(key: Value, verdict: Verdict) -> Self {
        Self {
            data: Data::Verdict(verdict),
            ..Self::key(key)
        }
    }

    /// A range of concatenated keys, both ends included.
    #[must_use]
    pub fn range(from: Value, to: Value) -> Self {
        Self {
            key_end: Some(to),
            ..Self::key(from)
        }
    }

    /// The two elements of a single-field range; `behind` is the first key
    /// not in it.
    #[must_use]
    pub fn interval(from: Value, behind: Value) -> [Self; 2] {
        [
            Self::key(from),
            Self {
                interval_end: true,
                ..Self::key(behind)
            },
        ]
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        w.nest(uapi::LIST_ELEM, |w| {
            write_value(w, uapi::ELEM_KEY, &self.key);
            if let Some(end) = &self.key_end {
                write_value(w, uapi::ELEM_KEY_END, end);
            }
            if self.interval_end {
                w.be32(uapi::ELEM_FLAGS, uapi::ELEM_F_INTERVAL_END);
            }
            match &self.data {
                Data::None => {}
                Data::Value(value) => write_value(w, uapi::ELEM_DATA, value),
                Data::Verdict(verdict) => w.nest(uapi::ELEM_DATA, |w| verdict.write(w)),
            }
        });
    }
}

pub(crate) fn write_value(w: &mut Writer, kind: u16, value: &Value) {
    w.nest(kind, |w| w.attr(uapi::DATA_VALUE, value.as_bytes()));
}
