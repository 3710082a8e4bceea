//! The HTTP layer: thin, over the engine.
//!
//! Connection ► TLS ► HTTP/1.1 or 2 by ALPN ► [`service`]: limits, who asks, on whose behalf ►
//! a route: a resource (the engine), discovery, OpenAPI, health, or a hook's path.

mod answer;
mod body;
mod connect;
mod discovery;
mod health;
mod identity;
mod limits;
mod metrics;
mod openapi;
mod route;
mod server;
mod service;

pub use body::{Body, BodyError};
pub use health::{Check, Checks};
pub use server::{Server, ServerConfig, ServerError};
pub use service::{Page, Pages};
