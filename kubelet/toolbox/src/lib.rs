//! The toolbox of the built-in image `rkube.local/toolbox`, as bytes.
//!
//! Purpose: hand the image crate one static executable that holds every applet
//! the examples and tests need, so that a pod runs without any registry.
//!
//! Boundary: no code of an applet is here. `rkube-toolbox-elf` (the folder
//! `elf`) is compiled by this crate's build script with flags of its own and
//! its bytes are included; [`APPLETS`] comes from the same source.
//!
//! Invariants: the ELF is static, position-dependent and stripped, needs no
//! file besides itself, and picks its applet by `argv[0]` or the first argument.

use std::io::Read;

const PACKED: &[u8] = include_bytes!(env!("RKUBE_TOOLBOX_ELF"));

/// The executable, as it is to be written to the image (mode 0755).
///
/// # Errors
/// The program's own data is damaged.
pub fn elf() -> std::io::Result<Vec<u8>> {
    let mut elf = Vec::new();
    flate2::read::GzDecoder::new(PACKED).read_to_end(&mut elf)?;
    Ok(elf)
}

pub use rkube_toolbox_elf::APPLETS;
