//! Stock ZeroMQ clients: a PUB port that they subscribe to, a SUB port that they publish to, and publishers to listen to.
//!
//! One frame is `TOPIC TEXT` with one space between; the topic `chat` is the lobby, `chat.ROOM` another room. What comes in
//! may be two frames, too. ZeroMQ acknowledges nothing and names nobody: whatever comes in is said by `guest`, a client that
//! does not keep up is cut, and what is said while nobody is connected is not kept for anybody.
//!
//! The sockets live on a thread of their own, behind the same gate as those between nodes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{GUEST, TOPIC, room};
use crate::error::{PublishError, StartError};
use crate::handle::Handle;
use crate::id::Room;
use crate::metrics::{Metrics, count};
use crate::net::DialError;
use crate::net::folder::Folder;
use crate::net::gate::feed::Feeds;
use crate::net::gate::zmtp::Parts;
use crate::net::gate::{Door, Gate, outbound};
use crate::net::link::Ear;
use crate::net::publisher::{Begun, Publisher};
use crate::replica::batch::{Draft, Payload, Text, Via};

/// Publishers connected to the SUB port at once; one more is hung up on.
const PUBLISHERS_MAX: usize = 256;
/// Messages of a client that are published together.
const TOGETHER_MAX: usize = 256;
/// Pauses between tries to reach a publisher, doubling.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How soon a publish that the disk refused is tried again. Meanwhile the client is not read.
const DISK_AGAIN: Duration = Duration::from_millis(500);

/// What to open for stock clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Where subscribers connect to; port 0 is any.
    pub publish: Option<SocketAddr>,
    /// Where publishers connect to; port 0 is any.
    pub collect: Option<SocketAddr>,
    /// Publishers to connect to.
    pub hear: Vec<SocketAddr>,
    /// Whether clients of this node hear each other.
    pub relay: bool,
}

/// The ports for stock clients. They keep the node running as any handle does, and end with it.
///
/// Dropping this closes them in the background; [`Plain::close`] waits for that.
#[derive(Debug)]
pub struct Plain {
    publish: Option<SocketAddr>,
    collect: Option<SocketAddr>,
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
}

impl Plain {
    /// Opens them.
    ///
    /// # Errors
    /// [`StartError::Bind`] or [`StartError::System`]; nothing is left open.
    pub async fn start(handle: Handle, options: Options) -> Result<Plain, StartError> {
        let ((started, start), (stop, stopped), (end, ended)) =
            (oneshot::channel(), oneshot::channel(), oneshot::channel());
        let system = |what| move |source| StartError::System { what, source };
        let thread = std::thread::Builder::new().name("hubless-plain".into());
        let spawned = thread.spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(source) => return drop(started.send(Err(system("no runtime for plain clients")(source)))),
            };
            runtime.block_on(async move {
                match Ports::open(handle, options).await {
                    Ok(ports) => {
                        let _ = started.send(Ok((ports.publish, ports.collect)));
                        ports.serve(stopped).await;
                    }
                    Err(error) => drop(started.send(Err(error))),
                }
            });
            drop(end);
        });
        spawned.map_err(system("no thread for plain clients"))?;
        let died = || system("the thread for plain clients")(std::io::Error::other("it died at its start"));
        let (publish, collect) = start.await.unwrap_or_else(|_| Err(died()))?;
        Ok(Plain { publish, collect, stop, ended })
    }

    /// Where subscribers connect to, with the real port.
    pub fn publish(&self) -> Option<SocketAddr> {
        self.publish
    }

    /// Where publishers connect to, with the real port.
    pub fn collect(&self) -> Option<SocketAddr> {
        self.collect
    }

    /// Closes all of it.
    pub async fn close(self) {
        let _ = self.stop.send(());
        let _ = self.ended.await;
    }
}

/// What is open.
struct Ports {
    publish: Option<SocketAddr>,
    collect: Option<SocketAddr>,
    tasks: JoinSet<()>,
}

impl Ports {
    async fn open(handle: Handle, options: Options) -> Result<Ports, StartError> {
        let bind = async |address: SocketAddr| {
            let listener = TcpListener::bind(address).await;
            let listener = listener.map_err(|source| StartError::Bind { address: address.to_string(), source })?;
            let real =
                listener.local_addr().map_err(|source| StartError::Bind { address: address.to_string(), source })?;
            Ok::<_, StartError>((listener, real))
        };
        let system = |source| StartError::System { what: "a private socket for plain clients", source };
        let folder = Arc::new(Folder::make().map_err(system)?);
        let metrics = handle.metrics().clone();
        let mut ports = Ports { publish: None, collect: None, tasks: JoinSet::new() };
        if let Some(address) = options.publish {
            let (listener, address) = bind(address).await?;
            let feeds = Arc::new(Feeds::new());
            let publisher =
                Publisher::make(Begun::new(), folder.clone(), metrics.clone(), feeds.clone()).await.map_err(system)?;
            // Nobody is told of stock clients that come and go.
            let (events, _) = mpsc::channel(1);
            let gate = Gate::start(listener, Door::Plain, metrics.clone(), events, feeds, publisher.path());
            let gate = gate.await.map_err(system)?;
            ports.publish = Some(address);
            ports.tasks.spawn(speak(handle.clone(), publisher, gate, options.relay));
        }
        let ears = Arc::new(Ears { handle, folder, metrics, made: AtomicU64::new(0) });
        if let Some(address) = options.collect {
            let (listener, address) = bind(address).await?;
            ports.collect = Some(address);
            ports.tasks.spawn(ears.clone().collect(listener));
        }
        for address in options.hear {
            ports.tasks.spawn(ears.clone().hear(address));
        }
        Ok(ports)
    }

    /// Serves until it is told to stop, or the node has.
    async fn serve(mut self, stopped: oneshot::Receiver<()>) {
        tokio::select! {
            _ = stopped => {}
            _ = self.tasks.join_next() => {}
        }
        self.tasks.shutdown().await;
    }
}

/// Says to subscribers what is said in the mesh. It never waits for one of them: who is too slow is cut by the gate.
async fn speak(handle: Handle, mut publisher: Publisher, _gate: Gate, relay: bool) {
    let me = handle.info().run.node;
    let Ok(mut heard) = handle.subscribe_prefix("").await else { return };
    while let Some(message) = heard.message().await {
        let own = message.via == Via::Plain && message.id.run.node == me;
        if let Some(text) = message.payload.text().filter(|_| relay || !own) {
            publisher.send_frame(frame(&message.room, text)).await;
        }
    }
}

/// What listens to stock publishers.
struct Ears {
    handle: Handle,
    folder: Arc<Folder>,
    metrics: Metrics,
    /// Sockets made so far; names the next one.
    made: AtomicU64,
}

impl Ears {
    /// Lets publishers connect.
    async fn collect(self: Arc<Ears>, listener: TcpListener) {
        let room = Arc::new(Semaphore::new(PUBLISHERS_MAX));
        let mut tasks = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = tasks.join_next() => continue,
            };
            match (accepted, room.clone().try_acquire_owned()) {
                (Ok((tcp, from)), Ok(place)) => {
                    let ears = self.clone();
                    tasks.spawn(async move {
                        if let Err(error) = ears.listen(tcp).await {
                            tracing::debug!(%from, %error, "a plain client is no publisher");
                            count(&ears.metrics.cut, "stranger");
                        }
                        drop(place);
                    });
                }
                (Ok(_), Err(_)) => count(&self.metrics.cut, "callers"),
                (Err(error), _) => {
                    tracing::warn!(%error, "cannot accept plain clients");
                    sleep(BACK_OFF.0).await;
                }
            }
        }
    }

    /// Listens to the publisher at `address`, again and again.
    async fn hear(self: Arc<Ears>, address: SocketAddr) {
        let (mut pause, mut told) = (BACK_OFF.0, false);
        loop {
            let heard = match outbound::connect(address).await {
                Ok(tcp) => self.listen(tcp).await,
                Err(error) => Err(error),
            };
            match heard {
                Ok(()) => {
                    tracing::info!(%address, "a plain publisher has hung up; it is called again");
                    (pause, told) = (BACK_OFF.0, false);
                }
                Err(error) if !told => {
                    tracing::warn!(%address, %error, "a plain publisher does not answer; it is called again and again");
                    told = true;
                }
                Err(_) => {}
            }
            sleep(pause).await;
            pause = (pause * 2).min(BACK_OFF.1);
        }
    }

    /// Publishes what comes over this connection, until it ends.
    async fn listen(&self, tcp: TcpStream) -> Result<(), DialError> {
        let line = outbound::meet_stock(tcp).await?;
        let path = self.folder.socket('t', self.made.fetch_add(1, Relaxed));
        let ear = Ear::over(line, path, &[TOPIC], None, self.metrics.clone()).await;
        let mut ear = ear.map_err(|error| {
            tracing::warn!(%error, "a socket of our own does not connect");
            DialError::Unreachable
        })?;
        while let Some(first) = ear.next().await {
            let mut drafts = Vec::new();
            self.take(&mut drafts, first);
            while drafts.len() < TOGETHER_MAX
                && let Some(Some(next)) = ear.next().now_or_never()
            {
                self.take(&mut drafts, next);
            }
            self.publish(drafts).await;
        }
        Ok(())
    }

    fn take(&self, drafts: &mut Vec<Draft>, message: Parts) {
        match draft(&message.first, message.second) {
            Ok(draft) => drafts.extend(draft),
            Err(reason) => count(&self.metrics.malformed, reason),
        }
    }

    /// Waits while the disk takes nothing: the client is held back meanwhile, by TCP.
    async fn publish(&self, drafts: Vec<Draft>) {
        while !drafts.is_empty() {
            match self.handle.publish_all(drafts.clone()).await {
                Err(PublishError::DiskFull | PublishError::DiskFailing) => sleep(DISK_AGAIN).await,
                Err(error) => {
                    tracing::debug!(%error, "what a plain client said is not published");
                    return count(&self.metrics.malformed, "length");
                }
                Ok(_) => return,
            }
        }
    }
}

/// A message as stock clients get it.
fn frame(room: &Room, text: &str) -> Bytes {
    let mut frame = BytesMut::with_capacity(TOPIC.len() + room.as_str().len() + text.len() + 2);
    frame.put_slice(TOPIC.as_bytes());
    if *room != Room::lobby() {
        frame.put_u8(b'.');
        frame.put_slice(room.as_str().as_bytes());
    }
    frame.put_u8(b' ');
    frame.put_slice(text.as_bytes());
    frame.freeze()
}

/// What a client said, in one frame or two; none if that is nothing.
fn draft(first: &Bytes, second: Option<Bytes>) -> Result<Option<Draft>, &'static str> {
    let (topic, text) = match second {
        Some(text) => (&first[..], text),
        None => {
            let space = first.iter().position(|byte| *byte == b' ').ok_or("body")?;
            (&first[..space], first.slice(space + 1..))
        }
    };
    let topic = std::str::from_utf8(topic).map_err(|_| "topic")?;
    let room = room(topic).ok_or("topic")?;
    let text = Payload::from(Text::try_from(text).map_err(|_| "body")?);
    if text.is_empty() {
        return Ok(None);
    }
    if text.len() > crate::PAYLOAD_BYTES_MAX {
        return Err("length");
    }
    Ok(Some(Draft { name: Some(GUEST.into()), via: Via::Plain, ..Draft::new(room, text) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(frames: &[&[u8]]) -> Result<Option<(String, String)>, &'static str> {
        let text = |draft: Draft| (draft.room.to_string(), draft.payload.text().unwrap().to_string());
        let frame = |at: usize| frames.get(at).map(|frame| Bytes::copy_from_slice(frame));
        draft(&frame(0).unwrap(), frame(1)).map(|draft| draft.map(text))
    }

    #[test]
    fn all_words_are_kept_and_topics_are_whole() {
        let ok = |room: &str, text: &str| Ok(Some((room.to_string(), text.to_string())));
        assert_eq!(said(&[b"chat hello big world"]), ok("lobby", "hello big world"));
        assert_eq!(said(&[b"chat  two spaces "]), ok("lobby", " two spaces "));
        assert_eq!(said(&["chat.nodejs zażółć 🦀".as_bytes()]), ok("nodejs", "zażółć 🦀"));
        assert_eq!(said(&[b"chat", b"in two frames"]), ok("lobby", "in two frames"));
        assert_eq!(said(&[b"chat.lobby x"]), ok("lobby", "x"));
        assert_eq!(said(&[b"chat "]), Ok(None));
        for (frames, reason) in [
            (&[&b"chatter hi"[..]][..], "topic"),
            (&[b"chat. hi"], "topic"),
            (&[b"chat.A hi"], "topic"),
            (&[b"weather hi"], "topic"),
            (&[b"chat"], "body"),
            (&[b"chat \xff"], "body"),
        ] {
            assert_eq!(said(frames), Err(reason), "{frames:?}");
        }
        assert_eq!(said(&[&[b"chat ", &[b'x'; 256 * 1024 + 1][..]].concat()]), Err("length"));
    }

    #[test]
    fn what_goes_out_comes_in_again() {
        for (room, text) in [("lobby", "hello big world"), ("node.js", "x y")] {
            let frame = frame(&Room::new(room).unwrap(), text);
            assert_eq!(said(&[&frame]), Ok(Some((room.into(), text.into()))));
        }
    }
}
