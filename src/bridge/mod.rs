//! Bridges: clients of the handle that speak to what is no node.
//!
//! A bridge joins the mesh to a broker. Nodes that offer the same one elect a leader (`election.rs`); only that one takes from
//! the broker and gives to it (`session.rs`). How far it has come is said in the log, so any node can go on from there.

#[cfg(feature = "amqp")]
pub mod amqp;
#[cfg(feature = "amqp")]
mod amqp_sieve;
#[cfg(any(feature = "amqp", feature = "redis"))]
mod election;
#[cfg(feature = "amqp")]
pub mod history_service;
pub mod plain;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "redis")]
mod redis_target;
#[cfg(any(feature = "amqp", feature = "redis"))]
mod session;
#[cfg(feature = "redis")]
pub mod streams;
#[cfg(any(feature = "amqp", feature = "redis"))]
mod supervise;

use crate::id::Room;

#[cfg(any(feature = "amqp", feature = "redis"))]
pub use self::supervise::{Bridge, Options, Target, Trouble};

/// Makes TLS ready for use: certificates are checked against those that the system trusts (or `SSL_CERT_FILE`).
#[cfg(all(feature = "tls", any(feature = "amqp", feature = "redis")))]
#[expect(clippy::unnecessary_wraps, reason = "there is a build without TLS")]
fn begin_tls() -> Result<(), String> {
    // Somebody else in this process may have chosen before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(())
}

#[cfg(all(not(feature = "tls"), any(feature = "amqp", feature = "redis")))]
fn begin_tls() -> Result<(), String> {
    Err("this hubless was built without TLS: build it with the feature `tls`".into())
}

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
