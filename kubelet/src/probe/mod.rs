//! Probes and lifecycle hooks.

pub mod grpc;
pub mod http;
pub mod run;
pub mod state;
#[cfg(test)]
mod tests;
mod tls;
