//! Measures a part of [`rkube_bench::parts`], or does one job of
//! [`rkube_bench::load`], given as JSON; prints what came of it as JSON.

use std::process::ExitCode;

use anyhow::Context;
use rkube_bench::{load, parts};

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
    let what = std::env::args().nth(1);
    let what = what.context("usage: rkube-load PART|JOB")?;
    if what.starts_with('{') {
        let job = serde_json::from_str(&what).context("read the job")?;
        let done = load::run(&job)?;
        return serde_json::to_string(&done).context("write what was done");
    }
    let figures = parts::run(&what)?;
    serde_json::to_string(&figures).context("write the figures")
}
