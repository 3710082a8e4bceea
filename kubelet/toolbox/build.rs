//! Compiles the toolbox ELF and tells the crate where it lies.

use std::path::Path;

fn main() {
    let elf = rkube_embed::build(Path::new("elf"), "toolbox");
    println!(
        "cargo::rustc-env=RKUBE_TOOLBOX_ELF={}",
        rkube_embed::pack(&elf).display()
    );
}
