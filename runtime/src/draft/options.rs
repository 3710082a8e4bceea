//! Mount options by their names in the spec (runtime-spec, config.md, Linux
//! mount options; mount(8)).

use rkube_sys::mount::{
    MOUNT_ATTR_ATIME, MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME,
    MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_RELATIME, MOUNT_ATTR_STRICTATIME, MS_PRIVATE, MS_SHARED, MS_SLAVE, MS_UNBINDABLE,
};

use crate::error::{Error, Result};

/// Attributes to set and to clear, in the sense of mount_setattr(2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
}

impl Attributes {
    /// True if nothing changes.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    fn on(&mut self, bit: u64) {
        self.set |= bit;
        self.clear &= !bit;
    }

    fn off(&mut self, bit: u64) {
        self.set &= !bit;
        self.clear |= bit;
    }

    /// Access time modes exclude each other.
    fn atime(&mut self, mode: u64) {
        self.set = (self.set & !MOUNT_ATTR_ATIME) | mode;
        self.clear |= MOUNT_ATTR_ATIME;
    }
}

/// The options of one mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// For the mount itself.
    pub attributes: Attributes,
    /// For the mount and everything below.
    pub recursive: Attributes,
    /// `MS_*` and whether for everything below too; the last one wins.
    pub propagation: Option<(u64, bool)>,
    /// A bind mount, and whether with submounts.
    pub bind: Option<bool>,
    /// The file system begins with what the directory below it holds.
    pub copy_up: bool,
    /// Owners are mapped, and whether those of submounts too.
    pub id_mapped: Option<bool>,
    /// What is mounted there already is changed.
    pub remount: bool,
    /// What the file system gets.
    pub data: Vec<(String, Option<String>)>,
}

/// Propagation by name; the flag tells the recursive form.
pub(super) fn propagation(name: &str) -> Option<(u64, bool)> {
    Some(match name {
        "shared" => (MS_SHARED, false),
        "rshared" => (MS_SHARED, true),
        "slave" => (MS_SLAVE, false),
        "rslave" => (MS_SLAVE, true),
        "private" => (MS_PRIVATE, false),
        "rprivate" => (MS_PRIVATE, true),
        "unbindable" => (MS_UNBINDABLE, false),
        "runbindable" => (MS_UNBINDABLE, true),
        _ => return None,
    })
}

/// Names that set one attribute, and those that clear it again.
const BITS: [(&str, &str, u64); 5] = [
    ("ro", "rw", MOUNT_ATTR_RDONLY),
    ("nosuid", "suid", MOUNT_ATTR_NOSUID),
    ("nodev", "dev", MOUNT_ATTR_NODEV),
    ("noexec", "exec", MOUNT_ATTR_NOEXEC),
    ("nosymfollow", "symfollow", MOUNT_ATTR_NOSYMFOLLOW),
];

fn attribute(name: &str, into: &mut Attributes) -> bool {
    for (on, off, bit) in BITS {
        if name == on {
            into.on(bit);
            return true;
        }
        if name == off {
            into.off(bit);
            return true;
        }
    }
    match name {
        "nodiratime" => into.on(MOUNT_ATTR_NODIRATIME),
        "diratime" => into.off(MOUNT_ATTR_NODIRATIME),
        "noatime" => into.atime(MOUNT_ATTR_NOATIME),
        "strictatime" => into.atime(MOUNT_ATTR_STRICTATIME),
        // relatime is the kernel's default and what the others fall back to.
        "relatime" | "atime" | "norelatime" | "nostrictatime" => into.atime(MOUNT_ATTR_RELATIME),
        _ => return false,
    }
    true
}

/// Parses the options of one mount.
///
/// # Errors
/// What is known and cannot be done here, by name.
pub fn parse(field: &str, options: &[String]) -> Result<Options> {
    let mut out = Options::default();
    for option in options {
        if attribute(option, &mut out.attributes) {
            continue;
        }
        if let Some(rest) = option.strip_prefix('r')
            && option != "ro"
            && option != "rw"
            && attribute(rest, &mut out.recursive)
        {
            continue;
        }
        if let Some(found) = propagation(option) {
            out.propagation = Some(found);
            continue;
        }
        match option.as_str() {
            "" | "defaults" => {}
            "bind" => out.bind = Some(out.bind.unwrap_or(false)),
            "rbind" => out.bind = Some(true),
            // For the superblock; fsopen's file systems take them as flags.
            "sync" | "dirsync" | "mand" | "lazytime" | "silent" => {
                out.data.push((option.clone(), None));
            }
            // The opposites of these, which are the default.
            "async" | "nomand" | "nolazytime" | "loud" | "iversion" | "noiversion" => {}
            "tmpcopyup" => out.copy_up = true,
            "idmap" => out.id_mapped = Some(out.id_mapped.unwrap_or(false)),
            "ridmap" => out.id_mapped = Some(true),
            "remount" => out.remount = true,
            "copy-symlink" | "src-nofollow" | "dest-nofollow" => {
                return Err(Error::unsupported(
                    format!("{field}.options"),
                    format!("mount option {option:?}"),
                ));
            }
            _ => out.data.push(match option.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (option.clone(), None),
            }),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &[&str]) -> Options {
        let owned: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
        parse("mounts[0]", &owned).unwrap()
    }

    #[test]
    fn attributes_and_their_opposites() {
        let o = of(&["ro", "nosuid", "suid", "noatime", "strictatime"]);
        assert_eq!(
            o.attributes,
            Attributes {
                set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_STRICTATIME,
                clear: MOUNT_ATTR_NOSUID | MOUNT_ATTR_ATIME,
            }
        );
        assert!(o.recursive.is_empty());
    }

    #[test]
    fn recursive_variants() {
        let o = of(&["rbind", "rro", "rnoexec", "rrelatime", "rslave", "rexec"]);
        assert_eq!(o.bind, Some(true));
        assert_eq!(o.propagation, Some((MS_SLAVE, true)));
        assert_eq!(
            o.recursive,
            Attributes {
                set: MOUNT_ATTR_RDONLY,
                clear: MOUNT_ATTR_NOEXEC | MOUNT_ATTR_ATIME,
            }
        );
        assert!(o.attributes.is_empty() && o.data.is_empty());
        assert_eq!(of(&["rrw"]).recursive.clear, MOUNT_ATTR_RDONLY);
        assert_eq!(of(&["rw"]).attributes.clear, MOUNT_ATTR_RDONLY);
    }

    #[test]
    fn data_goes_to_the_file_system() {
        let o = of(&["mode=1777", "size=65536k", "newinstance", "rbind", "bind"]);
        assert_eq!(o.bind, Some(true));
        let flag = |k: &str, v: Option<&str>| (k.to_owned(), v.map(str::to_owned));
        assert_eq!(
            o.data,
            [
                flag("mode", Some("1777")),
                flag("size", Some("65536k")),
                flag("newinstance", None)
            ]
        );
    }

    #[test]
    fn maps_of_owners() {
        assert_eq!(of(&["bind"]).id_mapped, None);
        assert_eq!(of(&["rbind", "idmap"]).id_mapped, Some(false));
        assert_eq!(of(&["rbind", "ridmap", "idmap"]).id_mapped, Some(true));
        assert!(of(&["remount", "ro"]).remount);
    }

    #[test]
    fn what_cannot_be_done_is_named() {
        let error = parse("mounts[3]", &["copy-symlink".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("mounts[3].options"), "{error}");
        assert!(error.to_string().contains("copy-symlink"), "{error}");
    }
}
