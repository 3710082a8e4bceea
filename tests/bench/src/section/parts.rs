//! Services in the kernel and cluster DNS, as [`crate::parts`] measures them.

use std::process::Command;

use anyhow::Context;

use super::Bench;
use crate::clock;
use crate::parts::Figures;
use crate::report::Row;
use crate::stats::Samples;

fn figures(bench: &Bench, part: &str) -> anyhow::Result<Figures> {
    let mut command = Command::new(&bench.load);
    command.arg(part);
    let done = clock::succeeds(command)?;
    serde_json::from_str(&done.stdout).with_context(|| format!("read the figures of {part}"))
}

fn samples(figures: &mut Figures, of: &str) -> Samples {
    let found = figures.remove(of).unwrap_or_default();
    found.into_iter().collect()
}

pub(super) fn services(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let mut all = figures(bench, "services")?;
    let loads = samples(&mut all, "load_ms");
    let changes = samples(&mut all, "change_us");
    Ok(vec![
        Row::new(
            "10,000 Services x 2 endpoints, compiled and loaded",
            "rkube proxy",
            "ms",
            loads,
        )
        .target("100 ms"),
        Row::new(
            "one endpoint changed among 10,000 Services",
            "rkube proxy",
            "us",
            changes,
        )
        .target("p50 50 us"),
    ])
}

pub(super) fn dns(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let mut all = figures(bench, "dns")?;
    let what = "cluster DNS, A queries by UDP among 10,000 Services";
    let per_core = samples(&mut all, "per_core");
    let per_second = samples(&mut all, "per_second");
    Ok(vec![
        Row::new(what, "rkube dns", "queries/s of one core", per_core).target("100,000"),
        Row::new(what, "rkube dns", "queries/s by the clock", per_second),
    ])
}
