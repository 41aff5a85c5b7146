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
//! - What a peer missed (a lost frame, a cable pulled, a late start) it gets from any peer that still has it in its window.
//!
//! # What it is not
//! - No broker and no client of one: there is nothing to host.
//! - Not for the open internet: an open mesh trusts its LAN. Anyone there can read and write.
//! - Not yet a durable log: everything lives in a window of 64 MiB in memory, and is gone with the last node.
//!
//! # The guarantee, as of today
//! Each message published on a node reaches each subscriber of its room on every peer that is up at most once, in the order
//! of its author, as long as the reader keeps up. What is lost on the way is repaired from the window of any peer. What
//! cannot be had in time is reported as a [`Gap`] at its place, and delivered late, marked so, if it turns up. Nothing is
//! dropped without being counted. [`architecture`] says which test shows which clause.
//!
//! # Features
//! `mdns`: discovery through mDNS. `web`: the page, the HTTP API and the WebSocket. `cli`: the command line. All are on by
//! default; an embedder takes `default-features = false` and what he needs.

#[cfg(not(unix))]
compile_error!("hubless runs on Linux and macOS; Windows is not supported");

#[doc = include_str!("ARCHITECTURE.md")]
pub mod architecture {}

mod aside;
pub mod config;
mod data_dir;
pub mod error;
pub mod handle;
#[cfg_attr(not(feature = "history"), path = "history/absent.rs")]
mod history;
pub mod id;
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
pub use error::{PublishError, StartError, Stopped};
pub use handle::{Event, Handle, Peer, PeerState, Published};
pub use id::{EntryId, Room};
pub use node::start::{Builder, Node};
pub use replica::batch::{Draft, PAYLOAD_BYTES_MAX, Payload};
pub use replica::version::Cursor;
pub use subscription::{Delivery, Filter, Gap, GapReason, Message, Subscription};
