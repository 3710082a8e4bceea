//! Nodes that have a pod's images already.

use std::collections::HashMap;
use std::sync::Arc;

use crate::cache::Snapshot;
use crate::framework::{CycleState, MAX_SCORE, Plugin, PreScore, Score};
use crate::info::{NodeInfo, PodInfo};

/// Below this the download is no matter (`minThreshold`, 23 MiB).
const MIN_BYTES: i64 = 23 << 20;
/// Above this, for each container, all is the same (`maxContainerThreshold`,
/// 1000 MiB).
const MAX_CONTAINER_BYTES: i64 = 1000 << 20;

/// Prefers nodes where little has to be downloaded.
#[derive(Debug)]
pub struct ImageLocality;

/// How many nodes have each image, and how many nodes there are.
struct Spread {
    having: HashMap<String, i64>,
    nodes: i64,
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }
}

/// A name with the tag that it means.
fn normalized(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if image.contains('@') || last.contains(':') {
        image.to_owned()
    } else {
        format!("{image}:latest")
    }
}

fn images(pod: &PodInfo) -> Vec<String> {
    let spec = pod.spec().into_iter();
    spec.flat_map(|s| {
        s.containers
            .iter()
            .chain(s.init_containers.iter().flatten())
    })
    .filter_map(|c| c.image.as_deref())
    .map(normalized)
    .collect()
}

impl PreScore for ImageLocality {
    fn pre_score(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        all: &Snapshot,
        _: &[Arc<NodeInfo>],
    ) {
        let nodes = &all.nodes;
        let mut having = HashMap::new();
        for image in images(pod) {
            let count = nodes.iter().filter(|n| n.images.contains_key(&image));
            let count = i64::try_from(count.count()).unwrap_or(i64::MAX);
            having.insert(image, count);
        }
        let nodes = i64::try_from(nodes.len()).unwrap_or(i64::MAX);
        state.set(Spread { having, nodes });
    }
}

impl Score for ImageLocality {
    fn weight(&self) -> i64 {
        1
    }

    fn score(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let Some(spread) = state.get::<Spread>() else {
            return 0;
        };
        let images = images(pod);
        let mut sum = 0_i64;
        for image in &images {
            let size = node.images.get(image).copied().unwrap_or(0);
            let having = spread.having.get(image).copied().unwrap_or(0);
            // An image that few nodes have shall not draw all pods there.
            sum = sum.saturating_add(size.saturating_mul(having) / spread.nodes.max(1));
        }
        let count = i64::try_from(images.len()).unwrap_or(1).max(1);
        let max = MAX_CONTAINER_BYTES.saturating_mul(count);
        let sum = sum.clamp(MIN_BYTES, max);
        MAX_SCORE * (sum - MIN_BYTES) / (max - MIN_BYTES)
    }
}
