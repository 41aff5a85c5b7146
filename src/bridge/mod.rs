//! Bridges: clients of the handle that speak to what is no node.

#[cfg(feature = "amqp")]
pub mod amqp;
#[cfg(feature = "amqp")]
pub mod history_service;
pub mod plain;
