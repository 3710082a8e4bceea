//! `/healthz`, `/livez`, `/readyz`, one check each by `/readyz/NAME`, `?verbose`, `?exclude=`.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use http::Response;
use rkube_store::{Health, Store};

use super::answer;
use super::body::Body;

type Probe = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// One named condition of the server.
#[derive(Clone)]
pub struct Check {
    name: String,
    /// Also part of `/livez`: a failure that only a restart mends.
    live: bool,
    probe: Probe,
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check")
            .field("name", &self.name)
            .field("live", &self.live)
            .finish_non_exhaustive()
    }
}

impl Check {
    /// A condition for being ready to serve.
    pub fn ready(
        name: &str,
        probe: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.to_owned(),
            live: false,
            probe: Arc::new(probe),
        }
    }

    /// A condition for being alive at all.
    pub fn live(
        name: &str,
        probe: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            live: true,
            ..Self::ready(name, probe)
        }
    }
}

/// All conditions of the server.
#[derive(Debug, Clone, Default)]
pub struct Checks(pub Vec<Check>);

/// The checks that every server has: `ping`, and that the store takes writes.
pub(super) fn own(store: Arc<dyn Store>) -> Vec<Check> {
    vec![
        Check::live("ping", || Ok(())),
        // `etcd` is what the store's check is called for whoever looks for it.
        Check::live("etcd", move || match store.health() {
            Health::Ready => Ok(()),
            Health::Full => Err("no space left for the store".to_owned()),
            Health::ReadOnly { reason } => Err(format!("the store is read-only: {reason}")),
            Health::Closed => Err("the store is closed".to_owned()),
        }),
    ]
}

/// Answers one of the paths; `None` for a check that does not exist.
pub(super) fn answer(
    checks: &[Check],
    path: &str,
    query: &[(String, String)],
) -> Option<Response<Body>> {
    let mut segments = path.trim_matches('/').splitn(2, '/');
    let endpoint = segments.next().unwrap_or("");
    let one = segments.next();
    let is = |key: &str| query.iter().any(|(k, _)| k == key);
    let excluded: Vec<&str> = query
        .iter()
        .filter(|(k, _)| k == "exclude")
        .map(|(_, v)| v.as_str())
        .collect();
    if let Some(name) = one {
        let check = checks.iter().find(|c| c.name == name)?;
        return Some(match (check.probe)() {
            Ok(()) => text(200, "ok".to_owned()),
            Err(why) => text(500, format!("internal server error: {why}\n")),
        });
    }
    let mut lines = String::new();
    let mut failed = false;
    for check in checks.iter().filter(|c| endpoint != "livez" || c.live) {
        let name = &check.name;
        // Writing to a String cannot fail.
        let _ = if excluded.contains(&name.as_str()) {
            writeln!(lines, "[+]{name} excluded: ok")
        } else {
            match (check.probe)() {
                Ok(()) => writeln!(lines, "[+]{name} ok"),
                Err(why) => {
                    failed = true;
                    tracing::debug!(check = name, why, "{endpoint} check failed");
                    writeln!(lines, "[-]{name} failed: reason withheld")
                }
            }
        };
    }
    Some(if failed {
        text(500, format!("{lines}{endpoint} check failed\n"))
    } else if is("verbose") {
        text(200, format!("{lines}{endpoint} check passed\n"))
    } else {
        text(200, "ok".to_owned())
    })
}

fn text(code: u16, body: String) -> Response<Body> {
    answer::bytes(code, "text/plain; charset=utf-8", body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_is_not_liveness() {
        let checks = [
            Check::live("ping", || Ok(())),
            Check::ready("roles", || Err("not yet".into())),
        ];
        let code = |path: &str, query: &[(&str, &str)]| {
            let query: Vec<_> = query
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect();
            answer(&checks, path, &query).map(|r| r.status().as_u16())
        };
        assert_eq!(code("/livez", &[]), Some(200));
        assert_eq!(code("/readyz", &[]), Some(500));
        assert_eq!(
            code("/readyz", &[("exclude", "roles"), ("verbose", "")]),
            Some(200)
        );
        assert_eq!(code("/readyz/roles", &[]), Some(500));
        assert_eq!(code("/healthz/ping", &[]), Some(200));
        assert_eq!(code("/readyz/what", &[]), None);
    }
}
