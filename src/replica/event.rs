//! The whole boundary of the core on one page: what goes in, what comes out.
//!
//! The event loop, the simulator and every recorded trace hold the same values.

use std::net::SocketAddr;

use super::batch::Batch;
use super::message::Message;
use crate::id::{EntryId, Run};

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
    /// The node is about to stop: say goodbye.
    Stop,
}

/// What a replica wants done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
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
