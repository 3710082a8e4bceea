//! Each protocol against its own client: what goes in on one side comes out
//! on the other, channel by channel, with the status last.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::HeaderMap;
use http::header::HeaderName;
use rkube_stream::exec::client::{spdy_work, websocket_work};
use rkube_stream::forward::client::RemotePorts;
use rkube_stream::node::{Duplex, Exit, Ports, Session, Streams, TerminalSize, Work};
use rkube_stream::pipe::pipe;
use rkube_stream::upgrade::{self, ExecKind, ForwardKind};
use rkube_stream::ws::{Event, Opcode, Role, WsReader, WsWriter};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

const ALL: Streams = Streams {
    stdin: true,
    stdout: true,
    stderr: true,
    tty: false,
};

/// Echoes stdin to stdout, says its length on stderr, exits with 7.
fn echo() -> Work {
    Box::new(|session: Session| {
        Box::pin(async move {
            let mut got = 0;
            if let (Some(mut stdin), Some(mut stdout)) = (session.stdin, session.stdout) {
                let mut buffer = vec![0; 5000];
                while got < BODY {
                    let count = stdin.read(&mut buffer).await.unwrap();
                    if count == 0 {
                        break;
                    }
                    got += count;
                    stdout.write_all(&buffer[..count]).await.unwrap();
                }
            }
            let mut stderr = session.stderr.unwrap();
            stderr.write_all(got.to_string().as_bytes()).await.unwrap();
            Exit::Code(7)
        })
    })
}

const BODY: usize = 300_000;

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(HeaderName::from_static(name), value.parse().unwrap());
    }
    headers
}

fn websocket(protocol: &str) -> HeaderMap {
    headers(&[
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", protocol),
    ])
}

fn spdy(protocol: &str) -> HeaderMap {
    headers(&[
        ("connection", "Upgrade"),
        ("upgrade", "SPDY/3.1"),
        ("x-stream-protocol-version", protocol),
    ])
}

/// A client's view: what it got on stdout and stderr, and the end.
async fn run(request: &HeaderMap, work: Work, streams: Streams) -> (Vec<u8>, Vec<u8>, Exit) {
    let upgrade = upgrade::exec(request).unwrap();
    let kind = upgrade.kind;
    let (near, far) = tokio::io::duplex(16 << 10);
    let serving = tokio::spawn(async move { upgrade.serve(far, streams, work).await });
    let client = match kind {
        ExecKind::WebSocket(channels) => websocket_work(near, channels),
        ExecKind::Spdy(version) => spdy_work(near, version, streams),
    };
    let (mut stdin, stdin_out) = pipe();
    let (stdout_in, mut stdout) = pipe();
    let (stderr_in, mut stderr) = pipe();
    let (sizes, resize) = mpsc::channel(4);
    let session = Session {
        stdin: streams.stdin.then_some(stdin_out),
        stdout: streams.stdout.then_some(stdout_in),
        stderr: streams.stderr.then_some(stderr_in),
        resize: streams.tty.then_some(resize),
    };
    let feed = async {
        let size = TerminalSize {
            width: 132,
            height: 43,
        };
        if streams.tty {
            sizes.send(size).await.unwrap();
        }
        let body = vec![b'x'; BODY];
        // A command that reads nothing breaks this pipe.
        let _ = stdin.write_all(&body).await;
        drop(stdin);
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (exit, (), _, _) = tokio::join!(
        client(session),
        feed,
        stdout.read_to_end(&mut out),
        stderr.read_to_end(&mut err)
    );
    serving.await.unwrap().unwrap();
    (out, err, exit)
}

#[tokio::test]
async fn every_protocol_of_exec() {
    let protocols = [
        websocket("v5.channel.k8s.io"),
        websocket("v4.channel.k8s.io"),
        websocket("v4.base64.channel.k8s.io"),
        spdy("v4.channel.k8s.io"),
    ];
    for request in protocols {
        let (out, err, exit) = run(&request, echo(), ALL).await;
        assert_eq!(out.len(), BODY, "{request:?}");
        assert_eq!(String::from_utf8_lossy(&err), BODY.to_string());
        assert_eq!(exit, Exit::Code(7), "{request:?}");
    }
    // Before v4 the error channel is a sentence.
    for request in [
        websocket("channel.k8s.io"),
        websocket("base64.channel.k8s.io"),
        spdy("v3.channel.k8s.io"),
        spdy("channel.k8s.io"),
    ] {
        let (out, _, exit) = run(&request, echo(), ALL).await;
        assert_eq!(out.len(), BODY, "{request:?}");
        let Exit::Failed(why) = exit else {
            panic!("{request:?}");
        };
        assert!(why.contains("exit status 7"), "{why}");
    }
}

#[tokio::test]
async fn stdin_ends_where_the_protocol_can_say_so() {
    let cat = || -> Work {
        Box::new(|session: Session| {
            Box::pin(async move {
                let mut all = Vec::new();
                session.stdin.unwrap().read_to_end(&mut all).await.unwrap();
                let count = all.len().to_string();
                session
                    .stdout
                    .unwrap()
                    .write_all(count.as_bytes())
                    .await
                    .unwrap();
                Exit::Code(0)
            })
        })
    };
    for request in [websocket("v5.channel.k8s.io"), spdy("v4.channel.k8s.io")] {
        let (out, _, exit) = run(&request, cat(), ALL).await;
        assert_eq!(String::from_utf8_lossy(&out), BODY.to_string());
        assert_eq!(exit, Exit::Code(0));
    }
}

#[tokio::test]
async fn terminal_sizes_arrive_and_failures_are_told() {
    let tty = Streams {
        stdin: false,
        stdout: true,
        stderr: false,
        tty: true,
    };
    for request in [websocket("v5.channel.k8s.io"), spdy("v4.channel.k8s.io")] {
        let work: Work = Box::new(|session: Session| {
            Box::pin(async move {
                assert!(session.stdin.is_none() && session.stderr.is_none());
                let size = session.resize.unwrap().recv().await.unwrap();
                let text = format!("{}x{}", size.width, size.height);
                session
                    .stdout
                    .unwrap()
                    .write_all(text.as_bytes())
                    .await
                    .unwrap();
                Exit::Failed("error executing command in container: no such file".into())
            })
        });
        let (out, _, exit) = run(&request, work, tty).await;
        assert_eq!(String::from_utf8_lossy(&out), "132x43", "{request:?}");
        let why = "error executing command in container: no such file";
        assert_eq!(exit, Exit::Failed(why.into()));
    }
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_the_work() {
    struct Told(Option<tokio::sync::oneshot::Sender<()>>);
    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.0.take().unwrap().send(());
        }
    }
    for request in [websocket("v5.channel.k8s.io"), websocket("channel.k8s.io")] {
        let (sender, cancelled) = tokio::sync::oneshot::channel();
        let told = Told(Some(sender));
        let work: Work = Box::new(move |session| {
            Box::pin(async move {
                let _held = (session, told);
                std::future::pending().await
            })
        });
        let upgrade = upgrade::exec(&request).unwrap();
        let (near, far) = tokio::io::duplex(16 << 10);
        let serving = tokio::spawn(async move { upgrade.serve(far, ALL, work).await });
        drop(near);
        cancelled.await.unwrap();
        // It ends, with an error or not: the client's end is no defect.
        let _ = serving.await.unwrap();
    }
}

/// Ports whose connections echo; port 1 refuses.
struct Echo;

impl Ports for Echo {
    fn connect(&self, port: u16) -> BoxFuture<'static, Result<Box<dyn Duplex>, String>> {
        Box::pin(async move {
            if port == 1 {
                return Err("nothing listens on port 1".into());
            }
            let (near, far) = tokio::io::duplex(8 << 10);
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(far);
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.write_all(format!(" from {port}").as_bytes()).await;
                let _ = write.shutdown().await;
            });
            Ok(Box::new(near) as Box<dyn Duplex>)
        })
    }
}

#[tokio::test]
async fn forwarded_ports_over_spdy_and_through_the_tunnel() {
    for request in [
        spdy("portforward.k8s.io"),
        websocket(upgrade::TUNNEL_PROTOCOL),
    ] {
        let upgrade = upgrade::port_forward(&request).unwrap();
        let kind = upgrade.kind;
        let (near, far) = tokio::io::duplex(16 << 10);
        let serving =
            tokio::spawn(async move { upgrade.serve(far, Arc::new(Echo), Vec::new()).await });
        let ports = match kind {
            ForwardKind::Tunnel => RemotePorts::tunnel(near).unwrap(),
            _ => RemotePorts::spdy(near).unwrap(),
        };
        let mut tasks = Vec::new();
        for port in 2..12u16 {
            let connect = ports.connect(port);
            tasks.push(tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(connect.await.unwrap());
                let body = vec![b'y'; 200_000];
                let send = async {
                    write.write_all(&body).await.unwrap();
                    write.shutdown().await.unwrap();
                };
                let mut back = Vec::new();
                let ((), read) = tokio::join!(send, read.read_to_end(&mut back));
                read.unwrap();
                let end = format!(" from {port}");
                assert_eq!(back.len(), body.len() + end.len());
                assert!(back.ends_with(end.as_bytes()));
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        // A refused port is an error of its own; others go on.
        let error = ports.connect(1).await.err();
        assert_eq!(error.as_deref(), Some("nothing listens on port 1"));
        assert!(ports.connect(2).await.is_ok());
        drop(ports);
        let _ = serving.await.unwrap();
    }
}

/// Answers five bytes, then ends; port 1 refuses.
struct Five;

impl Ports for Five {
    fn connect(&self, port: u16) -> BoxFuture<'static, Result<Box<dyn Duplex>, String>> {
        Box::pin(async move {
            if port == 1 {
                return Err("nothing listens on port 1".into());
            }
            let (near, mut far) = tokio::io::duplex(8 << 10);
            tokio::spawn(async move {
                let mut five = [0; 5];
                far.read_exact(&mut five).await.unwrap();
                far.write_all(&five).await.unwrap();
                far.write_all(format!(" from {port}").as_bytes())
                    .await
                    .unwrap();
            });
            Ok(Box::new(near) as Box<dyn Duplex>)
        })
    }
}

/// A client without streams: port `i` of the list has channel `2i` for its
/// bytes and `2i + 1` for its error, and both begin with the port.
#[tokio::test]
async fn forwarded_ports_over_channels() {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    for (protocol, base64) in [
        ("v4.channel.k8s.io", false),
        ("portforward.k8s.io", false),
        ("v4.base64.channel.k8s.io", true),
    ] {
        let upgrade = upgrade::port_forward(&websocket(protocol)).unwrap();
        assert_eq!(upgrade.kind, ForwardKind::Channels { base64 });
        let (near, far) = tokio::io::duplex(16 << 10);
        let listed = vec![80, 1, 0x1f90];
        let serving = tokio::spawn(async move { upgrade.serve(far, Arc::new(Five), listed).await });
        let (read, write) = tokio::io::split(near);
        let mut reader = WsReader::new(read, Role::Client);
        let writer = WsWriter::new(write, Role::Client);
        for channel in [0u8, 4] {
            match base64 {
                true => {
                    let text = STANDARD.encode("hello");
                    let digit = [b'0' + channel];
                    writer.send(Opcode::Text, &digit, text.as_bytes()).await
                }
                false => writer.send(Opcode::Binary, &[channel], b"hello").await,
            }
            .unwrap();
        }
        let mut got: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        let mut message = Vec::new();
        while let Some(event) = reader.next().await.unwrap() {
            let chunk = match event {
                Event::Data(chunk) => chunk,
                Event::Ping(_) => continue,
                // Every connection has ended.
                Event::Close(_) => break,
            };
            assert_eq!(chunk.text, base64);
            message.extend_from_slice(&chunk.bytes);
            if chunk.end {
                let (channel, rest) = message.split_first().unwrap();
                let (channel, rest) = match base64 {
                    true => (channel - b'0', STANDARD.decode(rest).unwrap()),
                    false => (*channel, rest.to_vec()),
                };
                got.entry(channel).or_default().extend(rest);
                message.clear();
            }
        }
        writer.close(1000).await.unwrap();
        drop((reader, writer));
        serving.await.unwrap().unwrap();
        let expected = [
            (0, b"\x50\0hello from 80".to_vec()),
            (1, b"\x50\0".to_vec()),
            (2, b"\x01\0".to_vec()),
            (3, b"\x01\0nothing listens on port 1".to_vec()),
            (4, b"\x90\x1fhello from 8080".to_vec()),
            (5, b"\x90\x1f".to_vec()),
        ];
        assert_eq!(got, expected.into(), "{protocol}");
    }
}
