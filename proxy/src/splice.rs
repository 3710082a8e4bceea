//! Node ports on 127.0.0.1 and ::1.
//!
//! The kernel does not let a translated packet with a loopback source leave,
//! unless a setting that weakens every link is on. So these two addresses
//! have listeners, which hand connections and datagrams to the Service's own
//! address; there the rules take over, with all of their policies.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;

use crate::model::{Front, Protocol};

/// Most connections of one node port.
const CONNECTIONS_MAX_COUNT: usize = 1024;
/// Most clients of one UDP node port.
const UDP_CLIENTS_MAX_COUNT: usize = 1024;
/// How long a UDP client is remembered after its last answer.
const UDP_IDLE: Duration = Duration::from_secs(60);
/// How long a connection to an endpoint may take.
const CONNECT: Duration = Duration::from_secs(30);
/// Pause after a failed accept: out of descriptors, which others give back.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest datagram, in bytes.
const DATAGRAM_MAX_BYTES: usize = 65_535;

struct Listener {
    target: SocketAddr,
    task: AbortHandle,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Keeps a listener for each node port.
pub(crate) async fn run(mut ports: watch::Receiver<BTreeMap<Front, SocketAddr>>) {
    let mut listeners: BTreeMap<Front, Listener> = BTreeMap::new();
    loop {
        let wanted = ports.borrow_and_update().clone();
        listeners.retain(|front, listener| wanted.get(front) == Some(&listener.target));
        for (front, target) in wanted {
            if listeners.contains_key(&front) {
                continue;
            }
            match listen(front, target).await {
                Ok(Some(task)) => drop(listeners.insert(front, Listener { target, task })),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(port = front.port(), %error, "node port on loopback");
                }
            }
        }
        if ports.changed().await.is_err() {
            return;
        }
    }
}

async fn listen(front: Front, target: SocketAddr) -> std::io::Result<Option<AbortHandle>> {
    let loopback: IpAddr = if front.is_v6() {
        Ipv6Addr::LOCALHOST.into()
    } else {
        Ipv4Addr::LOCALHOST.into()
    };
    let address = SocketAddr::new(loopback, front.port());
    let task = match front.protocol() {
        Protocol::Tcp => rkube_task::spawn(tcp(TcpListener::bind(address).await?, target)),
        Protocol::Udp => rkube_task::spawn(udp(Arc::new(UdpSocket::bind(address).await?), target)),
        Protocol::Sctp => return Ok(None),
    };
    Ok(Some(task.abort_handle()))
}

async fn tcp(listener: TcpListener, target: SocketAddr) {
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX_COUNT));
    loop {
        // Beyond the limit, connections wait in the listener's backlog.
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else {
            return;
        };
        let Ok((mut client, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        rkube_task::spawn(async move {
            let _permit = permit;
            let connect = tokio::time::timeout(CONNECT, TcpStream::connect(target));
            if let Ok(Ok(mut server)) = connect.await {
                // Either side may break it off; the other sees the end.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}

type Clients = Arc<Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>>;

async fn udp(socket: Arc<UdpSocket>, target: SocketAddr) {
    let clients = Clients::default();
    let mut buffer = vec![0; DATAGRAM_MAX_BYTES];
    loop {
        let Ok((got, from)) = socket.recv_from(&mut buffer).await else {
            // An ICMP error of an earlier answer.
            continue;
        };
        let known = lock(&clients).get(&from).cloned();
        let server = match known {
            Some(server) => server,
            None if lock(&clients).len() >= UDP_CLIENTS_MAX_COUNT => continue,
            None => match connect(target).await {
                Ok(server) => {
                    let server = Arc::new(server);
                    lock(&clients).insert(from, Arc::clone(&server));
                    let back = answers(
                        Arc::clone(&socket),
                        Arc::clone(&server),
                        from,
                        Arc::clone(&clients),
                    );
                    rkube_task::spawn(back);
                    server
                }
                Err(error) => {
                    tracing::debug!(%error, %target, "datagram for a node port");
                    continue;
                }
            },
        };
        // Lost datagrams are UDP's way.
        let _ = server.send(&buffer[..got]).await;
    }
}

fn lock(clients: &Clients) -> std::sync::MutexGuard<'_, HashMap<SocketAddr, Arc<UdpSocket>>> {
    clients.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn connect(target: SocketAddr) -> std::io::Result<UdpSocket> {
    let any: IpAddr = if target.is_ipv6() {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(target).await?;
    Ok(socket)
}

async fn answers(
    socket: Arc<UdpSocket>,
    server: Arc<UdpSocket>,
    client: SocketAddr,
    clients: Clients,
) {
    let mut buffer = vec![0; DATAGRAM_MAX_BYTES];
    while let Ok(Ok(got)) = tokio::time::timeout(UDP_IDLE, server.recv(&mut buffer)).await {
        let _ = socket.send_to(&buffer[..got], client).await;
    }
    lock(&clients).remove(&client);
}
