//! Sealed memory files that can be executed or handed to another process.

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

/// The file may be executed (`linux/memfd.h`, 6.3); older kernels refuse it
/// with EINVAL and allow execution anyway.
const MFD_EXEC: u32 = 0x10;
/// The file may never be executed (`linux/memfd.h`, 6.3).
const MFD_NOEXEC_SEAL: u32 = 0x08;

fn sealed(name: &CStr, flag: u32, bytes: &[u8]) -> Result<OwnedFd, std::io::Error> {
    let base = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match memfd_create(name, base | MemfdFlags::from_bits_retain(flag)) {
        Err(Errno::INVAL) => memfd_create(name, base)?,
        other => other?,
    };
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes)?;
    let fd = OwnedFd::from(file);
    fcntl_add_seals(
        &fd,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )?;
    Ok(fd)
}

/// A memory file with `bytes`, sealed against every change and executable.
///
/// # Errors
/// memfd_create(2)'s and write(2)'s; `EACCES` where `vm.memfd_noexec` is 2.
pub fn sealed_program(name: &CStr, bytes: &[u8]) -> Result<OwnedFd, std::io::Error> {
    sealed(name, MFD_EXEC, bytes)
}

/// A memory file with `bytes`, sealed against every change and, since 6.3,
/// against execution.
///
/// # Errors
/// memfd_create(2)'s and write(2)'s.
pub fn sealed_data(name: &CStr, bytes: &[u8]) -> Result<OwnedFd, std::io::Error> {
    sealed(name, MFD_NOEXEC_SEAL, bytes)
}
