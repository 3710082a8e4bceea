//! Taking over what an earlier writer left: from the records, the keepers,
//! and the kernel.
//!
//! Assumptions: whoever calls holds the writer's lock; a record was written
//! before each side effect; a keeper's own record of a process is written by
//! rename when the process starts and when it ends. So for each container one
//! of these is true: its keeper tells; its keeper is dead and its process
//! lives (it is adopted by a new one); its keeper's record tells how it
//! ended; or nobody knows any more.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rkube_cgroup::Cgroup;
use rkube_keeper::protocol::{Kind, LogTarget, ProcessStatus, Request, StartRequest};

use crate::api::{ContainerId, Event};
use crate::container::{cgroup_below, log_path, snapshot_id};
use crate::engine::{Container, GONE_LIMIT, Inner, LOG_MAX_BYTES, LOG_MAX_FILES, Sandbox, key};
use crate::error::{Error, Result, chain};
use crate::keeper::{Hello, Mute, contact};
use crate::link::{Link, lock};
use crate::proc::{Held, SIGKILL};
use crate::record::{ContainerRecord, ProcessRecord, SandboxRecord};

/// How often a keeper that does not answer is asked again, before it is taken
/// for dead.
const CONTACT_TRIES: usize = 3;

impl Inner {
    /// Takes over every sandbox that has a record, and clears away what has
    /// none.
    pub(crate) fn recover(self: &Arc<Self>) -> Result<()> {
        let rebooted = !self.records.seen(&self.boot_id);
        let mut whole = true;
        for id in self.records.sandboxes()? {
            match self.records.load(&id) {
                Ok(Some(found)) => {
                    let mut left = found.unreadable;
                    left.retain(|(path, error)| !(torn(rebooted, error) && remove_torn(path)));
                    whole &= left.is_empty();
                    let left = left
                        .iter()
                        .filter_map(|(path, _)| path.file_stem()?.to_str());
                    let left = left.map(str::to_owned).collect();
                    self.take_over(found.sandbox, found.containers, left);
                }
                // The crash came before the first record: nothing was done.
                Ok(None) => self.records.remove_sandbox(&id)?,
                Err(error) if torn(rebooted, &error) => self.records.remove_sandbox(&id)?,
                Err(_) => whole = false,
            }
        }
        if whole {
            self.sweep_snapshots();
            if rebooted {
                self.records.set_seen(&self.boot_id)?;
            }
        }
        Ok(())
    }

    /// `left` are keys of containers that are left alone.
    fn take_over(
        self: &Arc<Self>,
        record: SandboxRecord,
        containers: Vec<ContainerRecord>,
        left: Vec<String>,
    ) {
        let id = record.config.id.clone();
        let same_boot = record.boot_id == self.boot_id;
        let cell = self.insert(record);
        {
            let mut state = lock(&cell.state);
            state.left_alone = left;
            for record in containers {
                let id = record.config.id.clone();
                state.containers.insert(id, Container::new(record));
            }
        }
        let _making = lock(&cell.making);
        if !same_boot {
            // All its processes are gone with the kernel that ran them.
            let containers: Vec<(ContainerId, bool)> = {
                let state = lock(&cell.state);
                let launched = |c: &Container| c.record.launched_at.is_some();
                let all = state.containers.iter();
                all.map(|(id, c)| (id.clone(), launched(c))).collect()
            };
            for (id, launched) in containers {
                if launched {
                    self.note_lost(&cell, &id);
                } else {
                    self.take_down(&cell, &id);
                }
            }
            return;
        }
        if let Err(error) = self.reconnect(&cell) {
            tracing::error!(sandbox = id, error = chain(&error), "take over");
        }
    }

    /// Finds the keeper of a sandbox again, or puts another in its place. On
    /// an error the sandbox is without one, and what the kernel tells of its
    /// processes is believed. The caller holds `making`.
    fn reconnect(self: &Arc<Self>, cell: &Arc<Sandbox>) -> Result<()> {
        let dir = self.pod_dir(&cell.id);
        for _ in 0..CONTACT_TRIES {
            match contact(&dir) {
                Ok((socket, hello)) => {
                    let link = self.reader()?.connect(&cell.id, socket)?;
                    lock(&cell.state).link = Some(link);
                    self.learn(cell, &hello);
                    return Ok(());
                }
                Err(Mute::Dead) => {
                    tracing::warn!(sandbox = cell.id, "its keeper has died and is replaced");
                    break;
                }
                Err(Mute::Older(version)) => {
                    tracing::info!(
                        sandbox = cell.id,
                        version,
                        "its keeper is of an older rkube and is replaced"
                    );
                    break;
                }
                Err(Mute::Silent(what)) => {
                    tracing::warn!(sandbox = cell.id, what, "its keeper does not answer");
                }
                Err(Mute::Foreign(what)) => {
                    self.believe_kernel(cell);
                    let sandbox = cell.id.clone();
                    return Err(Error::Keeper { sandbox, what });
                }
            }
        }
        self.replace_keeper(cell)
            .inspect_err(|_| self.believe_kernel(cell))
    }

    /// What a keeper says of its processes.
    fn learn(&self, cell: &Sandbox, hello: &Hello) {
        let held = &hello.processes;
        let find = |key: &str| held.iter().find(|p| p.key == key);
        cell.lose_execs(held);
        let ids: Vec<ContainerId> = {
            let mut state = lock(&cell.state);
            let pause = find("pause").filter(|p| p.exit.is_none());
            let open = pause.and_then(|p| Held::open(p.pid, p.start_ticks));
            state.pause = open.map(Arc::new);
            // The writer may have died before it recorded them.
            let record = &mut state.record;
            let before = (record.pause.clone(), record.keeper_pid);
            record.keeper_pid = u32::try_from(hello.pid).ok();
            record.pause = pause.map(Into::into).or(record.pause.take());
            if before != (record.pause.clone(), record.keeper_pid)
                && let Err(error) = self.records.put_sandbox(record)
            {
                tracing::error!(
                    sandbox = cell.id,
                    error = chain(&error),
                    "record its keeper"
                );
            }
            state.containers.keys().cloned().collect()
        };
        for id in &ids {
            self.learn_container(cell, id, find(&key(id)));
        }
        let mut known: Vec<String> = ids.iter().map(key).collect();
        known.extend(lock(&cell.state).left_alone.iter().cloned());
        let strange = held
            .iter()
            .filter(|p| matches!(p.kind, Kind::Container {}) && !known.contains(&p.key));
        for status in strange {
            // Removed while nobody heard: its end is told, and then forgotten.
            if status.exit.is_some() {
                cell.forget(&status.key);
            } else if let Some(held) = Held::open(status.pid, status.start_ticks) {
                // An error means that it has ended.
                let _ = rkube_sys::signal::pidfd_signal(held.as_fd(), SIGKILL);
            }
        }
    }

    fn learn_container(&self, cell: &Sandbox, id: &ContainerId, held: Option<&ProcessStatus>) {
        let (over, never_ran) = match lock(&cell.state).containers.get(id).map(|c| &c.record) {
            Some(r) => (r.exit.is_some() || r.lost_at.is_some(), r.running.is_none()),
            None => return,
        };
        match held {
            _ if over => {}
            Some(status) if status.exit.is_some() => {
                self.note_exit(cell, id, status);
            }
            Some(status) => self.resume(cell, id, status),
            None if never_ran => self.take_down(cell, id),
            None => self.lose(cell, id),
        }
    }

    /// The writer died before its keeper was asked to start it.
    fn take_down(&self, cell: &Sandbox, id: &ContainerId) {
        if let Err(error) = self.remove_container_of(cell, id) {
            tracing::error!(container = %id, error = chain(&error), "take down what never ran");
        }
    }

    /// A container that runs is watched again.
    fn resume(&self, cell: &Sandbox, id: &ContainerId, status: &ProcessStatus) {
        let (config, link, has_terminal, alarms) = {
            let state = lock(&cell.state);
            let container = state.containers.get(id);
            let has_terminal = container.is_some_and(|c| c.terminal.is_some());
            let alarms = container.map(|c| c.record.config.pressure_alarms.clone());
            (
                state.record.config.clone(),
                state.link.clone(),
                has_terminal,
                alarms.unwrap_or_default(),
            )
        };
        let group = self
            .cgroup_path(&cgroup_below(&config, id))
            .ok()
            .and_then(|path| Cgroup::open(&self.hierarchies, &path).ok());
        let watch = group.as_ref().and_then(|group| self.watch_oom(id, group));
        if let Some(group) = &group {
            self.drop_alarms(id);
            if let Err(error) = self.set_alarms(id, &alarms, group) {
                tracing::warn!(container = %id, error = chain(&error), "set its pressure alarms");
            }
        }
        let old = {
            let mut state = lock(&cell.state);
            match state.containers.get_mut(id) {
                Some(container) => {
                    container.record.running = Some(status.into());
                    let process = Held::open(status.pid, status.start_ticks);
                    container.process = process.map(Arc::new);
                    std::mem::replace(&mut container.watch, watch)
                }
                None => watch,
            }
        };
        if let Some(number) = old {
            self.unwatch(number);
        }
        if let Some(link) = link.filter(|_| !has_terminal) {
            self.fetch_terminal(cell, &link, id);
        }
    }

    /// A container's terminal is held here too.
    fn fetch_terminal(&self, cell: &Sandbox, link: &Link, id: &ContainerId) {
        let has_one = |c: &Container| c.record.config.tty;
        if !(lock(&cell.state).containers.get(id).is_some_and(has_one)) {
            return;
        }
        let key = key(id);
        let object = format!("terminal of {id}");
        match link.call(|token| Request::Terminal { token, key }, &[], &object) {
            Ok((_, fds)) => {
                let mut state = lock(&cell.state);
                if let Some(container) = state.containers.get_mut(id).filter(|c| c.is_running()) {
                    container.terminal = fds.into_iter().next();
                }
            }
            Err(error) => {
                tracing::warn!(container = %id, error = chain(&error), "take over its terminal");
            }
        }
    }

    /// Nobody holds it, and nobody knows how it ended (unless the record
    /// does). Whatever of it may still run is killed first: a container that
    /// is said to be gone is.
    fn lose(&self, cell: &Sandbox, id: &ContainerId) {
        let config = lock(&cell.state).record.config.clone();
        let killed = self
            .cgroup_path(&cgroup_below(&config, id))
            .and_then(|path| {
                let on = |source| Error::Cgroup {
                    object: id.to_string(),
                    source,
                };
                let group = Cgroup::open(&self.hierarchies, &path).map_err(on)?;
                if group.exists() {
                    group.kill_all(GONE_LIMIT).map_err(on)?;
                }
                Ok(())
            });
        if let Err(error) = killed {
            tracing::error!(container = %id, error = chain(&error), "kill what is left of it");
        }
        self.note_lost(cell, id);
    }

    fn note_lost(&self, cell: &Sandbox, id: &ContainerId) {
        let mut state = lock(&cell.state);
        let Some(container) = state.containers.get_mut(id) else {
            return;
        };
        container.process = None;
        container.terminal = None;
        let record = &mut container.record;
        if record.exit.is_none() && record.lost_at.is_none() {
            record.lost_at = Some(SystemTime::now());
            if let Err(error) = self.records.put_container(record) {
                tracing::error!(container = %id, error = chain(&error), "record its loss");
            }
        }
    }

    /// Without a keeper: processes that live are what they were, others are
    /// lost.
    fn believe_kernel(&self, cell: &Sandbox) {
        let (pause, ids) = {
            let state = lock(&cell.state);
            let ids: Vec<ContainerId> = state.containers.keys().cloned().collect();
            (state.record.pause.clone(), ids)
        };
        let pause = pause.and_then(|p| Held::open(p.pid, p.start_ticks));
        {
            let mut state = lock(&cell.state);
            state.pause = pause.map(Arc::new);
            state.link = None;
        }
        cell.lose_execs(&[]);
        for id in ids {
            let status = self.last_known(cell, &id);
            let lives = |s: &ProcessStatus| Held::open(s.pid, s.start_ticks).is_some();
            let told = status.filter(|s| s.exit.is_some() || lives(s));
            self.learn_container(cell, &id, told.as_ref());
        }
    }

    /// The connection to a keeper broke while this engine runs.
    pub(crate) fn on_keeper_lost(self: &Arc<Self>, id: &str) {
        let Ok(cell) = self.find(id) else { return };
        let _making = lock(&cell.making);
        // Taken down on purpose, or reached again already.
        if lock(&cell.state)
            .link
            .as_ref()
            .is_some_and(|l| !l.is_open())
        {
            self.regain(&cell);
        }
    }

    /// Reaches the keeper of a sandbox again, and tells what has ended
    /// meanwhile. The caller holds `making`.
    pub(crate) fn regain(self: &Arc<Self>, cell: &Arc<Sandbox>) {
        let (was_alive, running): (bool, Vec<ContainerId>) = {
            let mut state = lock(&cell.state);
            state.link = None;
            let running = state.containers.values().filter(|c| c.is_running());
            let running = running.map(|c| c.record.config.id.clone()).collect();
            (state.pause.is_some(), running)
        };
        if let Err(error) = self.reconnect(cell) {
            let error = chain(&error);
            tracing::error!(sandbox = cell.id, error, "reach its keeper again");
        }
        let (alive, ended): (bool, Vec<_>) = {
            let state = lock(&cell.state);
            let ended = running.iter().filter_map(|id| state.containers.get(id));
            let ended = ended.filter(|c| !c.is_running());
            let ended = ended.map(|c| (c.record.config.id.clone(), c.record.exit.clone()));
            (state.pause.is_some(), ended.collect())
        };
        for (id, exit) in ended {
            self.tell_exit(cell, id, exit);
        }
        if was_alive && !alive {
            self.emit(Event::SandboxLost {
                id: cell.id.clone(),
            });
        }
        self.reap_orphans();
    }

    /// Starts a keeper that adopts the processes that live.
    fn replace_keeper(self: &Arc<Self>, cell: &Arc<Sandbox>) -> Result<()> {
        let (old, record) = {
            let mut state = lock(&cell.state);
            (state.keeper.take(), state.record.clone())
        };
        // One that is dead, hangs, or is about to end: never two at a time.
        match old {
            Some(child) => self.family.bury(child, false),
            None => self.kill_keeper(cell, &record)?,
        }
        let (child, link) = self.start_keeper(&cell.id)?;
        let ids: Vec<ContainerId> = {
            let mut state = lock(&cell.state);
            state.record.keeper_pid = Some(child.id());
            state.keeper = Some(child);
            state.link = Some(Arc::clone(&link));
            state.containers.keys().cloned().collect()
        };
        cell.lose_execs(&[]);
        let told = self.keeper_wrote(&cell.id, "pause");
        let pause = told.or_else(|| {
            let p = record.pause.as_ref()?;
            Some(status("pause".into(), Kind::Pause {}, p))
        });
        let pause = pause.filter(|p| p.exit.is_none()).and_then(|status| {
            let held = Held::open(status.pid, status.start_ticks)?;
            let adopted = self.adopt(&link, &status, &held, Extras::default());
            adopted.then_some((status, held))
        });
        {
            let mut state = lock(&cell.state);
            if let Some((status, _)) = &pause {
                state.record.pause = Some(status.into());
            }
            state.pause = pause.map(|(_, held)| Arc::new(held));
        }
        for id in ids {
            self.take_over_container(cell, &link, &id);
        }
        self.records.put_sandbox(&lock(&cell.state).record)
    }

    /// A container's process as its dead keeper wrote it, or as recorded.
    fn last_known(&self, cell: &Sandbox, id: &ContainerId) -> Option<ProcessStatus> {
        // The keeper's is newer where a crash came between.
        self.keeper_wrote(&cell.id, &key(id)).or_else(|| {
            let state = lock(&cell.state);
            let running = state.containers.get(id)?.record.running.as_ref()?;
            Some(status(key(id), Kind::Container {}, running))
        })
    }

    fn take_over_container(&self, cell: &Arc<Sandbox>, link: &Link, id: &ContainerId) {
        let known = self.last_known(cell, id);
        let living = known.as_ref().filter(|s| s.exit.is_none());
        let Some(status) = living else {
            return self.learn_container(cell, id, known.as_ref());
        };
        let (sandbox, extras) = {
            let state = lock(&cell.state);
            let Some(container) = state.containers.get(id) else {
                return;
            };
            let record = &container.record;
            if record.exit.is_some() || record.lost_at.is_some() {
                return;
            }
            let terminal = container.terminal.as_ref();
            let extras = Extras {
                terminal: terminal.and_then(|t| t.try_clone().ok()),
                stdin: record.config.stdin,
                ..Extras::default()
            };
            (state.record.config.clone(), extras)
        };
        let counter = self
            .cgroup_path(&cgroup_below(&sandbox, id))
            .ok()
            .and_then(|path| Cgroup::open(&self.hierarchies, &path).ok())
            .and_then(|group| group.oom_counter_fd().ok());
        let extras = Extras {
            counter,
            log: Some(LogTarget {
                path: log_path(&sandbox, id).to_string_lossy().into_owned(),
                max_bytes: LOG_MAX_BYTES,
                max_files: LOG_MAX_FILES,
            }),
            ..extras
        };
        // A zombie too: its new keeper sees at once how it ended.
        let adopted = Held::find(status.pid, status.start_ticks)
            .is_some_and(|held| self.adopt(link, status, &held, extras));
        if adopted {
            self.resume(cell, id, status);
        } else {
            self.lose(cell, id);
        }
    }

    fn adopt(&self, link: &Link, status: &ProcessStatus, held: &Held, extras: Extras) -> bool {
        let request = StartRequest {
            key: status.key.clone(),
            kind: status.kind,
            log: extras.log,
            stdin: extras.stdin,
            oom_counter: extras.counter.is_some(),
        };
        let terminal = extras.terminal.is_some();
        let further = [extras.terminal, extras.counter];
        let mut fds = vec![held.as_fd()];
        fds.extend(further.iter().flatten().map(AsFd::as_fd));
        let object = format!("adoption of {}", status.key);
        let status = status.clone();
        link.call(
            |token| Request::Adopt {
                token,
                request,
                status,
                terminal,
            },
            &fds,
            &object,
        )
        .inspect_err(|error| tracing::warn!(error = chain(error), "adopt a process"))
        .is_ok()
    }

    /// Writable layers without a container: a crash came in between.
    fn sweep_snapshots(&self) {
        let known: std::collections::HashSet<String> = self
            .all()
            .iter()
            .flat_map(|cell| {
                lock(&cell.state)
                    .containers
                    .keys()
                    .map(snapshot_id)
                    .collect::<Vec<_>>()
            })
            .collect();
        let Ok(found) = self.snapshots.list(&self.store) else {
            return;
        };
        for id in found.into_iter().filter(|id| !known.contains(id)) {
            if let Err(error) = self.snapshots.remove(&self.store, &id) {
                tracing::warn!(snapshot = id, error = chain(&error), "clear away");
            }
        }
    }
}

/// What a process is adopted with.
#[derive(Debug, Default)]
struct Extras {
    log: Option<LogTarget>,
    stdin: bool,
    terminal: Option<OwnedFd>,
    counter: Option<OwnedFd>,
}

fn status(key: String, kind: Kind, process: &ProcessRecord) -> ProcessStatus {
    ProcessStatus {
        key,
        kind,
        pid: process.pid,
        start_ticks: process.start_ticks,
        started_ns: process.started_ns,
        exit: None,
    }
}

/// Whether a record that cannot be read is one that a power cut has torn:
/// what it spoke of has ended with its boot.
fn torn(rebooted: bool, error: &Error) -> bool {
    let torn = rebooted && matches!(error, Error::Record { .. });
    if torn {
        tracing::warn!(
            error = chain(error),
            "clear away a torn record of an earlier boot"
        );
    } else {
        tracing::error!(
            error = chain(error),
            "leave alone what has an unreadable record"
        );
    }
    torn
}

fn remove_torn(path: &Path) -> bool {
    match std::fs::remove_file(path) {
        Ok(()) => true,
        Err(error) => {
            tracing::error!(%error, path = %path.display(), "remove record");
            false
        }
    }
}
