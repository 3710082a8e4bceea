//! Runs probes and hooks: a program in the container, an HTTP request, a gRPC
//! call or a TCP connection to the pod, or a pause.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Container, GRPCAction, HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction,
};
use rkube_engine::api::{ContainerId, ContainerRuntime, ExecConfig, ExecHandle, Stdio};
use rustix::process::Signal;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::unix::pipe;

use super::{grpc, http};
use crate::pod;

/// The most of a program's output that is kept for messages.
pub const MAX_OUTPUT_BYTES: usize = 10 * 1024;

/// Where and in what something is run.
#[derive(Debug)]
pub struct Place<R> {
    /// The engine.
    pub runtime: Arc<R>,
    /// The container.
    pub id: ContainerId,
    /// Its specification, which names ports.
    pub container: Container,
    /// The pod's address.
    pub address: Option<IpAddr>,
}

impl<R> Clone for Place<R> {
    fn clone(&self) -> Self {
        Self {
            runtime: Arc::clone(&self.runtime),
            id: self.id.clone(),
            container: self.container.clone(),
            address: self.address,
        }
    }
}

/// How a run went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Well.
    Success,
    /// Well, with a remark (event ProbeWarning).
    Warning(String),
    /// Not well, and why.
    Failure(String),
}

/// Runs a probe once.
pub async fn probe<R: ContainerRuntime>(
    place: &Place<R>,
    probe: &Probe,
    timeout: Duration,
) -> Outcome {
    let run = async {
        if let Some(exec) = &probe.exec {
            run_program(place, exec.command.clone().unwrap_or_default()).await
        } else if let Some(get) = &probe.http_get {
            http_get(place, get).await
        } else if let Some(tcp) = &probe.tcp_socket {
            tcp_connect(place, tcp).await
        } else if let Some(grpc) = &probe.grpc {
            grpc_check(place, grpc).await
        } else {
            Outcome::Failure("the probe names nothing to do".to_owned())
        }
    };
    match tokio::time::timeout(timeout, run).await {
        Ok(outcome) => outcome,
        Err(_) => Outcome::Failure(format!("no answer within {} s", timeout.as_secs())),
    }
}

/// Runs a hook, for as long as it takes.
///
/// # Errors
/// What went wrong, as a message.
pub async fn hook<R: ContainerRuntime>(
    place: &Place<R>,
    handler: &LifecycleHandler,
) -> Result<(), String> {
    let outcome = if let Some(exec) = &handler.exec {
        run_program(place, exec.command.clone().unwrap_or_default()).await
    } else if let Some(get) = &handler.http_get {
        http_get(place, get).await
    } else if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(
            u64::try_from(sleep.seconds).unwrap_or(0),
        ))
        .await;
        Outcome::Success
    } else if let Some(tcp) = &handler.tcp_socket {
        tcp_connect(place, tcp).await
    } else {
        Outcome::Success
    };
    match outcome {
        Outcome::Failure(message) => Err(message),
        Outcome::Success | Outcome::Warning(_) => Ok(()),
    }
}

fn address<R>(place: &Place<R>, host: Option<&String>) -> Result<IpAddr, String> {
    match host.map(String::as_str).filter(|h| !h.is_empty()) {
        Some("localhost") => Ok(IpAddr::from([127, 0, 0, 1])),
        Some(host) => host
            .parse()
            .map_err(|_| format!("host {host:?} is no address")),
        None => place
            .address
            .ok_or_else(|| "the pod has no address".to_owned()),
    }
}

async fn http_get<R>(place: &Place<R>, get: &HTTPGetAction) -> Outcome {
    let Some(port) = pod::port(&place.container, &get.port) else {
        return Outcome::Failure(format!("there is no port {:?}", get.port));
    };
    let address = match address(place, get.host.as_ref()) {
        Ok(address) => address,
        Err(message) => return Outcome::Failure(message),
    };
    let headers = get.http_headers.iter().flatten();
    let target = http::Target {
        tls: get.scheme.as_deref() == Some("HTTPS"),
        address,
        port,
        host: get.host.clone().filter(|h| !h.is_empty()),
        path: get.path.clone().unwrap_or_else(|| "/".to_owned()),
        headers: headers.map(|h| (h.name.clone(), h.value.clone())).collect(),
    };
    match http::get(&target).await {
        http::Outcome::Success => Outcome::Success,
        http::Outcome::Redirected(message) => Outcome::Warning(message),
        http::Outcome::Failure(message) => Outcome::Failure(message),
    }
}

async fn tcp_connect<R>(place: &Place<R>, tcp: &TCPSocketAction) -> Outcome {
    let Some(port) = pod::port(&place.container, &tcp.port) else {
        return Outcome::Failure(format!("there is no port {:?}", tcp.port));
    };
    let address = match address(place, tcp.host.as_ref()) {
        Ok(address) => address,
        Err(message) => return Outcome::Failure(message),
    };
    match TcpStream::connect((address, port)).await {
        Ok(_) => Outcome::Success,
        Err(e) => Outcome::Failure(format!("connect to {address} port {port}: {e}")),
    }
}

async fn grpc_check<R>(place: &Place<R>, grpc: &GRPCAction) -> Outcome {
    let Some(port) = u16::try_from(grpc.port).ok().filter(|p| *p > 0) else {
        return Outcome::Failure(format!("there is no port {}", grpc.port));
    };
    let address = match address(place, None) {
        Ok(address) => address,
        Err(message) => return Outcome::Failure(message),
    };
    let service = grpc.service.as_deref().unwrap_or_default();
    match grpc::check(address, port, service).await {
        Ok(()) => Outcome::Success,
        Err(message) => Outcome::Failure(message),
    }
}

/// Runs a program in the container; it is killed when the caller stops
/// waiting.
async fn run_program<R: ContainerRuntime>(place: &Place<R>, argv: Vec<String>) -> Outcome {
    match program(place, argv).await {
        Ok((0, _)) => Outcome::Success,
        Ok((code, output)) => Outcome::Failure(format!("exit code {code}: {output}")),
        Err(message) => Outcome::Failure(message),
    }
}

async fn program<R: ContainerRuntime>(
    place: &Place<R>,
    argv: Vec<String>,
) -> Result<(i32, String), String> {
    let call = |what: &'static str| move |e: std::io::Error| format!("{what}: {e}");
    let flags = rustix::pipe::PipeFlags::CLOEXEC;
    let (reader, writer) = rustix::pipe::pipe_with(flags).map_err(|e| call("pipe2")(e.into()))?;
    let second = writer.try_clone().map_err(call("dup"))?;
    let mut reader = pipe::Receiver::from_owned_fd(reader).map_err(call("epoll_ctl"))?;
    let (runtime, id) = (Arc::clone(&place.runtime), place.id.clone());
    let config = ExecConfig {
        argv,
        ..ExecConfig::default()
    };
    let handle = rkube_task::spawn_blocking(move || {
        let stdio = Stdio {
            stdin: None,
            stdout: Some(writer),
            stderr: Some(second),
        };
        runtime.exec(&id, &config, stdio).map_err(|e| e.to_string())
    })
    .await
    .map_err(|e| e.to_string())??;
    let ended = handle.pidfd.try_clone().and_then(crate::fdwait::register);
    let exec = Exec {
        runtime: Arc::clone(&place.runtime),
        id: place.id.clone(),
        handle: Some(handle),
    };
    let ended = ended.map_err(call("epoll_ctl"))?;
    let mut output = Vec::new();
    let mut buffer = [0u8; 4096];
    let mut open = true;
    loop {
        tokio::select! {
            biased;
            read = reader.read(&mut buffer), if open => match read {
                Ok(0) | Err(_) => open = false,
                Ok(read) => {
                    let room = MAX_OUTPUT_BYTES.saturating_sub(output.len());
                    output.extend_from_slice(&buffer[..read.min(room)]);
                }
            },
            ready = ended.readable() => {
                ready.map_err(call("epoll_wait"))?.retain_ready();
                break;
            }
        }
    }
    let code = exec.wait().await?;
    Ok((code, String::from_utf8_lossy(&output).trim().to_owned()))
}

/// A program that runs. It is killed by its pidfd when its caller goes away,
/// and waited for in any case, so that the engine can forget it.
struct Exec<R: ContainerRuntime> {
    runtime: Arc<R>,
    id: ContainerId,
    handle: Option<ExecHandle>,
}

impl<R: ContainerRuntime> Exec<R> {
    async fn wait(mut self) -> Result<i32, String> {
        let Some(handle) = self.handle.take() else {
            return Err("waited for twice".to_owned());
        };
        let (runtime, id) = (Arc::clone(&self.runtime), self.id.clone());
        rkube_task::spawn_blocking(move || {
            runtime.exec_wait(&id, &handle).map_err(|e| e.to_string())
        })
        .await
        .map_err(|e| e.to_string())?
    }
}

impl<R: ContainerRuntime> Drop for Exec<R> {
    fn drop(&mut self) {
        let Some(handle) = self.handle.take() else {
            return;
        };
        // ESRCH means that it has ended by itself.
        let _ = rustix::process::pidfd_send_signal(&handle.pidfd, Signal::KILL);
        let (runtime, id) = (Arc::clone(&self.runtime), self.id.clone());
        if let Ok(tokio) = tokio::runtime::Handle::try_current() {
            // Its exit code is of no use any more.
            tokio.spawn_blocking(move || drop(runtime.exec_wait(&id, &handle)));
        }
    }
}
