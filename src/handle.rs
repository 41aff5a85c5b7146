//! What a program, the page and a bridge hold in their hands.
//!
//! A [`Handle`] is cheap to clone and does nothing itself: it asks the node's event loop. Nothing here blocks a runtime,
//! and any runtime will do: the node has a thread of its own. Dropping the last handle stops the node.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};

use crate::error::{PublishError, Stopped};
use crate::id::{EntryId, Key, ParseError, Room, Run};
use crate::metrics::Metrics;
use crate::replica::batch::{Batch, Entry};
use crate::replica::version::{Coverage, RunHashes};

pub use crate::replica::batch::{Draft, NAME_BYTES_MAX, PAYLOAD_BYTES_MAX, Payload, Text, Via};
pub use crate::replica::clock::Hlc;
pub use crate::replica::keys::Place;
pub use crate::replica::version::{Cursor, CursorError};
pub use crate::subscription::{Delivery, Filter, Gap, GapReason, Message, Subscription};

/// A running node, as its users see it. Cheap to clone; the last one dropped stops the node.
#[derive(Clone, Debug)]
pub struct Handle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub info: Info,
    pub publish: mpsc::Sender<Submission>,
    pub ask: mpsc::Sender<Ask>,
    pub peers: watch::Receiver<Arc<[Peer]>>,
    pub addresses: watch::Receiver<Arc<[SocketAddr]>>,
    pub events: broadcast::Sender<Event>,
    pub metrics: Metrics,
    /// One who decodes the whole window at a time.
    pub aside: Semaphore,
}

/// What a node is called and where it is reached.
#[derive(Clone, Debug)]
pub struct Info {
    /// This life of the node.
    pub run: Run,
    /// Display name.
    pub name: Arc<str>,
    /// Name of the mesh.
    pub mesh: Arc<str>,
    /// Where it listens for peers, with the real port.
    pub listen: SocketAddr,
    /// Interfaces that discovery used at the start, and those passed over, with the reason.
    pub interfaces: Arc<[Interface]>,
    /// Its data folder, if it has one.
    pub data_dir: Option<PathBuf>,
}

/// A network interface as discovery sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name, such as `eth0`.
    pub name: String,
    /// Why it is not used; none if it is used.
    pub skipped: Option<&'static str>,
}

/// Drafts on their way to the event loop.
#[derive(Debug)]
pub(crate) struct Submission {
    pub drafts: Vec<Draft>,
    pub reply: oneshot::Sender<Result<Vec<Published>, PublishError>>,
}

/// What handles ask of the event loop, publishing aside.
#[derive(Debug)]
pub(crate) enum Ask {
    Subscribe { filter: Filter, after: Option<Cursor>, reply: oneshot::Sender<Subscription> },
    Window { after: Option<Cursor>, reply: oneshot::Sender<Window> },
    HeldBy { id: EntryId, count: usize, reply: oneshot::Sender<usize> },
    Shutdown { reply: oneshot::Sender<()> },
}

/// Everything the node holds at one moment.
#[derive(Debug)]
pub(crate) struct Window {
    /// Oldest first.
    pub batches: Vec<Batch>,
    /// Covers all of it.
    pub cursor: Cursor,
    /// The cursor of whoever asked, and how much it does not cover that is not to be had any more.
    pub after: Option<Cursor>,
    pub expired: u64,
}

/// What became of a published message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Its id.
    pub id: EntryId,
    /// How safe it is by now.
    pub state: State,
    /// Its key was known: this is the id of the first one, and nothing was stored.
    pub known: bool,
}

/// How safe a message is on its author's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// In memory and on its way to peers.
    Sent,
}

/// Another node, as seen from this one.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    /// Which life of which node.
    pub run: Run,
    /// Its display name, empty until it said so.
    pub name: Arc<str>,
    /// What is known of it.
    pub state: PeerState,
    /// Where it is reached.
    pub address: Option<SocketAddr>,
    /// How it was found.
    pub found_by: FoundBy,
    /// Round-trip time of the last heartbeat that measured it.
    pub rtt: Option<Duration>,
    /// When it was last heard.
    pub last_heard: Option<Instant>,
    /// Bytes dropped on the way to it and left to repair.
    pub dropped: u64,
}

/// What is known of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerState {
    /// Heard, and hears us.
    Up,
    /// Heard, but does not hear us, or the other way round.
    OneWay,
    /// Not heard for 3 s.
    Suspect,
    /// Gone: said goodbye, or not heard for 8 s.
    Down,
    /// Kept apart by its mesh name or version; seen within the last 10 minutes.
    Incompatible,
}

/// The rung of the discovery ladder on which a peer was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FoundBy {
    /// Announced through mDNS.
    Mdns,
    /// Named by another peer, or it called first.
    Gossip,
    /// Remembered from last time.
    Memory,
    /// Given as a seed.
    Seed,
}

/// What happens around a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A peer is up both ways.
    PeerUp(Peer),
    /// A peer was not heard for 3 s, or is heard one way only.
    PeerSuspect(Peer),
    /// A peer is gone.
    PeerDown(Peer),
    /// Messages are missing.
    Gap(Gap),
    /// A neighbour is kept apart; told once a minute.
    Apart {
        /// Where it is.
        address: SocketAddr,
        /// Why, and what to do.
        reason: String,
    },
    /// A peer did not take what was sent and was cut; it gets what it missed by repair.
    PeerCut(Peer),
    /// Another process runs with a copy of this node's data folder.
    Cloned(Peer),
    /// Interfaces came or went: these are the addresses at which peers can reach this node now.
    Addresses(Arc<[SocketAddr]>),
}

/// A stretch of messages, ascending by time.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// The messages.
    pub messages: Vec<Message>,
    /// Goes on from here: covers what was given, and all that was held where the newest were asked for.
    pub after: Cursor,
    /// Scrolls back from here; none where there is nothing older.
    pub before: Option<Place>,
    /// How many messages, at most, `Query::after` does not cover that are not to be had any more.
    pub expired: u64,
}

/// Which messages are wanted.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Of this room only.
    pub room: Option<Room>,
    /// What this cursor does not cover, the oldest first; none: the newest.
    pub after: Option<Cursor>,
    /// Only what is before this place.
    pub before: Option<Place>,
    /// Only what was said at this time or later, in milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// At most so many.
    pub limit: usize,
}

/// A room that something was said in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomSummary {
    /// Its name.
    pub room: Room,
    /// How many messages the node holds of it.
    pub messages: u64,
    /// When the newest of them was said.
    pub last: Hlc,
}

impl Handle {
    pub(crate) fn new(inner: Inner) -> Handle {
        Handle { inner: Arc::new(inner) }
    }

    /// What the node is called and where it is reached.
    pub fn info(&self) -> &Info {
        &self.inner.info
    }

    /// What the node counts.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Publishes one message and answers with its id and state.
    ///
    /// Waits only while every peer that takes messages at all is far behind. Dropping the future does not take the
    /// message back once the node has it.
    ///
    /// # Errors
    /// [`PublishError`]; the message was not published.
    pub async fn publish<R>(&self, room: R, payload: impl Into<Payload>) -> Result<Published, PublishError>
    where
        R: TryInto<Room>,
        R::Error: Into<ParseError>,
    {
        let room = room.try_into().map_err(Into::into)?;
        self.publish_with(Draft::new(room, payload)).await
    }

    /// Publishes one message of which more is said than room and payload. As [`Handle::publish`].
    ///
    /// # Errors
    /// [`PublishError`]; the message was not published.
    pub async fn publish_with(&self, draft: Draft) -> Result<Published, PublishError> {
        let published = self.publish_all(vec![draft]).await?;
        published.first().copied().ok_or(PublishError::Stopped)
    }

    /// Publishes many messages at once, in order, and answers for each. As [`Handle::publish`].
    ///
    /// # Errors
    /// [`PublishError`]; none of them was published.
    pub async fn publish_all(&self, drafts: Vec<Draft>) -> Result<Vec<Published>, PublishError> {
        if drafts.is_empty() {
            return Ok(Vec::new());
        }
        drafts.iter().try_for_each(check)?;
        let (reply, answer) = oneshot::channel();
        self.inner.publish.send(Submission { drafts, reply }).await.map_err(|_| PublishError::Stopped)?;
        answer.await.unwrap_or(Err(PublishError::Stopped))
    }

    /// What is said in `room` from now on.
    ///
    /// # Errors
    /// [`PublishError::Room`] if the name is out of rules, [`PublishError::Stopped`].
    pub async fn subscribe<R>(&self, room: R) -> Result<Subscription, PublishError>
    where
        R: TryInto<Room>,
        R::Error: Into<ParseError>,
    {
        let room = room.try_into().map_err(Into::into)?;
        Ok(self.open(Filter::Room(room), None).await?)
    }

    /// What is said from now on in all rooms whose names begin with `prefix`; the empty prefix means all rooms.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn subscribe_prefix(&self, prefix: &str) -> Result<Subscription, Stopped> {
        self.open(Filter::Prefix(prefix.into()), None).await
    }

    /// What `after` does not cover, as far as the node holds it, then what is said from now on and what turns up late,
    /// each message once.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn resume(&self, filter: Filter, after: Cursor) -> Result<Subscription, Stopped> {
        self.open(filter, Some(after)).await
    }

    async fn open(&self, filter: Filter, after: Option<Cursor>) -> Result<Subscription, Stopped> {
        self.ask(|reply| Ask::Subscribe { filter, after, reply }).await
    }

    /// The addresses at which peers can reach this node now.
    pub fn addresses(&self) -> Arc<[SocketAddr]> {
        self.inner.addresses.borrow().clone()
    }

    /// All peers known, sorted by name.
    pub fn peers(&self) -> Arc<[Peer]> {
        self.inner.peers.borrow().clone()
    }

    /// Told whenever [`Handle::peers`] changed.
    pub fn peers_changed(&self) -> watch::Receiver<Arc<[Peer]>> {
        self.inner.peers.clone()
    }

    /// Waits until at least `count` peers are up both ways. Cancellation safe.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn wait_for_peers(&self, count: usize) -> Result<(), Stopped> {
        let mut peers = self.inner.peers.clone();
        let up = |peers: &Arc<[Peer]>| peers.iter().filter(|peer| peer.state == PeerState::Up).count() >= count;
        peers.wait_for(up).await.map(|_| ()).map_err(|_| Stopped)
    }

    /// What happens around the node from now on. A receiver that falls 1,024 events behind misses the oldest.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    /// Waits until `count` other nodes hold `id` in memory or on disk, and answers how many do. Cancellation safe: give it
    /// a time-out.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn held_by(&self, id: EntryId, count: usize) -> Result<usize, Stopped> {
        self.ask(|reply| Ask::HeldBy { id, count, reply }).await
    }

    /// Messages that the node holds, by time.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn messages(&self, query: Query) -> Result<Page, Stopped> {
        let Query { after, .. } = query.clone();
        let window = self.ask(|reply| Ask::Window { after, reply }).await?;
        self.aside(move || page(window, query)).await
    }

    /// The rooms that the node holds messages of, by name.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn rooms(&self) -> Result<Vec<RoomSummary>, Stopped> {
        let window = self.ask(|reply| Ask::Window { after: None, reply }).await?;
        self.aside(move || rooms(&window)).await
    }

    /// Does work that may take long, one at a time and beside the caller's runtime, if there is one.
    async fn aside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Stopped> {
        let _one = self.inner.aside.acquire().await.map_err(|_| Stopped)?;
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => runtime.spawn_blocking(work).await.map_err(|_| Stopped),
            Err(_) => Ok(work()),
        }
    }

    /// Says goodbye to peers, lets what is queued go out, and stops the node. Answers when it has stopped.
    pub async fn shutdown(&self) {
        // Somebody else's shutdown is as good.
        let _ = self.ask(|reply| Ask::Shutdown { reply }).await;
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.inner.ask.send(ask(reply)).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }
}

fn check(draft: &Draft) -> Result<(), PublishError> {
    if draft.payload.len() > PAYLOAD_BYTES_MAX {
        return Err(PublishError::TooLarge { bytes: draft.payload.len(), max: PAYLOAD_BYTES_MAX });
    }
    if draft.name.as_ref().is_some_and(|name| name.len() > NAME_BYTES_MAX) {
        return Err(PublishError::TooLong("name"));
    }
    match &draft.payload {
        Payload::Data { mime, .. } if mime.len() > NAME_BYTES_MAX => Err(PublishError::TooLong("content type")),
        _ => Ok(()),
    }
}

/// Picks and sorts what `query` wants out of a window.
fn page(window: Window, query: Query) -> Page {
    let Query { room, before, since_ms, limit, .. } = query;
    let Window { batches, cursor: all, after, expired } = window;
    let mut hashes = RunHashes::default();
    let twins = twins(&batches);
    let wanted = |entry: &Entry| {
        let place = Place { hlc: entry.hlc, id: entry.id };
        room.as_ref().is_none_or(|room| *room == entry.room)
            && since_ms.is_none_or(|since| entry.hlc.wall_ms() >= since)
            && before.is_none_or(|before| place < before)
            && !twins.contains(&entry.id)
    };
    let in_time = |batch: &Batch| {
        since_ms.is_none_or(|since| batch.hlc_last().wall_ms() >= since)
            && before.is_none_or(|before| batch.hlc() <= before.hlc)
    };
    let mut found: BTreeMap<Place, Entry> = BTreeMap::new();
    let Some(mut cursor) = after else {
        // The newest, and one more that tells whether there are older ones.
        for batch in batches.iter().rev().filter(|batch| in_time(batch)) {
            let full = found.len() > limit;
            if full && found.first_key_value().is_some_and(|(oldest, _)| batch.hlc_last() < oldest.hlc) {
                continue;
            }
            found.extend(batch.entries().flatten().filter(wanted).map(|entry| (Place::of(&entry), entry)));
            while found.len() > limit + 1 {
                found.pop_first();
            }
        }
        let older = found.len() > limit && found.pop_first().is_some();
        let before = found.first_key_value().map(|(place, _)| *place).filter(|_| older);
        return Page { messages: messages(found), after: all, before, expired };
    };
    let mut cut = false;
    for batch in batches.iter().filter(|batch| in_time(batch)) {
        let full = found.len() >= limit;
        if full && found.last_key_value().is_some_and(|(newest, _)| batch.hlc() > newest.hlc) {
            cut = true;
            continue;
        }
        let origin = hashes.of(batch.origin());
        let coverage = cursor.coverage(origin, batch);
        if coverage == Coverage::All {
            continue;
        }
        let fresh = |entry: &Entry| coverage == Coverage::None || !cursor.covers(origin, entry.id.seq, entry.hlc);
        let entries = batch.entries().flatten().filter(|entry| fresh(entry) && wanted(entry));
        found.extend(entries.map(|entry| (Place::of(&entry), entry)));
        while found.len() > limit {
            cut = found.pop_last().is_some();
        }
    }
    // Everything up to the last one given is given, or passed over for ever.
    let last = found.last_key_value().map(|(place, _)| *place).filter(|_| cut);
    for batch in &batches {
        let origin = hashes.of(batch.origin());
        match last {
            Some(last) if batch.hlc() > last.hlc => {}
            Some(last) if batch.hlc_last() >= last.hlc => {
                for entry in batch.entries().flatten().filter(|entry| Place::of(entry) <= last) {
                    cursor.add(origin, entry.id.seq, entry.id.seq, entry.hlc);
                }
            }
            _ => cursor.add(origin, batch.first(), batch.last(), batch.hlc_last()),
        }
    }
    Page { messages: messages(found), after: cursor, before: None, expired }
}

fn messages(found: BTreeMap<Place, Entry>) -> Vec<Message> {
    found.into_values().map(|entry| Message::new(entry, false)).collect()
}

fn rooms(window: &Window) -> Vec<RoomSummary> {
    let twins = twins(&window.batches);
    let mut rooms = BTreeMap::<Room, RoomSummary>::new();
    for entry in window.batches.iter().flat_map(Batch::entries).flatten().filter(|entry| !twins.contains(&entry.id)) {
        let Entry { room, hlc, .. } = entry;
        let empty = RoomSummary { room: room.clone(), messages: 0, last: hlc };
        let summary = rooms.entry(room).or_insert(empty);
        summary.messages += 1;
        summary.last = summary.last.max(hlc);
    }
    rooms.into_values().collect()
}

/// Of entries with one key all but the smallest.
fn twins(batches: &[Batch]) -> HashSet<EntryId> {
    let mut smallest: HashMap<Key, Place> = HashMap::new();
    let mut twins = HashSet::new();
    for batch in batches {
        for (id, key) in batch.keys().unwrap_or_default() {
            let place = Place { hlc: batch.hlc().plus(id.seq.0 - batch.first().0), id };
            let first = smallest.entry(key).or_insert(place);
            if *first != place {
                twins.insert(place.max(*first).id);
                *first = place.min(*first);
            }
        }
    }
    twins
}
