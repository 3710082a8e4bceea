//! Joining what runs: streams, input that ends once, files; and alarms on the
//! pressure that a container feels.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use common::{Host, LIMIT};
use rkube_engine::api::{Alarm, ContainerRuntime, Event, PressureResource};

/// Reads until so much is there.
fn read_some(file: &mut File, wanted: &str) {
    let mut seen = String::new();
    let mut buffer = [0; 256];
    while !seen.contains(wanted) {
        let n = file.read(&mut buffer).expect("read");
        assert!(n > 0, "the end came before {wanted:?}: {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
}

fn outputs(attached: &mut rkube_engine::Attached) -> Vec<File> {
    let fds: Vec<OwnedFd> = attached.outputs.drain(..).collect();
    fds.into_iter().map(File::from).collect()
}

#[test]
fn streams_are_joined_and_an_input_ends_once() {
    let host = Host::new();
    host.engine()
        .run_sandbox(&host.sandbox("j"))
        .expect("sandbox");
    let mut once = host.container("j", "once", &["run", "echo -n ask; cat; echo bye; exit 4"]);
    once.stdin = true;
    once.stdin_once = true;
    host.start(&once);
    let id = &once.id;
    let mut one = host.engine().attach(id, true).expect("attach");
    let mut two = host.engine().attach(id, false).expect("attach");
    assert!(one.input_once && one.terminal.is_none() && two.input.is_none());
    let (mut first, mut second) = (outputs(&mut one), outputs(&mut two));
    // A line that has not ended is shown to both, and written to no log yet.
    read_some(&mut first[0], "ask");
    read_some(&mut second[0], "ask");
    let mut input = File::from(one.input.take().expect("input"));
    input.write_all(b"typed\n").expect("write");
    read_some(&mut first[0], "typed\n");
    read_some(&mut second[0], "typed\n");
    drop(input);
    host.engine().close_input(id).expect("close");
    assert_eq!(host.exited(id).code, 4);
    // The end of the container is the end of its streams.
    let mut rest = String::new();
    first[0].read_to_string(&mut rest).expect("read");
    assert_eq!(rest, "bye\n");
    first[1].read_to_string(&mut rest).expect("read");
    assert_eq!(rest, "bye\n");
    assert_eq!(host.log(id), ["asktyped", "bye"]);
    assert!(host.engine().attach(id, false).is_err());
    host.end();
}

#[test]
fn an_input_that_goes_on_outlives_whoever_wrote_to_it() {
    let host = Host::new();
    host.engine()
        .run_sandbox(&host.sandbox("k"))
        .expect("sandbox");
    let mut ever = host.container("k", "ever", &["cat"]);
    ever.stdin = true;
    host.start(&ever);
    for word in ["one\n", "two\n"] {
        let mut attached = host.engine().attach(&ever.id, true).expect("attach");
        let mut files = outputs(&mut attached);
        let mut input = File::from(attached.input.take().expect("input"));
        input.write_all(word.as_bytes()).expect("write");
        read_some(&mut files[0], word);
        drop(input);
        host.engine().close_input(&ever.id).expect("nothing to do");
    }
    let deaf = host.container("k", "deaf", &["sleep", "inf"]);
    host.start(&deaf);
    let error = host.engine().attach(&deaf.id, true).expect_err("no input");
    assert!(
        error.to_string().contains("spec.containers[].stdin"),
        "{error}"
    );
    // Its files are there under its root.
    let files = host.engine().files(&ever.id).expect("files");
    let name = rustix::fs::openat(
        &files.root,
        "proc/1/comm",
        rustix::fs::OFlags::RDONLY,
        rustix::fs::Mode::empty(),
    );
    let mut comm = String::new();
    File::from(name.expect("open"))
        .read_to_string(&mut comm)
        .expect("read");
    assert_eq!(
        (comm.as_str(), files.first_id, files.uid),
        ("toolbox\n", 0, 0)
    );
    host.end();
}

/// The shortest window that needs no CAP_SYS_RESOURCE.
const ALARM: Alarm = Alarm {
    resource: PressureResource::Cpu,
    full: false,
    stall_usec: 50_000,
    window_usec: 2_000_000,
};

#[test]
fn pressure_sets_an_alarm_off() {
    let mut host = Host::new();
    host.engine()
        .run_sandbox(&host.sandbox("a"))
        .expect("sandbox");
    let mut busy = host.container("a", "busy", &["burn-cpu", "--threads", "8"]);
    busy.pressure_alarms = vec![ALARM];
    if !pressure_files() {
        // v1 alone: the error says what is missing.
        let error = host.engine().start_container(&busy).expect_err("no PSI");
        assert!(error.to_string().contains("pressure alarm"), "{error}");
        return host.end();
    }
    host.start(&busy);
    let told = |host: &Host| match host.events.recv_timeout(LIMIT).expect("an event") {
        Event::Pressure { id, alarm } => (id, alarm),
        other => panic!("{other:?}"),
    };
    assert_eq!(told(&host), (busy.id.clone(), ALARM));
    // Another writer sets it again.
    host.crash();
    assert_eq!(told(&host), (busy.id.clone(), ALARM));
    host.engine().remove_container(&busy.id).expect("remove");
    let mut odd = host.container("a", "odd", &["sleep", "inf"]);
    odd.pressure_alarms = vec![Alarm {
        window_usec: 1,
        ..ALARM
    }];
    let error = host.engine().start_container(&odd).expect_err("no window");
    assert!(error.to_string().contains("cpu.pressure"), "{error}");
    host.end();
}

fn pressure_files() -> bool {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .iter()
        .any(|dir| std::path::Path::new(dir).join("cpu.pressure").exists())
}
