//! A list of rules as a BPF program of type `BPF_PROG_TYPE_CGROUP_DEVICE`.
//!
//! Read from the last rule to the first, so that the first match is the last
//! rule. `r3` holds the kinds of access not decided yet: an allowing rule
//! takes its kinds off and the program ends when none is left; a refusing
//! one ends it if it is about one that is left.

use rkube_sys::bpf::Insn;

use super::{DeviceKind, DeviceRules};

// Opcodes: class | operation | source (Documentation/bpf/standardization).
const LDX_W: u8 = 0x61;
const MOV64_IMM: u8 = 0xb7;
const MOV64_REG: u8 = 0xbf;
const AND32_IMM: u8 = 0x54;
const RSH32_IMM: u8 = 0x74;
const JEQ_IMM: u8 = 0x15;
const JSET_IMM: u8 = 0x45;
const JNE_IMM: u8 = 0x55;
const EXIT: u8 = 0x95;

// Registers: r1 holds the context at entry, r0 the answer at exit.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const LEFT: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Offsets in `struct bpf_cgroup_dev_ctx` (linux/bpf.h): access in the upper
/// and kind in the lower half of the first word.
const CTX_ACCESS_TYPE: i16 = 0;
const CTX_MAJOR: i16 = 4;
const CTX_MINOR: i16 = 8;

/// Where a jump goes once the tail is placed.
#[derive(Clone, Copy, PartialEq)]
enum Tail {
    Allow,
    Deny,
}

/// One instruction.
fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
    Insn {
        code,
        dst,
        src,
        off,
        imm,
    }
}

/// Encodes a list. The verdict of the program for every device and access is
/// that of [`super::rules_allow`]. It has no instruction that cannot be
/// reached, which the kernel would refuse.
#[must_use]
pub fn filter_program(rules: &DeviceRules) -> Vec<Insn> {
    let (default, rules) = rules.effective();
    let mut code = Vec::with_capacity(12 + rules.len() * 5);
    if !rules.is_empty() {
        code.extend([
            insn(LDX_W, KIND, CONTEXT, CTX_ACCESS_TYPE, 0),
            insn(MOV64_REG, LEFT, KIND, 0, 0),
            insn(AND32_IMM, KIND, 0, 0, 0xffff),
            insn(RSH32_IMM, LEFT, 0, 0, 16),
            insn(LDX_W, MAJOR, CONTEXT, CTX_MAJOR, 0),
            insn(LDX_W, MINOR, CONTEXT, CTX_MINOR, 0),
        ]);
    }
    let mut jumps: Vec<(usize, Tail)> = Vec::new();
    for rule in rules.iter().rev() {
        let body: &[Insn] = &match (rule.allow, rule.access.bits()) {
            (false, bits) => vec![insn(JSET_IMM, LEFT, 0, 0, i32::from(bits))],
            (true, bits) => vec![
                insn(AND32_IMM, LEFT, 0, 0, i32::from(7 & !bits)),
                insn(JEQ_IMM, LEFT, 0, 0, 0),
            ],
        };
        let mut tests = Vec::new();
        if let Some(kind) = rule.kind {
            let kind = match kind {
                DeviceKind::Block => 1,
                DeviceKind::Char => 2,
            };
            tests.push((KIND, kind));
        }
        // At most 20 bits by `DeviceRules::new`.
        let number = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
        tests.extend(rule.major.map(|n| (MAJOR, number(n))));
        tests.extend(rule.minor.map(|n| (MINOR, number(n))));
        for (index, (register, value)) in tests.iter().enumerate() {
            let over = tests.len() - 1 - index + body.len();
            // At most 2 tests and 2 instructions.
            let over = i16::try_from(over).unwrap_or(i16::MAX);
            code.push(insn(JNE_IMM, *register, 0, over, *value));
        }
        code.extend_from_slice(body);
        let tail = if rule.allow { Tail::Allow } else { Tail::Deny };
        jumps.push((code.len() - 1, tail));
    }
    place_tails(code, &jumps, default)
}

/// Adds the ends of the program and points the jumps at them: first the one
/// that is fallen into, then the other one if a jump goes there.
fn place_tails(mut code: Vec<Insn>, jumps: &[(usize, Tail)], default: bool) -> Vec<Insn> {
    let (first, second) = if default {
        (Tail::Allow, Tail::Deny)
    } else {
        (Tail::Deny, Tail::Allow)
    };
    let answer = |tail| i32::from(tail == Tail::Allow);
    let first_at = code.len();
    code.extend([
        insn(MOV64_IMM, ANSWER, 0, 0, answer(first)),
        insn(EXIT, 0, 0, 0, 0),
    ]);
    let second_at = code.len();
    if jumps.iter().any(|(_, tail)| *tail == second) {
        code.extend([
            insn(MOV64_IMM, ANSWER, 0, 0, answer(second)),
            insn(EXIT, 0, 0, 0, 0),
        ]);
    }
    for (at, tail) in jumps {
        let target = if *tail == first { first_at } else { second_at };
        // 512 rules of 5 instructions stay below 32767.
        code[*at].off = i16::try_from(target - at - 1).unwrap_or(i16::MAX);
    }
    code
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Access, DeviceRule, rules_allow};
    use super::*;

    /// Runs the subset of BPF that is emitted. Panics at anything else, at a
    /// jump out of the program and at a read of an unset register.
    fn run(program: &[Insn], kind: DeviceKind, major: u32, minor: u32, access: Access) -> bool {
        let kind = match kind {
            DeviceKind::Block => 1_u32,
            DeviceKind::Char => 2,
        };
        let context = [kind | u32::from(access.bits()) << 16, major, minor];
        let mut registers: [Option<u64>; 11] = [None; 11];
        let mut at = 0_usize;
        loop {
            let i = program[at];
            let dst = usize::from(i.dst);
            let get = |registers: &[Option<u64>; 11], r: usize| registers[r].expect("set");
            let low = |value: u64| value & 0xffff_ffff;
            let imm = u64::try_from(i.imm).expect("positive");
            let mut jump = false;
            match i.code {
                LDX_W => {
                    assert_eq!(i.src, CONTEXT);
                    let word = usize::try_from(i.off).unwrap() / 4;
                    registers[dst] = Some(u64::from(context[word]));
                }
                MOV64_IMM => registers[dst] = Some(imm),
                MOV64_REG => registers[dst] = Some(get(&registers, usize::from(i.src))),
                AND32_IMM => registers[dst] = Some(low(get(&registers, dst)) & imm),
                RSH32_IMM => registers[dst] = Some(low(get(&registers, dst)) >> imm),
                JEQ_IMM => jump = get(&registers, dst) == imm,
                JNE_IMM => jump = get(&registers, dst) != imm,
                JSET_IMM => jump = get(&registers, dst) & imm != 0,
                EXIT => return get(&registers, usize::from(ANSWER)) == 1,
                other => panic!("opcode {other:#x}"),
            }
            at += 1;
            if jump {
                at += usize::try_from(i.off).expect("forward");
            }
        }
    }

    fn kind() -> impl Strategy<Value = DeviceKind> {
        prop_oneof![Just(DeviceKind::Block), Just(DeviceKind::Char)]
    }

    fn rule() -> impl Strategy<Value = DeviceRule> {
        let number = || prop_oneof![Just(None), (0_u32..3).prop_map(Some)];
        (
            any::<bool>(),
            prop_oneof![Just(None), kind().prop_map(Some)],
            number(),
            number(),
            1_u8..8,
        )
            .prop_map(|(allow, kind, major, minor, bits)| DeviceRule {
                allow,
                kind,
                major,
                minor,
                access: Access::from_bits(bits),
            })
    }

    proptest! {
        #[test]
        fn verdict_is_the_reference(
            rules in proptest::collection::vec(rule(), 0..12),
            kind in kind(),
            major in 0_u32..4,
            minor in 0_u32..4,
            bits in 1_u8..8,
        ) {
            let rules = DeviceRules::new(rules).unwrap();
            let access = Access::from_bits(bits);
            prop_assert_eq!(
                run(&filter_program(&rules), kind, major, minor, access),
                rules_allow(&rules, kind, major, minor, access)
            );
        }

        #[test]
        fn the_kernel_takes_every_list(rules in proptest::collection::vec(rule(), 0..12)) {
            if rkube_sys::bpf::cgroup_device_supported() {
                let rules = DeviceRules::new(rules).unwrap();
                let loaded = rkube_sys::bpf::load_cgroup_device(&filter_program(&rules), "rkube_test");
                prop_assert!(loaded.is_ok(), "{:?}", loaded);
            }
        }
    }

    #[test]
    fn the_kernel_takes_the_longest_list() {
        if !rkube_sys::bpf::cgroup_device_supported() {
            return;
        }
        let count = u32::try_from(super::super::MAX_RULES).unwrap();
        let rules = (0..count)
            .map(|n| DeviceRule {
                allow: n % 3 != 0,
                kind: Some(DeviceKind::Char),
                major: Some(n),
                minor: (n % 2 == 0).then_some(n),
                access: Access::from_bits(1 + u8::try_from(n % 7).unwrap()),
            })
            .collect();
        let program = filter_program(&DeviceRules::new(rules).unwrap());
        let loaded = rkube_sys::bpf::load_cgroup_device(&program, "rkube_test");
        assert!(loaded.is_ok(), "{} instructions", program.len());
    }

    #[test]
    fn the_verifier_speaks() {
        // r0 is never set.
        let error = rkube_sys::bpf::load_cgroup_device(&[insn(EXIT, 0, 0, 0, 0)], "rkube_test");
        if rkube_sys::bpf::cgroup_device_supported() {
            assert!(error.unwrap_err().log.contains("R0"));
        }
    }
}
