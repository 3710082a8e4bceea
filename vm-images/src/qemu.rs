//! One QEMU: its command line, and a boot that listens to the suite.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rkube_tests::case::Stage;
use rkube_tests::command::{Cmd, Next, Running};
use rkube_tests::layout::Layout;
use rkube_tests::report::Event;
use rkube_tests::unit::TestResult;

use crate::accel::{self, Accel};
use crate::disk;
use crate::guest::{INIT, Order, RESULTS_PORT};

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// Memory of a guest, in MiB.
const MEMORY_MIB: u32 = 1024;
/// Virtual processors of a guest.
const PROCESSORS: u32 = 2;
/// A guest that says nothing for so long has failed. Every test in it has a
/// deadline of its own, well below.
const SILENCE_SECS: u64 = 600;
/// Silence that is allowed before the first word.
const BOOT_SILENCE_SECS: u64 = 120;
/// A boot that tries hardware acceleration may take so long: where that works,
/// it takes two seconds, firmware included.
const TRIAL_SECS: u64 = 15;
/// The disk of such a boot.
const TRIAL_DISK_BYTES: u64 = 64 << 20;
/// Lines of QEMU's own complaints that are kept.
const COMPLAINTS_MAX_LINES: usize = 100;

/// A machine to boot.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The kernel image.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// The disk with the programs, which guests share.
    pub programs: PathBuf,
    /// The scratch disk.
    pub disk: PathBuf,
    /// Where the console's log goes.
    pub console: PathBuf,
    /// How to emulate.
    pub accel: Accel,
    /// The number of an inherited descriptor that is one end of a link to
    /// another guest.
    pub link: Option<i32>,
    /// What the boot is for.
    pub order: Order,
}

/// What a boot for tests gave.
#[derive(Debug, Default)]
pub struct Heard {
    /// Results, in the order of their ends.
    pub results: Vec<TestResult>,
    /// How many the guest announced.
    pub planned: Option<usize>,
    /// Tests that began and did not end.
    pub unfinished: Vec<String>,
    /// Whether the suite said that it is through.
    pub done: bool,
    /// From the start of QEMU to the start of the first test.
    pub first_test: Option<Duration>,
    /// From the start of QEMU to the end of the first test.
    pub first_end: Option<Duration>,
    /// Processor time that QEMU had used by then: on a busy machine the wall
    /// clock tells more of the others than of the boot.
    pub first_test_cpu: Option<Duration>,
    /// The whole boot.
    pub took: Duration,
    /// What went wrong outside the tests, else empty.
    pub trouble: String,
}

/// Parameters of kernels that are emulated (kernel-parameters.txt): nothing of
/// this has a part in what tests promise, and each costs a multiple there.
/// Indirect jumps through return trampolines leave the translated code, pages
/// are cleared once more than needed, and huge ones are cleared whole.
const EASED: &str = " mitigations=off init_on_alloc=0 transparent_hugepage=never";

impl Machine {
    fn cmdline(&self) -> String {
        // quiet: bytes over an emulated serial line are slow. psi=1: Debian
        // builds it in, switched off. panic=-1 with -no-reboot ends QEMU.
        let emulated = match self.accel {
            Accel::Kvm => "",
            Accel::Tcg => EASED,
        };
        format!(
            "console=ttyS0 quiet panic=-1 oops=panic psi=1 rdinit={INIT}{emulated} {}",
            self.order.to_cmdline()
        )
    }

    fn args(&self) -> Vec<String> {
        let mut args: Vec<String> = self.accel.args().map(str::to_owned).to_vec();
        let drive = format!(
            "file={},if=none,id=disk,format=raw,cache=unsafe,discard=unmap",
            self.disk.display()
        );
        let programs = format!(
            "file={},if=none,id=programs,format=raw,readonly=on",
            self.programs.display()
        );
        let own = [
            ("-M", "q35".to_owned()),
            ("-m", MEMORY_MIB.to_string()),
            ("-smp", PROCESSORS.to_string()),
            ("-display", "none".to_owned()),
            ("-kernel", self.kernel.display().to_string()),
            ("-initrd", self.initramfs.display().to_string()),
            ("-append", self.cmdline()),
            ("-drive", drive),
            ("-device", "virtio-blk-pci,drive=disk".to_owned()),
            ("-drive", programs),
            ("-device", "virtio-blk-pci,drive=programs".to_owned()),
        ];
        if let Some(fd) = self.link {
            // Each guest has a hardware address of its own (locally assigned).
            let mac = format!("52:54:00:00:00:{:02x}", self.order.peer.unwrap_or(0));
            args.extend([
                "-netdev".to_owned(),
                format!("socket,id=link,fd={fd}"),
                "-device".to_owned(),
                format!("virtio-net-pci,netdev=link,mac={mac},romfile="),
            ]);
        }
        args.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
        args.extend(
            own.into_iter()
                .flat_map(|(flag, value)| [flag.to_owned(), value]),
        );
        args
    }

    /// Starts QEMU with what a guest says of its tests on our end of a pipe.
    fn spawn(&self) -> anyhow::Result<Running> {
        let mut args = self.args();
        let console = format!("file,id=console,path={}", self.console.display());
        let port = format!("virtserialport,chardev=results,name={RESULTS_PORT}");
        let more = [
            ["-chardev", &console],
            ["-serial", "chardev:console"],
            ["-device", "virtio-serial-pci"],
            ["-chardev", "stdio,id=results,signal=off"],
            ["-device", &port],
            ["-monitor", "none"],
        ];
        args.extend(more.iter().flatten().map(|s| (*s).to_owned()));
        Cmd::new(PROGRAM, args).spawn()
    }

    /// Whether the kernel boots in hardware as far as the suite, which here
    /// finds no test to run, and powers off. It gets a disk of its own, made in
    /// `dir`: a QEMU that hangs keeps the lock of its disk.
    pub fn comes_up_in_hardware(&self, dir: &Path) -> bool {
        let limit = Duration::from_secs(TRIAL_SECS);
        let attempt = || -> anyhow::Result<bool> {
            let place = tempfile::tempdir_in(dir).context("make a directory for a trial")?;
            let empty = place.path().join("empty");
            std::fs::create_dir(&empty).context("make an empty tree")?;
            let trial = Machine {
                accel: Accel::Kvm,
                disk: disk::make(&place.path().join("disk.img"), &empty, TRIAL_DISK_BYTES)?,
                console: self.console.with_extension("kvm.log"),
                // A stage without the tests of packages, which would be asked
                // what they have.
                order: Order {
                    filters: vec!["no-such-test".to_owned()],
                    ..Order::new(Layout::V2, Stage::Lacking)
                },
                ..self.clone()
            };
            let mut qemu = trial.spawn()?;
            let done = qemu.line("the end of the suite", limit, |line| {
                matches!(serde_json::from_str(line), Ok(Event::Done))
            });
            Ok(accel::ended_by_itself(qemu, limit) && done.is_ok())
        };
        attempt().unwrap_or(false)
    }

    /// Boots for tests and listens until QEMU ends; each result is handed to
    /// `each` as it comes.
    ///
    /// # Errors
    /// QEMU cannot be started. A guest that fails is told by [`Heard`].
    pub fn listen(&self, each: impl FnMut(&TestResult)) -> anyhow::Result<Heard> {
        self.listen_until(None, each)
    }

    /// The same, with the power cut (QEMU killed) so long after the first test
    /// ended: what the guest had not yet flushed to its disk is lost.
    ///
    /// # Errors
    /// As [`Machine::listen`].
    pub fn listen_until(
        &self,
        cut_after: Option<Duration>,
        mut each: impl FnMut(&TestResult),
    ) -> anyhow::Result<Heard> {
        let start = Instant::now();
        let mut qemu = self.spawn()?;
        let mut heard = Heard::default();
        let mut complaints = Vec::new();
        loop {
            if heard.first_test.is_some() && heard.first_test_cpu.is_none() {
                heard.first_test_cpu = cpu_time(qemu.pid());
            }
            let limit = if heard.planned.is_none() {
                BOOT_SILENCE_SECS
            } else {
                SILENCE_SECS
            };
            let cut_at = cut_after
                .zip(heard.first_end)
                .map(|(after, first)| start + first + after);
            let patience = match cut_at {
                Some(at) => at.saturating_duration_since(Instant::now()),
                None => Duration::from_secs(limit),
            };
            match qemu.next_line(patience) {
                Next::Line(line) => match serde_json::from_str::<Event>(&line) {
                    Ok(event) => heard.take(event, start, &mut each),
                    Err(_) if complaints.len() < COMPLAINTS_MAX_LINES => complaints.push(line),
                    Err(_) => {}
                },
                Next::Silence if cut_at.is_some() => break,
                Next::Silence => {
                    complaints.push(format!("the guest was silent for {limit} s"));
                    break;
                }
                Next::End => break,
            }
        }
        // Dropping it kills one that still runs.
        drop(qemu);
        heard.took = start.elapsed();
        heard.trouble = complaints.join("\n");
        Ok(heard)
    }

    /// Boots with the console on this terminal, until the guest powers off.
    ///
    /// # Errors
    /// QEMU cannot be started, or ends with an error.
    pub fn interact(&self) -> anyhow::Result<()> {
        let status = Command::new(PROGRAM)
            .args(self.args())
            .args(["-serial", "mon:stdio"])
            .status()
            .with_context(|| format!("start {PROGRAM}"))?;
        ensure!(status.success(), "{PROGRAM}: {status}");
        Ok(())
    }

    /// The end of the console's log.
    pub fn console_tail(&self, lines: usize) -> String {
        tail_of(&self.console, lines)
    }
}

/// Processor time of all threads of a process: fields utime and stime of
/// proc(5)'s stat, in ticks of 10 ms (USER_HZ, the same on every x86-64).
fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 10))
}

fn tail_of(path: &Path, lines: usize) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

impl Heard {
    fn take(&mut self, event: Event, start: Instant, each: &mut impl FnMut(&TestResult)) {
        match event {
            Event::Plan { total } => self.planned = Some(self.planned.unwrap_or(0) + total),
            Event::Start { name } => {
                self.first_test.get_or_insert_with(|| start.elapsed());
                self.unfinished.push(name);
            }
            Event::End(result) => {
                self.first_end.get_or_insert_with(|| start.elapsed());
                self.unfinished.retain(|n| *n != result.name);
                each(&result);
                self.results.push(result);
            }
            Event::Done => self.done = true,
        }
    }

    /// Why the boot as a whole cannot be trusted, if so.
    pub fn broken(&self) -> Option<String> {
        let mut why = Vec::new();
        if !self.done {
            why.push("the guest broke off".to_owned());
        }
        match self.planned {
            None => why.push("no test began".to_owned()),
            Some(0) => why.push("no test was chosen".to_owned()),
            Some(n) if n != self.results.len() => {
                why.push(format!("{} of {n} tests ended", self.results.len()));
            }
            Some(_) => {}
        }
        if !self.unfinished.is_empty() {
            why.push(format!("unfinished: {}", self.unfinished.join(", ")));
        }
        if !why.is_empty() && !self.trouble.is_empty() {
            why.push(self.trouble.clone());
        }
        (!why.is_empty()).then(|| why.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_processor_time_is_told() {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(50) {}
        let told = cpu_time(std::process::id()).unwrap();
        assert!(
            told > Duration::ZERO && told < Duration::from_secs(3600),
            "{told:?}"
        );
    }

    #[test]
    fn a_guest_that_breaks_off_is_no_shorter_pass() {
        let mut heard = Heard::default();
        assert!(heard.broken().is_some());
        let start = Instant::now();
        let take = |h: &mut Heard, e: Event| h.take(e, start, &mut |_: &TestResult| {});
        take(&mut heard, Event::Plan { total: 1 });
        take(&mut heard, Event::Start { name: "a".into() });
        take(&mut heard, Event::Done);
        let why = heard.broken().unwrap();
        assert!(
            why.contains("0 of 1") && why.contains("unfinished: a"),
            "{why}"
        );
        take(
            &mut heard,
            Event::End(TestResult {
                name: "a".into(),
                outcome: rkube_tests::unit::Outcome::Passed,
                ms: 1,
                reason: String::new(),
                output: String::new(),
            }),
        );
        assert_eq!(heard.broken(), None);
    }
}
