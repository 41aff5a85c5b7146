//! What the API answers: JSON in and out, under `/api/v1`, and the health of the node.
//!
//! What is about the log as a whole is in `history.rs`. Nothing here knows a socket.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut};
use data_encoding::BASE64;
use futures_util::{Stream, StreamExt};
use jiff::{Span, SpanRelativeTo, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::timeout;
use warp::http::{HeaderValue, StatusCode, header};
use warp::reject::{InvalidQuery, MethodNotAllowed, Rejection};
use warp::reply::{Reply, Response};

use super::BODY_BYTES_MAX;
use super::guard::Foreign;
use super::objects::{BridgeObject, MessageObject, NodeObject, RoomObject, bridge_objects, peer_objects};
use crate::error::{DurableError, HistoryError, PublishError, Stopped};
use crate::handle::{
    Draft, Handle, HistoryHealth, Message, NAME_BYTES_MAX, Page, Payload, PeerState, Place, Query, Standing, State,
};
use crate::id::{EntryId, Key, Room};

/// The longest client id, in bytes.
pub const CLIENT_ID_BYTES_MAX: usize = 64;
/// Messages in a page, unless asked otherwise.
const LIMIT_DEFAULT: usize = 100;
/// The most messages in a page.
const LIMIT_MAX: usize = 1_000;
/// Of a body that is too large so much is read and thrown away, so that its sender gets to hear the answer.
pub(super) const DISCARD_BYTES_MAX: usize = 16 * BODY_BYTES_MAX;
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
                Foreign::Token => {
                    let message = "from another machine this needs the token that the node printed: \
                        `Authorization: Bearer TOKEN`, or `?token=TOKEN`";
                    (StatusCode::UNAUTHORIZED, "token", message)
                }
                Foreign::Rate => (StatusCode::TOO_MANY_REQUESTS, "rate", "too many requests from this address"),
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

impl From<DurableError> for Failure {
    fn from(error: DurableError) -> Failure {
        let (status, code) = match error {
            DurableError::Name => (StatusCode::BAD_REQUEST, "durable_name"),
            DurableError::NoHistory => (StatusCode::NOT_FOUND, "not_available"),
            DurableError::History(error) => return error.into(),
            DurableError::Replaced => (StatusCode::CONFLICT, "replaced"),
            DurableError::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "stopped"),
        };
        Failure::new(status, code, error.to_string())
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

pub(super) type Answer = Result<Response, Failure>;

/// `GET /readyz`.
pub(super) fn readyz(handle: &Handle) -> Response {
    #[derive(Serialize)]
    struct Ready {
        ready: bool,
        peers: usize,
        history: bool,
        bridges: Vec<BridgeObject>,
    }
    let ready = !is_stopped(handle);
    let peers = handle.peers().iter().filter(|peer| peer.state == PeerState::Up).count();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let history = handle.history_health() == HistoryHealth::Working;
    let bridges = bridge_objects(handle);
    json(status, &Ready { ready, peers, history, bridges })
}

/// The node holds the other end of this for as long as it lives.
fn is_stopped(handle: &Handle) -> bool {
    handle.peers_changed().has_changed().is_err()
}

/// `GET /metrics`.
pub(super) async fn metrics(handle: &Handle) -> Response {
    let metrics = handle.metrics();
    metrics.history_working.set(i64::from(handle.history_health() == HistoryHealth::Working));
    if let Ok(durables) = handle.durables().await {
        metrics.durables.set(i64::try_from(durables.len()).unwrap_or(i64::MAX));
    }
    let mut response = Response::new(handle.metrics().encode().into());
    let format = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, format);
    response
}

/// `GET /api/v1/node`.
pub(super) fn node(handle: &Handle) -> Response {
    json(StatusCode::OK, &NodeObject::of(handle))
}

/// `GET /api/v1/bridges`.
pub(super) fn bridges(handle: &Handle) -> Response {
    json(StatusCode::OK, &bridge_objects(handle))
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
    /// Walks from the oldest to the newest: empty to begin, then what the page before gave.
    next: Option<String>,
    since: Option<String>,
    until: Option<String>,
    grep: Option<String>,
    limit: Option<String>,
}

/// What a page is of.
#[derive(Debug)]
enum Wanted {
    /// The newest, or what a cursor does not cover.
    Page(Query),
    /// What comes after a place.
    Walk(Query, Option<Place>),
}

/// `GET /api/v1/messages`.
pub(super) async fn messages(handle: &Handle, searching: &Arc<Mutex<()>>, query: MessagesQuery) -> Answer {
    #[derive(Serialize)]
    struct PageBody<'a> {
        messages: Vec<MessageObject<'a>>,
        after: String,
        before: Option<String>,
        /// What the cursor does not cover and is not to be had any more.
        #[serde(skip_serializing_if = "Option::is_none")]
        expired: Option<u64>,
    }
    #[derive(Serialize)]
    struct WalkBody<'a> {
        messages: Vec<MessageObject<'a>>,
        next: Option<String>,
    }
    match query.read(Timestamp::now())? {
        Wanted::Page(query) => {
            let page = match query.grep {
                None => handle.messages(query).await,
                Some(_) => search(handle.clone(), searching.clone(), query).await,
            };
            let Page { messages, after, before, expired } = page?;
            let body = PageBody {
                messages: objects(handle, &messages).await?,
                after: after.to_string(),
                before: before.map(|place| place.to_string()),
                expired: (expired > 0).then_some(expired),
            };
            Ok(json(StatusCode::OK, &body))
        }
        Wanted::Walk(query, from) => {
            let limit = query.limit;
            let (mut messages, mut next) = handle.scan(query, from).await?;
            // A node without a history answers with all that it holds.
            messages.retain(|message| from.is_none_or(|from| from < message.place()));
            if messages.len() > limit {
                messages.truncate(limit);
                next = messages.last().map(Message::place);
            }
            let next = next.map(|place| place.to_string());
            Ok(json(StatusCode::OK, &WalkBody { messages: objects(handle, &messages).await?, next }))
        }
    }
}

/// Looks for words, after all who look already. Publishes and pages read the log meanwhile: it goes on, and others wait for
/// it, also when whoever asked has gone.
async fn search(handle: Handle, searching: Arc<Mutex<()>>, query: Query) -> Result<Page, HistoryError> {
    let alone = searching.lock_owned().await;
    let looking = tokio::spawn(async move {
        let page = handle.messages(query).await;
        drop(alone);
        page
    });
    looking.await.unwrap_or(Err(HistoryError::Closed))
}

/// Messages as they are shown, each with how safe it is.
pub(super) async fn objects<'a>(handle: &Handle, messages: &'a [Message]) -> Result<Vec<MessageObject<'a>>, Stopped> {
    let standings = handle.standing(messages.iter().map(|message| message.id).collect()).await?;
    Ok(messages.iter().zip(standings).map(|(message, standing)| MessageObject::of(message, standing)).collect())
}

impl MessagesQuery {
    fn read(self, now: Timestamp) -> Result<Wanted, Failure> {
        let MessagesQuery { room, after, before, next, since, until, grep, limit } = self;
        let limit = match limit {
            None => LIMIT_DEFAULT,
            Some(text) => text
                .parse()
                .ok()
                .filter(|limit| (1..=LIMIT_MAX).contains(limit))
                .ok_or_else(|| Failure::malformed(format!("limit is 1 to {LIMIT_MAX}")))?,
        };
        let place = |name: &'static str| {
            move |text: String| {
                text.parse().map_err(|_| Failure::malformed(format!("{name} is what an earlier page gave")))
            }
        };
        let query = Query {
            room: room.as_deref().map(read_room).transpose()?,
            after: after.map(|text| text.parse().map_err(|_| Failure::cursor())).transpose()?,
            before: before.map(place("before")).transpose()?,
            since_ms: since.map(|text| read_time(&text, "since", now)).transpose()?,
            until_ms: until.map(|text| read_time(&text, "until", now)).transpose()?,
            grep: grep.filter(|part| !part.is_empty()),
            limit,
        };
        let Some(next) = next else { return Ok(Wanted::Page(query)) };
        if query.after.is_some() || query.before.is_some() {
            return Err(Failure::malformed("a page is asked for by one of after, before and next"));
        }
        let next = (!next.is_empty()).then_some(next).map(place("next")).transpose()?;
        Ok(Wanted::Walk(query, next))
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
    let said: Said = read_json(body).await?;
    let published = handle.publish_with(said.draft()?).await?;
    Ok(json(StatusCode::CREATED, &Body { id: published.id, state: published.state }))
}

async fn read_json<T: DeserializeOwned>(body: impl Stream<Item = Result<impl Buf, warp::Error>>) -> Result<T, Failure> {
    let body = timeout(BODY_WAIT, read_body(body))
        .await
        .unwrap_or_else(|_| Err(Failure::new(StatusCode::REQUEST_TIMEOUT, "too_slow", "the body took too long")))?;
    serde_json::from_slice(&body).map_err(|error| Failure::malformed(error.to_string()))
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
    /// So many other nodes hold it, be it in memory.
    count: Option<String>,
    /// So many nodes other than its author have it on disk.
    stored: Option<String>,
    wait: Option<String>,
}

/// `GET /api/v1/messages/ID/held`: how many other nodes hold a message and have it on disk, once they are as many as asked
/// for, or after `wait`.
pub(super) async fn held(handle: &Handle, id: &str, query: HeldQuery) -> Answer {
    #[derive(Serialize)]
    struct Body {
        id: EntryId,
        held_by: usize,
        stored_by: usize,
        state: State,
    }
    let id = id.parse().map_err(|error: crate::id::ParseError| Failure::malformed(error.to_string()))?;
    let number = |name: &'static str| {
        move |text: String| text.parse().map_err(|_| Failure::malformed(format!("{name} is a number")))
    };
    let stored: Option<usize> = query.stored.map(number("stored")).transpose()?;
    let count = query.count.map(number("count")).transpose()?.unwrap_or(usize::from(stored.is_none()));
    let wait = query.wait.map_or(Ok(WAIT_DEFAULT), |text| {
        read_duration(&text).ok_or_else(|| Failure::malformed("wait is a duration such as 5s"))
    })?;
    let safe = async {
        handle.held_by(id, count).await?;
        handle.replicated(id, stored.unwrap_or(0)).await
    };
    if let Ok(safe) = timeout(wait.min(WAIT_MAX), safe).await {
        safe?;
    }
    let held_by = handle.held_by(id, 0).await?;
    let standing = handle.standing(vec![id]).await?;
    let (state, stored_by) = standing.first().map_or((State::Sent, 0), |found| (found.state, found.stored_by));
    Ok(json(StatusCode::OK, &Body { id, held_by, stored_by, state }))
}

/// The body of `POST /api/v1/messages/held`.
#[derive(Debug, Deserialize)]
struct HeldBody {
    ids: Vec<String>,
    #[serde(default)]
    count: usize,
    #[serde(default)]
    stored: usize,
    wait: Option<String>,
}

/// `POST /api/v1/messages/held`: the same of many messages, once all of them are as safe as asked for, or after `wait`.
pub(super) async fn held_all(handle: &Handle, body: impl Stream<Item = Result<impl Buf, warp::Error>>) -> Answer {
    #[derive(Serialize)]
    struct Body {
        id: EntryId,
        held_by: usize,
        stored_by: usize,
        state: State,
    }
    let HeldBody { ids, count, stored, wait } = read_json(body).await?;
    if ids.len() > LIMIT_MAX {
        return Err(Failure::malformed(format!("at most {LIMIT_MAX} ids")));
    }
    let parsed = ids.iter().map(|id| id.parse()).collect::<Result<Vec<EntryId>, _>>();
    let ids = parsed.map_err(|error: crate::id::ParseError| Failure::malformed(error.to_string()))?;
    let wait = wait.map_or(Some(WAIT_DEFAULT), |text| read_duration(&text));
    let wait = wait.ok_or_else(|| Failure::malformed("wait is a duration such as 5s"))?.min(WAIT_MAX);
    let began = Instant::now();
    loop {
        let standings = handle.standing(ids.clone()).await?;
        let mut found = Vec::new();
        for (id, Standing { state, stored_by }) in ids.iter().copied().zip(standings) {
            // Whoever has it on disk holds it; the others are asked for one by one where it matters.
            let held_by = if stored_by >= count.max(1) { stored_by } else { handle.held_by(id, 0).await? };
            found.push(Body { id, held_by, stored_by, state });
        }
        let unsafe_one = found.iter().rev().find(|one| one.held_by < count || one.stored_by < stored);
        let left = wait.saturating_sub(began.elapsed());
        let Some(&Body { id, .. }) = unsafe_one.filter(|_| !left.is_zero()) else {
            return Ok(json(StatusCode::OK, &found));
        };
        // Most often all become safe together, so the last one is waited for.
        let safe = async {
            handle.held_by(id, count).await?;
            handle.replicated(id, stored).await
        };
        timeout(left, safe).await.unwrap_or(Ok(0))?;
    }
}

pub(super) fn read_room(name: &str) -> Result<Room, Failure> {
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
fn read_time(text: &str, name: &str, now: Timestamp) -> Result<u64, Failure> {
    let time_ms = match (text.parse::<Timestamp>(), read_duration(text)) {
        (Ok(time), _) => time.as_millisecond(),
        (_, Some(ago)) => now.as_millisecond().saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX)),
        _ => {
            let rule = format!("{name} is a time such as 2026-01-31T12:00:00Z, or a duration such as 10m");
            return Err(Failure::malformed(rule));
        }
    };
    Ok(u64::try_from(time_ms).unwrap_or(0))
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

    #[test]
    fn since_is_a_time_or_a_span_before_now() {
        let now = Timestamp::from_millisecond(1_769_860_800_000).unwrap();
        let ago = |seconds: u64| Ok(1_769_860_800_000 - seconds * 1_000);
        assert_eq!(read_time("2026-01-31T11:59:59.500Z", "since", now), Ok(1_769_860_799_500));
        assert_eq!(read_time("2026-01-31T13:00:00+01:00", "since", now), ago(0));
        assert_eq!(read_time("10m", "since", now), ago(600));
        assert_eq!(read_time("1h30m", "since", now), ago(5_400));
        assert_eq!(read_time("2d", "since", now), ago(172_800));
        assert_eq!(read_time("9000d", "since", now).map(|since| since > 0), Ok(true));
        assert_eq!(read_time("90000d", "since", now), Ok(0));
        for bad in ["", "yesterday", "10", "-10m", "1mo"] {
            assert_eq!(read_time(bad, "since", now).unwrap_err().code, "malformed", "{bad}");
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
        let limit = |query: MessagesQuery| match query.read(now).unwrap() {
            Wanted::Page(query) | Wanted::Walk(query, _) => query.limit,
        };
        assert_eq!(limit(MessagesQuery::default()), LIMIT_DEFAULT);
        assert_eq!(limit(query("1000")), LIMIT_MAX);
        let walk = |next: &str| MessagesQuery { next: Some(next.into()), ..MessagesQuery::default() };
        assert!(matches!(walk("").read(now), Ok(Wanted::Walk(_, None))));
        assert_eq!(walk("x").read(now).unwrap_err().code, "malformed");
        let both = MessagesQuery { before: Some("x".into()), ..walk("") };
        assert_eq!(both.read(now).unwrap_err().code, "malformed");
        for bad in ["0", "1001", "-1", "x", ""] {
            assert_eq!(query(bad).read(now).unwrap_err().code, "malformed", "{bad}");
        }
        let cursor = MessagesQuery { after: Some("%".into()), ..MessagesQuery::default() };
        assert_eq!(cursor.read(now).unwrap_err().code, "cursor");
    }
}
