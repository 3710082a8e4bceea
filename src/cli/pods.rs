//! Command lines of what is done with pods that run, or have run.

use std::net::IpAddr;

use clap::Args;

use super::{OnePod, Pods};

/// `rkube attach`.
#[derive(Debug, Args)]
pub(crate) struct Attach {
    #[command(flatten)]
    pub(crate) pod: OnePod,
    /// The container; the first one of the pod if not given.
    #[arg(short, long, value_name = "NAME")]
    pub(crate) container: Option<String>,
    /// Pass standard input on; the container must have `stdin: true`.
    #[arg(short = 'i', long)]
    pub(crate) stdin: bool,
    /// Standard input is a terminal, and so is the container's (`tty: true`).
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Keys that end the attach and leave the container running: letters and
    /// ctrl-LETTER, with commas between; none if empty.
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub(crate) detach_keys: String,
}

/// `rkube cp`.
#[derive(Debug, Args)]
pub(crate) struct Cp {
    /// File or directory: PATH, or [NAMESPACE/]POD[/CONTAINER]:PATH; or - for
    /// a tar archive on standard input.
    pub(crate) source: String,
    /// Where it goes: a directory that is there, or a new name; or - for a tar
    /// archive on standard output.
    pub(crate) dest: String,
    /// Namespace of pods that are given by NAME.
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
    /// The container; the first one of the pod if not given.
    #[arg(short, long, value_name = "NAME")]
    pub(crate) container: Option<String>,
    /// Keep owners and set-id bits. Otherwise copies belong to the container's
    /// user, or to you.
    #[arg(short, long)]
    pub(crate) archive: bool,
    /// Say nothing of what is left out.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// `rkube port-forward`.
#[derive(Debug, Args)]
pub(crate) struct PortForward {
    /// The pod: NAME, NAMESPACE/NAME or uid.
    #[arg(value_name = "POD")]
    pub(crate) pod: String,
    /// Ports: REMOTE, LOCAL:REMOTE, or :REMOTE for any free local port. REMOTE
    /// is a number or the name of a container's port.
    #[arg(value_name = "[LOCAL:]REMOTE", required = true)]
    pub(crate) ports: Vec<String>,
    /// Namespace of a pod that is given by NAME.
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
    /// Addresses to listen on; localhost is 127.0.0.1 and ::1. May be
    /// repeated.
    #[arg(
        long,
        value_name = "IP|localhost",
        value_delimiter = ',',
        default_value = "localhost"
    )]
    pub(crate) address: Vec<Listen>,
}

/// Where connections are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listen {
    /// On both loopback addresses; one is enough.
    Localhost,
    /// On this address.
    Address(IpAddr),
}

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "localhost" {
            return Ok(Self::Localhost);
        }
        let plain = text.trim_start_matches('[').trim_end_matches(']');
        plain
            .parse()
            .map(Self::Address)
            .map_err(|_| "give an IP address, or localhost".to_owned())
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Localhost => f.write_str("localhost"),
            Self::Address(ip) => ip.fmt(f),
        }
    }
}

/// `rkube start`.
#[derive(Debug, Args)]
pub(crate) struct Start {
    #[command(flatten)]
    pub(crate) pods: Pods,
    /// Seconds to wait for the pods to run; 0 does not wait.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub(crate) timeout: u64,
}

/// `rkube restart`.
#[derive(Debug, Args)]
pub(crate) struct Restart {
    #[command(flatten)]
    pub(crate) pods: Pods,
    /// Only this container. May be repeated.
    #[arg(short, long, value_name = "NAME")]
    pub(crate) container: Vec<String>,
    /// Seconds that containers get before they are killed, instead of the
    /// pod's terminationGracePeriodSeconds.
    #[arg(long, visible_alias = "time", value_name = "SECONDS")]
    pub(crate) grace: Option<u64>,
    /// Seconds to wait for the pods to run again; 0 does not wait.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub(crate) timeout: u64,
}

/// `rkube update`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("limits").required(true).multiple(true))]
pub(crate) struct Update {
    #[command(flatten)]
    pub(crate) pod: OnePod,
    /// The container; the first one of the pod if not given.
    #[arg(short, long, value_name = "NAME")]
    pub(crate) container: Option<String>,
    /// Most processor time: 500m is half a processor; `none` takes the limit
    /// away, here and below.
    #[arg(long, value_name = "CPUS", group = "limits")]
    pub(crate) cpu_limit: Option<String>,
    /// Share of processor time where it is short.
    #[arg(long, value_name = "CPUS", group = "limits")]
    pub(crate) cpu_request: Option<String>,
    /// Most memory, such as 64Mi. Below what is in use it is refused.
    #[arg(long, value_name = "BYTES", group = "limits")]
    pub(crate) memory_limit: Option<String>,
    /// Memory that counts for the pod's QoS class.
    #[arg(long, value_name = "BYTES", group = "limits")]
    pub(crate) memory_request: Option<String>,
    /// Memory above which the container is slowed down and reclaimed from
    /// (cgroup v2).
    #[arg(long, value_name = "BYTES", group = "limits")]
    pub(crate) memory_high: Option<String>,
    /// Most processes and threads.
    #[arg(
        long,
        visible_alias = "pids-limit",
        value_name = "COUNT",
        group = "limits"
    )]
    pub(crate) pids: Option<String>,
}
