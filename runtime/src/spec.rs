//! Reading a runtime-spec.

use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};
use serde_json::Value;

use crate::error::{Context, Error, Result};

/// Largest config.json that is read, in bytes.
pub const MAX_SPEC_BYTES: u64 = 8 << 20;

/// A spec as it was read.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Its text, for the record.
    pub text: Vec<u8>,
    /// Its content.
    pub spec: Spec,
    /// Properties that no one knows, by path.
    pub warnings: Vec<String>,
}

/// Reads `config.json` of a bundle.
///
/// # Errors
/// The file, or what [`parse`] finds.
pub fn load(path: &Path) -> Result<Loaded> {
    let shown = path.display().to_string();
    let text = read_bounded(path, MAX_SPEC_BYTES)?;
    let (spec, warnings) = parse(&text, &shown)?;
    Ok(Loaded {
        text,
        spec,
        warnings,
    })
}

/// Reads a file of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    use std::io::Read;
    let shown = || path.display().to_string();
    let file = std::fs::File::open(path).on("open", shown())?;
    let mut text = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut text)
        .on("read", shown())?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > limit {
        return Err(Error::spec(shown(), format!("larger than {limit} bytes")));
    }
    Ok(text)
}

/// Parses a spec; any 1.x version is taken (runtime-spec, spec.md: minor
/// versions only add). Properties that nobody knows come back as warnings
/// (the spec forbids to refuse them, config.md, Extensibility).
///
/// # Errors
/// No JSON, a wrong type or a version that is not 1.x.
pub fn parse(text: &[u8], what: &str) -> Result<(Spec, Vec<String>)> {
    let fail = |source| Error::Parse {
        what: what.to_owned(),
        source,
    };
    let spec: Spec = decode(text, "/process").map_err(fail)?;
    check_version(spec.version())?;
    let given: Value = serde_json::from_slice(text).map_err(fail)?;
    // By text, as in `typed`.
    let known = serde_json::to_vec(&spec).map_err(fail)?;
    let known: Value = serde_json::from_slice(&known).map_err(fail)?;
    let mut warnings = Vec::new();
    unknown("", &given, &known, &mut warnings);
    Ok((spec, warnings))
}

/// A process object (of an exec), as in a spec.
///
/// # Errors
/// No JSON, or a wrong type.
pub fn process(text: &[u8], what: &str) -> Result<Process> {
    decode(text, "").map_err(|source| Error::Parse {
        what: what.to_owned(),
        source,
    })
}

/// Scheduler flags as the runtime-spec writes them (config.md, process,
/// scheduler), and as `oci_spec` does, which derives the names of its variants.
const SCHEDULER_FLAGS: [(&str, &str); 2] = [
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

/// Reads JSON whose process is at `process` (a JSON pointer).
pub(crate) fn decode<T: serde::de::DeserializeOwned>(
    text: &[u8],
    process: &str,
) -> serde_json::Result<T> {
    let failed = match serde_json::from_slice(text) {
        Err(e) => e,
        ok => return ok,
    };
    let Ok(mut value) = serde_json::from_slice::<Value>(text) else {
        return Err(failed);
    };
    let flags = value.pointer_mut(&format!("{process}/scheduler/flags"));
    let mut renamed = false;
    for flag in flags.and_then(Value::as_array_mut).into_iter().flatten() {
        let other = SCHEDULER_FLAGS.iter().find(|(name, _)| flag == name);
        if let Some((_, other)) = other {
            *flag = (*other).into();
            renamed = true;
        }
    }
    if renamed { typed(&value) } else { Err(failed) }
}

/// What a JSON value describes, by way of its text: `serde_json::from_value`
/// would be a second deserializer for each of the types of a specification.
///
/// # Errors
/// A field is missing or has another type.
pub fn typed<T: serde::de::DeserializeOwned>(value: &Value) -> serde_json::Result<T> {
    serde_json::from_slice(&serde_json::to_vec(value)?)
}

fn check_version(version: &str) -> Result<()> {
    let mut parts = version.splitn(3, '.');
    let number = |part: Option<&str>| part.and_then(|p| p.parse::<u32>().ok());
    let (major, minor) = (number(parts.next()), number(parts.next()));
    let patch = parts.next().and_then(|rest| {
        let digits = rest.split(['-', '+']).next()?;
        digits.parse::<u32>().ok()
    });
    match (major, minor, patch) {
        (Some(1), Some(_), Some(_)) => Ok(()),
        _ => Err(Error::spec(
            "ociVersion",
            format!("{version:?} is no version 1.x.y"),
        )),
    }
}

/// Lists what is in `given` and was lost in `known`.
fn unknown(path: &str, given: &Value, known: &Value, out: &mut Vec<String>) {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            for (key, value) in given {
                let here = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                match known.get(key) {
                    Some(known) => unknown(&here, value, known, out),
                    None if is_empty(value) => {}
                    None => out.push(format!("{here}: unknown property, not honoured")),
                }
            }
        }
        (Value::Array(given), Value::Array(known)) if given.len() == known.len() => {
            for (n, (given, known)) in given.iter().zip(known).enumerate() {
                unknown(&format!("{path}[{n}]"), given, known, out);
            }
        }
        _ => {}
    }
}

/// What a serialiser leaves out.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::Number(n) => n.as_i64() == Some(0),
    }
}

/// `CLONE_NEW*` of a namespace type (`linux/sched.h`).
#[must_use]
pub fn namespace_flag(kind: LinuxNamespaceType) -> u64 {
    use rkube_sys::clone;
    match kind {
        LinuxNamespaceType::Mount => clone::CLONE_NEWNS,
        LinuxNamespaceType::Cgroup => clone::CLONE_NEWCGROUP,
        LinuxNamespaceType::Uts => clone::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => clone::CLONE_NEWIPC,
        LinuxNamespaceType::User => clone::CLONE_NEWUSER,
        LinuxNamespaceType::Pid => clone::CLONE_NEWPID,
        LinuxNamespaceType::Network => clone::CLONE_NEWNET,
        LinuxNamespaceType::Time => clone::CLONE_NEWTIME,
    }
}

/// Every type of namespace, and its file in /proc/PID/ns (namespaces(7)).
pub const NAMESPACE_FILES: [(LinuxNamespaceType, &str); 8] = [
    (LinuxNamespaceType::User, "user"),
    (LinuxNamespaceType::Mount, "mnt"),
    (LinuxNamespaceType::Pid, "pid"),
    (LinuxNamespaceType::Network, "net"),
    (LinuxNamespaceType::Ipc, "ipc"),
    (LinuxNamespaceType::Uts, "uts"),
    (LinuxNamespaceType::Cgroup, "cgroup"),
    (LinuxNamespaceType::Time, "time"),
];

/// The namespaces that a container has of its own, new or joined: what an
/// exec joins.
#[must_use]
pub fn own_namespaces(spec: &Spec) -> u64 {
    spec.linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref())
        .into_iter()
        .flatten()
        .fold(0, |flags, n| flags | namespace_flag(n.typ()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for good in ["1.0.0", "1.0.2-dev", "1.3.0", "1.99.1+x", "1.0.0-rc5"] {
            assert!(check_version(good).is_ok(), "{good}");
        }
        for bad in [
            "", "1", "1.0", "2.0.0", "0.9.0", "1.x.0", "x", "1.0.", "-1.0.0",
        ] {
            assert!(check_version(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn unknown_properties_are_named() {
        let text = br#"{"ociVersion":"1.0.2","fresh":1,"root":{"path":"x","deep":{"a":1}},
            "mounts":[{"destination":"/a","odd":true}],"annotations":{"any":"thing"},
            "hooks":{"prestart":[]},"process":{"cwd":"/","user":{"uid":0,"gid":0},"args":["x"]}}"#;
        let (spec, warnings) = parse(text, "test").unwrap();
        assert_eq!(spec.annotations().as_ref().unwrap()["any"], "thing");
        let mut names: Vec<_> = warnings
            .iter()
            .map(|w| w.split(':').next().unwrap())
            .collect();
        names.sort_unstable();
        assert_eq!(names, ["fresh", "mounts[0].odd", "root.deep"]);
    }

    #[test]
    fn scheduler_flags_by_their_names_in_the_spec() {
        let text = br#"{"ociVersion":"1.3.0","process":{"cwd":"/","user":{"uid":0,"gid":0},
            "args":["SCHED_FLAG_DL_OVERRUN"],"scheduler":{"policy":"SCHED_DEADLINE","flags":
            ["SCHED_FLAG_RESET_ON_FORK","SCHED_FLAG_DL_OVERRUN","SCHED_FLAG_KEEP_PARAMS"]}}}"#;
        let (spec, warnings) = parse(text, "test").unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.args().as_ref().unwrap(), &["SCHED_FLAG_DL_OVERRUN"]);
        let scheduler = process.scheduler().as_ref().unwrap();
        assert_eq!(scheduler.flags().as_ref().unwrap().len(), 3);
    }

    #[test]
    fn wrong_types_are_refused() {
        for bad in [
            &b"{"[..],
            br#"{"ociVersion":"1.0.2","root":7}"#,
            br#"{"ociVersion":"1.0.2","process":{"cwd":"/","user":{"uid":-1,"gid":0}}}"#,
            br#"{"ociVersion":"1.0.2","process":{"cwd":"/","user":{"uid":0,"gid":0},
                "capabilities":{"bounding":["CAP_TEST"]}}}"#,
        ] {
            assert!(
                parse(bad, "test").is_err(),
                "{}",
                String::from_utf8_lossy(bad)
            );
        }
    }
}
