//! Time until the payload's first instruction.

use anyhow::Context;

use super::{Bench, peer, pod};
use crate::clock::between;
use crate::podman::Podman;
use crate::report::Row;
use crate::rkube::Rkube;
use crate::stats::Samples;

const FIRST: &str = "pod: command to payload's first instruction";
const WHOLE: &str = "pod: command until it returns";
/// Starts without a supervisor, and in a root where nothing was done.
const COLD_RUNS: usize = 10;
const FRESH_RUNS: usize = 5;

#[derive(Default)]
struct Starts {
    first: Samples,
    whole: Samples,
}

impl Starts {
    fn rkube(&mut self, rkube: &Rkube, file: &str) -> anyhow::Result<()> {
        let done = rkube.start(file)?;
        self.first
            .push_ms(between(done.began_ns, rkube.stamp("bench")?));
        self.whole.push_ms(done.wall);
        Ok(())
    }

    fn podman(&mut self, podman: &Podman, file: &str) -> anyhow::Result<()> {
        let done = podman.start(file)?;
        self.first
            .push_ms(between(done.began_ns, podman.stamp("bench")?));
        self.whole.push_ms(done.wall);
        podman.remove(&["bench"])?;
        Ok(())
    }
}

pub(super) fn rows(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let rkube = Rkube::open(&bench.program)?;
    let file = rkube.manifest("bench", &pod("bench", crate::rkube::IMAGE))?;
    let anchor = rkube.manifest("anchor", &pod("anchor", crate::rkube::IMAGE))?;
    // One pod keeps the supervisor.
    rkube.start(&anchor)?;
    let mut podman = Podman::open(&bench.toolbox).and_then(|podman| {
        let file = podman.manifest("bench", &pod("bench", crate::podman::IMAGE))?;
        // The first pod makes the pause image and the network.
        Starts::default().podman(&podman, &file)?;
        Ok((podman, file))
    });

    let (mut warm, mut theirs) = (Starts::default(), Starts::default());
    for _ in 0..bench.runs {
        warm.rkube(&rkube, &file)?;
        rkube.remove(&["bench"])?;
        if let Ok((peer, file)) = &podman
            && let Err(e) = theirs.podman(peer, file)
        {
            podman = Err(e);
        }
    }

    rkube.remove(&["anchor"])?;
    let mut cold = Starts::default();
    for _ in 0..COLD_RUNS {
        rkube.settle()?;
        cold.rkube(&rkube, &file)?;
        rkube.remove(&["bench"])?;
    }
    rkube.close()?;
    let mut fresh = Starts::default();
    for _ in 0..FRESH_RUNS {
        let rkube = Rkube::open(&bench.program)?;
        let file = rkube.manifest("bench", &pod("bench", crate::rkube::IMAGE))?;
        fresh.rkube(&rkube, &file)?;
        rkube.remove(&["bench"])?;
        rkube.close()?;
    }

    let mut rows = Vec::new();
    for (what, target, of) in [
        (
            FIRST,
            "1/8 of podman's",
            (|s| &s.first) as fn(&Starts) -> &Samples,
        ),
        (WHOLE, "25 ms", |s| &s.whole),
    ] {
        let ours = Row::new(what, "rkube, supervisor running", "ms", of(&warm).clone());
        let ours = ours.target(target);
        rows.push(ours.clone());
        rows.push(Row::new(
            what,
            "rkube, no supervisor",
            "ms",
            of(&cold).clone(),
        ));
        rows.push(Row::new(
            what,
            "rkube, empty root",
            "ms",
            of(&fresh).clone(),
        ));
        let row = match &podman {
            Ok(_) => {
                Ok(Row::new(what, "podman kube play", "ms", of(&theirs).clone()).beside(&ours))
            }
            Err(e) => Err(anyhow::anyhow!("{e:#}")),
        };
        peer(&mut rows, what, "podman kube play", row);
    }
    if let Ok((podman, _)) = podman {
        podman.close().context("clear podman's place")?;
    }
    Ok(rows)
}
