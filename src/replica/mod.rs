//! The core: what is missing, whom to ask, what to deliver. It decides; the event loop does.
//!
//! A [`Replica`] is driven by four methods. Put everything that happens into [`Replica::handle`] and everything that is
//! said into [`Replica::publish`]; after each of them take every [`Output`] from [`Replica::poll_output`] and do it, in
//! order; then sleep until [`Replica::poll_timeout`] or until something happens, and hand in [`Input::Timeout`] when that
//! moment has come. It is deterministic: no I/O, no clock, no randomness of its own; time and a seed are passed in. It
//! cannot fail: what breaks the rules is counted in [`Counters`] and dropped.

#[cfg(feature = "sim")]
mod audit;
pub mod batch;
pub mod clock;
pub mod control;
mod entry;
pub mod event;
mod hashes;
pub mod keys;
pub mod liveness;
pub mod log;
pub mod message;
mod mutants;
mod origins;
mod payload;
pub mod ranges;
pub(crate) mod repair;
mod speak;
mod stream;
pub mod version;
mod window;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::id::{EntryId, Epoch, Key, NodeId, NodeKey, Run, RunHash, Seq};
#[cfg(feature = "sim")]
pub(crate) use audit::Audit;
use batch::{Author, Batch, Draft};
use clock::{Clock, Hlc, Mono, Now};
use event::{Input, Kept, Missing, Notice, Opened, Output, Span, Timing, To};
use hashes::Hashes;
use liveness::{Holds, Peer};
use log::Log;
use message::Message;
pub use mutants::Mutant;
use origins::Leavers;
use repair::Repairs;
pub use stream::RANGES_MAX;
use stream::{Step, Stream, Taken};
use version::Cursor;
use window::Window;

/// Streams known at most; beyond, those that ended longest ago are let go and forgotten.
pub const STREAMS_MAX: usize = 65_536;
/// Peers known at most.
pub const PEERS_MAX: usize = 256;
/// The window in memory, in bytes.
pub const WINDOW_BYTES_MAX: usize = 64 * 1024 * 1024;
/// An entry further ahead of our clock than this is refused: 400 days.
const AHEAD_MS_REFUSED: u64 = 400 * DAY_MS;
/// New runs of one node within a day; more are refused.
pub const RUNS_PER_DAY_MAX: u32 = 1024;
const DAY_MS: u64 = 24 * 3600 * 1000;

/// The decisions of one node. See the [module](self).
#[derive(Debug)]
pub struct Replica {
    key: NodeKey,
    me: Run,
    name: Arc<str>,
    start: Hlc,
    clock: Clock,
    random: u64,
    previous: [u8; 32],
    endpoints: Vec<SocketAddr>,
    streams: BTreeMap<Run, Stream>,
    runs: HashMap<RunHash, Run>,
    /// The newest time that was let go by any rule: what is over a day older, over and unknown is not taken again.
    horizon: Hlc,
    /// Runs named by others that were refused: not asked about again for now.
    unwelcome: BTreeSet<RunHash>,
    /// New runs of a node since a time.
    newcomers: BTreeMap<NodeId, (u32, Mono)>,
    leavers: Leavers,
    window: Window,
    log: Log,
    peers: BTreeMap<Run, Peer>,
    repairs: Repairs,
    /// Streams of which something is missing.
    lacking: BTreeSet<Run>,
    /// Those of `lacking` that something happened to since requests were last planned.
    unplanned: BTreeSet<Run>,
    /// Streams in which something waits for what is missing before it.
    waiting: BTreeSet<Run>,
    /// Streams whose ranges changed since they were last listed in a heartbeat.
    moved: VecDeque<Run>,
    hashes: Hashes,
    beat_at: Mono,
    /// When the next beat is due even if there is no news.
    regular_at: Mono,
    /// The stream that was listed last in its turn.
    listed: Run,
    /// The next hello, and the next that is not about news.
    hello_at: Mono,
    regular_hello_at: Mono,
    deadline: Mono,
    outputs: VecDeque<Output>,
    counters: Counters,
    #[cfg(feature = "mutants")]
    mutant: Option<Mutant>,
}

/// What the core counts, from the start of its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Entries published here.
    pub published: u64,
    /// Entries of other runs taken.
    pub received: u64,
    /// Their bytes, with headers.
    pub received_bytes: u64,
    /// Batches that came again.
    pub duplicates: u64,
    /// Batches that contradict what was seen, or are no part of the stream that they claim.
    pub conflicts: u64,
    /// Batches refused: from the far future, from a forgotten past, of too many runs.
    pub refused: u64,
    /// Gaps told to readers that may still be filled.
    pub gaps: u64,
    /// Entries missing for good.
    pub missing: u64,
    /// Requests sent.
    pub requests: u64,
    /// Requests answered.
    pub served: u64,
    /// Bytes of batches that repairs brought.
    pub repaired_bytes: u64,
    /// Digests asked for because hashes differed.
    pub digests: u64,
    /// Streams that had to make room for others while something of them was left.
    pub let_go: u64,
    /// Entries that retention let go.
    pub expired: u64,
}

/// What became of drafts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The id of the first one that was new; those after it follow without a hole.
    pub first: EntryId,
    /// How many were new.
    pub count: u64,
    /// The others, by index: their key was known.
    pub known: Vec<(usize, KnownKey)>,
}

/// The key of a draft belongs to an entry already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownKey {
    /// That entry says the same: this is a retry of it.
    Same(EntryId),
    /// That entry says something else.
    Other(EntryId),
}

impl Replica {
    /// A replica that holds what is in its log, if it has one. `seed` varies its choices; two replicas with equal seed, log
    /// and inputs do the same.
    pub fn new(
        now: Now,
        key: NodeKey,
        epoch: Epoch,
        name: Arc<str>,
        seed: u64,
        window_bytes_max: usize,
        opened: Option<Opened>,
    ) -> Replica {
        let me = key.run(epoch);
        let mut replica = Replica {
            key,
            me,
            name,
            start: Hlc::at(now.wall_ms),
            clock: Clock::default(),
            random: seed,
            previous: [0; 32],
            endpoints: Vec::new(),
            streams: BTreeMap::new(),
            runs: HashMap::new(),
            horizon: Hlc::default(),
            unwelcome: BTreeSet::new(),
            newcomers: BTreeMap::new(),
            leavers: Leavers::default(),
            window: Window::new(window_bytes_max),
            log: Log::new(now.mono),
            peers: BTreeMap::new(),
            repairs: Repairs::default(),
            lacking: BTreeSet::new(),
            unplanned: BTreeSet::new(),
            waiting: BTreeSet::new(),
            moved: VecDeque::new(),
            hashes: Hashes::default(),
            beat_at: now.mono + speak::BEAT_EVERY,
            regular_at: now.mono + speak::BEAT_EVERY,
            listed: me,
            hello_at: now.mono + speak::HELLO_EVERY,
            regular_hello_at: now.mono + speak::HELLO_EVERY,
            deadline: now.mono,
            outputs: VecDeque::new(),
            counters: Counters::default(),
            #[cfg(feature = "mutants")]
            mutant: None,
        };
        replica.stream(now, me);
        replica.meet(me, Seq(0), None);
        if let Some(opened) = opened {
            replica.open_log(now, opened);
        }
        replica
    }

    /// Takes drafts into our own stream, encoded into as few batches as hold them, and sends and delivers them.
    ///
    /// A draft whose key is known makes no entry. Drafts must keep the limits of [`batch`].
    pub fn publish(&mut self, now: Now, drafts: Vec<Draft>) -> Published {
        let sent = self.streams[&self.me].sent;
        let (known, fresh) = self.tell_known(sent, drafts);
        let mut rest = &fresh[..];
        while !rest.is_empty() {
            let first = self.streams[&self.me].sent.next();
            let time = self.log.time(now);
            let hlc = self.clock.tick(time, batch::BATCH_ENTRIES_MAX.min(rest.len()) as u64);
            let author =
                Author { key: &self.key, origin: self.me, name: &self.name, first, hlc, previous: self.previous };
            let batch = author.encode(rest);
            self.previous = batch.body_hash();
            rest = &rest[batch.count() as usize..];
            if let Some(own) = self.streams.get_mut(&self.me) {
                own.sent = batch.last();
            }
            self.store(now, Kept { batch, arrived_ms: now.wall_ms }, Source::Ourselves);
        }
        self.counters.published += fresh.len() as u64;
        Published { first: EntryId { run: self.me, seq: sent.next() }, count: fresh.len() as u64, known }
    }

    /// Tells drafts whose key is known from those that make entries after `sent`.
    fn tell_known(&self, sent: Seq, drafts: Vec<Draft>) -> (Vec<(usize, KnownKey)>, Vec<Draft>) {
        if drafts.iter().all(|draft| draft.key.is_none()) {
            return (Vec::new(), drafts);
        }
        let (mut known, mut fresh) = (Vec::new(), Vec::with_capacity(drafts.len()));
        let mut keys: HashMap<Key, (EntryId, usize)> = HashMap::new();
        for (index, draft) in drafts.into_iter().enumerate() {
            let Some(key) = draft.key else {
                fresh.push(draft);
                continue;
            };
            if let Some(id) = self.window.find(&key) {
                known.push((index, self.compare(id, &draft)));
            } else if let Some(&(id, at)) = keys.get(&key) {
                let same = says_the_same(&fresh[at], &draft);
                known.push((index, if same { KnownKey::Same(id) } else { KnownKey::Other(id) }));
            } else {
                let id = EntryId { run: self.me, seq: Seq(sent.0 + 1 + fresh.len() as u64) };
                keys.insert(key, (id, fresh.len()));
                fresh.push(draft);
            }
        }
        (known, fresh)
    }

    /// Whether one of `drafts`, said after `before`, has the key of another text.
    pub fn clashes(&self, before: &[Draft], drafts: &[Draft]) -> bool {
        if drafts.iter().all(|draft| draft.key.is_none()) {
            return false;
        }
        let mut said: HashMap<Key, &Draft> = HashMap::new();
        for draft in before {
            draft.key.map(|key| *said.entry(key).or_insert(draft));
        }
        drafts.iter().any(|draft| {
            let Some(key) = draft.key else { return false };
            let known = self.window.find(&key).is_some_and(|id| matches!(self.compare(id, draft), KnownKey::Other(_)));
            known || !says_the_same(said.entry(key).or_insert(draft), draft)
        })
    }

    /// Takes note of something that happened.
    pub fn handle(&mut self, now: Now, input: Input) {
        let heard = matches!(input, Input::Message { .. });
        match input {
            Input::Timeout => {}
            Input::LinkUp { run, address } => self.link_up(now, run, address),
            Input::LinkDown(run) => {
                if let Some(peer) = self.peers.get_mut(&run) {
                    (peer.linked, peer.live) = (false, false);
                    self.greet_soon(now);
                    self.desert(now, run);
                }
            }
            Input::Called(run) => {
                if let Some(peer) = self.peer(now, run) {
                    peer.called = true;
                    (peer.greet_at, peer.greeted) = (Some(now.mono), 0);
                    self.judge(now, run);
                }
            }
            Input::Left(run) => {
                if let Some(peer) = self.peers.get_mut(&run) {
                    (peer.called, peer.hears_us, peer.greet_at) = (false, false, None);
                    self.judge(now, run);
                }
            }
            Input::Refused(run) => {
                if let Some(peer) = self.peers.get_mut(&run).filter(|peer| !peer.live) {
                    peer.gone = true;
                    self.judge(now, run);
                }
            }
            Input::Message { from, message } => self.hear(now, from, message),
            Input::Endpoints(endpoints) => {
                if self.endpoints != endpoints {
                    self.endpoints = endpoints;
                    self.greet_soon(now);
                }
            }
            Input::Log(report) => self.hear_log(now, report),
            Input::Stop => {
                let sent = self.streams[&self.me].sent;
                self.send(To::All, Message::Goodbye(sent));
            }
        }
        self.tick(now, heard);
    }

    /// The next thing to do, if there is one. To be taken until there is none after each of the other methods.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timeout`] is due if nothing else happens.
    pub fn poll_timeout(&self) -> Option<Mono> {
        Some(self.deadline)
    }

    /// This life of this node.
    pub fn me(&self) -> Run {
        self.me
    }

    /// The peers known.
    pub fn peers(&self) -> impl Iterator<Item = (Run, &Peer)> {
        self.peers.iter().map(|(run, peer)| (*run, peer))
    }

    /// One peer.
    pub fn known_peer(&self, run: Run) -> Option<&Peer> {
        self.peers.get(&run)
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The batches in the window, oldest first.
    pub fn window(&self) -> impl Iterator<Item = &Batch> {
        self.window.iter().filter_map(|(run, first)| self.streams.get(&run)?.batch(first))
    }

    /// How many bytes and batches the window holds.
    pub fn window_size(&self) -> (usize, usize) {
        (self.window.bytes(), self.window.len())
    }

    /// Takes out of a reader's cursor what is not to be had any more, and answers how much of it the reader missed.
    pub fn give_up(&self, cursor: &mut Cursor) -> u64 {
        let gone = |stream: &Stream| {
            let mut gone = ranges::RangeSet::of(Seq(1), stream.floor).without(&stream.have);
            gone.union(&stream.settled);
            cursor.give_up(stream.hash, &gone, stream.newest)
        };
        self.streams.values().filter(|stream| stream.met || stream.floor > Seq(0)).map(gone).sum()
    }

    /// The cursor of a reader who was given all that is held by now.
    pub fn cursor(&self) -> Cursor {
        let mut cursor = Cursor::new();
        for stream in self.streams.values() {
            for (first, last) in stream.covered().iter() {
                cursor.add(stream.hash, first, last, stream.newest);
            }
        }
        cursor
    }

    /// How many nodes other than its author are known to hold an entry on disk; this one counts, too.
    pub fn stored_by(&self, id: EntryId) -> usize {
        let mut holders = self.holders(id, |holds| holds.held.contains(id.seq) && !holds.volatile.contains(id.seq));
        if id.run.node != self.me.node && self.is_stored(id) {
            holders.insert(self.me.node);
        }
        holders.len()
    }

    /// How many other nodes than this one and the author are known to hold an entry, be it in memory.
    pub fn held_by(&self, id: EntryId) -> usize {
        self.holders(id, |holds| holds.held.contains(id.seq)).len()
    }

    fn holders(&self, id: EntryId, holds: impl Fn(&Holds) -> bool) -> BTreeSet<NodeId> {
        let holders = self.peers.iter().filter(|(run, peer)| {
            run.node != id.run.node && run.node != self.me.node && peer.holds.get(&id.run).is_some_and(&holds)
        });
        holders.map(|(run, _)| run.node).collect()
    }

    /// Whether an entry is on this node's disk.
    pub fn is_stored(&self, id: EntryId) -> bool {
        self.streams.get(&id.run).is_some_and(|stream| stream.stored.contains(id.seq))
    }

    /// The batches in the window that are not on disk, in any order.
    pub fn unstored(&self) -> Vec<Batch> {
        if self.log.is_open() {
            // Few; the window may hold very many.
            let batch = |(run, first): (Run, Seq)| self.streams.get(&run)?.batch(first).cloned();
            return self.log.appending().filter_map(batch).collect();
        }
        let stored = |batch: &&Batch| {
            let stored = self.streams.get(&batch.origin()).map(|stream| &stream.stored);
            stored.is_some_and(|stored| stored.covers(batch.first(), batch.last()))
        };
        self.window().filter(|batch| !stored(batch)).cloned().collect()
    }

    fn compare(&self, id: EntryId, draft: &Draft) -> KnownKey {
        let batch = self.streams.get(&id.run).and_then(|stream| stream.batches(id.seq, id.seq).next());
        let entry = batch.and_then(|batch| batch.entries().flatten().find(|entry| entry.id == id));
        match entry {
            Some(entry) if entry.room != draft.room || entry.payload != draft.payload => KnownKey::Other(id),
            _ => KnownKey::Same(id),
        }
    }

    fn meet(&mut self, origin: Run, top: Seq, newest: Option<Hlc>) {
        if let Some(stream) = self.streams.get_mut(&origin) {
            stream.meet(top, newest, self.start);
        }
    }

    /// Takes a batch: into the log, into the window, to peers if it is ours, and to readers as far as it is its turn.
    fn store(&mut self, now: Now, kept: Kept, source: Source) {
        let batch = kept.batch.clone();
        let origin = batch.origin();
        let (start, me) = (self.start, self.me);
        let again = self.bug(Mutant::OldFrameAccepted);
        if (self.log.is_ahead(now, batch.hlc_last()) || self.is_old(now, origin, batch.hlc_last())) && !again {
            self.counters.refused += 1;
            return;
        }
        let logged = self.log.is_there();
        let Some(stream) = self.stream(now, origin) else { return };
        if origin == me && batch.last() > stream.sent {
            let id = EntryId { run: me, seq: batch.last() };
            self.outputs.push_back(Output::Notify(Notice::OwnRunElsewhere(id)));
            return;
        }
        let bytes = batch.bytes().len() as u64;
        let repaired = matches!(source, Source::Repair);
        match stream.take(now.mono, kept.clone(), repaired, logged) {
            Taken::New => {}
            Taken::Anew => {
                self.append(kept);
                self.look_for_holes(origin);
                return;
            }
            Taken::Again if again => {
                self.outputs.push_back(Output::Deliver { batch, how: Timing::Live });
                return;
            }
            Taken::Again => {
                self.counters.duplicates += 1;
                return;
            }
            Taken::Conflict => {
                let contradicted = stream.contradict(batch.first(), batch.last(), logged);
                self.counters.conflicts += 1;
                for (first, last) in contradicted {
                    self.settle(Span { run: origin, first, last }, Missing::Lost);
                }
                self.admit(origin);
                self.look_for_holes(origin);
                return;
            }
            Taken::Torn => {
                // With nothing left to be filled, what there is makes room.
                let top = stream.seen.top();
                let full = stream.missing(top, logged).is_empty();
                self.counters.refused += 1;
                if full {
                    self.let_go(now, origin, top);
                }
                return;
            }
        }
        let steps = stream.deliver(batch.first(), start);
        self.append(kept);
        if source == Source::Ourselves {
            self.send(To::All, Message::Batch(batch.clone()));
        }
        if origin != me {
            self.counters.received += u64::from(batch.count());
            self.counters.received_bytes += bytes;
            self.counters.repaired_bytes += if repaired { bytes } else { 0 };
        }
        self.clock.observe(self.log.time(now), batch.hlc_last());
        self.window.insert(&batch);
        self.step(origin, steps);
        if !self.log.is_open() {
            self.mark(now, origin);
        }
        self.look_for_holes(origin);
        while let Some((run, first)) = self.window.surplus() {
            if self.bug(Mutant::StashUnbounded) {
                break;
            }
            self.evict(now, run, first);
        }
    }

    /// Lets a batch leave the window, be it on disk or not: what is on its way there holds its bytes. If the log closes
    /// before it has them, they are asked of peers when it opens again; own entries that nobody else has by then, which
    /// were `sent` and no more, are lost.
    fn evict(&mut self, now: Now, run: Run, first: Seq) {
        let start = self.start;
        let Some(stream) = self.streams.get_mut(&run) else { return };
        if let Some(batch) = stream.batch(first) {
            self.window.remove(&batch.clone());
        }
        let steps = stream.evict(now.mono, first, start, self.log.is_there());
        self.hashes.touch(run);
        self.step(run, steps);
        if !self.log.is_there() {
            self.mark(now, run);
        }
    }

    /// Delivers, and tells of gaps.
    fn step(&mut self, origin: Run, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Deliver(batch, how) => self.outputs.push_back(Output::Deliver { batch, how }),
                Step::Gap(missing) => {
                    self.counters.gaps += 1;
                    self.notify(Notice::Gap { origin, missing, reason: Missing::Late });
                }
                Step::Lost(missing) => {
                    self.counters.missing = self.counters.missing.saturating_add(missing);
                    self.notify(Notice::Gap { origin, missing, reason: Missing::Lost });
                }
            }
        }
    }

    /// Everything that is due by now, and the next deadline. If something was only `heard`, nothing is due of a peer sooner
    /// than before but for what is due in seconds, and the next beat looks at all peers again: so they, of whom there may
    /// be hundreds, are not looked at for each message.
    fn tick(&mut self, now: Now, heard: bool) {
        if self.deadline <= now.mono {
            let runs: Vec<Run> = self.peers.keys().copied().collect();
            for run in runs {
                self.judge(now, run);
            }
            self.forget_peers(now);
            self.give_up_waiting(now);
            if !self.bug(Mutant::DeadSourceForgotten) {
                let jitter = self.draw();
                self.repairs.give_up(now.mono, None, jitter);
            }
            // Once a second all that is lacking is looked at again.
            if self.regular_at <= now.mono {
                self.unplanned.clone_from(&self.lacking);
            }
            self.speak(now);
            self.retain(now);
        }
        self.plan(now);
        let known = Some(self.deadline).filter(|deadline| heard && *deadline > now.mono);
        self.deadline = self.next_deadline(now, known);
    }

    /// `known`: nothing is due of a peer before.
    fn next_deadline(&self, now: Now, known: Option<Mono>) -> Mono {
        let due = |peer: &Peer| peer.deadline().into_iter().chain(peer.greet_at).min();
        let peers = known.or_else(|| self.peers.values().filter_map(due).min());
        let gaps = self
            .waiting
            .iter()
            .filter_map(|run| self.streams.get(run)?.waiting_since)
            .map(|since| since + stream::GAP_WAIT);
        let fixed =
            [self.beat_at, self.hello_at].into_iter().chain(self.log.deadline()).chain(self.repairs.deadline(now.mono));
        let earliest = peers.into_iter().chain(gaps).chain(fixed).min().unwrap_or(self.beat_at);
        earliest.max(now.mono + Duration::from_millis(1))
    }

    fn give_up_waiting(&mut self, now: Now) {
        let start = self.start;
        let silent = self.bug(Mutant::HoleSkippedSilently);
        for origin in self.waiting.clone() {
            let Some(stream) = self.streams.get_mut(&origin) else { continue };
            let mut steps = Vec::new();
            // One hole after the other, as many as were waited for long enough.
            while stream.waiting_since.is_some_and(|since| since + stream::GAP_WAIT <= now.mono) {
                steps.extend(stream.give_up(start));
            }
            if silent {
                steps.retain(|step| !matches!(step, Step::Gap(_)));
            }
            self.step(origin, steps);
            self.look_for_holes(origin);
        }
    }

    fn send(&mut self, to: To, message: Message) {
        self.outputs.push_back(Output::Send { to, message });
    }

    fn notify(&mut self, notice: Notice) {
        self.outputs.push_back(Output::Notify(notice));
    }

    /// The next number of a SplitMix64 sequence (Steele et al., 2014).
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.random)
    }
}

/// Where a batch comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// It is ours and new.
    Ourselves,
    /// Its author says it.
    Author,
    /// It was asked for, or was found in a history that was moved aside.
    Repair,
}

fn says_the_same(one: &Draft, other: &Draft) -> bool {
    one.room == other.room && one.payload == other.payload
}

fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
