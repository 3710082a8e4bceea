//! Arguments: runc's names and forms.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use super::log::Format;

/// Where records lie by default.
const DEFAULT_ROOT: &str = "/run/rkube/oci";

/// OCI container runtime
#[derive(Debug, Parser)]
#[command(
    name = "rkube oci",
    disable_version_flag = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    /// Directory of the containers' records
    #[arg(long, default_value = DEFAULT_ROOT, overrides_with = "root")]
    pub root: PathBuf,
    /// File that messages are appended to
    #[arg(long)]
    pub log: Option<PathBuf>,
    /// Form of the log file
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: Format,
    /// Accepted; there are no messages below warnings
    #[arg(long)]
    pub debug: bool,
    /// Make cgroups through systemd (cgroup v2): the path is slice:prefix:name
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Ignore cgroup permission errors (only `false` and `auto` are supported)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub rootless: Option<String>,
    /// Print the version
    #[arg(long, short = 'v')]
    pub version: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a container from a bundle
    Create(Create),
    /// Start the program of a created container
    Start(Id),
    /// Print the state of a container
    State(Id),
    /// Send a signal to a container
    Kill(Kill),
    /// Remove a container
    Delete(Delete),
    /// Make and start a container
    Run(Run),
    /// Run a further process in a container
    Exec(Exec),
    /// Write a config.json to begin with
    Spec(Spec),
    /// Print what this runtime can do
    Features,
    /// List containers
    List(List),
    /// List the processes of a container
    Ps(Ps),
    /// Stop all processes of a container
    Pause(Id),
    /// Let the processes of a paused container run again
    Resume(Id),
    /// Change the limits of a container
    Update(Box<Update>),
    /// Print statistics and events of a container
    Events(Events),
    /// Write a running container to disk (not supported)
    Checkpoint(Rest),
    /// Make a container from a checkpoint (not supported)
    Restore(Rest),
}

/// Anything.
#[derive(Debug, Args)]
pub(crate) struct Rest {
    /// Arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub rest: Vec<OsString>,
}

/// A container.
#[derive(Debug, Args)]
pub(crate) struct Id {
    /// Its id
    pub id: String,
}

/// Where a process' descriptors go, and whence they come: for create, run and
/// exec alike.
#[derive(Debug, Args)]
pub(crate) struct Ends {
    /// Unix socket that gets the terminal's master
    #[arg(long)]
    pub console_socket: Option<PathBuf>,
    /// Unix socket that gets the pidfd
    #[arg(long)]
    pub pidfd_socket: Option<PathBuf>,
    /// File that gets the pid
    #[arg(long)]
    pub pid_file: Option<PathBuf>,
    /// Pass this many descriptors from number 3 on
    #[arg(long, default_value_t = 0)]
    pub preserve_fds: u32,
    /// Accepted; this runtime never makes itself a subreaper
    #[arg(long)]
    pub no_subreaper: bool,
}

/// How a container is made.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Its id
    pub id: String,
    /// Directory with config.json
    #[arg(long, short = 'b', default_value = ".")]
    pub bundle: PathBuf,
    /// Its descriptors
    #[command(flatten)]
    pub ends: Ends,
    /// Do not use pivot_root (for a host that runs from its initial ramfs)
    #[arg(long)]
    pub no_pivot: bool,
    /// Share the caller's session keyring
    #[arg(long)]
    pub no_new_keyring: bool,
}

/// How a container is run.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// As for create
    #[command(flatten)]
    pub create: Create,
    /// Return when it runs
    #[arg(long, short = 'd')]
    pub detach: bool,
    /// Keep the container when it has ended
    #[arg(long)]
    pub keep: bool,
}

/// Which signal.
#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// To every process of the container
    #[arg(long, short = 'a')]
    pub all: bool,
    /// Its id
    pub id: String,
    /// Number or name
    #[arg(default_value = "SIGTERM")]
    pub signal: String,
}

/// How to delete.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// In any state, killing what runs
    #[arg(long, short = 'f')]
    pub force: bool,
    /// Its id
    pub id: String,
}

/// What to run.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct Exec {
    /// File with the process as JSON
    #[arg(long, short = 'p')]
    pub process: Option<PathBuf>,
    /// Its descriptors
    #[command(flatten)]
    pub ends: Ends,
    /// Working directory
    #[arg(long)]
    pub cwd: Option<PathBuf>,
    /// NAME=VALUE
    #[arg(long, short = 'e')]
    pub env: Vec<String>,
    /// A terminal
    #[arg(long, short = 't')]
    pub tty: bool,
    /// UID[:GID]
    #[arg(long, short = 'u')]
    pub user: Option<String>,
    /// Further group ids
    #[arg(long, short = 'g')]
    pub additional_gids: Vec<u32>,
    /// Return when it runs
    #[arg(long, short = 'd')]
    pub detach: bool,
    /// Further capabilities
    #[arg(long, short = 'c')]
    pub cap: Vec<String>,
    /// Set no_new_privs
    #[arg(long)]
    pub no_new_privs: bool,
    /// AppArmor profile
    #[arg(long)]
    pub apparmor: Option<String>,
    /// SELinux label
    #[arg(long)]
    pub process_label: Option<String>,
    /// In a paused container too
    #[arg(long)]
    pub ignore_paused: bool,
    /// The container's id
    pub id: String,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub argv: Vec<String>,
}

/// Where the spec goes.
#[derive(Debug, Args)]
pub(crate) struct Spec {
    /// Directory for config.json
    #[arg(long, short = 'b', default_value = ".")]
    pub bundle: PathBuf,
    /// For a user without rights (not supported)
    #[arg(long)]
    pub rootless: bool,
}

/// How to list.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// table or json
    #[arg(long, short = 'f', default_value = "table")]
    pub format: String,
    /// Ids only
    #[arg(long, short = 'q')]
    pub quiet: bool,
}

/// Which processes.
#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// table or json
    #[arg(long, short = 'f', default_value = "table")]
    pub format: String,
    /// Its id
    pub id: String,
    /// Options of ps(1)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub options: Vec<OsString>,
}

/// Which events.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Seconds between statistics (`5` or `5s`)
    #[arg(long, default_value = "5s")]
    pub interval: String,
    /// Statistics once
    #[arg(long)]
    pub stats: bool,
    /// Its id
    pub id: String,
}

/// New limits.
#[derive(Debug, Args, Default)]
pub(crate) struct Update {
    /// Its id
    pub id: String,
    /// File with the limits as JSON, - for standard input
    #[arg(long, short = 'r')]
    pub resources: Option<PathBuf>,
    /// Weight of block I/O, 10 to 1000
    #[arg(long)]
    pub blkio_weight: Option<u16>,
    /// Length of a CPU period in microseconds
    #[arg(long)]
    pub cpu_period: Option<u64>,
    /// CPU time of each period in microseconds
    #[arg(long, allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// CPU burst in microseconds
    #[arg(long)]
    pub cpu_burst: Option<u64>,
    /// CPU shares
    #[arg(long, alias = "cpu-shares")]
    pub cpu_share: Option<u64>,
    /// Real-time period in microseconds
    #[arg(long)]
    pub cpu_rt_period: Option<u64>,
    /// Real-time run time in microseconds
    #[arg(long, allow_hyphen_values = true)]
    pub cpu_rt_runtime: Option<i64>,
    /// 1 makes it run only when nothing else does
    #[arg(long, allow_hyphen_values = true)]
    pub cpu_idle: Option<i64>,
    /// CPUs to run on
    #[arg(long)]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long)]
    pub cpuset_mems: Option<String>,
    /// Memory limit in bytes (or with K, M, G)
    #[arg(long, allow_hyphen_values = true)]
    pub memory: Option<String>,
    /// Soft memory limit
    #[arg(long, allow_hyphen_values = true)]
    pub memory_reservation: Option<String>,
    /// Memory and swap together
    #[arg(long, allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    /// Most processes
    #[arg(long, allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// Obsolete, ignored by the kernel
    #[arg(long, hide = true)]
    pub kernel_memory: Option<String>,
    /// Obsolete, ignored by the kernel
    #[arg(long, hide = true)]
    pub kernel_memory_tcp: Option<String>,
}

/// The last part of the program's path.
pub(super) fn program_name(args: &[OsString]) -> String {
    let first = args.first().map(Path::new);
    let name = first.and_then(Path::file_name).unwrap_or_default();
    match name.to_str() {
        Some("runc") => "runc".to_owned(),
        _ => "rkube-oci".to_owned(),
    }
}

/// Long options that callers write with one dash.
const ONE_DASH: [&str; 21] = [
    "root",
    "log",
    "log-format",
    "debug",
    "systemd-cgroup",
    "rootless",
    "version",
    "bundle",
    "pid-file",
    "console-socket",
    "pidfd-socket",
    "no-pivot",
    "no-new-keyring",
    "preserve-fds",
    "no-subreaper",
    "detach",
    "force",
    "all",
    "format",
    "resources",
    "stats",
];

/// Gives long options with one dash (the Go way) their second one, up to the
/// point where another program's arguments may begin.
pub(super) fn long_options(args: Vec<OsString>) -> Vec<OsString> {
    let mut foreign = false;
    args.into_iter()
        .enumerate()
        .map(|(n, arg)| {
            let Some(text) = arg.to_str().filter(|_| n > 0 && !foreign) else {
                return arg;
            };
            if matches!(text, "exec" | "ps" | "--") {
                foreign = true;
            }
            let name = text
                .strip_prefix('-')
                .and_then(|rest| rest.split('=').next());
            if name.is_some_and(|name| ONE_DASH.contains(&name)) {
                OsString::from(format!("-{text}"))
            } else {
                arg
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Cli {
        let args = args.iter().map(OsString::from).collect();
        Cli::try_parse_from(long_options(args)).unwrap()
    }

    #[test]
    fn the_definitions_are_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn as_go_runc_calls() {
        let cli = parse(&[
            "runc",
            "--root",
            "/r",
            "--log",
            "/l",
            "--log-format",
            "json",
            "--rootless=false",
            "create",
            "--bundle",
            "/b",
            "--pid-file",
            "/p",
            "c1",
        ]);
        assert_eq!(cli.root, Path::new("/r"));
        assert_eq!(cli.log_format, Format::Json);
        let Some(Command::Create(create)) = cli.command else {
            panic!("no create");
        };
        assert_eq!(
            (create.id.as_str(), create.bundle.as_path()),
            ("c1", Path::new("/b"))
        );
    }

    #[test]
    fn options_after_the_id_and_with_one_dash() {
        let cli = parse(&["runc", "-root=/r", "create", "c1", "-bundle", "/b"]);
        assert_eq!(cli.root, Path::new("/r"));
        assert!(matches!(cli.command, Some(Command::Create(c)) if c.bundle == Path::new("/b")));
    }

    #[test]
    fn arguments_of_an_exec_are_its_own() {
        let cli = parse(&["runc", "exec", "-t", "c1", "ls", "-root", "--all", "-d"]);
        let Some(Command::Exec(exec)) = cli.command else {
            panic!("no exec");
        };
        assert!(exec.tty && !exec.detach);
        assert_eq!(exec.argv, ["ls", "-root", "--all", "-d"]);
    }

    #[test]
    fn commands_need_an_id() {
        for command in ["create", "start", "state", "kill", "delete", "exec"] {
            let args = ["runc", command].iter().map(OsString::from).collect();
            assert!(
                Cli::try_parse_from(long_options(args)).is_err(),
                "{command}"
            );
        }
    }
}
