//! What the writer tells of processes and their use of resources.

use std::sync::Arc;

use rkube_engine::Engine;
use rkube_kubelet::pod;
use serde_json::{Value, json};

use super::node::Node;
use crate::wire::Failure;

/// One object for each namespace of each process that holds a pod's.
pub(super) async fn namespaces(node: &Arc<Node>) -> Result<Value, Failure> {
    let entries = node.ask(Engine::namespaces).await?;
    rows(node, entries.iter().map(|e| (e.sandbox.as_str(), json!(e))))
}

/// One object for each running container.
pub(super) async fn stats(node: &Arc<Node>) -> Result<Value, Failure> {
    let list = node.ask(Engine::stats).await?;
    let containers = list.iter().map(|s| {
        (
            s.id.sandbox.as_str(),
            json!({"container": s.id.name, "attempt": s.id.attempt, "stats": s.stats}),
        )
    });
    rows(node, containers)
}

/// Adds namespace, name and uid of the pod, and sorts by them; what belongs
/// to no pod is left out.
fn rows<'a>(node: &Node, list: impl Iterator<Item = (&'a str, Value)>) -> Result<Value, Failure> {
    let mut rows: Vec<(String, Value)> = list
        .filter_map(|(uid, mut row)| {
            let pod = node.pod(uid)?;
            row["namespace"] = pod::namespace(&pod).into();
            row["pod"] = pod::name(&pod).into();
            row["uid"] = uid.into();
            Some((pod::display_name(&pod), row))
        })
        .collect();
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}
