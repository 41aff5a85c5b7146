//! A caller: a peer that has connected to hear our publisher.
//!
//! Owns its TCP connection and a Unix connection to the publisher. It takes whatever the publisher gives at once, whether
//! or not the caller keeps up, into a queue bounded in bytes; a caller beyond the bound is cut. From the caller only
//! subscriptions and PING get in.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout};

use super::feed::{Feed, Front, MARK_BYTES, mark_subscription};
use super::line::{self, Line};
use super::outbound::connect;
use super::queue::{Intake, Queue};
use super::zmtp::{self, Broken, Command, Header, Piece, Role, Walker};
use super::{Door, Peer, Refusal, ShakeError, Shared, is_stock, limits, lock, prepare, shake};
use crate::id::Run;
use crate::metrics::count;
use crate::net::NetEvent;
use crate::wire::TOPIC_CHAT;

/// Serves a caller from its first byte to the end.
pub(super) async fn serve(number: u64, tcp: TcpStream, address: SocketAddr, shared: Arc<Shared>) {
    let handshake = Handshake { number, shared: &shared };
    prepare(&tcp);
    let cut = |reason| count(&shared.metrics.cut, reason);
    let (line, peer) = match timeout(limits::HANDSHAKE, shake_hands(tcp, &shared.door)).await {
        Ok(Ok(Ok(let_in))) => let_in,
        Ok(Ok(Err(Refusal::Stranger))) => return cut("stranger"),
        Ok(Ok(Err(Refusal::Itself))) => return cut("itself"),
        Ok(Ok(Err(Refusal::Name))) => return cut("name"),
        Ok(Ok(Err(Refusal::Apart(reason, port, run)))) => {
            cut("apart");
            let _ = shared.events.send(NetEvent::Apart { address: at_port(address, port), run, reason }).await;
            return;
        }
        Ok(Err(ShakeError::Broken(Broken::Sealed))) => return cut("key"),
        Ok(Err(ShakeError::Broken(broken))) => {
            tracing::debug!(%broken, "a caller that speaks another protocol");
            return cut("stranger");
        }
        // Also who only looked whether somebody listens.
        Ok(Err(ShakeError::Gone)) => return,
        Err(_) => return cut("handshake"),
    };
    drop(handshake);
    if let Some(Peer { run, port, role: Role::Pub }) = peer {
        // It cannot be dialled, and offers what it publishes over this one.
        let offered = NetEvent::Offered { run, address: at_port(address, port), line: line.into() };
        let _ = shared.events.send(offered).await;
        return;
    }
    feed(number, line, peer, address, &shared).await;
}

/// Connects to `run` at `address`, and gives it what we publish.
pub(super) async fn offer(number: u64, run: Run, address: SocketAddr, shared: Arc<Shared>) {
    let Door::Mesh(identity) = &shared.door else { return };
    let hands = async {
        let tcp = connect(address).await.map_err(|_| ShakeError::Gone)?;
        prepare(&tcp);
        let mut line = Line::shake(tcp, line::End::Caller, identity.mesh_keys.as_ref(), &identity.key).await?;
        let ready = shake(&mut line, &identity.ready(Role::Pub)).await?;
        Ok::<_, ShakeError>(identity.judge(&line, &ready).ok().map(|peer| (line, peer)))
    };
    if let Ok(Ok(Some((line, peer)))) = timeout(limits::HANDSHAKE, hands).await
        && peer.run == run
    {
        feed(number, line, Some(peer), address, &shared).await;
    }
}

/// Gives what our publisher says to whoever is at the other end of `line`, until either ends.
async fn feed(number: u64, line: Line, peer: Option<Peer>, address: SocketAddr, shared: &Shared) {
    let cut = |reason| count(&shared.metrics.cut, reason);
    if shared.feeds.count() >= limits::CALLERS_MAX {
        return cut("callers");
    }
    let mut path = shared.publisher.clone();
    let from = path.borrow_and_update().clone();
    let Ok(Ok(publisher)) = timeout(limits::HANDSHAKE, reach(&from)).await else {
        tracing::warn!("the publisher does not answer");
        return cut("publisher");
    };
    let feed = shared.feeds.enter(number);
    let mut caller = Caller {
        shared,
        line,
        publisher,
        number,
        feed,
        outgoing: Intake::new(),
        walker: Walker::default(),
        queue: Queue::default(),
        pong: None,
        incoming: Intake::new(),
        wishes: Queue::default(),
        topics: Vec::new(),
    };
    caller.wishes.push(mark_subscription());
    if let Some(peer) = peer {
        *lock(&shared.callers).entry(peer.run).or_default() += 1;
    }
    // The node may be slow to take the news; what comes out of the publisher is taken anyhow.
    let mut tell = pin!(async {
        if let Some(peer) = peer {
            let called = NetEvent::Called { run: peer.run, address: at_port(address, peer.port) };
            let _ = shared.events.send(called).await;
        }
    });
    let (end, told) = {
        let relay = async {
            tokio::select! {
                end = caller.relay() => end,
                _ = path.changed() => End::Restart,
            }
        };
        let mut relay = pin!(relay);
        tokio::select! {
            end = &mut relay => (end, false),
            _ = &mut tell => (relay.await, true),
        }
    };
    let dropped = caller.queue.bytes() as u64;
    drop(caller);
    if !told {
        tell.await;
    }
    match end {
        End::Gone => {}
        End::Restart => cut("publisher"),
        End::Idle => cut("idle"),
        End::Broken(broken) => {
            cut("malformed");
            count(&shared.metrics.malformed, broken.word());
        }
        End::Slow => {
            cut("slow");
            shared.metrics.dropped_bytes.inc_by(dropped);
            if let Some(Peer { run, .. }) = peer {
                shared.feeds.drop_bytes(run, dropped);
                let _ = shared.events.send(NetEvent::Cut { run, bytes: dropped }).await;
            }
        }
    }
    let Some(Peer { run, .. }) = peer else { return };
    let last = {
        let mut callers = lock(&shared.callers);
        let connections = callers.entry(run).or_default();
        *connections = connections.saturating_sub(1);
        let last = *connections == 0;
        if last {
            callers.remove(&run);
        }
        last
    };
    if last {
        let _ = shared.events.send(NetEvent::Left { run }).await;
    }
}

/// Whom the other end turns out to be: a peer, at the door of the mesh.
async fn shake_hands(tcp: TcpStream, door: &Door) -> Result<Result<(Line, Option<Peer>), Refusal>, ShakeError> {
    match door {
        Door::Mesh(identity) => {
            let mut line = Line::shake(tcp, line::End::Called, identity.mesh_keys.as_ref(), &identity.key).await?;
            let ready = shake(&mut line, &identity.ready(Role::Pub)).await?;
            Ok(identity.judge(&line, &ready).map(|peer| (line, Some(peer))))
        }
        Door::Plain => {
            let mut line = Line::bare(tcp);
            let ready = shake(&mut line, &zmtp::ready(Role::Pub, &[])).await?;
            Ok(if is_stock(Role::Sub, &ready) { Ok((line, None)) } else { Err(Refusal::Stranger) })
        }
    }
}

fn at_port(mut address: SocketAddr, port: u16) -> SocketAddr {
    address.set_port(port);
    address
}

/// Counts a caller as in handshake until it is dropped, however that comes about.
struct Handshake<'a> {
    number: u64,
    shared: &'a Shared,
}

impl Drop for Handshake<'_> {
    fn drop(&mut self) {
        lock(&self.shared.handshakes).done(self.number);
    }
}

/// A connection to our publisher, as a SUB.
async fn reach(path: &std::path::Path) -> Result<UnixStream, ShakeError> {
    let mut stream = UnixStream::connect(path).await?;
    shake(&mut stream, &zmtp::ready(Role::Sub, &[])).await?;
    Ok(stream)
}

/// Why a caller's connection ended.
enum End {
    /// One of the two sockets was closed.
    Gone,
    /// Our publisher was made anew.
    Restart,
    /// It took nothing for too long.
    Idle,
    /// Too much was queued for it.
    Slow,
    Broken(Broken),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> End {
        match error.kind() {
            io::ErrorKind::InvalidData => End::Broken(Broken::Sealed),
            _ => End::Gone,
        }
    }
}

impl From<Broken> for End {
    fn from(broken: Broken) -> End {
        End::Broken(broken)
    }
}

struct Caller<'a> {
    shared: &'a Shared,
    line: Line,
    publisher: UnixStream,
    number: u64,
    feed: Arc<Feed>,
    /// From the publisher.
    outgoing: Intake,
    walker: Walker,
    /// To the caller.
    queue: Queue,
    /// To be sent at the next border between messages.
    pong: Option<Bytes>,
    /// From the caller.
    incoming: Intake,
    /// To the publisher.
    wishes: Queue,
    /// What it subscribes.
    topics: Vec<Bytes>,
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        self.shared.feeds.leave(self.number);
    }
}

impl Caller<'_> {
    /// Relays until the end.
    async fn relay(&mut self) -> End {
        let mut moved = Instant::now();
        loop {
            // A busy connection must let others have their turn.
            tokio::task::consume_budget().await;
            let done = tokio::select! {
                ready = self.publisher.readable() => ready.map_err(End::from).and_then(|()| self.take()),
                ready = self.line.writable(), if !self.queue.is_empty() || self.line.is_pending() => ready.map_err(End::from),
                ready = self.line.readable(), if self.wishes.bytes() < limits::COMMAND_BYTES_MAX => {
                    ready.map_err(End::from).and_then(|()| self.hear())
                }
                ready = self.publisher.writable(), if !self.wishes.is_empty() => ready.map_err(End::from),
                () = tokio::time::sleep_until(moved + limits::IDLE), if !self.queue.is_empty() => Err(End::Idle),
            };
            let waited = self.queue.bytes();
            match done.and_then(|()| self.give()) {
                Ok(bytes) if bytes > 0 || waited == 0 => moved = Instant::now(),
                Ok(_) => {}
                Err(end) => return end,
            }
        }
    }

    /// Takes what the publisher has.
    fn take(&mut self) -> Result<(), End> {
        let Caller { publisher, outgoing, .. } = self;
        if outgoing.read(|bytes| publisher.try_read_buf(bytes))? == Some(0) {
            return Err(End::Gone);
        }
        let mut at = 0;
        loop {
            let bytes = &mut self.outgoing.bytes;
            if self.walker.at_border() {
                if let Some(pong) = self.pong.take() {
                    self.queue.push(bytes.split_to(at).freeze());
                    self.queue.push(pong);
                    at = 0;
                }
                match Front::of(&bytes[at..]) {
                    Front::Mark(sent) => {
                        self.queue.push(bytes.split_to(at).freeze());
                        bytes.advance(MARK_BYTES);
                        at = 0;
                        self.shared.feeds.seen(&self.feed, sent);
                        continue;
                    }
                    Front::Part => break,
                    Front::Other => {}
                }
            }
            match self.walker.step(&bytes[at..])? {
                Some(Piece::Message(bytes)) => at += bytes,
                Some(Piece::Command(..)) => return Err(Broken::Command.into()),
                None => break,
            }
        }
        self.queue.push(self.outgoing.bytes.split_to(at).freeze());
        Ok(())
    }

    /// Writes what can be written, both ways; gives the bytes that the caller took.
    fn give(&mut self) -> Result<usize, End> {
        if self.walker.at_border()
            && let Some(pong) = self.pong.take()
        {
            self.queue.push(pong);
        }
        let Caller { line, publisher, .. } = self;
        line.push()?;
        let bytes = self.queue.write(|slices| line.try_write_vectored(slices))?;
        self.wishes.write(|slices| publisher.try_write_vectored(slices))?;
        self.shared.feeds.took(&self.feed, bytes);
        match self.shared.feeds.queued(&self.feed, self.queue.bytes()) {
            true => Err(End::Slow),
            false => Ok(bytes),
        }
    }

    /// Reads what the caller wants.
    fn hear(&mut self) -> Result<(), End> {
        let Caller { line, incoming, .. } = self;
        if incoming.read(|bytes| line.try_read_buf(bytes))? == Some(0) {
            return Err(End::Gone);
        }
        while let Some(header) = Header::parse(&self.incoming.bytes)? {
            if !header.command && (header.more || header.len > 1 + limits::SUBSCRIPTION_BYTES_MAX) {
                return Err(Broken::Subscription.into());
            }
            if self.incoming.bytes.len() < header.bytes + header.len {
                break;
            }
            self.incoming.bytes.advance(header.bytes);
            let body = self.incoming.bytes.split_to(header.len).freeze();
            if header.command {
                match Command::parse(&body)? {
                    Command::Subscribe(topic) => self.want(true, body.slice_ref(topic))?,
                    Command::Cancel(topic) => self.want(false, body.slice_ref(topic))?,
                    Command::Ping(context) => self.pong = Some(zmtp::pong(context)),
                    Command::Pong => {}
                }
            } else {
                match body.first() {
                    Some(wanted @ (0 | 1)) => self.want(*wanted == 1, body.slice(1..))?,
                    _ => return Err(Broken::Subscription.into()),
                }
            }
        }
        Ok(())
    }

    /// Passes a subscription on. Each topic counts once, however often it is asked for.
    fn want(&mut self, wanted: bool, topic: Bytes) -> Result<(), Broken> {
        if topic.len() > limits::SUBSCRIPTION_BYTES_MAX {
            return Err(Broken::Subscription);
        }
        match (wanted, self.topics.iter().position(|other| *other == topic)) {
            (true, None) if self.topics.len() >= limits::SUBSCRIPTIONS_MAX => return Err(Broken::Subscription),
            // Copied: a slice would hold the whole block it was read in.
            (true, None) => self.topics.push(Bytes::copy_from_slice(&topic)),
            (false, Some(index)) => drop(self.topics.swap_remove(index)),
            _ => return Ok(()),
        }
        self.wishes.push(zmtp::subscription(wanted, &topic));
        let entries = self.topics.iter().any(|topic| TOPIC_CHAT.as_bytes().starts_with(topic));
        self.shared.feeds.subscribed(&self.feed, entries);
        Ok(())
    }
}
