//! What the core knows of its log and decides about it: what to append, admit, read for peers and let go.
//!
//! Also which time to trust where the machine's own clock was never set.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::batch::Batch;
use super::clock::{AHEAD_MS_MAX, BUILD_MS, Hlc, Mono, Now};
use super::event::{Kept, Load, Missing, Notice, Opened, Order, Output, Report, Span};
use super::ranges::RangeSet;
use super::{AHEAD_MS_REFUSED, DAY_MS, Mutant, Replica, Source};
use crate::id::{EntryId, Run, Seq};

/// Bytes of batches on their way to the disk. While there are more, entries of others are delivered, but kept later, when
/// they are asked for again.
pub const APPEND_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Reads for peers that are under way; a peer that asks for more asks somebody else.
pub const LOADS_MAX: usize = 32;
/// Retention is looked after this often.
const RETAIN_EVERY: Duration = Duration::from_secs(10);
/// A node younger than this takes over the time of its peers if they agree that it is late.
const YOUNG: Duration = Duration::from_secs(10);

/// The log as the core sees it.
#[derive(Debug)]
pub(crate) struct Log {
    state: State,
    appending: Appending,
    /// Batches of the window that were too much for the disk when they came.
    postponed: BTreeSet<(Run, Seq)>,
    loads: usize,
    retain_at: Mono,
    born: Mono,
    /// The newest time of this node's own earlier runs.
    last_life: Hlc,
    /// It was at least so late at this moment, whatever the machine's clock shows. The machine's clock may be set at any
    /// time, so this is a time that runs on by itself, not something to add to that clock.
    at_least: (u64, Mono),
    /// How far the median of the peers' clocks is ahead of our monotonic one: the other may be set at any time.
    offset_ms: Option<i64>,
}

/// Batches ordered to be kept and not reported. The history carries orders out one after the other: what it has not
/// reported when it reports a later one, it has refused.
#[derive(Debug, Default)]
struct Appending {
    batches: BTreeMap<(Run, Seq), Ordered>,
    by_number: BTreeMap<u64, (Run, Seq)>,
    ordered: u64,
    bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Ordered {
    number: u64,
    last: Seq,
    bytes: usize,
}

impl Appending {
    fn insert(&mut self, run: Run, first: Seq, last: Seq, bytes: usize) {
        self.remove(run, first);
        self.ordered += 1;
        self.bytes += bytes;
        self.by_number.insert(self.ordered, (run, first));
        self.batches.insert((run, first), Ordered { number: self.ordered, last, bytes });
    }

    fn remove(&mut self, run: Run, first: Seq) -> Option<Ordered> {
        let ordered = self.batches.remove(&(run, first))?;
        self.by_number.remove(&ordered.number);
        self.bytes -= ordered.bytes;
        Some(ordered)
    }

    /// Those of `run` up to `floor` need not be kept any more.
    fn expire(&mut self, run: Run, floor: Seq) {
        let gone: Vec<Seq> = self.batches.range((run, Seq(0))..=(run, floor)).map(|((_, first), _)| *first).collect();
        for first in gone {
            self.remove(run, first);
        }
    }

    /// Takes out what was ordered before `number`.
    fn refused(&mut self, number: u64) -> Vec<Span> {
        let mut refused = Vec::new();
        while let Some((_, (run, first))) = self.by_number.first_key_value().filter(|(at, _)| **at < number) {
            let (run, first) = (*run, *first);
            let last = self.remove(run, first).map_or(first, |ordered| ordered.last);
            refused.push(Span { run, first, last });
        }
        refused
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// This node keeps nothing.
    None,
    Open,
    /// It takes nothing for now.
    Closed,
}

/// Why retention by age waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockDoubt {
    /// The clock shows a time before this program was made.
    NeverSet,
    /// It is more than a day behind what this node said in its last life.
    BehindLastLife,
    /// It differs from the median of the peers by more than a minute: by so many milliseconds.
    OffMedian(i64),
}

impl Log {
    pub fn new(now: Mono) -> Log {
        Log {
            state: State::None,
            appending: Appending::default(),
            postponed: BTreeSet::new(),
            loads: 0,
            retain_at: now + RETAIN_EVERY,
            born: now,
            last_life: Hlc::default(),
            at_least: (0, now),
            offset_ms: None,
        }
    }

    /// What was ordered before is undone, or was carried out without a word: the streams say which.
    fn begin(&mut self, state: State) {
        self.state = state;
        self.appending = Appending::default();
        self.postponed.clear();
        self.loads = 0;
    }

    /// Whether this node keeps a log, be it out of order for now.
    pub fn is_there(&self) -> bool {
        self.state != State::None
    }

    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Whether so much is on its way to the disk that nothing more should be asked for.
    pub fn is_behind(&self) -> bool {
        self.appending.bytes > APPEND_BYTES_MAX / 2
    }

    /// The batches that are on their way to the disk.
    pub fn appending(&self) -> impl Iterator<Item = (Run, Seq)> + '_ {
        self.appending.batches.keys().copied()
    }

    pub fn deadline(&self) -> Option<Mono> {
        self.is_there().then_some(self.retain_at)
    }

    /// The time to give to what we say.
    pub fn time(&self, now: Now) -> Now {
        let (wall_ms, at) = self.at_least;
        let since_ms = u64::try_from((now.mono - at).as_millis()).unwrap_or(u64::MAX);
        Now { wall_ms: now.wall_ms.max(wall_ms.saturating_add(since_ms)), ..now }
    }

    /// Whether a time is so far ahead of every clock we know that it cannot be.
    pub fn is_ahead(&self, now: Now, hlc: Hlc) -> bool {
        if self.offset_ms.is_none() && now.wall_ms < BUILD_MS {
            return false;
        }
        let peers = self.median_ms(now).unwrap_or(0);
        hlc.wall_ms() > self.time(now).wall_ms.max(peers).saturating_add(AHEAD_MS_REFUSED)
    }

    /// Why the machine's clock is not to be trusted with what is to be let go.
    fn doubt(&self, now: Now) -> Option<ClockDoubt> {
        if now.wall_ms < BUILD_MS {
            return Some(ClockDoubt::NeverSet);
        }
        if now.wall_ms + DAY_MS < self.last_life.wall_ms() {
            return Some(ClockDoubt::BehindLastLife);
        }
        let offset = self.median_ms(now)?.cast_signed().wrapping_sub(now.wall_ms.cast_signed());
        (offset.unsigned_abs() > AHEAD_MS_MAX).then_some(ClockDoubt::OffMedian(offset))
    }

    /// What time it is by the median of the peers.
    fn median_ms(&self, now: Now) -> Option<u64> {
        self.offset_ms.map(|offset| now.mono.0.saturating_add_signed(offset))
    }
}

impl Replica {
    /// Why retention by age waits, if it does.
    pub fn clock_doubt(&self, now: Now) -> Option<ClockDoubt> {
        self.log.doubt(now)
    }

    /// Bytes of batches that are on their way to the disk.
    pub fn appending_bytes(&self) -> usize {
        self.log.appending.bytes
    }

    /// Takes batches that another log exported; answers the last entry of each that is on its way to the disk now.
    pub fn import(&mut self, now: Now, batches: Vec<Kept>) -> Vec<EntryId> {
        let mut appending = Vec::new();
        for kept in batches {
            let (run, first, last) = (kept.batch.origin(), kept.batch.first(), kept.batch.last());
            self.store(now, kept, Source::Repair);
            if self.log.appending.batches.contains_key(&(run, first)) {
                appending.push(EntryId { run, seq: last });
            }
        }
        self.tick(now, false);
        appending
    }

    /// How many entries are known to be with others and not here.
    pub fn missing(&self) -> u64 {
        let missing = |run: &Run| {
            let missing = self.streams.get(run).map(|stream| stream.missing(self.limit(*run), self.log.is_there()));
            missing.into_iter().flatten().map(|(first, last)| last.0 - first.0 + 1).sum::<u64>()
        };
        self.lacking.iter().map(missing).sum()
    }

    pub(super) fn hear_log(&mut self, now: Now, report: Report) {
        match report {
            Report::Opened(opened) => self.open_log(now, opened),
            Report::Stored(spans) => self.stored(now, spans),
            Report::Closed => self.log.begin(State::Closed),
            Report::Loaded { load, batches, through } => {
                self.log.loads = self.log.loads.saturating_sub(1);
                // A disk that could not be read answers nothing; whoever asked will ask somebody else.
                if through >= load.span.first {
                    self.loaded(load, batches, through);
                }
            }
            Report::Expired { run, floor, newest } => self.expired(now, run, floor, newest),
            Report::Found(batches) => {
                for kept in batches {
                    self.store(now, kept, Source::Repair);
                }
            }
        }
    }

    /// The log is there: takes over what it holds, and has it keep what only the window holds.
    pub(super) fn open_log(&mut self, now: Now, opened: Opened) {
        let Opened { streams, horizon } = opened;
        self.log.begin(State::Open);
        self.stay();
        self.horizon = self.horizon.max(horizon);
        let mut disk: BTreeMap<Run, _> = streams.into_iter().map(|stream| (stream.run, stream)).collect();
        let mut untold = Vec::new();
        for (run, stream) in &mut self.streams {
            let none = || super::event::OnDisk {
                run: *run,
                floor: Seq(0),
                stored: RangeSet::new(),
                admitted: RangeSet::new(),
                settled: RangeSet::new(),
                newest: Hlc::default(),
            };
            untold.push((*run, stream.open(now.mono, disk.remove(run).unwrap_or_else(none))));
        }
        for (run, on_disk) in disk {
            if run.node == self.me.node {
                self.log.last_life = self.log.last_life.max(on_disk.newest);
            }
            let hash = run.hash();
            let mut stream = super::Stream::new(now.mono, hash);
            stream.open(now.mono, on_disk);
            self.runs.insert(hash, run);
            self.streams.insert(run, stream);
        }
        // What was settled while the log was closed, or was forgotten by it.
        for (run, settled) in untold {
            for (first, last) in settled.iter() {
                self.settle_on_disk(Span { run, first, last });
            }
        }
        // Time does not run back between the lives of a node.
        self.raise(now, self.log.last_life.wall_ms());
        let window: Vec<(Run, Seq)> = self.window.iter().collect();
        for (run, first) in window {
            self.append_from_window(run, first);
        }
        let runs: Vec<Run> = self.streams.keys().copied().collect();
        for run in runs {
            self.admit(run);
            self.look_for_holes(run);
        }
    }

    /// Has the log keep a batch that was just taken.
    pub(super) fn append(&mut self, kept: Kept) {
        if !self.log.is_open() {
            return;
        }
        let (run, first, last) = (kept.batch.origin(), kept.batch.first(), kept.batch.last());
        let bytes = kept.batch.bytes().len();
        if run != self.me && self.log.appending.bytes + bytes > APPEND_BYTES_MAX {
            if let Some(stream) = self.streams.get_mut(&run) {
                stream.taken.remove(first, last);
            }
            self.log.postponed.insert((run, first));
            return;
        }
        self.log.appending.insert(run, first, last, bytes);
        if self.bug(Mutant::AckBeforeSync)
            && let Some(stream) = self.streams.get_mut(&run)
        {
            stream.stored.insert(first, last);
        }
        self.outputs.push_back(Output::Log(Order::Append(kept)));
    }

    fn stored(&mut self, now: Now, spans: Vec<Span>) {
        let mut runs: Vec<Run> = Vec::new();
        let mut number = 0;
        for Span { run, first, last } in spans {
            number = number.max(self.log.appending.remove(run, first).map_or(0, |ordered| ordered.number));
            if let Some(stream) = self.streams.get_mut(&run) {
                stream.store(now.mono, first, last);
                if runs.last() != Some(&run) {
                    runs.push(run);
                }
            }
        }
        for Span { run, first, last } in self.log.appending.refused(number) {
            self.refused(run, first, last);
        }
        for run in runs {
            self.admit(run);
            self.mark(now, run);
        }
        self.append_postponed();
        self.deadline = self.deadline.min(self.beat_at);
    }

    /// The log refuses a batch, which is none of this stream by what is on disk: as if nobody had it.
    fn refused(&mut self, run: Run, first: Seq, last: Seq) {
        self.counters.conflicts += 1;
        let Some(stream) = self.streams.get_mut(&run) else { return };
        let from = first.max(stream.floor.next());
        for (first, last) in stream.stored.missing(from, last) {
            if let Some(stream) = self.streams.get_mut(&run) {
                stream.contradicted.insert(first, last);
            }
            self.settle(Span { run, first, last }, Missing::Lost);
        }
        self.admit(run);
        self.look_for_holes(run);
    }

    /// Has the log keep a batch of the window, if it neither has it nor is about to; answers whether that was so.
    fn append_from_window(&mut self, run: Run, first: Seq) -> bool {
        let Some(stream) = self.streams.get_mut(&run) else { return false };
        let kept = stream.kept(first, first).next().filter(|kept| kept.batch.first() == first);
        let Some(kept) = kept.filter(|kept| !stream.taken.covers(first, kept.batch.last())) else { return false };
        stream.taken.insert(first, kept.batch.last());
        self.append(kept);
        true
    }

    /// Has the log keep what was too much for it before and is still in the window; the rest is asked for again.
    fn append_postponed(&mut self) {
        while !self.log.is_behind()
            && let Some((run, first)) = self.log.postponed.pop_first()
        {
            if self.append_from_window(run, first) {
                self.look_for_holes(run);
            }
        }
    }

    /// Gives local numbers to what can have them.
    pub(super) fn admit(&mut self, run: Run) {
        let beyond_holes = self.bug(Mutant::HoleAdmitted);
        let Some(stream) = self.streams.get_mut(&run).filter(|_| self.log.is_there()) else { return };
        for (first, last, late) in stream.admit(beyond_holes) {
            self.outputs.push_back(Output::Log(Order::Admit { span: Span { run, first, last }, late }));
        }
    }

    /// Has the log remember what is missing for good.
    pub(super) fn settle_on_disk(&mut self, span: Span) {
        if self.log.is_open() {
            self.outputs.push_back(Output::Log(Order::Settle(span)));
        }
    }

    /// Reads what a peer asks for; false if too much is being read.
    pub(super) fn load(&mut self, load: Load) -> bool {
        if self.log.loads >= LOADS_MAX {
            return false;
        }
        self.log.loads += 1;
        self.outputs.push_back(Output::Log(Order::Load(load)));
        true
    }

    /// What was read for a peer, and what of it is in memory only, goes to it.
    fn loaded(&mut self, load: Load, mut batches: Vec<Kept>, through: Seq) {
        let Load { to, span: Span { run, first, .. }, .. } = load;
        if let Some(stream) = self.streams.get(&run) {
            let there: Vec<Seq> = batches.iter().map(|kept| kept.batch.first()).collect();
            batches.extend(stream.kept(first, through).filter(|kept| !there.contains(&kept.batch.first())));
            batches.sort_by_key(|kept| kept.batch.first());
        }
        self.answer(to, run, first, through, batches);
    }

    /// Retention has let something go.
    fn expired(&mut self, now: Now, run: Run, floor: Seq, newest: Hlc) {
        self.horizon = self.horizon.max(newest);
        self.log.appending.expire(run, floor);
        let Some(stream) = self.streams.get_mut(&run) else { return };
        let gone: Vec<Batch> = stream.batches(Seq(1), floor).filter(|batch| batch.last() <= floor).cloned().collect();
        let before = stream.stored.count();
        for batch in gone {
            self.evict(now, run, batch.first());
        }
        let readmit = self.bug(Mutant::ExpiredReadmitted);
        let start = self.start;
        let Some(stream) = self.streams.get_mut(&run) else { return };
        let floor_before = stream.floor;
        let missing = stream.owed_holes(floor);
        let steps = stream.expire(now.mono, floor, start);
        if readmit {
            stream.floor = floor_before;
        }
        self.counters.expired += before - stream.stored.count();
        if missing > 0 {
            self.counters.missing = self.counters.missing.saturating_add(missing);
            self.notify(Notice::Gap { origin: run, missing, reason: Missing::Expired });
        }
        self.step(run, steps);
        self.mark(now, run);
        self.look_for_holes(run);
        self.admit(run);
        self.leave(run);
    }

    /// Lets go of a whole origin.
    pub(super) fn expire_all(&mut self, run: Run) {
        if self.log.is_open() {
            self.outputs.push_back(Output::Log(Order::Expire(run)));
        }
    }

    pub(super) fn forget_on_disk(&mut self, run: Run) {
        if self.log.is_open() {
            self.outputs.push_back(Output::Log(Order::Forget { run, horizon: self.horizon }));
        }
    }

    /// Has the log let go of what is due, and forgets origins of which nothing is left and nothing can come back.
    pub(super) fn retain(&mut self, now: Now) {
        if !self.log.is_there() || now.mono < self.log.retain_at {
            return;
        }
        self.log.retain_at = now.mono + RETAIN_EVERY;
        if !self.log.is_open() {
            return;
        }
        let wall_ms = self.log.doubt(now).is_none().then_some(now.wall_ms);
        self.outputs.push_back(Output::Log(Order::Retain { wall_ms }));
        let left: Vec<Run> = self
            .streams
            .iter()
            .filter(|(run, stream)| {
                // A time that says no age is never refused as old: only its floor keeps what it says from coming back.
                let aged = stream.newest.wall_ms() >= BUILD_MS;
                let past = aged && stream.newest.plus(DAY_MS << 16) < self.horizon;
                past && stream.floor > Seq(0) && stream.is_bare() && **run != self.me && self.is_over(now, **run)
            })
            .map(|(run, _)| *run)
            .collect();
        for run in left {
            self.forget(run);
            // Peers that still know it name it for a while; there is nothing to ask.
            self.turn_away(run);
        }
    }

    /// A peer says what time it is.
    pub(super) fn hear_time(&mut self, now: Now, from: Run, wall_ms: u64) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.offset_ms = Some(wall_ms.cast_signed().wrapping_sub(now.mono.0.cast_signed()));
        let mut offsets: Vec<i64> =
            self.peers.values().filter(|peer| peer.live).filter_map(|peer| peer.offset_ms).collect();
        offsets.sort_unstable();
        // After its goodbye a peer's last words may still come: then there may be nobody to go by.
        self.log.offset_ms = offsets.get(offsets.len().saturating_sub(1) / 2).copied();
        // One peer alone may be the one that is wrong, unless we know that we are.
        let young = now.mono - self.log.born < YOUNG && offsets.len() > 1;
        let late = |peers: &u64| *peers > now.wall_ms.saturating_add(AHEAD_MS_MAX);
        if let Some(peers) = self.log.median_ms(now).filter(late).filter(|_| young || now.wall_ms < BUILD_MS) {
            self.raise(now, peers);
        }
    }

    /// It is at least `wall_ms` now.
    fn raise(&mut self, now: Now, wall_ms: u64) {
        if wall_ms > self.log.time(now).wall_ms {
            self.log.at_least = (wall_ms, now.mono);
        }
        self.start = self.start.max(Hlc::at(self.log.time(now).wall_ms));
    }
}
