//! What all sockets that are up to date are told: made once, for all of them.
//!
//! One task reads one [`Subscription`], writes what comes as ready frames, whole bursts of them, into a ring, and wakes the
//! sockets. Each has a [`Seat`]: its place in the ring, and the cursor of what it was given. The ring forgets what all have
//! taken, and beyond [`RING_BYTES_MAX`] what the slowest have not: they are told so. While the fastest that still takes
//! something is [`RING_BYTES_HIGH`] behind, nothing more is read, as with any reader of the node.
//!
//! There are two stages: sockets that came with a cursor are also given what is older than the node's life.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use super::super::api;
use super::super::objects::MessageObject;
use super::super::standings::Standings;
use super::Protocol;
use super::frames::Outgoing;
use super::line::put_text;
use super::news::{Followed, News};
use super::tell::{BURST_BYTES_MAX, BURST_MESSAGES_MAX, BURST_TIME_MAX};
use crate::error::Stopped;
use crate::handle::{Cursor, Delivery, Filter, GapReason, Handle, Hlc, Message, Subscription};
use crate::id::{EntryId, Room, Run, RunHash, Seq};

/// The most that waits for the slowest socket, in bytes.
pub(super) const RING_BYTES_MAX: usize = 32 * 1024 * 1024;
/// While the fastest socket is so far behind, in bytes, nothing more is read.
const RING_BYTES_HIGH: u64 = 4 * 1024 * 1024;
/// Unless none took anything for so long.
const IDLE: Duration = Duration::from_secs(1);

/// What the sockets of one kind are told.
#[derive(Debug)]
pub(in crate::web) struct Stage {
    shared: Arc<Shared>,
    starting: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Shared {
    handle: Handle,
    standings: Arc<Standings>,
    /// For sockets that came with a cursor.
    resumed: bool,
    followed: Followed,
    ring: Mutex<Ring>,
    /// Told when something was put into the ring, or it has ended.
    news: watch::Sender<()>,
    /// Told when a socket took something or left.
    taken: Notify,
}

#[derive(Debug)]
struct Ring {
    bursts: VecDeque<Arc<Burst>>,
    /// The place of the first of them.
    first: u64,
    bytes: usize,
    /// How many sockets have which burst before them.
    seats: BTreeMap<u64, usize>,
    /// Of all that was ever put in.
    bytes_before: u64,
    messages_before: u64,
    /// What is covered by all of that.
    covered: Arc<Cursor>,
    running: bool,
    taken_at: Instant,
    /// Whoever makes the bursts waits until something is taken.
    held: bool,
}

/// Some frames for all.
#[derive(Debug)]
pub(super) struct Burst {
    /// For `hubless.v1`; where the last message has a cursor, it is `after`.
    json: Bytes,
    /// Texts of the lobby.
    plain: Bytes,
    marks: Vec<Mark>,
    /// The last message without a cursor, if it has one.
    last: String,
    /// What was covered before, and is afterwards.
    before: Arc<Cursor>,
    after: Arc<Cursor>,
    /// Messages missed: whoever hears this is let go.
    slow: bool,
    bytes_before: u64,
    messages_before: u64,
}

/// A message in a burst, and where its frames end.
#[derive(Clone, Copy, Debug)]
struct Mark {
    run: RunHash,
    seq: Seq,
    hlc: Hlc,
    json_end: usize,
    plain_end: usize,
}

/// What a socket is told next.
#[derive(Debug)]
pub(super) enum Turn {
    /// These frames; if `slow`, they are the last.
    Frames { frames: Vec<Bytes>, slow: bool },
    /// It is too far behind: the ring does not have the next messages any more.
    Behind { missing: u64 },
    /// The node has stopped.
    Ended,
}

/// A socket's place in the ring.
#[derive(Debug)]
pub(super) struct Seat {
    shared: Arc<Shared>,
    at: u64,
    messages_before: u64,
    covered: Arc<Cursor>,
    news: watch::Receiver<()>,
}

impl Stage {
    pub fn new(handle: &Handle, standings: &Arc<Standings>, resumed: bool) -> Stage {
        let ring = Ring {
            bursts: VecDeque::new(),
            first: 0,
            bytes: 0,
            seats: BTreeMap::new(),
            bytes_before: 0,
            messages_before: 0,
            covered: Arc::default(),
            running: false,
            taken_at: Instant::now(),
            held: false,
        };
        let shared = Shared {
            handle: handle.clone(),
            standings: standings.clone(),
            resumed,
            followed: Followed::default(),
            ring: Mutex::new(ring),
            news: watch::channel(()).0,
            taken: Notify::new(),
        };
        Stage { shared: Arc::new(shared), starting: tokio::sync::Mutex::default() }
    }

    /// A place from this moment on, for a socket that covers what [`Seat::covers`] says.
    ///
    /// # Errors
    /// [`Stopped`].
    pub(super) async fn seat(&self) -> Result<Seat, Stopped> {
        if let Some(seat) = self.shared.sit() {
            return Ok(seat);
        }
        // One of those that come at once starts it.
        let _starting = self.starting.lock().await;
        if let Some(seat) = self.shared.sit() {
            return Ok(seat);
        }
        let Shared { handle, standings, followed, .. } = &*self.shared;
        let mut peers = handle.peers_changed();
        let shown = peers.borrow_and_update().clone();
        let news = News::new(handle, standings, followed.clone(), peers, shown);
        let mut subscription = handle.subscribe_prefix("").await?;
        if self.shared.resumed {
            subscription = handle.resume(Filter::all(), subscription.cursor()).await?;
        }
        let covered = Arc::new(subscription.cursor());
        {
            let mut ring = self.shared.lock();
            (ring.running, ring.covered, ring.taken_at) = (true, covered, Instant::now());
        }
        let seat = self.shared.sit().ok_or(Stopped)?;
        tokio::spawn(Player { shared: self.shared.clone(), subscription, news, run: None, left: false }.play());
        Ok(seat)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Ring> {
        // Nothing that is done under it panics.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seat behind the last burst, while somebody plays.
    fn sit(self: &Arc<Shared>) -> Option<Seat> {
        let news = self.news.subscribe();
        let mut ring = self.lock();
        if !ring.running {
            return None;
        }
        let at = ring.first + ring.bursts.len() as u64;
        *ring.seats.entry(at).or_default() += 1;
        let (messages_before, covered) = (ring.messages_before, ring.covered.clone());
        Some(Seat { shared: self.clone(), at, messages_before, covered, news })
    }

    fn put(&self, mut burst: Burst) {
        let mut ring = self.lock();
        (burst.bytes_before, burst.messages_before) = (ring.bytes_before, ring.messages_before);
        let bytes = burst.bytes();
        ring.bytes += bytes;
        ring.bytes_before += bytes as u64;
        ring.messages_before += burst.marks.len() as u64;
        ring.covered = burst.after.clone();
        ring.bursts.push_back(Arc::new(burst));
        while ring.bytes > RING_BYTES_MAX && ring.bursts.len() > 1 {
            ring.forget_first();
        }
        drop(ring);
        self.news.send_replace(());
    }

    /// Whether all have left; then nobody plays any more.
    fn is_left(&self) -> bool {
        let mut ring = self.lock();
        ring.running = !ring.seats.is_empty();
        !ring.running
    }

    fn end(&self) {
        self.lock().running = false;
        self.news.send_replace(());
    }

    /// Until when nothing more is read, unless somebody takes something.
    fn held_until(&self) -> Option<Instant> {
        let mut ring = self.lock();
        ring.held = false;
        let (fastest, _) = ring.seats.last_key_value()?;
        let next = ring.bursts.get(fastest.saturating_sub(ring.first) as usize)?;
        let until = ring.taken_at + IDLE;
        ring.held = ring.bytes_before - next.bytes_before > RING_BYTES_HIGH && Instant::now() < until;
        ring.held.then_some(until)
    }
}

impl Ring {
    fn forget_first(&mut self) {
        if let Some(burst) = self.bursts.pop_front() {
            self.bytes -= burst.bytes();
            self.first += 1;
        }
    }

    fn leave(&mut self, at: u64) {
        if let Some(seats) = self.seats.get_mut(&at) {
            *seats -= 1;
            if *seats == 0 {
                self.seats.remove(&at);
            }
        }
        let slowest = self.seats.first_key_value().map(|(at, _)| *at);
        while !self.bursts.is_empty() && slowest.is_none_or(|at| self.first < at) {
            self.forget_first();
        }
    }
}

impl Burst {
    fn bytes(&self) -> usize {
        self.json.len() + self.plain.len() + self.last.len() + self.marks.len() * size_of::<Mark>()
    }

    /// The frames for a socket that covers something else than all others.
    fn frames_for(&self, protocol: Protocol, covered: &mut Arc<Cursor>) -> Vec<Bytes> {
        let end = |at: usize| match (at.checked_sub(1).map(|at| self.marks[at]), protocol) {
            (None, _) => 0,
            (Some(mark), Protocol::Plain) => mark.plain_end,
            (Some(mark), Protocol::Json) => mark.json_end,
        };
        let all = if protocol == Protocol::Plain { &self.plain } else { &self.json };
        let (mut frames, mut from) = (Vec::new(), 0);
        let mut take = |from: usize, to: usize| {
            if from < to {
                frames.push(all.slice(from..to));
            }
        };
        for (at, mark) in self.marks.iter().enumerate() {
            if covered.covers(mark.run, mark.seq, mark.hlc) {
                take(from, end(at));
                from = end(at + 1);
            }
        }
        let whole = self.marks.len();
        // Its own cursor covers what it was given elsewhere, too.
        let mut cursor = Cursor::clone(covered);
        cursor.merge(&self.after);
        *covered = if cursor == *self.after { self.after.clone() } else { Arc::new(cursor) };
        let own = protocol == Protocol::Json
            && !self.last.is_empty()
            && from < end(whole)
            && !Arc::ptr_eq(covered, &self.after);
        if own {
            take(from, end(whole - 1));
            let mut last = Vec::new();
            put_text(&mut last, &with_cursor(&self.last, &covered.to_string()));
            frames.push(last.into());
        } else {
            take(from, all.len());
        }
        frames
    }
}

impl Seat {
    /// What the socket of this seat was given or skipped, if that is not just what was said before.
    pub fn covers(&mut self, cursor: Cursor) {
        if cursor != *self.covered {
            self.covered = Arc::new(cursor);
        }
    }

    pub fn covered(&self) -> &Cursor {
        &self.covered
    }

    /// Whether it came with a cursor.
    pub fn is_resumed(&self) -> bool {
        self.shared.resumed
    }

    pub fn followed(&self) -> &Followed {
        &self.shared.followed
    }

    /// What comes next. Cancellation safe.
    pub async fn next(&mut self, protocol: Protocol) -> Turn {
        loop {
            if let Some(turn) = self.take(protocol) {
                return turn;
            }
            if self.news.changed().await.is_err() {
                return Turn::Ended;
            }
        }
    }

    /// What comes next, if it is there.
    pub fn take(&mut self, protocol: Protocol) -> Option<Turn> {
        let mut ring = self.shared.lock();
        let Some(at) = self.at.checked_sub(ring.first) else {
            // What is gone of the ring was counted before its first burst.
            let before = ring.bursts.front().map_or(ring.messages_before, |burst| burst.messages_before);
            return Some(Turn::Behind { missing: before.saturating_sub(self.messages_before) });
        };
        let Some(burst) = ring.bursts.get(at as usize).cloned() else {
            return (!ring.running).then_some(Turn::Ended);
        };
        let was = self.at;
        self.at += 1;
        self.messages_before = burst.messages_before + burst.marks.len() as u64;
        *ring.seats.entry(self.at).or_default() += 1;
        ring.leave(was);
        ring.taken_at = Instant::now();
        let held = ring.held;
        drop(ring);
        if held {
            self.shared.taken.notify_one();
        }
        let frames = if Arc::ptr_eq(&self.covered, &burst.before) {
            self.covered = burst.after.clone();
            vec![if protocol == Protocol::Plain { burst.plain.clone() } else { burst.json.clone() }]
        } else {
            burst.frames_for(protocol, &mut self.covered)
        };
        Some(Turn::Frames { frames, slow: burst.slow })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut ring = self.shared.lock();
        ring.leave(self.at);
        if ring.held || ring.seats.is_empty() {
            self.shared.taken.notify_one();
        }
    }
}

/// Makes the bursts.
struct Player {
    shared: Arc<Shared>,
    subscription: Subscription,
    news: News,
    /// The hash of the run that spoke last.
    run: Option<(Run, RunHash)>,
    /// Nobody is there any more; there may be a player for those who came later.
    left: bool,
}

impl Player {
    async fn play(mut self) {
        loop {
            let held = self.shared.held_until();
            let done = tokio::select! {
                delivery = self.subscription.next(), if held.is_none() => match delivery {
                    Some(delivery) => self.burst(delivery).await,
                    None => Err(Stopped),
                },
                texts = self.news.next() => texts.map(|texts| self.tell(&texts)),
                () = self.shared.taken.notified() => {
                    self.left = self.shared.is_left();
                    if self.left {
                        return;
                    }
                    Ok(())
                }
                () = sleep_until(held.unwrap_or_else(Instant::now)), if held.is_some() => Ok(()),
            };
            if done.is_err() {
                return;
            }
        }
    }

    fn tell(&self, texts: &[String]) {
        let mut json = Vec::new();
        texts.iter().for_each(|text| put_text(&mut json, text));
        let covered = self.shared.lock().covered.clone();
        self.shared.put(Burst { json: json.into(), ..Burst::silent(covered) });
    }

    /// Makes a burst of a delivery and what else waits behind it.
    async fn burst(&mut self, first: Delivery) -> Result<(), Stopped> {
        let began = Instant::now();
        let (mut next, mut messages, mut bytes) = (Some(first), Vec::new(), 0);
        while let Some(delivery) = next {
            match delivery {
                Delivery::Message(message) => {
                    bytes += message.payload.len();
                    messages.push(message);
                }
                Delivery::Gap(gap) => {
                    // The cursor that the messages end with covers the gap: what is missing is told first.
                    self.put(std::mem::take(&mut messages), false).await?;
                    let mut json = Vec::new();
                    put_text(&mut json, &Outgoing::gap(gap));
                    let covered = self.shared.lock().covered.clone();
                    let slow = gap.reason == GapReason::Slow;
                    self.shared.put(Burst { json: json.into(), slow, ..Burst::silent(covered) });
                }
            }
            let full =
                messages.len() >= BURST_MESSAGES_MAX || bytes >= BURST_BYTES_MAX || began.elapsed() >= BURST_TIME_MAX;
            // The cursor covers what was taken, so it is read before more is taken.
            next = if full { None } else { self.subscription.next().now_or_never().flatten() };
        }
        self.put(messages, true).await
    }

    /// Puts messages into the ring, which end with a cursor where they end a burst.
    async fn put(&mut self, messages: Vec<Message>, ends: bool) -> Result<(), Stopped> {
        if messages.is_empty() {
            return Ok(());
        }
        let before = self.shared.lock().covered.clone();
        let after = Arc::new(self.subscription.cursor());
        let cursor = after.to_string();
        let ids: Vec<EntryId> = messages.iter().map(|message| message.id).collect();
        let standings = self.shared.standings.of(&ids).await?;
        let (mut json, mut plain, mut marks) = (Vec::new(), Vec::new(), Vec::with_capacity(ids.len()));
        let (mut last, end) = (String::new(), messages.len() - 1);
        for (at, (message, standing)) in messages.iter().zip(standings).enumerate() {
            let mut text = api::to_text(&MessageObject::frame(message, standing, None));
            if at == end && ends {
                last = text;
                text = with_cursor(&last, &cursor);
            }
            put_text(&mut json, &text);
            if let Some(text) = message.payload.text().filter(|_| message.room == Room::lobby()) {
                put_text(&mut plain, text);
            }
            self.shared.followed.told(message.id, standing);
            let run = self.hash(message.id.run);
            let (json_end, plain_end) = (json.len(), plain.len());
            marks.push(Mark { run, seq: message.id.seq, hlc: message.hlc, json_end, plain_end });
        }
        let (json, plain) = (json.into_boxed_slice().into(), plain.into_boxed_slice().into());
        self.shared.put(Burst { json, plain, marks, last, after, ..Burst::silent(before) });
        self.news.gave().await;
        Ok(())
    }

    fn hash(&mut self, run: Run) -> RunHash {
        match self.run {
            Some((last, hash)) if last == run => hash,
            _ => self.run.insert((run, run.hash())).1,
        }
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        if !self.left {
            self.shared.end();
        }
    }
}

impl Burst {
    /// One that says nothing.
    fn silent(covered: Arc<Cursor>) -> Burst {
        Burst {
            json: Bytes::new(),
            plain: Bytes::new(),
            marks: Vec::new(),
            last: String::new(),
            before: covered.clone(),
            after: covered,
            slow: false,
            bytes_before: 0,
            messages_before: 0,
        }
    }
}

/// The text of a message with a cursor, which is the last of its fields and needs no escapes.
fn with_cursor(text: &str, cursor: &str) -> String {
    format!(r#"{},"cursor":"{cursor}"}}"#, text.strip_suffix('}').unwrap_or(text))
}
