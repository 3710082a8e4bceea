//! Import of every kind of source, the table, removal, crash leftovers.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../common/mod.rs"]
mod common;
mod peers;

use std::collections::HashSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::process::Command;

use common::{E, Host, Tar, count_files, diff, docker, gzip, layout, tar_of};
use rkube_image::{
    BuiltinContent, BuiltinFile, Error, Format, ImportOptions, RootfsConfig, Snapshots, Source,
    Store,
};

type Files = Vec<(String, Vec<u8>)>;

fn named(name: &str) -> ImportOptions {
    ImportOptions {
        reference: Some(name.into()),
        ..ImportOptions::default()
    }
}

fn rich_layer() -> Vec<u8> {
    let mut t = Tar::new();
    t.add(&E {
        kind: b'5',
        name: b"./",
        mode: 0o751,
        ..E::default()
    });
    t.dir("./bin/").dir("etc");
    t.add(&E {
        name: b"bin/su",
        mode: 0o4755,
        uid: 0,
        gid: 7,
        data: b"elf",
        ..E::default()
    });
    t.hardlink("bin/su2", "./bin/su")
        .symlink("bin/sh", "/../../../busybox");
    t.add(&E {
        kind: b'6',
        name: b"run/fifo",
        mode: 0o622,
        ..E::default()
    });
    t.add(&E {
        kind: b'3',
        name: b"dev/null",
        mode: 0o666,
        dev: (1, 3),
        ..E::default()
    });
    t.add(&E {
        kind: b'4',
        name: b"dev/sda",
        mode: 0o660,
        dev: (8, 300),
        ..E::default()
    });
    t.add(&E {
        name: b"etc/owned",
        uid: 1000,
        gid: 2000,
        mtime: 12345,
        ..E::default()
    });
    // v2 capabilities: cap_net_raw+ep (linux/capability.h, vfs_cap_data).
    let cap = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    t.pax("SCHILY.xattr.security.capability", &cap)
        .pax("SCHILY.xattr.user.note", b"a\nb=c\0d");
    t.pax("SCHILY.xattr.trusted.overlay.opaque", b"y")
        .pax("SCHILY.xattr.user.overlay.opaque", b"y");
    t.pax("SCHILY.xattr.trusted.other", b"y")
        .pax("SCHILY.xattr.security.selinux", b"x");
    t.file("bin/ping", b"elf");
    t.pax("SCHILY.xattr.trusted.overlay.redirect", b"/etc")
        .dir("sneaky");
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(250));
    t.pax("path", long.as_bytes())
        .pax("mtime", b"77.25")
        .file("short", b"long name");
    t.done()
}

fn check_rich(store: &Store, reference: &str) {
    let d = diff(store, reference, 0);
    let meta = |p: &str| d.join(p).symlink_metadata().unwrap();
    assert_eq!(meta("").mode() & 0o7777, 0o751);
    assert_eq!(
        (meta("bin/su").mode() & 0o7777, meta("bin/su").gid()),
        (0o4755, 7)
    );
    assert_eq!(meta("bin/su").ino(), meta("bin/su2").ino());
    assert_eq!(
        d.join("bin/sh").read_link().unwrap().to_str(),
        Some("/../../../busybox")
    );
    assert!(meta("run/fifo").file_type().is_fifo());
    assert_eq!(
        (meta("dev/null").rdev(), meta("dev/null").mode() & 0o7777),
        (0x103, 0o666)
    );
    assert!(meta("dev/sda").file_type().is_block_device());
    assert_eq!(rustix::fs::minor(meta("dev/sda").rdev()), 300);
    let owned = meta("etc/owned");
    assert_eq!(
        (owned.uid(), owned.gid(), owned.mtime()),
        (1000, 2000, 12345)
    );
    assert_eq!(
        meta("etc").mtime(),
        1_700_000_000,
        "directory times are set last"
    );
    let xattr = |name: &str| {
        let mut buf = [0_u8; 100];
        rustix::fs::lgetxattr(d.join("bin/ping"), name, &mut buf[..]).map(|n| buf[..n].to_vec())
    };
    assert_eq!(xattr("security.capability").unwrap().len(), 20);
    assert_eq!(xattr("user.note").unwrap(), b"a\nb=c\0d");
    for gone in [
        "trusted.overlay.opaque",
        "user.overlay.opaque",
        "trusted.other",
    ] {
        assert_eq!(xattr(gone), Err(rustix::io::Errno::NODATA), "{gone}");
    }
    let mut buf = [0_u8; 100];
    assert!(
        rustix::fs::lgetxattr(d.join("sneaky"), "trusted.overlay.redirect", &mut buf[..]).is_err()
    );
    let long = meta(&format!("{}/{}", "d".repeat(150), "f".repeat(250)));
    assert_eq!(
        (long.mtime(), long.mtime_nsec(), long.len()),
        (77, 250_000_000, 9)
    );
    let id = store.resolve(reference).unwrap().layers[0].diff_id;
    let info = store.layer_info(&id).unwrap();
    assert_eq!(
        (info.devices, info.dropped_xattrs, info.root),
        (2, 5, Some((0o751, 0, 0)))
    );
}

#[test]
fn rootfs_archives_of_every_compression() {
    let host = Host::new();
    let tar = rich_layer();
    let zst = zstd::encode_all(&tar[..], 1).unwrap();
    let (a, b) = tar.split_at(tar.len() / 2);
    // zstd:chunked has many frames, and skippable ones with their table.
    let skip = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    let [x, y] = [a, b].map(|part| zstd::encode_all(part, 1).unwrap());
    let chunked = [&skip[..], &x, &skip, &y, &skip].concat();
    let all = [
        ("plain", tar.clone()),
        ("gz", gzip(&tar)),
        ("zst", zst),
        ("chunked", chunked),
        ("gz2", [gzip(a), gzip(b)].concat()),
    ];
    let mut opts = named("x");
    opts.rootfs = RootfsConfig {
        entrypoint: vec!["/bin/su".into()],
        user: Some("5:6".into()),
        workdir: Some("/etc".into()),
        ..RootfsConfig::default()
    };
    for (name, data) in all {
        let path = host.write(name, &data);
        opts.reference = Some(format!("local.test/{name}"));
        let by_path = host.store.import(Source::Path(&path), &opts).unwrap();
        let again = host
            .store
            .import(Source::Reader(&mut &data[..]), &opts)
            .unwrap();
        assert_eq!(
            by_path[0].id, again[0].id,
            "the same content is the same image"
        );
        assert_eq!(again[0].new_layers, 0);
        let image = host.store.resolve(&format!("local.test/{name}")).unwrap();
        let config = image.config.config().as_ref().unwrap();
        assert_eq!(config.user().as_deref(), Some("5:6"));
        assert_eq!(
            config.entrypoint().as_deref(),
            Some(&["/bin/su".to_string()][..])
        );
        check_rich(&host.store, &format!("local.test/{name}"));
    }
    // One tree for five blobs.
    assert_eq!(count_files(&host.path("images/layers")), 1);
    let usage = host.store.disk_usage().unwrap();
    assert_eq!(usage.images, 5);
    let xz = host.write("xz", b"\xfd7zXZ\0 etc");
    let err = host
        .store
        .import(Source::Path(&xz), &named("x"))
        .unwrap_err();
    assert!(
        format!("{err:?}").contains("xz compression is not supported"),
        "{err:?}"
    );
}

#[test]
fn oci_and_docker_sources_agree() {
    let host = Host::new();
    let layers = vec![rich_layer(), Tar::new().file("etc/motd", b"hi").done()];
    let files = layout(&layers, Some("busybox:1.36"));
    for (name, data) in &files {
        host.write(&format!("layout/{name}"), data);
    }
    let dir = host
        .store
        .import(
            Source::Path(&host.path("layout")),
            &ImportOptions::default(),
        )
        .unwrap();
    assert_eq!(dir[0].references, ["docker.io/library/busybox:1.36"]);
    assert_eq!((dir[0].layers, dir[0].new_layers), (2, 2));
    check_rich(&host.store, "busybox:1.36");

    let tar = host.write("oci.tar", &tar_of(&files));
    let gz = gzip(&tar_of(&files));
    let from_tar = host
        .store
        .import(Source::Path(&tar), &named("a/b:c"))
        .unwrap();
    let from_gz = host
        .store
        .import(Source::Reader(&mut &gz[..]), &named("a/b:d"))
        .unwrap();
    assert_eq!(from_tar[0].manifest_digest, dir[0].manifest_digest);
    assert_eq!(from_gz[0].manifest_digest, dir[0].manifest_digest);

    let saved = docker(&layers, &["old/style:v1", "second:v2"]);
    let old = host
        .store
        .import(Source::Reader(&mut &saved[..]), &ImportOptions::default())
        .unwrap();
    assert_eq!(old[0].id, dir[0].id, "the same configuration");
    assert_eq!(
        old[0].references,
        ["docker.io/old/style:v1", "docker.io/library/second:v2"]
    );
    assert_eq!(old[0].new_layers, 0);

    let list = host.store.list().unwrap();
    assert_eq!(list.len(), 2, "two manifests of one configuration");
    let inspected = host.store.inspect("second:v2").unwrap();
    assert_eq!(inspected.manifest["layers"].as_array().unwrap().len(), 2);
    assert_eq!(inspected.config["config"]["Cmd"][0], "/bin/sh");
    // Found by every name it has.
    let d = dir[0].manifest_digest;
    for name in [
        format!("busybox@{d}"),
        d.to_string(),
        dir[0].id.to_string(),
        "a/b:c".into(),
    ] {
        assert_eq!(host.store.resolve(&name).unwrap().id, dir[0].id, "{name}");
    }
    let Err(Error::NotFound { similar, .. }) = host.store.resolve("busybox") else {
        panic!()
    };
    assert_eq!(similar, ["docker.io/library/busybox:1.36"]);
    assert!(matches!(
        host.store.resolve("Busy Box"),
        Err(Error::InvalidReference { .. })
    ));
}

#[test]
fn platform_is_chosen_and_missing_ones_named() {
    let host = Host::new();
    let files = layout(&[rich_layer()], None);
    let index: serde_json::Value = serde_json::from_slice(&files.last().unwrap().1).unwrap();
    let manifest = &index["manifests"][0];
    let with = |arch: &str, digest: Option<&str>| {
        let mut m = manifest.clone();
        m["platform"] = serde_json::json!({"os": "linux", "architecture": arch});
        if let Some(d) = digest {
            m["digest"] = d.into();
        }
        m
    };
    let missing = format!("sha256:{}", "1".repeat(64));
    let host_arch = rkube_image::Platform::host().architecture;
    let put = |list: Vec<serde_json::Value>| {
        let mut files = files.clone();
        files.last_mut().unwrap().1 = serde_json::json!({"manifests": list}).to_string().into();
        tar_of(&files)
    };
    let good = put(vec![
        with("riscv64", Some(&missing)),
        with(&host_arch, None),
    ]);
    let got = host
        .store
        .import(Source::Reader(&mut &good[..]), &ImportOptions::default())
        .unwrap();
    assert_eq!(got.len(), 1);
    assert!(got[0].references.is_empty(), "nothing is guessed");
    let bad = put(vec![with("riscv64", None), with("s390x", None)]);
    let err = host
        .store
        .import(Source::Reader(&mut &bad[..]), &ImportOptions::default())
        .unwrap_err();
    assert!(
        err.to_string().contains("linux/riscv64, linux/s390x"),
        "{err}"
    );
}

#[test]
fn lies_are_found_and_leave_nothing() {
    let host = Host::new();
    let layers = vec![rich_layer()];
    let files = layout(&layers, Some("a:b"));
    let flip = |what: &str, edit: &dyn Fn(&mut Files)| {
        let mut files = files.clone();
        edit(&mut files);
        let tar = tar_of(&files);
        let err = host
            .store
            .import(Source::Reader(&mut &tar[..]), &ImportOptions::default());
        let err = err.expect_err(what);
        assert_eq!(count_files(&host.path("images/tmp")), 0, "{what}");
        assert_eq!(count_files(&host.path("images/blobs/sha256")), 0, "{what}");
        assert_eq!(count_files(&host.path("images/layers")), 0, "{what}");
        err
    };
    let at = |files: &[(String, Vec<u8>)], n: usize| files[n].0.clone();
    assert!(at(&files, 1).starts_with("blobs"));
    // 1: layer, 2: configuration, 3: manifest.
    let e = flip("a changed layer", &|f| f[1].1[600] ^= 1);
    assert!(
        matches!(e, Error::Digest { .. } | Error::Tar { .. }),
        "{e:?}"
    );
    let e = flip("trailing bytes in a layer", &|f| f[1].1.extend([0; 512]));
    assert!(matches!(e, Error::Malformed { .. }), "{e:?}");
    let e = flip("a changed configuration", &|f| f[2].1.push(b' '));
    assert!(matches!(e, Error::Digest { .. }), "{e:?}");
    let e = flip("a changed manifest", &|f| f[3].1.push(b' '));
    assert!(matches!(e, Error::Digest { .. }), "{e:?}");
    flip("a missing layer", &|f| drop(f.remove(1)));
    flip("an index that is none", &|f| f[4].1 = b"[]".to_vec());
    flip("an endless index", &|f| f[4].1 = vec![b' '; 5 << 20]);
    flip("no manifests", &|f| f[4].1 = b"{\"manifests\":[]}".to_vec());
    let e = host.store.import(
        Source::Reader(&mut &b"not a tar"[..]),
        &ImportOptions::default(),
    );
    assert!(matches!(e, Err(Error::Tar { .. })), "{e:?}");
    // An old docker archive whose layer is not the one of its configuration.
    let mut saved = docker(&layers, &["x:y"]);
    let i = saved.windows(3).position(|w| w == b"elf").unwrap();
    saved[i] ^= 1;
    let e = host
        .store
        .import(Source::Reader(&mut &saved[..]), &ImportOptions::default());
    assert!(matches!(e, Err(Error::Digest { .. })), "{e:?}");
}

#[test]
fn limits_hold_for_bombs() {
    let host = Host::new();
    let mut t = Tar::new();
    t.file("zeros", &vec![0; 4 << 20]);
    let bomb = gzip(&t.done());
    assert!(bomb.len() < 64 << 10);
    let opts = ImportOptions {
        max_unpacked_bytes: 1 << 20,
        format: Format::Rootfs,
        ..named("x")
    };
    let err = host
        .store
        .import(Source::Reader(&mut &bomb[..]), &opts)
        .unwrap_err();
    assert!(
        matches!(err, Error::Entry { .. } | Error::Read { .. }),
        "{err:?}"
    );
    // Zeros behind the end of the archive count too.
    let mut tail = Tar::new().file("a", b"b").done();
    tail.resize(4 << 20, 0);
    let err = host
        .store
        .import(Source::Reader(&mut &gzip(&tail)[..]), &opts)
        .unwrap_err();
    assert!(matches!(err, Error::Read { .. }), "{err:?}");
    assert_eq!(count_files(&host.path("images/tmp")), 0);
}

#[test]
fn removal_untags_then_deletes_and_respects_users() {
    let host = Host::new();
    let nobody = HashSet::new();
    let one = Tar::new().file("one", b"1").done();
    let shared = Tar::new().file("base", b"0").done();
    let import = |layers: &[Vec<u8>], name| {
        let tar = tar_of(&layout(layers, Some(name)));
        host.store
            .import(Source::Reader(&mut &tar[..]), &ImportOptions::default())
            .unwrap()
            .remove(0)
    };
    let a = import(&[shared.clone(), one], "a:1");
    let b = import(std::slice::from_ref(&shared), "b:1");
    let sizes = host.store.list().unwrap();
    assert!(sizes[0].shared_bytes > 0 && sizes[0].size_bytes > sizes[0].shared_bytes);
    host.store.tag("a:1", "a:2").unwrap();
    let removed = host.store.remove("a:1", &nobody).unwrap();
    assert_eq!((removed.untagged.len(), removed.deleted.len()), (1, 0));

    let snaps = Snapshots::open(&host.path("containers")).unwrap();
    let image = host.store.resolve("a:2").unwrap();
    snaps.create(&host.store, "c1", &image).unwrap();
    let err = host.store.remove("a:2", &nobody).unwrap_err();
    assert!(
        matches!(&err, Error::InUse { by, .. } if *by == ["c1"]),
        "{err:?}"
    );
    assert!(matches!(
        host.store.remove("b:1", &HashSet::from([b.id])),
        Err(Error::InUse { .. })
    ));
    snaps.remove(&host.store, "c1").unwrap();
    snaps.remove(&host.store, "c1").unwrap();
    let removed = host.store.remove(&a.id.hex()[..12], &nobody).unwrap();
    assert_eq!(removed.deleted, [a.id]);
    assert_eq!(
        count_files(&host.path("images/layers")),
        1,
        "the shared layer stays"
    );
    assert!(matches!(
        host.store.remove("a:2", &nobody),
        Err(Error::NotFound { .. })
    ));
    // A name that moves leaves an image without a name, which prune takes.
    import(&[Tar::new().file("new", b"n").done()], "b:1");
    assert_eq!(host.store.list().unwrap().len(), 2);
    assert_eq!(host.store.prune(false, &nobody).unwrap().deleted, [b.id]);
    host.store.remove("b:1", &nobody).unwrap();
    assert_eq!(
        host.store.disk_usage().unwrap(),
        rkube_image::DiskUsage::default()
    );
    assert_eq!(count_files(&host.path("images/blobs/sha256")), 0);
    assert_eq!(count_files(&host.path("images/layers")), 0);
}

#[test]
fn leftovers_of_a_crash_are_cleared_and_whole_images_stay() {
    let host = Host::new();
    let tar = rich_layer();
    host.store
        .import(Source::Reader(&mut &tar[..]), &named("keep"))
        .unwrap();
    host.write("images/tmp/import-1-1-1/layers/layer2/diff/bin/x", b"half");
    host.write(
        &format!("images/blobs/sha256/{}", "0".repeat(64)),
        b"orphan",
    );
    host.write(
        &format!("images/layers/{}/diff/x", "0".repeat(64)),
        b"orphan",
    );
    host.write("images/.table.json.99.tmp", b"{half");
    let again = Store::open(&host.path("images")).unwrap();
    assert_eq!(count_files(&host.path("images/tmp")), 0);
    assert_eq!(count_files(&host.path("images/layers")), 1);
    assert_eq!(count_files(&host.path("images/blobs/sha256")), 3);
    check_rich(&again, "keep");
    host.write(
        "images/table.json",
        b"{\"version\":99,\"images\":{},\"references\":{}}",
    );
    assert!(
        Store::open(&host.path("images")).is_err(),
        "a newer table is not swept away"
    );
    assert_eq!(count_files(&host.path("images/layers")), 1);
}

#[test]
fn imports_at_once_do_not_disturb_each_other() {
    let host = Host::new();
    let path = host.path("images");
    std::thread::scope(|s| {
        for n in 0..6 {
            let path = path.clone();
            s.spawn(move || {
                let store = Store::open(&path).unwrap();
                let base = Tar::new().file("base", b"same").done();
                let own = Tar::new().file("own", n.to_string().as_bytes()).done();
                let tar = tar_of(&layout(&[base, own], Some(&format!("p.test/i:{n}"))));
                store
                    .import(Source::Reader(&mut &tar[..]), &ImportOptions::default())
                    .unwrap();
                if n % 2 == 0 {
                    store
                        .remove(&format!("p.test/i:{n}"), &HashSet::new())
                        .unwrap();
                }
            });
        }
    });
    let store = Store::open(&path).unwrap();
    assert_eq!(store.list().unwrap().len(), 3);
    assert_eq!(count_files(&path.join("layers")), 4);
    for n in [1, 3, 5] {
        let image = store.resolve(&format!("p.test/i:{n}")).unwrap();
        assert_eq!(
            std::fs::read(image.layers[1].path.join("own")).unwrap(),
            n.to_string().as_bytes()
        );
    }
}

#[test]
fn builtin_image_is_made_once_and_upgraded() {
    let host = Host::new();
    let make = |data: &[u8]| {
        let file = |path, mode, content| BuiltinFile {
            path,
            mode,
            content,
        };
        let files = [
            file("bin/toolbox", 0o755, BuiltinContent::File(data)),
            file("bin/sleep", 0o755, BuiltinContent::HardLink("bin/toolbox")),
            file("tmp", 0o1777, BuiltinContent::Dir),
            file("sbin", 0o777, BuiltinContent::Symlink("bin")),
        ];
        let config = RootfsConfig {
            cmd: vec!["/bin/toolbox".into()],
            ..RootfsConfig::default()
        };
        host.store
            .ensure_builtin("rkube.local/toolbox", None, &files, &config)
            .unwrap()
    };
    let one = make(b"one");
    assert_eq!(one.reference, "rkube.local/toolbox:latest");
    let d = &one.layers[0].path;
    assert_eq!(std::fs::read(d.join("sbin/sleep")).unwrap(), b"one");
    assert_eq!(
        d.join("tmp").metadata().unwrap().permissions().mode() & 0o7777,
        0o1777
    );
    let table = || {
        std::fs::metadata(host.path("images/table.json"))
            .unwrap()
            .ino()
    };
    let before = table();
    assert_eq!(make(b"one").id, one.id);
    assert_eq!(table(), before, "nothing is written the second time");
    let two = make(b"two");
    assert_ne!(two.id, one.id);
    assert_eq!(host.store.list().unwrap().len(), 1, "the old one is gone");
    assert!(!d.exists());
    // In use it stays.
    let snaps = Snapshots::open(&host.path("c")).unwrap();
    snaps.create(&host.store, "u", &two).unwrap();
    make(b"three");
    assert_eq!(host.store.list().unwrap().len(), 2);
    assert!(two.layers[0].path.exists());
}

#[test]
fn directories_become_images() {
    let host = Host::new();
    host.write("tree/etc/a", b"a");
    std::fs::hard_link(host.path("tree/etc/a"), host.path("tree/etc/b")).unwrap();
    std::os::unix::fs::symlink("../../outside", host.path("tree/etc/link")).unwrap();
    let long = "n".repeat(200);
    host.write(&format!("tree/{long}/deep"), &vec![7; 100_000]);
    std::os::unix::fs::chown(host.path("tree/etc/a"), Some(5_000_000), Some(6)).unwrap();
    rustix::fs::setxattr(
        host.path("tree/etc/a"),
        "user.k",
        b"v",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    host.store
        .import(Source::Path(&host.path("tree")), &named("tree"))
        .unwrap();
    let d = diff(&host.store, "tree", 0);
    let a = d.join("etc/a").metadata().unwrap();
    assert_eq!((a.uid(), a.gid(), a.nlink()), (5_000_000, 6, 2));
    assert_eq!(
        d.join("etc/link").read_link().unwrap().to_str(),
        Some("../../outside")
    );
    assert_eq!(
        std::fs::read(d.join(long).join("deep")).unwrap(),
        vec![7; 100_000]
    );
    let mut buf = [0; 8];
    assert_eq!(
        rustix::fs::getxattr(d.join("etc/a"), "user.k", &mut buf[..]),
        Ok(1)
    );
}
