//! What the API says about itself: groups, versions and resources, plain and
//! aggregated. Pure functions of the resources that a server serves.

use serde_json::{Map, Value, json};

use crate::resources::{Gvk, Resource, Subresource, priority};

/// Whether upstream serves a resource without being told to: versions that
/// are generally available (beta versions are off since 1.24).
#[must_use]
pub fn is_on_by_default(resource: &Resource) -> bool {
    const GENERALLY_AVAILABLE: u8 = 3;
    priority(resource.gvk.version).0 == GENERALLY_AVAILABLE
}

/// `/api`.
#[must_use]
pub fn api_versions(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    })
}

/// The groups of `served` in the order of [`crate::resources::groups`], each
/// with its versions, the preferred first.
fn grouped(served: &[&'static Resource]) -> Vec<(&'static str, Vec<&'static str>)> {
    let on = |group: &str, version: &str| {
        served
            .iter()
            .any(|r| r.gvk.group == group && r.gvk.version == version)
    };
    let mut groups = crate::resources::groups();
    for (group, versions) in &mut groups {
        versions.retain(|version| on(group, version));
    }
    groups.retain(|(_, versions)| !versions.is_empty());
    groups
}

fn group_value(group: &str, versions: &[&str]) -> Value {
    let version = |v: &&str| json!({"groupVersion": format!("{group}/{v}"), "version": v});
    let versions: Vec<Value> = versions.iter().map(version).collect();
    json!({"name": group, "preferredVersion": versions.first(), "versions": versions})
}

/// `/apis`: all groups but core.
#[must_use]
pub fn group_list(served: &[&'static Resource]) -> Value {
    let groups: Vec<Value> = grouped(served)
        .iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, versions)| group_value(group, versions))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`.
#[must_use]
pub fn group(served: &[&'static Resource], name: &str) -> Option<Value> {
    let groups = grouped(served);
    let (group, versions) = groups
        .iter()
        .find(|(group, _)| *group == name && !name.is_empty())?;
    let mut value = group_value(group, versions);
    if let Some(map) = value.as_object_mut() {
        map.insert("kind".into(), "APIGroup".into());
        map.insert("apiVersion".into(), "v1".into());
    }
    Some(value)
}

/// `/api/v1` and `/apis/GROUP/VERSION`.
#[must_use]
pub fn resource_list(served: &[&'static Resource], group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    let own = served
        .iter()
        .filter(|r| r.gvk.group == group && r.gvk.version == version);
    for resource in own {
        let mut entry = Map::new();
        entry.insert("name".into(), resource.plural.into());
        entry.insert("singularName".into(), resource.singular().into());
        entry.insert("namespaced".into(), resource.namespaced.into());
        entry.insert("kind".into(), resource.gvk.kind.into());
        entry.insert("verbs".into(), resource.verbs.clone().into());
        insert_names(&mut entry, resource);
        list.push(Value::Object(entry));
        for sub in &resource.subresources {
            let mut entry = Map::new();
            entry.insert(
                "name".into(),
                format!("{}/{}", resource.plural, sub.name).into(),
            );
            entry.insert("singularName".into(), "".into());
            entry.insert("namespaced".into(), resource.namespaced.into());
            entry.insert("kind".into(), sub.gvk.kind.into());
            entry.insert("verbs".into(), sub.verbs.clone().into());
            if (sub.gvk.group, sub.gvk.version) != (group, version) {
                entry.insert("group".into(), sub.gvk.group.into());
                entry.insert("version".into(), sub.gvk.version.into());
            }
            list.push(Value::Object(entry));
        }
    }
    if list.is_empty() {
        return None;
    }
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    let mut value = json!({
        "kind": "APIResourceList", "groupVersion": group_version, "resources": list,
    });
    // The core group's list is older than `apiVersion` in lists, and never got it.
    if !group.is_empty() {
        value["apiVersion"] = "v1".into();
    }
    Some(value)
}

fn insert_names(entry: &mut Map<String, Value>, resource: &Resource) {
    if !resource.short_names.is_empty() {
        entry.insert("shortNames".into(), resource.short_names.clone().into());
    }
    if !resource.categories.is_empty() {
        entry.insert("categories".into(), resource.categories.clone().into());
    }
}

/// The aggregated form of `/api` (`core`) or `/apis`
/// (`application/json;g=apidiscovery.k8s.io;v=VERSION;as=APIGroupDiscoveryList`);
/// `api_version` is `v2` or `v2beta1`, which differ in name only.
#[must_use]
pub fn aggregated(served: &[&'static Resource], core: bool, api_version: &str) -> Value {
    let mut items = Vec::new();
    for (group, versions) in grouped(served).iter().filter(|(g, _)| g.is_empty() == core) {
        let versions: Vec<Value> = versions
            .iter()
            .map(|version| {
                let own: Vec<Value> = served
                    .iter()
                    .filter(|r| r.gvk.group == *group && r.gvk.version == *version)
                    .map(|r| aggregated_resource(r))
                    .collect();
                json!({"version": version, "resources": own, "freshness": "Current"})
            })
            .collect();
        let metadata = if group.is_empty() {
            json!({})
        } else {
            json!({"name": group})
        };
        items.push(json!({"metadata": metadata, "versions": versions}));
    }
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{api_version}"),
        "metadata": {}, "items": items,
    })
}

fn response_kind(gvk: &Gvk) -> Value {
    json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind})
}

fn aggregated_resource(resource: &Resource) -> Value {
    let sub = |s: &Subresource| json!({"subresource": s.name, "responseKind": response_kind(&s.gvk), "verbs": s.verbs});
    let subresources: Vec<Value> = resource.subresources.iter().map(sub).collect();
    let mut entry = Map::new();
    entry.insert("resource".into(), resource.plural.into());
    entry.insert("responseKind".into(), response_kind(&resource.gvk));
    let scope = if resource.namespaced {
        "Namespaced"
    } else {
        "Cluster"
    };
    entry.insert("scope".into(), scope.into());
    entry.insert("singularResource".into(), resource.singular().into());
    entry.insert("verbs".into(), resource.verbs.clone().into());
    insert_names(&mut entry, resource);
    if !subresources.is_empty() {
        entry.insert("subresources".into(), subresources.into());
    }
    Value::Object(entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::all;

    fn served() -> Vec<&'static Resource> {
        all().iter().filter(|r| is_on_by_default(r)).collect()
    }

    #[test]
    fn plain_discovery() {
        let served = served();
        let groups = group_list(&served);
        let names: Vec<_> = groups["groups"]
            .as_array()
            .unwrap()
            .iter()
            .map(|g| g["name"].as_str().unwrap())
            .collect();
        assert_eq!(
            names[..3],
            ["apiregistration.k8s.io", "apps", "events.k8s.io"]
        );
        assert!(!names.contains(&"storagemigration.k8s.io"), "beta is off");
        let hpa = group(&served, "autoscaling").unwrap();
        assert_eq!(
            hpa["preferredVersion"],
            json!({"groupVersion": "autoscaling/v2", "version": "v2"})
        );
        assert_eq!(hpa["versions"].as_array().unwrap().len(), 2);
        assert!(group(&served, "nope").is_none() && group(&served, "").is_none());
        let core = resource_list(&served, "", "v1").unwrap();
        assert_eq!(core["groupVersion"], "v1");
        let find = |name: &str| {
            core["resources"]
                .as_array()
                .unwrap()
                .iter()
                .find(|r| r["name"] == name)
                .unwrap()
                .clone()
        };
        assert_eq!(
            find("pods"),
            json!({"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "shortNames": ["po"], "categories": ["all"],
                   "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]})
        );
        assert_eq!(
            find("pods/eviction"),
            json!({"name": "pods/eviction", "singularName": "", "namespaced": true, "kind": "Eviction",
                   "group": "policy", "version": "v1", "verbs": ["create"]})
        );
        assert!(resource_list(&served, "apps", "v9").is_none());
    }

    #[test]
    fn aggregated_discovery_says_the_same_as_plain() {
        let served = served();
        let mut resources = 0;
        for (core, items) in [(true, 1), (false, grouped(&served).len() - 1)] {
            let list = aggregated(&served, core, "v2");
            assert_eq!(list["items"].as_array().unwrap().len(), items);
            for group in list["items"].as_array().unwrap() {
                let name = group["metadata"]["name"].as_str().unwrap_or("");
                for version in group["versions"].as_array().unwrap() {
                    let plain =
                        resource_list(&served, name, version["version"].as_str().unwrap()).unwrap();
                    let count: usize = version["resources"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .map(|r| 1 + r["subresources"].as_array().map_or(0, Vec::len))
                        .sum();
                    assert_eq!(plain["resources"].as_array().unwrap().len(), count);
                    resources += version["resources"].as_array().unwrap().len();
                }
            }
        }
        assert_eq!(resources, served.len());
    }
}
