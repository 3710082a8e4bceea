//! What an instance needs of the host before its first pod: a free range, an
//! MTU, forwarding, and its table told apart from those of other instances.

use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use rkube_nft::query::{self, TableInfo};
use rkube_nft::{Family, Socket};
use rustix::io::Errno;

use crate::error::Error;
use crate::host::HostConfig;
use crate::journal::{Journal, boot_id};
use crate::route::{PROTOCOL_RA, Route, RouteSocket, TABLE_MAIN};
use crate::sysctl;

/// MTU in bytes where the host has no default route.
const MTU_WITHOUT_UPLINK: u32 = 1500;
/// First word of our tables' comments.
const COMMENT_MARK: &str = "rkube";
/// The settings that all instances share, with their names in the comment.
pub(crate) const SHARED_SYSCTLS: [(&str, &str); 2] = [
    ("ip_forward", sysctl::IP_FORWARD),
    ("ipv6_forwarding", sysctl::IPV6_FORWARDING),
];

pub(crate) fn open_journal(config: &HostConfig) -> Result<Journal, Error> {
    let path = config.journal_path();
    std::fs::create_dir_all(&config.state_dir).map_err(|source| Error::Journal {
        action: "make the folder of",
        path: path.clone(),
        source,
    })?;
    Journal::open(&path, &boot_id()?)
}

/// The table's comment: whose it is, and what shared settings were before any
/// instance changed them, for the instance that goes last.
pub(crate) fn comment(config: &HostConfig, journal: &Journal) -> String {
    let mut text = format!("{COMMENT_MARK} {:08x}", config.iid.number());
    for (name, path) in SHARED_SYSCTLS {
        if let Some(change) = journal.state().sysctls.get(Path::new(path)) {
            text.push_str(&format!(" {name}={}", change.before));
        }
    }
    text
}

pub(crate) fn is_own_table(table: &TableInfo, name: &str) -> bool {
    // repr(u8) discriminants are the NFPROTO numbers.
    table.family == Family::Inet as u8 && table.name == name
}

pub(crate) fn is_other_instance(table: &TableInfo, config: &HostConfig) -> bool {
    let marked = table
        .comment
        .as_ref()
        .is_some_and(|comment| comment.split(' ').next() == Some(COMMENT_MARK));
    marked && table.name != config.table
}

pub(crate) fn set_sysctls(
    config: &HostConfig,
    route: &mut RouteSocket,
    journal: &mut Journal,
    v6: bool,
    tables: &[TableInfo],
) -> Result<(), Error> {
    if v6 {
        keep_router_advertisements(route, journal)?;
    }
    for (name, path) in SHARED_SYSCTLS {
        if path == sysctl::IPV6_FORWARDING && !v6 {
            continue;
        }
        let before = tables
            .iter()
            .filter(|table| is_other_instance(table, config))
            .filter_map(|table| table.comment.as_deref())
            .flat_map(|comment| comment.split(' '))
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        sysctl::change(journal, Path::new(path), "1", before)?;
    }
    Ok(())
}

/// A forwarding host ignores router advertisements unless `accept_ra` is 2:
/// a host that got its default route from one would lose it in minutes.
fn keep_router_advertisements(route: &mut RouteSocket, journal: &mut Journal) -> Result<(), Error> {
    let routes = route.routes(true)?;
    let learned = routes
        .iter()
        .filter(|r| r.protocol == PROTOCOL_RA && r.destination.prefix_len() == 0);
    let indexes: Vec<_> = learned.filter_map(|route| route.oif).collect();
    if indexes.is_empty() {
        return Ok(());
    }
    for link in route
        .links()?
        .iter()
        .filter(|link| indexes.contains(&link.index))
    {
        let path = sysctl::accept_ra(&link.name);
        if sysctl::read(&path)? == "1" {
            sysctl::change(journal, &path, "2", None)?;
        }
    }
    Ok(())
}

/// Refuses a range that some route of the host already covers or is inside.
pub(crate) fn check_overlap(
    route: &mut RouteSocket,
    range: IpNet,
    group: u32,
) -> Result<(), Error> {
    let meets = |net: &IpNet| net.contains(&range.network()) || range.contains(&net.network());
    let routes = route.routes(matches!(range, IpNet::V6(_)))?;
    let overlapping: Vec<_> = routes
        .iter()
        .filter(|r| r.destination.prefix_len() > 0 && meets(&r.destination))
        .collect();
    if overlapping.is_empty() {
        return Ok(());
    }
    let links = route.links()?;
    for Route {
        destination, oif, ..
    } in overlapping
    {
        let link = links.iter().find(|link| Some(link.index) == *oif);
        if link.is_none() && oif.is_some() {
            // Its link, listed later, has gone, and the route with it: a link
            // of this instance that was still being removed.
            continue;
        }
        if link.is_none_or(|link| link.group != group) {
            let dev = link.map_or_else(|| "none".to_owned(), |link| link.name.clone());
            return Err(Error::RangeOverlap {
                range: range.to_string(),
                route: destination.to_string(),
                dev,
            });
        }
    }
    Ok(())
}

/// MTU of the link of the preferred default route, IPv4 first.
pub(crate) fn uplink_mtu(route: &mut RouteSocket, configured: Option<u32>) -> Result<u32, Error> {
    if let Some(mtu) = configured {
        return Ok(mtu);
    }
    for v6 in [false, true] {
        let routes = route.routes(v6)?;
        let default = routes
            .iter()
            .filter(|r| r.destination.prefix_len() == 0 && r.table == TABLE_MAIN && r.oif.is_some())
            .min_by_key(|r| r.priority);
        if let Some(oif) = default.and_then(|r| r.oif)
            && let Some(link) = route.links()?.into_iter().find(|link| link.index == oif)
        {
            return Ok(link.mtu);
        }
    }
    Ok(MTU_WITHOUT_UPLINK)
}

pub(crate) fn owned_or(error: rkube_nft::Error, nft: &mut Socket, name: &str) -> Error {
    if error.errno() == Some(Errno::PERM)
        && let Ok(Some(TableInfo {
            owner: Some(owner), ..
        })) = query::table(nft, Family::Inet, name)
    {
        return Error::TableOwned {
            table: name.to_owned(),
            owner,
        };
    }
    error.into()
}

/// How long a dead writer's table may stay owned: a child that it forked
/// holds its socket until the child's exec.
const OWNER_LINGER_MS: u64 = 1000;
const OWNER_RETRY_MS: u64 = 5;

/// Tries again while the table belongs to another process, for a second at
/// most: the kernel tells nobody that an owner is gone. A write that meets an
/// owner which a look just before did not show gets EPERM.
pub(crate) fn outlast_owner<T>(mut attempt: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    for _ in 0..OWNER_LINGER_MS / OWNER_RETRY_MS {
        match attempt() {
            Err(error)
                if matches!(error, Error::TableOwned { .. })
                    || error.errno() == Some(Errno::PERM) =>
            {
                std::thread::sleep(Duration::from_millis(OWNER_RETRY_MS));
            }
            other => return other,
        }
    }
    attempt()
}
