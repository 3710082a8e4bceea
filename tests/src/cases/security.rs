//! What a container may do, and what it must not reach.

use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::case::Case;
use crate::host::TestHost;
use crate::images;
use crate::pods::{pod, script, tool, with};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("security::default_privileges", default_privileges),
        Case::new(
            "security::capabilities_added_and_dropped",
            capabilities_added_and_dropped,
        ),
        Case::new(
            "security::the_default_filter_refuses",
            the_default_filter_refuses,
        ),
        Case::new(
            "security::unconfined_and_privileged",
            unconfined_and_privileged,
        ),
        Case::new("security::no_new_privileges", no_new_privileges),
        Case::new("security::users_and_groups", users_and_groups),
        Case::new(
            "security::root_is_refused_where_it_must_not_be",
            root_is_refused_where_it_must_not_be,
        ),
        Case::new("security::read_only_root", read_only_root),
        Case::new(
            "security::masked_and_read_only_paths",
            masked_and_read_only_paths,
        ),
        Case::new("security::device_nodes", device_nodes),
        Case::new("security::user_of_the_image", user_of_the_image),
        Case::new(
            "security::links_in_an_image_lead_nowhere",
            links_in_an_image_lead_nowhere,
        ),
        Case::new("security::terminals", terminals),
        Case::new("security::sysctls_of_the_pod", sysctls_of_the_pod),
    ]
}

fn secured(container: Value, context: Value) -> Value {
    with(container, "", json!({"securityContext": context}))
}

/// The value after `NAME:` in lines of /proc/self/status.
fn field<'a>(lines: &'a [String], name: &str) -> anyhow::Result<&'a str> {
    let found = lines
        .iter()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    Ok(found
        .with_context(|| format!("no {name} in {lines:?}"))?
        .trim())
}

fn bits(lines: &[String], name: &str) -> anyhow::Result<u64> {
    u64::from_str_radix(field(lines, name)?, 16).context("a set of capabilities")
}

/// The field's 14 default capabilities, numbered as in linux/capability.h:
/// chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap,
/// net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap.
const DEFAULT_CAPABILITIES: [u32; 14] = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31];
const NET_ADMIN: u32 = 12;
const SYS_TIME: u32 = 25;

fn set_of(numbers: &[u32]) -> u64 {
    numbers.iter().fold(0, |set, n| set | 1 << n)
}

fn default_privileges(host: &TestHost) -> anyhow::Result<()> {
    let lines = host.lines_of(pod("p", &[tool("a", &["caps"])]))?;
    for name in ["CapPrm", "CapEff", "CapBnd"] {
        let found = bits(&lines, name)?;
        ensure!(found == set_of(&DEFAULT_CAPABILITIES), "{name} {found:x}");
    }
    ensure!(bits(&lines, "CapAmb")? == 0, "{lines:?}");
    ensure!(
        field(&lines, "Seccomp")? == "2" && field(&lines, "NoNewPrivs")? == "0",
        "{lines:?}"
    );
    Ok(())
}

fn capabilities_added_and_dropped(host: &TestHost) -> anyhow::Result<()> {
    let of = |change: Value| {
        host.lines_of(pod(
            "p",
            &[secured(
                tool("a", &["caps"]),
                json!({"capabilities": change}),
            )],
        ))
    };
    let added = of(json!({"add": ["NET_ADMIN"], "drop": ["MKNOD"]}))?;
    let wanted = (set_of(&DEFAULT_CAPABILITIES) | set_of(&[NET_ADMIN])) & !set_of(&[27]);
    ensure!(bits(&added, "CapEff")? == wanted, "{added:?}");
    let dropped = of(json!({"drop": ["ALL"]}))?;
    ensure!(
        bits(&dropped, "CapEff")? == 0 && bits(&dropped, "CapBnd")? == 0,
        "{dropped:?}"
    );
    let one = of(json!({"drop": ["ALL"], "add": ["CHOWN"]}))?;
    ensure!(bits(&one, "CapEff")? == 1, "{one:?}");
    Ok(())
}

fn the_default_filter_refuses(host: &TestHost) -> anyhow::Result<()> {
    let lines = host.lines_of(pod("p", &[tool("a", &["syscall-probe"])]))?;
    let is = |name: &str, answer: &str| lines.iter().any(|l| *l == format!("{name} {answer}"));
    ensure!(is("getcwd", "ok") && is("chroot", "ok"), "{lines:?}");
    for name in [
        "clock_settime",
        "delete_module",
        "mount",
        "pivot_root",
        "unshare-mount",
        "unshare-net",
        "unshare-user",
    ] {
        ensure!(is(name, "EPERM"), "{name}: {lines:?}");
    }
    for name in ["fsopen", "open_tree"] {
        ensure!(is(name, "EPERM") || is(name, "ENOSYS"), "{name}: {lines:?}");
    }
    // The filter goes with the capability: with it, the kernel itself answers.
    let timed = secured(
        tool("a", &["syscall-probe", "clock_settime"]),
        json!({"capabilities": {"add": ["SYS_TIME"]}}),
    );
    let lines = host.lines_of(pod("p", &[timed]))?;
    // An impossible time, so that the host's clock is not touched.
    ensure!(
        lines == ["clock_settime EINVAL"] || !has_own(SYS_TIME)?,
        "{lines:?}"
    );
    Ok(())
}

/// Whether this process has a capability itself.
fn has_own(number: u32) -> anyhow::Result<bool> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    Ok(bits(&lines, "CapEff")? & (1 << number) != 0)
}

fn unconfined_and_privileged(host: &TestHost) -> anyhow::Result<()> {
    let profile = json!({"seccompProfile": {"type": "Unconfined"}});
    let lines = host.lines_of(pod("p", &[secured(tool("a", &["caps"]), profile)]))?;
    ensure!(field(&lines, "Seccomp")? == "0", "{lines:?}");
    ensure!(
        bits(&lines, "CapEff")? == set_of(&DEFAULT_CAPABILITIES),
        "{lines:?}"
    );
    let privileged = json!({"privileged": true});
    let lines = host.lines_of(pod(
        "p",
        &[secured(tool("a", &["caps"]), privileged.clone())],
    ))?;
    ensure!(field(&lines, "Seccomp")? == "0", "{lines:?}");
    let own = std::fs::read_to_string("/proc/self/status")?;
    let own: Vec<String> = own.lines().map(str::to_owned).collect();
    // All that this host has to give.
    ensure!(
        bits(&lines, "CapEff")? == bits(&own, "CapBnd")?,
        "{lines:?} {own:?}"
    );
    let lines = host.lines_of(pod("p", &[secured(tool("a", &["mounts"]), privileged)]))?;
    ensure!(
        lines.iter().all(|l| !l.contains("/proc/kcore")),
        "a masked path: {lines:?}"
    );
    Ok(())
}

fn no_new_privileges(host: &TestHost) -> anyhow::Result<()> {
    let context = json!({"allowPrivilegeEscalation": false, "runAsUser": 1000});
    let lines = host.lines_of(pod("p", &[secured(tool("a", &["caps"]), context)]))?;
    ensure!(field(&lines, "NoNewPrivs")? == "1", "{lines:?}");
    ensure!(
        bits(&lines, "CapEff")? == 0 && field(&lines, "Seccomp")? == "2",
        "{lines:?}"
    );
    Ok(())
}

fn users_and_groups(host: &TestHost) -> anyhow::Result<()> {
    let made = with(
        pod("p", &[script("a", "id; touch /v/f; stat /v/f /v")]),
        "spec",
        json!({
            "securityContext": {"runAsUser": 1000, "runAsGroup": 3000, "supplementalGroups": [4000, 5000], "fsGroup": 6000},
            "volumes": [{"name": "v", "emptyDir": {}}],
        }),
    );
    let made = with(
        made,
        "spec.containers.0",
        json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
    );
    let lines = host.lines_of(made)?;
    let id = lines.first().context("no id")?;
    ensure!(id.starts_with("uid=1000 gid=3000 "), "{lines:?}");
    let groups = id
        .split("groups=")
        .nth(1)
        .unwrap_or_default()
        .split(',')
        .collect::<Vec<_>>();
    for group in ["4000", "5000", "6000"] {
        ensure!(groups.contains(&group), "{lines:?}");
    }
    ensure!(!groups.contains(&"0"), "root's group is kept: {lines:?}");
    // MODE UID GID ...: the set-group-ID bit hands the group on.
    ensure!(lines[1].split(' ').nth(2) == Some("6000"), "{lines:?}");
    ensure!(
        lines[2].starts_with("2777 ") && lines[2].split(' ').nth(2) == Some("6000"),
        "{lines:?}"
    );
    // The container's own user wins over the pod's.
    let made = with(
        pod("p", &[secured(tool("a", &["id"]), json!({"runAsUser": 7}))]),
        "spec",
        json!({"securityContext": {"runAsUser": 8}}),
    );
    let lines = host.lines_of(made)?;
    ensure!(lines[0].starts_with("uid=7 gid=0 "), "{lines:?}");
    Ok(())
}

fn root_is_refused_where_it_must_not_be(host: &TestHost) -> anyhow::Result<()> {
    let made = pod(
        "p",
        &[secured(
            tool("a", &["echo", "ran"]),
            json!({"runAsNonRoot": true}),
        )],
    );
    let file = host.manifest(&[made])?;
    let args = ["run", "--detach", "--timeout", "3", "-f"].map(Path::new);
    let out = host
        .rkube(args.into_iter().chain([file.as_path()]))?
        .exits(1)?;
    ensure!(
        out.stderr.contains("CreateContainerConfigError") && out.stderr.contains("root"),
        "{out}"
    );
    host.rm(&["p"])?;
    let lines = host.lines_of(pod(
        "q",
        &[secured(
            tool("a", &["id"]),
            json!({"runAsNonRoot": true, "runAsUser": 5}),
        )],
    ))?;
    ensure!(lines[0].starts_with("uid=5 "), "{lines:?}");
    Ok(())
}

fn read_only_root(host: &TestHost) -> anyhow::Result<()> {
    let context = json!({"readOnlyRootFilesystem": true});
    let container = secured(tool("a", &["sleep", "inf"]), context);
    let container = with(
        container,
        "",
        json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
    );
    let made = with(
        pod("p", &[container]),
        "spec",
        json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
    );
    host.up(&[made])?;
    for path in ["/file", "/tmp/file", "/etc/file", "/bin/file"] {
        let out = host.exec("p", &["touch", path])?.exits(1)?;
        ensure!(
            out.stderr.contains("ead-only file system") || out.stderr.contains("EROFS"),
            "{path}: {out}"
        );
    }
    host.tell("p", &["touch", "/v/file"])?;
    host.tell("p", &["touch", "/dev/shm/file"])?;
    host.rm(&["p"])?;
    Ok(())
}

fn masked_and_read_only_paths(host: &TestHost) -> anyhow::Result<()> {
    host.up(&[pod("p", &[tool("a", &["sleep", "inf"])])])?;
    for path in ["/proc/kcore", "/proc/keys", "/proc/timer_list"] {
        if !Path::new(path).exists() {
            continue;
        }
        let text = host.tell("p", &["cat", path])?;
        ensure!(text.is_empty(), "{path}: {} bytes", text.len());
    }
    ensure!(host.tell("p", &["ls", "/sys/firmware"])?.is_empty());
    for path in [
        "/proc/sysrq-trigger",
        "/proc/sys/kernel/panic",
        "/proc/irq/default_smp_affinity",
    ] {
        if !Path::new(path).exists() {
            continue;
        }
        let out = host.exec("p", &["write", "-a", path, "0"])?.exits(1)?;
        ensure!(
            out.stderr.contains("ead-only") || out.stderr.contains("EROFS"),
            "{path}: {out}"
        );
    }
    let cgroup = host
        .exec("p", &["mkdir", "/sys/fs/cgroup/mine"])?
        .output()?;
    ensure!(!cgroup.status.success(), "{cgroup}");
    host.rm(&["p"])?;
    Ok(())
}

fn device_nodes(host: &TestHost) -> anyhow::Result<()> {
    host.up(&[pod("p", &[tool("a", &["sleep", "inf"])])])?;
    let list = host.tell("p", &["ls", "/dev"])?;
    let names: Vec<&str> = list.split_whitespace().collect();
    for name in [
        "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
        "urandom", "zero",
    ] {
        ensure!(names.contains(&name), "no {name}: {list}");
    }
    for name in ["kmsg", "mem", "sda", "vda", "loop0", "fuse", "kvm"] {
        ensure!(!names.contains(&name), "{name} is there: {list}");
    }
    let null = host.tell("p", &["stat", "/dev/null"])?;
    ensure!(
        null.starts_with("0666 0 0 ") && null.contains("1:3"),
        "{null}"
    );
    // Device 1:1 is memory: whether or not a node can be made, it opens never.
    let busybox = images::busybox()?;
    host.rkube([
        Path::new("image"),
        Path::new("import"),
        &busybox,
        Path::new("local/busybox:1"),
    ])?
    .ok()?;
    let mut made = pod(
        "q",
        &[tool(
            "a",
            &[
                "sh",
                "-c",
                "mknod /m c 1 1 && head -c 1 /m; echo $?; mknod /n c 1 3 && head -c 1 /n; echo $?",
            ],
        )],
    );
    made["spec"]["containers"][0]["image"] = "local/busybox:1".into();
    let lines = host.lines_of(made)?;
    ensure!(
        lines.iter().any(|l| l.contains("not permitted")),
        "{lines:?}"
    );
    ensure!(
        lines.iter().any(|l| l == "1") && lines.iter().any(|l| l == "0"),
        "{lines:?}"
    );
    host.rm(&["p"])?;
    Ok(())
}

/// A root file system in which everything a runtime touches is a link to the
/// host's files, with the toolbox's place taken by busybox.
fn hostile_tree(host: &TestHost, victim: &Path) -> anyhow::Result<std::path::PathBuf> {
    let tree = host.files().join("hostile");
    std::fs::create_dir(&tree)?;
    let mut archive = tar::Archive::new(std::fs::File::open(images::busybox()?)?);
    archive.unpack(&tree)?;
    for name in ["proc", "sys", "dev", "etc"] {
        std::fs::remove_dir_all(tree.join(name))?;
        std::os::unix::fs::symlink(victim, tree.join(name))?;
    }
    Ok(tree)
}

fn links_in_an_image_lead_nowhere(host: &TestHost) -> anyhow::Result<()> {
    let victim = host.files().join("victim");
    std::fs::create_dir(&victim)?;
    std::fs::write(victim.join("passwd"), "root:x:0:0::/:/bin/sh\n")?;
    std::fs::write(victim.join("hosts"), "mine\n")?;
    let tree = hostile_tree(host, &victim)?;
    let args = ["image", "import", "--rootfs"].map(Path::new);
    host.rkube(
        args.into_iter()
            .chain([tree.as_path(), Path::new("local/hostile:1")]),
    )?
    .ok()?;
    let run = |name: &str, extra: Value| -> anyhow::Result<_> {
        let mut made = pod(
            name,
            &[tool(
                "a",
                &[
                    "/bin/sh",
                    "-c",
                    "cat /etc/hosts; ls /dev; cat /proc/1/status",
                ],
            )],
        );
        made["spec"]["containers"][0]["image"] = "local/hostile:1".into();
        host.run(&[with(made, "spec", extra)])?.output()
    };
    // It may run, confined, or be refused; the host's directory stays as it was.
    let out = run("p", json!({}))?;
    let before = ["hosts", "passwd"];
    let check = || -> anyhow::Result<()> {
        let mut names: Vec<_> = std::fs::read_dir(&victim)?
            .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
            .collect::<anyhow::Result<_>>()?;
        names.sort();
        ensure!(
            names == before && std::fs::read_to_string(victim.join("hosts"))? == "mine\n",
            "{names:?}"
        );
        Ok(())
    };
    check()?;
    ensure!(
        !out.stdout.contains("mine"),
        "the host's file was read: {out}"
    );
    // A volume whose target is a link out of the root.
    let tree2 = host.files().join("second");
    std::fs::create_dir(&tree2)?;
    tar::Archive::new(std::fs::File::open(images::busybox()?)?).unpack(&tree2)?;
    std::os::unix::fs::symlink(&victim, tree2.join("data"))?;
    std::os::unix::fs::symlink("../../../../../../../../../..", tree2.join("up"))?;
    let args = ["image", "import", "--rootfs"].map(Path::new);
    host.rkube(
        args.into_iter()
            .chain([tree2.as_path(), Path::new("local/second:1")]),
    )?
    .ok()?;
    let inside = victim.to_string_lossy().into_owned();
    let mounts = json!([{"name": "v", "mountPath": "/data"}, {"name": "v", "mountPath": format!("/up{inside}")}]);
    let mut made = pod(
        "q",
        &[with(
            tool("a", &["/bin/sh", "-c", "touch /data/x; ls /data"]),
            "",
            json!({"volumeMounts": mounts}),
        )],
    );
    made["spec"]["containers"][0]["image"] = "local/second:1".into();
    let made = with(
        made,
        "spec",
        json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
    );
    let _ = host.run(&[made])?.output()?;
    check()
}

fn user_of_the_image(host: &TestHost) -> anyhow::Result<()> {
    let tree = host.files().join("user");
    std::fs::create_dir(&tree)?;
    tar::Archive::new(std::fs::File::open(images::busybox()?)?).unpack(&tree)?;
    std::fs::write(
        tree.join("etc/passwd"),
        "root:x:0:0::/:/bin/sh\napp:x:1234:4321::/home:/bin/sh\n",
    )?;
    std::fs::write(tree.join("etc/group"), "root:x:0:\nextra:x:77:app\n")?;
    images::save(
        &tree,
        &host.files().join("user.tar"),
        json!({"User": "app", "Cmd": ["id"], "Env": ["FROM=image"], "WorkingDir": "/tmp/work"}),
    )?;
    let tar = host.files().join("user.tar");
    host.rkube([
        Path::new("image"),
        Path::new("import"),
        &tar,
        Path::new("local/user:1"),
    ])?
    .ok()?;
    let with_image = |mut made: Value| {
        made["spec"]["containers"][0]["image"] = "local/user:1".into();
        made
    };
    let mut made = with_image(pod("p", &[tool("a", &[])]));
    made["spec"]["containers"][0]
        .as_object_mut()
        .context("an object")?
        .remove("command");
    let lines = host.lines_of(made)?;
    ensure!(
        lines[0].contains("uid=1234(app) gid=4321") && lines[0].contains("77(extra)"),
        "{lines:?}"
    );
    let lines = host.lines_of(with_image(pod(
        "p",
        &[tool("a", &["sh", "-c", "pwd; echo $FROM"])],
    )))?;
    ensure!(lines == ["/tmp/work", "image"], "{lines:?}");
    // A name is no number: it cannot be told whether it is root.
    let refused = with_image(pod(
        "p",
        &[secured(tool("a", &["id"]), json!({"runAsNonRoot": true}))],
    ));
    let file = host.manifest(&[refused])?;
    let args = ["run", "--detach", "--timeout", "3", "-f"].map(Path::new);
    let out = host
        .rkube(args.into_iter().chain([file.as_path()]))?
        .exits(1)?;
    ensure!(out.stderr.contains("app"), "the user is not named: {out}");
    host.rm(&["p"])?;
    Ok(())
}

fn terminals(host: &TestHost) -> anyhow::Result<()> {
    let made = pod(
        "p",
        &[with(
            tool("a", &["run", "tty; stat /dev/console"]),
            "",
            json!({"tty": true, "stdin": true}),
        )],
    );
    let out = host.ran(&[made])?;
    ensure!(
        out.stdout.contains("stdin tty") && out.stdout.contains("stdout tty"),
        "{out}"
    );
    let lines = host.run(&[pod("p", &[tool("a", &["tty"])])])?.exits(1)?;
    ensure!(lines.stdout.contains("stdin no"), "{lines}");
    Ok(())
}

fn sysctls_of_the_pod(host: &TestHost) -> anyhow::Result<()> {
    let sysctl = |name: &str, value: &str| json!({"securityContext": {"sysctls": [{"name": name, "value": value}]}});
    let reader = pod(
        "p",
        &[tool(
            "a",
            &["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"],
        )],
    );
    let lines = host.lines_of(with(
        reader.clone(),
        "spec",
        sysctl("net.ipv4.ip_unprivileged_port_start", "999"),
    ))?;
    ensure!(lines == ["999"], "{lines:?}");
    // One of the whole host is no pod's.
    let file = host.manifest(&[with(reader, "spec", sysctl("kernel.panic", "7"))])?;
    let args = ["run", "--detach", "--timeout", "3", "-f"].map(Path::new);
    let out = host
        .rkube(args.into_iter().chain([file.as_path()]))?
        .output()?;
    ensure!(
        !out.status.success() && out.stderr.contains("kernel.panic"),
        "{out}"
    );
    if host.inspect("p").is_ok() {
        host.rm(&["p"])?;
    }
    Ok(())
}
