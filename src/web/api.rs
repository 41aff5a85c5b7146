//! What the API answers: JSON in and out, under `/api/v1`, and the health of the node.
//!
//! The objects that the WebSocket speaks of, too, are made here. Nothing here knows a socket.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut};
use data_encoding::BASE64;
use futures_util::{Stream, StreamExt};
use jiff::{Span, SpanRelativeTo, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use warp::http::{HeaderValue, StatusCode, header};
use warp::reject::{InvalidQuery, MethodNotAllowed, Rejection};
use warp::reply::{Reply, Response};

use super::BODY_BYTES_MAX;
use super::guard::Foreign;
use crate::error::{HistoryError, PublishError, Stopped};
use crate::handle::{
    Draft, FoundBy, Handle, Hlc, Message, NAME_BYTES_MAX, Payload, Peer, PeerState, Query, RoomSummary, State, Via,
};
use crate::id::{EntryId, Epoch, Key, NodeId, Room};

/// The longest client id, in bytes.
pub const CLIENT_ID_BYTES_MAX: usize = 64;
/// Messages in a page, unless asked otherwise.
const LIMIT_DEFAULT: usize = 100;
/// The most messages in a page.
const LIMIT_MAX: usize = 1_000;
/// Of a body that is too large so much is read and thrown away, so that its sender gets to hear the answer.
const DISCARD_BYTES_MAX: usize = 16 * BODY_BYTES_MAX;
/// How long a body may take.
const BODY_WAIT: Duration = Duration::from_secs(30);
/// How long `held` waits, unless asked otherwise, and at most.
const WAIT_DEFAULT: Duration = Duration::from_secs(5);
const WAIT_MAX: Duration = Duration::from_secs(60);

/// A request, or a frame of a WebSocket, that was not done, as its sender is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub status: StatusCode,
    pub code: &'static str,
    pub message: String,
}

impl Failure {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Failure {
        Failure { status, code, message: message.into() }
    }

    pub fn malformed(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::BAD_REQUEST, "malformed", message)
    }

    pub fn not_available(what: &str) -> Failure {
        Failure::new(StatusCode::NOT_FOUND, "not_available", format!("this node has no {what}"))
    }

    pub fn cursor() -> Failure {
        Failure::new(StatusCode::BAD_REQUEST, "cursor", "not a cursor")
    }

    pub fn not_found() -> Failure {
        Failure::new(StatusCode::NOT_FOUND, "not_found", "there is nothing here")
    }

    /// What a request that no route took is told.
    pub fn of(rejection: &Rejection) -> Failure {
        if let Some(foreign) = rejection.find::<Foreign>() {
            let (status, code, message) = match foreign {
                Foreign::Host => {
                    let message = "this node is asked for by a name that is not its own; use its address";
                    (StatusCode::MISDIRECTED_REQUEST, "host", message)
                }
                Foreign::Origin => (StatusCode::FORBIDDEN, "origin", "a page from elsewhere may not do this"),
            };
            Failure::new(status, code, message)
        } else if rejection.find::<InvalidQuery>().is_some() {
            Failure::malformed("the query of this address does not parse")
        } else if rejection.find::<MethodNotAllowed>().is_some() {
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method", "this address does not take this method")
        } else {
            Failure::not_found()
        }
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Failure {
        let (status, code) = match error {
            PublishError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            PublishError::TooLong(_) => (StatusCode::BAD_REQUEST, "malformed"),
            PublishError::Room(_) => (StatusCode::BAD_REQUEST, "room"),
            PublishError::KeyReused => (StatusCode::CONFLICT, "client_id_reused"),
            PublishError::DiskFull => (StatusCode::INSUFFICIENT_STORAGE, "disk_full"),
            PublishError::DiskFailing => (StatusCode::SERVICE_UNAVAILABLE, "disk_failing"),
            PublishError::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "stopped"),
        };
        Failure::new(status, code, error.to_string())
    }
}

impl From<HistoryError> for Failure {
    fn from(error: HistoryError) -> Failure {
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, "history", error.to_string())
    }
}

impl From<Stopped> for Failure {
    fn from(stopped: Stopped) -> Failure {
        PublishError::from(stopped).into()
    }
}

impl Reply for Failure {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body<'a> {
            error: Inner<'a>,
        }
        #[derive(Serialize)]
        struct Inner<'a> {
            code: &'a str,
            message: &'a str,
        }
        json(self.status, &Body { error: Inner { code: self.code, message: &self.message } })
    }
}

/// A JSON answer, never kept by a browser or what stands between.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let text = to_text(body);
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// `body` as JSON text.
pub(super) fn to_text(body: &impl Serialize) -> String {
    // Plain structs with text keys: nothing in them can fail.
    serde_json::to_string(body).unwrap_or_default()
}

type Answer = Result<Response, Failure>;

/// `GET /readyz`.
pub(super) fn readyz(handle: &Handle) -> Response {
    #[derive(Serialize)]
    struct Ready {
        ready: bool,
        peers: usize,
        history: bool,
        bridges: [(); 0],
    }
    let ready = !is_stopped(handle);
    let peers = handle.peers().iter().filter(|peer| peer.state == PeerState::Up).count();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &Ready { ready, peers, history: false, bridges: [] })
}

/// The node holds the other end of this for as long as it lives.
fn is_stopped(handle: &Handle) -> bool {
    handle.peers_changed().has_changed().is_err()
}

/// `GET /metrics`.
pub(super) fn metrics(handle: &Handle) -> Response {
    let mut response = Response::new(handle.metrics().encode().into());
    let format = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, format);
    response
}

/// `GET /api/v1/node`.
pub(super) fn node(handle: &Handle) -> Response {
    json(StatusCode::OK, &NodeObject::of(handle))
}

/// `GET /api/v1/peers`.
pub(super) fn peers(handle: &Handle) -> Response {
    let peers = handle.peers();
    json(StatusCode::OK, &peer_objects(&peers))
}

/// `GET /api/v1/rooms`.
pub(super) async fn rooms(handle: &Handle) -> Answer {
    let rooms = handle.rooms().await?;
    Ok(json(StatusCode::OK, &rooms.iter().map(RoomObject::of).collect::<Vec<_>>()))
}

/// The query of `GET /api/v1/messages`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct MessagesQuery {
    room: Option<String>,
    after: Option<String>,
    before: Option<String>,
    since: Option<String>,
    limit: Option<String>,
}

/// `GET /api/v1/messages`.
pub(super) async fn messages(handle: &Handle, query: MessagesQuery) -> Answer {
    #[derive(Serialize)]
    struct Body<'a> {
        messages: Vec<MessageObject<'a>>,
        after: String,
        before: Option<String>,
        /// What the cursor does not cover and is not to be had any more.
        #[serde(skip_serializing_if = "Option::is_none")]
        expired: Option<u64>,
    }
    let page = handle.messages(query.read(Timestamp::now())?).await?;
    let body = Body {
        messages: page.messages.iter().map(MessageObject::of).collect(),
        after: page.after.to_string(),
        before: page.before.map(|place| place.to_string()),
        expired: (page.expired > 0).then_some(page.expired),
    };
    Ok(json(StatusCode::OK, &body))
}

impl MessagesQuery {
    fn read(self, now: Timestamp) -> Result<Query, Failure> {
        let MessagesQuery { room, after, before, since, limit } = self;
        let limit = match limit {
            None => LIMIT_DEFAULT,
            Some(text) => text
                .parse()
                .ok()
                .filter(|limit| (1..=LIMIT_MAX).contains(limit))
                .ok_or_else(|| Failure::malformed(format!("limit is 1 to {LIMIT_MAX}")))?,
        };
        let place = |text: String| text.parse().map_err(|_| Failure::malformed("before is what an earlier page gave"));
        Ok(Query {
            room: room.as_deref().map(read_room).transpose()?,
            after: after.map(|text| text.parse().map_err(|_| Failure::cursor())).transpose()?,
            before: before.map(place).transpose()?,
            since_ms: since.map(|text| read_since(&text, now)).transpose()?,
            limit,
            ..Query::default()
        })
    }
}

/// The body of `POST /api/v1/messages`, and what a `send` frame says.
#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "a JSON object with a text, or with type and data")]
pub(super) struct Said {
    pub room: Option<String>,
    pub text: Option<String>,
    #[serde(rename = "type")]
    pub mime: Option<String>,
    pub data: Option<String>,
    pub name: Option<String>,
    pub client_id: Option<String>,
}

/// `POST /api/v1/messages`.
pub(super) async fn publish(handle: &Handle, body: impl Stream<Item = Result<impl Buf, warp::Error>>) -> Answer {
    #[derive(Serialize)]
    struct Body {
        id: EntryId,
        state: State,
    }
    let body = timeout(BODY_WAIT, read_body(body))
        .await
        .unwrap_or_else(|_| Err(Failure::new(StatusCode::REQUEST_TIMEOUT, "too_slow", "the body took too long")))?;
    let said: Said = serde_json::from_slice(&body).map_err(|error| Failure::malformed(error.to_string()))?;
    let published = handle.publish_with(said.draft()?).await?;
    Ok(json(StatusCode::CREATED, &Body { id: published.id, state: published.state }))
}

/// Reads a whole body, whether or not it said its length beforehand.
async fn read_body(body: impl Stream<Item = Result<impl Buf, warp::Error>>) -> Result<Vec<u8>, Failure> {
    let mut body = pin!(body);
    let (mut bytes, mut len) = (Vec::new(), 0);
    while let Some(part) = body.next().await {
        let part = part.map_err(|error| Failure::malformed(error.to_string()))?;
        len += part.remaining();
        if len > DISCARD_BYTES_MAX {
            break;
        }
        if len <= BODY_BYTES_MAX {
            bytes.put(part);
        }
    }
    if len > BODY_BYTES_MAX {
        let message = format!("a body has at most {BODY_BYTES_MAX} bytes");
        return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message));
    }
    Ok(bytes)
}

impl Said {
    /// The draft of it; without a room it is said in the lobby.
    pub fn draft(self) -> Result<Draft, Failure> {
        let Said { room, text, mime, data, name, client_id } = self;
        let room = room.as_deref().map_or_else(|| Ok(Room::lobby()), read_room)?;
        let payload = match (text, mime, data) {
            (Some(text), None, None) if text.is_empty() => return Err(Failure::malformed("the text is empty")),
            (Some(text), None, None) => text.into(),
            (None, Some(mime), Some(data)) => {
                let data = BASE64.decode(data.as_bytes()).map_err(|_| Failure::malformed("data is not base64"))?;
                Payload::Data { mime: mime.into(), data: data.into() }
            }
            _ => return Err(Failure::malformed("a message has either a text, or data and their content type")),
        };
        let key = client_id.as_deref().map(read_client_id).transpose()?;
        let name = name.map(|name| read_name(&name)).transpose()?.flatten();
        Ok(Draft { name, key, ..Draft::new(room, payload) })
    }
}

/// The query of `GET /api/v1/messages/ID/held`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct HeldQuery {
    count: Option<String>,
    wait: Option<String>,
    /// Only disks count.
    stored: Option<String>,
}

/// `GET /api/v1/messages/ID/held`: how many other nodes hold a message, once it is `count` or after `wait`; with `stored=1`
/// once so many nodes have it on disk.
pub(super) async fn held(handle: &Handle, id: &str, query: HeldQuery) -> Answer {
    #[derive(Serialize)]
    struct Body {
        id: EntryId,
        held_by: usize,
        stored_by: usize,
    }
    let id = id.parse().map_err(|error: crate::id::ParseError| Failure::malformed(error.to_string()))?;
    let number = |text: String| text.parse().map_err(|_| Failure::malformed("count is a number"));
    let count = query.count.map_or(Ok(1), number)?;
    let wait = query.wait.map_or(Ok(WAIT_DEFAULT), |text| {
        read_duration(&text).ok_or_else(|| Failure::malformed("wait is a duration such as 5s"))
    })?;
    let on_disk = query.stored.is_some_and(|stored| stored != "0");
    let enough = async {
        match on_disk {
            true => handle.replicated(id, count).await,
            false => handle.held_by(id, count).await,
        }
    };
    // In time or not: both numbers are those of now.
    timeout(wait.min(WAIT_MAX), enough).await.unwrap_or(Ok(0))?;
    let (held_by, stored_by) = (handle.held_by(id, 0).await?, handle.replicated(id, 0).await?);
    Ok(json(StatusCode::OK, &Body { id, held_by, stored_by }))
}

/// A node, as the API and `welcome` show it.
#[derive(Serialize)]
pub(super) struct NodeObject<'a> {
    node: NodeId,
    name: &'a str,
    mesh: &'a str,
    epoch: Epoch,
    version: &'static str,
    listen: SocketAddr,
    addresses: Vec<SocketAddr>,
    open: bool,
}

impl NodeObject<'_> {
    pub fn of(handle: &Handle) -> NodeObject<'_> {
        let info = handle.info();
        NodeObject {
            node: info.run.node,
            name: &info.name,
            mesh: &info.mesh,
            epoch: info.run.epoch,
            version: env!("CARGO_PKG_VERSION"),
            listen: info.listen,
            addresses: handle.addresses().to_vec(),
            open: true,
        }
    }
}

/// A peer, as the API and `peers` show it.
#[derive(Serialize)]
pub(super) struct PeerObject<'a> {
    node: NodeId,
    epoch: Epoch,
    name: &'a str,
    state: PeerState,
    address: Option<SocketAddr>,
    found_by: FoundBy,
    rtt_ms: Option<f64>,
    last_seen_ms: Option<u64>,
    dropped: u64,
}

pub(super) fn peer_objects<'a>(peers: &'a [Peer]) -> Vec<PeerObject<'a>> {
    let now = Instant::now();
    let object = |peer: &'a Peer| {
        let Peer { run, name, state, address, found_by, rtt, last_heard, dropped } = peer;
        let seen_ms = |heard| u64::try_from(now.saturating_duration_since(heard).as_millis()).unwrap_or(u64::MAX);
        PeerObject {
            node: run.node,
            epoch: run.epoch,
            name,
            state: *state,
            address: *address,
            found_by: *found_by,
            rtt_ms: rtt.map(|rtt| rtt.as_micros() as f64 / 1e3),
            last_seen_ms: last_heard.map(seen_ms),
            dropped: *dropped,
        }
    };
    peers.iter().map(object).collect()
}

/// A room, as the API and `welcome` show it.
#[derive(Serialize)]
pub(super) struct RoomObject<'a> {
    room: &'a Room,
    messages: u64,
    last: String,
}

impl RoomObject<'_> {
    pub fn of(summary: &RoomSummary) -> RoomObject<'_> {
        RoomObject { room: &summary.room, messages: summary.messages, last: time(summary.last) }
    }
}

/// A message, as the API shows it, and as the `message` frame of a WebSocket, whose `type` is taken.
#[derive(Serialize)]
pub(super) struct MessageObject<'a> {
    /// The content type of what is not text; in a frame, the kind of frame.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    id: EntryId,
    room: &'a Room,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    name: &'a str,
    node: NodeId,
    time: String,
    via: Via,
    state: State,
    stored_by: usize,
    verified: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    late: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Key>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
}

impl<'a> MessageObject<'a> {
    pub fn of(message: &'a Message) -> MessageObject<'a> {
        let (text, mime, data) = match &message.payload {
            Payload::Text(text) => (Some(text.as_str()), None, None),
            Payload::Data { mime, data } => (None, Some(&**mime), Some(BASE64.encode(data))),
        };
        MessageObject {
            kind: mime,
            id: message.id,
            room: &message.room,
            text,
            content_type: None,
            data,
            name: &message.name,
            node: message.id.run.node,
            time: time(message.hlc),
            via: message.via,
            state: State::Sent,
            stored_by: 0,
            verified: false,
            late: message.late,
            key: message.key,
            cursor: None,
        }
    }

    /// The same as a frame, with a cursor where it ends a burst.
    pub fn frame(message: &'a Message, cursor: Option<String>) -> MessageObject<'a> {
        let object = MessageObject::of(message);
        MessageObject { kind: Some("message"), content_type: object.kind, cursor, ..object }
    }
}

/// RFC 3339 in UTC with milliseconds.
fn time(hlc: Hlc) -> String {
    let wall_ms = i64::try_from(hlc.wall_ms()).unwrap_or(i64::MAX);
    // A clock may be set beyond the year 9999, where RFC 3339 ends.
    let time = Timestamp::from_millisecond(wall_ms).unwrap_or(Timestamp::MAX);
    format!("{time:.3}")
}

fn read_room(name: &str) -> Result<Room, Failure> {
    Room::new(name).map_err(|error| PublishError::Room(error).into())
}

fn read_client_id(client_id: &str) -> Result<Key, Failure> {
    if (1..=CLIENT_ID_BYTES_MAX).contains(&client_id.len()) {
        Ok(Key::of_client_id(client_id))
    } else {
        Err(Failure::malformed(format!("a client_id has 1 to {CLIENT_ID_BYTES_MAX} bytes")))
    }
}

/// A display name; none, which stands for the node's own, if it is blank.
pub(super) fn read_name(name: &str) -> Result<Option<Arc<str>>, Failure> {
    let name = name.trim();
    if name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        let rule = format!("a name has at most {NAME_BYTES_MAX} bytes and no control characters");
        return Err(Failure::new(StatusCode::BAD_REQUEST, "name", rule));
    }
    Ok((!name.is_empty()).then(|| name.into()))
}

/// Milliseconds since 1970 of an RFC 3339 time, or of a duration before `now`.
fn read_since(text: &str, now: Timestamp) -> Result<u64, Failure> {
    let since_ms = match (text.parse::<Timestamp>(), read_duration(text)) {
        (Ok(time), _) => time.as_millisecond(),
        (_, Some(ago)) => now.as_millisecond().saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX)),
        _ => return Err(Failure::malformed("since is a time such as 2026-01-31T12:00:00Z, or a duration such as 10m")),
    };
    Ok(u64::try_from(since_ms).unwrap_or(0))
}

/// `5s`, `10m`, `1h30m`, `2d`.
fn read_duration(text: &str) -> Option<Duration> {
    let span = text.parse::<Span>().ok()?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
    Duration::try_from(duration).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Run, Seq};

    fn message(payload: Payload) -> Message {
        let run = Run { node: NodeId([7; 32]), epoch: Epoch(0xabc) };
        Message {
            id: EntryId { run, seq: Seq(42) },
            room: Room::lobby(),
            payload,
            name: "ada".into(),
            hlc: Hlc::at(1_769_860_800_123),
            via: Via::Mesh,
            key: None,
            late: false,
        }
    }

    #[test]
    fn a_message_object_has_the_fields_of_the_contract() {
        let node = NodeId([7; 32]);
        let text = message("hi <b>".into());
        let expected = format!(
            r#"{{"id":"{node}.0000000000000abc.42","room":"lobby","text":"hi <b>","name":"ada","node":"{node}","time":"2026-01-31T12:00:00.123Z","via":"mesh","state":"sent","stored_by":0,"verified":false}}"#
        );
        assert_eq!(to_text(&MessageObject::of(&text)), expected);
        let frame = to_text(&MessageObject::frame(&text, Some("abc".into())));
        assert!(frame.starts_with(r#"{"type":"message","id":"#) && frame.ends_with(r#","cursor":"abc"}"#), "{frame}");

        let late = Message { late: true, key: Some(Key([1; 16])), ..message(vec![0, 255].into()) };
        let object = to_text(&MessageObject::of(&late));
        for part in [r#""type":"application/octet-stream""#, r#""data":"AP8=""#, r#""late":true"#, r#""key":"0101"#] {
            assert!(object.contains(part), "{part} in {object}");
        }
        assert!(!object.contains("text"), "{object}");
        let frame = to_text(&MessageObject::frame(&late, None));
        assert!(
            frame.contains(r#""type":"message""#) && frame.contains(r#""content_type":"application/octet-stream""#)
        );
    }

    #[test]
    fn times_beyond_the_calendar_are_still_shown() {
        assert_eq!(time(Hlc::at(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(Hlc(u64::MAX)), "9999-12-30T22:00:00.999Z");
    }

    #[test]
    fn since_is_a_time_or_a_span_before_now() {
        let now = Timestamp::from_millisecond(1_769_860_800_000).unwrap();
        let ago = |seconds: u64| Ok(1_769_860_800_000 - seconds * 1_000);
        assert_eq!(read_since("2026-01-31T11:59:59.500Z", now), Ok(1_769_860_799_500));
        assert_eq!(read_since("2026-01-31T13:00:00+01:00", now), ago(0));
        assert_eq!(read_since("10m", now), ago(600));
        assert_eq!(read_since("1h30m", now), ago(5_400));
        assert_eq!(read_since("2d", now), ago(172_800));
        assert_eq!(read_since("9000d", now).map(|since| since > 0), Ok(true));
        assert_eq!(read_since("90000d", now), Ok(0));
        for bad in ["", "yesterday", "10", "-10m", "1mo"] {
            assert_eq!(read_since(bad, now).unwrap_err().code, "malformed", "{bad}");
        }
    }

    #[test]
    fn what_is_said_is_either_text_or_data_in_a_room_by_somebody() {
        let draft = |body: &str| serde_json::from_str::<Said>(body).unwrap().draft();
        let text = draft(r#"{"text":"hi","name":" ada ","client_id":"x"}"#).unwrap();
        assert_eq!((text.room.as_str(), text.payload.text(), text.name.as_deref()), ("lobby", Some("hi"), Some("ada")));
        assert_eq!(text.key, Some(Key::of_client_id("x")));
        let data = draft(r#"{"room":"x.y","type":"image/png","data":"AP8="}"#).unwrap();
        assert_eq!((data.room.as_str(), data.payload.bytes().as_ref(), data.name), ("x.y", &[0, 255][..], None));
        assert!(draft(r#"{"type":"a/b","data":""}"#).is_ok(), "data may be empty");
        let long = "x".repeat(CLIENT_ID_BYTES_MAX + 1);
        for (body, code) in [
            (r#"{}"#.to_string(), "malformed"),
            (r#"{"text":""}"#.into(), "malformed"),
            (r#"{"text":"a","data":"AP8="}"#.into(), "malformed"),
            (r#"{"type":"a/b","data":"%"}"#.into(), "malformed"),
            (r#"{"text":"a","client_id":""}"#.into(), "malformed"),
            (format!(r#"{{"text":"a","client_id":"{long}"}}"#), "malformed"),
            (r#"{"text":"a","name":"a\u0007"}"#.into(), "name"),
            (r#"{"text":"a","room":"Über"}"#.into(), "room"),
        ] {
            assert_eq!(draft(&body).unwrap_err().code, code, "{body}");
        }
    }

    #[test]
    fn a_page_is_asked_for_within_its_limits() {
        let query = |limit: &str| MessagesQuery { limit: Some(limit.into()), ..MessagesQuery::default() };
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(MessagesQuery::default().read(now).unwrap().limit, LIMIT_DEFAULT);
        assert_eq!(query("1000").read(now).unwrap().limit, LIMIT_MAX);
        for bad in ["0", "1001", "-1", "x", ""] {
            assert_eq!(query(bad).read(now).unwrap_err().code, "malformed", "{bad}");
        }
        let cursor = MessagesQuery { after: Some("%".into()), ..MessagesQuery::default() };
        assert_eq!(cursor.read(now).unwrap_err().code, "cursor");
    }
}
