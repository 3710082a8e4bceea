//! The files of a pod that rkube writes: hosts, resolv.conf, hostname.

use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rkube_engine::api::ContainerRuntime;

use super::actions::chain;
use super::{Shared, Worker, lock};
use crate::downward::Facts;
use crate::events::Severity;
use crate::files::{hosts, resolv};
use crate::objects::Objects;
use crate::pod;
use crate::translate::sandbox;
use crate::volumes;

/// The most of the host's /etc/hosts that is passed on.
const MAX_HOSTS_BYTES: u64 = 1024 * 1024;

impl<R: ContainerRuntime> Worker<R> {
    pub(super) fn hosts_text(&self) -> String {
        let mut own = String::new();
        if pod::host_network(&self.desired.pod)
            && let Ok(file) = std::fs::File::open("/etc/hosts")
        {
            // A file that is no UTF-8 is left out; it is the host's matter.
            let _ = file.take(MAX_HOSTS_BYTES).read_to_string(&mut own);
        }
        let uid = self.uid();
        let peers: Vec<hosts::Peer> = match &self.wanted.group {
            None => Vec::new(),
            Some(group) => lock(&self.shared.groups)
                .get(group)
                .into_iter()
                .flatten()
                .filter(|(other, _)| *other != uid)
                .flat_map(|(_, member)| member.peers.clone())
                .collect(),
        };
        hosts::render(
            &self.desired.pod,
            &self.shared.node,
            &self.addresses(),
            &own,
            &peers,
        )
    }

    /// Writes /etc/hosts in place, since containers have the file itself
    /// mounted.
    pub(super) fn write_hosts(&self) {
        let path = self.shared.paths.pod(self.uid()).join("etc-hosts");
        if let Err(error) = write_in_place(&path, self.hosts_text().as_bytes()) {
            tracing::warn!(pod = %self.name(), path = %path.display(), %error, "the hosts file is not written");
        }
    }
}

fn write_in_place(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .open(path)?;
    file.write_all(bytes)?;
    file.set_len(u64::try_from(bytes.len()).unwrap_or(u64::MAX))?;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

/// Makes directories, files and volumes of the pod.
pub(super) fn prepare<R>(
    shared: &Shared<R>,
    facts: Facts<'_>,
    objects: &Objects,
    hosts: &str,
) -> Result<(), String> {
    let pod = facts.pod;
    let dir = shared.paths.pod(pod::uid(pod));
    let about = |what: &Path| {
        let what = what.display().to_string();
        move |e: std::io::Error| format!("write {what}: {e}")
    };
    for (_, container) in pod::containers(pod) {
        let logs = shared.paths.pod_logs(pod).join(&container.name);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&logs)
            .map_err(about(&logs))?;
    }
    let (conf, remarks) = resolv::for_pod(pod, facts.node, &resolv::of_host());
    for remark in remarks {
        let (reason, message) = match remark {
            resolv::Remark::MissingClusterDns => (
                "MissingClusterDNS",
                "dnsPolicy ClusterFirst without a cluster DNS: the host's resolvers are used",
            ),
            resolv::Remark::Cut => (
                "DNSConfigForming",
                "name servers or search domains beyond the limits are left out",
            ),
        };
        shared
            .journal
            .note(pod, None, Severity::Warning, reason, message);
    }
    let hostname = sandbox::sandbox(
        pod,
        &shared.node,
        &shared.paths,
        std::collections::BTreeMap::new(),
    )
    .map_or_else(|_| pod::hostname(pod), |config| config.hostname);
    for (name, text) in [
        ("etc-hosts", hosts.to_owned()),
        ("resolv.conf", conf.render()),
        ("hostname", format!("{hostname}\n")),
    ] {
        let path = dir.join(name);
        // The worker writes the hosts file itself once there are addresses.
        if name != "etc-hosts" || !path.exists() {
            write_in_place(&path, text.as_bytes()).map_err(about(&path))?;
        }
    }
    volumes::make(facts, objects, &shared.paths).map_err(|e| chain(&e))
}
