//! Layers of an archive, several at a time.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::error::{Error, Result};
use crate::limits::MAX_PARALLEL_LAYERS;

/// Does `work` for each item, on as many threads as there are processors but
/// no more than [`MAX_PARALLEL_LAYERS`]. Results are in the items' order; of
/// several errors the first item's is told, and nothing is begun after one.
pub(super) fn each<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = items.len().min(processors).min(MAX_PARALLEL_LAYERS);
    if threads < 2 {
        return items.iter().map(work).collect();
    }
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let slots: Vec<Mutex<Option<Result<R>>>> = items.iter().map(|_| Mutex::new(None)).collect();
    let take = || {
        while !failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let (Some(item), Some(slot)) = (items.get(index), slots.get(index)) else {
                return;
            };
            let done = work(item);
            failed.fetch_or(done.is_err(), Ordering::Relaxed);
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
        }
    };
    std::thread::scope(|scope| {
        // This thread is one of them.
        for number in 1..threads {
            let name = format!("rkube-import-{number}");
            let started = std::thread::Builder::new()
                .name(name)
                .spawn_scoped(scope, take);
            if let Err(error) = started {
                tracing::debug!(%error, "a layer less at a time");
            }
        }
        take();
    });
    let mut out = Vec::with_capacity(items.len());
    for slot in slots {
        match slot.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(done) => out.push(done?),
            // Not begun: an error follows among the others.
            None => continue,
        }
    }
    if out.len() == items.len() {
        return Ok(out);
    }
    Err(Error::Malformed {
        what: "import".into(),
        reason: "a layer was not taken in".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_their_order_and_the_first_error_is_told() {
        let numbers: Vec<usize> = (0..100).collect();
        let squares = each(&numbers, |n| Ok(n * n)).unwrap();
        assert!(squares.iter().enumerate().all(|(i, s)| *s == i * i));
        let begun = AtomicUsize::new(0);
        let failing = each(&numbers, |n| {
            begun.fetch_add(1, Ordering::Relaxed);
            let reason = n.to_string();
            let what = String::new();
            if *n < 3 {
                Ok(())
            } else {
                Err(Error::Malformed { what, reason })
            }
        });
        let Err(Error::Malformed { reason, .. }) = failing else {
            panic!("{failing:?}");
        };
        assert_eq!(reason, "3");
        assert!(
            begun.load(Ordering::Relaxed) < 20,
            "it goes on after an error"
        );
        assert!(each(&[] as &[usize], |_| Ok(())).unwrap().is_empty());
    }
}
