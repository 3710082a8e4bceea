//! Container logs.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use rkube_kubelet::logs::{self, Entry, Follow, LogError, Options, Stream};
use rkube_kubelet::time::from_timestamp;
use rkube_stream::node::{LogBody, LogRequest, Refused};
use rkube_stream::pipe;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

use super::exec::runs;
use super::{Streams, waiting_reason};

/// Opens a log; its bytes are read as they are asked for.
pub(super) fn open(streams: &Streams, request: LogRequest) -> Result<LogBody, Refused> {
    let view = streams.pod(&request.pod)?;
    let name = streams.container(&view, &request.container)?.to_owned();
    let options = options(&request)?;
    let dir = streams.manager.paths().pod_logs(&view.pod).join(&name);
    if let Err(error) = probe(&dir, &options) {
        return Err(match error {
            LogError::Missing { .. } if request.previous => Refused::bad_request(format!(
                "previous terminated container {name:?} in pod {:?} not found",
                request.pod.name
            )),
            LogError::Missing { .. } => {
                let why = waiting_reason(&view.pod, &name).unwrap_or_default();
                Refused::bad_request(format!(
                    "container {name:?} in pod {:?} is waiting to start: {why}",
                    request.pod.name
                ))
            }
            other => Refused::internal(other),
        });
    }
    let (writer, reader) = pipe::pipe();
    let task;
    let sink = Sink {
        writer,
        left: request.limit_bytes.and_then(|b| u64::try_from(b).ok()),
        timestamps: request.timestamps,
    };
    if request.follow && !request.previous {
        let followed = streams.manager.follow(&view.uid);
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let mut log = Follow::new(stopped).map_err(Refused::internal)?;
        log.add(dir, options, false).map_err(Refused::internal)?;
        let attempt = view
            .pod
            .status
            .iter()
            .flat_map(|s| {
                s.container_statuses
                    .iter()
                    .chain(&s.init_container_statuses)
            })
            .flatten()
            .find(|c| c.name == name)
            .map_or(0, |c| c.restart_count);
        task = rkube_task::spawn(async move {
            let end = async {
                if let Some(mut view) = followed {
                    let _ = view.wait_for(|v| !runs(v, &name, attempt)).await;
                }
                stop.send_replace(true);
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = sink.follow(log) => {}
                () = end => {}
            }
        });
    } else {
        task = rkube_task::spawn(async move {
            let (sender, entries) = tokio::sync::mpsc::channel(BACKLOG_ENTRIES);
            let read = rkube_task::spawn_blocking(move || {
                // What was readable a moment ago and is not now ends there.
                let _ = logs::read(&dir, &options, |entry| sender.blocking_send(entry).is_ok());
            });
            sink.write_all(entries).await;
            let _ = read.await;
        });
    }
    Ok(Box::new(Body {
        reader,
        task: task.abort_handle(),
    }))
}

/// The bytes of a log; whoever writes them ends with it.
struct Body {
    reader: pipe::Reader,
    task: tokio::task::AbortHandle,
}

impl Drop for Body {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl AsyncRead for Body {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}

/// Entries that wait for a slow reader.
const BACKLOG_ENTRIES: usize = 64;

fn options(request: &LogRequest) -> Result<Options, Refused> {
    let mut since = None;
    if let Some(seconds) = request.since_seconds {
        let seconds = u64::try_from(seconds).unwrap_or(0);
        since = SystemTime::now().checked_sub(Duration::from_secs(seconds));
    }
    if let Some(text) = &request.since_time {
        let parsed = text
            .parse::<k8s_openapi::jiff::Timestamp>()
            .map_err(|e| Refused::bad_request(format!("sinceTime {text:?}: {e}")))?;
        since = Some(from_timestamp(parsed));
    }
    let stream = match request.stream.as_deref() {
        None | Some("" | "All") => None,
        Some("Stdout") => Some(Stream::Stdout),
        Some("Stderr") => Some(Stream::Stderr),
        Some(other) => {
            return Err(Refused::bad_request(format!(
                "stream {other:?} is not All, Stdout or Stderr"
            )));
        }
    };
    Ok(Options {
        tail: request.tail_lines.map(|n| u64::try_from(n).unwrap_or(0)),
        since,
        previous: request.previous,
        stream,
    })
}

/// Whether there is such a log at all.
fn probe(dir: &std::path::Path, options: &Options) -> Result<(), LogError> {
    let nothing = Options {
        tail: Some(0),
        ..options.clone()
    };
    match logs::read(dir, &nothing, |_| false) {
        Err(LogError::Call { path, source, .. })
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            Err(LogError::Missing {
                which: "the latest attempt",
                path,
            })
        }
        other => other,
    }
}

struct Sink {
    writer: pipe::Writer,
    left: Option<u64>,
    timestamps: bool,
}

impl Sink {
    /// Writes one message; `false` when no more is wanted.
    async fn put(&mut self, entry: &Entry) -> bool {
        let mut text = Vec::new();
        if entry.write_to(&mut text, self.timestamps).is_err() {
            return false;
        }
        if let Some(left) = &mut self.left {
            let take = usize::try_from(*left).unwrap_or(usize::MAX);
            text.truncate(take);
            *left -= u64::try_from(text.len()).unwrap_or(0);
        }
        self.writer.write_all(&text).await.is_ok() && self.left != Some(0)
    }

    async fn follow(mut self, mut log: Follow) {
        while let Ok(Some((_, entry))) = log.next().await {
            if !self.put(&entry).await {
                return;
            }
        }
    }

    async fn write_all(mut self, mut entries: tokio::sync::mpsc::Receiver<Entry>) {
        while let Some(entry) = entries.recv().await {
            if !self.put(&entry).await {
                return;
            }
        }
    }
}
