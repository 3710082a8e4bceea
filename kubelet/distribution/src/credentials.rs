//! Credentials of this node: files in the form of Docker's `config.json`, and
//! the credential helpers that they name.

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use rkube_image::{Credential, Keyring, MAX_KEYRING_BYTES};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{Error, Result, shown};
use crate::limits::{HELPER_TIMEOUT, MAX_HELPER_BYTES};

/// What Docker calls its hub in these files.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// A credential and where it is from.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) credential: Credential,
    pub(crate) from: String,
}

/// Credentials for a repository in these files, in their order.
pub(crate) fn find(files: &[PathBuf], host: &str, repository: &str) -> Result<Vec<Found>> {
    let mut out = Vec::new();
    for path in files {
        let Some(ring) = load(path)? else { continue };
        let listed = ring.find_at(host, repository);
        let known = !listed.is_empty();
        out.extend(listed.into_iter().map(|c| Found {
            credential: c.clone(),
            from: path.display().to_string(),
        }));
        let helper = ring
            .helpers
            .get(host)
            .or_else(|| ring.helpers.get(&key(host)))
            .or(ring.store.as_ref().filter(|_| !known));
        if let Some(helper) = helper
            && let Some(credential) = ask_helper(helper, &key(host))?
        {
            out.push(Found {
                credential,
                from: format!("docker-credential-{helper}"),
            });
        }
    }
    Ok(out)
}

fn load(path: &Path) -> Result<Option<Keyring>> {
    let Some(bytes) = crate::file::read(path, MAX_KEYRING_BYTES as u64)? else {
        return Ok(None);
    };
    let bad = |e: rkube_image::BadKeyring| Error::Config {
        path: path.to_owned(),
        reason: e.to_string(),
    };
    Keyring::from_config(&bytes).map(Some).map_err(bad)
}

/// The key of a registry in a file.
fn key(host: &str) -> String {
    match host {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => HUB_KEY.to_owned(),
        host => host.to_owned(),
    }
}

/// Adds a registry's credential to a file, which is made if it is missing;
/// what else stands in it stays.
pub(crate) fn store(path: &Path, host: &str, credential: &Credential) -> Result<()> {
    let helper = load(path)?.and_then(|r| r.helpers.get(host).cloned().or(r.store));
    if let Some(helper) = helper {
        let (user, secret) = match credential.identity_token.as_str() {
            "" => (credential.username.as_str(), credential.password.as_str()),
            token => ("<token>", token),
        };
        let text = json!({"ServerURL": key(host), "Username": user, "Secret": secret});
        return run_helper(&helper, "store", &text.to_string()).map(drop);
    }
    change(path, |auths| {
        auths.insert(key(host), json!({"auth": credential.basic_value()}));
        true
    })
    .map(drop)
}

/// Removes a registry's credential; whether there was one.
pub(crate) fn remove(path: &Path, host: &str) -> Result<bool> {
    let Some(ring) = load(path)? else {
        return Ok(false);
    };
    if let Some(helper) = ring.helpers.get(host).or(ring.store.as_ref())
        && ask_helper(helper, &key(host))?.is_some()
    {
        run_helper(helper, "erase", &key(host))?;
        return Ok(true);
    }
    change(path, |auths| auths.remove(&key(host)).is_some())
}

type Auths = serde_json::Map<String, Value>;

/// Changes the `auths` of a file; written whole beside it and renamed.
fn change(path: &Path, edit: impl FnOnce(&mut Auths) -> bool) -> Result<bool> {
    let on = |op| {
        let path = path.to_owned();
        move |source| Error::File { op, path, source }
    };
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(on("create the directory of"))?;
    // The file itself is replaced: who comes at the same time waits here.
    let guard = path.with_extension("lock");
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let guard = options.open(guard).map_err(on("lock"))?;
    guard.lock().map_err(on("lock"))?;
    let bytes = crate::file::read(path, MAX_KEYRING_BYTES as u64)?;
    let mut document: Value = bytes
        .and_then(|b| serde_json::from_slice(&b).ok())
        .filter(Value::is_object)
        .unwrap_or_else(|| json!({}));
    let auths = &mut document["auths"];
    if !auths.is_object() {
        *auths = json!({});
    }
    let changed = auths.as_object_mut().is_some_and(edit);
    if !changed {
        return Ok(false);
    }
    let tmp = path.with_extension(format!("{}.tmp", std::process::id()));
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&tmp).map_err(on("write"))?;
    let text = format!("{document:#}\n");
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all());
    let done = written.and_then(|()| std::fs::rename(&tmp, path));
    if done.is_err() {
        // The old file is as it was; what is left of the new one is in the way.
        let _ = std::fs::remove_file(&tmp);
    }
    done.map_err(on("write"))?;
    Ok(true)
}

/// `docker-credential-NAME get`; `None` if it knows none.
fn ask_helper(helper: &str, server: &str) -> Result<Option<Credential>> {
    let (ok, out) = run_helper(helper, "get", server)?;
    if !ok {
        // Its way to say that it has none; any other failure is told.
        let text = String::from_utf8_lossy(&out);
        if text.contains("credentials not found") || text.contains("no credentials server URL") {
            return Ok(None);
        }
        return Err(Error::Helper {
            helper: helper.to_owned(),
            reason: format!("get does not work: {}", shown(&text)),
        });
    }
    credential_of(helper, &out).map(Some)
}

/// The credential in a helper's answer.
pub(crate) fn credential_of(helper: &str, answer: &[u8]) -> Result<Credential> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let answer: Answer = serde_json::from_slice(answer).map_err(|_| Error::Helper {
        helper: helper.to_owned(),
        reason: "its answer is not {\"Username\", \"Secret\"}".into(),
    })?;
    Ok(if answer.username == "<token>" {
        Credential {
            identity_token: answer.secret,
            ..Credential::default()
        }
    } else {
        Credential::basic(&answer.username, &answer.secret)
    })
}

/// Runs a helper; whether it exits with 0, and its output.
fn run_helper(helper: &str, verb: &str, input: &str) -> Result<(bool, Vec<u8>)> {
    let program = format!("docker-credential-{helper}");
    let fail = |reason: String| Error::Helper {
        helper: program.clone(),
        reason,
    };
    let mut child = Command::new(&program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| fail(format!("it cannot be started: {e}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its input answers all the same.
        let _ = stdin.write_all(input.as_bytes());
    }
    let (sender, receiver) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut out = Vec::new();
            let limit = MAX_HELPER_BYTES as u64 + 1;
            let read = stdout.take(limit).read_to_end(&mut out).map(|_| out);
            // Nobody waits any more once it took too long.
            let _ = sender.send(read);
        });
    }
    let Ok(out) = receiver.recv_timeout(HELPER_TIMEOUT) else {
        let _ = child.kill();
        let _ = child.wait();
        return Err(fail(format!(
            "no answer within {} s",
            HELPER_TIMEOUT.as_secs()
        )));
    };
    let out = out.map_err(|e| fail(format!("read its answer: {e}")))?;
    if out.len() > MAX_HELPER_BYTES {
        let _ = child.kill();
        let _ = child.wait();
        return Err(fail(format!(
            "its answer has more than {MAX_HELPER_BYTES} bytes"
        )));
    }
    let status = child
        .wait()
        .map_err(|e| fail(format!("wait for it: {e}")))?;
    Ok((status.success(), out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_at_the_same_time_are_all_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let names: Vec<String> = (0..8).map(|i| format!("r{i}.test")).collect();
        std::thread::scope(|scope| {
            for name in &names {
                let credential = Credential::basic("u", name);
                scope.spawn(|| store(&path, name, &{ credential }).unwrap());
            }
        });
        for name in &names {
            let found = find(std::slice::from_ref(&path), name, "x").unwrap();
            assert_eq!(found[0].credential, Credential::basic("u", name));
        }
    }

    #[test]
    fn a_login_keeps_what_else_is_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rkube/config.json");
        let credential = Credential::basic("u", "p:q");
        store(&path, "docker.io", &credential).unwrap();
        let mut text: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(text["auths"][HUB_KEY]["auth"], "dTpwOnE=");
        text["other"] = 1.into();
        std::fs::write(&path, text.to_string()).unwrap();
        store(&path, "a.io:5000", &Credential::basic("x", "y")).unwrap();
        let files = [path.clone()];
        let found = find(&files, "registry-1.docker.io", "library/busybox").unwrap();
        assert_eq!(found[0].credential, credential);
        assert_eq!(find(&files, "a.io:5000", "x").unwrap().len(), 1);
        assert!(find(&files, "a.io", "x").unwrap().is_empty());
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(remove(&path, "a.io:5000").unwrap());
        assert!(!remove(&path, "a.io:5000").unwrap());
        let text: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(text["other"], 1);
        assert!(
            find(&[dir.path().join("none")], "a.io", "x")
                .unwrap()
                .is_empty()
        );
    }
}
