//! `rkube run --dry-run`: the OCI specs and the network plan, with nothing
//! made, started or written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use k8s_openapi::api::core::v1::{Container, Pod};
use oci_spec::image::{ConfigBuilder, ImageConfiguration, ImageConfigurationBuilder};
use rkube_engine::Instance;
use rkube_engine::api::{NamespaceMode, SandboxConfig};
use rkube_engine::spec::{self, Identity, Input};
use rkube_image::Store;
use rkube_kubelet::downward::Facts;
use rkube_kubelet::env::environment;
use rkube_kubelet::node::{NodeFacts, Paths};
use rkube_kubelet::translate::container::{Prepared, container};
use rkube_kubelet::translate::{qos, sandbox};
use rkube_kubelet::{pod, volumes};
use serde_json::{Value, json};

use crate::cli::Document;
use crate::manifest::Manifests;
use crate::output;
use crate::supervisor::node::TOOLBOX_IMAGE;

/// Stands in for the uid that the writer would make.
const NO_UID: &str = "00000000-0000-0000-0000-000000000000";
/// Stands in for the id of a root that was never used.
const NO_IID: &str = "00000000";

/// What plans are made against.
struct Host {
    instance: Instance,
    paths: Paths,
    node: NodeFacts,
    images: Option<Store>,
}

impl Host {
    fn look(root: &Path) -> anyhow::Result<Self> {
        let found = Instance::find(root)?;
        let images = match &found {
            Some(instance) => {
                let dir = instance.state_dir().join("images");
                dir.exists().then(|| Store::open(&dir)).transpose()?
            }
            None => None,
        };
        let instance = found.unwrap_or_else(|| Instance {
            scope: None,
            root: root.to_owned(),
            iid: NO_IID.to_owned(),
        });
        Ok(Self {
            paths: Paths::new(&instance.root),
            instance,
            node: NodeFacts::of_host(),
            images,
        })
    }

    fn image(&self, reference: &str) -> anyhow::Result<ImageConfiguration> {
        if let Some(store) = &self.images {
            match store.resolve(reference) {
                Ok(image) => return Ok(image.config),
                Err(rkube_image::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if reference.starts_with(TOOLBOX_IMAGE) {
            let config = ConfigBuilder::default()
                .env(vec!["PATH=/bin".to_owned()])
                .build();
            let config = config.context("describe the built-in image")?;
            return ImageConfigurationBuilder::default()
                .config(config)
                .build()
                .context("describe the built-in image");
        }
        Err(
            crate::wire::Failure::new(format!("image {reference} is not in the store"))
                .hint("import it with `rkube image import`")
                .into(),
        )
    }
}

/// Prints one YAML document for each pod.
pub(super) fn print(root: &Path, manifests: &Manifests) -> anyhow::Result<u8> {
    let host = Host::look(root)?;
    let mut text = String::new();
    for pod in &manifests.pods {
        let mut pod = pod.clone();
        pod.metadata.uid.get_or_insert_with(|| NO_UID.to_owned());
        let plan = plan(&host, manifests, &pod)
            .with_context(|| format!("plan pod {}", pod::display_name(&pod)))?;
        text.push_str("---\n");
        text.push_str(&output::document(&plan, Document::Yaml)?);
    }
    output::print(&text)?;
    Ok(0)
}

fn plan(host: &Host, manifests: &Manifests, pod: &Pod) -> anyhow::Result<Value> {
    let parents = qos::tier_resources(
        qos::pod_amounts(pod).cpu_request.unwrap_or(0),
        host.node.cpu_millis,
    );
    let sandbox = sandbox::sandbox(pod, &host.node, &host.paths, parents)?;
    let mut containers = serde_json::Map::new();
    for (_, c) in pod::containers(pod) {
        let spec = container_spec(host, manifests, pod, c, &sandbox)
            .with_context(|| format!("container {}", c.name))?;
        containers.insert(c.name.clone(), spec);
    }
    Ok(json!({
        "pod": pod::display_name(pod),
        "sandbox": sandbox,
        "network": network(host, &sandbox)?,
        "containers": containers,
    }))
}

fn container_spec(
    host: &Host,
    manifests: &Manifests,
    pod: &Pod,
    c: &Container,
    sandbox: &SandboxConfig,
) -> anyhow::Result<Value> {
    let objects = manifests
        .objects
        .get(pod::namespace(pod))
        .cloned()
        .unwrap_or_default();
    let facts = Facts {
        pod,
        node: &host.node,
        addresses: &[],
    };
    let environment = environment(facts, c, &objects, &[])?;
    let volumes: BTreeMap<_, _> = volumes::locate(pod, &host.paths)?;
    let termination_log: PathBuf = host
        .paths
        .pod(pod::uid(pod))
        .join("containers")
        .join(&c.name)
        .join("termination-log");
    let prepared = Prepared {
        attempt: 0,
        environment: &environment,
        volumes: &volumes,
        termination_log: &termination_log,
    };
    let config = container(pod, c, prepared, &host.node, &host.paths)?;
    let image = host.image(&config.image)?;
    // Users that the image's files name are looked up when it is mounted.
    let identity = Identity {
        uid: config.security.uid.unwrap_or(0),
        gid: config.security.gid.unwrap_or(0),
        groups: config.security.supplemental_groups.clone(),
        home: None,
    };
    let cgroup = format!(
        "{}/{}/{}.0",
        host.instance.cgroup_parent(),
        sandbox.cgroup,
        c.name
    );
    let input = Input {
        container: &config,
        sandbox,
        image: &image,
        identity: &identity,
        cgroup: &cgroup,
        ids: None,
    };
    rkube_api::value_of(&spec::build(input)?).context("encode the OCI spec")
}

/// What the pod's network would be made of.
fn network(host: &Host, sandbox: &SandboxConfig) -> anyhow::Result<Value> {
    if sandbox.network == NamespaceMode::Host {
        return Ok(json!({"mode": "host"}));
    }
    let iid = rkube_netns::Iid::parse(&host.instance.iid)?;
    let config =
        rkube_netns::HostConfig::new(iid, &host.instance.table(), &host.instance.state_dir());
    let ports: Vec<String> = sandbox
        .ports
        .iter()
        .map(|p| {
            let ip = p
                .host_ip
                .map_or_else(|| "*".to_owned(), |ip| ip.to_string());
            format!(
                "{:?} {ip}:{} -> {}",
                p.protocol, p.host_port, p.container_port
            )
            .to_lowercase()
        })
        .collect();
    Ok(json!({
        "mode": "routed veth, one address for each pod",
        "table": config.table,
        "ipv4": config.v4.to_string(),
        "ipv6": config.v6.map(|net| net.to_string()),
        "link": iid.host_link(&sandbox.id, 0),
        "mtu": config.mtu.map_or_else(|| json!("that of the uplink"), Value::from),
        "hostPorts": ports,
    }))
}
