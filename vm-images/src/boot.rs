//! What callers use: tests on every layout, or a prompt on one.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rkube_tests::case::Stage;
use rkube_tests::layout::Layout;
use rkube_tests::report::line_of;
use rkube_tests::unit::{Outcome, TestResult};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::accel::{self, Accel};
use crate::guest::{self, Order};
use crate::image::Contents;
use crate::kernel::Kernel;
use crate::qemu::{Heard, Machine};
use crate::{disk, image, systemd};

/// One boot for each, in this order.
pub const LAYOUTS: &[Layout] = Layout::ALL;
/// Lines of the console shown when something failed.
const CONSOLE_SHOWN_LINES: usize = 80;
/// Tests at a time in a guest of two processors: they mostly wait.
const JOBS: usize = 6;

/// What to boot.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Kernels, images and logs are kept below it.
    pub cache: PathBuf,
    /// Files that the guest finds in `/disk/images`.
    pub images: Vec<PathBuf>,
    /// What goes into the image.
    pub contents: Contents,
    /// A kernel of the user's own instead of Debian's.
    pub kernel: Option<PathBuf>,
    /// Tests whose name contains one of these (all, if none).
    pub filters: Vec<String>,
    /// Every case that can run in a VM, on every layout, and not what each
    /// layout adds.
    pub whole: bool,
    /// Packages whose own tests run on every layout; those of the others run
    /// on v2 alone.
    pub everywhere: Vec<String>,
}

/// What a kernel of the stage "lacking" is left without: its modules, and the
/// controllers that it is told to switch off.
const LACKING_MODULES: [&str; 2] = ["overlay", "nf_tables"];
const LACKING_CONTROLLERS: [&str; 1] = ["memory"];

impl Plan {
    /// A machine for an order; `place` names its files.
    fn machine(&self, order: Order, place: &str) -> anyhow::Result<Machine> {
        let kernel = match &self.kernel {
            Some(image) => Kernel::named(image)?,
            None => Kernel::debian(&self.cache)?,
        };
        let image = image::build(&kernel, &self.contents, &self.cache)?;
        let run = self.cache.join("run").join(place);
        std::fs::create_dir_all(&run).with_context(|| format!("make {}", run.display()))?;
        let mut machine = Machine {
            kernel: kernel.image,
            initramfs: image.initramfs,
            programs: image.programs,
            disk: disk::make(
                &run.join("disk.img"),
                &self.disk_tree(order.layout)?,
                disk::DISK_BYTES,
            )?,
            console: console(&run, order.stage),
            accel: Accel::Tcg,
            link: None,
            order,
        };
        machine.accel = accel::decide(&self.cache, &machine.kernel, || {
            machine.comes_up_in_hardware(&run)
        })?;
        Ok(machine)
    }

    /// For the tests of a layout.
    fn order(&self, layout: Layout) -> Order {
        let stage = match self.whole {
            true => Stage::VmWhole,
            false => Stage::Vm,
        };
        let programs = match layout {
            Layout::V2 => Vec::new(),
            _ => self.everywhere.clone(),
        };
        Order {
            filters: self.filters.clone(),
            jobs: JOBS,
            programs,
            ..Order::new(layout, stage)
        }
    }

    /// The directory that becomes the disk's content.
    fn disk_tree(&self, layout: Layout) -> anyhow::Result<PathBuf> {
        let images = |tree: &Path| link_all(&self.images, &tree.join("images"));
        if layout == Layout::Systemd {
            let tree = systemd::tree(&self.cache)?;
            images(&tree.join(&guest::DISK[1..]))?;
            return Ok(tree);
        }
        let tree = self.cache.join("disk");
        images(&tree)?;
        Ok(tree)
    }

    /// Boots one layout and runs the tests in it, printing what fails (or, if
    /// `verbose`, every test) as it ends.
    ///
    /// # Errors
    /// The machine cannot be put together; a guest that fails is a result.
    pub fn test(&self, layout: Layout, verbose: bool) -> anyhow::Result<Vec<TestResult>> {
        let order = self.order(layout);
        let machine = self.machine(order, layout.as_str())?;
        hear(&machine, &format!("{layout} "), verbose)
    }

    /// Boots a kernel without what pods need.
    ///
    /// # Errors
    /// The machine cannot be put together; a guest that fails is a result.
    pub fn lacking(&self) -> anyhow::Result<Vec<TestResult>> {
        let order = Order {
            without: LACKING_MODULES.map(str::to_owned).to_vec(),
            no_controllers: LACKING_CONTROLLERS.map(str::to_owned).to_vec(),
            ..Order::new(Layout::V2, Stage::Lacking)
        };
        hear(&self.machine(order, "lacking")?, "lacking ", false)
    }

    /// Boots two guests that a link joins, at the same time; the results of
    /// each carry its number.
    ///
    /// # Errors
    /// A machine cannot be put together; a guest that fails is a result.
    pub fn pair(&self) -> anyhow::Result<Vec<TestResult>> {
        // QEMU inherits the end that its command line names by number.
        let (one, two) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::empty(),
            None,
        )
        .context("make a link between two guests")?;
        let mut guests = Vec::new();
        for (end, number) in [(&one, 1), (&two, 2)] {
            let order = Order {
                peer: Some(number),
                ..Order::new(Layout::V2, Stage::Pair)
            };
            let mut machine = self.machine(order, &format!("pair-{number}"))?;
            machine.link = Some(end.as_raw_fd());
            guests.push((number, machine));
        }
        let all = std::thread::scope(|scope| {
            let boots: Vec<_> = guests
                .iter()
                .map(|(number, machine)| {
                    scope.spawn(move || hear(machine, &format!("pair-{number} "), false))
                })
                .collect();
            boots.into_iter().map(|b| b.join()).collect::<Vec<_>>()
        });
        let mut results = Vec::new();
        for ((number, _), heard) in guests.iter().zip(all) {
            let heard = heard.map_err(|_| anyhow::anyhow!("listening to a guest panicked"))??;
            results.extend(heard.into_iter().map(|mut result| {
                result.name.push_str(&format!(" (guest {number})"));
                result
            }));
        }
        Ok(results)
    }

    /// Lets the guest work, cuts its power so long after it said that all of
    /// the work is under way, boots again on the same disk, and runs the tests
    /// of what lasted.
    ///
    /// # Errors
    /// The machine cannot be put together; a guest that fails is a result.
    pub fn cut(&self, layout: Layout, after: Duration) -> anyhow::Result<Vec<TestResult>> {
        let stage = |stage| Order {
            jobs: JOBS,
            ..Order::new(layout, stage)
        };
        let mut machine = self.machine(stage(Stage::BeforeCut), "powercut")?;
        let before = machine.listen_until(Some(after), |_| ())?;
        let name = format!("powercut {:.1} s ", after.as_secs_f64());
        // One case ends, to say so; the others never do.
        let cut_short = !before.done
            && matches!(&before.results[..], [only] if only.outcome == Outcome::Passed);
        machine.order = stage(Stage::AfterCut);
        machine.console = console(
            machine.console.parent().context("a console has a place")?,
            Stage::AfterCut,
        );
        let heard = machine.listen(|result| {
            if result.outcome == Outcome::Failed {
                print!("{}", line_of(&name, result));
            }
        })?;
        let mut boot = judge(&heard, &machine);
        if !cut_short && boot.reason.is_empty() {
            boot.outcome = Outcome::Failed;
            boot.reason = "the guest was not at work when the power was cut".to_owned();
            boot.output = before.results.iter().map(|r| line_of("", r)).collect();
        }
        print!("{}", line_of(&name, &boot));
        conclude(&machine, boot, heard.results)
    }

    /// Boots one layout with a prompt on this terminal.
    ///
    /// # Errors
    /// The machine cannot be put together or ends with an error.
    pub fn shell(&self, layout: Layout) -> anyhow::Result<()> {
        let mut machine = self.machine(self.order(layout), layout.as_str())?;
        machine.order.shell = true;
        println!("{layout}: Ctrl-D powers off, Ctrl-A X kills the machine");
        machine.interact()
    }
}

/// Boots, listens to the end, and tells what failed (or, if `verbose`, every
/// test) with the end of the console.
fn hear(machine: &Machine, prefix: &str, verbose: bool) -> anyhow::Result<Vec<TestResult>> {
    let heard = machine.listen(|result| {
        if verbose || result.outcome == Outcome::Failed {
            print!("{}", line_of(prefix, result));
        }
    })?;
    let boot = judge(&heard, machine);
    let secs = |d: Option<Duration>| d.unwrap_or_default().as_secs_f64();
    println!(
        "== {prefix}{:?}: {} tests in {:.1} s, the first after {:.1} s ({:.1} s of processor time)",
        machine.accel,
        heard.results.len(),
        heard.took.as_secs_f64(),
        secs(heard.first_test),
        secs(heard.first_test_cpu),
    );
    print!("{}", line_of(prefix, &boot));
    conclude(machine, boot, heard.results)
}

/// Shows the console of a boot whose tests failed; the results, the boot's
/// first.
fn conclude(
    machine: &Machine,
    boot: TestResult,
    tests: Vec<TestResult>,
) -> anyhow::Result<Vec<TestResult>> {
    let failed = tests.iter().any(|r| r.outcome == Outcome::Failed);
    if boot.outcome != Outcome::Failed && failed {
        println!("      console (whole: {}):", machine.console.display());
        for line in machine.console_tail(CONSOLE_SHOWN_LINES).lines() {
            println!("      | {line}");
        }
    }
    let results: Vec<TestResult> = [boot].into_iter().chain(tests).collect();
    discard(machine, &results)?;
    Ok(results)
}

/// The file for what a boot says on its console: one for each stage, since a
/// stage may go on with the disk of another.
fn console(run: &Path, stage: Stage) -> PathBuf {
    run.join(format!("console-{}.log", stage.as_str()))
}

/// A disk of gigabytes is kept only while something may be learned from it.
fn discard(machine: &Machine, results: &[TestResult]) -> anyhow::Result<()> {
    if results.iter().all(|r| r.outcome != Outcome::Failed) {
        std::fs::remove_file(&machine.disk).context("remove the scratch disk")?;
    }
    Ok(())
}

/// Gives files a second name in a directory; nothing is copied until the disk
/// is made.
fn link_all(files: &[PathBuf], dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    for file in files {
        let to = dir.join(file.file_name().context("an image has a name")?);
        if to.exists() {
            std::fs::remove_file(&to).with_context(|| format!("replace {}", to.display()))?;
        }
        std::fs::hard_link(file, &to).with_context(|| format!("link {}", to.display()))?;
    }
    Ok(())
}

/// The boot as a test of its own. How long it took is printed and not judged:
/// that tells as much of what else the machine does.
fn judge(heard: &Heard, machine: &Machine) -> TestResult {
    let reason = heard.broken().unwrap_or_default();
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let failed = !reason.is_empty();
    TestResult {
        name: "boot::whole".to_owned(),
        outcome: if failed {
            Outcome::Failed
        } else {
            Outcome::Passed
        },
        ms: millis(heard.took),
        reason,
        output: if failed {
            machine.console_tail(CONSOLE_SHOWN_LINES)
        } else {
            String::new()
        },
    }
}
