//! The plugins that are on by default. Names, words and weights are those of
//! upstream's default profile (release 1.36).
//!
//! What is later finds its place here: preemption as
//! [`PostFilter`](crate::framework::PostFilter), volume binding as
//! [`Reserve`](crate::framework::Reserve) and
//! [`PreBind`](crate::framework::PreBind).

mod affinity;
mod bind;
mod fit;
mod image;
mod neighbours;
mod ports;
mod simple;
mod spread;
mod taint;

use std::sync::Arc;

use rkube_client::Client;

use crate::framework::{Filter, PreFilter, PreScore, Profile, Score};

pub use affinity::NodeAffinity;
pub use bind::DefaultBinder;
pub use fit::{BalancedAllocation, Fit};
pub use image::ImageLocality;
pub use neighbours::InterPodAffinity;
pub use ports::NodePorts;
pub use simple::{NodeName, NodeUnschedulable};
pub use spread::TopologySpread;
pub use taint::TaintToleration;

/// The default profile; without a client it can decide and not bind.
#[must_use]
pub fn default_profile(client: Option<&Client>) -> Profile {
    let (taint, affinity, fit) = (
        Arc::new(TaintToleration),
        Arc::new(NodeAffinity),
        Arc::new(Fit),
    );
    let (spread, neighbours) = (Arc::new(TopologySpread), Arc::new(InterPodAffinity));
    let filters: Vec<Arc<dyn Filter>> = vec![
        Arc::new(NodeUnschedulable),
        Arc::new(NodeName),
        Arc::clone(&taint) as _,
        Arc::clone(&affinity) as _,
        Arc::new(NodePorts),
        Arc::clone(&fit) as _,
        Arc::clone(&spread) as _,
        Arc::clone(&neighbours) as _,
    ];
    let pre_filters: Vec<Arc<dyn PreFilter>> = vec![
        Arc::clone(&affinity) as _,
        Arc::clone(&spread) as _,
        Arc::clone(&neighbours) as _,
    ];
    let image = Arc::new(ImageLocality);
    let pre_scores: Vec<Arc<dyn PreScore>> = vec![
        Arc::clone(&spread) as _,
        Arc::clone(&neighbours) as _,
        Arc::clone(&image) as _,
    ];
    let scores: Vec<Arc<dyn Score>> = vec![
        taint,
        affinity,
        spread,
        neighbours,
        fit,
        Arc::new(BalancedAllocation),
        image,
    ];
    Profile {
        pre_filters,
        filters,
        pre_scores,
        scores,
        bind: client.map(|c| Arc::new(DefaultBinder::new(c.clone())) as _),
        ..Profile::default()
    }
}
