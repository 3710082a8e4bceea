//! What is known of stored images.

use std::path::Path;

use rkube_engine::Instance;
use rkube_image::Store;
use serde_json::{Value, json};

use crate::cli::Document;
use crate::output::{self, Shape, Table};

pub(super) fn list(root: &Path, format: Option<crate::cli::Format>) -> anyhow::Result<()> {
    let images = match Instance::find(root)? {
        Some(instance) => Store::open(&instance.state_dir().join("images"))?.list()?,
        None => Vec::new(),
    };
    // A line for each name, as people know it from docker and podman.
    let names = |references: &[String], nameless: String| {
        if references.is_empty() {
            vec![nameless]
        } else {
            references.to_vec()
        }
    };
    let text = match output::shape(format) {
        Shape::Document(format) => output::document(&images, format)?,
        Shape::Names => images
            .iter()
            .flat_map(|i| names(&i.references, i.id.to_string()))
            .map(|name| name + "\n")
            .collect(),
        Shape::Table { wide } => {
            let mut table =
                Table::new(&["REFERENCE", "ID", "PLATFORM", "LAYERS", "SIZE", "USED BY"]);
            for image in images {
                let id = image.id.to_string();
                let short: String = id.trim_start_matches("sha256:").chars().take(12).collect();
                for name in names(&image.references, "<none>".to_owned()) {
                    table.row([
                        name,
                        if wide { id.clone() } else { short.clone() },
                        image.platform.clone(),
                        image.layers.to_string(),
                        output::bytes(image.size_bytes),
                        image.used_by.len().to_string(),
                    ]);
                }
            }
            table.text()
        }
    };
    output::print(&text)
}

/// Longest command that a line of the history shows.
const SHOWN_COMMAND_CHARS: usize = 60;

/// The steps of the configuration, the newest first, with their layers.
pub(super) fn history(store: &Store, image: &str, format: Option<Document>) -> anyhow::Result<()> {
    let found = store.inspect(image)?;
    let layers = found.manifest["layers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let mut layers = layers.iter();
    let none = Vec::new();
    let steps = found.config["history"].as_array().unwrap_or(&none);
    let mut rows: Vec<Value> = Vec::new();
    for step in steps {
        let empty = step["empty_layer"].as_bool().unwrap_or(false);
        let layer = if empty { None } else { layers.next() };
        rows.push(json!({
            "created": step["created"],
            "createdBy": step["created_by"],
            "comment": step["comment"],
            "digest": layer.map(|l| l["digest"].clone()),
            "size": layer.and_then(|l| l["size"].as_u64()).unwrap_or(0),
        }));
    }
    // Layers that the history does not tell of are still there.
    for layer in layers {
        rows.push(json!({"digest": layer["digest"], "size": layer["size"]}));
    }
    rows.reverse();
    if let Some(format) = format {
        return output::print(&output::document(&rows, format)?);
    }
    let mut table = Table::new(&["CREATED", "CREATED BY", "SIZE", "COMMENT"]);
    for row in &rows {
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let command = text("createdBy");
        let mut shown: String = command.chars().take(SHOWN_COMMAND_CHARS).collect();
        if shown.len() < command.len() {
            shown.push_str("...");
        }
        let size = row["size"].as_u64().unwrap_or(0);
        table.row([text("created"), shown, output::bytes(size), text("comment")]);
    }
    output::print(&table.text())
}

/// Checks images; 1 if one is damaged.
pub(super) fn verify(store: &Store, images: &[String]) -> anyhow::Result<u8> {
    let names = if images.is_empty() {
        let all = store.list()?;
        all.iter().map(|i| i.manifest_digest.to_string()).collect()
    } else {
        images.to_vec()
    };
    let mut damaged = 0;
    for name in names {
        let report = store.verify(&name)?;
        let shown = report.references.first().unwrap_or(&name);
        if report.problems.is_empty() {
            let (blobs, files) = (report.blobs, report.entries);
            output::print(&format!(
                "{shown}: sound ({blobs} blobs, {files} entries)\n"
            ))?;
        } else {
            damaged += 1;
            for problem in &report.problems {
                output::print(&format!("{shown}: {}\n", output::harmless(problem)))?;
            }
        }
    }
    Ok(u8::from(damaged > 0))
}

/// Disk use.
pub(super) fn disk(store: &Store, format: Option<Document>) -> anyhow::Result<()> {
    let (usage, disk) = (store.disk_usage()?, store.file_system()?);
    if let Some(format) = format {
        let value = json!({"images": usage, "fileSystem": disk});
        return output::print(&output::document(&value, format)?);
    }
    let mut table = Table::new(&["WHAT", "SIZE"]);
    for (what, bytes) in [
        ("blobs", usage.blob_bytes),
        ("unpacked layers", usage.layer_bytes),
        ("partial blobs", usage.partial_bytes),
        ("of no image", usage.unswept_bytes),
        ("being unpacked", usage.staging_bytes),
        ("of images that nobody uses", usage.reclaimable_bytes),
        ("file system, available", disk.available_bytes),
        ("file system", disk.total_bytes),
    ] {
        table.row([what.to_owned(), output::bytes(bytes)]);
    }
    output::print(&table.text())
}
