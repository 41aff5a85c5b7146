//! The half that reads: what clients say is published in the order in which they say it, and answered once the disk has it.
//!
//! Nothing here waits for the disk before it reads on, up to a bound.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::super::api::{self, Failure, Said};
use super::super::objects::{NodeObject, RoomObject, bridge_objects, peer_objects};
use super::frames::{Incoming, Outgoing};
use super::line::Mouth;
use super::source::{AckEar, Acks, Given, Opened, Source};
use super::{End, Frames, Times, next_frame, say};
use crate::error::{PublishError, Stopped};
use crate::handle::{Begin, Cursor, Draft, Filter, Handle, PAYLOAD_BYTES_MAX, Peer, Published, Submitted};
use crate::id::Room;
use crate::web::Site;

/// The name under which plain clients speak.
const GUEST: &str = "guest";
/// Rooms named in `welcome`, the latest first; the API names them all.
const WELCOME_ROOMS_MAX: usize = 256;

/// What is written to a client because of what it said.
pub(super) enum Answer {
    Text(String),
    Accepted { client_id: Option<String>, published: Published },
}

/// A message that is published and not yet answered.
pub(super) struct Pending {
    client_id: Option<String>,
    submitted: Submitted,
}

/// Takes what a plain client says.
pub(super) async fn hear_plain(
    handle: &Handle,
    times: &Times,
    source: &mut Frames,
    pending: mpsc::Sender<Pending>,
) -> End {
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
        match handle.submit(vec![draft]).await {
            Ok(submitted) => {
                // Where nobody waits for the answer it is published all the same.
                let _ = pending.send(Pending { client_id: None, submitted }).await;
            }
            Err(error) => return plain_end(&error),
        }
    }
}

/// Ends a plain socket with the first message of it that is not kept.
pub(super) async fn settle_plain(mut pending: mpsc::Receiver<Pending>) -> End {
    while let Some(Pending { submitted, .. }) = pending.recv().await {
        if let Err(error) = submitted.published().await {
            return plain_end(&error);
        }
    }
    End::Gone
}

fn plain_end(error: &PublishError) -> End {
    match error {
        PublishError::TooLarge { .. } => End::TooLong,
        PublishError::DiskFull | PublishError::DiskFailing => End::NotKept,
        _ => End::Away,
    }
}

/// Answers what was published, in order, once it is on disk.
pub(super) async fn settle(mut pending: mpsc::Receiver<Pending>, answers: mpsc::Sender<Answer>) -> End {
    while let Some(Pending { client_id, submitted }) = pending.recv().await {
        let answer = match submitted.published().await.map(|published| published.first().copied()) {
            Ok(Some(published)) => Answer::Accepted { client_id, published },
            Ok(None) => continue,
            Err(error) => Answer::Text(Outgoing::error(&error.into(), client_id.as_deref())),
        };
        if answers.send(answer).await.is_err() {
            break;
        }
    }
    End::Gone
}

/// What a client's `hello` led to.
pub(super) struct Greeted {
    pub opened: Opened,
    pub client: Client,
    pub acks: Acks,
    /// A burst ends after so many messages, if the client said how many.
    pub burst: Option<usize>,
}

/// Waits for the client's `hello`, answers it, and opens what it wants to hear.
pub(super) async fn greet(site: &Site, peers: &[Peer], mouth: &mut Mouth, source: &mut Frames) -> Result<Greeted, End> {
    let Site { handle, times, .. } = site;
    let deadline = Instant::now() + times.hello;
    let mut first = loop {
        let frame = tokio::select! {
            frame = next_frame(source, times) => frame?,
            () = sleep_until(deadline) => break Incoming::default(),
        };
        match Incoming::read(&frame) {
            Ok(first) => break first,
            Err(failure) => say(mouth, times, Outgoing::error(&failure, None)).await?,
        }
    };
    let mut failures = Vec::new();
    let mut name = None;
    let (mut after, mut durable) = (None, None);
    let said_hello = first.kind == "hello";
    if said_hello {
        match rename(first.name.as_deref()) {
            Ok(said) => name = said,
            Err(failure) => failures.push(failure),
        }
        match first.after.as_deref().map(str::parse::<Cursor>) {
            Some(Ok(cursor)) => after = Some(cursor),
            Some(Err(_)) => failures.push(Failure::cursor()),
            None => {}
        }
        durable = first.durable.take();
    }
    let given = Given::default();
    let mut opened = None;
    if let Some(name) = &durable {
        let begin = after.clone().map_or(Begin::Now, Begin::After);
        match handle.durable(name, Filter::all(), begin).await {
            Ok(durable) => opened = Some((durable.acker(), Source::durable(durable, given.clone()))),
            Err(error) => failures.push(error.into()),
        }
    }
    let held = opened.is_some();
    let burst = first.burst.filter(|_| said_hello);
    let (acker, mut opened) = match opened {
        Some((acker, source)) => (Some(acker), Opened::Own(source)),
        None => (None, open(site, after, burst.is_some()).await.map_err(|_| End::Away)?),
    };
    let acks = Acks::new(acker, given);

    // A log that does not answer now has rooms all the same; the client hears of them as they are spoken in.
    let mut rooms = handle.rooms().await.unwrap_or_default();
    rooms.sort_by_key(|room| std::cmp::Reverse(room.last));
    rooms.truncate(WELCOME_ROOMS_MAX);
    let welcome = Outgoing::Welcome {
        node: NodeObject::of(handle),
        rooms: rooms.iter().map(RoomObject::of).collect(),
        peers: peer_objects(peers),
        bridges: bridge_objects(handle),
        cursor: opened.cursor(),
        durable: durable.as_deref().filter(|_| held),
    };
    say(mouth, times, welcome.text()).await?;
    for failure in failures {
        say(mouth, times, Outgoing::error(&failure, None)).await?;
    }
    let first = (!said_hello && !first.kind.is_empty()).then_some(first);
    let client = Client { name, first, acks: acks.ear() };
    Ok(Greeted { opened, client, acks, burst })
}

/// Opens what a client hears; one with bursts of its own hears by itself.
async fn open(site: &Site, after: Option<Cursor>, alone: bool) -> Result<Opened, Stopped> {
    let own = |subscription| Opened::Own(Source::Live(Box::new(subscription)));
    match after {
        Some(after) => site.handle.resume(Filter::all(), after).await.map(own),
        None if alone => site.handle.subscribe_prefix("").await.map(own),
        None => {
            let mut seat = site.live.seat().await?;
            // Whatever the seat is told that was said before this moment is covered, and passed over.
            seat.covers(site.handle.subscribe_prefix("").await?.cursor());
            Ok(Opened::Shared(seat))
        }
    }
}

fn rename(name: Option<&str>) -> Result<Option<Arc<str>>, Failure> {
    Ok(name.map(api::read_name).transpose()?.flatten())
}

/// A client that speaks `hubless.v1`.
pub(super) struct Client {
    /// Who speaks; none stands for the node's own name.
    name: Option<Arc<str>>,
    /// What it said instead of `hello`.
    first: Option<Incoming>,
    acks: AckEar,
}

impl Client {
    /// Does what the client asks for, in order.
    pub async fn hear(
        mut self,
        handle: &Handle,
        times: &Times,
        source: &mut Frames,
        answers: mpsc::Sender<Answer>,
        pending: mpsc::Sender<Pending>,
    ) -> End {
        loop {
            let incoming = match self.first.take() {
                Some(first) => Ok(first),
                None => match next_frame(source, times).await {
                    Ok(frame) => Incoming::read(&frame),
                    Err(end) => return end,
                },
            };
            let client_id = incoming.as_ref().ok().and_then(|incoming| incoming.client_id.clone());
            let done = match incoming {
                Ok(incoming) => self.obey(handle, incoming).await,
                Err(failure) => Err(failure),
            };
            // Where nobody takes the answer any more, what was said counts all the same.
            match done {
                Ok(Done::Published(submitted)) => _ = pending.send(Pending { client_id, submitted }).await,
                Ok(Done::Answered(text)) => _ = answers.send(Answer::Text(text)).await,
                Ok(Done::Silent) => {}
                Err(failure) => {
                    let text = Outgoing::error(&failure, client_id.as_deref());
                    let _ = answers.send(Answer::Text(text)).await;
                }
            }
        }
    }

    async fn obey(&mut self, handle: &Handle, incoming: Incoming) -> Result<Done, Failure> {
        let Incoming { kind, name, client_id, room, text, content_type, data, cursor, after: _, durable: _, burst: _ } =
            incoming;
        match kind.as_str() {
            "send" => {
                let draft = Said { room, text, mime: content_type, data, name, client_id }.draft()?;
                let name = draft.name.clone().or_else(|| self.name.clone());
                Ok(Done::Published(handle.submit(vec![Draft { name, ..draft }]).await?))
            }
            "name" => {
                self.name = rename(name.as_deref())?;
                Ok(Done::Silent)
            }
            "ping" => Ok(Done::Answered(Outgoing::Pong.text())),
            "ack" => self.acks.ack(cursor).map(|()| Done::Silent),
            "hello" => Err(Failure::malformed("hello is the first frame only")),
            _ => Err(Failure::malformed("there is no such type of frame")),
        }
    }
}

/// What became of a frame.
enum Done {
    Published(Submitted),
    Answered(String),
    Silent,
}
