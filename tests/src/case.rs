//! What one black-box test is.

use std::time::Duration;

use crate::host::TestHost;
use crate::layout::Layout;

/// How long a case may take where it says nothing else. Software emulation is
/// about ten times slower than the machine it runs on.
pub const CASE_DEADLINE_SECS: u64 = 120;

/// Where a case may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On a developer's host and in the VMs.
    Anywhere,
    /// Only on a developer's host: it drives programs that guests lack.
    Host,
    /// Only in a VM: it needs capabilities, modules or a kernel state that a
    /// shared host does not give.
    Vm,
    /// In a VM whose power is cut while the case runs: it never ends by itself
    /// and works in the lasting directory.
    BeforeCut,
    /// In the next boot on the same disk: it judges what lasted.
    AfterCut,
    /// In a VM whose kernel lacks what pods need.
    Lacking,
    /// In each of two VMs that a link joins.
    Pair,
}

/// What a run of the suite is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// Tests on a developer's host.
    #[default]
    Host,
    /// Tests in a VM: of each topic what this layout adds.
    Vm,
    /// Every test that can run in a VM.
    VmWhole,
    /// Work in a VM whose power will be cut.
    BeforeCut,
    /// Tests in the next boot on the same disk.
    AfterCut,
    /// Tests in a VM whose kernel lacks what pods need.
    Lacking,
    /// Tests in each of two VMs that a link joins.
    Pair,
}

impl Stage {
    const NAMES: [(Stage, &'static str); 7] = [
        (Stage::Host, "host"),
        (Stage::Vm, "vm"),
        (Stage::VmWhole, "vm-whole"),
        (Stage::BeforeCut, "before-cut"),
        (Stage::AfterCut, "after-cut"),
        (Stage::Lacking, "lacking"),
        (Stage::Pair, "pair"),
    ];

    /// The name used on command lines.
    pub fn as_str(self) -> &'static str {
        Self::NAMES
            .iter()
            .find(|(stage, _)| *stage == self)
            .map_or("", |(_, name)| name)
    }

    /// Whether it is one of those that judge a whole machine of a layout.
    pub fn in_vm(self) -> bool {
        matches!(self, Stage::Vm | Stage::VmWhole)
    }

    /// Whether it is one of the two around a power cut.
    pub fn around_cut(self) -> bool {
        matches!(self, Stage::BeforeCut | Stage::AfterCut)
    }
}

impl std::str::FromStr for Stage {
    type Err = anyhow::Error;

    fn from_str(s: &str) -> anyhow::Result<Stage> {
        let found = Self::NAMES
            .iter()
            .find(|(_, name)| *name == s)
            .map(|(stage, _)| *stage);
        found.ok_or_else(|| {
            let known: Vec<&str> = Self::NAMES.iter().map(|(_, name)| *name).collect();
            anyhow::anyhow!("stage {s:?}: known are {}", known.join(", "))
        })
    }
}

/// One black-box test.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// `topic::what_is_promised`, unique.
    pub name: &'static str,
    /// Layouts where the promise makes sense; elsewhere the case is not listed.
    pub layouts: &'static [Layout],
    /// Where it may run.
    pub place: Place,
    /// In a VM it runs on these layouts, where not everything is asked for: a
    /// boot is emulated, and takes seconds for each test.
    pub vms: &'static [Layout],
    /// Runs with no other case beside it: for measurements of time and load.
    pub alone: bool,
    /// After this long it is killed and has failed.
    pub deadline: Duration,
    /// The test itself. It fails by returning an error or by panicking.
    pub run: fn(&TestHost) -> anyhow::Result<()>,
}

impl Case {
    /// A case that runs anywhere, on every layout, beside others.
    pub const fn new(name: &'static str, run: fn(&TestHost) -> anyhow::Result<()>) -> Case {
        Case {
            name,
            layouts: Layout::ALL,
            place: Place::Anywhere,
            vms: Layout::ALL,
            alone: false,
            deadline: Duration::from_secs(CASE_DEADLINE_SECS),
            run,
        }
    }

    /// Only on these layouts.
    pub const fn on(mut self, layouts: &'static [Layout]) -> Case {
        self.layouts = layouts;
        self
    }

    /// Of the VMs, on these layouts, unless everything is asked for.
    pub const fn vms(mut self, layouts: &'static [Layout]) -> Case {
        self.vms = layouts;
        self
    }

    /// Only on a developer's host.
    pub const fn host_only(mut self) -> Case {
        self.place = Place::Host;
        self
    }

    /// Only in a VM.
    pub const fn vm_only(mut self) -> Case {
        self.place = Place::Vm;
        self
    }

    /// Works until the power is cut.
    pub const fn before_cut(mut self) -> Case {
        self.place = Place::BeforeCut;
        self
    }

    /// Judges what lasted through a power cut.
    pub const fn after_cut(mut self) -> Case {
        self.place = Place::AfterCut;
        self
    }

    /// In a VM whose kernel lacks what pods need.
    pub const fn lacking(mut self) -> Case {
        self.place = Place::Lacking;
        self
    }

    /// In each of two VMs that a link joins.
    pub const fn paired(mut self) -> Case {
        self.place = Place::Pair;
        self
    }

    /// With no other case beside it.
    pub const fn alone(mut self) -> Case {
        self.alone = true;
        self
    }

    /// With a deadline of its own.
    pub const fn within_secs(mut self, secs: u64) -> Case {
        self.deadline = Duration::from_secs(secs);
        self
    }

    /// Whether the case belongs to this layout and stage.
    pub fn applies(&self, layout: Layout, stage: Stage) -> bool {
        let here = match self.place {
            Place::Anywhere => stage == Stage::Host || stage.in_vm(),
            Place::Host => stage == Stage::Host,
            Place::Vm => stage.in_vm(),
            Place::BeforeCut => stage == Stage::BeforeCut,
            Place::AfterCut => stage == Stage::AfterCut,
            Place::Lacking => stage == Stage::Lacking,
            Place::Pair => stage == Stage::Pair,
        };
        let elsewhere = stage == Stage::Vm && !self.vms.contains(&layout);
        here && !elsewhere && self.layouts.contains(&layout)
    }
}

/// The error by which a case says that it cannot run here. It is no pass:
/// `tests/SKIPS` must list the case with its reason.
#[derive(Debug)]
pub struct Skip(pub String);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// Builds the error that skips a case: `return Err(skip("no IPv6 here"))`.
pub fn skip(reason: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Skip(reason.into()))
}

/// Builds the error for a program of the machine that a promise is tested
/// with: without it the case fails, so that nobody takes a run that tested
/// nothing for one that passed. Where [`repo::MAY_SKIP`] is set it is skipped.
///
/// [`repo::MAY_SKIP`]: crate::repo::MAY_SKIP
pub fn lacking(what: &str) -> anyhow::Error {
    if std::env::var_os(crate::repo::MAY_SKIP).is_some() {
        return skip(what);
    }
    anyhow::anyhow!(
        "{what}; install it, or set {}=1 to do without this case",
        crate::repo::MAY_SKIP
    )
}
