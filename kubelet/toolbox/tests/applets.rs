//! Runs the embedded ELF as a container would: one file, no environment.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rkube_toolbox::{APPLETS, elf};
use tempfile::TempDir;

struct Toolbox {
    dir: TempDir,
}

impl Toolbox {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Written by a child: a descriptor open for writing here could leak
        // into another test's fork and make exec answer ETXTBSY.
        let mut cp = Command::new("dd")
            .arg("status=none")
            .arg(format!("of={}", dir.path().join("toolbox").display()))
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        cp.stdin.take().unwrap().write_all(&elf().unwrap()).unwrap();
        assert!(cp.wait().unwrap().success());
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(dir.path().join("toolbox"), mode).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.path("toolbox"));
        command.args(args).env_clear().current_dir(self.dir.path());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// The standard output of a run that must succeed.
    fn text(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn spawn(&self, args: &[&str]) -> Running {
        let mut child = self.command(args).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Running { child, lines }
    }
}

struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Running {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Puts this thread, and what it starts, into a network namespace of its own
/// whose loopback is up.
fn own_network() {
    let dir = tempfile::tempdir().unwrap();
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).unwrap();
    // This sysfs shows the new namespace; it goes with the mount namespace.
    let (sysfs, at) = (Some("sysfs"), dir.path());
    mount(sysfs, at, sysfs, MsFlags::empty(), none).unwrap();
    // IFF_UP, include/uapi/linux/if.h
    fs::write(at.join("class/net/lo/flags"), "0x1").unwrap();
    umount2(at, MntFlags::MNT_DETACH).unwrap();
}

/// A port that nothing listened on a moment ago.
fn free_port() -> String {
    let listener = std::net::TcpListener::bind("[::]:0").unwrap();
    listener.local_addr().unwrap().port().to_string()
}

#[test]
fn elf_is_small_static_and_position_dependent() {
    let elf = elf().unwrap();
    println!("toolbox: {} bytes, {} applets", elf.len(), APPLETS.len());
    assert!(elf.len() < 1_500_000, "{} bytes", elf.len());
    assert_eq!(&elf[..4], b"\x7fELF");
    assert_eq!(elf[16], 2, "e_type is ET_EXEC");
    let interpreter = b"/ld-linux";
    let headers = &elf[..1024];
    assert!(!headers.windows(interpreter.len()).any(|w| w == interpreter));
}

#[test]
fn applet_by_link_name() {
    let toolbox = Toolbox::new();
    symlink("toolbox", toolbox.path("echo")).unwrap();
    let output = Command::new(toolbox.path("echo"))
        .arg("a b")
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"a b\n");
    assert_eq!(toolbox.run(&[]).status.code(), Some(2));
    assert_eq!(toolbox.run(&["bash"]).status.code(), Some(2));
    for applet in APPLETS {
        let usage = toolbox.text(&[applet, "--help"]);
        assert!(usage.starts_with(&format!("usage: {applet}")), "{usage}");
    }
}

#[test]
fn status_codes() {
    let toolbox = Toolbox::new();
    assert!(toolbox.run(&["true"]).status.success());
    assert_eq!(toolbox.run(&["false"]).status.code(), Some(1));
    assert_eq!(toolbox.run(&["exit", "42"]).status.code(), Some(42));
    assert_eq!(toolbox.run(&["exit", "256"]).status.code(), Some(2));
    assert_eq!(toolbox.run(&["crash"]).status.signal(), Some(6));
    assert_eq!(toolbox.run(&["crash", "SEGV"]).status.signal(), Some(11));
}

#[test]
fn sequences_run_in_order_and_end_at_exit() {
    let toolbox = Toolbox::new();
    let script =
        "mkdir -p a/b; write a/b/f hi; write -a a/b/f there; cat a/b/f; false; exit 3; echo no";
    let output = toolbox.run(&["run", script]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(output.stdout, b"hi\nthere\n");
    assert_eq!(toolbox.run(&["run", "true; false"]).status.code(), Some(1));
    assert_eq!(toolbox.run(&["run", "nothing"]).status.code(), Some(127));
}

#[test]
fn files() {
    let toolbox = Toolbox::new();
    toolbox.text(&["touch", "t"]);
    assert_eq!(
        toolbox.text(&["fill", "f", "100Ki"]),
        "wrote 102400 bytes\n"
    );
    symlink("f", toolbox.path("l")).unwrap();
    assert_eq!(toolbox.text(&["readlink", "l"]), "f\n");
    assert_eq!(toolbox.text(&["ls"]), "f\nl\nt\ntoolbox\n");
    let long = toolbox.text(&["ls", "-l"]);
    assert!(
        long.contains("102400 f\n") && long.contains(" l -> f\n"),
        "{long}"
    );
    let mode = fs::Permissions::from_mode(0o4751);
    fs::set_permissions(toolbox.path("f"), mode).unwrap();
    assert!(toolbox.text(&["ls", "-l", "f"]).starts_with("-rwsr-x--x "));
    assert!(toolbox.text(&["stat", "f"]).starts_with("4751 "));
    assert!(
        toolbox
            .text(&["stat", "/dev/null"])
            .contains("character device 1:3")
    );
    toolbox.text(&["rm", "f", "l", "t"]);
    let output = toolbox.run(&["cat", "f"]);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        message,
        "cat: open f: No such file or directory (os error 2)\n"
    );
    let full = toolbox.run(&["fill", "/dev/full", "1"]);
    assert!(String::from_utf8_lossy(&full.stderr).contains("No space left"));
}

#[test]
fn waiting_for_a_file() {
    let toolbox = Toolbox::new();
    let late = toolbox.run(&["wait-file", "--timeout", "0.05", "f"]);
    assert_eq!(late.status.code(), Some(1));
    let mut waiting = toolbox.spawn(&["wait-file", "--timeout", "10", "f"]);
    fs::write(toolbox.path("f"), "").unwrap();
    assert!(waiting.child.wait().unwrap().success());
}

#[test]
fn identity() {
    let toolbox = Toolbox::new();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let wanted = status.lines().find(|l| l.starts_with("CapEff")).unwrap();
    assert!(toolbox.text(&["caps"]).lines().any(|line| line == wanted));
    assert!(toolbox.text(&["id"]).starts_with("uid="));
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(toolbox.text(&["hostname"]), host);
    assert_eq!(toolbox.text(&["env"]), "");
    let mut env = toolbox.command(&["env", "A"]);
    assert_eq!(env.env("A", "x").output().unwrap().stdout, b"x\n");
    let limits = toolbox.text(&["ulimit"]);
    assert!(limits.lines().any(|line| line.starts_with("nofile ")));
    let processes = toolbox.text(&["ps"]);
    assert!(processes.lines().any(|line| line.ends_with("toolbox ps")));
    assert!(toolbox.text(&["mounts"]).contains(" /proc proc "));
    let tty = toolbox
        .command(&["tty"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(tty.stdout, b"stdin no\nstdout no\nstderr no\n");
    assert_eq!(tty.status.code(), Some(1));
}

#[test]
fn probes_name_the_answer() {
    let toolbox = Toolbox::new();
    let text = toolbox.text(&["syscall-probe", "getcwd", "clock_settime", "mount"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "getcwd ok");
    assert!(lines[1] == "clock_settime EINVAL" || lines[1] == "clock_settime EPERM");
    assert!(lines[2] == "mount ENODEV" || lines[2] == "mount EPERM");
    assert_eq!(
        toolbox.run(&["syscall-probe", "fly"]).status.code(),
        Some(2)
    );
}

#[test]
fn stamp_tells_both_clocks() {
    let toolbox = Toolbox::new();
    let text = toolbox.text(&["stamp"]);
    let (monotonic, realtime) = text.trim_end().split_once(' ').unwrap();
    let number =
        |text: &str, name: &str| -> u128 { text.strip_prefix(name).unwrap().parse().unwrap() };
    assert!(number(monotonic, "monotonic_ns=") > 0);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let told = number(realtime, "realtime_ns=");
    assert!(now.as_nanos().abs_diff(told) < 60_000_000_000);
}

#[test]
fn say_repeats_and_pads() {
    let toolbox = Toolbox::new();
    let text = toolbox.text(&["say", "--lines", "3", "--bytes", "20", "abc"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[2], "abc 3..............");
    let begin = Instant::now();
    toolbox.text(&["say", "--lines", "3", "--interval", "20"]);
    assert!(begin.elapsed() >= Duration::from_millis(40));
    assert!(toolbox.text(&["sleep", "0.01"]).is_empty());
}

#[test]
fn trap_answers_signals() {
    let toolbox = Toolbox::new();
    let mut trap = toolbox.spawn(&["trap", "--code", "7", "--delay", "10"]);
    assert_eq!(trap.line(), "ready");
    let pid = trap.child.id().to_string();
    toolbox.text(&["kill", "-HUP", &pid]);
    assert_eq!(trap.line(), "caught SIGHUP");
    toolbox.text(&["kill", &pid]);
    assert_eq!(trap.line(), "caught SIGTERM");
    assert_eq!(trap.child.wait().unwrap().code(), Some(7));
}

#[test]
fn sleep_ends_by_the_default_action_and_as_pid_1_by_status() {
    let toolbox = Toolbox::new();
    let mut sleep = toolbox.spawn(&["sleep", "inf"]);
    toolbox.text(&["kill", &sleep.child.id().to_string()]);
    assert_eq!(sleep.child.wait().unwrap().signal(), Some(15));

    // PID 1 of a new PID namespace; `unshare` passes its status on.
    let mut init = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child"])
        .arg(toolbox.path("toolbox"))
        .args(["run", "echo up; sleep inf"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(init.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "up\n");
    let children = format!("/proc/{0}/task/{0}/children", init.id());
    let child = fs::read_to_string(children).unwrap();
    // The line may come before the signals are taken: ask until it ends.
    let begin = Instant::now();
    while init.try_wait().unwrap().is_none() {
        let _ = toolbox.run(&["kill", child.trim()]);
        assert!(begin.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(init.wait().unwrap().code(), Some(143));
}

#[test]
fn memory_is_really_held() {
    let toolbox = Toolbox::new();
    let mut hog = toolbox.spawn(&["hog-memory", "24Mi", "--seconds", "30"]);
    assert_eq!(hog.line(), format!("holding {} bytes", 24 << 20));
    let status = fs::read_to_string(format!("/proc/{}/status", hog.child.id())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib >= 24 << 10, "{kib} KiB");
}

#[test]
fn processors_are_really_used() {
    let toolbox = Toolbox::new();
    let mut burn = toolbox.spawn(&["burn-cpu", "--threads", "2", "--seconds", "30"]);
    assert_eq!(burn.line(), "burning with 2 threads");
    let begin = Instant::now();
    let path = format!("/proc/{}/stat", burn.child.id());
    loop {
        let stat = fs::read_to_string(&path).unwrap();
        let user: u64 = stat
            .rsplit(") ")
            .next()
            .unwrap()
            .split(' ')
            .nth(11)
            .unwrap()
            .parse()
            .unwrap();
        if user > 5 {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(
        toolbox
            .text(&["burn-cpu", "--seconds", "0.01"])
            .contains("burning")
    );
}

#[test]
fn forks_are_bounded_and_ended() {
    let toolbox = Toolbox::new();
    assert_eq!(toolbox.text(&["fork-bomb", "--max", "5"]), "started 5\n");
}

#[test]
fn http_server_and_client() {
    own_network();
    let toolbox = Toolbox::new();
    fs::create_dir(toolbox.path("www")).unwrap();
    fs::write(toolbox.path("www/index.html"), "home").unwrap();
    let port = free_port();
    let mut server = toolbox.spawn(&["httpd", "-p", &port, "-h", "www"]);
    assert_eq!(server.line(), format!("serving on port {port}"));
    let get = |path: &str| toolbox.run(&["get", &format!("http://127.0.0.1:{port}{path}")]);
    assert_eq!(get("/").stdout, b"home");
    assert_eq!(get("/healthz").stdout, b"ok\n");
    assert_eq!(get("/missing").status.code(), Some(1));
    assert_eq!(get("/../toolbox").status.code(), Some(1));
    assert_eq!(
        toolbox.text(&["get", &format!("localhost:{port}/index.html")]),
        "home"
    );

    let port = free_port();
    // The client comes first and asks again.
    let mut client = toolbox.spawn(&["get", "--retry", "10", &format!("[::1]:{port}")]);
    let _server = toolbox.spawn(&["httpd", "-p", &port, "--text", "hello"]);
    assert_eq!(client.line(), "hello");
    assert!(client.child.wait().unwrap().success());
}

#[test]
fn tcp_and_udp_echo() {
    own_network();
    let toolbox = Toolbox::new();
    for (kind, ask) in [("tcp", "connect"), ("udp", "send")] {
        let port = free_port();
        let mut server = toolbox.spawn(&[kind, "listen", &port]);
        assert_eq!(server.line(), format!("listening on {port}"));
        let reply = toolbox.text(&[kind, ask, "127.0.0.1", &port, "ping", "pong"]);
        assert_eq!(reply, "ping pong\n");
    }
    let refused = toolbox.run(&["tcp", "connect", "127.0.0.1", &free_port()]);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(
        toolbox.text(&["nslookup", "localhost"]).lines().next(),
        Some("127.0.0.1")
    );
    assert_eq!(toolbox.text(&["nslookup", "[::1]"]), "::1\n");
}
