//! Bridges: clients of the handle that speak to what is no node.
//!
//! A bridge joins the mesh to a broker. Nodes that offer the same one elect a leader (`election.rs`); only that one takes from
//! the broker and gives to it (`session.rs`). How far it has come is said in the log, so any node can go on from there.

#[cfg(feature = "amqp")]
pub mod amqp;
#[cfg(any(feature = "amqp", feature = "redis"))]
mod election;
#[cfg(feature = "amqp")]
pub mod history_service;
pub mod plain;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(any(feature = "amqp", feature = "redis"))]
mod session;
#[cfg(feature = "redis")]
pub mod streams;
#[cfg(any(feature = "amqp", feature = "redis"))]
mod supervise;

use crate::id::Room;

#[cfg(any(feature = "amqp", feature = "redis"))]
pub use self::supervise::{Bridge, Options, Target, Trouble};

/// What the lobby is called outside, and what other rooms begin with.
const TOPIC: &str = "chat";
/// Who says what comes from a client without a name.
const GUEST: &str = "guest";

/// The room that a topic or a routing key stands for. One that only begins like ours is somebody else's.
fn room(topic: &str) -> Option<Room> {
    match topic.strip_prefix(TOPIC)? {
        "" => Some(Room::lobby()),
        rest => Room::new(rest.strip_prefix('.')?).ok(),
    }
}
