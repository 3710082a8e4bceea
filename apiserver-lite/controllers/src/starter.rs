//! What every controller is started with, and how it is stopped.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use rkube_client::{BoxFuture, Client, Informers, Recorder, WorkQueue};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::Config;
use crate::error::{Error, Outcome, chain};

/// Ends a queue, whatever its keys are.
type Close = Box<dyn Fn() + Send + Sync>;

/// One running controller.
pub(crate) struct Running {
    pub(crate) name: &'static str,
    close: Vec<Close>,
    tasks: Vec<JoinHandle<()>>,
}

impl Running {
    /// Lets the workers finish what they are at.
    pub(crate) async fn stop(self) {
        for close in &self.close {
            close();
        }
        for task in self.tasks {
            if let Err(error) = task.await {
                tracing::error!(controller = self.name, %error, "a worker's task");
            }
        }
    }
}

/// What a controller needs to begin.
pub(crate) struct Starter<'a> {
    pub(crate) informers: &'a Informers,
    pub(crate) client: Client,
    pub(crate) config: Arc<Config>,
    pub(crate) stop: watch::Receiver<bool>,
    pub(crate) running: Vec<Running>,
}

impl Starter<'_> {
    /// Events in the name of a component.
    pub(crate) fn recorder(&self, component: &str) -> Recorder {
        Recorder::start(self.client.clone(), component)
    }

    /// Runs workers on a queue once `synced` has ended.
    pub(crate) fn work<T, S, F>(
        &mut self,
        name: &'static str,
        queue: &Arc<WorkQueue<T>>,
        synced: BoxFuture<'static, ()>,
        sync: S,
    ) where
        T: Clone + Eq + Hash + Debug + Send + Sync + 'static,
        S: Fn(T) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Outcome> + Send + 'static,
    {
        let workers = self.config.workers_count;
        let (ready, is_ready) = watch::channel(false);
        let mut stop = self.stop.clone();
        let mut tasks = vec![rkube_task::spawn(async move {
            tokio::select! {
                () = synced => {}
                _ = stop.wait_for(|s| *s) => {}
            }
            ready.send_replace(true);
            ready.closed().await;
        })];
        for _ in 0..workers {
            let (queue, sync) = (Arc::clone(queue), sync.clone());
            let mut is_ready = is_ready.clone();
            tasks.push(rkube_task::spawn(async move {
                if is_ready.wait_for(|r| *r).await.is_err() {
                    return;
                }
                drop(is_ready);
                queue
                    .work(|key: T| {
                        let done = sync(key.clone());
                        async move { done.await.map_err(|e| log(name, &key, &e)) }
                    })
                    .await;
            }));
        }
        let queue = Arc::clone(queue);
        self.running.push(Running {
            name,
            close: vec![Box::new(move || queue.close())],
            tasks,
        });
    }

    /// Runs a task that ends by itself when [`Starter::stop`] says so.
    pub(crate) fn task(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.running.push(Running {
            name,
            close: Vec::new(),
            tasks: vec![rkube_task::spawn(task)],
        });
    }
}

/// Tells a failure and hands back its text.
fn log(name: &'static str, key: &impl Debug, error: &Error) -> String {
    let text = chain(error);
    if error.is_conflict() {
        tracing::debug!(controller = name, ?key, error = text, "comes back");
    } else {
        tracing::warn!(controller = name, ?key, error = text, "comes back");
    }
    text
}
