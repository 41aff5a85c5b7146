//! A broker-less mesh node: start it, and it finds the others on the LAN, talks to them, and repairs what got lost.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let node = hubless::Node::builder().mesh("lab").name("probe-7").start().await?;
//! let mut lobby = node.subscribe("lobby").await?;
//! node.wait_for_peers(1).await?;
//! node.publish("lobby", "hello").await?;
//! while let Some(message) = lobby.message().await {
//!     println!("{}: {}", message.name, message.payload.text().unwrap_or("(not text)"));
//! }
//! # Ok(()) }
//! ```
//!
//! # What it is
//! - A [`Node`] announces itself through mDNS, dials whoever it finds, and is a full mesh with them. No broker, no ports on
//!   the command line, no configuration.
//! - A [`Handle`] publishes into rooms, subscribes to them, and tells who is there. It is cheap to clone, works on any
//!   runtime, and the node stops when the last one is dropped.
//! - Every node keeps a log; the logs of one mesh become equal. What a peer missed (a lost frame, a cable pulled, a day off)
//!   it gets from any peer that has it, also when the author is gone. [`Handle::durable`] is a durable subscriber on it.
//!
//! # What it is not
//! - No broker and no client of one: there is nothing to host.
//! - Not for the open internet: an open mesh trusts its LAN. Anyone there can read and write.
//! - Not for ever: retention lets go of what is old, and what nobody kept is gone.
//!
//! # The guarantee
//! Each clause names the test that checks it; the simulator (`tests/simulation.rs`) checks nearly all of them under faults.
//!
//! - What was answered [`State::Durable`](handle::State) survives kill -9 and power cuts of any nodes, once in each log
//!   (`kill9_*`, `power_cut_*` in `tests/restart.rs`), as long as the author's disk keeps what it synced, or one node has it.
//! - The answer follows the fsync, and a peer's subscriber does not wait for it (`slow_sync_*` in `tests/durable.rs`); with a
//!   disk that fails or is full nothing is answered durable, and the node goes on for its peers (`failing_*`).
//! - `stored_by` does not rise before that node's own sync (`slow_sync_*`).
//! - Logs of one mesh become equal, each message once, from any holder: author gone (`author_stopped_*` in
//!   `tests/restart.rs`), halves that wrote apart, beyond a hole of a dead author (`split_*`, `hole_*` in `tests/catch_up.rs`).
//! - Damage, loss, copies and older states of a disk heal without a manual step, and no entry id is used for two texts
//!   (`damage_*`, `identity_*` in `tests/damage.rs`).
//! - Clocks lose nothing: one that was never set, one 40 days ahead (`clocks_*` in `tests/restart.rs`).
//! - A durable subscriber gets each message at least once (`python_durable_*` in `tests/durable.rs`); a live one at most
//!   once, in its author's order, with gaps told (`tests/exchange.rs`, `tests/simulation.rs`).
//! - A retried client id is one message, also after a restart (`a_restarted_node_answers_a_retry_*`); of two that a split made
//!   one is shown, the same in every log (`tests/simulation.rs`).
//! - What retention let go does not come back, and whoever lacks it is told how many (`src/history/tests.rs`,
//!   `tests/simulation.rs`).
//!
//! Not promised: what an author neither synced nor got to a peer before it died; what every node has let go; order between
//! authors. [`architecture`] has the whole table.
//!
//! # Features
//! `history`: the log on disk. `amqp`: the bridge to an AMQP exchange, and the history service. `redis`: the bridge to Redis. `mdns`: discovery through mDNS. `web`: the page, the HTTP API and the WebSocket. `cli`: the command line. All are on by
//! default; an embedder takes `default-features = false` and what he needs.

#[cfg(not(unix))]
compile_error!("hubless runs on Linux and macOS; Windows is not supported");

#[doc = include_str!("ARCHITECTURE.md")]
pub mod architecture {}

mod aside;
pub mod bridge;
pub mod config;
#[cfg(feature = "count")]
pub mod count;
mod data_dir;
pub mod error;
#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod handle;
#[cfg_attr(not(feature = "history"), path = "history/absent.rs")]
mod history;
pub mod id;
pub mod mesh_key;
pub mod metrics;
mod net;
mod node;
pub mod replica;
#[cfg(feature = "sim")]
pub mod sim;
pub mod subscription;
#[cfg(feature = "web")]
pub mod web;
pub mod wire;

pub use config::{Config, Listen, Seed};
pub use error::{DurableError, HistoryError, PublishError, StartError, Stopped};
pub use handle::{Event, Handle, Peer, PeerState, Published};
pub use id::{EntryId, Room};
pub use mesh_key::{KeyRing, MeshKey};
pub use node::start::{Builder, Node};
pub use replica::batch::{Draft, PAYLOAD_BYTES_MAX, Payload, PayloadRef};
pub use replica::version::Cursor;
pub use subscription::{Delivery, DeliveryRef, Filter, Gap, GapReason, Message, MessageRef, Subscription};
