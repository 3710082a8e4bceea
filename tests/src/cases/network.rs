//! Addresses, names, masquerading and host ports.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::case::Case;
use crate::host::TestHost;
use crate::outside::Outside;
use crate::pods::{pod, said, tool, with};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("network::pods_have_addresses", pods_have_addresses),
        Case::new(
            "network::pods_of_one_file_find_each_other",
            pods_of_one_file_find_each_other,
        ),
        Case::new(
            "network::the_outside_sees_the_host",
            the_outside_sees_the_host,
        ),
        Case::new(
            "network::host_ports_from_everywhere",
            host_ports_from_everywhere,
        ),
        Case::new("network::host_ports_of_udp", host_ports_of_udp),
        Case::new("network::taken_ports_are_errors", taken_ports_are_errors),
        Case::new("network::host_network", host_network),
        Case::new(
            "network::ports_are_free_after_removal",
            ports_are_free_after_removal,
        ),
    ]
}

const PATIENCE: Duration = Duration::from_secs(10);

fn addresses(host: &TestHost, name: &str) -> anyhow::Result<Vec<IpAddr>> {
    let seen = host.inspect(name)?;
    let list = seen["status"]["podIPs"].as_array().context("no podIPs")?;
    list.iter()
        .map(|ip| Ok(ip["ip"].as_str().unwrap_or_default().parse()?))
        .collect()
}

fn web(name: &str, ports: Value) -> Value {
    pod(
        name,
        &[with(
            tool("a", &["httpd", "-p", "8080", "--text", name]),
            "",
            json!({
        "ports": ports, "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}),
        )],
    )
}

fn up_and_ready(host: &TestHost, pods: &[Value]) -> anyhow::Result<()> {
    host.up(pods)?;
    for made in pods {
        let name = made["metadata"]["name"].as_str().unwrap_or_default();
        host.wait_pod(name, "readiness", |p| {
            p["status"]["containerStatuses"][0]["ready"] == true
        })?;
    }
    Ok(())
}

/// One HTTP request; the body.
fn get(address: SocketAddr) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)
        .with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut reply = String::new();
    stream
        .read_to_string(&mut reply)
        .with_context(|| format!("read from {address}"))?;
    Ok(reply
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.trim().to_owned())
        .unwrap_or_default())
}

fn pods_have_addresses(host: &TestHost) -> anyhow::Result<()> {
    up_and_ready(host, &[web("one", json!([])), web("two", json!([]))])?;
    let (one, two) = (addresses(host, "one")?, addresses(host, "two")?);
    for (name, list) in [("one", &one), ("two", &two)] {
        ensure!(
            list.iter().any(IpAddr::is_ipv4) && list.iter().any(IpAddr::is_ipv6),
            "{name}: {list:?}"
        );
        for address in list {
            // From the host.
            ensure!(get(SocketAddr::new(*address, 8080))? == name, "{address}");
        }
    }
    ensure!(one.iter().all(|a| !two.contains(a)), "{one:?} {two:?}");
    // From the other pod, and to itself.
    for address in two.iter().chain(&one) {
        let host_part = match address {
            IpAddr::V4(a) => a.to_string(),
            IpAddr::V6(a) => format!("[{a}]"),
        };
        host.tell(
            "one",
            &[
                "get",
                "--timeout",
                "5",
                &format!("http://{host_part}:8080/"),
            ],
        )?;
    }
    host.rm(&["one", "two"])?;
    // Links are removed behind the command's back.
    crate::wait::until("the links to go", Duration::from_secs(60), || {
        Ok(crate::net::links()?.is_empty().then_some(()))
    })
}

fn pods_of_one_file_find_each_other(host: &TestHost) -> anyhow::Result<()> {
    let client = pod(
        "client",
        &[tool("a", &["get", "--retry", "20", "http://server:8080/"])],
    );
    let server = with(
        web("server", json!([])),
        "spec",
        json!({"restartPolicy": "Always"}),
    );
    host.up(&[server, client])?;
    host.rkube(["wait", "client"])?.ok()?;
    let text = host.rkube(["logs", "client"])?.ok()?.stdout;
    ensure!(text == "server\n", "{text}");
    // A pod of another file does not know the name.
    host.run(&[pod("stranger", &[tool("a", &["cat", "/etc/hosts"])])])?
        .ok()
        .and_then(|out| {
            ensure!(
                !said(&out, "a").iter().any(|l| l.contains("server")),
                "{out}"
            );
            Ok(())
        })?;
    host.rm(&["server", "client"])?;
    Ok(())
}

fn the_outside_sees_the_host(host: &TestHost) -> anyhow::Result<()> {
    let outside = Outside::join()?;
    host.up(&[pod("p", &[tool("a", &["sleep", "inf"])])])?;
    for (at, ours) in [
        (IpAddr::V4(Outside::V4), IpAddr::V4(Outside::HOST_V4)),
        (IpAddr::V6(Outside::V6), IpAddr::V6(Outside::HOST_V6)),
    ] {
        let listener = outside.run(move || Ok(TcpListener::bind((at, 7000))?))?;
        let served = std::thread::spawn(move || -> std::io::Result<SocketAddr> {
            let (mut stream, from) = listener.accept()?;
            // Unread bytes would turn the end into a reset.
            stream.read_exact(&mut [0; 2])?;
            stream.write_all(b"hello\n")?;
            Ok(from)
        });
        let text = host.tell("p", &["tcp", "connect", &at.to_string(), "7000", "x"])?;
        ensure!(text.contains("hello"), "{text}");
        let from = served.join().ok().context("the server panicked")??;
        ensure!(from.ip() == ours, "{from} is not the host's {ours}");
    }
    host.rm(&["p"])?;
    Ok(())
}

fn host_ports_from_everywhere(host: &TestHost) -> anyhow::Result<()> {
    let outside = Outside::join()?;
    up_and_ready(
        host,
        &[
            web("p", json!([{"containerPort": 8080, "hostPort": 8000}])),
            web("q", json!([])),
        ],
    )?;
    for address in ["127.0.0.1:8000", "[::1]:8000"] {
        ensure!(get(address.parse()?).with_context(|| address.to_owned())? == "p");
    }
    let own: [IpAddr; 2] = [Outside::HOST_V4.into(), Outside::HOST_V6.into()];
    for address in own {
        let target = SocketAddr::new(address, 8000);
        ensure!(get(target).context("from the host")? == "p");
        ensure!(outside.run(move || get(target)).context("from outside")? == "p");
        let shown = if address.is_ipv6() {
            format!("[{address}]")
        } else {
            address.to_string()
        };
        for name in ["q", "p"] {
            let text = host.tell(
                name,
                &["get", "--timeout", "5", &format!("http://{shown}:8000/")],
            )?;
            ensure!(text == "p\n", "from pod {name}: {text}");
        }
    }
    host.rm(&["p", "q"])?;
    let closed = outside.run(|| {
        Ok(
            TcpStream::connect_timeout(&SocketAddr::new(Outside::HOST_V4.into(), 8000), PATIENCE)
                .is_err(),
        )
    })?;
    ensure!(closed, "the port is still open");
    Ok(())
}

fn host_ports_of_udp(host: &TestHost) -> anyhow::Result<()> {
    let outside = Outside::join()?;
    let listener = with(
        tool("a", &["udp", "listen", "5300"]),
        "",
        json!({
        "ports": [{"containerPort": 5300, "hostPort": 53, "protocol": "UDP"}]}),
    );
    host.up(&[pod("p", &[listener])])?;
    crate::wait::until("the listener", Duration::from_secs(60), || {
        Ok(host
            .rkube(["logs", "p"])?
            .ok()?
            .stdout
            .contains("listening")
            .then_some(()))
    })?;
    let ask = |from: IpAddr, to: IpAddr| -> anyhow::Result<()> {
        let socket = UdpSocket::bind((from, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect((to, 53))?;
        socket.send(b"ping")?;
        let mut reply = [0; 16];
        let n = socket
            .recv(&mut reply)
            .with_context(|| format!("an answer of {to}"))?;
        ensure!(&reply[..n] == b"ping");
        Ok(())
    };
    let (v4, v6) = (
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    );
    ask(v4, Ipv4Addr::LOCALHOST.into())?;
    ask(v6, Ipv6Addr::LOCALHOST.into())?;
    outside.run(move || ask(v4, Outside::HOST_V4.into()))?;
    outside.run(move || ask(v6, Outside::HOST_V6.into()))?;
    host.rm(&["p"])?;
    Ok(())
}

fn taken_ports_are_errors(host: &TestHost) -> anyhow::Result<()> {
    let ports = json!([{"containerPort": 8080, "hostPort": 8000}]);
    up_and_ready(host, &[web("first", ports.clone())])?;
    let file = host.manifest(&[web("second", ports.clone())])?;
    let args = ["run", "--detach", "--timeout", "5", "-f"].map(std::path::Path::new);
    let out = host
        .rkube(args.into_iter().chain([file.as_path()]))?
        .output()?;
    ensure!(
        !out.status.success() && out.stderr.contains("8000") && out.stderr.contains("first"),
        "{out}"
    );
    if host.inspect("second").is_ok() {
        host.rm(&["second"])?;
    }
    ensure!(get("127.0.0.1:8000".parse()?)? == "first");
    host.rm(&["first"])?;
    Ok(())
}

fn host_network(host: &TestHost) -> anyhow::Result<()> {
    up_and_ready(
        host,
        &[with(
            web("p", json!([])),
            "spec",
            json!({"hostNetwork": true}),
        )],
    )?;
    ensure!(get("127.0.0.1:8080".parse()?)? == "p");
    ensure!(
        crate::net::links()?.is_empty(),
        "{:?}",
        crate::net::links()?
    );
    host.rm(&["p"])?;
    Ok(())
}

fn ports_are_free_after_removal(host: &TestHost) -> anyhow::Result<()> {
    let ports = json!([{"containerPort": 8080, "hostPort": 8000}]);
    for name in ["one", "two"] {
        up_and_ready(host, &[web(name, ports.clone())])?;
        ensure!(get("127.0.0.1:8000".parse()?)? == name);
        host.rm(&[name])?;
    }
    Ok(())
}
