//! Applets about this process: its identity, its end, its output, its time.

use std::time::Duration;

use nix::sys::signal::Signal;
use rustix::process::Pid;
use rustix::time::{ClockId, clock_gettime};

use crate::applets::{DONE, End, Outcome};
use crate::error::{During, ToolError};
use crate::output;
use crate::parse::{self, Options};
use crate::rest::{Signals, rest};

pub(crate) fn succeed(_: &[String]) -> Outcome {
    DONE
}

pub(crate) fn fail(_: &[String]) -> Outcome {
    Ok(End::Status(1))
}

pub(crate) fn exit(args: &[String]) -> Outcome {
    let code = args.first().map_or(Ok(0), |text| parse::number(text))?;
    Ok(End::Exit(code))
}

pub(crate) fn echo(args: &[String]) -> Outcome {
    match args.split_first() {
        Some((first, rest)) if first == "-n" => output::print(&rest.join(" "))?,
        _ => output::line(&args.join(" "))?,
    }
    DONE
}

pub(crate) fn env(args: &[String]) -> Outcome {
    if let Some(name) = args.first() {
        return match std::env::var_os(name) {
            Some(value) => output::line(&value.to_string_lossy()).map(|()| End::Status(0)),
            None => Ok(End::Status(1)),
        };
    }
    for (name, value) in std::env::vars_os() {
        let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
        output::line(&format!("{name}={value}"))?;
    }
    DONE
}

pub(crate) fn hostname(_: &[String]) -> Outcome {
    output::line(&node_name())?;
    DONE
}

/// The host name of this UTS namespace.
pub(crate) fn node_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

pub(crate) fn id(_: &[String]) -> Outcome {
    let groups = rustix::process::getgroups().during(|| "getgroups".to_owned())?;
    let groups: Vec<String> = groups.iter().map(|g| g.as_raw().to_string()).collect();
    let uid = rustix::process::getuid().as_raw();
    let gid = rustix::process::getgid().as_raw();
    output::line(&format!("uid={uid} gid={gid} groups={}", groups.join(",")))?;
    DONE
}

/// First act: the clocks. `monotonic_ns=N realtime_ns=N` on one line.
pub(crate) fn stamp(_: &[String]) -> Outcome {
    let monotonic = clock_gettime(ClockId::Monotonic);
    let realtime = clock_gettime(ClockId::Realtime);
    let ns =
        |t: rustix::time::Timespec| i128::from(t.tv_sec) * 1_000_000_000 + i128::from(t.tv_nsec);
    let (monotonic, realtime) = (ns(monotonic), ns(realtime));
    output::line(&format!("monotonic_ns={monotonic} realtime_ns={realtime}"))?;
    DONE
}

pub(crate) fn sleep(args: &[String]) -> Outcome {
    let [time] = args else {
        return Err(ToolError::Usage("sleep SECONDS|inf".into()));
    };
    rest(parse::seconds(time)?)
}

/// Lines `TEXT NUMBER`, padded with dots to `--bytes` (newline included).
pub(crate) fn say(args: &[String]) -> Outcome {
    let options = Options::new(args, &["--lines", "--interval", "--bytes"], &[])?;
    let lines = match options.value("--lines") {
        Some("inf") => u64::MAX,
        Some(text) => parse::number(text)?,
        None => 1,
    };
    let interval = Duration::from_millis(options.number("--interval", 0)?);
    let bytes: usize = options.number("--bytes", 0)?;
    let text = if options.rest.is_empty() {
        "line".to_owned()
    } else {
        options.rest.join(" ")
    };
    for number in 1..=lines {
        let mut line = format!("{text} {number}");
        while line.len() + 1 < bytes {
            line.push('.');
        }
        output::line(&line)?;
        if !interval.is_zero() && number < lines {
            let end = rest(Some(interval))?;
            if let End::Exit(_) = end {
                return Ok(end);
            }
        }
    }
    DONE
}

/// Prints `ready`, then each signal that comes; SIGTERM ends it unless
/// `--ignore`, after `--delay` milliseconds, with status `--code`.
pub(crate) fn trap(args: &[String]) -> Outcome {
    let options = Options::new(args, &["--code", "--delay"], &["--ignore"])?;
    let code = options.number("--code", 0)?;
    let delay = Duration::from_millis(options.number("--delay", 0)?);
    let signals = Signals::block(&[
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ])?;
    output::line("ready")?;
    loop {
        let Some(signal) = signals.wait(None)? else {
            continue;
        };
        output::line(&format!("caught {signal}"))?;
        let ends = matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT);
        if ends && !options.flag("--ignore") {
            std::thread::sleep(delay);
            return Ok(End::Exit(code));
        }
    }
}

/// Ends by a signal: SIGABRT, or the one named.
pub(crate) fn crash(args: &[String]) -> Outcome {
    if let Some(name) = args.first() {
        let signal = signal_by_name(name)?;
        // Rust's own handler of SIGSEGV and SIGBUS takes the first and leaves.
        for _ in 0..2 {
            nix::sys::signal::raise(signal).during(|| format!("raise {signal}"))?;
        }
        return Ok(crate::rest::ended_by(signal));
    }
    std::process::abort();
}

pub(crate) fn kill(args: &[String]) -> Outcome {
    let usage = || ToolError::Usage("kill [-SIGNAL] PID...".into());
    let (first, rest) = args.split_first().ok_or_else(usage)?;
    let (signal, pids) = match first.strip_prefix('-') {
        Some(name) => (signal_by_name(name)?, rest),
        None => (Signal::SIGTERM, args),
    };
    if pids.is_empty() {
        return Err(usage());
    }
    for text in pids {
        let pid = Pid::from_raw(parse::number(text)?).ok_or_else(usage)?;
        let pid = nix::unistd::Pid::from_raw(pid.as_raw_nonzero().get());
        nix::sys::signal::kill(pid, signal).during(|| format!("kill {pid} with {signal}"))?;
    }
    DONE
}

/// A signal by number (`15`), name (`TERM`) or full name (`SIGTERM`).
fn signal_by_name(name: &str) -> Result<Signal, ToolError> {
    let known = match name.parse::<i32>() {
        Ok(number) => Signal::try_from(number).ok(),
        Err(_) if name.starts_with("SIG") => name.parse().ok(),
        Err(_) => format!("SIG{name}").parse().ok(),
    };
    known.ok_or_else(|| ToolError::Usage(format!("{name:?} is no signal")))
}

#[cfg(test)]
mod tests {
    use super::signal_by_name;
    use nix::sys::signal::Signal;

    #[test]
    fn signals_by_any_name() {
        for name in ["9", "KILL", "SIGKILL"] {
            assert_eq!(signal_by_name(name).unwrap(), Signal::SIGKILL);
        }
        for name in ["", "0", "99", "SIG", "kill -9"] {
            assert!(signal_by_name(name).is_err(), "{name:?}");
        }
    }
}
