//! `rkube ps` and `rkube inspect`.

use std::path::Path;
use std::time::SystemTime;

use k8s_openapi::api::core::v1::Pod;
use rkube_kubelet::pod;
use rkube_kubelet::time::system_time;

use super::client_and_all;
use crate::cli::{Inspect, Ps};
use crate::client::runtime;
use crate::output::{self, Shape, Table};
use crate::view;

pub(super) fn ps(root: &Path, args: &Ps) -> anyhow::Result<u8> {
    let (_, mut pods) = runtime()?.block_on(client_and_all(root))?;
    pods.retain(|pod| args.all || !view::finished(pod));
    let text = match output::shape(args.output) {
        Shape::Table { wide } => table(&pods, wide, SystemTime::now()),
        Shape::Document(format) => output::document(&output::list(objects(&pods)?), format)?,
        Shape::Names => pods.iter().map(|p| pod::display_name(p) + "\n").collect(),
    };
    output::print(&text)?;
    Ok(0)
}

pub(super) fn inspect(root: &Path, args: &Inspect) -> anyhow::Result<u8> {
    let names = &args.pods.pods;
    let (_, pods) =
        runtime()?.block_on(super::client_and_pods(root, names, &args.pods.namespace))?;
    let mut objects = objects(&pods)?;
    let value = if objects.len() == 1 {
        objects.remove(0)
    } else {
        output::list(objects)
    };
    output::print(&output::document(&value, args.output)?)?;
    Ok(0)
}

fn objects(pods: &[Pod]) -> anyhow::Result<Vec<serde_json::Value>> {
    pods.iter().map(|pod| output::object("Pod", pod)).collect()
}

fn table(pods: &[Pod], wide: bool, now: SystemTime) -> String {
    let age = |pod: &Pod| {
        let created = pod.metadata.creation_timestamp.as_ref();
        created.map_or_else(|| "?".to_owned(), |t| output::age(system_time(t), now))
    };
    let restarts = |pod: &Pod| view::restarts(pod).to_string();
    let namespace = |pod: &Pod| pod::namespace(pod).to_owned();
    let name = |pod: &Pod| pod::name(pod).to_owned();
    if !wide {
        let mut table = Table::new(&["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
        for pod in pods {
            table.row([
                namespace(pod),
                name(pod),
                view::readiness(pod),
                view::summary(pod),
                restarts(pod),
                age(pod),
            ]);
        }
        return table.text();
    }
    let mut table = Table::new(&[
        "NAMESPACE",
        "NAME",
        "READY",
        "STATUS",
        "RESTARTS",
        "AGE",
        "IP",
        "QOS",
        "IMAGES",
        "UID",
    ]);
    for pod in pods {
        let status = pod.status.clone().unwrap_or_default();
        let ips: Vec<String> = status
            .pod_ips
            .unwrap_or_default()
            .into_iter()
            .map(|ip| ip.ip)
            .collect();
        let mut images: Vec<String> = pod::containers(pod)
            .filter_map(|(_, c)| c.image.clone())
            .collect();
        images.dedup();
        table.row([
            namespace(pod),
            name(pod),
            view::readiness(pod),
            view::summary(pod),
            restarts(pod),
            age(pod),
            if ips.is_empty() {
                "-".to_owned()
            } else {
                ips.join(",")
            },
            status.qos_class.unwrap_or_default(),
            images.join(","),
            pod::uid(pod).to_owned(),
        ]);
    }
    table.text()
}
