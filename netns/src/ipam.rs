//! Address assignment: pure state, made durable by the journal above it.
//!
//! Invariants: an address has at most one owner; network, gateway and
//! broadcast addresses have none; a released address comes back only after
//! all others were tried (round robin).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Most addresses that one pool hands out; a larger range is used from its
/// start. 2^16 pods are far beyond a node, and the bitmap stays at 8 KiB.
pub const POOL_MAX_ADDRESSES: u32 = 1 << 16;
/// Longest usable IPv4 prefix.
const V4_PREFIX_MAX: u8 = 29;
/// Longest usable IPv6 prefix.
const V6_PREFIX_MAX: u8 = 124;
/// Offsets 0 (network, or subnet-router anycast) and 1 (gateway) are never
/// handed out.
const FIRST_OFFSET: u32 = 2;

/// The addresses of one owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// IPv4 address.
    pub v4: Ipv4Addr,
    /// IPv6 address, where the instance has a range.
    pub v6: Option<Ipv6Addr>,
}

/// Free and used offsets of one range.
#[derive(Debug, Clone)]
struct Pool {
    used: Vec<u64>,
    /// First offset behind the usable ones.
    end: u32,
    /// Where the next search starts.
    next: u32,
}

impl Pool {
    fn new(end: u32) -> Self {
        let end = end.min(POOL_MAX_ADDRESSES);
        let words = usize::try_from(end.div_ceil(64)).unwrap_or(usize::MAX);
        Self {
            used: vec![0; words],
            end,
            next: FIRST_OFFSET,
        }
    }

    fn place(offset: u32) -> (usize, u64) {
        (
            usize::try_from(offset / 64).unwrap_or(usize::MAX),
            1 << (offset % 64),
        )
    }

    fn is_assignable(&self, offset: u32) -> bool {
        (FIRST_OFFSET..self.end).contains(&offset)
    }

    fn is_used(&self, offset: u32) -> bool {
        let (word, bit) = Self::place(offset);
        self.used[word] & bit != 0
    }

    fn peek(&self) -> Option<u32> {
        (self.next..self.end)
            .chain(FIRST_OFFSET..self.next)
            .find(|offset| !self.is_used(*offset))
    }

    fn take(&mut self, offset: u32) {
        let (word, bit) = Self::place(offset);
        self.used[word] |= bit;
        self.next = if offset + 1 < self.end {
            offset + 1
        } else {
            FIRST_OFFSET
        };
    }

    fn give_back(&mut self, offset: u32) {
        let (word, bit) = Self::place(offset);
        self.used[word] &= !bit;
    }
}

/// Addresses of one instance.
#[derive(Debug, Clone)]
pub struct Ipam {
    v4_net: Ipv4Net,
    v6_net: Option<Ipv6Net>,
    v4: Pool,
    v6: Option<Pool>,
    leases: HashMap<String, Lease>,
}

impl Ipam {
    /// An empty assignment over these ranges.
    ///
    /// # Errors
    /// [`Error::RangeTooSmall`].
    pub fn new(v4_net: Ipv4Net, v6_net: Option<Ipv6Net>) -> Result<Self, Error> {
        let v4_net = v4_net.trunc();
        let v6_net = v6_net.map(|net| net.trunc());
        if v4_net.prefix_len() > V4_PREFIX_MAX {
            return Err(Error::RangeTooSmall {
                range: v4_net.to_string(),
            });
        }
        if let Some(net) = v6_net.filter(|net| net.prefix_len() > V6_PREFIX_MAX) {
            return Err(Error::RangeTooSmall {
                range: net.to_string(),
            });
        }
        // The last IPv4 address is the broadcast address.
        let v4_end = u32::from(v4_net.broadcast()) - u32::from(v4_net.network());
        let v6_end = |net: Ipv6Net| {
            1u32.checked_shl(u32::from(128 - net.prefix_len()))
                .unwrap_or(u32::MAX)
        };
        Ok(Self {
            v4_net,
            v6_net,
            v4: Pool::new(v4_end),
            v6: v6_net.map(|net| Pool::new(v6_end(net))),
            leases: HashMap::new(),
        })
    }

    /// The host's own address in the IPv4 range.
    #[must_use]
    pub fn gateway_v4(&self) -> Ipv4Addr {
        self.v4_at(1)
    }

    /// The host's own address in the IPv6 range.
    #[must_use]
    pub fn gateway_v6(&self) -> Option<Ipv6Addr> {
        Some(Self::v6_at(self.v6_net?, 1))
    }

    fn v4_at(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.v4_net.network()) + offset)
    }

    fn v6_at(net: Ipv6Net, offset: u32) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(net.network()) + u128::from(offset))
    }

    fn v4_offset(&self, address: Ipv4Addr) -> Option<u32> {
        let offset = u32::from(address).checked_sub(u32::from(self.v4_net.network()))?;
        self.v4.is_assignable(offset).then_some(offset)
    }

    fn v6_offset(&self, address: Ipv6Addr) -> Option<u32> {
        let distance = u128::from(address).checked_sub(u128::from(self.v6_net?.network()))?;
        let offset = u32::try_from(distance).ok()?;
        self.v6.as_ref()?.is_assignable(offset).then_some(offset)
    }

    /// What [`allocate`](Self::allocate) would give a new owner.
    ///
    /// # Errors
    /// [`Error::RangeExhausted`].
    pub fn peek(&self) -> Result<Lease, Error> {
        let exhausted = |range: String| Error::RangeExhausted { range };
        let v4 = self
            .v4
            .peek()
            .ok_or_else(|| exhausted(self.v4_net.to_string()))?;
        let v6 = match (&self.v6, self.v6_net) {
            (Some(pool), Some(net)) => {
                let offset = pool.peek().ok_or_else(|| exhausted(net.to_string()))?;
                Some(Self::v6_at(net, offset))
            }
            _ => None,
        };
        Ok(Lease {
            v4: self.v4_at(v4),
            v6,
        })
    }

    /// The owner's addresses; the same ones if it already has some.
    ///
    /// # Errors
    /// [`Error::RangeExhausted`].
    pub fn allocate(&mut self, owner: &str) -> Result<Lease, Error> {
        if let Some(lease) = self.leases.get(owner) {
            return Ok(*lease);
        }
        let lease = self.peek()?;
        self.take(owner, lease);
        Ok(lease)
    }

    /// Gives an owner exactly these addresses. An owner that has others gives
    /// them back first.
    ///
    /// # Errors
    /// [`Error::AddressOutsideRange`], [`Error::AddressTaken`]; nothing
    /// changes then.
    pub fn assign(&mut self, owner: &str, lease: Lease) -> Result<(), Error> {
        let outside = |address: IpAddr| Error::AddressOutsideRange { address };
        if self.lease(owner) != Some(lease) {
            self.v4_offset(lease.v4)
                .ok_or_else(|| outside(lease.v4.into()))?;
            if let Some(v6) = lease.v6 {
                self.v6_offset(v6).ok_or_else(|| outside(v6.into()))?;
            }
        }
        self.keep(owner, lease)
    }

    /// [`assign`](Self::assign) for an owner of before: its addresses may lie
    /// outside the range, which was another one then.
    ///
    /// # Errors
    /// [`Error::AddressTaken`]; nothing changes then.
    pub fn keep(&mut self, owner: &str, lease: Lease) -> Result<(), Error> {
        for (other, theirs) in self.leases.iter().filter(|(other, _)| *other != owner) {
            let taken = |address: IpAddr| Error::AddressTaken {
                address,
                pod: other.clone(),
            };
            if theirs.v4 == lease.v4 {
                return Err(taken(lease.v4.into()));
            }
            if let Some(v6) = lease.v6.filter(|_| theirs.v6 == lease.v6) {
                return Err(taken(v6.into()));
            }
        }
        self.release(owner);
        self.take(owner, lease);
        Ok(())
    }

    /// Addresses that lie outside the range, kept from before.
    pub(crate) fn foreign(&self) -> Vec<IpAddr> {
        let v4 = self.leases.values().map(|l| l.v4);
        let v6 = self.leases.values().filter_map(|l| l.v6);
        let v4 = v4.filter(|ip| !self.v4_net.contains(ip)).map(IpAddr::from);
        let v6 = v6.filter(|ip| self.v6_net.is_none_or(|net| !net.contains(ip)));
        let mut all: Vec<IpAddr> = v4.chain(v6.map(IpAddr::from)).collect();
        all.sort_unstable();
        all
    }

    fn take(&mut self, owner: &str, lease: Lease) {
        if let Some(offset) = self.v4_offset(lease.v4) {
            self.v4.take(offset);
        }
        let v6 = lease.v6.and_then(|address| self.v6_offset(address));
        if let (Some(offset), Some(pool)) = (v6, &mut self.v6) {
            pool.take(offset);
        }
        self.leases.insert(owner.to_owned(), lease);
    }

    /// Takes the owner's addresses back; none is fine.
    pub fn release(&mut self, owner: &str) -> Option<Lease> {
        let lease = self.leases.remove(owner)?;
        if let Some(offset) = self.v4_offset(lease.v4) {
            self.v4.give_back(offset);
        }
        let v6 = lease.v6.and_then(|address| self.v6_offset(address));
        if let (Some(offset), Some(pool)) = (v6, &mut self.v6) {
            pool.give_back(offset);
        }
        Some(lease)
    }

    /// The owner's addresses, if it has some.
    #[must_use]
    pub fn lease(&self, owner: &str) -> Option<Lease> {
        self.leases.get(owner).copied()
    }

    /// Continues the round robin behind this address.
    pub(crate) fn resume_behind(&mut self, lease: Lease) {
        let owner = "\0cursor";
        if self
            .v4_offset(lease.v4)
            .is_some_and(|offset| !self.v4.is_used(offset))
        {
            self.take(owner, lease);
            self.release(owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn small() -> Ipam {
        Ipam::new(
            "10.9.8.0/28".parse().unwrap(),
            Some("fd00:1::/120".parse().unwrap()),
        )
        .unwrap()
    }

    #[test]
    fn a_range_is_used_up_without_its_special_addresses() {
        let mut ipam = small();
        let got: HashSet<_> = (0..13)
            .map(|i| ipam.allocate(&format!("p{i}")).unwrap().v4)
            .collect();
        assert_eq!(got.len(), 13);
        for special in ["10.9.8.0", "10.9.8.1", "10.9.8.15"] {
            assert!(!got.contains(&special.parse().unwrap()), "{special}");
        }
        assert!(matches!(
            ipam.allocate("one more"),
            Err(Error::RangeExhausted { .. })
        ));
        ipam.release("p5");
        assert!(ipam.allocate("one more").is_ok());
    }

    #[test]
    fn a_released_address_rests() {
        let mut ipam = small();
        let first = ipam.allocate("a").unwrap();
        ipam.release("a");
        for i in 0..12 {
            assert_ne!(ipam.allocate(&format!("p{i}")).unwrap().v4, first.v4);
        }
        assert_eq!(ipam.allocate("last").unwrap().v4, first.v4);
    }

    #[test]
    fn a_fixed_address_is_checked() {
        let mut ipam = small();
        let fixed = |text: &str| Lease {
            v4: text.parse().unwrap(),
            v6: None,
        };
        ipam.assign("a", fixed("10.9.8.7")).unwrap();
        ipam.assign("a", fixed("10.9.8.7")).unwrap();
        let error = ipam.assign("b", fixed("10.9.8.7")).unwrap_err();
        assert_eq!(error.to_string(), "address 10.9.8.7 is in use by pod a");
        for bad in ["10.9.8.1", "10.9.8.15", "10.9.9.2", "10.9.7.255"] {
            assert!(
                matches!(
                    ipam.assign("b", fixed(bad)),
                    Err(Error::AddressOutsideRange { .. })
                ),
                "{bad}"
            );
        }
    }

    #[test]
    fn an_owner_of_before_keeps_what_it_has() {
        let mut ipam = small();
        let old = Lease {
            v4: "10.203.0.2".parse().unwrap(),
            v6: None,
        };
        ipam.keep("old", old).unwrap();
        ipam.assign("old", old).unwrap();
        assert_eq!(ipam.foreign(), [IpAddr::from(old.v4)]);
        assert!(matches!(
            ipam.keep("other", old),
            Err(Error::AddressTaken { .. })
        ));
        assert!(ipam.allocate("new").unwrap().v4 != old.v4);
        ipam.release("old");
        assert!(ipam.foreign().is_empty());
    }

    proptest! {
        #[test]
        fn owners_never_share(steps in prop::collection::vec((0..20u8, any::<bool>()), 1..300)) {
            let mut ipam = small();
            for (who, allocate) in steps {
                let who = format!("p{who}");
                if allocate {
                    let had = ipam.lease(&who);
                    if let Ok(lease) = ipam.allocate(&who) {
                        prop_assert!(had.is_none_or(|had| had == lease));
                    } else {
                        prop_assert_eq!(ipam.leases.len(), 13);
                    }
                } else {
                    ipam.release(&who);
                    prop_assert!(ipam.release(&who).is_none());
                }
                let v4: HashSet<_> = ipam.leases.values().map(|l| l.v4).collect();
                let v6: HashSet<_> = ipam.leases.values().map(|l| l.v6).collect();
                prop_assert_eq!(v4.len(), ipam.leases.len());
                prop_assert_eq!(v6.len(), ipam.leases.len());
                let bits: u32 = ipam.v4.used.iter().map(|w| w.count_ones()).sum();
                prop_assert_eq!(usize::try_from(bits).unwrap(), ipam.leases.len());
            }
        }
    }
}
