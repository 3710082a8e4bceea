//! Mounts of the spec as steps.

use std::ffi::CString;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount;
use rkube_cgroup::{Hierarchies, Hierarchy, Mode, Version};
use rkube_keeper::plan::{IdMapped, Step};
use rkube_sys::mount::{MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};

use super::host::Owners;
use super::options::{self, Options};
use super::{CgroupInput, Draft, Source, c_path, c_string};
use crate::error::{Error, Result};

/// What the mounts need to know of the container.
pub(super) struct Scene<'a> {
    /// Relative sources begin here.
    pub(super) bundle: &'a Path,
    /// `MS_*` that every bound tree gets first.
    pub(super) propagation: u64,
    /// Its cgroup.
    pub(super) cgroup: Option<&'a CgroupInput>,
    /// It has a cgroup namespace of its own.
    pub(super) cgroup_namespace: bool,
    /// The map of its user namespace.
    pub(super) owners: &'a Owners,
}

/// Steps before and after the root file system is entered.
#[derive(Debug, Default)]
pub(super) struct Steps {
    /// File systems that are made while the host's root is there: in a user
    /// namespace proc and sysfs can only be made beside a visible one.
    pub(super) before: Vec<Step>,
    /// Attaching, in the spec's order.
    pub(super) after: Vec<Step>,
    /// Read-only at the end, when everything inside has been made.
    pub(super) late: Vec<Step>,
    /// Something other than a plain file system covers /dev.
    pub(super) dev_is_bound: bool,
    slot: u16,
}

/// File systems that are views of the kernel, whose instances containers may
/// share, and tmpfs, which is filled first: of these only the mount is made
/// read-only.
const KERNELS_OWN: [&str; 20] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "proc",
    "pstore",
    "ramfs",
    "securityfs",
    "sysfs",
    "tmpfs",
    "tracefs",
];

/// Absolute and without `.` and `..`, as the container sees it.
pub(crate) fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    out
}

/// Adds the mounts of a spec.
pub(super) fn add(draft: &mut Draft, mounts: &[Mount], scene: &Scene<'_>) -> Result<Steps> {
    let mut steps = Steps::default();
    for (n, mount) in mounts.iter().enumerate() {
        let field = format!("mounts[{n}]");
        let raw = mount.destination();
        if raw.as_os_str().is_empty() {
            return Err(Error::spec(format!("{field}.destination"), "it is empty"));
        }
        if !raw.is_absolute() {
            draft.warn(
                &format!("{field}.destination"),
                "it is relative, which the spec does not allow; taken as below /",
            );
        }
        let target = normal(raw);
        if target == Path::new("/") {
            return Err(Error::unsupported(
                format!("{field}.destination"),
                "a mount over the root",
            ));
        }
        let options = options::parse(&field, mount.options().as_deref().unwrap_or_default())?;
        let kind = mount.typ().as_deref().unwrap_or_default();
        let is_bind = options.bind.is_some() || matches!(kind, "bind" | "rbind");
        let mapped = id_mapped(&field, mount, &options, scene)?;
        if mapped.is_some() && !is_bind {
            return Err(Error::unsupported(
                format!("{field}.uidMappings"),
                "a map of owners in anything but a bind mount",
            ));
        }
        if options.remount {
            remount(&mut steps, &field, &target, &options)?;
            continue;
        }
        match (kind, options.bind) {
            (_, Some(_)) | ("bind" | "rbind", None) => {
                let recursive = options.bind.unwrap_or(kind == "rbind");
                if target == Path::new("/dev") {
                    steps.dev_is_bound = true;
                }
                bind(
                    draft, &mut steps, &field, mount, &target, &options, recursive, scene,
                )?;
                if let (Some(mut mapped), Some(Step::AttachFd { fd, .. })) =
                    (mapped, steps.after.last())
                {
                    mapped.fd = *fd;
                    draft.plan.id_mapped.push(mapped);
                }
            }
            ("", None) => {
                return Err(Error::spec(
                    format!("{field}.type"),
                    "it is missing, and the mount is no bind mount",
                ));
            }
            ("cgroup" | "cgroup2", None) => {
                cgroup(draft, &mut steps, &field, kind, &target, &options, scene)?;
            }
            (_, None) => {
                let made = New {
                    kind,
                    source: mount.source().as_deref().unwrap_or(Path::new(kind)),
                    target: &target,
                };
                new(&mut steps, &field, made, &options, true)?;
            }
        }
    }
    Ok(steps)
}

#[allow(clippy::too_many_arguments)]
fn bind(
    draft: &mut Draft,
    steps: &mut Steps,
    field: &str,
    mount: &Mount,
    target: &Path,
    options: &Options,
    recursive: bool,
    scene: &Scene<'_>,
) -> Result<()> {
    for (key, _) in &options.data {
        draft.warn(
            &format!("{field}.options"),
            format_args!("{key:?} has no effect on a bind mount"),
        );
    }
    let source = mount
        .source()
        .as_deref()
        .filter(|s| !s.as_os_str().is_empty());
    let source = source
        .ok_or_else(|| Error::spec(format!("{field}.source"), "a bind mount needs a source"))?;
    let fd = draft.source(Source::Tree {
        path: scene.bundle.join(source),
        recursive,
        attributes: options.attributes,
        recursive_attributes: options.recursive,
        propagation: (scene.propagation, options.propagation),
        directory: false,
    })?;
    steps.after.push(Step::AttachFd {
        fd,
        target: c_path(field, target)?,
        // Known when it is opened.
        directory: true,
    });
    Ok(())
}

/// How the owners in a mount are mapped: by the mount's own maps, or by those
/// of the container's user namespace (runtime-spec, config.md, Mounts).
fn id_mapped(
    field: &str,
    mount: &Mount,
    options: &Options,
    scene: &Scene<'_>,
) -> Result<Option<IdMapped>> {
    let maps = |name: &str, list: &Option<Vec<_>>| {
        super::host::id_map(&format!("{field}.{name}"), list.as_ref())
    };
    let uid_map = maps("uidMappings", mount.uid_mappings())?;
    let gid_map = maps("gidMappings", mount.gid_mappings())?;
    let recursive = options.id_mapped.unwrap_or(false);
    match (uid_map.is_empty(), gid_map.is_empty()) {
        (false, false) => Ok(Some(IdMapped {
            uid_map,
            gid_map,
            recursive,
            ..IdMapped::default()
        })),
        (true, true) if options.id_mapped.is_none() => Ok(None),
        (true, true) => match scene.owners {
            Owners::Host => Err(Error::spec(
                format!("{field}.options"),
                "idmap needs maps of the mount, or a container with a user namespace",
            )),
            Owners::Maps { uid_map, gid_map } => Ok(Some(IdMapped {
                uid_map: uid_map.clone(),
                gid_map: gid_map.clone(),
                recursive,
                ..IdMapped::default()
            })),
            Owners::Joined(namespace) => Ok(Some(IdMapped {
                namespace: Some(*namespace),
                recursive,
                ..IdMapped::default()
            })),
        },
        _ => Err(Error::spec(
            format!("{field}.uidMappings"),
            "maps of users and of groups belong together",
        )),
    }
}

/// Changes what an earlier mount has put there, or the image's own mount.
fn remount(steps: &mut Steps, field: &str, target: &Path, options: &Options) -> Result<()> {
    if let Some((key, _)) = options.data.first() {
        return Err(Error::unsupported(
            format!("{field}.options"),
            format!("{key:?} at a remount, which would change a file system that others use too,"),
        ));
    }
    let target = c_path(field, target)?;
    let (flag, deep) = options.propagation.unwrap_or((0, false));
    for (attributes, recursive) in [(options.recursive, true), (options.attributes, false)] {
        let propagation = if deep == recursive { flag } else { 0 };
        if !attributes.is_empty() || propagation != 0 {
            steps.after.push(Step::Remount {
                target: target.clone(),
                set: attributes.set,
                clear: attributes.clear,
                propagation,
                recursive,
            });
        }
    }
    Ok(())
}

struct New<'a> {
    kind: &'a str,
    source: &'a Path,
    target: &'a Path,
}

/// A new instance of a file system; `early` makes it before the root file
/// system is entered.
fn new(
    steps: &mut Steps,
    field: &str,
    made: New<'_>,
    options: &Options,
    early: bool,
) -> Result<()> {
    let slot = steps.slot;
    steps.slot += 1;
    let mut attributes = options.attributes.set;
    let target = c_path(field, made.target)?;
    // A tmpfs is filled first (devices, mount points).
    let late = made.kind == "tmpfs" && attributes & MOUNT_ATTR_RDONLY != 0;
    if late {
        attributes &= !MOUNT_ATTR_RDONLY;
        steps.late.push(Step::Remount {
            target: target.clone(),
            set: MOUNT_ATTR_RDONLY,
            clear: 0,
            propagation: 0,
            recursive: false,
        });
    }
    let mut data = Vec::new();
    for (key, value) in &options.data {
        let value = match value {
            Some(value) => Some(c_string(field, value.as_str())?),
            None => None,
        };
        data.push((c_string(field, key.as_str())?, value));
    }
    if options.attributes.set & MOUNT_ATTR_RDONLY != 0 && !KERNELS_OWN.contains(&made.kind) {
        // The file system as well as its mount: a device that cannot be
        // written to is no error then, and no journal is replayed.
        data.push((c_string(field, "ro")?, None));
    }
    let filesystem = Step::Filesystem {
        slot,
        kind: c_string(field, made.kind)?,
        source: c_path(field, made.source)?,
        options: data,
        attributes,
    };
    if early {
        steps.before.push(filesystem);
    } else {
        steps.after.push(filesystem);
    }
    if options.copy_up {
        let own = |(key, _): &(String, _)| matches!(key.as_str(), "mode" | "uid" | "gid");
        steps.after.push(Step::CopyUp {
            slot,
            target: target.clone(),
            itself: !options.data.iter().any(own),
        });
    }
    steps.after.push(Step::Attach {
        slot,
        target: target.clone(),
        propagation: options.propagation.map_or(0, |(flag, _)| flag),
    });
    if !options.recursive.is_empty() {
        steps.late.push(Step::Remount {
            target,
            set: options.recursive.set,
            clear: options.recursive.clear,
            propagation: 0,
            recursive: true,
        });
    }
    Ok(())
}

/// A cgroup mount: v2 alone, or a tmpfs with every v1 hierarchy (and v2 on a
/// hybrid host) as the host has them; links for those mounted together.
fn cgroup(
    draft: &mut Draft,
    steps: &mut Steps,
    field: &str,
    kind: &str,
    target: &Path,
    options: &Options,
    scene: &Scene<'_>,
) -> Result<()> {
    let input = scene.cgroup.ok_or_else(|| {
        Error::spec(
            field,
            "a cgroup mount needs a container with a cgroup of its own",
        )
    })?;
    // Everything below sees the container's group as its root.
    steps.after.push(Step::EnterCgroup {});
    let hierarchies: &Hierarchies = &input.hierarchies;
    if kind == "cgroup2" || hierarchies.mode() == Mode::Unified {
        let v2 = hierarchies
            .v2()
            .ok_or_else(|| Error::unsupported(field, "cgroup2, which this host does not mount,"))?;
        return show(draft, steps, field, v2, target, options, scene);
    }
    let base = Options {
        attributes: options::Attributes {
            set: options.attributes.set | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
            clear: 0,
        },
        propagation: options.propagation,
        data: vec![("mode".to_owned(), Some("755".to_owned()))],
        ..Options::default()
    };
    let made = New {
        kind: "tmpfs",
        source: Path::new("tmpfs"),
        target,
    };
    new(steps, field, made, &base, true)?;
    for hierarchy in hierarchies.list() {
        let name = directory_name(hierarchy);
        show(
            draft,
            steps,
            field,
            hierarchy,
            &target.join(&name),
            options,
            scene,
        )?;
        for controller in hierarchy.controllers() {
            let own = controller.name(hierarchy.version());
            if hierarchy.version() == Version::V1 && own != name {
                steps.after.push(Step::Symlink {
                    path: c_path(field, &target.join(own))?,
                    target: c_string(field, name.as_str())?,
                });
            }
        }
    }
    Ok(())
}

/// The usual name of a hierarchy's directory (systemd's `unified` for v2).
fn directory_name(hierarchy: &Hierarchy) -> String {
    if hierarchy.version() == Version::V2 {
        return "unified".to_owned();
    }
    if let Some(name) = hierarchy.name() {
        return name.to_owned();
    }
    let names: Vec<_> = hierarchy
        .controllers()
        .iter()
        .map(|c| c.name(Version::V1))
        .collect();
    names.join(",")
}

/// One hierarchy: a new mount of it, which begins at the cgroup namespace's
/// root, or without such a namespace the container's own directory, bound.
fn show(
    draft: &mut Draft,
    steps: &mut Steps,
    field: &str,
    hierarchy: &Hierarchy,
    target: &Path,
    options: &Options,
    scene: &Scene<'_>,
) -> Result<()> {
    if !scene.cgroup_namespace {
        let path = scene.cgroup.map(|c| c.path.as_str()).unwrap_or_default();
        let fd = draft.source(Source::Tree {
            path: hierarchy.mount_point().join(path),
            recursive: false,
            attributes: options.attributes,
            recursive_attributes: options::Attributes::default(),
            propagation: (scene.propagation, options.propagation),
            directory: true,
        })?;
        steps.after.push(Step::AttachFd {
            fd,
            target: c_path(field, target)?,
            directory: true,
        });
        return Ok(());
    }
    let (kind, mut data) = match hierarchy.version() {
        Version::V2 => ("cgroup2", Vec::new()),
        Version::V1 => ("cgroup", Vec::new()),
    };
    if hierarchy.version() == Version::V1 {
        if let Some(name) = hierarchy.name() {
            data.push(("none".to_owned(), None));
            data.push(("name".to_owned(), Some(name.to_owned())));
        }
        for controller in hierarchy.controllers() {
            data.push((controller.name(Version::V1).to_owned(), None));
        }
    }
    let one = Options {
        attributes: options.attributes,
        recursive: options.recursive,
        propagation: options.propagation,
        data,
        ..Options::default()
    };
    let made = New {
        kind,
        source: Path::new("cgroup"),
        target,
    };
    // Made after the process is in its cgroup namespace.
    new(steps, field, made, &one, false)
}

/// Hides and protects paths.
pub(super) fn covers(
    draft: &mut Draft,
    masked: Option<&Vec<String>>,
    read_only: Option<&Vec<String>>,
) -> Result<()> {
    let path = |field: &str, text: &String| -> Result<CString> {
        if !text.starts_with('/') {
            return Err(Error::spec(field, format!("{text:?} is not absolute")));
        }
        c_string(field, text.as_str())
    };
    for text in read_only.into_iter().flatten() {
        let path = path("linux.readonlyPaths", text)?;
        draft.step(Step::ReadOnly { path });
    }
    let masked = masked.map(Vec::as_slice).unwrap_or_default();
    if !masked.is_empty() {
        draft.plan.null = Some(draft.source(Source::Null)?);
    }
    for text in masked {
        let path = path("linux.maskedPaths", text)?;
        draft.step(Step::Mask { path });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_stay_inside() {
        for (raw, wanted) in [
            ("/a/../../b", "/b"),
            ("a/./b", "/a/b"),
            ("/..", "/"),
            ("//x//y/", "/x/y"),
        ] {
            assert_eq!(normal(Path::new(raw)), Path::new(wanted), "{raw}");
        }
    }
}
