//! A process writing under load on real files, killed at random, again and again.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rkube_store::{Embedded, Key, OpenError, Options, Range, Store, Value};

const FOLDER: &str = "RKUBE_STORE_KILL_FOLDER";
const WRITERS: u32 = 8;
const KILLS: u64 = 25;

fn options() -> Options {
    Options {
        // So that snapshots and new logs are killed too.
        snapshot_log_bytes: 64 << 10,
        reserve_bytes: 32 << 10,
        ..Options::default()
    }
}

/// The process to kill: updates keys for ever and tells every answer.
#[test]
#[ignore = "the child of a_killed_process_loses_nothing"]
fn write_for_ever() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let store = Arc::new(Embedded::open(Path::new(&folder), options()).unwrap());
    let told = Arc::new(Mutex::new(std::io::stderr()));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (store, told) = (Arc::clone(&store), Arc::clone(&told));
            thread::spawn(move || {
                for round in 0_u64.. {
                    let name = format!("pods/{writer}/{}", round % 20);
                    let value =
                        Value::from(format!("{writer} {round} {}", "x".repeat(200)).as_str());
                    let key = Key::from(name.as_str());
                    let newest = store.get(&key, None).unwrap();
                    let done = match newest {
                        None => store.create(key, value.clone(), None),
                        Some(newest) => store.update(key, newest.revision, value.clone(), None),
                    };
                    let revision = done.unwrap().revision;
                    // One write call per line: a line is whole or missing.
                    let line = format!("done {revision} {name} {}\n", value.len());
                    told.lock().unwrap().write_all(line.as_bytes()).unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
}

#[test]
fn a_killed_process_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut answered: HashMap<String, u64> = HashMap::new();
    let mut names_of: HashMap<u64, String> = HashMap::new();
    let mut newest = 0;
    let mut written = 0;
    for kill in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "write_for_ever", "--ignored", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let reader = thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>());
        thread::sleep(Duration::from_millis(60 + kill * 37 % 200));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in reader.join().unwrap() {
            let fields: Vec<&str> = line.split(' ').collect();
            let ["done", revision, name, _] = fields[..] else {
                continue;
            };
            let revision: u64 = revision.parse().unwrap();
            let before = names_of.insert(revision, name.to_owned());
            assert_eq!(before, None, "revision {revision} was used twice");
            let last = answered.entry(name.to_owned()).or_default();
            *last = revision.max(*last);
            newest = revision.max(newest);
            written += 1;
        }
        let store = Embedded::open(folder.path(), options()).unwrap();
        assert!(store.revision() >= newest);
        newest = store.revision();
        for (name, revision) in &answered {
            let found = store.get(name.as_bytes(), None).unwrap().unwrap();
            assert!(found.revision >= *revision, "{name} lost {revision}");
        }
        let page = store.range(&Range::prefix(b"")).unwrap();
        for record in page.records {
            let text = String::from_utf8(record.value.to_vec()).unwrap();
            let writer = String::from_utf8(record.key[5..6].to_vec()).unwrap();
            assert!(text.starts_with(&writer) && text.ends_with(&"x".repeat(200)));
        }
    }
    assert!(
        written > 200,
        "only {written} writes were answered before the kills"
    );
    let files = std::fs::read_dir(folder.path()).unwrap().count();
    assert!(files <= 6, "{files} files are left");
}

#[test]
fn one_process_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let first = Embedded::open(folder.path(), Options::default()).unwrap();
    let second = Embedded::open(folder.path(), Options::default());
    assert!(
        matches!(second, Err(OpenError::Locked { .. })),
        "{second:?}"
    );
    drop(first);
    Embedded::open(folder.path(), Options::default()).unwrap();
}
