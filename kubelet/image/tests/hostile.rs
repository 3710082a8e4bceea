//! Archives that want more than to be unpacked.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{E, Host, Tar, count_files};
use proptest::prelude::*;
use rkube_image::{Format, ImportOptions, Source};

fn rootfs(name: &str) -> ImportOptions {
    ImportOptions {
        reference: Some(name.into()),
        format: Format::Rootfs,
        ..ImportOptions::default()
    }
}

type Case = (&'static str, Box<dyn Fn(&mut Tar)>);

fn case(name: &'static str, f: impl Fn(&mut Tar) + 'static) -> Case {
    (name, Box::new(f))
}

fn header(t: &mut Tar, e: &E<'_>, size: u64, edit: impl Fn(&mut [u8; 512])) {
    let mut h = Tar::raw_header(e, size);
    edit(&mut h);
    let sealed = Tar::seal(h);
    t.block(sealed, b"");
}

fn refused() -> Vec<Case> {
    vec![
        case("absolute path", |t| {
            t.file("/escape", b"x");
        }),
        case("dot dot", |t| {
            t.file("../escape", b"x");
        }),
        case("dot dot inside", |t| {
            t.file("a/../../escape", b"x");
        }),
        case("dot dot alone", |t| {
            t.dir("..");
        }),
        case("through a symlink", |t| {
            t.symlink("l", "..").file("l/escape", b"x");
        }),
        case("through an absolute symlink", |t| {
            t.symlink("l", "/").file("l/tmp/escape", b"x");
        }),
        case("through a symlink inside", |t| {
            t.dir("d").symlink("l", "d").file("l/x", b"x");
        }),
        case("directory through a symlink", |t| {
            t.symlink("l", "..").dir("l/escape");
        }),
        case("whiteout through a symlink", |t| {
            t.symlink("l", "..").file("l/.wh.escape", b"");
        }),
        case("opaque through a symlink", |t| {
            t.symlink("l", "..").file("l/.wh..wh..opq", b"");
        }),
        case("symlink through a symlink", |t| {
            t.symlink("l", "..").symlink("l/escape", "x");
        }),
        case("below a file", |t| {
            t.file("f", b"").file("f/x", b"");
        }),
        case("hard link out", |t| {
            t.hardlink("h", "../secret");
        }),
        case("absolute hard link", |t| {
            t.hardlink("h", "/etc/passwd");
        }),
        case("hard link through a symlink", |t| {
            t.symlink("l", "..").hardlink("h", "l/secret");
        }),
        case("hard link to nothing", |t| {
            t.hardlink("h", "nothing");
        }),
        case("hard link to a later entry", |t| {
            t.hardlink("h", "f").file("f", b"");
        }),
        case("hard link to a directory", |t| {
            t.dir("d").hardlink("h", "d");
        }),
        case("hard link to the root", |t| {
            t.hardlink("h", ".");
        }),
        case("hard link to a whiteout", |t| {
            t.file(".wh.x", b"").hardlink("h", "x");
        }),
        case("hard link in place of its parent", |t| {
            t.dir("d").file("d/f", b"").hardlink("d", "d/f");
        }),
        case("whiteout of dot dot", |t| {
            t.file(".wh...", b"");
        }),
        case("whiteout of dot", |t| {
            t.file(".wh..", b"");
        }),
        case("whiteout of nothing", |t| {
            t.file(".wh.", b"");
        }),
        case("below a whiteout's name", |t| {
            t.file(".wh.d/x", b"");
        }),
        case("the root as a file", |t| {
            t.file("./", b"").file(".", b"x");
        }),
        case("the root as a symlink", |t| {
            t.symlink(".", "..");
        }),
        case("a whiteout device", |t| {
            t.add(&E {
                kind: b'3',
                name: b"x",
                dev: (0, 0),
                ..E::default()
            });
        }),
        case("an empty name", |t| {
            t.file("", b"");
        }),
        case("an empty link", |t| {
            t.symlink("l", "");
        }),
        case("a NUL in a pax path", |t| {
            t.pax("path", b"a\0b").file("x", b"");
        }),
        case("a NUL in an xattr name", |t| {
            t.pax("SCHILY.xattr.user.a\0b", b"").file("x", b"");
        }),
        case("an empty pax path", |t| {
            t.pax("path", b"").file("x", b"");
        }),
        case("a long name", |t| {
            t.pax("path", &[b'n'; 256]).file("x", b"");
        }),
        case("a long path", |t| {
            t.pax("path", "d/".repeat(2100).as_bytes()).dir("x");
        }),
        case("a negative pax size", |t| {
            t.pax("size", b"-1").file("x", b"");
        }),
        case("a huge pax size", |t| {
            t.pax("size", b"99999999999999999999").file("x", b"");
        }),
        case("a large pax size", |t| {
            t.pax("size", b"18446744073709551615").file("x", b"");
        }),
        case("a uid beyond 32 bits", |t| {
            t.pax("uid", b"4294967296").file("x", b"");
        }),
        case("uid -1", |t| {
            t.pax("uid", b"4294967295").file("x", b"");
        }),
        case("a gid that is no number", |t| {
            t.pax("gid", b"0x0").file("x", b"");
        }),
        case("an invalid capability", |t| {
            t.pax("SCHILY.xattr.security.capability", b"root")
                .file("x", b"");
        }),
        case("a huge xattr", |t| {
            t.pax("SCHILY.xattr.user.a", &vec![b'x'; 65_537])
                .file("x", b"");
        }),
        case("too many xattrs", |t| {
            for i in 0..65 {
                t.pax(&format!("SCHILY.xattr.user.{i}"), b"x");
            }
            t.file("x", b"");
        }),
        case("unknown type", |t| {
            t.add(&E {
                kind: b'Z',
                name: b"x",
                ..E::default()
            });
        }),
        case("a multi-volume entry", |t| {
            t.add(&E {
                kind: b'M',
                name: b"x",
                ..E::default()
            });
        }),
        case("a base-256 uid beyond 32 bits", |t| {
            header(
                t,
                &E {
                    name: b"x",
                    ..E::default()
                },
                0,
                |h| {
                    h[108..116].copy_from_slice(&[0x80, 0, 0, 1, 0, 0, 0, 0]);
                },
            );
        }),
        case("a negative size", |t| {
            header(
                t,
                &E {
                    name: b"x",
                    ..E::default()
                },
                0,
                |h| h[124..136].fill(0xff),
            );
        }),
        case("a size that is not there", |t| {
            header(
                t,
                &E {
                    name: b"x",
                    ..E::default()
                },
                1 << 30,
                |_| (),
            );
        }),
        case("an endless long name", |t| {
            header(
                t,
                &E {
                    kind: b'L',
                    name: b"x",
                    ..E::default()
                },
                1 << 32,
                |_| (),
            );
        }),
        case("a device number beyond the kernel's", |t| {
            t.add(&E {
                kind: b'4',
                name: b"x",
                dev: (4096, 0),
                ..E::default()
            });
        }),
        case("a wrong checksum", |t| {
            let h = Tar::raw_header(
                &E {
                    name: b"x",
                    ..E::default()
                },
                0,
            );
            t.block(h, b"");
        }),
        case("an entry behind the end", |t| {
            t.file("a", b"").block([0; 512], b"").file("b", b"");
        }),
        case("an extension without an entry", |t| {
            t.add(&E {
                kind: b'x',
                name: b"pax",
                data: b"8 uid=7\n",
                ..E::default()
            });
        }),
        case("a sparse map beyond the file", |t| {
            t.pax("GNU.sparse.map", b"0,1,100,3")
                .pax("GNU.sparse.size", b"50")
                .file("x", b"1234");
        }),
        case("a sparse map that overlaps", |t| {
            t.pax("GNU.sparse.map", b"0,3,1,1")
                .pax("GNU.sparse.size", b"50")
                .file("x", b"1234");
        }),
        case("a sparse map that overflows", |t| {
            t.pax("GNU.sparse.map", b"1,18446744073709551615")
                .pax("GNU.sparse.size", b"50");
            t.file("x", b"1234");
        }),
        case("a sparse file beyond all sizes", |t| {
            t.pax("GNU.sparse.map", b"0,4")
                .pax("GNU.sparse.size", b"9999999999999999");
            t.file("x", b"1234");
        }),
        case("an endless sparse map", |t| {
            t.pax("GNU.sparse.major", b"1")
                .pax("GNU.sparse.minor", b"0")
                .pax("GNU.sparse.size", b"9");
            t.file("x", b"99999999\n0\n");
        }),
    ]
}

#[test]
fn every_hostile_archive_is_refused_and_nothing_is_written_outside() {
    let host = Host::new();
    host.write("images/secret", b"s");
    let before = std::fs::metadata("/tmp/escape").is_ok();
    for (name, make) in refused() {
        let mut t = Tar::new();
        t.file("first", b"sound");
        make(&mut t);
        let tar = t.done();
        let got = host
            .store
            .import(Source::Reader(&mut &tar[..]), &rootfs("h"));
        let err = got.err().unwrap_or_else(|| panic!("accepted: {name}"));
        assert!(!err.to_string().is_empty());
        assert_eq!(count_files(&host.path("images/tmp")), 0, "{name}");
        assert_eq!(count_files(&host.path("images/layers")), 0, "{name}");
        assert_eq!(count_files(&host.path("images/blobs/sha256")), 0, "{name}");
        let mut names: Vec<_> = std::fs::read_dir(host.path("images"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        names.retain(|n| n != "lock");
        assert_eq!(
            names,
            [
                "blobs", "gc.lock", "layers", "partial", "pins", "secret", "tmp", "used"
            ],
            "{name}"
        );
        assert_eq!(std::fs::metadata("/tmp/escape").is_ok(), before, "{name}");
    }
    assert_eq!(
        std::fs::metadata(host.path("images/secret"))
            .map(|m| std::os::unix::fs::MetadataExt::nlink(&m))
            .unwrap(),
        1
    );
}

#[test]
fn what_looks_odd_and_is_sound_is_kept() {
    let host = Host::new();
    let mut t = Tar::new();
    // Each kind replaced by each, in the order given.
    t.file("a", b"1")
        .dir("a")
        .file("a/in", b"x")
        .file("a", b"2");
    t.dir("d")
        .file("d/x", b"x")
        .symlink("d", "a")
        .dir("d")
        .file("d/y", b"y");
    t.file("l", b"1").hardlink("l2", "l").file("l", b"other");
    t.hardlink("self", "l2").hardlink("self", "self");
    t.symlink("s", "../../..").file("s", b"file now");
    t.file(".wh..wh.plnk/1.2", b"").file(".wh..wh.aufs", b"");
    t.add(&E {
        kind: b'g',
        name: b"global",
        data: b"12 comment=\n",
        ..E::default()
    });
    t.add(&E {
        kind: b'7',
        name: b"contiguous",
        data: b"c",
        ..E::default()
    });
    t.add(&E {
        kind: 0,
        name: b"v7dir/",
        ..E::default()
    });
    t.pax("mtime", b"-5").file("old", b"");
    let tar = t.done();
    host.store
        .import(Source::Reader(&mut &tar[..]), &rootfs("odd"))
        .unwrap();
    let d = common::diff(&host.store, "odd", 0);
    let read = |p: &str| std::fs::read(d.join(p)).unwrap();
    assert_eq!(
        (read("a"), read("d/y"), read("l"), read("l2"), read("s")),
        (
            b"2".to_vec(),
            b"y".to_vec(),
            b"other".to_vec(),
            b"1".to_vec(),
            b"file now".to_vec()
        )
    );
    assert!(!d.join("d/x").exists() && !d.join(".wh..wh.plnk").exists());
    assert_eq!(read("self"), b"1");
    assert!(d.join("v7dir").is_dir() && d.join("contiguous").is_file());
    assert_eq!(
        std::os::unix::fs::MetadataExt::mtime(&d.join("old").metadata().unwrap()),
        -5
    );
}

fn seed() -> Vec<u8> {
    let mut t = Tar::new();
    t.dir("d")
        .file("d/f", b"data")
        .symlink("d/l", "f")
        .hardlink("d/h", "d/f");
    t.pax("SCHILY.xattr.user.a", b"b")
        .pax("mtime", b"1.5")
        .file("d/x", &[7; 700]);
    t.pax("GNU.sparse.map", b"0,4,100,4")
        .pax("GNU.sparse.size", b"200")
        .file("sparse", b"12345678");
    t.file("d/.wh.gone", b"").file("e/.wh..wh..opq", b"");
    t.done()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Changed bytes, fixed checksums or not: an answer, no panic, nothing
    /// left in the staging directory, nothing beside the store.
    #[test]
    fn mutated_archives_never_panic(
        edits in prop::collection::vec((0_usize..12_000, any::<u8>()), 1..12),
        cut in prop::option::of(0_usize..12_000),
        reseal in any::<bool>(),
    ) {
        let host = Host::new();
        let mut tar = seed();
        for (at, byte) in edits {
            let n = tar.len();
            tar[at % n] = byte;
        }
        if reseal {
            for block in tar.chunks_exact_mut(512) {
                if &block[257..262] == b"ustar" {
                    let sealed = Tar::seal(block[..].try_into().unwrap());
                    block.copy_from_slice(&sealed);
                }
            }
        }
        if let Some(cut) = cut {
            tar.truncate(cut);
        }
        let mut opts = rootfs("m");
        opts.max_unpacked_bytes = 1 << 20;
        let _ = host.store.import(Source::Reader(&mut &tar[..]), &opts);
        prop_assert_eq!(count_files(&host.path("images/tmp")), 0);
        prop_assert_eq!(count_files(host.dir.path()), 1);
    }

    #[test]
    fn references_never_panic(text in "\\PC{0,300}") {
        if let Ok(r) = rkube_image::Reference::parse(&text) {
            let again = rkube_image::Reference::parse(&r.to_string());
            prop_assert_eq!(again.ok(), Some(r));
        }
    }
}
