//! Exec and attach.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rkube_engine::api::{ContainerId, ContainerRuntime, ExecConfig, ExecHandle, Stdio};
use rkube_engine::{Attached, Engine};
use rkube_kubelet::manager::PodView;
use rkube_stream::node::{AttachRequest, ExecRequest, Exit, Refused, Session, TerminalSize, Work};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::sync::mpsc;

use super::Streams;
use super::fd::{FdStream, ended};

/// What is read at a time from a program, in bytes.
const CHUNK_BYTES: usize = 16 << 10;
/// How long output of a program that has ended is still waited for: another
/// process may hold its pipes for ever.
const DRAIN_LIMIT: std::time::Duration = std::time::Duration::from_secs(5);

/// A program in a container. It is started when the client is there, and
/// lives on when the client goes, as upstream has it.
pub(super) fn exec(engine: Arc<Engine>, id: ContainerId, request: ExecRequest) -> Work {
    Box::new(move |session| Box::pin(run(engine, id, request, session)))
}

struct Pipes {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

/// Pipes for what is wanted: the program's ends, and ours.
fn pipes(request: &ExecRequest) -> Result<(Stdio, Pipes), String> {
    let pair = || {
        let flags = rustix::pipe::PipeFlags::CLOEXEC;
        rustix::pipe::pipe_with(flags).map_err(|e| format!("make a pipe: {e}"))
    };
    let (mut theirs, mut ours) = (
        Stdio::default(),
        Pipes {
            stdin: None,
            stdout: None,
            stderr: None,
        },
    );
    if request.streams.tty {
        return Ok((theirs, ours));
    }
    if request.streams.stdin {
        let (read, write) = pair()?;
        (theirs.stdin, ours.stdin) = (Some(read), Some(write));
    }
    if request.streams.stdout {
        let (read, write) = pair()?;
        (theirs.stdout, ours.stdout) = (Some(write), Some(read));
    }
    if request.streams.stderr {
        let (read, write) = pair()?;
        (theirs.stderr, ours.stderr) = (Some(write), Some(read));
    }
    Ok((theirs, ours))
}

async fn run(
    engine: Arc<Engine>,
    id: ContainerId,
    request: ExecRequest,
    mut session: Session,
) -> Exit {
    let tty = request.streams.tty;
    let (stdio, ours) = match pipes(&request) {
        Ok(pipes) => pipes,
        Err(why) => return Exit::Failed(why),
    };
    // The first size comes with the request in practice, and a program must
    // not see a terminal of no size.
    let size = match &mut session.resize {
        Some(sizes) if tty => first_size(sizes).await,
        _ => None,
    };
    let config = ExecConfig {
        argv: request.command.clone(),
        tty,
        size: size.map(|s| (s.width, s.height)),
        ..ExecConfig::default()
    };
    let (runs, target) = (Arc::clone(&engine), id.clone());
    let started = rkube_task::spawn_blocking(move || runs.exec(&target, &config, stdio)).await;
    let mut handle = match started {
        Ok(Ok(handle)) => handle,
        Ok(Err(error)) => {
            return Exit::Failed(format!("error executing command in container: {error}"));
        }
        Err(crash) => return Exit::Failed(crash.to_string()),
    };
    let result = converse(&mut handle, ours, session).await;
    if let Err(error) = result {
        return Exit::Failed(error.to_string());
    }
    let waited = rkube_task::spawn_blocking(move || engine.exec_wait(&id, &handle)).await;
    match waited {
        Ok(Ok(code)) if code >= 0 => Exit::Code(code),
        Ok(Ok(_)) => Exit::Failed("the exit code of the command is not known".to_owned()),
        Ok(Err(error)) => Exit::Failed(error.to_string()),
        Err(crash) => Exit::Failed(crash.to_string()),
    }
}

async fn first_size(sizes: &mut mpsc::Receiver<TerminalSize>) -> Option<TerminalSize> {
    const PATIENCE: std::time::Duration = std::time::Duration::from_millis(100);
    tokio::time::timeout(PATIENCE, sizes.recv())
        .await
        .ok()
        .flatten()
}

/// Carries bytes until the program has ended and its output is told.
async fn converse(handle: &mut ExecHandle, ours: Pipes, session: Session) -> std::io::Result<()> {
    let pidfd = handle.pidfd.try_clone()?;
    let Session {
        stdin,
        stdout,
        stderr,
        resize,
    } = session;
    let mut terminal = None;
    let (mut input, output, errors) = if let Some(master) = handle.terminal.take() {
        let both = FdStream::new(master, Interest::READABLE | Interest::WRITABLE)?;
        terminal = Some(both.clone());
        (Some(both.clone()), Some(both), None)
    } else {
        let open =
            |fd: Option<OwnedFd>, interest| fd.map(|fd| FdStream::new(fd, interest)).transpose();
        (
            open(ours.stdin, Interest::WRITABLE)?,
            open(ours.stdout, Interest::READABLE)?,
            open(ours.stderr, Interest::READABLE)?,
        )
    };
    let told = async {
        tokio::join!(copy(output, stdout), copy(errors, stderr));
    };
    let fed = async {
        if let (Some(mut from), Some(to)) = (stdin, input.as_mut()) {
            // A program that does not read its input ends that alone.
            let _ = tokio::io::copy(&mut from, to).await;
        }
        // Closing the pipe is the end of file; a terminal stays.
        drop(input);
        std::future::pending::<()>().await;
    };
    let sized = async {
        if let Some(mut sizes) = resize {
            while let Some(size) = sizes.recv().await {
                if let Some(terminal) = &terminal {
                    // A program that has ended has no terminal.
                    let _ = terminal.resize(size.width, size.height);
                }
            }
        }
        std::future::pending::<()>().await;
    };
    let over = async {
        let drained = async {
            ended(pidfd).await?;
            tokio::time::sleep(DRAIN_LIMIT).await;
            std::io::Result::Ok(())
        };
        tokio::select! {
            () = told => Ok(()),
            limit = drained => limit,
        }
    };
    tokio::select! {
        result = over => result,
        () = fed => Ok(()),
        () = sized => Ok(()),
    }
}

async fn copy(from: Option<FdStream>, to: Option<impl AsyncWrite + Unpin>) {
    let Some(mut from) = from else { return };
    let mut to = to;
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(n) = from.read(&mut buffer).await {
        if n == 0 {
            break;
        }
        if let Some(out) = &mut to
            && out.write_all(&buffer[..n]).await.is_err()
        {
            // Nobody listens: the program is not to wait for that.
            to = None;
        }
    }
    if let Some(out) = &mut to {
        let _ = out.shutdown().await;
    }
}

/// Ends the input of a container with `stdinOnce` when the first attach to it
/// has ended, however it ends.
struct Once {
    engine: Arc<Engine>,
    id: ContainerId,
}

impl Drop for Once {
    fn drop(&mut self) {
        let (engine, id) = (Arc::clone(&self.engine), self.id.clone());
        if let Ok(tokio) = tokio::runtime::Handle::try_current() {
            tokio.spawn_blocking(move || {
                if let Err(error) = engine.close_input(&id) {
                    let error = rkube_engine::chain(&error);
                    tracing::warn!(container = %id, error, "end its standard input");
                }
            });
        }
    }
}

/// Joins a running container's streams.
pub(super) fn attach(
    streams: &Streams,
    id: ContainerId,
    request: AttachRequest,
) -> Result<Work, Refused> {
    let engine = Arc::clone(&streams.engine);
    let attached = engine.attach(&id, request.streams.stdin);
    let attached = attached.map_err(|error| match error {
        rkube_engine::Error::Invalid { .. } => Refused::bad_request(error.to_string()),
        other => Refused::internal(rkube_engine::chain(&other)),
    })?;
    let once = Once {
        engine: Arc::clone(&engine),
        id: id.clone(),
    };
    let once = request.streams.stdin.then_some(once);
    Ok(Box::new(move |session| {
        Box::pin(async move {
            match carry(engine, id, attached, once, session).await {
                Ok(()) => Exit::Code(0),
                Err(error) => Exit::Failed(error.to_string()),
            }
        })
    }))
}

/// Carries bytes until the container has ended.
async fn carry(
    engine: Arc<Engine>,
    id: ContainerId,
    attached: Attached,
    once: Option<Once>,
    session: Session,
) -> std::io::Result<()> {
    let Session {
        stdin,
        stdout,
        stderr,
        resize,
    } = session;
    let mut outputs = attached.outputs.into_iter();
    let mut open = || {
        let fd = outputs.next();
        fd.map(|fd| FdStream::new(fd, Interest::READABLE))
            .transpose()
    };
    let (output, errors) = (open()?, open()?);
    let input = attached.input;
    let input = input.map(|fd| FdStream::new(fd, Interest::WRITABLE));
    let input = input.transpose()?;
    let told = async {
        tokio::join!(copy(output, stdout), copy(errors, stderr));
    };
    let fed = async {
        if let (Some(mut from), Some(mut to)) = (stdin, input) {
            // A program that has closed its input ends that alone.
            let _ = tokio::io::copy(&mut from, &mut to).await;
        }
        drop(once);
        std::future::pending::<()>().await;
    };
    let sized = async {
        if let Some(mut sizes) = resize {
            while let Some(size) = sizes.recv().await {
                let (engine, id) = (Arc::clone(&engine), id.clone());
                let set = rkube_task::spawn_blocking(move || {
                    engine.resize(&id, (size.width, size.height))
                });
                let _ = set.await;
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = told => {}
        () = fed => {}
        () = sized => {}
    }
    Ok(())
}

/// Whether that attempt of a container still runs.
pub(super) fn runs(view: &PodView, name: &str, attempt: i32) -> bool {
    let Some(status) = &view.pod.status else {
        return true;
    };
    let lists = [&status.container_statuses, &status.init_container_statuses];
    let found = lists
        .into_iter()
        .flatten()
        .flatten()
        .find(|c| c.name == name);
    found.is_some_and(|c| {
        c.restart_count <= attempt && c.state.as_ref().is_some_and(|s| s.running.is_some())
    })
}
