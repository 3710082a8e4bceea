//! A kernel without what pods need: an error at the start that names all of
//! it, and nothing half made. Its guest boots without these modules and with a
//! controller switched off, and the case gives them back one by one.

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::case::Case;
use crate::host::TestHost;
use crate::machines::load_modules;
use crate::pods::{pod, tool};
use crate::wait::{WAIT_SECS, until};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("lacking::the_start_names_what_is_missing", names_all).lacking(),
        Case::new("check::a_host_that_runs_pods_passes", a_healthy_host),
    ]
}

/// What the guest boots without, as `rkube` names it.
const OVERLAY: &str = "overlayfs";
const TABLES: &str = "nf_tables";
const MEMORY: &str = "memory controller";

/// Everything is looked at, nothing fails, and what is less than it could be
/// comes with what to do.
fn a_healthy_host(host: &TestHost) -> anyhow::Result<()> {
    let out = host.rkube(["check", "--output", "json"])?.ok()?;
    let findings: Vec<serde_json::Value> =
        serde_json::from_str(&out.stdout).context("parse the findings")?;
    for what in [
        "root",
        "kernel",
        "CAP_SYS_ADMIN",
        "CAP_SETPCAP",
        "CAP_SYS_CHROOT",
        "cgroups",
        "seccomp",
        "user namespaces",
        "memory files",
        "pressure",
        "keyrings",
        "network",
    ] {
        let there = findings.iter().any(|f| f["what"] == what);
        ensure!(there, "no word of {what}: {out}");
    }
    for finding in &findings {
        let found = finding["found"].as_str().unwrap_or_default();
        let told = ["start rkube", "boot", "sysctl"];
        let told = told.iter().any(|word| found.contains(word));
        match finding["verdict"].as_str() {
            Some("ok") => {}
            Some("warn") => ensure!(told, "no remedy: {finding}"),
            _ => anyhow::bail!("{finding}"),
        }
    }
    Ok(())
}

fn names_all(host: &TestHost) -> anyhow::Result<()> {
    refused(host, &[OVERLAY, MEMORY, TABLES], &[])?;
    load_modules(&["overlay"])?;
    refused(host, &[MEMORY, TABLES], &[OVERLAY])?;
    load_modules(&["nf_tables", "nft_"])?;
    // What a running kernel cannot be given stays missing.
    refused(host, &[MEMORY], &[OVERLAY, TABLES])
}

/// `check` fails and `run` makes nothing; both name what is missing, what to
/// do about it, and nothing else.
fn refused(host: &TestHost, missing: &[&str], there: &[&str]) -> anyhow::Result<()> {
    let check = host.rkube(["check"])?.exits(1)?;
    let run = host.run(&[pod("p", &[tool("a", &["true"])])])?.exits(1)?;
    for text in [&check.stdout, &run.stderr] {
        for what in missing {
            ensure!(text.contains(what), "no word of {what}: {check} {run}");
        }
        for what in there {
            ensure!(!text.contains(what), "{what} is there: {check} {run}");
        }
    }
    for remedy in ["load the module", "kernel command line"] {
        let wanted = missing.len() > 1 || remedy == "kernel command line";
        ensure!(!wanted || run.stderr.contains(remedy), "{run}");
    }
    until(
        "the supervisor to end",
        Duration::from_secs(WAIT_SECS),
        || Ok(host.supervisor()?.is_none().then_some(())),
    )?;
    let pods = host.root().join("var/lib/rkube/pods");
    let made = match std::fs::read_dir(&pods) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
        list => list
            .with_context(|| format!("list {}", pods.display()))?
            .count(),
    };
    ensure!(made == 0, "a pod was made: {run}");
    Ok(())
}
