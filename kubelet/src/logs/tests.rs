use std::io::Write;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use tokio::sync::watch;

use super::*;

fn stamp(second: u32) -> String {
    format!("2024-01-01T00:00:{second:02}.000000001Z")
}

fn full(second: u32, text: &str) -> String {
    format!("{} stdout F {text}\n", stamp(second))
}

fn all(dir: &Path, options: &Options) -> Vec<String> {
    let mut out = Vec::new();
    read(dir, options, |e| {
        out.push(String::from_utf8_lossy(&e.message).into_owned());
        true
    })
    .unwrap();
    out
}

#[test]
fn lines() {
    let line = line::parse(b"2016-10-06T00:17:09.669794202Z stderr P a b \xff").unwrap();
    assert_eq!(
        (line.stream, line.partial, line.message),
        (Stream::Stderr, true, &b"a b \xff"[..])
    );
    assert!(
        line::parse(b"2016-10-06T00:17:09.669794202+02:00 stdout F:x ")
            .unwrap()
            .message
            .is_empty()
    );
    assert!(line::parse(b"2016-10-06T00:17:09Z stdout F").is_some());
    for bad in [
        &b""[..],
        b"x",
        b"2016-10-06T00:17:09Z",
        b"2016-10-06T00:17:09Z stdin F x",
        b"2016-10-06T00:17:09Z stdout Q x",
        b"nope stdout F x",
    ] {
        assert_eq!(line::parse(bad), None);
    }
}

#[test]
fn rotated_files_in_order() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "0.log",
        "0.log.20240101-000000.10",
        "0.log.20240101-000000.2",
        "0.log.20231231-235959",
        "10.log",
        "9.log",
        "x.log",
        "0.log.tmp",
        "0.log.2024",
    ] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    assert_eq!(files::attempts(dir.path()).unwrap(), [0, 9, 10]);
    let names: Vec<_> = files::of_attempt(dir.path(), 0)
        .unwrap()
        .iter()
        .map(|p| p.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        names,
        [
            "0.log.20231231-235959",
            "0.log.20240101-000000.2",
            "0.log.20240101-000000.10",
            "0.log"
        ]
    );
    assert!(matches!(
        read(Path::new("/nonexistent"), &Options::default(), |_| true),
        Err(LogError::Missing { .. })
    ));
}

#[test]
fn tail_since_previous_and_streams() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
    put("0.log", full(1, "old"));
    put("1.log.20240101-000010", full(2, "a") + &full(3, "b"));
    put(
        "1.log",
        format!(
            "{} stderr P he\n{}garbage\n{} stderr F llo\n{} stdout P open\n",
            stamp(4),
            full(5, "c"),
            stamp(6),
            stamp(7)
        ),
    );
    let opts = Options::default();
    assert_eq!(all(dir.path(), &opts), ["a", "b", "c", "hello", "open"]);
    assert_eq!(
        all(
            dir.path(),
            &Options {
                tail: Some(3),
                ..opts.clone()
            }
        ),
        ["b", "c", "hello", "open"]
    );
    assert_eq!(
        all(
            dir.path(),
            &Options {
                tail: Some(0),
                ..opts.clone()
            }
        ),
        ["open"]
    );
    assert_eq!(
        all(
            dir.path(),
            &Options {
                tail: Some(99),
                ..opts.clone()
            }
        )
        .len(),
        5
    );
    assert_eq!(
        all(
            dir.path(),
            &Options {
                previous: true,
                ..opts.clone()
            }
        ),
        ["old"]
    );
    assert_eq!(
        all(
            dir.path(),
            &Options {
                stream: Some(Stream::Stderr),
                ..opts.clone()
            }
        ),
        ["hello"]
    );
    let since = line::parse(full(5, "x").trim_end().as_bytes())
        .unwrap()
        .time;
    assert_eq!(
        all(
            dir.path(),
            &Options {
                since: Some(since),
                ..opts
            }
        ),
        ["c", "llo", "open"]
    );
    let mut out = Vec::new();
    read(
        dir.path(),
        &Options {
            tail: Some(1),
            stream: Some(Stream::Stderr),
            ..Options::default()
        },
        |e| e.write_to(&mut out, true).is_ok(),
    )
    .unwrap();
    assert!(String::from_utf8(out).unwrap().ends_with("Z llo\n"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    /// The tail is what the end of the whole is, wherever blocks are cut.
    #[test]
    fn tails_agree_with_the_whole(
        lines in proptest::collection::vec((0usize..40_000, any::<bool>()), 0..12), cut in 0usize..12, tail in 0u64..14,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (mut old, mut new) = (String::new(), String::new());
        for (i, (length, partial)) in lines.iter().enumerate() {
            let tag = if *partial { "P" } else { "F" };
            let text = format!("{} stdout {tag} {i}{}\n", stamp(u32::try_from(i).unwrap()), "x".repeat(*length));
            if i < cut { old.push_str(&text) } else { new.push_str(&text) }
        }
        std::fs::write(dir.path().join("0.log.20240101-000000"), old).unwrap();
        std::fs::write(dir.path().join("0.log"), new).unwrap();
        let whole = all(dir.path(), &Options::default());
        let open = usize::from(lines.last().is_some_and(|(_, partial)| *partial));
        let got = all(dir.path(), &Options { tail: Some(tail), ..Options::default() });
        let want = &whole[whole.len().saturating_sub(usize::try_from(tail).unwrap() + open)..];
        prop_assert_eq!(got, want);
    }

    #[test]
    fn hostile_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..100_000)) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("0.log"), &bytes).unwrap();
        let _ = line::parse(&bytes);
        all(dir.path(), &Options { tail: Some(3), ..Options::default() });
        all(dir.path(), &Options::default());
    }
}

#[test]
fn a_line_without_end_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "{}{}\n{}",
        full(1, "a"),
        "y".repeat(1_000_000),
        full(2, "b")
    );
    std::fs::write(dir.path().join("0.log"), text).unwrap();
    assert_eq!(all(dir.path(), &Options::default()), ["a", "b"]);
}

#[tokio::test]
async fn follows_two_containers_over_rotations_and_restarts() {
    let root = tempfile::tempdir().unwrap();
    let (a, b) = (root.path().join("a"), root.path().join("b"));
    std::fs::create_dir_all(&a).unwrap();
    std::fs::create_dir_all(&b).unwrap();
    std::fs::write(a.join("0.log"), full(1, "early") + &full(1, "tail")).unwrap();
    let (stop, stopped) = watch::channel(false);
    let mut follow = Follow::new(stopped).unwrap();
    follow
        .add(
            a.clone(),
            Options {
                tail: Some(1),
                ..Options::default()
            },
            true,
        )
        .unwrap();
    follow.add(b.clone(), Options::default(), true).unwrap();
    let writer = tokio::task::spawn_blocking(move || {
        let mut log = std::fs::File::options()
            .append(true)
            .open(a.join("0.log"))
            .unwrap();
        for i in 0..50 {
            std::thread::sleep(Duration::from_millis(1));
            log.write_all(full(2, &format!("a{i}")).as_bytes()).unwrap();
            if i % 10 == 9 {
                std::fs::rename(
                    a.join("0.log"),
                    a.join(format!("0.log.20240101-0000{i:02}")),
                )
                .unwrap();
                log = std::fs::File::create(a.join("0.log")).unwrap();
            }
        }
        std::fs::write(a.join("1.log"), full(3, "again")).unwrap();
        std::fs::write(b.join("0.log"), full(3, "b")).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        stop.send(true).unwrap();
    });
    let mut seen = [Vec::new(), Vec::new()];
    while let Some((number, entry)) = follow.next().await.unwrap() {
        seen[number].push(String::from_utf8(entry.message).unwrap());
    }
    writer.await.unwrap();
    let mut want = vec!["tail".to_owned()];
    want.extend((0..50).map(|i| format!("a{i}")));
    want.push("again".to_owned());
    assert_eq!(seen[0], want);
    assert_eq!(seen[1], ["b"]);
}

/// The writer rotates after every second line and keeps four old files, as a
/// keeper does, and never gets further ahead than those hold. Each line is
/// told once, whenever a rotation meets a look at the files.
#[tokio::test]
async fn a_rotation_at_any_moment_tells_each_line_once() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    const LINES: usize = 6000;
    const PER_FILE: usize = 2;
    const OLD_FILES: usize = 4;
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().to_path_buf();
    std::fs::File::create(dir.join("0.log")).unwrap();
    let (stop, stopped) = watch::channel(false);
    let mut follow = Follow::new(stopped).unwrap();
    follow.add(dir.clone(), Options::default(), true).unwrap();
    let told = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&told);
    let writer = std::thread::spawn(move || {
        let mut log = std::fs::File::options()
            .append(true)
            .open(dir.join("0.log"));
        let mut old = std::collections::VecDeque::new();
        for n in 0..LINES {
            log.as_mut()
                .unwrap()
                .write_all(full(1, &n.to_string()).as_bytes())
                .unwrap();
            if n % PER_FILE == PER_FILE - 1 {
                while n + 1 - seen.load(Ordering::Acquire) > (OLD_FILES - 2) * PER_FILE {
                    std::thread::yield_now();
                }
                let name = dir.join(format!("0.log.20240101-000000.{n:06}"));
                std::fs::rename(dir.join("0.log"), &name).unwrap();
                log = std::fs::File::create(dir.join("0.log"));
                old.push_back(name);
                if old.len() > OLD_FILES {
                    std::fs::remove_file(old.pop_front().unwrap()).unwrap();
                }
            }
        }
        stop.send_replace(true);
    });
    let mut expected = 0;
    while let Some((_, entry)) = follow.next().await.unwrap() {
        assert_eq!(
            String::from_utf8(entry.message).unwrap(),
            expected.to_string()
        );
        expected += 1;
        told.store(expected, Ordering::Release);
    }
    writer.join().unwrap();
    assert_eq!(expected, LINES);
}
