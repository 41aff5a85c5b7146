//! What nodes say to each other. Who says it is known from the link it came over.
//!
//! [`crate::wire`] turns these into frames and back.

use std::net::SocketAddr;
use std::sync::Arc;

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
    /// Tell me what you hold of these runs. To one peer.
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
    /// This is what I hold, as a hash for each bucket of origins: tell me what you hold in those that differ. To one peer.
    Compare(Box<[u64; BUCKETS]>),
}

/// Origins are spread over so many buckets by the lowest bits of their hash.
pub const BUCKETS: usize = 64;

/// A sign of life with news.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heartbeat {
    /// The last seq of the sender's own stream.
    pub sent: Seq,
    /// Origins whose ranges changed since the last beat, as many as fit.
    pub marks: Vec<Mark>,
    /// Hash of what the sender holds of all origins that did not change lately.
    pub settled: u64,
    /// The sender's own clock, in milliseconds since 1970.
    pub wall_ms: u64,
}

/// What the sender holds of one origin, in short.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// The origin.
    pub run: RunHash,
    /// Everything up to here was let go by the sender, and is not to be had from it.
    pub floor: Seq,
    /// What it holds.
    pub held: RangeSet,
    /// What of it is in memory only.
    pub volatile: RangeSet,
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
    /// Some of the runs that it hears, and where.
    pub knows: Vec<(Run, Vec<SocketAddr>)>,
    /// The sender's own clock, in milliseconds since 1970.
    pub wall_ms: u64,
}

/// What the sender holds, or a part of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Digest {
    /// By origin.
    pub holdings: Vec<Holding>,
    /// Whether the receiver has been told of all that differs with this one.
    pub all: bool,
    /// A bit for each bucket in which both hold the same.
    pub same: u64,
    /// Which [`Message::Compare`] this answers, by the hash of its hashes; 0 if none.
    pub answers: u64,
}

/// What the sender holds of one origin, in full.
#[derive(Clone, Debug, PartialEq)]
pub struct Holding {
    /// The origin.
    pub run: Run,
    /// Everything up to here was let go by the sender.
    pub floor: Seq,
    /// What it holds.
    pub held: RangeSet,
    /// What of it is in memory only.
    pub volatile: RangeSet,
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
    /// The answer ends with the batch that reaches so many bytes.
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
    /// Oldest first, each with when it first arrived anywhere ([`Kept`](super::event::Kept)).
    pub batches: Vec<(Batch, u64)>,
}
