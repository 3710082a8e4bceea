//! The harness holds what it promises to the cases.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use anyhow::{Context, ensure};

use crate::case::Case;
use crate::command::Cmd;
use crate::host::TestHost;
use crate::{images, net};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("selftest::network_is_its_own", network_is_its_own),
        Case::new(
            "selftest::programs_share_the_namespace",
            programs_share_the_namespace,
        ),
        Case::new("selftest::busybox_tree_runs", busybox_tree_runs),
    ]
}

fn network_is_its_own(_: &TestHost) -> anyhow::Result<()> {
    let links = net::links()?;
    ensure!(links.is_empty(), "links besides lo: {links:?}");
    let listener = TcpListener::bind("127.0.0.1:80").context("port 80 is free here")?;
    let mut client = TcpStream::connect("127.0.0.1:80").context("loopback is up")?;
    let (mut served, _) = listener.accept()?;
    client.write_all(b"x")?;
    let mut byte = [0];
    served.read_exact(&mut byte)?;
    ensure!(&byte == b"x");
    TcpListener::bind("[::1]:80").context("IPv6 loopback is up")?;
    Ok(())
}

fn programs_share_the_namespace(_: &TestHost) -> anyhow::Result<()> {
    let out = Cmd::new("readlink", ["/proc/self/ns/net"]).ok()?;
    let own = format!("net:[{}]", net::own_inode()?);
    ensure!(
        out.stdout.trim() == own,
        "{} is not {own}",
        out.stdout.trim()
    );
    Ok(())
}

fn busybox_tree_runs(host: &TestHost) -> anyhow::Result<()> {
    let tar = images::busybox()?;
    let tree = host.files().join("tree");
    std::fs::create_dir(&tree)?;
    let mut archive = tar::Archive::new(std::fs::File::open(&tar)?);
    archive.set_preserve_permissions(true);
    archive.unpack(&tree)?;
    let script = "id -un && stat -c %a /tmp && echo -n $((6*7))";
    let tree = tree.to_string_lossy();
    let out = Cmd::new("chroot", [&*tree, "/bin/sh", "-c", script]).ok()?;
    ensure!(out.stdout == "root\n1777\n42", "{out}");
    Ok(())
}
