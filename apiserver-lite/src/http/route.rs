//! Paths to what they mean (`RequestInfoFactory` of upstream).

use percent_encoding::percent_decode_str;
use rkube_api::resources::{Resource, Subresource};

use crate::engine::Engine;

/// What a path is about.
#[derive(Debug, Clone)]
pub(super) enum Route {
    /// A resource, or one object of it, or a part of one.
    Resource(Target),
    /// Under `/api` or `/apis`, and not served.
    Missing,
    /// Anything else, decided by the path's text.
    Path,
}

/// A resource in a path.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) resource: &'static Resource,
    pub(super) subresource: Option<&'static Subresource>,
    pub(super) namespace: String,
    pub(super) name: String,
    /// What follows a subresource, with its slash.
    pub(super) rest: String,
    /// The older form of watches: `/api/v1/watch/...`.
    pub(super) watch: bool,
}

/// Most segments of a path; longer ones are `proxy` paths, whose rest is kept whole.
const SEGMENTS_MAX: usize = 64;

fn decoded(segment: &str) -> Option<String> {
    let text = percent_decode_str(segment).decode_utf8().ok()?;
    // A name that would climb out of its key is none.
    let fine = !text.is_empty() && !text.contains('/') && text != "." && text != "..";
    fine.then(|| text.into_owned())
}

/// Finds out what a path means to an engine.
pub(super) fn route(engine: &Engine, path: &str) -> Route {
    let trimmed = path.trim_matches('/');
    let segments: Vec<&str> = trimmed.splitn(SEGMENTS_MAX, '/').collect();
    let (group, version, rest) = match segments.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Route::Path,
    };
    let (watch, rest) = match rest {
        ["watch", rest @ ..] if !rest.is_empty() => (true, rest),
        rest => (false, rest),
    };
    let found = match rest {
        ["namespaces", namespace, plural, rest @ ..] => {
            // A part of a namespace itself, or a resource in it.
            let resource = engine.resource(group, version, "namespaces");
            let part = resource.and_then(|r| r.subresource(plural));
            match (resource, part, rest.is_empty()) {
                (Some(resource), Some(part), true) if group.is_empty() => Some(Found {
                    resource,
                    part: Some(part),
                    namespace: "",
                    name: namespace,
                    rest: &[],
                }),
                _ => in_namespace(engine, group, version, namespace, plural, rest),
            }
        }
        [plural, rest @ ..] => outside(engine, group, version, plural, rest),
        [] => None,
    };
    let Some(found) = found else {
        return Route::Missing;
    };
    let text = |segment: &str| {
        if segment.is_empty() {
            Some(String::new())
        } else {
            decoded(segment)
        }
    };
    let (Some(namespace), Some(name)) = (text(found.namespace), text(found.name)) else {
        return Route::Missing;
    };
    let mut after = String::new();
    for segment in found.rest {
        after.push('/');
        after.push_str(segment);
    }
    if found.part.is_some_and(|p| p.name == "proxy") && path.ends_with('/') && !after.is_empty() {
        after.push('/');
    }
    Route::Resource(Target {
        resource: found.resource,
        subresource: found.part,
        namespace,
        name,
        rest: after,
        watch,
    })
}

struct Found<'a> {
    resource: &'static Resource,
    part: Option<&'static Subresource>,
    namespace: &'a str,
    name: &'a str,
    rest: &'a [&'a str],
}

fn in_namespace<'a>(
    engine: &Engine,
    group: &str,
    version: &str,
    namespace: &'a str,
    plural: &str,
    rest: &'a [&'a str],
) -> Option<Found<'a>> {
    let resource = engine.resource(group, version, plural)?;
    if !resource.namespaced {
        return None;
    }
    object(resource, namespace, rest)
}

fn outside<'a>(
    engine: &Engine,
    group: &str,
    version: &str,
    plural: &str,
    rest: &'a [&'a str],
) -> Option<Found<'a>> {
    let resource = engine.resource(group, version, plural)?;
    // Objects in namespaces are only found in them.
    if resource.namespaced && !rest.is_empty() {
        return None;
    }
    object(resource, "", rest)
}

fn object<'a>(
    resource: &'static Resource,
    namespace: &'a str,
    rest: &'a [&'a str],
) -> Option<Found<'a>> {
    let (name, part, rest) = match rest {
        [] => ("", None, rest),
        [name] => (*name, None, &rest[1..]),
        [name, part, after @ ..] => {
            let part = resource.subresource(part)?;
            if !after.is_empty() && part.name != "proxy" {
                return None;
            }
            (*name, Some(part), after)
        }
    };
    Some(Found {
        resource,
        part,
        namespace,
        name,
        rest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn paths_of_the_api() {
        let folder = tempfile::tempdir().unwrap();
        let engine = testing::engine(folder.path()).unwrap();
        let at = |path: &str| match route(&engine, path) {
            Route::Resource(t) => format!(
                "{} {} {} {} {}{}",
                t.resource.plural,
                t.subresource.map_or("-", |s| s.name),
                t.namespace,
                t.name,
                t.rest,
                if t.watch { " watch" } else { "" }
            ),
            Route::Missing => "missing".into(),
            Route::Path => "path".into(),
        };
        for (path, expected) in [
            ("/api/v1/pods", "pods -   "),
            ("/api/v1/namespaces/n/pods/p/status", "pods status n p "),
            ("/api/v1/namespaces/n", "namespaces -  n "),
            ("/api/v1/namespaces/n/finalize", "namespaces finalize  n "),
            ("/api/v1/watch/namespaces/n/pods", "pods - n   watch"),
            (
                "/apis/apps/v1/namespaces/n/deployments/d/scale",
                "deployments scale n d ",
            ),
            (
                "/api/v1/nodes/n/proxy/metrics/x",
                "nodes proxy  n /metrics/x",
            ),
            (
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:x%3Ay",
                "clusterroles -  system:x:y ",
            ),
            ("/api/v1/pods/p", "missing"),
            ("/api/v1/namespaces/n/nodes", "missing"),
            ("/api/v1/namespaces/n/pods/p/what", "missing"),
            ("/api/v1/namespaces/n/pods/..", "missing"),
            ("/api/v1/namespaces/n/pods/a%2Fb", "missing"),
            ("/apis/apps/v1", "path"),
            ("/healthz", "path"),
        ] {
            assert_eq!(at(path), expected, "{path}");
        }
    }
}
