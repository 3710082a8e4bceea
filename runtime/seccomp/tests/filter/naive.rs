//! A profile read rule by rule, without any tree, and random profiles.

use std::collections::BTreeSet;

use oci_spec::runtime::{
    Arch as OciArch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg,
    LinuxSeccompArgBuilder, LinuxSeccompOperator as Op, LinuxSyscall,
};
use proptest::prelude::*;
use rkube_seccomp::{Arch, Program, ret};

use crate::machine::{Call, run};

const X32_BIT: u32 = 0x4000_0000;

/// The architecture whose rules are for this call, if it is listed.
fn arch_of(call: &Call, listed: &[Arch]) -> Option<Arch> {
    let arch = match call.audit {
        0xc000_003e if call.number >= X32_BIT && listed.contains(&Arch::X32) => Arch::X32,
        0xc000_003e if call.number >= X32_BIT && call.number != u32::MAX => return None,
        0xc000_003e => Arch::X86_64,
        0x4000_0003 => Arch::X86,
        0xc000_00b7 => Arch::Aarch64,
        0x4000_0028 => Arch::Arm,
        _ => return None,
    };
    listed.contains(&arch).then_some(arch)
}

fn holds(arg: &LinuxSeccompArg, call: &Call, wide: bool) -> bool {
    let cut = |v: u64| if wide { v } else { v & 0xffff_ffff };
    let (actual, value) = (cut(call.args[arg.index()]), cut(arg.value()));
    match arg.op() {
        Op::ScmpCmpEq => actual == value,
        Op::ScmpCmpNe => actual != value,
        Op::ScmpCmpLt => actual < value,
        Op::ScmpCmpLe => actual <= value,
        Op::ScmpCmpGt => actual > value,
        Op::ScmpCmpGe => actual >= value,
        Op::ScmpCmpMaskedEq => actual & value == cut(arg.value_two().unwrap_or(0)) & value,
    }
}

fn value(action: Action, errno: Option<u32>) -> u32 {
    action.as_u32(errno)
}

/// A profile with its names looked up once.
pub(crate) struct Reading<'a> {
    spec: &'a LinuxSeccomp,
    default: u32,
    listed: Vec<Arch>,
    /// For each architecture: entry, number, multiplexer and its selector.
    names: Vec<(Arch, Vec<Named>)>,
}

struct Named {
    entry: usize,
    number: Option<u32>,
    selector: Option<(u32, u64)>,
}

impl<'a> Reading<'a> {
    pub(crate) fn new(spec: &'a LinuxSeccomp, native: Arch) -> Self {
        let mut listed = vec![native];
        for arch in spec.architectures().as_deref().unwrap_or_default() {
            listed.extend(native.family().iter().filter(|a| token(**a) == *arch));
        }
        let mut names = Vec::new();
        for &arch in &listed {
            let mut of_arch = Vec::new();
            for (entry, rule) in spec.syscalls().iter().flatten().enumerate() {
                of_arch.extend(rule.names().iter().map(|name| {
                    Named {
                        entry,
                        number: arch.number(name),
                        selector: arch
                            .multiplexed(name)
                            .map(|(by, n)| (arch.number(by).unwrap(), n)),
                    }
                }));
            }
            names.push((arch, of_arch));
        }
        Self {
            spec,
            default: value(spec.default_action(), spec.default_errno_ret()),
            listed,
            names,
        }
    }

    /// The verdict as the crate's documentation words it.
    pub(crate) fn verdict(&self, call: &Call) -> u32 {
        let Some(arch) = arch_of(call, &self.listed) else {
            return ret::KILL_THREAD;
        };
        let entries = self.spec.syscalls().as_deref().unwrap_or_default();
        let (_, names) = self.names.iter().find(|(a, _)| *a == arch).unwrap();
        let mut unconditional = None;
        let mut conditional = None;
        for name in names {
            let direct = name.number == Some(call.number);
            let selected = name
                .selector
                .is_some_and(|(by, n)| by == call.number && call.args[0] & 0xffff_ffff == n);
            if !direct && !selected {
                continue;
            }
            let entry = &entries[name.entry];
            let action = value(entry.action(), entry.errno_ret());
            if action == self.default {
                continue;
            }
            let args = entry.args().as_deref().unwrap_or_default();
            // A comparison under a mask without bits is none.
            let wide = arch.is_64_bit();
            let cut = |v: u64| if wide { v } else { v & 0xffff_ffff };
            let void =
                |arg: &LinuxSeccompArg| arg.op() == Op::ScmpCmpMaskedEq && cut(arg.value()) == 0;
            let repeated = (0..6).any(|i| args.iter().filter(|a| a.index() == i).count() > 1);
            let one_is_enough = |tests: Vec<bool>| match repeated {
                true => tests.contains(&true),
                false => !tests.contains(&false),
            };
            if direct && one_is_enough(args.iter().map(void).collect()) {
                unconditional = unconditional.or(Some(action));
            }
            let matches = |by_selector: bool| {
                let test = |arg: &LinuxSeccompArg| {
                    by_selector && arg.index() == 0 || holds(arg, call, wide)
                };
                one_is_enough(args.iter().map(test).collect())
            };
            if direct && matches(false) || selected && matches(true) {
                conditional = conditional.or(Some(action));
            }
        }
        if let Some(action) = unconditional.or(conditional) {
            return action;
        }
        let refuses = !matches!(self.default, ret::ALLOW | ret::LOG)
            && self.default >> 16 != ret::TRACE >> 16;
        let private = arch == Arch::Arm && call.number >= 0xf_0000;
        let numbers = names.iter().filter_map(|name| name.number);
        match numbers.filter(|n| n & !X32_BIT < 0xf_0000).max() {
            Some(newest) if refuses && !private && call.number > newest => ret::ERRNO | 38,
            _ => self.default,
        }
    }
}

pub(crate) fn token(arch: Arch) -> OciArch {
    match arch {
        Arch::X86_64 => OciArch::ScmpArchX86_64,
        Arch::X86 => OciArch::ScmpArchX86,
        Arch::X32 => OciArch::ScmpArchX32,
        Arch::Aarch64 => OciArch::ScmpArchAarch64,
        Arch::Arm => OciArch::ScmpArchArm,
    }
}

pub(crate) fn rule(
    names: &[&str],
    action: Action,
    errno: Option<u32>,
    args: &[LinuxSeccompArg],
) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.iter().map(|&name| name.to_owned()).collect())
        .set_action(action)
        .set_errno_ret(errno)
        .set_args((!args.is_empty()).then(|| args.to_vec()));
    rule
}

pub(crate) fn arg(index: usize, op: Op, value: u64, two: u64) -> LinuxSeccompArg {
    LinuxSeccompArgBuilder::default()
        .index(index)
        .op(op)
        .value(value)
        .value_two(two)
        .build()
        .unwrap()
}

pub(crate) fn profile(
    default: Action,
    errno: Option<u32>,
    archs: &[Arch],
    rules: Vec<LinuxSyscall>,
) -> LinuxSeccomp {
    let mut spec = LinuxSeccomp::default();
    spec.set_default_action(default)
        .set_default_errno_ret(errno)
        .set_architectures(Some(archs.iter().map(|&a| token(a)).collect()))
        .set_syscalls(Some(rules));
    spec
}

fn values() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..4_u64,
        Just(u64::MAX),
        Just(0xffff_ffff),
        Just(1 << 32),
        Just(0x7e02_0000),
        (0..4_u64, 0..4_u64).prop_map(|(high, low)| high << 32 | low),
        any::<u64>(),
    ]
}

fn operators() -> impl Strategy<Value = Op> {
    prop::sample::select(vec![
        Op::ScmpCmpEq,
        Op::ScmpCmpNe,
        Op::ScmpCmpLt,
        Op::ScmpCmpLe,
        Op::ScmpCmpGt,
        Op::ScmpCmpGe,
        Op::ScmpCmpMaskedEq,
    ])
}

fn actions() -> impl Strategy<Value = (Action, Option<u32>)> {
    prop_oneof![
        Just((Action::ScmpActAllow, None)),
        Just((Action::ScmpActAllow, None)),
        (1..5_u32).prop_map(|e| (Action::ScmpActErrno, Some(e))),
        Just((Action::ScmpActErrno, None)),
        (0..5_u32).prop_map(|e| (Action::ScmpActTrace, Some(e))),
        Just((Action::ScmpActLog, None)),
        Just((Action::ScmpActTrap, None)),
        Just((Action::ScmpActKill, None)),
        Just((Action::ScmpActKillProcess, None)),
    ]
}

fn rules() -> impl Strategy<Value = LinuxSyscall> {
    let some: Vec<&'static str> = rkube_seccomp::syscall_names().step_by(7).collect();
    let special = vec![
        "socket",
        "socketcall",
        "semop",
        "ipc",
        "clone",
        "read",
        "set_tls",
        "nonsense",
    ];
    let name = prop_oneof![prop::sample::select(some), prop::sample::select(special)];
    let args = prop_oneof![
        2 => Just(Vec::new()),
        3 => prop::collection::vec((0..6_usize, operators(), values(), values()), 1..4),
    ];
    (prop::collection::vec(name, 1..20), actions(), args).prop_map(
        |(names, (action, errno), args)| {
            let args: Vec<_> = args
                .into_iter()
                .map(|(i, o, a, b)| arg(i, o, a, b))
                .collect();
            rule(&names, action, errno, &args)
        },
    )
}

pub(crate) fn profiles(native: Arch) -> impl Strategy<Value = LinuxSeccomp> {
    let family = native.family();
    let archs = prop::sample::subsequence(family.to_vec(), 0..=family.len());
    (actions(), archs, prop::collection::vec(rules(), 0..25))
        .prop_map(|((action, errno), archs, rules)| profile(action, errno, &archs, rules))
}

/// Which numbers to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numbers {
    /// All that exist.
    All,
    /// Those of the profile, and their neighbours.
    Named,
}

/// Numbers and arguments worth trying on `spec`.
pub(crate) fn calls(spec: &LinuxSeccomp, native: Arch, numbers: Numbers) -> Vec<Call> {
    let mut samples = vec![0, 1, 2, 9, 16, 40, u64::MAX, 1 << 32];
    for arg in spec
        .syscalls()
        .iter()
        .flatten()
        .filter_map(|e| e.args().as_ref())
        .flatten()
    {
        for v in [arg.value(), arg.value_two().unwrap_or(0)] {
            samples.extend([
                v,
                v.wrapping_add(1),
                v.wrapping_sub(1),
                v ^ 1 << 32,
                v & 0xffff_ffff,
            ]);
        }
    }
    samples.sort_unstable();
    samples.dedup();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let entries = spec.syscalls().as_deref().unwrap_or_default();
    let mut calls = Vec::new();
    for &arch in native.family() {
        let bit = if arch == Arch::X32 { X32_BIT } else { 0 };
        let mut conditional = BTreeSet::new();
        let mut tried: BTreeSet<u32> = [0, 1, 0x3fff_ffff, X32_BIT, 0x7fff_ffff, u32::MAX].into();
        for entry in entries {
            for name in entry.names() {
                let both = [
                    Some(name.as_str()),
                    arch.multiplexed(name).map(|(by, _)| by),
                ];
                for number in both.iter().flatten().filter_map(|name| arch.number(name)) {
                    tried.extend([number.wrapping_sub(1), number, number + 1]);
                    if entry.args().is_some() {
                        conditional.insert(number);
                    }
                }
            }
        }
        if numbers == Numbers::All {
            tried.extend((0..600).map(|n| n | bit));
            tried.extend(0xe_ffff..0xf_0010);
        }
        for number in tried {
            let tries = match (conditional.contains(&number), numbers) {
                (false, _) => 2,
                (true, Numbers::Named) => 20,
                (true, Numbers::All) => 500,
            };
            for _ in 0..tries {
                let args = std::array::from_fn(|_| {
                    samples[usize::try_from(next() % samples.len() as u64).unwrap()]
                });
                calls.push(Call::new(arch, number, args));
            }
        }
    }
    // No architecture of anybody.
    calls.push(Call {
        audit: 0x1234,
        number: 1,
        args: [0; 6],
    });
    calls
}

pub(crate) fn assert_naive(spec: &LinuxSeccomp, native: Arch, numbers: Numbers) {
    let program = Program::compile(spec, native).unwrap();
    let reading = Reading::new(spec, native);
    for call in calls(spec, native, numbers) {
        let (is, _) = run(&program.instructions, &call);
        let wanted = reading.verdict(&call);
        assert_eq!(
            is, wanted,
            "{is:#x} is not {wanted:#x}: {call:x?}\n{spec:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_profiles_mean_what_they_say(spec in profiles(Arch::X86_64)) {
        assert_naive(&spec, Arch::X86_64, Numbers::Named);
    }

    #[test]
    fn random_profiles_on_arm_too(spec in profiles(Arch::Aarch64)) {
        assert_naive(&spec, Arch::Aarch64, Numbers::Named);
    }
}
