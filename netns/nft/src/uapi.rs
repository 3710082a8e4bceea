//! Numbers of `linux/netfilter/nf_tables.h` and `nfnetlink.h`.

pub(crate) const NFNL_MSG_BATCH_BEGIN: u16 = 16;
pub(crate) const NFNL_MSG_BATCH_END: u16 = 17;
pub(crate) const SUBSYS_CTNETLINK: u16 = 1;
pub(crate) const SUBSYS_NFTABLES: u16 = 10;

/// `nf_tables_msg_types`, with the subsystem in the high byte.
pub(crate) const fn msg(kind: u16) -> u16 {
    SUBSYS_NFTABLES << 8 | kind
}
pub(crate) const NEWTABLE: u16 = msg(0);
pub(crate) const GETTABLE: u16 = msg(1);
pub(crate) const DELTABLE: u16 = msg(2);
pub(crate) const NEWCHAIN: u16 = msg(3);
pub(crate) const GETCHAIN: u16 = msg(4);
pub(crate) const DELCHAIN: u16 = msg(5);
pub(crate) const NEWRULE: u16 = msg(6);
pub(crate) const GETRULE: u16 = msg(7);
pub(crate) const DELRULE: u16 = msg(8);
pub(crate) const NEWSET: u16 = msg(9);
pub(crate) const GETSET: u16 = msg(10);
pub(crate) const DELSET: u16 = msg(11);
pub(crate) const NEWSETELEM: u16 = msg(12);
pub(crate) const GETSETELEM: u16 = msg(13);
pub(crate) const DELSETELEM: u16 = msg(14);

pub(crate) const NEWGEN: u16 = msg(15);

pub(crate) const TABLE_NAME: u16 = 1;
pub(crate) const TABLE_FLAGS: u16 = 2;
pub(crate) const TABLE_USERDATA: u16 = 6;
pub(crate) const TABLE_OWNER: u16 = 7;

pub(crate) const CHAIN_TABLE: u16 = 1;
pub(crate) const CHAIN_NAME: u16 = 3;
pub(crate) const CHAIN_HOOK: u16 = 4;
pub(crate) const CHAIN_POLICY: u16 = 5;
pub(crate) const CHAIN_TYPE: u16 = 7;
pub(crate) const HOOK_HOOKNUM: u16 = 1;
pub(crate) const HOOK_PRIORITY: u16 = 2;

pub(crate) const RULE_TABLE: u16 = 1;
pub(crate) const RULE_CHAIN: u16 = 2;
pub(crate) const RULE_HANDLE: u16 = 3;
pub(crate) const RULE_EXPRESSIONS: u16 = 4;
pub(crate) const RULE_USERDATA: u16 = 7;
pub(crate) const LIST_ELEM: u16 = 1;
pub(crate) const EXPR_NAME: u16 = 1;
pub(crate) const EXPR_DATA: u16 = 2;

pub(crate) const SET_TABLE: u16 = 1;
pub(crate) const SET_NAME: u16 = 2;
pub(crate) const SET_FLAGS: u16 = 3;
pub(crate) const SET_KEY_TYPE: u16 = 4;
pub(crate) const SET_KEY_LEN: u16 = 5;
pub(crate) const SET_DATA_TYPE: u16 = 6;
pub(crate) const SET_DATA_LEN: u16 = 7;
pub(crate) const SET_DESC: u16 = 9;
pub(crate) const SET_ID: u16 = 10;
pub(crate) const SET_USERDATA: u16 = 13;
pub(crate) const SET_DESC_SIZE: u16 = 1;
pub(crate) const SET_DESC_CONCAT: u16 = 2;
pub(crate) const SET_FIELD_LEN: u16 = 1;
pub(crate) const SET_F_INTERVAL: u32 = 0x4;
pub(crate) const SET_F_MAP: u32 = 0x8;
pub(crate) const SET_F_TIMEOUT: u32 = 0x10;
pub(crate) const SET_F_EVAL: u32 = 0x20;
pub(crate) const SET_F_CONCAT: u32 = 0x80;
pub(crate) const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;

pub(crate) const ELEM_KEY: u16 = 1;
pub(crate) const ELEM_DATA: u16 = 2;
pub(crate) const ELEM_FLAGS: u16 = 3;
pub(crate) const ELEM_KEY_END: u16 = 10;
pub(crate) const ELEM_F_INTERVAL_END: u32 = 1;
pub(crate) const ELEM_LIST_TABLE: u16 = 1;
pub(crate) const ELEM_LIST_SET: u16 = 2;
pub(crate) const ELEM_LIST_ELEMENTS: u16 = 3;

pub(crate) const DATA_VALUE: u16 = 1;
pub(crate) const DATA_VERDICT: u16 = 2;
pub(crate) const VERDICT_CODE: u16 = 1;
pub(crate) const VERDICT_CHAIN: u16 = 2;
