//! rkube: pods on one host, from raw Linux primitives.
//!
//! Purpose: the command line, and the supervisor that holds a root's pods
//! where no agent or server runs.
//!
//! Boundary: wiring only. Containers are the engine's, pods the kubelet
//! crate's, manifests the API crate's; here are arguments, the protocol
//! between commands and the writer, and what is printed.
//!
//! Invariants:
//! - Commands change nothing themselves while a writer serves: they ask it.
//! - Manifests are read and checked whole before anything is done.
//! - An error is printed once, with its chain, by [`error::print`].

mod cli;
mod client;
mod commands;
mod duration;
mod error;
mod manifest;
mod oci;
mod output;
mod server;
mod supervisor;
mod view;
mod wire;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Names under which the program is the OCI command line.
const OCI_NAMES: [&str; 2] = ["rkube-oci", "runc"];

fn main() -> ExitCode {
    abort_on_panic();
    let args: Vec<OsString> = std::env::args_os().collect();
    let called = args.first().and_then(|name| Path::new(name).file_name());
    if called.is_some_and(|name| OCI_NAMES.iter().any(|oci| OsStr::new(oci) == name)) {
        return ExitCode::from(u8::try_from(oci::main(args)).unwrap_or(error::FAILURE));
    }
    if let Some(args) = oci_arguments(&args, std::env::var_os("RKUBE_ROOT")) {
        return ExitCode::from(oci_code(args));
    }
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody is left to tell when the stream is closed.
            let _ = error.print();
            let asked = matches!(
                error.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            );
            return ExitCode::from(if asked { 0 } else { error::USAGE });
        }
    };
    if let cli::Command::Oci { args } = cli.command {
        return ExitCode::from(oci_code(args));
    }
    log_to_stderr();
    match commands::dispatch(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            error::print(&error);
            ExitCode::from(error::code(&error))
        }
    }
}

/// A panic ends the program wherever it happens, as the release profile has it,
/// also where the profile unwinds: tests drive what users run.
fn abort_on_panic() {
    if cfg!(panic = "unwind") {
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            told(info);
            std::process::abort();
        }));
    }
}

/// What follows `oci`, untouched: the OCI command line has a `--root` of its
/// own. Ours, before it, says below which root that one lies by default.
fn oci_arguments(args: &[OsString], root: Option<OsString>) -> Option<Vec<OsString>> {
    let mut root = root.map(PathBuf::from);
    let mut rest = args.iter().skip(1);
    loop {
        let arg = rest.next()?;
        if arg == "oci" {
            break;
        }
        root = Some(match arg.to_str()?.strip_prefix("--root")? {
            "" => PathBuf::from(rest.next()?),
            value => PathBuf::from(value.strip_prefix('=')?),
        });
    }
    let root = root.into_iter().flat_map(|root| {
        let below = root.join("run/rkube/oci").into_os_string();
        [OsString::from("--root"), below]
    });
    Some(root.chain(rest.cloned()).collect())
}

/// Runs the OCI command line with what `rkube oci` was given.
fn oci_code(args: Vec<OsString>) -> u8 {
    let named = std::iter::once(OsString::from("rkube-oci")).chain(args);
    u8::try_from(oci::main(named.collect())).unwrap_or(error::FAILURE)
}

/// Logs go to standard error, which is a file for the supervisor. `RKUBE_LOG`
/// filters them (`debug`, `rkube_engine=trace,warn`).
fn log_to_stderr() {
    let filter = std::env::var_os("RKUBE_LOG").unwrap_or_else(|| OsString::from("warn"));
    let text = filter.to_string_lossy();
    // `Targets` rather than `EnvFilter`: no regular expressions are linked for it.
    let filter = text.parse::<Targets>().unwrap_or_else(|_| {
        eprintln!("warning: RKUBE_LOG={text:?} is no filter; warnings are logged");
        Targets::new().with_default(LevelFilter::WARN)
    });
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false);
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oci_command_line_has_its_own_root() {
        let given = |line: &str| {
            let args: Vec<_> = line.split(' ').map(OsString::from).collect();
            let found = oci_arguments(&args, None)?;
            let words: Vec<_> = found.iter().map(|a| a.to_string_lossy()).collect();
            Some(words.join(" "))
        };
        for (line, wanted) in [
            ("rkube oci --root /x list", Some("--root /x list")),
            (
                "rkube --root /r oci list",
                Some("--root /r/run/rkube/oci list"),
            ),
            (
                "rkube --root=/r oci --root /x list",
                Some("--root /r/run/rkube/oci --root /x list"),
            ),
            ("rkube ps oci", None),
            ("rkube --root oci", None),
            ("rkube", None),
        ] {
            assert_eq!(given(line).as_deref(), wanted, "{line}");
        }
    }
}
