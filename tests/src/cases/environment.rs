//! Variables, arguments and what a container is told of itself.

use anyhow::ensure;
use serde_json::{Value, json};

use crate::case::Case;
use crate::host::TestHost;
use crate::pods::{pod, said, tool, with};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("environment::sources_and_order", sources_and_order),
        Case::new("environment::fields_and_resources", fields_and_resources),
        Case::new("environment::expansion", expansion),
        Case::new("environment::missing_keys_are_told", missing_keys_are_told),
        Case::new(
            "environment::working_directory_and_limits",
            working_directory_and_limits,
        ),
    ]
}

fn env_of(host: &TestHost, objects: &[Value], fields: Value) -> anyhow::Result<Vec<String>> {
    let made = pod("p", &[with(tool("a", &["env"]), "", fields)]);
    let out = host.ran(&[objects, &[made]].concat())?;
    Ok(said(&out, "a"))
}

fn map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

fn sources_and_order(host: &TestHost) -> anyhow::Result<()> {
    let objects = [
        map("c", json!({"A": "map", "B": "map", "1bad": "x"})),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"B": "secret", "K": "key"}}),
    ];
    let lines = env_of(
        host,
        &objects,
        json!({
            "envFrom": [{"configMapRef": {"name": "c"}}, {"secretRef": {"name": "s"}}, {"prefix": "P_", "configMapRef": {"name": "c"}},
                {"configMapRef": {"name": "absent", "optional": true}}],
            "env": [{"name": "A", "value": "own"}, {"name": "FROM", "valueFrom": {"secretKeyRef": {"name": "s", "key": "K"}}},
                {"name": "NONE", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "absent", "optional": true}}}],
        }),
    )?;
    for line in [
        "A=own",
        "B=secret",
        "P_A=map",
        "FROM=key",
        "HOSTNAME=p",
        "PATH=/bin",
    ] {
        ensure!(lines.iter().any(|l| l == line), "no {line} in {lines:?}");
    }
    ensure!(!lines.iter().any(|l| l.starts_with("NONE")), "{lines:?}");
    // Nothing of the caller's own environment goes in.
    ensure!(
        !lines
            .iter()
            .any(|l| l.starts_with("RKUBE") || l.starts_with("CARGO")),
        "{lines:?}"
    );
    Ok(())
}

fn fields_and_resources(host: &TestHost) -> anyhow::Result<()> {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let resource = |name: &str, of: &str, divisor: &str| json!({"name": name, "valueFrom": {"resourceFieldRef": {"resource": of, "divisor": divisor}}});
    let container = with(
        tool("a", &["env"]),
        "",
        json!({
            "resources": {"requests": {"cpu": "250m", "memory": "32Mi"}, "limits": {"cpu": "1500m", "memory": "64Mi"}},
            "env": [field("NAME", "metadata.name"), field("NS", "metadata.namespace"), field("UID_", "metadata.uid"),
                field("LABEL", "metadata.labels['app']"), field("IP", "status.podIP"), field("NODE", "spec.nodeName"),
                resource("CPU", "limits.cpu", "1"), resource("CPUM", "requests.cpu", "1m"), resource("MEM", "limits.memory", "1Mi")],
        }),
    );
    let made = with(
        pod("p", &[container]),
        "metadata",
        json!({"labels": {"app": "web"}, "namespace": "space"}),
    );
    let out = host.ran(&[made])?;
    let lines = said(&out, "a");
    for line in [
        "NAME=p",
        "NS=space",
        "LABEL=web",
        "CPU=2",
        "CPUM=250",
        "MEM=64",
    ] {
        ensure!(lines.iter().any(|l| l == line), "no {line} in {lines:?}");
    }
    let value = |name: &str| {
        lines
            .iter()
            .find_map(|l| l.strip_prefix(name))
            .unwrap_or_default()
            .to_owned()
    };
    ensure!(
        out.stderr.contains(&value("IP=")) && !value("IP=").is_empty(),
        "{out}"
    );
    ensure!(
        value("UID_=").len() == 36 && !value("NODE=").is_empty(),
        "{lines:?}"
    );
    Ok(())
}

fn expansion(host: &TestHost) -> anyhow::Result<()> {
    let container = with(
        tool(
            "a",
            &["echo", "$(FIRST)", "$(SECOND)", "$$(FIRST)", "$(UNKNOWN)"],
        ),
        "",
        json!({
            "args": ["$(SECOND)!"],
            "env": [{"name": "FIRST", "value": "1"}, {"name": "SECOND", "value": "$(FIRST)2$(THIRD)"}, {"name": "THIRD", "value": "3"}],
        }),
    );
    let lines = host.lines_of(pod("p", &[container]))?;
    ensure!(
        lines == ["1 12$(THIRD) $(FIRST) $(UNKNOWN) 12$(THIRD)!"],
        "{lines:?}"
    );
    Ok(())
}

fn missing_keys_are_told(host: &TestHost) -> anyhow::Result<()> {
    let container = with(
        tool("a", &["env"]),
        "",
        json!({
        "env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "no-such-key"}}}]}),
    );
    let file = host.manifest(&[map("c", json!({"a": "b"})), pod("p", &[container])])?;
    let args = ["run", "--detach", "--timeout", "3", "-f"].map(std::path::Path::new);
    let out = host
        .rkube(args.into_iter().chain([file.as_path()]))?
        .exits(1)?;
    ensure!(
        out.stderr.contains("no-such-key") && out.stderr.contains("CreateContainerConfigError"),
        "{out}"
    );
    host.rm(&["p"])?;
    Ok(())
}

fn working_directory_and_limits(host: &TestHost) -> anyhow::Result<()> {
    let container = with(
        tool("a", &["readlink", "/proc/self/cwd"]),
        "",
        json!({"workingDir": "/made/for/it"}),
    );
    let lines = host.lines_of(pod("p", &[container]))?;
    ensure!(lines == ["/made/for/it"], "{lines:?}");
    // No descriptor of rkube's comes along.
    let lines = host.lines_of(pod("p", &[tool("a", &["ls", "/proc/self/fd"])]))?;
    let mut numbers: Vec<u32> = lines
        .iter()
        .flat_map(|l| l.split_whitespace())
        .filter_map(|w| w.parse().ok())
        .collect();
    numbers.sort_unstable();
    // The fourth is the listed directory itself.
    ensure!(numbers == [0, 1, 2, 3], "{lines:?}");
    Ok(())
}
