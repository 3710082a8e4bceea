//! The store as its users see it: threads, tasks, watchers, limits, formats.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use rkube_store::{
    Embedded, Event, FIRST_REVISION, Health, KEY_BYTES_MAX, Key, OpenError, Options, Range,
    Revision, Store, StoreError, VALUE_BYTES_MAX, Value, Write,
};

const LONG: Duration = Duration::from_secs(20);

fn open(folder: &Path) -> Embedded {
    Embedded::open(folder, Options::default()).unwrap()
}

fn new() -> (tempfile::TempDir, Embedded) {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    (folder, store)
}

fn put(store: &Embedded, key: &str, value: &str) -> Revision {
    let expected = store
        .get(key.as_bytes(), None)
        .unwrap()
        .map(|record| record.revision);
    let done = match expected {
        None => store.create(key.into(), value.into(), None),
        Some(expected) => store.update(key.into(), expected, value.into(), None),
    };
    done.unwrap().revision
}

fn names(store: &Embedded, range: &Range<'_>) -> Vec<String> {
    let page = store.range(range).unwrap();
    page.records
        .iter()
        .map(|record| record.key.to_string())
        .collect()
}

#[test]
fn compare_and_set() {
    let (_folder, store) = new();
    assert_eq!(store.revision(), FIRST_REVISION);
    let created = store.create("a".into(), "1".into(), None).unwrap();
    assert_eq!((created.revision, created.previous), (2, None));
    let again = store.create("a".into(), "2".into(), None).unwrap_err();
    assert_eq!(
        again.to_string(),
        "a: expected no such key, found revision 2"
    );
    let stale = store.update("a".into(), 1, "2".into(), None).unwrap_err();
    let StoreError::Conflict { current, .. } = stale else {
        panic!("{stale}");
    };
    assert_eq!(current.unwrap().value, Value::from("1"));
    let updated = store.update("a".into(), 2, "2".into(), None).unwrap();
    assert_eq!(updated.previous.unwrap().revision, 2);
    assert!(store.delete("a".into(), 2).is_err());
    assert_eq!(store.delete("a".into(), 3).unwrap().revision, 4);
    let gone = store.update("a".into(), 3, "3".into(), None).unwrap_err();
    assert_eq!(
        gone.to_string(),
        "a: expected revision 3, found no such key"
    );
    assert_eq!(store.revision(), 4, "refused writes use no revision");
    assert_eq!(
        store.get(b"a", Some(3)).unwrap().unwrap().value,
        Value::from("2")
    );
    assert_eq!(store.get(b"a", None).unwrap(), None);
}

#[test]
fn pages_show_one_revision() {
    let (_folder, store) = new();
    for number in 0..10 {
        put(&store, &format!("pods/a/{number}"), "1");
    }
    put(&store, "podsx/other", "1");
    let first = Range {
        limit: Some(4),
        count: true,
        ..Range::prefix(b"pods/")
    };
    let page = store.range(&first).unwrap();
    assert_eq!(
        (page.records.len(), page.more, page.remaining),
        (4, true, Some(6))
    );
    put(&store, "pods/a/55", "new");
    store.delete("pods/a/9".into(), 11).unwrap();
    let start = [&*page.records[3].key, &[0]].concat();
    let rest = Range {
        start: Some(&start),
        at: Some(page.revision),
        ..Range::prefix(b"pods/")
    };
    let expected: Vec<String> = (4..10).map(|number| format!("pods/a/{number}")).collect();
    assert_eq!(names(&store, &rest), expected);
    store.compact(store.revision()).unwrap();
    assert!(matches!(
        store.range(&rest),
        Err(StoreError::Compacted { compacted: 14, .. })
    ));
    // The token of an expired list goes on at the newest revision.
    let fresh = Range { at: None, ..rest };
    assert_eq!(names(&store, &fresh)[1..3], ["pods/a/5", "pods/a/55"]);
    let future = Range {
        at: Some(99),
        ..rest
    };
    assert!(matches!(
        store.range(&future),
        Err(StoreError::Future { current: 14, .. })
    ));
}

#[test]
fn limits_are_told() {
    let (_folder, store) = new();
    let put = |key: Vec<u8>, value: usize| store.create(key.into(), vec![0; value].into(), None);
    assert!(put(vec![b'k'; KEY_BYTES_MAX], VALUE_BYTES_MAX).is_ok());
    let error = put(vec![b'k'; KEY_BYTES_MAX + 1], 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "bytes of a key of 1025: must be 1 to 1024"
    );
    assert!(matches!(put(Vec::new(), 1), Err(StoreError::Limit { .. })));
    assert!(matches!(
        put(b"a".to_vec(), VALUE_BYTES_MAX + 1),
        Err(StoreError::Limit { .. })
    ));
}

#[test]
fn more_waits_than_the_queue_holds_is_busy() {
    let (_folder, store) = new();
    let value = Value::new(&[b'x'; VALUE_BYTES_MAX]);
    let pending: Vec<_> = (0..200)
        .map(|number| {
            let key = Key::from(format!("k/{number}").as_str());
            let value = value.clone();
            store.submit(Write::Create {
                key,
                value,
                ttl_s: None,
            })
        })
        .collect();
    let answers: Vec<_> = pending
        .into_iter()
        .map(rkube_store::Pending::wait)
        .collect();
    let busy = answers
        .iter()
        .filter(|answer| matches!(answer, Err(StoreError::Busy)))
        .count();
    let done = answers.iter().filter(|answer| answer.is_ok()).count();
    assert!(busy > 0 && done > 40, "{busy} busy, {done} done");
    assert_eq!(store.stats().live_keys, done as u64);
    assert_eq!(store.stats().queued, 0);
}

#[test]
fn a_slow_watcher_ends_with_its_reason() {
    let (_folder, store) = new();
    let mut slow = store.watch(b"pods/", FIRST_REVISION).unwrap();
    let mut quiet = store.watch(b"nodes/", FIRST_REVISION).unwrap();
    assert_eq!(quiet.wait(Duration::ZERO).unwrap(), None);
    for number in 0..20 {
        put(&store, "pods/a", &number.to_string());
    }
    store.compact(15).unwrap();
    let error = slow.wait(LONG).unwrap_err();
    assert_eq!(
        error.to_string(),
        "watcher too slow: events after revision 1 are gone, the oldest kept is 15"
    );
    assert!(matches!(
        store.watch(b"", 14),
        Err(StoreError::Compacted { .. })
    ));
    // Nothing that the quiet one waits for is gone, so it goes on, and its bookmark moves.
    assert_eq!(quiet.progress(), 21);
    store.compact(21).unwrap();
    let revision = put(&store, "nodes/n", "1");
    let batch = quiet.wait(LONG).unwrap().unwrap();
    assert_eq!((batch.events.len(), batch.complete), (1, revision));
    assert_eq!(store.stats().watchers, 2);
    drop((slow, quiet));
    assert_eq!(store.stats().watchers, 0);
}

#[test]
fn all_watchers_see_all_changes_in_the_same_order() {
    let (_folder, store) = new();
    let store = Arc::new(store);
    let total = 4 * 150;
    let watchers: Vec<_> = ["", "pods/", "pods/1/", "pods/2/x"]
        .into_iter()
        .cycle()
        .take(12)
        .map(|prefix| {
            let mut watcher = store.watch(prefix.as_bytes(), FIRST_REVISION).unwrap();
            thread::spawn(move || {
                let mut seen: Vec<Arc<Event>> = Vec::new();
                let last = FIRST_REVISION + total;
                while watcher.progress() < last {
                    if let Some(batch) = watcher.wait(Duration::from_millis(20)).unwrap() {
                        assert!(batch.complete >= batch.events.last().unwrap().revision);
                        seen.extend(batch.events);
                    }
                }
                (prefix, seen)
            })
        })
        .collect();
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let store = Arc::clone(&store);
            thread::spawn(move || {
                for round in 0..150 {
                    put(&store, &format!("pods/{writer}/x{}", round % 5), "v");
                }
            })
        })
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
    let mut orders: BTreeMap<&str, Vec<Arc<Event>>> = BTreeMap::new();
    for watcher in watchers {
        let (prefix, seen) = watcher.join().unwrap();
        let same = orders.entry(prefix).or_insert_with(|| seen.clone());
        assert_eq!(*same, seen);
    }
    let revisions: Vec<_> = orders[""].iter().map(|event| event.revision).collect();
    assert_eq!(revisions, (2..=FIRST_REVISION + total).collect::<Vec<_>>());
    assert_eq!(orders["pods/1/"].len(), 150);
    assert!(store.stats().batches < total, "writers shared fsyncs");
}

#[test]
fn history_is_bounded_by_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        history_bytes: 100 << 10,
        snapshot_log_bytes: 200 << 10,
        reserve_bytes: 64 << 10,
        ..Options::default()
    };
    let store = Embedded::open(folder.path(), options).unwrap();
    let value = "x".repeat(10 << 10);
    for _ in 0..200 {
        put(&store, "pods/a", &value);
    }
    // What changes while a snapshot is written is kept until it is done.
    let within = |_| {
        put(&store, "pods/a", &value);
        store.stats().history_bytes <= (100 << 10) + (11 << 10)
    };
    assert!((0..100).any(within), "{:?}", store.stats());
    assert!(store.compacted() > 150);
    drop(store);
    let bytes: u64 = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(bytes < 1 << 20, "{bytes} bytes of files for one object");
}

#[test]
fn closing_answers_what_waits_and_ends_watchers() {
    let (folder, store) = new();
    let mut watcher = store.watch(b"", FIRST_REVISION).unwrap();
    let waiting = thread::spawn(move || {
        loop {
            if let Err(error) = watcher.wait(LONG) {
                return error;
            }
        }
    });
    let pending = store.submit(Write::Create {
        key: "a".into(),
        value: "1".into(),
        ttl_s: None,
    });
    assert_eq!(store.health(), Health::Ready);
    drop(store);
    assert_eq!(pending.wait().unwrap().revision, 2);
    assert!(matches!(waiting.join().unwrap(), StoreError::Closed));
    let again = open(folder.path());
    assert_eq!(again.revision(), 2);
    // A restart does not forget what watchers may still ask for.
    let mut watcher = again.watch(b"", FIRST_REVISION).unwrap();
    assert_eq!(watcher.wait(LONG).unwrap().unwrap().events.len(), 1);
}

/// Files that format 1 wrote. They stay as they are, whatever later formats look like.
#[test]
fn a_root_of_format_1_opens() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1");
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&fixture).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let store = open(folder.path());
    assert_eq!((store.compacted(), store.revision()), (42, 45));
    let page = store.range(&Range::prefix(b"")).unwrap();
    let found: Vec<_> = page
        .records
        .iter()
        .map(|record| (record.key.to_string(), record.revision, record.value.len()))
        .collect();
    let expected = [
        ("events/a", 41, 100),
        ("pods/a", 43, 7),
        ("pods/b", 42, 100),
        ("pods/d", 45, 4),
    ];
    let expected = expected.map(|(key, revision, bytes)| (key.to_owned(), revision, bytes));
    assert_eq!(found, expected);
    assert_eq!(put(&store, "pods/new", "x"), 46);
}

/// Writes the fixture of the present format anew; for the day when the format changes.
#[test]
#[ignore = "writes files"]
fn write_fixture() {
    let folder = std::env::var_os("RKUBE_STORE_FIXTURE").unwrap();
    let options = Options {
        snapshot_log_bytes: 4 << 10,
        reserve_bytes: 64,
        ..Options::default()
    };
    let store = Embedded::open(Path::new(&folder), options.clone()).unwrap();
    let filler = "x".repeat(100);
    put(&store, "pods/c", "gone later");
    for _ in 0..38 {
        put(&store, "pods/a", &filler);
    }
    let ttl = Some(u32::MAX);
    store
        .create("events/a".into(), filler.as_str().into(), ttl)
        .unwrap();
    drop(store);
    // One write more, and a snapshot of all before.
    let often = Options {
        snapshot_log_bytes: 1,
        ..options.clone()
    };
    let store = Embedded::open(Path::new(&folder), often).unwrap();
    put(&store, "pods/b", &filler);
    while store.stats().snapshots == 0 {
        thread::sleep(Duration::from_millis(5));
    }
    drop(store);
    let store = Embedded::open(Path::new(&folder), options).unwrap();
    put(&store, "pods/a", "changed");
    store.delete("pods/c".into(), 2).unwrap();
    put(&store, "pods/d", "last");
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let (folder, store) = new();
    drop(store);
    let log = folder.path().join("log-00000000000000000002");
    let mut bytes = std::fs::read(&log).unwrap();
    bytes[8] = 9;
    bytes[12..16].fill(0);
    let crc = crc32fast::hash(&bytes[..64]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&log, bytes).unwrap();
    let error = Embedded::open(folder.path(), Options::default()).unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::Version {
                found: 9,
                known: 1,
                ..
            }
        ),
        "{error}"
    );
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    Compact(u8),
    Reopen,
    Read,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..6_u8, any::<u8>()).prop_map(|(key, value)| Step::Put(key, value)),
        3 => (0..6_u8).prop_map(Step::Delete),
        1 => (0..10_u8).prop_map(Step::Compact),
        1 => Just(Step::Reopen),
        2 => Just(Step::Read),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every readable revision, watchers from any of them, and pages of any size.
    #[test]
    fn as_the_naive_model(steps in steps(), page in 1..4_usize) {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(folder.path());
        let mut states: Vec<BTreeMap<String, u8>> = vec![BTreeMap::new()];
        let mut watcher = store.watch(b"k/", FIRST_REVISION).unwrap();
        let mut watched = BTreeMap::new();
        for step in steps {
            let mut state = states.last().unwrap().clone();
            match step {
                Step::Put(key, value) => {
                    let key = format!("k/{key}");
                    let revision = put(&store, &key, &value.to_string());
                    state.insert(key, value);
                    states.push(state);
                    prop_assert_eq!(revision, states.len() as u64);
                }
                Step::Delete(key) => {
                    let key = format!("k/{key}");
                    if let Some(record) = store.get(key.as_bytes(), None).unwrap() {
                        store.delete(record.key, record.revision).unwrap();
                        state.remove(&key);
                        states.push(state);
                    }
                }
                Step::Compact(back) => {
                    follow(&mut watcher, &mut watched, store.revision());
                    store.compact(store.revision().saturating_sub(back.into())).unwrap();
                }
                Step::Reopen => {
                    follow(&mut watcher, &mut watched, store.revision());
                    drop(watcher);
                    drop(store);
                    store = open(folder.path());
                    watcher = store.watch(b"k/", store.revision()).unwrap();
                }
                Step::Read => {
                    for at in store.compacted()..=store.revision() {
                        let expected = &states[usize::try_from(at - 1).unwrap()];
                        prop_assert_eq!(&paged(&store, at, page), expected);
                        let mut from = paged(&store, at, 100);
                        let mut watcher = store.watch(b"k/", at).unwrap();
                        follow(&mut watcher, &mut from, store.revision());
                        prop_assert_eq!(&from, states.last().unwrap());
                    }
                }
            }
        }
        follow(&mut watcher, &mut watched, store.revision());
        prop_assert_eq!(&watched, states.last().unwrap());
    }
}

fn paged(store: &Embedded, at: Revision, limit: usize) -> BTreeMap<String, u8> {
    let mut found = BTreeMap::new();
    let mut start = Vec::new();
    loop {
        let page = store
            .range(&Range {
                start: Some(&start),
                at: Some(at),
                limit: Some(limit),
                ..Range::prefix(b"k/")
            })
            .unwrap();
        for record in &page.records {
            let value = String::from_utf8(record.value.to_vec()).unwrap();
            found.insert(record.key.to_string(), value.parse().unwrap());
        }
        if !page.more {
            return found;
        }
        start = [&*page.records.last().unwrap().key, &[0]].concat();
    }
}

fn follow(watcher: &mut rkube_store::Watcher, state: &mut BTreeMap<String, u8>, until: Revision) {
    while watcher.progress() < until {
        let Some(batch) = watcher.wait(Duration::ZERO).unwrap() else {
            continue;
        };
        for event in batch.events {
            let key = event.key.to_string();
            let value = |bytes: &Value| String::from_utf8(bytes.to_vec()).unwrap().parse().unwrap();
            let previous = event
                .previous
                .as_ref()
                .map(|previous| value(&previous.value));
            let before = match &event.value {
                Some(now) => state.insert(key, value(now)),
                None => state.remove(&key),
            };
            assert_eq!(before, previous);
        }
    }
}
