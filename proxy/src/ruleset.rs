//! The nftables table: constant rules over maps, and a chain for each way to
//! choose among endpoints. Services add and remove elements, never rules.
//!
//! ```text
//! prerouting ─ from a pod ──────────────► services ─ by address ──► choose-N
//!            └ from elsewhere ► outside ►     │      by node port ► node-choose-N
//! output ─────────────────────────────────────┘
//!                                  choose-N: dnat by (front, random slot)
//!                                  stay-N-T: the client's endpoint, or a new one
//! ```
//!
//! A packet from elsewhere that may leave to another node gets the masquerade
//! bit in its mark, which postrouting takes off again. Where clients stay at
//! an endpoint its number travels in the mark from one rule to the next,
//! since no printable rule can hand it over otherwise.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rkube_nft::expr::{Base, Cmp, Ct, Meta, Reg, Reject};
use rkube_nft::{
    Batch, Chain, ChainKind, DataType, Expr, Family, Hook, Set, SetKind, Table, Value, Verdict,
};

use crate::maps::{FAMILIES, Fields, Map};
use crate::model::{Choice, LOCAL_SLOT_OFFSET};

// Priorities of linux/netfilter_ipv4.h: NF_IP_PRI_RAW, _NAT_DST, _FILTER,
// _NAT_SRC. One before the pod network's own chains.
const PRIORITY_RAW: i32 = -300;
const PRIORITY_DSTNAT: i32 = -101;
const PRIORITY_FILTER: i32 = 0;
const PRIORITY_SRCNAT: i32 = 99;

/// `NF_CT_STATE_BIT(IP_CT_NEW)`, nft's `ct state new`.
const CT_STATE_NEW: u32 = 8;
/// Most clients of all fronts with affinity, in elements (about 100 bytes each).
pub const CLIENTS_MAX_COUNT: u32 = 1 << 18;

/// What the constant part depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Group of the links of this node's pods.
    pub pod_group: u32,
    /// The mark's bit for "masquerade".
    pub masquerade_bit: u32,
    /// Ranges of Service addresses: what nobody has is dropped.
    pub service_ranges: Vec<IpNet>,
    /// Service addresses that this node answers itself.
    pub answered: Vec<IpAddr>,
}

/// Replaces the table, whatever is in it, by the constant rules.
pub fn install(batch: &mut Batch, table: &Table, facts: &Facts) {
    // Added first so that deleting cannot miss; all in one transaction.
    batch.add_table(table).delete_table().add_table(table);
    for fields in FAMILIES {
        for map in Map::ALL {
            batch.add_set(&set(map, fields));
        }
    }
    let base = |kind, hook, priority| Some((kind, hook, priority));
    for (name, base) in [
        (
            "prerouting",
            base(ChainKind::Nat, Hook::Prerouting, PRIORITY_DSTNAT),
        ),
        (
            "output",
            base(ChainKind::Nat, Hook::Output, PRIORITY_DSTNAT),
        ),
        (
            "postrouting",
            base(ChainKind::Nat, Hook::Postrouting, PRIORITY_SRCNAT),
        ),
        (
            "filter-input",
            base(ChainKind::Filter, Hook::Input, PRIORITY_FILTER),
        ),
        (
            "filter-forward",
            base(ChainKind::Filter, Hook::Forward, PRIORITY_FILTER),
        ),
        (
            "filter-output",
            base(ChainKind::Filter, Hook::Output, PRIORITY_FILTER),
        ),
        ("services", None),
        ("outside", None),
        ("refuse", None),
        ("reject", None),
    ] {
        let name = name.to_owned();
        batch.add_chain(&Chain { name, base });
    }
    reject_rules(batch);
    refuse_rules(batch, facts);
    services_rules(batch);
    outside_rules(batch);
    hook_rules(batch, facts);
    masquerade_rules(batch, facts);
    if !facts.answered.is_empty() {
        untracked_rules(batch, &facts.answered);
    }
}

fn set(map: Map, fields: &Fields) -> Set {
    let (key, data) = map.types(fields);
    Set {
        name: map.name(fields),
        kind: match data {
            None => SetKind::Set,
            Some([DataType::Verdict]) => SetKind::VerdictMap,
            Some(types) => SetKind::Map(types.to_vec()),
        },
        key,
        interval: map == Map::Sources,
        dynamic: map.is_dynamic(),
        size: map.is_dynamic().then_some(CLIENTS_MAX_COUNT),
    }
}

/// Expressions of one rule, written one after the other.
#[derive(Default)]
struct Rule(Vec<Expr>);

impl Rule {
    fn new() -> Self {
        Self::default()
    }

    fn of(fields: &Fields) -> Self {
        Self::new().with(Expr::nfproto(fields.family))
    }

    fn with(mut self, exprs: impl IntoIterator<Item = Expr>) -> Self {
        self.0.extend(exprs);
        self
    }

    fn saddr(self, fields: &Fields, at: u8) -> Self {
        self.address(fields.saddr, fields, at)
    }

    fn daddr(self, fields: &Fields, at: u8) -> Self {
        self.address(fields.daddr, fields, at)
    }

    fn address(self, offset: u32, fields: &Fields, at: u8) -> Self {
        self.with([Expr::Payload {
            base: Base::Network,
            offset,
            len: fields.bytes,
            to: Reg(at),
        }])
    }

    /// Protocol and destination port.
    fn port(self, at: u8) -> Self {
        self.with([
            Expr::Meta(Meta::L4Proto, Reg(at)),
            Expr::Payload {
                base: Base::Transport,
                offset: 2,
                len: 2,
                to: Reg(at + 1),
            },
        ])
    }

    /// The front as a key from register 0 on; answers the register behind it.
    fn front(self, fields: &Fields, node: bool) -> (Self, u8) {
        if node {
            (self.port(0), 2)
        } else {
            (self.daddr(fields, 0).port(fields.words), fields.words + 2)
        }
    }

    fn lookup(self, map: Map, fields: &Fields, invert: bool) -> Self {
        self.with([Expr::Lookup {
            set: map.name(fields),
            key: Reg(0),
            invert,
        }])
    }

    fn map(self, map: Map, fields: &Fields) -> Self {
        self.with([Expr::MapLookup {
            set: map.name(fields),
            key: Reg(0),
            to: Reg(0),
        }])
    }

    fn verdicts(self, map: Map, fields: &Fields) -> Self {
        self.with([Expr::VerdictLookup {
            set: map.name(fields),
            key: Reg(0),
        }])
    }

    fn dnat(self, fields: &Fields) -> Self {
        self.with([Expr::Dnat {
            family: fields.family,
            addr: Reg(0),
            port: Some(Reg(fields.words)),
        }])
    }

    fn verdict(self, verdict: Verdict) -> Self {
        self.with([Expr::Verdict(verdict)])
    }

    fn jump(self, chain: &str) -> Self {
        self.verdict(Verdict::Jump(chain.to_owned()))
    }

    /// To the node itself, and not over loopback.
    fn at_node(self, fields: &Fields) -> Self {
        let rule = match fields.family {
            Family::Ip6 => {
                let lo = Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128);
                self.with(Expr::v6_in(
                    fields.daddr,
                    lo.network(),
                    lo.netmask(),
                    Cmp::Neq,
                ))
            }
            _ => self.with(loopback(fields.daddr, Cmp::Neq)),
        };
        rule.with(Expr::daddr_is_local())
    }

    fn add(self, batch: &mut Batch, chain: &str, comment: Option<&str>) {
        batch.add_rule(chain, &self.0, comment);
    }
}

fn loopback(offset: u32, cmp: Cmp) -> [Expr; 3] {
    let lo = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
    Expr::v4_in(offset, lo.network(), lo.netmask(), cmp)
}

/// Sets and clears bits of the mark.
fn change_mark(clear: u32, flip: u32) -> [Expr; 3] {
    [
        Expr::Meta(Meta::Mark, Reg(0)),
        Expr::Bitwise {
            reg: Reg(0),
            mask: Value::new().u32(!clear),
            xor: Value::new().u32(flip),
        },
        Expr::MetaSet(Meta::Mark, Reg(0)),
    ]
}

fn reject_rules(batch: &mut Batch) {
    let tcp = Value::new().proto(6);
    Rule::new()
        .with([
            Expr::Meta(Meta::L4Proto, Reg(0)),
            Expr::Cmp(Reg(0), Cmp::Eq, tcp),
            Expr::Reject(Reject::TcpReset),
        ])
        .add(batch, "reject", None);
    Rule::new()
        .with([Expr::Reject(Reject::PortUnreachable)])
        .add(batch, "reject", None);
}

fn refuse_rules(batch: &mut Batch, facts: &Facts) {
    let reject = || Verdict::Goto("reject".to_owned());
    for fields in FAMILIES {
        let (rule, _) = Rule::of(fields).front(fields, false);
        rule.lookup(Map::Refused, fields, false)
            .verdict(reject())
            .add(batch, "refuse", Some("Services without endpoints"));
        let (rule, _) = Rule::of(fields).at_node(fields).front(fields, true);
        rule.lookup(Map::NodeRefused, fields, false)
            .verdict(reject())
            .add(batch, "refuse", None);
        Rule::of(fields)
            .daddr(fields, 0)
            .lookup(Map::Known, fields, false)
            .verdict(reject())
            .add(batch, "refuse", Some("ports that a Service has not"));
    }
    for range in &facts.service_ranges {
        let fields = FAMILIES[usize::from(range.addr().is_ipv6())];
        let inside = match range {
            IpNet::V4(net) => Expr::v4_in(fields.daddr, net.network(), net.netmask(), Cmp::Eq),
            IpNet::V6(net) => Expr::v6_in(fields.daddr, net.network(), net.netmask(), Cmp::Eq),
        };
        Rule::of(fields).with(inside).verdict(Verdict::Drop).add(
            batch,
            "refuse",
            Some("addresses that no Service has"),
        );
    }
}

fn services_rules(batch: &mut Batch) {
    for fields in FAMILIES {
        let (rule, behind) = Rule::of(fields).front(fields, false);
        rule.saddr(fields, behind)
            .lookup(Map::Guarded, fields, false)
            .lookup(Map::Sources, fields, true)
            .verdict(Verdict::Drop)
            .add(batch, "services", Some("loadBalancerSourceRanges"));
        let (rule, _) = Rule::of(fields).front(fields, false);
        rule.verdicts(Map::Fronts, fields)
            .add(batch, "services", None);
        let (rule, _) = Rule::of(fields).at_node(fields).front(fields, true);
        rule.verdicts(Map::NodePorts, fields)
            .add(batch, "services", None);
    }
}

fn outside_rules(batch: &mut Batch) {
    for fields in FAMILIES {
        let (rule, behind) = Rule::of(fields).front(fields, false);
        rule.saddr(fields, behind)
            .lookup(Map::Guarded, fields, false)
            .lookup(Map::Sources, fields, true)
            .verdict(Verdict::Drop)
            .add(batch, "outside", None);
        let (rule, _) = Rule::of(fields).front(fields, false);
        rule.verdicts(Map::Outside, fields).add(
            batch,
            "outside",
            Some("externalTrafficPolicy: Local"),
        );
        let (rule, _) = Rule::of(fields).at_node(fields).front(fields, true);
        rule.verdicts(Map::NodeOutside, fields)
            .add(batch, "outside", None);
    }
    Rule::new().jump("services").add(batch, "outside", None);
}

fn hook_rules(batch: &mut Batch, facts: &Facts) {
    // Translation comes before the kernel's check for martians.
    Rule::new()
        .with(Expr::nfproto(Family::Ip))
        .with(loopback(FAMILIES[0].daddr, Cmp::Eq))
        .verdict(Verdict::Return)
        .add(batch, "prerouting", None);
    for (cmp, chain) in [(Cmp::Eq, "services"), (Cmp::Neq, "outside")] {
        Rule::new()
            .with(Expr::group(Meta::IifGroup, cmp, facts.pod_group))
            .jump(chain)
            .add(batch, "prerouting", None);
    }
    Rule::new().jump("services").add(batch, "output", None);
    for chain in ["filter-input", "filter-forward", "filter-output"] {
        Rule::new()
            .with([
                Expr::Ct(Ct::State, Reg(0)),
                Expr::Bitwise {
                    reg: Reg(0),
                    mask: Value::new().u32(CT_STATE_NEW),
                    xor: Value::new().u32(0),
                },
                Expr::Cmp(Reg(0), Cmp::Neq, Value::new().u32(0)),
            ])
            .jump("refuse")
            .add(batch, chain, None);
    }
}

fn masquerade_rules(batch: &mut Batch, facts: &Facts) {
    let masquerade = [Expr::Masquerade { fully_random: true }];
    let bit = facts.masquerade_bit;
    Rule::new()
        .with([
            Expr::Meta(Meta::Mark, Reg(0)),
            Expr::Bitwise {
                reg: Reg(0),
                mask: Value::new().u32(bit),
                xor: Value::new().u32(0),
            },
            Expr::Cmp(Reg(0), Cmp::Neq, Value::new().u32(0)),
        ])
        .with(change_mark(bit, 0))
        .with(masquerade.clone())
        .add(batch, "postrouting", Some("clients outside of this node"));
    for fields in FAMILIES {
        Rule::of(fields)
            .with(Expr::ct_is_dnat())
            .saddr(fields, 0)
            .daddr(fields, fields.words)
            .lookup(Map::Hairpin, fields, false)
            .with(masquerade.clone())
            .add(batch, "postrouting", Some("a pod that reaches itself"));
    }
}

fn untracked_rules(batch: &mut Batch, answered: &[IpAddr]) {
    for (name, hook) in [
        ("raw-prerouting", Hook::Prerouting),
        ("raw-output", Hook::Output),
    ] {
        batch.add_chain(&Chain {
            name: name.to_owned(),
            base: Some((ChainKind::Filter, hook, PRIORITY_RAW)),
        });
        for ip in answered {
            let fields = FAMILIES[usize::from(ip.is_ipv6())];
            let wanted = Expr::Cmp(Reg(0), Cmp::Eq, Value::new().ip(*ip));
            for rule in [
                Rule::of(fields).saddr(fields, 0),
                Rule::of(fields).daddr(fields, 0),
            ] {
                rule.with([wanted.clone(), Expr::Notrack])
                    .add(batch, name, None);
            }
        }
    }
}

/// Name of the chain of a way to choose.
#[must_use]
pub fn chain_name(choice: &Choice) -> String {
    let node = if choice.node { "node-" } else { "" };
    let local = if choice.local { "local-" } else { "" };
    match choice.affinity_seconds {
        None => format!("{node}{local}choose-{}", choice.count),
        Some(seconds) => format!("{node}{local}stay-{}-{seconds}", choice.count),
    }
}

/// Adds the chains of a way to choose.
pub fn add_choice(batch: &mut Batch, choice: &Choice, facts: &Facts) {
    let name = chain_name(choice);
    batch.add_chain(&Chain {
        name: name.clone(),
        base: None,
    });
    match choice.affinity_seconds {
        None => add_random(batch, &name, choice, facts),
        Some(seconds) => add_stay(batch, &name, choice, seconds, facts),
    }
}

fn random(choice: &Choice, at: u8) -> [Expr; 1] {
    let offset = if choice.local { LOCAL_SLOT_OFFSET } else { 0 };
    [Expr::NumgenRandom {
        modulus: u32::from(choice.count),
        offset: u32::from(offset),
        to: Reg(at),
    }]
}

/// Not from a pod of this node and not from the node itself.
fn from_elsewhere(facts: &Facts) -> [Expr; 2] {
    Expr::group(Meta::IifGroup, Cmp::Neq, facts.pod_group)
}

fn add_random(batch: &mut Batch, name: &str, choice: &Choice, facts: &Facts) {
    if !choice.local {
        let bit = facts.masquerade_bit;
        Rule::new()
            .with(from_elsewhere(facts))
            .with(change_mark(bit, bit))
            .add(batch, name, None);
    }
    for fields in FAMILIES {
        let (rule, behind) = Rule::of(fields).front(fields, choice.node);
        rule.with(random(choice, behind))
            .map(Map::endpoints(choice.node), fields)
            .dnat(fields)
            .add(batch, name, None);
    }
}

fn add_stay(batch: &mut Batch, name: &str, choice: &Choice, seconds: u32, facts: &Facts) {
    let back = format!("{name}-go");
    batch.add_chain(&Chain {
        name: back.clone(),
        base: None,
    });
    let clients = Map::clients(choice.node);
    let to_mark = [Expr::MetaSet(Meta::Mark, Reg(0))];
    let client = |fields: &Fields| {
        let rule = Rule::of(fields).saddr(fields, 0);
        if choice.node {
            (rule.port(fields.words), fields.words + 2)
        } else {
            let rule = rule.daddr(fields, fields.words).port(2 * fields.words);
            (rule, 2 * fields.words + 2)
        }
    };
    let endpoint = |rule: Rule, fields: &Fields, mark: u32| {
        let (rule, behind) = rule.front(fields, choice.node);
        rule.with([Expr::Meta(Meta::Mark, Reg(behind))])
            .map(Map::endpoints(choice.node), fields)
            .with([
                Expr::Immediate(Reg(8), Value::new().u32(mark)),
                Expr::MetaSet(Meta::Mark, Reg(8)),
            ])
            .dnat(fields)
    };
    for fields in FAMILIES {
        let (rule, behind) = client(fields);
        rule.with([
            Expr::Meta(Meta::Mark, Reg(behind)),
            Expr::Update {
                map: clients.name(fields),
                key: Reg(0),
                data: Reg(behind),
                timeout_seconds: seconds,
            },
        ])
        .add(batch, &back, None);
        if !choice.local {
            let rule = Rule::of(fields).with(from_elsewhere(facts));
            endpoint(rule, fields, facts.masquerade_bit).add(batch, &back, None);
        }
        endpoint(Rule::of(fields), fields, 0).add(batch, &back, None);
    }
    for fields in FAMILIES {
        let (rule, _) = client(fields);
        rule.map(clients, fields)
            .with(to_mark.clone())
            .jump(&back)
            .add(batch, name, Some("where the client was"));
        let (rule, behind) = Rule::of(fields).front(fields, choice.node);
        rule.with(random(choice, behind))
            .map(Map::picks(choice.node), fields)
            .with(to_mark.clone())
            .jump(&back)
            .add(batch, name, None);
    }
}
