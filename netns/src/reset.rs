//! Leaves no trace: everything an instance ever did to the host, undone.

use std::path::Path;

use rkube_nft::{Batch, Family, Protocol, Socket, Table, query};
use rustix::io::Errno;

use crate::base::{SHARED_SYSCTLS, is_other_instance, open_journal, outlast_owner, owned_or};
use crate::error::Error;
use crate::host::{Host, HostConfig, forget_udp, has_nf_tables};
use crate::route::{Requests, RouteSocket};
use crate::sysctl;

impl Host {
    /// Removes every trace of an instance: table, links, connections of its
    /// UDP host ports, changed settings, journal. Needs no open [`Host`] and
    /// no intact journal; all is tried.
    ///
    /// # Errors
    /// [`Error::Several`] or the one error there was.
    pub fn reset(config: &HostConfig) -> Result<(), Error> {
        let mut errors = Vec::new();
        let mut note = |result: Result<(), Error>| errors.extend(result.err());
        let journal = if config.journal_path().exists() {
            Some(open_journal(config))
        } else {
            None
        };
        let mut others = Ok(false);
        match Socket::open(Protocol::Netfilter) {
            // A kernel without nf_tables has none of ours.
            _ if !has_nf_tables() => {}
            Err(error) => note(Err(error.into())),
            Ok(mut nft) => {
                note(outlast_owner(|| delete_table(&mut nft, &config.table)));
                others = query::tables(&mut nft)
                    .map(|tables| tables.iter().any(|table| is_other_instance(table, config)));
                if let Some(Ok(journal)) = &journal {
                    for record in journal.state().pods.values() {
                        note(forget_udp(&mut nft, record, |connection, port, address| {
                            connection.reply.src == address
                                && connection.reply.src_port == port.container_port
                        }));
                    }
                }
            }
        }
        note(RouteSocket::open().and_then(|mut route| {
            match route.run(Requests::new().delete_group(config.iid.group())) {
                Err(error) if error.errno() == Some(Errno::NODEV) => Ok(()),
                other => other.map(drop),
            }
        }));
        match (&journal, others) {
            (Some(Ok(journal)), Ok(others)) => {
                for (path, change) in &journal.state().sysctls {
                    let shared = SHARED_SYSCTLS
                        .iter()
                        .any(|(_, shared)| Path::new(shared) == path);
                    // The last instance to go puts shared settings back.
                    if !(shared && others) {
                        note(sysctl::restore(path, change));
                    }
                }
            }
            (_, Err(error)) => note(Err(error.into())),
            _ => {}
        }
        if let Some(Err(error)) = journal {
            note(Err(error));
        }
        note(remove_state(config));
        Error::collect(errors)
    }
}

fn remove_state(config: &HostConfig) -> Result<(), Error> {
    let path = config.journal_path();
    for path in [&path, &path.with_extension("new")] {
        match std::fs::remove_file(path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::Journal {
                    action: "remove",
                    path: path.clone(),
                    source,
                });
            }
            _ => {}
        }
    }
    // The folder may hold others' files; then it stays.
    let _ = std::fs::remove_dir(&config.state_dir);
    Ok(())
}

fn delete_table(nft: &mut Socket, name: &str) -> Result<(), Error> {
    let Some(found) = query::table(nft, Family::Inet, name)? else {
        return Ok(());
    };
    let mut batch = Batch::new(Family::Inet, name);
    // Taking an orphan over first is what makes its deletion ours to do.
    batch.add_table(&Table {
        family: Family::Inet,
        name: name.to_owned(),
        flags: found.flags,
        comment: None,
    });
    batch.delete_table();
    batch
        .commit(nft)
        .map_err(|error| owned_or(error, nft, name))
}
