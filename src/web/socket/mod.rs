//! The WebSocket on `/`: plain text for any client, `hubless.v1` for those that speak it.
//!
//! One task serves one socket with two halves: what comes in is published in order ([`hear`]), what goes out is written in
//! bursts, each in one go ([`tell`]). What all are told is made once for all of them ([`stage`]). A client that does not
//! read holds back only itself: what waits for it is bounded in bytes, and it is let go with a cursor to come back with.

mod frames;
mod hear;
mod line;
mod news;
mod source;
mod stage;
mod tell;

use std::future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hyper::upgrade::{OnUpgrade, Upgraded};
use tokio::io::AsyncReadExt;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message as WsMessage, Role, WebSocketConfig};
use warp::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use warp::reply::{Reply, Response};

use self::frames::Outgoing;
#[cfg(feature = "fuzz")]
pub(super) use self::frames::fuzz;
use self::hear::{Greeted, greet, hear_plain, settle, settle_plain};
use self::line::{Ear, Mouth};
use self::source::Opened;
use self::stage::Seat;
pub(super) use self::stage::Stage;
use self::tell::Out;
use super::api::Failure;
use super::guard::Caller;
use super::guests::{Kind, Visit};
use super::{BODY_BYTES_MAX, Site};
use crate::handle::{Gap, GapReason};
use crate::metrics::Metrics;

/// The subprotocol with JSON frames.
const SUBPROTOCOL: &str = "hubless.v1";
/// Answers that wait to be written; while they do, nothing more is read.
const ANSWERS_MAX: usize = 64;
/// Messages of one socket that are published and not yet on disk; while they are so many, nothing more is read.
const PENDING_MAX: usize = 256;
/// What is read of one socket at a time, in bytes.
const READ_BUFFER_BYTES: usize = 4 * 1024;
/// How long what a client said before it went may take to be read.
const LAST_WORDS_WAIT: Duration = Duration::from_secs(1);
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
    /// What a plain client said was not kept, and it has no other way to hear of it.
    NotKept,
    /// Another holder took the durable cursor, or it was removed.
    Replaced,
}

/// What comes in, no quicker than its address may send.
struct Frames {
    stream: WebSocketStream<Ear>,
    visit: Visit,
}

/// Answers the handshake (RFC 6455 section 4.2) and starts the task that serves the socket.
pub(super) async fn upgrade(site: Arc<Site>, caller: &Caller, upgrade: Option<OnUpgrade>) -> Result<Response, Failure> {
    let headers = &caller.headers;
    let key = handshake_key(headers)?;
    let protocol = choose(headers).inspect_err(|_| site.refused("subprotocol"))?;
    let upgrade = upgrade.ok_or_else(|| Failure::malformed("this connection cannot be upgraded"))?;
    let place = site.places.clone().try_acquire_owned().map_err(|_| too_many(&site))?;
    let visit = site.guests.enter(caller.guest, Kind::Socket).ok_or_else(|| too_many(&site))?;
    let open = Open::new(site.handle.metrics(), place);
    // A plain client hears all that is said once its handshake is over; the other kind has yet to say where to begin.
    let lobby = match protocol {
        Protocol::Plain => {
            let mut seat = site.live.seat().await?;
            seat.covers(site.handle.subscribe_prefix("").await?.cursor());
            Some(seat)
        }
        Protocol::Json => None,
    };
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => serve(&site, upgraded, visit, lobby).await,
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

/// What is answered where one more does not fit.
pub(super) fn too_many(site: &Site) -> Failure {
    site.refused("too_many");
    Failure::new(StatusCode::TOO_MANY_REQUESTS, "too_many", "too many WebSockets are open here")
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

/// Serves a socket to its end: in plain text with this seat, or in JSON without.
async fn serve(site: &Site, upgraded: Upgraded, visit: Visit, lobby: Option<Seat>) {
    let protocol = if lobby.is_some() { Protocol::Plain } else { Protocol::Json };
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(BODY_BYTES_MAX))
        .max_frame_size(Some(BODY_BYTES_MAX));
    let (ear, mut mouth) = line::halves(upgraded);
    let mut source = Frames { stream: WebSocketStream::from_raw_socket(ear, Role::Server, Some(config)).await, visit };
    let end = tokio::select! {
        end = talk(site, &mut mouth, &mut source, lobby) => end,
        () = apart(site.closing()) => End::Away,
    };
    // What is written to a client that does not read stays unsent until it does. Its seat is free by now, so all that it
    // keeps meanwhile is its place, and the burst that it was about to get.
    let lingers = matches!(end, End::Slow | End::Stuck);
    let wait = if lingers { site.times.linger } else { FAREWELL_WAIT };
    let told = tokio::select! {
        told = timeout(wait, farewell(&mut mouth, &mut source, end, protocol)) => told.is_ok_and(|told| told.is_ok()),
        () = site.closing(), if lingers => false,
    };
    if told {
        // Whoever does not answer in time is cut off.
        let _ = timeout(FAREWELL_WAIT, hang_up(mouth, source)).await;
    }
}

/// Serves both halves until one of them ends.
async fn talk(site: &Site, mouth: &mut Mouth, source: &mut Frames, lobby: Option<Seat>) -> End {
    let Site { handle, times, .. } = site;
    let (answers, waiting) = mpsc::channel(ANSWERS_MAX);
    // One more is waited for.
    let (pending, unsettled) = mpsc::channel(PENDING_MAX - 1);
    let mut peers = handle.peers_changed();
    let shown = peers.borrow_and_update().clone();
    if let Some(lobby) = lobby {
        let mut out = Out::new(site, mouth, Protocol::Plain, shown);
        let mut hears = pin!(hear_plain(handle, times, source, pending));
        let end = tokio::select! {
            end = apart(hears.as_mut()) => return end,
            end = apart(settle_plain(unsettled)) => end,
            end = out.run(Opened::Shared(lobby), peers, waiting) => end,
        };
        return last_words(end, hears).await;
    }
    let Greeted { opened, client, acks, burst } = match Box::pin(greet(site, &shown, mouth, source)).await {
        Ok(greeted) => greeted,
        Err(end) => return end,
    };
    let mut out = Out::new(site, mouth, Protocol::Json, shown);
    if let Some(messages) = burst {
        out.end_bursts_after(messages);
    }
    let mut hears = pin!(client.hear(handle, times, source, answers.clone(), pending));
    let end = tokio::select! {
        end = apart(hears.as_mut()) => return end,
        end = apart(settle(unsettled, answers.clone())) => end,
        end = apart(acks.keep(answers)) => end,
        end = out.run(opened, peers, waiting) => end,
    };
    last_words(end, hears).await
}

/// Polls `future` when it was woken itself, and not whenever its task is: a socket that is told something need not look for
/// what its client says.
fn apart<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let mut one = FuturesUnordered::new();
    one.push(future);
    async move {
        match one.next().await {
            Some(output) => output,
            None => future::pending().await,
        }
    }
}

/// A client that speaks and goes is noticed by writing to it; what it said before is taken none the less.
async fn last_words(end: End, hears: impl Future<Output = End>) -> End {
    if end == End::Gone {
        let _ = timeout(LAST_WORDS_WAIT, hears).await;
    }
    end
}

/// Writes the last words.
async fn farewell(mouth: &mut Mouth, source: &mut Frames, end: End, protocol: Protocol) -> Result<(), End> {
    let (code, reason) = match end {
        End::Gone => (1000, ""),
        End::Away => (1001, "the node stops"),
        End::Protocol => (1002, "not RFC 6455"),
        End::NotText => (1007, "not UTF-8"),
        End::TooLong => (1009, "too long"),
        End::NotKept => (1011, "the disk does not take what is said"),
        End::Slow | End::Stuck => (1013, "too slow; come back with your cursor"),
        End::Replaced => (4001, "another holder took this durable cursor, or it was removed"),
    };
    if end == End::Stuck {
        // What was not begun is a part of the gap.
        mouth.forget();
    }
    if (end, protocol) == (End::Stuck, Protocol::Json) {
        // How many will be missing nobody knows yet.
        mouth.text(&Outgoing::gap(Gap { missing: 0, reason: GapReason::Slow }));
    }
    let _ = source.stream.close(Some(CloseFrame { code: code.into(), reason: reason.into() })).await;
    // Whoever waits for this knows how long.
    mouth.flush(Duration::MAX).await
}

/// Waits for the client's close, then ends the connection, so that the last frames are not lost to a reset.
async fn hang_up(mut mouth: Mouth, mut source: Frames) {
    while let Some(Ok(_)) = source.stream.next().await {}
    mouth.shutdown().await;
    let mut rest = [0; 4096];
    while source.stream.get_mut().read(&mut rest).await.is_ok_and(|len| len > 0) {}
}

/// The next frame with data; control frames are answered by the library and count as life.
async fn next_frame(source: &mut Frames, times: &Times) -> Result<WsMessage, End> {
    source.visit.pace().await;
    loop {
        let next = timeout(times.dead, source.stream.next()).await;
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

/// Writes one text.
async fn say(mouth: &mut Mouth, times: &Times, text: String) -> Result<(), End> {
    mouth.text(&text);
    mouth.flush(times.stuck).await
}
