//! Limits that are changed while a pod runs.
//!
//! A change is made to the pod's own fields and annotations, so that whatever
//! is made of it later has the new limits too; [`in_force`] gives what has to
//! be written into a cgroup to come from one to the other.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use rkube_engine::api::Resources;
use serde::{Deserialize, Serialize};

use super::memory;
use crate::quantity;

/// A limit's new value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Amount {
    /// There is none any more.
    Unlimited,
    /// A quantity (`500m`, `64Mi`), or a number of processes.
    Of(String),
}

/// What is to be another about a container's limits; what is `None` stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LimitsChange {
    /// The container.
    pub container: String,
    /// `resources.requests.cpu`.
    pub cpu_request: Option<Amount>,
    /// `resources.limits.cpu`.
    pub cpu_limit: Option<Amount>,
    /// `resources.requests.memory`.
    pub memory_request: Option<Amount>,
    /// `resources.limits.memory`.
    pub memory_limit: Option<Amount>,
    /// Annotation [`memory::MEMORY_HIGH`].
    pub memory_high: Option<Amount>,
    /// Annotation [`memory::PIDS_LIMIT`].
    pub pids: Option<Amount>,
}

/// Why a change makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The pod has no such container.
    #[error("there is no container {name:?}")]
    NoContainer {
        /// Its name.
        name: String,
    },
    /// A value that is none.
    #[error("{what}: {value:?} is no quantity above 0")]
    Value {
        /// Of what.
        what: &'static str,
        /// What was given.
        value: String,
    },
    /// Less than what is requested.
    #[error("the {resource} limit of {limit} is below the request of {request}: change it too")]
    BelowRequest {
        /// cpu or memory.
        resource: &'static str,
        /// The limit.
        limit: String,
        /// The request.
        request: String,
    },
}

/// The pod with a change made.
///
/// # Errors
/// There is no such container, or the values make no sense.
pub fn changed(pod: &Pod, change: &LimitsChange) -> Result<Pod, ChangeError> {
    let mut new = pod.clone();
    let container = container_mut(&mut new, &change.container);
    let container = container.ok_or_else(|| ChangeError::NoContainer {
        name: change.container.clone(),
    })?;
    let resources = container.resources.get_or_insert_default();
    for (resource, request, limit) in [
        ("cpu", &change.cpu_request, &change.cpu_limit),
        ("memory", &change.memory_request, &change.memory_limit),
    ] {
        set_pair(resources, resource, request.as_ref(), limit.as_ref())?;
    }
    if *resources == ResourceRequirements::default() {
        container.resources = None;
    }
    for (prefix, what, amount) in [
        (memory::MEMORY_HIGH, "memory high", &change.memory_high),
        (memory::PIDS_LIMIT, "processes", &change.pids),
    ] {
        let key = format!("{prefix}{}", change.container);
        let annotations = new.metadata.annotations.get_or_insert_default();
        match amount {
            None => {}
            Some(Amount::Unlimited) => drop(annotations.remove(&key)),
            Some(Amount::Of(text)) => {
                let Quantity(text) = quantity_of(what, text)?;
                annotations.insert(key, text);
            }
        }
    }
    if pod.metadata.annotations.is_none()
        && new
            .metadata
            .annotations
            .as_ref()
            .is_some_and(BTreeMap::is_empty)
    {
        new.metadata.annotations = None;
    }
    Ok(new)
}

fn container_mut<'a>(pod: &'a mut Pod, name: &str) -> Option<&'a mut Container> {
    let spec = pod.spec.as_mut()?;
    let inits = spec.init_containers.iter_mut().flatten();
    inits.chain(&mut spec.containers).find(|c| c.name == name)
}

fn quantity_of(what: &'static str, text: &str) -> Result<Quantity, ChangeError> {
    let quantity = Quantity(text.to_owned());
    if quantity::millis(&quantity).is_some_and(|n| n > 0) {
        Ok(quantity)
    } else {
        Err(ChangeError::Value {
            what,
            value: text.to_owned(),
        })
    }
}

/// Sets request and limit of one resource. A request that was as high as the
/// limit goes with it: the API sets it so where none is given.
fn set_pair(
    resources: &mut ResourceRequirements,
    resource: &'static str,
    request: Option<&Amount>,
    limit: Option<&Amount>,
) -> Result<(), ChangeError> {
    let (requests, limits) = (&mut resources.requests, &mut resources.limits);
    let get = |map: &Option<BTreeMap<String, Quantity>>| {
        map.as_ref().and_then(|m| m.get(resource)).cloned()
    };
    let followed = get(requests).is_some() && get(requests) == get(limits);
    let request = match (request, limit) {
        (None, Some(limit)) if followed => Some(limit),
        (request, _) => request,
    };
    for (map, amount) in [(&mut *requests, request), (&mut *limits, limit)] {
        match amount {
            None => {}
            Some(Amount::Unlimited) => {
                if let Some(map) = map {
                    map.remove(resource);
                }
            }
            Some(Amount::Of(text)) => {
                let quantity = quantity_of(resource, text)?;
                let map = map.get_or_insert_default();
                map.insert(resource.to_owned(), quantity);
            }
        }
        if map.as_ref().is_some_and(BTreeMap::is_empty) {
            *map = None;
        }
    }
    if let (Some(request), Some(limit)) = (get(requests), get(limits))
        && quantity::millis(&request) > quantity::millis(&limit)
    {
        return Err(ChangeError::BelowRequest {
            resource,
            limit: limit.0,
            request: request.0,
        });
    }
    Ok(())
}

/// What is written to come from `old` limits to `new` ones: a limit that is
/// no more is written as none (-1), since what is absent stays as it is.
#[must_use]
pub fn in_force(old: &Resources, new: &Resources) -> Resources {
    let over = |old: Option<i64>, new: Option<i64>| new.or(old.map(|_| -1));
    Resources {
        cpu_quota_us: over(old.cpu_quota_us, new.cpu_quota_us),
        memory_limit_bytes: over(old.memory_limit_bytes, new.memory_limit_bytes),
        memory_swap_bytes: over(old.memory_swap_bytes, new.memory_swap_bytes),
        memory_high_bytes: over(old.memory_high_bytes, new.memory_high_bytes),
        pids_limit: over(old.pids_limit, new.pids_limit),
        ..new.clone()
    }
}

/// Limits that neither of two is held back by: those of a pod while one of its
/// containers goes from one to the other.
#[must_use]
pub fn widest(one: &Resources, other: &Resources) -> Resources {
    let most = |a: Option<i64>, b: Option<i64>| Some(a?.max(b?));
    Resources {
        cpu_shares: one.cpu_shares.max(other.cpu_shares),
        cpu_quota_us: most(one.cpu_quota_us, other.cpu_quota_us),
        cpu_period_us: one.cpu_period_us.or(other.cpu_period_us),
        memory_limit_bytes: most(one.memory_limit_bytes, other.memory_limit_bytes),
        memory_swap_bytes: most(one.memory_swap_bytes, other.memory_swap_bytes),
        pids_limit: most(one.pids_limit, other.pids_limit),
        ..other.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod as pod_of;
    use serde_json::json;

    fn of(text: &str) -> Option<Amount> {
        Some(Amount::Of(text.to_owned()))
    }

    fn change(set: impl FnOnce(&mut LimitsChange)) -> LimitsChange {
        let mut change = LimitsChange {
            container: "a".to_owned(),
            ..LimitsChange::default()
        };
        set(&mut change);
        change
    }

    #[test]
    fn limits_are_set_changed_and_taken_away() {
        let bare = pod_of(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
        let limited = changed(
            &bare,
            &change(|c| {
                c.cpu_limit = of("500m");
                c.memory_limit = of("64Mi");
                c.pids = of("20");
                c.memory_high = of("48Mi");
            }),
        )
        .unwrap();
        let resources = limited.spec.as_ref().unwrap().containers[0]
            .resources
            .clone()
            .unwrap();
        assert_eq!(resources.limits.as_ref().unwrap()["memory"].0, "64Mi");
        assert!(resources.requests.is_none());
        let annotations = limited.metadata.annotations.clone().unwrap();
        assert_eq!(annotations["pids-limit.rkube.dev/a"], "20");
        assert_eq!(annotations["memory-high.rkube.dev/a"], "48Mi");
        let none = Some(Amount::Unlimited);
        let back = changed(
            &limited,
            &change(|c| {
                c.cpu_limit = none.clone();
                c.memory_limit = none.clone();
                c.pids = none.clone();
                c.memory_high = none;
            }),
        )
        .unwrap();
        assert_eq!(back.spec, bare.spec);
    }

    #[test]
    fn a_request_goes_with_its_limit_or_is_named() {
        let pod = pod_of(json!({"containers": [{"name": "a", "resources": {
            "limits": {"cpu": "1", "memory": "1Gi"},
            "requests": {"cpu": "1", "memory": "512Mi"}}}]}));
        let lower = changed(&pod, &change(|c| c.cpu_limit = of("200m"))).unwrap();
        let resources = lower.spec.as_ref().unwrap().containers[0]
            .resources
            .clone()
            .unwrap();
        assert_eq!(resources.requests.unwrap()["cpu"].0, "200m");
        let error = changed(&pod, &change(|c| c.memory_limit = of("256Mi"))).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the memory limit of 256Mi is below the request of 512Mi: change it too"
        );
        let both = change(|c| {
            c.memory_limit = of("256Mi");
            c.memory_request = of("128Mi");
        });
        assert!(changed(&pod, &both).is_ok());
        for bad in ["0", "-1", "much", ""] {
            assert!(
                changed(&pod, &change(|c| c.memory_limit = of(bad))).is_err(),
                "{bad}"
            );
        }
        let mut other = change(|c| c.cpu_limit = of("1"));
        other.container = "z".to_owned();
        assert!(matches!(
            changed(&pod, &other),
            Err(ChangeError::NoContainer { .. })
        ));
    }

    #[test]
    fn what_is_no_more_is_written_as_none() {
        let limits = |memory: Option<i64>, quota: Option<i64>| Resources {
            memory_limit_bytes: memory,
            memory_swap_bytes: memory,
            cpu_quota_us: quota,
            ..Resources::default()
        };
        let (old, new) = (limits(Some(64), Some(7)), limits(None, Some(9)));
        let written = in_force(&old, &new);
        assert_eq!(written.memory_limit_bytes, Some(-1));
        assert_eq!(written.cpu_quota_us, Some(9));
        assert_eq!(written.pids_limit, None);
        let wide = widest(&old, &new);
        assert_eq!(
            (wide.memory_limit_bytes, wide.cpu_quota_us),
            (None, Some(9))
        );
    }
}
