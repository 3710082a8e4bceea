//! What is done about images while nobody waits for it: they are brought to
//! the disk, and what nobody uses makes room.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rkube_image::{Collected, GcPolicy};

use crate::engine::{Engine, Inner};
use crate::error::{Error, Result};

/// Whether a thread is at it: [`IDLE`], [`BUSY`], or [`AGAIN`].
#[derive(Debug, Default)]
pub(crate) struct Tidying(AtomicU8);

const IDLE: u8 = 0;
const BUSY: u8 = 1;
/// Busy, and asked once more meanwhile.
const AGAIN: u8 = 2;

impl Tidying {
    /// Whether the caller is the one to begin.
    fn begin(&self) -> bool {
        self.0.fetch_max(BUSY, Ordering::AcqRel) == IDLE || {
            self.0.fetch_max(AGAIN, Ordering::AcqRel) == IDLE
        }
    }

    /// Whether the caller has to go round once more.
    fn again(&self) -> bool {
        let (done, busy) = (Ordering::AcqRel, Ordering::Acquire);
        if self.0.compare_exchange(BUSY, IDLE, done, busy).is_ok() {
            return false;
        }
        self.0.store(BUSY, Ordering::Release);
        true
    }
}

impl Engine {
    /// When images go by themselves, once; the kubelet's defaults without it.
    pub fn set_image_gc(&self, policy: GcPolicy) {
        // It is of the same configuration file as long as the engine lives.
        let _ = self.inner.image_gc.set(policy);
    }

    /// Removes images that nobody uses, if the disk is full or they are old
    /// (kubernetes.io, "Garbage Collection").
    ///
    /// # Errors
    /// The store cannot be read or changed.
    pub fn collect_images(&self) -> Result<Collected> {
        self.inner.collect_images()
    }

    /// Brings images to the disk, on a thread of its own. Nothing goes.
    pub fn flush_images(&self) {
        let inner = Arc::clone(&self.inner);
        spawn("rkube-flush", move || inner.flush_images());
    }

    /// Brings images to the disk and makes room, on a thread of its own.
    pub fn tidy_images(&self) {
        self.inner.tidy_images();
    }
}

/// Whether the thread runs; without it the work waits for the next occasion.
fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> bool {
    let spawned = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work);
    if let Err(error) = &spawned {
        tracing::warn!(%error, "start a thread that tidies images");
    }
    spawned.is_ok()
}

impl Inner {
    fn collect_images(&self) -> Result<Collected> {
        let policy = self.image_gc.get().copied().unwrap_or_default();
        let collected = self.store.collect(&policy);
        collected.map_err(|source| Error::Image {
            image: "unused ones".into(),
            source,
        })
    }

    pub(crate) fn tidy_images(self: &Arc<Self>) {
        if !self.tidying.begin() {
            return;
        }
        let inner = Arc::clone(self);
        let work = move || {
            loop {
                inner.flush_images();
                if let Err(error) = inner.collect_images() {
                    tracing::warn!(
                        error = crate::error::chain(&error),
                        "unused images are not removed"
                    );
                }
                if !inner.tidying.again() {
                    return;
                }
            }
        };
        if !spawn("rkube-tidy", work) {
            self.tidying.0.store(IDLE, Ordering::Release);
        }
    }

    fn flush_images(&self) {
        if let Err(error) = self.store.flush() {
            tracing::warn!(%error, "images are not on the disk yet");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_tidies_and_no_request_is_lost() {
        let tidying = Tidying::default();
        assert!(tidying.begin());
        assert!(!tidying.again(), "nobody asked meanwhile");
        assert!(tidying.begin());
        assert!(!tidying.begin() && !tidying.begin());
        assert!(tidying.again(), "two asked: once more");
        assert!(!tidying.again());
        assert!(tidying.begin());
    }
}
