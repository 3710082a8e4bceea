//! The supervisor at home: its own cgroup, beside the keepers', so that it
//! does not die with the login session or unit that happened to start it; and
//! the heap, which it gives back once things have settled.

use std::time::Duration;

use rkube_cgroup::systemd::{self, Systemd};
use rkube_cgroup::{Cgroup, CgroupPath, Controller, Hierarchies, Mode, Needs, Select};
use rkube_engine::Instance;
use rkube_kubelet::manager::Change;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

/// When the supervisor moves: a move in v1 holds up all forks and other moves
/// of the host for an RCU grace period, and the first pod comes first.
const FIRST_PODS_FIRST: Duration = Duration::from_secs(1);

/// How long after a change the heap is looked through.
const SETTLED: Duration = Duration::from_secs(2);

/// Controllers whose limits could end or starve the supervisor.
const THREATS: [Controller; 4] = [
    Controller::Cpu,
    Controller::Memory,
    Controller::Pids,
    Controller::Freezer,
];

/// Moves this process to `<parent>/system`. Where that does not work, pods
/// run all the same.
pub(crate) async fn move_in(parent: String) {
    tokio::time::sleep(FIRST_PODS_FIRST).await;
    let moved = rkube_task::spawn_blocking(move || enter(&parent)).await;
    match moved {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(
            error = crate::error::chain(&error),
            "the supervisor stays in the cgroup that it was started in"
        ),
        Err(error) => tracing::error!(%error, "move to rkube's own cgroup"),
    }
}

fn enter(parent: &str) -> Result<(), rkube_cgroup::Error> {
    let hierarchies = Hierarchies::detect()?;
    let path = CgroupPath::new(&format!("{parent}/system"))?;
    let present: Vec<Controller> = match hierarchies.mode() {
        // Another group is enough there. To enable a controller for it while
        // this process is still above it would make a threaded subtree of all.
        Mode::Unified => Vec::new(),
        _ => THREATS
            .into_iter()
            .filter(|c| hierarchies.of(*c).is_some())
            .collect(),
    };
    let select = Select::Only(Needs::none().and(&present));
    Cgroup::ensure(&hierarchies, &path, select)?.attach(std::process::id())
}

/// Where systemd is PID 1 on cgroup v2, the tree is its own: asks it for a
/// scope with `Delegate=yes`, in which everything of this instance lies. The
/// scope lives as long as anything in it does. Without systemd's consent pods
/// run all the same, in groups that it does not know of.
pub(crate) fn ask_systemd(instance: &mut Instance) {
    if !systemd::is_booted() {
        return;
    }
    match delegated(instance) {
        Ok(()) => {}
        Err(error) => tracing::warn!(
            error = crate::error::chain(&*error),
            "systemd has delegated no cgroup; pods run in groups that it does not know of"
        ),
    }
}

fn delegated(instance: &mut Instance) -> anyhow::Result<()> {
    if Hierarchies::detect()?.mode() != Mode::Unified {
        // There controllers are mounted one by one, and systemd manages few.
        return Ok(());
    }
    let records = instance.state_dir().join("sandboxes");
    let has_pods =
        std::fs::read_dir(&records).is_ok_and(|dir| dir.flatten().any(|e| e.path().is_dir()));
    if instance.scope.is_none() && has_pods {
        // Their cgroups are where they are.
        return Ok(());
    }
    let scope = instance.wanted_scope()?;
    let mut systemd = Systemd::connect()?;
    if systemd.place_of(&scope)?.is_none() {
        let what = format!("rkube's pods in {}", instance.root.display());
        systemd.start_scope(&scope, std::process::id(), &what, &[])?;
        instance.use_scope(scope)?;
        // A group that has groups below it holds no processes (cgroups(7)).
        enter(&instance.cgroup_parent())?;
    } else if instance.scope.is_none() {
        instance.use_scope(scope)?;
    }
    Ok(())
}

/// Gives free memory back to the kernel some time after the last of a number
/// of changes; at rest there is no timer.
pub(crate) async fn tidy(mut changes: Receiver<Change>) {
    loop {
        match changes.recv().await {
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
        loop {
            match tokio::time::timeout(SETTLED, changes.recv()).await {
                Ok(Err(RecvError::Closed)) => return,
                Ok(_) => {}
                Err(_) => break,
            }
        }
        rkube_sys::process::trim_heap();
    }
}
