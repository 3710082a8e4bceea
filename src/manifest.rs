//! From files to pods and what they refer to: everything is read and checked
//! before anything is done.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use rkube_api::decode::{Document, MAX_INPUT_BYTES, documents};
use rkube_api::manifest::{Known, prepare};
use rkube_api::support;
use rkube_kubelet::objects::Objects;
use rkube_kubelet::pod;
use serde::de::DeserializeOwned;

use crate::error::BadInput;

/// What a set of manifests asks for.
#[derive(Debug, Default)]
pub(crate) struct Manifests {
    /// Validated and with defaults, in the order of the files.
    pub(crate) pods: Vec<Pod>,
    /// What they refer to, by namespace.
    pub(crate) objects: BTreeMap<String, Objects>,
    /// What will not be honoured.
    pub(crate) warnings: Vec<String>,
}

/// The manifest files of a directory, sorted.
fn files_in(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(dir).with_context(|| format!("list directory {}", dir.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry
            .with_context(|| format!("list directory {}", dir.display()))?
            .path();
        let ours = path
            .extension()
            .is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if ours && path.is_file() {
            files.push(path);
        }
    }
    files.sort_unstable();
    if files.is_empty() {
        return Err(crate::error::bad_input(format!(
            "{}: no *.yaml, *.yml or *.json in this directory",
            dir.display()
        )));
    }
    Ok(files)
}

/// All bytes of a source, one more than allowed at most: the decoder refuses
/// what is too long.
fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let limit = u64::try_from(MAX_INPUT_BYTES)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin()
            .lock()
            .take(limit)
            .read_to_end(&mut bytes)
            .context("read standard input")?;
    } else {
        let file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
        file.take(limit)
            .read_to_end(&mut bytes)
            .with_context(|| format!("read {}", path.display()))?;
    }
    Ok(bytes)
}

/// Reads and checks files, directories and standard input (`-`).
pub(crate) fn load(sources: &[PathBuf], namespace: &str) -> anyhow::Result<Manifests> {
    let mut out = Collector::default();
    for source in sources {
        let files = if source.is_dir() {
            files_in(source)?
        } else {
            vec![source.clone()]
        };
        for file in files {
            let name = if file == Path::new("-") {
                "standard input".to_owned()
            } else {
                file.display().to_string()
            };
            out.take(&read(&file)?, &name, namespace);
        }
    }
    out.finish()
}

#[derive(Debug, Default)]
struct Collector {
    manifests: Manifests,
    /// Where each object was first given, by kind, namespace and name.
    seen: HashMap<(Known, String, String), String>,
    errors: Vec<String>,
}

impl Collector {
    fn take(&mut self, bytes: &[u8], name: &str, namespace: &str) {
        match documents(bytes, name) {
            Ok(list) => {
                for document in list {
                    self.take_document(document, namespace);
                }
            }
            Err(errors) => self.errors.extend(errors.0.iter().map(ToString::to_string)),
        }
    }

    fn take_document(&mut self, mut document: Document, namespace: &str) {
        let place = format!(
            "{}: document {}, line {}",
            document.file, document.number, document.marks.at.line
        );
        let checked = prepare(&mut document, namespace);
        let Some(known) = Known::of(&document.api_version, &document.kind) else {
            // A kind that the API lacks has its own error.
            let text = match checked {
                Err(errors)
                    if rkube_api::types::by_kind(&document.api_version, &document.kind)
                        .is_none() =>
                {
                    errors.iter().map(ToString::to_string).collect()
                }
                _ => vec![format!(
                    "{place}: kind: {} {} cannot be run by `rkube run`, which takes Pod, ConfigMap, Secret and \
                     PersistentVolumeClaim: use `rkube server`",
                    document.api_version, document.kind
                )],
            };
            self.errors.extend(text);
            return;
        };
        if let Err(errors) = checked {
            self.errors.extend(errors.iter().map(ToString::to_string));
            return;
        }
        let text = |field: &str| {
            document.value["metadata"][field]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let key = (known, text("namespace"), text("name"));
        if let Some(first) = self.seen.insert(key.clone(), place.clone()) {
            self.errors.push(format!(
                "{place}: {} {}/{} was given before: {first}",
                document.kind, key.1, key.2
            ));
            return;
        }
        if let Err(error) = self.keep(known, key.1, key.2, &document) {
            self.errors.push(format!("{place}: {error}"));
        }
    }

    fn keep(
        &mut self,
        known: Known,
        namespace: String,
        name: String,
        document: &Document,
    ) -> Result<(), serde_json::Error> {
        fn typed<T: DeserializeOwned>(document: &Document) -> Result<T, serde_json::Error> {
            rkube_api::typed(&document.value)
        }
        if known == Known::Pod {
            for warning in support::unsupported(&document.value) {
                let line = document.locate(&warning.path).line;
                let place = format!(
                    "{}: document {}, line {line}",
                    document.file, document.number
                );
                self.manifests.warnings.push(format!("{place}: {warning}"));
            }
            self.manifests.pods.push(typed(document)?);
            return Ok(());
        }
        let objects = self.manifests.objects.entry(namespace).or_default();
        match known {
            Known::ConfigMap => drop(objects.config_maps.insert(name, typed(document)?)),
            Known::Secret => drop(objects.secrets.insert(name, typed(document)?)),
            _ => drop(objects.claims.insert(name, typed(document)?)),
        }
        Ok(())
    }

    fn finish(self) -> anyhow::Result<Manifests> {
        if !self.errors.is_empty() {
            return Err(BadInput(self.errors).into());
        }
        if self.manifests.pods.is_empty() {
            return Err(crate::error::bad_input("the manifests have no Pod"));
        }
        Ok(self.manifests)
    }
}

impl Manifests {
    /// Gives the only pod another name.
    pub(crate) fn rename(&mut self, name: String) -> anyhow::Result<()> {
        let wrong = rkube_api::names::dns1123_subdomain(&name);
        if !wrong.is_empty() {
            return Err(crate::error::bad_input(format!(
                "--name {name:?}: {}",
                wrong.join("; ")
            )));
        }
        match self.pods.as_mut_slice() {
            [pod] => pod.metadata.name = Some(name),
            pods => {
                return Err(crate::error::bad_input(format!(
                    "--name: the manifests have {} pods",
                    pods.len()
                )));
            }
        }
        Ok(())
    }

    /// Pods of one call find each other by name: a group of its own, if there
    /// are several.
    pub(crate) fn group(&self) -> Option<String> {
        let (first, rest) = self.pods.split_first()?;
        (!rest.is_empty()).then(|| {
            let names = rest.iter().map(pod::display_name);
            names.fold(pod::display_name(first), |all, name| all + "," + &name)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n  - {name: a, image: x}\n";

    fn loaded(files: &[(&str, &str)]) -> anyhow::Result<Manifests> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        load(&[dir.path().to_owned()], "default")
    }

    #[test]
    fn directories_are_read_in_order_and_objects_sorted_by_kind() {
        let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: other}\ndata: {k: v}\n";
        let second = POD.replace("web", "api");
        let found = loaded(&[
            ("b.yml", POD),
            ("a.yaml", &second),
            ("c.yaml", config),
            ("notes.txt", "x"),
        ])
        .unwrap();
        let names: Vec<_> = found.pods.iter().map(pod::name).collect();
        assert_eq!(names, ["api", "web"]);
        assert_eq!(found.pods[0].metadata.namespace.as_deref(), Some("default"));
        assert!(found.objects["other"].config_maps.contains_key("c"));
        assert_eq!(found.group().as_deref(), Some("default/api,default/web"));
    }

    #[test]
    fn other_kinds_name_the_server() {
        let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {}\n";
        let error = loaded(&[("a.yaml", deployment)]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("document 1, line 1: kind: apps/v1 Deployment")
                && text.contains("`rkube server`"),
            "{text}"
        );
        assert_eq!(crate::error::code(&error), crate::error::USAGE);
        let text = loaded(&[(
            "a.yaml",
            "apiVersion: v1\nkind: Nonsense\nmetadata: {name: d}\n",
        )])
        .unwrap_err()
        .to_string();
        assert!(text.contains("no such kind"), "{text}");
    }

    #[test]
    fn every_error_is_told_and_nothing_twice_is_taken() {
        let broken = POD.replace("image: x", "imagee: x");
        let error = loaded(&[("a.yaml", POD), ("b.yaml", POD), ("c.yaml", &broken)]).unwrap_err();
        let BadInput(list) = error.downcast_ref::<BadInput>().unwrap();
        assert!(
            list.iter()
                .any(|l| l.contains("Pod default/web was given before")),
            "{list:?}"
        );
        assert!(
            list.iter()
                .any(|l| l.contains("c.yaml: document 1, line 6: spec.containers[0].imagee")),
            "{list:?}"
        );
        assert!(loaded(&[]).is_err());
    }

    #[test]
    fn fields_that_are_not_honoured_are_warned_about() {
        let pod = POD.replace("spec:\n", "spec:\n  nodeName: there\n");
        let found = loaded(&[("a.yaml", &pod)]).unwrap();
        assert!(
            found
                .warnings
                .iter()
                .any(|w| w.contains("line 5: spec.nodeName")),
            "{:?}",
            found.warnings
        );
    }

    #[test]
    fn one_pod_can_be_renamed() {
        let mut found = loaded(&[("a.yaml", POD)]).unwrap();
        found.rename("other".into()).unwrap();
        assert_eq!(pod::name(&found.pods[0]), "other");
        assert!(found.rename("No_Name".into()).is_err());
    }
}
