//! Real overlay mounts, all detached: no test attaches one anywhere.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::time::Instant;

use common::{E, Host, Tar, busybox, layout, read_at, tar_of};
use proptest::prelude::*;
use rkube_image::{
    Format, Image, ImportOptions, MountOptions, OverlayMethod, Snapshots, Source, mount_overlay,
    resolve_user,
};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};

fn import(host: &Host, layers: &[Vec<u8>], name: &str) -> Image {
    let tar = tar_of(&layout(layers, Some(name)));
    host.store
        .import(Source::Reader(&mut &tar[..]), &ImportOptions::default())
        .unwrap();
    host.store.resolve(name).unwrap()
}

/// What this kernel has: the probed method and all that are older.
fn methods() -> Vec<OverlayMethod> {
    use OverlayMethod::{Classic, LowerFd, LowerPath};
    let all = [LowerFd, LowerPath, Classic];
    let from = all
        .iter()
        .position(|m| *m == OverlayMethod::probed())
        .unwrap();
    all[from..].to_vec()
}

/// What is attached of this host: others' tests mount beside this one.
fn mounts(host: &Host) -> Vec<String> {
    let dir = host.path("");
    let dir = dir.to_str().unwrap().trim_end_matches('/');
    std::fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .filter(|l| l.contains(dir))
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_hundred_and_twenty_eight_layers_by_every_method() {
    let host = Host::new();
    let layers: Vec<Vec<u8>> = (0..128)
        .map(|i| {
            let mut t = Tar::new();
            t.file(&format!("f{i}"), i.to_string().as_bytes())
                .file("top", i.to_string().as_bytes());
            t.done()
        })
        .collect();
    let image = import(&host, &layers, "many:layers");
    assert_eq!(image.layers.len(), 128);
    let snaps = Snapshots::open(&host.path("containers")).unwrap();
    println!("probed: {}", OverlayMethod::probed());
    for method in methods() {
        let id = format!("{method:?}");
        let snap = snaps.create(&host.store, &id, &image).unwrap();
        let opts = MountOptions {
            method: Some(method),
            volatile: true,
            ..MountOptions::default()
        };
        let start = Instant::now();
        let root = snap.mount(&image, opts).unwrap();
        println!("128 layers, {method}: {:?}", start.elapsed());
        assert_eq!(
            read_at(&root, "top").unwrap(),
            b"127",
            "the last layer is on top"
        );
        for i in [0, 1, 63, 126, 127] {
            assert_eq!(
                read_at(&root, &format!("f{i}")).unwrap(),
                i.to_string().as_bytes()
            );
        }
        write_file(&root, "f5", b"changed");
        assert_eq!(std::fs::read(snap.upper.join("f5")).unwrap(), b"changed");
        assert_eq!(
            std::fs::read(image.layers[5].path.join("f5")).unwrap(),
            b"5",
            "layers never change"
        );
        let ro = mount_overlay(
            &image.layers,
            None,
            MountOptions {
                method: Some(method),
                ..MountOptions::default()
            },
        )
        .unwrap();
        assert_eq!(read_at(&ro, "f5").unwrap(), b"5");
        drop((root, ro));
        snaps.remove(&host.store, &id).unwrap();
    }
    let one = import(&host, &layers[..1], "one:layer");
    let snap = snaps.create(&host.store, "one", &one).unwrap();
    let rounds = 50_u32;
    for method in methods() {
        let mut took = [std::time::Duration::ZERO; 2];
        for _ in 0..rounds {
            let opts = MountOptions {
                method: Some(method),
                ..MountOptions::default()
            };
            let start = Instant::now();
            let root = snap.mount(&one, opts).unwrap();
            took[0] += start.elapsed();
            let start = Instant::now();
            drop(root);
            took[1] += start.elapsed();
        }
        println!(
            "1 layer, {method}: mount {:?}, last close {:?}",
            took[0] / rounds,
            took[1] / rounds
        );
    }
    assert_eq!(mounts(&host), [""; 0], "nothing stays mounted");
}

fn write_file(root: &OwnedFd, path: &str, data: &[u8]) {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
    let fd = rustix::fs::openat(root, path, flags, Mode::from_raw_mode(0o644)).unwrap();
    std::io::Write::write_all(&mut std::fs::File::from(fd), data).unwrap();
}

#[test]
fn one_layer_can_be_a_read_only_root() {
    let host = Host::new();
    let mut t = Tar::new();
    t.add(&E {
        kind: b'5',
        name: b"./",
        mode: 0o1770,
        uid: 3,
        gid: 4,
        ..E::default()
    });
    t.file("a", b"a").file(".wh.nothing", b"");
    let image = import(&host, &[t.done()], "one:1");
    for method in methods() {
        let opts = MountOptions {
            method: Some(method),
            read_only: true,
            ..MountOptions::default()
        };
        let root = mount_overlay(&image.layers, None, opts).unwrap();
        assert_eq!(read_at(&root, "a").unwrap(), b"a");
        let err = rustix::fs::openat(&root, "new", OFlags::WRONLY | OFlags::CREATE, Mode::empty());
        assert_eq!(err.err(), Some(rustix::io::Errno::ROFS));
        let names = names(&root);
        assert_eq!(names, ["a"], "whiteouts do not show");
        let snaps = Snapshots::open(&host.path("c")).unwrap();
        let snap = snaps.create(&host.store, "x", &image).unwrap();
        let root = snap.mount(&image, opts).unwrap();
        let st = rustix::fs::fstat(&root).unwrap();
        assert_eq!(
            (st.st_mode & 0o7777, st.st_uid, st.st_gid),
            (0o1770, 3, 4),
            "the image's root"
        );
        let err = rustix::fs::openat(&root, "new", OFlags::WRONLY | OFlags::CREATE, Mode::empty());
        assert_eq!(err.err(), Some(rustix::io::Errno::ROFS), "{method}");
        drop(root);
        snaps.remove(&host.store, "x").unwrap();
    }
}

fn names(root: &OwnedFd) -> Vec<String> {
    let dir =
        rustix::fs::openat(root, ".", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let mut names: Vec<String> = rustix::fs::Dir::new(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_str().unwrap().to_string())
        .filter(|n| n != "." && n != "..")
        .collect();
    names.sort();
    names
}

#[test]
fn a_broken_mount_says_what_and_why() {
    let host = Host::new();
    let image = import(&host, &[Tar::new().file("a", b"").done()], "x:y");
    let mut gone = image.layers.clone();
    gone[0].path = host.path("images/layers/none/diff");
    for method in methods() {
        let opts = MountOptions {
            method: Some(method),
            ..MountOptions::default()
        };
        let err = mount_overlay(&gone, None, opts).unwrap_err().to_string();
        assert!(err.contains("none/diff"), "{err}");
        assert!(mount_overlay(&[], None, opts).is_err());
    }
}

#[test]
fn busybox_runs_from_its_image() {
    let Some(busybox) = busybox() else {
        eprintln!("SKIP busybox_runs_from_its_image: /bin/busybox is not installed");
        return;
    };
    let host = Host::new();
    let mut t = Tar::new();
    t.dir("bin").add(&E {
        name: b"bin/busybox",
        mode: 0o755,
        data: &busybox,
        ..E::default()
    });
    t.symlink("bin/cat", "busybox")
        .file("etc/hello", b"hello from the image\n");
    let image = import(&host, &[t.done()], "busybox:latest");
    let snaps = Snapshots::open(&host.path("c")).unwrap();
    let snap = snaps.create(&host.store, "bb", &image).unwrap();
    let root = snap.mount(&image, MountOptions::default()).unwrap();
    // A detached mount cannot be a root, but programs run from it.
    let path = format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        std::os::fd::AsRawFd::as_raw_fd(&root)
    );
    let out = Command::new(format!("{path}/bin/busybox"))
        .args(["cat", &format!("{path}/etc/hello")])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert_eq!(out.stdout, b"hello from the image\n");
    drop(root);
    snaps.remove(&host.store, "bb").unwrap();
}

#[test]
fn hostile_trees_are_removed() {
    let host = Host::new();
    let image = import(&host, &[Tar::new().file("a", b"").done()], "x:y");
    let snaps = Snapshots::open(&host.path("c")).unwrap();
    let snap = snaps.create(&host.store, "h", &image).unwrap();
    assert!(snaps.create(&host.store, "h", &image).is_err());
    // Deeper than PATH_MAX and the descriptor limit, by descriptor.
    let mut at = rustix::fs::open(
        &snap.upper,
        OFlags::RDONLY | OFlags::DIRECTORY,
        Mode::empty(),
    )
    .unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&at, "deeper", Mode::from_raw_mode(0)).unwrap();
        at = rustix::fs::openat(
            &at,
            "deeper",
            OFlags::RDONLY | OFlags::DIRECTORY,
            Mode::empty(),
        )
        .unwrap();
    }
    for i in 0..1200 {
        std::fs::write(snap.upper.join(format!("f{i}")), b"").unwrap();
    }
    host.write("outside/keep", b"k");
    std::os::unix::fs::symlink(host.path("outside"), snap.upper.join("link")).unwrap();
    std::fs::create_dir_all(snap.work.join("work/incompat/volatile")).unwrap();
    std::fs::set_permissions(snap.work.join("work"), std::fs::Permissions::from_mode(0o0)).unwrap();
    // Immutable, where the file system has the flag.
    std::fs::create_dir(snap.upper.join("frozen")).unwrap();
    std::fs::write(snap.upper.join("frozen/file"), b"").unwrap();
    for name in ["frozen/file", "frozen"] {
        let fd = std::fs::File::open(snap.upper.join(name)).unwrap();
        if let Ok(flags) = rustix::fs::ioctl_getflags(&fd) {
            let _ = rustix::fs::ioctl_setflags(&fd, flags | rustix::fs::IFlags::IMMUTABLE);
        }
    }
    drop(at);
    snaps.remove(&host.store, "h").unwrap();
    assert!(!host.path("c/h").exists());
    assert!(host.path("outside/keep").exists());
    for bad in ["", ".", "..", "a/b", "-x", ".x", "a\0", &"x".repeat(129)] {
        assert!(snaps.remove(&host.store, bad).is_err(), "{bad:?}");
        assert!(snaps.create(&host.store, bad, &image).is_err(), "{bad:?}");
    }
    // Files of the engine beside upper and work stay.
    snaps.create(&host.store, "k", &image).unwrap();
    host.write("c/k/state.json", b"{}");
    assert_eq!(snaps.list(&host.store).unwrap(), ["k"]);
    snaps.remove(&host.store, "k").unwrap();
    assert!(host.path("c/k/state.json").exists() && !host.path("c/k/upper").exists());
}

#[test]
fn users_and_groups() {
    let host = Host::new();
    let passwd = "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1001::/home/alice:/bin/sh\n\
                  broken\n77:x:0:0::/:/bin/sh\nhuge:x:4294967296:0::/:\nneg:x:-1:0::/:\n\
                  rel:x:5:5::home:\nbadgid:x:9:zero::/:\n";
    let group = "root:x:0:\nwheel:x:10:alice,bob\nusers:x:100:alice\nalice:x:1001:alice\n\
                 over:x:4294967296:alice\n33:x:0:\n";
    host.write("r/etc/real", passwd.as_bytes());
    host.write("r/etc/group", group.as_bytes());
    // As the container sees it: absolute inside its own root.
    std::os::unix::fs::symlink("/../etc/real", host.path("r/etc/passwd")).unwrap();
    let open = |p: &str| {
        rustix::fs::open(
            host.path(p),
            OFlags::PATH | OFlags::DIRECTORY,
            Mode::empty(),
        )
        .unwrap()
    };
    let root = open("r");
    let ids = |spec: &str| {
        let u = resolve_user(root.as_fd(), Some(spec)).map_err(|e| e.to_string())?;
        Ok::<_, String>((u.uid, u.gid, u.additional_gids))
    };
    assert_eq!(ids(""), Ok((0, 0, vec![])));
    assert_eq!(ids("alice"), Ok((1000, 1001, vec![10, 100])));
    assert_eq!(ids("1000"), Ok((1000, 1001, vec![10, 100])));
    assert_eq!(ids("alice:users"), Ok((1000, 100, vec![])));
    assert_eq!(ids("alice:7"), Ok((1000, 7, vec![])));
    assert_eq!(ids("12345"), Ok((12345, 0, vec![])));
    assert_eq!(ids("1:4294967294"), Ok((1, 4_294_967_294, vec![])));
    // Digits are a number, never the user of that name (who is root here).
    assert_eq!(ids("77"), Ok((77, 0, vec![])));
    assert_eq!(resolve_user(root.as_fd(), Some("77")).unwrap().name, None);
    assert_eq!(ids("1:33"), Ok((1, 33, vec![])));
    for bad in [
        "4294967295",
        "4294967296",
        "99999999999999999999",
        "1:4294967295",
        "1:4294967296",
        "nobody",
        "alice:nogroup",
        "alice:",
        "huge",
        "neg",
        "badgid",
        "-1",
        "+1",
        " 1",
        "0x0",
        "1:-1",
        "alice:over",
        "a:b:c",
        "1 ",
    ] {
        assert!(ids(bad).is_err(), "{bad}: {:?}", ids(bad));
    }
    let u = resolve_user(root.as_fd(), Some("alice")).unwrap();
    assert_eq!(
        (u.name.as_deref(), u.home.as_deref()),
        (Some("alice"), Some("/home/alice"))
    );
    assert_eq!(resolve_user(root.as_fd(), Some("rel")).unwrap().home, None);
    assert_eq!(
        resolve_user(root.as_fd(), None).unwrap().home.as_deref(),
        Some("/root")
    );
    // Not a file, too large, a link out: an error or nothing, never the host's.
    std::fs::create_dir_all(host.path("e/etc")).unwrap();
    let empty = open("e");
    std::os::unix::fs::symlink("../../../../../../etc/passwd", host.path("e/etc/passwd")).unwrap();
    assert!(resolve_user(empty.as_fd(), Some("root")).is_err());
    assert_eq!(
        resolve_user(empty.as_fd(), Some("5")).map(|u| u.gid).ok(),
        None,
        "a link to itself"
    );
    std::fs::remove_file(host.path("e/etc/passwd")).unwrap();
    assert_eq!(resolve_user(empty.as_fd(), Some("5")).unwrap().uid, 5);
    rustix::fs::mknodat(
        &empty,
        "etc/passwd",
        FileType::Fifo,
        Mode::from_raw_mode(0o644),
        0,
    )
    .unwrap();
    assert!(resolve_user(empty.as_fd(), Some("5")).is_err());
    std::fs::remove_file(host.path("e/etc/passwd")).unwrap();
    std::fs::File::create(host.path("e/etc/passwd"))
        .unwrap()
        .set_len(5 << 20)
        .unwrap();
    assert!(resolve_user(empty.as_fd(), Some("5")).is_err());
}

/// One operation of a layer on a small name space.
#[derive(Debug, Clone)]
enum Op {
    File(usize, usize, u8),
    Dir(usize),
    Whiteout(usize, usize),
    WhiteoutDir(usize),
    Opaque(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let (d, f) = (0..3_usize, 0..3_usize);
    prop_oneof![
        4 => (d.clone(), f.clone(), any::<u8>()).prop_map(|(d, f, c)| Op::File(d, f, c)),
        2 => d.clone().prop_map(Op::Dir),
        2 => (d.clone(), f).prop_map(|(d, f)| Op::Whiteout(d, f)),
        1 => d.clone().prop_map(Op::WhiteoutDir),
        1 => d.prop_map(Op::Opaque),
    ]
}

type Tree = BTreeMap<String, Option<u8>>;

/// The specification, slowly: first a layer's whiteouts act on what is below,
/// then its files are laid over it, whatever the order in the archive.
fn apply(tree: &mut Tree, ops: &[Op]) {
    for o in ops {
        match o {
            Op::Whiteout(d, f) => drop(tree.remove(&format!("d{d}/f{f}"))),
            Op::WhiteoutDir(d) => {
                tree.retain(|k, _| k != &format!("d{d}") && !k.starts_with(&format!("d{d}/")))
            }
            Op::Opaque(d) => tree.retain(|k, _| !k.starts_with(&format!("d{d}/"))),
            _ => {}
        }
    }
    for o in ops {
        match o {
            Op::File(d, f, c) => {
                tree.insert(format!("d{d}"), None);
                tree.insert(format!("d{d}/f{f}"), Some(*c));
            }
            // An opaque mark or a whiteout stands in its directory, so the
            // directory is there.
            Op::Dir(d) | Op::Opaque(d) | Op::Whiteout(d, _) => {
                tree.insert(format!("d{d}"), None);
            }
            Op::WhiteoutDir(_) => {}
        }
    }
}

fn archive(ops: &[Op]) -> Vec<u8> {
    let mut t = Tar::new();
    for o in ops {
        match o {
            Op::File(d, f, c) => t.file(&format!("d{d}/f{f}"), &[*c]),
            Op::Dir(d) => t.dir(&format!("d{d}/")),
            Op::Whiteout(d, f) => t.file(&format!("d{d}/.wh.f{f}"), b""),
            Op::WhiteoutDir(d) => t.file(&format!(".wh.d{d}"), b""),
            Op::Opaque(d) => t.file(&format!("d{d}/.wh..wh..opq"), b""),
        };
    }
    t.done()
}

fn read_tree(root: &OwnedFd) -> Tree {
    let mut tree = Tree::new();
    for d in names(root) {
        let fd = rustix::fs::openat(root, &*d, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
            .unwrap();
        tree.insert(d.clone(), None);
        for f in names(&fd) {
            // The kernel lists whiteouts of a directory that no other layer
            // has (one that hides nothing); looking them up finds nothing.
            let st = match rustix::fs::statat(&fd, &*f, AtFlags::SYMLINK_NOFOLLOW) {
                Err(rustix::io::Errno::NOENT) => continue,
                other => other.unwrap(),
            };
            assert_eq!(
                FileType::from_raw_mode(st.st_mode),
                FileType::RegularFile,
                "{d}/{f}"
            );
            tree.insert(format!("{d}/{f}"), Some(read_at(&fd, &f).unwrap()[0]));
        }
    }
    tree
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn merged_layers_are_the_tree_that_the_specification_means(
        layers in prop::collection::vec(prop::collection::vec(op(), 0..7), 1..5),
    ) {
        let host = Host::new();
        let tars: Vec<Vec<u8>> = layers.iter().map(|l| archive(l)).collect();
        let image = import(&host, &tars, "p:q");
        let root = mount_overlay(&image.layers, None, MountOptions::default()).unwrap();
        let mut expected = Tree::new();
        for l in &layers {
            apply(&mut expected, l);
        }
        prop_assert_eq!(read_tree(&root), expected);
    }
}

#[test]
fn whiteouts_in_opaque_directories_are_not_listed() {
    let host = Host::new();
    let below = Tar::new().file("d/x", b"").file("e/s/x", b"").done();
    let mut t = Tar::new();
    t.file("d/.wh.x", b"")
        .file("d/.wh..wh..opq", b"")
        .file("d/y", b"");
    t.file("e/s/.wh.x", b"")
        .file(".wh.e", b"")
        .file("e/s/y", b"");
    let image = import(&host, &[below, t.done()], "w:o");
    let root = mount_overlay(&image.layers, None, MountOptions::default()).unwrap();
    for dir in ["d", "e/s"] {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let fd = rustix::fs::openat(&root, dir, flags, Mode::empty()).unwrap();
        assert_eq!(names(&fd), ["y"], "{dir}");
    }
}

#[test]
fn an_opaque_root_hides_all_below() {
    let host = Host::new();
    let below = Tar::new().file("gone", b"").done();
    let above = Tar::new()
        .file(".wh..wh..opq", b"")
        .file("here", b"")
        .done();
    let image = import(&host, &[below, above], "o:p");
    assert_eq!(image.layers.len(), 1);
    let root = mount_overlay(&image.layers, None, MountOptions::default()).unwrap();
    assert_eq!(names(&root), ["here"]);
}

/// Figures, printed: unpacking a real tree. `cargo test --release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn import_speed() {
    let host = Host::new();
    let tar = host.path("usr.tar");
    let done = Command::new("tar")
        .args(["-C", "/usr/lib", "-cf"])
        .arg(&tar)
        .args(["python3", "python3.11"])
        .status();
    assert!(done.unwrap().success());
    for _ in 0..2 {
        let host = Host::new();
        let opts = ImportOptions {
            format: Format::Rootfs,
            ..ImportOptions::default()
        };
        let start = Instant::now();
        host.store.import(Source::Path(&tar), &opts).unwrap();
        println!(
            "{} bytes in {:?}",
            tar.metadata().unwrap().size(),
            start.elapsed()
        );
    }
}
