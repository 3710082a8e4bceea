//! What the kernel must have, looked for before anything is made: an error at
//! the start names it all, instead of one that a pod meets later.

use rkube_cgroup::{Controller, Hierarchies};

use crate::error::{Error, Result};

/// Controllers without which pods would run without their limits.
const CONTROLLERS: [Controller; 3] = [Controller::Cpu, Controller::Memory, Controller::Pids];

/// Something that this host's kernel lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// What, by its usual name: `overlayfs`, `memory controller`.
    pub what: String,
    /// What the user can do about it.
    pub remedy: String,
}

/// All that pods need and this host's kernel lacks. Modules that the kernel
/// loads by itself are loaded by the look.
#[must_use]
pub fn lacking(hierarchies: &Hierarchies) -> Vec<Lack> {
    let mut lacks = Vec::new();
    if !rkube_image::has_overlay() {
        lacks.push(Lack {
            what: "overlayfs".into(),
            remedy: "load the module overlay (CONFIG_OVERLAY_FS)".into(),
        });
    }
    for controller in hierarchies.missing(&CONTROLLERS) {
        lacks.push(Lack {
            what: format!("{controller} controller"),
            remedy: format!(
                "take cgroup_disable={controller} off the kernel command line, or add \
                 cgroup_enable={controller}"
            ),
        });
    }
    if !rkube_netns::has_nf_tables() {
        lacks.push(Lack {
            what: "nf_tables".into(),
            remedy: "load the module nf_tables (CONFIG_NF_TABLES)".into(),
        });
    }
    lacks
}

/// Refuses a host that lacks something.
pub(crate) fn demand(hierarchies: &Hierarchies) -> Result<()> {
    let lacks = lacking(hierarchies);
    if lacks.is_empty() {
        return Ok(());
    }
    let named = lacks.iter().map(|l| format!("{} ({})", l.what, l.remedy));
    Err(Error::Lacking {
        what: named.collect::<Vec<_>>().join(", "),
    })
}
