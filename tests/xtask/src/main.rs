//! The project's chores, one command each; the Makefile is thin over them.
//!
//! ```text
//! cargo xtask check
//! cargo xtask test
//! cargo xtask vm-test [--kernel PATH] [--layout L]... [--special] [--packages] [--whole] [--verbose] [FILTER...]
//! cargo xtask vm-shell [--kernel PATH] [--layout L]
//! cargo xtask demo | dist
//! cargo xtask bench [SECTION...]
//! cargo xtask fuzz [SECONDS-PER-TARGET] [TARGET...]
//! cargo xtask soak [ROUNDS] [FILTER...]
//! cargo xtask soak long
//! cargo xtask conformance DIR [--jobs N] [--failed] [--list] [FILTER...]
//! ```

use std::process::ExitCode;

mod builds;
mod chores;
mod conformance;
mod fuzz;
mod soak;
mod test;
mod vm;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((command, rest)) = args.split_first() else {
        eprintln!(
            "usage: cargo xtask check|test|vm-test|vm-shell|demo|bench|dist|fuzz|soak|conformance"
        );
        return ExitCode::from(2);
    };
    let done = match command.as_str() {
        "check" => test::check(),
        "test" => test::test(),
        "vm-test" => vm::test(rest),
        "vm-shell" => vm::shell(rest),
        "demo" => chores::demo(),
        "bench" => chores::bench(rest),
        "dist" => chores::dist().map(|_| true),
        "fuzz" => fuzz::fuzz(rest),
        "soak" => soak::soak(rest),
        "conformance" => conformance::conformance(rest),
        other => {
            eprintln!("xtask: unknown command {other}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}
