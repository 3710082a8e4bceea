//! Containers of the OCI command line: no daemon, a record on disk.
//!
//! ```text
//!   <root>/<id>/config.json   the spec as it was at create
//!   <root>/<id>/state.json    the record, written before the first side effect
//!   <root>/<id>/start.sock    while the container waits for its start
//!   <root>/@filters/          compiled seccomp filters, by content
//!   <root>/@stage-<hash>      the small program, by content
//! ```
//! The status is never stored: it follows from the record, the process named
//! by pid and start time, the start socket and the cgroup's freezer.

mod control;
mod create;
mod delete;
mod events;
mod exec;
mod foreground;
mod hook;
mod record;
mod scope;
pub mod time;
mod user;

pub use control::{Signal, update};
pub use create::{CreateOptions, Made, create};
pub use delete::delete;
pub use events::wait_events;
pub use exec::{ExecOptions, exec};
pub use foreground::Foreground;
pub use record::{Container, Listed, Record, Status, Store, check_id};

use rkube_cgroup::{CgroupPath, Hierarchies};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::error::Result;

/// How long killed processes may take to be gone, and a cgroup to be empty.
pub const KILL_WAIT: Duration = Duration::from_secs(10);

/// The cgroup of a container: `linux.cgroupsPath` below the mount points, or
/// `/<id>`.
///
/// # Errors
/// A path that cannot be one.
pub fn cgroup_path(spec: &oci_spec::runtime::Spec, id: &str) -> Result<CgroupPath> {
    let given = spec.linux().as_ref().and_then(|l| l.cgroups_path().clone());
    let path = given
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("/").join(id));
    let normal = crate::draft::normal(&path);
    let text = normal
        .to_str()
        .ok_or_else(|| crate::Error::spec("linux.cgroupsPath", "it is not UTF-8"))?;
    Ok(CgroupPath::new(text)?)
}

/// The host's cgroup hierarchies, looked up once in the life of this process:
/// a host does not mount others while a command runs.
fn hierarchies() -> Result<Arc<Hierarchies>> {
    static FOUND: OnceLock<Arc<Hierarchies>> = OnceLock::new();
    match FOUND.get() {
        Some(found) => Ok(Arc::clone(found)),
        None => {
            let found = Hierarchies::detect()?;
            Ok(Arc::clone(FOUND.get_or_init(|| found)))
        }
    }
}

/// The highest group above `path` that is in no hierarchy yet.
fn first_missing(hierarchies: &Arc<Hierarchies>, path: &CgroupPath) -> Result<Option<CgroupPath>> {
    let mut missing = None;
    let mut above = path.parent();
    while let Some(group) = above {
        if rkube_cgroup::Cgroup::open(hierarchies, &group)?.exists() {
            break;
        }
        above = group.parent();
        missing = Some(group);
    }
    Ok(missing)
}

/// Removes a container's group, and those above it that were made for it and
/// hold nothing else.
fn remove_group(hierarchies: &Hierarchies, record: &Record) -> Result<()> {
    let path = CgroupPath::new(&record.cgroup)?;
    rkube_cgroup::Cgroup::remove(hierarchies, &path, KILL_WAIT)?;
    if let Some(scope) = &record.scope {
        scope::stop(scope)?;
    }
    remove_groups_above(hierarchies, record, &path)
}

/// Removes what a create has made of a container's groups, as far as it came,
/// and as far as it holds nothing.
fn remove_unused_groups(hierarchies: &Hierarchies, record: &Record) -> Result<()> {
    let path = CgroupPath::new(&record.cgroup)?;
    rkube_cgroup::Cgroup::remove_empty(hierarchies, &path)?;
    remove_groups_above(hierarchies, record, &path)
}

/// Removes the groups above a container's that were made for it and hold
/// nothing else.
fn remove_groups_above(
    hierarchies: &Hierarchies,
    record: &Record,
    path: &CgroupPath,
) -> Result<()> {
    let Some(top) = &record.cgroup_above else {
        return Ok(());
    };
    let mut above = path.parent();
    while let Some(group) = above {
        rkube_cgroup::Cgroup::remove_empty(hierarchies, &group)?;
        if group.as_str() == top {
            break;
        }
        above = group.parent();
    }
    Ok(())
}

/// The container's group, wherever it exists.
fn open_group(record: &Record) -> Result<rkube_cgroup::Cgroup> {
    let path = CgroupPath::new(&record.cgroup)?;
    Ok(rkube_cgroup::Cgroup::open(&hierarchies()?, &path)?)
}

/// Capabilities that this process could hand on.
fn grantable() -> u64 {
    // Without an answer nothing is said; the kernel has the last word anyway.
    rustix::thread::capabilities(None).map_or(u64::MAX, |sets| sets.permitted.bits())
}
