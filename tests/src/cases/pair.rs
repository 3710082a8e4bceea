//! Two guests on one link: the ground of tests with several nodes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::case::Case;
use crate::command::Cmd;
use crate::host::TestHost;
use crate::machines::peer;
use crate::pods::{pod, tool, with};
use crate::wait::until;

pub(super) fn cases() -> Vec<Case> {
    vec![Case::new("pair::guests_reach_each_other", guests_reach_each_other).paired()]
}

/// The other guest may still be booting.
const PATIENCE: Duration = Duration::from_secs(100);
/// Where the first waits for the second's last word.
const FAREWELL_PORT: u16 = 7000;
const HOST_PORT: u16 = 8000;

/// Guest `n` on the link (RFC 5737).
fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, n)
}

/// Brings the link, which the machine's first namespace has, into the test
/// host, and gives it its address.
fn join_link(own: u8) -> anyhow::Result<()> {
    let pid = std::process::id().to_string();
    let outside = ["--net=/proc/1/ns/net", "ip", "link", "set", "eth0", "netns"];
    Cmd::new("nsenter", outside.iter().copied().chain([pid.as_str()])).ok()?;
    let network = format!("{}/24", address(own));
    Cmd::new("ip", ["address", "add", &network, "dev", "eth0"]).ok()?;
    Cmd::new("ip", ["link", "set", "eth0", "up"]).ok()?;
    Ok(())
}

fn guests_reach_each_other(host: &TestHost) -> anyhow::Result<()> {
    let own = peer()?;
    ensure!((1..=2).contains(&own), "guest {own} of two");
    let other = address(3 - own);
    join_link(own)?;
    until("the other guest's answer to a ping", PATIENCE, || {
        let one = ["-c", "1", "-W", "1", &other.to_string()];
        Ok(Cmd::new("ping", one)
            .output()?
            .status
            .success()
            .then_some(()))
    })?;
    match own {
        1 => serve(host)?,
        _ => visit(other)?,
    }
    // The link was the machine's and is its again.
    Cmd::new("ip", ["link", "set", "eth0", "netns", "1"])
        .ok()
        .map(drop)
}

/// A pod of the first guest answers the second through its host port.
fn serve(host: &TestHost) -> anyhow::Result<()> {
    let listener = TcpListener::bind((address(1), FAREWELL_PORT)).context("listen")?;
    let port = json!({"ports": [{"containerPort": 8080, "hostPort": HOST_PORT}]});
    let web = tool("a", &["httpd", "-p", "8080", "--text", "from one to two"]);
    host.up(&[pod("web", &[with(web, "", port)])])?;
    let (mut stream, from) = listener.accept().context("wait for the other guest")?;
    ensure!(from.ip() == address(2), "{from}");
    let mut word = String::new();
    stream.read_to_string(&mut word)?;
    ensure!(word == "seen", "{word:?}");
    host.rm(&["web"])?;
    Ok(())
}

fn visit(other: Ipv4Addr) -> anyhow::Result<()> {
    let target = SocketAddr::from((other, HOST_PORT));
    let reply = until("the pod of the other guest", PATIENCE, || {
        let Ok(mut stream) = TcpStream::connect_timeout(&target, Duration::from_secs(5)) else {
            return Ok(None);
        };
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut reply = String::new();
        // A pod that is not up yet resets.
        let read = stream.read_to_string(&mut reply);
        Ok(read.is_ok().then_some(reply).filter(|r| !r.is_empty()))
    })?;
    ensure!(reply.ends_with("from one to two\n"), "{reply:?}");
    let farewell = SocketAddr::from((other, FAREWELL_PORT));
    let mut stream = TcpStream::connect_timeout(&farewell, PATIENCE).context("say farewell")?;
    stream.write_all(b"seen")?;
    Ok(())
}
