//! `<root>/etc/rkube/kubelet.yaml`: what a node is configured to do, in the
//! kubelet's own form (`kubelet.config.k8s.io/v1beta1`). A field that rkube
//! does not know is an error: it would be believed to work.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use rkube_image::GcPolicy;
use serde::Deserialize;

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const KIND: &str = "KubeletConfiguration";
/// A file that is larger is none.
const MAX_BYTES: u64 = 1 << 20;

/// The fields that rkube honours.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct KubeletConfiguration {
    api_version: String,
    kind: String,
    /// Not the whole container is killed with one of its processes.
    #[serde(default, rename = "singleProcessOOMKill")]
    pub(super) single_process_oom_kill: bool,
    /// Used share of the disk, in percent, from which unused images go; 100
    /// keeps them.
    #[serde(default, rename = "imageGCHighThresholdPercent")]
    image_gc_high_threshold_percent: Option<u8>,
    /// Where that ends.
    #[serde(default, rename = "imageGCLowThresholdPercent")]
    image_gc_low_threshold_percent: Option<u8>,
    /// Images that came or were used more recently stay.
    #[serde(default, rename = "imageMinimumGCAge")]
    image_minimum_gc_age: Option<String>,
    /// Images that were unused for longer go whatever the disk says; 0 keeps
    /// them.
    #[serde(default, rename = "imageMaximumGCAge")]
    image_maximum_gc_age: Option<String>,
}

impl KubeletConfiguration {
    /// When images go by themselves (with the kubelet's checks: pkg/kubelet,
    /// images, `NewImageGCManager`, and apis/config/validation).
    pub(super) fn image_gc(&self) -> anyhow::Result<GcPolicy> {
        let usual = GcPolicy::default();
        let age = |text: &Option<String>, field: &str| {
            let parsed = text.as_deref().map(duration).transpose();
            parsed.with_context(|| format!("{field} {:?}", text.as_deref().unwrap_or_default()))
        };
        let min_age = age(&self.image_minimum_gc_age, "imageMinimumGCAge")?;
        let max_age = age(&self.image_maximum_gc_age, "imageMaximumGCAge")?;
        let policy = GcPolicy {
            high_percent: self
                .image_gc_high_threshold_percent
                .unwrap_or(usual.high_percent),
            low_percent: self
                .image_gc_low_threshold_percent
                .unwrap_or(usual.low_percent),
            min_age: min_age.unwrap_or(usual.min_age),
            max_age: max_age.filter(|age| !age.is_zero()),
        };
        ensure!(
            policy.high_percent <= 100,
            "imageGCHighThresholdPercent {} is more than 100",
            policy.high_percent
        );
        ensure!(
            policy.low_percent < policy.high_percent,
            "imageGCLowThresholdPercent {} is not below imageGCHighThresholdPercent {}",
            policy.low_percent,
            policy.high_percent
        );
        ensure!(
            policy.max_age.is_none_or(|max| max > policy.min_age),
            "imageMaximumGCAge is not above imageMinimumGCAge"
        );
        Ok(policy)
    }
}

/// A duration as Go writes it: `2m0s`, `1h30m`, `1.5h`, `0`. Not negative.
fn duration(text: &str) -> anyhow::Result<Duration> {
    const UNITS: [(&str, f64); 7] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("\u{b5}s", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    let bad = || anyhow::anyhow!("not a duration, as 2m or 1h30m");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    ensure!(!text.is_empty(), bad());
    let mut sum = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest
            .bytes()
            .take_while(|b| b.is_ascii_digit() || *b == b'.')
            .count();
        let (number, after) = rest.split_at(digits);
        let letters = after
            .bytes()
            .take_while(|b| !b.is_ascii_digit() && *b != b'.')
            .count();
        // A unit may be of more than one byte a letter.
        let (unit, after) = after.split_at_checked(letters).ok_or_else(bad)?;
        let (_, factor) = UNITS.iter().find(|(u, _)| *u == unit).ok_or_else(bad)?;
        let number: f64 = number.parse().map_err(|_| bad())?;
        let part = Duration::try_from_secs_f64(number * factor).map_err(|_| bad())?;
        sum = sum.checked_add(part).ok_or_else(bad)?;
        rest = after;
    }
    Ok(sum)
}

/// Where the file is.
pub(super) fn path(root: &Path) -> PathBuf {
    root.join("etc/rkube/kubelet.yaml")
}

/// Reads the file, if there is one.
pub(super) fn read(root: &Path) -> anyhow::Result<KubeletConfiguration> {
    let path = path(root);
    let text = match std::fs::metadata(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Ok(KubeletConfiguration::default());
        }
        found => {
            let size = found.with_context(|| format!("look at {}", path.display()))?;
            ensure!(
                size.len() <= MAX_BYTES,
                "{} is larger than {MAX_BYTES} bytes",
                path.display()
            );
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?
        }
    };
    parse(&text).with_context(|| format!("understand {}", path.display()))
}

fn parse(text: &str) -> anyhow::Result<KubeletConfiguration> {
    let found: KubeletConfiguration = serde_saphyr::from_str(text)?;
    ensure!(
        found.api_version == API_VERSION && found.kind == KIND,
        "it is {} {}, wanted is {API_VERSION} {KIND}",
        found.api_version,
        found.kind
    );
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_fields_are_read_and_others_refused() {
        let head = format!("apiVersion: {API_VERSION}\nkind: {KIND}\n");
        assert!(!parse(&head).unwrap().single_process_oom_kill);
        let set = parse(&format!("{head}singleProcessOOMKill: true\n")).unwrap();
        assert!(set.single_process_oom_kill);
        let error = parse(&format!("{head}maxPods: 3\n")).unwrap_err();
        assert!(format!("{error:#}").contains("maxPods"), "{error:#}");
        assert!(parse("apiVersion: v1\nkind: Pod\n").is_err());
        assert!(parse("").is_err());
    }

    #[test]
    fn images_go_as_the_kubelet_is_told() {
        let policy = |lines: &str| {
            let text = format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{lines}");
            parse(&text).and_then(|c| c.image_gc())
        };
        assert_eq!(policy("").unwrap(), GcPolicy::default());
        let all = "imageGCHighThresholdPercent: 70\nimageGCLowThresholdPercent: 60\n\
            imageMinimumGCAge: 1m30s\nimageMaximumGCAge: 1.5h\n";
        let wanted = GcPolicy {
            high_percent: 70,
            low_percent: 60,
            min_age: Duration::from_secs(90),
            max_age: Some(Duration::from_secs(5400)),
        };
        assert_eq!(policy(all).unwrap(), wanted);
        assert_eq!(policy("imageMaximumGCAge: 0s\n").unwrap().max_age, None);
        for (lines, part) in [
            ("imageGCHighThresholdPercent: 101", "more than 100"),
            ("imageGCHighThresholdPercent: 80", "not below"),
            ("imageMaximumGCAge: 1m", "not above"),
            ("imageMinimumGCAge: soon", "imageMinimumGCAge"),
            ("imageMinimumGCAge: -1m", "not a duration"),
            ("imageMinimumGCAge: 1", "not a duration"),
            ("imageMinimumGCAge: ''", "not a duration"),
        ] {
            let error = format!("{:#}", policy(lines).unwrap_err());
            assert!(error.contains(part), "{lines}: {error}");
        }
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(duration("0").unwrap(), Duration::ZERO);
    }

    #[test]
    fn no_file_is_the_default() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(read(root.path()).unwrap(), KubeletConfiguration::default());
    }
}
