//! `execve(2)` over prepared vectors.

use std::ffi::{CStr, CString};

use rustix::io::Errno;

/// A NULL-terminated vector of C strings, built before it is needed.
#[derive(Debug)]
pub struct CVec {
    _strings: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

impl CVec {
    /// Keeps `strings` and builds the vector of pointers to them.
    #[must_use]
    pub fn new(strings: Vec<CString>) -> Self {
        let mut pointers: Vec<_> = strings.iter().map(|s| s.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Self {
            _strings: strings,
            pointers,
        }
    }
}

/// Replaces the program of this process; returns only on failure.
#[must_use]
pub fn execve(path: &CStr, argv: &CVec, envp: &CVec) -> Errno {
    // SAFETY: path is NUL-terminated, both vectors are NULL-terminated and
    // their strings are kept alive by the CVec.
    unsafe {
        libc::execve(
            path.as_ptr(),
            argv.pointers.as_ptr(),
            envp.pointers.as_ptr(),
        )
    };
    crate::last_errno()
}
