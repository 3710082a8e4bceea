//! Applets that use up memory, processors and processes, within bounds.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::applets::Outcome;
use crate::error::{During, ToolError};
use crate::output;
use crate::parse::{self, Options};
use crate::rest::{Rest, rest};

/// Memory is taken in pieces of this size unless `--step` says otherwise.
const STEP_BYTES: u64 = 1 << 20;

/// Takes memory in pieces, touches every page, says how far it is, holds it.
pub(crate) fn hog_memory(args: &[String]) -> Outcome {
    let options = Options::new(args, &["--step", "--interval", "--seconds"], &[])?;
    let usage = || ToolError::Usage("hog-memory SIZE, such as 64Mi".into());
    let [text] = options.rest[..] else {
        return Err(usage());
    };
    let total = parse::size(text).ok_or_else(usage)?;
    let step = options
        .value("--step")
        .map_or(Some(STEP_BYTES), parse::size)
        .filter(|&step| step > 0)
        .ok_or_else(usage)?;
    let interval = Duration::from_millis(options.number("--interval", 0)?);
    let hold = options.seconds("--seconds", None)?;
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    let mut held = 0;
    while held < total {
        let piece = step.min(total - held);
        pieces.push(touched(piece)?);
        held += piece;
        if !interval.is_zero() {
            output::line(&format!("holding {held} bytes"))?;
            std::thread::sleep(interval);
        }
    }
    output::line(&format!("holding {held} bytes"))?;
    let end = rest(hold);
    drop(std::hint::black_box(pieces));
    end
}

/// `bytes` of memory, each page of it written to.
fn touched(bytes: u64) -> Result<Vec<u8>, ToolError> {
    let refused = || ToolError::Answer(format!("allocate {bytes} bytes: out of memory"));
    let bytes = usize::try_from(bytes).map_err(|_| refused())?;
    let mut piece = Vec::new();
    piece.try_reserve_exact(bytes).map_err(|_| refused())?;
    piece.resize(bytes, 1);
    Ok(std::hint::black_box(piece))
}

/// Keeps `--threads` threads (default 1) busy for `--seconds` (default: ever).
pub(crate) fn burn_cpu(args: &[String]) -> Outcome {
    let options = Options::new(args, &["--threads", "--seconds"], &[])?;
    let threads: usize = options.number("--threads", 1)?;
    let limit = options.seconds("--seconds", None)?;
    let rest = Rest::prepare()?;
    output::line(&format!("burning with {threads} threads"))?;
    for _ in 0..threads {
        std::thread::Builder::new()
            .spawn(spin)
            .during(|| "start a thread".to_owned())?;
    }
    // The threads end with the process, when the time is over.
    rest.wait(limit)
}

fn spin() {
    let mut value = 0_u64;
    loop {
        value = std::hint::black_box(value.wrapping_mul(31).wrapping_add(1));
    }
}

/// Starts up to `--max` (default 64, at most 4096) sleeping children, prints
/// how many the kernel allowed, holds them for `--seconds`, ends them.
pub(crate) fn fork_bomb(args: &[String]) -> Outcome {
    const MAX_CHILDREN: usize = 4096;
    let options = Options::new(args, &["--max", "--seconds"], &[])?;
    let max = options.number::<usize>("--max", 64)?.min(MAX_CHILDREN);
    let hold = options.seconds("--seconds", Some(Duration::ZERO))?;
    let mut children: Vec<Child> = Vec::new();
    let mut refusal = None;
    while children.len() < max {
        let child = Command::new("/proc/self/exe")
            .args(["sleep", "inf"])
            .stdin(Stdio::null())
            .spawn();
        match child {
            Ok(child) => children.push(child),
            Err(e) => {
                refusal = Some(e);
                break;
            }
        }
    }
    let started = children.len();
    let told = match refusal {
        None => output::line(&format!("started {started}")),
        Some(e) => output::line(&format!("started {started}, then: {e}")),
    };
    let end = told.and_then(|()| rest(hold));
    for child in &mut children {
        child.kill().during(|| format!("kill {}", child.id()))?;
        child.wait().during(|| format!("wait for {}", child.id()))?;
    }
    end
}
