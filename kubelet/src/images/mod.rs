//! Images of containers: from a pod's `image`, `imagePullPolicy` and
//! `imagePullSecrets` to an image that the container may use, or the reason
//! why not, as Kubernetes names it.
//!
//! What is decided is in [`decide`]; who may use what, in [`records`]. The
//! engine pulls.

pub mod decide;
pub(crate) mod records;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use rkube_engine::api::ContainerRuntime;
use rkube_image::pull::{
    BeforeCommit, Cancel, Opened, PullError, PullFailure, PullRequest, PulledImage,
};
use rkube_image::{Digest, Keyring, Reference};
use tokio::sync::{Mutex as AsyncMutex, Notify, Semaphore};

use crate::events::Severity;
use crate::machine::Refusal;
use crate::objects::Objects;
use crate::pod;
use crate::worker::{Shared, lock};
use decide::{Access, Decision, Policy, decide};
use records::{Proof, Records};

/// Images that are pulled at a time; more wait. Each pulls several layers at
/// once already.
pub const MAX_PARALLEL_PULLS: usize = 4;
/// Images of this name come with the program; no registry has them.
const BUILT_IN_REGISTRY: &str = "rkube.local/";
/// The keys of the two kinds of pull secrets.
const DOCKER_CONFIG_JSON: &str = ".dockerconfigjson";
const DOCKERCFG: &str = ".dockercfg";

/// What all workers share about images.
#[derive(Debug)]
pub(crate) struct Images {
    records: Records,
    pulls: Semaphore,
    /// Images that are being pulled: who wants one of them too waits for that
    /// and not for a turn, which others can use.
    flights: Mutex<HashMap<String, Arc<AsyncMutex<()>>>>,
}

impl Images {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self {
            records: Records::new(dir),
            pulls: Semaphore::new(MAX_PARALLEL_PULLS),
            flights: Mutex::default(),
        }
    }

    fn flight(&self, image: &str) -> Arc<AsyncMutex<()>> {
        let mut flights = lock(&self.flights);
        // Those that nobody holds are over.
        flights.retain(|_, f| Arc::strong_count(f) > 1);
        Arc::clone(flights.entry(image.to_owned()).or_default())
    }
}

impl<R: ContainerRuntime> Shared<R> {
    /// Forgets who pulled the images that are gone from the store.
    pub(crate) fn forget_removed_images(&self) {
        // One that cannot be looked for is not gone.
        let there = |id: &str| !matches!(self.runtime.image_id(id), Ok(None));
        if let Err(error) = self.images.records.retain(there) {
            tracing::warn!(%error, "records of the pulls of images that are gone stay");
        }
    }
}

/// A container's wish.
#[derive(Debug, Clone)]
struct Wish {
    image: String,
    policy: Policy,
    /// The pod's keyrings, and the Secrets that they are from.
    keyrings: Vec<(String, Keyring)>,
}

fn refusal(reason: &str, message: String) -> Refusal {
    Refusal {
        reason: reason.to_owned(),
        message,
    }
}

/// Makes sure of a container's image; its id.
pub(crate) async fn ensure<R: ContainerRuntime>(
    shared: &Arc<Shared<R>>,
    pod: &Pod,
    objects: &Objects,
    name: &str,
    cancel: Cancel,
) -> Result<String, Refusal> {
    let Some((_, container)) = pod::container(pod, name) else {
        let message = format!("there is no container {name:?}");
        return Err(refusal("CreateContainerConfigError", message));
    };
    let note = |severity, reason: &str, message: &str| {
        shared
            .journal
            .note(pod, Some(name), severity, reason, message);
    };
    let (keyrings, problems) = keyrings(pod, objects);
    let wish = Wish {
        image: container.image.clone().unwrap_or_default(),
        policy: Policy::of(container.image_pull_policy.as_deref()),
        keyrings,
    };
    let image = wish.image.clone();
    let known = {
        let (shared, wish) = (Arc::clone(shared), wish.clone());
        let look = rkube_task::spawn_blocking(move || look(&shared, &wish)).await;
        look.map_err(|e| refusal("ImageInspectError", e.to_string()))??
    };
    match known.decision {
        Decision::Use => {
            note(
                Severity::Normal,
                "Pulled",
                &format!(
                    "Container image {image:?} already present on machine and can be accessed by the pod"
                ),
            );
            return Ok(known.id.unwrap_or_default());
        }
        Decision::Missing => {
            let message = format!(
                "Container image {image:?} is not present with pull policy of Never; `rkube image pull` or `rkube image import` adds it"
            );
            return Err(refusal("ErrImageNeverPull", message));
        }
        Decision::Withheld => {
            let message = format!(
                "Container image {image:?} was pulled with credentials that this pod does not have, and is not pulled again with pull policy of Never"
            );
            return Err(refusal("ErrImageNeverPull", message));
        }
        Decision::Pull => {}
    }
    for problem in problems {
        note(
            Severity::Warning,
            "FailedToRetrieveImagePullSecret",
            &problem,
        );
    }
    let reference = Reference::parse(&image).map_err(|e| invalid(&image, &e.to_string()))?;
    note(
        Severity::Normal,
        "Pulling",
        &format!("Pulling image {image:?}"),
    );
    let begin = Instant::now();
    let pulled = pull(shared, &wish, reference, cancel).await;
    match pulled {
        Ok(pulled) => {
            let took = begin.elapsed().as_secs_f64();
            let text = format!(
                "Successfully pulled image {image:?} in {:.3}s ({took:.3}s including waiting). Fetched {} bytes from {}.",
                pulled.took.as_secs_f64(),
                pulled.image.fetched_bytes,
                pulled.image.endpoint
            );
            note(Severity::Normal, "Pulled", &text);
            Ok(pulled.image.image.id.to_string())
        }
        Err(e) => Err(refusal("ErrImagePull", e.to_string())),
    }
}

fn invalid(image: &str, error: &str) -> Refusal {
    let message = format!("Failed to apply default image tag {image:?}: {error}");
    refusal("InvalidImageName", message)
}

/// A pull and how long it took after its turn had come.
struct Pulled {
    image: PulledImage,
    took: Duration,
}

struct Known {
    decision: Decision,
    id: Option<String>,
}

/// What the store has, and what follows.
fn look<R: ContainerRuntime>(shared: &Shared<R>, wish: &Wish) -> Result<Known, Refusal> {
    let image = &wish.image;
    let id = shared.runtime.image_id(image).map_err(|e| {
        if R::invalid_image(&e) {
            return invalid(image, &e.to_string());
        }
        let message = format!("Failed to inspect image {image:?}: {e}");
        refusal("ImageInspectError", message)
    })?;
    let present = match &id {
        Some(id) => Some(access(shared, wish, id)?),
        None => None,
    };
    let decision = match present {
        // What comes with the program has no registry to ask.
        Some(_) if image.starts_with(BUILT_IN_REGISTRY) => Decision::Use,
        present => decide(wish.policy, present),
    };
    Ok(Known { decision, id })
}

fn access<R>(shared: &Shared<R>, wish: &Wish, id: &str) -> Result<Access, Refusal> {
    let reference = Reference::parse(&wish.image).ok();
    let mut fingerprints: BTreeSet<Digest> = BTreeSet::new();
    if let Some(reference) = &reference {
        for (_, ring) in &wish.keyrings {
            fingerprints.extend(ring.find(reference).iter().map(|c| c.fingerprint()));
        }
    }
    let records = &shared.images.records;
    records
        .access(id, reference.as_ref(), &fingerprints)
        .map_err(|e| {
            refusal(
                "ImageInspectError",
                format!("read the record of the image's pulls: {e}"),
            )
        })
}

async fn pull<R: ContainerRuntime>(
    shared: &Arc<Shared<R>>,
    wish: &Wish,
    reference: Reference,
    cancel: Cancel,
) -> Result<Pulled, PullError> {
    let other = |message: String| PullError {
        kind: PullFailure::Other,
        message,
    };
    let told = Arc::new(Notify::new());
    let notify = Arc::clone(&told);
    cancel.on_cancel(move || notify.notify_one());
    let flight = shared.images.flight(&reference.to_string());
    let turn = async {
        let one = flight.lock().await;
        // Never closed.
        shared
            .images
            .pulls
            .acquire()
            .await
            .map(|permit| (one, permit))
    };
    let _turn = tokio::select! {
        turn = turn => turn.map_err(|e| other(e.to_string()))?,
        () = told.notified() => {
            return Err(PullError {
                kind: PullFailure::Cancelled,
                message: "cancelled while it waited for its turn".to_owned(),
            });
        }
    };
    let request = PullRequest {
        keyrings: wish.keyrings.iter().map(|(_, ring)| ring.clone()).collect(),
        cancel,
        ..PullRequest::new(reference)
    };
    let secrets: Vec<String> = wish.keyrings.iter().map(|(name, _)| name.clone()).collect();
    let shared = Arc::clone(shared);
    // It may take minutes; the permits leave threads of the pool to others.
    let work = move || {
        let begin = Instant::now();
        let image = pull_recorded(&shared, &request, &secrets)?;
        Ok(Pulled {
            image,
            took: begin.elapsed(),
        })
    };
    let done = rkube_task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(other(e.to_string())))
}

fn pull_recorded<R: ContainerRuntime>(
    shared: &Arc<Shared<R>>,
    request: &PullRequest,
    secrets: &[String],
) -> Result<PulledImage, PullError> {
    let records = &shared.images.records;
    let noted = |e: std::io::Error| PullError {
        kind: PullFailure::Other,
        message: format!("write the record of the pull: {e}"),
    };
    // Nobody finds the image without its record, not even if this is the end.
    // A pull that goes on at a mirror comes by here again.
    let coming: Arc<Mutex<Vec<String>>> = Arc::default();
    let hook = {
        let (shared, coming) = (Arc::clone(shared), Arc::clone(&coming));
        BeforeCommit::new(move |id: &Digest| {
            let id = id.to_string();
            // One that cannot be looked for may be there, but not for sure.
            let present = matches!(shared.runtime.image_id(&id), Ok(Some(_)));
            shared.images.records.coming(&id, present)?;
            lock(&coming).push(id);
            Ok(())
        })
    };
    let request = PullRequest {
        before_commit: Some(hook),
        ..request.clone()
    };
    let pulled = shared.runtime.pull_image(&request);
    let done = pulled.and_then(|pulled| {
        let proof = match pulled.opened {
            Opened::Anonymous | Opened::Node => None,
            Opened::Request {
                keyring,
                fingerprint,
            } => Some(Proof {
                fingerprint,
                secret: secrets.get(keyring).cloned().unwrap_or_default(),
            }),
        };
        let id = pulled.image.id.to_string();
        records
            .done(&request.reference, &id, proof)
            .map_err(noted)?;
        Ok(pulled)
    });
    let coming = std::mem::take(&mut *lock(&coming));
    let ended: Vec<_> = coming.iter().map(|id| records.ended(id)).collect();
    ended
        .into_iter()
        .collect::<std::io::Result<()>>()
        .map_err(noted)?;
    done
}

/// The pod's pull secrets, and what is wrong with those that cannot be used.
fn keyrings(pod: &Pod, objects: &Objects) -> (Vec<(String, Keyring)>, Vec<String>) {
    let (mut out, mut problems) = (Vec::new(), Vec::new());
    let wanted = pod
        .spec
        .iter()
        .flat_map(|s| s.image_pull_secrets.iter().flatten());
    for name in wanted.map(|s| &s.name).filter(|n| !n.is_empty()) {
        let Some(data) = objects.secret(name) else {
            problems.push(format!(
                "pull secret {name:?} is not there; pulling may not work"
            ));
            continue;
        };
        let ring = match (data.get(DOCKER_CONFIG_JSON), data.get(DOCKERCFG)) {
            (Some(bytes), _) => Keyring::from_config(bytes).map_err(|e| e.to_string()),
            (None, Some(bytes)) => Keyring::from_dockercfg(bytes).map_err(|e| e.to_string()),
            (None, None) => Err(format!(
                "it has neither {DOCKER_CONFIG_JSON} nor {DOCKERCFG}"
            )),
        };
        match ring {
            Ok(mut ring) => {
                // A Secret does not make the node run programs.
                ring.helpers.clear();
                ring.store = None;
                out.push((format!("{}/{name}", pod::namespace(pod)), ring));
            }
            Err(e) => problems.push(format!("pull secret {name:?}: {e}")),
        }
    }
    (out, problems)
}
