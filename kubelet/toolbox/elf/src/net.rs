//! Applets that speak TCP and UDP, and ask for names.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use crate::applets::{DONE, Outcome};
use crate::dns;
use crate::error::{During, ToolError};
use crate::output;
use crate::parse;
use crate::rest::Rest;

/// How long a client waits for a connection or a reply.
pub(crate) const REPLY_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections served at once; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 64;
/// What a client prints of a reply, and a datagram's greatest length.
const MAX_REPLY_BYTES: u64 = 64 << 10;

pub(crate) fn nslookup(args: &[String]) -> Outcome {
    let [name] = args else {
        return Err(ToolError::Usage("nslookup NAME".into()));
    };
    for address in dns::resolve(name).during(|| format!("resolve {name}"))? {
        output::line(&address.to_string())?;
    }
    DONE
}

/// Connects to the first address of `host` that answers.
pub(crate) fn connect(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, ToolError> {
    let addresses = dns::resolve(host).during(|| format!("resolve {host}"))?;
    let mut failure = ToolError::Answer(format!("{host} has no address"));
    for address in addresses {
        let address = SocketAddr::new(address, port);
        let stream = TcpStream::connect_timeout(&address, timeout).and_then(|stream| {
            stream.set_read_timeout(Some(timeout))?;
            stream.set_write_timeout(Some(timeout))?;
            Ok(stream)
        });
        match stream.during(|| format!("connect to {address}")) {
            Ok(stream) => return Ok(stream),
            Err(e) => failure = e,
        }
    }
    Err(failure)
}

/// Listens on all addresses: IPv6 takes IPv4 too, unless the kernel has none.
pub(crate) fn listen(port: u16) -> Result<TcpListener, ToolError> {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
        .during(|| format!("listen on tcp port {port}"))
}

/// Serves every connection with `handle`, each in its own thread, until PID 1
/// is told to end.
pub(crate) fn serve(
    listener: TcpListener,
    handle: impl Fn(TcpStream) + Send + Sync + 'static,
) -> Outcome {
    let rest = Rest::prepare()?;
    std::thread::Builder::new()
        .spawn(move || accept(&listener, Arc::new(handle)))
        .during(|| "start a thread".to_owned())?;
    rest.wait(None)
}

fn accept(listener: &TcpListener, handle: Arc<impl Fn(TcpStream) + Send + Sync + 'static>) {
    let slots = Arc::new(());
    loop {
        let Ok((stream, _)) = listener.accept() else {
            // Out of descriptors or memory: give those who hold some time.
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        if Arc::strong_count(&slots) > MAX_CONNECTIONS {
            handle(stream);
            continue;
        }
        let (shared, slot) = (Arc::clone(&handle), Arc::clone(&slots));
        // Without a new thread the connection is closed, and the client sees it.
        let _ = std::thread::Builder::new().spawn(move || {
            shared(stream);
            drop(slot);
        });
    }
}

pub(crate) fn tcp(args: &[String]) -> Outcome {
    match words(args)[..] {
        ["listen", port] => {
            let listener = listen(parse::number(port)?)?;
            output::line(&format!("listening on {port}"))?;
            serve(listener, |stream| {
                let mut from = &stream;
                // The client went away: nothing is left to do for it.
                let _ = std::io::copy(&mut from, &mut &stream);
            })
        }
        ["connect", host, port, ref text @ ..] => {
            let mut stream = connect(host, parse::number(port)?, REPLY_TIMEOUT)?;
            let exchange = || format!("exchange with {host} port {port}");
            if text.is_empty() {
                output::line("connected")?;
                return DONE;
            }
            let text = text.join(" ") + "\n";
            stream.write_all(text.as_bytes()).during(exchange)?;
            stream.shutdown(Shutdown::Write).during(exchange)?;
            let mut reply = Vec::new();
            stream
                .take(MAX_REPLY_BYTES)
                .read_to_end(&mut reply)
                .during(exchange)?;
            output::bytes(&reply)?;
            DONE
        }
        _ => Err(ToolError::Usage(
            "tcp connect HOST PORT [TEXT] | tcp listen PORT".into(),
        )),
    }
}

pub(crate) fn udp(args: &[String]) -> Outcome {
    match words(args)[..] {
        ["listen", port] => {
            let number: u16 = parse::number(port)?;
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, number))
                .or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, number)))
                .during(|| format!("bind udp port {port}"))?;
            let rest = Rest::prepare()?;
            output::line(&format!("listening on {port}"))?;
            std::thread::Builder::new()
                .spawn(move || echo_datagrams(&socket))
                .during(|| "start a thread".to_owned())?;
            rest.wait(None)
        }
        ["send", host, port, ref text @ ..] => {
            let addresses = dns::resolve(host).during(|| format!("resolve {host}"))?;
            let address = addresses
                .first()
                .ok_or_else(|| ToolError::Answer(format!("{host} has no address")))?;
            let target = SocketAddr::new(*address, parse::number(port)?);
            let reply = exchange_datagram(target, text.join(" ").as_bytes())
                .during(|| format!("exchange with udp {target}"))?;
            output::bytes(&reply)?;
            output::print("\n")?;
            DONE
        }
        _ => Err(ToolError::Usage(
            "udp send HOST PORT TEXT | udp listen PORT".into(),
        )),
    }
}

fn echo_datagrams(socket: &UdpSocket) {
    let mut datagram = vec![0; 64 << 10];
    loop {
        match socket.recv_from(&mut datagram) {
            // An answer that cannot be sent is lost, as datagrams may be.
            Ok((n, from)) => drop(socket.send_to(&datagram[..n], from)),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn exchange_datagram(target: SocketAddr, data: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = match target {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)),
    }?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(REPLY_TIMEOUT))?;
    socket.send(data)?;
    let mut reply = vec![0; 64 << 10];
    let n = socket.recv(&mut reply)?;
    reply.truncate(n);
    Ok(reply)
}

fn words(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}
