//! `rkube run`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use rkube_engine::Instance;
use rkube_kubelet::logs::{Follow, Options};
use rkube_kubelet::node::Paths;
use rkube_kubelet::pod;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::end;
use super::paint::Painter;
use super::plan;
use super::progress::Progress;
use crate::cli;
use crate::client::{Client, Watcher, runtime, unexpected};
use crate::error::{FAILURE, INTERRUPTED, bad_input};
use crate::manifest::{self, Manifests};
use crate::wire::{Apply, End, Failure, Reply, Request, Taken};
use crate::{output, view};

pub(super) fn run(root: &Path, args: cli::Run) -> anyhow::Result<u8> {
    if args
        .filename
        .iter()
        .filter(|f| *f == Path::new("-"))
        .count()
        > 1
    {
        return Err(bad_input("-f -: standard input can be read once"));
    }
    let mut manifests = manifest::load(&args.filename, &args.namespace)?;
    if let Some(name) = args.name.clone() {
        manifests.rename(name)?;
    }
    for warning in &manifests.warnings {
        say(&format!("warning: {warning}"));
    }
    if args.dry_run {
        return plan::print(root, &manifests);
    }
    let instance = Instance::open(root)?;
    runtime()?.block_on(async {
        let (client, pods) = apply(&instance, manifests, args.replace).await?;
        let progress = Progress::new(args.quiet);
        if args.detach {
            detached(&instance, client, pods, args.timeout, progress).await
        } else {
            attached(&instance, client, pods, progress).await
        }
    })
}

/// A line on standard error. Nobody is left to tell when that is closed.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", output::harmless(line));
}

async fn apply(
    instance: &Instance,
    manifests: Manifests,
    replace: bool,
) -> anyhow::Result<(Client, Vec<(Taken, Pod)>)> {
    let mut client = Client::start(instance).await?;
    let group = manifests.group();
    let request = Apply {
        pods: manifests.pods,
        objects: manifests.objects,
        group,
        replace,
    };
    match client.call(&Request::Apply(Box::new(request))).await? {
        Reply::Applied(pods) => Ok((client, pods)),
        other => Err(unexpected(&other)),
    }
}

/// Pods that a run waits for, as they were told last.
#[derive(Debug)]
struct Watched {
    watcher: Watcher,
    pods: Vec<Pod>,
    gone: Vec<String>,
}

impl Watched {
    async fn begin(
        instance: &Instance,
        client: Client,
        pods: &[(Taken, Pod)],
    ) -> anyhow::Result<Self> {
        let pods: Vec<Pod> = pods.iter().map(|(_, pod)| pod.clone()).collect();
        let uids = pods.iter().map(|p| pod::uid(p).to_owned()).collect();
        Ok(Self {
            watcher: Watcher::begin(instance, client, uids, true).await?,
            pods,
            gone: Vec::new(),
        })
    }

    /// Takes the next news in and shows them.
    async fn next(&mut self, progress: &mut Progress) -> anyhow::Result<()> {
        match self.watcher.next().await? {
            Reply::Pod(news) => {
                progress.pod(&news);
                if let Some(known) = self
                    .pods
                    .iter_mut()
                    .find(|p| pod::uid(p) == pod::uid(&news))
                {
                    *known = *news;
                }
            }
            Reply::Gone { uid } => self.gone.push(uid),
            Reply::Event(event) => progress.event(&event),
            other => return Err(unexpected(&other)),
        }
        Ok(())
    }

    fn is_gone(&self, pod: &Pod) -> bool {
        self.gone.iter().any(|uid| uid == pod::uid(pod))
    }

    fn over(&self) -> bool {
        self.pods
            .iter()
            .all(|p| view::finished(p) || self.is_gone(p))
    }

    /// All run, or have run to their end. A pod whose containers have all
    /// ended is about to be one or the other, and not up before it is told.
    fn up(&self) -> bool {
        let ending = |p: &Pod| view::mains(p).iter().all(|s| view::terminated(s).is_some());
        self.pods.iter().all(|p| match view::phase(p) {
            "Running" => !ending(p) || self.is_gone(p),
            "Succeeded" | "Failed" => true,
            _ => self.is_gone(p),
        })
    }
}

async fn detached(
    instance: &Instance,
    client: Client,
    pods: Vec<(Taken, Pod)>,
    timeout: u64,
    mut progress: Progress,
) -> anyhow::Result<u8> {
    let mut watched = Watched::begin(instance, client, &pods).await?;
    let up = async {
        while !watched.up() {
            watched.next(&mut progress).await?;
        }
        anyhow::Ok(())
    };
    if timeout == 0 {
        up.await?;
    } else if let Ok(result) = tokio::time::timeout(Duration::from_secs(timeout), up).await {
        result?;
    } else {
        for pod in watched.pods.iter().filter(|p| view::phase(p) == "Pending") {
            say(&format!(
                "pod {} is not running: {}",
                pod::display_name(pod),
                why(pod)
            ));
        }
        return Err(Failure::new(format!("not all pods run after {timeout} s"))
            .hint("they are still being tried; `rkube events` tells more, `rkube rm --force` removes them")
            .into());
    }
    for pod in &watched.pods {
        output::print(&format!("{}\n", pod::display_name(pod)))?;
    }
    let failed: Vec<Pod> = watched
        .pods
        .iter()
        .filter(|p| view::phase(p) == "Failed")
        .cloned()
        .collect();
    for pod in &failed {
        say(&format!(
            "pod {} has failed: {}",
            pod::display_name(pod),
            why(pod)
        ));
    }
    Ok(view::exit_code(&failed))
}

/// What keeps a pod from running, in the words of its status.
fn why(pod: &Pod) -> String {
    let summary = view::summary(pod);
    let own = pod.status.as_ref().and_then(|s| s.message.clone());
    let container = view::statuses(pod).find_map(|(_, s)| {
        let state = s.state.as_ref()?;
        let waiting = state.waiting.as_ref().and_then(|w| w.message.clone());
        let ended = || state.terminated.as_ref().and_then(|t| t.message.clone());
        Some(format!("container {}: {}", s.name, waiting.or_else(ended)?))
    });
    match own.or(container) {
        Some(message) => format!("{summary}: {message}"),
        None => summary,
    }
}

/// What the user and the system can say to a run.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn handle() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("handle SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("handle SIGTERM")?,
            hangup: signal(SignalKind::hangup()).context("handle SIGHUP")?,
        })
    }

    /// Waits for any of them.
    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

async fn attached(
    instance: &Instance,
    client: Client,
    pods: Vec<(Taken, Pod)>,
    progress: Progress,
) -> anyhow::Result<u8> {
    let mut signals = Signals::handle()?;
    let (stop, stopped) = watch::channel(false);
    let mut logs = Logs::new(instance, &pods, stopped)?;
    let mut run = Attached {
        watched: Watched::begin(instance, client, &pods).await?,
        progress,
    };
    let mut interrupted = false;
    let mut followed = Ok(());
    {
        let mut pump = std::pin::pin!(logs.pump());
        let mut pumping = true;
        while !run.watched.over() {
            tokio::select! {
                news = run.watched.next(&mut run.progress) => news?,
                result = &mut pump, if pumping => {
                    pumping = false;
                    followed = result;
                    if followed.is_err() {
                        // Nobody reads any more: that is the user's end too.
                        break;
                    }
                }
                () = signals.any() => {
                    interrupted = true;
                    break;
                }
            }
        }
        let code = if run.watched.over() {
            Some(view::exit_code(&run.watched.pods))
        } else {
            None
        };
        if code.is_some() {
            stop.send_replace(true);
            if pumping {
                pumping = false;
                followed = pump.as_mut().await;
            }
        }
        // Their logs go on until the last of them has ended.
        let mut ended = std::pin::pin!(run.delete(instance, &pods, &mut signals));
        loop {
            tokio::select! {
                result = &mut ended => break result?,
                result = &mut pump, if pumping => {
                    pumping = false;
                    followed = result;
                }
            }
        }
        stop.send_replace(true);
        if pumping {
            followed = pump.await;
        }
        if let Some(code) = code
            && followed.is_ok()
        {
            return Ok(code);
        }
    }
    match followed {
        Ok(()) if interrupted => Ok(INTERRUPTED),
        Ok(()) => Ok(FAILURE),
        Err(error) => Err(error),
    }
}

struct Attached {
    watched: Watched,
    progress: Progress,
}

impl Attached {
    /// Deletes the pods that this run has made and waits for that: gracefully
    /// first, at once when the user asks again.
    async fn delete(
        &mut self,
        instance: &Instance,
        pods: &[(Taken, Pod)],
        signals: &mut Signals,
    ) -> anyhow::Result<()> {
        let mine = pods.iter().filter(|(how, _)| *how != Taken::Attached);
        let uids: Vec<&str> = mine.map(|(_, p)| pod::uid(p)).collect();
        let mut tasks = JoinSet::new();
        let ask = |tasks: &mut JoinSet<anyhow::Result<()>>, grace_seconds| {
            for uid in &uids {
                let request = End {
                    uid: (*uid).to_owned(),
                    grace_seconds,
                    forget: true,
                };
                let instance = instance.clone();
                tasks.spawn(async move { end::one(&instance, request).await });
            }
        };
        ask(&mut tasks, None);
        let mut killing = false;
        loop {
            tokio::select! {
                ended = tasks.join_next() => match ended {
                    None => return Ok(()),
                    // One that has gone by itself is no error.
                    Some(Ok(Err(error))) if killing || error.is::<Failure>() => {
                        tracing::debug!(%error, "end a pod");
                    }
                    Some(result) => result.context("end a pod").and_then(|r| r)?,
                },
                news = self.watched.next(&mut self.progress) => news?,
                () = signals.any(), if !killing => {
                    killing = true;
                    say("killing the pods");
                    ask(&mut tasks, Some(0));
                }
            }
        }
    }
}

/// The logs of all containers of a run.
struct Logs {
    follow: Follow,
    names: Vec<String>,
    painter: Painter,
}

impl Logs {
    fn new(
        instance: &Instance,
        pods: &[(Taken, Pod)],
        stopped: watch::Receiver<bool>,
    ) -> anyhow::Result<Self> {
        let paths = Paths::new(&instance.root);
        let mut follow = Follow::new(stopped)?;
        let mut painter = Painter::new(true, false);
        let mut names = Vec::new();
        let mut count: BTreeMap<&str, u32> = BTreeMap::new();
        for (_, container) in pods.iter().flat_map(|(_, p)| pod::containers(p)) {
            *count.entry(container.name.as_str()).or_default() += 1;
        }
        for (_, pod) in pods {
            for (_, container) in pod::containers(pod) {
                let alone = count.get(container.name.as_str()) == Some(&1);
                let name = if alone {
                    container.name.clone()
                } else {
                    format!("{}/{}", pod::name(pod), container.name)
                };
                painter.learn(&name);
                // Watched before its first line.
                let dir = paths.pod_logs(pod).join(&container.name);
                std::fs::create_dir_all(&dir)
                    .with_context(|| format!("create directory {}", dir.display()))?;
                follow.add(dir, Options::default(), true)?;
                names.push(name);
            }
        }
        Ok(Self {
            follow,
            names,
            painter,
        })
    }

    /// Prints what is written until the end.
    async fn pump(&mut self) -> anyhow::Result<()> {
        while let Some((number, entry)) = self.follow.next().await? {
            let name = self
                .names
                .get(number)
                .map(String::as_str)
                .unwrap_or_default();
            self.painter
                .write(name, &entry)
                .context("write to standard output")?;
        }
        Ok(())
    }
}
