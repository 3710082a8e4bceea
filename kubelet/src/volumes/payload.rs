//! The files of configMap, secret, downwardAPI and projected volumes.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, ServiceAccountTokenProjection, Volume,
};

use super::VolumeError;
use crate::downward::{self, Facts};
use crate::objects::{Objects, TokenKey};

/// Mode of files where the volume names none.
pub const DEFAULT_MODE: u32 = 0o644;

/// One file of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct File {
    /// Its content.
    pub bytes: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
}

/// Files by their path in the volume.
pub type Files = BTreeMap<String, File>;

/// A number that changes when a file does. Not for untrusted comparison: who
/// could make two contents alike writes both of them.
#[must_use]
pub fn digest(files: &Files) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    files.hash(&mut hasher);
    hasher.finish()
}

/// The files of a volume that consists of files; none for other kinds.
///
/// # Errors
/// Something that is not optional is missing, or a path is bad.
pub fn files(facts: Facts<'_>, objects: &Objects, volume: &Volume) -> Result<Files, VolumeError> {
    let mut out = Collector {
        facts,
        objects,
        volume: &volume.name,
        files: Files::new(),
    };
    if let Some(map) = &volume.config_map {
        out.keyed(
            "ConfigMap",
            &map.name,
            map.optional,
            map.items.as_deref(),
            mode(map.default_mode),
        )?;
    } else if let Some(secret) = &volume.secret {
        let name = secret.secret_name.as_deref().unwrap_or_default();
        out.keyed(
            "Secret",
            name,
            secret.optional,
            secret.items.as_deref(),
            mode(secret.default_mode),
        )?;
    } else if let Some(downward) = &volume.downward_api {
        out.downward(downward.items.as_deref(), mode(downward.default_mode))?;
    } else if let Some(projected) = &volume.projected {
        let default = mode(projected.default_mode);
        for source in projected.sources.iter().flatten() {
            if let Some(map) = &source.config_map {
                out.keyed(
                    "ConfigMap",
                    &map.name,
                    map.optional,
                    map.items.as_deref(),
                    default,
                )?;
            } else if let Some(secret) = &source.secret {
                out.keyed(
                    "Secret",
                    &secret.name,
                    secret.optional,
                    secret.items.as_deref(),
                    default,
                )?;
            } else if let Some(downward) = &source.downward_api {
                out.downward(downward.items.as_deref(), default)?;
            } else if let Some(token) = &source.service_account_token {
                out.token(token, default)?;
            } else {
                return Err(VolumeError::Unsupported {
                    volume: volume.name.clone(),
                    kind: "projected certificates and trust bundles".to_owned(),
                });
            }
        }
    }
    Ok(out.files)
}

fn mode(default: Option<i32>) -> u32 {
    default
        .and_then(|m| u32::try_from(m).ok())
        .map_or(DEFAULT_MODE, |m| m & 0o777)
}

struct Collector<'a> {
    facts: Facts<'a>,
    objects: &'a Objects,
    volume: &'a str,
    files: Files,
}

impl Collector<'_> {
    fn keyed(
        &mut self,
        kind: &'static str,
        name: &str,
        optional: Option<bool>,
        items: Option<&[KeyToPath]>,
        default: u32,
    ) -> Result<(), VolumeError> {
        let optional = optional == Some(true);
        let data = match kind {
            "Secret" => self.objects.secret(name),
            _ => self.objects.config_map(name),
        };
        let volume = || self.volume.to_owned();
        let Some(data) = data else {
            return if optional {
                Ok(())
            } else {
                Err(VolumeError::Missing {
                    volume: volume(),
                    kind,
                    name: name.to_owned(),
                })
            };
        };
        let Some(items) = items.filter(|i| !i.is_empty()) else {
            return data.into_iter().try_for_each(|(key, bytes)| {
                self.put(
                    &key,
                    File {
                        bytes,
                        mode: default,
                    },
                )
            });
        };
        for item in items {
            match data.get(&item.key).cloned() {
                Some(bytes) => {
                    let mode = item.mode.map_or(default, |m| mode(Some(m)));
                    self.put(&item.path, File { bytes, mode })?;
                }
                None if optional => {}
                None => {
                    let (name, key) = (name.to_owned(), item.key.clone());
                    return Err(VolumeError::MissingKey {
                        volume: volume(),
                        kind,
                        name,
                        key,
                    });
                }
            }
        }
        Ok(())
    }

    fn token(
        &mut self,
        source: &ServiceAccountTokenProjection,
        mode: u32,
    ) -> Result<(), VolumeError> {
        let token = self.objects.tokens.get(&TokenKey::of(source));
        let token = token.ok_or_else(|| VolumeError::Missing {
            volume: self.volume.to_owned(),
            kind: "token of service account",
            name: crate::pod::spec(self.facts.pod)
                .service_account_name
                .clone()
                .unwrap_or_default(),
        })?;
        let bytes = token.clone().into_bytes();
        self.put(&source.path, File { bytes, mode })
    }

    fn downward(
        &mut self,
        items: Option<&[DownwardAPIVolumeFile]>,
        default: u32,
    ) -> Result<(), VolumeError> {
        for item in items.unwrap_or_default() {
            let (value, field) = if let Some(field) = &item.field_ref {
                (
                    downward::field(self.facts, &field.field_path),
                    field.field_path.clone(),
                )
            } else if let Some(selector) = &item.resource_field_ref {
                (
                    downward::resource(self.facts, None, selector),
                    selector.resource.clone(),
                )
            } else {
                (None, item.path.clone())
            };
            let value = value.ok_or_else(|| VolumeError::UnknownField {
                volume: self.volume.to_owned(),
                field,
            })?;
            let mode = item.mode.map_or(default, |m| mode(Some(m)));
            self.put(
                &item.path,
                File {
                    bytes: value.into_bytes(),
                    mode,
                },
            )?;
        }
        Ok(())
    }

    /// Later sources win. A path may not lead out of the volume, meet the
    /// writer's own names (`..data`) or pass through another file.
    fn put(&mut self, path: &str, file: File) -> Result<(), VolumeError> {
        let bad = |problem| VolumeError::BadPath {
            volume: self.volume.to_owned(),
            path: path.to_owned(),
            problem,
        };
        let parts: Vec<Component<'_>> = Path::new(path).components().collect();
        if parts.is_empty() || parts.iter().any(|p| !matches!(p, Component::Normal(_))) {
            return Err(bad("is not a relative path inside the volume"));
        }
        if path.starts_with("..") {
            return Err(bad("begins with \"..\""));
        }
        let clean: Vec<&str> = parts
            .iter()
            .filter_map(|p| p.as_os_str().to_str())
            .collect();
        let clean = clean.join("/");
        let below = format!("{clean}/");
        if self
            .files
            .keys()
            .any(|k| k.starts_with(&below) || clean.starts_with(&format!("{k}/")))
        {
            return Err(bad("is a file and a directory at the same time"));
        }
        self.files.insert(clean, file);
        Ok(())
    }
}
