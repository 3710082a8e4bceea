//! Pods over links that lose, delay, or are of another kind: their modules are
//! in the guests' kernel, and may lack on a developer's host.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::case::Case;
use crate::command::Cmd;
use crate::host::TestHost;
use crate::layout::Layout;
use crate::net;
use crate::outside::Outside;
use crate::pods::{pod, script, status, tool, with};
use crate::wait::WAIT_SECS;

pub(super) fn cases() -> Vec<Case> {
    [
        Case::new(
            "links::a_lossy_link_loses_no_byte",
            a_lossy_link_loses_no_byte,
        ),
        Case::new(
            "links::a_slow_link_fails_a_probe",
            a_slow_link_fails_a_probe,
        ),
        Case::new(
            "links::pods_follow_an_overlays_mtu",
            pods_follow_an_overlays_mtu,
        ),
    ]
    .map(|case| case.vm_only().vms(&[Layout::V2]))
    .to_vec()
}

const PATIENCE: Duration = Duration::from_secs(WAIT_SECS);
/// Bytes that are carried over a bad link; the toolbox reads 64 KiB.
const BYTES: usize = 60 << 10;

fn tc(args: &[&str]) -> anyhow::Result<String> {
    Ok(Cmd::new("tc", args).ok()?.stdout)
}

fn netem(link: &str, what: &[&str]) -> anyhow::Result<()> {
    let head = ["qdisc", "replace", "dev", link, "root", "netem"];
    tc(&[&head, what].concat()).map(drop)
}

/// A file of a web server, over one connection.
fn download(address: SocketAddr, path: &str) -> anyhow::Result<usize> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)
        .with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply)?;
    let head = reply.windows(4).position(|w| w == b"\r\n\r\n");
    let head = head.context("no end of the headers")?;
    Ok(reply.len() - head - 4)
}

fn ready(pod: &Value) -> bool {
    status(pod, "a")["ready"] == true
}

fn a_lossy_link_loses_no_byte(host: &TestHost) -> anyhow::Result<()> {
    let outside = Outside::join()?;
    let text = format!("mkdir /tmp/www; fill /tmp/www/file {BYTES}; httpd -p 8080 -h /tmp/www");
    let fields = json!({
        "ports": [{"containerPort": 8080, "hostPort": 8000}],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
    });
    host.up(&[pod("p", &[with(script("a", &text), "", fields)])])?;
    host.wait_pod("p", "readiness", ready)?;
    netem("uplink", &["loss", "10%", "delay", "2ms"])?;
    let target = SocketAddr::from((Outside::HOST_V4, 8000));
    let mut lost = 0;
    // Enough downloads that not losing a packet would be a wonder.
    for _ in 0..5 {
        let got = outside.run(move || download(target, "/file"))?;
        ensure!(got == BYTES, "{got} of {BYTES} bytes");
        let told = tc(&["-s", "qdisc", "show", "dev", "uplink"])?;
        let word = told
            .split("dropped ")
            .nth(1)
            .and_then(|t| t.split(',').next());
        lost = word.context("no count of drops")?.trim().parse()?;
        if lost > 0 {
            break;
        }
    }
    ensure!(lost > 0, "the link lost nothing");
    host.rm(&["p"])?;
    Ok(())
}

fn a_slow_link_fails_a_probe(host: &TestHost) -> anyhow::Result<()> {
    let probe = json!({"readinessProbe": {
        "httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1, "timeoutSeconds": 1}});
    host.up(&[pod(
        "p",
        &[with(tool("a", &["httpd", "-p", "8080"]), "", probe)],
    )])?;
    host.wait_pod("p", "readiness", ready)?;
    let links = net::links()?;
    let [link] = &links[..] else {
        anyhow::bail!("one link for one pod: {links:?}");
    };
    netem(link, &["delay", "3s"])?;
    host.wait_pod("p", "its probe to fail", |p| !ready(p))?;
    host.wait_event("p", "Unhealthy")?;
    tc(&["qdisc", "delete", "dev", link, "root"])?;
    host.wait_pod("p", "readiness again", ready)?;
    let seen = host.inspect("p")?;
    ensure!(status(&seen, "a")["restartCount"] == 0, "{seen:#}");
    host.rm(&["p"])?;
    Ok(())
}

/// The two ends of the overlay (RFC 5737).
const OVERLAY: [Ipv4Addr; 2] = [Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(203, 0, 113, 2)];
/// What 50 bytes of VXLAN leave of Ethernet's 1500 (RFC 7348).
const OVERLAY_MTU: &str = "1450";

fn overlay(below: &str, remote: Ipv4Addr, own: Ipv4Addr) -> anyhow::Result<()> {
    let remote = remote.to_string();
    let add = [
        "link", "add", "overlay", "type", "vxlan", "id", "42", "dstport", "4789",
    ];
    let towards = ["remote", &remote, "dev", below];
    Cmd::new("ip", add.iter().chain(&towards)).ok()?;
    let own = format!("{own}/24");
    Cmd::new("ip", ["address", "add", &own, "dev", "overlay"]).ok()?;
    Cmd::new("ip", ["link", "set", "overlay", "up"])
        .ok()
        .map(drop)
}

fn pods_follow_an_overlays_mtu(host: &TestHost) -> anyhow::Result<()> {
    let outside = Outside::join()?;
    let [ours, theirs] = OVERLAY;
    overlay("uplink", Outside::V4, ours)?;
    outside.run(move || overlay("inside", Outside::HOST_V4, theirs))?;
    let via = theirs.to_string();
    Cmd::new(
        "ip",
        ["route", "replace", "default", "via", &via, "dev", "overlay"],
    )
    .ok()?;
    host.up(&[pod("p", &[tool("a", &["sleep", "inf"])])])?;
    let mtu = host.tell("p", &["cat", "/sys/class/net/eth0/mtu"])?;
    ensure!(mtu.trim() == OVERLAY_MTU, "the pod's MTU is {mtu}");
    let listener = outside.run(move || Ok(TcpListener::bind((theirs, 7000))?))?;
    let served = std::thread::spawn(move || -> std::io::Result<IpAddr> {
        let (mut stream, from) = listener.accept()?;
        stream.read_exact(&mut [0; 2])?;
        stream.write_all(&vec![b'x'; BYTES])?;
        Ok(from.ip())
    });
    let text = host.tell("p", &["tcp", "connect", &via, "7000", "x"])?;
    let got = text.bytes().filter(|b| *b == b'x').count();
    let from = served.join().ok().context("the server panicked")??;
    ensure!(
        got == BYTES && from == ours,
        "{got} of {BYTES} bytes, from {from}"
    );
    Cmd::new("ip", ["link", "delete", "overlay"]).ok()?;
    host.rm(&["p"])?;
    Ok(())
}
