//! Classic BPF, written from the end to the beginning.
//!
//! All jumps of a filter lead forward, so in this order every target's place
//! is known when a jump to it is written. A conditional jump reaches 255
//! instructions; where a target is farther, a copy of it (a return) or a long
//! jump to it is put in between. Nothing falls into what is put in between,
//! for every piece ends with a return or a jump with two targets.

use std::collections::HashMap;

use rkube_sys::seccomp::Instruction;

// linux/bpf_common.h
const LOAD_WORD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// The comparisons of classic BPF: accumulator with operand, unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Compare {
    /// BPF_JMP | BPF_JEQ | BPF_K
    Equal = 0x15,
    /// BPF_JMP | BPF_JGT | BPF_K
    Greater = 0x25,
    /// BPF_JMP | BPF_JGE | BPF_K
    GreaterOrEqual = 0x35,
}

/// Where a jump leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    /// The filter's end with this value.
    Return(u32),
    /// The instruction that is this many from the program's last one.
    At(usize),
}

/// A conditional jump's offsets have 8 bits; of two targets, placing the second
/// may push the first one farther by one.
const REACH: usize = 254;

/// A program in the making.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    /// Last instruction first.
    reversed: Vec<Instruction>,
    /// The nearest return of each value.
    returns: HashMap<u32, usize>,
    /// The nearest long jump to each place.
    relays: HashMap<usize, usize>,
}

impl Assembler {
    /// A comparison, whose result is the way to `yes` or `no`.
    pub(crate) fn branch(&mut self, compare: Compare, k: u32, yes: Target, no: Target) -> Target {
        if yes == no {
            return yes;
        }
        let yes = self.within_reach(yes);
        let no = self.within_reach(no);
        let (jt, jf) = (self.offset(yes), self.offset(no));
        let short = |offset: usize| u8::try_from(offset).expect("within_reach saw to it");
        let instruction = Instruction {
            code: compare as u16,
            jt: short(jt),
            jf: short(jf),
            k,
        };
        self.push(instruction)
    }

    /// Loads the word at `offset` of `seccomp_data`, then goes to `next`.
    pub(crate) fn load(&mut self, offset: u32, next: Target) -> Target {
        self.then(LOAD_WORD, offset, next)
    }

    /// Keeps the bits of `mask`, then goes to `next`.
    pub(crate) fn and(&mut self, mask: u32, next: Target) -> Target {
        self.then(AND, mask, next)
    }

    /// An instruction that falls through to `next`.
    fn then(&mut self, code: u16, k: u32, next: Target) -> Target {
        match next {
            // What follows does not look at the accumulator.
            Target::Return(_) => next,
            Target::At(place) => {
                if place + 1 != self.reversed.len() {
                    self.jump(place);
                }
                self.push(plain(code, k))
            }
        }
    }

    /// The program, first instruction first.
    pub(crate) fn finish(mut self, start: Target) -> Vec<Instruction> {
        match start {
            Target::Return(value) => {
                self.push(plain(RETURN, value));
            }
            Target::At(place) if place + 1 != self.reversed.len() => {
                self.jump(place);
            }
            Target::At(_) => {}
        }
        self.reversed.reverse();
        self.reversed
    }

    /// The place of `target` or of something equal to it, near enough for the
    /// instruction after the next one.
    fn within_reach(&mut self, target: Target) -> usize {
        let near = |place: &usize| self.reversed.len() - place <= REACH;
        match target {
            Target::Return(value) => {
                if let Some(&place) = self.returns.get(&value).filter(|place| near(place)) {
                    return place;
                }
                let place = self.reversed.len();
                self.returns.insert(value, place);
                self.push(plain(RETURN, value));
                place
            }
            Target::At(place) if near(&place) => place,
            Target::At(place) => {
                if let Some(&relay) = self.relays.get(&place).filter(|relay| near(relay)) {
                    return relay;
                }
                let relay = self.reversed.len();
                self.relays.insert(place, relay);
                self.jump(place);
                relay
            }
        }
    }

    fn jump(&mut self, place: usize) {
        let offset = self.offset(place);
        let k = u32::try_from(offset).expect("a program's length fits 32 bits");
        self.push(plain(JUMP, k));
    }

    /// How many instructions the next one must pass over to reach `place`.
    fn offset(&self, place: usize) -> usize {
        self.reversed.len() - place - 1
    }

    fn push(&mut self, instruction: Instruction) -> Target {
        self.reversed.push(instruction);
        Target::At(self.reversed.len() - 1)
    }
}

fn plain(code: u16, k: u32) -> Instruction {
    Instruction {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}
