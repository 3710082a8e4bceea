//! Where a participant runs: a thread in network and mount namespaces of its
//! own, with a directory. What it starts is born there.
//!
//! Two participants take turns by two places, with no launcher program whose
//! time would be measured too.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};

use anyhow::{Context, anyhow};
use nix::sched::{CloneFlags, unshare};
use rkube_tests::host::Ground;
use rkube_tests::{leaks, net};
use rustix::mount::{MountPropagationFlags, mount_change};

type Job = Box<dyn FnOnce() + Send>;
/// Clears a place, in its thread.
type End = Box<dyn FnOnce() -> anyhow::Result<()>>;

/// As [`leaks::unmount_below`], for the calling thread's mount namespace.
fn unmount_below(dir: &Path) -> anyhow::Result<()> {
    let path = "/proc/thread-self/mountinfo";
    let table = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let inside = table.lines().filter_map(|line| line.split(' ').nth(4));
    for at in inside.filter(|at| Path::new(at).starts_with(dir)) {
        // One below another goes with it.
        let _ = rustix::mount::unmount(at, rustix::mount::UnmountFlags::DETACH);
    }
    Ok(())
}

/// A thread that does what it is told, in its namespaces.
#[derive(Debug)]
pub struct Place {
    dir: PathBuf,
    jobs: Option<Sender<Job>>,
    thread: Option<std::thread::JoinHandle<anyhow::Result<()>>>,
}

impl Place {
    /// A place for rkube: a test host of the black-box suite, which is reset
    /// by the program and looked over for leftovers at its end.
    ///
    /// # Errors
    /// The kernel refuses a namespace, or the directory cannot be made.
    pub fn of_rkube(program: &Path) -> anyhow::Result<Place> {
        let program = program.to_path_buf();
        Place::open(move || {
            let ground = Ground::with_program(&program)?;
            let dir = ground.dir().to_path_buf();
            Ok((dir, Box::new(move || ground.clear()) as End))
        })
    }

    /// A place for a peer. Its mounts are its own and end with it, and so do
    /// the processes in its network namespace; what else a peer leaves is its
    /// own business.
    ///
    /// # Errors
    /// As [`Place::of_rkube`].
    pub fn of_peer() -> anyhow::Result<Place> {
        Place::open(|| {
            unshare(CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWNS)")?;
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private).context("make / private")?;
            net::enter_new()?;
            let netns = net::own_inode()?;
            let dir = tempfile::Builder::new()
                .prefix("rkube-bench-")
                .tempdir()
                .context("make a directory for a peer")?
                .keep();
            let end = {
                let dir = dir.clone();
                move || {
                    leaks::end_processes(netns);
                    unmount_below(&dir)?;
                    std::fs::remove_dir_all(&dir)
                        .with_context(|| format!("remove {}", dir.display()))
                }
            };
            Ok((dir, Box::new(end) as End))
        })
    }

    fn open(
        lay: impl FnOnce() -> anyhow::Result<(PathBuf, End)> + Send + 'static,
    ) -> anyhow::Result<Place> {
        let (jobs, queue) = channel::<Job>();
        let (tell, told) = channel();
        let thread = std::thread::spawn(move || {
            let (dir, end) = match lay() {
                Ok(laid) => laid,
                Err(e) => {
                    // Whoever opened the place waits for this.
                    let _ = tell.send(Err(e));
                    return Ok(());
                }
            };
            let _ = tell.send(Ok(dir));
            for job in queue {
                job();
            }
            end()
        });
        let dir = told.recv().context("the place's thread ended")??;
        Ok(Place {
            dir,
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Does something in the place and gives its result.
    ///
    /// # Errors
    /// The work's own, or it panicked.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let (tell, told) = channel();
        let job: Job = Box::new(move || {
            // The receiver waits until this is sent.
            let _ = tell.send(work());
        });
        let jobs = self.jobs.as_ref().context("the place is closed")?;
        jobs.send(job).map_err(|_| anyhow!("the place is closed"))?;
        told.recv().context("the work panicked")?
    }

    /// Ends it, and tells what was left.
    ///
    /// # Errors
    /// Something was left behind, each in the message.
    pub fn close(mut self) -> anyhow::Result<()> {
        self.end()
    }

    fn end(&mut self) -> anyhow::Result<()> {
        self.jobs = None;
        match self.thread.take() {
            Some(thread) => thread
                .join()
                .map_err(|_| anyhow!("the place's thread panicked"))?,
            None => Ok(()),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // An error that dropped it is told already; the ground is cleared.
        let _ = self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_namespaces_of_their_own() {
        let inodes = || {
            use std::os::unix::fs::MetadataExt;
            let of = |ns: &str| {
                Ok::<_, anyhow::Error>(
                    std::fs::metadata(format!("/proc/thread-self/ns/{ns}"))?.ino(),
                )
            };
            Ok((of("net")?, of("mnt")?))
        };
        let place = Place::of_peer().unwrap();
        let (here, there) = (inodes().unwrap(), place.run(inodes).unwrap());
        assert_ne!(here.0, there.0);
        assert_ne!(here.1, there.1);
        let dir = place.dir().to_path_buf();
        assert!(dir.is_dir());
        place.close().unwrap();
        assert!(!dir.exists());
    }
}
