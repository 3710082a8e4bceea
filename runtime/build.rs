//! Compiles the keeper ELF and tells the crate where it lies.

use std::path::Path;

fn main() {
    let elf = rkube_embed::build(Path::new("keeper"), "rkube-keeper");
    println!(
        "cargo::rustc-env=RKUBE_KEEPER_ELF={}",
        rkube_embed::pack(&elf).display()
    );
    // Names its kept copies: FNV-1a of 64 bits, against mixing up builds; who
    // could forge a copy could replace rkube itself.
    let bytes = std::fs::read(&elf).unwrap_or_default();
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    println!("cargo::rustc-env=RKUBE_KEEPER_HASH={hash:016x}");
    println!("cargo::rustc-env=RKUBE_KEEPER_BYTES={}", bytes.len());
}
