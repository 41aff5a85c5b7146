//! Frames ↔ messages: one version byte, bincode with a limit, nothing left over.
//!
//! ```text
//! topic  = "chat" | "mesh" | "to." NODE "." EPOCH
//! body   = batch                       on "chat": its first byte is its version
//!        / version(1) bincode-message  on the others
//! ```
//!
//! A node speaks its own version and the one before (there is none before 1). Golden bytes in `tests/wire.rs` guard it.

use std::net::SocketAddr;

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bytes::Bytes;

use crate::id::{Epoch, NodeId, Run, RunHash, Seq};
use crate::replica::batch::{Batch, BatchError};
use crate::replica::clock::Hlc;
use crate::replica::message::{Digest, Heartbeat, Hello, Holding, Mark, Message, Repair, Request};
use crate::replica::ranges::RangeSet;

/// The version byte of this node's messages.
pub const WIRE_VERSION: u8 = 1;
/// The largest frame between nodes, in bytes.
pub const FRAME_BYTES_MAX: usize = 640 * 1024;
/// The largest heartbeat, in bytes.
pub const HEARTBEAT_BYTES_MAX: usize = 1024;

/// Topic of entries; also the prefix that every node subscribes.
pub const TOPIC_CHAT: &str = "chat";
/// Topic of heartbeats, hellos and goodbyes.
pub const TOPIC_MESH: &str = "mesh";

/// The topic that only `run` subscribes.
pub fn topic_to(run: Run) -> String {
    format!("to.{run}")
}

/// Why a message from a peer was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Empty, or larger than [`FRAME_BYTES_MAX`].
    #[error("a message of impossible length")]
    Length,
    /// A version that this node does not speak.
    #[error("a message of another version")]
    Version,
    /// Not two frames of topic and body, or not a topic that this node subscribes.
    #[error("a message on an unknown topic")]
    Topic,
    /// Does not decode, or bytes are left over.
    #[error("a message that does not decode")]
    Body,
    /// A batch that is none.
    #[error(transparent)]
    Batch(#[from] BatchError),
}

impl WireError {
    /// One word for metrics.
    pub fn word(&self) -> &'static str {
        match self {
            WireError::Length => "length",
            WireError::Version => "version",
            WireError::Topic => "topic",
            WireError::Body => "body",
            WireError::Batch(BatchError::Signature) => "signature",
            WireError::Batch(_) => "batch",
        }
    }
}

const CODING: Configuration<LittleEndian, Varint, Limit<FRAME_BYTES_MAX>> =
    bincode::config::standard().with_limit::<FRAME_BYTES_MAX>();

type WireRun = ([u8; 32], u64);
type WireRanges = Vec<(u64, u64)>;

/// Grows only at the end.
#[derive(bincode::Encode, bincode::BorrowDecode)]
enum WireMessage<'a> {
    Heartbeat {
        sent: u64,
        marks: Vec<(u64, u64, WireRanges, WireRanges)>,
        settled: u64,
        wall_ms: u64,
    },
    Hello {
        name: &'a str,
        endpoints: Vec<SocketAddr>,
        hears: Vec<u64>,
        knows: Vec<(WireRun, Vec<SocketAddr>)>,
        wall_ms: u64,
    },
    Goodbye {
        sent: u64,
    },
    DigestRequest {
        runs: Vec<u64>,
    },
    Digest {
        holdings: Vec<(WireRun, u64, WireRanges, WireRanges, u64, bool)>,
        all: bool,
        same: u64,
        answers: u64,
    },
    Request {
        origin: WireRun,
        first: u64,
        last: u64,
        bytes_max: u32,
    },
    Repair {
        origin: WireRun,
        first: u64,
        from: u64,
        through: u64,
        batches: Vec<(&'a [u8], u64)>,
    },
    Ping(u64),
    Pong(u64),
    Compare(Vec<u64>),
}

/// The body of `message`.
pub fn encode(message: &Message) -> Bytes {
    let wire = match message {
        Message::Batch(batch) => return batch.bytes().clone(),
        Message::Heartbeat(beat) => WireMessage::Heartbeat {
            sent: beat.sent.0,
            marks: beat
                .marks
                .iter()
                .map(|Mark { run, floor, held, volatile }| (run.0, floor.0, ranges(held), ranges(volatile)))
                .collect(),
            settled: beat.settled,
            wall_ms: beat.wall_ms,
        },
        Message::Hello(hello) => WireMessage::Hello {
            name: &hello.name,
            endpoints: hello.endpoints.clone(),
            hears: hello.hears.iter().map(|hash| hash.0).collect(),
            knows: hello.knows.iter().map(|(run, at)| (wire_run(*run), at.clone())).collect(),
            wall_ms: hello.wall_ms,
        },
        Message::Goodbye(sent) => WireMessage::Goodbye { sent: sent.0 },
        Message::DigestRequest(runs) => WireMessage::DigestRequest { runs: runs.iter().map(|hash| hash.0).collect() },
        Message::Digest(digest) => WireMessage::Digest {
            holdings: digest
                .holdings
                .iter()
                .map(|holding| {
                    let Holding { run, floor, held, volatile, newest, over } = holding;
                    (wire_run(*run), floor.0, ranges(held), ranges(volatile), newest.0, *over)
                })
                .collect(),
            all: digest.all,
            same: digest.same,
            answers: digest.answers,
        },
        Message::Request(Request { origin, first, last, bytes_max }) => {
            WireMessage::Request { origin: wire_run(*origin), first: first.0, last: last.0, bytes_max: *bytes_max }
        }
        Message::Repair(Repair { origin, first, from, through, batches }) => WireMessage::Repair {
            origin: wire_run(*origin),
            first: first.0,
            from: from.0,
            through: through.0,
            batches: batches.iter().map(|(batch, arrived_ms)| (&batch.bytes()[..], *arrived_ms)).collect(),
        },
        Message::Ping(number) => WireMessage::Ping(*number),
        Message::Pong(number) => WireMessage::Pong(*number),
        Message::Compare(hashes) => WireMessage::Compare(hashes.to_vec()),
    };
    let mut bytes = vec![WIRE_VERSION];
    let done = bincode::encode_into_std_write(wire, &mut bytes, CODING);
    debug_assert!(done.is_ok(), "encoding into memory cannot fail");
    bytes.into()
}

/// Reads the body of a message that came on `topic`; payloads share its bytes. Batches are hashed here, and their authors
/// checked, which takes some 50 µs for each: whoever has many of them decodes them elsewhere.
///
/// # Errors
/// [`WireError`]; the message is to be counted and dropped.
pub fn decode(topic: &[u8], body: &Bytes) -> Result<Message, WireError> {
    let (version, rest) = body.split_first().ok_or(WireError::Length)?;
    if body.len() > FRAME_BYTES_MAX {
        return Err(WireError::Length);
    }
    if topic == TOPIC_CHAT.as_bytes() {
        return Ok(Message::Batch(Batch::parse(body.clone())?));
    }
    if *version != WIRE_VERSION {
        return Err(WireError::Version);
    }
    if topic != TOPIC_MESH.as_bytes() && !topic.starts_with(b"to.") {
        return Err(WireError::Topic);
    }
    let (wire, used): (WireMessage<'_>, usize) =
        bincode::borrow_decode_from_slice(rest, CODING).map_err(|_| WireError::Body)?;
    if used != rest.len() {
        return Err(WireError::Body);
    }
    Ok(match wire {
        WireMessage::Heartbeat { sent, marks, settled, wall_ms } => Message::Heartbeat(Heartbeat {
            sent: Seq(sent),
            marks: marks
                .into_iter()
                .map(|(run, floor, held, volatile)| Mark {
                    run: RunHash(run),
                    floor: Seq(floor),
                    held: range_set(held),
                    volatile: range_set(volatile),
                })
                .collect(),
            settled,
            wall_ms,
        }),
        WireMessage::Hello { name, endpoints, hears, knows, wall_ms } => Message::Hello(Hello {
            name: name.into(),
            endpoints,
            hears: hears.into_iter().map(RunHash).collect(),
            knows: knows.into_iter().map(|(run, at)| (from_wire_run(run), at)).collect(),
            wall_ms,
        }),
        WireMessage::Goodbye { sent } => Message::Goodbye(Seq(sent)),
        WireMessage::DigestRequest { runs } => Message::DigestRequest(runs.into_iter().map(RunHash).collect()),
        WireMessage::Digest { holdings, all, same, answers } => Message::Digest(Digest {
            holdings: holdings
                .into_iter()
                .map(|(run, floor, held, volatile, newest, over)| Holding {
                    run: from_wire_run(run),
                    floor: Seq(floor),
                    held: range_set(held),
                    volatile: range_set(volatile),
                    newest: Hlc(newest),
                    over,
                })
                .collect(),
            all,
            same,
            answers,
        }),
        WireMessage::Request { origin, first, last, bytes_max } => {
            Message::Request(Request { origin: from_wire_run(origin), first: Seq(first), last: Seq(last), bytes_max })
        }
        WireMessage::Repair { origin, first, from, through, batches } => Message::Repair(Repair {
            origin: from_wire_run(origin),
            first: Seq(first),
            from: Seq(from),
            through: Seq(through),
            batches: batches
                .into_iter()
                .map(|(batch, arrived_ms)| Ok((Batch::parse(body.slice_ref(batch))?, arrived_ms)))
                .collect::<Result<_, BatchError>>()?,
        }),
        WireMessage::Ping(number) => Message::Ping(number),
        WireMessage::Pong(number) => Message::Pong(number),
        WireMessage::Compare(hashes) => Message::Compare(Box::new(hashes.try_into().map_err(|_| WireError::Body)?)),
    })
}

fn wire_run(run: Run) -> WireRun {
    (run.node.0, run.epoch.0)
}

fn from_wire_run((node, epoch): WireRun) -> Run {
    Run { node: NodeId(node), epoch: Epoch(epoch) }
}

fn ranges(set: &RangeSet) -> WireRanges {
    set.iter().map(|(first, last)| (first.0, last.0)).collect()
}

fn range_set(ranges: WireRanges) -> RangeSet {
    ranges.into_iter().map(|(first, last)| (Seq(first), Seq(last))).collect()
}
