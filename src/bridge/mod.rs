//! Bridges: clients of the handle that speak to what is no node.

pub mod plain;
