//! What nodes say to each other. Who says it is known from the link it came over.
//!
//! [`crate::wire`] turns these into frames and back.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::batch::Batch;
use super::clock::Hlc;
use super::ranges::RangeSet;
use crate::id::{Run, RunHash, Seq};

/// One message between nodes.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Entries, as their origin encoded them: topic `chat`.
    Batch(Batch),
    /// I live, and this changed: topic `mesh`, each second.
    Heartbeat(Heartbeat),
    /// Who I am, whom I hear, whom I know: topic `mesh`, on change and every 30 s.
    Hello(Hello),
    /// I leave; my stream ended at this seq: topic `mesh`.
    Goodbye(Seq),
    /// Tell me what you hold of these runs; none named: of all. To one peer.
    DigestRequest(Vec<RunHash>),
    /// What I hold. To one peer.
    Digest(Digest),
    /// Send me these entries. To one peer.
    Request(Request),
    /// The entries asked for, or a part of them. To one peer.
    Repair(Repair),
    /// Say this number back. To one peer.
    Ping(u64),
    /// The number said back. To one peer.
    Pong(u64),
}

/// A sign of life with news.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heartbeat {
    /// The last seq of the sender's own stream.
    pub sent: Seq,
    /// Origins whose ranges changed since the last beat, as many as fit.
    pub marks: Vec<Mark>,
    /// Hash of what the sender holds of all origins that did not change lately.
    pub settled: u64,
}

/// What the sender holds of one origin, in short.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// The origin.
    pub run: RunHash,
    /// Everything up to here has left the sender's window or never was in it, and is not to be had from it.
    pub floor: Seq,
    /// What it holds.
    pub held: RangeSet,
}

/// Who a node is and whom it knows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hello {
    /// Its display name.
    pub name: Arc<str>,
    /// Addresses at which it says it is reached.
    pub endpoints: Vec<SocketAddr>,
    /// The runs whose links are alive at the sender.
    pub hears: Vec<RunHash>,
    /// Other runs that it hears, and where.
    pub knows: Vec<(Run, Vec<SocketAddr>)>,
}

/// What the sender holds, or a part of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Digest {
    /// By origin.
    pub holdings: Vec<Holding>,
    /// Whether the receiver has been told of all origins with this one.
    pub all: bool,
}

/// What the sender holds of one origin, in full.
#[derive(Clone, Debug, PartialEq)]
pub struct Holding {
    /// The origin.
    pub run: Run,
    /// Everything up to here has left the sender's window or never was in it.
    pub floor: Seq,
    /// What it holds.
    pub held: RangeSet,
    /// The time of the newest entry of this origin that the sender has seen.
    pub newest: Hlc,
    /// Whether the sender knows that this run has ended.
    pub over: bool,
}

/// A wish for entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Whose.
    pub origin: Run,
    /// From this one.
    pub first: Seq,
    /// To this one, inclusive.
    pub last: Seq,
    /// At most so many bytes, but at least one batch.
    pub bytes_max: u32,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq)]
pub struct Repair {
    /// Whose entries.
    pub origin: Run,
    /// The `first` of the request.
    pub first: Seq,
    /// Where this part of the answer begins.
    pub from: Seq,
    /// All that the sender holds of `from..=through` is in this part.
    pub through: Seq,
    /// Encoded batches, oldest first.
    pub batches: Vec<Bytes>,
}
