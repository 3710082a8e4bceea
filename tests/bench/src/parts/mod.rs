//! Parts of the program that no command line drives alone, measured inside
//! `rkube-load`, which is built as the program itself is.

mod dns;
mod services;

use std::collections::BTreeMap;

use anyhow::bail;

/// Samples by what they are of.
pub type Figures = BTreeMap<String, Vec<f64>>;

/// Measures a part: `services` or `dns`.
///
/// # Errors
/// There is no such part, or it does not work.
pub fn run(part: &str) -> anyhow::Result<Figures> {
    match part {
        "services" => services::figures(),
        "dns" => dns::figures(),
        other => bail!("no part {other}: there are services and dns"),
    }
}
