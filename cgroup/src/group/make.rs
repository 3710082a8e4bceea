//! Making a group's directories: those above it, controllers for them, and
//! what a new one needs before a process may enter.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::{Cgroup, refuse_populated};
use crate::error::{Error, Result};
use crate::file::{Dir, flat_value};
use crate::hierarchy::{Controller, Hierarchy, Version};
use crate::needs::Select;
use crate::tree::{open_child, open_error, remove_tree};

impl Cgroup {
    /// Makes the directory in one hierarchy. The parent of a directory that
    /// was made goes to `made`.
    pub(super) fn make_in(
        &self,
        hierarchy: &Hierarchy,
        select: Select,
        fresh: bool,
        made: &mut Vec<Dir>,
    ) -> Result<Dir> {
        let parent = match hierarchy.version() {
            Version::V1 => self.parent_v1(hierarchy)?,
            Version::V2 => self.parent_v2(hierarchy, select)?,
        };
        let name = self.path.name();
        let mut new = parent.mkdir(name)?;
        if !new && fresh {
            let old = open_child(&parent, name)?;
            refuse_populated(&old)?;
            remove_tree(&parent, name, Instant::now(), Duration::ZERO, 0)?;
            new = parent.mkdir(name)?;
        }
        let dir = open_child(&parent, name).and_then(|dir| {
            if new {
                self.finish_new(hierarchy, &parent, &dir, fresh)?;
            }
            Ok(dir)
        });
        if new {
            made.push(parent);
        }
        dir
    }

    /// What a new directory needs before a process may enter.
    fn finish_new(
        &self,
        hierarchy: &Hierarchy,
        parent: &Dir,
        dir: &Dir,
        fresh: bool,
    ) -> Result<()> {
        if hierarchy.version() == Version::V1 && hierarchy.has(Controller::Cpuset) {
            inherit_cpuset(&hierarchy.root, parent, dir)?;
        }
        if fresh && frozen(hierarchy.version(), hierarchy, dir)? {
            return Err(Error::Frozen {
                path: dir.path().to_owned(),
            });
        }
        Ok(())
    }

    /// Opens (makes) the directory above, in a v1 hierarchy.
    fn parent_v1(&self, hierarchy: &Hierarchy) -> Result<Dir> {
        let Some(parent) = self.path.parent() else {
            return open_child(&hierarchy.root, ".");
        };
        match hierarchy.root.open_dir(parent.as_str()) {
            Ok(dir) => return Ok(dir),
            Err(Errno::NOENT) => {}
            Err(source) => return Err(open_error(&hierarchy.root, parent.as_str(), source)),
        }
        let mut above = open_child(&hierarchy.root, ".")?;
        for level in parent.as_str().split('/') {
            let new = above.mkdir(level)?;
            let dir = open_child(&above, level)?;
            if new && hierarchy.has(Controller::Cpuset) {
                inherit_cpuset(&hierarchy.root, &above, &dir)?;
            }
            above = dir;
        }
        Ok(above)
    }

    /// Opens (makes) the directory above, in the v2 hierarchy, with the
    /// controllers enabled for its children.
    fn parent_v2(&self, hierarchy: &Hierarchy, select: Select) -> Result<Dir> {
        let enable = select.enable(hierarchy);
        let parent = self.path.parent();
        // The common case: everything above is ready.
        let ready = match &parent {
            None => open_child(&hierarchy.root, ".").map(Some)?,
            Some(parent) => match hierarchy.root.open_dir(parent.as_str()) {
                Ok(dir) => Some(dir),
                Err(Errno::NOENT) => None,
                Err(source) => return Err(open_error(&hierarchy.root, parent.as_str(), source)),
            },
        };
        if let Some(dir) = ready
            && not_enabled(&dir, &enable)?.is_empty()
        {
            return Ok(dir);
        }
        let mut dir = open_child(&hierarchy.root, ".")?;
        self.enable(&dir, &enable, select)?;
        for level in parent.iter().flat_map(|parent| parent.as_str().split('/')) {
            dir.mkdir(level)?;
            dir = open_child(&dir, level)?;
            self.enable(&dir, &enable, select)?;
        }
        Ok(dir)
    }

    /// Enables controllers for the children of `dir`.
    fn enable(&self, dir: &Dir, wanted: &[Controller], select: Select) -> Result<()> {
        const FILE: &str = "cgroup.subtree_control";
        let missing = not_enabled(dir, wanted)?;
        if missing.is_empty() {
            return Ok(());
        }
        // What the level above keeps back is told first, as the kernel tells
        // it before it looks for processes.
        let given = dir.read("cgroup.controllers")?;
        let (missing, absent): (Vec<_>, Vec<_>) = missing.into_iter().partition(|c| {
            let mut given = given.split_ascii_whitespace();
            given.any(|name| name == c.name(Version::V2))
        });
        for controller in absent {
            if select.needs().contains(controller) {
                return Err(self
                    .hierarchies
                    .missing_error(controller, &format!("cgroup {}", self.path)));
            }
            tracing::debug!(%controller, group = %dir.path().display(), "controller left off");
        }
        if missing.is_empty() {
            return Ok(());
        }
        let plus = |list: &[Controller]| {
            let names: Vec<String> = list
                .iter()
                .map(|c| format!("+{}", c.name(Version::V2)))
                .collect();
            names.join(" ")
        };
        match dir.write_raw(FILE, &plus(&missing)) {
            Ok(_) => return Ok(()),
            // One by one would be worse: a group with processes takes those of
            // threads (cpu, pids), and from then on is the root of a threaded
            // subtree, in which no group can have the others (cgroups(7)).
            Err(source @ (Errno::BUSY | Errno::OPNOTSUPP)) => {
                let needed: Vec<Controller> = missing
                    .into_iter()
                    .filter(|c| select.needs().contains(*c))
                    .collect();
                if needed.is_empty() {
                    tracing::debug!(group = %dir.path().display(), %source, "controllers left off");
                    return Ok(());
                }
                return Err(Error::InternalProcess {
                    path: dir.path().to_owned(),
                    controllers: plus(&needed),
                    source,
                });
            }
            Err(_) => {}
        }
        // The kernel takes all or none: find the culprit, and let go of the
        // ones nobody asked for.
        for controller in missing {
            let value = plus(&[controller]);
            let Err(source) = dir.write_raw(FILE, &value) else {
                continue;
            };
            if !select.needs().contains(controller) {
                tracing::debug!(%controller, group = %dir.path().display(), %source, "controller left off");
                continue;
            }
            return Err(match source {
                Errno::BUSY | Errno::OPNOTSUPP => Error::InternalProcess {
                    path: dir.path().to_owned(),
                    controllers: value,
                    source,
                },
                Errno::NOENT => self
                    .hierarchies
                    .missing_error(controller, &format!("cgroup {}", self.path)),
                _ => dir.write_error(FILE, &value, source),
            });
        }
        Ok(())
    }
}

/// True if the group or one above it is frozen.
fn frozen(version: Version, hierarchy: &Hierarchy, dir: &Dir) -> Result<bool> {
    match version {
        Version::V2 => {
            let text = dir.read_optional("cgroup.events")?.unwrap_or_default();
            let wanted = dir.read_number_optional("cgroup.freeze")?;
            Ok(flat_value(&text, "frozen") == Some(1) || wanted == Some(1))
        }
        Version::V1 if hierarchy.has(Controller::Freezer) => Ok(dir
            .read_optional("freezer.state")?
            .is_some_and(|state| state.trim() != "THAWED")),
        Version::V1 => Ok(false),
    }
}

/// Of `wanted`, what is not enabled for the children of `dir`.
fn not_enabled(dir: &Dir, wanted: &[Controller]) -> Result<Vec<Controller>> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let text = dir.read("cgroup.subtree_control")?;
    Ok(wanted
        .iter()
        .copied()
        .filter(|c| {
            !text
                .split_ascii_whitespace()
                .any(|name| name == c.name(Version::V2))
        })
        .collect())
}

/// A new v1 cpuset is empty and takes no process: copy the sets of the
/// nearest group above that has some (the root always has).
fn inherit_cpuset(root: &Dir, parent: &Dir, dir: &Dir) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if !dir.read(file)?.trim().is_empty() {
            continue;
        }
        let mut value = parent.read(file)?;
        if value.trim().is_empty() {
            // Someone else made the parent and left it empty.
            let below = parent
                .path()
                .strip_prefix(root.path())
                .unwrap_or(Path::new(""));
            fill_cpuset(root, below, file)?;
            value = parent.read(file)?;
        }
        dir.write(file, value.trim())?;
    }
    Ok(())
}

/// Fills the empty sets on the way from the root down to `below`.
fn fill_cpuset(root: &Dir, below: &Path, file: &str) -> Result<()> {
    let mut value = root.read(file)?.trim().to_owned();
    let mut dir = open_child(root, ".")?;
    for level in below.iter().filter_map(|level| level.to_str()) {
        dir = open_child(&dir, level)?;
        let own = dir.read(file)?.trim().to_owned();
        if own.is_empty() {
            dir.write(file, &value)?;
        } else {
            value = own;
        }
    }
    Ok(())
}
