//! What a pod finds around it in a cluster, asked for when a container
//! starts.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::Pod;

/// Asked from blocking threads; answers from memory.
pub trait Surroundings: Debug + Send + Sync {
    /// Variables that tell of Services, in their order.
    fn service_variables(&self, pod: &Pod) -> Vec<(String, String)>;
}

/// A host without a cluster.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Surroundings for Alone {
    fn service_variables(&self, _: &Pod) -> Vec<(String, String)> {
        Vec::new()
    }
}
