//! The test host: a throw-away root directory and network namespace in which a
//! case drives `rkube`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::command::Cmd;
use crate::layout::Layout;
use crate::leaks;
use crate::{net, repo};

/// How long `rkube reset --force` may take.
pub const RESET_SECS: u64 = 60;

/// What a case gets. The suite process of the case already runs in the
/// namespace, so every program it starts does too.
#[derive(Debug)]
pub struct TestHost {
    root: PathBuf,
    files: PathBuf,
    layout: Layout,
    rkube: Option<PathBuf>,
}

impl TestHost {
    /// A test host over a directory that [`Ground::lay`] made.
    ///
    /// # Errors
    /// The directory is not there, or no cgroup hierarchy is mounted.
    pub fn open(dir: &Path) -> anyhow::Result<TestHost> {
        let (root, files) = (dir.join("root"), dir.join("files"));
        ensure!(
            root.is_dir() && files.is_dir(),
            "{}: no test host",
            dir.display()
        );
        Ok(TestHost {
            root,
            files,
            layout: Layout::detect()?,
            rkube: repo::rkube_program(),
        })
    }

    /// The instance's `--root`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The cgroup layout of this machine.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The program under test.
    ///
    /// # Errors
    /// It is not built.
    pub fn program(&self) -> anyhow::Result<&Path> {
        self.rkube
            .as_deref()
            .context("no rkube program: build it, or set RKUBE_BIN")
    }

    /// `rkube --root ROOT ARGS...`.
    ///
    /// # Errors
    /// The program is not built.
    pub fn rkube<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> anyhow::Result<Cmd> {
        Ok(rkube_cmd(self.program()?, &self.root, args))
    }

    /// Writes a file beside (not inside) the root, and gives its path.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> anyhow::Result<PathBuf> {
        let path = self.files.join(name);
        std::fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// A directory for the case's own files.
    pub fn files(&self) -> &Path {
        &self.files
    }
}

/// The test host of the cases around a power cut: it lies beside the temporary
/// directory, on the disk that lasts.
///
/// # Errors
/// It cannot be made.
pub fn lasting_dir() -> anyhow::Result<PathBuf> {
    let dir = std::env::temp_dir().with_file_name("lasting");
    for part in ["root", "files"] {
        let path = dir.join(part);
        std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
    }
    Ok(dir)
}

fn rkube_cmd<A: AsRef<OsStr>>(
    program: &Path,
    root: &Path,
    args: impl IntoIterator<Item = A>,
) -> Cmd {
    let mut all = vec![OsStr::new("--root").to_owned(), root.as_os_str().to_owned()];
    all.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
    Cmd::new(program, all)
}

/// The ground a test host stands on, held by the suite while the case runs in
/// a process of its own: the directory, and the calling thread's namespace.
#[derive(Debug)]
pub struct Ground {
    dir: PathBuf,
    netns: u64,
    program: Option<PathBuf>,
    cleared: bool,
}

impl Ground {
    /// A ground that is cleared by this program, not by the one under test.
    ///
    /// # Errors
    /// As [`Ground::lay`].
    pub fn with_program(program: &Path) -> anyhow::Result<Ground> {
        let mut ground = Ground::lay()?;
        ground.program = Some(program.to_path_buf());
        Ok(ground)
    }

    /// Moves the calling thread into a new network namespace and makes the
    /// directories. The thread must end with the ground.
    ///
    /// # Errors
    /// The kernel refuses a namespace, or the directory cannot be made.
    pub fn lay() -> anyhow::Result<Ground> {
        net::enter_new()?;
        let dir = tempfile::Builder::new()
            .prefix("rkube-test-")
            .tempdir()
            .context("make a test directory")?
            .keep();
        std::fs::create_dir(dir.join("root")).context("make the root directory")?;
        std::fs::create_dir(dir.join("files")).context("make the files directory")?;
        Ok(Ground {
            dir,
            netns: net::own_inode()?,
            program: repo::rkube_program(),
            cleared: false,
        })
    }

    /// The directory, for [`TestHost::open`].
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Resets the instance, removes the directory and names what is left. What
    /// is left is also ended, so that one case's leak is not the next one's.
    ///
    /// # Errors
    /// The reset is refused, or there are leftovers, each in the message.
    pub fn clear(mut self) -> anyhow::Result<()> {
        self.cleared = true;
        let (mut found, reset) = self.clear_all();
        if let (Err(e), false) = (&reset, found.is_empty()) {
            // Why it is there.
            found.push(format!("{e:#}"));
        }
        ensure!(
            found.is_empty(),
            "left behind after reset:\n  {}",
            found.join("\n  ")
        );
        reset
    }

    fn clear_all(&self) -> (Vec<String>, anyhow::Result<()>) {
        let root = self.dir.join("root");
        let instance = leaks::Instance::read(&root);
        let reset = match &self.program {
            Some(program) if instance.used() => rkube_cmd(program, &root, ["reset", "--force"])
                .within(Duration::from_secs(RESET_SECS))
                .ok()
                .map(|_| ()),
            _ => Ok(()),
        };
        let mut found = instance.leftovers(&self.dir, self.netns);
        leaks::end_processes(self.netns);
        if let Err(e) = leaks::unmount_below(&self.dir) {
            // What is mounted there may be the host's own files: delete nothing.
            found.push(format!("{}: kept, since {e:#}", self.dir.display()));
        } else if let Err(e) = std::fs::remove_dir_all(&self.dir) {
            found.push(format!("{}: {e}", self.dir.display()));
        }
        (found, reset)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if !self.cleared {
            // The panic that dropped it is the failure; this only tidies up.
            let _ = self.clear_all();
        }
    }
}
