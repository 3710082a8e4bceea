//! The table in the kernel: one socket, atomic changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use rkube_nft::object::{TABLE_F_OWNER, TABLE_F_PERSIST};
use rkube_nft::{Batch, Element, Family, Protocol, Socket, Table as NftTable, Value, query};
use rustix::io::Errno;

use crate::error::Error;
use crate::flows;
use crate::maps::{FAMILIES, Map, element, place};
use crate::model::{Choice, Data, Entry, Front, Key};
use crate::ruleset::{Facts, add_choice, install};
use crate::state::{Delta, choices};

/// First word of the table's comment.
const COMMENT_MARK: &str = "rkube-proxy";
/// How long a process that ends may still own the table.
const OWNER_WAIT: Duration = Duration::from_secs(2);
const OWNER_PAUSE: Duration = Duration::from_millis(10);
/// Most chains that no Service uses any more; beyond, the table is made anew.
pub const SPARE_CHAINS_MAX_COUNT: usize = 256;

/// The programmed table.
#[derive(Debug)]
pub struct Table {
    socket: Socket,
    name: String,
    facts: Facts,
    chains: BTreeSet<Choice>,
    own: bool,
}

impl Table {
    /// Opens a socket in this network namespace; changes nothing.
    ///
    /// # Errors
    /// [`Error::Table`]; [`Error::Owned`] if another process has the table.
    pub fn open(name: &str, facts: Facts, own: bool) -> Result<Self, Error> {
        let failed = |source| Error::Table {
            table: name.to_owned(),
            source,
        };
        let mut socket = Socket::open(Protocol::Netfilter).map_err(failed)?;
        let start = std::time::Instant::now();
        loop {
            let table = query::table(&mut socket, Family::Inet, name).map_err(failed)?;
            let Some(owner) = table.and_then(|table| table.owner) else {
                break;
            };
            if start.elapsed() > OWNER_WAIT {
                let table = name.to_owned();
                return Err(Error::Owned { table, owner });
            }
            std::thread::sleep(OWNER_PAUSE);
        }
        Ok(Self {
            socket,
            name: name.to_owned(),
            facts,
            chains: BTreeSet::new(),
            own,
        })
    }

    /// Whether the kernel keeps others from changing the table, found out by
    /// a table of another name which is not there before and after.
    ///
    /// # Errors
    /// [`Error::Table`].
    pub fn can_be_owned(&mut self) -> Result<bool, Error> {
        let name = format!("{}-probe", self.name);
        let mut batch = Batch::new(Family::Inet, &name);
        let table = NftTable {
            family: Family::Inet,
            name: name.clone(),
            flags: TABLE_F_OWNER | TABLE_F_PERSIST,
            comment: None,
        };
        batch.add_table(&table).delete_table();
        match batch.commit(&mut self.socket) {
            Ok(()) => Ok(true),
            Err(error) if is_no_owner(&error) => Ok(false),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// The port of the socket that changes the table.
    ///
    /// # Errors
    /// [`Error::Table`].
    pub fn port(&self) -> Result<u32, Error> {
        self.socket.port().map_err(|source| self.failed(source))
    }

    fn failed(&self, source: rkube_nft::Error) -> Error {
        let table = self.name.clone();
        Error::Table { table, source }
    }

    /// Replaces everything by rules and these elements, in one transaction:
    /// no packet sees anything between the old and the new.
    ///
    /// # Errors
    /// [`Error::Table`]; the old table is then as it was.
    pub fn install(&mut self, all: &[Entry]) -> Result<(), Error> {
        let wanted = choices(all.iter().map(|(_, data)| data));
        // Kernels before 6.9 know no owner that outlives its process.
        let flags = [TABLE_F_OWNER | TABLE_F_PERSIST, 0];
        for flags in &flags[usize::from(!self.own)..] {
            let table = NftTable {
                family: Family::Inet,
                name: self.name.clone(),
                flags: *flags,
                comment: Some(COMMENT_MARK.to_owned()),
            };
            let mut batch = Batch::new(Family::Inet, &self.name);
            install(&mut batch, &table, &self.facts);
            for choice in &wanted {
                add_choice(&mut batch, choice, &self.facts);
            }
            add(&mut batch, all);
            match batch.commit(&mut self.socket) {
                Err(error) if *flags != 0 && is_no_owner(&error) => {
                    tracing::debug!(%error, "nftables tables cannot be owned and persistent here");
                }
                Err(error) => return Err(self.failed(error)),
                Ok(()) => break,
            }
        }
        self.chains = wanted;
        Ok(())
    }

    /// Whether so many chains are unused that a new installation is due.
    #[must_use]
    pub fn has_too_many_spare_chains(&self, used: usize) -> bool {
        self.chains.len() > used.saturating_add(SPARE_CHAINS_MAX_COUNT)
    }

    /// Whether there are so many chains that it is worth to count.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.chains.len() > SPARE_CHAINS_MAX_COUNT
    }

    /// Makes a difference, in one transaction; then forgets the clients and
    /// the UDP flows that it left at endpoints which are gone.
    ///
    /// # Errors
    /// [`Error::Table`]. The elements are then as they were, if the first
    /// step was refused.
    pub fn apply(&mut self, delta: &Delta) -> Result<(), Error> {
        let mut batch = Batch::new(Family::Inet, &self.name);
        let new: Vec<Choice> = choices(delta.add.iter().map(|(_, data)| data))
            .into_iter()
            .filter(|choice| !self.chains.contains(choice))
            .collect();
        for choice in &new {
            add_choice(&mut batch, choice, &self.facts);
        }
        for ((map, family), elements) in by_map(&delta.remove, false) {
            batch.delete_elements(&map.name(FAMILIES[family]), &elements);
        }
        add(&mut batch, &delta.add);
        batch
            .commit(&mut self.socket)
            .map_err(|source| self.failed(source))?;
        self.chains.extend(new);
        self.forget_clients(delta)?;
        flows::forget(&mut self.socket, delta).map_err(|source| self.failed(source))
    }

    /// Clients whose endpoint is gone choose anew with their next connection;
    /// their old choice would keep them from staying at the new one.
    fn forget_clients(&mut self, delta: &Delta) -> Result<(), Error> {
        // Only fronts where clients stay have picks.
        let stay: BTreeSet<Front> = delta
            .remove
            .iter()
            .filter_map(|(key, _)| match key {
                Key::Pick(front, _) => Some(*front),
                _ => None,
            })
            .collect();
        if stay.is_empty() {
            return Ok(());
        }
        let kept: BTreeSet<Key> = delta.add.iter().map(|(key, _)| *key).collect();
        let gone: BTreeSet<(Front, u16)> = delta
            .remove
            .iter()
            .filter(|(key, _)| !kept.contains(key))
            .filter_map(|(key, _)| match key {
                Key::Endpoint(front, number) => Some((*front, *number)),
                _ => None,
            })
            .filter(|(front, _)| stay.contains(front))
            .collect();
        for (family, fields) in FAMILIES.into_iter().enumerate() {
            for node in [false, true] {
                let here: BTreeSet<(Vec<u8>, u32)> = gone
                    .iter()
                    .filter(|(front, _)| {
                        usize::from(front.is_v6()) == family
                            && matches!(front, Front::Node { .. }) == node
                    })
                    .map(|(front, number)| (front_bytes(front), u32::from(*number)))
                    .collect();
                if here.is_empty() {
                    continue;
                }
                let map = Map::clients(node).name(fields);
                let found = query::elements(&mut self.socket, Family::Inet, &self.name, &map)
                    .map_err(|source| self.failed(source))?;
                let saddr = usize::from(fields.words) * 4;
                let stale = found.into_iter().filter(|client| {
                    let number = client.data.first_chunk().map(|n| u32::from_ne_bytes(*n));
                    let front = client.key.get(saddr..).unwrap_or(&[]).to_vec();
                    number.is_some_and(|number| here.contains(&(front, number)))
                });
                for client in stale {
                    let element = Element::key(Value::new().field(&client.key));
                    let mut batch = Batch::new(Family::Inet, &self.name);
                    batch.delete_elements(&map, [&element]);
                    match batch.commit(&mut self.socket) {
                        // Its time was over meanwhile.
                        Err(error) if error.errno() == Some(Errno::NOENT) => {}
                        other => other.map_err(|source| self.failed(source))?,
                    }
                }
            }
        }
        Ok(())
    }

    /// Deletes the table.
    ///
    /// # Errors
    /// [`Error::Table`]. A table that is not there is fine.
    pub fn delete(&mut self) -> Result<(), Error> {
        let mut batch = Batch::new(Family::Inet, &self.name);
        batch.delete_table();
        match batch.commit(&mut self.socket) {
            Err(error) if error.errno() == Some(Errno::NOENT) => Ok(()),
            other => other.map_err(|source| self.failed(source)),
        }
    }
}

/// Kernels before 6.9 know no owner that outlives its process.
fn is_no_owner(error: &rkube_nft::Error) -> bool {
    matches!(error.errno(), Some(Errno::OPNOTSUPP | Errno::INVAL))
}

/// The key of a front as it lies in the maps.
fn front_bytes(front: &Front) -> Vec<u8> {
    let value = match front {
        Front::Address(ip, ..) => Value::new().ip(*ip),
        Front::Node { .. } => Value::new(),
    };
    let value = value.proto(front.protocol().number()).port(front.port());
    value.padded().as_bytes().to_vec()
}

fn by_map(entries: &[Entry], with_data: bool) -> BTreeMap<(Map, usize), Vec<Element>> {
    let mut maps: BTreeMap<(Map, usize), Vec<Element>> = BTreeMap::new();
    for entry in entries {
        let elements = maps.entry(place(&entry.0)).or_default();
        elements.push(element(entry, with_data));
    }
    maps
}

fn add(batch: &mut Batch, entries: &[Entry]) {
    for ((map, family), elements) in by_map(entries, true) {
        batch.add_elements(&map.name(FAMILIES[family]), &elements);
    }
}

/// Addresses of endpoints of UDP fronts in some entries.
pub(crate) fn udp_endpoints(entries: &[Entry]) -> BTreeSet<(Front, (IpAddr, u16))> {
    entries
        .iter()
        .filter_map(|(key, data)| match (key, data) {
            (Key::Endpoint(front, _), Data::Endpoint(endpoint)) => {
                Some((*front, (endpoint.ip(), endpoint.port())))
            }
            _ => None,
        })
        .filter(|(front, _)| front.protocol() == crate::model::Protocol::Udp)
        .collect()
}
