//! Images on this host: import, store, layers, overlay mounts, snapshots.
//!
//! Purpose: from an image file to a root file system that a container can be
//! given, as a descriptor of a detached mount.
//!
//! Boundary: Linux and OCI. No Kubernetes, no network (registries come with a
//! crate above that feeds blobs in), no namespaces or processes (but for the
//! thread of [`overlay`]'s classic way).
//!
//! Invariants:
//! - What the reference table names is complete; its blobs are durable, and
//!   trees that are not yet are made anew from them after a power cut.
//!   Everything else in the store is garbage that a sweep may take. An import
//!   or removal happens at the rename of the table.
//! - Content has the digest it is stored under: computed while it streams.
//! - A layer's tree is made once, never changed, and holds no `trusted.*`
//!   attribute and no whiteout that its archive did not mean as one.
//! - Archives, documents and file trees are hostile: bounded by [`limits`],
//!   touched only through descriptors of their parent directories.

mod auth;
mod builtin;
mod catalog;
mod collect;
pub mod copy;
mod digest;
pub mod document;
mod entry;
mod error;
mod export;
mod fsutil;
mod import;
mod ingest;
mod layer;
pub mod limits;
mod mapped;
pub mod overlay;
mod partial;
mod pax;
mod pipe;
pub mod pull;
mod reference;
mod settle;
mod snapshot;
mod store;
mod table;
mod tar;
mod tarwrite;
mod unpack;
mod user;
mod verify;

pub use auth::{BadKeyring, Credential, Keyring, MAX_KEYRING_BYTES};
pub use builtin::{BuiltinContent, BuiltinFile};
pub use catalog::{ImageSummary, Inspection, Removed};
pub use collect::{Collected, DiskUsage, FileSystem, GcPolicy};
pub use digest::{BadDigest, Digest};
pub use error::{Error, Refusal, Result};
pub use export::Export;
pub use import::{Format, ImportOptions, ImportedImage, Platform, RootfsConfig, Source};
pub use ingest::{BlobSource, Ingest, IngestOptions, Names, TakenLayer};
pub use layer::LayerInfo;
pub use mapped::{IdMap, shift_owners};
pub use overlay::{MountOptions, OverlayMethod, UpperDirs, has_overlay, mount_overlay};
pub use reference::{MAX_REPOSITORY_BYTES, MAX_TAG_BYTES, Reference};
pub use snapshot::{MAX_CONTAINER_ID_BYTES, Snapshot, Snapshots};
pub use store::{Image, LayerPath, Store};
pub use user::{UserIds, resolve_user};
pub use verify::Verified;
