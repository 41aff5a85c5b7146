//! The WebSocket on `/`: plain text for any client, `hubless.v1` for those that speak it.
//!
//! One task serves one socket with two halves: what comes in is published in order, what goes out is written in bursts and
//! flushed once for each. A client that does not read holds back only itself: its queue is the [`Subscription`]'s, bounded
//! in bytes, and it is let go with a cursor to come back with.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{FutureExt, SinkExt, StreamExt};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::{Instant, interval_at, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message as WsMessage, Role, WebSocketConfig};
use warp::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use warp::reply::{Reply, Response};

use super::api::{self, Failure, MessageObject, NodeObject, PeerObject, RoomObject, Said};
use super::{BODY_BYTES_MAX, Site};
use crate::error::PublishError;
use crate::handle::{Delivery, Draft, Filter, Gap, GapReason, Handle, PAYLOAD_BYTES_MAX, Peer, State, Subscription};
use crate::id::{EntryId, Room};
use crate::metrics::Metrics;

/// The subprotocol with JSON frames.
const SUBPROTOCOL: &str = "hubless.v1";
/// The name under which plain clients speak.
const GUEST: &str = "guest";
/// A burst ends after this many messages, or this many bytes, at the latest; it ends with a cursor.
const BURST_MESSAGES_MAX: usize = 256;
const BURST_BYTES_MAX: usize = 64 * 1024;
/// Answers that wait to be written; while they do, nothing more is read.
const ANSWERS_MAX: usize = 64;
/// Rooms named in `welcome`, the latest first; the API names them all.
const WELCOME_ROOMS_MAX: usize = 256;
/// Peers that came, went or changed are shown this long after the last time at the earliest.
const PEERS_PAUSE: Duration = Duration::from_millis(250);
/// Peers that changed only in their round-trip times are shown this often.
const PEERS_REFRESH: Duration = Duration::from_secs(5);
/// Buffers of one socket, in bytes.
const READ_BUFFER_BYTES: usize = 8 * 1024;
const WRITE_BUFFER_BYTES: usize = 16 * 1024;
/// How long a client has to answer a close.
const FAREWELL_WAIT: Duration = Duration::from_secs(1);

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// To say `hello`; afterwards the defaults hold.
    pub hello: Duration,
    /// Between two pings.
    pub ping: Duration,
    /// Without a sign of life.
    pub dead: Duration,
    /// To take what is written.
    pub stuck: Duration,
    /// To read again once it is known not to, so that it hears why it is let go.
    pub linger: Duration,
}

impl Default for Times {
    fn default() -> Times {
        Times {
            hello: Duration::from_secs(10),
            ping: Duration::from_secs(30),
            dead: Duration::from_secs(60),
            stuck: Duration::from_secs(10),
            linger: Duration::from_secs(60),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Plain,
    Json,
}

/// Why a socket ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client has closed it, or its connection broke.
    Gone,
    /// The node or the page stops.
    Away,
    /// A message is too long.
    TooLong,
    /// A text is no UTF-8.
    NotText,
    /// The client does not keep to RFC 6455.
    Protocol,
    /// The client missed messages because it reads too slowly.
    Slow,
    /// The client takes nothing.
    Stuck,
}

type Socket = WebSocketStream<TokioIo<Upgraded>>;
type Sink = SplitSink<Socket, WsMessage>;
type Source = SplitStream<Socket>;

/// Answers the handshake (RFC 6455 section 4.2) and starts the task that serves the socket.
pub(super) async fn upgrade(
    site: Arc<Site>,
    headers: &HeaderMap,
    upgrade: Option<OnUpgrade>,
) -> Result<Response, Failure> {
    let key = handshake_key(headers)?;
    let protocol = choose(headers).inspect_err(|_| site.refused("subprotocol"))?;
    let upgrade = upgrade.ok_or_else(|| Failure::malformed("this connection cannot be upgraded"))?;
    let place = site.places.clone().try_acquire_owned().map_err(|_| {
        site.refused("too_many");
        Failure::new(StatusCode::TOO_MANY_REQUESTS, "too_many", "too many WebSockets are open here")
    })?;
    let open = Open::new(site.handle.metrics(), place);
    // A plain client hears all that is said once its handshake is over; the other kind has yet to say where to begin.
    let lobby = match protocol {
        Protocol::Plain => Some(site.handle.subscribe(Room::lobby()).await?),
        Protocol::Json => None,
    };
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => serve(&site, upgraded, lobby).await,
            Err(error) => tracing::debug!(%error, "a WebSocket was not opened"),
        }
        drop(open);
    });

    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let answer = response.headers_mut();
    answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(header::SEC_WEBSOCKET_ACCEPT, key);
    if protocol == Protocol::Json {
        answer.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    Ok(response)
}

/// What to answer to the client's key.
fn handshake_key(headers: &HeaderMap) -> Result<HeaderValue, Failure> {
    let asks = |name, wanted: &str| words(headers, name).any(|word| word.eq_ignore_ascii_case(wanted));
    if !asks(header::UPGRADE, "websocket") || !asks(header::CONNECTION, "upgrade") {
        return Err(Failure::malformed("the only upgrade here is to a WebSocket"));
    }
    if !asks(header::SEC_WEBSOCKET_VERSION, "13") {
        return Err(Failure::malformed("Sec-WebSocket-Version is 13"));
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|key| !key.is_empty());
    let key = key.ok_or_else(|| Failure::malformed("Sec-WebSocket-Key is missing"))?;
    HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(|_| Failure::malformed("Sec-WebSocket-Key"))
}

/// The subprotocol: none asked for is plain text.
fn choose(headers: &HeaderMap) -> Result<Protocol, Failure> {
    let mut offered = words(headers, header::SEC_WEBSOCKET_PROTOCOL).peekable();
    if offered.peek().is_none() {
        Ok(Protocol::Plain)
    } else if offered.any(|name| name == SUBPROTOCOL) {
        Ok(Protocol::Json)
    } else {
        let message = format!("the only subprotocol here is {SUBPROTOCOL}; none is plain text");
        Err(Failure::new(StatusCode::BAD_REQUEST, "subprotocol", message))
    }
}

/// The comma-separated words of a header that may come more than once.
fn words(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

/// Counts a socket for as long as it is open.
struct Open {
    metrics: Metrics,
    _place: OwnedSemaphorePermit,
}

impl Open {
    fn new(metrics: &Metrics, place: OwnedSemaphorePermit) -> Open {
        metrics.web_sockets.inc();
        Open { metrics: metrics.clone(), _place: place }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.web_sockets.dec();
    }
}

/// Serves a socket to its end: in plain text with this subscription, or in JSON without.
async fn serve(site: &Site, upgraded: Upgraded, lobby: Option<Subscription>) {
    let protocol = if lobby.is_some() { Protocol::Plain } else { Protocol::Json };
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_message_size(Some(BODY_BYTES_MAX))
        .max_frame_size(Some(BODY_BYTES_MAX));
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
    let (mut sink, mut source) = socket.split();
    let end = tokio::select! {
        end = talk(site, &mut sink, &mut source, lobby) => end,
        () = site.closing() => End::Away,
    };
    // What is written to a client that does not read stays unsent until it does. Its subscription is gone by now, so all
    // that it keeps meanwhile is its place.
    let lingers = matches!(end, End::Slow | End::Stuck);
    let wait = if lingers { site.times.linger } else { FAREWELL_WAIT };
    let told = tokio::select! {
        told = timeout(wait, farewell(sink, source, end, protocol)) => told.ok().flatten(),
        () = site.closing(), if lingers => None,
    };
    if let Some(socket) = told {
        // Whoever does not answer in time is cut off.
        let _ = timeout(FAREWELL_WAIT, hang_up(socket)).await;
    }
}

/// Serves both halves until one of them ends.
async fn talk(site: &Site, sink: &mut Sink, source: &mut Source, lobby: Option<Subscription>) -> End {
    let Site { handle, times, .. } = site;
    let (answers, waiting) = mpsc::channel(ANSWERS_MAX);
    let mut peers = handle.peers_changed();
    let shown = peers.borrow_and_update().clone();
    if let Some(lobby) = lobby {
        let mut out = Out { sink, times: *times, protocol: Protocol::Plain, peers, shown };
        return tokio::select! {
            end = hear_plain(handle, times, source) => end,
            end = out.run(lobby, waiting) => end,
        };
    }
    let (subscription, client) = match greet(handle, times, &shown, sink, source).await {
        Ok(greeted) => greeted,
        Err(end) => return end,
    };
    let mut out = Out { sink, times: *times, protocol: Protocol::Json, peers, shown };
    tokio::select! {
        end = client.hear(handle, times, source, answers) => end,
        end = out.run(subscription, waiting) => end,
    }
}

/// Writes the last words.
async fn farewell(mut sink: Sink, source: Source, end: End, protocol: Protocol) -> Option<Socket> {
    let (code, reason) = match end {
        End::Gone => (1000, ""),
        End::Away => (1001, "the node stops"),
        End::Protocol => (1002, "not RFC 6455"),
        End::NotText => (1007, "not UTF-8"),
        End::TooLong => (1009, "too long"),
        End::Slow | End::Stuck => (1013, "too slow; come back with your cursor"),
    };
    if !matches!(end, End::Gone | End::Stuck) {
        // One frame may still be in the sink's hands. Of a client that took nothing it is a part of the gap.
        let _ = sink.flush().await;
    }
    let mut socket = sink.reunite(source).ok()?;
    if (end, protocol) == (End::Stuck, Protocol::Json) {
        // How many will be missing nobody knows yet.
        let gap = Outgoing::gap(Gap { missing: 0, reason: GapReason::Slow });
        let _ = socket.feed(WsMessage::text(gap)).await;
    }
    let _ = socket.close(Some(CloseFrame { code: code.into(), reason: reason.into() })).await;
    Some(socket)
}

/// Waits for the client's close, then ends the connection, so that the last frames are not lost to a reset.
async fn hang_up(mut socket: Socket) {
    while let Some(Ok(_)) = socket.next().await {}
    let io = socket.get_mut();
    let _ = io.shutdown().await;
    let mut rest = [0; 4096];
    while io.read(&mut rest).await.is_ok_and(|len| len > 0) {}
}

/// The next frame with data; control frames are answered by the library and count as life.
async fn next_frame(source: &mut Source, times: &Times) -> Result<WsMessage, End> {
    loop {
        let next = timeout(times.dead, source.next()).await;
        match next {
            Err(_) | Ok(None) => return Err(End::Gone),
            Ok(Some(Ok(WsMessage::Close(_)))) => return Err(End::Gone),
            Ok(Some(Ok(frame @ (WsMessage::Text(_) | WsMessage::Binary(_))))) => return Ok(frame),
            Ok(Some(Ok(_))) => {}
            Ok(Some(Err(error))) => {
                return Err(match error {
                    Error::Capacity(CapacityError::MessageTooLong { .. }) => End::TooLong,
                    Error::Utf8(_) => End::NotText,
                    Error::Protocol(_) => End::Protocol,
                    _ => End::Gone,
                });
            }
        }
    }
}

/// Takes what a plain client says.
async fn hear_plain(handle: &Handle, times: &Times, source: &mut Source) -> End {
    loop {
        let frame = match next_frame(source, times).await {
            Ok(frame) => frame,
            Err(end) => return end,
        };
        let Ok(text) = frame.to_text() else { continue };
        if text.len() > PAYLOAD_BYTES_MAX {
            return End::TooLong;
        }
        if text.is_empty() {
            continue;
        }
        let draft = Draft { name: Some(GUEST.into()), ..Draft::new(Room::lobby(), text) };
        match handle.publish_with(draft).await {
            Ok(_) => {}
            Err(PublishError::TooLarge { .. }) => return End::TooLong,
            Err(_) => return End::Away,
        }
    }
}

/// A frame from a client; which fields it has depends on its type.
#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "a JSON object with a type")]
struct Incoming {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    after: Option<String>,
    durable: Option<String>,
    client_id: Option<String>,
    room: Option<String>,
    text: Option<String>,
    content_type: Option<String>,
    data: Option<String>,
}

impl Incoming {
    fn read(frame: &WsMessage) -> Result<Incoming, Failure> {
        match frame {
            WsMessage::Text(text) => serde_json::from_str(text).map_err(|error| Failure::malformed(error.to_string())),
            _ => Err(Failure::malformed("a frame is JSON text")),
        }
    }
}

/// A frame to a client.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Outgoing<'a> {
    Welcome {
        /// `node`, `mesh` and the rest, as the API shows them.
        #[serde(flatten)]
        node: NodeObject<'a>,
        rooms: Vec<RoomObject<'a>>,
        peers: Vec<PeerObject<'a>>,
        cursor: String,
    },
    Accepted {
        client_id: Option<&'a str>,
        id: EntryId,
        state: State,
    },
    Gap {
        missing: u64,
        reason: GapReason,
    },
    Peers {
        peers: Vec<PeerObject<'a>>,
    },
    Error {
        code: &'a str,
        message: &'a str,
        client_id: Option<&'a str>,
    },
    Pong,
}

impl Outgoing<'_> {
    fn text(&self) -> String {
        api::to_text(self)
    }

    fn gap(Gap { missing, reason }: Gap) -> String {
        Outgoing::Gap { missing, reason }.text()
    }

    fn error(failure: &Failure, client_id: Option<&str>) -> String {
        Outgoing::Error { code: failure.code, message: &failure.message, client_id }.text()
    }
}

/// Waits for the client's `hello`, answers it, and opens what it wants to hear.
async fn greet(
    handle: &Handle,
    times: &Times,
    peers: &[Peer],
    sink: &mut Sink,
    source: &mut Source,
) -> Result<(Subscription, Client), End> {
    let deadline = Instant::now() + times.hello;
    let first = loop {
        let frame = tokio::select! {
            frame = next_frame(source, times) => frame?,
            () = sleep_until(deadline) => break Incoming::default(),
        };
        match Incoming::read(&frame) {
            Ok(first) => break first,
            Err(failure) => say(sink, times, Outgoing::error(&failure, None)).await?,
        }
    };
    let mut client = Client { name: None, first: None };
    let mut failures = Vec::new();
    let mut cursor = None;
    if first.kind == "hello" {
        failures.extend(client.rename(first.name.as_deref()).err());
        match first.after.as_deref().map(str::parse) {
            Some(Ok(after)) => cursor = Some(after),
            Some(Err(_)) => failures.push(Failure::cursor()),
            None => {}
        }
        failures.extend(first.durable.map(|_| Failure::not_available("named cursors")));
    } else if !first.kind.is_empty() {
        client.first = Some(first);
    }
    let subscription = match cursor {
        Some(after) => handle.resume(Filter::all(), after).await,
        None => handle.subscribe_prefix("").await,
    };
    let subscription = subscription.map_err(|_| End::Away)?;

    let mut rooms = handle.rooms().await.map_err(|_| End::Away)?;
    rooms.sort_by_key(|room| std::cmp::Reverse(room.last));
    rooms.truncate(WELCOME_ROOMS_MAX);
    let welcome = Outgoing::Welcome {
        node: NodeObject::of(handle),
        rooms: rooms.iter().map(RoomObject::of).collect(),
        peers: api::peer_objects(peers),
        cursor: subscription.cursor().to_string(),
    };
    say(sink, times, welcome.text()).await?;
    for failure in failures {
        say(sink, times, Outgoing::error(&failure, None)).await?;
    }
    Ok((subscription, client))
}

/// Writes one text and flushes.
async fn say(sink: &mut Sink, times: &Times, text: String) -> Result<(), End> {
    in_time(times, sink.send(WsMessage::text(text))).await
}

async fn in_time(times: &Times, write: impl Future<Output = Result<(), Error>>) -> Result<(), End> {
    match timeout(times.stuck, write).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(End::Gone),
        Err(_) => Err(End::Stuck),
    }
}

/// A client that speaks `hubless.v1`.
struct Client {
    /// Who speaks; none stands for the node's own name.
    name: Option<Arc<str>>,
    /// What it said instead of `hello`.
    first: Option<Incoming>,
}

impl Client {
    fn rename(&mut self, name: Option<&str>) -> Result<(), Failure> {
        self.name = name.map(api::read_name).transpose()?.flatten();
        Ok(())
    }

    /// Does what the client asks for, in order.
    async fn hear(mut self, handle: &Handle, times: &Times, source: &mut Source, answers: mpsc::Sender<String>) -> End {
        loop {
            let incoming = match self.first.take() {
                Some(first) => Ok(first),
                None => match next_frame(source, times).await {
                    Ok(frame) => Incoming::read(&frame),
                    Err(end) => return end,
                },
            };
            let answer = match incoming {
                Ok(incoming) => self.obey(handle, incoming).await,
                Err(failure) => Some(Outgoing::error(&failure, None)),
            };
            if let Some(answer) = answer
                && answers.send(answer).await.is_err()
            {
                return End::Gone;
            }
        }
    }

    async fn obey(&mut self, handle: &Handle, incoming: Incoming) -> Option<String> {
        let Incoming { kind, name, client_id, room, text, content_type, data, after: _, durable: _ } = incoming;
        let done = match kind.as_str() {
            "send" => {
                let said = Said { room, text, mime: content_type, data, name, client_id: client_id.clone() };
                match self.publish(handle, said).await {
                    Ok((id, state)) => {
                        return Some(Outgoing::Accepted { client_id: client_id.as_deref(), id, state }.text());
                    }
                    Err(failure) => Err(failure),
                }
            }
            "name" => self.rename(name.as_deref()),
            "ping" => return Some(Outgoing::Pong.text()),
            "ack" => Err(Failure::not_available("named cursors")),
            "hello" => Err(Failure::malformed("hello is the first frame only")),
            _ => Err(Failure::malformed("there is no such type of frame")),
        };
        done.err().map(|failure| Outgoing::error(&failure, client_id.as_deref()))
    }

    async fn publish(&self, handle: &Handle, said: Said) -> Result<(EntryId, State), Failure> {
        let draft = said.draft()?;
        let name = draft.name.clone().or_else(|| self.name.clone());
        let published = handle.publish_with(Draft { name, ..draft }).await?;
        Ok((published.id, published.state))
    }
}

/// The half that writes.
struct Out<'a> {
    sink: &'a mut Sink,
    times: Times,
    protocol: Protocol,
    peers: watch::Receiver<Arc<[Peer]>>,
    /// What the client has been told of them.
    shown: Arc<[Peer]>,
}

impl Out<'_> {
    async fn run(&mut self, subscription: Subscription, answers: mpsc::Receiver<String>) -> End {
        let Err(end) = self.write(subscription, answers).await;
        end
    }

    async fn write(
        &mut self,
        mut subscription: Subscription,
        mut answers: mpsc::Receiver<String>,
    ) -> Result<Infallible, End> {
        let mut pings = interval_at(Instant::now() + self.times.ping, self.times.ping);
        let mut shown_at = Instant::now();
        let mut due = None;
        loop {
            tokio::select! {
                Some(answer) = answers.recv() => {
                    self.feed(WsMessage::text(answer)).await?;
                    while let Ok(answer) = answers.try_recv() {
                        self.feed(WsMessage::text(answer)).await?;
                    }
                }
                delivery = subscription.next() => self.burst(delivery.ok_or(End::Away)?, &mut subscription).await?,
                Ok(()) = self.peers.changed(), if self.protocol == Protocol::Json => {
                    let news = is_news(&self.shown, &self.peers.borrow_and_update());
                    due = Some(shown_at + if news { PEERS_PAUSE } else { PEERS_REFRESH });
                }
                () = sleep_until(due.unwrap_or(shown_at)), if due.is_some() => {
                    self.shown = self.peers.borrow_and_update().clone();
                    (shown_at, due) = (Instant::now(), None);
                    let peers = api::peer_objects(&self.shown);
                    let text = Outgoing::Peers { peers }.text();
                    self.feed(WsMessage::text(text)).await?;
                }
                _ = pings.tick() => self.feed(WsMessage::Ping(Default::default())).await?,
            }
            in_time(&self.times, self.sink.flush()).await?;
        }
    }

    /// Writes a delivery and what else waits behind it.
    async fn burst(&mut self, first: Delivery, subscription: &mut Subscription) -> Result<(), End> {
        let mut next = Some(first);
        let (mut messages, mut bytes) = (0, 0);
        while let Some(delivery) = next {
            let message = match delivery {
                Delivery::Message(message) => message,
                Delivery::Gap(gap) => {
                    self.gap(gap).await?;
                    next = subscription.next().now_or_never().flatten();
                    continue;
                }
            };
            messages += 1;
            bytes += message.payload.len();
            let full = messages == BURST_MESSAGES_MAX || bytes >= BURST_BYTES_MAX;
            // The cursor covers what was taken, so it is read before more is taken.
            next = if full { None } else { subscription.next().now_or_never().flatten() };
            let cursor = next.is_none().then(|| subscription.cursor());
            match self.protocol {
                Protocol::Json => {
                    let cursor = cursor.map(|cursor| cursor.to_string());
                    let text = api::to_text(&MessageObject::frame(&message, cursor));
                    self.feed(WsMessage::text(text)).await?;
                }
                Protocol::Plain => {
                    if let Some(text) = message.payload.text() {
                        self.feed(WsMessage::text(text)).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn gap(&mut self, gap: Gap) -> Result<(), End> {
        if self.protocol == Protocol::Json {
            self.feed(WsMessage::text(Outgoing::gap(gap))).await?;
        }
        if gap.reason == GapReason::Slow { Err(End::Slow) } else { Ok(()) }
    }

    async fn feed(&mut self, frame: WsMessage) -> Result<(), End> {
        in_time(&self.times, self.sink.feed(frame)).await
    }
}

/// Whether more than times and counts differ.
fn is_news(old: &[Peer], new: &[Peer]) -> bool {
    let face = |peer: &Peer| (peer.run, peer.name.clone(), peer.state, peer.address, peer.found_by);
    !old.iter().map(face).eq(new.iter().map(face))
}
