//! Who may use whom: the picture in ARCHITECTURE.md, held against what cargo
//! says. Edges never point upwards, and there are no cycles.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use rkube_tests::repo;

/// Each member and the members that it may use. A new member is added here on
/// purpose, with the picture.
const MAY_USE: &[(&str, &[&str])] = &[
    ("rkube-sys", &[]),
    ("rkube-embed", &[]),
    ("rkube-toolbox-elf", &[]),
    ("rkube-toolbox", &["rkube-embed", "rkube-toolbox-elf"]),
    ("rkube-task", &[]),
    ("rkube-pki", &[]),
    // In the place of another's package; no member uses it.
    ("regex", &[]),
    ("rkube-api", &[]),
    ("rkube-store", &[]),
    ("rkube-seccomp", &["rkube-sys"]),
    ("rkube-keeper", &["rkube-sys"]),
    ("rkube-cgroup", &["rkube-sys"]),
    ("rkube-nft", &["rkube-sys"]),
    ("rkube-netns", &["rkube-nft", "rkube-sys"]),
    ("rkube-image", &["rkube-sys", "rkube-toolbox"]),
    (
        "rkube-runtime",
        &[
            "rkube-cgroup",
            "rkube-embed",
            "rkube-keeper",
            "rkube-seccomp",
            "rkube-sys",
        ],
    ),
    (
        "rkube-engine",
        &[
            "rkube-cgroup",
            "rkube-image",
            "rkube-keeper",
            "rkube-netns",
            "rkube-runtime",
            "rkube-seccomp",
            "rkube-sys",
        ],
    ),
    (
        "rkube-distribution",
        &["rkube-image", "rkube-pki", "rkube-sys", "rkube-task"],
    ),
    (
        "rkube-kubelet",
        &["rkube-api", "rkube-engine", "rkube-image", "rkube-task"],
    ),
    ("rkube-client", &["rkube-api", "rkube-task"]),
    ("rkube-stream", &["rkube-task"]),
    (
        "rkube-apiserver",
        &[
            "rkube-api",
            "rkube-client",
            "rkube-pki",
            "rkube-store",
            "rkube-stream",
            "rkube-task",
        ],
    ),
    (
        "rkube-scheduler",
        &["rkube-api", "rkube-client", "rkube-task"],
    ),
    (
        "rkube-controllers",
        &["rkube-api", "rkube-client", "rkube-pki", "rkube-task"],
    ),
    (
        "rkube-proxy",
        &["rkube-client", "rkube-netns", "rkube-nft", "rkube-task"],
    ),
    ("rkube-dns", &["rkube-client", "rkube-task"]),
    (
        "rkube-agent",
        &[
            "rkube-api",
            "rkube-client",
            "rkube-engine",
            "rkube-kubelet",
            "rkube-pki",
            "rkube-stream",
            "rkube-task",
        ],
    ),
    (
        "rkube",
        &[
            "rkube-agent",
            "rkube-api",
            "rkube-apiserver",
            "rkube-cgroup",
            "rkube-client",
            "rkube-controllers",
            "rkube-distribution",
            "rkube-dns",
            "rkube-engine",
            "rkube-image",
            "rkube-kubelet",
            "rkube-netns",
            "rkube-nft",
            "rkube-pki",
            "rkube-proxy",
            "rkube-runtime",
            "rkube-scheduler",
            "rkube-seccomp",
            "rkube-store",
            "rkube-stream",
            "rkube-sys",
            "rkube-toolbox",
            "rkube-task",
        ],
    ),
    // Beside the program: they drive it from outside and are not linked to it.
    ("rkube-tests", &[]),
    ("rkube-vm", &["rkube-tests"]),
    // Three sections measure crates that no command line drives alone.
    (
        "rkube-bench",
        &[
            "rkube-client",
            "rkube-dns",
            "rkube-image",
            "rkube-netns",
            "rkube-pki",
            "rkube-proxy",
            "rkube-tests",
        ],
    ),
    // Both sides of a comparison: rkube's API server is started in its process.
    ("rkube-differential", &["rkube-apiserver", "rkube-pki"]),
    ("rkube-xtask", &["rkube-bench", "rkube-tests", "rkube-vm"]),
];

/// Packages that bring Kubernetes' types; nothing from the engine downwards
/// knows them, not even through another package.
const KUBERNETES: &[&str] = &[
    "k8s-openapi",
    "kube",
    "kube-client",
    "kube-core",
    "rkube-api",
];
/// What must not know Kubernetes.
const LINUX_ONLY: &[&str] = &[
    "rkube-sys",
    "rkube-seccomp",
    "rkube-keeper",
    "rkube-cgroup",
    "rkube-nft",
    "rkube-netns",
    "rkube-image",
    "rkube-runtime",
    "rkube-engine",
];

/// Member -> names of what it uses (build and normal, not for its tests).
fn uses() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let out = Command::new(cargo)
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(repo::source_root())
        .output()
        .expect("cargo runs");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    packages
        .iter()
        .map(|package| {
            let name = package["name"].as_str().expect("name").to_owned();
            let dependencies = package["dependencies"].as_array().expect("dependencies");
            let used = dependencies
                .iter()
                .filter(|d| d["kind"] != "dev")
                .map(|d| d["name"].as_str().expect("name").to_owned())
                .collect();
            (name, used)
        })
        .collect()
}

#[test]
fn members_use_only_what_they_may() {
    let uses = uses();
    let may: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let mut wrong = Vec::new();
    for (member, used) in &uses {
        let Some(allowed) = may.get(member.as_str()) else {
            wrong.push(format!("{member} is not in the picture"));
            continue;
        };
        for other in used.iter().filter(|u| uses.contains_key(*u)) {
            if !allowed.contains(&other.as_str()) {
                wrong.push(format!("{member} uses {other}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "against the layering:\n  {}",
        wrong.join("\n  ")
    );
}

#[test]
fn the_picture_has_no_cycle() {
    // Every member is listed after all that it may use.
    let mut below = BTreeSet::new();
    for (member, allowed) in MAY_USE {
        for other in *allowed {
            assert!(
                below.contains(other),
                "{member} may use {other}, which is not below it"
            );
        }
        below.insert(*member);
    }
}

#[test]
fn linux_crates_know_no_kubernetes() {
    let uses = uses();
    for member in LINUX_ONLY {
        let mut reached = BTreeSet::new();
        let mut open = vec![(*member).to_owned()];
        while let Some(name) = open.pop() {
            let used = uses.get(&name).cloned().unwrap_or_default();
            open.extend(used.into_iter().filter(|u| reached.insert(u.clone())));
        }
        for known in KUBERNETES {
            assert!(!reached.contains(*known), "{member} knows {known}");
        }
    }
}
