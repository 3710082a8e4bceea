//! A program in a running container, by command line.

use super::{Bench, peer, pod};
use crate::podman::Podman;
use crate::report::Row;
use crate::rkube::Rkube;
use crate::stats::Samples;

const WHAT: &str = "exec of `true` in a running pod";

pub(super) fn rows(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let rkube = Rkube::open(&bench.program)?;
    let file = rkube.manifest("bench", &pod("bench", crate::rkube::IMAGE))?;
    rkube.start(&file)?;
    let mut podman = Podman::open(&bench.toolbox).and_then(|podman| {
        let file = podman.manifest("bench", &pod("bench", crate::podman::IMAGE))?;
        podman.start(&file)?;
        Ok(podman)
    });
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    for _ in 0..bench.runs {
        let done = rkube.run(&["exec", "bench", "--", "/bin/toolbox", "true"])?;
        ours.push_ms(done.wall);
        if let Ok(peer) = &podman {
            match peer.run(&["exec", "bench-a", "/bin/toolbox", "true"]) {
                Ok(done) => theirs.push_ms(done.wall),
                Err(e) => podman = Err(e),
            }
        }
    }
    rkube.close()?;
    let ours = Row::new(WHAT, "rkube exec", "ms", ours).target("2.5 ms");
    let mut rows = vec![ours.clone()];
    let told = podman.and_then(|podman| {
        podman.close()?;
        Ok(Row::new(WHAT, "podman exec", "ms", theirs).beside(&ours))
    });
    peer(&mut rows, WHAT, "podman exec", told);
    Ok(rows)
}
