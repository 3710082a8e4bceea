//! Attacks by a race: names of the image change hands while containers are
//! made of it. None may get out. The long form is RKUBE_RACES=10000.
#![allow(clippy::unwrap_used)]

mod bundle;

use std::os::unix::fs::symlink;

use rkube_runtime::lifecycle;
use serde_json::json;

use bundle::attack::{Victim, race};
use bundle::{Bundle, exec, wait};

/// CVE-2021-30465, CVE-2024-45310: mount points, nodes and masks while their
/// directory is a link that climbs every other moment.
#[test]
fn swapped_names_lead_nowhere() {
    let victim = Victim::new();
    let mut bundle = Bundle::new(&["true"]);
    std::fs::create_dir_all(bundle.root("swap/deep")).unwrap();
    std::fs::write(bundle.root("swap/secret"), "secret").unwrap();
    bundle.link(&victim.climb(), "other");
    bundle.without_mount("/dev");
    for name in ["/swap/deep", "/swap/new/dir", "/swap/file"] {
        bundle.mount(json!({"destination": name, "type": "tmpfs", "source": "tmpfs"}));
    }
    bundle.spec["linux"]["devices"] = json!([
        {"path": "/swap/node", "type": "c", "major": 1, "minor": 3, "fileMode": 438}
    ]);
    bundle.spec["linux"]["maskedPaths"] = json!(["/swap/secret"]);
    let (one, two) = (bundle.root("swap"), bundle.root("other"));
    let made = race(&one, &two, || {
        let made = bundle.attempt().is_ok();
        lifecycle::delete(&bundle.store(), &bundle.id, true).unwrap();
        victim.is_unharmed();
        made
    });
    // The attacker must have been met: some containers came to be.
    assert!(made > 0);
    bundle.nothing_is_left();
}

/// CVE-2025-31133: /dev/null of the image is a device and a link by turns.
/// What is masked shows the host's null device or the container does not
/// start; a write to it reaches nothing.
#[test]
fn a_mask_is_never_what_a_racing_null_leads_to() {
    let victim = Victim::new();
    let mut bundle = Bundle::shell("cat /secret; echo x > /secret; stat -c %t:%T /secret");
    bundle.without_mount("/dev");
    bundle.spec["root"]["readonly"] = false.into();
    bundle.spec["linux"]["maskedPaths"] = json!(["/secret"]);
    std::fs::write(bundle.root("secret"), "secret\n").unwrap();
    std::fs::create_dir_all(bundle.root("dev")).unwrap();
    let (null, link) = (bundle.root("dev/null"), bundle.root("dev/link"));
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &null,
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::from_raw_mode(0o666),
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    symlink(format!("{}/file", victim.climb()), &link).unwrap();
    let made = race(&null, &link, || {
        let attempt = bundle.attempt();
        lifecycle::delete(&bundle.store(), &bundle.id, true).unwrap();
        victim.is_unharmed();
        let Ok(text) = attempt else { return false };
        assert_eq!(text, "1:3\n");
        true
    });
    assert!(made > 0);
    assert_eq!(
        std::fs::read_to_string(bundle.root("secret")).unwrap(),
        "secret\n"
    );
    bundle.nothing_is_left();
}

/// CVE-2025-52565: /dev/console of the image is a file and a link by turns
/// while a terminal is bound on it.
#[test]
fn a_console_is_never_what_a_racing_name_leads_to() {
    let victim = Victim::new();
    let mut bundle = Bundle::shell("echo x > /dev/console; echo x > /dev/other");
    bundle.without_mount("/dev");
    bundle.own_terminals();
    bundle.spec["process"]["terminal"] = true.into();
    bundle.spec["root"]["readonly"] = false.into();
    std::fs::create_dir_all(bundle.root("dev/pts")).unwrap();
    let (console, link) = (bundle.root("dev/console"), bundle.root("dev/other"));
    std::fs::write(&console, "").unwrap();
    symlink(format!("{}/file", victim.climb()), &link).unwrap();
    let made = race(&console, &link, || {
        let made = bundle.attempt_with_terminal();
        victim.is_unharmed();
        made
    });
    assert!(made > 0);
    bundle.nothing_is_left();
}

/// CVE-2025-52881: /proc of the image is a directory and a link to a forged
/// one by turns. Kernel parameters are the container's own or it does not
/// start; the forgery and the host's are as they were.
#[test]
fn kernel_parameters_never_go_to_a_racing_proc() {
    const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
    let host = std::fs::read_to_string(FORWARD).unwrap();
    let mut bundle = Bundle::shell("cat /real/sys/net/ipv4/ip_forward");
    bundle.mount(json!({"destination": "/real", "type": "proc", "source": "proc"}));
    bundle.spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    let forged = bundle.root("forged/sys/net/ipv4");
    std::fs::create_dir_all(&forged).unwrap();
    std::fs::write(forged.join("ip_forward"), "forged\n").unwrap();
    std::fs::create_dir_all(bundle.root("proc")).unwrap();
    bundle.link("forged", "link");
    let made = race(&bundle.root("proc"), &bundle.root("link"), || {
        let attempt = bundle.attempt();
        lifecycle::delete(&bundle.store(), &bundle.id, true).unwrap();
        assert_eq!(
            std::fs::read_to_string(forged.join("ip_forward")).unwrap(),
            "forged\n"
        );
        assert_eq!(std::fs::read_to_string(FORWARD).unwrap(), host);
        let Ok(text) = attempt else { return false };
        assert_eq!(text, "1\n");
        true
    });
    assert!(made > 0);
    bundle.nothing_is_left();
}

/// CVE-2019-16884 and its kin: something else is mounted at /proc by the spec
/// itself. Kernel parameters are set all the same, and never in it.
#[test]
fn another_file_system_at_proc_takes_nothing() {
    for (kind, source) in [("tmpfs", "tmpfs"), ("bind", "forged")] {
        let mut bundle = Bundle::shell("cat /real/sys/net/ipv4/ip_forward; ls /proc");
        bundle.without_mount("/proc");
        let forged = bundle.dir.path().join("forged");
        std::fs::create_dir_all(forged.join("sys/net/ipv4")).unwrap();
        std::fs::write(forged.join("sys/net/ipv4/ip_forward"), "forged\n").unwrap();
        bundle.mount(json!({"destination": "/proc", "type": kind, "source": source}));
        bundle.mount(json!({"destination": "/real", "type": "proc", "source": "proc"}));
        bundle.spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
        if let Ok(text) = bundle.attempt() {
            assert!(text.starts_with("1\n"), "{kind}: {text}");
        }
        let text = std::fs::read_to_string(forged.join("sys/net/ipv4/ip_forward")).unwrap();
        assert_eq!(text, "forged\n", "{kind}");
        lifecycle::delete(&bundle.store(), &bundle.id, true).unwrap();
        bundle.nothing_is_left();
    }
}

/// CVE-2016-9962: a process of the container's looks at everybody's
/// descriptors without a pause while others are executed in it. Of a process
/// that is on its way in it sees nothing of the host's.
#[test]
fn whoever_is_on_the_way_in_shows_no_descriptor() {
    let mut bundle = Bundle::shell(
        "while [ ! -e /stop ]; do for p in /proc/[0-9]*; do \
         [ $p = /proc/1 ] || ls -l $p/fd 2> /dev/null; done; done > /found",
    );
    bundle.spec["root"]["readonly"] = false.into();
    let (made, _output) = bundle.create().unwrap();
    made.container.start().unwrap();
    for _ in 0..60 {
        let (code, _) = exec(&made.container, |_| ()).unwrap();
        assert_eq!(code, 0);
    }
    std::fs::write(bundle.root("stop"), "").unwrap();
    wait(&made.pidfd);
    let found = std::fs::read_to_string(bundle.root("found")).unwrap();
    let targets: Vec<&str> = found
        .lines()
        .filter_map(|l| l.split(" -> ").nth(1))
        .collect();
    // It has looked, at itself at least.
    assert!(!targets.is_empty());
    for target in targets {
        // Its own listing, and the streams of a program that runs.
        let plain = target.starts_with("pipe:[")
            || target.starts_with("/proc/")
            || target == "/dev/null"
            || target == "/found";
        assert!(plain, "{target} was seen");
    }
    lifecycle::delete(&bundle.store(), &bundle.id, true).unwrap();
    bundle.nothing_is_left();
}
