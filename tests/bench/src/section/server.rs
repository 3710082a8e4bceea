//! `rkube server`: its start, what it takes at rest, pods through the API, and
//! requests under load beside etcd's.
//!
//! etcd stores bytes; rkube's request is also authenticated, authorized,
//! admitted, defaulted and validated, and its informers follow. The ratio says
//! how much of etcd's own rate is left after that.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use rkube_pki::kubeconfig::Kubeconfig;
use rkube_pki::{Pki, ServerNames};
use rkube_tests::command::{Cmd, Running};
use rkube_tests::outside::Outside;
use rkube_tests::wait;
use rustix::process::Signal;

use super::{Bench, peer};
use crate::clock;
use crate::kernel;
use crate::load::{Ask, Done, Job, Rate, Task, Watch};
use crate::peers;
use crate::place::Place;
use crate::report::Row;
use crate::stats::Samples;

const PATIENCE: Duration = Duration::from_secs(60);
const NODE: &str = "bench";
const URL: &str = "https://127.0.0.1:6443";
/// How often a root is made and its server started twice, by default.
const STARTS: usize = 20;
/// A server is at rest so long after its start; then it is looked at for a
/// while.
const SETTLING: Duration = Duration::from_secs(10);
const REST: Duration = Duration::from_secs(60);
/// Pods one after the other.
const PODS: usize = 100;
/// Pods at once, and how often.
const CROWD: usize = 100;
const CROWDS: usize = 3;
/// Rounds of load, rkube and etcd in turns, and the length of each.
const ROUNDS: usize = 3;
const SECONDS: u32 = 5;
/// As many connections, with so many requests under way on each.
const CONNECTIONS: usize = 8;
const STREAMS: usize = 8;
const WATCHERS: usize = 100;
const WRITES: u32 = 100;
const WRITE_PAUSE_MS: u64 = 20;
/// Size of etcd's values: that of such a pod in rkube's store.
const VALUE_BYTES: usize = 1200;

pub(super) fn rows(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let mut rows = starts(bench)?;
    rows.extend(rest(bench)?);
    rows.extend(pods(bench)?);
    rows.extend(load(bench)?);
    Ok(rows)
}

/// A server in a place of its own.
struct Server {
    running: Running,
    config: PathBuf,
    began_ns: i64,
}

impl Server {
    fn spawn(program: &Path, root: &Path) -> anyhow::Result<Server> {
        let shown = root.to_string_lossy();
        let server = Cmd::new(program, ["--root", &shown, "server", "--node-name", NODE]);
        let began_ns = clock::monotonic_ns();
        Ok(Server {
            running: server.spawn()?,
            config: root.join("etc/rkube/admin.conf"),
            began_ns,
        })
    }

    /// Milliseconds until `/readyz` said so, and the node.
    fn ready(&self, load: &Path, root: &Path) -> anyhow::Result<[f64; 2]> {
        let task = Task::Ready {
            since_ns: self.began_ns,
            authority: root.join("var/lib/rkube/pki/ca.crt"),
            url: URL.to_owned(),
            node: NODE.to_owned(),
        };
        let done = run(load, &self.config, task)?.done;
        done.times_ms
            .try_into()
            .map_err(|_| anyhow::anyhow!("two times were asked for"))
    }

    fn end(self) -> anyhow::Result<()> {
        self.running.signal(Signal::TERM)?;
        let (status, lines) = self.running.end(PATIENCE)?;
        ensure!(status.success(), "{status}:\n{}", lines.join("\n"));
        Ok(())
    }
}

/// What a client did, and its processor time.
struct Worked {
    done: Done,
    cpu: Duration,
}

fn run(load: &Path, config: &Path, task: Task) -> anyhow::Result<Worked> {
    let config = config.to_path_buf();
    let mut command = Command::new(load);
    command.arg(serde_json::to_string(&Job { config, task })?);
    let timed = clock::succeeds(command)?;
    Ok(Worked {
        done: serde_json::from_str(&timed.stdout).context("read what the client did")?,
        cpu: timed.cpu,
    })
}

/// Does something with a server that is ready, in a place of its own.
fn with_server<T: Send + 'static>(
    bench: &Bench,
    work: impl FnOnce(&Server) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let place = Place::of_rkube(&bench.program)?;
    let root = place.dir().join("root");
    let (program, load) = (bench.program.clone(), bench.load.clone());
    let done = place.run(move || {
        let _outside = Outside::join()?;
        let server = Server::spawn(&program, &root)?;
        server.ready(&load, &root)?;
        let done = work(&server)?;
        server.end()?;
        Ok(done)
    });
    place.close()?;
    done
}

fn starts(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    // A node that was ready is so from the first moment of a later start.
    let mut samples: [Samples; 3] = Default::default();
    for _ in 0..bench.runs.min(STARTS) {
        let place = Place::of_rkube(&bench.program)?;
        let root = place.dir().join("root");
        let (program, load) = (bench.program.clone(), bench.load.clone());
        let times = place.run(move || {
            let _outside = Outside::join()?;
            let mut times = Vec::new();
            for _ in 0..2 {
                let server = Server::spawn(&program, &root)?;
                times.extend(server.ready(&load, &root)?);
                server.end()?;
            }
            Ok(times)
        });
        place.close()?;
        for (samples, time_ms) in samples.iter_mut().zip(times?) {
            samples.push(time_ms);
        }
    }
    let [first, first_node, second] = samples;
    let row = |what: &str, samples, target: &str| {
        Row::new(what, "rkube server", "ms", samples).target(target)
    };
    Ok(vec![
        row("/readyz after the first start of a root", first, "100 ms"),
        row("node Ready after it", first_node, "500 ms"),
        row("/readyz after a later start", second, "100 ms"),
    ])
}

fn rest(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let (pss_kib, percent) = with_server(bench, |server| {
        let pid = server.running.pid();
        std::thread::sleep(SETTLING);
        let before = kernel::cpu_time(pid)?;
        std::thread::sleep(REST);
        let used = kernel::cpu_time(pid)?.saturating_sub(before);
        let percent = used.as_secs_f64() / REST.as_secs_f64() * 100.0;
        Ok((kernel::pss_kib(pid)?, percent))
    })?;
    // Far below 2^52.
    #[expect(clippy::cast_precision_loss, reason = "a size in KiB")]
    let pss_mb = pss_kib as f64 * 1024.0 / 1e6;
    Ok(vec![
        Row::one("PSS at rest, no pods", "rkube server", "MB", pss_mb).target("40 MB"),
        Row::one(
            "processor time at rest, over 60 s",
            "rkube server",
            "% of a core",
            percent,
        )
        .target("0.1%"),
    ])
}

fn pods(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let load = bench.load.clone();
    let (single, crowd) = with_server(bench, move |server| {
        // The first one unpacks the image.
        run(&load, &server.config, Task::Pods { count: 1 })?;
        let single = run(&load, &server.config, Task::Pods { count: PODS })?;
        let mut crowd = Samples::default();
        for _ in 0..CROWDS {
            let done = run(&load, &server.config, Task::Crowd { count: CROWD })?.done;
            crowd.push(done.times_ms.first().context("no time")? / 1e3);
        }
        Ok((single.done, crowd))
    })?;
    let single = single.times_ms.into_iter().collect();
    Ok(vec![
        Row::new(
            "pod: POST to Running seen by a watch",
            "rkube server",
            "ms",
            single,
        )
        .target("p50 25 ms"),
        Row::new(
            "100 pods at once: POST until a watch saw all running",
            "rkube server",
            "s",
            crowd,
        )
        .target("3 s"),
    ])
}

/// One side of a comparison under load.
#[derive(Default)]
struct Side {
    writes: Rates,
    reads: Rates,
    watch_ms: Samples,
}

#[derive(Default)]
struct Rates {
    per_second: Samples,
    server_us: Samples,
    client_us: Samples,
    times_ms: Vec<f64>,
}

impl Rates {
    fn add(&mut self, (worked, server): Rated) {
        let count = f64::from(worked.done.count);
        self.per_second.push(count / worked.done.seconds);
        self.server_us.push(server.as_secs_f64() * 1e6 / count);
        self.client_us.push(worked.cpu.as_secs_f64() * 1e6 / count);
        self.times_ms.extend(worked.done.times_ms);
    }

    fn row(self, what: &str, who: &str) -> Row {
        let times: Samples = self.times_ms.into_iter().collect();
        let note = format!(
            "p50 {:.1} ms, p99 {:.1} ms; processor time of one: server {:.0} us, client {:.0} us",
            times.median().unwrap_or(0.0),
            times.p99().unwrap_or(0.0),
            self.server_us.median().unwrap_or(0.0),
            self.client_us.median().unwrap_or(0.0),
        );
        Row::new(what, who, "1/s", self.per_second).note(note)
    }
}

/// A server under load.
#[derive(Clone)]
struct Loaded {
    load: PathBuf,
    config: PathBuf,
    pid: u32,
    etcd: bool,
}

type Rated = (Worked, Duration);

impl Loaded {
    fn rate(&self, ask: Ask) -> anyhow::Result<Rated> {
        let rate = Rate {
            ask,
            seconds: SECONDS,
            connections: CONNECTIONS,
            streams: STREAMS,
        };
        let before = kernel::cpu_time(self.pid)?;
        let worked = run(&self.load, &self.config, Task::Rate(rate))?;
        Ok((worked, kernel::cpu_time(self.pid)?.saturating_sub(before)))
    }

    /// Writes, then reads of what was written.
    fn round(&self, round: usize) -> anyhow::Result<(Rated, Rated)> {
        let tag = format!("r{round}");
        let written = self.rate(match self.etcd {
            true => Ask::Puts {
                tag: tag.clone(),
                bytes: VALUE_BYTES,
            },
            false => Ask::CreatePods { tag: tag.clone() },
        })?;
        let count = written.0.done.count;
        let read = self.rate(match self.etcd {
            true => Ask::Ranges { tag, count },
            false => Ask::GetPods { tag, count },
        })?;
        Ok((written, read))
    }

    fn watch(&self) -> anyhow::Result<Samples> {
        let watch = Task::Watch(Watch {
            etcd: self.etcd,
            watchers: WATCHERS,
            writes: WRITES,
            pause_ms: WRITE_PAUSE_MS,
        });
        let done = run(&self.load, &self.config, watch)?.done;
        Ok(done.times_ms.into_iter().collect())
    }
}

impl Side {
    fn add(&mut self, (written, read): (Rated, Rated)) {
        self.writes.add(written);
        self.reads.add(read);
    }
}

const CREATES: &str = "durable pod creates, HTTP/2, TLS, 64 under way";
const GETS: &str = "GET of a pod, HTTP/2, TLS, 64 under way";
const WATCHED: &str = "write to each of 100 watchers' event";

fn load(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let client = bench.load.clone();
    let etcd = Etcd::start(&client);
    let work = move |server: &Server| {
        let rkube = Loaded {
            load: client,
            config: server.config.clone(),
            pid: server.running.pid(),
            etcd: false,
        };
        let (mut ours, mut theirs) = (Side::default(), Side::default());
        // Before there are a hundred thousand pods.
        ours.watch_ms = rkube.watch()?;
        let mut peer = etcd.and_then(|etcd| {
            theirs.watch_ms = etcd.run(Loaded::watch)?;
            Ok(etcd)
        });
        for round in 0..ROUNDS {
            ours.add(rkube.round(round)?);
            peer = peer.and_then(|etcd| {
                theirs.add(etcd.run(move |etcd| etcd.round(round))?);
                Ok(etcd)
            });
        }
        let theirs = peer.and_then(|etcd| {
            etcd.end()?;
            Ok(theirs)
        });
        Ok((ours, theirs))
    };
    let (ours, theirs) = with_server(bench, work)?;
    let mut theirs = theirs.map(|side| {
        [
            side.writes.row(CREATES, "etcd put"),
            side.reads.row(GETS, "etcd range"),
            Row::new(WATCHED, "etcd put", "ms", side.watch_ms),
        ]
        .into_iter()
    });
    let ours = [
        ours.writes.row(CREATES, "rkube server").target("5,000"),
        ours.reads.row(GETS, "rkube server").target("20,000"),
        Row::new(WATCHED, "rkube server", "ms", ours.watch_ms).target("p99 2 ms"),
    ];
    let mut rows = Vec::new();
    for ours in ours {
        rows.push(ours.clone());
        let row = match &mut theirs {
            Ok(theirs) => theirs.next().context("no row of etcd's"),
            Err(e) => Err(anyhow::anyhow!("{e:#}")),
        };
        peer(&mut rows, &ours.what, "etcd", row.map(|r| r.beside(&ours)));
    }
    Ok(rows)
}

/// etcd in a place of its own, with certificates as rkube's server has them.
struct Etcd {
    place: Place,
    running: Running,
    loaded: Loaded,
}

const ETCD_ADDRESS: &str = "127.0.0.1:2379";

impl Etcd {
    fn start(load: &Path) -> anyhow::Result<Etcd> {
        let program = peers::need("etcd")?;
        let place = Place::of_peer()?;
        let dir = place.dir().to_path_buf();
        let (running, config) = place.run(move || start_etcd(&program, &dir))?;
        let loaded = Loaded {
            load: load.to_path_buf(),
            config,
            pid: running.pid(),
            etcd: true,
        };
        Ok(Etcd {
            place,
            running,
            loaded,
        })
    }

    /// Does something with it, in its place.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Loaded) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let loaded = self.loaded.clone();
        self.place.run(move || work(&loaded))
    }

    fn end(self) -> anyhow::Result<()> {
        self.running.signal(Signal::TERM)?;
        self.running.end(PATIENCE)?;
        self.place.close()
    }
}

/// Gives the process, and a kubeconfig for it.
fn start_etcd(program: &Path, dir: &Path) -> anyhow::Result<(Running, PathBuf)> {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let pki = Pki::open(&dir.join("pki"), now_s)?;
    let identity = pki.server(&ServerNames::default(), now_s)?;
    let (certificate, key) = (dir.join("etcd.crt"), dir.join("etcd.key"));
    std::fs::write(&certificate, &identity.certificate)?;
    std::fs::write(&key, &identity.key)?;
    let url = format!("https://{ETCD_ADDRESS}");
    let config = dir.join("client.conf");
    let kubeconfig = Kubeconfig {
        server: url.clone(),
        authority: pki.authority().pem().to_owned(),
        ..Kubeconfig::default()
    };
    std::fs::write(&config, kubeconfig.to_yaml("etcd", "bench"))?;
    let flags = [
        format!("--data-dir={}", dir.join("data").display()),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
        "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
        format!("--cert-file={}", certificate.display()),
        format!("--key-file={}", key.display()),
        "--log-level=error".to_owned(),
    ];
    let running = Cmd::new(program, flags).spawn()?;
    wait::until("etcd", PATIENCE, || {
        Ok(TcpStream::connect(ETCD_ADDRESS).ok())
    })?;
    Ok((running, config))
}
