//! Against a peer on a real socket that speaks as systemd does.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;

use super::wire::{self, Header, Reader, Writer};
use super::*;

/// What the peer does at odds with a well-behaved systemd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Odd {
    Nothing,
    /// Its jobs fail.
    Fails,
    /// It refuses units.
    Refuses,
    /// It refuses this user.
    Rejects,
    /// It sends rubbish.
    Babbles,
}

struct Peer {
    _dir: tempfile::TempDir,
    path: PathBuf,
    thread: JoinHandle<Vec<(String, Vec<u8>)>>,
}

impl Peer {
    fn new(odd: Odd) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("private");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            serve(stream, odd)
        });
        Self {
            _dir: dir,
            path,
            thread,
        }
    }

    /// What it was asked.
    fn asked(self) -> Vec<(String, Vec<u8>)> {
        self.thread.join().unwrap()
    }
}

fn line(stream: &mut UnixStream) -> String {
    let mut out = Vec::new();
    let mut byte = [0_u8; 1];
    while !out.ends_with(b"\r\n") {
        stream.read_exact(&mut byte).unwrap();
        out.push(byte[0]);
    }
    String::from_utf8(out).unwrap()
}

fn serve(mut stream: UnixStream, odd: Odd) -> Vec<(String, Vec<u8>)> {
    let uid: String = rustix::process::geteuid()
        .as_raw()
        .to_string()
        .bytes()
        .map(|b| format!("{b:02x}"))
        .collect();
    assert_eq!(line(&mut stream), format!("\0AUTH EXTERNAL {uid}\r\n"));
    if odd == Odd::Rejects {
        stream.write_all(b"REJECTED EXTERNAL\r\n").unwrap();
        return Vec::new();
    }
    stream.write_all(b"OK 0123456789abcdef\r\n").unwrap();
    assert_eq!(line(&mut stream), "BEGIN\r\n");
    let mut asked = Vec::new();
    let mut start = [0_u8; 16];
    while stream.read_exact(&mut start).is_ok() {
        let size = wire::size_of_message(&start).unwrap();
        let mut whole = start.to_vec();
        whole.resize(size, 0);
        stream.read_exact(&mut whole[16..]).unwrap();
        let (header, body) = wire::parse(&whole).unwrap();
        assert_eq!(header.kind, wire::METHOD_CALL);
        let member = header.member.clone().unwrap();
        asked.push((member.clone(), body.to_vec()));
        for answer in answers(&member, header.serial, odd) {
            // One that has heard enough may have gone.
            let _ = stream.write_all(&answer);
        }
    }
    asked
}

fn signal(job: &str, result: &str) -> Vec<u8> {
    let mut body = Writer::default();
    body.u32(7);
    body.text(job);
    body.text("x.scope");
    body.text(result);
    let header = Header {
        kind: wire::SIGNAL,
        serial: 99,
        member: Some("JobRemoved".into()),
        signature: Some("uoss".into()),
        ..Header::default()
    };
    wire::message(&header, &body.0)
}

fn answers(member: &str, serial: u32, odd: Odd) -> Vec<Vec<u8>> {
    let mut body = Writer::default();
    let mut error = None;
    let mut before = Vec::new();
    match (member, odd) {
        (_, Odd::Babbles) => return vec![vec![b'x'; 64]],
        ("StartTransientUnit", Odd::Refuses) => {
            error = Some("org.freedesktop.systemd1.UnitExists");
            body.text("Unit x.scope was already loaded");
        }
        ("ResetFailedUnit", _) => {
            error = Some("org.freedesktop.systemd1.NoSuchUnit");
            body.text("Unit x.scope not loaded");
        }
        ("StartTransientUnit" | "StopUnit", _) => {
            // Ends of other jobs, and its own before the answer: systemd may
            // be that fast.
            let result = if odd == Odd::Fails { "failed" } else { "done" };
            before.push(signal("/job/6", "canceled"));
            before.push(signal("/job/7", result));
            body.text("/job/7");
        }
        ("GetUnit", _) => body.text("/unit/x"),
        ("Get", _) => {
            body.0.extend([1, b's', 0]);
            body.text("/a.slice/a-b.slice/x-1.scope");
        }
        _ => {}
    }
    let header = Header {
        kind: if error.is_some() {
            wire::ERROR
        } else {
            wire::METHOD_RETURN
        },
        serial: 50,
        reply_to: Some(serial),
        error: error.map(str::to_owned),
        signature: Some(if member == "Get" { "v" } else { "s" }.into()),
        ..Header::default()
    };
    before.push(wire::message(&header, &body.0));
    before
}

fn scope() -> Scope {
    Scope::from_cgroups_path("a-b.slice:x:1", "id").unwrap()
}

#[test]
fn a_scope_is_started_changed_and_stopped() {
    let peer = Peer::new(Odd::Nothing);
    let mut systemd = Systemd::connect_to(&peer.path).unwrap();
    let limits = [("TasksMax", Property::Number(5))];
    let path = systemd
        .start_scope(&scope(), 42, "a test", &limits)
        .unwrap();
    assert_eq!(path.as_str(), "a.slice/a-b.slice/x-1.scope");
    systemd.set(&scope(), &limits).unwrap();
    systemd.set(&scope(), &[]).unwrap();
    systemd.stop(&scope()).unwrap();
    drop(systemd);
    let asked = peer.asked();
    let members: Vec<&str> = asked.iter().map(|(m, _)| m.as_str()).collect();
    let wanted = [
        "Subscribe",
        "StartTransientUnit",
        "GetUnit",
        "Get",
        "SetUnitProperties",
        "StopUnit",
        "ResetFailedUnit",
    ];
    assert_eq!(members, wanted);
    let body = &asked[1].1;
    let mut reader = Reader::new(body);
    assert_eq!(reader.text().unwrap(), "x-1.scope");
    assert_eq!(reader.text().unwrap(), "fail");
    let has = |text: &[u8]| body.windows(text.len()).any(|w| w == text);
    for name in ["Delegate", "PIDs", "Slice", "a-b.slice", "TasksMax"] {
        assert!(has(name.as_bytes()), "{name}");
    }
}

#[test]
fn what_systemd_says_is_told() {
    for (odd, wanted) in [
        (Odd::Refuses, "UnitExists"),
        (Odd::Fails, "failed"),
        (Odd::Rejects, "EXTERNAL"),
        (Odd::Babbles, "little-endian"),
    ] {
        let peer = Peer::new(odd);
        let started = Systemd::connect_to(&peer.path)
            .and_then(|mut systemd| systemd.start_scope(&scope(), 42, "a test", &[]));
        let error = started.unwrap_err().to_string();
        assert!(error.contains(wanted), "{odd:?}: {error}");
        peer.asked();
    }
    assert!(Systemd::connect_to(std::path::Path::new("/nowhere")).is_err());
}

#[test]
fn names_of_units_and_their_places() {
    for (path, unit, place) in [
        ("", "rkube-c1.scope", "system.slice/rkube-c1.scope"),
        ("::c1", "c1.scope", "system.slice/c1.scope"),
        ("-.slice:p:n", "p-n.scope", "p-n.scope"),
        (
            "kubepods-burstable-podx.slice:cri:n",
            "cri-n.scope",
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx.slice/cri-n.scope",
        ),
    ] {
        let scope = Scope::from_cgroups_path(path, "c1").unwrap();
        assert_eq!(scope.unit(), unit, "{path}");
        assert_eq!(scope.path().unwrap().as_str(), place, "{path}");
    }
    for bad in [
        "/a/b",
        "a:b",
        "a.slice:b:c/d",
        "a:b:c",
        "a--b.slice:p:n",
        "-a.slice:p:n",
        "../x.slice:p:n",
        "a.slice:p:n:m",
        &format!("a.slice:p:{}", "x".repeat(300)),
    ] {
        assert!(Scope::from_cgroups_path(bad, "c1").is_err(), "{bad}");
    }
}

#[test]
fn limits_as_properties() {
    let resources = serde_json::from_value(serde_json::json!({
        "memory": {"limit": 1000, "swap": 1500, "reservation": -1},
        "cpu": {"shares": 1024, "quota": 50000, "period": 100_000, "cpus": "0-2,9"},
        "pids": {"limit": 7},
    }))
    .unwrap();
    let found = properties(&resources);
    let of = |name: &str| {
        found
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, v)| v.clone())
    };
    assert_eq!(of("MemoryMax"), Some(Property::Number(1000)));
    assert_eq!(of("MemorySwapMax"), Some(Property::Number(500)));
    assert_eq!(of("MemoryLow"), Some(Property::Number(u64::MAX)));
    assert_eq!(of("CPUQuotaPerSecUSec"), Some(Property::Number(500_000)));
    assert_eq!(of("TasksMax"), Some(Property::Number(7)));
    assert_eq!(of("AllowedCPUs"), Some(Property::Bytes(vec![7, 2])));
    assert!(of("CPUWeight").is_some() && of("AllowedMemoryNodes").is_none());
    // What `apply` leaves as it is, systemd must not be told.
    let unset = serde_json::from_value(serde_json::json!({
        "memory": {"limit": 0, "swap": 0, "reservation": 0},
        "cpu": {"shares": 0, "quota": 0, "period": 0},
        "pids": {"limit": 0},
    }))
    .unwrap();
    // 0 processes are taken as 1, by both.
    assert_eq!(properties(&unset), [("TasksMax", Property::Number(1))]);
    let none = serde_json::from_value(serde_json::json!({
        "memory": {"limit": -1}, "cpu": {"quota": -1}, "pids": {"limit": -1},
    }))
    .unwrap();
    let infinite = |name| (name, Property::Number(u64::MAX));
    assert_eq!(
        properties(&none),
        [
            infinite("MemoryMax"),
            ("CPUQuotaPeriodUSec", Property::Number(100_000)),
            infinite("CPUQuotaPerSecUSec"),
            infinite("TasksMax"),
        ]
    );
    for bad in ["x", "3-1", "0-99999", ""] {
        assert_eq!(cpu_mask(bad), None, "{bad}");
    }
}
