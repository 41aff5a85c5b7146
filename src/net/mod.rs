//! The LAN: everything that touches sockets between nodes, on the node's own thread.
//!
//! [`Net`] owns the gate's listener, the publisher and the links, and is driven by the node's event loop, which runs on the
//! same single-threaded runtime (the `zeromq` crate deadlocks on a multi-threaded one). The loop calls the methods of
//! [`Net`] and takes [`NetEvent`]s from a bounded channel; a full channel holds back the links, and through TCP their peers.

pub mod discovery;
pub(crate) mod gate;
pub(crate) mod link;
pub(crate) mod publisher;

use std::net::SocketAddr;

use crate::id::Run;
use crate::replica::message::Message;

/// One attempt to hear a peer, from the dial to the end of the link. Never used twice in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LinkId(pub u64);

/// What happens on the LAN.
#[derive(Debug)]
pub(crate) enum NetEvent {
    /// A dial got through the handshakes; the link's SUB socket is connected and has subscribed. Its messages follow.
    LinkUp { link: LinkId, run: Run, address: SocketAddr },
    /// A link that was up has ended.
    LinkDown { link: LinkId, run: Run },
    /// A dial did not become a link.
    DialFailed { link: LinkId, address: SocketAddr, error: DialError },
    /// A peer has connected to us and named itself; it is reached at `address` (the observed host, the port it named).
    Called { run: Run, address: SocketAddr },
    /// The last connection of a peer that took our messages has ended.
    Left { run: Run },
    /// A peer's queue overflowed; its connection was cut and `bytes` were dropped.
    Cut { run: Run, bytes: u64 },
    /// A neighbour on another mesh or version has connected to us and was refused.
    Apart { address: SocketAddr, reason: Apart },
    /// A decoded message. Malformed ones were counted and dropped.
    Message { link: LinkId, run: Run, message: Message },
}

/// Why a dial did not become a link.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DialError {
    /// The host says that nothing listens there.
    #[error("refused")]
    Refused,
    /// No answer within the time-out, or the network says that there is no way.
    #[error("unreachable")]
    Unreachable,
    /// Something answered that is no hubless node.
    #[error("not a hubless node")]
    Stranger,
    /// It is this very run.
    #[error("this node itself")]
    Itself,
    /// A node that must be kept apart.
    #[error("kept apart")]
    Apart(Apart),
}

/// Why two nodes are kept apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Apart {
    /// It belongs to another mesh.
    Mesh(String),
    /// It speaks another version of the wire.
    Version(u8),
}

/// Whether `publish` may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Somebody keeps up, or nobody listens.
    Open,
    /// Every peer that takes messages is far behind, or the publisher has much before it: wait for [`Net::flow_changed`].
    Wait,
}
