//! Debian trees out of packages, by debootstrap.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::command::Cmd;
use crate::images;

/// How long debootstrap may take; it downloads and unpacks about 100 packages.
const DEBOOTSTRAP_SECS: u64 = 900;

/// Makes a minbase tree of this host's release in a directory, with these
/// packages in addition.
///
/// # Errors
/// debootstrap is not installed or its mirror cannot be reached.
pub fn bootstrap(dir: &Path, packages: &[&str]) -> anyhow::Result<()> {
    let release = std::fs::read_to_string("/etc/os-release").context("read os-release")?;
    let codename = release
        .lines()
        .find_map(|l| l.strip_prefix("VERSION_CODENAME="))
        .context("os-release has no VERSION_CODENAME")?
        .trim_matches('"')
        .to_owned();
    let mut args = vec!["--variant=minbase".to_owned()];
    if !packages.is_empty() {
        args.push(format!("--include={}", packages.join(",")));
    }
    args.push(codename.clone());
    args.push(dir.to_string_lossy().into_owned());
    args.extend(mirror(&codename));
    Cmd::new("debootstrap", args)
        .within(Duration::from_secs(DEBOOTSTRAP_SECS))
        .ok()?;
    Ok(())
}

/// The files of a package of this host's release, unpacked in the tests'
/// cache and never installed.
///
/// # Errors
/// The package cannot be fetched or unpacked.
pub fn unpacked(package: &str) -> anyhow::Result<PathBuf> {
    images::cached(package, |partial| {
        let fetched = tempfile::tempdir().context("make a directory for the package")?;
        Cmd::new("apt-get", ["-q", "download", package])
            .dir(fetched.path())
            .within(Duration::from_secs(DEBOOTSTRAP_SECS))
            .ok()?;
        let file = std::fs::read_dir(fetched.path())?
            .flatten()
            .next()
            .with_context(|| format!("apt-get brought no file of {package}"))?
            .path();
        let (file, tree) = (file.to_string_lossy(), partial.to_string_lossy());
        Cmd::new("dpkg-deb", ["-x", &file, &tree])
            .within(Duration::from_secs(DEBOOTSTRAP_SECS))
            .ok()
            .map(drop)
    })
}

/// The mirror that this host's apt uses, if its lists say; else debootstrap's.
fn mirror(codename: &str) -> Option<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let more = std::fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten();
    files.extend(more.map(|e| e.path()));
    files
        .iter()
        .filter_map(|f| std::fs::read_to_string(f).ok())
        .find_map(|text| {
            // A blank line ends a stanza of the one form; the other has a line each.
            text.split("\n\n")
                .find_map(|stanza| mirror_in(stanza, codename))
        })
}

/// The mirror of one release in a stanza (deb822) or lines (one-line style) of
/// sources.list(5); archives of other software name other suites.
fn mirror_in(sources: &str, codename: &str) -> Option<String> {
    let field = |name: &str| sources.lines().find_map(|l| l.strip_prefix(name));
    if let (Some(uris), Some(suites)) = (field("URIs:"), field("Suites:")) {
        let ours = suites.split_whitespace().any(|s| s == codename);
        return uris
            .split_whitespace()
            .next()
            .filter(|_| ours)
            .map(str::to_owned);
    }
    sources
        .lines()
        .filter(|l| l.starts_with("deb "))
        .find_map(|line| {
            let mut words = line.split_whitespace().skip_while(|w| !w.contains("://"));
            let uri = words.next()?;
            (words.next() == Some(codename)).then(|| uri.to_owned())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_sources_name_a_mirror() {
        let line = "deb https://no.example/node nodistro main\n\
                    deb [arch=amd64] http://a.example/debian bookworm main\n";
        assert_eq!(
            mirror_in(line, "bookworm").as_deref(),
            Some("http://a.example/debian")
        );
        let deb822 =
            "Types: deb\nURIs: https://b.example/debian\nSuites: bookworm bookworm-updates\n";
        assert_eq!(
            mirror_in(deb822, "bookworm").as_deref(),
            Some("https://b.example/debian")
        );
        assert_eq!(mirror_in(deb822, "trixie"), None);
        assert_eq!(mirror_in("", "bookworm"), None);
    }
}
