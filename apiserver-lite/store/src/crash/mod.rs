//! Crashes at every operation, faults at every operation, against a naive model.

mod model;
mod sim;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::commit::Committer;
use crate::disk::Disk;
use crate::embedded::{Clock, Options};
use crate::error::{Health, OpenError, StoreError};
use crate::format::Kind;
use crate::recover;
use model::{Model, Run};
use sim::{Fault, SimDisk};

fn options() -> Options {
    Options {
        history_s: 60,
        history_bytes: 6 << 10,
        snapshot_log_bytes: 3 << 10,
        reserve_bytes: 4 << 10,
    }
}

fn open(disk: &SimDisk) -> Result<Committer, OpenError> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let (index, log) = recover::open(&disk, &options())?;
    Ok(Committer::new(
        disk,
        index,
        log,
        options(),
        Clock::Test(Arc::new(AtomicU64::new(1_000_000))),
    ))
}

/// Opens, crashing again in the middle where the disk says so, until it opens.
fn open_after_crashes(mut disk: SimDisk, power_lost: bool) -> (SimDisk, Committer) {
    loop {
        match open(&disk) {
            Ok(committer) => return (disk, committer),
            Err(OpenError::Io { .. }) if disk.met() => disk = disk.restart(power_lost),
            Err(error) => panic!("{error}: {error:?}"),
        }
    }
}

/// Three lives: a crash at operation `first`, another soon after it (maybe while opening), a
/// last life without one. Returns whether the first crash happened at all.
fn three_lives(seed: u64, first: u64) -> bool {
    let mut random = sim::Random::new(seed.wrapping_mul(977).wrapping_add(first));
    let mut model = Model::default();
    let mut disk = SimDisk::new(seed.wrapping_add(first << 20));
    disk.fault(first, Fault::Crash);
    let mut happened = false;
    for life in 0..3 {
        let (opened, committer) = open_after_crashes(disk, random.below(3) > 0);
        disk = opened;
        model.recovered(&committer);
        let mut run = Run::new(&mut model, committer, seed + life);
        run.batches(40);
        if life == 0 {
            happened = disk.met();
        }
        disk = disk.restart(random.below(3) > 0);
        if life == 0 {
            // Often before anything of the second life is synced.
            let soon = if random.below(2) == 0 { 10 } else { 60 };
            disk.fault(1 + random.below(soon) as u64, Fault::Crash);
        }
    }
    happened
}

#[test]
fn no_crash_loses_an_answered_write() {
    for seed in 1..=3 {
        let mut first = 1;
        while three_lives(seed, first) {
            first += 1;
        }
        // Every operation of the workload was a crash point, and it did all there is to do.
        assert!(first > 150, "only {first} operations");
    }
}

#[test]
fn an_io_error_makes_it_read_only_and_loses_nothing() {
    let mut refused = 0;
    for first in 6..150 {
        let mut model = Model::default();
        let disk = SimDisk::new(first);
        let committer = open(&disk).unwrap();
        disk.fault(first, Fault::Io);
        model.recovered(&committer);
        let mut run = Run::new(&mut model, committer, first);
        run.batches(40);
        if let Health::ReadOnly { reason } = run.committer.shared.health() {
            refused += 1;
            let answers = run.committer.commit(&[Model::unrelated_write()]);
            assert!(
                matches!(&answers[0], Err(StoreError::ReadOnly { reason: told }) if *told == reason),
                "{answers:?}"
            );
        }
        drop(run);
        let again = open(&disk.restart(first % 2 == 0)).unwrap();
        model.recovered(&again);
    }
    assert!(refused > 50, "only {refused} of the faults hit the log");
}

#[test]
fn a_full_disk_is_told_and_lifts() {
    let mut told = 0;
    for first in 1..150 {
        let mut model = Model::default();
        let disk = SimDisk::new(first);
        let committer = open(&disk).unwrap();
        model.recovered(&committer);
        disk.fault(first, Fault::Full);
        let mut run = Run::new(&mut model, committer, first);
        for _ in 0..40 {
            run.batches(1);
            // Half of them restart before another write covers what is left of the refused one.
            if run.full > 0 && first % 2 == 0 {
                break;
            }
        }
        // At a write it lifts by itself, at an fsync nobody knows what is on the disk.
        told += u32::from(
            run.full > 0 && !matches!(run.committer.shared.health(), Health::ReadOnly { .. }),
        );
        drop(run);
        let again = open(&disk.restart(true)).unwrap();
        model.recovered(&again);
    }
    assert!(told >= 20, "only {told} times");
}

#[test]
fn a_disk_that_stays_full_refuses_until_there_is_room() {
    let mut model = Model::default();
    let disk = SimDisk::new(7);
    let committer = open(&disk).unwrap();
    model.recovered(&committer);
    let mut run = Run::new(&mut model, committer, 7);
    run.batches(10);
    disk.set_capacity(disk.used());
    // What is reserved may still be used; a new file may not be begun.
    run.batches(20);
    assert!(run.full > 5, "{} batches found the disk full", run.full);
    assert_eq!(run.committer.shared.health(), Health::Full);
    let disk = disk.restart(false);
    let committer = open(&disk).unwrap();
    drop(run);
    model.recovered(&committer);
    let mut run = Run::new(&mut model, committer, 8);
    run.batches(10);
    assert_eq!(run.committer.shared.health(), Health::Full);
    let full = run.full;
    disk.set_capacity(usize::MAX);
    run.batches(20);
    assert_eq!(run.full, full);
    assert_eq!(run.committer.shared.health(), Health::Ready);
}

#[test]
fn times_to_live_survive_restarts() {
    let disk = SimDisk::new(3);
    let key = crate::Key::from("events/a");
    let now = Arc::new(AtomicU64::new(1_000_000));
    let open = || {
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let (index, log) = recover::open(&disk, &options()).unwrap();
        let clock = Clock::Test(Arc::clone(&now));
        Committer::new(disk, index, log, options(), clock)
    };
    let mut committer = open();
    let create = crate::Write::Create {
        key: key.clone(),
        value: "x".into(),
        ttl_s: Some(100),
    };
    let revision = committer.commit(&[create])[0].as_ref().unwrap().revision;
    drop(committer);
    let mut committer = open();
    assert_eq!(committer.idle().unwrap().as_secs(), 100);
    now.fetch_add(50, Ordering::Relaxed);
    committer.expire();
    let update = crate::Write::Update {
        key: key.clone(),
        expected: revision,
        value: "y".into(),
        ttl_s: Some(100),
    };
    committer.commit(&[update])[0].as_ref().unwrap();
    now.fetch_add(60, Ordering::Relaxed);
    committer.expire();
    assert!(
        committer.shared.get(&key, None).unwrap().is_some(),
        "renewed"
    );
    now.fetch_add(50, Ordering::Relaxed);
    committer.expire();
    assert!(committer.shared.get(&key, None).unwrap().is_none(), "ended");
    assert_eq!(committer.idle(), None, "nothing is left to wait for");
}

#[test]
fn damage_of_answered_data_is_no_torn_tail() {
    let disk = SimDisk::new(5);
    let mut model = Model::default();
    let committer = open(&disk).unwrap();
    model.recovered(&committer);
    let mut run = Run::new(&mut model, committer, 5);
    run.snapshots = false;
    run.batches(6);
    drop(run);
    let name = Kind::Log.name(crate::FIRST_REVISION + 1);
    let written = disk.written(&name);
    let mut refused = 0;
    let mut cut = 0;
    for offset in (0..written).step_by(3) {
        let copy = disk.restart(false);
        copy.damage(&name, offset);
        match open(&copy) {
            Err(OpenError::Corrupt { .. }) => refused += 1,
            Err(error) => panic!("{error}"),
            // Only the last frame cannot be told from a torn one; padding is not covered.
            Ok(committer) => {
                let revision = committer.shared.index().published();
                if revision == model.revision() {
                    continue;
                }
                assert!(model.is_last_batch(revision), "cut at {revision}");
                cut += 1;
            }
        }
    }
    assert!(
        refused > written / 6 && cut > 0,
        "{refused} refused, {cut} cut of {written}"
    );
}
