//! Copies into and out of a container's root: what arrives, and what a
//! hostile container or archive gets nobody to do.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rkube_image::copy::{CopyError, Owner, Place, Source, Target, pack, unpack};
use rustix::fs::{CWD, Mode, OFlags, RenameFlags};

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

fn container(root: &Path, first_id: u32) -> Place {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Place::Container {
        root: rustix::fs::open(root, flags, Mode::empty()).expect("open the root"),
        first_id,
    }
}

/// Copies as `rkube cp` does; what was left out comes back.
fn copied(
    from: Place,
    source: &[u8],
    to: Place,
    target: &[u8],
    owner: Owner,
) -> Result<Vec<String>, CopyError> {
    let source = Source::open(from, source)?;
    let (target, base) = Target::of_copy(to, target, owner, &source)?;
    let mut archive = Vec::new();
    let mut notes = Vec::new();
    pack(&source, &base, &mut archive, |n| notes.push(n))?;
    unpack(&target, archive.as_slice(), |n| notes.push(n))?;
    Ok(notes)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("stat").mode() & 0o7777
}

#[test]
fn trees_arrive_whole() {
    let temp = tempfile::tempdir().expect("temp dir");
    let (here, root) = (temp.path().join("here"), temp.path().join("root"));
    fs::create_dir_all(here.join("app/conf")).expect("directories");
    fs::create_dir_all(root.join("srv")).expect("directories");
    fs::write(here.join("app/conf/a"), b"content").expect("write");
    fs::write(here.join("app/empty"), b"").expect("write");
    fs::write(here.join("app/big"), vec![7_u8; 300_001]).expect("write");
    symlink("conf/a", here.join("app/link")).expect("symlink");
    let set = |path: &str, mode| {
        fs::set_permissions(here.join(path), fs::Permissions::from_mode(mode)).expect("chmod");
    };
    set("app/conf/a", 0o4751);
    set("app/conf", 0o500);
    let copied_to = |target: &str| {
        let source = here.join("app");
        let to = container(&root, 0);
        copied(
            Place::Host,
            bytes(&source),
            to,
            target.as_bytes(),
            Owner::Fixed(11, 12),
        )
    };
    // Into a directory that is there, under a new name, and its content alone.
    copied_to("/srv").expect("copied");
    copied_to("/srv/new").expect("copied");
    for base in ["srv/app", "srv/new"] {
        let at = root.join(base);
        assert_eq!(fs::read(at.join("conf/a")).expect("read"), b"content");
        assert_eq!(fs::read(at.join("empty")).expect("read"), b"");
        assert_eq!(fs::read(at.join("big")).expect("read").len(), 300_001);
        let link = fs::read_link(at.join("link")).expect("a link");
        assert_eq!(link, Path::new("conf/a"));
        // Another owner's set-user-id bit does not come along.
        assert_eq!(
            (mode(&at.join("conf/a")), mode(&at.join("conf"))),
            (0o751, 0o500)
        );
        let stat = fs::metadata(at.join("conf/a")).expect("stat");
        assert_eq!((stat.uid(), stat.gid()), (11, 12));
        let wanted = fs::metadata(here.join("app/conf/a")).expect("stat").mtime();
        assert_eq!(stat.mtime(), wanted);
    }
    // And back, archived: owners and all mode bits.
    let out = temp.path().join("out");
    fs::create_dir(&out).expect("directory");
    let from = container(&root, 0);
    copied(from, b"/srv/app/.", Place::Host, bytes(&out), Owner::Kept).expect("copied");
    let stat = fs::metadata(out.join("conf/a")).expect("stat");
    assert_eq!(
        (stat.uid(), stat.gid(), stat.mode() & 0o7777),
        (11, 12, 0o751)
    );
    assert!(!out.join("app").exists());
}

#[test]
fn destinations_are_those_of_cp() {
    let temp = tempfile::tempdir().expect("temp dir");
    let root = temp.path().join("root");
    fs::create_dir_all(root.join("dir")).expect("directories");
    fs::create_dir_all(temp.path().join("tree")).expect("directories");
    fs::write(temp.path().join("tree/f"), b"f").expect("write");
    fs::write(temp.path().join("file"), b"new").expect("write");
    fs::write(root.join("old"), b"old").expect("write");
    let cp = |source: &str, target: &str| {
        let source = temp.path().join(source);
        let owner = Owner::Fixed(0, 0);
        copied(
            Place::Host,
            bytes(&source),
            container(&root, 0),
            target.as_bytes(),
            owner,
        )
    };
    cp("file", "/old").expect("replaces");
    assert_eq!(fs::read(root.join("old")).expect("read"), b"new");
    cp("file", "dir").expect("paths begin at the root");
    assert_eq!(fs::read(root.join("dir/file")).expect("read"), b"new");
    cp("file", "/dir/other").expect("another name");
    assert!(root.join("dir/other").is_file());
    for (source, target, what) in [
        ("file", "/none/", "no such directory"),
        ("file", "/none/x", "open /none"),
        ("tree", "/old", "no directory"),
        ("missing", "/dir", "missing"),
    ] {
        let error = cp(source, target).expect_err(target).to_string();
        assert!(error.contains(what), "{source} to {target}: {error}");
    }
    // A directory is not replaced by a file.
    fs::create_dir(root.join("dir/f")).expect("directory");
    let error = cp("tree/f", "/dir").expect_err("it is a directory");
    assert!(error.to_string().contains("is a directory"), "{error}");
}

#[test]
fn links_of_a_container_lead_nowhere() {
    let temp = tempfile::tempdir().expect("temp dir");
    let (root, outside) = (temp.path().join("root"), temp.path().join("outside"));
    fs::create_dir_all(root.join("in")).expect("directories");
    fs::create_dir(&outside).expect("directory");
    fs::write(outside.join("secret"), b"secret").expect("write");
    fs::write(temp.path().join("file"), b"new").expect("write");
    symlink(&outside, root.join("abs")).expect("symlink");
    symlink("../../../../../../..", root.join("up")).expect("symlink");
    symlink("/proc/self/root", root.join("magic")).expect("symlink");
    let file = temp.path().join("file");
    let into = |target: String| {
        let owner = Owner::Fixed(0, 0);
        copied(
            Place::Host,
            bytes(&file),
            container(&root, 0),
            target.as_bytes(),
            owner,
        )
    };
    let there = outside.display();
    assert!(into("/abs".to_owned()).is_err() || !outside.join("file").exists());
    assert!(into(format!("/up{there}/secret")).is_err());
    assert!(into("/magic/x".to_owned()).is_err());
    into("/up/in/x".to_owned()).expect("it ends at the root");
    assert!(root.join("in/x").is_file());
    assert_eq!(fs::read_dir(&outside).expect("list").count(), 1);
    assert_eq!(fs::read(outside.join("secret")).expect("read"), b"secret");
    for source in ["/abs/secret".to_owned(), format!("/up{there}/secret")] {
        let error = Source::open(container(&root, 0), source.as_bytes());
        assert!(error.is_err(), "{source} was opened");
    }
    // As part of a tree they stay links, and are not followed here either.
    let out = temp.path().join("out");
    fs::create_dir(&out).expect("directory");
    let kept = Owner::Fixed(0, 0);
    copied(container(&root, 0), b"/.", Place::Host, bytes(&out), kept).expect("copied");
    assert!(out.join("magic").is_symlink() && out.join("in/x").is_file());
}

/// An archive of entries: name, type, link.
fn archive(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, link) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        let data: &[u8] = if kind.is_file() { b"data" } else { b"" };
        header.set_size(data.len() as u64);
        let field = header.as_old_mut();
        field.name[..name.len()].copy_from_slice(name.as_bytes());
        field.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        builder.append(&header, data).expect("append");
    }
    builder.into_inner().expect("finish")
}

#[test]
fn archives_make_nothing_outside() {
    use tar::EntryType as T;
    let temp = tempfile::tempdir().expect("temp dir");
    let outside = temp.path().join("outside");
    fs::create_dir(&outside).expect("directory");
    fs::write(outside.join("secret"), b"secret").expect("write");
    let there = outside.to_str().expect("UTF-8").to_owned();
    let secret = format!("{there}/secret");
    let hostile = [
        archive(&[("../outside/x", T::Regular, "")]),
        archive(&[("a/../../outside/x", T::Regular, "")]),
        archive(&[("a", T::Symlink, &there), ("a/x", T::Regular, "")]),
        archive(&[("a", T::Symlink, ".."), ("a/outside/x", T::Regular, "")]),
        archive(&[("a", T::Symlink, &secret), ("b", T::Link, "a")]),
        archive(&[("b", T::Link, "../outside/secret")]),
    ];
    for (n, bytes_of) in hostile.iter().enumerate() {
        let dir = temp.path().join(format!("host{n}"));
        fs::create_dir(&dir).expect("directory");
        let target = Target::directory(Place::Host, bytes(&dir), Owner::Fixed(0, 0));
        let result = unpack(&target.expect("target"), bytes_of.as_slice(), |_| {});
        assert!(result.is_err(), "archive {n} was taken");
        assert_eq!(
            fs::read_dir(&outside).expect("list").count(),
            1,
            "archive {n}"
        );
        let stat = fs::metadata(outside.join("secret")).expect("stat");
        assert_eq!((stat.nlink(), stat.len()), (1, 6), "archive {n}");
    }
    // What follows a link is replaced, not written through.
    let dir = temp.path().join("links");
    fs::create_dir(&dir).expect("directory");
    let twice = archive(&[("a", T::Symlink, &secret), ("a", T::Regular, "")]);
    let target = Target::directory(Place::Host, bytes(&dir), Owner::Fixed(0, 0));
    unpack(&target.expect("target"), twice.as_slice(), |_| {}).expect("taken");
    assert_eq!(fs::read(dir.join("a")).expect("read"), b"data");
    assert_eq!(fs::read(outside.join("secret")).expect("read"), b"secret");
    // Device nodes and FIFOs are named and left out.
    let odd = archive(&[
        ("dev", T::Char, ""),
        ("fifo", T::Fifo, ""),
        ("f", T::Regular, ""),
    ]);
    let mut notes = Vec::new();
    let target = Target::directory(Place::Host, bytes(&dir), Owner::Kept).expect("target");
    unpack(&target, odd.as_slice(), |n| notes.push(n)).expect("taken");
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(dir.join("f").is_file() && !dir.join("dev").exists());
    for cut in [700, 1100] {
        let whole = archive(&[("f", T::Regular, ""), ("g", T::Regular, "")]);
        assert!(
            unpack(&target, &whole[..cut], |_| {}).is_err(),
            "{cut} bytes"
        );
    }
}

/// Whoever lives in the container swaps a directory for a link to the outside
/// all the while.
#[test]
fn a_race_for_a_link_is_lost() {
    const ROUNDS: usize = 400;
    let temp = tempfile::tempdir().expect("temp dir");
    let (root, outside) = (temp.path().join("root"), temp.path().join("outside"));
    fs::create_dir_all(root.join("d")).expect("directories");
    fs::create_dir(&outside).expect("directory");
    fs::write(outside.join("f"), b"secret").expect("write");
    fs::write(root.join("d/f"), b"inside").expect("write");
    symlink(&outside, root.join("l")).expect("symlink");
    let file = temp.path().join("f");
    fs::write(&file, b"new").expect("write");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (d, l) = (root.join("d"), root.join("l"));
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(CWD, &d, CWD, &l, RenameFlags::EXCHANGE)
                    .expect("exchange");
            }
        });
        let mut arrived = 0;
        for round in 0..ROUNDS {
            let owner = Owner::Fixed(0, 0);
            // Either it arrives inside or it does not.
            let into = copied(
                Place::Host,
                bytes(&file),
                container(&root, 0),
                b"/d/f",
                owner,
            );
            arrived += usize::from(into.is_ok());
            assert_eq!(
                fs::read(outside.join("f")).expect("read"),
                b"secret",
                "round {round}"
            );
            let Ok(source) = Source::open(container(&root, 0), b"/.") else {
                continue;
            };
            let mut archive = Vec::new();
            let _ = pack(&source, b"", &mut archive, |_| {});
            let has = archive.windows(6).any(|w| w == b"secret");
            assert!(!has, "round {round}: read what is outside");
        }
        stop.store(true, Ordering::Relaxed);
        assert!(arrived > 0, "no copy met the directory");
    });
    assert_eq!(fs::read_dir(&outside).expect("list").count(), 1);
}

#[test]
fn files_without_a_size_and_owners_of_a_user_namespace() {
    let temp = tempfile::tempdir().expect("temp dir");
    let out = temp.path().join("comm");
    let owner = Owner::Fixed(0, 0);
    copied(
        Place::Host,
        b"/proc/self/comm",
        Place::Host,
        bytes(&out),
        owner,
    )
    .expect("copied");
    assert!(!fs::read(&out).expect("read").is_empty());
    let root = temp.path().join("root");
    fs::create_dir(&root).expect("directory");
    let mut file = fs::File::create(temp.path().join("f")).expect("create");
    file.write_all(b"x").expect("write");
    let file = temp.path().join("f");
    let to = container(&root, 200_000);
    copied(Place::Host, bytes(&file), to, b"/f", Owner::Fixed(5, 6)).expect("copied");
    let stat = fs::metadata(root.join("f")).expect("stat");
    assert_eq!((stat.uid(), stat.gid()), (200_005, 200_006));
    let back = temp.path().join("back");
    copied(
        container(&root, 200_000),
        b"/f",
        Place::Host,
        bytes(&back),
        Owner::Kept,
    )
    .expect("copied");
    let stat = fs::metadata(&back).expect("stat");
    assert_eq!((stat.uid(), stat.gid()), (5, 6));
}
