//! Does one job of [`rkube_bench::load`], given as JSON in the only argument,
//! and prints what came of it as JSON.

use std::process::ExitCode;

use anyhow::Context;
use rkube_bench::load;

fn main() -> ExitCode {
    match run() {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("rkube-load: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<String> {
    let job = std::env::args().nth(1).context("usage: rkube-load JOB")?;
    let job = serde_json::from_str(&job).context("read the job")?;
    let done = load::run(&job)?;
    serde_json::to_string(&done).context("write what was done")
}
