//! The program's file: its size, and whether it stands alone.

use std::path::Path;

use anyhow::{Context, ensure};

use crate::report::Row;

/// The size of the program, with a remark about what it is.
///
/// # Errors
/// It cannot be read, or is no 64-bit ELF file.
pub fn rows(program: &Path) -> anyhow::Result<Vec<Row>> {
    let bytes = std::fs::read(program).with_context(|| format!("read {}", program.display()))?;
    let mib =
        f64::from(u32::try_from(bytes.len()).context("size of the program")?) / f64::from(1 << 20);
    let elf = Elf::read(&bytes)?;
    let kind = match (elf.interpreter, elf.symbols) {
        (false, false) => "static, stripped",
        (false, true) => "static, not stripped",
        (true, _) => "dynamic",
    };
    let row = Row::one("size of the program", "rkube", "MiB", mib);
    Ok(vec![row.target("15 MB").note(kind)])
}

/// What elf(5) says of a file, little-endian and 64-bit.
#[derive(Debug, PartialEq, Eq)]
struct Elf {
    /// It has PT_INTERP: a dynamic linker has to load it.
    interpreter: bool,
    /// It has SHT_SYMTAB: it is not stripped.
    symbols: bool,
}

/// elf.h
const PT_INTERP: u64 = 3;
const SHT_SYMTAB: u64 = 2;

impl Elf {
    fn read(bytes: &[u8]) -> anyhow::Result<Elf> {
        ensure!(
            bytes.starts_with(b"\x7fELF\x02\x01"),
            "no little-endian 64-bit ELF file"
        );
        // e_phoff, e_shoff, e_phentsize, e_phnum, e_shentsize, e_shnum
        let segments = Table::at(bytes, 32, 54)?;
        let sections = Table::at(bytes, 40, 58)?;
        // p_type is first in its header, sh_type follows sh_name.
        Ok(Elf {
            interpreter: segments.has(bytes, 0, PT_INTERP)?,
            symbols: sections.has(bytes, 4, SHT_SYMTAB)?,
        })
    }
}

struct Table {
    offset: usize,
    entry: usize,
    count: usize,
}

impl Table {
    fn at(bytes: &[u8], offset: usize, sizes: usize) -> anyhow::Result<Table> {
        Ok(Table {
            offset: usize::try_from(number(bytes, offset, 8)?)?,
            entry: usize::try_from(number(bytes, sizes, 2)?)?,
            count: usize::try_from(number(bytes, sizes + 2, 2)?)?,
        })
    }

    fn has(&self, bytes: &[u8], field: usize, wanted: u64) -> anyhow::Result<bool> {
        for n in 0..self.count {
            let at = self
                .offset
                .saturating_add(n * self.entry)
                .saturating_add(field);
            if number(bytes, at, 4)? == wanted {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn number(bytes: &[u8], at: usize, len: usize) -> anyhow::Result<u64> {
    let part = at
        .checked_add(len)
        .and_then(|end| bytes.get(at..end))
        .context("the ELF file is cut off")?;
    Ok(part
        .iter()
        .rev()
        .fold(0, |n, byte| n << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_told() {
        // Debian's is dynamic and stripped.
        let bytes = std::fs::read("/bin/tar").unwrap();
        assert_eq!(
            Elf::read(&bytes).unwrap(),
            Elf {
                interpreter: true,
                symbols: false
            }
        );
        assert!(Elf::read(&bytes[..60]).is_err());
        assert!(Elf::read(b"#!/bin/sh").is_err());
    }
}
