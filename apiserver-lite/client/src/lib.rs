//! One narrow client of the API, and what controllers stand on.
//!
//! Purpose: get, list, watch, create, update, patch and delete over objects,
//! the same for a component inside the server and one on another machine;
//! above it [`informer`]s (caches that follow a watch) and [`queue`]s (work by
//! key, with back-off).
//!
//! Boundary: a [`Transport`] carries requests; the API server implements one
//! in its process. Nothing here knows which is used, and nothing here knows
//! Linux.
//!
//! Invariants:
//! - Typed objects are for reading. What is written is either a whole new
//!   object or a patch, so that fields which a type does not know survive.
//! - An informer's cache changes only by what its list and watch told, in
//!   their order, and a handler sees each change after the cache has it.
//! - A key is worked on by one worker at a time, and a key added meanwhile is
//!   worked on again afterwards: nothing is lost, nothing runs twice at once.

mod api;
pub mod clock;
pub mod dynamic;
mod error;
pub mod events;
pub mod https;
pub mod informer;
pub mod queue;
mod store;
mod transport;

pub use api::{
    Api, Client, DeleteParams, Event, List, ListParams, Object, Patch, Watch, WatchParams,
};
pub use dynamic::{Partial, Seen, merge_diff};
pub use error::{ApiError, Refusal};
pub use events::{EventType, Recorder, reference};
pub use https::{HttpsConfig, HttpsTransport};
pub use informer::{Change, Informer, Informers};
pub use queue::WorkQueue;
pub use store::{IndexFn, ObjectKey, Store};
pub use transport::{BoxFuture, Frame, FrameKind, Frames, Request, Target, Transport, Verb};
