//! Mount options where they differ: for the mount alone and for everything
//! below it, and as a program feels them. They need root, a static
//! /bin/busybox and cgroups.
#![allow(clippy::unwrap_used)]

mod bundle;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rkube_sys::clone::CLONE_NEWNS;
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use serde_json::{Value, json};

use bundle::Bundle;

/// Runs something in a mount namespace of its own, of which nothing gets out.
fn apart<T: Send>(what: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            rkube_sys::process::unshare_namespaces(CLONE_NEWNS).unwrap();
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private).unwrap();
            what()
        });
        there.join().unwrap()
    })
}

fn applets(bundle: &Bundle, names: &[&str]) {
    for name in names {
        let link = bundle.dir.path().join("rootfs/bin").join(name);
        symlink("busybox", link).unwrap();
    }
}

fn bind(bundle: &mut Bundle, target: &str, source: &Path, options: Value) {
    let mounts = bundle.spec["mounts"].as_array_mut().unwrap();
    mounts.push(
        json!({"destination": target, "type": "bind", "source": source,
        "options": options}),
    );
}

/// A directory with another mounted below it, in `sub`.
fn nested(bundle: &Bundle) -> PathBuf {
    let (above, below) = (
        bundle.dir.path().join("above"),
        bundle.dir.path().join("below"),
    );
    for dir in [&above.join("sub"), &below] {
        std::fs::create_dir_all(dir).unwrap();
    }
    for dir in [&above, &below] {
        std::fs::write(dir.join("file"), "content\n").unwrap();
        symlink("file", dir.join("link")).unwrap();
        let program = dir.join("busybox");
        std::fs::copy("/bin/busybox", &program).unwrap();
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    mount_bind(&below, above.join("sub")).unwrap();
    above
}

/// `ro` and the others are for the mount alone, `rro` and the others for all
/// that is below it too (config.md, Linux mount options).
#[test]
fn recursive_options_reach_what_is_mounted_below() {
    apart(|| {
        let mut bundle = Bundle::shell(
            "for at in /plain /deep; do for sub in . sub; do cd $at/$sub; \
             (echo x > made) && echo written || echo read-only; \
             ./busybox true && echo runs || echo may not run; \
             cat link || echo not followed; done; done",
        );
        let source = nested(&bundle);
        let plain = json!(["rbind", "ro", "noexec", "nosymfollow"]);
        bind(&mut bundle, "/plain", &source, plain);
        let deep = json!(["rbind", "rro", "rnoexec", "rnosymfollow"]);
        bind(&mut bundle, "/deep", &source, deep);
        let (_, text) = bundle.run();
        let seen: Vec<&str> = text.lines().filter(|line| !line.contains(':')).collect();
        let closed = ["read-only", "may not run", "not followed"];
        let open = ["written", "runs", "content"];
        assert_eq!(seen, [closed, open, closed, closed].concat(), "{text}");
    });
}

/// `idmap` maps the owners of the mount alone, `ridmap` of those below too.
#[test]
fn owners_are_mapped_as_deep_as_is_asked_for() {
    apart(|| {
        let mut bundle =
            Bundle::shell("for at in /plain /deep; do stat -c %u:%g $at/file $at/sub/file; done");
        let source = nested(&bundle);
        let map = json!([{"containerID": 0, "hostID": 54, "size": 10}]);
        for (target, option) in [("/plain", "idmap"), ("/deep", "ridmap")] {
            bind(&mut bundle, target, &source, json!(["rbind", option]));
            let mounts = bundle.spec["mounts"].as_array_mut().unwrap();
            let last = mounts.last_mut().unwrap();
            last["uidMappings"] = map.clone();
            last["gidMappings"] = map.clone();
        }
        let (_, text) = bundle.run();
        assert_eq!(text, "54:54\n0:0\n54:54\n54:54\n");
    });
}

/// A device cannot be opened, and a set-user-ID bit is not looked at.
#[test]
fn nosuid_and_nodev_are_felt() {
    let mut bundle = Bundle::new(&[]);
    applets(&bundle, &["grep"]);
    let source = bundle.dir.path().join("volume");
    std::fs::create_dir(&source).unwrap();
    // An applet that keeps the rights of the bit, and needs them.
    let program = source.join("ping");
    std::fs::copy("/bin/busybox", &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o4755)).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        source.join("zero"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::ROTH,
        rustix::fs::makedev(1, 5),
    )
    .unwrap();
    bind(&mut bundle, "/free", &source, json!(["bind"]));
    bind(
        &mut bundle,
        "/tied",
        &source,
        json!(["bind", "nosuid", "nodev"]),
    );
    bundle.spec["process"]["user"] = json!({"uid": 7, "gid": 7});
    bundle.spec["process"]["noNewPrivileges"] = false.into();
    bundle.spec["process"]["args"] = json!([
        "sh",
        "-c",
        "for at in /free /tied; do (true < $at/zero) && echo opened || echo closed; \
         $at/ping -c 1 -W 1 127.0.0.1 > /dev/null 2>&1 && echo allowed || echo denied; done"
    ]);
    // Without rights no socket for ICMP, raw or not.
    bundle.spec["linux"]["sysctl"] = json!({"net.ipv4.ping_group_range": "1 0"});
    bundle.spec["process"]["capabilities"] = json!({"bounding": ["CAP_NET_RAW"]});
    let (_, text) = bundle.run();
    let seen: Vec<&str> = text.lines().filter(|line| !line.contains(':')).collect();
    assert_eq!(seen, ["opened", "allowed", "closed", "denied"], "{text}");
}

/// What each word of propagation makes of a mount and of the root.
#[test]
fn propagation_is_as_it_is_asked_for() {
    // Optional fields of mountinfo (proc(5)) stand before the dash.
    let kinds = |line: &str| {
        let fields = line.split(" - ").next().unwrap().split(' ').skip(6);
        let kinds: Vec<&str> = fields.map(|f| f.split(':').next().unwrap()).collect();
        kinds.join("+")
    };
    let cases = [
        ("private", ""),
        ("slave", "master"),
        ("shared", "shared"),
        ("unbindable", "unbindable"),
    ];
    apart(|| {
        // Peers on the host's side, which a slave follows.
        let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
        mount_change("/", shared).unwrap();
        for (word, wanted) in cases {
            for word in [word.to_owned(), format!("r{word}")] {
                let mut bundle = Bundle::shell("grep ' /v ' /proc/self/mountinfo");
                applets(&bundle, &["grep"]);
                let source = bundle.dir.path().join("volume");
                std::fs::create_dir(&source).unwrap();
                bind(&mut bundle, "/v", &source, json!(["rbind", word]));
                let (code, text) = bundle.run();
                assert_eq!(code, 0, "{word}: {text}");
                assert_eq!(kinds(&text), wanted, "{word}: {text}");
            }
            let find = "while read a b c d at rest; do [ $at = / ] && echo $a $b $c $d $at $rest; \
                done < /proc/self/mountinfo";
            let mut bundle = Bundle::shell(find);
            bundle.spec["linux"]["rootfsPropagation"] = word.into();
            let (_, text) = bundle.run();
            let seen = kinds(&text);
            let right = if wanted.is_empty() {
                seen.is_empty()
            } else {
                seen.contains(wanted)
            };
            assert!(right, "rootfsPropagation {word}: {text}");
        }
    });
}
