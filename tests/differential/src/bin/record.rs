//! `make record`: sends the corpus to a real kube-apiserver and keeps its answers.
//!
//! `KUBE_APISERVER` and `ETCD` are the paths of the programs (`etcd` may be in the search path).

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use rkube_differential::{folder, oracle::Programs, record};

fn programs() -> anyhow::Result<Programs> {
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
    Ok(Programs {
        apiserver: path("KUBE_APISERVER").context(
            "KUBE_APISERVER is the path of a kube-apiserver; CONFORMANCE.md says how to build one",
        )?,
        etcd: path("ETCD").unwrap_or_else(|| "etcd".into()),
    })
}

fn run() -> anyhow::Result<()> {
    let programs = programs()?;
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    let stamp = runtime.block_on(record::record(&folder(), &programs))?;
    println!(
        "{} answers of {}",
        stamp.answers, stamp.version["gitVersion"]
    );
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("record: {error:#}");
            ExitCode::FAILURE
        }
    }
}
