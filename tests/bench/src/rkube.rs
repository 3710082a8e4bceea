//! rkube in a place.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use rkube_tests::wait;

use crate::clock::{self, Timed};
use crate::kernel::{self, Process};
use crate::place::Place;

/// The built-in image.
pub const IMAGE: &str = "rkube.local/toolbox";
/// How long the supervisor takes, at most, to end after the last pod.
const SUPERVISOR_END: Duration = Duration::from_secs(30);

/// An rkube with a root of its own.
#[derive(Debug)]
pub struct Rkube {
    program: PathBuf,
    root: PathBuf,
    place: Place,
}

impl Rkube {
    /// With a root where nothing was done yet.
    ///
    /// # Errors
    /// See [`Place::of_rkube`].
    pub fn open(program: &Path) -> anyhow::Result<Rkube> {
        let place = Place::of_rkube(program)?;
        Ok(Rkube {
            program: program.to_path_buf(),
            root: place.dir().join("root"),
            place,
        })
    }

    /// Runs a command line that has to succeed.
    ///
    /// # Errors
    /// It fails; its output is in the message.
    pub fn run(&self, args: &[&str]) -> anyhow::Result<Timed> {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).args(args);
        self.place.run(move || clock::succeeds(command))
    }

    /// Writes a manifest and gives its path.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn manifest(&self, name: &str, text: &str) -> anyhow::Result<String> {
        let path = self.place.dir().join("files").join(format!("{name}.yaml"));
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// `rkube run --detach`.
    ///
    /// # Errors
    /// The pod does not run.
    pub fn start(&self, file: &str) -> anyhow::Result<Timed> {
        self.run(&["run", "--quiet", "--detach", "-f", file])
    }

    /// When the payload of a pod was at its first instruction.
    ///
    /// # Errors
    /// It printed no stamp.
    pub fn stamp(&self, pod: &str) -> anyhow::Result<i64> {
        let deadline = Duration::from_secs(wait::WAIT_SECS);
        wait::until("the stamp in the pod's log", deadline, || {
            Ok(clock::stamp_in(&self.run(&["logs", pod])?.stdout))
        })
    }

    /// `rkube rm --force`.
    ///
    /// # Errors
    /// It fails.
    pub fn remove(&self, pods: &[&str]) -> anyhow::Result<Timed> {
        self.run(&[&["rm", "--force"], pods].concat())
    }

    /// Waits until no process of this root is left.
    ///
    /// # Errors
    /// The supervisor stays.
    pub fn settle(&self) -> anyhow::Result<()> {
        wait::until("the supervisor's end", SUPERVISOR_END, || {
            Ok(self.processes()?.is_empty().then_some(()))
        })
    }

    /// The supervisor, keepers and pauses of this root, without payloads.
    ///
    /// # Errors
    /// The root has no instance, or `/proc` is not mounted.
    pub fn processes(&self) -> anyhow::Result<Vec<Process>> {
        let path = self.root.join("var/lib/rkube/instance");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let iid = text.split_whitespace().next().context("no instance id")?;
        let group = format!("/rkube-{iid}");
        let supervisor = format!("--root {} supervisor", self.root.display());
        let mut found = Vec::new();
        for mut process in kernel::processes()? {
            if process.args.contains(&supervisor) {
                "supervisor".clone_into(&mut process.name);
                found.push(process);
            } else if process.cgroups.contains(&group) && !process.exe.ends_with("/bin/toolbox") {
                found.push(process);
            }
        }
        Ok(found)
    }

    /// The payload's file, as the program unpacked it.
    ///
    /// # Errors
    /// No pod of the built-in image ran in this root yet.
    pub fn toolbox(&self) -> anyhow::Result<PathBuf> {
        kernel::find_below(&self.root.join("var/lib/rkube"), "bin/toolbox")
            .context("no bin/toolbox below the root's images")
    }

    /// Ends it and looks for leftovers.
    ///
    /// # Errors
    /// There are some.
    pub fn close(self) -> anyhow::Result<()> {
        self.place.close()
    }
}
