//! What commands and the writer say to each other on `run/rkube/rkube.sock`.
//!
//! Purpose: a versioned, bounded protocol over a Unix stream socket. Frames
//! are a length and JSON ([`channel`]); descriptors travel beside them.
//!
//! Boundary: plain data and sockets. What a request does is decided in
//! `supervisor`.
//!
//! Invariants:
//! - The first request of a connection is [`Request::Hello`]; a writer of
//!   another protocol version answers with [`Reply::Failed`], which a client
//!   of any version can read.
//! - One request is under way at a time on a connection. [`Reply::Pod`],
//!   [`Reply::Gone`], [`Reply::Event`], [`Reply::ExecStarted`] and
//!   [`Reply::Attached`] come in the middle of an answer, any other reply ends
//!   it. [`Request::InputEnded`] comes in the middle of an attach.
//! - Only root may connect: the directory is 0700, the socket 0600, and the
//!   peer's credentials are checked.

pub(crate) mod channel;
pub(crate) mod socket;

use k8s_openapi::api::core::v1::{Event, Pod};
use rkube_kubelet::manager::Ask;
use rkube_kubelet::objects::Objects;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Raised with every change that an older peer would misread.
pub(crate) const PROTOCOL_VERSION: u32 = 1;

/// What a command asks of the writer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Opens the conversation.
    Hello {
        /// [`PROTOCOL_VERSION`].
        protocol: u32,
        /// The client's program version, for messages.
        version: String,
    },
    /// Takes pods on.
    Apply(Box<Apply>),
    /// All pods.
    List,
    /// The pods of these uids (all, if none) now and whenever they change,
    /// until the client closes the connection; pods that are gone are told.
    Watch {
        /// Which pods.
        uids: Vec<String>,
        /// Their events from now on, too.
        events: bool,
    },
    /// The events that are kept, and with `follow` those to come.
    Events {
        /// Of one pod only.
        uid: Option<String>,
        /// Goes on until the client closes the connection.
        follow: bool,
    },
    /// Ends a pod's containers gracefully; with `forget` the pod goes too.
    End(End),
    /// Runs a program in a container: its ends of pipes travel with it, none
    /// with a terminal.
    Exec(Exec),
    /// Joins a running container's streams until it ends or the client closes
    /// the connection.
    Attach(Attach),
    /// The client of an attach gives no more input.
    InputEnded,
    /// The files of a running container.
    Files {
        /// The pod.
        uid: String,
        /// The container.
        container: String,
    },
    /// A connection to a port on a pod's loopback.
    Connect {
        /// The pod.
        uid: String,
        /// 1 to 65535.
        port: u16,
    },
    /// A pod is to start, to restart, or to have other limits.
    Ask {
        /// The pod.
        uid: String,
        /// What.
        ask: Ask,
    },
    /// Use of resources of all running containers.
    Stats,
    /// Every pod's processes and namespaces.
    Namespaces,
    /// An image was imported: pods that wait for one look again.
    ImagesChanged,
    /// Ends all pods at once and then the writer.
    EndAll {
        /// Seconds that containers get; the pods' own grace periods if none.
        grace_seconds: Option<u64>,
    },
}

/// See [`Request::Apply`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Apply {
    /// Validated, with defaults; without uid where none was given.
    pub(crate) pods: Vec<Pod>,
    /// What they refer to, by namespace.
    pub(crate) objects: std::collections::BTreeMap<String, Objects>,
    /// Pods of one group find each other by name.
    pub(crate) group: Option<String>,
    /// A pod of the same name that differs is ended first.
    pub(crate) replace: bool,
}

/// See [`Request::End`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct End {
    /// The pod.
    pub(crate) uid: String,
    /// Seconds until SIGKILL; the pod's own if none.
    pub(crate) grace_seconds: Option<u64>,
    /// Removes the pod with its records.
    pub(crate) forget: bool,
}

/// See [`Request::Exec`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exec {
    /// The pod.
    pub(crate) uid: String,
    /// The container.
    pub(crate) container: String,
    /// Program and arguments.
    pub(crate) argv: Vec<String>,
    /// Variables that are added to the container's.
    pub(crate) env: Vec<(String, String)>,
    /// A terminal; its master comes back with [`Reply::ExecStarted`].
    pub(crate) tty: bool,
    /// Its columns and rows: the program must not see it without them.
    #[serde(default)]
    pub(crate) size: Option<(u16, u16)>,
    /// Without a terminal: the first descriptor is standard input; output
    /// and error follow.
    pub(crate) stdin: bool,
}

/// See [`Request::Attach`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attach {
    /// The pod.
    pub(crate) uid: String,
    /// The container.
    pub(crate) container: String,
    /// The client gives input.
    pub(crate) stdin: bool,
}

/// What a writer is besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) enum Role {
    /// Nothing: it gives way to whoever wants to be the writer.
    #[default]
    Supervisor,
    /// `rkube server`.
    Server,
    /// `rkube agent`.
    Agent,
}

impl Role {
    /// The command that is this.
    pub(crate) fn command(self) -> &'static str {
        match self {
            Self::Supervisor => "rkube supervisor",
            Self::Server => "rkube server",
            Self::Agent => "rkube agent",
        }
    }
}

/// How a pod was taken on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Taken {
    /// It is new.
    Created,
    /// The same pod was there.
    Attached,
    /// Another pod of its name was ended for it.
    Replaced,
}

/// What the writer answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// To [`Request::Hello`].
    Hello {
        /// The writer's program version.
        version: String,
        /// Its pid.
        pid: u32,
        /// What it is besides a writer.
        #[serde(default)]
        role: Role,
    },
    /// The pods that were taken on, with their uids, in the order asked.
    Applied(Vec<(Taken, Pod)>),
    /// All pods.
    Pods(Vec<Pod>),
    /// A watched pod as it stands now.
    Pod(Box<Pod>),
    /// A watched pod is gone.
    Gone {
        /// Its uid.
        uid: String,
    },
    /// An event.
    Event(Box<Event>),
    /// The program of an exec runs.
    ExecStarted {
        /// Its pid on the host.
        pid: u32,
    },
    /// The container is joined. Its output comes with this, its errors where
    /// it has no terminal, and last, where the client gives it, its input: a
    /// terminal's master, or a FIFO.
    Attached {
        /// It has a terminal.
        tty: bool,
    },
    /// To [`Request::Files`]; the root directory comes with it.
    Files {
        /// The id on the host that is the container's id 0.
        first_id: u32,
        /// User that the container's program was started as.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// The connection comes with this.
    Connected,
    /// The program of an exec, or an attached container, has ended: exit code,
    /// or 128 + signal.
    Exited {
        /// The code.
        code: i32,
    },
    /// Something to print, whose shape the command knows.
    Value(Value),
    /// It is done.
    Done,
    /// It was not done.
    Failed(Failure),
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// The whole chain, in one line.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
}

impl Failure {
    /// A failure without a hint.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
        }
    }

    /// Adds what to do.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Refuses a client of another protocol.
pub(crate) fn check_hello(request: &Request) -> Result<(), Failure> {
    match request {
        Request::Hello { protocol: PROTOCOL_VERSION, .. } => Ok(()),
        Request::Hello { protocol, version } => Err(Failure::new(format!(
            "the running writer (rkube {}) speaks protocol {PROTOCOL_VERSION}, this command (rkube {version}) speaks {protocol}",
            env!("CARGO_PKG_VERSION")
        ))
        .hint("use the rkube that the writer was started with, or end it with SIGTERM: pods run on and the next command starts its own")),
        _ => Err(Failure::new("the first request of a connection must be Hello")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_protocol_is_spoken() {
        let hello = |protocol| Request::Hello {
            protocol,
            version: "9.9.9".into(),
        };
        assert!(check_hello(&hello(PROTOCOL_VERSION)).is_ok());
        let refused = check_hello(&hello(PROTOCOL_VERSION + 1)).unwrap_err();
        assert!(refused.message.contains("9.9.9") && refused.hint.is_some());
        assert!(check_hello(&Request::List).is_err());
    }

    /// The frames of version 1, as an older or newer program must read them.
    #[test]
    fn hello_and_failure_keep_their_shape() {
        let hello = Request::Hello {
            protocol: 1,
            version: "0.1.0".into(),
        };
        let text = serde_json::to_string(&hello).unwrap();
        assert_eq!(text, r#"{"Hello":{"protocol":1,"version":"0.1.0"}}"#);
        let failed = Reply::Failed(Failure::new("no"));
        assert_eq!(
            serde_json::to_string(&failed).unwrap(),
            r#"{"Failed":{"message":"no","hint":null}}"#
        );
    }
}
