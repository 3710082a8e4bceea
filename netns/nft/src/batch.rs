//! A transaction: many messages, one `sendmsg`, all or nothing.

use crate::attr::Writer;
use crate::expr::Expr;
use crate::netlink::{Error, F_ACK, F_APPEND, F_CREATE, F_EXCL, F_REQUEST, Socket};
use crate::object::{Chain, ChainKind, Element, Family, Set, SetKind, Table};
use crate::uapi;
use crate::value::DataType;

/// An element list is one attribute with a u16 length; a new message starts
/// once this many bytes are in one, which leaves room for the largest element
/// (two keys and a value of 64 bytes).
const ELEMENT_LIST_SPLIT_BYTES: usize = 60_000;
/// Longest comment `nft` reads back (`NFTNL_UDATA_COMMENT_MAXLEN` is 128 with NUL).
const COMMENT_MAX_BYTES: usize = 127;

/// Messages to be applied together. Sequence numbers are given on commit.
#[derive(Debug)]
pub struct Batch {
    family: Family,
    table: String,
    writer: Writer,
    /// What each message does, for errors; index is the sequence offset - 1.
    what: Vec<String>,
}

impl Batch {
    /// A transaction on one table. Messages of other tables need a batch of
    /// their own.
    #[must_use]
    pub fn new(family: Family, table: &str) -> Self {
        let mut batch = Self {
            family,
            table: table.to_owned(),
            writer: Writer::new(),
            what: Vec::new(),
        };
        batch.frame(uapi::NFNL_MSG_BATCH_BEGIN);
        batch
    }

    /// Number of messages so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.what.len()
    }

    /// True if a commit would do nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.what.is_empty()
    }

    fn frame(&mut self, kind: u16) {
        // struct nfgenmsg: AF_UNSPEC, version 0, res_id = the subsystem.
        let [high, low] = uapi::SUBSYS_NFTABLES.to_be_bytes();
        self.writer
            .message(kind, F_REQUEST, 0, |w| w.raw(&[0, 0, high, low]));
    }

    fn push(&mut self, what: String, kind: u16, flags: u16, body: impl FnOnce(&mut Writer, &str)) {
        self.what.push(what);
        // repr(u8) discriminants are the NFPROTO numbers.
        let family = self.family as u8;
        let table = &self.table;
        self.writer.message(kind, F_REQUEST | flags, 0, |w| {
            w.raw(&[family, 0, 0, 0]);
            body(w, table);
        });
    }

    /// Adds the table, or takes over an existing one with equal flags.
    pub fn add_table(&mut self, table: &Table) -> &mut Self {
        let what = format!("add table {}", table.name);
        self.push(what, uapi::NEWTABLE, F_CREATE, |w, name| {
            w.string(uapi::TABLE_NAME, name);
            w.be32(uapi::TABLE_FLAGS, table.flags);
            if let Some(comment) = &table.comment {
                w.attr(uapi::TABLE_USERDATA, &comment_userdata(comment));
            }
        });
        self
    }

    /// Deletes the table with everything in it.
    pub fn delete_table(&mut self) -> &mut Self {
        let what = format!("delete table {}", self.table);
        self.push(what, uapi::DELTABLE, 0, |w, name| {
            w.string(uapi::TABLE_NAME, name)
        });
        self
    }

    /// Adds a chain unless it exists.
    pub fn add_chain(&mut self, chain: &Chain) -> &mut Self {
        let what = format!("add chain {} {}", self.table, chain.name);
        self.push(what, uapi::NEWCHAIN, F_CREATE, |w, table| {
            w.string(uapi::CHAIN_TABLE, table);
            w.string(uapi::CHAIN_NAME, &chain.name);
            if let Some((kind, hook, priority)) = chain.base {
                w.nest(uapi::CHAIN_HOOK, |w| {
                    w.be32(uapi::HOOK_HOOKNUM, hook as u32);
                    w.attr(uapi::HOOK_PRIORITY, &priority.to_be_bytes());
                });
                // NF_ACCEPT.
                w.be32(uapi::CHAIN_POLICY, 1);
                w.string(
                    uapi::CHAIN_TYPE,
                    match kind {
                        ChainKind::Filter => "filter",
                        ChainKind::Nat => "nat",
                        ChainKind::Route => "route",
                    },
                );
            }
        });
        self
    }

    /// Deletes an empty, unused chain.
    pub fn delete_chain(&mut self, chain: &str) -> &mut Self {
        let what = format!("delete chain {} {chain}", self.table);
        self.push(what, uapi::DELCHAIN, 0, |w, table| {
            w.string(uapi::CHAIN_TABLE, table);
            w.string(uapi::CHAIN_NAME, chain);
        });
        self
    }

    /// Appends a rule to a chain.
    pub fn add_rule(&mut self, chain: &str, exprs: &[Expr], comment: Option<&str>) -> &mut Self {
        let what = format!("add rule {} {chain}", self.table);
        self.push(what, uapi::NEWRULE, F_CREATE | F_APPEND, |w, table| {
            w.string(uapi::RULE_TABLE, table);
            w.string(uapi::RULE_CHAIN, chain);
            w.nest(uapi::RULE_EXPRESSIONS, |w| {
                exprs.iter().for_each(|expr| expr.write(w))
            });
            if let Some(comment) = comment {
                w.attr(uapi::RULE_USERDATA, &comment_userdata(comment));
            }
        });
        self
    }

    /// Deletes one rule by handle, or all rules of a chain.
    pub fn delete_rules(&mut self, chain: &str, handle: Option<u64>) -> &mut Self {
        let what = format!("delete rules of {} {chain}", self.table);
        self.push(what, uapi::DELRULE, 0, |w, table| {
            w.string(uapi::RULE_TABLE, table);
            w.string(uapi::RULE_CHAIN, chain);
            if let Some(handle) = handle {
                w.attr(uapi::RULE_HANDLE, &handle.to_be_bytes());
            }
        });
        self
    }

    /// Adds a set or map unless it exists.
    pub fn add_set(&mut self, set: &Set) -> &mut Self {
        let what = format!("add set {} {}", self.table, set.name);
        // Any number unique in the batch will do; the kernel wants one.
        let id = u32::try_from(self.what.len()).unwrap_or(u32::MAX);
        self.push(what, uapi::NEWSET, F_CREATE, |w, table| {
            write_set(w, table, set, id)
        });
        self
    }

    /// Deletes a set that no rule uses.
    pub fn delete_set(&mut self, set: &str) -> &mut Self {
        let what = format!("delete set {} {set}", self.table);
        self.push(what, uapi::DELSET, 0, |w, table| {
            w.string(uapi::SET_TABLE, table);
            w.string(uapi::SET_NAME, set);
        });
        self
    }

    /// Adds elements; one that exists with other data refuses the batch.
    pub fn add_elements<'a>(
        &mut self,
        set: &str,
        elements: impl IntoIterator<Item = &'a Element>,
    ) -> &mut Self {
        self.elements("add", uapi::NEWSETELEM, F_CREATE, set, elements)
    }

    /// Adds elements; one that exists at all refuses the batch (EEXIST).
    pub fn create_elements<'a>(
        &mut self,
        set: &str,
        elements: impl IntoIterator<Item = &'a Element>,
    ) -> &mut Self {
        self.elements("create", uapi::NEWSETELEM, F_CREATE | F_EXCL, set, elements)
    }

    /// Deletes elements; a missing one refuses the batch (ENOENT).
    pub fn delete_elements<'a>(
        &mut self,
        set: &str,
        elements: impl IntoIterator<Item = &'a Element>,
    ) -> &mut Self {
        self.elements("delete", uapi::DELSETELEM, 0, set, elements)
    }

    /// Deletes all elements of a set.
    pub fn flush_set(&mut self, set: &str) -> &mut Self {
        let what = format!("flush set {} {set}", self.table);
        self.push(what, uapi::DELSETELEM, 0, |w, table| {
            w.string(uapi::ELEM_LIST_TABLE, table);
            w.string(uapi::ELEM_LIST_SET, set);
        });
        self
    }

    fn elements<'a>(
        &mut self,
        verb: &str,
        kind: u16,
        flags: u16,
        set: &str,
        elements: impl IntoIterator<Item = &'a Element>,
    ) -> &mut Self {
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            let what = format!("{verb} elements of {} {set}", self.table);
            self.push(what, kind, flags, |w, table| {
                w.string(uapi::ELEM_LIST_TABLE, table);
                w.string(uapi::ELEM_LIST_SET, set);
                let start = w.len();
                w.nest(uapi::ELEM_LIST_ELEMENTS, |w| {
                    while w.len() - start < ELEMENT_LIST_SPLIT_BYTES {
                        let Some(element) = elements.next() else {
                            break;
                        };
                        element.write(w);
                    }
                });
            });
        }
        self
    }

    /// Sends the batch and waits for the kernel's verdict on all of it. An
    /// empty batch does nothing.
    ///
    /// # Errors
    /// [`Error::Refused`] names the first refused message; nothing of the
    /// batch was applied then.
    pub fn commit(mut self, socket: &mut Socket) -> Result<(), Error> {
        if self.is_empty() {
            return Ok(());
        }
        self.frame(uapi::NFNL_MSG_BATCH_END);
        let all = || {
            format!(
                "nftables batch of {} messages on table {}",
                self.what.len(),
                self.table
            )
        };
        if self.writer.overflowed() {
            return Err(Error::TooLong { what: all() });
        }
        let count = u32::try_from(self.what.len()).map_err(|_| Error::TooLong { what: all() })?;
        let first = socket.reserve_seq(count.saturating_add(2));
        let mut bytes = self.writer.as_bytes().to_vec();
        number(&mut bytes, first, count);
        // BEGIN has `first`, the last real message `first + count`.
        let answer = socket.exchange(&all(), &bytes, first, first + count)?;
        let Some((seq, source)) = answer.refused.into_iter().next() else {
            return Ok(());
        };
        let index = usize::try_from(seq - first)
            .ok()
            .and_then(|i| i.checked_sub(1));
        let what = index
            .and_then(|i| self.what.get(i).cloned())
            .unwrap_or_else(all);
        Err(Error::Refused { what, source })
    }
}

/// Numbers the messages of a batch and asks for an acknowledgement of the
/// last real one: earlier messages answer only if refused.
fn number(bytes: &mut [u8], first: u32, count: u32) {
    let mut rest = bytes;
    let mut seq = first;
    while let Some(len) = rest.first_chunk::<4>() {
        // Written by Writer::message from a buffer length.
        let len = usize::try_from(u32::from_ne_bytes(*len))
            .unwrap_or(usize::MAX)
            .next_multiple_of(4);
        if seq == first + count {
            let flags = u16::from_ne_bytes([rest[6], rest[7]]) | F_ACK;
            rest[6..8].copy_from_slice(&flags.to_ne_bytes());
        }
        rest[8..12].copy_from_slice(&seq.to_ne_bytes());
        seq += 1;
        rest = rest.split_at_mut(len).1;
    }
}

fn write_set(w: &mut Writer, table: &str, set: &Set, id: u32) {
    let concat = set.key.len() > 1;
    let mut flags = 0;
    if set.interval {
        flags |= uapi::SET_F_INTERVAL;
        if concat {
            flags |= uapi::SET_F_CONCAT;
        }
    }
    if set.kind != SetKind::Set {
        flags |= uapi::SET_F_MAP;
    }
    if set.dynamic {
        flags |= uapi::SET_F_TIMEOUT | uapi::SET_F_EVAL;
    }
    w.string(uapi::SET_TABLE, table);
    w.string(uapi::SET_NAME, &set.name);
    w.be32(uapi::SET_FLAGS, flags);
    w.be32(uapi::SET_KEY_TYPE, DataType::concat_number(&set.key));
    w.be32(uapi::SET_KEY_LEN, DataType::concat_bytes(&set.key));
    match &set.kind {
        SetKind::Set => {}
        SetKind::Map(data) => {
            w.be32(uapi::SET_DATA_TYPE, DataType::concat_number(data));
            w.be32(uapi::SET_DATA_LEN, DataType::concat_bytes(data));
        }
        SetKind::VerdictMap => w.be32(uapi::SET_DATA_TYPE, uapi::DATA_TYPE_VERDICT),
    }
    if set.size.is_some() || (set.interval && concat) {
        w.nest(uapi::SET_DESC, |w| {
            if let Some(size) = set.size {
                w.be32(uapi::SET_DESC_SIZE, size);
            }
            if set.interval && concat {
                w.nest(uapi::SET_DESC_CONCAT, |w| {
                    for field in &set.key {
                        w.nest(uapi::LIST_ELEM, |w| {
                            w.be32(uapi::SET_FIELD_LEN, field.bytes())
                        });
                    }
                });
            }
        });
    }
    w.be32(uapi::SET_ID, id);
    let mut byte_order = byte_order_userdata(0, &set.key);
    if let SetKind::Map(data) = &set.kind {
        byte_order.extend(byte_order_userdata(1, data));
    }
    w.attr(uapi::SET_USERDATA, &byte_order);
}

/// nft's own user data: type 0 is the key's byte order, type 1 the data's;
/// without it `nft list` prints host-order numbers swapped.
fn byte_order_userdata(kind: u8, types: &[DataType]) -> Vec<u8> {
    // `enum byteorder` of nft: 1 is host order, 2 is big endian.
    let host = types.len() == 1 && types[0].is_host_order();
    let order: u32 = if host { 1 } else { 2 };
    [&[kind, 4][..], &order.to_ne_bytes()].concat()
}

/// nft's own user data: type 0 (comment), length, text with NUL.
fn comment_userdata(comment: &str) -> Vec<u8> {
    let mut end = comment.len().min(COMMENT_MAX_BYTES);
    while !comment.is_char_boundary(end) {
        end -= 1;
    }
    let text = &comment.as_bytes()[..end];
    // At most 128.
    let len = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    [&[0, len], text, &[0]].concat()
}
