//! The core.
pub mod batch;
pub mod clock;
pub mod message;
pub mod ranges;
pub mod version;
