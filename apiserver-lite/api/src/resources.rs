//! The resource table: every resource of the API, its verbs and subresources,
//! as data (`data/resources.txt`, made by `tools/tables.rs`). Grammar:
//!
//! ```text
//! GROUP/VERSION/KIND PLURAL namespaced|cluster VERBS [short=A,B] [category=C]
//!  SUBRESOURCE GROUP/VERSION/KIND VERBS
//! ```

use std::collections::HashMap;
use std::sync::OnceLock;

use crate::types::{self, Type};

/// Group ("" is core), version and kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gvk {
    /// The group; "" is core.
    pub group: &'static str,
    /// The version.
    pub version: &'static str,
    /// The kind.
    pub kind: &'static str,
}

impl Gvk {
    fn parse(text: &'static str) -> Option<Self> {
        let mut parts = text.splitn(3, '/');
        Some(Self {
            group: parts.next()?,
            version: parts.next()?,
            kind: parts.next()?,
        })
    }

    /// `v1` or `apps/v1`.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

/// A resource in one version.
#[derive(Debug)]
pub struct Resource {
    /// Group, version and kind of the objects.
    pub gvk: Gvk,
    /// The name in paths, such as `pods`.
    pub plural: &'static str,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Verbs in alphabetical order.
    pub verbs: Vec<&'static str>,
    /// Names that kubectl takes too, such as `po`.
    pub short_names: Vec<&'static str>,
    /// Groups of resources, such as `all`.
    pub categories: Vec<&'static str>,
    /// Subresources by name.
    pub subresources: Vec<Subresource>,
}

/// A part of a resource with a path of its own.
#[derive(Debug)]
pub struct Subresource {
    /// The name, such as `status`.
    pub name: &'static str,
    /// The type of bodies (for `exec` and the like: of the options).
    pub gvk: Gvk,
    /// Verbs in alphabetical order.
    pub verbs: Vec<&'static str>,
}

impl Resource {
    /// The singular name: the kind in lower case.
    #[must_use]
    pub fn singular(&self) -> String {
        self.gvk.kind.to_ascii_lowercase()
    }

    /// The subresource of a name.
    #[must_use]
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether a verb is served on objects themselves.
    #[must_use]
    pub fn serves(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// The type of the objects.
    #[must_use]
    pub fn object_type(&self) -> Option<&'static Type> {
        types::by_gvk(self.gvk.group, self.gvk.version, self.gvk.kind)
    }
}

const TEXT: &str = include_str!("../data/resources.txt");

fn parse() -> Vec<Resource> {
    let mut resources: Vec<Resource> = Vec::new();
    for line in TEXT.lines().filter(|l| !l.starts_with('#')) {
        let sub = line.starts_with(' ');
        let words: Vec<&'static str> = line.trim_start().split(' ').collect();
        let list = |text: &'static str| text.split(',').filter(|v| !v.is_empty()).collect();
        match (words.as_slice(), resources.last_mut()) {
            ([name, gvk, verbs], Some(resource)) if sub => {
                let Some(gvk) = Gvk::parse(gvk) else { continue };
                resource.subresources.push(Subresource {
                    name,
                    gvk,
                    verbs: list(verbs),
                });
            }
            ([gvk, plural, scope, verbs, rest @ ..], _) if !sub => {
                let Some(gvk) = Gvk::parse(gvk) else { continue };
                let option = |prefix: &str| {
                    rest.iter()
                        .find_map(|w| w.strip_prefix(prefix))
                        .map_or(Vec::new(), list)
                };
                resources.push(Resource {
                    gvk,
                    plural,
                    namespaced: *scope == "namespaced",
                    verbs: list(verbs),
                    short_names: option("short="),
                    categories: option("category="),
                    subresources: Vec::new(),
                });
            }
            _ => {}
        }
    }
    resources
}

/// All resources, ordered by group, version and name.
#[must_use]
pub fn all() -> &'static [Resource] {
    static TABLE: OnceLock<Vec<Resource>> = OnceLock::new();
    TABLE.get_or_init(parse)
}

/// The resource of a path.
#[must_use]
pub fn by_plural(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    type Key = (&'static str, &'static str, &'static str);
    static INDEX: OnceLock<HashMap<Key, &'static Resource>> = OnceLock::new();
    let index = INDEX.get_or_init(|| {
        all()
            .iter()
            .map(|r| ((r.gvk.group, r.gvk.version, r.plural), r))
            .collect()
    });
    index.get(&(group, version, plural)).copied()
}

/// The resource of a kind. Kinds that are no resources (`Scale`, `Status`,
/// lists) have none.
#[must_use]
pub fn by_kind(api_version: &str, kind: &str) -> Option<&'static Resource> {
    type Key = (&'static str, &'static str, &'static str);
    static INDEX: OnceLock<HashMap<Key, &'static Resource>> = OnceLock::new();
    let index = INDEX.get_or_init(|| {
        let mut index = HashMap::new();
        for r in all() {
            let key = (r.gvk.group, r.gvk.version, r.gvk.kind);
            index.entry(key).or_insert(r);
        }
        index
    });
    let (group, version) = types::split_api_version(api_version);
    index.get(&(group, version, kind)).copied()
}

/// A resource in the preferred version of its group that has it.
#[must_use]
pub fn preferred(group: &str, plural: &str) -> Option<&'static Resource> {
    static INDEX: OnceLock<HashMap<(&'static str, &'static str), &'static Resource>> =
        OnceLock::new();
    let index = INDEX.get_or_init(|| {
        let mut index: HashMap<_, &'static Resource> = HashMap::new();
        for r in all() {
            let kept = index.entry((r.gvk.group, r.plural)).or_insert(r);
            if priority(r.gvk.version) > priority(kept.gvk.version) {
                *kept = r;
            }
        }
        index
    });
    index.get(&(group, plural)).copied()
}

/// The groups with their versions, the preferred version first, in the order
/// in which discovery lists them: core, then as upstream's priorities.
#[must_use]
pub fn groups() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut groups: Vec<(&'static str, Vec<&'static str>)> = Vec::new();
    for resource in all() {
        let Gvk { group, version, .. } = resource.gvk;
        match groups.iter_mut().find(|(name, _)| *name == group) {
            Some((_, versions)) if versions.contains(&version) => {}
            Some((_, versions)) => versions.push(version),
            None => groups.push((group, vec![version])),
        }
    }
    for (_, versions) in &mut groups {
        versions.sort_by_key(|v| std::cmp::Reverse(priority(v)));
    }
    groups.sort_by_key(|(group, _)| {
        GROUP_ORDER
            .iter()
            .position(|g| g == group)
            .unwrap_or(GROUP_ORDER.len())
    });
    groups
}

/// The order of groups in `/apis`, by upstream's group priorities.
const GROUP_ORDER: [&str; 21] = [
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "resource.k8s.io",
];

/// How far a version is: generally available before beta before alpha, and
/// the higher number first (`v2`, `v1`, `v1beta2`, `v1alpha1`).
#[must_use]
pub fn priority(version: &str) -> (u8, u32, u32) {
    let Some(rest) = version.strip_prefix('v') else {
        return (0, 0, 0);
    };
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let major = rest[..end].parse().unwrap_or(0);
    let (stage, minor) = match &rest[end..] {
        "" => (3, ""),
        tail => match (tail.strip_prefix("beta"), tail.strip_prefix("alpha")) {
            (Some(minor), _) => (2, minor),
            (_, Some(minor)) => (1, minor),
            _ => (0, ""),
        },
    };
    (stage, major, minor.parse().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_table_is_whole() {
        let lines = TEXT.lines().filter(|l| !l.starts_with(['#', ' '])).count();
        assert_eq!(all().len(), lines);
        for resource in all() {
            let name = resource.plural;
            assert!(resource.object_type().is_some(), "{name} has no type");
            assert!(!resource.verbs.is_empty(), "{name} has no verbs");
            assert!(resource.verbs.is_sorted(), "{name}");
            for sub in &resource.subresources {
                let gvk = sub.gvk;
                let options = gvk.kind.ends_with("Options");
                assert!(
                    options || types::by_gvk(gvk.group, gvk.version, gvk.kind).is_some(),
                    "{name}/{}",
                    sub.name
                );
            }
        }
    }

    /// Kinds with paths, and their subresources, by group and version: counted in the paths of
    /// the OpenAPI v2 description of release 1.36 (`api/openapi-spec/swagger.json`) itself, by
    /// another program than the one that makes the table. SHA-256 of that description:
    /// `177b4a22b79fa689dda0189a5de26af9ceddf313edc7c54af7335f0962a1ae83`.
    const COUNTS: &[(&str, usize, usize)] = &[
        ("admissionregistration.k8s.io/v1", 6, 1),
        ("admissionregistration.k8s.io/v1alpha1", 2, 0),
        ("admissionregistration.k8s.io/v1beta1", 2, 0),
        ("apiextensions.k8s.io/v1", 1, 1),
        ("apiregistration.k8s.io/v1", 1, 1),
        ("apps/v1", 5, 7),
        ("authentication.k8s.io/v1", 2, 0),
        ("authorization.k8s.io/v1", 4, 0),
        ("autoscaling/v1", 1, 1),
        ("autoscaling/v2", 1, 1),
        ("batch/v1", 2, 2),
        ("certificates.k8s.io/v1", 1, 2),
        ("certificates.k8s.io/v1alpha1", 1, 0),
        ("certificates.k8s.io/v1beta1", 2, 1),
        ("coordination.k8s.io/v1", 1, 0),
        ("coordination.k8s.io/v1alpha2", 1, 0),
        ("coordination.k8s.io/v1beta1", 1, 0),
        ("discovery.k8s.io/v1", 1, 0),
        ("events.k8s.io/v1", 1, 0),
        ("flowcontrol.apiserver.k8s.io/v1", 2, 2),
        ("internal.apiserver.k8s.io/v1alpha1", 1, 1),
        ("networking.k8s.io/v1", 5, 2),
        ("networking.k8s.io/v1beta1", 2, 1),
        ("node.k8s.io/v1", 1, 0),
        ("policy/v1", 1, 1),
        ("rbac.authorization.k8s.io/v1", 4, 0),
        ("resource.k8s.io/v1", 4, 1),
        ("resource.k8s.io/v1alpha3", 2, 2),
        ("resource.k8s.io/v1beta1", 4, 1),
        ("resource.k8s.io/v1beta2", 5, 2),
        ("scheduling.k8s.io/v1", 1, 0),
        ("scheduling.k8s.io/v1alpha2", 2, 1),
        ("storage.k8s.io/v1", 6, 1),
        ("storage.k8s.io/v1beta1", 1, 0),
        ("storagemigration.k8s.io/v1beta1", 1, 1),
        ("v1", 17, 22),
    ];

    #[test]
    fn the_table_has_all_that_the_release_has() {
        let mut found: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for resource in all() {
            let counts = found.entry(resource.gvk.api_version()).or_default();
            counts.0 += 1;
            counts.1 += resource.subresources.len();
        }
        let expected = COUNTS
            .iter()
            .map(|(name, kinds, parts)| ((*name).to_owned(), (*kinds, *parts)));
        assert_eq!(found, expected.collect());
    }

    #[test]
    fn known_resources() {
        let pods = by_plural("", "v1", "pods").unwrap();
        assert_eq!(
            (pods.gvk.kind, pods.namespaced, &*pods.singular()),
            ("Pod", true, "pod")
        );
        assert_eq!(pods.short_names, ["po"]);
        assert_eq!(pods.categories, ["all"]);
        assert!(pods.serves("deletecollection") && pods.serves("watch"));
        assert_eq!(pods.subresource("eviction").unwrap().gvk.group, "policy");
        assert_eq!(
            by_kind("apps/v1", "Deployment").unwrap().plural,
            "deployments"
        );
        assert!(!by_kind("v1", "Namespace").unwrap().namespaced);
        assert!(
            !by_plural("", "v1", "namespaces")
                .unwrap()
                .serves("deletecollection")
        );
        assert!(by_kind("v1", "Status").is_none());
        let hpa = preferred("autoscaling", "horizontalpodautoscalers").unwrap();
        assert_eq!(hpa.gvk.version, "v2");
        assert!(preferred("apps", "pods").is_none());
    }

    #[test]
    fn groups_and_versions_in_order() {
        let groups = groups();
        assert_eq!(groups[0], ("", vec!["v1"]));
        let autoscaling = groups.iter().find(|(g, _)| *g == "autoscaling").unwrap();
        assert_eq!(autoscaling.1, ["v2", "v1"]);
        let mut versions = vec!["v1alpha1", "v1", "v2beta1", "v1beta2", "v2", "v10"];
        versions.sort_by_key(|v| std::cmp::Reverse(priority(v)));
        assert_eq!(
            versions,
            ["v10", "v2", "v1", "v2beta1", "v1beta2", "v1alpha1"]
        );
    }
}
