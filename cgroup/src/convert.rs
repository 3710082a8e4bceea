//! Pure conversions between the units of Kubernetes, OCI, v1 and v2.

/// Least `cpu.shares` of the kernel (`MIN_SHARES` in kernel/sched/sched.h).
pub const MIN_SHARES: u64 = 2;
/// Greatest `cpu.shares` of the kernel (`MAX_SHARES`, 2^18).
pub const MAX_SHARES: u64 = 262_144;
/// `cpu.weight` runs from 1 to 10000 (Documentation/admin-guide/cgroup-v2.rst).
const MAX_WEIGHT: u64 = 10_000;
/// Least `cpu.cfs_quota_us` of the kernel (`min_cfs_quota_period`, 1 ms).
const MIN_QUOTA_USEC: u64 = 1_000;

/// Thousandths of a CPU to `cpu.shares`: 1024 per CPU, from 2 to 262144.
#[must_use]
pub fn milli_cpu_to_shares(milli: u64) -> u64 {
    (milli.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// Thousandths of a CPU to a quota in microseconds per period of
/// `period_usec`; at least 1000. 0 means no limit and gives `None`.
#[must_use]
pub fn milli_cpu_to_quota(milli: u64, period_usec: u64) -> Option<i64> {
    if milli == 0 {
        return None;
    }
    let quota = u128::from(milli) * u128::from(period_usec) / 1000;
    let quota = quota.max(u128::from(MIN_QUOTA_USEC));
    Some(i64::try_from(quota).unwrap_or(i64::MAX))
}

/// `cpu.shares` to `cpu.weight` such that the defaults meet (1024 shares,
/// one CPU of request, give weight 100) and both ends too:
/// `ceil(10^((l² + 125 l) / 612 - 7 / 34))`, `l = log2(shares)`
/// (the formula of the OCI runtimes since 2025, kubernetes/kubernetes#131216;
/// the older linear one gave one CPU the weight 39).
#[must_use]
pub fn shares_to_weight(shares: u64) -> u64 {
    if shares <= MIN_SHARES {
        return 1;
    }
    if shares >= MAX_SHARES {
        return MAX_WEIGHT;
    }
    // Below 2^18, so the conversion is exact.
    let l = f64::from(u32::try_from(shares).unwrap_or(u32::MAX)).log2();
    let weight = 10_f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0).ceil();
    // Between 1 and 10000 by the bounds above.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let weight = weight as u64;
    weight.clamp(1, MAX_WEIGHT)
}

/// OCI block weight (10 to 1000, of CFQ) to `io.weight` (1 to 10000).
/// 0 means unset and gives `None`.
#[must_use]
pub fn blkio_weight_to_io_weight(weight: u16) -> Option<u64> {
    if weight == 0 {
        return None;
    }
    let weight = u64::from(weight.clamp(10, 1000));
    Some(1 + (weight - 10) * 9999 / 990)
}

/// OCI `memory.swap` (memory and swap together; -1 unlimited, 0 unset) to
/// v2's `memory.swap.max` (swap alone). `limit` is the memory limit in force
/// (`None`, 0 or negative: none). Returns `Ok(None)` where nothing is to be
/// set and `Ok(Some(-1))` for `max`.
///
/// # Errors
/// The rule that the pair breaks.
pub fn swap_to_v2(swap: Option<i64>, limit: Option<i64>) -> Result<Option<i64>, &'static str> {
    match (swap, limit) {
        (None | Some(0), _) => Ok(None),
        (Some(-1), _) => Ok(Some(-1)),
        (Some(swap), _) if swap < -1 => Err("is negative and not -1 (unlimited)"),
        (Some(_), None | Some(..=0)) => Err("needs a memory limit to be the sum of"),
        (Some(swap), Some(limit)) if swap < limit => Err("is less than the memory limit"),
        (Some(swap), Some(limit)) => Ok(Some(swap - limit)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_weights() {
        for (shares, weight) in [
            (0, 1),
            (2, 1),
            (102, 17),
            (1024, 100),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(shares_to_weight(shares), weight, "{shares}");
        }
    }

    #[test]
    fn known_cpu() {
        assert_eq!(milli_cpu_to_shares(0), 2);
        assert_eq!(milli_cpu_to_shares(1), 2);
        assert_eq!(milli_cpu_to_shares(250), 256);
        assert_eq!(milli_cpu_to_shares(1000), 1024);
        assert_eq!(milli_cpu_to_quota(0, 100_000), None);
        assert_eq!(milli_cpu_to_quota(1, 100_000), Some(1_000));
        assert_eq!(milli_cpu_to_quota(1500, 100_000), Some(150_000));
    }

    #[test]
    fn known_io_weights() {
        assert_eq!(blkio_weight_to_io_weight(0), None);
        assert_eq!(blkio_weight_to_io_weight(10), Some(1));
        assert_eq!(blkio_weight_to_io_weight(1000), Some(10_000));
    }

    #[test]
    fn known_swap() {
        assert_eq!(swap_to_v2(None, Some(5)), Ok(None));
        assert_eq!(swap_to_v2(Some(0), Some(5)), Ok(None));
        assert_eq!(swap_to_v2(Some(-1), None), Ok(Some(-1)));
        assert_eq!(swap_to_v2(Some(7), Some(5)), Ok(Some(2)));
        assert_eq!(swap_to_v2(Some(5), Some(5)), Ok(Some(0)));
        assert!(swap_to_v2(Some(4), Some(5)).is_err());
        assert!(swap_to_v2(Some(4), None).is_err());
        assert!(swap_to_v2(Some(4), Some(-1)).is_err());
        assert!(swap_to_v2(Some(-2), Some(5)).is_err());
    }

    proptest! {
        #[test]
        fn weight_is_monotonic_and_in_range(a in 0_u64..300_000, b in 0_u64..300_000) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(shares_to_weight(low) <= shares_to_weight(high));
            prop_assert!((1..=10_000).contains(&shares_to_weight(a)));
        }

        #[test]
        fn shares_are_monotonic_and_in_range(a: u64, b: u64) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(milli_cpu_to_shares(low) <= milli_cpu_to_shares(high));
            prop_assert!((MIN_SHARES..=MAX_SHARES).contains(&milli_cpu_to_shares(a)));
        }

        #[test]
        fn quota_is_the_ratio(milli in 1_u64..1_000_000, period in 1_000_u64..1_000_000) {
            let quota = milli_cpu_to_quota(milli, period).unwrap();
            prop_assert!(quota >= 1_000);
            let exact = i64::try_from(milli * period / 1000).unwrap();
            prop_assert!(quota == exact.max(1_000));
        }

        #[test]
        fn quota_never_overflows(milli: u64, period: u64) {
            prop_assert!(milli_cpu_to_quota(milli, period).is_none_or(|quota| quota >= 1_000));
        }

        #[test]
        fn swap_and_limit_add_up(limit in 1_i64.., swap in 1_i64..) {
            match swap_to_v2(Some(swap), Some(limit)) {
                Ok(Some(alone)) => prop_assert_eq!(alone + limit, swap),
                Ok(None) => prop_assert!(false),
                Err(_) => prop_assert!(swap < limit),
            }
        }

        #[test]
        fn io_weight_in_range(weight: u16) {
            if let Some(out) = blkio_weight_to_io_weight(weight) {
                prop_assert!((1..=10_000).contains(&out));
            }
        }
    }
}
