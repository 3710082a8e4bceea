//! Prints what the embedded store does on a folder's disk:
//! `cargo run --release -p rkube-store --example bench -- FOLDER`

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rkube_store::{Embedded, Key, Options, Range, Store, StoreError, Value, Write};

const VALUE_BYTES: usize = 2048;
const OBJECTS: usize = 100_000;
const RUN: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let Some(folder) = std::env::args().nth(1) else {
        eprintln!("usage: bench FOLDER");
        return ExitCode::FAILURE;
    };
    match bench(Path::new(&folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

fn rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0)
}

fn key(number: usize) -> Key {
    Key::from(format!("pods/namespace-{}/pod-{number:06}", number % 50).as_str())
}

fn bench(folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let value = Value::new(&[b'v'; VALUE_BYTES]);
    let large = folder.join("objects");
    let store = Embedded::open(&large, Options::default())?;
    let before = rss_kib();
    let begin = Instant::now();
    let mut number = 0;
    while number < OBJECTS {
        let end = (number + 512).min(OBJECTS);
        let pending: Vec<_> = (number..end)
            .map(|number| {
                store.submit(Write::Create {
                    key: key(number),
                    value: Value::new(&value),
                    ttl_s: None,
                })
            })
            .collect();
        for one in pending {
            one.wait()?;
        }
        number = end;
    }
    println!(
        "{OBJECTS} objects of {VALUE_BYTES} bytes written in {:?}",
        begin.elapsed()
    );
    println!(
        "memory per object beside its value: {} bytes with history",
        ((rss_kib() - before) * 1024 / OBJECTS as u64).saturating_sub(VALUE_BYTES as u64)
    );
    store.compact(store.revision())?;
    drop(store);

    for round in ["log or snapshot as left", "again"] {
        let begin = Instant::now();
        let store = Embedded::open(&large, Options::default())?;
        println!(
            "open with {OBJECTS} objects ({round}): {:?}",
            begin.elapsed()
        );
        let begin = Instant::now();
        let page = store.range(&Range::prefix(b"pods/"))?;
        println!("list of {}: {:?}", page.records.len(), begin.elapsed());
        let begin = Instant::now();
        let gets = 1_000_000;
        let mut random = 1_usize;
        for _ in 0..gets {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) & 0xffff_ffff;
            store
                .get(&key(random % OBJECTS), None)?
                .ok_or("a key is missing")?;
        }
        println!(
            "gets, one thread: {:.0}/s",
            f64::from(gets) / begin.elapsed().as_secs_f64()
        );
        let mut watcher = store.watch(b"pods/", store.revision())?;
        let mut times = Vec::new();
        for number in 0..300 {
            let record = store.get(&key(number), None)?.ok_or("a key is missing")?;
            let begin = Instant::now();
            let pending = store.submit(Write::Update {
                key: record.key,
                expected: record.revision,
                value: value.clone(),
                ttl_s: None,
            });
            watcher.wait(Duration::from_secs(5))?.ok_or("no event")?;
            times.push(begin.elapsed());
            pending.wait()?;
        }
        times.sort_unstable();
        println!(
            "write to event: p50 {:?}, p99 {:?}",
            percentile(&times, 50),
            percentile(&times, 99)
        );
    }
    let small = folder.join("writers");
    for writers in [1, 16, 64] {
        let store = Arc::new(Embedded::open(&small, Options::default())?);
        let begin = Instant::now();
        let threads: Vec<_> = (0..writers)
            .map(|writer| {
                let (store, value) = (Arc::clone(&store), value.clone());
                thread::spawn(move || -> Result<Vec<Duration>, StoreError> {
                    let mut times = Vec::new();
                    while begin.elapsed() < RUN {
                        let name = format!("w{writers}/{writer}/{}", times.len());
                        let one = Instant::now();
                        store.create(Key::from(name.as_str()), value.clone(), None)?;
                        times.push(one.elapsed());
                    }
                    Ok(times)
                })
            })
            .collect();
        let mut times = Vec::new();
        for thread in threads {
            times.extend(thread.join().map_err(|_| "a writer panicked")??);
        }
        let elapsed = begin.elapsed();
        times.sort_unstable();
        println!(
            "{writers} writers: {:.0} durable puts/s, p50 {:?}, p99 {:?}, {:.1} per fsync",
            times.len() as f64 / elapsed.as_secs_f64(),
            percentile(&times, 50),
            percentile(&times, 99),
            times.len() as f64 / store.stats().batches as f64,
        );
    }
    Ok(())
}
