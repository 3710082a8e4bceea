//! Attacks on the runtime by images, specs and programs, one test for each
//! class that runtimes have fallen to. None may get out, and what is refused
//! must leave nothing behind.
#![allow(clippy::unwrap_used)]

mod bundle;

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bundle::attack::Victim;
use bundle::{Bundle, exec, wait};
use rkube_runtime::Error;
use rkube_runtime::lifecycle;
use serde_json::json;

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// CVE-2019-16884, CVE-2019-19921, CVE-2023-27561, CVE-2023-28642: masks and
/// kernel parameters must not land in files of the image.
#[test]
fn a_link_in_place_of_proc() {
    let mut bundle =
        Bundle::shell("cat /proc/sys/net/ipv4/ip_forward; stat -c %t:%T /proc/interrupts");
    bundle.link("fake", "proc");
    std::fs::create_dir_all(bundle.root("fake/sys/net/ipv4")).unwrap();
    std::fs::write(bundle.root("fake/sys/net/ipv4/ip_forward"), "image\n").unwrap();
    std::fs::write(bundle.root("fake/interrupts"), "image\n").unwrap();
    bundle.spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    let host = read("/proc/sys/net/ipv4/ip_forward");
    assert_eq!(bundle.attempt().unwrap(), "1\n1:3\n");
    assert_eq!(read("/proc/sys/net/ipv4/ip_forward"), host);
    let image = std::fs::read_to_string(bundle.root("fake/sys/net/ipv4/ip_forward"));
    assert_eq!(image.unwrap(), "image\n");
}

/// CVE-2026-41579, CVE-2026-47766: devices and links of /dev.
#[test]
fn a_link_in_place_of_dev() {
    let victim = Victim::new();
    let mut bundle = Bundle::new(&["true"]);
    bundle.link(&victim.climb(), "dev");
    // What is made there is made below the container's root, or refused.
    let _ = bundle.attempt();
    victim.is_unharmed();
    bundle.without_mount("/dev");
    let _ = bundle.attempt();
    victim.is_unharmed();
    bundle.nothing_is_left();
}

/// CVE-2025-52565: the terminal is bound over what /dev/console and /dev/pts
/// lead to.
#[test]
fn links_in_place_of_console_and_pts() {
    for name in ["dev/console", "dev/pts", "dev/ptmx"] {
        let victim = Victim::new();
        let mut bundle = Bundle::new(&["true"]);
        bundle.without_mount("/dev");
        bundle.link(&format!("{}/file", victim.climb()), name);
        bundle.spec["process"]["terminal"] = true.into();
        if name == "dev/console" {
            bundle.own_terminals();
        }
        bundle.attempt_with_terminal();
        victim.is_unharmed();
        bundle.nothing_is_left();
    }
}

/// CVE-2025-31133: what masks is the host's null device, never what the image
/// has in its place.
#[test]
fn a_link_in_place_of_null() {
    let victim = Victim::new();
    let mut bundle = Bundle::shell("cat /secret; stat -c %t:%T /secret");
    bundle.without_mount("/dev");
    bundle.link(&format!("{}/file", victim.climb()), "dev/null");
    std::fs::write(bundle.root("secret"), "secret\n").unwrap();
    bundle.spec["linux"]["maskedPaths"] = json!(["/secret"]);
    match bundle.attempt() {
        Ok(text) => assert_eq!(text, "1:3\n"),
        Err(error) => assert!(error.chain().contains("/dev/null"), "{}", error.chain()),
    }
    victim.is_unharmed();
    bundle.nothing_is_left();
}

/// CVE-2021-30465, CVE-2024-45310: mount points behind links that climb.
#[test]
fn links_on_the_way_to_mount_points() {
    let victim = Victim::new();
    let mut bundle = Bundle::shell("grep -c climbed /proc/self/mountinfo");
    bundle.applets(&["grep"]);
    let climb = victim.climb();
    let absolute = victim.dir.path().display().to_string();
    bundle.link(&climb, "relative");
    bundle.link(&absolute, "absolute");
    bundle.link(&format!("{climb}/file"), "file");
    for (n, target) in ["/relative/made", "/absolute/made", "/relative/../made"]
        .iter()
        .enumerate()
    {
        let source = format!("climbed{n}");
        bundle.mount(json!({"destination": target, "type": "tmpfs", "source": source}));
    }
    let source = bundle.dir.path().join("climbed");
    std::fs::write(&source, "bound").unwrap();
    bundle.mount(json!({"destination": "/file", "source": source, "options": ["bind"]}));
    assert_eq!(bundle.attempt().unwrap(), "4\n");
    victim.is_unharmed();
    // They lie at the same names below the container's own root.
    assert!(bundle.root(absolute.trim_start_matches('/')).is_dir());
}

/// CVE-2024-21626: a working directory through a descriptor of the runtime.
#[test]
fn a_working_directory_outside() {
    let mut bundle = Bundle::shell("pwd; ls");
    for n in 0..=15 {
        for way in [
            format!("/proc/self/fd/{n}"),
            format!("/proc/1/fd/{n}/../.."),
        ] {
            bundle.spec["process"]["cwd"] = way.as_str().into();
            if let Ok(text) = bundle.attempt() {
                panic!("{way} was entered: {text}");
            }
        }
    }
    bundle.nothing_is_left();
    let bundle = Bundle::new(&["sleep", "1000"]);
    let (made, _output) = bundle.create().unwrap();
    made.container.start().unwrap();
    for n in 0..=15 {
        let way = format!("/proc/self/fd/{n}");
        let done = exec(&made.container, |p| p["cwd"] = way.as_str().into());
        assert!(done.is_err(), "{way}: {done:?}");
    }
}

/// CVE-2016-9962, CVE-2024-21626: a program has its three streams, whatever
/// the caller leaks.
#[test]
fn no_descriptor_leaks() {
    // Without close-on-exec, at a high number, as careless callers do.
    let host = std::fs::File::open("/etc").unwrap();
    let leaked = rustix::io::dup(&host).unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let list = "for f in /proc/self/fd/*; do readlink $f; done; sleep 1000";
    let bundle = Bundle::shell(list);
    let (made, mut output) = bundle.create().unwrap();
    // While it waits for its start it holds no directory and no file of the
    // host, and nobody may look into it.
    let parked = PathBuf::from(format!("/proc/{}", made.container.record.pid));
    let mut held = Vec::new();
    for entry in std::fs::read_dir(parked.join("fd")).unwrap() {
        let to = std::fs::read_link(entry.unwrap().path()).unwrap();
        held.push(to.display().to_string());
    }
    for to in &held {
        let harmless = ["/dev/null", "socket:", "pipe:", "/memfd:"];
        assert!(
            harmless.iter().any(|start| to.starts_with(start)),
            "the waiting process holds {to}: {held:?}"
        );
    }
    made.container.start().unwrap();
    let mut text = vec![0; 4096];
    let n = std::io::Read::read(&mut output, &mut text).unwrap();
    let mut text = String::from_utf8_lossy(&text[..n]).into_owned();
    while text.lines().count() < 3 {
        let mut more = [0; 4096];
        let n = std::io::Read::read(&mut output, &mut more).unwrap();
        text.push_str(&String::from_utf8_lossy(&more[..n]));
    }
    for line in text.lines() {
        assert!(
            line == "/dev/null" || line.starts_with("pipe:"),
            "the program got {text}"
        );
    }
    let (_, text) = exec(&made.container, |p| {
        p["args"] = json!(["sh", "-c", "for f in /proc/self/fd/*; do readlink $f; done"]);
    })
    .unwrap();
    for line in text.lines() {
        let fine = line == "/dev/null" || line.starts_with("pipe:");
        // The shell's own: the directory that it lists.
        assert!(fine || line.starts_with("/proc/"), "an exec got {text}");
    }
}

/// CVE-2019-5736: what runs in a container before its program is no file that
/// can be written to.
#[test]
fn the_runtime_cannot_be_overwritten() {
    let bundle = Bundle::new(&["/proc/self/exe"]);
    let text = bundle.attempt();
    // It executes the small program, which knows no work without its socket.
    if let Ok(text) = &text {
        assert!(text.contains("rkube's own"), "{text}");
    }
    let bundle = Bundle::new(&["true"]);
    let (made, _output) = bundle.create().unwrap();
    let exe = format!("/proc/{}/exe", made.container.record.pid);
    assert_eq!(
        std::fs::read(&exe).unwrap(),
        rkube_runtime::program::elf().unwrap()
    );
    // As the attack does: held by name, written to when nobody runs it.
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let image = rustix::fs::open(&exe, flags, rustix::fs::Mode::empty()).unwrap();
    lifecycle::delete(&bundle.store(), &bundle.id, true).unwrap();
    wait(&made.pidfd);
    let again = format!("/proc/self/fd/{}", image.as_raw_fd());
    let refused = || {
        let opened = std::fs::OpenOptions::new().write(true).open(&again);
        opened.unwrap_err().kind()
    };
    assert_eq!(refused(), std::io::ErrorKind::ReadOnlyFilesystem);
    // Nor can the mount that forbids it be changed, with all rights there are.
    let writable = rkube_sys::mount::AttrChange {
        clear: rkube_sys::mount::MOUNT_ATTR_RDONLY,
        ..Default::default()
    };
    let changed = rkube_sys::mount::set_attributes(image.as_fd(), writable, false);
    assert_eq!(changed, Err(rustix::io::Errno::INVAL));
    assert_eq!(refused(), std::io::ErrorKind::ReadOnlyFilesystem);
}

/// CVE-2022-29162, CVE-2022-27650, CVE-2025-27612: nothing is inheritable
/// unless it is asked for.
#[test]
fn inheritable_capabilities_are_empty() {
    let show = "grep -E 'CapInh|CapAmb' /proc/self/status";
    let mut bundle = Bundle::shell(&format!("{show}; sleep 1000"));
    bundle.applets(&["grep"]);
    let all = json!(["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_NET_RAW"]);
    let capabilities = json!({"bounding": all, "effective": all, "permitted": all});
    bundle.spec["process"]["capabilities"] = capabilities.clone();
    let (made, mut output) = bundle.create().unwrap();
    made.container.start().unwrap();
    let mut text = [0; 4096];
    let n = std::io::Read::read(&mut output, &mut text).unwrap();
    let none = "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n";
    assert_eq!(String::from_utf8_lossy(&text[..n]), none);
    let (_, text) = exec(&made.container, |p| {
        p["args"] = json!(["sh", "-c", show]);
        p["capabilities"] = capabilities;
    })
    .unwrap();
    assert_eq!(text, none);
}

/// CVE-2016-3697, CVE-2024-40635, CVE-2026-46680: a number is a number,
/// whatever the image's /etc/passwd calls it.
#[test]
fn a_numeric_user_is_no_name() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    let passwd = "1000:x:0:0::/stolen:/bin/sh\nx:x:4294968296:0::/stolen:/bin/sh\n";
    std::fs::write(bundle.root("etc/passwd"), passwd).unwrap();
    let (made, _output) = bundle.create().unwrap();
    made.container.start().unwrap();
    let (_, text) = exec(&made.container, |p| {
        p["user"] = json!({"uid": 1000, "gid": 1000});
        p["args"] = json!(["sh", "-c", "id -u; id -g; echo $HOME"]);
    })
    .unwrap();
    assert_eq!(text, "1000\n1000\n/\n");
}

/// The image's own files must neither hold the runtime up nor lead it out.
#[test]
fn odd_files_for_passwd() {
    let bundle = Bundle::shell("echo $HOME");
    std::fs::remove_file(bundle.root("etc/passwd")).unwrap();
    let fifo = bundle.root("etc/passwd");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    assert!(std::fs::metadata(&fifo).unwrap().file_type().is_fifo());
    assert_eq!(bundle.attempt().unwrap(), "/\n");

    let victim = Victim::new();
    std::fs::write(victim.path("file"), "u:x:0:0::/stolen:/bin/sh\n").unwrap();
    let bundle = Bundle::shell("echo $HOME");
    std::fs::remove_file(bundle.root("etc/passwd")).unwrap();
    bundle.link(&format!("{}/file", victim.climb()), "etc/passwd");
    assert_eq!(bundle.attempt().unwrap(), "/\n");
}

/// CVE-2022-0811, CVE-2025-52881: one key is one file below /proc/sys of the
/// container's own namespaces, one value one write.
#[test]
fn kernel_parameters_of_others() {
    let pattern = read("/proc/sys/kernel/core_pattern");
    let name = read("/proc/sys/kernel/hostname");
    for (key, value) in [
        ("kernel.core_pattern", "|/bin/true"),
        ("kernel.hostname", "stolen"),
        ("kernel.domainname\n", "x"),
        ("net/../kernel/core_pattern", "|/bin/true"),
        ("net.ipv4.../../../kernel/core_pattern", "|/bin/true"),
        ("net./../../kernel/sysrq", "1"),
        ("net.ipv4.ip_forward", "1\n+kernel.core_pattern=|/bin/true"),
        ("vm.overcommit_memory", "1"),
        ("", "1"),
    ] {
        let mut bundle = Bundle::new(&["true"]);
        bundle.spec["linux"]["sysctl"] = json!({key: value});
        let refused = bundle.attempt();
        assert!(refused.is_err(), "{key:?} = {value:?} was set");
        bundle.nothing_is_left();
    }
    assert_eq!(read("/proc/sys/kernel/core_pattern"), pattern);
    assert_eq!(read("/proc/sys/kernel/hostname"), name);
    // Without a network namespace of its own these are the host's.
    let mut bundle = Bundle::new(&["true"]);
    let namespaces = bundle.spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|n| n["type"] != "network");
    bundle.spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    assert!(bundle.attempt().is_err());
}

/// CVE-2022-0492, CVE-2023-25809: the container sees its own cgroup alone,
/// read-only, and no release agent.
#[test]
fn cgroups_of_others() {
    for namespaced in [true, false] {
        let mut bundle = Bundle::shell(
            "for d in /sys/fs/cgroup /sys/fs/cgroup/*/; do mkdir $d/new 2>/dev/null && echo made; \
             done; ls /sys/fs/cgroup/*/release_agent 2>/dev/null; \
             ls -d /sys/fs/cgroup/rkube* /sys/fs/cgroup/*/rkube* 2>/dev/null; echo end",
        );
        bundle.applets(&["mkdir"]);
        if !namespaced {
            let namespaces = bundle.spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|n| n["type"] != "cgroup");
        }
        assert_eq!(bundle.attempt().unwrap(), "end\n", "{namespaced}");
    }
}

/// CVE-2021-43784: counts beyond what a field holds are refused.
#[test]
fn more_than_a_plan_holds() {
    let mut bundle = Bundle::new(&["true"]);
    for n in 0..70_000 {
        bundle.mount(json!({"destination": format!("/m{n}"), "source": "/etc",
            "options": ["bind"]}));
    }
    let refused = bundle.attempt();
    assert!(
        matches!(refused, Err(Error::TooLarge { .. } | Error::Spec { .. })),
        "{refused:?}"
    );
    bundle.nothing_is_left();
    let mut bundle = Bundle::new(&["true"]);
    bundle.spec["process"]["env"] = json!(vec![format!("A={}", "x".repeat(4000)); 1500]);
    let refused = bundle.attempt();
    assert!(refused.is_err());
    bundle.nothing_is_left();
}

/// A mask or a protection at a link covers what it leads to inside.
#[test]
fn masks_behind_links() {
    let victim = Victim::new();
    let mut bundle = Bundle::shell("cat /real; (echo x > /kept/file) 2>/dev/null; cat /kept/file");
    std::fs::write(bundle.root("real"), "secret\n").unwrap();
    std::fs::create_dir(bundle.root("kept")).unwrap();
    std::fs::write(bundle.root("kept/file"), "kept\n").unwrap();
    bundle.spec["root"]["readonly"] = false.into();
    bundle.link("/real", "hidden");
    bundle.link("kept", "protected");
    bundle.link(&victim.climb(), "out");
    bundle.spec["linux"]["maskedPaths"] = json!(["/hidden", "/out/file"]);
    bundle.spec["linux"]["readonlyPaths"] = json!(["/protected", "/out"]);
    assert_eq!(bundle.attempt().unwrap(), "kept\n");
    victim.is_unharmed();
    std::fs::write(victim.path("file"), "host\n").unwrap();
}

/// Small limits are the program's, not the runtime's, to live with.
#[cfg(target_arch = "x86_64")]
#[test]
fn small_limits_still_start() {
    let mut bundle = Bundle::new(&["true"]);
    bundle.spec["linux"]["resources"]["memory"] = json!({"limit": 256 << 10});
    bundle.spec["linux"]["resources"]["pids"] = json!({"limit": 1});
    bundle.spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 4, "hard": 4}]);
    // Smaller than busybox, which needs more memory than that.
    tiny_program(&bundle.root("bin/tiny"));
    bundle.spec["process"]["args"] = json!(["/bin/tiny"]);
    let (code, text) = bundle.run();
    assert_eq!((code, text.as_str()), (0, ""));
}

/// An ELF that exits with 0: its header, one segment and `exit(0)`.
#[cfg(target_arch = "x86_64")]
fn tiny_program(path: &Path) {
    const CODE: [u8; 9] = [0x31, 0xff, 0xb8, 0x3c, 0, 0, 0, 0x0f, 0x05];
    let base = 0x40_0000_u64;
    let entry = base + 120;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
    elf.extend([0; 8]);
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [entry, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let length = 120 + CODE.len() as u64;
    for word in [0, base, base, length, length, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(CODE);
    std::fs::write(path, elf).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

/// CVE-2020-15257: whoever shares the network namespace reaches sockets of the
/// abstract name space; and the start is told by the owner alone.
#[test]
fn sockets_have_no_abstract_names() {
    let bundle = Bundle::new(&["true"]);
    let (made, _output) = bundle.create().unwrap();
    let own: Vec<String> = std::fs::read_dir(format!("/proc/{}/fd", made.container.record.pid))
        .unwrap()
        .flatten()
        .filter_map(|e| {
            let link = std::fs::read_link(e.path()).ok()?.display().to_string();
            let inode = link.strip_prefix("socket:[")?.strip_suffix(']')?;
            Some(inode.to_owned())
        })
        .collect();
    assert!(!own.is_empty(), "it waits on a socket");
    let sockets = read("/proc/net/unix");
    let abstract_names: Vec<&str> = sockets
        .lines()
        .filter(|line| line.contains(" @") && own.iter().any(|i| line.contains(i.as_str())))
        .collect();
    assert_eq!(abstract_names, Vec::<&str>::new());
    let socket = made.container.dir().join("start.sock");
    let mode = std::fs::metadata(socket).unwrap().permissions().mode();
    assert_eq!(
        mode & 0o022,
        0,
        "{mode:o}: connecting needs the right to write"
    );
    made.container.start().unwrap();
    wait(&made.pidfd);
}
