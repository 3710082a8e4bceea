//! Hooks that run on the host.

use std::ffi::CString;
use std::path::Path;

use oci_spec::runtime::Spec;

use crate::draft::{HookKind, c_path, c_string, hooks_of, state_text};
use crate::error::{Error, Result};

/// Runs the hooks of one kind in order; the first failure ends it.
pub(super) fn run(
    spec: &Spec,
    kind: HookKind,
    id: &str,
    bundle: &Path,
    status: &str,
    pid: i32,
) -> Result<()> {
    for hook in hooks_of(spec, kind) {
        let field = kind.name();
        let texts = |list: &Option<Vec<String>>| -> Result<Vec<CString>> {
            list.iter()
                .flatten()
                .map(|text| c_string(field, text.as_str()))
                .collect()
        };
        let path = c_path(field, hook.path())?;
        let mut argv = texts(hook.args())?;
        if argv.is_empty() {
            argv.push(path.clone());
        }
        let env = texts(hook.env())?;
        let timeout = hook.timeout().map(|t| u32::try_from(t).unwrap_or(u32::MAX));
        let stdin = c_string(field, state_text(spec, id, bundle, status, pid))?;
        rkube_keeper::hook::run(&path, &argv, &env, timeout, &stdin).map_err(|failure| {
            Error::Hook {
                kind: field,
                path: hook.path().clone(),
                reason: failure.to_string(),
            }
        })?;
    }
    Ok(())
}
