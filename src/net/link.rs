//! A peer heard: one dial, one SUB socket, one task, from the dial to the end.
//!
//! The task owns the connection and tells what happens by events; it waits while the node does not take them, and so holds
//! the peer back. Nothing is reconnected: a link that has ended is dialled anew by the node, as another link.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt, StreamExt};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use zeromq::{Socket, SocketEvent, SocketRecv, SubSocket};

use super::folder::{Folder, endpoint};
use super::gate::claims::Claims;
use super::gate::line::Line;
use super::gate::zmtp::Parts;
use super::gate::{Identity, limits, outbound};
use super::{DialError, LinkId, NetEvent, Task};
use crate::aside::Aside;
use crate::id::Run;
use crate::metrics::{Metrics, count};
use crate::replica::batch::BatchError;
use crate::replica::message::Message;
use crate::wire::{self, TOPIC_CHAT, TOPIC_MESH, WireError};

/// Messages, and bytes, that another thread decodes at a time; one more may pass the bytes.
const JOB_MAX: (usize, usize) = (8, 256 * 1024);
/// Messages that say how somebody fares are decoded in less time than another thread is woken, if they have no more bytes.
const LIGHT_MAX: usize = 1024;
/// No repair, in which signatures are to be checked, is as short.
const BARE_MAX: usize = 128;
/// How many times so much is under way; beyond, the peer is held back.
const JOBS_MAX: usize = 6;

/// What a link needs of its node.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) identity: Identity,
    pub(crate) folder: Arc<Folder>,
    pub(crate) metrics: Metrics,
    pub(crate) events: mpsc::Sender<NetEvent>,
    pub(crate) aside: Aside,
}

/// Dials `address` and hears whoever is there until the peer ends or `hang_up` does.
///
/// Then: hung up before it was up, it ends without a word; else with [`NetEvent::LinkDown`] after all that was heard.
pub(crate) async fn hear(link: LinkId, address: SocketAddr, around: Surroundings, mut hang_up: oneshot::Receiver<()>) {
    let opened = tokio::select! {
        opened = Ear::open(link, address, &around) => opened,
        _ = &mut hang_up => return,
    };
    attend(link, address, opened, around, hang_up).await;
}

/// As [`hear`], over a line that `run` has opened.
pub(crate) async fn hear_over(
    link: LinkId,
    line: Line,
    run: Run,
    address: SocketAddr,
    around: Surroundings,
    mut hang_up: oneshot::Receiver<()>,
) {
    let opened = tokio::select! {
        opened = Ear::of_peer(link, line, run, &around) => opened,
        _ = &mut hang_up => return,
    };
    attend(link, address, opened, around, hang_up).await;
}

/// Tells what is heard, until the peer ends or `hang_up` does.
async fn attend(
    link: LinkId,
    address: SocketAddr,
    opened: Result<(Ear, Run), DialError>,
    around: Surroundings,
    hang_up: oneshot::Receiver<()>,
) {
    let Surroundings { identity, metrics, events, aside, .. } = around;
    let (mut ear, run) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            count(&metrics.dials_failed, error.word());
            let _ = events.send(NetEvent::DialFailed { link, address, error }).await;
            return;
        }
    };
    let topic_own: Arc<str> = wire::topic_to(identity.run).into();
    let hears = async {
        let _ = events.send(NetEvent::LinkUp { link, run, address }).await;
        let mut reader =
            Reader { aside, topic_own, under_way: FuturesOrdered::new(), done: VecDeque::new(), ended: false };
        while let Some(message) = reader.next(&mut ear).await {
            match message {
                Ok(message) => drop(events.send(NetEvent::Message { link, run, message }).await),
                Err(error) => {
                    count(&metrics.malformed, error.word());
                    if error == WireError::Batch(BatchError::Signature) {
                        tracing::warn!(?run, "a peer says what its author never signed, and was cut");
                        break;
                    }
                }
            }
        }
    };
    tokio::select! {
        () = hears => {}
        _ = hang_up => {}
    }
    // The socket before the word: whoever hears it may dial the peer again.
    drop(ear);
    let _ = events.send(NetEvent::LinkDown { link, run }).await;
}

/// Decodes what an ear hears, in order: a short message that comes alone at once, what is long or comes faster on other
/// threads, since to check who signed a batch takes longer than all the rest, and this thread has others to serve.
struct Reader {
    aside: Aside,
    topic_own: Arc<str>,
    under_way: FuturesOrdered<BoxFuture<'static, Vec<Result<Message, WireError>>>>,
    /// What was decoded and not given yet.
    done: VecDeque<Result<Message, WireError>>,
    /// The ear has heard its last.
    ended: bool,
}

impl Reader {
    /// The next message; none once the ear has none. Cancel safe.
    async fn next(&mut self, ear: &mut Ear) -> Option<Result<Message, WireError>> {
        loop {
            if let Some(message) = self.done.pop_front() {
                return Some(message);
            }
            if self.ended && self.under_way.is_empty() {
                return None;
            }
            tokio::select! {
                biased;
                Some(done) = self.under_way.next() => self.done.extend(done),
                message = ear.next(), if !self.ended && self.under_way.len() < JOBS_MAX => match message {
                    None => self.ended = true,
                    Some(first) => self.take(first, ear),
                },
            }
        }
    }

    fn take(&mut self, first: Parts, ear: &mut Ear) {
        // A repair may hold hundreds of batches, and is work enough for one thread.
        let long = |message: &Parts| message.first.starts_with(b"to.") && message.len() > BARE_MAX;
        let (mut messages, mut bytes) = (vec![first], 0);
        while messages.len() < JOB_MAX.0 && !messages.last().is_some_and(long) {
            bytes += messages.last().map_or(0, Parts::len);
            if bytes >= JOB_MAX.1 {
                break;
            }
            match ear.next().now_or_never() {
                None => break,
                Some(None) => {
                    self.ended = true;
                    break;
                }
                Some(Some(message)) => messages.push(message),
            }
        }
        let short = messages.len() == 1 && bytes < JOB_MAX.1 && !messages.iter().any(long);
        let signed = |message: &Parts| message.first == TOPIC_CHAT || long(message);
        let light = messages.iter().map(Parts::len).sum::<usize>() <= LIGHT_MAX && !messages.iter().any(signed);
        if (short || light) && self.under_way.is_empty() {
            self.done.extend(messages.into_iter().map(|message| read(message, &self.topic_own)));
            return;
        }
        let (aside, topic_own) = (self.aside.clone(), self.topic_own.clone());
        self.under_way.push_back(
            async move {
                let read = move || messages.into_iter().map(|message| read(message, &topic_own)).collect();
                // A panic there is one of ours: the link ends, as with any peer that is not understood.
                aside.run(read).await.unwrap_or_default()
            }
            .boxed(),
        );
    }
}

fn read(message: Parts, topic_own: &str) -> Result<Message, WireError> {
    let Parts { first: topic, second: Some(body) } = message else { return Err(WireError::Topic) };
    if topic.starts_with(b"to.") && topic != topic_own.as_bytes() {
        return Err(WireError::Topic);
    }
    wire::decode(&topic, &body)
}

/// A SUB socket connected to one peer.
pub(crate) struct Ear {
    socket: SubSocket,
    ended: futures_util::stream::BoxStream<'static, SocketEvent>,
    /// What the relay has left for the tickets that the socket gives.
    claims: Arc<Claims>,
    _relay: Task,
}

impl Ear {
    async fn open(link: LinkId, address: SocketAddr, around: &Surroundings) -> Result<(Ear, Run), DialError> {
        let (line, peer) = outbound::dial(address, &around.identity).await?;
        Ear::of_peer(link, line, peer.run, around).await
    }

    async fn of_peer(link: LinkId, line: Line, run: Run, around: &Surroundings) -> Result<(Ear, Run), DialError> {
        match timeout(limits::HANDSHAKE, Ear::connect(link, line, around)).await {
            Ok(Ok(ear)) => return Ok((ear, run)),
            Ok(Err(error)) => tracing::warn!(%error, "a socket of our own does not connect"),
            Err(_) => tracing::warn!("a socket of our own does not connect in time"),
        }
        Err(DialError::Unreachable)
    }

    async fn connect(link: LinkId, line: Line, around: &Surroundings) -> Result<Ear, zeromq::ZmqError> {
        let topics = [TOPIC_CHAT, TOPIC_MESH, &wire::topic_to(around.identity.run)];
        let path = around.folder.socket('s', link.0);
        Ear::over(line, path, &topics, Some(limits::IDLE), around.metrics.clone()).await
    }

    /// Subscribes `topics` of whoever is at the other end of `line`, through a socket at `path`. Without `idle` it may be
    /// silent for ever.
    pub(crate) async fn over(
        line: Line,
        path: PathBuf,
        topics: &[&str],
        idle: Option<Duration>,
        metrics: Metrics,
    ) -> Result<Ear, zeromq::ZmqError> {
        let claims = Arc::new(Claims::default());
        let relay = outbound::relay(line, UnixListener::bind(&path)?, path.clone(), claims.clone(), idle, metrics);
        let relay = Task::spawn(relay);
        let mut socket = SubSocket::new();
        let ended = socket.monitor().boxed();
        for topic in topics {
            socket.subscribe(topic).await?;
        }
        socket.connect(&endpoint(&path)).await?;
        Ok(Ear { socket, ended, claims, _relay: relay })
    }

    /// The next message; none once the peer has ended and all that it sent was given. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Parts> {
        loop {
            tokio::select! {
                // The socket finds the end of its only connection behind the last message, says so here, and would wait.
                biased;
                ticket = self.socket.recv() => return self.claims.claim(ticket.ok()?.get(0)?),
                event = self.ended.next() => match event {
                    Some(SocketEvent::Disconnected(_)) | None => return None,
                    Some(_) => {}
                },
            }
        }
    }
}
