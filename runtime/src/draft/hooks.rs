//! Hooks of the spec: those that run in the container become steps; those of
//! the host are handed to whoever drives the container.

use std::path::Path;

use oci_spec::runtime::{Hook, Spec};
use rkube_keeper::plan::Step;

use super::{c_path, c_string};
use crate::error::{Error, Result};

/// The six kinds (runtime-spec, config.md, POSIX-platform hooks).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookKind {
    /// On the host, before createRuntime; deprecated.
    Prestart,
    /// On the host, before the root file system is entered.
    CreateRuntime,
    /// In the container's namespaces, before the root file system is entered.
    CreateContainer,
    /// In the container, before its program.
    StartContainer,
    /// On the host, when the program runs.
    Poststart,
    /// On the host, when the container is gone.
    Poststop,
}

impl HookKind {
    /// Its name in the spec.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }
}

/// The hooks of one kind, in order.
#[must_use]
pub fn hooks_of(spec: &Spec, kind: HookKind) -> &[Hook] {
    let Some(hooks) = spec.hooks() else {
        return &[];
    };
    #[allow(deprecated)]
    let list = match kind {
        HookKind::Prestart => hooks.prestart(),
        HookKind::CreateRuntime => hooks.create_runtime(),
        HookKind::CreateContainer => hooks.create_container(),
        HookKind::StartContainer => hooks.start_container(),
        HookKind::Poststart => hooks.poststart(),
        HookKind::Poststop => hooks.poststop(),
    };
    list.as_deref().unwrap_or_default()
}

/// The state of a container as hooks and `state` show it (runtime-spec,
/// runtime.md, State).
#[must_use]
pub fn state_text(spec: &Spec, id: &str, bundle: &Path, status: &str, pid: i32) -> String {
    state_value(spec, id, bundle, status, pid).to_string()
}

/// The same as a value.
pub(crate) fn state_value(
    spec: &Spec,
    id: &str,
    bundle: &Path,
    status: &str,
    pid: i32,
) -> serde_json::Value {
    let mut state = serde_json::json!({
        "ociVersion": spec.version(),
        "id": id,
        "status": status,
        "bundle": bundle,
        "annotations": spec.annotations().clone().unwrap_or_default(),
    });
    if pid != 0 {
        state["pid"] = pid.into();
    }
    state
}

/// Checks every hook of a spec.
pub(super) fn check(spec: &Spec) -> Result<()> {
    for kind in [
        HookKind::Prestart,
        HookKind::CreateRuntime,
        HookKind::CreateContainer,
        HookKind::StartContainer,
        HookKind::Poststart,
        HookKind::Poststop,
    ] {
        for (n, hook) in hooks_of(spec, kind).iter().enumerate() {
            let field = || format!("hooks.{}[{n}]", kind.name());
            if !hook.path().is_absolute() {
                return Err(Error::spec(field(), "its path must be absolute"));
            }
            if hook.timeout().is_some_and(|t| t <= 0) {
                return Err(Error::spec(field(), "its timeout must be above zero"));
            }
        }
    }
    Ok(())
}

/// Steps of the hooks that run in the container.
pub(super) fn steps(
    spec: &Spec,
    id: &str,
    bundle: &Path,
    kind: HookKind,
    status: &str,
    pid: i32,
) -> Result<Vec<Step>> {
    let field = format!("hooks.{}", kind.name());
    let mut out = Vec::new();
    for hook in hooks_of(spec, kind) {
        let texts = |list: &Option<Vec<String>>| {
            list.iter()
                .flatten()
                .map(|text| c_string(&field, text.as_str()))
                .collect::<Result<Vec<_>>>()
        };
        let path = c_path(&field, hook.path())?;
        let mut argv = texts(hook.args())?;
        if argv.is_empty() {
            argv.push(path.clone());
        }
        out.push(Step::Hook {
            path,
            argv,
            env: texts(hook.env())?,
            timeout_s: hook.timeout().map(|t| u32::try_from(t).unwrap_or(u32::MAX)),
            stdin: c_string(&field, state_text(spec, id, bundle, status, pid))?,
        });
    }
    Ok(out)
}
