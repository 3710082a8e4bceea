//! Replays the committed corpora of `fuzz/` through its targets, whole and
//! with mutations that are the same in every run. `make fuzz` goes on from
//! there with libFuzzer.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../../../fuzz/src/lib.rs"]
#[allow(unreachable_pub)]
mod targets;

use std::path::Path;

/// Mutations of each seed. A store is made for each archive, so those are
/// fewer.
const ROUNDS: usize = 400;
const ROUNDS_OF_ARCHIVES: usize = 40;

/// xorshift64* (Marsaglia, 2003): the same numbers in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap()
    }

    fn below(&mut self, n: usize) -> usize {
        self.next() % n.max(1)
    }
}

/// Values at which decoders turn.
const ODD: &[&[u8]] = &[
    b"\0",
    b"\xff",
    b"/",
    b"..",
    b":",
    b"@",
    b"\"",
    b"{",
    b"]",
    b"\n",
    b"-1",
    b"99999999999999999999",
    b"\x80\0\0\0\0\0\0\0",
    b"\xff\xff\xff\xff",
];

fn mutate(seed: &[u8], other: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut out = seed.to_vec();
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(out.len() + 1);
        match numbers.below(6) {
            0 if at < out.len() => out[at] ^= 1 << numbers.below(8),
            1 if at < out.len() => out[at] = u8::try_from(numbers.below(256)).unwrap(),
            2 => drop(out.drain(at..(at + numbers.below(32)).min(out.len()))),
            3 => {
                let odd = ODD[numbers.below(ODD.len())];
                out.splice(at..at, odd.iter().copied());
            }
            4 => {
                let odd = ODD[numbers.below(ODD.len())];
                let end = (at + odd.len()).min(out.len());
                out.splice(at..end, odd.iter().copied());
            }
            _ => {
                let from = numbers.below(other.len() + 1);
                let part = &other[from..(from + numbers.below(64)).min(other.len())];
                out.splice(at..at, part.iter().copied());
            }
        }
    }
    if numbers.below(16) == 0 {
        let keep = numbers.below(out.len() + 1);
        out.truncate(keep);
    }
    out
}

/// Shows the input of a target that panics.
struct Shown<'a>(&'a str, &'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} panics for {}", self.0, self.1.escape_ascii());
        }
    }
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(name);
    let mut paths: Vec<_> = std::fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|e| e.unwrap().path())
        .collect();
    paths.sort();
    paths.iter().map(|p| std::fs::read(p).unwrap()).collect()
}

#[test]
fn every_target_bears_its_corpus_and_mutations_of_it() {
    for (name, target) in targets::TARGETS {
        let seeds = seeds(name);
        assert!(!seeds.is_empty(), "{name} has no corpus");
        let rounds = if *name == "image_archive" {
            ROUNDS_OF_ARCHIVES
        } else {
            ROUNDS
        };
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        for seed in &seeds {
            let _shown = Shown(name, seed);
            target(seed);
            for _ in 0..rounds {
                let other = &seeds[numbers.below(seeds.len())];
                let made = mutate(seed, other, &mut numbers);
                let _shown = Shown(name, &made);
                target(&made);
            }
        }
    }
}
