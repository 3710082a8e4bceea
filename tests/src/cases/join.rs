//! `rkube attach`, `rkube cp` and `rkube port-forward`.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::Signal;
use serde_json::json;

use crate::case::Case;
use crate::command::{Cmd, Next, Running};
use crate::host::TestHost;
use crate::pods::{pod, script, status, tool, with};
use crate::wait::{WAIT_SECS, until};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("join::attach_carries_streams", attach_carries_streams),
        Case::new("join::attach_with_a_terminal", attach_with_a_terminal),
        Case::new("join::attach_outlives_a_keeper", attach_outlives_a_keeper),
        Case::new("join::cp_into_and_out_of_a_pod", cp_into_and_out_of_a_pod),
        Case::new("join::cp_of_archives", cp_of_archives),
        Case::new("join::cp_is_led_nowhere", cp_is_led_nowhere),
        Case::new("join::cp_with_a_user_namespace", cp_with_a_user_namespace),
        Case::new("join::port_forward", port_forward),
    ]
}

const LIMIT: Duration = Duration::from_secs(WAIT_SECS);

fn attach_carries_streams(host: &TestHost) -> anyhow::Result<()> {
    let once = with(
        script("once", "cat; echo out; cat /absent; exit 7"),
        "",
        json!({"stdin": true, "stdinOnce": true}),
    );
    let ever = with(tool("ever", &["cat"]), "", json!({"stdin": true}));
    host.up(&[pod("p", &[ever, once, tool("deaf", &["sleep", "inf"])])])?;
    // Two look on, one of them types.
    let mut typing = host.rkube(["attach", "-i", "p"])?.spawn()?;
    let mut looking = host.rkube(["attach", "p", "-c", "ever"])?.spawn()?;
    typing.write(b"to both\n")?;
    typing.line("its own words", LIMIT, |l| l == "to both")?;
    // It may have come after those.
    until("both to hear", LIMIT, || {
        typing.write(b"again\n")?;
        Ok(matches!(looking.next_line(Duration::from_millis(200)), Next::Line(_)).then_some(()))
    })?;
    looking.signal(Signal::TERM)?;
    let (ended, lines) = looking.end(LIMIT)?;
    ensure!(ended.code() == Some(143), "{ended} {lines:?}");
    drop(typing);
    let log = host.rkube(["logs", "p", "-c", "ever"])?.ok()?.stdout;
    ensure!(log.starts_with("to both\nagain\n"), "{log}");
    // An input that ends once ends for the program; its errors are no output,
    // and its exit code is the command's.
    let out = host
        .rkube(["attach", "-i", "p", "-c", "once"])?
        .stdin("one\ntwo\n")
        .exits(7)?;
    ensure!(out.stdout == "one\ntwo\nout\n", "{out}");
    ensure!(out.stderr.contains("/absent"), "{out}");
    for (args, code, what) in [
        (["-i", "deaf"], 1, "stdin"),
        (["-t", "none"], 64, "none"),
        (["-t", "once"], 1, "not running"),
    ] {
        let out = host.rkube(["attach", args[0], "p", "-c", args[1]])?;
        let out = out.exits(code)?;
        ensure!(out.stderr.contains(what), "{out}");
    }
    host.rm(&["p"])?;
    Ok(())
}

/// script(1) is the terminal.
fn on_terminal(host: &TestHost, args: &str) -> anyhow::Result<Running> {
    let program = host.program()?.to_string_lossy().into_owned();
    let root = host.root().to_string_lossy().into_owned();
    let line = format!("stty rows 31 cols 97; {program} --root {root} {args}; echo code $?");
    Cmd::new("script", ["-qec", &line, "/dev/null"]).spawn()
}

fn attach_with_a_terminal(host: &TestHost) -> anyhow::Result<()> {
    let shell = with(
        script("a", "echo -n \"prompt> \"; cat; tty; exit 5"),
        "",
        json!({"stdin": true, "tty": true}),
    );
    host.up(&[pod("p", &[shell])])?;
    host.wait_pod("p", "the container", |p| {
        status(p, "a")["state"]["running"].is_object()
    })?;
    let short = Duration::from_millis(300);
    // What waits for an answer is shown, though no line has ended. Until the
    // terminal is raw, what is typed is thrown away.
    let mut first = on_terminal(host, "attach -it p")?;
    until("the prompt and what was typed", LIMIT, || {
        first.write(b"typed\r")?;
        let line = first.next_line(short);
        Ok(matches!(line, Next::Line(l) if l.contains("prompt> typed")).then_some(()))
    })?;
    first.write(b"\x10\x11")?;
    first.line("the keys to take effect", LIMIT, |l| {
        l.contains("left the container running")
    })?;
    first.line("its end", LIMIT, |l| l.contains("code 0"))?;
    ensure!(host.life("p", "a")?.runs());
    // It goes on where it was, has the new terminal's size, and its end is the
    // command's.
    let mut second = on_terminal(host, "attach -it p --detach-keys ctrl-a,d")?;
    until("the second terminal", LIMIT, || {
        second.write(b"second\r")?;
        // Drained, so that its output does not stop it.
        second.next_line(short);
        let log = host.rkube(["logs", "p"])?.ok()?.stdout;
        Ok(log.contains("second").then_some(()))
    })?;
    second.write(b"\x04")?;
    second.line("the size", LIMIT, |l| l.contains("97x31"))?;
    second.line("its end", LIMIT, |l| l.contains("code 5"))?;
    let out = host.rkube(["attach", "-it", "p"])?.exits(64)?;
    ensure!(out.stderr.contains("terminal"), "{out}");
    Ok(())
}

fn attach_outlives_a_keeper(host: &TestHost) -> anyhow::Result<()> {
    let cat = with(tool("a", &["cat"]), "", json!({"stdin": true}));
    host.up(&[pod("p", &[cat])])?;
    let life = host.life("p", "a")?;
    let mut attached = host.rkube(["attach", "-i", "p"])?.spawn()?;
    attached.write(b"one\n")?;
    attached.line("the first word", LIMIT, |l| l == "one")?;
    host.keeper("p")?.kill()?;
    attached.line("another attach", LIMIT, |l| l.contains("attaching again"))?;
    attached.write(b"two\n")?;
    attached.line("the second word", LIMIT, |l| l == "two")?;
    ensure!(host.life("p", "a")? == life);
    host.rkube(["stop", "p", "--grace", "0"])?.ok()?;
    let (ended, lines) = attached.end(LIMIT)?;
    ensure!(ended.code() == Some(137), "{ended} {lines:?}");
    Ok(())
}

fn cp(host: &TestHost, args: &[&str]) -> anyhow::Result<Cmd> {
    host.rkube(["cp"].iter().chain(args))
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path that is no text")
}

fn cp_into_and_out_of_a_pod(host: &TestHost) -> anyhow::Result<()> {
    let user = with(
        tool("b", &["sleep", "inf"]),
        "",
        json!({"securityContext": {"runAsUser": 7, "runAsGroup": 8},
            "volumeMounts": [{"name": "v", "mountPath": "/vol"}]}),
    );
    let made = with(
        pod("p", &[tool("a", &["sleep", "inf"]), user]),
        "spec",
        json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
    );
    host.up(&[made])?;
    let file = host.file("f", "content\n")?;
    let tree = host.files().join("tree");
    std::fs::create_dir_all(tree.join("deep"))?;
    std::fs::write(tree.join("deep/x"), vec![b'x'; 200_000])?;
    symlink("deep/x", tree.join("link"))?;
    let (file, tree) = (text(&file)?, text(&tree)?);
    host.tell("p", &["mkdir", "/data"])?;
    cp(host, &[file, "p:/data"])?.ok()?;
    cp(host, &[file, "default/p/a:data/other"])?.ok()?;
    cp(host, &[tree, "p:/data"])?.ok()?;
    ensure!(host.tell("p", &["cat", "/data/f", "/data/other"])? == "content\ncontent\n");
    ensure!(host.tell("p", &["cat", "/data/tree/link"])?.len() == 200_000);
    ensure!(host.tell("p", &["readlink", "/data/tree/link"])?.trim() == "deep/x");
    // Into a volume, for the container's own user; another container sees it.
    cp(host, &[tree, "p/b:/vol/new"])?.ok()?;
    let pid = host.life("p", "b")?.pid;
    let at = std::fs::metadata(format!("/proc/{pid}/root/vol/new/deep/x"))?;
    ensure!((at.uid(), at.gid()) == (7, 8), "{} {}", at.uid(), at.gid());
    // A file that is mounted from elsewhere is written over.
    let hosts = host.file("hosts", "127.0.0.1 localhost changed\n")?;
    cp(host, &[text(&hosts)?, "p:/etc/hosts"])?.ok()?;
    ensure!(host.tell("p", &["cat", "/etc/hosts"])?.contains("changed"));
    // Out again, from one pod's container to another's, and the pod's /proc.
    let out = host.files().join("out");
    cp(host, &["p:/data/tree", text(&out)?])?.ok()?;
    ensure!(std::fs::read(out.join("deep/x"))?.len() == 200_000);
    ensure!(std::fs::read_link(out.join("link"))? == Path::new("deep/x"));
    let own = std::fs::metadata(out.join("deep/x"))?;
    ensure!((own.uid(), own.gid()) == (0, 0));
    cp(host, &["p/a:/data/f", "p/b:/vol/f"])?.ok()?;
    ensure!(
        host.rkube(["exec", "p", "-c", "b", "--", "cat", "/vol/f"])?
            .ok()?
            .stdout
            == "content\n"
    );
    let comm = host.files().join("comm");
    cp(host, &["p:/proc/1/comm", text(&comm)?])?.ok()?;
    ensure!(std::fs::read_to_string(&comm)?.trim() == "sleep");
    for (args, what) in [
        ([file, "p:/absent/x"], "/absent"),
        ([file, "p:/data/tree/none/"], "no such directory"),
        ([tree, "p:/data/f"], "no directory"),
        (["p:/absent", "/tmp"], "/absent"),
        (["q:/x", "/tmp"], "q"),
        (["p/zzz:/x", "/tmp"], "zzz"),
    ] {
        let out = cp(host, &args)?.output()?;
        ensure!(
            !out.status.success() && out.stderr.contains(what),
            "{args:?}: {out}"
        );
    }
    host.rm(&["p"])?;
    Ok(())
}

fn cp_of_archives(host: &TestHost) -> anyhow::Result<()> {
    host.up(&[pod("p", &[tool("a", &["sleep", "inf"])])])?;
    host.tell("p", &["mkdir", "-p", "/data/sub"])?;
    host.tell("p", &["write", "/data/sub/f", "text"])?;
    let out = cp(host, &["p:/data", "-"])?.ok()?.stdout.into_bytes();
    let mut names = Vec::new();
    for entry in tar::Archive::new(out.as_slice()).entries()? {
        let mut entry = entry?;
        let mut body = String::new();
        entry.read_to_string(&mut body)?;
        names.push((entry.path()?.to_string_lossy().into_owned(), body));
    }
    names.sort();
    let names: Vec<(&str, &str)> = names
        .iter()
        .map(|(n, b)| (n.as_str(), b.as_str()))
        .collect();
    ensure!(
        names == [("data", ""), ("data/sub", ""), ("data/sub/f", "text\n")]
            || names == [("data/", ""), ("data/sub/", ""), ("data/sub/f", "text\n")],
        "{names:?}"
    );
    host.tell("p", &["mkdir", "/in"])?;
    cp(host, &["-", "p:/in"])?.stdin(out).ok()?;
    ensure!(host.tell("p", &["cat", "/in/data/sub/f"])? == "text\n");
    let cut = cp(host, &["-", "p:/in"])?
        .stdin("no archive at all")
        .exits(1)?;
    ensure!(cut.stderr.contains("archive"), "{cut}");
    let absent = cp(host, &["-", "p:/absent"])?.stdin("").exits(1)?;
    ensure!(absent.stderr.contains("/absent"), "{absent}");
    host.rm(&["p"])?;
    Ok(())
}

/// Links in a container and in archives, and a container that swaps them
/// while copies are made.
fn cp_is_led_nowhere(host: &TestHost) -> anyhow::Result<()> {
    host.up(&[pod("p", &[tool("a", &["sleep", "inf"])])])?;
    let outside = host.files().join("outside");
    std::fs::create_dir(&outside)?;
    std::fs::write(outside.join("secret"), "secret")?;
    let tree = host.files().join("links");
    std::fs::create_dir(&tree)?;
    symlink(&outside, tree.join("abs"))?;
    symlink("/proc/self/root", tree.join("magic"))?;
    symlink("../../../../../../../../../..", tree.join("up"))?;
    let file = host.file("f", "new")?;
    cp(host, &[text(&tree)?, "p:/links"])?.ok()?;
    let there = text(&outside)?;
    for path in [
        "p:/links/abs/f".to_owned(),
        "p:/links/magic/f".to_owned(),
        format!("p:/links/up{there}/f"),
        format!("p:/links/up{there}/secret"),
    ] {
        let out = cp(host, &[text(&file)?, &path])?.output()?;
        ensure!(!out.status.success(), "{path}: {out}");
    }
    for path in ["p:/links/abs/secret", "p:/links/magic/etc/passwd"] {
        let out = cp(host, &[path, text(&host.files().join("stolen"))?])?.output()?;
        ensure!(!out.status.success(), "{path}: {out}");
    }
    // An archive from a pod cannot lead out of the directory it goes to.
    let out = host.files().join("out");
    std::fs::create_dir(&out)?;
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "a", &outside)?;
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    header.set_mode(0o644);
    builder.append_data(&mut header, "a/x", b"data".as_slice())?;
    let archive = builder.into_inner()?;
    let refused = cp(host, &["-", text(&out)?])?.stdin(archive).exits(1)?;
    ensure!(refused.stderr.contains("link"), "{refused}");
    let left = std::fs::read_dir(&outside)?.count();
    ensure!(left == 1 && std::fs::read_to_string(outside.join("secret"))? == "secret");
    host.rm(&["p"])?;
    Ok(())
}

/// `hostUsers: false`: in its own files and in its id-mapped volumes, a copy
/// belongs to the pod's own ids.
fn cp_with_a_user_namespace(host: &TestHost) -> anyhow::Result<()> {
    let mounts = json!([{"name": "disk", "mountPath": "/disk"}]);
    let made = with(
        pod(
            "p",
            &[with(
                tool("a", &["sleep", "inf"]),
                "",
                json!({"volumeMounts": mounts, "securityContext": {"runAsUser": 9}}),
            )],
        ),
        "spec",
        json!({"hostUsers": false, "volumes": [{"name": "disk", "emptyDir": {}}]}),
    );
    host.up(&[made])?;
    let file = host.file("f", "content\n")?;
    let pid = host.life("p", "a")?.pid;
    let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map"))?;
    let first: u32 = map.split_whitespace().nth(1).context("a map")?.parse()?;
    // An id-mapped volume, and the container's own layer.
    for dir in ["/disk", "/etc"] {
        cp(host, &[text(&file)?, &format!("p:{dir}/f")])?.ok()?;
        let inside = format!("/proc/{pid}/root{dir}/f");
        let stat = std::fs::metadata(&inside)?;
        ensure!(
            stat.uid() == first + 9,
            "{dir}: {} is not {first} + 9",
            stat.uid()
        );
        ensure!(host.tell("p", &["cat", &format!("{dir}/f")])? == "content\n");
    }
    let back = host.files().join("back");
    cp(host, &["-a", "p:/disk/f", text(&back)?])?.ok()?;
    ensure!(std::fs::metadata(&back)?.uid() == 9);
    host.rm(&["p"])?;
    Ok(())
}

/// What an HTTP server at an address says.
fn get(address: SocketAddr) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn port_forward(host: &TestHost) -> anyhow::Result<()> {
    let made = with(
        pod(
            "p",
            &[tool("a", &["httpd", "-p", "8080", "--text", "inside"])],
        ),
        "spec.containers.0",
        json!({"ports": [{"name": "web", "containerPort": 8080}]}),
    );
    host.up(&[made])?;
    let mut forward = host.rkube(["port-forward", "p", ":web", ":9"])?.spawn()?;
    let line = forward.line("the port", LIMIT, |l| {
        l.starts_with("Forwarding from 127.0.0.1:") && l.ends_with("-> 8080")
    })?;
    let dead = forward.line("the other port", LIMIT, |l| {
        l.starts_with("Forwarding from 127.0.0.1:") && l.ends_with("-> 9")
    })?;
    let port = |line: &str| -> anyhow::Result<u16> {
        let text = line.split(':').nth(1).and_then(|t| t.split(' ').next());
        Ok(text.context("a port")?.parse()?)
    };
    let (live, dead) = (port(&line)?, port(&dead)?);
    let v4 = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    // Both of localhost's addresses, and several at a time.
    let v6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), live);
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..8)
            .map(|n| scope.spawn(move || get(if n % 2 == 0 { v4(live) } else { v6 })))
            .collect();
        for answer in asked {
            let answer = answer.join().map_err(|_| anyhow::anyhow!("panic"))??;
            ensure!(answer.ends_with("inside\n"), "{answer}");
        }
        anyhow::Ok(())
    })?;
    // A port where nobody listens ends that connection alone.
    let nothing = get(v4(dead)).unwrap_or_default();
    ensure!(nothing.is_empty(), "{nothing}");
    forward.line("what went wrong", LIMIT, |l| l.contains("error: port 9"))?;
    ensure!(get(v4(live))?.ends_with("inside\n"));
    // The writer may die; the next connection starts another one.
    host.supervisor()?.context("a supervisor")?.kill()?;
    ensure!(get(v4(live))?.ends_with("inside\n"));
    // It ends with the pod.
    host.rm(&["p"])?;
    let (ended, lines) = forward.end(LIMIT)?;
    ensure!(ended.code() == Some(1), "{ended} {lines:?}");
    let out = host.rkube(["port-forward", "p", "1:2:3"])?.output()?;
    ensure!(!out.status.success(), "{out}");
    Ok(())
}
