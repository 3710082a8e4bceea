//! How the program ends: exit codes, and the one printer of errors.

use std::error::Error as StdError;
use std::fmt;
use std::io::Write;

use crate::wire::Failure;

/// A command line or manifest that cannot be used (`EX_USAGE` of sysexits.h).
pub(crate) const USAGE: u8 = 64;
/// It did not work.
pub(crate) const FAILURE: u8 = 1;
/// Ended by Ctrl-C: 128 + SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;

/// What the user gave cannot be used; nothing was done.
#[derive(Debug)]
pub(crate) struct BadInput(pub(crate) Vec<String>);

impl fmt::Display for BadInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl StdError for BadInput {}

/// One thing that cannot be used.
pub(crate) fn bad_input(what: impl Into<String>) -> anyhow::Error {
    BadInput(vec![what.into()]).into()
}

/// An error with its sources, in one line; what a source repeats is left out.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let words = source.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = source.source();
    }
    text
}

/// The error as it travels to a command.
pub(crate) fn failure(error: &anyhow::Error) -> Failure {
    match error.downcast_ref::<Failure>() {
        Some(failure) => failure.clone(),
        None => Failure {
            message: chain(error.as_ref()),
            hint: hint(error),
        },
    }
}

/// What to do about an error, where that is known.
fn hint(error: &anyhow::Error) -> Option<String> {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.hint.clone();
    }
    let denied = error.chain().any(|e| {
        let io = e.downcast_ref::<std::io::Error>();
        io.is_some_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied)
    });
    (denied && !rustix::process::geteuid().is_root())
        .then(|| "rkube needs root: run it with sudo".to_owned())
}

/// The exit code of an error.
pub(crate) fn code(error: &anyhow::Error) -> u8 {
    if error.is::<BadInput>() {
        USAGE
    } else {
        FAILURE
    }
}

/// Prints the chain once: `error: what: on what: why`, and a hint.
pub(crate) fn print(error: &anyhow::Error) {
    let mut out = std::io::stderr().lock();
    // Nobody is left to tell when standard error is closed.
    let _ = match error.downcast_ref::<BadInput>() {
        Some(BadInput(list)) => list
            .iter()
            .try_for_each(|line| writeln!(out, "error: {line}")),
        None => writeln!(out, "error: {}", chain(error.as_ref())),
    };
    if let Some(hint) = hint(error) {
        let _ = writeln!(out, "hint: {hint}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_chain_is_told_once() {
        let io = std::io::Error::from_raw_os_error(2);
        let error = anyhow::Error::from(io)
            .context("open /x")
            .context("read manifests");
        assert_eq!(
            chain(error.as_ref()),
            "read manifests: open /x: No such file or directory (os error 2)"
        );
        assert_eq!(code(&error), FAILURE);
        assert_eq!(code(&bad_input("no")), USAGE);
        // thiserror variants that print their source would repeat it.
        let twice = anyhow::anyhow!("why").context("what: why");
        assert_eq!(chain(twice.as_ref()), "what: why");
    }

    #[test]
    fn failures_of_the_writer_keep_their_hint() {
        let error = anyhow::Error::from(Failure::new("no").hint("do"));
        assert_eq!(failure(&error), Failure::new("no").hint("do"));
        let wrapped = Err::<(), _>(Failure::new("no").hint("do"))
            .context("run pods")
            .unwrap_err();
        assert_eq!(hint(&wrapped).as_deref(), Some("do"));
    }
}
