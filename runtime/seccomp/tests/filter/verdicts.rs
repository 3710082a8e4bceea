//! Verdicts held against libseccomp's, and the shape of programs.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::Instant;

use oci_spec::runtime::{
    Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction as Action,
    LinuxSeccompOperator as Op,
};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use rkube_seccomp::{Arch, CompileError, Program, Warning, default_profile, flag};

use crate::machine::run;
use crate::naive::{self, Numbers, arg, profile, rule};
use crate::oracle;

/// What docker, containerd and Kubernetes grant unless asked.
pub(crate) fn usual_caps() -> Capabilities {
    use Capability as C;
    [
        C::Chown,
        C::DacOverride,
        C::Fsetid,
        C::Fowner,
        C::Mknod,
        C::NetRaw,
        C::Setgid,
        C::Setuid,
        C::Setfcap,
        C::Setpcap,
        C::NetBindService,
        C::SysChroot,
        C::Kill,
        C::AuditWrite,
    ]
    .into()
}

/// Compares every verdict with libseccomp's; numbers beyond the profile, which
/// runc answers before libseccomp's program, with the naive reading.
fn assert_oracle(spec: &LinuxSeccomp, native: Arch, numbers: Numbers) -> Option<(usize, usize)> {
    let program = Program::compile(spec, native).unwrap();
    let theirs_program = oracle::program(spec, native)?;
    let younger = younger();
    let reading = naive::Reading::new(spec, native);
    let mut compared = 0;
    let (mut steps, mut their_steps) = (0, 0);
    for call in naive::calls(spec, native, numbers) {
        let (is, count) = run(&program.instructions, &call);
        let (theirs, their_count) = run(&theirs_program, &call);
        let wanted = reading.verdict(&call);
        assert_eq!(is, wanted, "{is:#x} is not {wanted:#x}: {call:x?}");
        // ENOSYS for numbers beyond the profile is runc's, not libseccomp's.
        let beyond = is == 0x5_0026 && theirs == naive_default(spec);
        if !beyond && !younger.contains(&(call.audit, call.number)) {
            assert_eq!(
                is, theirs,
                "{is:#x}, libseccomp {theirs:#x}: {call:x?}\n{spec:?}"
            );
            compared += 1;
            steps += count;
            their_steps += their_count;
        }
    }
    println!(
        "{compared} verdicts equal; instructions {} (libseccomp {}), run on average {:.1} ({:.1})",
        program.instructions.len(),
        theirs_program.len(),
        steps as f64 / compared as f64,
        their_steps as f64 / compared as f64,
    );
    Some((program.instructions.len(), theirs_program.len()))
}

/// Calls (by architecture and number) that this libseccomp does not know.
fn younger() -> &'static BTreeSet<(u32, u32)> {
    static YOUNGER: OnceLock<BTreeSet<(u32, u32)>> = OnceLock::new();
    YOUNGER.get_or_init(|| {
        let pairs = pairs();
        let theirs = oracle::numbers(&pairs).unwrap_or_default();
        let known = pairs.iter().zip(theirs);
        // The direct forms of x86's multiplexed calls are known, but resolve
        // to numbers below zero.
        known
            .filter(|((arch, name), theirs)| theirs.is_none() && arch.multiplexed(name).is_none())
            .filter_map(|((arch, name), _)| Some((arch.audit(), arch.number(name)?)))
            .collect()
    })
}

/// Every name on every architecture.
fn pairs() -> Vec<(Arch, &'static str)> {
    let archs = [Arch::X86_64, Arch::X86, Arch::X32, Arch::Aarch64, Arch::Arm];
    let names = rkube_seccomp::syscall_names();
    names
        .flat_map(|name| archs.map(|arch| (arch, name)))
        .collect()
}

#[test]
fn numbers_are_those_of_libseccomp() {
    let pairs = pairs();
    let Some(theirs) = oracle::numbers(&pairs) else {
        return;
    };
    let mut younger = BTreeSet::new();
    let mut equal = 0;
    for ((arch, name), theirs) in pairs.iter().zip(theirs) {
        match (arch.number(name), theirs) {
            (Some(_), None) if arch.multiplexed(name).is_some() => {}
            (Some(_), None) => drop(younger.insert(name)),
            (ours, theirs) => {
                assert_eq!(ours, theirs, "{name} on {arch:?}");
                equal += 1;
            }
        }
    }
    println!("{equal} entries equal; libseccomp lacks some of {younger:?}");
    assert!(younger.len() < 30);
}

fn naive_default(spec: &LinuxSeccomp) -> u32 {
    spec.default_action().as_u32(spec.default_errno_ret())
}

#[test]
fn default_profile_means_the_same_to_libseccomp() {
    for native in [Arch::X86_64, Arch::Aarch64] {
        for caps in [
            usual_caps(),
            Capabilities::new(),
            [Capability::SysAdmin].into(),
        ] {
            let spec = default_profile(&caps, native);
            assert_oracle(&spec, native, Numbers::All);
        }
    }
}

#[test]
fn programs_are_short_and_quickly_made() {
    for (native, limit) in [(Arch::X86_64, 600), (Arch::Aarch64, 600)] {
        let spec = default_profile(&usual_caps(), native);
        let begin = Instant::now();
        let program = Program::compile(&spec, native).unwrap();
        let first = begin.elapsed();
        let begin = Instant::now();
        for _ in 0..20 {
            std::hint::black_box(Program::compile(&spec, native).unwrap());
        }
        println!(
            "default profile on {native:?}: {} instructions, compiled in {first:?}, then {:?}",
            program.instructions.len(),
            begin.elapsed() / 20
        );
        assert!(program.instructions.len() <= limit);
        assert_eq!(program.warnings, []);
        assert_eq!(program.to_bytes().len(), 8 * program.instructions.len());
        assert_eq!(
            rkube_sys::bytes::instructions(&program.to_bytes()).unwrap(),
            program.instructions
        );
    }
}

#[test]
fn random_profiles_mean_the_same_to_libseccomp() {
    let mut runner = TestRunner::deterministic();
    for native in [Arch::X86_64, Arch::Aarch64] {
        let strategy = naive::profiles(native);
        let mut compared = 0;
        while compared < 40 {
            let spec = strategy.new_tree(&mut runner).unwrap().current();
            let spec = without_conflicts(&spec);
            if assert_oracle(&spec, native, Numbers::Named).is_none() {
                return;
            }
            compared += 1;
        }
    }
}

/// Leaves each call at most one rule with conditions: which of several counts
/// is not told by libseccomp, and 2.5.4 gets several comparisons of one 64-bit
/// argument wrong (`a <= 0` and `a > 1 << 32` as two rules: after the first one
/// the second's high half is compared with the low half that was loaded last).
fn without_conflicts(spec: &LinuxSeccomp) -> LinuxSeccomp {
    let mut spec = spec.clone();
    let mut rules = spec.syscalls().clone().unwrap_or_default();
    let mut seen: Vec<String> = Vec::new();
    rules.retain_mut(|rule| {
        let mut args = rule.args().clone().unwrap_or_default();
        let mut indexes = BTreeSet::new();
        args.retain(|arg| indexes.insert(arg.index()));
        let mut names = Vec::new();
        for name in rule.names() {
            // On x86 a rule for `socket` is one with a condition on socketcall.
            let group = Arch::X86
                .multiplexed(name)
                .map_or(name.as_str(), |(multiplexer, _)| multiplexer);
            let conditional = !args.is_empty() || group != name;
            if !conditional || !seen.iter().any(|other| other == group) {
                names.push(name.clone());
            }
            if conditional {
                seen.push(group.to_owned());
            }
        }
        rule.set_names(names);
        rule.set_args((!args.is_empty()).then_some(args));
        !rule.names().is_empty()
    });
    spec.set_syscalls(Some(rules));
    spec
}

#[test]
fn long_programs_jump_far() {
    // Hundreds of values of one argument, and as many conditions on
    // another call: no byte offset spans them.
    let mut rules = Vec::new();
    for value in 0..200 {
        let action = (Action::ScmpActErrno, Some(value % 50 + 2));
        let equal = [arg(0, Op::ScmpCmpEq, u64::from(value) << 30 | 7, 0)];
        rules.push(rule(&["ioctl"], action.0, action.1, &equal));
        let both = [
            arg(1, Op::ScmpCmpGt, u64::from(value) << 33, 0),
            arg(2, Op::ScmpCmpEq, value.into(), 0),
        ];
        rules.push(rule(&["prctl"], action.0, action.1, &both));
    }
    let spec = profile(Action::ScmpActAllow, None, &[], rules);
    let program = Program::compile(&spec, Arch::X86_64).unwrap();
    println!("{} instructions", program.instructions.len());
    assert!(program.instructions.len() > 1200);
    naive::assert_naive(&spec, Arch::X86_64, Numbers::All);
    for value in 0..200_u64 {
        let args = [value << 30 | 7, value << 33 | 1, value, 0, 0, 0];
        for name in ["ioctl", "prctl"] {
            let number = Arch::X86_64.number(name).unwrap();
            let call = crate::machine::Call::new(Arch::X86_64, number, args);
            let errno = u32::try_from(value % 50 + 2).unwrap();
            assert_eq!(
                run(&program.instructions, &call).0,
                0x5_0000 | errno,
                "{name} {value}"
            );
        }
    }
}

#[test]
fn what_the_kernel_cannot_do_is_an_error() {
    let compile = |spec: &LinuxSeccomp| Program::compile(spec, Arch::X86_64);
    let allow = |rules| profile(Action::ScmpActAllow, None, &[], rules);
    let spec = profile(Action::ScmpActNotify, None, &[], Vec::new());
    assert_eq!(compile(&spec), Err(CompileError::NotifyByDefault));
    let spec = allow(vec![rule(&["write"], Action::ScmpActNotify, None, &[])]);
    assert_eq!(compile(&spec), Err(CompileError::NotifyWrite));
    let spec = allow(vec![rule(&["read"], Action::ScmpActTrap, Some(1), &[])]);
    assert!(matches!(
        compile(&spec),
        Err(CompileError::ErrnoNotTaken { .. })
    ));
    let spec = allow(vec![rule(&["read"], Action::ScmpActErrno, Some(4096), &[])]);
    assert!(matches!(
        compile(&spec),
        Err(CompileError::ErrnoRange { errno: 4096, .. })
    ));
    let sixth = arg(6, Op::ScmpCmpEq, 0, 0);
    let spec = allow(vec![rule(&["read"], Action::ScmpActErrno, None, &[sixth])]);
    assert!(matches!(
        compile(&spec),
        Err(CompileError::ArgumentIndex { index: 6, .. })
    ));
    let many = |i: u64| {
        rule(
            &["read"],
            Action::ScmpActErrno,
            None,
            &[arg(0, Op::ScmpCmpEq, i << 32, 0)],
        )
    };
    let spec = allow((0..2000).map(many).collect());
    assert!(matches!(compile(&spec), Err(CompileError::TooLong { .. })));
    let names = vec!["read"; 20_000];
    let spec = allow(vec![rule(&names, Action::ScmpActErrno, None, &[])]);
    assert_eq!(
        compile(&spec),
        Err(CompileError::TooManyRules { rules: 20_000 })
    );
}

#[test]
fn notify_flags_and_warnings() {
    use oci_spec::runtime::{Arch as OciArch, LinuxSeccompFilterFlag as Flag};
    let unix = arg(0, Op::ScmpCmpEq, 1, 0);
    let mut spec = profile(
        Action::ScmpActErrno,
        None,
        &[Arch::X86],
        vec![
            rule(&["mkdir", "sned"], Action::ScmpActNotify, None, &[]),
            rule(&["socket"], Action::ScmpActAllow, None, &[unix]),
        ],
    );
    spec.set_flags(Some(vec![
        Flag::SeccompFilterFlagLog,
        Flag::SeccompFilterFlagWaitKillableRecv,
    ]));
    let archs = Some(vec![OciArch::ScmpArchX86, OciArch::ScmpArchMips]);
    spec.set_architectures(archs);
    let program = Program::compile(&spec, Arch::X86_64).unwrap();
    assert!(program.notifies());
    assert_eq!(program.flags, flag::LOG | flag::WAIT_KILLABLE_RECV | 1 << 3);
    let text: Vec<String> = program.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(program.warnings.len(), 3, "{text:?}");
    let name = "sned".to_owned();
    assert!(program.warnings.contains(&Warning::UnknownSyscall { name }));
    let arch = OciArch::ScmpArchMips;
    assert!(
        program
            .warnings
            .contains(&Warning::ForeignArchitecture { arch })
    );
    // Where socketcall is decided as a whole there is nothing to warn of.
    let mut rules = spec.syscalls().clone().unwrap();
    rules.push(rule(&["socketcall"], Action::ScmpActAllow, None, &[]));
    spec.set_syscalls(Some(rules));
    let program = Program::compile(&spec, Arch::X86_64).unwrap();
    assert_eq!(program.warnings.len(), 2);
}
