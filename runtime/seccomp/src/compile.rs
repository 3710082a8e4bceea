//! From verdicts to a program: a switch on the architecture, for each a search
//! tree on the call's number, and the comparisons of arguments, which all
//! architectures of the same width share.

use std::collections::HashMap;

use crate::Arch;
use crate::arch::{ARM_PRIVATE, X32_BIT};
use crate::assemble::{Assembler, Compare, Target};
use crate::rules::{Condition, Policy, Rule, Table, Test, Verdict, ret};
use rkube_sys::seccomp::Instruction;

// Offsets in `struct seccomp_data` (linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// What an unlisted architecture gets, as with libseccomp.
const BAD_ARCH: u32 = ret::KILL_THREAD;

/// So many single numbers are compared one after the other before the tree
/// splits again: one instruction for each, where splitting would need two.
const SINGLES_IN_LEAF: usize = 4;

pub(crate) fn compile(policy: &Policy) -> Vec<Instruction> {
    let mut compiler = Compiler {
        code: Assembler::default(),
        chains: HashMap::new(),
        conditions: HashMap::new(),
        default: policy.default,
    };
    let mut entries: Vec<(u32, Target)> = Vec::new();
    for table in &policy.tables {
        let audit = table.arch.audit();
        if entries.iter().any(|(seen, _)| *seen == audit) {
            continue;
        }
        let sharing = policy.tables.iter().filter(|t| t.arch.audit() == audit);
        let ranges = compiler.ranges(&sharing.collect::<Vec<_>>());
        let tree = compiler.tree(&ranges);
        entries.push((audit, compiler.code.load(NUMBER, tree)));
    }
    // The first table is the native one, so it is compared first, that is last
    // in this order.
    let mut next = Target::Return(BAD_ARCH);
    for (audit, entry) in entries.into_iter().rev() {
        next = compiler.code.branch(Compare::Equal, audit, entry, next);
    }
    let start = compiler.code.load(ARCH, next);
    compiler.code.finish(start)
}

/// Numbers from `start` to the next range's start go to `target`, except the
/// `singles` among them.
#[derive(Debug)]
struct Range {
    start: u32,
    target: Target,
    singles: Vec<(u32, Target)>,
}

struct Compiler {
    code: Assembler,
    chains: HashMap<(Vec<Rule>, bool), Target>,
    conditions: HashMap<(Condition, bool, Target, Target), Target>,
    default: u32,
}

impl Compiler {
    /// The whole number space of the tables (one, or x86_64 and x32, which
    /// share theirs), with neighbours of the same target in one range.
    fn ranges(&mut self, tables: &[&Table]) -> Vec<Range> {
        let default = Target::Return(self.default);
        // Points where the target changes: (first number, target).
        let mut points: Vec<(u32, Target)> = Vec::new();
        for &table in tables {
            let base = if table.arch == Arch::X32 { X32_BIT } else { 0 };
            points.push((base, default));
            // ARM's private calls are far above the others, old and new.
            let private = if table.arch == Arch::Arm {
                ARM_PRIVATE
            } else {
                u32::MAX
            };
            self.points(table, 0..private, default, &mut points);
            if let Some((start, value)) = table.beyond {
                points.retain(|point| point.0 < start);
                points.push((start, Target::Return(value)));
            }
            if table.arch == Arch::Arm {
                points.push((private, default));
                self.points(table, private..u32::MAX, default, &mut points);
            }
        }
        let has_x32 = tables.iter().any(|table| table.arch == Arch::X32);
        if tables.iter().any(|table| table.arch == Arch::X86_64) && !has_x32 {
            points.push((X32_BIT, Target::Return(BAD_ARCH)));
            // A tracer skips a call by the number -1, which is not x32.
            let skipped = tables[0].beyond.map_or(self.default, |(_, value)| value);
            points.push((u32::MAX, Target::Return(skipped)));
        }
        merge(points)
    }

    /// Adds the change points of the calls in `numbers`.
    fn points(
        &mut self,
        table: &Table,
        numbers: std::ops::Range<u32>,
        default: Target,
        points: &mut Vec<(u32, Target)>,
    ) {
        for (&number, verdict) in table.calls.range(numbers) {
            let target = self.verdict(verdict, table.arch.is_64_bit());
            points.push((number, target));
            points.push((number + 1, default));
        }
    }

    /// A balanced search for the accumulator among `ranges`.
    fn tree(&mut self, ranges: &[Range]) -> Target {
        match ranges {
            [] => Target::Return(self.default),
            [range] => {
                let mut next = range.target;
                for (number, target) in range.singles.iter().rev() {
                    next = self.code.branch(Compare::Equal, *number, *target, next);
                }
                next
            }
            _ => {
                let (low, high) = ranges.split_at(ranges.len() / 2);
                let at = high[0].start;
                let yes = self.tree(high);
                let no = self.tree(low);
                self.code.branch(Compare::GreaterOrEqual, at, yes, no)
            }
        }
    }

    fn verdict(&mut self, verdict: &Verdict, wide: bool) -> Target {
        match verdict {
            Verdict::Always(value) => Target::Return(*value),
            Verdict::FirstOf(rules) => {
                let key = (rules.clone(), wide);
                if let Some(&target) = self.chains.get(&key) {
                    return target;
                }
                let target = self.chain(rules, wide);
                self.chains.insert(key, target);
                target
            }
        }
    }

    /// Rules in order, then the default.
    fn chain(&mut self, rules: &[Rule], wide: bool) -> Target {
        let mut next = Target::Return(self.default);
        let mut rest = rules;
        while let Some((rule, before)) = rest.split_last() {
            let alike = rest
                .iter()
                .rev()
                .take_while(|r| compares_alike(r, rule, wide));
            let alike = alike.count();
            if alike > 1 {
                let (before, group) = rest.split_at(rest.len() - alike);
                next = self.values(group, wide, next);
                rest = before;
                continue;
            }
            let mut target = Target::Return(rule.action);
            for condition in rule.conditions.iter().rev() {
                target = self.condition(*condition, wide, target, next);
            }
            next = target;
            rest = before;
        }
        next
    }

    /// Rules that each compare the same argument with one value: the argument
    /// is loaded once.
    fn values(&mut self, rules: &[Rule], wide: bool, otherwise: Target) -> Target {
        let mut next = otherwise;
        let mut loaded = None;
        for rule in rules.iter().rev() {
            if let Some((argument, value)) = single_value(rule) {
                let action = Target::Return(rule.action);
                next = self.code.branch(Compare::Equal, low(value), action, next);
                loaded = Some((argument, high(value)));
            }
        }
        let Some((argument, upper)) = loaded else {
            return next;
        };
        let next = self.code.load(word(argument, false), next);
        if !wide {
            return next;
        }
        let next = self.code.branch(Compare::Equal, upper, next, otherwise);
        self.code.load(word(argument, true), next)
    }

    fn condition(&mut self, condition: Condition, wide: bool, yes: Target, no: Target) -> Target {
        let key = (condition, wide, yes, no);
        if let Some(&target) = self.conditions.get(&key) {
            return target;
        }
        let argument = condition.argument;
        let target = match condition.test {
            Test::Equal(value) => self.equal(argument, u64::MAX, value, wide, yes, no),
            Test::NotEqual(value) => self.equal(argument, u64::MAX, value, wide, no, yes),
            Test::Masked { mask, value } => self.equal(argument, mask, value, wide, yes, no),
            Test::Greater(value) => self.above(argument, Compare::Greater, value, wide, yes, no),
            Test::GreaterOrEqual(value) => {
                self.above(argument, Compare::GreaterOrEqual, value, wide, yes, no)
            }
            Test::Less(value) => {
                self.above(argument, Compare::GreaterOrEqual, value, wide, no, yes)
            }
            Test::LessOrEqual(value) => {
                self.above(argument, Compare::Greater, value, wide, no, yes)
            }
        };
        self.conditions.insert(key, target);
        target
    }

    fn equal(
        &mut self,
        argument: u8,
        mask: u64,
        value: u64,
        wide: bool,
        yes: Target,
        no: Target,
    ) -> Target {
        let next = self.half_equal(word(argument, false), low(mask), low(value), yes, no);
        if !wide {
            return next;
        }
        self.half_equal(word(argument, true), high(mask), high(value), next, no)
    }

    fn half_equal(&mut self, word: u32, mask: u32, value: u32, yes: Target, no: Target) -> Target {
        if mask == 0 || yes == no {
            return yes;
        }
        let mut next = self.code.branch(Compare::Equal, value, yes, no);
        if mask != u32::MAX {
            next = self.code.and(mask, next);
        }
        self.code.load(word, next)
    }

    /// `compare` is how the low halves are compared if the high ones are equal.
    fn above(
        &mut self,
        argument: u8,
        compare: Compare,
        value: u64,
        wide: bool,
        yes: Target,
        no: Target,
    ) -> Target {
        let next = self.code.branch(compare, low(value), yes, no);
        let next = self.code.load(word(argument, false), next);
        if !wide {
            return next;
        }
        let next = self.code.branch(Compare::Equal, high(value), next, no);
        let next = self.code.branch(Compare::Greater, high(value), yes, next);
        self.code.load(word(argument, true), next)
    }
}

/// The argument and value of a rule that is one test for equality.
fn single_value(rule: &Rule) -> Option<(u8, u64)> {
    match rule.conditions[..] {
        [
            Condition {
                argument,
                test: Test::Equal(value),
            },
        ] => Some((argument, value)),
        _ => None,
    }
}

/// Whether two rules compare the same argument, and the same high half.
fn compares_alike(a: &Rule, b: &Rule, wide: bool) -> bool {
    match (single_value(a), single_value(b)) {
        (Some(a), Some(b)) => a.0 == b.0 && (!wide || high(a.1) == high(b.1)),
        _ => false,
    }
}

/// Merges sorted change points into ranges with at most [`SINGLES_IN_LEAF`]
/// singles; of several points at one number the last counts.
fn merge(points: Vec<(u32, Target)>) -> Vec<Range> {
    let mut changes: Vec<(u32, Target)> = Vec::with_capacity(points.len());
    for (start, target) in points {
        if changes.last().is_some_and(|last| last.0 == start) {
            changes.pop();
        }
        if changes.last().is_none_or(|last| last.1 != target) {
            changes.push((start, target));
        }
    }
    let mut ranges: Vec<Range> = Vec::new();
    let mut changes = changes.into_iter().peekable();
    while let Some((start, target)) = changes.next() {
        let width_one = |next: Option<&(u32, Target)>| next.is_some_and(|n| n.0 == start + 1);
        if let Some(last) = ranges.last_mut()
            && let Some(&(_, after)) = changes.peek()
            && width_one(changes.peek())
            && after == last.target
        {
            // One number in the midst of a range: the range goes on after it.
            changes.next();
            if last.singles.len() < SINGLES_IN_LEAF {
                last.singles.push((start, target));
            } else {
                ranges.push(Range {
                    start,
                    target: after,
                    singles: vec![(start, target)],
                });
            }
            continue;
        }
        ranges.push(Range {
            start,
            target,
            singles: Vec::new(),
        });
    }
    ranges
}

/// The offset of an argument's half; both architecture families of this crate
/// are little-endian.
fn word(argument: u8, upper: bool) -> u32 {
    ARGUMENTS + 8 * u32::from(argument) + if upper { 4 } else { 0 }
}

fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).expect("32 bits are left")
}

fn high(value: u64) -> u32 {
    u32::try_from(value >> 32).expect("32 bits are left")
}
