//! What is on the disk: how much of it, and what a power cut may do to it.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::{E, Host, Tar};
use rkube_image::{Format, ImportOptions, Source, Store};

fn import(store: &Store, name: &str, archive: &[u8]) {
    let options = ImportOptions {
        reference: Some(name.into()),
        format: Format::Rootfs,
        ..ImportOptions::default()
    };
    store
        .import(Source::Reader(&mut &archive[..]), &options)
        .unwrap();
}

/// As `du` counts: blocks, each file once whatever its names.
fn du(path: &Path, seen: &mut HashSet<u64>) -> u64 {
    let meta = path.symlink_metadata().unwrap();
    let mut sum = if seen.insert(meta.ino()) {
        meta.blocks() * 512
    } else {
        0
    };
    if meta.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            sum += du(&entry.unwrap().path(), seen);
        }
    }
    sum
}

fn trees(host: &Host) -> u64 {
    let layers = std::fs::read_dir(host.path("images/layers")).unwrap();
    let diff = layers.map(|l| l.unwrap().path().join("diff"));
    diff.map(|d| du(&d, &mut HashSet::new())).sum()
}

fn blobs(host: &Host) -> u64 {
    let all = std::fs::read_dir(host.path("images/blobs/sha256")).unwrap();
    all.map(|b| b.unwrap().metadata().unwrap().len()).sum()
}

/// Files of all sizes, links, devices, attributes, holes, and entries that
/// replace others.
fn odd_layer() -> Vec<u8> {
    let mut t = Tar::new();
    t.dir("d").dir("implicit/by/name");
    for (i, size) in [0, 1, 4095, 4096, 4097, 100_000].into_iter().enumerate() {
        t.file(&format!("d/f{i}"), &vec![7; size]);
    }
    t.file("not/named/before", b"x");
    t.hardlink("d/h", "d/f5").hardlink("d/h2", "d/f5");
    t.symlink("d/short", "f1")
        .symlink("d/long", &"t/".repeat(45));
    t.pax("SCHILY.xattr.user.big", &[b'x'; 3000])
        .file("d/x", b"with an attribute");
    t.pax("GNU.sparse.map", b"0,4,100000,4")
        .pax("GNU.sparse.size", b"200000")
        .file("d/holes", b"12345678");
    t.add(&E {
        kind: b'3',
        name: b"null",
        dev: (1, 3),
        ..E::default()
    });
    // One of three names goes, a file goes, a tree with both names of a file.
    t.file("d/h", b"short").symlink("d/f4", "f1");
    t.dir("tree/a").file("tree/a/f", &[1; 50_000]);
    t.hardlink("tree/g", "tree/a/f")
        .file("tree/a/other", &[1; 9000]);
    t.hardlink("kept", "tree/a/other")
        .file("tree", b"now a file");
    t.file("d/f3", &[2; 8192]).file("d/f3", &[2; 100]);
    let many: Vec<String> = (0..400).map(|i| format!("many/{i:0>200}")).collect();
    for name in &many {
        t.pax("path", name.as_bytes()).file("short", b"1");
    }
    t.done()
}

#[test]
fn disk_use_is_what_the_file_system_says() {
    let host = Host::new();
    let usage = || host.store.disk_usage().unwrap();
    import(&host.store, "odd:1", &odd_layer());
    assert_eq!(
        (usage().layer_bytes, usage().blob_bytes),
        (trees(&host), blobs(&host))
    );
    // The same layer again, and one more beside it: what is shared counts once.
    import(&host.store, "odd:2", &odd_layer());
    let mut other = Tar::new();
    other.file("f", &[3; 70_000]);
    import(&host.store, "other:1", &other.done());
    let all = usage();
    assert_eq!(
        (all.layer_bytes, all.blob_bytes),
        (trees(&host), blobs(&host))
    );
    assert_eq!(all.reclaimable_bytes, all.layer_bytes + all.blob_bytes);
    // By image: shared parts are told apart.
    let list = host.store.list().unwrap();
    let sum: u64 = list.iter().map(|i| i.size_bytes).sum();
    assert_eq!(list.len(), 2, "two names of one image: {list:?}");
    assert_eq!(sum, all.layer_bytes + all.blob_bytes);
    assert!(list.iter().all(|i| i.shared_bytes == 0));
    host.store.prune(true, &HashSet::new()).unwrap();
    let none = usage();
    assert_eq!((none.layer_bytes, none.blob_bytes), (0, 0));
    assert_eq!((trees(&host), blobs(&host)), (0, 0));
}

/// Files and directories of a part of the store.
fn names(host: &Host, part: &str) -> usize {
    std::fs::read_dir(host.path(part)).unwrap().count()
}

#[test]
fn what_goes_while_the_store_is_read_goes_when_that_is_done() {
    let host = Host::new();
    import(&host.store, "odd:1", &odd_layer());
    let mut other = Tar::new();
    other.file("f", &[3; 70_000]);
    import(&host.store, "other:1", &other.done());
    let before = host.store.disk_usage().unwrap();
    let export = host.store.export("other:1").unwrap();
    host.store.remove("odd:1", &HashSet::new()).unwrap();
    let during = host.store.disk_usage().unwrap();
    let sum = |u: &rkube_image::DiskUsage| u.blob_bytes + u.layer_bytes + u.unswept_bytes;
    assert_eq!(sum(&during), sum(&before));
    assert_eq!(names(&host, "images/layers"), 2);
    // A collection that cannot remove files does not take more images for it.
    let collected = host
        .store
        .collect(&rkube_image::GcPolicy::default())
        .unwrap();
    assert!(collected.removed.deleted.is_empty());
    drop(export);
    assert_eq!(names(&host, "images/layers"), 1);
    assert_eq!(host.store.disk_usage().unwrap().unswept_bytes, 0);
    assert!(!host.path("images/unswept").exists());
    assert!(sound(&host.store, "other:1"));
}

/// More files than are synced one by one.
fn large_layer() -> Vec<u8> {
    let mut t = Tar::new();
    for i in 0..200 {
        t.file(&format!("d/{i}"), format!("content {i}").as_bytes());
    }
    t.done()
}

/// Makes the table believe that all was done in an earlier boot.
fn boot_again(host: &Host) {
    let path = host.path("images/table.json");
    let now = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace(now.trim(), "an-earlier-boot")).unwrap();
}

fn sound(store: &Store, name: &str) -> bool {
    store.verify(name).unwrap().problems.is_empty()
}

fn tree(host: &Host) -> std::path::PathBuf {
    host.store.resolve("large").unwrap().layers[0].path.clone()
}

#[test]
fn a_tree_that_a_power_cut_has_torn_is_made_anew() {
    let host = Host::new();
    import(&host.store, "large", &large_layer());
    let diff = tree(&host);
    // What a file system may make of files that were never synced.
    let tear = || {
        std::fs::write(diff.join("d/0"), "").unwrap();
        std::fs::remove_file(diff.join("d/1")).unwrap();
        std::fs::write(diff.join("d/2"), [0; 9]).unwrap();
    };
    tear();
    // In the same boot memory has what was written.
    Store::open(&host.path("images")).unwrap();
    assert!(!sound(&host.store, "large"));
    boot_again(&host);
    let again = Store::open(&host.path("images")).unwrap();
    assert!(sound(&again, "large"));
    // Its directory never came to the disk.
    boot_again(&host);
    std::fs::remove_dir_all(diff.parent().unwrap()).unwrap();
    let again = Store::open(&host.path("images")).unwrap();
    assert!(sound(&again, "large"));
    // Once it is on the disk, nothing is made anew.
    again.flush().unwrap();
    boot_again(&host);
    tear();
    let again = Store::open(&host.path("images")).unwrap();
    assert!(!sound(&again, "large"));
    assert_eq!(common::count_files(&host.path("images/tmp")), 0);
}

#[test]
fn an_image_whose_blob_is_damaged_too_is_given_up_and_others_stay() {
    let host = Host::new();
    import(&host.store, "large", &large_layer());
    let mut t = Tar::new();
    t.file("f", b"small");
    import(&host.store, "small", &t.done());
    let manifest = host.store.inspect("large").unwrap().manifest;
    let digest = manifest["layers"][0]["digest"].as_str().unwrap();
    let blob = host.path("images/blobs/sha256").join(&digest[7..]);
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[600] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    boot_again(&host);
    let again = Store::open(&host.path("images")).unwrap();
    assert!(again.resolve("large").is_err() && !blob.exists());
    assert!(sound(&again, "small"));
    // It can be brought again.
    import(&again, "large", &large_layer());
    assert!(sound(&again, "large"));
}
