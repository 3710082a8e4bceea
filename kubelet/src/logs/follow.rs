//! Following logs of several containers, over rotations and restarts, with
//! one inotify instance.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::files::{self, Reader};
use super::line::{Entry, Joiner};
use super::read;
use super::{LogError, Options};

/// Looks that do not find a file which is still there, before its name is
/// taken for a foreign one. A rotation between two looks explains one.
const MAX_MISSES: u32 = 3;

/// Follows logs. Waits in the kernel while nothing is written.
#[derive(Debug)]
pub struct Follow {
    inotify: AsyncFd<OwnedFd>,
    sources: Vec<Source>,
    stop: watch::Receiver<bool>,
}

#[derive(Debug)]
struct Source {
    dir: PathBuf,
    options: Options,
    /// The attempt that is read; `None` while there is none.
    attempt: Option<u32>,
    /// Its files that are still to be read; the last one grows.
    readers: VecDeque<Reader>,
    joiner: Joiner,
    /// Goes on to the logs of later attempts.
    restarts: bool,
}

impl Follow {
    /// Follows nothing yet. Once `stop` holds `true` what is there is read
    /// to its end, and that is the end.
    ///
    /// # Errors
    /// inotify_init1(2) failed; EMFILE means that the host allows this user
    /// no more instances (fs.inotify.max_user_instances).
    pub fn new(stop: watch::Receiver<bool>) -> Result<Self, LogError> {
        let failed = |source| LogError::Call {
            call: "inotify_init1",
            path: PathBuf::new(),
            source,
        };
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let fd = inotify::init(flags).map_err(|e| failed(e.into()))?;
        let inotify = crate::fdwait::register(fd).map_err(failed)?;
        Ok(Self {
            inotify,
            sources: Vec::new(),
            stop,
        })
    }

    /// Adds a container by its log directory, which must exist; its number
    /// comes back with its messages. With `restarts` the logs of later
    /// attempts follow, else the first one that is found is the only one.
    ///
    /// # Errors
    /// The directory cannot be watched or a log not be read.
    pub fn add(
        &mut self,
        dir: PathBuf,
        options: Options,
        restarts: bool,
    ) -> Result<usize, LogError> {
        let events = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::ONLYDIR;
        // First the watch, then the look: nothing falls between them.
        inotify::add_watch(self.inotify.get_ref(), &dir, events).map_err(|e| LogError::Call {
            call: "inotify_add_watch",
            path: dir.clone(),
            source: e.into(),
        })?;
        let mut source = Source {
            dir,
            options,
            attempt: None,
            readers: VecDeque::new(),
            joiner: Joiner::default(),
            restarts,
        };
        source.open_first()?;
        self.sources.push(source);
        Ok(self.sources.len() - 1)
    }

    /// The next message and the number of its container; `None` at the end.
    ///
    /// # Errors
    /// A log cannot be read.
    pub async fn next(&mut self) -> Result<Option<(usize, Entry)>, LogError> {
        loop {
            // Asked before the last look, so that nothing written before the
            // stop is missed.
            let last = *self.stop.borrow();
            for (number, source) in self.sources.iter_mut().enumerate() {
                if let Some(entry) = source.next()? {
                    return Ok(Some((number, entry)));
                }
            }
            if last {
                let rest = self.sources.iter_mut().enumerate();
                return Ok(rest.filter_map(|(n, s)| Some((n, s.joiner.rest()?))).next());
            }
            tokio::select! {
                ready = self.inotify.readable() => {
                    let failed = |source| LogError::Call { call: "epoll_wait", path: PathBuf::new(), source };
                    let mut ready = ready.map_err(failed)?;
                    drain(self.inotify.get_ref());
                    ready.clear_ready();
                }
                changed = self.stop.changed() => {
                    if changed.is_err() {
                        // Nobody is left who could stop it: end with what is there.
                        let (_, stopped) = watch::channel(true);
                        self.stop = stopped;
                    }
                }
            }
        }
    }
}

/// Takes all events; which they are does not matter, since every source
/// knows where it stands.
fn drain(fd: &OwnedFd) {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(fd, &mut buffer);
    while events.next().is_ok() {}
}

impl Source {
    fn open_first(&mut self) -> Result<(), LogError> {
        match read::choose(&self.dir, self.options.previous) {
            Ok(attempt) => {
                self.readers = read::open(&self.dir, attempt, self.options.tail)?.into();
                self.attempt = Some(attempt);
                // Later files are read from their beginning.
                self.options.tail = None;
                Ok(())
            }
            Err(LogError::Missing { .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn next(&mut self) -> Result<Option<Entry>, LogError> {
        loop {
            if self.attempt.is_none() {
                self.open_first()?;
            }
            let Some(reader) = self.readers.front_mut() else {
                return Ok(None);
            };
            while let Some(text) = reader.next_line()? {
                if let Some(entry) = read::take(text, &mut self.joiner, &self.options) {
                    return Ok(Some(entry));
                }
            }
            if self.readers.len() > 1 {
                self.readers.pop_front();
                continue;
            }
            if !self.advance()? {
                return Ok(None);
            }
        }
    }

    /// Goes on to a newer file of the attempt, or to the next attempt.
    fn advance(&mut self) -> Result<bool, LogError> {
        let (Some(attempt), Some(reader)) = (self.attempt, self.readers.front()) else {
            return Ok(false);
        };
        let identity = reader.identity()?;
        let mut found = Vec::new();
        if !files::is_present(&self.dir, attempt, identity) {
            found = self.newer(attempt, reader)?;
        }
        if found.is_empty() && self.restarts {
            let next = files::attempts(&self.dir)?
                .into_iter()
                .find(|a| *a > attempt);
            if let Some(next) = next {
                found = read::open(&self.dir, next, None)?;
                if !found.is_empty() {
                    self.attempt = Some(next);
                }
            }
        }
        if found.is_empty() {
            return Ok(false);
        }
        // Between the last read and the rename a line may have been added.
        self.readers.extend(found);
        Ok(true)
    }

    /// The files of an attempt after the one that was read to its end.
    fn newer(&self, attempt: u32, reader: &Reader) -> Result<Vec<Reader>, LogError> {
        let identity = reader.identity()?;
        let mut misses = 0;
        for _ in 0..files::MAX_LOOKS {
            // Asked first: what is found afterwards is newer than a file that
            // was removed before.
            let removed = reader.removed()?;
            let all = files::stand(&self.dir, attempt)?;
            let mine = all.iter().position(|f| f.identity == identity);
            let from = match mine {
                Some(at) => at + 1,
                None if removed => 0,
                None if misses < MAX_MISSES => {
                    misses += 1;
                    continue;
                }
                // Somebody else has renamed it: the present file is newer, and
                // of the others nobody knows.
                None => all.len().saturating_sub(1),
            };
            let opened = all[from..].iter().map(files::Found::open);
            let opened = opened.collect::<Result<Option<Vec<Reader>>, _>>()?;
            if let Some(readers) = opened {
                return Ok(readers);
            }
        }
        Err(files::moving(&self.dir))
    }
}
