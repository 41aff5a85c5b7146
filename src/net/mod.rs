//! The LAN: everything that touches sockets between nodes, on the node's own thread.
//!
//! [`Net`] owns the gate's listener, the publisher and the links, and is driven by the node's event loop, which runs on the
//! same single-threaded runtime (the `zeromq` crate deadlocks on a multi-threaded one). The loop calls the methods of
//! [`Net`] and takes [`NetEvent`]s from a bounded channel; a full channel holds back the links, and through TCP their peers.

pub mod discovery;
pub(crate) mod folder;
pub(crate) mod gate;
pub(crate) mod link;
pub(crate) mod publisher;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use self::folder::Folder;
use self::gate::feed::Feeds;
use self::gate::line::Line;
use self::gate::{Door, Gate, Identity, limits};
use self::link::Surroundings;
use self::publisher::{Begun, Publisher};
use crate::aside::Aside;
use crate::config::Listen;
use crate::error::StartError;
use crate::id::{NodeKey, Run};
use crate::mesh_key::KeyRing;
use crate::metrics::Metrics;
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
    /// A peer that cannot be dialled offers what it publishes over a connection of its own: [`Net::take`] hears it.
    Offered { run: Run, address: SocketAddr, line: Box<Line> },
    /// The last connection of a peer that took our messages has ended.
    Left { run: Run },
    /// A peer's queue overflowed; its connection was cut and `bytes` were dropped.
    Cut { run: Run, bytes: u64 },
    /// A neighbour on another mesh or version has connected to us and was refused.
    Apart { address: SocketAddr, run: Option<Run>, reason: Apart },
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
    /// A node that must be kept apart; it may have said who it is.
    #[error("kept apart")]
    Apart(Apart, Option<Run>),
}

impl DialError {
    /// One word for metrics.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            DialError::Refused => "refused",
            DialError::Unreachable => "unreachable",
            DialError::Stranger => "stranger",
            DialError::Itself => "itself",
            DialError::Apart(..) => "apart",
        }
    }
}

/// Why two nodes are kept apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Apart {
    /// It belongs to another mesh.
    Mesh(String),
    /// It speaks another version of the wire.
    Version(u8),
    /// It has another key, or one of us has none.
    Key,
}

/// Whether `publish` may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Somebody keeps up, or nobody listens.
    Open,
    /// Every peer that takes messages is far behind, or the publisher has something before it: wait for [`Net::flow_changed`].
    Wait,
}

/// What the LAN side of a node is told.
pub(crate) struct NetOptions {
    pub(crate) run: Run,
    /// What `run.node` is proven with.
    pub(crate) key: NodeKey,
    pub(crate) mesh: Arc<str>,
    /// The keys of the mesh; none: it is open.
    pub(crate) mesh_keys: Option<KeyRing>,
    /// From [`bind`].
    pub(crate) listener: TcpListener,
    /// What everything is said with.
    pub(crate) voice: Begun,
    /// Where links decode what comes faster than one by one.
    pub(crate) aside: Aside,
}

/// The LAN side of a node. Lives on a `current_thread` runtime; dropping it ends everything a moment later.
pub(crate) struct Net {
    listen: SocketAddr,
    feeds: Arc<Feeds>,
    publisher: Publisher,
    gate: Gate,
    around: Surroundings,
    links: HashMap<LinkId, Link>,
}

/// A link's task; it ends when `hang_up` is dropped.
struct Link {
    hang_up: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Net {
    /// Takes callers, and makes the publisher. Nobody is dialled yet.
    ///
    /// # Errors
    /// [`StartError::System`]; nothing is left behind.
    pub(crate) async fn start(
        options: NetOptions,
        metrics: Metrics,
        events: mpsc::Sender<NetEvent>,
    ) -> Result<Net, StartError> {
        let NetOptions { run, key, mesh, mesh_keys, listener, voice, aside } = options;
        let system = |what| move |source| StartError::System { what, source };
        let listen = listener.local_addr().map_err(system("the address listened on"))?;
        let folder = Arc::new(Folder::make().map_err(system("a private folder for sockets"))?);
        let feeds = Arc::new(Feeds::new());
        let publisher = Publisher::make(voice, folder.clone(), metrics.clone(), feeds.clone());
        let publisher = publisher.await.map_err(system("a private socket"))?;
        let identity = Identity { run, mesh, port: listen.port(), key, mesh_keys };
        let around = Surroundings {
            identity: identity.clone(),
            folder,
            metrics: metrics.clone(),
            events: events.clone(),
            aside,
        };
        let door = Door::Mesh(identity.into());
        let gate = Gate::start(listener, door, metrics, events, feeds.clone(), publisher.path());
        let gate = gate.await.map_err(system("a private socket"))?;
        Ok(Net { listen, feeds, publisher, gate, around, links: HashMap::new() })
    }

    /// The address listened on, with its real port.
    pub(crate) fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Tries to hear whoever is at `address`: [`NetEvent::LinkUp`], messages, [`NetEvent::LinkDown`]; or
    /// [`NetEvent::DialFailed`], after 4 s at the latest. `link` was never used before.
    pub(crate) fn dial(&mut self, link: LinkId, address: SocketAddr) {
        self.links.retain(|_, link| !link.task.is_finished());
        let (hang_up, hung_up) = oneshot::channel();
        let task = tokio::spawn(link::hear(link, address, self.around.clone(), hung_up));
        self.links.insert(link, Link { hang_up, task });
    }

    /// Hears `run` over the line that it offered, as if it had been dialled.
    pub(crate) fn take(&mut self, link: LinkId, run: Run, address: SocketAddr, line: Line) {
        self.links.retain(|_, link| !link.task.is_finished());
        let (hang_up, hung_up) = oneshot::channel();
        let task = tokio::spawn(link::hear_over(link, line, run, address, self.around.clone(), hung_up));
        self.links.insert(link, Link { hang_up, task });
    }

    /// Offers what we publish to a peer that cannot dial us, over a connection of our own.
    pub(crate) fn offer(&mut self, run: Run, address: SocketAddr) {
        self.gate.offer(run, address);
    }

    /// Ends a link: with [`NetEvent::LinkDown`] if it was up, without a word if it was not. Of its messages, those that
    /// wait in the channel still come.
    pub(crate) fn hang_up(&mut self, link: LinkId) {
        self.links.remove(&link);
    }

    /// Says `body` on `topic` to all peers that subscribe it. Never waits for a peer: for entries ask [`Net::flow`] before.
    /// Not cancel safe: a message may be said or not.
    pub(crate) async fn send(&mut self, topic: &str, body: Bytes) {
        self.publisher.send(topic, body).await;
    }

    /// Whether entries may be sent now.
    pub(crate) fn flow(&self) -> Flow {
        self.feeds.flow()
    }

    /// Resolves when [`Net::flow`] may have changed, within 50 ms at the latest. Cancel safe.
    pub(crate) async fn flow_changed(&self) {
        self.feeds.changed().await;
    }

    /// Whether peers can still call; if not, a part of this node has died, and the rest has to go with it.
    pub(crate) fn is_alive(&self) -> bool {
        self.gate.is_alive()
    }

    /// Bytes that were dropped so far because this peer was too slow.
    pub(crate) fn dropped(&self, run: Run) -> u64 {
        self.feeds.dropped(run)
    }

    /// Waits up to a second until all that was sent has gone out, and a moment for its hearers to part, then ends everything.
    pub(crate) async fn close(mut self) {
        let deadline = Instant::now() + limits::CLOSE;
        while !self.feeds.is_drained() && Instant::now() < deadline {
            self.feeds.changed().await;
        }
        let parting = deadline.min(Instant::now() + limits::PARTING);
        while self.feeds.count() > 0 && Instant::now() < parting {
            self.feeds.changed().await;
        }
        for (_, Link { hang_up, task }) in self.links.drain() {
            drop(hang_up);
            task.abort();
            let _ = task.await;
        }
        self.gate.close().await;
        let _ = timeout_at(deadline + limits::CLOSE, self.publisher.close()).await;
    }
}

/// Listens where a node is told to; callers wait until [`Net::start`]. `last_port` is the port that its data folder used last.
///
/// # Errors
/// [`StartError::Bind`].
pub(crate) async fn bind(listen: Listen, last_port: Option<u16>) -> Result<TcpListener, StartError> {
    let first = listen.first_choice();
    let mut source = match TcpListener::bind(first).await {
        Ok(listener) => return Ok(listener),
        Err(error) => error,
    };
    if listen == Listen::Default {
        for port in last_port.into_iter().chain([0]) {
            match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await {
                Ok(listener) => return Ok(listener),
                Err(error) => source = error,
            }
        }
    }
    Err(StartError::Bind { address: first.to_string(), source })
}

/// A task that ends with its owner.
pub(crate) struct Task(JoinHandle<()>);

impl Task {
    pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Task {
        Task(tokio::spawn(task))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
