//! Images for user namespaces, by every way that this kernel has.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command};

use common::{Host, Tar, layout, read_at, tar_of};
use rkube_image::{
    IdMap, Image, ImportOptions, MountOptions, OverlayMethod, Snapshots, Source, shift_owners,
};
use rustix::fs::{AtFlags, OFlags};

const FIRST: u32 = 800_000_000;

/// A process that holds a user namespace with a map.
struct Holder(Child);

impl Holder {
    fn new() -> Self {
        let child = Command::new("unshare")
            .args(["--user", "sleep", "1000"])
            .spawn();
        let holder = Self(child.unwrap());
        let own = std::fs::read_link("/proc/self/ns/user").unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while std::fs::read_link(holder.path("ns/user")).unwrap() == own {
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        for file in ["uid_map", "gid_map"] {
            std::fs::write(holder.path(file), format!("0 {FIRST} 65536")).unwrap();
        }
        holder
    }

    fn path(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.0.id())
    }

    fn namespace(&self) -> OwnedFd {
        std::fs::File::open(self.path("ns/user")).unwrap().into()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn image(host: &Host) -> Image {
    let layers: Vec<Vec<u8>> = (0..3)
        .map(|i| {
            let mut t = Tar::new();
            t.file(&format!("f{i}"), i.to_string().as_bytes())
                .file("top", i.to_string().as_bytes());
            t.done()
        })
        .collect();
    let tar = tar_of(&layout(&layers, Some("many:layers")));
    let source = Source::Reader(&mut &tar[..]);
    host.store
        .import(source, &ImportOptions::default())
        .unwrap();
    host.store.resolve("many:layers").unwrap()
}

fn owner(root: &OwnedFd, name: &str) -> (u32, u32) {
    let stat = rustix::fs::statat(root, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    (stat.st_uid, stat.st_gid)
}

#[test]
fn owners_are_those_of_the_range() {
    let host = Host::new();
    let image = image(&host);
    let snaps = Snapshots::open(&host.path("containers")).unwrap();
    let holder = Holder::new();
    let namespace = holder.namespace();
    let all = [
        OverlayMethod::LowerFd,
        OverlayMethod::LowerPath,
        OverlayMethod::Classic,
    ];
    let probed = all
        .iter()
        .position(|m| *m == OverlayMethod::probed())
        .unwrap();
    for (method, by_hand) in all[probed..].iter().flat_map(|m| [(*m, false), (*m, true)]) {
        let id = format!("{method:?}-{by_hand}");
        let snap = snaps.create(&host.store, &id, &image).unwrap();
        let opts = MountOptions {
            method: Some(method),
            volatile: true,
            metacopy: by_hand,
            ..MountOptions::default()
        };
        let root = if by_hand {
            let root = snap.mount(&image, opts).unwrap();
            shift_owners(root.as_fd(), FIRST, 65536).unwrap();
            root
        } else {
            let map = IdMap {
                namespace: namespace.as_fd(),
                first: FIRST,
                count: 65536,
            };
            snap.mount_mapped(&image, opts, map).unwrap().0
        };
        for name in [".", "f0", "f2", "top"] {
            assert_eq!(owner(&root, name), (FIRST, FIRST), "{id}: {name}");
        }
        assert_eq!(read_at(&root, "top").unwrap(), b"2", "{id}");
        // What a process of the range changes has its ids in the upper.
        let file = rustix::fs::openat(
            &root,
            "f1",
            OFlags::WRONLY | OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        );
        rustix::io::write(file.unwrap(), b"9").unwrap();
        let upper = std::fs::metadata(snap.upper.join("f1")).unwrap();
        assert_eq!(upper.uid(), FIRST, "{id}");
        let layer = std::fs::metadata(image.layers[1].path.join("f1")).unwrap();
        assert_eq!(layer.uid(), 0, "layers never change");
        drop(root);
        snaps.remove(&host.store, &id).unwrap();
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !mounts.contains(&host.path("").display().to_string()),
        "{mounts}"
    );
}
