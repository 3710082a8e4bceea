//! A kubelet's HTTPS port with the echoing node behind it, for clients with a certificate of the
//! API server only.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rkube_apiserver::authn;
use rkube_pki::resolver::Current;
use rkube_pki::{Pki, verify};
use rkube_stream::node::{
    AttachRequest, ExecRequest, LogRequest, NodeStreams, PodRef, Refused, Streams,
};
use rkube_stream::upgrade;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{EchoNode, now};

type Answer = Response<Full<bytes::Bytes>>;

/// Starts the port for a node of this name; gives its number.
pub(crate) async fn start(pki: &Arc<Pki>, node: &str) -> u16 {
    let ips = [IpAddr::from([127, 0, 0, 1])];
    let identity = pki.kubelet_server(node, &ips, now()).unwrap();
    let current = Arc::new(Current::new(&identity).unwrap());
    let acceptor = TlsAcceptor::from(Arc::new(authn::tls::server(current).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let pki = Arc::clone(pki);
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (acceptor, pki) = (acceptor.clone(), Arc::clone(&pki));
            tokio::spawn(async move {
                let Ok(tls) = acceptor.accept(tcp).await else {
                    return;
                };
                let chain = tls.get_ref().1.peer_certificates().unwrap_or(&[]).to_vec();
                let client = verify::client(&chain, pki.authority().der(), now());
                let known = client.is_ok_and(|c| c.user == "kube-apiserver-kubelet-client");
                let service = service_fn(move |request| async move {
                    let answer = if known {
                        serve(request).await
                    } else {
                        Err(Refused::bad_request("a stranger"))
                    };
                    Ok::<_, Infallible>(answer.unwrap_or_else(|refused| {
                        let mut response = Response::new(refused.message.into());
                        *response.status_mut() = refused.code.try_into().unwrap();
                        response
                    }))
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(tls), service)
                    .with_upgrades();
                // A client that goes away is no matter.
                let _ = connection.await;
            });
        }
    });
    port
}

async fn serve(request: Request<Incoming>) -> Result<Answer, Refused> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or("").to_owned();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let values = |key: &str| -> Vec<String> {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .filter(|(name, _)| *name == key)
            .map(|(_, value)| value.to_owned())
            .collect()
    };
    let flag = |key: &str| values(key) == ["1"];
    let streams = Streams {
        stdin: flag("input"),
        stdout: flag("output"),
        stderr: flag("error"),
        tty: flag("tty"),
    };
    let pod = PodRef {
        namespace: parts[1].to_owned(),
        name: parts[2].to_owned(),
        uid: None,
    };
    let container = parts.last().unwrap().to_string();
    match parts[0] {
        "containerLogs" => {
            let wanted = LogRequest {
                pod,
                container,
                follow: false,
                previous: false,
                since_seconds: None,
                since_time: None,
                timestamps: false,
                tail_lines: values("tailLines").first().map(|v| v.parse().unwrap()),
                limit_bytes: None,
                stream: None,
            };
            let mut text = String::new();
            EchoNode
                .logs(wanted)
                .await?
                .read_to_string(&mut text)
                .await
                .unwrap();
            Ok(Response::new(text.into()))
        }
        "portForward" => {
            let upgrade = upgrade::port_forward(request.headers())?;
            let ports = EchoNode.port_forward(pod).await?;
            let response = upgrade.response();
            tokio::spawn(async move {
                let io = hyper::upgrade::on(request).await.unwrap();
                let _ = upgrade.serve(TokioIo::new(io), ports, Vec::new()).await;
            });
            Ok(response.map(|()| Full::default()))
        }
        what => {
            let upgrade = upgrade::exec(request.headers())?;
            let work = if what == "exec" {
                let command = values("command");
                let wanted = ExecRequest {
                    pod,
                    container,
                    command,
                    streams,
                };
                EchoNode.exec(wanted).await?
            } else {
                let wanted = AttachRequest {
                    pod,
                    container,
                    streams,
                };
                EchoNode.attach(wanted).await?
            };
            let response = upgrade.response();
            tokio::spawn(async move {
                let io = hyper::upgrade::on(request).await.unwrap();
                upgrade
                    .serve(TokioIo::new(io), streams, work)
                    .await
                    .unwrap();
            });
            Ok(response.map(|()| Full::default()))
        }
    }
}
