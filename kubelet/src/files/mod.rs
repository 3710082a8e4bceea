//! The text of the files that every container of a pod shares.

pub mod hosts;
pub mod resolv;
