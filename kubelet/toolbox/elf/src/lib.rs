//! The applets of the built-in image: one static executable with many names.
//!
//! Purpose: give examples and tests a container payload that needs no registry
//! and no other file: servers, clients, memory and cpu load, and probes that
//! print what the kernel grants the process.
//!
//! Boundary: a payload, never part of the runtime. It knows neither rkube nor
//! Kubernetes, and calls no resolver or user database of libc (a static glibc
//! would load the host's modules): [`dns`] asks `/etc/hosts` and the servers of
//! `/etc/resolv.conf` itself, users are numbers.
//!
//! Invariants: the applet is `argv[0]`'s last component or, if that is none,
//! the first argument; every failure names what was attempted and ends with
//! status 1, wrong usage with status 2; `stamp` reads the clocks before it does
//! anything else.

use std::ffi::OsString;
use std::process::ExitCode;

mod applets;
pub mod dns;
mod error;
mod files;
mod http;
mod load;
mod net;
mod output;
pub mod parse;
mod probe;
mod process;
mod rest;
pub mod shell;

pub use applets::APPLETS;
pub use error::ToolError;

/// Runs the applet that `args` (beginning with `argv[0]`) ask for.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Vec<String> = args.map(|arg| arg.to_string_lossy().into_owned()).collect();
    let Some((name, rest)) = applets::select(&args) else {
        eprint!("{}", applets::usage());
        return ExitCode::from(2);
    };
    ExitCode::from(applets::run(name, rest).status())
}
