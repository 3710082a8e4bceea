//! The cache: hits, damage, bounds, several writers.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Instant;

use oci_spec::runtime::{
    Arch as OciArch, Capabilities, LinuxSeccomp, LinuxSeccompAction, LinuxSyscall,
};
use rkube_seccomp::{Arch, Cache, MAX_ENTRIES, Program, Source, default_profile};
use tempfile::TempDir;

fn cache() -> (TempDir, Cache) {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(&dir.path().join("a/seccomp")).unwrap();
    (dir, cache)
}

fn entries(dir: &TempDir) -> Vec<PathBuf> {
    let list = fs::read_dir(dir.path().join("a/seccomp")).unwrap();
    list.map(|entry| entry.unwrap().path()).collect()
}

/// A profile with a warning, different for each number.
fn numbered(errno: u32) -> LinuxSeccomp {
    let mut rule = LinuxSyscall::default();
    rule.set_names(vec!["mkdir".into(), "nonsense".into()])
        .set_action(LinuxSeccompAction::ScmpActErrno)
        .set_errno_ret(Some(errno));
    let mut spec = LinuxSeccomp::default();
    spec.set_syscalls(Some(vec![rule]))
        .set_architectures(Some(vec![OciArch::ScmpArchX86]));
    spec
}

#[test]
fn second_time_from_the_cache_warnings_included() {
    let (dir, cache) = cache();
    let first = cache.program(&numbered(5), Arch::X86_64).unwrap();
    assert_eq!(first.source, Source::Compiled);
    assert!(first.unsaved.is_none());
    assert_eq!(first.program.warnings.len(), 1);
    let second = cache.program(&numbered(5), Arch::X86_64).unwrap();
    assert_eq!(second.source, Source::Cache);
    assert_eq!(second.program, first.program);
    for other in [
        cache.program(&numbered(6), Arch::X86_64),
        cache.program(&numbered(5), Arch::X86),
    ] {
        assert_eq!(other.unwrap().source, Source::Compiled);
    }
    let mode = |path: &PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert!(entries(&dir).iter().all(|path| mode(path) == 0o600));
    assert_eq!(mode(&dir.path().join("a/seccomp")), 0o700);
}

#[test]
fn damage_is_seen_and_mended() {
    let (dir, cache) = cache();
    let good = cache.program(&numbered(5), Arch::X86_64).unwrap().program;
    let path = entries(&dir).remove(0);
    let data = fs::read(&path).unwrap();
    let mut damaged: Vec<Vec<u8>> = vec![Vec::new(), data[..data.len() - 8].to_vec()];
    for at in [0, 8, 45, data.len() - 1] {
        let mut copy = data.clone();
        copy[at] ^= 4;
        damaged.push(copy);
    }
    damaged.push([data.clone(), vec![0; 1 << 20]].concat());
    for bytes in damaged {
        fs::write(&path, bytes).unwrap();
        let mended = cache.program(&numbered(5), Arch::X86_64).unwrap();
        assert_eq!(mended.source, Source::Recompiled);
        assert_eq!(mended.program, good);
        assert_eq!(fs::read(&path).unwrap(), data);
    }
}

#[test]
fn entries_are_bounded() {
    let (dir, cache) = cache();
    // What a writer that died left behind counts too.
    fs::write(dir.path().join("a/seccomp/tmp-1-1"), "half").unwrap();
    for errno in 1..=u32::try_from(MAX_ENTRIES).unwrap() + 20 {
        cache.program(&numbered(errno), Arch::X86_64).unwrap();
    }
    let names = entries(&dir);
    assert_eq!(names.len(), MAX_ENTRIES);
    assert!(names.iter().all(|path| path.extension().is_some()));
}

#[test]
fn a_cache_that_cannot_be_written_is_no_obstacle() {
    let (dir, cache) = cache();
    fs::remove_dir_all(dir.path().join("a")).unwrap();
    let cached = cache.program(&numbered(5), Arch::X86_64).unwrap();
    assert_eq!(cached.source, Source::Compiled);
    assert!(cached.unsaved.is_some());
    fs::write(dir.path().join("file"), "").unwrap();
    assert!(Cache::open(&dir.path().join("file/x")).is_err());
}

#[test]
fn many_at_once() {
    let (_dir, cache) = cache();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for errno in 1..40 {
                    let cached = cache.program(&numbered(errno), Arch::X86_64).unwrap();
                    assert!(cached.unsaved.is_none(), "{:?}", cached.unsaved);
                    assert_ne!(cached.source, Source::Recompiled);
                    let fresh = Program::compile(&numbered(errno), Arch::X86_64).unwrap();
                    assert_eq!(cached.program, fresh);
                }
            });
        }
    });
}

#[test]
fn hits_are_quick() {
    let (_dir, cache) = cache();
    let spec = default_profile(&Capabilities::new(), Arch::X86_64);
    let begin = Instant::now();
    cache.program(&spec, Arch::X86_64).unwrap();
    let cold = begin.elapsed();
    let begin = Instant::now();
    for _ in 0..100 {
        let cached = cache.program(&spec, Arch::X86_64).unwrap();
        assert_eq!(cached.source, Source::Cache);
    }
    println!(
        "default profile: cold {cold:?}, cached {:?}",
        begin.elapsed() / 100
    );
}
