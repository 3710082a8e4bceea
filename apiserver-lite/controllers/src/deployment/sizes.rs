//! How large each ReplicaSet of a Deployment shall be: pure functions.
//!
//! Rules: upstream's `rolling.go`, `recreate.go`, `sync.go` and
//! `util/deployment_util.go`.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, RollingUpdateDeployment};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Sets;
use crate::owner::{self, Labels};

/// The size that the Deployment had when a set was sized last.
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// The most pods that the Deployment could have then.
pub(super) const MAX: &str = "deployment.kubernetes.io/max-replicas";

/// A set and its new size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) uid: String,
    pub(super) size: i32,
}

impl Target {
    fn new(set: &ReplicaSet, size: i32) -> Self {
        Self {
            uid: owner::uid(set).to_owned(),
            size,
        }
    }
}

/// `spec.replicas` of a set.
pub(super) fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// `spec.replicas` of a Deployment.
pub(super) fn desired(deployment: &Deployment) -> i32 {
    let spec = deployment.spec.as_ref();
    spec.and_then(|s| s.replicas).unwrap_or(1)
}

pub(super) fn is_paused(deployment: &Deployment) -> bool {
    let spec = deployment.spec.as_ref();
    spec.and_then(|s| s.paused).unwrap_or(false)
}

fn strategy(deployment: &Deployment) -> Option<&RollingUpdateDeployment> {
    let strategy = deployment.spec.as_ref()?.strategy.as_ref()?;
    strategy.rolling_update.as_ref()
}

/// Whether all old pods go before the first new one comes.
pub(super) fn recreates(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate")
}

/// A number, or a percentage of a whole.
pub(crate) fn resolve(value: Option<&IntOrString>, whole: i32, up: bool) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = percent.saturating_mul(whole.into());
            let rounded = if up {
                product.saturating_add(99) / 100
            } else {
                product / 100
            };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}

/// How many pods a rollout may have too many, and too few (`ResolveFenceposts`).
pub(super) fn fence_posts(deployment: &Deployment) -> (i32, i32) {
    let whole = desired(deployment);
    let rolling = strategy(deployment);
    let surge = resolve(rolling.and_then(|r| r.max_surge.as_ref()), whole, true);
    let unavailable = rolling.and_then(|r| r.max_unavailable.as_ref());
    let unavailable = resolve(unavailable, whole, false);
    if surge == 0 && unavailable == 0 {
        // Both may round to nothing; then one pod at a time may miss.
        return (0, 1);
    }
    (surge, unavailable)
}

fn max_surge(deployment: &Deployment) -> i32 {
    if recreates(deployment) {
        return 0;
    }
    fence_posts(deployment).0
}

/// How many pods may miss.
pub(super) fn max_unavailable(deployment: &Deployment) -> i32 {
    if recreates(deployment) || desired(deployment) == 0 {
        return 0;
    }
    fence_posts(deployment).1.min(desired(deployment))
}

/// The annotations of a set that is sized.
pub(super) fn annotations(deployment: &Deployment) -> Labels {
    let desired = desired(deployment);
    let max = desired.saturating_add(max_surge(deployment));
    [
        (DESIRED.to_owned(), desired.to_string()),
        (MAX.to_owned(), max.to_string()),
    ]
    .into()
}

fn total(sets: &[Arc<ReplicaSet>]) -> i32 {
    sets.iter()
        .map(|s| replicas(s))
        .fold(0, i32::saturating_add)
}

fn available(set: &ReplicaSet) -> i32 {
    let status = set.status.as_ref();
    status.and_then(|s| s.available_replicas).unwrap_or(0)
}

/// The size of the new set (`NewRSNewReplicas`); `own` is it, if it is there.
pub(super) fn of_new(
    deployment: &Deployment,
    all: &[Arc<ReplicaSet>],
    own: Option<&ReplicaSet>,
) -> i32 {
    let desired = desired(deployment);
    if recreates(deployment) {
        return desired;
    }
    let own = own.map_or(0, replicas);
    let room = desired
        .saturating_add(max_surge(deployment))
        .saturating_sub(total(all));
    if room <= 0 {
        return own;
    }
    own + room.min(desired - own)
}

/// Makes the new set larger as far as the surge allows, or smaller if it is
/// too large.
pub(super) fn roll_up(deployment: &Deployment, sets: &Sets) -> Vec<Target> {
    let Some(new) = &sets.new else {
        return Vec::new();
    };
    let (now, desired) = (replicas(new), desired(deployment));
    let size = match now.cmp(&desired) {
        std::cmp::Ordering::Equal => return Vec::new(),
        std::cmp::Ordering::Greater => desired,
        std::cmp::Ordering::Less => of_new(deployment, &sets.all(), Some(new)),
    };
    if size == now {
        return Vec::new();
    }
    vec![Target::new(new, size)]
}

/// The sets from the oldest on.
fn by_age(sets: &[Arc<ReplicaSet>]) -> Vec<Arc<ReplicaSet>> {
    let mut sets = sets.to_vec();
    sets.sort_by(|a, b| age(a).cmp(&age(b)));
    sets
}

/// When a set was made, and its name for those of the same second.
pub(super) fn age(set: &ReplicaSet) -> (i64, &str) {
    let at = set.metadata.creation_timestamp.as_ref();
    (at.map_or(i64::MAX, |t| t.0.as_second()), owner::name(set))
}

/// Makes old sets smaller: first what is not available anyway, then as many
/// pods as may miss.
pub(super) fn roll_down(deployment: &Deployment, sets: &Sets) -> Vec<Target> {
    let all = sets.all();
    if total(&sets.old) == 0 {
        return Vec::new();
    }
    let least = desired(deployment) - max_unavailable(deployment);
    let new_missing = sets.new.as_ref().map_or(0, |n| replicas(n) - available(n));
    let surplus = total(&all) - least - new_missing;
    if surplus <= 0 {
        return Vec::new();
    }
    let mut old: Vec<(Arc<ReplicaSet>, i32)> = by_age(&sets.old)
        .into_iter()
        .map(|set| {
            let size = replicas(&set);
            (set, size)
        })
        .collect();
    let mut left = surplus;
    for (set, size) in &mut old {
        let unhealthy = (*size - available(set)).max(0).min(left).min(*size);
        *size -= unhealthy;
        left -= unhealthy;
    }
    let available: i32 = all.iter().map(|s| available(s)).sum();
    let mut left = (available - least).max(0);
    for (_, size) in &mut old {
        let down = (*size).min(left);
        *size -= down;
        left -= down;
    }
    old.into_iter()
        .filter(|(set, size)| replicas(set) != *size)
        .map(|(set, size)| Target::new(&set, size))
        .collect()
}

/// Every set that is not empty becomes so.
pub(super) fn down_to_nothing(sets: &[Arc<ReplicaSet>]) -> Vec<Target> {
    let full = sets.iter().filter(|s| replicas(s) != 0);
    full.map(|s| Target::new(s, 0)).collect()
}

/// The new set gets all pods.
pub(super) fn up_to_all(deployment: &Deployment, sets: &Sets) -> Vec<Target> {
    let new = sets.new.iter();
    new.filter(|s| replicas(s) != desired(deployment))
        .map(|s| Target::new(s, desired(deployment)))
        .collect()
}

fn annotation(set: &ReplicaSet, key: &str) -> Option<i32> {
    set.metadata.annotations.as_ref()?.get(key)?.parse().ok()
}

/// Whether the Deployment was given another size since its sets were sized.
pub(super) fn is_scaling(deployment: &Deployment, owned: &[Arc<ReplicaSet>]) -> bool {
    let mut active = owned.iter().filter(|s| replicas(s) > 0);
    active.any(|s| annotation(s, DESIRED).is_some_and(|d| d != desired(deployment)))
}

/// Whether the new set has and shows everything (`IsSaturated`).
fn is_saturated(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let all = desired(deployment);
    replicas(set) == all && annotation(set, DESIRED) == Some(all) && available(set) == all
}

/// Spreads another size of the Deployment over its sets.
pub(super) fn scale(deployment: &Deployment, sets: &Sets) -> Vec<Target> {
    let all = sets.all();
    let active: Vec<_> = all.iter().filter(|s| replicas(s) > 0).cloned().collect();
    let one = match active.as_slice() {
        [] => sets
            .new
            .clone()
            .or_else(|| by_age(&sets.old).last().cloned()),
        [one] => Some(Arc::clone(one)),
        _ => None,
    };
    if active.len() <= 1 {
        return one
            .filter(|set| {
                // One that has the size already must show it, or it scales for ever.
                let size = Some(desired(deployment));
                Some(replicas(set)) != size || annotation(set, DESIRED) != size
            })
            .map(|set| Target::new(&set, desired(deployment)))
            .into_iter()
            .collect();
    }
    if sets
        .new
        .as_ref()
        .is_some_and(|n| is_saturated(deployment, n))
    {
        return down_to_nothing(&sets.old);
    }
    if recreates(deployment) {
        return Vec::new();
    }
    proportional(deployment, active)
}

/// Each set gets its share of what is to be added or taken, the largest
/// first and the rest too.
fn proportional(deployment: &Deployment, mut active: Vec<Arc<ReplicaSet>>) -> Vec<Target> {
    let allowed = if desired(deployment) > 0 {
        desired(deployment).saturating_add(max_surge(deployment))
    } else {
        0
    };
    let change = allowed - total(&active);
    // Growth favours the newer of equals, shrinking spares it.
    active.sort_by(|a, b| {
        let older = age(a).cmp(&age(b));
        replicas(b)
            .cmp(&replicas(a))
            .then(if change > 0 { older.reverse() } else { older })
    });
    let mut given = 0;
    let mut sizes: Vec<i32> = Vec::new();
    for set in &active {
        let mut size = replicas(set);
        if change != 0 {
            let share = share(deployment, set, change, given);
            size += share;
            given += share;
        }
        sizes.push(size);
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + change - given).max(0);
    }
    active
        .iter()
        .zip(sizes)
        .map(|(set, size)| Target::new(set, size))
        .filter(|t| {
            let set = active.iter().find(|s| owner::uid(&***s) == t.uid);
            // The annotations have to follow even where the size does not.
            set.is_some_and(|s| {
                replicas(s) != t.size || annotation(s, DESIRED) != Some(desired(deployment))
            })
        })
        .collect()
}

fn share(deployment: &Deployment, set: &ReplicaSet, change: i32, given: i32) -> i32 {
    if replicas(set) == 0 || change == 0 || change == given {
        return 0;
    }
    let left = change - given;
    let fraction = fraction(deployment, set);
    if change > 0 {
        fraction.min(left)
    } else {
        fraction.max(left)
    }
}

/// How much a set would change if all kept their proportions.
fn fraction(deployment: &Deployment, set: &ReplicaSet) -> i32 {
    let size = replicas(set);
    if desired(deployment) == 0 {
        return -size;
    }
    let most = desired(deployment).saturating_add(max_surge(deployment));
    let before = annotation(set, MAX).filter(|m| *m > 0).or_else(|| {
        let status = deployment.status.as_ref();
        status.and_then(|s| s.replicas).filter(|r| *r > 0)
    });
    let before = i64::from(before.unwrap_or(most).max(1));
    // Rounded to the nearest.
    let scaled = (i64::from(size) * i64::from(most) * 2 + before) / (2 * before);
    i32::try_from(scaled).unwrap_or(i32::MAX) - size
}
