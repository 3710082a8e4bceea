//! The rules for volumes and their sources.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::container::{descending_path, no_backsteps, resource_field_ref, volume_field_ref};
use super::validate::{one_of, one_of_opt};
use crate::field::Errors;
use crate::meta::required_name;
use crate::names;
use crate::quantity::Quantity;
use crate::view::At;

/// The volumes of a pod by name.
#[derive(Debug, Default)]
pub(super) struct Volumes<'v>(HashMap<&'v str, Option<&'v Map<String, Value>>>);

impl Volumes<'_> {
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Whether a volume has a source; `None` if there is no such volume.
    pub(super) fn is_some_kind(&self, name: &str, source: &str) -> Option<bool> {
        let volume = self.0.get(name)?;
        Some(
            volume
                .and_then(|v| v.get(source))
                .is_some_and(|s| !s.is_null()),
        )
    }
}

pub(super) fn validate<'v>(errors: &mut Errors, spec: &At<'v, '_>) -> Volumes<'v> {
    let mut volumes = Volumes::default();
    for volume in spec.get("volumes").items() {
        let name = volume.get("name");
        required_name(errors, &name, names::dns1123_label);
        if volumes.0.insert(name.str(), volume.map()).is_some() {
            name.duplicate(errors);
        }
        let mut count = 0;
        for key in volume
            .map()
            .into_iter()
            .flatten()
            .map(|(key, _)| key.as_str())
        {
            let source = volume.get(key);
            if key == "name" || source.is_none() {
                continue;
            }
            count += 1;
            if count > 1 {
                source.forbidden(errors, "may not specify more than 1 volume type");
            } else {
                one_source(errors, &source, key);
            }
        }
        if count == 0 {
            volume.required(errors, "must specify a volume type");
        }
    }
    volumes
}

fn one_source(errors: &mut Errors, at: &At<'_, '_>, kind: &str) {
    match kind {
        "emptyDir" => empty_dir(errors, at),
        "hostPath" => {
            let path = at.get("path");
            need(errors, &path);
            no_backsteps(errors, &path);
            let types = [
                "",
                "BlockDevice",
                "CharDevice",
                "Directory",
                "DirectoryOrCreate",
                "File",
                "FileOrCreate",
                "Socket",
            ];
            one_of_opt(errors, &at.get("type"), &types);
        }
        "secret" | "configMap" => {
            need(
                errors,
                &at.get(if kind == "secret" {
                    "secretName"
                } else {
                    "name"
                }),
            );
            mode(errors, &at.get("defaultMode"));
            keys_to_paths(errors, at);
        }
        "downwardAPI" => {
            mode(errors, &at.get("defaultMode"));
            at.get("items")
                .items()
                .for_each(|file| downward_file(errors, &file));
        }
        "projected" => projected(errors, at),
        "persistentVolumeClaim" => need(errors, &at.get("claimName")),
        "nfs" => {
            need(errors, &at.get("server"));
            let path = at.get("path");
            need(errors, &path);
            if !path.str().is_empty() && !path.str().starts_with('/') {
                path.invalid(errors, "must be an absolute path");
            }
        }
        "iscsi" => {
            for field in ["targetPortal", "iqn"] {
                need(errors, &at.get(field));
            }
            let iqn = at.get("iqn");
            let known = ["iqn", "eui", "naa"]
                .iter()
                .any(|p| iqn.str().starts_with(p));
            if !iqn.str().is_empty() && !known {
                iqn.invalid(
                    errors,
                    "must be valid format starting with iqn, eui, or naa",
                );
            }
            let lun = at.get("lun");
            if lun.int().is_some_and(|n| !(0..=255).contains(&n)) {
                lun.invalid(errors, names::range(0, 255));
            }
            let chap = ["chapAuthDiscovery", "chapAuthSession"];
            if chap.iter().any(|f| at.get(f).is_true()) && at.get("secretRef").is_none() {
                at.get("secretRef").required(errors, "");
            }
        }
        "gcePersistentDisk" | "awsElasticBlockStore" => {
            need(
                errors,
                &at.get(if kind == "gcePersistentDisk" {
                    "pdName"
                } else {
                    "volumeID"
                }),
            );
            let partition = at.get("partition");
            if partition.int().is_some_and(|n| !(0..=255).contains(&n)) {
                partition.invalid(errors, names::range(1, 255));
            }
        }
        "quobyte" => {
            let registry = at.get("registry");
            if registry.str().is_empty() {
                registry.required(
                    errors,
                    "must be a host:port pair or multiple pairs separated by commas",
                );
            }
            need(errors, &at.get("volume"));
        }
        "flocker" => {
            if ["datasetName", "datasetUUID"]
                .iter()
                .all(|f| at.get(f).str().is_empty())
            {
                at.required(errors, "one of datasetName and datasetUUID is required");
            }
        }
        "csi" => required_name(errors, &at.get("driver"), names::dns1123_subdomain),
        "image" => {
            need(errors, &at.get("reference"));
            one_of(
                errors,
                &at.get("pullPolicy"),
                &["Always", "IfNotPresent", "Never"],
            );
        }
        "ephemeral" => {
            let template = at.get("volumeClaimTemplate");
            if template.is_none() {
                template.required(errors, "");
            } else {
                crate::claim::validate_spec(errors, &template.get("spec"));
            }
        }
        "gitRepo" => {
            need(errors, &at.get("repository"));
            descending_path(errors, &at.get("directory"));
        }
        other => {
            let fields = NETWORK.iter().find(|(source, _)| *source == other);
            for field in fields.map_or(&[][..], |(_, fields)| *fields) {
                let at = at.get(field);
                if at.str().is_empty() && at.is_empty() {
                    at.required(errors, "");
                }
            }
        }
    }
}

/// What sources of storage on the network must say.
const NETWORK: &[(&str, &[&str])] = &[
    ("glusterfs", &["endpoints", "path"]),
    ("rbd", &["monitors", "image"]),
    ("cephfs", &["monitors"]),
    ("flexVolume", &["driver"]),
    ("cinder", &["volumeID"]),
    ("portworxVolume", &["volumeID"]),
    ("vsphereVolume", &["volumePath"]),
    ("photonPersistentDisk", &["pdID"]),
    ("azureFile", &["secretName", "shareName"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("storageos", &["volumeName"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
];

fn need(errors: &mut Errors, at: &At<'_, '_>) {
    if at.str().is_empty() {
        at.required(errors, "");
    }
}

fn empty_dir(errors: &mut Errors, at: &At<'_, '_>) {
    let limit = at.get("sizeLimit");
    if Quantity::from_json(limit.value()).is_ok_and(|q| q.sign() < 0) {
        limit.forbidden(errors, "SizeLimit field must be a valid resource quantity");
    }
    let medium = at.get("medium");
    let known = matches!(medium.str(), "" | "Memory" | "HugePages")
        || medium.str().starts_with("HugePages-");
    if !known {
        medium.unsupported(errors, &["HugePages", "Memory"]);
    }
}

fn mode(errors: &mut Errors, at: &At<'_, '_>) {
    if at.int().is_some_and(|m| !(0..=0o777).contains(&m)) {
        at.invalid(
            errors,
            "must be a number between 0 and 0777 (octal), both inclusive",
        );
    }
}

/// A relative path that cannot meet the files of the atomic writer.
fn file_path(errors: &mut Errors, at: &At<'_, '_>) {
    need(errors, at);
    descending_path(errors, at);
    let text = at.str();
    if text.starts_with("..") && !text.starts_with("../") && text != ".." {
        at.invalid(errors, "must not start with '..'");
    }
}

fn keys_to_paths(errors: &mut Errors, at: &At<'_, '_>) {
    for item in at.get("items").items() {
        need(errors, &item.get("key"));
        file_path(errors, &item.get("path"));
        mode(errors, &item.get("mode"));
    }
}

fn downward_file(errors: &mut Errors, file: &At<'_, '_>) {
    file_path(errors, &file.get("path"));
    let (field, resource) = (file.get("fieldRef"), file.get("resourceFieldRef"));
    match (field.is_some(), resource.is_some()) {
        (true, true) => {
            file.error_value(
                errors,
                crate::field::ErrorKind::Invalid,
                "\"resource\"",
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            );
        }
        (true, false) => volume_field_ref(errors, &field),
        (false, true) => resource_field_ref(errors, &resource, true),
        (false, false) => {
            file.required(errors, "one of fieldRef and resourceFieldRef is required");
        }
    }
    mode(errors, &file.get("mode"));
}

fn projected(errors: &mut Errors, at: &At<'_, '_>) {
    mode(errors, &at.get("defaultMode"));
    let mut paths = HashSet::new();
    for source in at.get("sources").items() {
        let mut count = 0;
        for key in source
            .map()
            .into_iter()
            .flatten()
            .map(|(key, _)| key.as_str())
        {
            let part = source.get(key);
            if part.is_none() {
                continue;
            }
            count += 1;
            if count > 1 {
                part.forbidden(errors, "may not specify more than 1 volume type");
                continue;
            }
            match key {
                "secret" | "configMap" => {
                    need(errors, &part.get("name"));
                    keys_to_paths(errors, &part);
                }
                "downwardAPI" => {
                    part.get("items")
                        .items()
                        .for_each(|file| downward_file(errors, &file));
                }
                "serviceAccountToken" => token(errors, &part),
                "clusterTrustBundle" => file_path(errors, &part.get("path")),
                _ => {}
            }
            for item in part.get("items").items() {
                conflict(errors, &item.get("path"), &mut paths);
            }
            if matches!(key, "serviceAccountToken" | "clusterTrustBundle") {
                conflict(errors, &part.get("path"), &mut paths);
            }
        }
        if count == 0 {
            source.required(errors, "must specify a volume type");
        }
    }
}

fn conflict<'v>(errors: &mut Errors, path: &At<'v, '_>, paths: &mut HashSet<&'v str>) {
    if !path.str().is_empty() && !paths.insert(path.str()) {
        path.invalid(errors, "conflicting duplicate paths");
    }
}

fn token(errors: &mut Errors, at: &At<'_, '_>) {
    const SHORTEST_SECONDS: i64 = 600;
    const LONGEST_SECONDS: i64 = 1 << 32;
    file_path(errors, &at.get("path"));
    let expiration = at.get("expirationSeconds");
    match expiration.int() {
        Some(s) if s < SHORTEST_SECONDS => {
            expiration.invalid(errors, "may not specify a duration less than 10 minutes");
        }
        Some(s) if s > LONGEST_SECONDS => {
            expiration.invalid(
                errors,
                "may not specify a duration larger than 2^32 seconds",
            );
        }
        _ => {}
    }
}
