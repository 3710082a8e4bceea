//! Many pods with one command.

use std::time::Duration;

use super::{Bench, borrowed, peer, pods};
use crate::podman::Podman;
use crate::report::Row;
use crate::rkube::Rkube;
use crate::stats::Samples;

const WHAT: &str = "100 pods with one command: until all run, per pod";
const PODS: usize = 100;
/// podman starts one after the other: fewer tell as much.
const PEER_PODS: usize = 20;
const RUNS: usize = 3;

fn per_pod_ms(wall: Duration, count: usize) -> f64 {
    // At most a hundred.
    wall.as_secs_f64() * 1e3 / f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

pub(super) fn rows(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let rkube = Rkube::open(&bench.program)?;
    let (names, text) = pods(PODS, crate::rkube::IMAGE);
    let file = rkube.manifest("crowd", &text)?;
    let mut ours = Samples::default();
    for _ in 0..RUNS {
        ours.push(per_pod_ms(rkube.start(&file)?.wall, PODS));
        rkube.remove(&borrowed(&names))?;
    }
    rkube.close()?;
    let ours = Row::new(WHAT, "rkube", "ms", ours).target("30 ms (3 s for all)");
    let mut rows = vec![ours.clone()];
    peer(&mut rows, WHAT, "podman kube play", podman(bench, &ours));
    Ok(rows)
}

fn podman(bench: &Bench, ours: &Row) -> anyhow::Result<Row> {
    let podman = Podman::open(&bench.toolbox)?;
    let (_, text) = pods(PEER_PODS, crate::podman::IMAGE);
    let file = podman.manifest("crowd", &text)?;
    let wall = podman.start(&file)?.wall;
    podman.close()?;
    let row = Row::one(WHAT, "podman kube play", "ms", per_pod_ms(wall, PEER_PODS));
    Ok(row.beside(ours).note(format!("{PEER_PODS} pods")))
}
