//! PID 1 of the test VMs.
//!
//! It leaves the initial ramfs, mounts what a host has mounted, loads the
//! modules, runs the suite (or a shell), reaps whatever ends, and powers off.
//! A failure before the suite is printed on the console; the runner sees that
//! no test began.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::Context;
use rkube_tests::layout::Layout;
use rkube_tests::repo;
use rkube_vm::guest::{self, Order};
use rustix::process::{Pid, WaitOptions, wait};
use rustix::system::RebootCommand;

mod mounts;

fn main() -> ExitCode {
    if called_as(guest::MODPROBE) {
        return modprobe();
    }
    if std::process::id() != 1 {
        eprintln!("rkube-vm-init: this is the init of a test VM");
        return ExitCode::from(2);
    }
    if let Err(e) = boot() {
        eprintln!("rkube-vm-init: {e:#}");
    }
    rustix::fs::sync();
    match rustix::system::reboot(RebootCommand::PowerOff) {
        // Init must not end: the kernel would panic over it.
        Ok(()) => loop {
            std::thread::park();
        },
        Err(e) => eprintln!("rkube-vm-init: power off: {e}"),
    }
    ExitCode::FAILURE
}

fn boot() -> anyhow::Result<()> {
    mounts::leave_initial_ramfs()?;
    mounts::mount_kernel_filesystems()?;
    let cmdline = fs::read_to_string("/proc/cmdline").context("read the command line")?;
    let order = Order::from_cmdline(&cmdline)?;
    load_modules(&order)?;
    mounts::mount_programs()?;
    if order.layout == Layout::Systemd {
        return hand_over(&order);
    }
    place_helpers("")?;
    mounts::mount_cgroups(order.layout)?;
    mounts::mount_disk()?;
    rkube_tests::net::loopback_up()?;
    rustix::system::sethostname(b"rkube-vm").context("set the host name")?;
    if order.shell {
        let shell = with_environment(Command::new("/bin/setsid"))
            .args(["-c", "/bin/sh", "-l"])
            .spawn()
            .context("start a shell")?;
        reap_until(&shell)?;
        return Ok(());
    }
    let status = run_suite(&order)?;
    if status != 0 {
        eprintln!("rkube-vm-init: the suite ended with {status}; the kernel's log:");
        let mut log = Command::new("/bin/dmesg")
            .spawn()
            .context("print the kernel's log")?;
        log.wait().context("wait for dmesg")?;
    }
    Ok(())
}

/// Makes the disk's system the root, and becomes its init.
fn hand_over(order: &Order) -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt;
    let port = results_device();
    let mut text = String::new();
    for (name, value) in environment("/usr/bin", guest::PROGRAMS_DIR) {
        text.push_str(&format!("{name}={value}\n"));
    }
    text.push_str(&format!(
        "ARGS={}\nRESULTS={}\n",
        suite_args(order, guest::PROGRAMS_DIR).join(" "),
        port.as_deref()
            .unwrap_or(Path::new("/dev/console"))
            .display(),
    ));
    fs::write(guest::ENVIRONMENT, text).context("write the service's environment")?;
    mounts::enter_disk_system()?;
    place_helpers(guest::PROGRAMS_DIR)?;
    Err(Command::new("/sbin/init").env_clear().exec()).context("become /sbin/init")
}

/// Loads what the boot needs; all that the image has where the kernel cannot
/// ask for more: in a system of the disk's, or where some are left out.
fn load_modules(order: &Order) -> anyhow::Result<()> {
    if order.layout == Layout::Systemd || !order.without.is_empty() {
        let list = read(guest::MODULE_LIST)?;
        return load(
            list.lines().map(str::to_owned),
            |path| order.without.iter().any(|w| *path == module_path(w)),
            !order.without.is_empty(),
        );
    }
    for name in read(guest::BOOT_LIST)?.lines() {
        load_wanted(name, &[])?;
    }
    // The rest meanwhile: under emulation, a program started for each module
    // that a first pod needs takes longer than all of them.
    std::thread::spawn(|| {
        let all = read(guest::MODULE_LIST).and_then(|list| {
            let list = list.lines().map(str::to_owned);
            load(list, |_| false, false)
        });
        if let Err(e) = all {
            eprintln!("rkube-vm-init: {e:#}");
        }
    });
    Ok(())
}

/// Loads a module by a name that the kernel knows it by, after those it needs;
/// none for which one of `without` is needed. Whether there is one.
fn load_wanted(name: &str, without: &[String]) -> anyhow::Result<bool> {
    let name = name.replace('-', "_");
    let list = read(guest::DEMAND_LIST)?;
    let mut found = false;
    // Several modules may go by one name; all are wanted, as with kmod.
    for line in list.lines() {
        let mut words = line.split(' ');
        if words.next() == Some(name.as_str()) {
            if words.clone().any(|w| without.iter().any(|out| w == out)) {
                continue;
            }
            found = true;
            load(words.map(module_path), |_| false, false)?;
        }
    }
    Ok(found)
}

fn module_path(name: impl AsRef<str>) -> String {
    format!("/lib/modules/{}.ko", name.as_ref())
}

fn load(
    paths: impl Iterator<Item = String>,
    left_out: impl Fn(&String) -> bool,
    may_lack: bool,
) -> anyhow::Result<()> {
    for path in paths.filter(|p| !left_out(p)) {
        let file = File::open(&path).with_context(|| format!("open {path}"))?;
        match rustix::system::finit_module(&file, c"", 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            // No such hardware (crc32c_intel): a case that needs it will say so.
            Err(rustix::io::Errno::NODEV) => {}
            // It needs symbols of one that is left out.
            Err(rustix::io::Errno::NOENT) if may_lack => {}
            Err(e) => return Err(e).with_context(|| format!("load {path}")),
        }
    }
    Ok(())
}

fn read(path: &str) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {path}"))
}

fn called_as(path: &str) -> bool {
    std::env::args_os()
        .next()
        .is_some_and(|name| Path::new(&name).file_name() == Path::new(path).file_name())
}

/// The kernel asks for a module: `modprobe -q -- NAME`. It gets none of those
/// that this boot is to do without, nor what needs them.
fn modprobe() -> ExitCode {
    let Some(name) = std::env::args().next_back() else {
        return ExitCode::from(2);
    };
    let loaded = read("/proc/cmdline")
        .and_then(|line| Order::from_cmdline(&line))
        .and_then(|order| load_wanted(&name, &order.without));
    match loaded {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("modprobe: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Links each helper to where it is looked for; `programs` is where this
/// initramfs is seen.
fn place_helpers(programs: &str) -> anyhow::Result<()> {
    let path = format!("{programs}{}", guest::HELPER_LIST);
    let list = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    for (program, place) in list.lines().filter_map(|l| l.split_once(' ')) {
        let place = Path::new(place);
        let parent = place.parent().unwrap_or(place);
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        std::os::unix::fs::symlink(format!("{programs}{program}"), place)
            .with_context(|| format!("link {}", place.display()))?;
    }
    Ok(())
}

/// What the suite and a shell find in their environment; `programs` is where
/// this initramfs is seen.
fn environment(path: &str, programs: &str) -> [(&'static str, String); 6] {
    [
        ("PATH", format!("{path}:{programs}/bin")),
        ("HOME", "/root".to_owned()),
        ("TERM", "linux".to_owned()),
        ("TMPDIR", format!("{}/tmp", guest::DISK)),
        (repo::TEST_IMAGES, format!("{}/images", guest::DISK)),
        (repo::RKUBE_BIN, format!("{programs}{}", guest::RKUBE)),
    ]
}

fn with_environment(mut command: Command) -> Command {
    command.env_clear().envs(environment("/bin", ""));
    command
}

/// The suite's command line; `programs` is where this initramfs is seen.
fn suite_args(order: &Order, programs: &str) -> Vec<String> {
    let mut args = ["run", "--json", "--stage", order.stage.as_str(), "--jobs"]
        .map(str::to_owned)
        .to_vec();
    args.push(order.jobs.to_string());
    if order.stage.in_vm() {
        args.extend([
            "--extra".to_owned(),
            format!("{programs}{}", guest::EXTRA_DIR),
        ]);
    }
    if !order.programs.is_empty() {
        args.extend(["--programs".to_owned(), order.programs.join(",")]);
    }
    args.extend(order.filters.iter().cloned());
    args
}

/// Runs the suite and gives its exit status, or 128 and the signal's number.
fn run_suite(order: &Order) -> anyhow::Result<i32> {
    let results = results_port()?;
    let suite = with_environment(Command::new(guest::SUITE))
        .args(suite_args(order, ""))
        .stdin(Stdio::null())
        .stdout(results)
        .spawn()
        .context("start the suite")?;
    reap_until(&suite)
}

/// Reaps every process that ends (orphans come to PID 1) until `child` has.
fn reap_until(child: &Child) -> anyhow::Result<i32> {
    let wanted = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .context("pid")?;
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == wanted => {
                let signal = status.terminating_signal().map(|s| 128 + s);
                return Ok(status.exit_status().or(signal).unwrap_or(-1));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).context("wait for any process"),
        }
    }
}

fn results_port() -> anyhow::Result<File> {
    let device = results_device()
        .with_context(|| format!("no virtio port is named {}", guest::RESULTS_PORT))?;
    OpenOptions::new()
        .write(true)
        .open(&device)
        .with_context(|| format!("open {}", device.display()))
}

/// The virtio-serial port of the name that the runner gave it; none in a boot
/// for a prompt.
fn results_device() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    let port = ports.flatten().find(|port| {
        let name = fs::read_to_string(port.path().join("name")).unwrap_or_default();
        name.trim() == guest::RESULTS_PORT
    })?;
    Some(PathBuf::from("/dev").join(port.file_name()))
}
