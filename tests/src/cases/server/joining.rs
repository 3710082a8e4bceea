//! How nodes and clients come to a cluster: by kubeconfig, with certificates
//! that are renewed, after an older release, and from another project.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustix::process::Signal;
use serde_json::Value;

use super::nodes::{import, on_two};
use super::{PATIENCE, bound, exec, is_running};
use crate::case::skip;
use crate::command::Cmd;
use crate::host::TestHost;
use crate::kubectl::Kubectl;
use crate::outside::Outside;
use crate::pods::script;
use crate::repo;
use crate::second::SecondNode;
use crate::tls;
use crate::wait::until;

/// A root of release 0.1.0: store, certificates, token. Made by that release,
/// with the objects that the case looks for.
const OLD_ROOT: &str = "tests/fixtures/root-0.1.0.tar.gz";

/// The port of a node's own API (`--kubelet-port` has this default).
const NODE_API_PORT: u16 = 10250;

fn far_pod(kubectl: &Kubectl) -> anyhow::Result<()> {
    let mut pod = bound("far", script("a", "echo far; sleep 100000"));
    pod["spec"]["nodeName"] = SecondNode::NAME.into();
    kubectl.apply(&[pod])?;
    kubectl.wait("a pod on two", &["pod", "far"], is_running)?;
    ensure!(exec(kubectl, "far", &["echo", "x"])? == "x", "exec");
    Ok(())
}

/// What anybody may read (`cluster-info`) and a bootstrap token make a
/// kubeconfig, and that makes a node.
pub(super) fn by_kubeconfig(host: &TestHost) -> anyhow::Result<()> {
    let outside = Outside::join()?;
    let (server, kubectl) = host.server(&["--node-ip", &Outside::HOST_V4.to_string()])?;
    let anonymous = "get --raw /api/v1/namespaces/kube-public/configmaps/cluster-info \
         --as=system:anonymous --as-group=system:unauthenticated";
    let info: Value = serde_json::from_str(&kubectl.line(anonymous)?)?;
    let info = info["data"]["kubeconfig"]
        .as_str()
        .context("a kubeconfig")?;
    let token = std::fs::read_to_string(host.root().join("var/lib/rkube/token"))?;
    let (_, token) = token.trim().split_once("::").context("a token")?;
    let (id, _) = token.split_once('.').context("a token")?;
    kubectl.says(
        "get configmap cluster-info -n kube-public -o jsonpath={.data}",
        &format!("jws-kubeconfig-{id}"),
    )?;
    let file = host.file("join.conf", info)?;
    let file = file.to_string_lossy().into_owned();
    for words in [
        format!("set-credentials node --token={token}"),
        "set-context join --user=node --cluster=".to_owned(),
        "use-context join".to_owned(),
    ] {
        kubectl.line(&format!("config --kubeconfig={file} {words}"))?;
    }
    // kubectl writes no cluster whose name is empty into a context.
    let text = std::fs::read_to_string(&file)?;
    let text = text
        .replace("cluster: \"\"", "cluster: c")
        .replace("name: \"\"", "name: c");
    std::fs::write(&file, text)?;
    let ip = Outside::V4.to_string();
    let mut two = SecondNode::new(host, &outside, &["--node-ip", &ip])?;
    let worked = two
        .start_by(&["--kubeconfig", &file])
        .and_then(|()| far_pod(&kubectl));
    let (said, cleared) = two.clear();
    worked.with_context(|| format!("the agent said:\n{}", said.join("\n")))?;
    cleared?;
    kubectl.run(&["delete", "pod", "far", "--force", "--grace-period=0"])?;
    server.end()
}

/// A node that has an IPv6 address and no other: the API server reaches its
/// port there.
pub(super) fn at_ipv6(host: &TestHost) -> anyhow::Result<()> {
    let outside = Outside::join()?;
    let (server, kubectl) = host.server(&["--node-ip", &Outside::HOST_V4.to_string()])?;
    let token = std::fs::read_to_string(host.root().join("var/lib/rkube/token"))?;
    let ip = Outside::V6.to_string();
    let mut two = SecondNode::new(host, &outside, &["--node-ip", &ip])?;
    let worked = two.start(Some(token.trim())).and_then(|()| {
        far_pod(&kubectl)?;
        kubectl.says("logs far", "far\n")?;
        let addresses =
            "get node two -o jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}";
        let addresses = kubectl.line(addresses)?;
        ensure!(addresses == ip, "{addresses}");
        Ok(())
    });
    let (said, cleared) = two.clear();
    worked.with_context(|| format!("the agent said:\n{}", said.join("\n")))?;
    cleared?;
    kubectl.run(&["delete", "pod", "far", "--force", "--grace-period=0"])?;
    server.end()
}

/// The client certificate of node two, with an hour left of it, in the file
/// where the agent keeps it.
fn hour_left(host: &TestHost) -> anyhow::Result<String> {
    let path = host.root().join("var/lib/rkube/pki/ca.key");
    let key = KeyPair::from_pem(&std::fs::read_to_string(&path)?).context("the authority's key")?;
    let mut params = CertificateParams::default();
    params.distinguished_name = name(None, "kubernetes");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = Issuer::new(params, key);
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = name(Some("system:nodes"), "system:node:two");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.is_ca = IsCa::ExplicitNoCa;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + (now - Duration::from_secs(3600));
    params.not_after = epoch + (now + Duration::from_secs(3600));
    let key = KeyPair::generate().context("make a key")?;
    let certificate = params.signed_by(&key, &authority).context("sign")?;
    Ok(format!("{}{}", certificate.pem(), key.serialize_pem()))
}

/// An agent whose certificate is about to end asks for the next by it, in
/// process, and goes on with that one.
pub(super) fn certificates(host: &TestHost) -> anyhow::Result<()> {
    on_two(host, &[], |pair| {
        let kubectl = pair.kubectl.clone();
        let file = pair.two.root().join("var/lib/rkube/agent/client.pem");
        pair.two.stop(Signal::TERM)?;
        let old = hour_left(host)?;
        std::fs::write(&file, &old)?;
        pair.two.start(None)?;
        until("another certificate", PATIENCE, || {
            let now = std::fs::read_to_string(&file)?;
            Ok((now != old && now.contains("PRIVATE KEY")).then_some(()))
        })?;
        far_pod(&kubectl)?;
        // Now it lasts: the next start asks for no other.
        pair.two.stop(Signal::TERM)?;
        let new = std::fs::read_to_string(&file)?;
        pair.two.start(None)?;
        pair.ready(SecondNode::NAME, true)?;
        ensure!(exec(&kubectl, "far", &["echo", "x"])? == "x", "exec");
        ensure!(std::fs::read_to_string(&file)? == new, "asked again");
        strangers(host, &kubectl, &new)
    })
}

/// The port of a node lets in the API server and administrators, and nobody
/// else: not even another node. `node` is a node's own certificate and key.
fn strangers(host: &TestHost, kubectl: &Kubectl, node: &str) -> anyhow::Result<()> {
    let address = SocketAddr::from((Outside::V4, NODE_API_PORT));
    let authority = std::fs::read_to_string(host.root().join("var/lib/rkube/pki/ca.crt"))?;
    let ask = |client: Option<(&str, &str)>| tls::status(address, &authority, client, "/pods");
    let refused = |who: &str, code: u16| {
        ensure!(code == 401, "{who} is answered {code}");
        anyhow::Ok(())
    };
    refused("nobody", ask(None)?)?;
    // The administrators' group, by an authority of one's own.
    let mut params = CertificateParams::default();
    params.distinguished_name = name(Some("system:masters"), "kubernetes-admin");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().context("make a key")?;
    let own = params.self_signed(&key).context("sign")?.pem();
    refused("a stranger", ask(Some((&own, &key.serialize_pem())))?)?;
    refused("a node", ask(Some((node, node)))?)?;
    let of_admin = |field: &str| {
        let template =
            format!("go-template={{{{index (index .users 0).user \"{field}\" | base64decode}}}}");
        let view = ["config", "view", "--raw", "-o", &template];
        anyhow::Ok(kubectl.run(&view)?.stdout)
    };
    let (certificate, key) = (
        of_admin("client-certificate-data")?,
        of_admin("client-key-data")?,
    );
    let code = ask(Some((&certificate, &key)))?;
    ensure!(code == 200, "an administrator is answered {code}");
    Ok(())
}

/// The subject of a certificate.
fn name(organisation: Option<&str>, common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(organisation) = organisation {
        name.push(DnType::OrganizationName, organisation);
    }
    name.push(DnType::CommonName, common);
    name
}

/// A root that an older release wrote: its objects, accounts, keys and
/// addresses are there.
pub(super) fn an_old_root(host: &TestHost) -> anyhow::Result<()> {
    let _outside = Outside::join()?;
    let archive = repo::source_root().join(OLD_ROOT);
    if !archive.is_file() {
        return Err(skip("the source tree is not here"));
    }
    let (archive, root) = (archive.to_string_lossy(), host.root().to_string_lossy());
    Cmd::new("tar", ["-xzf", &archive, "-C", &root]).ok()?;
    let token = std::fs::read_to_string(host.root().join("var/lib/rkube/token"))?;
    let (server, kubectl) = host.server(&[])?;
    kubectl.says("get configmap old -n kept -o jsonpath={.data.key}", "value")?;
    kubectl.says("get secret old -n kept -o jsonpath={.data.key}", "dmFsdWU=")?;
    kubectl.says(
        "get service old -n kept -o jsonpath={.spec.clusterIP}",
        "10.43.7.7",
    )?;
    kubectl.says("get deployment old -n kept", "0/0")?;
    // A token of its account, signed with the key that was kept.
    let account = kubectl.line("get configmap old -n kept -o jsonpath={.data.token}")?;
    let who = format!(
        "auth whoami --token={} --kubeconfig=/dev/null --server=https://127.0.0.1:6443 \
         --insecure-skip-tls-verify",
        account.trim()
    );
    kubectl.says(&who, "system:serviceaccount:kept:old")?;
    // Its addresses are known to be taken.
    let again = "create service clusterip new -n kept --tcp=80:80 --clusterip=10.43.7.7";
    kubectl.refuses(again, "already allocated")?;
    let now = std::fs::read_to_string(host.root().join("var/lib/rkube/token"))?;
    ensure!(now == token, "the token has changed");
    server.end()
}

/// What old clients wait for (`--legacy-service-account-tokens`): every
/// account has a Secret with a token, which is good as long as that is there.
pub(super) fn legacy_tokens(host: &TestHost) -> anyhow::Result<()> {
    let _outside = Outside::join()?;
    let (server, kubectl) = host.server(&["--legacy-service-account-tokens"])?;
    kubectl.line("create serviceaccount old")?;
    let account = kubectl.wait(
        "an account's Secret",
        &["serviceaccount", "old"],
        |account| account["secrets"].as_array().is_some_and(|s| s.len() == 1),
    )?;
    let name = account["secrets"][0]["name"]
        .as_str()
        .context("a name")?
        .to_owned();
    let data = ["secret", &name];
    let secret = kubectl.wait("a token", &data, |secret| {
        secret["data"]["token"].is_string()
    })?;
    ensure!(secret["data"]["ca.crt"].is_string(), "{secret:#}");
    let token = format!("get secret {name} -o go-template={{{{.data.token|base64decode}}}}");
    let token = kubectl.line(&token)?;
    let who = format!(
        "auth whoami --token={} --kubeconfig=/dev/null --server=https://127.0.0.1:6443 \
         --insecure-skip-tls-verify",
        token.trim()
    );
    kubectl.says(&who, "system:serviceaccount:default:old")?;
    // One that goes is made again, with another token.
    kubectl.line(&format!("delete secret {name}"))?;
    kubectl.refuses(&who, "")?;
    kubectl.wait("another Secret", &data, |secret| {
        secret["data"]["token"].is_string()
    })?;
    kubectl.line("delete serviceaccount old")?;
    until("an end of the Secret", PATIENCE, || {
        let gone = kubectl.refuses(&format!("get secret {name}"), "NotFound");
        Ok(gone.is_ok().then_some(()))
    })?;
    server.end()
}

/// kube-rs drives the server (`tests/kube-rs`, built by `make soak`).
pub(super) fn kube_rs(host: &TestHost) -> anyhow::Result<()> {
    let program: PathBuf = repo::target_dir().join("kube-rs/debug/rkube-kube-rs");
    if !program.is_file() {
        return Err(skip("rkube-kube-rs is not built; make soak builds it"));
    }
    let _outside = Outside::join()?;
    import(host)?;
    let (server, _) = host.server(&[])?;
    Cmd::new(&program, [""; 0])
        .env("KUBECONFIG", host.root().join("etc/rkube/admin.conf"))
        .within(Duration::from_secs(240))
        .ok()?;
    server.end()
}
