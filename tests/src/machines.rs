//! What cases look up in a guest whose boot is about the machine itself.

use anyhow::{Context, ensure};

use crate::command::Cmd;

/// The kernel parameter that numbers guests joined by a link, from 1.
pub const PEER: &str = "rkube.peer";
/// Modules of the image, one path a line, each after those it needs.
pub const MODULE_LIST: &str = "/lib/modules/load.list";

/// This guest's number among those that a link joins.
///
/// # Errors
/// It is joined to none.
pub fn peer() -> anyhow::Result<u8> {
    let line = std::fs::read_to_string("/proc/cmdline").context("read /proc/cmdline")?;
    line.split_whitespace()
        .find_map(|w| w.strip_prefix(PEER)?.strip_prefix('='))
        .with_context(|| format!("no {PEER} in {line}"))?
        .parse()
        .context(PEER)
}

/// Loads the modules of the image whose names these prefixes begin; those that
/// are loaded stay.
///
/// # Errors
/// There is none of the kind, or the kernel refuses one.
pub fn load_modules(prefixes: &[&str]) -> anyhow::Result<()> {
    let list =
        std::fs::read_to_string(MODULE_LIST).with_context(|| format!("read {MODULE_LIST}"))?;
    let loaded = std::fs::read_to_string("/proc/modules").context("read /proc/modules")?;
    let mut found = 0;
    for path in list.lines() {
        let name = path.rsplit('/').next().unwrap_or(path);
        let name = name.trim_end_matches(".ko");
        if !prefixes.iter().any(|p| name.starts_with(p)) {
            continue;
        }
        found += 1;
        if !loaded.lines().any(|l| l.split(' ').next() == Some(name)) {
            Cmd::new("insmod", [path]).ok()?;
        }
    }
    ensure!(
        found > 0,
        "no module of {MODULE_LIST} is one of {prefixes:?}"
    );
    Ok(())
}
