//! Users and groups of an image: `user[:group]` to numbers.
//!
//! The files are the image's, so nothing in them is trusted, and nothing is
//! ever guessed towards root. A specification of digits only is a number: it
//! fits 32 bits or it is an error, it never is a name (CVE-2016-3697 and its
//! relatives in other runtimes).

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};
use crate::fsutil;
use crate::limits::{MAX_GROUPS, MAX_PASSWD_BYTES};

/// Who a process runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserIds {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Groups that `/etc/group` puts the user in, without `gid`, ascending.
    /// Empty if the specification names a group (as Docker has it).
    pub additional_gids: Vec<u32>,
    /// The user's name, if `/etc/passwd` has it.
    pub name: Option<String>,
    /// The user's home, if `/etc/passwd` has it and it is absolute.
    pub home: Option<String>,
}

struct Passwd<'a> {
    name: &'a str,
    uid: &'a str,
    gid: &'a str,
    home: &'a str,
}

/// Finds the ids for `spec` (`user`, `uid`, `user:group`, `uid:gid`, mixed;
/// nothing or an empty text is root) in the root file system `rootfs`.
///
/// A user that is a number need not exist: its group is then 0. Missing
/// files count as empty.
///
/// # Errors
/// [`Error::User`] for a number out of range, an unknown name, or a broken
/// line for the very user; [`Error::Io`] and [`Error::Limit`] for the files.
pub fn resolve_user(rootfs: BorrowedFd<'_>, spec: Option<&str>) -> Result<UserIds> {
    let spec = spec.unwrap_or_default();
    let (user, group) = match spec.split_once(':') {
        Some((u, g)) => (u, Some(g)),
        None => (spec, None),
    };
    let bad = |reason: String| Error::User {
        user: spec.chars().take(200).collect(),
        reason,
    };
    let passwd = read_table(rootfs, b"etc/passwd")?;
    let user = if user.is_empty() { "0" } else { user };
    let number = number(user).map_err(bad)?;
    let entry = passwd_lines(&passwd).find(|p| match number {
        Some(uid) => self::number(p.uid) == Ok(Some(uid)),
        None => p.name == user,
    });
    let mut out = UserIds::default();
    match (&entry, number) {
        (Some(p), _) => {
            let id = |text: &str, what: &str| match self::number(text) {
                Ok(Some(id)) => Ok(id),
                _ => Err(bad(format!("its {what} in /etc/passwd is no valid number"))),
            };
            out.uid = id(p.uid, "user id")?;
            out.gid = id(p.gid, "group id")?;
            out.name = Some(p.name.to_string());
            out.home = p.home.starts_with('/').then(|| p.home.to_string());
        }
        (None, Some(uid)) => out.uid = uid,
        (None, None) => {
            return Err(bad(
                "there is no such user in the image's /etc/passwd".into()
            ));
        }
    }
    let groups = match group {
        None if out.name.is_none() => return Ok(out),
        _ => read_table(rootfs, b"etc/group")?,
    };
    match group {
        Some(group) => {
            out.gid = match self::number(group).map_err(bad)? {
                Some(gid) => gid,
                None => group_lines(&groups)
                    .find(|(name, _, _)| *name == group)
                    .and_then(|(_, gid, _)| self::number(gid).ok().flatten())
                    .ok_or_else(|| {
                        bad(format!(
                            "there is no group {group:?} with a valid id in the image's /etc/group"
                        ))
                    })?,
            };
        }
        None => {
            let name = out.name.as_deref().unwrap_or_default();
            for (_, gid, members) in group_lines(&groups) {
                if members.split(',').any(|m| m == name) {
                    // A broken id gives no group; it does not give another.
                    if let Ok(Some(gid)) = self::number(gid) {
                        out.additional_gids.push(gid);
                    }
                }
            }
            out.additional_gids.sort_unstable();
            out.additional_gids.dedup();
            out.additional_gids.retain(|g| *g != out.gid);
            if out.additional_gids.len() > MAX_GROUPS {
                let limit = MAX_GROUPS as u64;
                return Err(Error::Limit {
                    what: "/etc/group".into(),
                    limit,
                    unit: "groups of one user",
                });
            }
        }
    }
    Ok(out)
}

/// `None`: not a number but a name. Ids are 0 to 2^32-2: -1 means "leave it"
/// to the kernel.
fn number(text: &str) -> Result<Option<u32>, String> {
    if text.is_empty() {
        return Err("a part of it is empty".into());
    }
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(n) if n != u32::MAX => Ok(Some(n)),
        _ => Err(format!("{text} is beyond the largest id, {}", u32::MAX - 1)),
    }
}

/// name:password:uid:gid:gecos:home:shell (passwd(5)); other lines are not
/// users.
fn passwd_lines(text: &str) -> impl Iterator<Item = Passwd<'_>> {
    text.lines().filter_map(|line| {
        let mut f = line.split(':');
        let (name, _, uid, gid) = (f.next()?, f.next()?, f.next()?, f.next()?);
        let home = f.nth(1).unwrap_or_default();
        (!name.is_empty()).then_some(Passwd {
            name,
            uid,
            gid,
            home,
        })
    })
}

/// name:password:gid:members (group(5)).
fn group_lines(text: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    text.lines().filter_map(|line| {
        let mut f = line.split(':');
        let (name, _, gid) = (f.next()?, f.next()?, f.next()?);
        (!name.is_empty()).then_some((name, gid, f.next().unwrap_or_default()))
    })
}

fn read_table(rootfs: BorrowedFd<'_>, path: &[u8]) -> Result<String> {
    let shown = format!("/{}", String::from_utf8_lossy(path));
    // Looked at before it is opened: opening a device acts on it.
    let fd = match fsutil::open_in_root(rootfs, path, OFlags::PATH) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(e) => return Err(e).ctx("open (in the image)", &shown),
    };
    let st = rustix::fs::fstat(&fd).ctx("stat (in the image)", &shown)?;
    if FileType::from_raw_mode(st.st_mode) != FileType::RegularFile {
        return Err(Error::Malformed {
            what: shown,
            reason: "not a regular file in the image".into(),
        });
    }
    let again = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let file = rustix::fs::openat(CWD, again, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .ctx("open (in the image)", &shown)?;
    let bytes = fsutil::read_bounded(File::from(file), MAX_PASSWD_BYTES, &shown)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
