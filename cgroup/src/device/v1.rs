//! The same list for v1's device controller.
//!
//! It keeps one default and a set of exceptions of the other sign. Writing
//! to `devices.allow` under the default "deny" adds an exception, writing to
//! `devices.deny` takes one off that is *exactly* the same and ignores
//! anything else (security/device_cgroup.c); the other way round under
//! "allow". So a refusal of part of what was allowed would be lost; such
//! lists are an error here, never a wider permission.

use std::collections::{BTreeMap, BTreeSet};

use super::{Access, DeviceKind, DeviceRule, DeviceRules};
use crate::error::{Error, Result};
use crate::file::Dir;
use crate::hierarchy::{Controller, Mode};

/// Kind, major, minor; `None` is any.
type Device = (DeviceKind, Option<u32>, Option<u32>);

/// What the controller holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    /// The answer without an exception: allow or deny.
    default: bool,
    /// Exceptions and the kinds of access they are about.
    exceptions: BTreeMap<Device, u8>,
    /// Devices as the list first names them: their exceptions are written in
    /// this order (runtime-spec, config-linux.md, Allowed Device list).
    order: Vec<Device>,
}

/// Puts a list in force: only the difference is written, so that processes
/// inside lose nothing for a moment that they keep.
pub(super) fn apply(dir: &Dir, rules: &DeviceRules, mode: Mode) -> Result<()> {
    let target = plan(rules).map_err(|reason| Error::NotExpressible {
        controller: Controller::Devices,
        file: "devices.allow, devices.deny".to_owned(),
        mode,
        setting: "devices".to_owned(),
        reason,
    })?;
    let current = parse(&dir.read("devices.list")?);
    for (file, line) in difference(current.as_ref(), &target) {
        dir.write(file, &line)?;
    }
    Ok(())
}

/// The state that a list means, or why there is none.
fn plan(rules: &DeviceRules) -> std::result::Result<State, &'static str> {
    let (default, rules) = rules.effective();
    let mut state = State {
        default,
        ..State::default()
    };
    for rule in rules {
        let kinds: &[DeviceKind] = match &rule.kind {
            Some(kind) => std::slice::from_ref(kind),
            None => &[DeviceKind::Block, DeviceKind::Char],
        };
        for kind in kinds {
            let device = (*kind, rule.major, rule.minor);
            if rule.allow == default {
                take_off(&mut state, device, rule)?;
            } else {
                *state.exceptions.entry(device).or_insert_with(|| {
                    state.order.push(device);
                    0
                }) |= rule.access.bits();
            }
        }
    }
    Ok(state)
}

/// A rule of the default's own sign ends exceptions; all of one or none.
fn take_off(
    state: &mut State,
    device: Device,
    rule: &DeviceRule,
) -> std::result::Result<(), &'static str> {
    let covers = |own: Option<u32>, other: Option<u32>| own.is_none() || own == other;
    let meets =
        |one: Option<u32>, other: Option<u32>| one.is_none() || other.is_none() || one == other;
    let bits = rule.access.bits();
    for (other, access) in &mut state.exceptions {
        let touched = other.0 == device.0
            && meets(other.1, device.1)
            && meets(other.2, device.2)
            && *access & bits != 0;
        if !touched {
            continue;
        }
        if !(covers(device.1, other.1) && covers(device.2, other.2)) {
            return Err("a rule takes back part of an earlier one, v1 keeps only whole exceptions");
        }
        *access &= !bits;
    }
    state.exceptions.retain(|_, access| *access != 0);
    Ok(())
}

/// Reads `devices.list`, `None` if it has something unknown.
fn parse(text: &str) -> Option<State> {
    let mut state = State::default();
    for line in text.lines() {
        if line.trim() == "a *:* rwm" {
            // The default "allow" shows no exceptions.
            return None;
        }
        let mut parts = line.split_ascii_whitespace();
        let kind = match parts.next()? {
            "b" => DeviceKind::Block,
            "c" => DeviceKind::Char,
            _ => return None,
        };
        let (major, minor) = parts.next()?.split_once(':')?;
        let number = |text: &str| match text {
            "*" => Some(None),
            text => text.parse().ok().map(Some),
        };
        let access = Access::parse(parts.next()?)?;
        *state
            .exceptions
            .entry((kind, number(major)?, number(minor)?))
            .or_default() |= access.bits();
    }
    Some(state)
}

/// The writes that lead from one state to another. A current state that is
/// not known, or has the other default, is set anew.
fn difference(current: Option<&State>, target: &State) -> Vec<(&'static str, String)> {
    let (add, remove) = if target.default {
        ("devices.deny", "devices.allow")
    } else {
        ("devices.allow", "devices.deny")
    };
    let mut writes = Vec::new();
    let empty = BTreeMap::new();
    let have = match current {
        Some(state) if state.default == target.default => &state.exceptions,
        _ => {
            // A bare `a` sets the default and clears all exceptions.
            writes.push((remove, "a".to_owned()));
            &empty
        }
    };
    for (device, access) in have {
        let keep = target.exceptions.get(device).copied().unwrap_or(0);
        push(&mut writes, remove, device, access & !keep);
    }
    // One that was taken off and came back is named twice.
    let mut done = BTreeSet::new();
    for device in target.order.iter().filter(|device| done.insert(*device)) {
        let access = target.exceptions.get(device).copied().unwrap_or(0);
        let there = have.get(device).copied().unwrap_or(0);
        push(&mut writes, add, device, access & !there);
    }
    writes
}

/// One line, if it is about anything.
fn push(writes: &mut Vec<(&'static str, String)>, file: &'static str, device: &Device, bits: u8) {
    if bits == 0 {
        return;
    }
    let kind = match device.0 {
        DeviceKind::Block => 'b',
        DeviceKind::Char => 'c',
    };
    let number = |number: Option<u32>| number.map_or("*".to_owned(), |n| n.to_string());
    let access = Access::from_bits(bits).letters();
    writes.push((
        file,
        format!("{kind} {}:{} {access}", number(device.1), number(device.2)),
    ));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::rules_allow;
    use super::*;

    fn rule(
        allow: bool,
        kind: Option<DeviceKind>,
        major: Option<u32>,
        minor: Option<u32>,
        bits: u8,
    ) -> DeviceRule {
        DeviceRule {
            allow,
            kind,
            major,
            minor,
            access: Access::from_bits(bits),
        }
    }

    /// v1's answer: one exception must be about all that is wanted to allow
    /// (default deny); one that is about any of it refuses (default allow).
    fn v1_allows(state: &State, kind: DeviceKind, major: u32, minor: u32, access: u8) -> bool {
        let mut matching = state.exceptions.iter().filter(|(device, _)| {
            device.0 == kind
                && device.1.is_none_or(|n| n == major)
                && device.2.is_none_or(|n| n == minor)
        });
        if state.default {
            !matching.any(|(_, bits)| bits & access != 0)
        } else {
            matching.any(|(_, bits)| access & !bits == 0)
        }
    }

    fn any_rule() -> impl Strategy<Value = DeviceRule> {
        let number = || prop_oneof![Just(None), (0_u32..2).prop_map(Some)];
        let kind = prop_oneof![
            Just(None),
            Just(Some(DeviceKind::Block)),
            Just(Some(DeviceKind::Char))
        ];
        (any::<bool>(), kind, number(), number(), 1_u8..8)
            .prop_map(|(allow, kind, major, minor, bits)| rule(allow, kind, major, minor, bits))
    }

    proptest! {
        #[test]
        fn v1_never_allows_more_and_single_accesses_agree(
            rules in proptest::collection::vec(any_rule(), 0..8),
            major in 0_u32..3,
            minor in 0_u32..3,
            char in any::<bool>(),
            bits in 1_u8..8,
        ) {
            let kind = if char { DeviceKind::Char } else { DeviceKind::Block };
            let rules = DeviceRules::new(rules).unwrap();
            if let Ok(state) = plan(&rules) {
                let v1 = v1_allows(&state, kind, major, minor, bits);
                let reference = rules_allow(&rules, kind, major, minor, Access::from_bits(bits));
                prop_assert!(reference || !v1);
                if bits.count_ones() == 1 {
                    prop_assert_eq!(v1, reference);
                }
            }
        }

        #[test]
        fn differences_lead_to_the_target(
            from in proptest::collection::vec(any_rule(), 0..8),
            to in proptest::collection::vec(any_rule(), 0..8),
        ) {
            let from = plan(&DeviceRules::new(from).unwrap());
            let to = plan(&DeviceRules::new(to).unwrap());
            if let (Ok(from), Ok(to)) = (from, to) {
                let mut state = from.clone();
                for (file, line) in difference(Some(&from), &to) {
                    let allow = file == "devices.allow";
                    if line == "a" {
                        state = State { default: allow, ..State::default() };
                        continue;
                    }
                    let written = parse(&line).unwrap();
                    for (device, bits) in written.exceptions {
                        let entry = state.exceptions.entry(device).or_default();
                        if allow == state.default { *entry &= !bits } else { *entry |= bits }
                    }
                    state.exceptions.retain(|_, bits| *bits != 0);
                }
                prop_assert_eq!((state.default, state.exceptions), (to.default, to.exceptions));
            }
        }
    }

    #[test]
    fn a_hole_is_refused() {
        let rules = DeviceRules::new(vec![
            rule(true, Some(DeviceKind::Char), None, None, 7),
            rule(false, Some(DeviceKind::Char), Some(1), Some(3), 7),
        ]);
        assert!(plan(&rules.unwrap()).is_err());
    }
}
