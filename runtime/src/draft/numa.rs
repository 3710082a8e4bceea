//! `linux.memoryPolicy` (runtime-spec 1.3, config-linux.md).

use oci_spec::runtime::{LinuxMemoryPolicy, MemoryPolicyFlagType, MemoryPolicyModeType};
use rkube_keeper::plan::Step;

use crate::error::{Error, Result};

/// Most nodes of any kernel (`MAX_NUMNODES`, CONFIG_NODES_SHIFT of at most 10),
/// and most processors of a `cpu_set_t` (`sched.h`).
const MAX_NUMBERS: u32 = 1024;
const NODES: &str = "linux.memoryPolicy.nodes";

/// The step that puts a policy in force.
pub(super) fn step(policy: &LinuxMemoryPolicy) -> Result<Step> {
    // `linux/mempolicy.h`.
    let mode = match policy.mode() {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    let flags = policy.flags().iter().flatten();
    let flags = flags.fold(0_u32, |all, flag| {
        all | match flag {
            MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
            MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
            MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
        }
    });
    Ok(Step::MemoryPolicy {
        mode: mode | flags,
        nodes: mask(NODES, policy.nodes().as_deref().unwrap_or_default())?,
    })
}

/// A list like `0-3,7` of nodes or processors as a bit mask.
pub(crate) fn mask(field: &str, list: &str) -> Result<Vec<u64>> {
    let wrong = || {
        Error::spec(
            field,
            format!("{list:?} is no list like 0-3,7 of numbers below {MAX_NUMBERS}"),
        )
    };
    let mut mask = Vec::new();
    for range in list.split(',').filter(|_| !list.trim().is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.trim().parse::<u32>().ok().filter(|n| *n < MAX_NUMBERS);
        let (first, last) = number(first).zip(number(last)).ok_or_else(wrong)?;
        if first > last {
            return Err(wrong());
        }
        for node in first..=last {
            let word = usize::try_from(node / 64).map_err(|_| wrong())?;
            if mask.len() <= word {
                mask.resize(word + 1, 0);
            }
            mask[word] |= 1_u64 << (node % 64);
        }
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_nodes() {
        assert!(mask(NODES, "").unwrap().is_empty());
        assert_eq!(mask(NODES, "0-3, 7").unwrap(), [0x8f_u64]);
        assert_eq!(mask(NODES, "64").unwrap(), [0_u64, 1]);
        for bad in ["a", "3-1", "1024", "-1", "1,,2", "0-"] {
            assert!(mask(NODES, bad).is_err(), "{bad}");
        }
    }
}
