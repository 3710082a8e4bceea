//! The rules for volumes and their sources.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::container::{descending_path, no_backsteps, resource_field_ref, volume_field_ref};
use super::validate::{one_of, one_of_opt};
use crate::field::{ErrorKind, Errors};
use crate::meta::{required_name, rules};
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
        let before = errors.len();
        let mut count = 0;
        for key in SOURCES {
            let source = volume.get(key);
            if source.is_none() {
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
        required_name(errors, &name, names::dns1123_label);
        if volumes.0.contains_key(name.str()) {
            name.duplicate(errors);
        }
        // A volume that breaks a rule is none to those who mount it.
        if errors.len() == before {
            volumes.0.insert(name.str(), volume.map());
        }
    }
    volumes
}

/// All sources, in the order in which upstream looks at them.
const SOURCES: [&str; 30] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

fn one_source(errors: &mut Errors, at: &At<'_, '_>, kind: &str) {
    match kind {
        "emptyDir" => empty_dir(errors, at),
        "hostPath" => {
            let path = at.get("path");
            if path.str().is_empty() {
                return path.required(errors, "");
            }
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
            downward_files(errors, at);
        }
        "projected" => projected(errors, at),
        "persistentVolumeClaim" => need(errors, &at.get("claimName")),
        "nfs" => {
            need(errors, &at.get("server"));
            let path = at.get("path");
            need(errors, &path);
            if !path.str().starts_with('/') {
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
        "gcePersistentDisk" => disk(errors, &persistent_disk(at), "pdName"),
        "awsElasticBlockStore" => disk(errors, at, "volumeID"),
        "azureDisk" => azure_disk(errors, at),
        "fc" => fibre_channel(errors, at),
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
        "csi" => csi(errors, at),
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

/// The files of a downward API source; upstream reports all of them for the source.
fn downward_files(errors: &mut Errors, source: &At<'_, '_>) {
    for file in source.get("items").items() {
        downward_file(errors, &source.with_value(file.value()));
    }
}

fn downward_file(errors: &mut Errors, file: &At<'_, '_>) {
    file_path(errors, &file.get("path"));
    let (field, resource) = (file.get("fieldRef"), file.get("resourceFieldRef"));
    match (field.is_some(), resource.is_some()) {
        (true, true) => {
            volume_field_ref(errors, &field);
            file.error_value(
                errors,
                ErrorKind::Invalid,
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
    const PARTS: [&str; 6] = [
        "secret",
        "configMap",
        "downwardAPI",
        "serviceAccountToken",
        "clusterTrustBundle",
        "podCertificate",
    ];
    mode(errors, &at.get("defaultMode"));
    let mut paths = HashSet::new();
    for source in at.get("sources").items() {
        let mut count = 0;
        for key in PARTS {
            let part = source.get(key);
            if part.is_none() {
                continue;
            }
            count += 1;
            match key {
                "secret" | "configMap" => {
                    need(errors, &part.get("name"));
                    keys_to_paths(errors, &part);
                }
                "downwardAPI" => downward_files(errors, &part),
                "serviceAccountToken" => token(errors, &part, at),
                "clusterTrustBundle" => file_path(errors, &part.get("path")),
                _ => {}
            }
            // Upstream shows the name of the object, or else the path.
            let name = part.get("name");
            for item in part.get("items").items() {
                let path = item.get("path");
                let shown = if name.is_some() { &name } else { &path };
                conflict(errors, at, path.str(), shown, &mut paths);
            }
            if key == "clusterTrustBundle" {
                let path = part.get("path");
                conflict(errors, at, path.str(), &path, &mut paths);
            }
        }
        if count > 1 {
            source.forbidden(errors, "may not specify more than 1 volume type per source");
        }
    }
}

fn conflict<'v>(
    errors: &mut Errors,
    at: &At<'_, '_>,
    path: &'v str,
    shown: &At<'_, '_>,
    paths: &mut HashSet<&'v str>,
) {
    if !path.is_empty() && !paths.insert(path) {
        let shown = crate::field::shown(shown.value());
        at.error_value(
            errors,
            ErrorKind::Invalid,
            shown,
            "conflicting duplicate paths",
        );
    }
}

/// `volume` is the projected volume, for which upstream reports the path.
fn token<'v>(errors: &mut Errors, at: &At<'v, '_>, volume: &At<'v, '_>) {
    const SHORTEST_SECONDS: i64 = 600;
    const LONGEST_SECONDS: i64 = 1 << 32;
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
    let path = volume.get("path").with_value(at.get("path").value());
    if path.str().is_empty() {
        path.required(errors, "");
    } else {
        file_path(errors, &path);
    }
}

/// Upstream has a name of its own for the volume of a GCE disk.
fn persistent_disk<'v, 'p>(at: &At<'v, 'p>) -> At<'v, 'p> {
    at.renamed("persistentDisk")
}

fn disk(errors: &mut Errors, at: &At<'_, '_>, id: &str) {
    need(errors, &at.get(id));
    let partition = at.get("partition");
    if partition.int().is_some_and(|n| !(0..=255).contains(&n)) {
        partition.invalid(errors, names::range(1, 255));
    }
}

fn azure_disk(errors: &mut Errors, at: &At<'_, '_>) {
    const MANAGED: &str = "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
    const BLOB: &str =
        "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
    let (caching, kind, uri) = (at.get("cachingMode"), at.get("kind"), at.get("diskURI"));
    need(errors, &at.get("diskName"));
    need(errors, &uri);
    one_of_opt(errors, &caching, &["None", "ReadOnly", "ReadWrite"]);
    one_of_opt(errors, &kind, &["Dedicated", "Managed", "Shared"]);
    match kind.str() {
        "" => {}
        "Managed" if uri.str().starts_with("/subscriptions/") => {}
        "Managed" => uri.unsupported(errors, &[MANAGED]),
        _ if uri.str().starts_with("https://") => {}
        _ => uri.unsupported(errors, &[BLOB]),
    }
}

fn fibre_channel(errors: &mut Errors, at: &At<'_, '_>) {
    let (wwns, ids, lun) = (at.get("targetWWNs"), at.get("wwids"), at.get("lun"));
    if wwns.is_empty() && ids.is_empty() {
        wwns.required(
            errors,
            "must specify either targetWWNs or wwids, but not both",
        );
    }
    if wwns.is_empty() {
        return;
    }
    if !ids.is_empty() {
        let rule = "targetWWNs and wwids can not be specified simultaneously";
        wwns.invalid(errors, rule);
    }
    match lun.int() {
        None => lun.required(errors, "lun is required if targetWWNs is specified"),
        Some(0..=255) => {}
        Some(_) => lun.invalid(errors, names::range(0, 255)),
    }
}

fn csi(errors: &mut Errors, at: &At<'_, '_>) {
    /// Longest name of a driver, in bytes.
    const DRIVER_BYTES_MAX: usize = 63;
    let driver = at.get("driver");
    need(errors, &driver);
    if driver.str().len() > DRIVER_BYTES_MAX {
        let rule = format!("may not be more than {DRIVER_BYTES_MAX} bytes");
        driver.error(errors, ErrorKind::TooLong, rule);
    }
    let lower = driver.str().to_lowercase();
    rules(errors, &driver, names::dns1123_subdomain(&lower));
    let secret = at.get("nodePublishSecretRef");
    if secret.is_none() {
        return;
    }
    let name = secret.get("name");
    if name.str().is_empty() {
        name.required(errors, "");
    } else {
        let place = at.get("name").with_value(name.value());
        rules(errors, &place, names::dns1123_subdomain(name.str()));
    }
}
