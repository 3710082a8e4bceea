//! Whether a container may use the image that is in the store, has to pull
//! it, or gets none: pure (kubernetes.io, "Images", "Image pull policy"; KEP-2535,
//! ensure secret pulled images, with its default `NeverVerifyPreloadedImages`).

/// `imagePullPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// The registry is asked each time.
    Always,
    /// Only if the store has none.
    IfNotPresent,
    /// Not at all.
    Never,
}

impl Policy {
    /// Of a container; defaults were set with the manifest.
    #[must_use]
    pub fn of(text: Option<&str>) -> Self {
        match text {
            Some("Always") => Self::Always,
            Some("Never") => Self::Never,
            _ => Self::IfNotPresent,
        }
    }
}

/// Where the store's image is from, as far as it matters to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// No pod pulled it, or it needed no credential of a pod.
    Open,
    /// It was pulled with a credential that the pod has too.
    Proven,
    /// It was pulled with credentials that the pod does not have.
    Closed,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Take what is there.
    Use,
    /// Ask the registry.
    Pull,
    /// There is none and none may be pulled (`ErrImageNeverPull`).
    Missing,
    /// There is one which the pod may not have (`ErrImageNeverPull`).
    Withheld,
}

/// Decides; `present` is the access to the image that the store has.
#[must_use]
pub fn decide(policy: Policy, present: Option<Access>) -> Decision {
    match (policy, present) {
        (Policy::Always, _) | (Policy::IfNotPresent, None | Some(Access::Closed)) => Decision::Pull,
        (_, Some(Access::Open | Access::Proven)) => Decision::Use,
        (Policy::Never, None) => Decision::Missing,
        (Policy::Never, Some(Access::Closed)) => Decision::Withheld,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_and_access() {
        use Decision::{Missing, Pull, Use, Withheld};
        let present = [
            None,
            Some(Access::Open),
            Some(Access::Proven),
            Some(Access::Closed),
        ];
        let all = |policy| present.map(|p| decide(policy, p));
        assert_eq!(all(Policy::Always), [Pull, Pull, Pull, Pull]);
        assert_eq!(all(Policy::IfNotPresent), [Pull, Use, Use, Pull]);
        assert_eq!(all(Policy::Never), [Missing, Use, Use, Withheld]);
        assert_eq!(Policy::of(None), Policy::IfNotPresent);
        assert_eq!(Policy::of(Some("Always")), Policy::Always);
    }
}
