//! A broker-less mesh node.

pub mod config;
pub mod error;
pub mod handle;
pub mod id;
pub mod metrics;
pub mod net;
pub mod replica;
#[cfg(feature = "sim")]
pub mod sim;
pub mod subscription;
pub mod wire;
