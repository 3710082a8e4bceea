//! kubectl against a test server.
#![allow(unreachable_pub)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rkube_apiserver::testing::{self, TestServer};
use tempfile::TempDir;

/// The kubectl of a minor release, beside the one in the search path; `None` where it is not
/// installed.
pub fn kubectl(minor: u32) -> Option<PathBuf> {
    let beside = in_path().and_then(|file| {
        let file = file.canonicalize().ok()?;
        let beside = file.with_file_name(format!("kubectl.1.{minor}"));
        beside.exists().then_some(beside)
    });
    if beside.is_none() {
        println!("skipped: kubectl 1.{minor} is not installed");
    }
    beside
}

fn in_path() -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join("kubectl"))
        .find(|file| file.exists())
}

/// A server and one kubectl.
pub struct Cluster {
    pub server: TestServer,
    pub folder: TempDir,
    kubectl: PathBuf,
}

/// What a command left.
#[derive(Debug)]
pub struct Output {
    pub ok: bool,
    pub out: String,
    pub err: String,
}

impl Cluster {
    pub async fn start(kubectl: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let server = testing::start(folder.path()).await.expect("a server");
        Self {
            server,
            folder,
            kubectl: kubectl.to_owned(),
        }
    }

    /// Runs kubectl with words; `input` is its standard input.
    pub fn run_with(&self, words: &str, input: &str) -> Output {
        let args: Vec<&str> = words.split_whitespace().collect();
        self.run_args(&args, input)
    }

    pub fn run_args(&self, args: &[&str], input: &str) -> Output {
        use std::io::Write as _;
        let mut child = Command::new(&self.kubectl)
            .args(args)
            .env("KUBECONFIG", &self.server.kubeconfig)
            .env("HOME", self.folder.path())
            .env("KUBE_EDITOR", "sed -i s/edit-me/edited/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        // kubectl may end without reading all of it.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("kubectl ends");
        Output {
            ok: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The standard output of a command that must succeed.
    #[track_caller]
    pub fn run(&self, words: &str) -> String {
        let output = self.run_with(words, "");
        assert!(output.ok, "kubectl {words}: {output:?}");
        output.out
    }

    /// As [`Cluster::run`], with input.
    #[track_caller]
    pub fn feed(&self, words: &str, input: &str) -> String {
        let output = self.run_with(words, input);
        assert!(output.ok, "kubectl {words}: {output:?}");
        output.out
    }

    /// The standard error of a command that must fail.
    #[track_caller]
    pub fn fail(&self, words: &str) -> String {
        let output = self.run_with(words, "");
        assert!(!output.ok, "kubectl {words}: {output:?}");
        output.err
    }
}
