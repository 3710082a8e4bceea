//! Names and numbers of one instance: everything global on a host derives
//! from the instance id, so that two instances never meet.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::error::Error;

/// A link-layer address.
pub type Mac = [u8; 6];

/// Longest pod id in bytes (a DNS subdomain name is not longer).
pub const POD_ID_MAX_BYTES: usize = 253;

/// The pod's gateway: link-local, the same in every pod, never on the wire
/// because its neighbour entry is permanent.
pub const POD_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The pod's IPv6 gateway.
pub const POD_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// An instance id: 8 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Iid(u32);

impl Iid {
    /// Parses an instance id.
    ///
    /// # Errors
    /// [`Error::BadInstance`] for anything but 8 hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let well_formed = text.len() == 8 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let number = u32::from_str_radix(text, 16).ok().filter(|_| well_formed);
        number.map(Self).ok_or_else(|| Error::BadInstance {
            iid: text.to_owned(),
        })
    }

    /// The id as a number.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }

    /// The link group of the instance's host links. Group 0 is everyone's
    /// default and `int` in the kernel, so it stays positive.
    #[must_use]
    pub fn group(self) -> u32 {
        (self.0 & 0x7fff_ffff).max(1)
    }

    /// Name of a pod's host link: 14 of the 15 characters a link may have.
    /// `attempt` tells pods apart whose hashes meet.
    #[must_use]
    pub fn host_link(self, pod: &str, attempt: u32) -> String {
        format!(
            "rk{:04x}{:08x}",
            self.0 >> 16,
            fold(hash(&[pod.as_bytes(), &attempt.to_be_bytes()]))
        )
    }

    /// Address of every host link of the instance. They may be equal since
    /// each veth pair is a network of its own.
    #[must_use]
    pub fn host_mac(self) -> Mac {
        let [a, b, c, d] = self.0.to_be_bytes();
        [0x06, 0x00, a, b, c, d]
    }

    /// A pod's own address: locally administered, unicast.
    #[must_use]
    pub fn pod_mac(self, pod: &str) -> Mac {
        let [_, _, _, a, b, c, d, e] = hash(&[&self.0.to_be_bytes(), pod.as_bytes()]).to_be_bytes();
        [0x02, a, b, c, d, e]
    }

    /// The default IPv4 range: one of 512 blocks of 4096 addresses in
    /// 10.192.0.0/11, away from the blocks that clouds and container tools
    /// take by default.
    #[must_use]
    pub fn default_v4(self) -> Ipv4Net {
        let block = fold(hash(&[b"v4", &self.0.to_be_bytes()])) % 512;
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 192, 0, 0)) + (block << 12));
        Ipv4Net::new_assert(address, 20)
    }

    /// The default IPv6 range: a /64 of a unique local prefix (RFC 4193).
    #[must_use]
    pub fn default_v6(self) -> Ipv6Net {
        let [_, _, _, a, b, c, d, e] = hash(&[b"v6", &self.0.to_be_bytes()]).to_be_bytes();
        let pair = |high, low| u16::from_be_bytes([high, low]);
        let address = Ipv6Addr::new(pair(0xfd, a), pair(b, c), pair(d, e), 0, 0, 0, 0, 0);
        Ipv6Net::new_assert(address, 64)
    }
}

/// 64-bit FNV-1a over length-prefixed parts: stable across versions, which
/// the standard library's hasher does not promise.
pub(crate) fn hash(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in part.len().to_be_bytes().iter().chain(*part) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    // FNV mixes its last bytes poorly into the low half.
    (hash ^ hash >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ hash >> 32
}

pub(crate) fn fold(hash: u64) -> u32 {
    let [a, b, c, d, e, f, g, h] = hash.to_be_bytes();
    u32::from_be_bytes([a ^ e, b ^ f, c ^ g, d ^ h])
}

/// Refuses pod ids that would not survive a journal line or a log.
pub(crate) fn check_pod_id(pod: &str) -> Result<(), Error> {
    if pod.is_empty() || pod.len() > POD_ID_MAX_BYTES || pod.chars().any(char::is_control) {
        return Err(Error::BadPodId {
            pod: pod.escape_debug().to_string(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_differ() {
        let (a, b) = (
            Iid::parse("deadbeef").unwrap(),
            Iid::parse("cafebabe").unwrap(),
        );
        let name = a.host_link("default/web", 0);
        assert!(name.starts_with("rkdead") && name.len() == 14, "{name}");
        assert_ne!(name, b.host_link("default/web", 0));
        assert_ne!(name, a.host_link("default/web", 1));
        assert_ne!(a.group(), b.group());
        assert_ne!(a.default_v4(), b.default_v4());
        assert!(a.pod_mac("x")[0] & 3 == 2 && a.host_mac()[0] & 3 == 2);
    }

    #[test]
    fn instance_ids_are_checked() {
        for bad in ["", "deadbee", "deadbeef0", "deadbeeg", "+eadbeef"] {
            assert!(Iid::parse(bad).is_err(), "{bad}");
        }
    }
}
