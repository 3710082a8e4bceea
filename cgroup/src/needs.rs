//! Which controllers a set of limits needs, and in which hierarchies a
//! group is made.

use oci_spec::runtime::LinuxResources;

use crate::apply::Extras;
use crate::hierarchy::{Controller, Hierarchy, Mode, Version};

/// A set of controllers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs(u16);

impl Needs {
    /// None.
    #[must_use]
    pub fn none() -> Self {
        Self(0)
    }

    /// These.
    #[must_use]
    pub fn these(controllers: &[Controller]) -> Self {
        Self(controllers.iter().fold(0, |set, c| set | c.bit()))
    }

    /// With these too.
    #[must_use]
    pub fn and(self, controllers: &[Controller]) -> Self {
        Self(self.0 | Self::these(controllers).0)
    }

    /// True if it is one of them.
    #[must_use]
    pub fn contains(self, controller: Controller) -> bool {
        self.0 & controller.bit() != 0
    }

    /// The controllers that `resources` and `extras` set something in.
    #[must_use]
    pub fn of(resources: &LinuxResources, extras: &Extras) -> Self {
        let mut needs = Vec::new();
        if resources.devices().as_ref().is_some_and(|d| !d.is_empty()) {
            needs.push(Controller::Devices);
        }
        if resources.memory().is_some() || extras.any_memory() {
            needs.push(Controller::Memory);
        }
        if let Some(cpu) = resources.cpu() {
            let set = |list: &Option<String>| list.as_ref().is_some_and(|text| !text.is_empty());
            if set(cpu.cpus()) || set(cpu.mems()) {
                needs.push(Controller::Cpuset);
            }
            let numbers = cpu.shares().is_some()
                || cpu.quota().is_some()
                || cpu.period().is_some()
                || cpu.idle().is_some()
                || cpu.burst().is_some()
                || cpu.realtime_period().is_some()
                || cpu.realtime_runtime().is_some();
            if numbers {
                needs.push(Controller::Cpu);
            }
        }
        if resources.pids().is_some() {
            needs.push(Controller::Pids);
        }
        if resources.block_io().is_some() {
            needs.push(Controller::Io);
        }
        if resources
            .hugepage_limits()
            .as_ref()
            .is_some_and(|list| !list.is_empty())
        {
            needs.push(Controller::Hugetlb);
        }
        if let Some(network) = resources.network() {
            if network.class_id().is_some_and(|id| id != 0) {
                needs.push(Controller::NetCls);
            }
            if network.priorities().as_ref().is_some_and(|p| !p.is_empty()) {
                needs.push(Controller::NetPrio);
            }
        }
        if resources.rdma().as_ref().is_some_and(|map| !map.is_empty()) {
            needs.push(Controller::Rdma);
        }
        for key in resources.unified().iter().flat_map(|map| map.keys()) {
            let prefix = key.split('.').next().unwrap_or(key);
            needs.extend(Controller::from_name(prefix, Version::V2));
        }
        Self::these(&needs)
    }
}

/// In which hierarchies a group gets a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// In all of them, as other runtimes do. On v2 the controllers given are
    /// the ones that must be enabled; every other one of the common set
    /// (cpu, cpuset, io, memory, pids, hugetlb) is enabled if it can be.
    All(Needs),
    /// Only where one of these is, and always in the v2 hierarchy and in
    /// named ones (`name=systemd`, so that no login session claims the
    /// processes); without v2 also in the freezer's, which stopping a group
    /// needs. Statistics come from these alone.
    Only(Needs),
}

/// What v2 groups get without being asked, for limits set later and for
/// statistics.
const COMMON: [Controller; 6] = [
    Controller::Cpu,
    Controller::Cpuset,
    Controller::Io,
    Controller::Memory,
    Controller::Pids,
    Controller::Hugetlb,
];

impl Select {
    /// The controllers that must be there.
    pub(crate) fn needs(self) -> Needs {
        match self {
            Select::All(needs) | Select::Only(needs) => needs,
        }
    }

    /// True if the group gets a directory in this hierarchy.
    pub(crate) fn takes(self, hierarchy: &Hierarchy, mode: Mode) -> bool {
        match self {
            Select::All(_) => true,
            Select::Only(needs) => {
                hierarchy.version() == Version::V2
                    || hierarchy.name().is_some()
                    || (mode == Mode::Legacy && hierarchy.has(Controller::Freezer))
                    || hierarchy.controllers().iter().any(|c| needs.contains(*c))
            }
        }
    }

    /// The v2 controllers to enable for the group, as far as the hierarchy
    /// has them.
    pub(crate) fn enable(self, v2: &Hierarchy) -> Vec<Controller> {
        let wanted = match self {
            Select::All(needs) => needs.and(&COMMON),
            Select::Only(needs) => needs,
        };
        v2.controllers()
            .iter()
            .copied()
            .filter(|c| wanted.contains(*c))
            .collect()
    }
}
