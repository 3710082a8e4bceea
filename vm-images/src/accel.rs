//! Hardware acceleration: used only where a try proves that it works.
//!
//! A present `/dev/kvm` may refuse, hang without end, or run firmware and then
//! give up on an instruction of the kernel; so a machine is started and asked
//! for its status, and the very kernel is booted, each with a time limit. The
//! verdict on a kernel is kept for as long as this machine runs (its boot id).

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use rkube_tests::command::{Cmd, Running};
use rkube_tests::wait::child_ended;

/// How long the try may take; a working KVM answers in a tenth of a second.
const TRY_SECS: u64 = 5;
/// Environment variable that overrides the try: `kvm` or `tcg`.
pub const OVERRIDE: &str = "RKUBE_VM_ACCEL";

/// How QEMU executes the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// In hardware.
    Kvm,
    /// In software, a thread for each virtual processor.
    Tcg,
}

impl Accel {
    /// QEMU's arguments.
    pub fn args(self) -> [&'static str; 4] {
        match self {
            Accel::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // Without what is dear in software: byte-wise string operations in
            // the place of word-wise ones, and a fifth level of page tables.
            Accel::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max,-erms,-la57"],
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        }
    }

    fn from_name(name: &str) -> Option<Accel> {
        [Accel::Kvm, Accel::Tcg]
            .into_iter()
            .find(|a| a.as_str() == name)
    }
}

/// Decides, by the override, the kept verdict, or a try, of which `boots` is
/// the second half: whether the guest that is wanted, with this kernel, comes up
/// in hardware.
///
/// # Errors
/// The verdict cannot be kept. A failed try is a verdict, not an error.
pub fn decide(cache: &Path, kernel: &Path, boots: impl FnOnce() -> bool) -> anyhow::Result<Accel> {
    if let Some(named) = std::env::var(OVERRIDE)
        .ok()
        .and_then(|v| Accel::from_name(&v))
    {
        return Ok(named);
    }
    let boot =
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read boot_id")?;
    let about = format!("{} {}", boot.trim(), kernel.display());
    let kept_at = cache.join("accel");
    let kept = std::fs::read_to_string(&kept_at).unwrap_or_default();
    if let Some((verdict, of)) = kept.trim().split_once(' ')
        && of == about
        && let Some(accel) = Accel::from_name(verdict)
    {
        return Ok(accel);
    }
    let accel = match kvm_answers() {
        true if boots() => Accel::Kvm,
        true => {
            println!("the kernel does not come up with /dev/kvm: guests are emulated");
            Accel::Tcg
        }
        false => Accel::Tcg,
    };
    std::fs::create_dir_all(cache).with_context(|| format!("make {}", cache.display()))?;
    let line = format!("{} {about}\n", accel.as_str());
    std::fs::write(&kept_at, line).with_context(|| format!("write {}", kept_at.display()))?;
    Ok(accel)
}

/// Runs a machine that has nothing to boot far enough to answer its monitor.
fn kvm_answers() -> bool {
    if !Path::new("/dev/kvm").exists() {
        return false;
    }
    let args = [
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-M",
        "q35",
        "-m",
        "64",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-monitor",
        "stdio",
    ];
    let Ok(mut run) = Cmd::new(crate::qemu::PROGRAM, args).spawn() else {
        return false;
    };
    // The processors must have run for a while: firmware that executes moves on.
    let limit = Duration::from_secs(TRY_SECS);
    let answered = run.write(b"info status\n").is_ok()
        && run
            .line("status", limit, |l| l.contains("VM status: running"))
            .is_ok()
        && run.write(b"info registers\nquit\n").is_ok()
        && run
            .line("registers", limit, |l| {
                l.contains("RIP=") || l.contains("EIP=")
            })
            .is_ok();
    ended_by_itself(run, limit) && answered
}

/// Whether a QEMU ends within the limit; killed and left to the kernel if not:
/// waiting for a process that hangs in the driver would hang us too.
pub(crate) fn ended_by_itself(run: Running, limit: Duration) -> bool {
    let ended = child_ended(run.pid(), limit).unwrap_or(false);
    if !ended {
        run.abandon();
    }
    ended
}
