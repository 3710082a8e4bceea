//! libseccomp and runc's way to use it, as the measure of verdicts.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction};
use rkube_seccomp::{Arch, Instruction};

/// Where Debian and others put the library; no header is needed.
const LIBRARIES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/libseccomp.so.2",
    "/usr/lib/aarch64-linux-gnu/libseccomp.so.2",
    "/usr/lib64/libseccomp.so.2",
    "/usr/lib/libseccomp.so.2",
];

/// Runs the tool; `None` (told as a skip) without libseccomp or a C compiler.
fn run(commands: &str) -> Option<Vec<u8>> {
    static TOOL: OnceLock<Option<(tempfile::TempDir, PathBuf)>> = OnceLock::new();
    let Some((_, tool)) = TOOL.get_or_init(build) else {
        println!("skipped: seccomp-oracle (no libseccomp.so.2 or no C compiler)");
        return None;
    };
    let mut child = Command::new(tool)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let owned = commands.to_owned();
    // Both pipes may fill: the tool answers while it reads.
    let writer = std::thread::spawn(move || input.write_all(owned.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{}: {told}\n{commands}",
        output.status
    );
    Some(output.stdout)
}

/// What libseccomp makes of the profile.
pub(crate) fn program(spec: &LinuxSeccomp, native: Arch) -> Option<Vec<Instruction>> {
    let bytes = run(&commands(spec, native))?;
    Some(rkube_sys::bytes::instructions(&bytes).unwrap())
}

/// The number that libseccomp has for each pair, `None` where it has none.
pub(crate) fn numbers(pairs: &[(Arch, &str)]) -> Option<Vec<Option<u32>>> {
    let commands: String = pairs
        .iter()
        .map(|(arch, name)| format!("number {} {name}\n", token(*arch)))
        .collect();
    let text = String::from_utf8(run(&commands)?).unwrap();
    let numbers = text.lines().map(|line| line.parse::<i64>().unwrap());
    // Below zero: unknown, or not on this architecture.
    Some(numbers.map(|n| u32::try_from(n).ok()).collect())
}

fn token(arch: Arch) -> u32 {
    crate::naive::token(arch) as u32
}

fn build() -> Option<(tempfile::TempDir, PathBuf)> {
    let library = LIBRARIES.iter().find(|path| Path::new(path).exists())?;
    let dir = tempfile::tempdir().unwrap();
    let tool = dir.path().join("oracle");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filter/oracle.c");
    let built = Command::new("cc")
        .args(["-O1", "-Wall", "-o"])
        .arg(&tool)
        .arg(source)
        .arg(library)
        .status();
    built.ok().filter(|status| status.success())?;
    Some((dir, tool))
}

/// The calls that runc makes of a profile.
fn commands(spec: &LinuxSeccomp, native: Arch) -> String {
    let default = value(spec.default_action(), spec.default_errno_ret());
    let mut text = format!("init {default}\n");
    writeln!(text, "arch {}", token(native)).unwrap();
    for &arch in spec.architectures().as_deref().unwrap_or_default() {
        writeln!(text, "arch {}", arch as u32).unwrap();
    }
    if Arch::native() != Some(native) {
        writeln!(text, "not {}", token(Arch::native().unwrap())).unwrap();
    }
    for entry in spec.syscalls().as_deref().unwrap_or_default() {
        let action = value(entry.action(), entry.errno_ret());
        if action == default {
            continue;
        }
        let args = entry.args().as_deref().unwrap_or_default();
        let indexes: BTreeSet<usize> = args.iter().map(|arg| arg.index()).collect();
        let rules: Vec<&[_]> = if indexes.len() < args.len() {
            args.chunks(1).collect()
        } else {
            vec![args]
        };
        for name in entry.names() {
            for rule in &rules {
                write!(text, "rule {action} {name} {}", rule.len()).unwrap();
                for arg in *rule {
                    let two = arg.value_two().unwrap_or(0);
                    let op = arg.op() as u32;
                    write!(text, " {} {op} {} {two}", arg.index(), arg.value()).unwrap();
                }
                text.push('\n');
            }
        }
    }
    text
}

fn value(action: LinuxSeccompAction, errno: Option<u32>) -> u32 {
    action.as_u32(errno)
}
