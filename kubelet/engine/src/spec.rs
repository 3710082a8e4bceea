//! From a container's configuration and its image to an OCI runtime spec.
//!
//! Pure: the same input gives the same spec, which `--dry-run` prints. Mounts
//! of volumes are not in it, since they are attached by descriptor; a spec
//! that is printed shows them as bind mounts.

use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{LinuxCapabilities, LinuxResources, LinuxSeccomp, Spec};
use serde_json::{Value, json};

use crate::api::{
    ContainerConfig, MountConfig, MountSource, NamespaceMode, Propagation, Resources,
    SandboxConfig, Seccomp,
};
use crate::error::{Error, Result};
use crate::ids::Ids;

/// Whom a program runs as, after the image's files were asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory, where the image knows the user.
    pub home: Option<String>,
}

/// All that a spec is made from.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The container.
    pub container: &'a ContainerConfig,
    /// Its sandbox.
    pub sandbox: &'a SandboxConfig,
    /// Configuration of its image.
    pub image: &'a ImageConfiguration,
    /// Whom it runs as.
    pub identity: &'a Identity,
    /// Its cgroup, from the root of the hierarchies.
    pub cgroup: &'a str,
    /// Its ids on the host, in a user namespace; a spec that is only shown
    /// has none yet.
    pub ids: Option<Ids>,
}

/// What a container gets without asking (the field's default set, as Docker
/// and containerd give it).
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Hidden paths (Kubernetes' default procMount).
const MASKED_PATHS: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Read-only paths (Kubernetes' default procMount).
const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Search path of a program whose image names none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes the spec.
///
/// # Errors
/// [`Error::Invalid`]: no program, an unknown capability, a bad environment.
pub fn build(input: Input<'_>) -> Result<Spec> {
    let container = input.container;
    let security = &container.security;
    let invalid = |what: String| Error::Invalid {
        object: container.id.to_string(),
        what,
    };
    let capabilities =
        capabilities(container).map_err(|name| invalid(format!("unknown capability {name:?}")))?;
    let caps: Vec<String> = capabilities.iter().map(|c| format!("CAP_{c}")).collect();
    let argv = argv(container, input.image);
    if argv.first().is_none_or(String::is_empty) {
        return Err(invalid(
            "no command is given, and the image has none".into(),
        ));
    }
    let unmasked = security.privileged || security.unmasked_proc;
    let paths = |list: &[&str]| if unmasked { json!([]) } else { json!(list) };
    let mut spec = json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": container.tty,
            "user": {
                "uid": input.identity.uid,
                "gid": input.identity.gid,
                "additionalGids": input.identity.groups,
            },
            "args": argv,
            "env": env(&input)?,
            "cwd": working_dir(container, input.image),
            "capabilities": { "bounding": caps, "effective": caps, "permitted": caps },
            "noNewPrivileges": security.no_new_privileges,
            "oomScoreAdj": container.oom_score_adj,
        },
        "root": { "path": "rootfs", "readonly": security.read_only_root },
        "mounts": mounts(&input),
        "linux": {
            "namespaces": namespaces(input.sandbox),
            "cgroupsPath": format!("/{}", input.cgroup),
            "resources": resources(&container.resources, Some(security.privileged)),
            "maskedPaths": paths(&MASKED_PATHS),
            "readonlyPaths": paths(&READONLY_PATHS),
            "rootfsPropagation": root_propagation(&container.mounts),
        },
    });
    if let Some(ids) = input.ids {
        let range = json!([{"containerID": 0, "hostID": ids.first, "size": ids.count}]);
        spec["linux"]["uidMappings"] = range.clone();
        spec["linux"]["gidMappings"] = range;
    }
    let mut spec: Spec =
        rkube_runtime::spec::typed(&spec).map_err(|e| invalid(format!("make OCI spec: {e}")))?;
    // A long list, which needs no way through JSON.
    let profile = seccomp(&security.seccomp, security.privileged, &caps)?;
    if let Some(linux) = spec.linux_mut() {
        linux.set_seccomp(profile);
    }
    Ok(spec)
}

/// The profile that is in force: none for privileged containers.
pub(crate) fn seccomp(
    wanted: &Seccomp,
    privileged: bool,
    capabilities: &[String],
) -> Result<Option<LinuxSeccomp>> {
    Ok(match wanted {
        _ if privileged => None,
        Seccomp::Unconfined => None,
        Seccomp::RuntimeDefault => {
            let arch = rkube_seccomp::Arch::native().ok_or_else(|| Error::Invalid {
                object: "default seccomp profile".into(),
                what: "this processor's system calls are not in the tables".into(),
            })?;
            // oci-spec's names have no prefix.
            let bare = |c: &String| c.strip_prefix("CAP_").unwrap_or(c).parse().ok();
            let set = capabilities.iter().filter_map(bare).collect();
            Some(rkube_seccomp::default_profile(&set, arch))
        }
        Seccomp::Profile(profile) => Some(profile.as_ref().clone()),
    })
}

/// Every capability, for an exec that is to be privileged.
pub(crate) fn all_capabilities(id: &crate::api::ContainerId) -> Result<LinuxCapabilities> {
    let all = rkube_runtime::capability::names(rkube_runtime::capability::all());
    let sets = json!({ "bounding": all, "effective": all, "permitted": all });
    rkube_runtime::spec::typed(&sets).map_err(|e| Error::Invalid {
        object: id.to_string(),
        what: format!("make capabilities: {e}"),
    })
}

/// Kubernetes' rule: a command replaces entrypoint and arguments of the
/// image, arguments alone replace only its arguments.
fn argv(container: &ContainerConfig, image: &ImageConfiguration) -> Vec<String> {
    let own = image.config().as_ref();
    let entrypoint = own.and_then(|c| c.entrypoint().clone()).unwrap_or_default();
    let cmd = own.and_then(|c| c.cmd().clone()).unwrap_or_default();
    let mut argv = container.command.clone().unwrap_or(entrypoint);
    match (&container.command, &container.args) {
        (_, Some(args)) => argv.extend(args.iter().cloned()),
        (None, None) => argv.extend(cmd),
        (Some(_), None) => {}
    }
    argv
}

/// The image's, then ours; a later entry of the same name replaces an earlier
/// one in its place.
fn env(input: &Input<'_>) -> Result<Vec<String>> {
    let mut env: Vec<String> = vec![DEFAULT_PATH.to_owned()];
    let mut set = |pair: String| {
        let name = pair.split('=').next().unwrap_or_default().len() + 1;
        match env
            .iter_mut()
            .find(|e| e.len() >= name && e.get(..name) == pair.get(..name))
        {
            Some(old) => *old = pair,
            None => env.push(pair),
        }
    };
    if let Some(home) = &input.identity.home {
        set(format!("HOME={home}"));
    }
    if input.container.tty {
        set("TERM=xterm".to_owned());
    }
    set(format!("HOSTNAME={}", input.sandbox.hostname));
    let image = input
        .image
        .config()
        .as_ref()
        .and_then(|c| c.env().clone())
        .unwrap_or_default();
    image
        .into_iter()
        .filter(|e| e.contains('='))
        .for_each(&mut set);
    for (name, value) in &input.container.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            let what = format!("environment variable {name:?} cannot be passed on");
            return Err(Error::Invalid {
                object: input.container.id.to_string(),
                what,
            });
        }
        set(format!("{name}={value}"));
    }
    Ok(env)
}

fn working_dir(container: &ContainerConfig, image: &ImageConfiguration) -> String {
    let image = || {
        image
            .config()
            .as_ref()
            .and_then(|c| c.working_dir().clone())
    };
    container
        .working_dir
        .clone()
        .or_else(image)
        .filter(|d| !d.is_empty())
        .unwrap_or_else(|| "/".to_owned())
}

/// Names without `CAP_`. `ALL` in the list to add means every one, in the
/// list to drop none but those added by name.
fn capabilities(container: &ContainerConfig) -> std::result::Result<Vec<String>, String> {
    let security = &container.security;
    let all = || rkube_runtime::capability::names(rkube_runtime::capability::all());
    let bare = |name: &String| {
        let upper = name.to_ascii_uppercase();
        upper
            .strip_prefix("CAP_")
            .map_or(upper.clone(), str::to_owned)
    };
    let add: Vec<String> = security.add_capabilities.iter().map(bare).collect();
    let drop: Vec<String> = security.drop_capabilities.iter().map(bare).collect();
    for name in add.iter().chain(&drop) {
        if name != "ALL" && rkube_runtime::capability::bit(&format!("CAP_{name}")).is_none() {
            return Err(name.clone());
        }
    }
    let every = || all().iter().map(bare).collect::<Vec<String>>();
    if security.privileged {
        return Ok(every());
    }
    let has = |list: &[String]| list.iter().any(|n| n == "ALL");
    let mut set: Vec<String> = if has(&drop) {
        Vec::new()
    } else if has(&add) {
        every()
    } else {
        DEFAULT_CAPABILITIES
            .iter()
            .map(|c| (*c).to_owned())
            .collect()
    };
    if has(&drop) && has(&add) {
        set = every();
    }
    for name in add.into_iter().filter(|n| n != "ALL") {
        if !set.contains(&name) {
            set.push(name);
        }
    }
    set.retain(|name| !drop.contains(name));
    Ok(set)
}

fn namespaces(sandbox: &SandboxConfig) -> Value {
    // A namespace with a path is joined: its descriptor comes from pause.
    let mut list = vec![json!({ "type": "mount" }), json!({ "type": "cgroup" })];
    let joined =
        |kind: &str| json!({ "type": kind, "path": format!("/proc/self/ns/{}", file(kind)) });
    if sandbox.network == NamespaceMode::Pod {
        list.push(joined("network"));
    }
    list.push(joined("uts"));
    if sandbox.user_namespace {
        list.push(joined("user"));
    }
    if sandbox.ipc == NamespaceMode::Pod {
        list.push(joined("ipc"));
    }
    match sandbox.pid {
        NamespaceMode::Container => list.push(json!({ "type": "pid" })),
        NamespaceMode::Pod => list.push(joined("pid")),
        NamespaceMode::Host => {}
    }
    Value::Array(list)
}

fn file(kind: &str) -> &str {
    if kind == "network" { "net" } else { kind }
}

fn mounts(input: &Input<'_>) -> Value {
    let privileged = input.container.security.privileged;
    let ro = if privileged { "rw" } else { "ro" };
    let mount = |target: &str, kind: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": kind, "options": options });
    let mut list = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", ro]),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", ro],
        ),
    ];
    for m in &input.container.mounts {
        if let MountSource::Tmpfs { size_bytes, mode } = &m.source {
            let mut options = vec![format!("mode={mode:o}"), "nosuid".into(), "nodev".into()];
            options.extend(size_bytes.map(|n| format!("size={n}")));
            if m.read_only {
                options.push("ro".into());
            }
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            list.push(mount(&m.target, "tmpfs", &options));
        }
    }
    Value::Array(list)
}

/// A mount that is to reach the host, or to be reached from it, needs a root
/// that lets events through.
fn root_propagation(mounts: &[MountConfig]) -> &'static str {
    let any = |p| mounts.iter().any(|m| m.propagation == p);
    if any(Propagation::Bidirectional) {
        "shared"
    } else if any(Propagation::HostToContainer) {
        "rslave"
    } else {
        "private"
    }
}

/// Limits as OCI writes them. Devices: everything for privileged containers,
/// the usual ones otherwise; `None` for groups that hold no container.
#[must_use]
pub fn resources(r: &Resources, devices: Option<bool>) -> Value {
    let hugepages: Vec<Value> = r
        .hugepages
        .iter()
        .map(|(size, limit)| json!({ "pageSize": size, "limit": limit }))
        .collect();
    let mut value = json!({
        "cpu": {
            "shares": r.cpu_shares,
            "quota": r.cpu_quota_us,
            "period": r.cpu_period_us,
            "cpus": r.cpuset_cpus,
        },
        "memory": { "limit": r.memory_limit_bytes, "swap": r.memory_swap_bytes },
    });
    prune(&mut value);
    if let Some(limit) = r.pids_limit {
        value["pids"] = json!({ "limit": limit });
    }
    if !hugepages.is_empty() {
        value["hugepageLimits"] = Value::Array(hugepages);
    }
    if !r.unified.is_empty() {
        value["unified"] = json!(r.unified);
    }
    if let Some(privileged) = devices {
        value["devices"] = device_rules(privileged);
    }
    value
}

/// Null members and objects that have none but those.
fn prune(value: &mut Value) {
    if let Value::Object(map) = value {
        map.values_mut().for_each(prune);
        map.retain(|_, v| !v.is_null() && v.as_object().is_none_or(|o| !o.is_empty()));
    }
}

/// The same as typed limits and rkube's own fields.
pub fn typed_resources(
    object: &str,
    r: &Resources,
    devices: Option<bool>,
) -> Result<(LinuxResources, rkube_cgroup::Extras)> {
    let invalid = |what: String| Error::Invalid {
        object: object.to_owned(),
        what,
    };
    let typed = rkube_runtime::spec::typed(&resources(r, devices))
        .map_err(|e| invalid(format!("limits: {e}")))?;
    let memory_min = r.memory_min_bytes.map(u64::try_from).transpose();
    let extras = rkube_cgroup::Extras {
        memory_high: r.memory_high_bytes,
        memory_min: memory_min.map_err(|_| invalid("memory.min below 0".into()))?,
        oom_group: r.oom_group.then_some(true),
        swap_max: None,
    };
    Ok((typed, extras))
}

fn device_rules(privileged: bool) -> Value {
    if privileged {
        return json!([{ "allow": true, "access": "rwm" }]);
    }
    let node = |major: i64, minor: Option<i64>| json!({ "allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm" });
    let mut rules = vec![
        json!({ "allow": false, "access": "rwm" }),
        json!({ "allow": true, "type": "c", "access": "m" }),
        json!({ "allow": true, "type": "b", "access": "m" }),
        node(1, Some(3)), // null
        node(1, Some(5)), // zero
        node(1, Some(7)), // full
        node(1, Some(8)), // random
        node(1, Some(9)), // urandom
        node(5, Some(0)), // tty
        node(5, Some(1)), // console
        node(5, Some(2)), // ptmx
        node(136, None),  // pts
    ];
    rules.iter_mut().for_each(prune);
    Value::Array(rules)
}
