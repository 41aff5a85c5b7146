//! Bridges: clients of the handle that speak to what is no node.

#[cfg(feature = "amqp")]
pub mod amqp;
#[cfg(feature = "amqp")]
pub mod history_service;
pub mod plain;

use crate::id::Room;

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
