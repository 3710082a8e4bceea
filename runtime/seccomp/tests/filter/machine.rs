//! The kernel's side: runs a filter on the data of one call.

use rkube_seccomp::{Arch, Instruction};

/// `struct seccomp_data` without the instruction pointer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) audit: u32,
    pub(crate) number: u32,
    pub(crate) args: [u64; 6],
}

impl Call {
    pub(crate) fn new(arch: Arch, number: u32, args: [u64; 6]) -> Self {
        Self {
            audit: arch.audit(),
            number,
            args,
        }
    }

    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.audit,
            8 | 12 => 0,
            16..64 if offset.is_multiple_of(4) => {
                let arg = self.args[usize::try_from((offset - 16) / 8).unwrap()];
                let half = if offset.is_multiple_of(8) {
                    arg & 0xffff_ffff
                } else {
                    arg >> 32
                };
                u32::try_from(half).unwrap()
            }
            _ => panic!("load from offset {offset}"),
        }
    }
}

/// The verdict on `call` and how many instructions it took.
pub(crate) fn run(program: &[Instruction], call: &Call) -> (u32, usize) {
    let (mut at, mut steps, mut a) = (0, 0, 0_u32);
    loop {
        let i = program.get(at).expect("no way leads behind the end");
        steps += 1;
        at += 1;
        let hold = match i.code {
            0x20 => {
                a = call.word(i.k);
                continue;
            }
            0x54 => {
                a &= i.k;
                continue;
            }
            0x06 => return (i.k, steps),
            0x05 => {
                at += usize::try_from(i.k).unwrap();
                continue;
            }
            0x15 => a == i.k,
            0x25 => a > i.k,
            0x35 => a >= i.k,
            0x45 => a & i.k != 0,
            code => panic!("instruction {code:#x}"),
        };
        at += usize::from(if hold { i.jt } else { i.jf });
    }
}
