//! The program of a plan: where it starts, and which file it is.

use std::ffi::{CStr, CString};

use rustix::fs::{Access, AtFlags, FileType};
use rustix::io::Errno;

use crate::error::{Context, Result, failure, refusal};
use crate::inroot::Root;
use crate::mounts::show;
use crate::plan::Program;

/// Where a program without a slash is looked for when its environment has no
/// PATH (what execvp(3) of the common C libraries does).
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Changes to the working directory, made where it is missing. Afterwards it
/// must be reachable from the root: a directory outside of it shows as
/// `(unreachable)` (getcwd(2); CVE-2024-21626).
pub fn enter_directory(root: &Root, cwd: &CStr) -> Result<()> {
    if !cwd.to_bytes().starts_with(b"/") {
        return Err(refusal(
            "change directory to",
            show(cwd),
            "it must be absolute",
        ));
    }
    let directory = root
        .ensure_directory(cwd.to_bytes())
        .on("open working directory", show(cwd))?;
    rustix::process::fchdir(&directory).on("change directory to", show(cwd))?;
    let now = rustix::process::getcwd(Vec::new()).on("check", "working directory")?;
    if now.to_bytes().starts_with(b"/") {
        Ok(())
    } else {
        Err(refusal(
            "enter working directory",
            show(cwd),
            "it lies outside the container",
        ))
    }
}

/// The file that execvp(3) would execute: a name without a slash is looked
/// for in the PATH of the program's own environment.
pub fn find_program(program: &Program) -> Result<CString> {
    let Some(name) = program.argv.first().filter(|n| !n.is_empty()) else {
        return Err(refusal("execute", "", "no program is named"));
    };
    if name.to_bytes().contains(&b'/') {
        return is_program(name)
            .map(|()| name.clone())
            .on("execute", show(name));
    }
    let path = program
        .env
        .iter()
        .rev()
        .find_map(|e| e.to_bytes().strip_prefix(b"PATH="))
        .unwrap_or(DEFAULT_PATH);
    let mut denied = false;
    for directory in path.split(|b| *b == b':') {
        let mut whole = if directory.is_empty() {
            b".".to_vec()
        } else {
            directory.to_vec()
        };
        whole.push(b'/');
        whole.extend_from_slice(name.to_bytes());
        let Ok(whole) = CString::new(whole) else {
            continue;
        };
        match is_program(&whole) {
            Ok(()) => return Ok(whole),
            Err(Errno::ACCESS) => denied = true,
            Err(_) => {}
        }
    }
    let errno = if denied { Errno::ACCESS } else { Errno::NOENT };
    let mut failed = failure("execute", show(name), errno);
    failed.hint = "executable file not found in $PATH".to_owned();
    Err(failed)
}

fn is_program(path: &CStr) -> std::result::Result<(), Errno> {
    let stat = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::ACCESS);
    }
    rustix::fs::accessat(rustix::fs::CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}
