//! What each caller is to get of what we publish, how far it is behind, and what follows for publishing.
//!
//! What is published waits in [`Claims`] until its ticket has come through the publisher, so it is known how much is inside;
//! then it is put into a queue for each caller that subscribes it ([`super::fanout`]).

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;

use super::claims::Claims;
use super::limits;
use super::queue::Queue;
use super::zmtp::{Broken, Parts};
use crate::id::Run;
use crate::net::Flow;
use crate::wire::TOPIC_CHAT;

/// One connection of a caller.
#[derive(Debug)]
pub(crate) struct Feed {
    state: Mutex<State>,
    /// Something is to be written, or the feed was cut.
    ready: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// What it subscribes.
    topics: Vec<Bytes>,
    /// Whole messages, but for what is written of the first.
    queue: Queue,
    /// So many bytes were dropped because too much was queued; nothing is taken any more.
    cut: Option<usize>,
    /// When it took bytes; 0: never.
    took_at: u64,
    /// When it subscribed entries; 0: it did not.
    subscribed_at: u64,
}

impl Feed {
    /// Resolves when there is something new to write, or the feed was cut. Cancel safe.
    pub(crate) async fn ready(&self) {
        self.ready.notified().await;
    }

    /// Bytes to be written.
    pub(crate) fn bytes(&self) -> usize {
        lock(&self.state).queue.bytes()
    }

    /// So many bytes were dropped because it was too slow.
    pub(crate) fn cut(&self) -> Option<usize> {
        lock(&self.state).cut
    }

    /// Has this written between two messages, unless much is queued: that shows life, too.
    pub(crate) fn pong(&self, feeds: &Feeds, pong: Bytes) {
        let mut state = lock(&self.state);
        if state.cut.is_none() && state.queue.bytes() < limits::COMMAND_BYTES_MAX {
            feeds.queued.fetch_add(pong.len(), Relaxed);
            state.queue.push(pong);
        }
    }
}

/// All connections of callers. Shared by the publisher, the gate and the node's loop, all on one thread.
#[derive(Debug)]
pub(crate) struct Feeds {
    start: Instant,
    /// What is inside the publisher.
    inside: Claims,
    /// Bytes of it that are not waited for: nothing came out for too long.
    stalled: AtomicUsize,
    /// When something came out, in milliseconds of [`Feeds::now`].
    claimed_at: AtomicU64,
    /// Since when something is inside and waited for; 0: nothing is.
    waits_since: AtomicU64,
    /// Bytes in all queues.
    queued: AtomicUsize,
    feeds: Mutex<HashMap<u64, Arc<Feed>>>,
    patience: Mutex<Patience>,
    /// Counts changes of who subscribes what.
    version: AtomicU64,
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
            inside: Claims::default(),
            stalled: AtomicUsize::new(0),
            claimed_at: AtomicU64::new(0),
            waits_since: AtomicU64::new(0),
            queued: AtomicUsize::new(0),
            feeds: Mutex::default(),
            patience: Mutex::new(Patience { left: limits::PATIENCE, asked: Duration::ZERO, waits: false }),
            version: AtomicU64::new(0),
            dropped: Mutex::default(),
            awaited: AtomicBool::new(false),
            moved: Notify::new(),
        }
    }

    /// A new connection, which subscribes nothing yet.
    pub(crate) fn enter(&self, number: u64) -> Arc<Feed> {
        let feed = Arc::new(Feed { state: Mutex::default(), ready: Notify::new() });
        lock(&self.feeds).insert(number, feed.clone());
        feed
    }

    /// The connection has ended; what was queued for it is gone.
    pub(crate) fn leave(&self, number: u64) {
        if let Some(feed) = lock(&self.feeds).remove(&number) {
            // The fan-out may still take it for one of its audience.
            let left = State { cut: Some(0), ..State::default() };
            let bytes = std::mem::replace(&mut *lock(&feed.state), left).queue.bytes();
            self.queued.fetch_sub(bytes, Relaxed);
            self.changed_subscriptions();
        }
    }

    pub(crate) fn count(&self) -> usize {
        lock(&self.feeds).len()
    }

    /// A message goes into the publisher; gives its ticket.
    pub(crate) fn say(&self, message: Parts) -> Bytes {
        let bytes = message.len();
        self.inside.leave(message, bytes, limits::INSIDE_BYTES_MAX)
    }

    /// A ticket came out of the publisher; gives its message.
    pub(crate) fn claim(&self, ticket: &[u8]) -> Option<Parts> {
        let message = self.inside.claim(ticket);
        self.stalled.fetch_min(self.inside.bytes(), Relaxed);
        self.claimed_at.store(self.now(), Relaxed);
        self.wake();
        message
    }

    /// The publisher is made anew: what was inside is lost.
    pub(crate) fn lose(&self) {
        self.inside.clear();
        self.stalled.store(0, Relaxed);
    }

    /// Subscribes (or no longer subscribes) `topic`. Each topic counts once, however often it is asked for.
    pub(crate) fn want(&self, feed: &Feed, wanted: bool, topic: &[u8]) -> Result<(), Broken> {
        if topic.len() > limits::SUBSCRIPTION_BYTES_MAX {
            return Err(Broken::Subscription);
        }
        let mut state = lock(&feed.state);
        match (wanted, state.topics.iter().position(|other| *other == topic)) {
            (true, None) if state.topics.len() >= limits::SUBSCRIPTIONS_MAX => return Err(Broken::Subscription),
            // Copied: a slice would hold the whole block it was read in.
            (true, None) => state.topics.push(Bytes::copy_from_slice(topic)),
            (false, Some(index)) => drop(state.topics.swap_remove(index)),
            _ => return Ok(()),
        }
        let entries = wants(&state.topics, TOPIC_CHAT.as_bytes());
        if entries != (state.subscribed_at != 0) {
            state.subscribed_at = if entries { self.now() } else { 0 };
        }
        drop(state);
        self.changed_subscriptions();
        Ok(())
    }

    /// Changes whenever [`Feeds::audience`] may answer otherwise.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Relaxed)
    }

    /// Those who subscribe a message that begins with `topic`.
    pub(crate) fn audience(&self, topic: &[u8]) -> Vec<Arc<Feed>> {
        let feeds = lock(&self.feeds);
        feeds.values().filter(|feed| wants(&lock(&feed.state).topics, topic)).cloned().collect()
    }

    /// Queues a message for all of `audience`. Who has too much queued by then is cut.
    pub(crate) fn give(&self, audience: &[Arc<Feed>], message: &[Bytes]) {
        for feed in audience {
            let mut state = lock(&feed.state);
            if state.cut.is_some() {
                continue;
            }
            let before = state.queue.bytes();
            message.iter().for_each(|chunk| state.queue.push(chunk.clone()));
            let bytes = state.queue.bytes();
            let all = self.queued.fetch_add(bytes - before, Relaxed) + bytes - before;
            let share = all > limits::QUEUES_BYTES_MAX && bytes >= all / self.count().max(1);
            if bytes > limits::QUEUE_BYTES_MAX || share {
                self.queued.fetch_sub(bytes, Relaxed);
                (state.queue, state.cut) = (Queue::default(), Some(bytes));
            }
            drop(state);
            feed.ready.notify_one();
        }
    }

    /// Writes of what is queued what can be written by `write`; gives the bytes written.
    pub(crate) fn take(
        &self,
        feed: &Feed,
        write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut state = lock(&feed.state);
        let before = state.queue.bytes();
        let written = state.queue.write(write);
        let bytes = before - state.queue.bytes();
        if bytes > 0 {
            state.took_at = self.now();
            self.queued.fetch_sub(bytes, Relaxed);
            self.wake();
        }
        written
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

    /// Whether publishing may go on. It waits while something is inside the publisher; while somebody who takes messages is
    /// behind and nobody who is settled and takes messages keeps up; and, as far as patience goes, for those who lag behind
    /// others. Newcomers may be behind, too: else one that is cut for being slow within its first second, and comes again,
    /// would never settle.
    pub(crate) fn flow(&self) -> Flow {
        let (now, inside) = (self.now(), self.inside.bytes());
        let within = |at: u64, time: Duration| now.saturating_sub(at) <= time.as_millis() as u64;
        if inside > self.stalled.load(Relaxed) {
            let since = match self.waits_since.load(Relaxed) {
                0 => now,
                since => since,
            };
            // A little that comes and goes must not look like much that moves.
            let moved = if inside > limits::INSIDE_BYTES_MUCH { self.claimed_at.load(Relaxed) } else { 0 };
            if within(since.max(moved), limits::INSIDE_STALL) {
                self.waits_since.store(since, Relaxed);
                return Flow::Wait;
            }
            self.stalled.store(inside, Relaxed);
        }
        self.waits_since.store(0, Relaxed);
        let (mut keeping, mut behind, mut lagging) = (false, false, false);
        for feed in lock(&self.feeds).values() {
            let state = lock(&feed.state);
            if state.subscribed_at == 0 || state.took_at == 0 || !within(state.took_at, limits::TAKES) {
                continue;
            }
            let bytes = state.queue.bytes();
            lagging |= bytes > limits::LAGS_BYTES;
            if bytes > limits::BEHIND_BYTES {
                behind = true;
            } else if !within(state.subscribed_at, limits::SETTLED) {
                keeping = true;
            }
        }
        let waits = behind && !keeping || lock(&self.patience).lasts(self.start.elapsed(), lagging && keeping);
        if waits { Flow::Wait } else { Flow::Open }
    }

    /// Whether all that was published has been written to all.
    pub(crate) fn is_drained(&self) -> bool {
        self.inside.bytes() == 0 && self.queued.load(Relaxed) == 0
    }

    /// Resolves when something moves; at the latest after 50 ms, because the rules also depend on time.
    pub(crate) async fn changed(&self) {
        self.awaited.store(true, Relaxed);
        let _ = tokio::time::timeout(Duration::from_millis(50), self.moved.notified()).await;
    }

    fn changed_subscriptions(&self) {
        self.version.fetch_add(1, Relaxed);
        self.wake();
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
        lock(&self.feeds).values().filter(|feed| settled(lock(&feed.state).subscribed_at)).count()
    }

    #[cfg(test)]
    fn later(&mut self, time: Duration) {
        self.start -= time;
    }
}

/// How long publishing may still wait for callers that are slower than others.
#[derive(Debug)]
struct Patience {
    left: Duration,
    /// When it was last asked, and what it answered.
    asked: Duration,
    waits: bool,
}

impl Patience {
    /// Whether it lasts, at this time, for what is `wanted`. It comes back a quarter as fast as it goes, and is not begun
    /// again before there is some.
    fn lasts(&mut self, now: Duration, wanted: bool) -> bool {
        let passed = now.saturating_sub(self.asked);
        self.left =
            if self.waits { self.left.saturating_sub(passed) } else { (self.left + passed / 4).min(limits::PATIENCE) };
        let enough = if self.waits { Duration::from_micros(1) } else { limits::PATIENCE / 4 };
        (self.asked, self.waits) = (now, wanted && self.left >= enough);
        self.waits
    }
}

fn wants(topics: &[Bytes], topic: &[u8]) -> bool {
    topics.iter().any(|wanted| topic.starts_with(wanted))
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
        feeds.want(&feed, true, b"chat").unwrap();
        feeds.later(Duration::from_millis(1500));
        feed
    }

    /// Has it take what is queued, and then so many bytes queued.
    fn takes(feeds: &Feeds, feed: &Arc<Feed>, queued: usize) {
        let all = |slices: &[IoSlice<'_>]| Ok(slices.iter().map(|slice| slice.len()).sum());
        give(feeds, feed, 1);
        feeds.take(feed, all).unwrap();
        give(feeds, feed, queued);
    }

    fn give(feeds: &Feeds, feed: &Arc<Feed>, bytes: usize) {
        static ZEROS: [u8; 64 * MIB] = [0; 64 * MIB];
        feeds.give(std::slice::from_ref(feed), &[Bytes::from_static(&ZEROS[..bytes])]);
    }

    fn say(feeds: &Feeds, bytes: usize) -> Bytes {
        feeds.say(Parts { first: vec![0; bytes].into(), second: None })
    }

    #[test]
    fn with_nobody_there_publishing_waits_for_the_publisher_only() {
        let feeds = Feeds::new();
        let ticket = say(&feeds, 1);
        assert_eq!(feeds.flow(), Flow::Wait);
        assert!(!feeds.is_drained() && feeds.claim(&ticket).is_some());
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
        feeds.want(&newcomer, true, b"chat").unwrap();
        takes(&feeds, &settled, 0);
        takes(&feeds, &newcomer, 5 * MIB);
        assert_eq!(feeds.flow(), Flow::Open);
        feeds.leave(1);
        assert_eq!(feeds.flow(), Flow::Wait);
        let feed = super::tests::settled(&mut feeds, 3);
        takes(&feeds, &feed, 5 * MIB);
        let newest = feeds.enter(4);
        feeds.want(&newest, true, b"chat").unwrap();
        takes(&feeds, &newest, 0);
        assert_eq!(feeds.flow(), Flow::Wait);
    }

    #[test]
    fn publishing_waits_for_one_that_lags_behind_others_but_only_a_while() {
        let mut feeds = Feeds::new();
        let (fast, slow) = (settled(&mut feeds, 1), settled(&mut feeds, 2));
        takes(&feeds, &fast, 0);
        takes(&feeds, &slow, 15 * MIB);
        assert_eq!(feeds.flow(), Flow::Open);
        takes(&feeds, &slow, 2 * MIB);
        assert_eq!(feeds.flow(), Flow::Open);
        let mut waited = 0;
        for _ in 0..100 {
            takes(&feeds, &fast, 0);
            takes(&feeds, &slow, 17 * MIB);
            waited += u32::from(feeds.flow() == Flow::Wait);
            feeds.later(Duration::from_millis(100));
        }
        assert!((20..40).contains(&waited), "{waited} of 100");
    }

    #[test]
    fn publishing_waits_for_the_publisher_but_not_for_ever() {
        let mut feeds = Feeds::new();
        let ticket = say(&feeds, 100);
        say(&feeds, 100);
        assert_eq!(feeds.flow(), Flow::Wait);
        feeds.claim(&ticket);
        assert_eq!(feeds.flow(), Flow::Wait);
        feeds.later(Duration::from_millis(150));
        assert_eq!(feeds.flow(), Flow::Open, "nothing comes out");
        assert_eq!(feeds.flow(), Flow::Open);
        let ticket = say(&feeds, 100);
        assert_eq!(feeds.flow(), Flow::Wait, "once more");
        feeds.claim(&ticket);
        assert_eq!(feeds.flow(), Flow::Open);
        say(&feeds, 100);
        feeds.lose();
        assert_eq!(feeds.flow(), Flow::Open);
        assert!(feeds.is_drained());
    }

    #[test]
    fn who_has_too_much_for_one_or_more_than_its_share_is_cut() {
        let mut feeds = Feeds::new();
        let one = settled(&mut feeds, 0);
        give(&feeds, &one, limits::QUEUE_BYTES_MAX);
        assert_eq!(one.cut(), None);
        give(&feeds, &one, 1);
        assert_eq!((one.cut(), one.bytes()), (Some(limits::QUEUE_BYTES_MAX + 1), 0));
        feeds.leave(0);
        let many: Vec<_> = (1..=10).map(|number| settled(&mut feeds, number)).collect();
        many.iter().for_each(|feed| give(&feeds, feed, 31 * MIB));
        assert_eq!(many.iter().filter(|feed| feed.cut().is_some()).count(), 2);
        give(&feeds, &many[0], 0);
        assert_eq!(many[0].cut(), None);
        for number in 1..=10 {
            feeds.leave(number);
        }
        assert_eq!(feeds.queued.load(Relaxed), 0);
    }

    #[test]
    fn a_pong_is_written_between_two_messages() {
        let feeds = Feeds::new();
        let feed = feeds.enter(1);
        let mut written = Vec::new();
        let audience = [feed.clone()];
        feeds.give(&audience, &[Bytes::from_static(b"ab"), Bytes::from_static(b"c")]);
        feed.pong(&feeds, Bytes::from_static(b"PONG"));
        feeds.give(&audience, &[Bytes::from_static(b"de"), Bytes::new()]);
        let write = |slices: &[IoSlice<'_>]| {
            written.extend(slices.iter().flat_map(|slice| slice.iter().copied()));
            Ok(slices.iter().map(|slice| slice.len()).sum())
        };
        feeds.take(&feed, write).unwrap();
        assert_eq!(written, b"abcPONGde");
        assert!(feeds.is_drained());
    }

    #[test]
    fn pongs_are_bounded() {
        let feeds = Feeds::new();
        let feed = feeds.enter(1);
        for _ in 0..10_000 {
            feed.pong(&feeds, Bytes::from_static(b"PONG"));
        }
        assert_eq!(feed.bytes(), limits::COMMAND_BYTES_MAX);
        assert_eq!(feeds.queued.load(Relaxed), limits::COMMAND_BYTES_MAX);
    }

    #[test]
    fn an_audience_is_who_subscribes_a_beginning() {
        let feeds = Feeds::new();
        let (a, b) = (feeds.enter(1), feeds.enter(2));
        feeds.want(&a, true, b"chat").unwrap();
        let version = feeds.version();
        feeds.want(&b, true, b"").unwrap();
        assert_ne!(feeds.version(), version);
        assert_eq!(feeds.audience(b"chatter").len(), 2);
        assert_eq!(feeds.audience(b"mesh").len(), 1);
        feeds.want(&b, false, b"").unwrap();
        assert_eq!(feeds.audience(b"mesh").len(), 0);
        feeds.leave(1);
        assert_eq!(feeds.audience(b"chat").len(), 0);
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
