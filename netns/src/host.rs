//! One instance's pod network on this host.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rkube_nft::object::{TABLE_F_OWNER, TABLE_F_PERSIST};
use rkube_nft::query;
use rkube_nft::{Batch, Element, Family, Protocol, Socket, Table, conntrack};
use rustix::io::Errno;

use crate::attach::{AttachRequest, Attachment, HostPort, Plan, Proto};
use crate::base::{
    check_overlap, comment, is_own_table, open_journal, outlast_owner, owned_or, set_sysctls,
    uplink_mtu,
};
use crate::error::Error;
use crate::ipam::{Ipam, Lease};
use crate::journal::{Journal, PodRecord};
use crate::names::{Iid, check_pod_id};
use crate::route::{Requests, RouteSocket};
use crate::ruleset::{self, Base4And6};
use crate::sysctl;
use crate::wiring::{self, Shared};

/// How many names are tried when pods' hashes meet.
const LINK_NAME_ATTEMPTS_MAX: u32 = 16;
/// How often, and how long apart, a new link is asked for its carrier.
const CARRIER_QUERIES_MAX: u32 = 2000;
const CARRIER_QUERY_PAUSE: Duration = Duration::from_micros(500);
const JOURNAL_NAME: &str = "net.journal";
/// How an instance's pod network is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostConfig {
    /// Instance id.
    pub iid: Iid,
    /// Name of the nftables table (family inet).
    pub table: String,
    /// Folder of the journal; made if missing.
    pub state_dir: PathBuf,
    /// Pod range.
    pub v4: Ipv4Net,
    /// IPv6 pod range; unused on hosts without IPv6.
    pub v6: Option<Ipv6Net>,
    /// MTU of pods in bytes instead of the uplink's.
    pub mtu: Option<u32>,
    /// Ranges of pods on all nodes together: pods reach these under their own
    /// addresses, everything else under the host's.
    pub cluster: Vec<IpNet>,
}

impl HostConfig {
    /// The defaults of an instance.
    #[must_use]
    pub fn new(iid: Iid, table: &str, state_dir: &Path) -> Self {
        Self {
            iid,
            table: table.to_owned(),
            state_dir: state_dir.to_owned(),
            v4: iid.default_v4(),
            v6: Some(iid.default_v6()),
            mtu: None,
            cluster: Vec::new(),
        }
    }

    pub(crate) fn journal_path(&self) -> PathBuf {
        self.state_dir.join(JOURNAL_NAME)
    }
}

/// What [`Host::adopt`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AdoptReport {
    /// Pods whose links are there, by id.
    pub attached: BTreeMap<String, Attachment>,
    /// Recorded pods whose network namespace is gone; to be detached.
    pub lost: Vec<String>,
}

/// One instance's pod network. Calls may come from any thread of the host's
/// network namespace; they take turns where the kernel would make them.
#[derive(Debug)]
pub struct Host {
    config: HostConfig,
    v6: Option<Ipv6Net>,
    shared: Shared,
    notes: Vec<String>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    route: RouteSocket,
    nft: Socket,
    journal: Journal,
    ipam: Ipam,
    mtu: u32,
}

/// Whether the kernel has nf_tables, loaded by the question where it is a
/// module.
#[must_use]
pub fn has_nf_tables() -> bool {
    let asked = Socket::open(Protocol::Netfilter).and_then(|mut s| query::tables(&mut s));
    // No netfilter socket at all; a subsystem that nfnetlink does not know
    // (nfnetlink_rcv_msg). Another refusal is told where a table meets it.
    let errno = asked.err().and_then(|e| e.errno());
    !matches!(
        errno,
        Some(Errno::PROTONOSUPPORT | Errno::INVAL | Errno::OPNOTSUPP)
    )
}

impl Host {
    /// Sets the base up: range check, forwarding, nftables table. May be
    /// repeated; pods of the journal keep their addresses and host ports.
    ///
    /// # Errors
    /// [`Error::RangeOverlap`] and [`Error::RangeTooSmall`] before any change;
    /// [`Error::TableOwned`] if another process is this instance's writer;
    /// [`Error::Journal`], [`Error::Sysctl`], [`Error::Netlink`].
    pub fn open(config: HostConfig) -> Result<Self, Error> {
        let mut notes = Vec::new();
        let v6 = config.v6.filter(|_| sysctl::has_ipv6());
        if config.v6.is_some() && v6.is_none() {
            notes.push("IPv6 is disabled on this host: pods have IPv4 only".to_owned());
        }
        let mut ipam = Ipam::new(config.v4, v6)?;
        let mut route = RouteSocket::open()?;
        check_overlap(&mut route, config.v4.into(), config.iid.group())?;
        if let Some(v6) = v6 {
            check_overlap(&mut route, v6.into(), config.iid.group())?;
        }
        let mut nft = Socket::open(Protocol::Netfilter)?;
        // Before the journal is touched: it has one writer at a time.
        let tables = outlast_owner(|| {
            let tables = query::tables(&mut nft)?;
            let ours = tables
                .iter()
                .find(|table| is_own_table(table, &config.table));
            match ours.and_then(|table| table.owner) {
                Some(owner) => Err(Error::TableOwned {
                    table: config.table.clone(),
                    owner,
                }),
                None => Ok(tables),
            }
        })?;
        let journal = open_journal(&config)?;
        if let Some(lease) = journal.state().cursor {
            ipam.resume_behind(lease);
        }
        for (pod, record) in &journal.state().pods {
            ipam.keep(pod, record.attachment.lease())?;
        }
        let shared = Shared {
            gateway_v4: ipam.gateway_v4(),
            gateway_v6: ipam.gateway_v6(),
            host_mac: config.iid.host_mac(),
            group: config.iid.group(),
        };
        let mtu = uplink_mtu(&mut route, config.mtu)?;
        let mut inner = Inner {
            route,
            nft,
            journal,
            ipam,
            mtu,
        };
        set_sysctls(
            &config,
            &mut inner.route,
            &mut inner.journal,
            v6.is_some(),
            &tables,
        )?;
        let host = Self {
            config,
            v6,
            shared,
            notes,
            inner: Mutex::new(inner),
        };
        host.install_table(&mut host.lock())?;
        Ok(host)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The state is journalled and every operation is undone or recorded,
        // so a panic elsewhere leaves nothing half-done in memory.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Odd but handled properties of this host, in words.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The IPv6 pod range, if the host has IPv6.
    #[must_use]
    pub fn v6_range(&self) -> Option<Ipv6Net> {
        self.v6
    }

    /// The host's address towards pods, and its name inside them.
    #[must_use]
    pub fn gateway(&self) -> Lease {
        Lease {
            v4: self.shared.gateway_v4,
            v6: self.shared.gateway_v6,
        }
    }

    /// The pod's attachment, if it is attached.
    #[must_use]
    pub fn attachment(&self, pod: &str) -> Option<Attachment> {
        self.lock()
            .journal
            .state()
            .pods
            .get(pod)
            .map(|record| record.attachment.clone())
    }

    /// Wires a pod. On error nothing stays behind.
    ///
    /// # Errors
    /// [`Error::HostPortTaken`], [`Error::RangeExhausted`] and the like before
    /// any change; else [`Error::Netlink`], [`Error::Journal`] or
    /// [`Error::EnterNamespace`].
    pub fn attach(&self, request: &AttachRequest<'_>) -> Result<Attachment, Error> {
        let record = {
            let mut inner = self.lock();
            let record = self.prepare(
                &inner,
                request.pod,
                request.addresses,
                request.host_ports,
                request.mtu,
            )?;
            if inner.journal.state().pods.contains_key(request.pod) {
                self.detach_locked(&mut inner, request.pod)?;
            }
            inner.ipam.assign(request.pod, record.attachment.lease())?;
            if let Err(error) = inner.journal.attach(request.pod, record.clone()) {
                inner.ipam.release(request.pod);
                return Err(error);
            }
            let wired = self.wire_host_side(&mut inner, request, &record);
            if let Err(error) = wired {
                self.undo(&mut inner, request.pod, &record);
                return Err(error);
            }
            record
        };
        // The inside of the pod needs no lock: only this pod is concerned.
        let wired = wiring::pod_side(request.netns, &record.attachment, self.shared.host_mac)
            .and_then(|()| self.await_carrier(&record.attachment.host_if));
        if let Err(error) = wired {
            self.undo(&mut self.lock(), request.pod, &record);
            return Err(error);
        }
        Ok(record.attachment)
    }

    /// Waits until the host's side transmits.
    ///
    /// It came up before its peer and so without a carrier; when the peer
    /// follows, the kernel enables transmission from a work queue, and drops
    /// every packet until then: a first TCP connection would take a second.
    /// From 6.8 on a query makes it catch up at once; before that it takes a
    /// moment that no acknowledgement tells the end of.
    fn await_carrier(&self, name: &str) -> Result<(), Error> {
        for _ in 0..CARRIER_QUERIES_MAX {
            let link = self.lock().route.link(name)?;
            if link
                .ok_or_else(|| Error::LinkMissing {
                    name: name.to_owned(),
                })?
                .operational
            {
                return Ok(());
            }
            std::thread::sleep(CARRIER_QUERY_PAUSE);
        }
        tracing::warn!(
            link = name,
            "no carrier yet: first packets to the pod may be lost"
        );
        Ok(())
    }

    /// What [`attach`](Self::attach) would do now, without doing it.
    ///
    /// # Errors
    /// Those that `attach` gives before any change.
    pub fn plan(
        &self,
        pod: &str,
        addresses: Option<Lease>,
        host_ports: &[HostPort],
        mtu: Option<u32>,
    ) -> Result<Plan, Error> {
        let record = self.prepare(&self.lock(), pod, addresses, host_ports, mtu)?;
        Ok(wiring::plan(&self.shared, pod, &record, &self.config.table))
    }

    /// Checks a request and decides everything about it; changes nothing.
    fn prepare(
        &self,
        inner: &Inner,
        pod: &str,
        addresses: Option<Lease>,
        host_ports: &[HostPort],
        mtu: Option<u32>,
    ) -> Result<PodRecord, Error> {
        check_pod_id(pod)?;
        let lease = match addresses.or_else(|| inner.ipam.lease(pod)) {
            Some(lease) => lease,
            None => inner.ipam.peek()?,
        };
        for (index, port) in host_ports.iter().enumerate() {
            port.check(lease)?;
            if host_ports[..index]
                .iter()
                .any(|earlier| earlier.meets(port))
            {
                return Err(Error::BadHostPort {
                    port: port.to_string(),
                    reason: "the pod asks for it twice",
                });
            }
            for (other, record) in &inner.journal.state().pods {
                if other != pod && record.host_ports.iter().any(|theirs| theirs.meets(port)) {
                    return Err(Error::HostPortTaken {
                        port: port.to_string(),
                        pod: other.clone(),
                    });
                }
            }
        }
        let attachment = Attachment {
            host_if: self.free_link_name(inner, pod),
            v4: lease.v4,
            v6: lease.v6,
            mac: self.config.iid.pod_mac(pod),
            mtu: mtu.unwrap_or(inner.mtu),
        };
        Ok(PodRecord {
            attachment,
            host_ports: host_ports.to_vec(),
        })
    }

    fn free_link_name(&self, inner: &Inner, pod: &str) -> String {
        let taken = |name: &str| {
            inner
                .journal
                .state()
                .pods
                .iter()
                .any(|(other, record)| other != pod && record.attachment.host_if == name)
        };
        let names =
            (0..LINK_NAME_ATTEMPTS_MAX).map(|attempt| self.config.iid.host_link(pod, attempt));
        // 16 names of 32 bits all taken: then the kernel refuses the last.
        let mut last = String::new();
        for name in names {
            last = name;
            if !taken(&last) {
                break;
            }
        }
        last
    }

    fn wire_host_side(
        &self,
        inner: &mut Inner,
        request: &AttachRequest<'_>,
        record: &PodRecord,
    ) -> Result<(), Error> {
        let attachment = &record.attachment;
        let veth = wiring::veth(&self.shared, attachment, request.netns);
        let mut create = Requests::new();
        create.add_veth(&veth).get_link(veth.name);
        let mut made = inner.route.run(&create);
        if made
            .as_ref()
            .is_err_and(|error| error.errno() == Some(Errno::EXIST))
        {
            // A namespace of this sandbox's earlier life is still going away.
            if let Some(old) = inner.route.link(veth.name)? {
                inner.route.run(Requests::new().delete_link(old.index))?;
            }
            made = inner.route.run(&create);
        }
        let link = made?.into_iter().next().ok_or_else(|| Error::LinkMissing {
            name: attachment.host_if.clone(),
        })?;
        let mut requests = wiring::host_side(&self.shared, record, link.index);
        wiring::host_side_once(&self.shared, record, link.index, &mut requests);
        inner.route.run(&requests)?;
        let mut batch = Batch::new(Family::Inet, &self.config.table);
        for (set, element) in ruleset::pod_elements(record) {
            batch.add_elements(set, [&element]);
        }
        batch.commit(&mut inner.nft)?;
        // A client that kept sending to the port before it led here has an
        // untranslated connection that would keep it away.
        forget_udp(&mut inner.nft, record, |connection, port, _| {
            let (orig, reply) = (&connection.orig, &connection.reply);
            orig.dst_port == port.host_port
                && (orig.src, orig.dst) == (reply.dst, reply.src)
                && port.only().is_none_or(|ip| ip == orig.dst)
        })
    }

    /// Removes all of a pod whose attach did not succeed.
    fn undo(&self, inner: &mut Inner, pod: &str, record: &PodRecord) {
        let name = &record.attachment.host_if;
        let link = inner.route.link(name).and_then(|link| match link {
            Some(link) => inner
                .route
                .run(Requests::new().delete_link(link.index))
                .map(drop),
            None => Ok(()),
        });
        if let Err(error) = link.and_then(|()| self.detach_locked(inner, pod)) {
            // Stays in the journal: detach or reset finds it.
            tracing::error!(pod, %error, "undo an attach");
        }
    }

    /// Takes a pod's host ports and addresses back; an unknown pod is fine.
    /// Its link goes with its network namespace.
    ///
    /// # Errors
    /// [`Error::Netlink`], [`Error::Journal`]; the pod is then still recorded
    /// and may be detached again.
    pub fn detach(&self, pod: &str) -> Result<(), Error> {
        self.detach_locked(&mut self.lock(), pod)
    }

    fn detach_locked(&self, inner: &mut Inner, pod: &str) -> Result<(), Error> {
        let Some(record) = inner.journal.state().pods.get(pod).cloned() else {
            return Ok(());
        };
        self.delete_elements(&mut inner.nft, &ruleset::pod_elements(&record))?;
        forget_udp(&mut inner.nft, &record, |connection, port, address| {
            connection.reply.src == address && connection.reply.src_port == port.container_port
        })?;
        inner.journal.release(pod)?;
        inner.ipam.release(pod);
        Ok(())
    }

    /// Deletes elements; those that are missing already are fine.
    fn delete_elements(
        &self,
        nft: &mut Socket,
        elements: &[(&'static str, Element)],
    ) -> Result<(), Error> {
        let batch_of = |elements: &[(&'static str, Element)]| {
            let mut batch = Batch::new(Family::Inet, &self.config.table);
            for (set, element) in elements {
                batch.delete_elements(set, [&Element::key(element.key)]);
            }
            batch
        };
        match batch_of(elements).commit(nft) {
            Err(error) if error.errno() == Some(Errno::NOENT) => {}
            other => return Ok(other?),
        }
        for element in elements {
            match batch_of(std::slice::from_ref(element)).commit(nft) {
                Err(error) if error.errno() == Some(Errno::NOENT) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Makes the host's side be what the journal says, after a restart or
    /// after someone else's changes: the table and every attached pod's link
    /// settings, addresses, routes and neighbours.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn adopt(&self) -> Result<AdoptReport, Error> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let tables = query::tables(&mut inner.nft)?;
        set_sysctls(
            &self.config,
            &mut inner.route,
            &mut inner.journal,
            self.v6.is_some(),
            &tables,
        )?;
        self.install_table(inner)?;
        inner.mtu = uplink_mtu(&mut inner.route, self.config.mtu)?;
        let links = inner.route.links()?;
        let mut report = AdoptReport::default();
        for (pod, record) in &inner.journal.state().pods {
            let name = &record.attachment.host_if;
            let Some(link) = links
                .iter()
                .find(|l| l.name == *name && l.group == self.shared.group)
            else {
                report.lost.push(pod.clone());
                continue;
            };
            inner
                .route
                .run(&wiring::host_side(&self.shared, record, link.index))?;
            let mut once = Requests::new();
            wiring::host_side_once(&self.shared, record, link.index, &mut once);
            match inner.route.run(&once) {
                Err(error) if error.errno() == Some(Errno::EXIST) => {}
                other => drop(other?),
            }
            report
                .attached
                .insert(pod.clone(), record.attachment.clone());
        }
        Ok(report)
    }

    /// Replaces the table by rules and the journal's elements, atomically.
    fn install_table(&self, inner: &mut Inner) -> Result<(), Error> {
        let name = &self.config.table;
        let base = Base4And6 {
            v4: self.config.v4.trunc(),
            v6: self.v6,
            group: self.shared.group,
            cluster: self.config.cluster.clone(),
            kept: inner.ipam.foreign(),
        };
        let comment = comment(&self.config, &inner.journal);
        let mut table = Table {
            family: Family::Inet,
            name: name.clone(),
            flags: 0,
            comment: Some(comment),
        };
        // Kernels before 6.9 know no owner that outlives its process.
        for flags in [TABLE_F_OWNER | TABLE_F_PERSIST, 0] {
            table.flags = flags;
            let mut batch = Batch::new(Family::Inet, name);
            ruleset::install(&mut batch, &table, &base);
            for record in inner.journal.state().pods.values() {
                for (set, element) in ruleset::pod_elements(record) {
                    batch.add_elements(set, [&element]);
                }
            }
            match batch.commit(&mut inner.nft) {
                Err(error)
                    if flags != 0
                        && matches!(error.errno(), Some(Errno::OPNOTSUPP | Errno::INVAL)) =>
                {
                    tracing::debug!(%error, "nftables tables cannot be owned and persistent here");
                }
                Err(error) => return Err(owned_or(error, &mut inner.nft, name)),
                Ok(()) => break,
            }
        }
        Ok(())
    }
}

/// Forgets UDP connections of a pod's host ports that `choose` picks, given
/// the port and the pod's address of the connection's family.
pub(crate) fn forget_udp(
    nft: &mut Socket,
    record: &PodRecord,
    choose: impl Fn(&conntrack::Connection, &HostPort, IpAddr) -> bool,
) -> Result<(), Error> {
    for address in record.attachment.addresses() {
        let v6 = address.is_ipv6();
        let ports: Vec<_> = record
            .host_ports
            .iter()
            .filter(|port| port.proto == Proto::Udp && port.serves(v6))
            .collect();
        if !ports.is_empty() {
            conntrack::forget(nft, v6, Proto::Udp.number(), |connection| {
                ports.iter().any(|port| choose(connection, port, address))
            })?;
        }
    }
    Ok(())
}
