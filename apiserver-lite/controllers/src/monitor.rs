//! Follows the metadata of every resource that is served: what garbage
//! collection and the end of namespaces stand on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rkube_api::discovery::is_on_by_default;
use rkube_api::resources::{self, Resource};
use rkube_client::{Client, Seen, Target};
use tokio::sync::watch;

use crate::error::chain;
use crate::starter::Starter;

/// First wait after a resource could not be followed.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// Longest wait; a resource that is not served is asked for this often.
const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// The resources whose objects can be listed, watched and deleted, one
/// version of each. Events are left out: nothing owns them for long.
pub(crate) fn followed() -> Vec<&'static Resource> {
    let verbs = ["delete", "list", "watch"];
    let is_preferred =
        |r: &Resource| resources::preferred(r.gvk.group, r.plural).is_some_and(|p| p.gvk == r.gvk);
    resources::all()
        .iter()
        .filter(|r| is_on_by_default(r) && r.plural != "events")
        .filter(|r| verbs.iter().all(|v| r.serves(v)) && is_preferred(r))
        .collect()
}

/// The collection of a resource.
pub(crate) fn collection(resource: &Resource, namespace: Option<&str>) -> Target {
    Target {
        group: resource.gvk.group.to_owned(),
        version: resource.gvk.version.to_owned(),
        resource: resource.plural.to_owned(),
        namespace: namespace.filter(|n| !n.is_empty()).map(str::to_owned),
        ..Target::default()
    }
}

/// One object of a resource.
pub(crate) fn object(resource: &Resource, namespace: &str, name: &str) -> Target {
    Target {
        name: Some(name.to_owned()),
        ..collection(resource, resource.namespaced.then_some(namespace))
    }
}

type Listener = Box<dyn Fn(&'static Resource, &Seen) + Send + Sync>;

/// Who is told what is seen. Listeners are added before [`start`].
#[derive(Default)]
pub(crate) struct Monitors {
    listeners: Vec<Listener>,
}

impl Monitors {
    /// Tells a listener everything from the first list on. It must be quick.
    pub(crate) fn listen(
        &mut self,
        listener: impl Fn(&'static Resource, &Seen) + Send + Sync + 'static,
    ) {
        self.listeners.push(Box::new(listener));
    }
}

/// How many resources have not been listed or refused yet.
#[derive(Debug)]
struct Pending {
    left: Mutex<usize>,
    done: watch::Sender<bool>,
}

impl Pending {
    fn one_less(&self) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.done.send_replace(true);
        }
    }
}

/// Begins to follow everything. The receiver tells when each resource has
/// been listed, or could not be.
pub(crate) fn start(starter: &mut Starter<'_>, monitors: Monitors) -> watch::Receiver<bool> {
    let followed = followed();
    let (done, synced) = watch::channel(followed.is_empty());
    let pending = Arc::new(Pending {
        left: Mutex::new(followed.len()),
        done,
    });
    let monitors = Arc::new(monitors);
    let client = starter.client.clone();
    let mut stop = starter.stop.clone();
    starter.task("monitors", async move {
        let mut tasks = tokio::task::JoinSet::new();
        for resource in followed {
            let (client, monitors) = (client.clone(), Arc::clone(&monitors));
            tasks.spawn(follow(client, resource, monitors, Arc::clone(&pending)));
        }
        // An error means that nobody can stop us any more, so do.
        let _ = stop.wait_for(|s| *s).await;
        tasks.shutdown().await;
    });
    synced
}

async fn follow(
    client: Client,
    resource: &'static Resource,
    monitors: Arc<Monitors>,
    pending: Arc<Pending>,
) {
    let mut backoff = BACKOFF_MIN;
    let mut first = true;
    loop {
        let mut listed = false;
        let tell = |seen: Seen| {
            for listener in &monitors.listeners {
                listener(resource, &seen);
            }
            if std::mem::take(&mut first) {
                pending.one_less();
            }
            listed = true;
        };
        let target = collection(resource, None);
        let answer = client.follow_metadata(target, tell).await;
        if std::mem::take(&mut first) {
            pending.one_less();
        }
        if listed {
            backoff = BACKOFF_MIN;
        }
        let Err(error) = answer;
        let error = chain(&error);
        tracing::debug!(resource = resource.plural, error, "follow the metadata");
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_resource_once_in_its_preferred_version() {
        let followed = followed();
        let versions = |plural: &str| -> Vec<&str> {
            let same = followed.iter().filter(|r| r.plural == plural);
            same.map(|r| r.gvk.version).collect()
        };
        assert_eq!(versions("horizontalpodautoscalers"), ["v2"]);
        assert_eq!(versions("pods"), ["v1"]);
        assert!(versions("events").is_empty());
        assert!(followed.len() > 40, "{}", followed.len());
        let pod = object(
            followed.iter().find(|r| r.plural == "pods").unwrap(),
            "ns",
            "p",
        );
        assert_eq!(pod.path(), "/api/v1/namespaces/ns/pods/p");
        let node = object(
            followed.iter().find(|r| r.plural == "nodes").unwrap(),
            "ns",
            "n",
        );
        assert_eq!(node.path(), "/api/v1/nodes/n");
    }
}
