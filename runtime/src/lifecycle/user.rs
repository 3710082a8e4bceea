//! The home directory of a user, out of a container's own files.

use std::io::Read;
use std::path::Path;

use rkube_keeper::inroot::Root;
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use crate::error::{Context, Result};

/// Largest /etc/passwd of a container that is read, in bytes.
const MAX_PASSWD_BYTES: u64 = 1 << 20;

/// `HOME` of a user by the /etc/passwd below `root`, resolved inside it; `/`
/// where there is none.
///
/// # Errors
/// The file that is there and cannot be read.
pub(super) fn home(root: &Path, uid: u32) -> Result<String> {
    let found = passwd(root).on("read", root.join("etc/passwd").display().to_string())?;
    let found = found.and_then(|text| find(&text, uid));
    Ok(found.unwrap_or_else(|| "/".to_owned()))
}

fn passwd(root: &Path) -> std::io::Result<Option<String>> {
    let root = match Root::at(root) {
        // What is no root file system is told by whoever mounts it.
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        other => other?,
    };
    // A FIFO in its place must not hold us up.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match root.open(b"etc/passwd", flags) {
        // ENXIO: a socket or a device.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::NXIO) => return Ok(None),
        other => other?,
    };
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    std::fs::File::from(file)
        .take(MAX_PASSWD_BYTES)
        .read_to_end(&mut bytes)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Field 6 of the line whose field 3 is the uid (passwd(5)).
fn find(text: &str, uid: u32) -> Option<String> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let id = fields.nth(2)?;
        let digits = !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit());
        if !digits || id.parse::<u32>().ok()? != uid {
            return None;
        }
        let home = fields.nth(2)?;
        home.starts_with('/').then(|| home.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_and_cannot_be_read_is_told() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(home(root.path(), 0).unwrap(), "/");
        let etc = root.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        assert_eq!(home(root.path(), 0).unwrap(), "/");
        let file = etc.join("passwd");
        std::os::unix::fs::symlink("passwd", &file).unwrap();
        let error = home(root.path(), 0).unwrap_err().chain();
        assert!(error.contains("etc/passwd"), "{error}");
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert_eq!(home(root.path(), 0).unwrap(), "/");
    }

    #[test]
    fn homes() {
        let text = "root:x:0:0:root:/root:/bin/sh\nbad\na:x:+7:0::/plus:/x\n\
            b:x:7:7::/home/b:/x\nc:x:4294967296:0::/big:/x\nd:x:8:8::rel:/x\n";
        assert_eq!(find(text, 0).as_deref(), Some("/root"));
        assert_eq!(find(text, 7).as_deref(), Some("/home/b"));
        assert_eq!(find(text, 8), None);
        assert_eq!(find("", 0), None);
    }
}
