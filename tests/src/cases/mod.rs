//! The cases, one file per topic.
//!
//! A topic's file has a `cases()` that lists them; a new file needs one line
//! below and nothing else.

use crate::case::Case;

mod again;
mod chaos;
mod environment;
mod exec;
mod images;
mod injected;
mod join;
mod lacking;
mod lifecycle;
mod limits;
mod links;
mod logs;
mod machine;
mod namespaces;
mod network;
mod oci;
mod ocifields;
mod pair;
mod podman;
mod powercut;
mod probes;
mod registry;
mod run;
mod security;
mod selftest;
mod server;
mod systemd;
mod unified;
mod vms;
mod volumes;
mod writer;

/// Every case, of every layout and place.
pub fn all() -> Vec<Case> {
    [
        again::cases(),
        chaos::cases(),
        environment::cases(),
        exec::cases(),
        images::cases(),
        host_only(injected::cases()),
        join::cases(),
        lacking::cases(),
        lifecycle::cases(),
        limits::cases(),
        links::cases(),
        logs::cases(),
        machine::cases(),
        namespaces::cases(),
        network::cases(),
        oci::cases(),
        ocifields::cases(),
        pair::cases(),
        host_only(podman::cases()),
        powercut::cases(),
        probes::cases(),
        host_only(registry::cases()),
        run::cases(),
        security::cases(),
        selftest::cases(),
        host_only(server::cases()),
        systemd::cases(),
        unified::cases(),
        volumes::cases(),
        writer::cases(),
    ]
    .concat()
    .into_iter()
    .map(vms::placed)
    .collect()
}

/// These drive programs that guests lack.
fn host_only(cases: Vec<Case>) -> Vec<Case> {
    cases.into_iter().map(Case::host_only).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_unique_and_have_a_topic() {
        let mut seen = std::collections::BTreeSet::new();
        for case in super::all() {
            assert!(case.name.contains("::"), "{}: no topic", case.name);
            assert!(seen.insert(case.name), "{}: twice", case.name);
        }
    }
}
