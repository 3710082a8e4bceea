//! Services in the kernel: loading many, and changing one, in a network
//! namespace of its own.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::Context;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use rkube_client::ObjectKey;
use rkube_netns::Iid;
use rkube_proxy::compile::compile;
use rkube_proxy::state::State;
use rkube_proxy::table::Table;
use rkube_proxy::{NodeFacts, ProxyConfig};
use serde_json::json;

use super::Figures;

const SERVICES: u32 = 10_000;
const LOADS: usize = 7;
const CHANGES: u32 = 1000;

pub(super) fn figures() -> anyhow::Result<Figures> {
    let measure = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("a network namespace")?;
        measure()
    };
    let thread = std::thread::spawn(measure);
    thread.join().map_err(|_| anyhow::anyhow!("it panicked"))?
}

/// A Service and its slice with two endpoints; `turn` changes the second.
fn pair(number: u32, turn: u32) -> anyhow::Result<(Service, EndpointSlice)> {
    let [_, _, c, d] = number.to_be_bytes();
    let ip = format!("10.96.{c}.{d}");
    let service = json!({
        "metadata": {"name": format!("s{number}"), "namespace": "bench"},
        "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip],
            "ports": [{"port": 80, "protocol": "TCP"}]},
    });
    let ips = [
        format!("10.{}.{c}.{d}", 100 + turn % 2),
        format!("10.102.{c}.{d}"),
    ];
    let slice = json!({
        "metadata": {"name": format!("s{number}-x"), "namespace": "bench"}, "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": ips.map(|ip| json!({"addresses": [ip]})),
    });
    Ok((
        serde_json::from_value(service)?,
        serde_json::from_value(slice)?,
    ))
}

fn measure() -> anyhow::Result<Figures> {
    let iid = Iid::parse("0badbead")?;
    let config = ProxyConfig::new(iid, "rkube-bench", "node");
    let node = NodeFacts {
        name: "node".to_owned(),
        zone: None,
    };
    let none = BTreeSet::new();
    let objects: Vec<(Service, EndpointSlice)> = (0..SERVICES)
        .map(|number| pair(number, 0))
        .collect::<anyhow::Result<_>>()?;
    let mut table = Table::open(&config.table, config.facts(), true)?;
    let mut loads = Vec::new();
    let mut state = State::default();
    for _ in 0..LOADS {
        state = State::default();
        let start = Instant::now();
        for (service, slice) in &objects {
            let entries = compile(service, &[slice], &node, &none).entries;
            state.set(&ObjectKey::of(service), &entries);
        }
        drop(state.take_delta());
        table.install(&state.all())?;
        loads.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let mut changes = Vec::new();
    for turn in 1..=CHANGES {
        let (service, slice) = pair(turn % SERVICES, 1 + turn / SERVICES)?;
        let start = Instant::now();
        let entries = compile(&service, &[&slice], &node, &none).entries;
        state.set(&ObjectKey::of(&service), &entries);
        table.apply(&state.take_delta())?;
        changes.push(start.elapsed().as_secs_f64() * 1e6);
    }
    table.delete()?;
    Ok(Figures::from([
        ("load_ms".to_owned(), loads),
        ("change_us".to_owned(), changes),
    ]))
}
