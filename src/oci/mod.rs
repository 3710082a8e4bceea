//! `rkube oci`: the OCI runtime's command line, with runc's commands and
//! flags. Called as `rkube-oci` or `runc` the program is this alone.
//!
//! No daemon, no threads: containers are children of whoever calls, and their
//! records lie below `--root`.

mod args;
mod commands;
mod log;
mod resources;
mod show;

use std::ffi::OsString;

use clap::Parser;

pub(crate) use args::Cli;

/// Runs the command line; `args` begins with the program's name. Returns the
/// exit code.
#[must_use]
pub(crate) fn main(args: Vec<OsString>) -> i32 {
    let name = args::program_name(&args);
    let cli = match Cli::try_parse_from(args::long_options(args)) {
        Ok(cli) => cli,
        Err(error) => {
            let code = error.exit_code();
            // Nothing is left to do where the terminal has gone.
            let _ = error.print();
            return i32::from(code != 0);
        }
    };
    if cli.version {
        print!("{}", commands::version(&name));
        return 0;
    }
    let mut log = match log::Log::open(cli.log.as_deref(), cli.log_format) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("{name}: {}", error.chain());
            return 1;
        }
    };
    let failure_code = match cli.command {
        Some(args::Command::Exec(_)) => 255,
        _ => 1,
    };
    match commands::run(cli, &mut log) {
        Ok(code) => code,
        Err(error) => {
            let text = error.chain();
            log.error(&text);
            eprintln!("{name}: {text}");
            failure_code
        }
    }
}
