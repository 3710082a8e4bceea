//! What people do all day, with real pods: the seeds of the project, and a
//! walk through kubectl's commands by several releases of it.

mod ends;
mod objects;
mod pods;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, ensure};
use serde_json::json;

use super::nodes;
use super::{NODE_PORT, PATIENCE, page, web};
use crate::host::TestHost;
use crate::kubectl::Kubectl;
use crate::outside::Outside;
use crate::second::SecondNode;
use crate::wait::until;

/// The release that users' scripts are written for.
const SEEDS_MINOR: u32 = 33;
/// Set: the walk is done by all releases that are there, as `make soak` does.
const EVERY: &str = "RKUBE_EVERY_KUBECTL";

/// Waits until `count` different pods have answered, all with `word`.
fn answering(
    outside: &Outside,
    address: SocketAddr,
    count: usize,
    word: &str,
) -> anyhow::Result<()> {
    let mut seen = BTreeSet::new();
    until("every replica's answer", PATIENCE, || {
        if let Ok(text) = outside.run(move || page(address))
            && text.ends_with(word)
        {
            seen.insert(text);
        }
        Ok((seen.len() >= count).then_some(()))
    })
    .with_context(|| format!("answers: {seen:?}"))
}

pub(super) fn seeds_on_one(host: &TestHost) -> anyhow::Result<()> {
    let outside = Outside::join()?;
    let (server, kubectl) = host.server(&[])?;
    let kubectl = kubectl.of(SEEDS_MINOR)?;
    seeds(&kubectl, &outside, &[Outside::HOST_V4.into()])?;
    server.end()
}

pub(super) fn seeds_on_two(host: &TestHost) -> anyhow::Result<()> {
    nodes::on_two(host, &[], |pair| {
        let kubectl = pair.kubectl.of(SEEDS_MINOR)?;
        let hosts = [Outside::HOST_V4.into(), Outside::V4.into()];
        seeds(&kubectl, pair.outside, &hosts)
    })
}

/// A web Deployment behind a node port: one replica, four, traffic over all
/// of them, a bad version out and back.
fn seeds(kubectl: &Kubectl, outside: &Outside, hosts: &[std::net::IpAddr]) -> anyhow::Result<()> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "selector": {"app": "web"},
            "ports": [{"port": 80, "targetPort": 8080, "nodePort": NODE_PORT}]},
    });
    let all = |count: usize, word: &str| {
        hosts
            .iter()
            .try_for_each(|ip| answering(outside, SocketAddr::new(*ip, NODE_PORT), count, word))
    };
    let rolled = || {
        let words = "rollout status deployment/web --timeout=50s";
        kubectl.says(words, "successfully rolled out").map(drop)
    };
    let said = kubectl.apply(&[web("one", 1), service.clone()])?.stdout;
    ensure!(
        said.contains("deployment.apps/web created") && said.contains("service/web created"),
        "{said}"
    );
    rolled()?;
    all(1, "one")?;
    let said = kubectl.apply(&[web("one", 4), service.clone()])?.stdout;
    ensure!(
        said.contains("deployment.apps/web configured") && said.contains("service/web unchanged"),
        "{said}"
    );
    rolled()?;
    all(4, "one")?;
    // A bad version does not replace the good one, and goes again.
    let mut bad = web("one", 4);
    bad["spec"]["template"]["spec"]["containers"][0]["image"] = "rkube.local/none:1".into();
    kubectl.apply(&[bad])?;
    kubectl.wait("a pod without image", &["pods"], |pods| {
        pods.to_string().contains("ErrImage") || pods.to_string().contains("ImagePull")
    })?;
    all(3, "one")?;
    kubectl.says("rollout undo deployment/web", "rolled back")?;
    rolled()?;
    all(4, "one")?;
    // A good one does.
    kubectl.apply(&[web("two", 4), service])?;
    rolled()?;
    all(4, "two")?;
    kubectl.run(&["delete", "deployment,service", "web"])?;
    kubectl.wait("an end of all pods", &["pods"], |pods| {
        pods["items"] == json!([])
    })?;
    Ok(())
}

pub(super) fn of_1_20(host: &TestHost) -> anyhow::Result<()> {
    on_one(host, &[20])
}

pub(super) fn of_1_32(host: &TestHost) -> anyhow::Result<()> {
    on_one(host, &[32])
}

pub(super) fn of_1_33(host: &TestHost) -> anyhow::Result<()> {
    on_one(host, &[33])
}

pub(super) fn of_1_20_on_two(host: &TestHost) -> anyhow::Result<()> {
    on_two(host, 20)
}

pub(super) fn of_1_32_on_two(host: &TestHost) -> anyhow::Result<()> {
    on_two(host, 32)
}

pub(super) fn of_1_33_on_two(host: &TestHost) -> anyhow::Result<()> {
    on_two(host, 33)
}

pub(super) fn of_others(host: &TestHost) -> anyhow::Result<()> {
    let others = [27, 28, 29, 30, 31];
    let count = match std::env::var_os(EVERY) {
        Some(_) => others.len(),
        None => 1,
    };
    on_one(host, &others[..count])
}

fn on_one(host: &TestHost, minors: &[u32]) -> anyhow::Result<()> {
    let _outside = Outside::join()?;
    nodes::import(host)?;
    let (server, kubectl) = host.server(&[])?;
    for minor in minors {
        let walk = Walk {
            host,
            kubectl: kubectl.of(*minor)?,
            minor: *minor,
            nodes: &["one"],
        };
        walk.all().with_context(|| format!("kubectl 1.{minor}"))?;
    }
    server.end()
}

/// The same over two nodes: what is entered, copied and forwarded is on the
/// second one, behind its port.
fn on_two(host: &TestHost, minor: u32) -> anyhow::Result<()> {
    nodes::on_two(host, &[], |pair| {
        let walk = Walk {
            host,
            kubectl: pair.kubectl.of(minor)?,
            minor,
            nodes: &["one", SecondNode::NAME],
        };
        walk.all().with_context(|| format!("kubectl 1.{minor}"))
    })
}

/// One client's walk over a cluster that is empty before and after it.
struct Walk<'a> {
    host: &'a TestHost,
    kubectl: Kubectl,
    minor: u32,
    /// All nodes; single pods are on the last one.
    nodes: &'a [&'a str],
}

impl Walk<'_> {
    fn all(&self) -> anyhow::Result<()> {
        self.looks().context("looks")?;
        self.rolls().context("rolls")?;
        self.shows().context("shows")?;
        self.sets().context("sets")?;
        self.changes().context("changes")?;
        self.exposes().context("exposes")?;
        self.enters().context("enters")?;
        self.attaches().context("attaches")?;
        self.copies().context("copies")?;
        self.runs_out().context("runs out")?;
        self.moves().context("moves")?;
        self.deletes().context("deletes")
    }

    fn says(&self, words: &str, expected: &str) -> anyhow::Result<()> {
        self.kubectl.says(words, expected).map(drop)
    }

    fn line(&self, words: &str) -> anyhow::Result<String> {
        self.kubectl.line(words)
    }

    /// Whether this release has a command that came with `minor`.
    fn has(&self, minor: u32) -> bool {
        self.minor >= minor
    }

    /// The node of single pods.
    fn node(&self) -> &str {
        self.nodes.last().copied().unwrap_or_default()
    }

    /// A file of this walk's own.
    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> anyhow::Result<String> {
        let path = self.host.file(&format!("{name}-{}", self.minor), content)?;
        Ok(path.to_string_lossy().into_owned())
    }

    fn rolled(&self) -> anyhow::Result<()> {
        let words = "rollout status deployment/web --timeout=60s";
        self.says(words, "successfully rolled out")
    }
}
