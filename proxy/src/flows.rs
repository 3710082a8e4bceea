//! UDP flows whose translation is out of date. A client that keeps sending
//! from one port would otherwise talk to an endpoint that is gone, or past a
//! Service that came after its first packet, for as long as it sends.

use std::collections::BTreeSet;
use std::net::IpAddr;

use rkube_nft::conntrack::{self, Connection};
use rkube_nft::{Error, Socket};

use crate::model::{Front, Key, Protocol};
use crate::state::Delta;
use crate::table::udp_endpoints;

/// Which flows a difference makes stale.
#[derive(Debug, Default, PartialEq, Eq)]
struct Stale {
    /// Translated to an endpoint that the front has no more.
    gone: BTreeSet<(Front, (IpAddr, u16))>,
    /// Not translated, though the front has endpoints now.
    passed: BTreeSet<Front>,
}

impl Stale {
    fn of(delta: &Delta) -> Self {
        let mut gone = udp_endpoints(&delta.remove);
        // Slots move; what counts is whether the endpoint is still somewhere.
        for kept in udp_endpoints(&delta.add) {
            gone.remove(&kept);
        }
        let fronts = |entries: &[crate::model::Entry]| -> BTreeSet<Front> {
            entries
                .iter()
                .filter_map(|(key, _)| match key {
                    Key::Front(front) | Key::Outside(front) => Some(*front),
                    _ => None,
                })
                .filter(|front| front.protocol() == Protocol::Udp)
                .collect()
        };
        let before = fronts(&delta.remove);
        let passed = fronts(&delta.add).difference(&before).copied().collect();
        Self { gone, passed }
    }

    fn has_family(&self, v6: bool) -> bool {
        let gone = self.gone.iter().map(|(front, _)| front);
        gone.chain(&self.passed).any(|front| front.is_v6() == v6)
    }

    fn picks(&self, connection: &Connection) -> bool {
        let (orig, reply) = (&connection.orig, &connection.reply);
        let v6 = orig.dst.is_ipv6();
        let protocol = Protocol::Udp;
        let fronts = [
            Front::Address(orig.dst, protocol, orig.dst_port),
            Front::Node {
                v6,
                protocol,
                port: orig.dst_port,
            },
        ];
        let endpoint = (reply.src, reply.src_port);
        let translated = endpoint != (orig.dst, orig.dst_port);
        fronts.iter().any(|front| {
            if translated {
                self.gone.contains(&(*front, endpoint))
            } else {
                self.passed.contains(front)
            }
        })
    }
}

/// Forgets the flows that a difference made stale.
///
/// # Errors
/// All of [`Error`].
pub(crate) fn forget(socket: &mut Socket, delta: &Delta) -> Result<(), Error> {
    let stale = Stale::of(delta);
    for v6 in [false, true] {
        if stale.has_family(v6) {
            conntrack::forget(socket, v6, Protocol::Udp.number(), |c| stale.picks(c))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::model::Data;

    #[test]
    fn an_endpoint_that_only_moved_to_another_slot_keeps_its_flows() {
        let front = Front::Address("10.96.0.1".parse().unwrap(), Protocol::Udp, 53);
        let tcp = Front::Address("10.96.0.1".parse().unwrap(), Protocol::Tcp, 53);
        let at = |front, slot, endpoint: &str| {
            let endpoint = endpoint.parse().unwrap();
            (Key::Endpoint(front, slot), Data::Endpoint(endpoint))
        };
        let delta = Delta {
            remove: vec![
                at(front, 0, "10.0.0.1:53"),
                at(front, 1, "10.0.0.2:53"),
                at(tcp, 0, "10.0.0.1:53"),
            ],
            add: vec![at(front, 0, "10.0.0.2:53"), (Key::Front(front), Data::Drop)],
        };
        let stale = Stale::of(&delta);
        let one = (front, ("10.0.0.1".parse().unwrap(), 53));
        assert_eq!(stale.gone, BTreeSet::from([one]));
        assert_eq!(stale.passed, BTreeSet::from([front]));
        assert!(stale.has_family(false) && !stale.has_family(true));
    }
}
