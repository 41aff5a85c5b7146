//! A broker-less mesh node.

pub mod config;
pub(crate) mod data_dir;
pub mod error;
pub mod handle;
pub mod id;
pub mod metrics;
pub mod net;
pub mod replica;
pub mod subscription;
pub mod wire;
