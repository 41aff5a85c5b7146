//! The gate: all bytes between the `zeromq` sockets and the LAN pass through it, and are checked.
//!
//! One packet can abort a process that lets `zeromq` read from the LAN. So its sockets know only Unix sockets in a private
//! folder, and the gate stands between these and TCP: [`inbound`] for peers that call us to hear our publisher, fed by
//! [`fanout`], [`outbound`] for peers that we dial to hear. Both sides begin with the same handshake, in which a node says who it is.
//! In a mesh with a key all of that is sealed first ([`line`]).
//! The gate parses greeting, commands and frame headers, never the messages. It holds back nobody but the peer concerned:
//! what comes out of our publisher it takes at once, whatever the peer does.

pub(crate) mod claims;
mod fanout;
pub(crate) mod feed;
pub(crate) mod inbound;
pub(crate) mod limits;
pub(crate) mod line;
pub(crate) mod outbound;
pub(crate) mod queue;
mod turns;
pub(crate) mod zmtp;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

use self::fanout::Fanout;
use self::feed::{Feeds, lock};
use self::line::Line;
use self::turns::Turns;
use self::zmtp::{Broken, Properties, Role};
use super::{Apart, NetEvent};
use crate::id::{NodeKey, Room, Run};
use crate::mesh_key::KeyRing;
use crate::metrics::{Metrics, count};
use crate::wire::WIRE_VERSION;

/// Who we are, as READY says it.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) run: Run,
    pub(crate) mesh: Arc<str>,
    /// The port on which we listen.
    pub(crate) port: u16,
    /// What `run.node` is proven with.
    pub(crate) key: NodeKey,
    /// The keys of the mesh; none: it is open.
    pub(crate) mesh_keys: Option<KeyRing>,
}

/// Whom a gate lets in.
#[derive(Clone, Debug)]
pub(crate) enum Door {
    /// Nodes of our mesh; boxed, as there is one of them in all.
    Mesh(Box<Identity>),
    /// Any stock ZeroMQ client.
    Plain,
}

/// What READY said of a peer that we may talk to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) run: Run,
    /// The port on which it listens.
    pub(crate) port: u16,
    /// What it wants to be on this connection.
    pub(crate) role: Role,
}

/// Why we do not talk to whoever is at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No hubless node, or one of the wrong role.
    Stranger,
    Itself,
    /// It has a key of the mesh, and took another's name.
    Name,
    /// To be kept apart; it listens on this port, and may say who it is.
    Apart(Apart, u16, Option<Run>),
}

/// Why a handshake failed.
#[derive(Debug)]
pub(crate) enum ShakeError {
    /// The connection ended or nothing came.
    Gone,
    Broken(Broken),
}

impl From<io::Error> for ShakeError {
    fn from(_: io::Error) -> ShakeError {
        ShakeError::Gone
    }
}

impl From<Broken> for ShakeError {
    fn from(broken: Broken) -> ShakeError {
        ShakeError::Broken(broken)
    }
}

impl Identity {
    /// The READY that we send over TCP.
    fn ready(&self, role: Role) -> bytes::Bytes {
        zmtp::ready(
            role,
            &[
                ("Hubless-Run", &self.run.to_string()),
                ("Hubless-Mesh", &self.mesh),
                ("Hubless-Port", &self.port.to_string()),
                ("Hubless-Version", &WIRE_VERSION.to_string()),
            ],
        )
    }

    /// Whether we talk to whoever sent this READY over this line.
    fn judge(&self, line: &Line, ready: &[u8]) -> Result<Peer, Refusal> {
        let peer = self.read(ready)?;
        // A name that is not proven is nobody's.
        if line.proves(peer.run.node) { Ok(peer) } else { Err(Refusal::Name) }
    }

    /// The version is looked at first: what the others mean depends on it.
    fn read(&self, ready: &[u8]) -> Result<Peer, Refusal> {
        let properties = Properties::parse(ready).map_err(|_| Refusal::Stranger)?;
        let get = |name| properties.get(name).ok_or(Refusal::Stranger);
        let version: u8 = get("Hubless-Version")?.parse().map_err(|_| Refusal::Stranger)?;
        let port = get("Hubless-Port")?.parse().ok().filter(|port| *port > 0).ok_or(Refusal::Stranger)?;
        let run = properties.get("Hubless-Run").and_then(|run| run.parse::<Run>().ok());
        if version != WIRE_VERSION {
            return Err(Refusal::Apart(Apart::Version(version), port, run));
        }
        let mesh = get("Hubless-Mesh")?;
        let run = run.ok_or(Refusal::Stranger)?;
        if run == self.run {
            return Err(Refusal::Itself);
        }
        if mesh != &*self.mesh {
            // The name will be shown to people.
            let apart = Room::is_valid(mesh).then(|| Refusal::Apart(Apart::Mesh(mesh.to_owned()), port, Some(run)));
            return Err(apart.unwrap_or(Refusal::Stranger));
        }
        let kind = get("Socket-Type")?;
        let role = [Role::Pub, Role::Sub].into_iter().find(|role| role.name() == kind).ok_or(Refusal::Stranger)?;
        Ok(Peer { run, port, role })
    }
}

/// Whether READY is that of a stock client, which is `role`.
fn is_stock(role: Role, ready: &[u8]) -> bool {
    let kind = Properties::parse(ready).ok().and_then(|properties| properties.get("Socket-Type"));
    // The sockets XPUB and XSUB speak the same.
    kind.is_some_and(|kind| kind.strip_prefix('X').unwrap_or(kind) == role.name())
}

/// Exchanges greetings and READYs, ours first; gives the body of the other's READY. Reads not one byte beyond it.
async fn shake(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), ready: &[u8]) -> Result<Vec<u8>, ShakeError> {
    stream.write_all(&[&zmtp::greeting()[..], ready].concat()).await?;
    stream.flush().await?;
    let mut greeting = [0; zmtp::GREETING_BYTES];
    let mut known = 0;
    while known < greeting.len() {
        let bytes = stream.read(&mut greeting[known..]).await?;
        if bytes == 0 {
            return Err(ShakeError::Gone);
        }
        known += bytes;
        zmtp::check_greeting(&greeting[..known])?;
    }
    let mut head = [0; zmtp::HEADER_BYTES_MAX];
    let mut known = 0;
    let header = loop {
        match zmtp::Header::parse(&head[..known])? {
            Some(header) if !header.command || header.len > limits::READY_BYTES_MAX => {
                return Err(Broken::Command.into());
            }
            Some(header) => break header,
            None => head[known] = stream.read_u8().await?,
        }
        known += 1;
    };
    let mut body = vec![0; header.len];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

/// What the gate's tasks share. They all run on the node's own thread.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) door: Door,
    pub(crate) metrics: Metrics,
    pub(crate) events: mpsc::Sender<NetEvent>,
    pub(crate) feeds: Arc<Feeds>,
    /// Where our publisher is bound; a change ends the connections of all callers, which may be in the midst of a message.
    pub(crate) publisher: watch::Receiver<PathBuf>,
    /// Connections of each caller.
    callers: Mutex<HashMap<Run, usize>>,
    handshakes: Mutex<Handshakes>,
}

/// Callers that have not named themselves yet, oldest first.
#[derive(Debug, Default)]
struct Handshakes(VecDeque<(u64, IpAddr, AbortHandle)>);

impl Handshakes {
    /// Makes room for a caller from `address`; whether somebody had to go.
    fn make_room(&mut self, address: IpAddr) -> bool {
        let surplus = too_many(self.0.iter().map(|(_, other, _)| *other), address);
        let gone = surplus.and_then(|index| self.0.remove(index));
        gone.inspect(|(_, _, task)| task.abort()).is_some()
    }

    fn done(&mut self, number: u64) {
        self.0.retain(|(other, _, _)| *other != number);
    }
}

/// Who has to go for a caller from `address`, if anybody: the oldest from there, or the oldest of all.
fn too_many(callers: impl ExactSizeIterator<Item = IpAddr> + Clone, address: IpAddr) -> Option<usize> {
    let from_there = callers.clone().filter(|other| *other == address).count();
    if from_there >= limits::HANDSHAKES_PER_ADDRESS_MAX {
        callers.clone().position(|other| other == address)
    } else {
        (callers.len() >= limits::HANDSHAKES_MAX).then_some(0)
    }
}

/// The accepting side: the listener and the connections of all callers.
#[derive(Debug)]
pub(crate) struct Gate {
    shared: Arc<Shared>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    /// Connections of our own over which we offer what we publish, and how many there were.
    offers: (JoinSet<()>, u64),
}

impl Gate {
    /// Hears our publisher, and begins to accept.
    ///
    /// # Errors
    /// The publisher cannot be reached.
    pub(crate) async fn start(
        listener: TcpListener,
        door: Door,
        metrics: Metrics,
        events: mpsc::Sender<NetEvent>,
        feeds: Arc<Feeds>,
        mut publisher: watch::Receiver<PathBuf>,
    ) -> io::Result<Gate> {
        let path = publisher.borrow_and_update().clone();
        let fanout = Fanout::reach(&path).await?.run(publisher.clone(), feeds.clone());
        let (callers, handshakes) = Default::default();
        let shared = Arc::new(Shared { door, metrics, events, feeds, publisher, callers, handshakes });
        let (stop, stopped) = oneshot::channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(fanout);
        let task = tokio::spawn(accept(listener, shared.clone(), tasks, stopped));
        Ok(Gate { shared, stop, task, offers: (JoinSet::new(), 0) })
    }

    /// Offers what we publish to `run`, which hears nobody that it cannot dial, over a connection of our own to `address`.
    pub(crate) fn offer(&mut self, run: Run, address: SocketAddr) {
        let (offers, made) = &mut self.offers;
        while offers.try_join_next().is_some() {}
        if offers.len() < limits::CALLERS_MAX {
            *made += 1;
            // Callers are counted from 0.
            offers.spawn(inbound::offer(u64::MAX - *made, run, address, self.shared.clone()));
        }
    }

    /// Whether it accepts; it ends by itself only if one of its tasks has panicked.
    pub(crate) fn is_alive(&self) -> bool {
        !self.task.is_finished()
    }

    /// Ends the listener and all connections. Dropping the gate does the same, a moment later.
    pub(crate) async fn close(mut self) {
        self.offers.0.shutdown().await;
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

#[cfg(test)]
impl Gate {
    /// Ends its task as a panic would.
    pub(super) fn kill(&self) {
        self.task.abort();
    }
}

/// Serves whoever calls; `tasks` end with it, and it with one that panics.
async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    mut tasks: JoinSet<()>,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut turns = Turns::new();
    let mut pause = limits::ACCEPT_PAUSE.0;
    let mut number = 0;
    loop {
        let has_room = tasks.len() < limits::TASKS_MAX;
        tokio::select! {
            accepted = listener.accept(), if has_room => match accepted {
                Ok((stream, address)) => {
                    pause = limits::ACCEPT_PAUSE.0;
                    if turns.call(stream, canonical(address)) {
                        count(&shared.metrics.cut, "handshakes");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections");
                    count(&shared.metrics.cut, "accept");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        _ = &mut stopped => return tasks.shutdown().await,
                    }
                    pause = (pause * 2).min(limits::ACCEPT_PAUSE.1);
                }
            },
            (stream, address) = turns.next(), if has_room => {
                if lock(&shared.handshakes).make_room(address.ip()) {
                    count(&shared.metrics.cut, "handshakes");
                }
                let task = tasks.spawn(inbound::serve(number, stream, address, shared.clone()));
                lock(&shared.handshakes).0.push_back((number, address.ip(), task));
                number += 1;
            }
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    std::panic::resume_unwind(error.into_panic());
                }
            }
            _ = &mut stopped => return tasks.shutdown().await,
        }
    }
}

/// An IPv4 address that came over an IPv6 socket, as IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => (ip, address.port()).into(),
        IpAddr::V6(_) => address,
    }
}

/// What both ends of a connection want of TCP: small messages at once, and an end when the other host is gone.
fn prepare(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    let keepalive =
        socket2::TcpKeepalive::new().with_time(limits::IDLE / 4).with_interval(limits::IDLE / 8).with_retries(6);
    // A stream that refuses an option still works.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(limits::IDLE));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Epoch;

    fn identity(node: u8, mesh: &str) -> Identity {
        let key = NodeKey::from_bytes(&[node; 32]);
        Identity { run: key.run(Epoch(7)), mesh: mesh.into(), port: 5, key, mesh_keys: None }
    }

    fn judged(ready: &[u8]) -> Result<Peer, Refusal> {
        let head = zmtp::Header::parse(ready).unwrap().unwrap().bytes;
        identity(1, "lab").read(&ready[head..])
    }

    #[test]
    fn peers_are_told_from_strangers() {
        let peer = identity(2, "lab");
        for role in [Role::Sub, Role::Pub] {
            assert_eq!(judged(&peer.ready(role)), Ok(Peer { run: peer.run, port: 5, role }));
        }
        assert_eq!(judged(&identity(1, "lab").ready(Role::Sub)), Err(Refusal::Itself));
        assert_eq!(judged(&identity(1, "lab").ready(Role::Pub)), Err(Refusal::Itself));
        let apart = Refusal::Apart(Apart::Mesh("den".into()), 5, Some(peer.run));
        assert_eq!(judged(&identity(2, "den").ready(Role::Sub)), Err(apart));
        assert_eq!(judged(&identity(2, "<b>").ready(Role::Sub)), Err(Refusal::Stranger));
        assert_eq!(judged(&zmtp::ready(Role::Sub, &[])), Err(Refusal::Stranger));
        let newer = zmtp::ready(Role::Sub, &[("Hubless-Version", "9"), ("Hubless-Port", "5")]);
        assert_eq!(judged(&newer), Err(Refusal::Apart(Apart::Version(9), 5, None)));
    }

    #[tokio::test]
    async fn handshakes_are_bounded_for_each_address_and_in_all() {
        let mut handshakes = Handshakes::default();
        let mut tasks = JoinSet::new();
        for number in 0..1000_u32 {
            let address = IpAddr::from([10, 0, 0, (number % 3) as u8]);
            handshakes.make_room(address);
            let task = tasks.spawn(std::future::pending::<()>());
            handshakes.0.push_back((number.into(), address, task));
        }
        assert_eq!(handshakes.0.len(), 3 * limits::HANDSHAKES_PER_ADDRESS_MAX);
        for number in 0..1000_u32 {
            let address = IpAddr::from([10, 1, (number >> 8) as u8, number as u8]);
            handshakes.make_room(address);
            handshakes.0.push_back((number.into(), address, tasks.spawn(std::future::pending::<()>())));
        }
        assert_eq!(handshakes.0.len(), limits::HANDSHAKES_MAX);
        handshakes.done(999);
        assert_eq!(handshakes.0.len(), limits::HANDSHAKES_MAX - 1);
    }
}
