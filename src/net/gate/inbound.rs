//! A caller: a peer that has connected to hear our publisher.
//!
//! Owns its TCP connection and its [`Feed`], a queue that the fan-out fills, bounded in bytes; a caller beyond the bound is
//! cut. From the caller only subscriptions and PING are taken.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use bytes::Buf;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::feed::Feed;
use super::line::{self, Line};
use super::outbound::connect;
use super::queue::Intake;
use super::zmtp::{self, Broken, Command, Header, Role};
use super::{Door, Peer, Refusal, ShakeError, Shared, is_stock, limits, lock, prepare, shake};
use crate::id::Run;
use crate::metrics::count;
use crate::net::NetEvent;

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
    let mut publisher = shared.publisher.clone();
    publisher.mark_unchanged();
    let feed = shared.feeds.enter(number);
    let mut caller = Caller { shared, line, number, feed, incoming: Intake::new() };
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
                _ = publisher.changed() => End::Restart,
            }
        };
        let mut relay = pin!(relay);
        tokio::select! {
            end = &mut relay => (end, false),
            _ = &mut tell => (relay.await, true),
        }
    };
    let dropped = caller.feed.cut().unwrap_or_default() as u64;
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
    number: u64,
    /// What it subscribes, and what is to be written to it.
    feed: Arc<Feed>,
    /// From the caller.
    incoming: Intake,
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
            let waits = self.feed.bytes() > 0;
            let done = tokio::select! {
                () = self.feed.ready() => if self.feed.cut().is_some() { Err(End::Slow) } else { Ok(()) },
                ready = self.line.writable(), if waits || self.line.is_pending() => ready.map_err(End::from),
                ready = self.line.readable() => ready.map_err(End::from).and_then(|()| self.hear()),
                () = tokio::time::sleep_until(moved + limits::IDLE), if waits => Err(End::Idle),
            };
            match done.and_then(|()| self.give()) {
                Ok(bytes) if bytes > 0 || !waits => moved = Instant::now(),
                Ok(_) => {}
                Err(end) => return end,
            }
        }
    }

    /// Writes what can be written; gives the bytes that the caller took.
    fn give(&mut self) -> Result<usize, End> {
        let Caller { shared, line, feed, .. } = self;
        line.push()?;
        Ok(shared.feeds.take(feed, |slices| line.try_write_vectored(slices))?)
    }

    /// Reads what the caller wants.
    fn hear(&mut self) -> Result<(), End> {
        let Caller { shared: Shared { feeds, .. }, line, feed, incoming, .. } = self;
        if incoming.read(|bytes| line.try_read_buf(bytes))? == Some(0) {
            return Err(End::Gone);
        }
        let bytes = &mut incoming.bytes;
        while let Some(header) = Header::parse(bytes)? {
            if !header.command && (header.more || header.len > 1 + limits::SUBSCRIPTION_BYTES_MAX) {
                return Err(Broken::Subscription.into());
            }
            let Some(body) = bytes.get(header.bytes..header.bytes + header.len) else { break };
            if header.command {
                match Command::parse(body)? {
                    Command::Subscribe(topic) => feeds.want(feed, true, topic)?,
                    Command::Cancel(topic) => feeds.want(feed, false, topic)?,
                    Command::Ping(context) => feed.pong(feeds, zmtp::pong(context)),
                    Command::Pong => {}
                }
            } else {
                match body {
                    [wanted @ (0 | 1), topic @ ..] => feeds.want(feed, *wanted == 1, topic)?,
                    _ => return Err(Broken::Subscription.into()),
                }
            }
            bytes.advance(header.bytes + header.len);
        }
        incoming.rest();
        Ok(())
    }
}
