//! Tasks whose machinery is compiled once.
//!
//! Purpose: tokio makes the code of a task (poll, shut down, wake, free, read
//! the result, and a table of all that) anew for each type of future and for
//! each of its schedulers, 2 KiB a place in the release program. Behind a box
//! all futures with one kind of result are one type.
//!
//! Boundary: what lives for the length of a connection, a request or longer.
//! Where tasks come by the thousand a second, tokio's own functions save the
//! allocation.

use std::future::Future;
use std::pin::Pin;

use tokio::task::JoinHandle;

/// Starts a task on the runtime of the caller.
///
/// # Panics
/// Outside of a runtime, as `tokio::spawn`.
#[track_caller]
pub fn spawn<T, F>(future: F) -> JoinHandle<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let future: Pin<Box<dyn Future<Output = T> + Send>> = Box::pin(future);
    tokio::spawn(future)
}

/// Runs what blocks on a thread for such work.
///
/// # Panics
/// Outside of a runtime, as `tokio::task::spawn_blocking`.
#[track_caller]
pub fn spawn_blocking<T, F>(work: F) -> JoinHandle<T>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let work: Box<dyn FnOnce() -> T + Send> = Box::new(work);
    tokio::task::spawn_blocking(work)
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn results_and_panics_arrive() {
        assert_eq!(super::spawn(async { 1 }).await.unwrap(), 1);
        assert_eq!(super::spawn_blocking(|| "x").await.unwrap(), "x");
        let failed = super::spawn_blocking(|| -> u8 { panic!("told") }).await;
        assert!(failed.unwrap_err().is_panic());
        let task = super::spawn(std::future::pending::<()>());
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
    }
}
