//! From an OCI profile to one verdict for each system call number.
//!
//! The meaning follows runc with libseccomp, so that a profile does the same
//! here as everywhere:
//!
//! - A rule whose action is the default action has no effect.
//! - A rule without conditions decides for its call, whatever rules with
//!   conditions there are; of several such rules the first one counts.
//! - Otherwise the rules of a call are tried in the profile's order and the
//!   first that matches counts; all conditions of a rule must hold, but
//!   conditions on the same argument are rules of their own.
//! - 32-bit architectures compare the low halves of arguments and values.
//! - A comparison under an empty mask is no condition.
//! - Calls of an architecture that is not listed kill the thread; the native
//!   one is always listed.
//! - A number above every number that the profile names (for this
//!   architecture) answers ENOSYS if the default action is a refusal: the
//!   author cannot have meant it, and libc falls back on ENOSYS alone. runc
//!   does so for the same reason.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompOperator, LinuxSyscall};

use crate::arch::{ARM_PRIVATE, X32_BIT};
use crate::{Arch, CompileError, Warning, is_syscall};

/// Rules of a profile: names times entries. The largest known profile has 500.
pub const MAX_RULES: usize = 16_384;

/// Return values of a filter (linux/seccomp.h).
pub mod ret {
    /// Ends the thread.
    pub const KILL_THREAD: u32 = 0x0000_0000;
    /// Ends the process.
    pub const KILL_PROCESS: u32 = 0x8000_0000;
    /// Sends SIGSYS.
    pub const TRAP: u32 = 0x0003_0000;
    /// Refuses with the errno in the low 16 bits.
    pub const ERRNO: u32 = 0x0005_0000;
    /// Asks the listener.
    pub const USER_NOTIF: u32 = 0x7fc0_0000;
    /// Asks the tracer; the low 16 bits are for it.
    pub const TRACE: u32 = 0x7ff0_0000;
    /// Allows and logs.
    pub const LOG: u32 = 0x7ffc_0000;
    /// Allows.
    pub const ALLOW: u32 = 0x7fff_0000;
}

/// `ENOSYS` of asm-generic/errno.h, as a filter's return value.
const NOT_IMPLEMENTED: u32 = ret::ERRNO | 38;
/// `EPERM`, what ERRNO and TRACE carry if the profile says nothing.
const EPERM: u32 = 1;
/// `MAX_ERRNO` of linux/err.h.
const MAX_ERRNO: u32 = 4095;

/// One comparison of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Condition {
    /// 0 to 5.
    pub(crate) argument: u8,
    pub(crate) test: Test,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Test {
    Equal(u64),
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    Greater(u64),
    GreaterOrEqual(u64),
    /// `argument & mask == value`, where value has no bit outside the mask.
    Masked {
        mask: u64,
        value: u64,
    },
}

/// Conditions that must all hold, and the action's return value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Rule {
    pub(crate) conditions: Vec<Condition>,
    pub(crate) action: u32,
}

/// What a call gets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Verdict {
    Always(u32),
    /// The first rule that matches, else the default.
    FirstOf(Vec<Rule>),
}

/// The verdicts of one architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) arch: Arch,
    pub(crate) calls: BTreeMap<u32, Verdict>,
    /// The first number above all that the profile names, and what calls from
    /// there on get; `None` if they get the default.
    pub(crate) beyond: Option<(u32, u32)>,
}

/// A profile's whole meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) default: u32,
    pub(crate) tables: Vec<Table>,
    pub(crate) warnings: Vec<Warning>,
    /// Some call asks the listener.
    pub(crate) notifies: bool,
}

impl Policy {
    pub(crate) fn new(spec: &LinuxSeccomp, native: Arch) -> Result<Self, CompileError> {
        let default = return_value(
            spec.default_action(),
            spec.default_errno_ret(),
            "the default",
        )?;
        if default == ret::USER_NOTIF {
            return Err(CompileError::NotifyByDefault);
        }
        let entries = spec.syscalls().as_deref().unwrap_or_default();
        let rules = entries.iter().map(|entry| entry.names().len()).sum();
        if rules > MAX_RULES {
            return Err(CompileError::TooManyRules { rules });
        }
        let mut warnings = Vec::new();
        let archs = architectures(spec, native, &mut warnings);
        let mut builders: Vec<Builder> = archs.into_iter().map(Builder::new).collect();
        let mut notifies = false;
        for entry in entries {
            for name in entry.names() {
                let action = return_value(entry.action(), entry.errno_ret(), name)?;
                if !is_syscall(name) {
                    warn(
                        &mut warnings,
                        Warning::UnknownSyscall { name: name.clone() },
                    );
                    continue;
                }
                let effective = action != default;
                if effective && action == ret::USER_NOTIF {
                    notifies = true;
                    if name == "write" {
                        return Err(CompileError::NotifyWrite);
                    }
                }
                let alternatives = alternatives(name, entry)?;
                for builder in &mut builders {
                    builder.name(name);
                    if effective {
                        builder.add(name, action, &alternatives);
                    }
                }
            }
        }
        let refuses =
            !matches!(default, ret::ALLOW | ret::LOG) && default & 0xffff_0000 != ret::TRACE;
        let mut tables = Vec::new();
        for builder in builders {
            tables.push(builder.finish(refuses, &mut warnings));
        }
        Ok(Self {
            default,
            tables,
            warnings,
            notifies,
        })
    }
}

/// The listed architectures that the machine can run, the native one first.
fn architectures(spec: &LinuxSeccomp, native: Arch, warnings: &mut Vec<Warning>) -> Vec<Arch> {
    let mut found = vec![native];
    for &arch in spec.architectures().as_deref().unwrap_or_default() {
        match Arch::from_oci(arch, native) {
            Some(known) if native.family().contains(&known) => {
                if !found.contains(&known) {
                    found.push(known);
                }
            }
            _ => warn(warnings, Warning::ForeignArchitecture { arch }),
        }
    }
    found
}

fn warn(warnings: &mut Vec<Warning>, warning: Warning) {
    if !warnings.contains(&warning) {
        warnings.push(warning);
    }
}

fn return_value(
    action: LinuxSeccompAction,
    errno: Option<u32>,
    object: &str,
) -> Result<u32, CompileError> {
    use LinuxSeccompAction as Action;
    let with_errno = |base: u32| {
        let errno = errno.unwrap_or(EPERM);
        if errno > MAX_ERRNO {
            let object = object.to_owned();
            return Err(CompileError::ErrnoRange { object, errno });
        }
        Ok(base | errno)
    };
    let value = match action {
        Action::ScmpActErrno => return with_errno(ret::ERRNO),
        Action::ScmpActTrace => return with_errno(ret::TRACE),
        Action::ScmpActKill | Action::ScmpActKillThread => ret::KILL_THREAD,
        Action::ScmpActKillProcess => ret::KILL_PROCESS,
        Action::ScmpActTrap => ret::TRAP,
        Action::ScmpActNotify => ret::USER_NOTIF,
        Action::ScmpActLog => ret::LOG,
        Action::ScmpActAllow => ret::ALLOW,
    };
    match errno {
        None => Ok(value),
        Some(errno) => Err(CompileError::ErrnoNotTaken {
            action,
            object: object.to_owned(),
            errno,
        }),
    }
}

/// The entry's conditions as a list of rules: one, or one for each condition
/// if two of them look at the same argument. Empty: no condition at all.
fn alternatives(name: &str, entry: &LinuxSyscall) -> Result<Vec<Vec<Condition>>, CompileError> {
    let mut conditions = Vec::new();
    for arg in entry.args().as_deref().unwrap_or_default() {
        let argument = u8::try_from(arg.index()).ok().filter(|&index| index < 6);
        let argument = argument.ok_or_else(|| CompileError::ArgumentIndex {
            syscall: name.to_owned(),
            index: arg.index(),
        })?;
        let value = arg.value();
        let test = match arg.op() {
            LinuxSeccompOperator::ScmpCmpEq => Test::Equal(value),
            LinuxSeccompOperator::ScmpCmpNe => Test::NotEqual(value),
            LinuxSeccompOperator::ScmpCmpLt => Test::Less(value),
            LinuxSeccompOperator::ScmpCmpLe => Test::LessOrEqual(value),
            LinuxSeccompOperator::ScmpCmpGt => Test::Greater(value),
            LinuxSeccompOperator::ScmpCmpGe => Test::GreaterOrEqual(value),
            // `value` is the mask (runtime-spec, config-linux.md, seccomp).
            LinuxSeccompOperator::ScmpCmpMaskedEq => Test::Masked {
                mask: value,
                value: arg.value_two().unwrap_or(0) & value,
            },
        };
        conditions.push(Condition { argument, test });
    }
    if conditions.is_empty() {
        return Ok(Vec::new());
    }
    let mut seen = [false; 6];
    let repeated = conditions
        .iter()
        .any(|c| std::mem::replace(&mut seen[usize::from(c.argument)], true));
    if repeated {
        return Ok(conditions.into_iter().map(|c| vec![c]).collect());
    }
    conditions.sort_unstable();
    Ok(vec![conditions])
}

/// Collects the rules of one architecture.
struct Builder {
    table: Table,
    /// The greatest number that any rule names.
    newest: Option<u32>,
    /// Calls with conditions that a multiplexer cannot check: their names, its
    /// name and number.
    unchecked: Vec<(String, &'static str, u32)>,
}

impl Builder {
    fn new(arch: Arch) -> Self {
        let table = Table {
            arch,
            calls: BTreeMap::new(),
            beyond: None,
        };
        Self {
            table,
            newest: None,
            unchecked: Vec::new(),
        }
    }

    fn name(&mut self, name: &str) {
        let number = self.table.arch.number(name);
        let generic = number.filter(|&n| n & !X32_BIT < ARM_PRIVATE);
        self.newest = self.newest.max(generic);
    }

    fn add(&mut self, name: &str, action: u32, alternatives: &[Vec<Condition>]) {
        let arch = self.table.arch;
        if let Some(number) = arch.number(name) {
            self.insert(number, action, alternatives);
        }
        let Some((multiplexer, call)) = arch.multiplexed(name) else {
            return;
        };
        let Some(number) = arch.number(multiplexer) else {
            return;
        };
        let selector = Condition {
            argument: 0,
            test: Test::Equal(call),
        };
        if alternatives.is_empty() {
            self.insert(number, action, &[vec![selector]]);
            return;
        }
        self.unchecked.push((name.to_owned(), multiplexer, number));
        for conditions in alternatives {
            let others = conditions.iter().filter(|c| c.argument != 0).copied();
            let conditions = std::iter::once(selector).chain(others).collect();
            self.insert(number, action, &[conditions]);
        }
    }

    fn insert(&mut self, number: u32, action: u32, alternatives: &[Vec<Condition>]) {
        let verdict = self
            .table
            .calls
            .entry(number)
            .or_insert_with(|| Verdict::FirstOf(Vec::new()));
        let wide = self.table.arch.is_64_bit();
        let none = [Vec::new()];
        let alternatives = if alternatives.is_empty() {
            &none
        } else {
            alternatives
        };
        for conditions in alternatives {
            let Verdict::FirstOf(rules) = verdict else {
                return;
            };
            let kept = conditions
                .iter()
                .map(|c| if wide { *c } else { c.low_half() });
            let kept = kept.filter(|c| !matches!(c.test, Test::Masked { mask: 0, .. }));
            let conditions: Vec<Condition> = kept.collect();
            if conditions.is_empty() {
                *verdict = Verdict::Always(action);
            } else if !rules.iter().any(|rule| rule.conditions == conditions) {
                // The same conditions a second time could match nothing more.
                rules.push(Rule { conditions, action });
            }
        }
    }

    fn finish(mut self, refuses: bool, warnings: &mut Vec<Warning>) -> Table {
        for (syscall, multiplexer, number) in self.unchecked {
            // Where the profile decides on the multiplexer as a whole, its
            // author has thought of it.
            if !matches!(self.table.calls.get(&number), Some(Verdict::Always(_))) {
                let multiplexer = multiplexer.to_owned();
                warn(
                    warnings,
                    Warning::Multiplexed {
                        syscall,
                        multiplexer,
                    },
                );
            }
        }
        if refuses {
            self.table.beyond = self.newest.map(|newest| (newest + 1, NOT_IMPLEMENTED));
        }
        self.table
    }
}

impl Condition {
    /// The comparison as 32-bit architectures make it.
    fn low_half(self) -> Self {
        let low = |value: u64| value & u64::from(u32::MAX);
        let test = match self.test {
            Test::Equal(v) => Test::Equal(low(v)),
            Test::NotEqual(v) => Test::NotEqual(low(v)),
            Test::Less(v) => Test::Less(low(v)),
            Test::LessOrEqual(v) => Test::LessOrEqual(low(v)),
            Test::Greater(v) => Test::Greater(low(v)),
            Test::GreaterOrEqual(v) => Test::GreaterOrEqual(low(v)),
            Test::Masked { mask, value } => Test::Masked {
                mask: low(mask),
                value: low(value),
            },
        };
        Self { test, ..self }
    }
}
