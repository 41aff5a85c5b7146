//! A peer that we dial to hear.
//!
//! Owns the TCP connection and, once the handshake is through, a Unix connection to the link's SUB socket. Every frame
//! header is checked, and only whole messages are passed on: left in [`Claims`], their tickets to the socket. While the link
//! does not claim them, the relay does not read TCP either, so the peer finds out.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::time::{Instant, timeout};

use super::claims::Claims;
use super::line::{self, Line};
use super::queue::{Intake, Queue, read_now};
use super::zmtp::{self, Broken, Command, Cut, Cutter, Header, Role};
use super::{Identity, Peer, Refusal, ShakeError, is_stock, limits, prepare, shake};
use crate::metrics::{Metrics, count};
use crate::net::{Apart, DialError};

/// Connects to `address` and asks who is there.
pub(crate) async fn dial(address: SocketAddr, identity: &Identity) -> Result<(Line, Peer), DialError> {
    let tcp = connect(address).await?;
    prepare(&tcp);
    let hands = async {
        let mut line = Line::shake(tcp, line::End::Caller, identity.mesh_keys.as_ref(), &identity.key).await?;
        let ready = shake(&mut line, &identity.ready(Role::Sub)).await?;
        Ok((line, ready))
    };
    let (line, ready) = match timeout(limits::HANDSHAKE, hands).await {
        Ok(Ok(shaken)) => shaken,
        Ok(Err(ShakeError::Broken(Broken::Sealed))) => return Err(DialError::Apart(Apart::Key, None)),
        Ok(Err(ShakeError::Broken(_))) => return Err(DialError::Stranger),
        Ok(Err(ShakeError::Gone)) | Err(_) => return Err(DialError::Unreachable),
    };
    match identity.judge(&line, &ready) {
        Ok(peer) if peer.role == Role::Pub => Ok((line, peer)),
        Ok(_) => Err(DialError::Stranger),
        Err(Refusal::Stranger | Refusal::Name) => Err(DialError::Stranger),
        Err(Refusal::Itself) => Err(DialError::Itself),
        Err(Refusal::Apart(apart, _, run)) => Err(DialError::Apart(apart, run)),
    }
}

/// Speaks with a stock publisher at the other end.
pub(crate) async fn meet_stock(tcp: TcpStream) -> Result<Line, DialError> {
    prepare(&tcp);
    let mut line = Line::bare(tcp);
    match timeout(limits::HANDSHAKE, shake(&mut line, &zmtp::ready(Role::Sub, &[]))).await {
        Ok(Ok(ready)) if is_stock(Role::Pub, &ready) => Ok(line),
        Ok(Ok(_) | Err(ShakeError::Broken(_))) => Err(DialError::Stranger),
        Ok(Err(ShakeError::Gone)) | Err(_) => Err(DialError::Unreachable),
    }
}

/// Connects to `address`, whoever is there.
pub(crate) async fn connect(address: SocketAddr) -> Result<TcpStream, DialError> {
    match timeout(limits::DIAL, TcpStream::connect(address)).await {
        Ok(Ok(tcp)) => Ok(tcp),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Err(DialError::Refused),
        Ok(Err(_)) | Err(_) => Err(DialError::Unreachable),
    }
}

/// Waits for our SUB socket on `path`, which `listener` is bound to, and is a PUB to it.
async fn meet(listener: UnixListener, path: &Path) -> Result<UnixStream, ShakeError> {
    let accepted = listener.accept().await;
    drop(listener);
    // Whatever becomes of it: nobody connects here again.
    let _ = std::fs::remove_file(path);
    let (mut socket, _) = accepted?;
    shake(&mut socket, &zmtp::ready(Role::Pub, &[])).await?;
    Ok(socket)
}

/// Relays between the peer and our SUB socket until either ends. When the peer ends, the socket still gets all that the
/// peer sent, and then the end.
///
/// Nodes are cut when they send nothing for `idle`; a stock publisher may have nothing to say for days.
pub(crate) async fn relay(
    line: Line,
    listener: UnixListener,
    path: impl AsRef<Path>,
    claims: Arc<Claims>,
    idle: Option<Duration>,
    metrics: Metrics,
) {
    let Ok(Ok(socket)) = timeout(limits::HANDSHAKE, meet(listener, path.as_ref())).await else { return };
    let mut relay = Relay {
        line,
        idle,
        socket,
        claims,
        incoming: Intake::new(),
        cutter: Cutter::default(),
        to_socket: Queue::default(),
        cut: 0,
        uncut: false,
        ended: false,
        deaf: false,
        asked: Intake::new(),
        to_peer: Queue::default(),
    };
    match relay.run().await {
        End::Gone => {}
        End::Idle => count(&metrics.cut, "idle"),
        End::Broken(broken) => {
            count(&metrics.cut, "malformed");
            count(&metrics.malformed, broken.word());
        }
    }
}

/// Why it ended.
enum End {
    Gone,
    /// Nothing came for too long.
    Idle,
    Broken(Broken),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> End {
        End::Gone
    }
}

impl From<Broken> for End {
    fn from(broken: Broken) -> End {
        End::Broken(broken)
    }
}

struct Relay {
    line: Line,
    idle: Option<Duration>,
    socket: UnixStream,
    /// What the link is to claim.
    claims: Arc<Claims>,
    /// From the peer.
    incoming: Intake,
    cutter: Cutter,
    /// Bytes cut off since the last message.
    cut: usize,
    /// What was read may hold whole messages still.
    uncut: bool,
    /// Tickets.
    to_socket: Queue,
    /// The peer sends no more.
    ended: bool,
    /// The peer takes no more: what it sent before it went is still to be read.
    deaf: bool,
    /// From our SUB socket.
    asked: Intake,
    to_peer: Queue,
}

impl Relay {
    async fn run(&mut self) -> End {
        let mut heard = Instant::now();
        loop {
            tokio::task::consume_budget().await;
            let full = self.claims.bytes() >= limits::CLAIMS_BYTES_MAX;
            if self.uncut && !full {
                match self.cut().and_then(|()| self.give()) {
                    Ok(()) => continue,
                    Err(end) => return end,
                }
            }
            let free = self.to_socket.is_empty();
            if self.ended && free && !self.uncut {
                return End::Gone;
            }
            let reads = free && !full && !self.ended;
            let done = tokio::select! {
                ready = self.line.readable(), if reads && self.to_peer.bytes() < limits::COMMAND_BYTES_MAX => {
                    heard = Instant::now();
                    ready.map_err(End::from).and_then(|()| self.hear())
                }
                () = self.claims.claimed(), if full => Ok(()),
                ready = self.socket.writable(), if !free => ready.map_err(End::from),
                ready = self.socket.readable() => ready.map_err(End::from).and_then(|()| self.ask()),
                ready = self.line.writable(), if !self.deaf && (!self.to_peer.is_empty() || self.line.is_pending()) => ready.map_err(End::from),
                () = tokio::time::sleep_until(heard + self.idle.unwrap_or_default()), if reads && self.idle.is_some() => {
                    Err(End::Idle)
                }
            };
            if !reads {
                // The silence was ours.
                heard = Instant::now();
            }
            if let Err(end) = done.and_then(|()| self.give()) {
                return end;
            }
        }
    }

    /// Reads what the peer sends, and checks it.
    fn hear(&mut self) -> Result<(), End> {
        let Relay { line, incoming, .. } = self;
        // A connection that was reset gave all that there was, too.
        self.ended = match incoming.read(|bytes| line.try_read_buf(bytes)) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(Broken::Sealed.into()),
            read => !matches!(read, Ok(None | Some(1..))),
        };
        self.cut()
    }

    /// Leaves the messages that are whole to be claimed, as many as there is room for.
    fn cut(&mut self) -> Result<(), End> {
        let mut tickets = BytesMut::new();
        self.uncut = false;
        loop {
            if self.claims.bytes() >= limits::CLAIMS_BYTES_MAX {
                self.uncut = true;
                break;
            }
            let before = self.incoming.bytes.len();
            let cut = self.cutter.cut(&mut self.incoming.bytes)?;
            self.cut += before - self.incoming.bytes.len();
            match cut {
                Cut::Message(parts) => {
                    let weight = std::mem::take(&mut self.cut);
                    let ticket = self.claims.leave(parts.alone(), weight, usize::MAX);
                    zmtp::put_frame(&mut tickets, &ticket);
                }
                Cut::Command(body) => match Command::parse(&body)? {
                    Command::Ping(context) => self.to_peer.push(zmtp::pong(context)),
                    Command::Pong => {}
                    Command::Subscribe(_) | Command::Cancel(_) => return Err(Broken::Command.into()),
                },
                Cut::Part(missing) => {
                    self.incoming.lacks(missing);
                    break;
                }
            }
        }
        self.to_socket.push(tickets.freeze());
        self.incoming.rest();
        Ok(())
    }

    /// Reads what our socket subscribes, whole messages only, so that a PONG fits between.
    fn ask(&mut self) -> Result<(), End> {
        let Relay { socket, asked, .. } = self;
        if asked.read(|bytes| read_now(socket, bytes))? == Some(0) {
            return Err(End::Gone);
        }
        let mut at = 0;
        while let Some(header) = Header::parse(&self.asked.bytes[at..])? {
            if self.asked.bytes.len() - at < header.bytes + header.len {
                break;
            }
            at += header.bytes + header.len;
        }
        self.to_peer.push(self.asked.bytes.split_to(at).freeze());
        self.asked.rest();
        Ok(())
    }

    fn give(&mut self) -> Result<(), End> {
        let Relay { line, socket, to_peer, .. } = self;
        self.to_socket.write(|slices| socket.try_write_vectored(slices))?;
        if !self.deaf {
            let written = line.push().and_then(|()| to_peer.write(|slices| line.try_write_vectored(slices)));
            self.deaf = written.is_err();
        }
        if self.deaf {
            self.to_peer = Queue::default();
        }
        Ok(())
    }
}
