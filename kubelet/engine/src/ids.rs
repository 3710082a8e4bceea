//! Which users and groups of the host those of a sandbox's user namespace are.
//!
//! A sandbox gets 65536 ids of its own, the first a multiple of 65536 above
//! the host's own users, as Kubernetes does (KEP-127). An instance takes its
//! slots from one block, which derives from the instance id as every name
//! does, out of the ids that systemd leaves to containers, and keeps clear of
//! what /etc/subuid and /etc/subgid give to others.
//!
//! The choice is pure; a sandbox's record journals it before anything of the
//! sandbox is made, and it is free again when the record is gone.

use serde::{Deserialize, Serialize};

/// Ids of one sandbox (KEP-127).
pub const IDS_PER_SANDBOX: u32 = 65536;
/// Sandboxes with a user namespace that an instance can have at a time; more
/// than the kubelet's limit of 110 pods.
pub const SANDBOXES_PER_INSTANCE: u32 = 128;
const BLOCK_IDS: u32 = IDS_PER_SANDBOX * SANDBOXES_PER_INSTANCE;
/// First and last id for containers (systemd, UIDS-GIDS.md).
const FIRST: u32 = 0x0008_0000;
const LAST: u32 = 0x6fff_ffff;
/// Largest /etc/subuid that is looked at, in bytes.
const MAX_SUBID_BYTES: u64 = 1 << 20;

/// Users and groups alike: 0 of the namespace is `first` of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// First id on the host.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl Ids {
    /// An id of the namespace as the host counts.
    #[must_use]
    pub fn on_host(self, id: u32) -> Option<u32> {
        (id < self.count).then(|| self.first.checked_add(id))?
    }

    fn meets(self, first: u64, count: u64) -> bool {
        let own = u64::from(self.first);
        own < first.saturating_add(count) && first < own + u64::from(self.count)
    }
}

/// Ranges of /etc/subuid and /etc/subgid: `name:first:count` (subuid(5)).
fn ranges(text: &str) -> Vec<(u64, u64)> {
    let line = |line: &str| {
        let mut fields = line.split(':').skip(1);
        let first = fields.next()?.trim().parse().ok()?;
        Some((first, fields.next()?.trim().parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// What others have on this host.
pub(crate) fn of_others() -> Vec<(u64, u64)> {
    use std::io::Read;
    let read = |path: &str| {
        let mut text = String::new();
        // Without the file nobody has any.
        if let Ok(file) = std::fs::File::open(path) {
            let _ = file.take(MAX_SUBID_BYTES).read_to_string(&mut text);
        }
        ranges(&text)
    };
    [read("/etc/subuid"), read("/etc/subgid")].concat()
}

/// The first free slot of an instance: neither in `taken` nor in what
/// `others` have. The blocks after its own are tried where that is full of
/// others' ids.
pub(crate) fn choose(iid: &str, taken: &[Ids], others: &[(u64, u64)]) -> Option<Ids> {
    let blocks = (LAST - FIRST) / BLOCK_IDS;
    let start = u32::from_str_radix(iid, 16).unwrap_or(0) % blocks;
    let slot = |block: u32, n: u32| Ids {
        first: FIRST.next_multiple_of(BLOCK_IDS) + block * BLOCK_IDS + n * IDS_PER_SANDBOX,
        count: IDS_PER_SANDBOX,
    };
    let clear = |ids: &Ids| {
        !others
            .iter()
            .any(|(first, count)| ids.meets(*first, *count))
    };
    for offset in 0..blocks {
        let block = (start + offset) % blocks;
        let slots: Vec<Ids> = (0..SANDBOXES_PER_INSTANCE)
            .map(|n| slot(block, n))
            .filter(|ids| ids.first <= LAST - IDS_PER_SANDBOX && clear(ids))
            .collect();
        if slots.is_empty() {
            continue;
        }
        // A block that is not whole still counts as the instance's: others'
        // blocks are not to be eaten into.
        return slots.into_iter().find(|ids| !taken.contains(ids));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_own_and_aligned() {
        let mut taken = Vec::new();
        for _ in 0..SANDBOXES_PER_INSTANCE {
            let ids = choose("0badcafe", &taken, &[]).expect("a slot");
            assert_eq!(ids.first % IDS_PER_SANDBOX, 0);
            assert!(ids.first >= 65536 && ids.first <= LAST - IDS_PER_SANDBOX);
            assert!(!taken.contains(&ids));
            taken.push(ids);
        }
        assert_eq!(choose("0badcafe", &taken, &[]), None, "the block is full");
        let gone = taken.remove(17);
        assert_eq!(choose("0badcafe", &taken, &[]), Some(gone));
        let other = choose("0badcaff", &[], &[]).expect("a slot");
        assert!(
            taken
                .iter()
                .all(|ids| ids.first / BLOCK_IDS != other.first / BLOCK_IDS)
        );
    }

    #[test]
    fn ids_of_others_are_left_alone() {
        let first = choose("00000001", &[], &[]).expect("a slot");
        // The end of the first slot and the begin of the second are somebody's.
        let text = format!("user:{}:10\n# odd\nx:y:z\n", first.first + 65530);
        let next = choose("00000001", &[], &ranges(&text)).expect("a slot");
        assert_eq!(next.first, first.first + 2 * IDS_PER_SANDBOX);
        let all = [(0, u64::from(u32::MAX))];
        assert_eq!(choose("00000001", &[], &all), None);
        let block = [(u64::from(first.first), u64::from(BLOCK_IDS))];
        let moved = choose("00000001", &[], &block).expect("a slot");
        assert_eq!(moved.first, first.first + BLOCK_IDS);
    }

    #[test]
    fn ids_on_the_host() {
        let ids = Ids {
            first: 131_072,
            count: 65536,
        };
        assert_eq!(ids.on_host(0), Some(131_072));
        assert_eq!(ids.on_host(65535), Some(196_607));
        assert_eq!(ids.on_host(65536), None);
    }
}
