//! The command line, as data: help, completions and man pages come from here.

mod image;
mod pods;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use image::{Image, Import, Login, Pull, Push};
pub(crate) use pods::{Attach, Cp, Listen, PortForward, Restart, Start, Update};

/// Pods on this host, straight from Linux primitives.
///
/// rkube runs Kubernetes pods without anything to install or start first:
/// the first `rkube run` starts a supervisor that ends with the last pod.
#[derive(Debug, Parser)]
#[command(
    name = "rkube",
    version,
    propagate_version = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    /// Directory that run/rkube, var/lib/rkube, var/log/pods and etc/rkube
    /// lie below; another root is a whole separate rkube.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/",
        env = "RKUBE_ROOT"
    )]
    pub(crate) root: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the pods of manifests.
    ///
    /// In the foreground it shows progress and the containers' logs, deletes
    /// the pods at the end, and exits with the code of the first container
    /// that failed, else 0. Ctrl-C ends the pods gracefully, a second one
    /// kills them.
    Run(Run),
    /// List pods.
    Ps(Ps),
    /// Show all that is known of pods.
    Inspect(Inspect),
    /// Print the logs of a pod's containers.
    Logs(Logs),
    /// Run a program in a running container.
    Exec(Exec),
    /// Join a running container's streams.
    ///
    /// The exit code is the container's; ctrl-p ctrl-q leaves it running.
    Attach(Attach),
    /// Copy files into and out of running containers.
    Cp(Cp),
    /// Forward local ports to a pod.
    PortForward(PortForward),
    /// Show the containers' use of processors, memory and processes.
    Stats(Stats),
    /// End pods gracefully.
    ///
    /// They stay on the list, with their exit codes and logs, until
    /// `rkube rm` removes them.
    Stop(Stop),
    /// Run pods again that have ended, as they were given to `rkube run`.
    ///
    /// Volumes of their own begin empty, and it counts as a restart.
    Start(Start),
    /// Stop the containers of pods gracefully and run them again, in place.
    ///
    /// Network and volumes stay as they are; init containers run first.
    Restart(Restart),
    /// Change a container's limits while it runs, and for later runs.
    Update(Update),
    /// Remove pods that have ended.
    Rm(Rm),
    /// Wait until pods have ended, and exit with the code of the first
    /// container that failed, else 0.
    Wait(Wait),
    /// Print what happened to pods.
    Events(Events),
    /// List the namespaces of every pod.
    Lsns(Lsns),
    /// Run a program of the host in a pod's network, IPC and UTS namespaces.
    Nsenter(Nsenter),
    /// Images: of the local store, from and to registries.
    #[command(subcommand)]
    Image(Image),
    /// Run a whole cluster in one process, on this host.
    ///
    /// API server, store, scheduler, controllers, node, Service proxy and
    /// DNS; kubectl finds them with etc/rkube/admin.conf below the root.
    /// SIGTERM ends it in good order; pods run on, and the next server finds
    /// them again.
    Server(Server),
    /// Run a node that joins an `rkube server`.
    ///
    /// The server's var/lib/rkube/token below its root holds the token. It
    /// is needed once: the node keeps a certificate of its own.
    Agent(Agent),
    /// Remove every trace of this root's rkube from the host.
    ///
    /// Pods must have ended, or `--force` kills them.
    Reset(Reset),
    /// Tell what this host offers and what it lacks.
    Check(Check),
    /// The OCI runtime command line (runc's flags).
    ///
    /// The same as calling the program by the name `rkube-oci` or `runc`.
    #[command(disable_help_flag = true, disable_version_flag = true)]
    Oci {
        /// What `rkube oci` is given.
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        args: Vec<std::ffi::OsString>,
    },
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a directory.
    Man {
        /// The directory; it is made if it is missing.
        dir: PathBuf,
    },
    /// Print the version.
    Version,
    /// Hold the writer's lock and serve commands; started by whoever needs it.
    #[command(hide = true)]
    Supervisor {
        /// Serve in this process; without it, start one that does and return.
        #[arg(long)]
        serve: bool,
        /// Only for pods that are on record; where there are none, end.
        #[arg(long, requires = "serve")]
        adopt: bool,
    },
}

/// How a list is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table with more columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// Names only.
    Name,
}

/// How one thing is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Document {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// Names pods.
#[derive(Debug, Clone, Args)]
pub(crate) struct Pods {
    /// Pods: NAME, NAMESPACE/NAME or uid.
    #[arg(value_name = "POD", required = true)]
    pub(crate) pods: Vec<String>,
    /// Namespace of pods that are given by NAME.
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
}

/// Names one pod.
#[derive(Debug, Clone, Args)]
pub(crate) struct OnePod {
    /// The pod: NAME, NAMESPACE/NAME or uid.
    #[arg(value_name = "POD")]
    pub(crate) pod: String,
    /// Namespace of a pod that is given by NAME.
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
}

/// `rkube run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Manifests: a file, a directory (its *.yaml, *.yml and *.json, sorted),
    /// or - for standard input. May be repeated.
    #[arg(short, long = "filename", value_name = "FILE|DIR|-", required = true)]
    pub(crate) filename: Vec<PathBuf>,
    /// Namespace of objects that name none.
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
    /// Name of the pod, instead of its manifest's; only with one pod.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Return when the pods are running, and leave them so.
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// With --detach: seconds to wait for the pods; 0 waits for ever.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 120,
        requires = "detach"
    )]
    pub(crate) timeout: u64,
    /// Print the OCI specs and the network plan, and change nothing.
    #[arg(long, conflicts_with_all = ["detach", "replace"])]
    pub(crate) dry_run: bool,
    /// End a pod of the same name first if it differs.
    #[arg(long)]
    pub(crate) replace: bool,
    /// Show no progress.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// `rkube ps`.
#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Pods that have ended, too.
    #[arg(short, long)]
    pub(crate) all: bool,
    /// How the list is printed.
    #[arg(short, long, value_enum)]
    pub(crate) output: Option<Format>,
}

/// `rkube inspect`.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    #[command(flatten)]
    pub(crate) pods: Pods,
    /// How they are printed.
    #[arg(short, long, value_enum, default_value = "yaml")]
    pub(crate) output: Document,
}

/// `rkube logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    #[command(flatten)]
    pub(crate) pod: OnePod,
    /// The container; needed where the pod has several.
    #[arg(short, long, value_name = "NAME", conflicts_with = "all_containers")]
    pub(crate) container: Option<String>,
    /// Every container, each line with its container's name.
    #[arg(long)]
    pub(crate) all_containers: bool,
    /// Go on with what is written from now on.
    #[arg(short, long, conflicts_with = "previous")]
    pub(crate) follow: bool,
    /// Only so many lines from the end.
    #[arg(long, value_name = "LINES")]
    pub(crate) tail: Option<u64>,
    /// Only lines since a time (RFC 3339) or for a duration (90s, 10m, 2h).
    #[arg(long, value_name = "TIME|DURATION")]
    pub(crate) since: Option<String>,
    /// The logs of the container's run before the latest one.
    #[arg(short, long)]
    pub(crate) previous: bool,
    /// The time of each line before it.
    #[arg(long)]
    pub(crate) timestamps: bool,
}

/// `rkube exec`.
#[derive(Debug, Args)]
pub(crate) struct Exec {
    #[command(flatten)]
    pub(crate) pod: OnePod,
    /// The container; the first one of the pod if not given.
    #[arg(short, long, value_name = "NAME")]
    pub(crate) container: Option<String>,
    /// Pass standard input on.
    #[arg(short = 'i', long)]
    pub(crate) stdin: bool,
    /// Give the program a terminal.
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Set a variable of the environment. May be repeated.
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// `rkube stats`.
#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Print once and end.
    #[arg(long)]
    pub(crate) no_stream: bool,
    /// How the list is printed (once).
    #[arg(short, long, value_enum)]
    pub(crate) output: Option<Format>,
}

/// `rkube stop`.
#[derive(Debug, Args)]
pub(crate) struct Stop {
    #[command(flatten)]
    pub(crate) pods: Pods,
    /// Seconds that containers get before they are killed, instead of the
    /// pod's terminationGracePeriodSeconds.
    #[arg(long, visible_alias = "time", value_name = "SECONDS")]
    pub(crate) grace: Option<u64>,
}

/// `rkube rm`.
#[derive(Debug, Args)]
pub(crate) struct Rm {
    #[command(flatten)]
    pub(crate) pods: Pods,
    /// Kill and remove pods that are running.
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// `rkube wait`.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    #[command(flatten)]
    pub(crate) pods: Pods,
    /// Give up after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
}

/// `rkube events`.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Of this pod only: NAME, NAMESPACE/NAME or uid.
    #[arg(value_name = "POD")]
    pub(crate) pod: Option<String>,
    /// Namespace of a pod that is given by NAME.
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
    /// Go on with what happens from now on.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// How the list is printed.
    #[arg(short, long, value_enum, conflicts_with = "follow")]
    pub(crate) output: Option<Format>,
}

/// `rkube lsns`.
#[derive(Debug, Args)]
pub(crate) struct Lsns {
    /// How the list is printed.
    #[arg(short, long, value_enum)]
    pub(crate) output: Option<Format>,
}

/// `rkube nsenter`.
#[derive(Debug, Args)]
pub(crate) struct Nsenter {
    #[command(flatten)]
    pub(crate) pod: OnePod,
    /// The program of the host and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<std::ffi::OsString>,
}

/// The node that a server or agent is.
#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// Name of the node; the host's name if not given.
    #[arg(long, value_name = "NAME", env = "RKUBE_NODE_NAME")]
    pub(crate) node_name: Option<String>,
    /// Address of the node, instead of those that the host speaks from. May
    /// be repeated.
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub(crate) node_ip: Vec<std::net::IpAddr>,
    /// Label of the node: KEY=VALUE. May be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    pub(crate) node_label: Vec<String>,
    /// Taint of the node: KEY[=VALUE]:EFFECT. May be repeated.
    #[arg(long, value_name = "TAINT", value_delimiter = ',')]
    pub(crate) node_taint: Vec<String>,
    /// Port of the node's own API.
    #[arg(long, value_name = "PORT", default_value_t = 10250)]
    pub(crate) kubelet_port: u16,
    /// Most pods on the node.
    #[arg(long, value_name = "COUNT")]
    pub(crate) max_pods: Option<usize>,
}

/// `rkube server`.
#[derive(Debug, Args)]
pub(crate) struct Server {
    /// Address that the API listens on.
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    pub(crate) bind_address: std::net::IpAddr,
    /// Port that the API listens on.
    #[arg(long, value_name = "PORT", default_value_t = 6443)]
    pub(crate) https_listen_port: u16,
    /// Address that others reach the API by; the node's if not given.
    #[arg(long, value_name = "IP")]
    pub(crate) advertise_address: Option<std::net::IpAddr>,
    /// Name or address that the API's certificate shall hold, too. May be
    /// repeated.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) tls_san: Vec<String>,
    /// Range of pods' addresses; for two families, both with a comma.
    #[arg(
        long,
        value_name = "CIDR",
        value_delimiter = ',',
        default_value = "10.42.0.0/16"
    )]
    pub(crate) cluster_cidr: Vec<ipnet::IpNet>,
    /// Range of Services' addresses; for two families, both with a comma.
    #[arg(
        long,
        value_name = "CIDR",
        value_delimiter = ',',
        default_value = "10.43.0.0/16"
    )]
    pub(crate) service_cidr: Vec<ipnet::IpNet>,
    /// Address of the cluster DNS; the tenth of the Service range if not given.
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub(crate) cluster_dns: Vec<std::net::IpAddr>,
    /// Domain of cluster names.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub(crate) cluster_domain: String,
    /// Bootstrap token by which nodes join; made and kept if not given.
    #[arg(
        long,
        value_name = "TOKEN",
        env = "RKUBE_TOKEN",
        hide_env_values = true
    )]
    pub(crate) token: Option<String>,
    /// Write the administrator's kubeconfig here, too.
    #[arg(long, value_name = "FILE")]
    pub(crate) write_kubeconfig: Option<PathBuf>,
    /// How long a node may be silent before it counts as not ready.
    #[arg(long, value_name = "DURATION", default_value = "40s", value_parser = crate::duration::parse)]
    pub(crate) node_monitor_grace_period: std::time::Duration,
    /// How many ended pods are kept; 0 keeps all.
    #[arg(long, value_name = "COUNT", default_value_t = 12_500)]
    pub(crate) terminated_pod_gc_threshold: usize,
    /// Give every service account a Secret with a token that does not end, as
    /// Kubernetes did before 1.24.
    #[arg(long)]
    pub(crate) legacy_service_account_tokens: bool,
    /// How long pods that do not say stay on a node that is not ready.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub(crate) default_not_ready_toleration_seconds: u32,
    /// How long pods that do not say stay on a node that is silent.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub(crate) default_unreachable_toleration_seconds: u32,
    /// Leave parts out. May be repeated.
    #[arg(long, value_name = "PART", value_delimiter = ',', value_enum)]
    pub(crate) disable: Vec<crate::server::config::Part>,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

/// `rkube agent`.
#[derive(Debug, Args)]
pub(crate) struct Agent {
    /// The server: https://HOST:PORT.
    #[arg(
        long,
        value_name = "URL",
        env = "RKUBE_URL",
        required_unless_present = "kubeconfig"
    )]
    pub(crate) server: Option<String>,
    /// A kubeconfig instead of server and token: of any Kubernetes API server.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["server", "token"])]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The token by which nodes join.
    #[arg(
        long,
        value_name = "TOKEN",
        env = "RKUBE_TOKEN",
        hide_env_values = true
    )]
    pub(crate) token: Option<String>,
    /// Range of pods' addresses, as the server's; for two families, both with
    /// a comma.
    #[arg(
        long,
        value_name = "CIDR",
        value_delimiter = ',',
        default_value = "10.42.0.0/16"
    )]
    pub(crate) cluster_cidr: Vec<ipnet::IpNet>,
    /// Range of Services' addresses, as the server's; for two families, both
    /// with a comma.
    #[arg(
        long,
        value_name = "CIDR",
        value_delimiter = ',',
        default_value = "10.43.0.0/16"
    )]
    pub(crate) service_cidr: Vec<ipnet::IpNet>,
    /// Domain of cluster names.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub(crate) cluster_domain: String,
    /// Leave parts out: proxy, dns. May be repeated.
    #[arg(long, value_name = "PART", value_delimiter = ',', value_enum)]
    pub(crate) disable: Vec<crate::server::config::Part>,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

/// `rkube reset`.
#[derive(Debug, Args)]
pub(crate) struct Reset {
    /// Kill pods that are running.
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// `rkube check`.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// How it is printed.
    #[arg(short, long, value_enum)]
    pub(crate) output: Option<Document>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definitions_hold_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn command_lines_of_the_documentation_are_understood() {
        for line in [
            "rkube run -f examples/hello.yaml",
            "rkube run --detach -f a.yaml -f b/ -f -",
            "rkube run --dry-run -f -",
            "rkube --root /tmp/r ps -a -o wide",
            "rkube inspect oom -o yaml",
            "rkube logs -f --tail 10 --since 5m --timestamps web -c app",
            "rkube exec -it web -- sh -c true",
            "rkube stats --no-stream",
            "rkube stop web --grace 3",
            "rkube rm --force quota no-quota",
            "rkube nsenter web -- ip addr",
            "rkube attach -it web -c app --detach-keys ctrl-a,d",
            "rkube cp -a ./conf default/web/app:/etc",
            "rkube cp web:/var/log -",
            "rkube port-forward web 8080:80 :443 http --address 0.0.0.0,localhost",
            "rkube start web --timeout 0",
            "rkube restart web -c app -c other --grace 3",
            "rkube update web --cpu-limit 500m --memory-limit none --pids 20",
            "rkube image import busybox.tar local/busybox:1",
            "rkube image pull busybox:1 reg.io:5000/a/b@sha256:0 --platform linux/arm64",
            "rkube image push local/a:1 reg.io/a:1",
            "rkube image login -u me --password-stdin reg.io",
            "rkube image save -o a.tar a b",
            "rkube image load -i a.tar",
            "rkube image prune --all",
            "rkube image verify",
            "rkube reset --force",
            "rkube oci --root /run/x create -b . id",
            "rkube supervisor --serve",
            "rkube server --disable dns,proxy --node-label a=b --cluster-cidr 10.1.0.0/16",
        ] {
            let words: Vec<&str> = line.split(' ').collect();
            Cli::try_parse_from(&words).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
        for line in [
            "rkube run",
            "rkube run -f a --dry-run --detach",
            "rkube exec web",
            "rkube update web",
            "rkube port-forward web",
            "rkube port-forward web 80 --address nowhere",
            "rkube ps -o toml",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
