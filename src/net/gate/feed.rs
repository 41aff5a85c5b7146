//! How far each caller is behind what we publish, and what follows for publishing.
//!
//! Everything published passes, for each caller, first through the publisher and then through a queue in the gate. The
//! publisher tells nobody what it holds; so it is sent a *mark* now and then, a message on a topic of its own that the gate
//! subscribes beside the caller's topics and takes out again. A mark says how many bytes were published before it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;

use super::{limits, zmtp};
use crate::id::Run;
use crate::net::Flow;

/// The topic of marks; no topic between nodes begins like it.
pub(crate) const MARK_TOPIC: &[u8] = b"gate";
/// How a mark begins on its way out of the publisher: the frames `gate` and 8 bytes.
const MARK_HEAD: &[u8] = b"\x01\x04gate\x00\x08";
/// The length of a mark with its frame headers.
pub(crate) const MARK_BYTES: usize = MARK_HEAD.len() + 8;

/// What stands at the front of what came out of the publisher, between two messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Front {
    /// A mark, with the bytes published before it.
    Mark(u64),
    /// The beginning of a mark.
    Part,
    Other,
}

impl Front {
    pub(crate) fn of(bytes: &[u8]) -> Front {
        let known = bytes.len().min(MARK_HEAD.len());
        if bytes.is_empty() || bytes[..known] != MARK_HEAD[..known] {
            return Front::Other;
        }
        match bytes.get(MARK_HEAD.len()..).and_then(|rest| rest.first_chunk()) {
            Some(sent) => Front::Mark(u64::from_be_bytes(*sent)),
            None => Front::Part,
        }
    }
}

/// The subscription that brings marks.
pub(crate) fn mark_subscription() -> Bytes {
    zmtp::subscription(true, MARK_TOPIC)
}

/// One connection of a caller, as its relay reports on it.
#[derive(Debug)]
pub(crate) struct Feed {
    /// Bytes published that are known to have come out of the publisher.
    seen: AtomicU64,
    /// When `seen` moved, in milliseconds of [`Feeds::now`].
    seen_at: AtomicU64,
    /// Since when more than [`limits::INSIDE_BYTES_MAX`] are inside the publisher; 0: they are not.
    over_since: AtomicU64,
    queued: AtomicUsize,
    /// When it took bytes; 0: never.
    took_at: AtomicU64,
    /// When it subscribed entries; 0: it did not.
    subscribed_at: AtomicU64,
}

/// All connections of callers. Shared by the publisher, the gate and the node's loop, all on one thread.
#[derive(Debug)]
pub(crate) struct Feeds {
    start: Instant,
    /// Bytes handed to the publisher.
    sent: AtomicU64,
    /// Bytes in all queues.
    queued: AtomicUsize,
    feeds: Mutex<HashMap<u64, Arc<Feed>>>,
    /// Bytes dropped so far, by run.
    dropped: Mutex<HashMap<Run, u64>>,
    /// Somebody waits for `moved`.
    awaited: AtomicBool,
    moved: Notify,
}

impl Feeds {
    pub(crate) fn new() -> Feeds {
        Feeds {
            start: Instant::now(),
            sent: AtomicU64::new(0),
            queued: AtomicUsize::new(0),
            feeds: Mutex::default(),
            dropped: Mutex::default(),
            awaited: AtomicBool::new(false),
            moved: Notify::new(),
        }
    }

    /// A new connection; whatever is published from now on counts as on its way to it.
    pub(crate) fn enter(&self, number: u64) -> Arc<Feed> {
        let feed = Arc::new(Feed {
            seen: AtomicU64::new(self.sent.load(Relaxed)),
            seen_at: AtomicU64::new(self.now()),
            over_since: AtomicU64::new(0),
            queued: AtomicUsize::new(0),
            took_at: AtomicU64::new(0),
            subscribed_at: AtomicU64::new(0),
        });
        lock(&self.feeds).insert(number, feed.clone());
        feed
    }

    /// The connection has ended; what was queued for it is gone.
    pub(crate) fn leave(&self, number: u64) {
        if let Some(feed) = lock(&self.feeds).remove(&number) {
            self.queued.fetch_sub(feed.queued.load(Relaxed), Relaxed);
            self.wake();
        }
    }

    pub(crate) fn count(&self) -> usize {
        lock(&self.feeds).len()
    }

    /// The publisher was given `bytes` more; gives all that it was given.
    pub(crate) fn sent(&self, bytes: u64) -> u64 {
        self.sent.fetch_add(bytes, Relaxed) + bytes
    }

    /// A mark of `sent` bytes came out of the publisher.
    pub(crate) fn seen(&self, feed: &Feed, sent: u64) {
        feed.seen.fetch_max(sent, Relaxed);
        feed.seen_at.store(self.now(), Relaxed);
        self.wake();
    }

    /// The caller subscribed, or no longer subscribes, entries.
    pub(crate) fn subscribed(&self, feed: &Feed, entries: bool) {
        let since = feed.subscribed_at.load(Relaxed);
        if entries != (since != 0) {
            feed.subscribed_at.store(if entries { self.now() } else { 0 }, Relaxed);
            self.wake();
        }
    }

    /// The caller took `bytes`.
    pub(crate) fn took(&self, feed: &Feed, bytes: usize) {
        if bytes > 0 {
            feed.took_at.store(self.now(), Relaxed);
        }
    }

    /// Now so many bytes are queued for it; whether that is too much.
    pub(crate) fn queued(&self, feed: &Feed, bytes: usize) -> bool {
        let before = feed.queued.swap(bytes, Relaxed);
        if before != bytes {
            // Wraps when it shrinks, as the atomic does.
            let all =
                self.queued.fetch_add(bytes.wrapping_sub(before), Relaxed).wrapping_add(bytes).wrapping_sub(before);
            self.wake();
            return bytes > limits::QUEUE_BYTES_MAX
                || (all > limits::QUEUES_BYTES_MAX && bytes >= all / self.count().max(1));
        }
        false
    }

    /// `bytes` for `run` were dropped.
    pub(crate) fn drop_bytes(&self, run: Run, bytes: u64) {
        let mut dropped = lock(&self.dropped);
        if dropped.len() < limits::DROPPED_RUNS_MAX || dropped.contains_key(&run) {
            *dropped.entry(run).or_default() += bytes;
        }
    }

    pub(crate) fn dropped(&self, run: Run) -> u64 {
        lock(&self.dropped).get(&run).copied().unwrap_or(0)
    }

    /// Whether publishing may go on. It waits while too much is inside the publisher; and while somebody who takes
    /// messages is behind and nobody who is settled and takes messages keeps up. Newcomers may be behind, too: else one
    /// that is cut for being slow within its first second, and comes again, would never settle.
    pub(crate) fn flow(&self) -> Flow {
        let (now, sent) = (self.now(), self.sent.load(Relaxed));
        let within = |at: u64, time: Duration| now.saturating_sub(at) <= time.as_millis() as u64;
        let (mut keeping, mut behind) = (false, false);
        for feed in lock(&self.feeds).values() {
            let subscribed_at = feed.subscribed_at.load(Relaxed);
            if subscribed_at == 0 {
                continue;
            }
            if sent.saturating_sub(feed.seen.load(Relaxed)) > limits::INSIDE_BYTES_MAX {
                let since = match feed.over_since.load(Relaxed) {
                    0 => now,
                    since => since,
                };
                if within(since.max(feed.seen_at.load(Relaxed)), limits::INSIDE_STALL) {
                    feed.over_since.store(since, Relaxed);
                    return Flow::Wait;
                }
                feed.seen.store(sent, Relaxed);
            }
            feed.over_since.store(0, Relaxed);
            let took_at = feed.took_at.load(Relaxed);
            if took_at != 0 && within(took_at, limits::TAKES) {
                let settled = !within(subscribed_at, limits::SETTLED);
                if feed.queued.load(Relaxed) > limits::BEHIND_BYTES {
                    behind = true;
                } else if settled {
                    keeping = true;
                }
            }
        }
        if behind && !keeping { Flow::Wait } else { Flow::Open }
    }

    /// Whether all that was published has been written to all.
    pub(crate) fn is_drained(&self) -> bool {
        let sent = self.sent.load(Relaxed);
        lock(&self.feeds).values().all(|feed| feed.seen.load(Relaxed) >= sent && feed.queued.load(Relaxed) == 0)
    }

    /// Resolves when something moves; at the latest after 50 ms, because the rules also depend on time.
    pub(crate) async fn changed(&self) {
        self.awaited.store(true, Relaxed);
        let _ = tokio::time::timeout(Duration::from_millis(50), self.moved.notified()).await;
    }

    fn wake(&self) {
        if self.awaited.swap(false, Relaxed) {
            self.moved.notify_one();
        }
    }

    /// Milliseconds since the start, from 1: 0 stands for never.
    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64 + 1
    }

    /// Callers that count for flow.
    #[cfg(test)]
    pub(crate) fn settled(&self) -> usize {
        let settled = |at: u64| at != 0 && self.now().saturating_sub(at) > limits::SETTLED.as_millis() as u64;
        lock(&self.feeds).values().filter(|feed| settled(feed.subscribed_at.load(Relaxed))).count()
    }

    #[cfg(test)]
    fn later(&mut self, time: Duration) {
        self.start -= time;
    }
}

/// A mutex that nobody can have poisoned: nothing panics while it is held.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Epoch, NodeId};

    const MIB: usize = 1 << 20;

    fn settled(feeds: &mut Feeds, number: u64) -> Arc<Feed> {
        let feed = feeds.enter(number);
        feeds.subscribed(&feed, true);
        feeds.later(Duration::from_millis(1500));
        feed
    }

    fn takes(feeds: &Feeds, feed: &Feed, queued: usize) {
        feeds.took(feed, 1);
        feeds.queued(feed, queued);
    }

    #[test]
    fn with_nobody_there_publishing_never_waits() {
        let feeds = Feeds::new();
        feeds.sent(1 << 40);
        assert_eq!(feeds.flow(), Flow::Open);
        assert!(feeds.is_drained());
    }

    #[test]
    fn publishing_waits_while_all_that_take_messages_are_behind() {
        let mut feeds = Feeds::new();
        let (a, b) = (settled(&mut feeds, 1), settled(&mut feeds, 2));
        takes(&feeds, &a, 5 * MIB);
        takes(&feeds, &b, 5 * MIB);
        assert_eq!(feeds.flow(), Flow::Wait);
        takes(&feeds, &b, 3 * MIB);
        assert_eq!(feeds.flow(), Flow::Open);
        feeds.leave(2);
        assert_eq!(feeds.flow(), Flow::Wait);
        feeds.later(Duration::from_millis(1100));
        assert_eq!(feeds.flow(), Flow::Open, "one that takes nothing is not waited for");
    }

    #[test]
    fn a_newcomer_is_waited_for_alone_but_does_not_hide_that_others_are_behind() {
        let mut feeds = Feeds::new();
        let settled = settled(&mut feeds, 1);
        let newcomer = feeds.enter(2);
        feeds.subscribed(&newcomer, true);
        takes(&feeds, &settled, 0);
        takes(&feeds, &newcomer, 5 * MIB);
        assert_eq!(feeds.flow(), Flow::Open);
        feeds.leave(1);
        assert_eq!(feeds.flow(), Flow::Wait);
        let feed = super::tests::settled(&mut feeds, 3);
        takes(&feeds, &feed, 5 * MIB);
        let newest = feeds.enter(4);
        feeds.subscribed(&newest, true);
        takes(&feeds, &newest, 0);
        assert_eq!(feeds.flow(), Flow::Wait);
    }

    #[test]
    fn publishing_waits_for_the_publisher_but_not_for_ever() {
        let mut feeds = Feeds::new();
        let feed = settled(&mut feeds, 1);
        feeds.seen(&feed, 0);
        let sent = feeds.sent(2 * MIB as u64);
        assert_eq!(feeds.flow(), Flow::Wait);
        feeds.seen(&feed, sent - MIB as u64);
        assert_eq!(feeds.flow(), Flow::Open);
        feeds.sent(MIB as u64);
        assert_eq!(feeds.flow(), Flow::Wait);
        feeds.later(Duration::from_millis(150));
        assert_eq!(feeds.flow(), Flow::Open);
    }

    #[test]
    fn too_much_for_one_or_for_all_is_told() {
        let mut feeds = Feeds::new();
        let one = settled(&mut feeds, 0);
        assert!(!feeds.queued(&one, limits::QUEUE_BYTES_MAX));
        assert!(feeds.queued(&one, limits::QUEUE_BYTES_MAX + 1));
        feeds.leave(0);
        let many: Vec<_> = (1..=10).map(|number| settled(&mut feeds, number)).collect();
        assert_eq!(many.iter().filter(|feed| feeds.queued(feed, 31 * MIB)).count(), 2);
        assert!(!feeds.queued(&many[0], MIB));
        for number in 1..=10 {
            feeds.leave(number);
        }
        assert_eq!(feeds.queued.load(Relaxed), 0);
    }

    #[test]
    fn marks_are_told_from_messages_however_little_is_there() {
        let mark = [MARK_HEAD, &77_u64.to_be_bytes()].concat();
        assert_eq!(mark.len(), MARK_BYTES);
        assert_eq!(Front::of(&mark), Front::Mark(77));
        for end in 1..mark.len() {
            assert_eq!(Front::of(&mark[..end]), Front::Part, "{end}");
        }
        for other in [&b""[..], b"\x01\x04chat", b"\x01\x04mesh\0\x01x", b"\x00", b"\x01\x48to."] {
            assert_eq!(Front::of(other), Front::Other);
        }
    }

    #[test]
    fn dropped_bytes_are_remembered_by_run() {
        let feeds = Feeds::new();
        let run = Run { node: NodeId([1; 32]), epoch: Epoch(1) };
        assert_eq!(feeds.dropped(run), 0);
        feeds.drop_bytes(run, 5);
        feeds.drop_bytes(run, 6);
        assert_eq!(feeds.dropped(run), 11);
    }
}
