//! A reader of rooms: what it missed first, then what comes, each message once.
//!
//! The node puts whole batches into a reader's queue without decoding them; the reader decodes in its own task. The queue
//! is bounded in bytes ([`QUEUE_BYTES_MAX`]): what comes while it is full is dropped for this reader, counted, and told to
//! it as a [`Gap`] of reason [`GapReason::Slow`]; a reader that follows a cursor at a node with a log reads it there
//! instead, at its own pace. A reader that keeps reading holds the node back from [`QUEUE_BYTES_HIGH`] on, unless a faster
//! one stands beside it.

mod delivery;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::Stream;
use futures_util::task::AtomicWaker;

pub use self::delivery::{Delivery, DeliveryRef, Filter, Gap, GapReason, Message, MessageRef};
use crate::error::HistoryError;
use crate::history::{Chunk, Health, LogHandle};
use crate::id::{EntryId, Key, Run, RunHash, Seq};
use crate::replica::batch::{Batch, Entries};
use crate::replica::ranges::RangeSet;
use crate::replica::version::{Coverage, Cursor, RunHashes};

/// The most a reader's queue holds, in bytes.
pub const QUEUE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// A reader that has this much queued, in bytes, and still reads, holds the node back.
pub const QUEUE_BYTES_HIGH: usize = 4 * 1024 * 1024;
/// A reader that took nothing for this long holds nobody back.
const READER_IDLE_MS: u64 = 1_000;
/// Keys that a reader remembers.
const GIVEN_KEYS_MAX: usize = 16_384;

/// What the node puts into a queue.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    Batch {
        batch: Batch,
        late: bool,
    },
    /// Read from the log; these entries of it are twins.
    Read {
        batch: Batch,
        hidden: Vec<Seq>,
    },
    Gap(Gap),
}

/// The node's end of a reader's queue.
#[derive(Debug)]
pub(crate) struct Feed {
    shared: Arc<Shared>,
    filter: Filter,
    /// Whether the reader follows a cursor, so that what is older than this node's life is given to it, too.
    pub backfill: bool,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    bytes: AtomicUsize,
    waker: AtomicWaker,
    closed: AtomicBool,
    started: Instant,
    /// Milliseconds after `started` at which the reader last took something.
    taken_at_ms: AtomicU64,
    /// Told when the reader took something or went away.
    drained: Arc<tokio::sync::Notify>,
    /// The reader finds in the log what does not fit here.
    follows: bool,
}

#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<Item>,
    missed: u64,
    /// Where the reader follows the log: what it has to read there.
    dropped: BTreeMap<Run, RangeSet>,
    ended: bool,
}

/// Messages of the wanted rooms, as a `Stream` of [`Delivery`]; ends when the node stops.
///
/// Dropping it ends the subscription. Cancellation safe: nothing taken from the queue is lost with a dropped future.
#[derive(Debug)]
pub struct Subscription {
    shared: Arc<Shared>,
    filter: Filter,
    /// What the reader missed: shared with the node's window, so it counts for no queue.
    backlog: VecDeque<Item>,
    /// Taken from the queue, and still counted as queued.
    taken: VecDeque<Item>,
    current: Option<Current>,
    covered: Cursor,
    hashes: RunHashes,
    keys: GivenKeys,
    follow: Option<Follow>,
}

/// A read of the log that is under way.
type Reading = Pin<Box<dyn Future<Output = Result<Chunk, HistoryError>> + Send>>;

/// How a reader follows the log.
struct Follow {
    log: LogHandle,
    /// The next batches from the log, while there are some to come.
    reading: Option<Reading>,
    /// What the queue could not take: it may not be on disk yet.
    owed: BTreeMap<Run, RangeSet>,
}

impl fmt::Debug for Follow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follow").field("reading", &self.reading.is_some()).finish_non_exhaustive()
    }
}

impl Follow {
    /// Reads on from `covered`; if `later`, once something more has reached the disk.
    fn read(&mut self, covered: Cursor, later: bool) {
        let log = self.log.clone();
        self.reading = Some(Box::pin(async move {
            if later {
                let (mut commits, mut health) = (log.commits.clone(), log.health.clone());
                if *health.borrow_and_update() != Health::Working {
                    return Err(HistoryError::Closed);
                }
                tokio::select! {
                    changed = commits.changed() => changed.map_err(|_| HistoryError::Closed)?,
                    _ = health.changed() => {}
                }
            }
            log.uncovered(covered).await
        }));
    }

    /// How much of what is owed is not covered; what is covered is owed no more.
    fn still_owed(&mut self, covered: &Cursor, hashes: &mut RunHashes) -> u64 {
        self.owed.retain(|run, seqs| {
            *seqs = covered.missing(hashes.of(*run), seqs);
            !seqs.is_empty()
        });
        self.owed.values().map(RangeSet::count).sum()
    }
}

/// The keys of what was given lately: of two entries with one key a reader is given one.
#[derive(Debug, Default)]
struct GivenKeys {
    entries: HashMap<Key, EntryId>,
    order: VecDeque<Key>,
}

impl GivenKeys {
    /// Whether another entry with this key was given; else this one counts as given.
    fn is_twin(&mut self, key: Key, id: EntryId) -> bool {
        let first = *self.entries.entry(key).or_insert_with(|| {
            self.order.push_back(key);
            id
        });
        if self.order.len() > GIVEN_KEYS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.entries.remove(&oldest);
        }
        first != id
    }
}

#[derive(Debug)]
struct Current {
    batch: Batch,
    origin: RunHash,
    entries: Entries,
    late: bool,
    /// Entries that are twins of others.
    hidden: Vec<Seq>,
    /// Only a part of the batch is new to this reader.
    part: bool,
    /// The last entry walked over.
    reached: Option<Seq>,
}

/// What a reader comes to behind a batch.
enum Advance {
    /// The next one, unless nothing of it is wanted.
    Batch,
    Gap(Gap),
    /// The node has stopped.
    End,
}

/// Makes a queue: the node's end and the reader's, which begins with `backlog` and covers `covered`.
pub(crate) fn queue(
    filter: Filter,
    backfill: bool,
    covered: Cursor,
    backlog: Vec<Item>,
    drained: Arc<tokio::sync::Notify>,
    log: Option<LogHandle>,
) -> (Feed, Subscription) {
    let shared = Arc::new(Shared {
        queue: Mutex::default(),
        bytes: AtomicUsize::new(0),
        waker: AtomicWaker::new(),
        closed: AtomicBool::new(false),
        started: Instant::now(),
        taken_at_ms: AtomicU64::new(0),
        drained,
        follows: log.is_some(),
    });
    let feed = Feed { shared: shared.clone(), filter: filter.clone(), backfill };
    let (taken, hashes, keys) = Default::default();
    let follow = log.map(|log| {
        let mut follow = Follow { log, reading: None, owed: BTreeMap::new() };
        follow.read(covered.clone(), false);
        follow
    });
    let backlog = backlog.into();
    (feed, Subscription { shared, filter, backlog, taken, current: None, covered, hashes, keys, follow })
}

impl Feed {
    /// Whether the reader has gone.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }

    /// Whether the reader took something lately, or has nothing to take.
    pub fn is_reading(&self) -> bool {
        let shared = &self.shared;
        let idle =
            (shared.started.elapsed().as_millis() as u64).saturating_sub(shared.taken_at_ms.load(Ordering::Relaxed));
        idle < READER_IDLE_MS || shared.bytes.load(Ordering::Relaxed) == 0
    }

    /// Whether the reader has much queued.
    pub fn is_full(&self) -> bool {
        self.shared.bytes.load(Ordering::Relaxed) > QUEUE_BYTES_HIGH
    }

    /// Puts a batch or a gap into the queue; a batch beyond the bound is counted as missed.
    pub fn put(&self, item: Item) {
        let shared = &self.shared;
        let mut queue = shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        match &item {
            Item::Batch { batch, .. } | Item::Read { batch, .. } => {
                let len = batch.bytes().len();
                let full = shared.bytes.load(Ordering::Relaxed) + len > QUEUE_BYTES_MAX;
                if full && shared.follows {
                    queue.dropped.entry(batch.origin()).or_default().insert(batch.first(), batch.last());
                    drop(queue);
                    shared.waker.wake();
                    return;
                }
                if full {
                    queue.missed +=
                        batch.entries().flatten().filter(|entry| self.filter.wants(&entry.room)).count() as u64;
                    return;
                }
                shared.bytes.fetch_add(len, Ordering::Relaxed);
            }
            // Gaps are few; a reader that takes nothing at all gets one with their sum.
            Item::Gap(gap) if queue.items.len() >= 65_536 => {
                queue.missed += gap.missing;
                return;
            }
            Item::Gap(_) => {}
        }
        queue.items.push_back(item);
        drop(queue);
        shared.waker.wake();
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.shared.waker.wake();
    }
}

impl Subscription {
    /// The next message or gap; none once the node has stopped. Cancellation safe.
    pub async fn next(&mut self) -> Option<Delivery> {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    /// Appends the next message or gap to `deliveries`, and what is there behind it, up to `max` (at least 1); gives how many,
    /// 0 once the node has stopped. Takes far less for each message than [`Subscription::next`]. Cancellation safe.
    pub async fn next_many(&mut self, deliveries: &mut Vec<Delivery>, max: usize) -> usize {
        self.visit(max, |delivery| deliveries.push(delivery.to_delivery())).await
    }

    /// Shows `visitor` the next message or gap and what is there behind it, up to `max` (at least 1); gives how many, 0 once
    /// the node has stopped. They count as given. The quickest way to read: nothing is copied. Where messages come as fast as
    /// the visitor takes them, it is `max` that ends the call. Cancellation safe.
    pub async fn visit(&mut self, max: usize, mut visitor: impl FnMut(DeliveryRef<'_>)) -> usize {
        std::future::poll_fn(|cx| self.poll_visit(cx, max.max(1), &mut visitor)).await
    }

    /// The next message, passing over gaps; none once the node has stopped. Cancellation safe.
    pub async fn message(&mut self) -> Option<Message> {
        loop {
            if let Delivery::Message(message) = self.next().await? {
                return Some(message);
            }
        }
    }

    /// What this reader has been given or has skipped: given to [`Handle::resume`](crate::Handle::resume) on any node of
    /// the mesh, it goes on from here.
    pub fn cursor(&self) -> Cursor {
        let mut cursor = self.covered.clone();
        if let Some(Current { batch, origin, reached: Some(reached), .. }) = &self.current {
            cursor.add(*origin, batch.first(), *reached, batch.hlc().plus(reached.0 - batch.first().0));
        }
        cursor
    }

    /// Whether nothing is left of what the reader missed: it goes on with what comes.
    #[cfg(feature = "web")]
    pub(crate) fn is_live(&self) -> bool {
        self.backlog.is_empty() && self.follow.as_ref().is_none_or(|follow| follow.reading.is_none())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Delivery>> {
        let mut next = None;
        self.poll_visit(cx, 1, &mut |delivery| next = Some(delivery.to_delivery())).map(|_| next)
    }

    #[inline]
    fn poll_visit(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
        visitor: &mut impl FnMut(DeliveryRef<'_>),
    ) -> Poll<usize> {
        let mut given = 0;
        loop {
            given += self.walk(max - given, |message| visitor(DeliveryRef::Message(message)));
            if given == max {
                return Poll::Ready(given);
            }
            match self.advance(cx) {
                Poll::Ready(Advance::Batch) => {}
                Poll::Ready(Advance::Gap(gap)) => {
                    visitor(DeliveryRef::Gap(gap));
                    given += 1;
                }
                Poll::Pending if given == 0 => return Poll::Pending,
                Poll::Ready(Advance::End) | Poll::Pending => return Poll::Ready(given),
            }
        }
    }

    /// Opens the next batch, or gives what stands in its place; once nothing is left of the open one.
    fn advance(&mut self, cx: &mut Context<'_>) -> Poll<Advance> {
        loop {
            let backlog = self.backlog.pop_front();
            if backlog.is_none() {
                match self.read_log(cx) {
                    Poll::Ready(None) => {}
                    Poll::Ready(Some(gap)) => return Poll::Ready(Advance::Gap(gap)),
                    Poll::Pending => return Poll::Pending,
                }
                if !self.backlog.is_empty() {
                    continue;
                }
            }
            let queued = backlog.is_none();
            match backlog.or_else(|| self.taken.pop_front()) {
                Some(Item::Batch { batch, late }) => {
                    if queued {
                        self.took(batch.bytes().len());
                    }
                    self.open(batch, late, Vec::new());
                }
                Some(Item::Read { batch, hidden }) => self.open(batch, false, hidden),
                Some(Item::Gap(gap)) => return Poll::Ready(Advance::Gap(gap)),
                None => match self.take(cx) {
                    Poll::Ready(true) => continue,
                    Poll::Ready(false) => return Poll::Ready(Advance::End),
                    Poll::Pending => return Poll::Pending,
                },
            }
            return Poll::Ready(Advance::Batch);
        }
    }

    /// Takes what is read from the log into the backlog, if it is the log's turn; ready when it is not, or with a gap that
    /// nothing will fill.
    fn read_log(&mut self, cx: &mut Context<'_>) -> Poll<Option<Gap>> {
        let Some(follow) = &mut self.follow else { return Poll::Ready(None) };
        let Some(reading) = &mut follow.reading else { return Poll::Ready(None) };
        let read = std::task::ready!(reading.as_mut().poll(cx));
        follow.reading = None;
        let failed = read.is_err();
        let more = match read {
            Ok(Chunk { batches, more }) => {
                self.backlog.extend(batches.into_iter().map(|(batch, hidden)| Item::Read { batch, hidden }));
                more
            }
            Err(error) => {
                tracing::warn!(%error, "a reader goes on without what is in the log");
                false
            }
        };
        if more || !self.backlog.is_empty() {
            // Covered is what was walked over by then.
            let mut covered = self.covered.clone();
            for item in &self.backlog {
                if let Item::Read { batch, .. } = item {
                    let origin = self.hashes.of(batch.origin());
                    covered.add(origin, batch.first(), batch.last(), batch.hlc_last());
                }
            }
            follow.read(covered, false);
            return Poll::Ready(None);
        }
        let missing = follow.still_owed(&self.covered, &mut self.hashes);
        if missing > 0 && failed {
            follow.owed.clear();
            return Poll::Ready(Some(Gap { missing, reason: GapReason::Slow }));
        }
        if missing > 0 {
            follow.read(self.covered.clone(), true);
            // It is this reader's turn again when the disk has it.
            return self.read_log(cx);
        }
        Poll::Ready(None)
    }

    /// Shows the wanted messages of the open batch, up to `max`; gives how many. One of which nothing is left is closed.
    #[inline]
    fn walk(&mut self, max: usize, mut visitor: impl FnMut(MessageRef<'_>)) -> usize {
        let Subscription { covered, filter, keys, follow, .. } = self;
        let Some(Current { batch, origin, entries, late, hidden, part, reached }) = &mut self.current else { return 0 };
        let (mut given, mut wanted) = (0, None);
        while given < max {
            let glance = match entries.glance() {
                Some(Ok(glance)) => glance,
                ended => {
                    if ended.is_some() {
                        tracing::warn!(?batch, "a batch that does not decode was skipped");
                    }
                    covered.add(*origin, batch.first(), batch.last(), batch.hlc_last());
                    self.current = None;
                    break;
                }
            };
            let id = glance.id();
            *reached = Some(id.seq);
            let seen = *part && covered.covers(*origin, id.seq, glance.hlc());
            let twin = hidden.contains(&id.seq)
                || glance.key.is_some_and(|key| {
                    // Of entries with one key the log may know another, given to this reader in an earlier life.
                    let other = |log: &LogHandle| log.reader.hides(key, id, covered) == Ok(true);
                    follow.as_ref().is_some_and(|follow| other(&follow.log)) || keys.is_twin(key, id)
                });
            let wanted = match wanted {
                Some(wanted) if glance.same_room => wanted,
                _ => *wanted.insert(filter.wants(glance.room)),
            };
            if !seen && !twin && wanted {
                visitor(MessageRef { glance, late: *late });
                given += 1;
            }
        }
        given
    }

    fn open(&mut self, batch: Batch, late: bool, hidden: Vec<Seq>) {
        let origin = self.hashes.of(batch.origin());
        let coverage = self.covered.coverage(origin, &batch);
        if coverage != Coverage::All {
            let part = coverage == Coverage::Part;
            let entries = batch.entries();
            self.current = Some(Current { batch, origin, entries, late, hidden, part, reached: None });
        }
    }

    /// Takes all that is queued; false once the node has stopped and nothing is left.
    fn take(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.shared.waker.register(cx.waker());
        let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let missed = std::mem::take(&mut queue.missed);
        let dropped = std::mem::take(&mut queue.dropped);
        if queue.items.is_empty() && missed == 0 && dropped.is_empty() {
            return if queue.ended { Poll::Ready(false) } else { Poll::Pending };
        }
        std::mem::swap(&mut self.taken, &mut queue.items);
        if missed > 0 {
            self.taken.push_back(Item::Gap(Gap { missing: missed, reason: GapReason::Slow }));
        }
        drop(queue);
        if let Some(follow) = self.follow.as_mut().filter(|_| !dropped.is_empty()) {
            for (run, seqs) in dropped {
                follow.owed.entry(run).or_default().union(&seqs);
            }
            // What is queued comes after the log, so it need not be decoded twice: the cursor covers it then.
            follow.read(self.covered.clone(), false);
        }
        Poll::Ready(true)
    }

    /// The reader goes on to a batch of so many bytes: it is queued no more.
    fn took(&self, bytes: usize) {
        let shared = &self.shared;
        shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
        shared.taken_at_ms.store(shared.started.elapsed().as_millis() as u64, Ordering::Relaxed);
        shared.drained.notify_one();
    }
}

impl Stream for Subscription {
    type Item = Delivery;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Delivery>> {
        self.get_mut().poll(cx)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.drained.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Epoch, NodeKey, Room};
    use crate::replica::batch::{Author, Draft};
    use crate::replica::clock::Hlc;

    /// One message to a batch, so that a queue is counted message by message.
    fn batch(seq: u64, text: &str, key: Option<Key>) -> Batch {
        let node = NodeKey::from_bytes(&[1; 32]);
        let origin = node.run(Epoch(1));
        let author = Author { key: &node, origin, name: "ada", first: Seq(seq), hlc: Hlc::at(seq), previous: [0; 32] };
        let mut draft = Draft::new(Room::lobby(), text);
        draft.key = key;
        author.encode(&[draft])
    }

    fn reader(covered: Cursor, backlog: Vec<Item>) -> (Feed, Subscription) {
        queue(Filter::all(), true, covered, backlog, Arc::default(), None)
    }

    fn put(feed: &Feed, batch: Batch) {
        feed.put(Item::Batch { batch, late: false });
    }

    #[tokio::test]
    async fn a_reader_that_works_through_what_it_took_counts_as_reading() {
        let (feed, mut subscription) = reader(Cursor::new(), Vec::new());
        let text = "x".repeat(100_000);
        (1..=60).for_each(|seq| put(&feed, batch(seq, &text, None)));
        assert!(feed.is_full());
        for left in (0..60).rev() {
            subscription.message().await.unwrap();
            assert_eq!(feed.is_full(), left * 100_000 > QUEUE_BYTES_HIGH, "{left}");
        }
        assert_eq!(feed.shared.bytes.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn what_does_not_fit_is_counted_and_told() {
        let (feed, mut subscription) = reader(Cursor::new(), Vec::new());
        let text = "x".repeat(250_000);
        (1..=200).for_each(|seq| put(&feed, batch(seq, &text, None)));
        drop(feed);
        let (mut given, mut missed) = (0, 0);
        while let Some(delivery) = subscription.next().await {
            match delivery {
                Delivery::Message(_) => given += 1,
                Delivery::Gap(gap) => missed += gap.missing,
            }
        }
        assert_eq!(given + missed, 200);
        assert!(missed > 50, "{missed}");
    }

    #[tokio::test]
    async fn many_are_what_one_by_one_are() {
        let reader = || {
            let (feed, subscription) = reader(Cursor::new(), Vec::new());
            (1..=5).for_each(|seq| put(&feed, batch(seq, "hi", None)));
            feed.put(Item::Gap(Gap { missing: 1, reason: GapReason::Lost }));
            (6..=9).for_each(|seq| put(&feed, batch(seq, "hi", None)));
            subscription
        };
        let mut wanted: Vec<Delivery> = Vec::new();
        let mut one = reader();
        while let Some(delivery) = one.next().await {
            wanted.push(delivery);
        }
        assert_eq!(wanted.len(), 10);
        for max in [0, 1, 3, 10, 100] {
            let (mut many, mut given) = (reader(), Vec::new());
            loop {
                let before = given.len();
                let count = many.next_many(&mut given, max).await;
                assert_eq!(given.len() - before, count);
                assert!(count <= max.max(1));
                if count == 0 {
                    break;
                }
                assert_eq!(many.cursor(), {
                    let mut one = reader();
                    for _ in 0..given.len() {
                        one.next().await;
                    }
                    one.cursor()
                });
            }
            assert_eq!(given, wanted);
        }
        // What comes later is waited for.
        let (feed, mut subscription) = super::tests::reader(Cursor::new(), Vec::new());
        let mut given = Vec::new();
        assert!(futures_util::FutureExt::now_or_never(subscription.next_many(&mut given, 9)).is_none());
        put(&feed, batch(1, "hi", None));
        assert_eq!(subscription.next_many(&mut given, 9).await, 1);
    }

    #[tokio::test]
    async fn of_two_entries_with_one_key_one_is_given() {
        let key = Some(Key([7; 16]));
        let backlog = vec![Item::Batch { batch: batch(1, "hi", key), late: false }];
        let (feed, mut subscription) = reader(Cursor::new(), backlog);
        put(&feed, batch(2, "hi", key));
        put(&feed, batch(3, "there", None));
        assert_eq!(subscription.message().await.unwrap().id.seq, Seq(1));
        assert_eq!(subscription.message().await.unwrap().id.seq, Seq(3));
    }

    #[tokio::test]
    async fn a_cursor_in_the_middle_of_a_batch_goes_on_in_its_middle() {
        let key = NodeKey::from_bytes(&[1; 32]);
        let origin = key.run(Epoch(1));
        let author = Author { key: &key, origin, name: "ada", first: Seq(1), hlc: Hlc::at(1), previous: [0; 32] };
        let drafts: Vec<Draft> = ["a", "b", "c"].map(|text| Draft::new(Room::lobby(), text)).into();
        let item = Item::Batch { batch: author.encode(&drafts), late: false };
        let (_feed, mut one) = reader(Cursor::new(), vec![item.clone()]);
        one.message().await.unwrap();
        let (_feed, mut other) = reader(one.cursor(), vec![item]);
        assert_eq!(other.message().await.unwrap().payload.text(), Some("b"));
        assert_eq!(other.message().await.unwrap().payload.text(), Some("c"));
    }
}
