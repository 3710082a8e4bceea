//! Reads back: which tables exist and what is in ours.

use crate::attr::{Reader, Writer};
use crate::netlink::{Error, F_DUMP, F_REQUEST, Reply, Socket};
use crate::object::Family;
use crate::uapi;

/// Bytes of `struct nfgenmsg`.
const GENMSG_BYTES: usize = 4;

/// A table as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableInfo {
    /// `NFPROTO_*`.
    pub family: u8,
    /// Name.
    pub name: String,
    /// `NFT_TABLE_F_*`.
    pub flags: u32,
    /// Netlink port of the owner, if a socket owns it now.
    pub owner: Option<u32>,
    /// Comment, if any.
    pub comment: Option<String>,
}

/// An element as the kernel has it: key bytes and data bytes (empty for
/// plain sets and verdicts).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElementInfo {
    /// Key.
    pub key: Vec<u8>,
    /// Data.
    pub data: Vec<u8>,
}

/// A kind of object inside a table, for [`names`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// Chains.
    Chain,
    /// Sets and maps.
    Set,
}

/// All tables of this network namespace.
///
/// # Errors
/// All of [`Error`].
pub fn tables(socket: &mut Socket) -> Result<Vec<TableInfo>, Error> {
    let replies = dump(socket, "list nftables tables", uapi::GETTABLE, 0, |_| {})?;
    Ok(replies.iter().filter_map(parse_table).collect())
}

/// The table with this family and name, if there is one.
///
/// # Errors
/// All of [`Error`].
pub fn table(socket: &mut Socket, family: Family, name: &str) -> Result<Option<TableInfo>, Error> {
    // repr(u8) discriminants are the NFPROTO numbers.
    Ok(tables(socket)?
        .into_iter()
        .find(|t| t.family == family as u8 && t.name == name))
}

/// Names of the chains or sets of a table.
///
/// # Errors
/// All of [`Error`].
pub fn names(
    socket: &mut Socket,
    family: Family,
    table: &str,
    object: Object,
) -> Result<Vec<String>, Error> {
    let (kind, table_attr, name_attr) = match object {
        Object::Chain => (uapi::GETCHAIN, uapi::CHAIN_TABLE, uapi::CHAIN_NAME),
        Object::Set => (uapi::GETSET, uapi::SET_TABLE, uapi::SET_NAME),
    };
    let what = format!("list objects of table {table}");
    let replies = dump(socket, &what, kind, family as u8, |w| {
        w.string(table_attr, table)
    })?;
    // The kernel filters sets by table but older ones do not filter chains.
    Ok(replies
        .iter()
        .filter_map(attrs)
        .filter(|a| a.get(table_attr).is_some_and(|t| t.text() == table))
        .filter_map(|a| Some(a.get(name_attr)?.text()))
        .collect())
}

/// Number of rules per chain name, in dump order: one entry per rule.
///
/// # Errors
/// All of [`Error`].
pub fn rule_chains(socket: &mut Socket, family: Family, table: &str) -> Result<Vec<String>, Error> {
    let what = format!("list rules of table {table}");
    let replies = dump(socket, &what, uapi::GETRULE, family as u8, |w| {
        w.string(uapi::RULE_TABLE, table)
    })?;
    Ok(replies
        .iter()
        .filter_map(attrs)
        .filter(|a| a.get(uapi::RULE_TABLE).is_some_and(|t| t.text() == table))
        .filter_map(|a| Some(a.get(uapi::RULE_CHAIN)?.text()))
        .collect())
}

/// All elements of a set.
///
/// # Errors
/// All of [`Error`]; ENOENT if table or set is missing.
pub fn elements(
    socket: &mut Socket,
    family: Family,
    table: &str,
    set: &str,
) -> Result<Vec<ElementInfo>, Error> {
    let what = format!("list elements of {table} {set}");
    let replies = dump(socket, &what, uapi::GETSETELEM, family as u8, |w| {
        w.string(uapi::ELEM_LIST_TABLE, table);
        w.string(uapi::ELEM_LIST_SET, set);
    })?;
    let value = |a: Option<crate::attr::Attr<'_>>| {
        a.and_then(|a| a.nested().get(uapi::DATA_VALUE))
            .map(|v| v.payload.to_vec())
            .unwrap_or_default()
    };
    Ok(replies
        .iter()
        .filter_map(attrs)
        .filter_map(|a| a.get(uapi::ELEM_LIST_ELEMENTS))
        .flat_map(|list| list.nested())
        .map(|element| ElementInfo {
            key: value(element.nested().get(uapi::ELEM_KEY)),
            data: value(element.nested().get(uapi::ELEM_DATA)),
        })
        .collect())
}

/// The tables that were changed since the last call, each with the port of
/// the socket that did it, on a socket of [`Socket::open_changes`].
///
/// # Errors
/// [`Error::Receive`]; ENOBUFS means that changes were missed.
pub fn changed_tables(socket: &mut Socket) -> Result<Vec<(u32, String)>, Error> {
    let changes = socket.changes()?;
    Ok(changes
        .iter()
        .filter(|(_, reply)| reply.kind >> 8 == uapi::SUBSYS_NFTABLES)
        // Every message begins with the table's name but the last of a
        // transaction, which tells the new generation.
        .filter(|(_, reply)| reply.kind != uapi::NEWGEN)
        .filter_map(|(port, reply)| Some((*port, attrs(reply)?.get(uapi::TABLE_NAME)?.text())))
        .collect())
}

fn dump(
    socket: &mut Socket,
    what: &str,
    kind: u16,
    family: u8,
    body: impl Fn(&mut Writer),
) -> Result<Vec<Reply>, Error> {
    socket.dump(what, |seq| {
        let mut w = Writer::new();
        w.message(kind, F_REQUEST | F_DUMP, seq, |w| {
            w.raw(&[family, 0, 0, 0]);
            body(w);
        });
        w.as_bytes().to_vec()
    })
}

fn attrs(reply: &Reply) -> Option<Reader<'_>> {
    reply.body.get(GENMSG_BYTES..).map(Reader::new)
}

fn parse_table(reply: &Reply) -> Option<TableInfo> {
    let attrs = attrs(reply)?;
    Some(TableInfo {
        family: *reply.body.first()?,
        name: attrs.get(uapi::TABLE_NAME)?.text(),
        flags: attrs
            .get(uapi::TABLE_FLAGS)
            .and_then(|a| a.be32())
            .unwrap_or(0),
        owner: attrs.get(uapi::TABLE_OWNER).and_then(|a| a.be32()),
        comment: attrs
            .get(uapi::TABLE_USERDATA)
            .and_then(|a| match a.payload {
                [0, len, text @ ..] => {
                    let text = text.get(..usize::from(*len).saturating_sub(1))?;
                    Some(String::from_utf8_lossy(text).into_owned())
                }
                _ => None,
            }),
    })
}
