//! From an errno to a [`Failure`] that says what was attempted.

use rustix::io::Errno;

use crate::plan::Failure;

/// What every step of a stage returns.
pub type Result<T> = std::result::Result<T, Failure>;

/// A failure of `operation` on `object`.
pub fn failure(operation: &str, object: impl Into<String>, errno: Errno) -> Failure {
    Failure {
        operation: operation.to_owned(),
        object: object.into(),
        errno: errno.raw_os_error(),
        hint: String::new(),
    }
}

/// A failure that has no errno.
pub fn refusal(operation: &str, object: impl Into<String>, hint: &str) -> Failure {
    Failure {
        operation: operation.to_owned(),
        object: object.into(),
        errno: 0,
        hint: hint.to_owned(),
    }
}

/// Names the operation and object of a result.
pub trait Context<T> {
    /// Adds them.
    ///
    /// # Errors
    /// The same as before, with its context.
    fn on(self, operation: &str, object: impl Into<String>) -> Result<T>;
}

impl<T> Context<T> for std::result::Result<T, Errno> {
    fn on(self, operation: &str, object: impl Into<String>) -> Result<T> {
        self.map_err(|errno| failure(operation, object, errno))
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn on(self, operation: &str, object: impl Into<String>) -> Result<T> {
        self.map_err(|e| {
            failure(
                operation,
                object,
                Errno::from_io_error(&e).unwrap_or(Errno::IO),
            )
        })
    }
}
