//! A broker-less mesh node.

pub mod config;
pub mod error;
pub mod handle;
pub mod id;
pub mod metrics;
pub mod net;
pub mod replica;
pub mod subscription;
#[cfg(feature = "web")]
pub mod web;
pub mod wire;
