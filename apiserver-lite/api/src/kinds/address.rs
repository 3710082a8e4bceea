//! Rules for addresses that several kinds share.

use std::net::IpAddr;

use crate::field::Errors;
use crate::view::At;

/// The rule for a network in CIDR notation.
pub(super) const CIDR_RULE: &str =
    "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// Whether a text is an address, a slash and a prefix length that fits.
#[must_use]
pub(super) fn is_cidr(text: &str) -> bool {
    let Some((ip, bits)) = text.split_once('/') else {
        return false;
    };
    let longest = match ip.parse() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    let digits = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
    digits && bits.parse::<u8>().is_ok_and(|bits| bits <= longest)
}

/// An address that a Service or an endpoint may have: none that means
/// something else on every host.
pub(super) fn not_special(errors: &mut Errors, at: &At<'_, '_>) {
    let Ok(ip) = at.str().parse::<IpAddr>() else {
        return at.invalid(errors, "must be a valid IP address");
    };
    let (link_local, link_multicast) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => (
            ip.is_unicast_link_local(),
            ip.segments()[0] & 0xff0f == 0xff02,
        ),
    };
    for (special, rule) in [
        (
            ip.is_unspecified(),
            "may not be unspecified (0.0.0.0 or ::)",
        ),
        (
            ip.is_loopback(),
            "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ),
        (
            link_local,
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        ),
        (
            link_multicast,
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        ),
    ] {
        if special {
            at.invalid(errors, rule);
        }
    }
}
