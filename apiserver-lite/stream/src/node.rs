//! What a node offers to the streaming endpoints, whatever protocol the
//! client speaks: the neutral interface between the protocols of this crate
//! and the node agent.
//!
//! A request has two steps. First the node answers whether it can serve it
//! ([`NodeStreams`]); a refusal becomes an HTTP answer and no upgrade
//! happens. Then the connection is upgraded and the prepared work runs on the
//! channels of a [`Session`]; from here on errors travel on the error channel.

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::pipe::{Reader, Writer};

/// Terminal sizes that wait for the node; a client that sends more in one go
/// waits.
pub const RESIZE_BACKLOG_COUNT: usize = 8;

/// A pod, named as the API names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID, if the caller wants this very pod.
    pub uid: Option<String>,
}

/// Which streams a client asked for (`PodExecOptions`, `PodAttachOptions`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Streams {
    /// The client sends standard input.
    pub stdin: bool,
    /// The client wants standard output.
    pub stdout: bool,
    /// The client wants standard error; never true together with `tty`.
    pub stderr: bool,
    /// A terminal: output and errors are one stream, sizes arrive.
    pub tty: bool,
}

/// A command to run in a running container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// The pod.
    pub pod: PodRef,
    /// The container; never empty.
    pub container: String,
    /// Program and arguments; never empty.
    pub command: Vec<String>,
    /// The wanted streams.
    pub streams: Streams,
}

/// To be joined to a running container's first process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRequest {
    /// The pod.
    pub pod: PodRef,
    /// The container; never empty.
    pub container: String,
    /// The wanted streams.
    pub streams: Streams,
}

/// Which lines of a container's log (`PodLogOptions`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRequest {
    /// The pod.
    pub pod: PodRef,
    /// The container; never empty.
    pub container: String,
    /// Go on with what is written later, until the container ends.
    pub follow: bool,
    /// The log of the previous instance of the container.
    pub previous: bool,
    /// Only lines younger than this many seconds; at least 1.
    pub since_seconds: Option<i64>,
    /// Only lines from this time on (RFC 3339).
    pub since_time: Option<String>,
    /// Each line starts with its time.
    pub timestamps: bool,
    /// The last so many lines; 0 is none (but followed ones).
    pub tail_lines: Option<i64>,
    /// End after so many bytes; at least 1.
    pub limit_bytes: Option<i64>,
    /// `All` (also when absent), `Stdout` or `Stderr`.
    pub stream: Option<String>,
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// The channels of one exec or attach. A channel that was not asked for is
/// `None`.
#[derive(Debug)]
pub struct Session {
    /// What the client sends; end of file when it closes its side (v5, SPDY)
    /// or goes away. Dropping it discards what still comes.
    pub stdin: Option<Reader>,
    /// To the client. Writing waits while the client is slow.
    pub stdout: Option<Writer>,
    /// To the client; `None` with a terminal.
    pub stderr: Option<Writer>,
    /// Sizes of the client's terminal; `None` without one.
    pub resize: Option<mpsc::Receiver<TerminalSize>>,
}

/// How an exec or attach ended; what the error channel tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// The command ended with this code; of an attach: 0 when it is over.
    Code(i32),
    /// It could not be run, or its end is not known; the reason as a phrase.
    Failed(String),
}

impl Exit {
    /// The `metav1.Status` of the error channel from protocol v4 on
    /// (`k8s.io/apimachinery/pkg/util/remotecommand`).
    #[must_use]
    pub fn status(&self) -> Value {
        match self {
            Self::Code(0) => json!({"metadata": {}, "status": "Success"}),
            Self::Code(code) => json!({
                "metadata": {}, "status": "Failure", "message": self.message(),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failed(why) => json!({
                "metadata": {}, "status": "Failure", "message": self.message(),
                "reason": "InternalError", "details": {"causes": [{"message": why}]},
                "code": 500,
            }),
        }
    }

    /// The sentence of the error channel before protocol v4; "" for success.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::Code(0) => String::new(),
            Self::Code(code) => {
                format!("command terminated with non-zero exit code: exit status {code}")
            }
            Self::Failed(why) => format!("Internal error occurred: {why}"),
        }
    }
}

/// A request that is refused before the upgrade: an HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The HTTP status, 400 to 599.
    pub code: u16,
    /// `reason` of the `Status`, such as `NotFound`.
    pub reason: &'static str,
    /// The sentence.
    pub message: String,
}

impl Refused {
    /// 400.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self {
            code: 400,
            reason: "BadRequest",
            message: message.into(),
        }
    }

    /// 404.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self {
            code: 404,
            reason: "NotFound",
            message: message.into(),
        }
    }

    /// 500.
    #[must_use]
    pub fn internal(why: impl std::fmt::Display) -> Self {
        Self {
            code: 500,
            reason: "InternalError",
            message: format!("Internal error occurred: {why}"),
        }
    }

    /// The `metav1.Status` of this refusal.
    #[must_use]
    pub fn status(&self) -> Value {
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        })
    }
}

/// Prepared work: runs on the session's channels and tells how it ended.
/// The returned future is dropped when the client goes away; what must live
/// on (a command that was started) has to be owned by somebody else.
pub type Work = Box<dyn FnOnce(Session) -> BoxFuture<'static, Exit> + Send>;

/// A connection to a port: bytes in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The ports of one pod.
pub trait Ports: Send + Sync {
    /// Connects to a port on the pod's loopback. The error is a sentence for
    /// the client; it ends this connection only.
    fn connect(&self, port: u16) -> BoxFuture<'static, Result<Box<dyn Duplex>, String>>;
}

/// A log as bytes; the end is the end of the log.
pub type LogBody = Box<dyn AsyncRead + Send + Unpin>;

/// What a node serves. Implemented by the node agent; used by its own HTTPS
/// port and, for the node in the same process, by the API server directly.
pub trait NodeStreams: Send + Sync {
    /// A command in a container.
    fn exec(&self, request: ExecRequest) -> BoxFuture<'static, Result<Work, Refused>>;

    /// A running container's streams.
    fn attach(&self, request: AttachRequest) -> BoxFuture<'static, Result<Work, Refused>>;

    /// A pod's ports; the pod must be running.
    fn port_forward(
        &self,
        pod: PodRef,
    ) -> BoxFuture<'static, Result<std::sync::Arc<dyn Ports>, Refused>>;

    /// A container's log. Dropping the body ends a `follow`.
    fn logs(&self, request: LogRequest) -> BoxFuture<'static, Result<LogBody, Refused>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_as_upstream_tells_them() {
        assert_eq!(
            Exit::Code(0).status(),
            json!({"metadata": {}, "status": "Success"})
        );
        assert_eq!(
            Exit::Code(3).status(),
            json!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
                   "message": "command terminated with non-zero exit code: exit status 3",
                   "details": {"causes": [{"reason": "ExitCode", "message": "3"}]}})
        );
        let failed = Exit::Failed("error executing command in container: no such file".into());
        assert_eq!(failed.status()["code"], 500);
        assert_eq!(
            failed.message(),
            "Internal error occurred: error executing command in container: no such file"
        );
    }
}
