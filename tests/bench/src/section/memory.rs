//! Memory per pod: of the programs' own processes, and the kernel's.

use std::collections::BTreeMap;

use anyhow::Context;

use super::{Bench, peer, pod, pods};
use crate::kernel::{self, Process};
use crate::podman::Podman;
use crate::report::Row;
use crate::rkube::Rkube;

const PSS: &str = "memory per pod (PSS of own processes)";
const KERNEL: &str = "memory per pod (kernel: slabs, stacks, page tables, per-processor)";
const PODS: u32 = 50;
const PEER_PODS: u32 = 20;

/// KiB per pod, and a remark that tells which processes they are.
struct Use {
    pss: f64,
    kernel: f64,
    shares: String,
}

fn measure(
    count: u32,
    start: impl FnOnce() -> anyhow::Result<()>,
    processes: impl Fn() -> anyhow::Result<Vec<Process>>,
) -> anyhow::Result<Use> {
    let before = kernel::kernel_memory_kib()?;
    start()?;
    let after = kernel::kernel_memory_kib()?;
    let mut shares: BTreeMap<String, (u32, f64)> = BTreeMap::new();
    for process in processes()? {
        let kib = u32::try_from(process.pss_kib()?).context("PSS of a process")?;
        let share = shares.entry(process.name).or_default();
        share.0 += 1;
        share.1 += f64::from(kib);
    }
    let pods = f64::from(count);
    let told: Vec<String> = shares
        .iter()
        .map(|(name, (n, kib))| format!("{n} {name} {:.0} KiB", kib / pods))
        .collect();
    let grown = i64::try_from(after)? - i64::try_from(before)?;
    Ok(Use {
        pss: shares.values().map(|s| s.1).sum::<f64>() / pods,
        kernel: f64::from(i32::try_from(grown).context("growth of the kernel's memory")?) / pods,
        shares: told.join(", "),
    })
}

pub(super) fn rows(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let rkube = Rkube::open(&bench.program)?;
    let count = usize::try_from(PODS)?;
    let file = rkube.manifest("memory", &pods(count, crate::rkube::IMAGE).1)?;
    // A pod that came and went made what a first one makes once.
    let first = rkube.manifest("first", &pod("first", crate::rkube::IMAGE))?;
    rkube.start(&first)?;
    rkube.remove(&["first"])?;
    // With no pod there is no process: nothing is taken off.
    rkube.settle()?;
    let ours = measure(
        PODS,
        || rkube.start(&file).map(|_| ()),
        || rkube.processes(),
    )?;
    rkube.close()?;
    let theirs = podman(bench);
    let mut rows = Vec::new();
    for (what, of, target) in [
        (PSS, (|u| u.pss) as fn(&Use) -> f64, Some("1024 KiB")),
        (KERNEL, |u| u.kernel, None),
    ] {
        let mut row = Row::one(what, "rkube", "KiB", of(&ours));
        if let Some(target) = target {
            row = row
                .target(target)
                .note(format!("{PODS} pods {}", ours.shares));
        }
        rows.push(row.clone());
        let told = match &theirs {
            Ok(theirs) => {
                let peer = Row::one(what, "podman", "KiB", of(theirs)).beside(&row);
                let shares = target.map_or("", |_| &theirs.shares);
                Ok(peer.note(format!("{PEER_PODS} pods {shares}")))
            }
            Err(e) => Err(anyhow::anyhow!("{e:#}")),
        };
        peer(&mut rows, what, "podman", told);
    }
    Ok(rows)
}

fn podman(bench: &Bench) -> anyhow::Result<Use> {
    let podman = Podman::open(&bench.toolbox)?;
    let count = usize::try_from(PEER_PODS)?;
    let file = podman.manifest("memory", &pods(count, crate::podman::IMAGE).1)?;
    let theirs = measure(
        PEER_PODS,
        || podman.start(&file).map(|_| ()),
        || podman.processes(),
    )?;
    podman.close()?;
    Ok(theirs)
}
