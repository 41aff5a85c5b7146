//! What a program, the page and a bridge hold in their hands.
//!
//! A [`Handle`] is cheap to clone and does nothing itself: it asks the node's event loop. Nothing here blocks a runtime,
//! and any runtime will do: the node has a thread of its own. Dropping the last handle stops the node.

pub mod archive;
mod bridges;
mod durable;
mod query;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::aside::Aside;
use crate::error::{DurableError, HistoryError, PublishError, Stopped};
use crate::history::{LogHandle, Want};
use crate::id::{EntryId, Key, ParseError, Room, Run};
use crate::metrics::Metrics;
use crate::replica::batch::Batch;
use crate::replica::event::Kept;

pub(crate) use self::bridges::Bridges;
pub use self::bridges::{BridgeState, BridgeStatus};
pub(crate) use self::durable::Holders;
pub use self::durable::{Acker, Begin, DURABLE_NAME_BYTES_MAX, Durable, DurableSummary, Mark, UNACKED_MAX};

pub use crate::replica::batch::{Draft, NAME_BYTES_MAX, NotText, PAYLOAD_BYTES_MAX, Payload, Text, Via};
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
    /// For what may take long.
    pub aside: Aside,
    /// The log, if the node keeps one.
    pub log: Option<LogHandle>,
    pub holders: Arc<Holders>,
    pub bridges: Bridges,
    /// How well the log and the clock are.
    pub health: watch::Receiver<HistoryHealth>,
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
    /// It has no key: anyone here can read and write.
    pub open: bool,
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
pub(crate) enum Ask {
    Subscribe { filter: Filter, after: Option<Cursor>, reply: oneshot::Sender<Subscription> },
    Window { after: Option<Cursor>, take: Box<dyn FnOnce(Window) + Send> },
    HeldBy { id: EntryId, count: usize, on_disk: bool, reply: oneshot::Sender<usize> },
    Standing { ids: Vec<EntryId>, reply: oneshot::Sender<Vec<Standing>> },
    Import { batches: Vec<Kept>, reply: oneshot::Sender<Imported> },
    Shutdown { reply: oneshot::Sender<()> },
}

/// Everything the node holds in memory, and not on disk, at one moment.
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

/// Messages on their way: published, not yet on disk.
#[derive(Debug)]
pub struct Submitted {
    /// What was in the log already, by index.
    known: Vec<(usize, Published)>,
    answer: Option<oneshot::Receiver<Result<Vec<Published>, PublishError>>>,
}

impl Submitted {
    /// Waits for the disk, if the node keeps a history, and answers for each message. Cancellation safe, but the answer is
    /// lost.
    ///
    /// # Errors
    /// [`PublishError`]; peers may have the messages none the less.
    pub async fn published(self) -> Result<Vec<Published>, PublishError> {
        let mut published = match self.answer {
            Some(answer) => answer.await.unwrap_or(Err(PublishError::Stopped))?,
            None => Vec::new(),
        };
        for (at, known) in self.known {
            published.insert(at, known);
        }
        Ok(published)
    }
}

/// A batch as a log exports it: the bytes that its author published, and when they first arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported(pub(crate) Kept);

impl Exported {
    /// Reads a batch that [`Exported::bytes`] wrote.
    ///
    /// # Errors
    /// [`BatchError`](crate::replica::batch::BatchError) if it is damaged.
    pub fn new(bytes: bytes::Bytes, arrived_ms: u64) -> Result<Exported, crate::replica::batch::BatchError> {
        let batch = Batch::parse(bytes)?;
        batch.entries().try_for_each(|entry| entry.map(drop))?;
        Ok(Exported(Kept { batch, arrived_ms }))
    }

    /// The bytes that its author published.
    pub fn bytes(&self) -> &bytes::Bytes {
        self.0.batch.bytes()
    }

    /// When it first arrived anywhere that is known, in milliseconds since 1970.
    pub fn arrived_ms(&self) -> u64 {
        self.0.arrived_ms
    }

    /// How many messages it holds.
    pub fn messages(&self) -> u64 {
        self.0.batch.count().into()
    }

    /// Its place in time order, to go on from.
    pub fn place(&self) -> Place {
        let batch = &self.0.batch;
        Place { hlc: batch.hlc(), id: EntryId { run: batch.origin(), seq: batch.first() } }
    }
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
    /// Handed to the operating system (`--fsync os`).
    Logged,
    /// On this node's disk.
    Durable,
    /// On the disk of at least one node other than its author.
    Replicated,
}

/// How safe a message is, as far as this node knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The state.
    pub state: State,
    /// How many nodes other than its author have it on disk.
    pub stored_by: usize,
}

/// What became of batches that were imported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Entries that were new.
    pub new: u64,
    /// Entries that were there before.
    pub known: u64,
    /// Entries that contradict what is there, or are older than what this node has let go.
    pub refused: u64,
}

/// How well the history is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HistoryHealth {
    /// This node keeps none.
    #[default]
    None,
    /// It takes what is said.
    Working,
    /// The disk is full: nothing is published, what others say is passed on and not kept.
    Full,
    /// The disk fails: nothing is published, what others say is passed on and not kept.
    Failing,
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
    /// The history began or ceased to work.
    History(HistoryHealth),
    /// A bridge of this node reached its target or lost it, leads or stands.
    Bridge(BridgeStatus),
    /// Entries that this node lacks are being fetched from peers.
    CatchUp {
        /// How many are still missing.
        missing: u64,
        /// How many came since it began.
        done: u64,
    },
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
    /// Only what was said at this time or earlier, in milliseconds since 1970.
    pub until_ms: Option<u64>,
    /// Only texts that contain this, whatever the case of the letters.
    pub grep: Option<String>,
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

    /// Publishes one message and answers with its id and state: once it is on disk, if the node keeps a history; peers get
    /// it at once in any case.
    ///
    /// Dropping the future does not take the message back once the node has it. After [`PublishError::DiskFull`] or
    /// [`PublishError::DiskFailing`] peers may have it none the less: publish it again with the same key.
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
        self.submit(drafts).await?.published().await
    }

    /// Publishes many messages at once, without waiting for the disk: [`Submitted::published`] does. Messages are published
    /// in the order in which this is called. Waits only while every peer that takes messages at all is far behind, or the
    /// disk is.
    ///
    /// # Errors
    /// [`PublishError`]; none of them was published.
    pub async fn submit(&self, mut drafts: Vec<Draft>) -> Result<Submitted, PublishError> {
        drafts.iter().try_for_each(check)?;
        let known = self.known(&mut drafts).await?;
        let (reply, answer) = oneshot::channel();
        if drafts.is_empty() {
            drop(reply);
            return Ok(Submitted { known, answer: None });
        }
        self.inner.publish.send(Submission { drafts, reply }).await.map_err(|_| PublishError::Stopped)?;
        Ok(Submitted { known, answer: Some(answer) })
    }

    /// Takes out the drafts whose key is in the log, with what they were published as. Those that are in memory only the
    /// event loop knows.
    async fn known(&self, drafts: &mut Vec<Draft>) -> Result<Vec<(usize, Published)>, PublishError> {
        let Some(log) = &self.inner.log else { return Ok(Vec::new()) };
        // Most keys are new, which is known without waiting for the disk.
        let may_hold = |key: &Key| log.reader.may_hold(*key);
        let keyed: Vec<(usize, Key)> =
            drafts.iter().enumerate().filter_map(|(at, draft)| Some((at, draft.key.filter(may_hold)?))).collect();
        if keyed.is_empty() {
            return Ok(Vec::new());
        }
        let found = log.read(move |reader| {
            let mut found = Vec::new();
            for (at, key) in keyed {
                if let Some(place) = reader.find(key)? {
                    found.push((at, place.id, reader.entry(place.id)?));
                }
            }
            Ok(found)
        });
        // A log that cannot be read takes no publishes either.
        let Ok(found) = found.await else { return Ok(Vec::new()) };
        let mut known = Vec::new();
        for (at, id, entry) in found {
            let draft = &drafts[at];
            if entry.is_some_and(|entry| entry.room != draft.room || entry.payload != draft.payload) {
                return Err(PublishError::KeyReused);
            }
            known.push((at, Published { id, state: State::Durable, known: true }));
        }
        for (at, _) in known.iter().rev() {
            drafts.remove(*at);
        }
        Ok(known)
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
        self.ask(|reply| Ask::HeldBy { id, count, on_disk: false, reply }).await
    }

    /// Waits until `count` nodes other than its author have `id` on disk, and answers how many do. Cancellation safe: give
    /// it a time-out.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn replicated(&self, id: EntryId, count: usize) -> Result<usize, Stopped> {
        self.ask(|reply| Ask::HeldBy { id, count, on_disk: true, reply }).await
    }

    /// How safe each of these messages is, as far as this node knows.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn standing(&self, ids: Vec<EntryId>) -> Result<Vec<Standing>, Stopped> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.ask(|reply| Ask::Standing { ids, reply }).await
    }

    /// How well the history is.
    pub fn history_health(&self) -> HistoryHealth {
        *self.inner.health.borrow()
    }

    /// Told whenever entries reached the disk of this node or a peer said what it has.
    pub fn commits(&self) -> Option<watch::Receiver<u64>> {
        self.inner.log.as_ref().map(|log| log.commits.clone())
    }

    /// A durable subscriber: a named cursor in the log of this node, moved on by what is acknowledged. It takes the name
    /// over from whoever holds it; a new name begins at `begin`. What a filter passes over counts as acknowledged.
    ///
    /// # Errors
    /// [`DurableError`].
    pub async fn durable(&self, name: &str, filter: Filter, begin: Begin) -> Result<Durable, DurableError> {
        let log = self.inner.log.clone().ok_or(DurableError::NoHistory)?;
        Durable::open(log, self.inner.holders.clone(), name, filter, begin).await
    }

    /// The named cursors of this node.
    ///
    /// # Errors
    /// [`DurableError::History`]; a node without a history has none.
    pub async fn durables(&self) -> Result<Vec<DurableSummary>, DurableError> {
        let Some(log) = &self.inner.log else { return Ok(Vec::new()) };
        let rows = log.read(|reader| reader.durables()).await?;
        let newest = *log.admitted.borrow();
        let summary = |row: crate::history::Durable| DurableSummary {
            behind: (newest + 1).saturating_sub(row.position),
            held: self.inner.holders.holds(&row.name),
            name: row.name,
            acked_ms: row.acked_ms,
        };
        Ok(rows.into_iter().map(summary).collect())
    }

    /// Forgets a named cursor; answers whether there was one.
    ///
    /// # Errors
    /// [`DurableError::History`]; it is as before.
    pub async fn remove_durable(&self, name: &str) -> Result<bool, DurableError> {
        let Some(log) = &self.inner.log else { return Ok(false) };
        let owned = name.to_owned();
        let there = log.read(move |reader| reader.durable(&owned)).await?.is_some();
        if there {
            self.inner.holders.evict(name);
            log.keeper.remove_durable(name).await.unwrap_or(Err(HistoryError::Closed))?;
        }
        Ok(there)
    }

    /// The log in time order from a place on, as batches the way every log has them, for a file; none after the last.
    ///
    /// # Errors
    /// [`DurableError`].
    pub async fn export(&self, from: Option<Place>) -> Result<Vec<Exported>, DurableError> {
        let log = self.inner.log.as_ref().ok_or(DurableError::NoHistory)?;
        let kept = log.read(move |reader| reader.export(from, 1024 * 1024)).await?;
        Ok(kept.into_iter().map(Exported).collect())
    }

    /// Takes batches that another log exported; what is there already is left alone. Answers once they are on disk.
    ///
    /// # Errors
    /// [`DurableError`].
    pub async fn import(&self, batches: Vec<Exported>) -> Result<Imported, DurableError> {
        self.inner.log.as_ref().ok_or(DurableError::NoHistory)?;
        let batches = batches.into_iter().map(|Exported(kept)| kept).collect();
        self.ask(|reply| Ask::Import { batches, reply }).await.map_err(|_| DurableError::Stopped)
    }

    /// Says goodbye to peers, lets what is queued go out, and stops the node. Answers when it has stopped.
    pub async fn shutdown(&self) {
        // Somebody else's shutdown is as good.
        let _ = self.ask(|reply| Ask::Shutdown { reply }).await;
    }

    /// Has `work` done with the window, beside the loop that gives it.
    async fn with_window<T: Send + 'static>(
        &self,
        after: Option<Cursor>,
        work: impl FnOnce(Window) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let aside = self.inner.aside.clone();
        self.ask(|reply| Ask::Window { after, take: Box::new(move |window| aside.begin(reply, || work(window))) }).await
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
