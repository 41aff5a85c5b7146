//! The whole boundary of the core on one page: what goes in, what comes out.
//!
//! The event loop, the simulator and every recorded trace hold the same values.

use std::net::SocketAddr;

use super::batch::Batch;
use super::clock::Hlc;
use super::message::Message;
use super::ranges::RangeSet;
use crate::id::{EntryId, Run, Seq};

/// What happens to a replica.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// The deadline that [`Replica::poll_timeout`](super::Replica::poll_timeout) gave has come.
    Timeout,
    /// A link to `run` is made: what it says follows, from `address`.
    LinkUp {
        /// Who is heard.
        run: Run,
        /// Where it is.
        address: SocketAddr,
    },
    /// The last link to this run has ended.
    LinkDown(Run),
    /// This run has connected to us and will hear us soon.
    Called(Run),
    /// The last connection of this run to us has ended: it does not hear us.
    Left(Run),
    /// The host of this run refuses connections.
    Refused(Run),
    /// A message came over the link to `from`.
    Message {
        /// Who said it.
        from: Run,
        /// What was said.
        message: Message,
    },
    /// The addresses at which peers reach this node.
    Endpoints(Vec<SocketAddr>),
    /// The history reports.
    Log(Report),
    /// The node is about to stop: say goodbye.
    Stop,
}

/// What a replica wants done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// To be done by the history, in order with other orders and beside everything else.
    Log(Order),
    /// Hand the entries to local readers.
    Deliver {
        /// The entries.
        batch: Batch,
        /// When they come, seen from the reader.
        how: Timing,
    },
    /// Say it to peers.
    Send {
        /// To whom.
        to: To,
        /// What.
        message: Message,
    },
    /// Tell whoever wants to know.
    Notify(Notice),
}

/// When entries come, seen from a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Timing {
    /// In the order of their origin.
    Live,
    /// After entries of the same origin that follow them; a gap was reported.
    Late,
    /// From before this node's life: for readers that follow a cursor.
    History,
}

/// To whom a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum To {
    /// To every peer that hears us.
    All,
    /// To this run alone.
    One(Run),
}

/// What a replica has noticed.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// A peer's status changed, or its name.
    Peer(Run),
    /// Entries of `origin` are missing.
    Gap {
        /// Whose.
        origin: Run,
        /// How many.
        missing: u64,
        /// Why.
        reason: Missing,
    },
    /// Another run was named by a peer, with addresses where it may be; `by` named it.
    Named {
        /// Who.
        run: Run,
        /// Where it may be.
        addresses: Vec<SocketAddr>,
        /// Who said so.
        by: Run,
    },
    /// Somebody holds entries of this very run that it never published.
    OwnRunElsewhere(EntryId),
}

/// Why entries are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Missing {
    /// They may still come.
    Late,
    /// Every holder has let them go.
    Expired,
    /// Nobody has them.
    Lost,
}

/// Consecutive entries of one origin, on batch borders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// Whose.
    pub run: Run,
    /// From this one.
    pub first: Seq,
    /// To this one, inclusive.
    pub last: Seq,
}

/// A batch as a log keeps it and a repair brings it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The entries.
    pub batch: Batch,
    /// When it first arrived anywhere that is known, in milliseconds since 1970 by the clock of whoever took it; its age
    /// counts from this or from its own time, whichever is later.
    pub arrived_ms: u64,
}

/// What the history is asked to do. Orders are carried out one after the other; [`Order::Load`] may be answered earlier.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// Keep this batch. Answered by [`Report::Stored`] once it is as safe as the node was told to make it.
    Append(Kept),
    /// Give local numbers to the batches stored of this span, in order.
    Admit {
        /// Which.
        span: Span,
        /// Whether entries of this origin that follow them have numbers already.
        late: bool,
    },
    /// Remember that these are missing for good; forgotten again for those that are appended after all.
    Settle(Span),
    /// Read what a peer asked for. Answered by [`Report::Loaded`].
    Load(Load),
    /// Let go of what is older than retention says at this time, and of what is more than it says; without a time only of
    /// the latter. Answered by a [`Report::Expired`] for each origin that lost something.
    Retain {
        /// Now, in milliseconds since 1970.
        wall_ms: Option<u64>,
    },
    /// Let go of all of this origin. Answered by [`Report::Expired`].
    Expire(Run),
    /// Drop the record of this origin, of which nothing is left, and take note of the horizon.
    Forget {
        /// Which.
        run: Run,
        /// Not older than the newest time that was let go.
        horizon: Hlc,
    },
}

/// Entries to be read for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Who asked.
    pub to: Run,
    /// Which.
    pub span: Span,
    /// It ends with the batch that reaches so many bytes: by that, whoever asked knows an answer that was cut.
    pub bytes_max: u32,
}

/// What the history has done, or what became of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// It was opened, anew or again, and holds this. Whatever was ordered before and not reported is undone.
    Opened(Opened),
    /// These batches are on disk.
    Stored(Vec<Span>),
    /// It takes nothing for now: what was ordered and not reported may be lost.
    Closed,
    /// What was found, oldest first.
    Loaded {
        /// What was asked.
        load: Load,
        /// All that is on disk of the span up to `through`.
        batches: Vec<Kept>,
        /// How far it goes: the end of the span unless the bytes did not suffice.
        through: Seq,
    },
    /// Everything of `run` up to `floor` was let go.
    Expired {
        /// Whose.
        run: Run,
        /// Up to here.
        floor: Seq,
        /// The newest time that was let go.
        newest: Hlc,
    },
    /// Batches of a history that was moved aside; they are not on disk yet.
    Found(Vec<Kept>),
}

/// What a log holds when it is opened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Opened {
    /// By origin.
    pub streams: Vec<OnDisk>,
    /// The newest time that this log has let go.
    pub horizon: Hlc,
}

/// What a log holds of one origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnDisk {
    /// The origin.
    pub run: Run,
    /// Everything up to here was let go.
    pub floor: Seq,
    /// What is there.
    pub stored: RangeSet,
    /// What of it has local numbers.
    pub admitted: RangeSet,
    /// What is missing for good.
    pub settled: RangeSet,
    /// The time of the newest entry ever stored.
    pub newest: Hlc,
}
